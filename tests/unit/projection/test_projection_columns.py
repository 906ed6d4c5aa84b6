"""Columns take any value, widen when they must, and do not depend on batches.

If these fail, a late float, null or string costs the table of a whole run, or changes values that were stored.
"""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flystore.projection import cast_column
from flystore.projection._columns import NOTHING, arrow_type, encode_column, text_of, type_of
from flystore.testing.documents import plain_values

numbers = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats())
nested = st.recursive(
    st.one_of(plain_values, st.binary(max_size=2), st.complex_numbers(), st.floats()),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
columns = st.one_of(
    st.lists(numbers, max_size=6), st.lists(plain_values, max_size=6), st.lists(nested, max_size=5),
    st.lists(st.lists(numbers, max_size=3), max_size=4),
)  # fmt: skip


def same(a, b):
    return repr(a) == repr(b)  # NaN is NaN


@settings(max_examples=600, deadline=None)
@example(values=[False, -0.0], cut=1)
@given(values=columns, cut=st.integers(0, 6))
def test_two_batches_show_what_one_batch_shows(values, cut):
    whole, whole_type = encode_column(values)
    parts = [encode_column(values[:cut]), encode_column(values[cut:])]
    joined = parts[0][1].join(parts[1][1])
    target = arrow_type(joined)

    assert target == arrow_type(whole_type)
    shown = [value for array, _ in parts for value in cast_column(array, target).to_pylist()]
    assert same(shown, cast_column(whole, target).to_pylist())


@settings(max_examples=300, deadline=None)
@given(values=columns)
def test_the_type_of_a_column_is_that_of_its_values_joined(values):
    joined = NOTHING
    for value in values:
        joined = joined.join(type_of(value))
    assert arrow_type(joined) == arrow_type(encode_column(values)[1])


@given(a=nested.map(type_of), b=nested.map(type_of), c=nested.map(type_of))
def test_joining_is_a_semilattice(a, b, c):
    assert a.join(a) == a
    assert a.join(b) == b.join(a)
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(NOTHING) == a


@settings(max_examples=300, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_integers_are_exact(values):
    array, kind = encode_column(values)
    if any(value is not None for value in values):
        assert cast_column(array, arrow_type(kind)).to_pylist() == values


@pytest.mark.parametrize(
    ("values", "shown_type", "shown"),
    [
        ([None, None], pa.string(), [None, None]),
        ([None, 1.5], pa.float64(), [None, 1.5]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([True, False], pa.bool_(), [True, False]),
        ([True, 2], pa.int64(), [1, 2]),
        ([True, 2.5], pa.float64(), [1.0, 2.5]),
        ([2**53 + 1, -1], pa.int64(), [2**53 + 1, -1]),
        ([2**64 - 1, 1], pa.uint64(), [2**64 - 1, 1]),
        ([2**64 - 1, -1], pa.float64(), [float(2**64), -1.0]),
        (["a", 1, 2.0, None, True], pa.string(), ["a", "1", "2", None, "true"]),
        ([{"b": [1.0, None]}], pa.string(), ['{"b": [1, null]}']),
        ([[], [1, 2]], pa.list_(pa.int64()), [[], [1, 2]]),
        ([[], []], pa.list_(pa.string()), [[], []]),
        ([[1, "a"]], pa.list_(pa.string()), [["1", "a"]]),
        ([[1], 2], pa.string(), ["[1]", "2"]),
        ([(1, 2), [3.5]], pa.list_(pa.float64()), [[1.0, 2.0], [3.5]]),
        ([np.float32(0.5), 1], pa.float64(), [0.5, 1.0]),
        ([np.int16(3), None], pa.int64(), [3, None]),
        ([np.array([1, 2], "u2"), None], pa.list_(pa.int64()), [[1, 2], None]),
        ([np.zeros((2, 2), "f4")], pa.list_(pa.list_(pa.float64())), [[[0.0, 0.0], [0.0, 0.0]]]),
        ([np.array([1, 2], ">i4"), [3]], pa.list_(pa.int64()), [[1, 2], [3]]),
        ([np.array(["2024-01-01"], "M8[D]")], pa.list_(pa.string()), [["2024-01-01"]]),
        ([b"ab"], pa.string(), ["ab"]),
        (["\ud800"], pa.string(), ["\\ud800"]),
        ([float("nan"), float("inf")], pa.float64(), [math.nan, math.inf]),
    ],
    ids=repr,
)
def test_values_are_shown_in_the_type_that_holds_them(values, shown_type, shown):
    array, kind = encode_column(values)
    assert arrow_type(kind) == shown_type
    assert same(cast_column(array, shown_type).to_pylist(), shown)


def test_large_arrays_are_stored_in_their_own_type():
    images = [np.full((100, 100), n, "u2") for n in range(3)]
    array, _ = encode_column(images)
    assert array.type == pa.list_(pa.list_(pa.uint16()))
    assert array.nbytes < 3 * 100 * 100 * 2 * 1.1


@pytest.mark.parametrize("value", [10**5000, [10**5000], {"deep": 10**5000}], ids=["scalar", "list", "dict"])
def test_an_integer_too_long_to_print_is_text_and_not_an_error(value):
    array, kind = encode_column([value, 1])
    assert len(cast_column(array, arrow_type(kind))) == 2


def test_lists_nested_without_end_are_text_and_not_an_error():
    value = []
    for _ in range(3000):
        value = [value]
    array, kind = encode_column([value])
    assert len(cast_column(array, arrow_type(kind))) == 1


def test_equal_numbers_have_equal_text():
    assert text_of(1) == text_of(1.0) == text_of(np.float32(1)) == "1"
    assert text_of([1.0, 0.1]) == "[1, 0.1]"
