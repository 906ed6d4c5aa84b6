"""Strategies for metadata and queries that meet often: few keys, few values, and the awkward ones."""

from typing import Any

from hypothesis import strategies as st

from flystore.model import queries as q
from flystore.model.structures import Family, Spec

_NAMES = ("a", "b", "c", "a.b", "@family", "#", "", "é", "\0", "\ud800", "k" * 300)
KEYS = ("a", "b", "c", "a.b", "a.b.c", "b.a", "a.a", "@family", "@spec", "#", "", "é", "\0", "\ud800", "k" * 300)
"""Dotted keys; some lead nowhere, some only look as if they led somewhere."""

_LONG = "long text " * 60
TEXTS = (
    "",
    "a",
    "b",
    "ab",
    "abc",
    "Abc",
    "a%b_c",
    "a\\b",
    "fox_trot 12",
    "é",
    "ß und ẞ",
    "a\0b",
    "\ud800",
    "\U0010ffff",
    _LONG,
    f"{_LONG}a",
    f"{_LONG}b",
)
NUMBERS = (
    *(0, 1, -1, 2, 2**53, 2**53 + 1, -(2**53) - 1, 2**64, 10**40, -(10**400), 10**400),
    *(0.0, -0.0, 1.0, 0.5, -1.5, 1e300, 5e-324, float(2**53)),
)
PATTERNS = ("a%", "%b", "%b%", "a_c", "_", "%", "", "abc", "a\\%b%", "a\\\\b", "%_b%", f"{_LONG}%", "long%a", "a%b%c")
SPECS = (Spec("A"), Spec("B", "1"), Spec("A b"))
TAGS = ("x", "y")
WORDS = ("a", "long", "text", "fox", "trot", "12", "é", "und", "b", "true", "1", "abc AND a", '"long text"')

scalars = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS))


def metadata() -> st.SearchStrategy[dict[str, Any]]:
    """Return metadata as JSON holds it."""
    lists = st.one_of(
        st.lists(scalars, max_size=3),
        st.just([[1, "a"], {"a": 1}, "ab"]),
        scalars.map(lambda value: [0.25] * 300 + [value]),
    )
    leaf = st.one_of(scalars, lists)
    names = st.sampled_from(_NAMES)
    deep = st.dictionaries(names, leaf, max_size=2)
    middle = st.dictionaries(names, st.one_of(leaf, deep), max_size=3)
    return st.dictionaries(names, st.one_of(leaf, leaf, middle), max_size=4)


def single_queries() -> st.SearchStrategy[q.Query]:
    """Return one query of any kind that looks at a node itself."""
    keys = st.sampled_from(KEYS)
    ordered = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS))
    specs = st.lists(st.sampled_from(("A", "B", "C", "A b")), max_size=2).map(tuple)
    nodes = st.sampled_from(("n0", "n1", "n2", "n9", "", "a/b"))
    return st.one_of(
        st.builds(q.Eq, keys, scalars),
        st.builds(q.NotEq, keys, scalars),
        st.builds(q.Comparison, st.sampled_from(q.Operator), keys, ordered),
        st.builds(q.Contains, keys, scalars),
        st.builds(q.In, keys, st.lists(scalars, max_size=3).map(tuple)),
        st.builds(q.NotIn, keys, st.lists(scalars, max_size=3).map(tuple)),
        st.builds(q.KeyPresent, keys, st.booleans()),
        st.builds(q.Like, keys, st.sampled_from(PATTERNS)),
        st.builds(q.FullText, st.sampled_from(WORDS)),
        st.builds(q.Specs, specs, specs),
        st.builds(q.AccessTags, st.lists(st.sampled_from(("x", "y", "z")), max_size=2).map(tuple)),
        st.builds(q.StructureFamily, st.sampled_from((Family.CONTAINER, Family.ARRAY, Family.TABLE))),
        st.builds(q.KeysFilter, st.lists(nodes, max_size=3).map(tuple)),
        st.builds(q.Lookup, nodes),
    )


def values() -> list[Any]:
    """Return one metadata value of every kind and awkwardness: scalars, and lists and mappings of them."""
    scalar = [None, True, False, *NUMBERS, *TEXTS]
    lists = [[], [1, "a"], [None, True], ["ab", ["a"], {"a": 1}], [0.25] * 300 + ["a"], list(TEXTS)]
    return [*scalar, *lists, {}, {"a": 1}, {"b": {"a": "ab"}}]


def queries_about(key: str) -> list[q.Query]:
    """Return every query about a key with every scalar and pattern that suits it."""
    found: list[q.Query] = [q.KeyPresent(key), q.KeyPresent(key, False)]
    found += [q.Like(key, pattern) for pattern in (*PATTERNS, *TEXTS)]
    for value in (None, True, False, *NUMBERS, *TEXTS):
        found += [q.Eq(key, value), q.NotEq(key, value), q.Contains(key, value)]
        found += [q.In(key, (value, "ab", 1)), q.NotIn(key, (value, "ab", 1))]
        if value is not None and not isinstance(value, bool):
            found += [q.Comparison(operator, key, value) for operator in q.Operator]
    return found


def queries() -> st.SearchStrategy[tuple[q.Query, ...]]:
    """Return up to three queries that must all match."""
    return st.lists(single_queries(), min_size=1, max_size=3).map(tuple)
