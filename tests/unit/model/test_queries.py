"""Queries mean what they say, and travel as URL parameters without change.

If these fail, a search answers another question than the one asked, or a typing mistake in a client
is answered with a server error.
"""

import json

import numpy as np
import pytest
from hypothesis import assume, given

from flystore.model import queries as q
from flystore.model.errors import InvalidRequest, Unsupported
from flystore.model.structures import Family, Spec
from flystore.testing.searching import metadata, queries


class Thing:
    """What a query looks at."""

    def __init__(self, key="n", family=Family.ARRAY, specs=(), access_tags=(), **metadata):
        self.key, self.family, self.metadata = key, family, metadata
        self.specs, self.access_tags = [Spec(name) for name in specs], access_tags


VALUES = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "float one": 1.0,
    "half": 2.5,
    "text one": "1",
    "abc": "abc",
    "ABC": "ABC",
    "empty": "",
    "list": ["abc", "b"],
    "numbers": [1, 2],
    "mapping": {"y": 1},
    "empty list": [],
}


def found(query):
    """Return the names of `VALUES` that a query about ``x`` matches, and "missing" if it matches none there."""
    names = {name for name, value in VALUES.items() if q.matches(query, Thing(x=value))}
    return names | ({"missing"} if q.matches(query, Thing()) else set())


ALL = set(VALUES) | {"missing"}
THERE = set(VALUES) - {"null"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (q.Eq("x", 1), {"one", "float one"}),
        (q.Eq("x", True), {"true"}),
        (q.Eq("x", 0), {"zero"}),
        (q.Eq("x", "1"), {"text one"}),
        (q.Eq("x", "abc"), {"abc"}),
        (q.Eq("x", None), {"null"}),
        (q.Eq("x.y", 1), {"mapping"}),
        (q.NotEq("x", "abc"), THERE - {"abc"}),
        (q.NotEq("x", 1), THERE - {"one", "float one"}),
        (q.NotEq("x", None), THERE),
        (q.In("x", ("abc", 1)), {"abc", "one", "float one"}),
        (q.In("x", ()), set()),
        (q.NotIn("x", ("abc", 1)), THERE - {"abc", "one", "float one"}),
        (q.NotIn("x", ()), ALL),
        (q.Comparison("lt", "x", 1), {"zero"}),
        (q.Comparison("le", "x", 1), {"zero", "one", "float one"}),
        (q.Comparison("gt", "x", 1), {"half"}),
        (q.Comparison("ge", "x", 1), {"one", "float one", "half"}),
        (q.Comparison("ge", "x", "abc"), {"abc"}),
        (q.Comparison("lt", "x", "abc"), {"text one", "ABC", "empty"}),
        (q.Contains("x", "abc"), {"abc", "list"}),
        (q.Contains("x", "b"), {"abc", "list"}),
        (q.Contains("x", 1), {"numbers"}),
        (q.Contains("x", True), set()),
        (q.KeyPresent("x"), set(VALUES)),
        (q.KeyPresent("x", exists=False), {"missing"}),
        (q.KeyPresent("x.y"), {"mapping"}),
        (q.Like("x", "abc"), {"abc"}),
        (q.Like("x", "a%"), {"abc"}),
        (q.Like("x", "%B%"), {"ABC"}),
        (q.Like("x", "_b_"), {"abc"}),
        (q.Like("x", "%"), {"text one", "abc", "ABC", "empty"}),
        (q.And(), ALL),
        (q.And((q.KeyPresent("x"), q.Eq("x", 0))), {"zero"}),
    ],
)
def test_a_query_matches_the_values_it_says(query, expected):
    assert found(query) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a%c", "ac", True),
        ("a%c", "abcbc", True),
        ("a%c", "abcb", False),
        ("a%ba", "aba", True),
        ("ab%ba", "aba", False),
        ("%a_%", "ba", False),
        ("%a_%", "bax", True),
        ("a\\%b", "a%b", True),
        ("a\\%b", "axb", False),
        ("a\\_b", "axb", False),
        ("a\\\\b", "a\\b", True),
        ("a\\", "a\\", True),
        ("_", "\n", True),
        ("a.c", "abc", False),
        ("é%", "élan", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_patterns_fit_as_in_sql(pattern, text, fits):
    assert q.matches(q.Like("x", pattern), Thing(x=text)) is fits


def test_a_hostile_pattern_costs_no_more_than_the_text_is_long():
    text = "a" * 50_000

    assert not q.matches(q.Like("x", "%a" * 40 + "%b"), Thing(x=text))  # else this never ends


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("walrus", True),
        ("Walrus", True),
        ("wal", False),
        ("tusks walrus", True),
        ("walrus AND tusks", True),
        ("walrus hyena", False),
        ('"long tusks"', True),
        ("name", True),
        ("42", True),
        ("true", True),
        ("17", False),
        ("brown_fox", True),
        ("ÉLAN", True),
    ],
)
def test_full_text_looks_for_whole_words_of_keys_and_values(text, matches):
    thing = Thing(
        sample={"name": "The Walrus", "tags": ["long tusks", {"fox": "brown"}]}, n=42, ok=True, l=[17], e="élan"
    )

    assert q.matches(q.FullText(text), thing) is matches


@pytest.mark.parametrize("text", ["", "!?", 'an "open', "one OR two", "NOT one", "wal*"])
def test_full_text_that_asks_for_more_than_words_is_refused(text):
    with pytest.raises(InvalidRequest, match="fulltext"):
        q.FullText(text)


def test_what_a_node_is_can_be_asked_for():
    thing = Thing(key="k", family=Family.TABLE, specs=("A", "B"), access_tags=("t",))

    for query in (
        q.Specs(("A",), ("C",)),
        q.Specs(),
        q.AccessTags(("s", "t")),
        q.StructureFamily(Family.TABLE),
        q.KeysFilter(("j", "k")),
        q.Lookup("k"),
    ):
        assert q.matches(query, thing), query
    for query in (
        q.Specs(("A", "C"), ()),
        q.Specs((), ("B",)),
        q.AccessTags(()),
        q.AccessTags(("s",)),
        q.StructureFamily(Family.ARRAY),
        q.KeysFilter(()),
        q.Lookup("K"),
    ):
        assert not q.matches(query, thing), query


def test_a_verdict_is_the_caller_s_to_know():
    assert q.matches(q.Verdict("complete"), Thing(), verdict="complete")
    assert not q.matches(q.Verdict("complete"), Thing(), verdict="running")
    assert not q.matches(q.Verdict("complete"), Thing())


def test_a_regular_expression_is_read_and_not_evaluated():
    with pytest.raises(Unsupported, match="like"):
        q.matches(q.Regex("x", "(a+)+$"), Thing(x="a" * 40))


def test_a_key_with_a_dot_of_its_own_cannot_be_addressed():
    thing = Thing(**{"a.b": 1})

    assert not q.matches(q.KeyPresent("a.b"), thing)
    assert q.value_at({"a": {"b": None}}, "a.b") is None
    assert q.value_at({"a": 1}, "a.b") is q.MISSING


@pytest.mark.parametrize(
    "make",
    [
        lambda: q.Eq("x", [1]),
        lambda: q.Eq("x", {"a": 1}),
        lambda: q.NotEq("x", float("nan")),
        lambda: q.Comparison("lt", "x", float("inf")),
        lambda: q.In("x", "abc"),
        lambda: q.In("x", ([1],)),
        lambda: q.Comparison("lt", "x", None),
        lambda: q.Comparison("lt", "x", True),
        lambda: q.Comparison("eq", "x", 1),
        lambda: q.Specs("A"),
        lambda: q.KeysFilter((1,)),
        lambda: q.StructureFamily("composite"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_when_it_is_made(make):
    with pytest.raises(InvalidRequest):
        make()


def test_numbers_of_numpy_and_lists_are_taken():
    assert q.Eq("x", np.int64(5)) == q.Eq("x", 5)
    assert q.In("x", np.array([1, 2])) == q.In("x", (1, 2))
    assert q.Specs(["A"], ["B"]) == q.Specs(("A",), ("B",))
    assert hash(q.In("x", [1])) == hash(q.In("x", (1,)))


# --- on the wire ---


def params(**fields):
    """Return parameters: ``eq__key="a"`` is ``filter[eq][condition][key]=a``; a list repeats."""
    found = []
    for name, values in fields.items():
        query, field = name.split("__")
        for value in values if isinstance(values, list) else [values]:
            found.append((f"filter[{query.rstrip('_')}][condition][{field}]", value))
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (params(fulltext__text="walrus"), q.FullText("walrus")),
        (params(lookup__key="a b"), q.Lookup("a b")),
        (params(keys_filter__keys='["a","b"]'), q.KeysFilter(("a", "b"))),
        (params(regex__key="x", regex__pattern="a+", regex__case_sensitive="false"), q.Regex("x", "a+", False)),
        (params(eq__key="x", eq__value='"scan"'), q.Eq("x", "scan")),
        (params(eq__key="x", eq__value="3"), q.Eq("x", 3)),
        (params(eq__key="x", eq__value="null"), q.Eq("x", None)),
        (params(noteq__key="x", noteq__value="true"), q.NotEq("x", True)),
        (
            params(comparison__operator="ge", comparison__key="x", comparison__value="1.5"),
            q.Comparison(q.Operator.GE, "x", 1.5),
        ),
        (params(contains__key="x", contains__value='"ccd"'), q.Contains("x", "ccd")),
        (params(in__key="x", in__value="[1, 2]"), q.In("x", (1, 2))),
        (params(notin__key="x", notin__value="[]"), q.NotIn("x", ())),
        (params(keypresent__key="x", keypresent__exists="False"), q.KeyPresent("x", False)),
        (params(keypresent__key="x"), q.KeyPresent("x")),
        (params(like__key="x", like__pattern='"re%"'), q.Like("x", "re%")),
        (params(specs__include='["BlueskyRun"]', specs__exclude="[]"), q.Specs(("BlueskyRun",))),
        (params(access_tags_filter__tags='["t"]'), q.AccessTags(("t",))),
        (params(structure_family__value="array"), q.StructureFamily(Family.ARRAY)),
        (params(verdict__state="gaps"), q.Verdict("gaps")),
    ],
)
def test_each_filter_of_the_protocol_is_read(given, expected):
    assert q.parse_filters(given) == [expected]


def test_repeated_fields_belong_together_in_order():
    given = params(eq__key=["a", "b"], eq__value=["1", "2"], lookup__key="k")

    assert q.parse_filters(given) == [q.Eq("a", 1), q.Eq("b", 2), q.Lookup("k")]


def test_what_is_no_filter_or_an_unknown_one_is_passed_over():
    given = [("page[limit]", "3"), ("filter[eq]", "1"), *params(magic__key="x"), ("filter[eq][other][key]", "x")]

    assert q.parse_filters(given) == []


@pytest.mark.parametrize(
    "given",
    [
        params(eq__key="x"),
        params(eq__value="1"),
        params(eq__key="x", eq__value="{"),
        params(eq__key="x", eq__value="NaN"),
        params(eq__key="x", eq__value="1e999"),
        params(eq__key="x", eq__value="[1]"),
        params(eq__key="x", eq__value="[" * 100_000),
        params(eq__key=["x", "y"], eq__value="1"),
        params(keypresent__key=["x", "y"], keypresent__exists="true"),
        params(keypresent__key="x", keypresent__exists="maybe"),
        params(in__key="x", in__value="1"),
        params(in__key="x", in__value="[[1]]"),
        params(keys_filter__keys="[1]"),
        params(like__key="x", like__pattern="re%"),
        params(like__key="x", like__pattern="5"),
        params(comparison__key="x", comparison__value="1", comparison__operator="eq"),
        params(specs__include='["A"]'),
        params(specs__include='"A"', specs__exclude="[]"),
        params(structure_family__value="composite"),
        params(fulltext__text='"open'),
    ],
)
def test_a_filter_that_cannot_be_read_is_the_caller_s_fault(given):
    with pytest.raises(InvalidRequest):
        q.parse_filters(given)


@given(queries())
def test_queries_come_back_from_their_parameters(wanted):
    assume("ud800" not in repr(wanted))  # half a character cannot travel
    encoded = q.encode_filters(wanted)
    back = q.parse_filters(encoded)

    assert sorted(back, key=repr) == sorted(q.flatten(wanted), key=repr)


def test_half_a_character_is_refused_before_it_is_sent():
    with pytest.raises(InvalidRequest, match="half a character"):
        q.encode_filters(q.Eq("x", "\ud800"))


def test_the_stock_client_s_encoding_is_read():
    """The same fields, as `tiled.queries` writes them."""
    from tiled import queries as stock

    made = {
        "eq": (stock.Eq("x", "a"), q.Eq("x", "a")),
        "in": (stock.In("x", [1, "b"]), q.In("x", (1, "b"))),
        "like": (stock.Like("x", "a%"), q.Like("x", "a%")),
        "specs": (stock.SpecsQuery(["A"], ["B"]), q.Specs(("A",), ("B",))),
        "keypresent": (stock.KeyPresent("x", False), q.KeyPresent("x", False)),
        "comparison": (stock.Comparison("gt", "x", 1), q.Comparison("gt", "x", 1)),
        "regex": (stock.Regex("x", "a"), q.Regex("x", "a")),
        "keys_filter": (stock.KeysFilter(["a"]), q.KeysFilter(("a",))),
    }
    for name, (theirs, ours) in made.items():
        given = [(f"filter[{name}][condition][{field}]", str(value)) for field, value in theirs.encode().items()]
        assert q.parse_filters(given) == [ours]


@given(metadata())
def test_words_survive_json(found):
    assert q.words_of(json.loads(json.dumps(found))) == q.words_of(found)
