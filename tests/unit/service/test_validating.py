"""Which structure files of a shape and type have, and which patterns of errors may be searched for.

If these fail, validation takes a right structure for wrong and "corrects" it, or a caller's pattern keeps a thread
busy for ever.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest, TooLarge
from flystore.model.structures import ArrayStructure
from flystore.service.validating import Ignored, corrected

SHAPES = st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple)


@given(SHAPES, SHAPES, st.sampled_from(["<f8", ">f8", "<u2"]), st.sampled_from(["<f8", "<u2"]), st.integers(0, 3))
def test_what_is_corrected_has_as_many_values_as_the_files_and_is_right_afterwards(
    announced, found, kind, actual, many
):
    structure = ArrayStructure.of(kind, announced)
    right, notes = corrected(structure, found, np.dtype(actual), many)
    assert math.prod(right.shape) == math.prod(found)
    assert tuple(map(sum, right.chunks)) == right.shape
    assert right.numpy_dtype.newbyteorder("=") == np.dtype(actual)
    assert (right == structure) == (not notes)
    assert corrected(right, found, np.dtype(actual), many) == (right, [])
    ArrayStructure.from_wire(right.to_wire())


def test_the_files_seen_in_another_shape_are_right():
    structure = ArrayStructure.of("<u2", (3, 2, 5), ((1, 1, 1), (2,), (5,)), ("t", "y", "x"))
    assert corrected(structure, (6, 5), np.dtype("<u2")) == (structure, [])


def test_names_and_chunks_stay_where_the_axes_do():
    structure = ArrayStructure.of("<u2", (4, 5), ((2, 2), (5,)), ("t", "x"))
    right, _ = corrected(structure, (7, 5), np.dtype("<u2"))
    assert (right.shape, right.chunks, right.dims) == ((7, 5), ((2, 2, 2, 1), (5,)), ("t", "x"))


def test_where_axes_are_dropped_or_added_as_many_rows_are_in_a_chunk_as_before():
    structure = ArrayStructure.of("<u2", (5, 1, 4), ((2, 2, 1), (1,), (4,)))
    right, _ = corrected(structure, (5, 4), np.dtype("<u2"))
    assert (right.shape, right.chunks) == ((5, 4), ((2, 2, 1), (4,)))
    structure = ArrayStructure.of("<u2", (5, 4), ((2, 2, 1), (4,)))
    right, _ = corrected(structure, (9, 4), np.dtype("<u2"), 3)
    assert (right.shape, right.chunks) == ((3, 3, 4), ((2, 1), (3,), (4,)))


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|b)*c", "a*b*c*d*", "x" * 201, r"(x){9}", "(?:ab)?"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern):
    with pytest.raises(TooLarge):
        Ignored([pattern])


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(InvalidRequest):
        Ignored(["("])
    with pytest.raises(TooLarge):
        Ignored(["a"] * 21)


def test_patterns_match_parts_of_messages():
    ignored = Ignored(["No such file", r"rows \d+\.", "^start"])
    assert ignored.covers("Error: No such file here")
    assert ignored.covers("rows 12.")
    assert ignored.covers("start of it")
    assert not ignored.covers("restart")
    assert not Ignored([]).covers("anything")
