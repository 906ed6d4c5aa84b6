"""Parts of arrays: what is wanted, worked out from their structure before anything is read."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest, NotReady, Truncated, Unreadable
from flystore.model.slices import normalise, selected
from flystore.model.structures import SEGMENT_ARRAY_MIMETYPE, ArrayStructure, DataSource
from flystore.storage import block_region

from .entries import Entry
from .observed import is_growing

Index = slice | int

PIECE_BYTES = 16 << 20
"""What is read at a time of an array that goes to a client or file piece by piece; at least one row."""


class Part(NamedTuple):
    """A part of an array, worked out and not yet read."""

    entry: Entry
    source: DataSource | None
    structure: ArrayStructure
    picked: tuple[Index, ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.structure.numpy_dtype.itemsize

    def pieces(self, most: int = PIECE_BYTES) -> "Iterator[Part]":
        """Yield parts along the first axis that together are this one, of whole chunks where that is not too much."""
        size = self.nbytes
        first = self.picked[0] if self.picked else 0
        # Rows kept with slow data are decoded all at once, whichever of them are wanted.
        together = self.source is None or self.source.mimetype == SEGMENT_ARRAY_MIMETYPE
        if isinstance(first, int) or size <= most or together:
            yield self
            return
        rows = selected(first, self.structure.shape[0])
        step = max(1, most * len(rows) // size)
        chunk = max(self.structure.chunks[0])
        step = step // chunk * chunk or step
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            piece = slice(part.start, part.stop if part.stop >= 0 else None, part.step)
            yield self._replace(picked=(piece, *self.picked[1:]), shape=(len(part), *self.shape[1:]))


def planned_part(
    entry: Entry,
    structure: ArrayStructure,
    wanted: tuple[Index, ...],
    block: tuple[int, ...] | None = None,
    expected_shape: tuple[int, ...] | None = None,
    source: DataSource | None = None,
) -> Part:
    """Return a part of an array, or of one of its blocks.

    Parameters
    ----------
    structure : ArrayStructure
        Of the entry, decoded.
    wanted : tuple of slice or int
        Fewer than axes means the rest whole; relative to the block, if there is one.
    expected_shape : tuple of int, optional
        As `flystore.service.Arrays.read` takes it.

    Raises
    ------
    OutOfBounds, InvalidRequest, Truncated
        If it does not fit.
    NotReady
        If `expected_shape` has rows that were announced, and are still being written.
    """
    whole = structure.shape
    region: tuple[slice, ...] = ()
    if block is not None:
        region = block_region(structure, block)
        whole = tuple(part.stop - part.start for part in region)
    if not wanted and expected_shape is not None:
        wanted = _known_rows(whole, expected_shape)
    picked = normalise(wanted, whole)
    pairs = zip(picked, whole, strict=True)
    shape = tuple(len(selected(item, n)) for item, n in pairs if isinstance(item, slice))
    if expected_shape is not None and expected_shape != shape:
        raise _unexpected(entry, shape, expected_shape)
    if region:
        picked = tuple(
            item + part.start if isinstance(item, int) else _shifted(item, part.start)
            for item, part in zip(picked, region, strict=True)
        )
    return Part(entry, source, structure, picked, shape)


def as_bytes(array: np.ndarray) -> memoryview:
    """Return an array's bytes in C order, without a copy where it already is."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.nbytes == 0:
        return memoryview(b"")
    return memoryview(contiguous.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def rows_of(item: Index, length: int) -> tuple[range, Index]:
    """Return the rows from the first to the last that `item` picks of an axis, and what picks the same of these.

    Parameters
    ----------
    item
        Normalised; picks one at least.
    """
    if isinstance(item, int):
        return range(item, item + 1), 0
    rows = selected(item, length)
    low, high = min(rows[0], rows[-1]), max(rows[0], rows[-1])
    stop = rows.stop - low
    return range(low, high + 1), slice(rows[0] - low, stop if stop >= 0 else None, rows.step)


def _known_rows(shape: tuple[int, ...], expected: tuple[int, ...]) -> tuple[Index, ...]:
    """Return the slice of a grown array that the caller knew of; everything if it did not just grow."""
    if shape and len(shape) == len(expected) and shape[1:] == expected[1:] and expected[0] < shape[0]:
        return (slice(0, expected[0]),)
    return ()


def _unexpected(entry: Entry, shape: tuple[int, ...], expected: tuple[int, ...]) -> InvalidRequest | Unreadable:
    announced = (entry.node.structure or {}).get("shape") if entry.node is not None else None
    where = "/" + "/".join(entry.path)
    if announced and shape and len(shape) == len(expected) and shape[0] < expected[0] <= announced[0]:
        if is_growing(entry.observation):
            return NotReady(
                f"{where}: {announced[0]} rows were announced, and not all that are asked for are written yet. Try "
                "again in a moment.",
                announced=announced[0],
                found=shape[0],
            )
        return Truncated(
            f"{where}: {announced[0]} rows were announced, {shape[0]} can be read now",
            announced=announced[0],
            found=shape[0],
        )
    return InvalidRequest(
        f"The expected shape {expected} does not match the actual shape {shape} that would result from "
        "the requested block and slice.",
        found=list(shape),
    )


def _shifted(part: slice, by: int) -> slice:
    if part.step is None or part.step > 0:
        return slice((part.start or 0) + by, part.stop + by, part.step)
    stop = None if part.stop is None or part.stop < 0 else part.stop + by
    if stop is None and by > 0:
        stop = by - 1
    return slice(part.start + by, stop, part.step)
