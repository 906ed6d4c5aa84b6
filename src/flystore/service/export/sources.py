"""What encoders get: arrays in pieces along their first axis, tables in batches, containers as trees.

Nothing is read before it is asked for, no more than a piece is in memory, and no transaction is open in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np

from flystore.model.late import pa

BATCH_ROWS = 1 << 13
BATCH_BYTES = 2 << 20
"""What is encoded at a time; as text or Python objects it takes many times that."""


class ArraySource(msgspec.Struct, frozen=True):
    """A part of an array.

    Attributes
    ----------
    name : str
        Where it lies, for messages and titles.
    shape : tuple of int
        Of the part.
    read : callable
        Yields it in order, in pieces along the first axis that together have `shape`; a scalar is one piece.
    dims : tuple of str
        Names of the axes of `shape`; made up where the array has none.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterator[np.ndarray]]
    metadata: dict[str, Any] = {}
    dims: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def whole(self) -> np.ndarray:
        pieces = list(self.read())
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(self.shape, self.dtype)


class TableSource(msgspec.Struct, frozen=True):
    """A table, or some columns of one.

    Attributes
    ----------
    schema : pyarrow.Schema
        Of the batches, with its metadata.
    index : tuple of str
        Columns that are a DataFrame's index; in the schema, and not among what people call its columns.
    rows : int
    read : callable
        Yields record batches of any size with `schema`; from the beginning each time it is called.
    column_metadata : dict
        By column name.
    """

    name: str
    schema: pa.Schema
    index: tuple[str, ...]
    rows: int
    read: Callable[[], Iterator[pa.RecordBatch]]
    metadata: dict[str, Any] = {}
    column_metadata: dict[str, Any] = {}

    def batches(self, rows: int = BATCH_ROWS, nbytes: int = BATCH_BYTES) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of about so many rows or bytes, whatever they are stored in."""
        return even(self.read(), self.schema, rows, nbytes)

    def without_index(self) -> TableSource:
        """Return the table as people see it."""
        if not self.index:
            return self
        names = [name for name in self.schema.names if name not in self.index]
        read = self.read
        schema = pa.schema([self.schema.field(name) for name in names])
        return msgspec.structs.replace(
            self, schema=schema, index=(), read=lambda: (_selected(batch, schema) for batch in read())
        )


def _selected(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [batch.column(batch.schema.get_field_index(name)) for name in schema.names]
    if not columns:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * batch.num_rows, pa.struct([])))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def even(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, most_rows: int, most_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `batches` in order, small ones together and large ones apart."""
    kept: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        step = max(1, min(most_rows, most_bytes * batch.num_rows // max(batch.nbytes, 1)))
        for at in range(0, batch.num_rows, step):
            part = batch.slice(at, step)
            kept.append(part)
            rows += part.num_rows
            size += part.nbytes
            if rows >= most_rows or size >= most_bytes:
                yield from _together(kept, schema)
                kept, rows, size = [], 0, 0
    yield from _together(kept, schema)


def _together(batches: list[pa.RecordBatch], schema: pa.Schema) -> list[pa.RecordBatch]:
    if len(batches) < 2 or not schema.names:
        return batches
    return pa.Table.from_batches(batches, schema=schema).combine_chunks().to_batches()


class ContainerSource(msgspec.Struct, frozen=True):
    """A container and what is below it.

    Attributes
    ----------
    children : callable
        Yields (key, source) of what lies directly below, in order of insertion; a source is one of this module's.
    documents : callable or None
        Yields (name, document) of the run that this is; None for other containers, and for parts of a run. Documents
        are for `plain.encode`: mappings, or structs that encode as such.
    """

    name: str
    metadata: dict[str, Any]
    children: Callable[[], Iterator[tuple[str, Any]]]
    documents: Callable[[], Iterator[tuple[str, dict[str, Any]]]] | None = None


class RaggedSource(msgspec.Struct, frozen=True):
    """Rows of unequal length.

    Attributes
    ----------
    rows : callable
        Returns them as nested lists.
    """

    name: str
    dtype: np.dtype
    rows: Callable[[], list[Any]]
    metadata: dict[str, Any] = {}


class OtherSource(msgspec.Struct, frozen=True):
    """What has a place in a tree of metadata, and no form as an array or table."""

    name: str
    family: str
    metadata: dict[str, Any] = {}
