"""Ragged data is sliced list by list, and the Awkward Array library, which the stock client uses, reads its buffers.

If these fail, a slice of a ragged array comes back with values of other rows.
"""

import awkward
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest, OutOfBounds, TooLarge
from flystore.service import nested

values = st.lists(st.integers(-1000, 1000), max_size=5)
two_deep = st.lists(values, min_size=1, max_size=6)
three_deep = st.lists(st.lists(values, max_size=4), min_size=1, max_size=5)
fixed_within = st.lists(st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=3), max_size=4), max_size=5)
bounds = st.none() | st.integers(-7, 7)
slices = st.builds(slice, bounds, bounds, st.none() | st.sampled_from([1, 2, 3, -1, -2]))
items = slices | st.integers(-4, 4)


def ours(rows, inner):
    array = awkward.to_packed(awkward.Array(rows))
    form, length, buffers = awkward.to_buffers(array)
    found = nested.from_buffers(form.to_dict(), length, {name: bytes(data) for name, data in buffers.items()})
    return nested.fitted(found, inner, np.dtype(np.int64))


def of_lists(rows, picked):
    """Slice lists in lists one by one: what a slice means."""
    if not picked:
        return rows
    if isinstance(picked[0], int):
        return of_lists(rows[picked[0]], picked[1:])
    return [of_lists(row, picked[1:]) for row in rows[picked[0]]]


def plain(found):
    return found.item() if isinstance(found, np.generic) else nested.to_lists(found)


@given(two_deep, st.tuples(items) | st.tuples(items, items))
def test_each_list_is_sliced_by_itself(rows, picked):
    agree(rows, ours(rows, (None,)), picked)


@given(three_deep, st.tuples(items, items) | st.tuples(items, items, items))
def test_lists_within_lists_are_sliced_by_themselves(rows, picked):
    agree(rows, ours(rows, (None, None)), picked)


def agree(rows, node, picked):
    try:
        expected = of_lists(rows, picked)
    except IndexError:
        with pytest.raises(OutOfBounds):
            nested.select(node, picked)
    else:
        assert plain(nested.select(node, picked)) == expected


@given(fixed_within, st.tuples(slices, slices, items))
def test_axes_of_one_length_within_lists_are_sliced_like_numpy(rows, picked):
    """Their length is known where there are no lists at all, too."""
    node = ours(rows, (None, 3)) if rows else nested.fitted(nested.Values(np.zeros(0)), (None, 3), np.dtype("i8"))
    if isinstance(picked[2], int) and not -3 <= picked[2] < 3:
        with pytest.raises(OutOfBounds):
            nested.select(node, picked)
        return
    agree(rows, node, picked)


@given(three_deep)
def test_what_is_sent_as_buffers_reads_back_here_and_in_the_library(rows):
    node = ours(rows, (None, None))
    form, buffers = nested.to_buffers(node)
    assert plain(nested.from_buffers(form, len(node), buffers)) == rows
    assert awkward.from_buffers(awkward.forms.from_dict(form), len(node), buffers).to_list() == rows


@given(three_deep, st.integers(0, 5))
def test_rows_taken_apart_and_joined_are_the_rows(rows, cut):
    node = ours(rows, (None, None))
    cut = min(cut, len(rows))
    parts = [nested.part(node, 0, cut), nested.part(node, cut, len(rows))]
    assert plain(nested.joined(parts)) == rows
    assert sum(map(nested.count, parts)) == nested.count(node)


def test_lists_of_one_length_fit_where_lists_of_any_length_are_kept_and_the_other_way_round():
    grid = nested.Values(np.arange(6).reshape(2, 3))
    lists = nested.fitted(grid, (None,), np.dtype(np.int64))
    assert isinstance(lists, nested.Lists)
    back = nested.fitted(lists, (3,), np.dtype(np.int64))
    assert isinstance(back, nested.Values)
    assert (back.data == grid.data).all()
    with pytest.raises(InvalidRequest, match="not of length 4"):
        nested.fitted(lists, (4,), np.dtype(np.int64))
    with pytest.raises(InvalidRequest, match="fewer axes"):
        nested.fitted(lists, (None, None), np.dtype(np.int64))
    with pytest.raises(InvalidRequest, match="more axes"):
        nested.fitted(lists, (), np.dtype(np.int64))
    with pytest.raises(InvalidRequest, match="int64"):
        nested.fitted(lists, (None,), np.dtype(np.float64))


def offsets_form(content):
    return {"class": "ListOffsetArray", "offsets": "i64", "content": content, "form_key": "a"}


NUMBERS = {"class": "NumpyArray", "primitive": "int64", "inner_shape": [], "form_key": "b"}


@pytest.mark.parametrize(
    ("offsets", "nbytes", "words"),
    [
        ([0, 2, 1], 16, "ascend"),
        ([-1, 0, 2], 16, "ascend"),
        ([0, 1, 3], 16, "needed"),
        ([0, 1], 16, "needed"),
        ([0, 1, 2**62], 16, "needed"),
    ],
)
def test_offsets_that_lead_outside_are_refused(offsets, nbytes, words):
    buffers = {"a-offsets": np.array(offsets, "<i8").tobytes(), "b-data": bytes(nbytes)}
    with pytest.raises(InvalidRequest, match=words):
        nested.from_buffers(offsets_form(NUMBERS), 2, buffers)


def test_items_that_take_no_bytes_are_bounded():
    form = {"class": "RegularArray", "size": 0, "content": NUMBERS, "form_key": "a"}
    with pytest.raises(TooLarge):
        nested.from_buffers(form, 1 << 40, {"b-data": b""})


def test_records_are_no_ragged_array():
    form = {"class": "RecordArray", "fields": ["x"], "contents": [NUMBERS], "form_key": "a"}
    with pytest.raises(InvalidRequest, match="RecordArray"):
        nested.from_buffers(form, 0, {"b-data": b""})
