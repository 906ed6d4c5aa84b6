"""What is at a path, as a source for the encoders of `flystore.service.export`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flystore.catalog import Catalog, Snapshot
from flystore.model.errors import NotFound
from flystore.model.late import pa
from flystore.model.structures import BLUESKY_RUN, Family, RaggedStructure
from flystore.storage import reserve

from .arrays import Arrays
from .browse import Browse, require_family
from .columns import series_of_table, shown_rows, shown_schema
from .documents import Documents
from .entries import Entry
from .export import ArraySource, ContainerSource, OtherSource, RaggedSource, TableSource
from .parts import PIECE_BYTES, Index
from .ragged import Ragged
from .tables import require_only_partition

_AT_WORK_BYTES = 4 * PIECE_BYTES
"""Memory of an export under way: a piece as stored, as decoded and as encoded, whatever the size of the whole."""

_PAGE = 100


class Exports:
    """Opens nodes for export: checks what can be checked, and reads nothing yet."""

    def __init__(self, catalog: Catalog, browse: Browse, arrays: Arrays, ragged: Ragged, documents: Documents) -> None:
        self._catalog = catalog
        self._browse = browse
        self._arrays = arrays
        self._ragged = ragged
        self._documents = documents

    def names(self, path: tuple[str, ...], *families: Family) -> tuple[str, ...]:
        """Return what the formats of the node at `path` are looked up by: its specs, and its family last.

        Raises
        ------
        NotFound
            If nothing is there, or a node of none of `families`.
        """
        entry = require_family(self._browse.entry(path), *families)
        return (*(spec.name for spec in entry.specs), str(entry.family))

    def array(
        self,
        path: tuple[str, ...],
        wanted: tuple[Index, ...] = (),
        *,
        block: tuple[int, ...] | None = None,
        expected_shape: tuple[int, ...] | None = None,
    ) -> ArraySource:
        """Return a part of an array, or of one block; errors as `Arrays.read`."""
        source = self._arrays.source(path, wanted, block=block, expected_shape=expected_shape)
        _reserve(path)
        return source

    def table(
        self, path: tuple[str, ...], columns: Sequence[str] | None = None, *, partition: int | None = None
    ) -> TableSource:
        """Return a table as it is now, all columns or those named; rows that are appended meanwhile are not in it.

        Raises
        ------
        NotFound
            If there is no such table or column.
        InvalidRequest
            If it has no such partition.
        """
        with self._browse.moment() as moment:
            entry = require_family(self._browse.entry(path, moment), Family.TABLE)
            source = self._table(entry, moment, columns, partition)
        _reserve(path)
        return source

    def container(self, path: tuple[str, ...], fields: Sequence[str] | None = None) -> ContainerSource:
        """Return a container, or those of its children that are named.

        Raises
        ------
        NotFound
            If there is no such container or child.
        """
        with self._browse.moment() as moment:
            found = self._browse.find(path, moment)
            inside = not isinstance(found, Entry) or found.file is not None
            if not inside:
                entry = self._browse.container(path, moment)
                children = [self._child(path, name, moment) for name in fields] if fields else None
        if inside:  # a file, which no transaction waits for
            entry = require_family(self._browse.inside.read(found), Family.CONTAINER)
            children = [self._child(path, name, None) for name in fields] if fields else None
        _reserve(path)
        return self._container(entry, children)

    def run(self, path: tuple[str, ...]) -> ContainerSource:
        """Return a run for its documents alone, also one that is not shown yet.

        Raises
        ------
        NotFound
            If `path` is not a run.
        """
        found = self._documents.read(path, as_text=True)
        _reserve(path)
        return ContainerSource("/" + "/".join(path), {}, lambda: iter(()), lambda: found.documents)

    # --- sources of what is below

    def _child(self, path: tuple[str, ...], name: str, moment: Snapshot | None) -> Entry:
        if not name or "/" in name:
            raise NotFound(f"{'/'.join(path)} has no field {name!r}", status=400)
        try:
            return self._browse.entry((*path, name), moment)
        except NotFound as error:
            raise NotFound(f"/{'/'.join(path)} has no field {name!r}", field=name, status=400) from error

    def _source(self, entry: Entry) -> Any:
        path = entry.path
        name = "/" + "/".join(path)
        match entry.family:
            case Family.CONTAINER:
                return self._container(entry, None)
            case Family.TABLE:
                with self._browse.moment() as moment:
                    return self._table(self._browse.entry(path, moment), moment, None)
            case Family.ARRAY:
                return self._arrays.source(path, limited=False)
            case Family.RAGGED:
                dtype = np.dtype(RaggedStructure.from_wire(entry.structure).dtype)
                return RaggedSource(name, dtype, lambda: self._ragged.scalar(path, ()), entry.metadata)
        return OtherSource(name, str(entry.family), entry.metadata)

    def _container(self, entry: Entry, named: list[Entry] | None) -> ContainerSource:
        def children() -> Iterator[tuple[str, Any]]:
            found = named if named is not None else self._entries(entry)
            yield from ((child.path[-1], self._source(child)) for child in found)

        whole_run = named is None and any(spec.name == BLUESKY_RUN.name for spec in entry.specs)
        return ContainerSource(
            name="/" + "/".join(entry.path),
            metadata=entry.metadata,
            children=children,
            documents=(lambda: self._documents.read(entry.path, as_text=True).documents) if whole_run else None,
        )

    def _entries(self, entry: Entry) -> Iterator[Entry]:
        cursor = None
        while True:
            page = self._browse.children(entry, (), (), limit=_PAGE, cursor=cursor)
            yield from page.entries
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    def _table(
        self, entry: Entry, moment: Snapshot, columns: Sequence[str] | None, partition: int | None = None
    ) -> TableSource:
        node = entry.node
        assert node is not None
        files = self._browse.table_files.source_of(node, moment)
        if files is not None:
            found = self._browse.table_files.open(node, files, columns, partition)
            return _table_source(entry, found.schema, found.index, found.rows, found.read)
        require_only_partition(partition)
        schema, index = shown_schema(node, columns)
        series = series_of_table(node)
        rows, began = moment.rows(series), moment.began(series)

        def read() -> Iterator[pa.RecordBatch]:
            return shown_rows(self._catalog, series, schema, rows, began)

        return _table_source(entry, schema, index, rows, read)


def _table_source(
    entry: Entry, schema: pa.Schema, index: tuple[str, ...], rows: int, read: Callable[[], Iterator[pa.RecordBatch]]
) -> TableSource:
    described = {name: entry.metadata.get(name) for name in schema.names}
    return TableSource(
        name="/" + "/".join(entry.path),
        schema=schema,
        index=index,
        rows=rows,
        read=read,
        metadata=entry.metadata,
        column_metadata={name: value for name, value in described.items() if isinstance(value, dict)},
    )


def _reserve(path: tuple[str, ...]) -> None:
    # Once and before the first byte: an export that has begun does not fail because others begin as well.
    reserve(_AT_WORK_BYTES, f"this export of /{'/'.join(path)}")
