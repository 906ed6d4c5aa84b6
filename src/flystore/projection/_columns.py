"""The type of a column of slow data: a lattice over everything seen so far, so that no batching shows.

A `ColumnType` is a set of flags (which kinds of scalars were seen) and, where lists were seen, the type of
their items. Joining is the union, so it does not matter in which batches the values came. What is shown follows
from the flags:

    nothing but null          string
    booleans                  bool
    integers                  int64; uint64 where some need it and none is negative
    numbers, also mixed       double (booleans count as 0 and 1)
    text, or a mixture        string; what is not text is its JSON
    lists                     lists of the type of their items

A batch is stored exactly: in the Arrow type that holds its own values without loss or, where a mixture has no
such type, as text, each value its JSON. `cast_column` leads from either to the type shown, and gives the same
values whatever the batches were. Two numbers that are equal have one text: integral floats below 2^53 are
written as integers, all but -0.0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from flystore.model.late import pa, pc

from ._metadata import clean_text, printed

BOOL, NAT, NEG, BIG, HUGE, WIDE, FLOAT, TEXT, OTHER = (1 << n for n in range(9))
"""bool; 0 … 2^63-1; -2^63 … -1; 2^63 … 2^64-1; integers beyond; |integer| >= 2^53; float; text; anything else."""

_INTEGERS = NAT | NEG | BIG | HUGE
_NUMBERS = _INTEGERS | FLOAT
_DEPTH = 16  # lists nested deeper are JSON text
_EXACT_FLOAT = 2**53
_ABSURD = 2**1000  # no float comes near, and Python refuses to print much longer ones


class ColumnType(msgspec.Struct, frozen=True, array_like=True):
    """What was seen in a column.

    Attributes
    ----------
    flags : int
        Kinds of scalars seen; 0 means none but null.
    item : ColumnType or None
        Type of the items of lists; None means no list was seen.
    """

    flags: int = 0
    item: ColumnType | None = None

    def join(self, other: ColumnType) -> ColumnType:
        """Return the type of both together; associative, commutative and idempotent."""
        if self == other:
            return self
        if self.item is None or other.item is None:
            item = self.item or other.item
        else:
            item = self.item.join(other.item)
        return ColumnType(self.flags | other.flags, item)

    @property
    def is_text(self) -> bool:
        """Whether the values are shown as strings (also when only null was seen)."""
        if self.item is not None:
            return self.flags != 0
        return self.flags == 0 or bool(self.flags & (TEXT | OTHER))

    @property
    def is_mixture(self) -> bool:
        """Whether values are shown as text that are no text."""
        if self.item is not None:
            return self.flags != 0 or self.item.is_mixture
        return bool(self.flags & OTHER) or bool(self.flags & TEXT and self.flags != TEXT)

    @property
    def is_inexact(self) -> bool:
        """Whether integers are shown as floats that cannot hold them."""
        if self.item is not None:
            return self.flags == 0 and self.item.is_inexact
        if self.is_text:
            return False
        both_signs = self.flags & BIG and self.flags & NEG
        return bool(self.flags & HUGE or both_signs or (self.flags & WIDE and self.flags & FLOAT))


NOTHING = ColumnType()


def arrow_type(column: ColumnType) -> pa.DataType:
    """Return the Arrow type in which a column is shown."""
    if column.is_text:
        return pa.string()
    if column.item is not None:
        return pa.list_(arrow_type(column.item))
    if column.flags & (FLOAT | HUGE) or (column.flags & BIG and column.flags & NEG):
        return pa.float64()
    if column.flags & BIG:
        return pa.uint64()
    return pa.int64() if column.flags & _INTEGERS else pa.bool_()


# --- encoding a batch ------------------------------------------------------------------------------------


def encode_column(values: Sequence[Any] | np.ndarray) -> tuple[pa.Array, ColumnType]:
    """Return the values of one column of a batch as Arrow, exactly, and their type.

    Parameters
    ----------
    values
        One value a row, as documents hold them; None is null. An array is of float64, int64 or bool, one axis, and
        not empty: the same as its `tolist`.
    """
    if isinstance(values, np.ndarray):
        return pa.array(values), ColumnType(_flags_of_array(values))
    try:
        column, array = _encode(values, _DEPTH)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError):
        # Objects that only look like numbers or lists; their text is what can be said of them.
        column, array = ColumnType(OTHER), None
    if array is None:
        array = pa.array([None if value is None else text_of(value) for value in values], pa.string())
    return array, column


def _encode(values: Sequence[Any], depth: int) -> tuple[ColumnType, pa.Array | None]:
    """Return type and array; the array is None if the values are a mixture that needs JSON."""
    kinds = set(map(type, values))
    all_there = type(None) not in kinds
    kinds.discard(type(None))
    if not kinds:
        return NOTHING, pa.nulls(len(values))
    if len(kinds) == 1:
        (kind,) = kinds
        if kind is float:
            return ColumnType(FLOAT), _numbers(values, np.float64) if all_there else pa.array(values, pa.float64())
        if kind is bool:
            return ColumnType(BOOL), _numbers(values, np.bool_) if all_there else pa.array(values, pa.bool_())
        if kind is str:
            return ColumnType(TEXT), _text_array(values)
        if kind is int:
            return _encode_integers(values, all_there)
        if kind is list and depth > 0:
            return _encode_lists(values, depth)
        if kind is np.ndarray and depth > 0:
            encoded = _encode_arrays(values)
            if encoded is not None:
                return encoded
    plain = [_plain(value) for value in values]
    kinds_now = set(map(type, plain))
    kinds_now.discard(type(None))
    if len(kinds_now) == 1 and kinds_now != kinds and kinds_now.isdisjoint({_Other, np.ndarray}):
        return _encode(plain, depth)
    return _encode_mixture(plain, depth)


def _text_array(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if value is None else clean_text(value) for value in values], pa.string())


def _numbers(values: Sequence[Any], dtype: type[np.generic]) -> pa.Array:
    """Return numbers of one kind, none of them None, as Arrow; for few values a seventh of what `pa.array` takes."""
    return pa.array(np.array(values, dtype))


def _encode_integers(values: Sequence[Any], all_there: bool) -> tuple[ColumnType, pa.Array | None]:
    present = values if all_there else [value for value in values if value is not None]
    flags = _integer_flags(min(present), max(present))
    target = _exact_number(flags)
    if target is None:
        return ColumnType(flags), None
    if all_there and target == pa.int64():
        return ColumnType(flags), _numbers(values, np.int64)
    return ColumnType(flags), pa.array(values, target)


def _integer_flags(low: int, high: int) -> int:
    flags = NEG if low < 0 else NAT
    if high >= 0:
        flags |= NAT if high < 2**63 else BIG
        if low >= 2**63:
            flags &= ~NAT
    if low < -(2**63) or high >= 2**64:
        flags |= HUGE
    if low < -_ABSURD or high > _ABSURD:
        flags |= OTHER
    if low <= -_EXACT_FLOAT or high >= _EXACT_FLOAT:
        flags |= WIDE
    return flags


def _exact_number(flags: int) -> pa.DataType | None:
    """Return the Arrow type that holds scalars of these flags without loss, or None."""
    if flags == BOOL:
        return pa.bool_()
    if flags & (HUGE | BOOL | TEXT | OTHER):
        return None
    if flags & FLOAT:
        return None if flags & WIDE else pa.float64()
    if flags & BIG:
        return None if flags & NEG else pa.uint64()
    return pa.int64()


def _encode_lists(values: Sequence[Any], depth: int) -> tuple[ColumnType, pa.Array | None]:
    flat = list(chain.from_iterable(value for value in values if value is not None))
    item, inner = _encode(flat, depth - 1)
    if inner is None or item.is_mixture:
        # The text of single items would forget which of them were text.
        return ColumnType(0, item), None
    return ColumnType(0, item), _nest(inner, [0 if value is None else len(value) for value in values], values)


def _nest(inner: pa.Array, lengths: Iterable[int], values: Sequence[Any] | None = None) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))])
    mask = None
    if values is not None and any(value is None for value in values):
        mask = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), inner, mask=mask)


def _encode_arrays(values: Sequence[Any]) -> tuple[ColumnType, pa.Array] | None:
    """Return numpy arrays of one rank and compatible dtypes without a Python object per value."""
    present = [value for value in values if value is not None]
    ranks = {value.ndim for value in present}
    kinds = {value.dtype.kind for value in present}
    if len(ranks) != 1 or ranks == {0} or max(ranks) > _DEPTH or not (kinds <= {"i", "u"} or kinds in ({"f"}, {"b"})):
        return None
    flat = np.concatenate([value.ravel() for value in present])
    if flat.dtype.kind not in kinds or flat.dtype.itemsize > 8:
        return None
    flat = flat.astype("<f4" if flat.dtype == np.float16 else flat.dtype.newbyteorder("="), copy=False)
    inner = pa.array(flat)
    (rank,) = ranks
    for axis in reversed(range(1, rank)):
        lengths = [np.full(int(np.prod(value.shape[:axis])), value.shape[axis], np.int64) for value in present]
        inner = _nest(inner, np.concatenate(lengths))
    array = _nest(inner, [0 if value is None else value.shape[0] for value in values], values)
    column = ColumnType(_flags_of_array(flat))
    for _ in range(rank):
        column = ColumnType(0, column)
    return _without_unseen_levels(column, present, rank), array


def _flags_of_array(flat: np.ndarray) -> int:
    if flat.size == 0:
        return 0
    if flat.dtype.kind == "b":
        return BOOL
    if flat.dtype.kind == "f":
        return FLOAT
    return _integer_flags(int(flat.min()), int(flat.max()))


def _without_unseen_levels(column: ColumnType, present: list[np.ndarray], rank: int) -> ColumnType:
    """Cut `column` where an empty axis hides what is below: `[]` says nothing about its items."""
    seen = 1
    while seen < rank and any(int(np.prod(value.shape[:seen])) for value in present):
        seen += 1
    if seen == rank:
        return column
    column = NOTHING
    for _ in range(seen):
        column = ColumnType(0, column)
    return column


class _Other:
    """A value that has no scalar type of its own; it is shown as its JSON."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _plain(value: Any) -> Any:
    """Return a value of a document as None, bool, int, float, str, list or `_Other`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, list):
        return value
    if isinstance(value, np.ndarray):
        return _plain(value.item()) if value.ndim == 0 else _array_as_list(value)
    if isinstance(value, np.generic):
        inner = value.item() if value.dtype.kind not in "mM" else str(value)
        return inner if type(inner) in (bool, int, float, str) else _Other(value)
    if isinstance(value, (tuple, set, frozenset)):
        return list(value) if isinstance(value, tuple) else sorted(value, key=text_of)
    if isinstance(value, bool):
        return bool(value)
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    return _Other(value)


def _array_as_list(value: np.ndarray) -> list[Any]:
    return value.astype(str).tolist() if value.dtype.kind in "mM" else value.tolist()


def _encode_mixture(values: list[Any], depth: int) -> tuple[ColumnType, pa.Array | None]:
    column = NOTHING
    for value in values:
        column = column.join(type_of(value, depth))
    if column.item is None:
        exact = _exact_number(column.flags)
        if exact is not None:
            return column, pa.array(values, exact)
    if column.is_text:
        return column, pa.array([None if value is None else text_of(value) for value in values], pa.string())
    return column, None


def type_of(value: Any, depth: int = _DEPTH) -> ColumnType:
    """Return the type of a single value."""
    value = _plain(value)
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return ColumnType(BOOL)
    if isinstance(value, float):
        return ColumnType(FLOAT)
    if isinstance(value, str):
        return ColumnType(TEXT)
    if isinstance(value, int):
        return ColumnType(_integer_flags(value, value))
    if isinstance(value, list) and depth > 0:
        return _encode_lists([value], depth)[0]
    return ColumnType(OTHER)


# --- text ------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """Return the text that stands for a value in a column of text: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return clean_text(str(value))
    try:
        plain = _canonical(value)
        return clean_text(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return printed(value)


def _canonical(value: Any) -> Any:
    if isinstance(value, _Other):
        value = value.value
    plain = _plain(value)
    if isinstance(plain, float) and not isinstance(plain, bool):
        is_minus_zero = plain == 0 and math.copysign(1, plain) < 0  # no integer says that
        return int(plain) if abs(plain) < _EXACT_FLOAT and plain.is_integer() and not is_minus_zero else plain
    if isinstance(plain, list):
        return [_canonical(inner) for inner in plain]
    if isinstance(plain, int) and not -_ABSURD <= plain <= _ABSURD:
        return hex(plain)
    if not isinstance(plain, _Other):
        return plain
    if isinstance(value, Mapping):
        return {str(key): _canonical(inner) for key, inner in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    return printed(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None  # cannot be: only `text_of` writes text into a column that is not text


# --- reading ---------------------------------------------------------------------------------------------


def cast_column(array: pa.Array | pa.ChunkedArray, target: pa.DataType) -> pa.Array:
    """Return a stored column in the type in which the node shows it.

    Parameters
    ----------
    array
        A column of an `AppendRows` batch, or several of one type joined.
    target
        The type in the node's schema (`arrow_type`).

    Returns
    -------
    pyarrow.Array
        Of type `target`, same length, nulls kept.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0) if array.num_chunks else pa.nulls(0, array.type)
    if array.type == target:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), target)
    if _is_text(target):
        return pa.array([None if v is None else text_of(v) for v in array.to_pylist()], pa.string())
    if _is_text(array.type):
        values = [None if text is None else _parsed(text) for text in array.to_pylist()]
        return _shown(values, target)
    if _has_text(target):
        return _shown(array.to_pylist(), target)
    try:
        return pc.cast(array, target, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # Lists that are empty at some level may be typed deeper, in their batch, than what was seen.
        return _shown(array.to_pylist(), target)


def _shown(values: list[Any], target: pa.DataType) -> pa.Array:
    return pa.array([_show(value, target) for value in values], target)


def _show(value: Any, target: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(target):
        return [_show(inner, target.value_type) for inner in value]
    if _is_text(target):
        return text_of(value)
    if pa.types.is_floating(target):
        return float(value)
    return bool(value) if pa.types.is_boolean(target) else int(value)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _has_text(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind):
        kind = kind.value_type
    return _is_text(kind)
