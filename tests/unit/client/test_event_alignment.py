"""Rows of the same event are put beside each other; what is missing is marked and what repeats is told apart.

If these fail, frames and positions of different points end up in one row: the worst thing this
software could do.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.client._align import Rows, align_rows, marked_dtype, placed, takes_of
from flystore.model.errors import InvalidRequest


def rows_of(*seq_nums):
    seq_num = np.array(seq_nums, np.int64)
    return Rows(seq_num, takes_of(seq_num))


sources = st.lists(st.lists(st.integers(1, 6), max_size=8).map(lambda s: rows_of(*s)), min_size=1, max_size=3)


def events_of(rows):
    return list(zip(rows.seq_num.tolist(), rows.take.tolist(), strict=True))


@given(st.lists(st.integers(-3, 3)))
def test_takes_count_earlier_occurrences(values):
    assert takes_of(np.array(values, np.int64)).tolist() == [values[:i].count(value) for i, value in enumerate(values)]


@given(sources, st.sampled_from(["outer", "inner"]), st.sampled_from(["last", "all"]))
def test_every_place_holds_the_row_of_its_event_and_only_that(given_sources, align, repeats):
    found = align_rows(given_sources, join=align, repeats=repeats)
    events = events_of(found.events)
    for source, places in zip(given_sources, found.places, strict=True):
        known = events_of(source)
        assert [known[place] if place >= 0 else None for place in places] == [
            event if event in known else None for event in events
        ]


@given(sources)
def test_outer_and_all_leave_nothing_out(given_sources):
    found = align_rows(given_sources, repeats="all")
    everything = {event for source in given_sources for event in events_of(source)}
    assert events_of(found.events) == sorted(everything)


@given(sources)
def test_last_keeps_the_last_take_that_anyone_has(given_sources):
    found = align_rows(given_sources, repeats="last")
    everything = [event for source in given_sources for event in events_of(source)]
    latest = {seq: max(take for s, take in everything if s == seq) for seq, _ in everything}
    assert events_of(found.events) == sorted(latest.items())


@given(sources, st.sampled_from(["last", "all"]))
def test_inner_has_no_missing_rows(given_sources, repeats):
    for places in align_rows(given_sources, join="inner", repeats=repeats).places:
        assert (places >= 0).all()


def test_a_frame_of_the_first_take_is_not_given_to_the_retaken_event():
    events, frames = rows_of(1, 2, 3, 2, 3), rows_of(1, 2, 3)
    found = align_rows([events, frames])
    assert events_of(found.events) == [(1, 0), (2, 1), (3, 1)]
    assert found.places[1].tolist() == [0, -1, -1]


@pytest.mark.parametrize("wrong", [{"join": "sideways"}, {"repeats": "first"}])
def test_other_ways_are_refused_by_name(wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        align_rows([rows_of(1)], **wrong)


@pytest.mark.parametrize(
    ("dtype", "marked"),
    [
        ("u1", "f4"),
        ("i2", "f4"),
        ("u2", "f4"),
        ("i4", "f8"),
        ("u8", "f8"),
        ("f4", "f4"),
        ("c8", "c8"),
        ("?", "O"),
        ("<U1", "<U4"),
        ("<U9", "<U9"),
        ("M8[ns]", "M8[ns]"),
    ],
)
def test_the_dtype_that_can_mark_what_is_missing(dtype, marked):
    assert marked_dtype(np.dtype(dtype)) == np.dtype(marked)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "c8", "<U3", "M8[s]", "?"])
def test_missing_rows_are_marked_and_the_others_keep_their_values(dtype):
    values = np.array([[1, 0], [0, 1], [1, 1]], "i8").astype(dtype)
    found = placed(values, np.array([2, -1, 0]))
    assert (found[[0, 2]] == values[[2, 0]]).all()
    text = dtype == "<U3"
    assert all(item == "<NA>" if text else item != item for item in found[1])


def test_rows_that_are_all_there_and_in_order_are_not_copied():
    values = np.arange(5)
    assert placed(values, np.arange(5)) is values


def test_rows_that_are_all_there_keep_their_dtype():
    assert placed(np.arange(5, dtype="u2"), np.array([4, 0])).dtype == "u2"


def test_nothing_at_all_is_marked_everywhere():
    found = placed(np.zeros((0, 2), "u2"), np.array([-1, -1]))
    assert found.shape == (2, 2)
    assert np.isnan(found).all()
