"""The frame map: which frame of which resource belongs to which event.

A StreamDatum announces a range: `count` rows of a resource from `index` on belong to the events from `seq` on.
Ranges are kept as they came and put into *wire order* here, as a pure function:

* The same (resource, index, seq_num) announced again is a duplicate and counts once.
* A seq_num announced again with another frame is *retaken*. Its `take` says how often the seq_num had been
  announced for this key before, in order of arrival: 0, 1, 2 …
* If the stream has Events, rows come in the order of the Events: the k-th frame of a seq_num belongs to the k-th
  Event with it. Frames without an Event (running ahead) come after these, by (seq_num, take).
* If it has none, rows come by (seq_num, take).

All work is done on runs of consecutive rows; the cost does not depend on the number of frames.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from flystore.model.errors import InvalidRequest, OutOfBounds

Ints = NDArray[np.int64]

_INTERLEAVE_LIMIT = 2_000_000
"""Rows of retaken seq_nums that are put into order one by one; more than these stay in runs, by take."""


class RowRun(msgspec.Struct, frozen=True, array_like=True):
    """Rows that follow each other in every respect.

    Row i of the run (0 <= i < count) is frame ``index + i`` of the resource and belongs to ``seq + i``.
    """

    seq: int
    take: int
    resource: int
    index: int
    count: int


class Rows(msgspec.Struct, frozen=True):
    """Columns of a selection of rows, each (n,) int64."""

    seq_nums: Ints
    take: Ints
    resource: Ints
    index: Ints


class FrameMap:
    """The rows of one externally stored key in wire order; immutable.

    Parameters
    ----------
    runs : (n, 5) int64
        One line a `RowRun`, in wire order.
    """

    __slots__ = ("_ends", "_runs")

    def __init__(self, runs: Ints) -> None:
        self._runs = np.ascontiguousarray(runs, np.int64).reshape(-1, 5)
        self._ends = np.cumsum(self._runs[:, 4])

    @classmethod
    def of(cls, runs: Iterable[RowRun]) -> Self:
        return cls(np.array([msgspec.structs.astuple(run) for run in runs], np.int64).reshape(-1, 5))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrameMap) and np.array_equal(self._runs, other._runs)

    def __hash__(self) -> int:
        return hash(self._runs.tobytes())

    def __repr__(self) -> str:
        return f"FrameMap({len(self)} rows in {len(self._runs)} runs)"

    @property
    def row_runs(self) -> tuple[RowRun, ...]:
        return tuple(RowRun(*run) for run in self._runs.tolist())

    @property
    def intervals(self) -> Ints:
        """Seq_num and count of every run, (n, 2) int64."""
        return self._runs[:, [0, 4]]

    @property
    def retaken(self) -> int:
        """Number of rows whose take is not 0."""
        return int(self._runs[self._runs[:, 1] > 0, 4].sum())

    def extents(self) -> dict[int, tuple[int, int]]:
        """Return the lowest index and the highest index + 1 of each resource that has rows."""
        out = {}
        for resource in np.unique(self._runs[:, 2]).tolist():
            mine = self._runs[self._runs[:, 2] == resource]
            out[resource] = (int(mine[:, 3].min()), int((mine[:, 3] + mine[:, 4]).max()))
        return out

    def runs_between(self, start: int, stop: int) -> Iterator[tuple[int, RowRun]]:
        """Yield (wire row, run) for the parts of runs inside of [start, stop), which is cut to the map."""
        start, stop = max(0, start), min(stop, len(self))
        first = int(np.searchsorted(self._ends, start, "right"))
        for seq, take, resource, index, count in self._runs[first:].tolist():
            row = int(self._ends[first]) - count
            if row >= stop:
                return
            skip, end = max(0, start - row), min(count, stop - row)
            if end > skip:
                yield row + skip, RowRun(seq + skip, take, resource, index + skip, end - skip)
            first += 1

    def rows(self, start: int = 0, stop: int | None = None, step: int = 1) -> Rows:
        """Return seq_nums, takes, resources and indices of a slice of rows.

        Parameters
        ----------
        start, stop, step
            As in a Python slice of a sequence of ``len(self)``.
        """
        return self.at(np.arange(*slice(start, stop, step).indices(len(self)), dtype=np.int64))

    def at(self, rows: Ints) -> Rows:
        """Return the same for rows named one by one, each (n,) int64.

        Raises
        ------
        OutOfBounds
            A row is negative or not below ``len(self)``.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise OutOfBounds(
                f"rows {rows.min()} to {rows.max()} were asked for; there are {len(self)}", rows=len(self)
            )
        run = np.searchsorted(self._ends, rows, "right")
        lines = self._runs[run] if len(self._runs) else np.empty((0, 5), np.int64)
        within = rows - (self._ends[run] - lines[:, 4]) if len(self._runs) else rows
        return Rows(lines[:, 0] + within, lines[:, 1], lines[:, 2], lines[:, 3] + within)

    @property
    def seq_nums(self) -> Ints:
        """Seq_num of every row, (len,) int64."""
        return self.rows().seq_nums

    @property
    def take(self) -> Ints:
        """Take of every row, (len,) int64; 0 where a seq_num came once."""
        return self.rows().take

    def keep(self, present: NDArray[np.bool_]) -> "FrameMap":
        """Return the map of only those rows where `present`, (len,) bool, is true."""
        rows = np.flatnonzero(present)
        found = self.at(rows)
        lines = np.column_stack([found.seq_nums, found.take, found.resource, found.index, np.ones_like(rows)])
        return FrameMap(_merged(lines))

    def head(self, rows: int) -> "FrameMap":
        """Return the map of the first `rows` rows."""
        return FrameMap.of(run for _, run in self.runs_between(0, rows))

    def to_wire(self) -> dict[str, Any]:
        """Return a plain object: ``{"rows": n, "runs": [[seq, take, resource, index, count], ...]}``."""
        return {"rows": len(self), "runs": self._runs.tolist()}

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        try:
            runs = np.array(wire["runs"], np.int64).reshape(-1, 5)
            if (runs[:, 4] < 1).any() or int(runs[:, 4].sum()) != wire["rows"]:
                raise ValueError("runs do not add up to the rows")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"this is not a frame map: {error}") from error
        return cls(runs)

    def to_bytes(self) -> bytes:
        return self._runs.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(np.frombuffer(data, "<i8").astype(np.int64).reshape(-1, 5))


class Placed(NamedTuple):
    """What `place_frames` worked out for one key.

    Attributes
    ----------
    frame_map : FrameMap
    extra : int
        Rows at the end of the map that belong to no Event; 0 if the stream has no Events.
    duplicate : int
        Rows announced again.
    announced : int
        Rows announced in all: ``len(frame_map) + duplicate``.
    """

    frame_map: FrameMap
    extra: int
    duplicate: int
    announced: int


def place_frames(ranges: Ints, events: Ints) -> Placed:
    """Put announced ranges into wire order.

    Parameters
    ----------
    ranges : (n, 4) int64
        resource, index, seq, count of each range in order of arrival; count >= 1.
    events : (m, 2) int64
        seq and count of each run of consecutive seq_nums of the stream's Events in order of arrival;
        (0, 2) if it has none.
    """
    ranges = ranges.reshape(-1, 4)
    if len(ranges) == 1 and len(events) <= 1:
        return _place_one(ranges[0].tolist(), events.tolist())
    announced = int(ranges[:, 3].sum())
    ranges = _without_duplicates(ranges)
    pieces, bounds = _with_takes(ranges, events)
    if len(events):
        order, paired = _event_rows(pieces, bounds, events)
    else:
        order, paired = np.zeros(len(pieces), np.int64), np.zeros(len(pieces), bool)
    with_event = pieces[paired][np.argsort(order[paired], kind="stable")]
    without = _by_seq_and_take(pieces[~paired])
    extra = int(without[:, 4].sum()) if len(events) else 0
    frame_map = FrameMap(_merged(np.concatenate([with_event, without])))
    return Placed(frame_map, extra, announced - len(frame_map), announced)


def _place_one(announced: list[int], events: list[list[int]]) -> Placed:
    """The usual case, without the machinery: one range, and Events that count up or none."""
    resource, index, seq, count = announced
    if not events:
        return Placed(FrameMap(np.array([[seq, 0, resource, index, count]])), 0, 0, count)
    first, number = events[0]
    low, high = max(seq, first), min(seq + count, first + number)
    cuts = (
        [(low, high), (seq, min(low, seq + count)), (max(high, seq), seq + count)]
        if low < high
        else [(seq, seq + count)]
    )
    runs = [(a, 0, resource, index + a - seq, b - a) for a, b in cuts if a < b]
    extra = count - max(0, high - low)
    return Placed(FrameMap(_merged(np.array(runs, np.int64))), extra, 0, count)


def _without_duplicates(ranges: Ints) -> Ints:
    """Cut from each range what an earlier one of the same resource says about the same seq_nums."""
    diagonal = ranges[:, 1] - ranges[:, 2]
    order = np.lexsort((ranges[:, 2], diagonal, ranges[:, 0]))
    ordered, lines = ranges[order], diagonal[order]
    same = (ordered[1:, 0] == ordered[:-1, 0]) & (lines[1:] == lines[:-1])
    overlaps = same & (ordered[1:, 2] < ordered[:-1, 2] + ordered[:-1, 3])
    if not overlaps.any():
        return ranges
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    kept = []
    for resource, index, seq, count in ranges.tolist():
        covered = groups.setdefault((resource, index - seq), [])
        for start, stop in _uncovered(covered, seq, seq + count):
            kept.append((resource, index - seq + start, start, stop - start))
        _cover(covered, seq, seq + count)
    return np.array(kept, np.int64).reshape(-1, 4)


def _uncovered(covered: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Return the parts of [start, stop) outside of the sorted, disjoint intervals `covered`."""
    free = []
    for low, high in covered:
        if high <= start:
            continue
        if low >= stop:
            break
        if low > start:
            free.append((start, low))
        start = max(start, high)
    if start < stop:
        free.append((start, stop))
    return free


def _cover(covered: list[tuple[int, int]], start: int, stop: int) -> None:
    apart = [(low, high) for low, high in covered if high < start or low > stop]
    touching = [(low, high) for low, high in covered if not (high < start or low > stop)]
    joined = (min([start, *(low for low, _ in touching)]), max([stop, *(high for _, high in touching)]))
    covered[:] = sorted([*apart, joined])


def _with_takes(ranges: Ints, events: Ints) -> tuple[Ints, Ints]:
    """Cut ranges where others begin or end, and number the pieces of each stretch of seq_nums.

    Returns (k, 5) lines of a `RowRun` in order of arrival and the sorted boundaries, (b,).
    """
    starts, counts = ranges[:, 2], ranges[:, 3]
    bounds = np.unique(np.concatenate([starts, starts + counts, events[:, 0], events[:, 0] + events[:, 1]]))
    source, stretch = _split(starts, counts, bounds)
    seq = bounds[stretch]
    take = _occurrence(stretch)
    shift = ranges[source, 1] - ranges[source, 2]
    count = bounds[stretch + 1] - seq if len(stretch) else seq
    return np.column_stack([seq, take, ranges[source, 0], seq + shift, count]).reshape(-1, 5), bounds


def _split(starts: Ints, counts: Ints, bounds: Ints) -> tuple[Ints, Ints]:
    """Return, for every stretch between neighbouring bounds that an interval covers, (interval, stretch)."""
    first = np.searchsorted(bounds, starts)
    last = np.searchsorted(bounds, starts + counts)
    number = last - first
    source = np.repeat(np.arange(len(starts)), number)
    within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    return source, first[source] + within


def _occurrence(stretch: Ints) -> Ints:
    """Return how often each value came before in the array."""
    order = np.argsort(stretch, kind="stable")
    ordered = stretch[order]
    first = np.searchsorted(ordered, ordered, "left")
    out = np.empty_like(stretch)
    out[order] = np.arange(len(stretch)) - first
    return out


def _event_rows(pieces: Ints, bounds: Ints, events: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the row of the Event that each piece begins at, and whether it has one, both (k,)."""
    source, stretch = _split(events[:, 0], events[:, 1], bounds)
    first_row = np.cumsum(events[:, 1]) - events[:, 1]
    row = first_row[source] + bounds[stretch] - events[source, 0]
    occurrence = _occurrence(stretch)
    width = int(max(occurrence.max(initial=0), pieces[:, 1].max(initial=0))) + 1
    keys = stretch * width + occurrence
    order = np.argsort(keys)
    wanted = np.searchsorted(bounds, pieces[:, 0]) * width + pieces[:, 1]
    found = np.searchsorted(keys[order], wanted)
    inside = np.minimum(found, len(keys) - 1)
    paired = keys[order][inside] == wanted
    return row[order][inside], paired


def _by_seq_and_take(pieces: Ints) -> Ints:
    """Return pieces ordered by (seq, take) row by row: repeated stretches are dealt out one row at a time."""
    pieces = pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))]
    shared = np.zeros(len(pieces), bool)
    same = pieces[1:, 0] == pieces[:-1, 0]
    shared[1:] |= same
    shared[:-1] |= same
    shared &= pieces[:, 4] > 1
    if not shared.any() or int(pieces[shared, 4].sum()) > _INTERLEAVE_LIMIT:
        return pieces
    counts = np.where(shared, pieces[:, 4], 1)
    source = np.repeat(np.arange(len(pieces)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    dealt = pieces[source]
    dealt[:, 0] += within
    dealt[:, 3] += within
    dealt[shared[source], 4] = 1
    return dealt[np.lexsort((dealt[:, 1], dealt[:, 0]))]


def _merged(lines: Ints) -> Ints:
    """Join neighbouring lines that go on in every respect."""
    if len(lines) < 2:
        return lines
    before, after = lines[:-1], lines[1:]
    goes_on = (
        (after[:, 0] == before[:, 0] + before[:, 4])
        & (after[:, 1] == before[:, 1])
        & (after[:, 2] == before[:, 2])
        & (after[:, 3] == before[:, 3] + before[:, 4])
    )
    first = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    out = lines[first].copy()
    out[:, 4] = np.add.reduceat(lines[:, 4], first)
    return out


def multiplicity(intervals: Iterable[Ints], bounds: Ints) -> Ints:
    """Return the largest number of intervals that cover each stretch between neighbouring bounds.

    Parameters
    ----------
    intervals : arrays of (n, 2) int64
        seq and count; the maximum is over the arrays, the number is within each.
    bounds : (b,) int64
        Sorted; every interval begins and ends at one.

    Returns
    -------
    (b - 1,) int64
    """
    most = np.zeros(max(0, len(bounds) - 1), np.int64)
    for each in intervals:
        change = np.zeros(len(bounds), np.int64)
        np.add.at(change, np.searchsorted(bounds, each[:, 0]), 1)
        np.add.at(change, np.searchsorted(bounds, each[:, 0] + each[:, 1]), -1)
        most = np.maximum(most, np.cumsum(change)[:-1])
    return most
