"""Columns of a table as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from flystore.model.late import pa

from ._ragged import dense

_TEXT_MISSING = "<NA>"


def column_values(column: pa.ChunkedArray, item_shape: tuple[int, ...] = ()) -> np.ndarray:
    """Return a column's values, first axis the rows.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    item_shape : tuple of int
        Shape of one row as the data key announced it; used where a column of lists has no rows to
        tell it.

    Returns
    -------
    numpy.ndarray
        Numbers as they are; with nulls among them float, null NaN. Text as ``U``, null as ``<NA>``. Truth
        values with nulls among them as objects, null None. Lists of equal shape as further axes;
        of unequal shape padded with NaN at the end; a null row is all NaN.
    """
    kind = column.type
    if pa.types.is_nested(kind):
        return _stacked(column, item_shape)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = column.fill_null(_TEXT_MISSING).to_numpy(zero_copy_only=False)
        return np.asarray(texts, dtype=np.str_)
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if column.num_chunks == 1 and not column.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return np.asarray(_Values(column.chunk(0)))
    return np.asarray(column.to_numpy(zero_copy_only=False))


class _Values:
    """Numbers of an Arrow array as numpy takes them over: the same memory, which is kept as long as they are.

    They may be written to, as Arrow's own view may not: nobody but the caller has the bytes that came.
    """

    def __init__(self, numbers: pa.Array) -> None:
        dtype = np.dtype(numbers.type.to_pandas_dtype())
        values = numbers.buffers()[1]
        self._kept = values
        self.__array_interface__ = {
            "version": 3,
            "shape": (len(numbers),),
            "typestr": dtype.str,
            "data": (values.address + numbers.offset * dtype.itemsize if len(numbers) else 0, False),
        }


def _stacked(column: pa.ChunkedArray, item_shape: tuple[int, ...]) -> np.ndarray:
    """Go down the levels of lists: while each level's lists have one length, no row is looked at."""
    flat: Any = column.combine_chunks()
    shape = [len(flat)]
    while _is_list(flat.type):
        length = None if flat.null_count or not len(flat) else _one_length(flat)
        if length is None:
            return _from_rows(column.to_pylist(), item_shape)
        shape.append(length)
        flat = flat.flatten()
    if pa.types.is_nested(flat.type):
        return _from_rows(column.to_pylist(), item_shape)
    return column_values(pa.chunked_array([flat])).reshape(shape)


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _one_length(lists: Any) -> int | None:
    """Return the length that all lists of an array without nulls have; None if they differ."""
    if pa.types.is_fixed_size_list(lists.type):
        return int(lists.type.list_size)
    lengths = np.diff(lists.offsets.to_numpy())
    return int(lengths[0]) if (lengths == lengths[0]).all() else None


def _from_rows(rows: list[Any], item_shape: tuple[int, ...]) -> np.ndarray:
    if not rows:
        return np.zeros((0, *item_shape))
    present = [np.asarray(row) for row in rows if row is not None and _is_even(row)]
    if len(present) == len(rows) and len({row.shape for row in present}) == 1:
        return np.stack(present)
    shape = present[0].shape if present else item_shape
    numbers = [np.full(shape, np.nan) if row is None else dense_row(row) for row in rows]
    if any(row.dtype.kind in "US" for row in numbers):
        return np.asarray([str(row) for row in rows], dtype=np.str_)
    return dense(numbers)[0]


def _is_even(row: Any) -> bool:
    """Return whether nested lists are a rectangle."""
    try:
        np.asarray(row)
    except ValueError:
        return False
    return True


def dense_row(row: Any) -> np.ndarray:
    """Return nested lists as one array, padded with NaN where they are uneven; null is NaN."""
    if isinstance(row, list) and any(isinstance(part, list) for part in row):
        return dense([dense_row([] if part is None else part) for part in row])[0]
    return np.asarray([np.nan if part is None else part for part in row] if isinstance(row, list) else row)
