"""Rows of many segments put together column by column, so that whoever wants two columns reads two.

A *header* is the Arrow schema of the columns, in which a field that cannot be null is stored *plain*: its bytes are
its values, one behind the other, little-endian. Any other column is an Arrow IPC stream of one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flystore.model.errors import Damaged
from flystore.model.late import pa

from ._segments import decode_segment, encode_segment
from ._sink import Sink


def encode_columns(batch: pa.RecordBatch) -> tuple[bytes, list[bytes]]:
    """Return the header of a batch, and its columns in their order; schema metadata is not kept."""
    fields, bodies = [], []
    for name, kind, column in zip(batch.schema.names, batch.schema.types, batch.columns, strict=True):
        plain = is_plain(kind) and column.null_count == 0
        fields.append(pa.field(name, kind, nullable=not plain))
        if plain:
            bodies.append(bytes(plain_bytes(column)))
        else:
            bodies.append(encode_segment(pa.RecordBatch.from_arrays([column], [name])))
    return pa.schema(fields).serialize().to_pybytes(), bodies


@lru_cache(maxsize=64)
def decode_header(header: bytes) -> pa.Schema:
    """Return the schema of the columns behind a header.

    Raises
    ------
    Damaged
        If the bytes are not a header.
    """
    try:
        return pa.ipc.read_schema(pa.py_buffer(header))
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"a header of {len(header)} bytes cannot be decoded: {error}") from error


def decode_column(field: pa.Field, rows: int, body: bytes) -> pa.Array:
    """Return a column of `encode_columns`, without copying: it refers to `body`.

    Raises
    ------
    Damaged
        If the bytes are not such a column of so many rows.
    """
    if not field.nullable:
        size = rows * field.type.byte_width
        if len(body) != size:
            raise Damaged(f"{rows} values of {field.name} should be {size} bytes, not {len(body)}")
        return pa.Array.from_buffers(field.type, rows, [None, pa.py_buffer(body)])
    batch = decode_segment(body)
    if batch.num_columns != 1 or batch.num_rows != rows:
        raise Damaged(f"{rows} values of {field.name} were stored, {batch.num_rows} are there")
    return batch.column(0)


def together(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of batches as one, with the columns of all of them, null where a batch lacks one.

    A column has one type in all batches, or is null; there is at least one row.
    """
    kinds: dict[str, pa.DataType] = {}
    for schema in _different(batches):
        for name, kind in zip(schema.names, schema.types, strict=True):
            if pa.types.is_null(kinds.setdefault(name, kind)):
                kinds[name] = kind
    whole = pa.schema(list(kinds.items()))
    table = pa.Table.from_batches([_as(batch, whole) for batch in batches], schema=whole).combine_chunks()
    (found,) = table.to_batches()
    return found


def _different(batches: Sequence[pa.RecordBatch]) -> list[pa.Schema]:
    """Return the schemas of batches, those that follow each other and are equal once."""
    found: list[pa.Schema] = []
    for batch in batches:
        if not found or not batch.schema.equals(found[-1]):
            found.append(batch.schema)
    return found


def _as(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    columns = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        place = batch.schema.get_field_index(name)
        known = place >= 0 and batch.schema.types[place] == kind
        columns.append(batch.column(place) if known else pa.nulls(batch.num_rows, kind))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def is_plain(kind: pa.DataType) -> bool:
    """Return whether a column of this type, if it has no nulls, is its values one behind the other."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def plain_bytes(column: pa.Array) -> memoryview:
    """Return the values of a column of a plain type; it has no nulls."""
    width = column.type.byte_width
    values = column.buffers()[1]
    if values is None or not len(column):
        return memoryview(b"")
    return memoryview(values.slice(column.offset * width, len(column) * width)).cast("B")


# --------------------------------------------------------------------------- files that are put together


def file_of_columns(schema: pa.Schema, rows: int) -> list[bytes | int]:
    """Return what an Arrow file of one batch of plain columns is made of: bytes, and numbers where a column's are."""
    sizes = [rows * kind.byte_width for kind in schema.types]
    # Memory that nobody touches: the columns lie in it only so that they can be told from each other.
    nothing = pa.py_buffer(np.zeros(sum(sizes), np.uint8))
    numbers: dict[int, int] = {}
    columns = []
    for number, (kind, size) in enumerate(zip(schema.types, sizes, strict=True)):
        place = nothing.slice(sum(sizes[:number]), size)
        numbers[place.address] = number
        columns.append(pa.Array.from_buffers(kind, rows, [None, place], null_count=0))
    sink = Sink()
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return _together([part if isinstance(part, bytes) else numbers[part.address] for part in sink.parts])


def parts_of_file(table: pa.Table) -> list[memoryview]:
    """Return the bytes of a table as an Arrow file, which refer to the table's."""
    sink = Sink()
    with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), table.schema) as writer:
        writer.write_table(table)
    return [memoryview(part).cast("B") for part in _together(sink.parts)]


def _together(parts: list[Any]) -> list[Any]:
    """Join bytes that follow each other; what else there is stays."""
    found: list[Any] = []
    for part in parts:
        if found and isinstance(part, bytes) and isinstance(found[-1], bytes):
            found[-1] += part
        else:
            found.append(part)
    return found
