"""Array-valued data keys of slow data: what is announced, and how the stored column becomes an array.

The values lie in one (nested) list column of the stream's segments; the node is a view on it. Its shape and dtype
follow from `ArrayStats` and the `ColumnType` of all rows so far, so they do not depend on batches.

Rows that do not agree are made to: the shape is that of the longest row along each axis, and shorter rows are
padded with NaN (text with ``""``), which makes integers floats. A row without a value is all padding and keeps its
place. A value of lower rank counts as one with further axes of length 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np

from flystore.model.late import pa, pc
from flystore.model.structures import ArrayStructure, RaggedStructure

from ._columns import BIG, BOOL, FLOAT, HUGE, NAT, NEG, OTHER, TEXT, ColumnType, arrow_type, text_of

MAX_ARRAY_SIZE = 16
"""Values with more elements than this leave the table, as in TiledWriter's default."""

CHUNK_BYTES = 100_000_000
"""Announced chunks hold whole rows up to this size."""

_NUMBERS = BOOL | NAT | NEG | BIG | HUGE | FLOAT


class ArrayStats(msgspec.Struct, frozen=True, array_like=True):
    """Extent of the values of one array-valued key in all rows so far.

    Attributes
    ----------
    rows : int
        Rows that have a value.
    longest, shortest : tuple of int
        Length of the longest and shortest list at each level; ``()`` for scalars.
    size : int
        Number of values in all rows together.
    holes : bool
        Whether there are nulls inside of values.
    low, high : int
        Smallest and largest integer, 0 included.
    chars, octets : int
        Length of the longest text, in characters and in bytes of UTF-8.
    """

    rows: int = 0
    longest: tuple[int, ...] = ()
    shortest: tuple[int, ...] = ()
    size: int = 0
    holes: bool = False
    low: int = 0
    high: int = 0
    chars: int = 0
    octets: int = 0

    def join(self, other: ArrayStats) -> ArrayStats:
        """Return the stats of both together; associative and commutative."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        rank = max(len(self.longest), len(other.longest))
        (long_a, short_a), (long_b, short_b) = self._of_rank(rank), other._of_rank(rank)
        return ArrayStats(
            self.rows + other.rows,
            tuple(max(a, b) for a, b in zip_longest(long_a, long_b, fillvalue=0)),
            tuple(min(a, b) for a, b in zip_longest(short_a, short_b, fillvalue=2**62)),
            self.size + other.size,
            self.holes or other.holes,
            min(self.low, other.low),
            max(self.high, other.high),
            max(self.chars, other.chars),
            max(self.octets, other.octets),
        )

    def _of_rank(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        has_scalars = not self.longest or self.longest[-1] > 0
        ones = (1,) * (rank - len(self.longest)) if has_scalars else ()
        return self.longest + ones, self.shortest + ones


NO_STATS = ArrayStats()


def stats_of(array: pa.Array) -> ArrayStats:
    """Return the extent of one column of a batch, as `encode_column` gave it."""
    rows = len(array) - array.null_count
    if rows == 0:
        return NO_STATS
    array = array.drop_null()
    if pa.types.is_string(array.type):
        return _stats_of_texts(array.to_pylist())
    longest, shortest, level = [], [], array
    while pa.types.is_list(level.type) and len(level):
        if level.null_count:
            return _stats_of_values(array.to_pylist())
        lengths = pc.min_max(pc.list_value_length(level))
        longest.append(lengths["max"].as_py())
        shortest.append(lengths["min"].as_py())
        level = level.flatten()
    holes = level.null_count > 0
    return _with_leaves(ArrayStats(rows, tuple(longest), tuple(shortest), len(level), holes), level)


def _stats_of_texts(texts: list[str]) -> ArrayStats:
    stats = NO_STATS
    for text in texts:
        value = value_of_text(text, numbers=True)
        one = _stats_of_value(value)
        if not isinstance(value, list):
            one = msgspec.structs.replace(one, chars=len(text), octets=len(text.encode()))
        stats = stats.join(one)
    return stats


def value_of_text(text: str, numbers: bool) -> Any:
    """Return the value of an array-valued key that was stored as text: a list, perhaps a number, else the text."""
    if numbers or text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            return text
        if isinstance(value, list) or numbers:
            return value
    return text


def _with_leaves(stats: ArrayStats, leaves: pa.Array) -> ArrayStats:
    if len(leaves) == 0:
        return stats
    if pa.types.is_integer(leaves.type):
        found = pc.min_max(leaves)
        low, high = found["min"].as_py(), found["max"].as_py()
        return msgspec.structs.replace(stats, low=min(0, low or 0), high=max(0, high or 0))
    if pa.types.is_string(leaves.type):
        chars, octets = pc.max(pc.utf8_length(leaves)).as_py(), pc.max(pc.binary_length(leaves)).as_py()
        return msgspec.structs.replace(stats, chars=chars or 0, octets=octets or 0)
    return stats


def _stats_of_values(values: Iterable[Any]) -> ArrayStats:
    stats = NO_STATS
    for value in values:
        stats = stats.join(_stats_of_value(value))
    return stats


def _stats_of_value(value: Any) -> ArrayStats:
    if isinstance(value, list):
        inner = NO_STATS
        for item in value:
            inner = inner.join(_stats_of_value(item))
        size, longest, shortest = inner.size, inner.longest, inner.shortest
        return msgspec.structs.replace(
            inner, rows=1, size=size, longest=(len(value), *longest), shortest=(len(value), *shortest)
        )
    if value is None:
        return ArrayStats(1, size=1, holes=True)
    if isinstance(value, str):
        return ArrayStats(1, size=1, chars=len(value), octets=len(value.encode()))
    if isinstance(value, int) and not isinstance(value, bool):
        return ArrayStats(1, size=1, low=min(0, value), high=max(0, value))
    return ArrayStats(1, size=1)


# --- what is announced -----------------------------------------------------------------------------------


def leaf_flags(column: ColumnType) -> int:
    """Return the flags of the scalars at every level of nested lists together."""
    return column.flags | (leaf_flags(column.item) if column.item is not None else 0)


class View(msgspec.Struct, frozen=True):
    """How an array-valued key is shown.

    Attributes
    ----------
    dtype : str
        What `numpy.dtype` takes.
    item_shape : tuple of (int or None)
        Shape of one row; None marks a ragged axis.
    padded : bool
        Whether rows had to be padded, or integers became floats, because rows do not agree.
    as_declared : bool
        Whether dtype and rank are those the descriptor declares.
    """

    dtype: str
    item_shape: tuple[int | None, ...]
    padded: bool
    as_declared: bool


def array_view(column: ColumnType, stats: ArrayStats, rows: int, shape: Any, dtype: Any) -> View:
    """Return how rows of one shape are shown.

    Parameters
    ----------
    column, stats
        Type and extent of all values so far.
    rows : int
        Rows of the stream; more than `stats.rows` means that some have no value.
    shape, dtype
        What the descriptor declares; None if it does not.
    """
    padded = stats.longest != stats.shortest or stats.holes or stats.rows < rows
    declared = _declared_dtype(dtype)
    found = _dtype(leaf_flags(column), stats, declared)
    as_declared = declared is None or (found.kind == declared.kind and found.itemsize <= max(declared.itemsize, 4))
    if padded and found.kind in "iub":
        found = np.dtype("<f8")
    rank_agrees = not isinstance(shape, (list, tuple)) or len(shape) == len(stats.longest)
    return View(found.str, stats.longest, padded, as_declared and rank_agrees)


def ragged_view(column: ColumnType, stats: ArrayStats, shape: Any) -> View:
    """Return how rows of variable length are shown; an axis that the descriptor fixes stays fixed if it is."""
    flags = leaf_flags(column)
    dtype = _dtype(flags, stats, None) if flags else np.dtype("<f8")
    if stats.holes and dtype.kind in "iub":
        dtype = np.dtype("<f8")
    rank = max(1, len(stats.longest))
    declared = tuple(shape) if isinstance(shape, (list, tuple)) and len(shape) == rank else (None,) * rank
    fixed = [
        n if n is not None and axis < len(stats.longest) and stats.longest[axis] == stats.shortest[axis] == n else None
        for axis, n in enumerate(declared)
    ]
    if all(n is not None for n in fixed):
        fixed[0] = None
    return View(dtype.str, tuple(fixed), False, True)


def _declared_dtype(dtype: Any) -> np.dtype | None:
    try:
        declared = np.dtype(dtype) if isinstance(dtype, str) else None
    except TypeError:
        return None
    return declared if declared is not None and declared.kind in "biufcSU" else None


def _dtype(flags: int, stats: ArrayStats, declared: np.dtype | None) -> np.dtype:
    if flags & (TEXT | OTHER):
        return _text_dtype(flags, stats, declared)
    found = arrow_type(ColumnType(flags)).to_pandas_dtype()
    found = np.dtype(found if flags else "<f8")
    if declared is None or declared.kind in "SU":
        return found
    if declared.kind in "iu":
        fits = found.kind in "biu" and _holds(declared, stats)
    else:
        fits = declared.kind != "b" or found.kind == "b"
    return declared if fits else found


def _holds(dtype: np.dtype, stats: ArrayStats) -> bool:
    limits = np.iinfo(dtype)
    return limits.min <= stats.low and stats.high <= limits.max


def _text_dtype(flags: int, stats: ArrayStats, declared: np.dtype | None) -> np.dtype:
    # The text of a number is at most 25 characters long; one beyond uint64 at most 302.
    numbers = 310 if flags & HUGE else 32 if flags & _NUMBERS else 1
    if declared is not None and declared.kind == "S" and numbers == 1:
        return np.dtype(f"S{max(declared.itemsize, stats.octets, 1)}")
    width = declared.itemsize // 4 if declared is not None and declared.kind == "U" else 0
    return np.dtype(f"<U{max(width, stats.chars, numbers)}")


def array_structure(view: View, rows: int, dims: tuple[str, ...]) -> ArrayStructure:
    """Return the announced structure of an array node with `rows` rows."""
    shape = (rows, *(n or 0 for n in view.item_shape))
    row_bytes = max(1, math.prod(shape[1:]) * np.dtype(view.dtype).itemsize)
    per_chunk = max(1, CHUNK_BYTES // row_bytes)
    first = (per_chunk,) * (rows // per_chunk) + ((rows % per_chunk,) if rows % per_chunk or not rows else ())
    return ArrayStructure.of(view.dtype, shape, (first, *((n,) for n in shape[1:])), dims)


def ragged_structure(view: View, stats: ArrayStats, rows: int, dims: tuple[str, ...]) -> RaggedStructure:
    """Return the announced structure of a ragged node with `rows` rows."""
    return RaggedStructure(view.dtype, (rows, *view.item_shape), stats.size, dims)


class DimNames:
    """Names of the dimensions of a stream's internal arrays: one name for each distinct length."""

    def __init__(self) -> None:
        self._by_length: dict[int, str] = {}

    def of(self, item_shape: Sequence[int | None]) -> tuple[str, ...]:
        return ("time", *(self._name(axis, n) for axis, n in enumerate(item_shape, start=1)))

    def _name(self, axis: int, length: int | None) -> str:
        if length is None:
            return f"dim_rgd_{axis}"
        return self._by_length.setdefault(length, f"dim_int_{len(self._by_length) + 1}")


# --- reading ---------------------------------------------------------------------------------------------


def array_of_column(column: pa.ChunkedArray | Sequence[pa.Array], structure: ArrayStructure) -> np.ndarray:
    """Return rows of an array-valued key in the form its node announces.

    Parameters
    ----------
    column
        The stored column, all rows or a slice of them. A sequence of arrays may differ in type from batch to
        batch; a null (or an array of Arrow type null, for a batch that lacks the column) is a row of padding.
    structure
        As announced; its first length is not looked at.

    Returns
    -------
    (len(column), *structure.shape[1:]) ndarray of structure.dtype
        Padding is NaN in floats, ``""`` in text; integers and booleans are never padded.
    """
    pieces = column.chunks if isinstance(column, pa.ChunkedArray) else list(column)
    dtype = structure.numpy_dtype
    rows = sum(len(piece) for piece in pieces)
    fill: Any = np.nan if dtype.kind in "fc" else 0 if dtype.kind in "biu" else ""
    out = np.full((rows, *structure.shape[1:]), fill, dtype)
    start = 0
    for piece in pieces:
        _place(piece, out[start : start + len(piece)])
        start += len(piece)
    return out


def _list_levels(kind: pa.DataType) -> int:
    levels = 0
    while pa.types.is_list(kind):
        kind, levels = kind.value_type, levels + 1
    return levels


def _leaf_type(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_list(kind):
        kind = kind.value_type
    return kind


def _place(array: pa.Array, out: np.ndarray) -> None:
    """Write the rows of one piece into `out`, which holds the padding already."""
    if array.null_count == len(array):
        return
    leaf_is_text = pa.types.is_string(_leaf_type(array.type))
    wants_text = out.dtype.kind in "SU"
    levels, rank = _list_levels(array.type), out.ndim - 1
    plain_text = leaf_is_text and wants_text and levels == rank
    if levels > rank or (leaf_is_text != wants_text) or (leaf_is_text and not plain_text):
        for row, value in enumerate(array.to_pylist()):
            if value is not None:
                _assign(value_of_text(value, not wants_text) if isinstance(value, str) else value, out, (row,))
        return
    positions, sizes = np.arange(len(array)), out.shape[1:]
    for axis in range(levels):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        positions = np.repeat(positions, lengths) * sizes[axis] + within
        array = array.flatten()
    positions = positions * math.prod(sizes[levels:])
    if array.null_count:
        positions = positions[array.is_valid().to_numpy(zero_copy_only=False)]
        array = array.drop_null()
    values = array.to_numpy(zero_copy_only=False)
    if out.dtype.kind == "S":
        values = np.array([text.encode() for text in values.tolist()], out.dtype)
    out.reshape(-1)[positions] = values


def _assign(value: Any, out: np.ndarray, index: tuple[int, ...]) -> None:
    if isinstance(value, list) and len(index) < out.ndim:
        for position, item in enumerate(value):
            _assign(item, out, (*index, position))
        return
    if value is None:
        return
    index += (0,) * (out.ndim - len(index))
    if out.dtype.kind == "U":
        out[index] = text_of(value)
    elif out.dtype.kind == "S":
        out[index] = text_of(value).encode()
    else:
        out[index] = value


def ragged_of_column(
    column: pa.ChunkedArray | Sequence[pa.Array], structure: RaggedStructure
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return rows of a ragged key as flat values and offsets.

    Parameters
    ----------
    column
        As for `array_of_column`; a null row is an empty one.
    structure
        As announced; its first length is not looked at.

    Returns
    -------
    values : (n,) ndarray of structure.dtype
        All values, C order.
    offsets : tuple of (m + 1,) int64
        One array for each list level, outermost first: element i of the level spans
        ``offsets[i]:offsets[i + 1]`` of the next one. Fixed axes are levels too.
    """
    pieces = column.chunks if isinstance(column, pa.ChunkedArray) else list(column)
    dtype = np.dtype(structure.dtype)
    rank = len(structure.shape) - 1
    lengths: list[list[int]] = [[] for _ in range(rank)]
    leaves: list[np.ndarray] = []
    for piece in pieces:
        leaves.append(_ragged_leaves(piece, rank, dtype, lengths))
    values = np.concatenate(leaves) if leaves else np.empty(0, dtype)
    return values.astype(dtype, copy=False), tuple(_offsets(level) for level in lengths)


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _ragged_leaves(piece: pa.Array, rank: int, dtype: np.dtype, lengths: list[list[int]]) -> np.ndarray:
    same_kind = pa.types.is_string(_leaf_type(piece.type)) == (dtype.kind in "SU")
    if _list_levels(piece.type) == rank and same_kind:
        for level in range(rank):
            lengths[level].extend(pc.list_value_length(piece).fill_null(0).to_pylist())
            piece = piece.flatten()
        if dtype.kind not in "fcSU" or not piece.null_count:
            return piece.to_numpy(zero_copy_only=False).astype(dtype)
        fill = "" if dtype.kind in "SU" else float("nan")
        return np.array([fill if leaf is None else leaf for leaf in piece.to_pylist()], dtype)
    flat: list[Any] = []
    for value in piece.to_pylist():
        if isinstance(value, str):
            value = value_of_text(value, dtype.kind not in "SU")
        _unfold([] if value is None else value, rank, lengths, 0, flat)
    if dtype.kind in "SU":
        return np.array(["" if leaf is None else text_of(leaf) for leaf in flat], dtype)
    return np.array([np.nan if leaf is None else leaf for leaf in flat], dtype)


def _unfold(value: Any, rank: int, lengths: list[list[int]], level: int, flat: list[Any]) -> None:
    if level == rank:
        flat.append(value)
        return
    items = value if isinstance(value, list) else [value]
    lengths[level].append(len(items))
    for item in items:
        _unfold(item, rank, lengths, level + 1, flat)
