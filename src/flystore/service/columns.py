"""Columns of slow data as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flystore.catalog import Catalog, Choose, Node, Segment, Snapshot
from flystore.model.errors import Damaged, NotFound
from flystore.model.late import pa
from flystore.model.structures import ArrayStructure, Family, RaggedStructure, TableStructure
from flystore.projection import cast_column
from flystore.storage import decode_column, decode_header, decode_segment, released, reserve

from .nested import Lists, Nested, Values, count, innermost
from .projecting import series_of
from .recent import Recent


def series_of_table(node: Node) -> str:
    """Return the segment series behind a table or internal array: its stream's, or its own."""
    return series_of(node.path[:-1] if node.origin == "documents" else node.path)


def stored_pieces(
    snapshot: Snapshot, series: str, names: Sequence[str], rows: range | None = None
) -> list[list[pa.Array]]:
    """Return, for each name, its pieces as stored, one a segment in arrival order; null where a segment lacks it.

    Parameters
    ----------
    rows
        Only these, of step 1, as far as they are there; None: all. Segments that hold none of them are not read.

    Raises
    ------
    Damaged
        If a segment is not what was stored.
    """
    pieces: list[list[pa.Array]] = [[] for _ in names]
    first, stop = (0, None) if rows is None else (rows.start, rows.stop)
    for segment in snapshot.segments(series, first, stop, choose=_choose(names)):
        skipped = max(0, first - segment.first_row)
        wanted = (segment.rows if stop is None else min(segment.rows, stop - segment.first_row)) - skipped
        for place, column in enumerate(_columns_of(segment, series, names)):
            pieces[place].append(column if wanted == segment.rows else column.slice(skipped, wanted))
    return pieces


def _choose(names: Sequence[str]) -> Choose:
    wanted = frozenset(names)
    return lambda header: [number for number, name in enumerate(decode_header(header).names) if name in wanted]


def _columns_of(segment: Segment, series: str, names: Sequence[str]) -> list[pa.Array]:
    """Return columns of a segment as stored; null where it has none of that name."""
    assert segment.body is not None
    reserve(segment.nbytes, f"the rows of {series}")
    if segment.by_columns:
        schema = decode_header(segment.body)
        read = {
            schema.field(number).name: decode_column(schema.field(number), segment.rows, body)
            for number, body in segment.columns.items()
        }
        return [read[name] if name in read else pa.nulls(segment.rows) for name in names]
    batch = decode_segment(segment.body)
    if batch.num_rows != segment.rows:
        raise Damaged(
            f"the segment of {series} at row {segment.first_row} holds {batch.num_rows} rows, not {segment.rows}"
        )
    places = map(batch.schema.get_field_index, names)
    return [pa.nulls(segment.rows) if place < 0 else batch.column(place) for place in places]


def stored_names(snapshot: Snapshot, series: str) -> set[str]:
    """Return the names of all columns that a series has stored anything of."""
    found: set[str] = set()
    for segment in snapshot.segments(series):
        if segment.body is not None:
            known = decode_header(segment.body) if segment.by_columns else decode_segment(segment.body).schema
            found.update(known.names)
    return found


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
    catalog: Catalog, series: str, schema: pa.Schema, rows: int, began: int | None, *, first: int = 0
) -> Iterator[pa.RecordBatch]:
    """Yield rows of a series as `schema` shows them, a batch a segment, with no transaction open.

    Parameters
    ----------
    rows
        Where to end.
    began
        What `Snapshot.began` said when the rows were counted.
    first
        Where to begin.

    Raises
    ------
    Damaged
        If a segment is not what was stored.
    NotReady
        If the rows were replaced meanwhile.
    """
    at = first
    for segment in catalog.segments(series, first, rows, began, choose=_choose(schema.names)):
        with released():
            columns = _columns_of(segment, series, schema.names)
        arrays = [cast_column(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        found = pa.RecordBatch.from_arrays(arrays, schema=schema)
        # Rows that were merged meanwhile may begin before what was read already.
        yield found.slice(at - segment.first_row, rows - at)
        at = segment.first_row + segment.rows


def read_table(
    snapshot: Snapshot, node: Node, columns: Sequence[str] | None = None, rows: range | None = None
) -> pa.Table:
    """Return a table node's rows, all columns or those named in the order asked for and the index, if it has one.

    Parameters
    ----------
    rows
        As `stored_pieces` takes it.

    Raises
    ------
    NotFound
        If a column is not there; carries the names that are.
    """
    schema, _ = shown_schema(node, columns)
    stored = stored_pieces(snapshot, series_of_table(node), schema.names, rows)
    shown = [
        pa.chunked_array([cast_column(piece, field.type) for piece in pieces], field.type)
        for field, pieces in zip(schema, stored, strict=True)
    ]
    return pa.Table.from_arrays(shown, schema=schema)


def stands_alone(node: Node, name: str) -> bool:
    """Return whether a row of a column is shown the same without the others: what lists come to depends on all."""
    assert node.structure is not None
    kind = TableStructure.from_wire(node.structure).schema.field(name).type
    return _is_text(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def column_to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as an array of fixed-size items.

    Text becomes ``U``; null becomes NaN (numbers), ``'<NA>'`` (text) as stock clients show it; rows
    of lists of one length become further axes, rows of unequal lists become text.
    """
    kind = column.type
    if _is_list(kind):
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


def column_to_nested(column: pa.ChunkedArray) -> Nested | None:
    """Return a column of lists of numbers that differ in length; None if it is something else.

    A row that is null has no items.
    """
    node, levels = column.combine_chunks(), []
    while _is_list(node.type):
        lengths = node.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        levels.append(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        node = node.flatten()
    kind = node.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    if all(len(offsets) < 3 or np.ptp(np.diff(offsets)) == 0 for offsets in levels):
        return None
    values = node.to_numpy(zero_copy_only=False)
    if values.dtype == object:  # truth values and null
        return None
    found: Nested = Values(values)
    for offsets in reversed(levels):
        found = Lists(offsets, found)
    return found


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def says_all(table: Node, name: str) -> bool:
    """Return whether the schema of a table says the structure of a column: where there is NaN for what is missing."""
    if table.family is not Family.TABLE or table.structure is None or name not in table.structure["columns"]:
        return False
    return bool(pa.types.is_floating(TableStructure.from_wire(table.structure).schema.field(name).type))


KnownTypes = Recent[tuple[str, str, str, int | None], tuple[int, np.dtype]]
"""Up to which row the values of a column were looked at for their type, and what it came to."""


def column_structure(
    snapshot: Snapshot, table: Node, name: str, known: KnownTypes | None = None
) -> ArrayStructure | RaggedStructure:
    """Return the structure of a column: from the schema alone where that says it all.

    Lists of numbers that differ in length are ragged, as they are for Tiled.

    Parameters
    ----------
    known
        Kept between calls: whether an integer is missing, and how long the longest text is, was found out up to some
        row, and rows only grow.
    """
    assert table.structure is not None
    kind = TableStructure.from_wire(table.structure).schema.field(name).type
    rows = snapshot.rows(series_of_table(table))
    if pa.types.is_floating(kind):
        return ArrayStructure.of(kind.to_pandas_dtype(), (rows,))
    if known is not None and rows and (_is_text(kind) or pa.types.is_integer(kind)):
        return ArrayStructure.of(_type_up_to(snapshot, table, name, str(kind), rows, known), (rows,))
    column = read_table(snapshot, table, [name]).column(0)
    nested = column_to_nested(column) if _is_list(kind) else None
    if nested is not None:
        axes = (None,) * _depth(kind)
        return RaggedStructure(innermost(nested).dtype.str, (rows, *axes), count(nested))
    found = column_to_numpy(column)
    return ArrayStructure.of(found.dtype, found.shape)


def _type_up_to(snapshot: Snapshot, table: Node, name: str, kind: str, rows: int, known: KnownTypes) -> np.dtype:
    series = series_of_table(table)
    key = series, name, kind, snapshot.began(series)
    seen, found = known.get(key) or (0, None)
    if found is not None and seen == rows:
        return found
    if found is None or seen > rows:  # an older state of the catalogue: rows may have come that it does not have
        seen, found = 0, None
    more = column_to_numpy(read_table(snapshot, table, [name], range(seen, rows)).column(0)).dtype
    found = more if found is None else np.promote_types(found, more)
    known[key] = rows, found
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _depth(kind: pa.DataType) -> int:
    return 1 + _depth(kind.value_type) if _is_list(kind) else 0
