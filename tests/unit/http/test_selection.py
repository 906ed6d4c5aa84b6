"""``select_metadata`` gives what JMESPath gives, and never more than a machine holds.

If these fail, two hundred characters of a URL take all memory of the service.
"""

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.http.selection import Selection
from flystore.model.errors import InvalidRequest, TooLarge

METADATA = {
    "start": {"plan_name": "count", "motors": ["x", "y"], "n": 3},
    "list": [[1, 2], [3], "four", {"a": 5}],
    "text": "abc",
    "rows": [{"a": i, "b": str(i)} for i in range(5)],
}
EXPRESSIONS = [
    "start.plan_name", "{p: start.plan_name, n: start.n}", "list[]", "list[][]", "rows[*].a", "rows[?a > `2`].b",
    "join(', ', start.motors)", "join(text, start.motors)", "to_string(start)", "to_string(text)", "length(rows)",
    "sort_by(rows, &b)[-1].a", "map(&a, rows)", "start.*", "nothing", "text[]", "max(rows[*].a)", "rows[::-2]",
    "merge(start, {n: `4`})", "not_null(nothing, text)", "reverse(start.motors)", "@",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_gives_what_the_language_says(expression):
    assert Selection(expression, 10_000)(METADATA) == jmespath.search(expression, METADATA)


def test_false_selects_nothing():
    assert Selection("false", 10)(METADATA) is None


@pytest.mark.parametrize(
    "expression",
    [
        "|".join(["[@,@]"] * 60), "|".join(["{a:@,b:@}"] * 60), "list" + "|[@,@][]" * 60,
        "text" + "|join(@,[@,@,@])" * 40, "|".join(["to_string([@,@])"] * 40), "|".join(["map(&[@,@],[@,@])"] * 30),
        "list" + "|map(&[@,@,@][],[@,@,@])" * 9,
    ],
)  # fmt: skip
def test_what_doubles_at_each_step_is_refused(expression):
    with pytest.raises(TooLarge):
        Selection(expression, 20_000)(METADATA)


def test_all_nodes_of_a_request_share_the_steps():
    select = Selection("rows[*].a", 100)
    select(METADATA)
    with pytest.raises(TooLarge):
        [select(METADATA) for _ in range(100)]


PARTS = ["[@,@]", "[]", "start", "list", "rows", "[0]", "*", "{a:@}", "to_string(@)"]


@given(st.lists(st.sampled_from(PARTS), max_size=9))
def test_an_expression_gives_the_same_or_is_refused(parts):
    expression = " | ".join(parts) or "@"
    try:
        found = Selection(expression, 5_000)(METADATA)
    except InvalidRequest:
        return
    assert found == jmespath.search(expression, METADATA) or "to_string" in expression
