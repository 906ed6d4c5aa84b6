"""Which requests an array read is made of: pure arithmetic, before anything is sent.

A read is a box of the array (positive steps only; what runs backwards is turned round afterwards).
It is cut along its first axes into pieces that each lie in one stretch of the result, so a piece's
bytes go from the socket to where they belong.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest, OutOfBounds
from flystore.model.slices import Selection, format_slice, normalise

MOST_BYTES = 256 << 20
"""Of one request; services refuse much more."""

WANTED_BYTES = 256 << 20
"""Of one request where the read is larger: as few requests as services allow, each read straight to its place."""

RESUMED_BYTES = 32 << 20
"""Of one request for the rest of a body that broke off: what is wrong with it is told sooner."""

LAZY_BYTES = 32 << 20
"""Of a chunk of a lazy array into which neighbours are joined."""


class Plan(NamedTuple):
    """What to ask for and how to turn the answer into what was wanted.

    Attributes
    ----------
    box : tuple of slice
        One an axis, all numbers given, positive steps.
    box_shape : tuple of int
    finish : tuple
        numpy index that turns the box into the result: drops axes and turns others round.
    rows : (n,) int64 or None
        Positions along axis `axis` of the box, if a list was asked for; the box covers them all.
    axis : int
    """

    box: tuple[slice, ...]
    box_shape: tuple[int, ...]
    finish: tuple[Any, ...]
    rows: np.ndarray | None = None
    axis: int = 0


class Piece(NamedTuple):
    """One request.

    Attributes
    ----------
    selection : tuple of slice
        Of the array.
    shape : tuple of int
        What the answer must have.
    start, stop : int
        Where its items lie among those of the result, counted in C order.
    """

    selection: tuple[slice, ...]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def text(self) -> str:
        return format_slice(self.selection)


def plan_read(wanted: Any, shape: Sequence[int]) -> Plan:
    """Return the box that a numpy-like index needs.

    Parameters
    ----------
    wanted
        Integers, slices, one Ellipsis, and on at most one axis a list of integers or of truth values.

    Raises
    ------
    OutOfBounds
        If an index lies outside its axis.
    InvalidRequest
        If it is anything else: several lists, None, more axes than there are.
    """
    items = _expanded(wanted, len(shape))
    listed = [axis for axis, item in enumerate(items) if _is_list(item)]
    if len(listed) > 1:
        raise InvalidRequest("only one axis can be picked from by a list; read first, then index the result")
    rows = None
    axis = listed[0] if listed else 0
    if listed:
        rows = _positions(items[axis], shape[axis], axis)
        low, high = (int(rows.min()), int(rows.max()) + 1) if rows.size else (0, 0)
        items[axis] = slice(low, high)
        rows = rows - low
    return _plan(normalise(items, shape), shape, rows, axis)


def _expanded(wanted: Any, ndim: int) -> list[Any]:
    """Return one item for each axis named, the Ellipsis filled in."""
    items = list(wanted) if isinstance(wanted, tuple) else [] if wanted is None else [wanted]
    if any(item is None for item in items):
        raise InvalidRequest("a slice cannot make new axes (None); read first, then index the result")
    dots = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise InvalidRequest("an index can have only one Ellipsis ('...')")
    if dots:
        fill = [slice(None)] * max(0, ndim - len(items) + 1)
        items[dots[0] : dots[0] + 1] = fill
    if any(isinstance(item, np.ndarray) and item.ndim > 1 for item in items):
        raise InvalidRequest("a mask must have one axis; read first, then index the result")
    if any(isinstance(item, (bool, np.bool_)) for item in items):
        raise InvalidRequest("a truth value is no index")
    return items


def _is_list(item: Any) -> bool:
    return isinstance(item, list) or (isinstance(item, np.ndarray) and item.ndim == 1)


def _positions(item: Any, length: int, axis: int) -> np.ndarray:
    picked = np.asarray(item)
    if picked.size == 0:
        return np.zeros(0, np.int64)
    if picked.dtype == bool:
        if len(picked) != length:
            raise InvalidRequest(f"a mask of {len(picked)} values on axis {axis}, which has {length} entries")
        return np.flatnonzero(picked)
    if picked.dtype.kind not in "iu" or picked.ndim != 1:
        raise InvalidRequest(f"a list of indices must hold whole numbers or truth values, not {picked.dtype}")
    rows = picked.astype(np.int64)
    rows = np.where(rows < 0, rows + length, rows)
    if rows.min() < 0 or rows.max() >= length:
        raise OutOfBounds(f"an index lies outside axis {axis}, which has {length} entries", axis=axis, length=length)
    return rows


def _plan(selection: Selection, shape: Sequence[int], rows: np.ndarray | None, axis: int) -> Plan:
    box: list[slice] = []
    finish: list[Any] = []
    for item, length in zip(selection, shape, strict=True):
        if not isinstance(item, slice):
            box.append(slice(item, item + 1, 1))
            finish.append(0)
            continue
        picked = range(*item.indices(length))
        if picked.step < 0:
            picked = picked[::-1]
            finish.append(slice(None, None, -1))
        else:
            finish.append(slice(None))
        box.append(slice(picked.start, picked[-1] + 1, picked.step) if picked else slice(0, 0, 1))
    box_shape = tuple(len(range(part.start, part.stop, part.step)) for part in box)
    return Plan(tuple(box), box_shape, tuple(finish), rows, axis)


def cut(
    box: Sequence[slice],
    itemsize: int,
    chunks: Sequence[Sequence[int]] = (),
    *,
    wanted: int = WANTED_BYTES,
    most: int = MOST_BYTES,
) -> Iterator[Piece]:
    """Yield the pieces of a box, in the order of their items; none if the box or the item is empty.

    Parameters
    ----------
    box : sequence of slice
        One an axis, all numbers given, positive steps.
    chunks : sequence of sequences of int
        Chunk lengths of the array's axes. Cuts go between chunks where that makes no piece larger
        than `most`.
    wanted, most : int
        Bytes. A piece is larger than `most` only if a single item is.
    """
    shape = tuple(len(range(part.start, part.stop, part.step)) for part in box)
    total = math.prod(shape)
    if total == 0 or itemsize == 0:
        return
    if total * itemsize <= wanted or not shape:
        yield Piece(tuple(box), shape, 0, total)
        return
    axis = 0
    # The first axis whose single rows are small enough to be counted out.
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) * itemsize > most:
        axis += 1
    row = math.prod(shape[axis + 1 :])
    at = 0
    for outer in np.ndindex(shape[:axis]):
        fixed = tuple(
            slice(part.start + i * part.step, part.start + i * part.step + 1, 1)
            for part, i in zip(box, outer, strict=False)
        )
        lengths = _lengths(
            box[axis], shape[axis], row * itemsize, chunks[axis] if axis < len(chunks) else (), wanted, most
        )
        first = 0
        for length in lengths:
            inside = range(box[axis].start, box[axis].stop, box[axis].step)[first : first + length]
            selection = (*fixed, slice(inside.start, inside[-1] + 1, inside.step), *box[axis + 1 :])
            yield Piece(selection, (*(1,) * axis, length, *shape[axis + 1 :]), at, at + length * row)
            first += length
            at += length * row


def rest_of(
    piece: Piece, items: int, itemsize: int, chunks: Sequence[Sequence[int]] = (), *, most: int = RESUMED_BYTES
) -> list[Piece]:
    """Return pieces of `most` bytes for what is left of one whose first `items` are there; whole entries count."""
    axis = next((axis for axis, n in enumerate(piece.shape) if n > 1), None)
    if axis is None:
        return [piece]
    row = math.prod(piece.shape[axis + 1 :])
    done = items // row
    part = piece.selection[axis]
    left = slice(part.start + done * part.step, part.stop, part.step)
    box = (*piece.selection[:axis], left, *piece.selection[axis + 1 :])
    first = piece.start + done * row
    return [
        further._replace(start=further.start + first, stop=further.stop + first)
        for further in cut(box, itemsize, chunks, wanted=most, most=most)
    ]


def _lengths(part: slice, count: int, row_bytes: int, chunks: Sequence[int], wanted: int, most: int) -> Iterator[int]:
    """Yield how many entries of an axis each piece takes."""
    ends = np.cumsum(chunks) if len(chunks) else np.zeros(0, np.int64)
    fitting = max(1, wanted // row_bytes)
    largest = max(1, most // row_bytes)
    at = 0
    while at < count:
        length = min(fitting, count - at)
        if at + length < count and part.step == 1 and len(ends):
            length = _to_chunk_end(part.start + at, length, min(largest, count - at), ends)
        yield length
        at += length


def _to_chunk_end(start: int, length: int, largest: int, ends: np.ndarray) -> int:
    """Return a length that ends with a chunk: the last end within `length`, else one within `largest`."""
    place = int(np.searchsorted(ends, start + length, "right"))
    if place > 0 and ends[place - 1] > start:
        return int(ends[place - 1]) - start
    if place < len(ends) and ends[place] - start <= largest:
        return int(ends[place]) - start
    return length


def runs_of(rows: np.ndarray) -> list[tuple[int, int]]:
    """Return the stretches (start, stop) of consecutive numbers that cover `rows`, ascending."""
    if not len(rows):
        return []
    ordered = np.unique(rows)
    cuts = np.flatnonzero(np.diff(ordered) != 1)
    firsts, lasts = ordered[np.r_[0, cuts + 1]], ordered[np.r_[cuts, len(ordered) - 1]]
    return [(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True)]


def lazy_chunks(
    chunks: Sequence[Sequence[int]], itemsize: int, wanted: int = LAZY_BYTES
) -> tuple[tuple[int, ...], ...]:
    """Return chunks for a lazy array: neighbours along the first axis joined up to `wanted` bytes."""
    if not chunks:
        return ()
    row = math.prod(max(axis, default=0) for axis in chunks[1:]) * itemsize
    joined: list[int] = []
    for length in chunks[0]:
        if joined and (joined[-1] + length) * row <= wanted:
            joined[-1] += length
        else:
            joined.append(length)
    return (tuple(joined), *(tuple(axis) for axis in chunks[1:]))
