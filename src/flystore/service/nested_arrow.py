"""Nested data as Arrow tables, and those as files.

Where the library awkward is installed, tables are the ones that it makes, as stock servers send them: reading one again
restores the very array. Without it rows of numbers are plain lists, which every reader of Arrow knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flystore.model.errors import Unsupported
from flystore.model.late import pa, pq

from . import forms, nested
from .nested import Lists, Nested, Regular, Values


def library() -> Any:
    """Return the library awkward; None if it is not installed."""
    try:
        import awkward  # only some formats need it, and it need not be there
    except ImportError:
        return None
    return awkward


def table_of_rows(rows: Nested) -> pa.Table:
    """Return rows of unequal length as a table of one column without a name.

    Raises
    ------
    Unsupported
        If Arrow has no type for the values.
    """
    if nested.innermost(rows).dtype.kind == "c":
        raise Unsupported("complex numbers have no type in Arrow; ask for application/zip")
    if library() is None:
        return pa.table({"": _plain(rows)})
    form, buffers = nested.to_buffers(rows)
    return table_of_buffers(form, len(rows), buffers, "this array")


def table_of_buffers(form: dict[str, Any], length: int, buffers: forms.Buffers, name: str) -> pa.Table:
    """Return what buffers that were checked hold; only where awkward is installed.

    Raises
    ------
    Unsupported
        If Arrow has no form for it.
    """
    awkward = library()
    try:
        return awkward.to_arrow_table(awkward.from_buffers(form, length, buffers))
    except (TypeError, ValueError, pa.ArrowException, NotImplementedError) as error:
        raise Unsupported(f"{name} has no form in Arrow: {error}") from error


def arrow_file(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_file(table: pa.Table) -> bytes:
    """Return a table as Parquet.

    Raises
    ------
    Unsupported
        If it has types that Parquet has not.
    """
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise Unsupported(f"Parquet has no place for this: {error}; ask for Arrow") from error
    return sink.getvalue().to_pybytes()


def _plain(node: Nested) -> pa.Array:
    match node:
        case Values():
            found = pa.array(np.ascontiguousarray(node.data).reshape(-1))
            for size in reversed(node.data.shape[1:]):
                found = pa.FixedSizeListArray.from_arrays(found, size)
            return found
        case Regular():
            return pa.FixedSizeListArray.from_arrays(_plain(node.content), node.size)
        case Lists():
            return pa.LargeListArray.from_arrays(pa.array(node.offsets), _plain(node.content))
