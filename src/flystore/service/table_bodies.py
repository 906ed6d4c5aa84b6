"""Tables as Arrow files whose bytes are those that are stored: no column is decoded, copied or held on the way.

That is possible where all that was asked for is numbers without nulls, stored as they are shown: then the body is
known from the catalogue's headers alone, and each column is read when it is its turn to be sent. Everything else is
written as Arrow writes it, without a copy of what it refers to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flystore.catalog import Catalog, Node, Segment, Snapshot
from flystore.model.errors import NotReady
from flystore.model.late import pa
from flystore.storage import (
    decode_header,
    decode_segment,
    file_of_columns,
    is_plain,
    parts_of_file,
    plain_bytes,
    reserve,
)

from .columns import series_of_table, shown_schema

PIECE_BYTES = 1 << 20
MOST_SEGMENTS = 64
"""Rows in more of them are put together first: they would be sent in too small pieces."""

_WHOLE_BYTES = 2 << 20
"""What is no longer is read before any of it is sent."""


class TableBody(NamedTuple):
    """A table as one Arrow file.

    Attributes
    ----------
    nbytes : int
        Of all pieces together.
    pieces : iterator of memoryview
        Read as they are taken, with no transaction open in between.
    """

    nbytes: int
    pieces: Iterator[memoryview]


class _Kept(NamedTuple):
    """A column of a segment that lies by itself, to be read later."""

    segment: Segment
    number: int


class _Plan(NamedTuple):
    series: str
    began: int | None
    parts: list[bytes | int]
    columns: list[list[_Kept | memoryview]]


def stored_body(catalog: Catalog, snapshot: Snapshot, node: Node, names: Sequence[str] | None) -> TableBody | None:
    """Return the body of a table whose rows the catalogue keeps; None if its columns cannot be sent as they lie there.

    Raises
    ------
    NotFound
        If a column is not there.
    Damaged
        If a header or a segment is not what was stored.
    """
    schema, _ = shown_schema(node, names)
    series = series_of_table(node)
    if not len(schema) or not all(map(is_plain, schema.types)) or snapshot.has_segments(series, MOST_SEGMENTS + 1):
        return None
    columns: list[list[_Kept | memoryview]] = [[] for _ in schema]
    rows = 0
    for segment in snapshot.segments(series):
        found = _plain_columns(segment, schema)
        if found is None:
            return None
        for column, part in zip(columns, found, strict=True):
            column.append(part)
        rows += segment.rows
    if not rows:
        return None
    parts = file_of_columns(schema, rows)
    nbytes = sum(len(part) if isinstance(part, bytes) else rows * schema.types[part].byte_width for part in parts)
    pieces = _pieces(catalog, _Plan(series, snapshot.began(series), parts, columns))
    if nbytes <= _WHOLE_BYTES:  # what cannot be read is then an answer, and no answer cut short
        pieces = iter([_joined(list(pieces))])
    return TableBody(nbytes, pieces)


def _plain_columns(segment: Segment, schema: pa.Schema) -> list[_Kept | memoryview] | None:
    found: list[_Kept | memoryview] = []
    if segment.by_columns:
        header = decode_header(segment.body or b"")
        for name, kind in zip(schema.names, schema.types, strict=True):
            number = header.get_field_index(name)
            if number < 0 or header.field(number).nullable or header.field(number).type != kind:
                return None
            found.append(_Kept(segment, number))
        return found
    reserve(segment.nbytes, "these rows")
    batch = decode_segment(segment.body or b"")
    for name, kind in zip(schema.names, schema.types, strict=True):
        place = batch.schema.get_field_index(name)
        if place < 0 or batch.schema.types[place] != kind or batch.column(place).null_count:
            return None
        found.append(plain_bytes(batch.column(place)))
    return found


def _pieces(catalog: Catalog, plan: _Plan) -> Iterator[memoryview]:
    """Yield the parts in pieces of about `PIECE_BYTES`; larger ones as they are."""
    kept: list[memoryview] = []
    size = 0
    for part in plan.parts:
        places = [memoryview(part)] if isinstance(part, bytes) else plan.columns[part]
        for found in _read(catalog, plan, places):
            kept.append(found)
            size += len(found)
            if size >= PIECE_BYTES:
                yield _joined(kept)
                kept, size = [], 0
    if kept:
        yield _joined(kept)


def _read(catalog: Catalog, plan: _Plan, places: Sequence[_Kept | memoryview]) -> Iterator[memoryview]:
    for place in places:
        if isinstance(place, memoryview):
            yield place
            continue
        with catalog.read() as snapshot:
            if snapshot.began(plan.series) != plan.began:
                raise NotReady(f"the rows of {plan.series} were replaced while they were read; read again")
            found = snapshot.column(plan.series, place.segment, place.number)
        yield memoryview(found)


def _joined(parts: list[memoryview]) -> memoryview:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def written_body(table: pa.Table) -> TableBody:
    """Return the body of rows that are in memory."""
    parts = parts_of_file(table)
    return TableBody(sum(map(len, parts)), iter(parts))
