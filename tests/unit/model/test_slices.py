"""Slices select exactly what numpy selects, or are refused in words.

If these fail, people get other parts of their data than they asked for, or a request takes the
service down.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest, OutOfBounds
from flystore.model.slices import MAX_DIMS, format_slice, normalise, parse_slice, result_shape

shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)
numbers = st.one_of(st.none(), st.integers(-9, 9))
steps = st.one_of(st.none(), st.integers(-4, 4).filter(bool))
slices = st.builds(slice, numbers, numbers, steps)


@st.composite
def selections(draw):
    shape = draw(shapes)
    items = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        choices = [slices] + ([st.integers(-n, n - 1)] if n else [])
        items.append(draw(st.one_of(*choices)))
    return shape, tuple(items)


@given(selections())
def test_a_normalised_selection_selects_what_numpy_selects(case):
    shape, selection = case
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)

    normal = normalise(selection, shape)

    assert len(normal) == len(shape)
    np.testing.assert_array_equal(array[normal], array[selection])
    assert result_shape(selection, shape) == array[selection].shape
    assert normalise(normal, shape) == normal


@given(selections())
def test_text_and_selection_are_the_same_thing(case):
    _, selection = case
    assert parse_slice(format_slice(selection)) == selection
    assert format_slice(parse_slice(format_slice(selection))) == format_slice(selection)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("", ()),
        ("0:6:1,0", (slice(0, 6, 1), 0)),
        ("::", (slice(None),)),
        (":", (slice(None),)),
        ("-1", (-1,)),
        ("::-1", (slice(None, None, -1),)),
        ("5:,:3,1:2:3", (slice(5, None), slice(None, 3), slice(1, 2, 3))),
    ],
)
def test_the_protocols_forms_are_understood(text, meaning):
    assert parse_slice(text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "1,,2",
        ",",
        ":,",
        "1:2:3:4",
        "...",
        " 1",
        "1 ",
        "1\n",
        "+1",
        "1.0",
        "0x1",
        "--1",
        "None",
        "::0",
        "1:2:0",
        "٣",
        "9" * 20,
        "9" * 5000,
        ",".join(["0"] * (MAX_DIMS + 1)),
        "," * 10**6,
    ],
)
def test_anything_else_is_an_invalid_request(text):
    with pytest.raises(InvalidRequest):
        parse_slice(text)


@pytest.mark.parametrize(("item", "n"), [(3, 3), (-4, 3), (0, 0), (10**18, 3), (-(10**18), 3)])
def test_an_integer_outside_its_axis_is_out_of_bounds(item, n):
    with pytest.raises(OutOfBounds) as caught:
        normalise((item,), (n,))
    assert caught.value.length == n
    assert isinstance(caught.value, IndexError)


def test_more_dimensions_than_the_array_has_are_refused():
    with pytest.raises(InvalidRequest, match="2 dimensions, the array 1"):
        normalise((0, 0), (3,))
    with pytest.raises(InvalidRequest):
        normalise((slice(None),), ())


@pytest.mark.parametrize("item", ["0", 1.5, None, Ellipsis, [0, 1], slice("a", None)])
def test_what_is_neither_integer_nor_slice_is_refused(item):
    with pytest.raises(InvalidRequest):
        normalise((item,), (3,))


def test_numbers_beyond_64_bits_cost_nothing():
    big = 10**18
    assert result_shape((slice(0, big), slice(None, None, 3)), (big, big)) == (big, (big + 2) // 3)


def test_numpy_integers_are_integers():
    assert normalise((np.int32(-1),), (3,)) == (2,)
