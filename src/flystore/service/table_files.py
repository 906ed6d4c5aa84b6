"""Tables in files, one a partition: those that clients sent and this service keeps, and files that others wrote.

Rows are in the order of partitions and, within one, of the file. A partition that is kept and that nobody wrote yet
has no rows. What a file has beyond the columns of the structure is a DataFrame's index: it is read along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import msgspec
import numpy as np

from flystore.catalog import Catalog, Node, Snapshot
from flystore.model.errors import Damaged, FlystoreError, InvalidRequest, NotFound, NotReady, Unreadable
from flystore.model.late import arrow_csv, pa, pq
from flystore.model.structures import (
    PARQUET_MIMETYPE,
    ArrayStructure,
    Asset,
    DataSource,
    Family,
    Management,
    TableStructure,
)
from flystore.storage import OpenedFile, PartStore, Roots, opened_rows, released, reserve

from .columns import column_to_numpy

_BATCH_ROWS = 1 << 14
_WRONG = (OSError, ValueError, MemoryError, KeyError)


class FileRows(msgspec.Struct, frozen=True):
    """A table, or a partition, as its files have it.

    Attributes
    ----------
    schema : pyarrow.Schema
        Of the columns asked for, and the index.
    index : tuple of str
        Columns of `schema` that are an index.
    rows : int
    read : callable
        Yields record batches of `schema`; opens the files each time it is called.
    """

    schema: pa.Schema
    index: tuple[str, ...]
    rows: int
    read: Callable[[], Iterator[pa.RecordBatch]]

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self.read(), schema=self.schema)


class _Open(NamedTuple):
    """One file, open."""

    schema: pa.Schema
    rows: int
    nbytes: int
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


def part_name(partition: int) -> str:
    return f"partition-{partition}.parquet"


def in_files(source: DataSource | None) -> bool:
    """Return whether a table's rows are in files."""
    return source is not None and source.family is Family.TABLE and file_kind(source.mimetype) is not None


def file_kind(mimetype: str) -> str | None:
    """Return how files of a mimetype are read as tables: ``parquet``, ``arrow``, ``csv``; None if they are not."""
    parts = [part.strip() for part in mimetype.split(";")]
    name = parts[1].removeprefix("type=") if parts[0] == "multipart/related" and len(parts) > 1 else parts[0]
    if PARQUET_MIMETYPE in parts and "structure=sparse" in parts:
        return None
    return {PARQUET_MIMETYPE: "parquet", "application/vnd.apache.arrow.file": "arrow", "text/csv": "csv"}.get(name)


class TableFiles:
    """Reads tables from files.

    Parameters
    ----------
    catalog : Catalog
    store : PartStore
        Where the files are that this service keeps.
    roots : Roots
        Below which others may have theirs.
    """

    def __init__(self, catalog: Catalog, store: PartStore, roots: Roots) -> None:
        self._catalog = catalog
        self._store = store
        self._roots = roots

    def source_of(self, node: Node, moment: Snapshot) -> DataSource | None:
        """Return where a table's files are; None if its rows are not in files."""
        if node.family is not Family.TABLE or node.origin == "documents":
            return None
        source = moment.data_source(node.id)
        return source if in_files(source) else None

    def open(
        self,
        node: Node,
        source: DataSource,
        columns: Sequence[str] | None = None,
        partition: int | None = None,
    ) -> FileRows:
        """Return a table as its files are now, or one partition; all columns, or those named and the index.

        Raises
        ------
        InvalidRequest
            If there is no such partition.
        NotFound
            If there is no such column.
        OutsideRoots, MissingAsset, Unreadable, Damaged
            If a file cannot be read.
        """
        structure = TableStructure.from_wire(node.structure)
        if partition is not None and not 0 <= partition < structure.npartitions:
            raise InvalidRequest(
                f"Partition out of range: this table has {structure.npartitions} partitions, numbered from 0; there "
                f"is no partition {partition}",
                status=400,
            )
        numbers = range(structure.npartitions) if partition is None else range(partition, partition + 1)
        announced = structure.schema
        found: list[tuple[pa.Schema, int]] = []
        for number in numbers:
            with self._opened(node, source, number, announced) as file:
                if file is not None:
                    found.append((file.schema, file.rows))
        schema, index = _shown(structure, [schema for schema, _ in found], columns)
        expected = [rows for _, rows in found]

        def read() -> Iterator[pa.RecordBatch]:
            left = list(reversed(expected))
            for number in numbers:
                with self._opened(node, source, number, announced) as file:
                    if file is None:
                        continue
                    if not left or file.rows != left.pop():
                        raise NotReady(f"the rows of /{'/'.join(node.path)} were replaced while they were read")
                    yield from _fitted(file, schema, node)

        return FileRows(schema, index, sum(expected), read)

    def column_structure(self, node: Node, source: DataSource, name: str) -> ArrayStructure:
        """Return the structure of a column as an array: from the schema alone where that says it all."""
        rows = self.open(node, source, [name])
        kind = rows.schema.field(name).type
        if pa.types.is_floating(kind):
            return ArrayStructure.of(kind.to_pandas_dtype(), (rows.rows,))
        found = self._values(rows, name)
        return ArrayStructure.of(found.dtype, found.shape)

    def column(self, node: Node, source: DataSource, name: str) -> np.ndarray:
        """Return a column as an array of fixed-size items."""
        return self._values(self.open(node, source, [name]), name)

    def _values(self, rows: FileRows, name: str) -> np.ndarray:
        return column_to_numpy(rows.table().column(name))

    @contextmanager
    def _opened(self, node: Node, source: DataSource, number: int, announced: pa.Schema) -> Iterator[_Open | None]:
        where = f"partition {number} of /{'/'.join(node.path)}"
        with ExitStack() as stack:
            try:
                if source.management is not Management.EXTERNAL:
                    path = self._store.path(str(node.id), part_name(number))
                    if path is None:
                        yield None
                        return
                    file, schema = opened_rows(path)
                    stack.enter_context(file)
                    opened = _parquet(file, schema)
                else:
                    kind = file_kind(source.mimetype)
                    outside = self._roots.open(_asset(source, number, where).data_uri)
                    stack.callback(outside.close)
                    opened = _of_others(stack, outside, kind or "", announced, source)
            except FlystoreError as error:
                raise self._explained(error, node, where) from error
            except (pa.ArrowException, *_WRONG) as error:
                raise Unreadable(f"{where} cannot be read as a table: {error}") from error
            try:
                yield opened
            except pa.ArrowException as error:
                raise Unreadable(f"{where} cannot be read: {error}") from error

    def _explained(self, error: FlystoreError, node: Node, where: str) -> FlystoreError:
        if not isinstance(error, Damaged):
            return error
        # Its files go after the transaction that deletes it: what is missing then is the node.
        with self._catalog.read() as snapshot:
            known = snapshot.node(node.path)
        if known is None or known.id != node.id:
            return NotReady(f"/{'/'.join(node.path)} was replaced while it was read; read again")
        return Damaged(f"{where}: {error.message}")


def _asset(source: DataSource, number: int, where: str) -> Asset:
    assets = sorted(source.assets, key=lambda asset: -1 if asset.num is None else asset.num)
    if number >= len(assets):
        raise NotFound(f"{where} has no file yet", status=404)
    return assets[number]


def _parquet(file: pq.ParquetFile, schema: pa.Schema) -> _Open:
    def batches(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from file.iter_batches(_BATCH_ROWS, columns=list(names))

    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    return _Open(schema, file.metadata.num_rows, size, batches)


class _Positioned:
    """A checked file as the file object that Arrow reads from."""

    def __init__(self, file: OpenedFile) -> None:
        self._file = file
        self._size = file.size
        self._at = 0
        self.closed = False

    def read(self, n: int | None = None) -> bytes:
        left = max(self._size - self._at, 0)
        data = bytearray(left if n is None or n < 0 else min(n, left))
        del data[self._file.read_some(self._at, data) :]
        self._at += len(data)
        return bytes(data)

    def seek(self, to: int, whence: int = 0) -> int:
        self._at = to + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def _of_others(stack: ExitStack, file: OpenedFile, kind: str, announced: pa.Schema, source: DataSource) -> _Open:
    handle = stack.enter_context(pa.PythonFile(_Positioned(file), mode="r"))
    if kind == "parquet":
        opened = stack.enter_context(pq.ParquetFile(handle, page_checksum_verification=True))
        return _parquet(opened, opened.schema_arrow)
    if kind == "arrow":
        return _arrow(handle, file.size)
    return _csv(file, announced, source)


def _arrow(handle: pa.NativeFile, size: int) -> _Open:
    reader = pa.ipc.open_file(handle)
    rows = 0
    for i in range(reader.num_record_batches):
        with released():
            reserve(size, "this Arrow file")
            rows += reader.get_batch(i).num_rows

    def batches(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for i in range(reader.num_record_batches):
            batch = reader.get_batch(i)
            batch.validate(full=True)
            yield batch.select(list(names))

    return _Open(reader.schema, rows, size, batches)


def _csv(file: OpenedFile, announced: pa.Schema, source: DataSource) -> _Open:
    without_header = "header=absent" in source.mimetype.replace(" ", "")
    types = {field.name: field.type for field in announced}

    def streamed(names: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        told = arrow_csv.ReadOptions(
            use_threads=False, block_size=1 << 20, column_names=announced.names if without_header else None
        )
        parse = arrow_csv.ParseOptions(delimiter=str(source.parameters.get("sep", ",")), newlines_in_values=True)
        convert = arrow_csv.ConvertOptions(
            column_types=types, include_columns=None if names is None else list(names), strings_can_be_null=True
        )
        with (
            pa.PythonFile(_Positioned(file), mode="r") as handle,
            arrow_csv.open_csv(handle, told, parse, convert) as reader,
        ):
            yield from reader

    first: pa.Schema = announced
    rows = 0
    if file.size:
        for batch in streamed(None):
            first, rows = batch.schema, rows + batch.num_rows
    return _Open(first, rows, file.size, streamed)


def _shown(
    structure: TableStructure, files: list[pa.Schema], columns: Sequence[str] | None
) -> tuple[pa.Schema, tuple[str, ...]]:
    """Return the schema of what is read, the columns in the order asked for and then the index, and the index."""
    announced = structure.schema
    fields: dict[str, pa.Field] = {field.name: field for field in announced}
    for schema in files:
        for field in schema:
            if field.name not in fields or pa.types.is_null(fields[field.name].type):
                fields[field.name] = field
    wanted = list(structure.columns if columns is None else columns)
    unknown = [name for name in wanted if name not in fields]
    if unknown:
        raise NotFound(
            f"no such column: {', '.join(unknown)}. There are {', '.join(fields)}.", columns=unknown, status=400
        )
    index = [name for name in fields if name not in structure.columns and name not in wanted]
    metadata = next((schema.metadata for schema in files if schema.metadata), announced.metadata)
    return pa.schema([fields[name] for name in (*wanted, *index)], metadata=metadata), tuple(index)


def _cast(column: pa.Array, target: pa.DataType) -> pa.Array:
    if column.type == target:
        return column
    if pa.types.is_dictionary(target) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()  # Parquet keeps the values alone, unless they are text
    return column.cast(target)


def _fitted(file: _Open, schema: pa.Schema, node: Node) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file as `schema`; columns that it lacks are null."""
    there = [name for name in schema.names if name in file.schema.names]
    for batch in file.batches(there) if there else iter(()):
        with released():
            reserve(2 * batch.nbytes, f"the rows of /{'/'.join(node.path)}")
        try:
            arrays = [
                _cast(batch.column(field.name), field.type)
                if field.name in there
                else pa.nulls(batch.num_rows, field.type)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except pa.ArrowException as error:
            raise Unreadable(f"the rows of /{'/'.join(node.path)} are not of the types announced: {error}") from error
