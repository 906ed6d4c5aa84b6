"""What was sent of a table, in the columns that the table has."""

from __future__ import annotations

import re

from flystore.model.errors import InvalidRequest
from flystore.model.late import pa

_PLAIN_INDEX = re.compile(r"__index_level_\d+__")
"""Index without a name, which clients of the protocol send of every DataFrame and do not announce."""


def fit(table: pa.Table, schema: pa.Schema, path: tuple[str, ...], *, keep_index: bool = False) -> pa.Table:
    """Return the rows of `table` with the columns of `schema`; those it lacks are null.

    Parameters
    ----------
    keep_index : bool
        Keep an index without a name as further columns, and what the body says of it; otherwise it is left out where
        `schema` has none.

    Raises
    ------
    InvalidRequest
        If it has a column that the table lacks, or one that does not convert without loss.
    """
    index = [name for name in table.column_names if _PLAIN_INDEX.fullmatch(name) and name not in schema.names]
    unknown = [name for name in table.column_names if name not in schema.names and name not in index]
    if unknown:
        raise InvalidRequest(
            f"/{'/'.join(path)} has no column {', '.join(unknown)}; it has {', '.join(schema.names)}",
            columns=unknown,
        )
    if len(set(table.column_names)) < len(table.column_names):
        raise InvalidRequest(f"the rows sent for /{'/'.join(path)} have two columns of one name")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        # Of a column whose values nobody had seen yet, clients announce no type.
        kind = column.type if keep_index and pa.types.is_null(field.type) else field.type
        try:
            columns.append(_cast(column, kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidRequest(
                f"column {field.name} of /{'/'.join(path)} is {field.type}; the rows sent hold "
                f"{column.type} that does not convert: {error}",
                column=field.name,
            ) from error
    if keep_index:
        fields = [field.with_type(column.type) for field, column in zip(schema, columns, strict=True)]
        fields += [table.schema.field(name) for name in index]
        metadata = table.schema.metadata or schema.metadata
        return pa.Table.from_arrays(
            [*columns, *(table.column(name) for name in index)], schema=pa.schema(fields, metadata=metadata)
        )
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Return a table's rows as one batch."""
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)
