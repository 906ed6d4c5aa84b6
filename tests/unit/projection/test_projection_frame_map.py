"""Every frame is put beside the event it belongs to.

If these fail, gaps, repeats, retakes or files that replace each other shift data silently: the worst that can happen.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest, OutOfBounds
from flystore.projection import FrameMap, RowRun
from flystore.projection._frame_map import place_frames

ranges = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(1, 8), st.integers(1, 4)), max_size=6)
event_runs = st.one_of(st.just([]), st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=3))


def frame_by_frame(announced, events):
    """The same worked out one frame at a time, as the rules say it."""
    seen, times_seen, rows, duplicate = set(), {}, [], 0
    for resource, index, seq, count in announced:
        for i in range(count):
            frame = (resource, index + i, seq + i)
            if frame in seen:
                duplicate += 1
                continue
            seen.add(frame)
            take = times_seen[seq + i] = times_seen.get(seq + i, -1) + 1
            rows.append((seq + i, take, resource, index + i))
    row_of, occurrences = {}, {}
    for seq, count in events:
        for s in range(seq, seq + count):
            occurrence = occurrences[s] = occurrences.get(s, -1) + 1
            row_of[s, occurrence] = len(row_of)
    with_event = sorted((row for row in rows if row[:2] in row_of), key=lambda row: row_of[row[:2]])
    without = sorted((row for row in rows if row[:2] not in row_of), key=lambda row: row[:2])
    return with_event + without, len(without) if events else 0, duplicate


def as_rows(frame_map):
    found = frame_map.rows()
    return list(
        zip(*(column.tolist() for column in (found.seq_nums, found.take, found.resource, found.index)), strict=True)
    )


def placed(announced, events=()):
    return place_frames(np.array(announced, np.int64).reshape(-1, 4), np.array(events, np.int64).reshape(-1, 2))


@settings(max_examples=500, deadline=None)
@given(announced=ranges, events=event_runs)
def test_runs_give_what_frame_by_frame_gives(announced, events):
    found = placed(announced, events)
    rows, extra, duplicate = frame_by_frame(announced, events)

    assert as_rows(found.frame_map) == rows
    assert (found.extra, found.duplicate) == (extra, duplicate)
    assert found.announced == len(found.frame_map) + found.duplicate
    assert found.frame_map.retaken == sum(take > 0 for _, take, _, _ in rows)


@settings(max_examples=200, deadline=None)
@given(announced=ranges, events=event_runs)
def test_no_two_neighbouring_runs_could_be_one(announced, events):
    runs = placed(announced, events).frame_map.row_runs
    for before, after in pairwise(runs):
        n = before.count
        goes_on = RowRun(before.seq + n, before.take, before.resource, before.index + n, after.count)
        assert goes_on != after


@settings(max_examples=200, deadline=None)
@given(announced=ranges, bounds=st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, -1, -3])))
def test_slices_are_those_of_a_list(announced, bounds):
    frame_map = placed(announced).frame_map
    start, stop, step = bounds
    found = frame_map.rows(start, stop, step)

    expected = as_rows(frame_map)[start:stop:step]
    assert found.seq_nums.tolist() == [row[0] for row in expected]
    assert found.index.tolist() == [row[3] for row in expected]


@settings(max_examples=200, deadline=None)
@given(announced=ranges, data=st.data())
def test_rows_that_are_not_present_are_taken_out(announced, data):
    frame_map = placed(announced).frame_map
    present = data.draw(st.lists(st.booleans(), min_size=len(frame_map), max_size=len(frame_map)))

    kept = frame_map.keep(np.array(present, bool))

    assert as_rows(kept) == [row for row, keep in zip(as_rows(frame_map), present, strict=True) if keep]


@settings(max_examples=200, deadline=None)
@given(announced=ranges, start=st.integers(0, 12), stop=st.integers(0, 12))
def test_parts_of_runs_cover_a_stretch_of_rows(announced, start, stop):
    frame_map = placed(announced).frame_map
    parts = list(frame_map.runs_between(start, stop))
    rows = [row for _, run in parts for row in as_rows(FrameMap.of([run]))]

    assert rows == as_rows(frame_map)[start:stop]
    assert [row for row, _ in parts] == sorted(row for row, _ in parts)
    assert as_rows(frame_map.head(stop)) == as_rows(frame_map)[:stop]


@given(announced=ranges)
def test_wire_and_stored_forms_come_back(announced):
    frame_map = placed(announced).frame_map
    assert FrameMap.from_wire(frame_map.to_wire()) == frame_map
    assert FrameMap.from_bytes(frame_map.to_bytes()) == frame_map


@pytest.mark.parametrize("wire", [None, {}, {"rows": 2, "runs": [[1, 0, 0, 0, 1]]}, {"rows": 0, "runs": [[1, 2]]}])
def test_a_wire_form_that_makes_no_sense_is_refused(wire):
    with pytest.raises(InvalidRequest):
        FrameMap.from_wire(wire)


def test_a_row_beyond_the_end_is_out_of_bounds():
    frame_map = placed([(0, 0, 1, 3)]).frame_map
    with pytest.raises(OutOfBounds):
        frame_map.at(np.array([3]))


def test_frames_in_one_long_range_cost_nothing():
    frame_map = placed([(0, 0, 1, 2**39)], [(1, 2**39)]).frame_map
    assert len(frame_map) == 2**39
    assert frame_map.row_runs == (RowRun(1, 0, 0, 0, 2**39),)
    assert frame_map.rows(2**39 - 1).seq_nums.tolist() == [2**39]


def test_a_retaken_point_keeps_both_frames_in_the_order_of_its_events():
    # Events 1 2 3, a pause that goes back to 2, then 2 3 4; the detector's indices go on.
    found = placed([(0, 0, 1, 3), (0, 3, 2, 3)], [(1, 3), (2, 3)])
    assert as_rows(found.frame_map) == [
        (1, 0, 0, 0), (2, 0, 0, 1), (3, 0, 0, 2), (2, 1, 0, 3), (3, 1, 0, 4), (4, 0, 0, 5),
    ]  # fmt: skip
    assert found.extra == 0
