"""Any numpy-like index is cut into requests that together give what numpy gives.

If these fail, a slice of a detector's frames comes back with the wrong pixels, or a request asks for
more than a service allows.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, basic_indices

from flystore.client._pieces import Plan, cut, lazy_chunks, plan_read, runs_of
from flystore.model.errors import InvalidRequest, OutOfBounds
from flystore.model.slices import parse_slice


def read_like_a_client(array, plan, *, wanted, most, chunks=()):
    """Do what an array client does, with numpy in place of a service."""
    box = np.zeros(plan.box_shape, array.dtype)
    flat = box.reshape(-1)
    for piece in cut(plan.box, array.itemsize, chunks, wanted=wanted, most=most):
        answer = array[parse_slice(piece.text)]
        assert answer.shape == piece.shape
        assert answer.nbytes <= max(wanted, most)
        flat[piece.start : piece.stop] = answer.reshape(-1)
    if plan.rows is not None:
        box = np.take(box, plan.rows, axis=plan.axis)
    return box[plan.finish] if plan.finish else box


@st.composite
def arrays_and_indices(draw):
    shape = draw(array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7))
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int16).reshape(shape)
    return array, draw(basic_indices(shape, allow_ellipsis=True, allow_newaxis=False))


@given(arrays_and_indices(), st.integers(1, 200), st.integers(0, 200))
def test_basic_indices_give_what_numpy_gives(array_and_index, wanted, more):
    array, index = array_and_index
    # A single item may be larger than the limit; two bytes are the smallest that can be asked for.
    plan = plan_read(index, array.shape)
    found = read_like_a_client(array, plan, wanted=max(2, wanted), most=max(2, wanted) + more)
    np.testing.assert_array_equal(found, array[index])
    assert np.shape(found) == np.shape(array[index])


@st.composite
def chunked(draw):
    lengths = draw(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3))
    return tuple(tuple(axis) for axis in lengths)


@given(chunked(), st.integers(2, 100), st.data())
def test_cuts_between_chunks_give_what_numpy_gives(chunks, wanted, data):
    shape = tuple(sum(axis) for axis in chunks)
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    index = data.draw(basic_indices(shape, allow_newaxis=False))
    plan = plan_read(index, shape)
    found = read_like_a_client(array, plan, wanted=wanted, most=3 * wanted, chunks=chunks)
    np.testing.assert_array_equal(found, array[index])


@given(st.integers(1, 6), st.data())
def test_lists_and_masks_give_what_numpy_gives(length, data):
    array = np.arange(2 * length * 3).reshape(2, length, 3)
    picked = data.draw(
        st.one_of(
            st.lists(st.integers(-length, length - 1)),
            st.lists(st.booleans(), min_size=length, max_size=length).map(np.array),
        )
    )
    index = np.asarray(picked, dtype=int) if len(picked) == 0 else picked
    plan = plan_read((slice(None), picked, slice(1, None)), array.shape)
    found = read_like_a_client(array, plan, wanted=8, most=64)
    np.testing.assert_array_equal(found, array[:, index, 1:])


def test_pieces_end_with_chunks_where_that_is_affordable():
    box = (slice(0, 100, 1), slice(0, 10, 1))
    pieces = list(cut(box, 1, [[8] * 12 + [4], [10]], wanted=200, most=1000))
    ends = np.cumsum([piece.shape[0] for piece in pieces])
    assert set(ends) <= set(np.cumsum([8] * 12 + [4]))
    assert len(pieces) == 6


def test_a_chunk_larger_than_wanted_is_asked_for_once():
    box = (slice(0, 20, 1), slice(0, 10, 1))
    assert [piece.shape for piece in cut(box, 1, [[10, 10], [10]], wanted=30, most=100)] == [(10, 10), (10, 10)]


def test_nothing_is_asked_for_where_there_is_nothing():
    assert list(cut((slice(0, 0, 1), slice(0, 5, 1)), 8)) == []
    assert list(cut((slice(0, 5, 1),), 0)) == []


def test_a_scalar_is_one_request():
    (piece,) = cut((), 8)
    assert (piece.selection, piece.shape, piece.start, piece.stop) == ((), (), 0, 1)


def test_what_runs_backwards_is_asked_for_forwards():
    plan = plan_read((slice(None, None, -2), -1), (7, 3))
    assert plan == Plan((slice(0, 7, 2), slice(2, 3, 1)), (4, 1), (slice(None, None, -1), 0))


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        (5, OutOfBounds, "axis 0"),
        ((0, -4), OutOfBounds, "axis 1"),
        ([0, 9], OutOfBounds, "outside axis 0"),
        ((None, 0), InvalidRequest, "new axes"),
        ((..., 0, ...), InvalidRequest, "one Ellipsis"),
        ((0, 0, 0), InvalidRequest, "3 dimensions"),
        (([0], [0]), InvalidRequest, "only one axis"),
        ("x", InvalidRequest, "integer or a slice"),
        (1.5, InvalidRequest, "integer or a slice"),
        ([0.5], InvalidRequest, "whole numbers"),
        (True, InvalidRequest, "truth value"),
        (np.zeros((5, 3), bool), InvalidRequest, "one axis"),
        ([True, False], InvalidRequest, "mask of 2 values"),
        (slice(None, None, 0), InvalidRequest, "step 0"),
        (slice("a", None), InvalidRequest, "slice of integers"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(index, error, words):
    with pytest.raises(error, match=words):
        plan_read(index, (5, 3))


@given(st.lists(st.integers(0, 30)))
def test_stretches_cover_exactly_the_rows(rows):
    covered = [row for start, stop in runs_of(np.array(rows, np.int64)) for row in range(start, stop)]
    assert covered == sorted(set(rows))


def test_small_chunks_are_joined_for_lazy_reading():
    assert lazy_chunks([[1] * 10, [4]], itemsize=8, wanted=96) == ((3, 3, 3, 1), (4,))
    assert lazy_chunks([[5, 5], [4]], itemsize=8, wanted=8) == ((5, 5), (4,))
    assert lazy_chunks([], itemsize=8) == ()
    assert lazy_chunks([[0], [4]], itemsize=8) == ((0,), (4,))
