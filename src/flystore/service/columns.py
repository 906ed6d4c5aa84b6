"""Columns of slow data as arrays."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from flystore.catalog import Catalog, Node, Segment, Snapshot
from flystore.model.errors import Damaged, NotFound
from flystore.model.structures import ArrayStructure, TableStructure
from flystore.projection import cast_column
from flystore.storage import decode_segment, released, reserve

from .projecting import series_of


def series_of_table(node: Node) -> str:
    """Return the segment series behind a table or internal array: its stream's, or its own."""
    return series_of(node.path[:-1] if node.origin == "documents" else node.path)


def stored_pieces(snapshot: Snapshot, series: str, names: Sequence[str]) -> list[list[pa.Array]]:
    """Return, for each name, its pieces as stored, one a segment in arrival order; null where a segment lacks it.

    Raises
    ------
    Damaged
        If a segment is not what was stored.
    """
    pieces: list[list[pa.Array]] = [[] for _ in names]
    for segment in snapshot.segments(series):
        batch = _batch_of(segment, series)
        for place, name in enumerate(names):
            known = name in batch.schema.names
            pieces[place].append(batch.column(name) if known else pa.nulls(batch.num_rows))
    return pieces


def _batch_of(segment: Segment, series: str) -> pa.RecordBatch:
    assert segment.body is not None
    reserve(len(segment.body), f"the rows of {series}")
    batch = decode_segment(segment.body)
    if batch.num_rows != segment.rows:
        raise Damaged(
            f"the segment of {series} at row {segment.first_row} holds {batch.num_rows} rows, not {segment.rows}"
        )
    return batch


def shown_schema(node: Node, columns: Sequence[str] | None = None) -> tuple[pa.Schema, tuple[str, ...]]:
    """Return the schema in which a table node's columns are shown, and which of them are its index.

    All columns, or those named in the order asked for and the index, if there is one.

    Raises
    ------
    NotFound
        If a column is not there; carries the names that are.
    """
    assert node.structure is not None
    schema = TableStructure.from_wire(node.structure).schema
    if columns is not None:
        unknown = [name for name in columns if name not in schema.names]
        if unknown:
            raise NotFound(
                f"no such column: {', '.join(unknown)}. There are {', '.join(schema.names)}.",
                columns=unknown,
                status=400,
            )
    # The index of a DataFrame is in the schema and not among the columns; rows without it are nameless.
    wanted = node.structure["columns"] if columns is None else columns
    index = [name for name in schema.names if name not in (*node.structure["columns"], *wanted)]
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in (*columns, *index)], metadata=schema.metadata)
    return schema, tuple(index)


def shown_rows(
    catalog: Catalog, series: str, schema: pa.Schema, rows: int, began: int | None
) -> Iterator[pa.RecordBatch]:
    """Yield the first `rows` rows of a series as `schema` shows them, a batch a segment, with no transaction open.

    Parameters
    ----------
    began
        What `Snapshot.began` said when the rows were counted.

    Raises
    ------
    Damaged
        If a segment is not what was stored.
    NotReady
        If the rows were replaced meanwhile.
    """
    for segment in catalog.segments(series, 0, rows, began):
        with released():
            batch = _batch_of(segment, series)
        arrays = [
            cast_column(batch.column(name) if name in batch.schema.names else pa.nulls(batch.num_rows), kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        found = pa.RecordBatch.from_arrays(arrays, schema=schema)
        yield found.slice(0, rows - segment.first_row)


def read_table(snapshot: Snapshot, node: Node, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a table node's rows, all columns or those named in the order asked for and the index, if it has one.

    Raises
    ------
    NotFound
        If a column is not there; carries the names that are.
    """
    schema, _ = shown_schema(node, columns)
    stored = stored_pieces(snapshot, series_of_table(node), schema.names)
    shown = [
        pa.chunked_array([cast_column(piece, field.type) for piece in pieces], field.type)
        for field, pieces in zip(schema, stored, strict=True)
    ]
    return pa.Table.from_arrays(shown, schema=schema)


def column_to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array of fixed-size items.

    Text becomes ``U``; null becomes NaN (numbers), ``'<NA>'`` (text) as stock clients show it; rows
    of lists of one length become further axes, rows of unequal lists become text.
    """
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        rows = column.to_pylist()
        try:
            found = np.array([[] if row is None else row for row in rows])
        except ValueError:  # rows of unequal length
            return np.array([str(row) for row in rows], dtype=str)
        return found
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(["<NA>" if text is None else text for text in column.to_pylist()], dtype=str)
    if pa.types.is_boolean(kind) and column.null_count:
        return np.array(["<NA>" if v is None else str(v) for v in column.to_pylist()], dtype=str)
    found = column.to_numpy()
    if found.dtype == object:
        return np.array([str(item) for item in found], dtype=str)
    return found


def column_structure(snapshot: Snapshot, table: Node, name: str) -> ArrayStructure:
    """Return the structure of a column: from the schema alone where that says it all."""
    assert table.structure is not None
    kind = TableStructure.from_wire(table.structure).schema.field(name).type
    rows = snapshot.rows(series_of_table(table))
    if pa.types.is_floating(kind):
        return ArrayStructure.of(kind.to_pandas_dtype(), (rows,))
    found = column_to_numpy(read_table(snapshot, table, [name]).column(0))
    return ArrayStructure.of(found.dtype, found.shape)
