"""Strided parts of bytes in a file, read by position straight to where they belong.

A part is described by ranges along the axes of an array that lies uncompressed in the file. Adjacent bytes
are read in one call; a sparse part is read in pieces, so a small region of a huge frame costs a small
amount of memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flystore.storage import OpenedFile

_WHOLE_SPAN = 2**18
"""Bytes up to which a span is read whole however little of it is needed: one call beats many."""

_LARGEST_SPAN = 2**23
"""Most bytes of scratch memory for one piece."""

_PART = 2**18

_DENSE = 2
"""A span is read whole while it is at most this many times what is needed."""


def gather(file: OpenedFile, offset: int, strides: Sequence[int], ranges: Sequence[range], out: np.ndarray) -> None:
    """Fill `out` with a part of an array that begins at `offset` in the file.

    Parameters
    ----------
    offset : int
        Bytes from the beginning of the file to the array's first item.
    strides : sequence of int
        Bytes from one index to the next, one an axis; not negative.
    ranges : sequence of range
        One an axis: not empty, positive step.
    out : ndarray
        Of the ranges' lengths, and of the stored dtype.

    Raises
    ------
    Truncated
        If the file ends before the last of the bytes.
    """
    start = offset + sum(r[0] * stride for r, stride in zip(ranges, strides, strict=True))
    span = out.itemsize + sum((r[-1] - r[0]) * stride for r, stride in zip(ranges, strides, strict=True))
    if span == out.nbytes and out.flags.c_contiguous:
        file.read_into(start, out.reshape(-1).view("u1").data)
        return
    if span <= _WHOLE_SPAN or (span <= _LARGEST_SPAN and span <= _DENSE * out.nbytes):
        scratch = bytearray(span)
        file.read_into(start, scratch)
        steps = tuple(r.step * stride for r, stride in zip(ranges, strides, strict=True))
        out[...] = np.ndarray(out.shape, out.dtype, scratch, 0, steps)
        return
    axis = next(i for i, r in enumerate(ranges) if len(r) > 1)
    # Halves keep runs together where there are any; single indices end the recursion.
    middle = len(ranges[axis]) // 2
    for part in (slice(0, middle), slice(middle, None)):
        piece = (*ranges[:axis], ranges[axis][part], *ranges[axis + 1 :])
        gather(file, offset, strides, piece, out[(slice(None),) * axis + (part,)])


def spans(offset: int, strides: Sequence[int], ranges: Sequence[range], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield (beginning, length) of each stretch that `gather` reads for the same part."""
    start = offset + sum(r[0] * stride for r, stride in zip(ranges, strides, strict=True))
    span = itemsize + sum((r[-1] - r[0]) * stride for r, stride in zip(ranges, strides, strict=True))
    nbytes = itemsize * math.prod(map(len, ranges))
    if span <= max(nbytes, _WHOLE_SPAN) or (span <= _LARGEST_SPAN and span <= _DENSE * nbytes):
        yield start, span
        return
    axis = next(i for i, r in enumerate(ranges) if len(r) > 1)
    middle = len(ranges[axis]) // 2
    for part in (slice(0, middle), slice(middle, None)):
        yield from spans(offset, strides, (*ranges[:axis], ranges[axis][part], *ranges[axis + 1 :]), itemsize)


def c_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the byte strides of a C-ordered array, as Python integers of any size."""
    strides = [itemsize]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides))[: len(shape)]


def linear_index(index: Sequence[int], shape: Sequence[int]) -> int:
    """Return the place of an index, in range, among those of an array of `shape` in C order."""
    place = 0
    for i, n in zip(index, shape, strict=True):
        place = place * n + i
    return place


def as_range(rows: np.ndarray) -> range | None:
    """Return ascending, evenly spaced rows as a range; None if they are not."""
    if len(rows) == 1:
        return range(int(rows[0]), int(rows[0]) + 1)
    step = int(rows[1]) - int(rows[0])
    if step <= 0 or (len(rows) > 2 and not (np.diff(rows) == step).all()):
        return None
    return range(int(rows[0]), int(rows[-1]) + 1, step)


def as_slice(r: range) -> slice:
    """Return the slice that selects what a range with positive step does."""
    return slice(r.start, r[-1] + 1, r.step)


def cross(*axes: "range | np.ndarray") -> tuple[np.ndarray, ...]:
    """Return the index that selects every combination of indices along the axes."""
    return np.ix_(*(np.asarray(axis, np.int64) for axis in axes))


def ranges_of(flags: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the ``[start, stop)`` ranges in which a bool array is True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def in_parts(check: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return what `check` says of the numbers below `count`, (count,) bool, asked for in parts that take little memory.

    A file of a few bytes can declare as many rows as it likes.
    """
    starts = range(0, count, _PART)
    parts = [check(np.arange(start, min(start + _PART, count), dtype=np.int64)) for start in starts]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def some(rows: np.ndarray) -> str:
    """Return row numbers for a message, at most a few of them."""
    flat = sorted({int(row) for row in rows[:1000]})
    shown = ", ".join(str(row) for row in flat[:5])
    return shown if len(flat) <= 5 and len(rows) <= 1000 else f"{shown}, …"
