"""The frame maps of a stream's external keys, and the rows of the stream they are held against."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._external import Resource, with_bases
from ._frame_map import Placed, multiplicity, place_frames
from ._state import ExternalState, ResourceState, StreamState

Ints = NDArray[np.int64]


class KeyFrames(NamedTuple):
    """Frames of one external key.

    Attributes
    ----------
    resources : tuple of Resource
        Those that are known, in the order in which they were announced.
    placed : Placed
    lost : int
        Rows of resources that have not come.
    gaps : int
        Seq_nums from 1 to the key's last one that have no frame.
    """

    resources: tuple[Resource, ...]
    placed: Placed
    lost: int
    gaps: int


class StreamFrames(NamedTuple):
    """All external keys of a stream and the rows of the stream.

    Attributes
    ----------
    keys : dict
        By the name in the documents; only those of which something was announced.
    rows : int
        Events if there are any; else every (seq_num, take) that some key has.
    retaken : int
        Rows whose seq_num an earlier row has too.
    holes : int
        Seq_nums between 1 and the last row's that no row has.
    """

    keys: dict[str, KeyFrames]
    rows: int
    retaken: int
    holes: int


def stream_frames(stream: StreamState, resources: Mapping[str, ResourceState]) -> StreamFrames:
    """Work out frame maps and rows of a stream; pure."""
    events = np.array(stream.events, np.int64).reshape(-1, 2)
    keys = {
        key: _key_frames(external, resources, events) for key, external in stream.external.items() if external.ranges
    }
    if stream.rows:
        intervals = [events]
    else:
        intervals = [found.placed.frame_map.intervals for found in keys.values()]
    rows, retaken, holes = _count(intervals)
    return StreamFrames(keys, rows, retaken, holes)


def _count(intervals: list[Ints]) -> tuple[int, int, int]:
    """Return (rows, retaken, holes) of the union of intervals of seq_nums."""
    different = {each.tobytes(): each for each in intervals}
    intervals = list(different.values())
    if len(intervals) == 1 and len(intervals[0]) == 1:
        seq, count = intervals[0][0].tolist()
        return count, 0, max(0, seq - 1)
    edges = [np.concatenate([each[:, 0], each[:, 0] + each[:, 1]]) for each in intervals]
    bounds = np.unique(np.concatenate([np.array([1], np.int64), *edges]))
    most = multiplicity(intervals, bounds)
    width = np.diff(bounds)
    positive = bounds[:-1] >= 1
    holes = width[(most == 0) & positive].sum()
    return int((most * width).sum()), int((np.maximum(most - 1, 0) * width).sum()), int(holes)


def _key_frames(external: ExternalState, resources: Mapping[str, ResourceState], events: Ints) -> KeyFrames:
    ranges = np.array(external.ranges, np.int64).reshape(-1, 5)
    if (ranges[1:, 0] < ranges[:-1, 0]).any():
        # Ranges that waited for their resource go where they came, so that takes do not depend on the wait.
        ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    if len(ranges) == 1 and len(external.resources) == 1 and external.resources[0] in resources:
        return _one_range(external, resources, events)
    known = sorted(
        (n for n, uid in enumerate(external.resources) if uid in resources),
        key=lambda n: (resources[external.resources[n]].ordinal, external.resources[n]),
    )
    position = np.full(len(external.resources), -1, np.int64)
    position[known] = np.arange(len(known))
    announced = np.column_stack([position[ranges[:, 1]], ranges[:, 2:]])
    lost = int(announced[announced[:, 0] < 0, 3].sum())
    announced = announced[announced[:, 0] >= 0]
    placed = place_frames(announced, events)
    found = [_resource(external.resources[n], external, resources) for n in known]
    holes = _count([placed.frame_map.intervals])[2]
    return KeyFrames(with_bases(found, _extents(announced)), placed, lost, holes)


def _one_range(external: ExternalState, resources: Mapping[str, ResourceState], events: Ints) -> KeyFrames:
    (_, _, index, seq, count) = external.ranges[0]
    placed = place_frames(np.array([[0, index, seq, count]], np.int64), events)
    resource = _resource(external.resources[0], external, resources)
    return KeyFrames((resource,), placed, 0, max(0, seq - 1))


def _resource(uid: str, external: ExternalState, resources: Mapping[str, ResourceState]) -> Resource:
    state = resources[uid]
    return Resource(uid, state.uri, state.mimetype, {**state.parameters, **external.datum_kwargs.get(uid, {})})


def _extents(announced: Ints) -> dict[int, tuple[int, int]]:
    out = {}
    for resource in np.unique(announced[:, 0]).tolist():
        mine = announced[announced[:, 0] == resource]
        out[resource] = (int(mine[:, 1].min()), int((mine[:, 1] + mine[:, 3]).max()))
    return out


def stream_rows(stream: StreamState, resources: Mapping[str, ResourceState]) -> list[tuple[int, int, int]]:
    """Return the rows of a stream as runs of (seq_num, take, count), in the order of rows.

    Its Events in order of arrival if it has any, else every (seq_num, take) that some key has, ascending.
    """
    if stream.rows:
        seq = np.concatenate([np.arange(first, first + count) for first, count in stream.events])
        order = np.argsort(seq, kind="stable")
        take = np.empty_like(seq)
        take[order] = np.arange(len(seq)) - np.searchsorted(seq[order], seq[order])
        return _as_runs(np.column_stack([seq, take]))
    maps = [found.placed.frame_map for found in stream_frames(stream, resources).keys.values()]
    rows = [np.column_stack([each.seq_nums, each.take]) for each in {each.to_bytes(): each for each in maps}.values()]
    return _as_runs(np.unique(np.concatenate([np.empty((0, 2), np.int64), *rows]), axis=0))


def _as_runs(rows: Ints) -> list[tuple[int, int, int]]:
    """Return lines of (seq_num, take) as runs of consecutive seq_nums with one take."""
    if not len(rows):
        return []
    breaks = (np.diff(rows[:, 0]) != 1) | (np.diff(rows[:, 1]) != 0)
    first = np.flatnonzero(np.concatenate([[True], breaks]))
    count = np.diff(np.append(first, len(rows)))
    return [(int(seq), int(take), int(n)) for (seq, take), n in zip(rows[first], count, strict=True)]
