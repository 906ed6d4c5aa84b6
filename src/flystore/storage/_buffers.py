"""Parts: what clients send of awkward, ragged, sparse and table nodes, one file each, in a folder for each node.

A part is replaced whole: after a crash its file holds the old content or the new one. `.written` lists the parts that
were written, so one that is gone is an error and never nothing. The files can be read without us:

``*.zip``
    Buffers of any bytes, stored and not deflated, each under its name and with the CRC-32 of the zip format; the
    archive's comment is a CRC-32C of its directory.
``*.parquet``
    Columns, with a checksum on each page and one of the whole table (`table_sum`) in the schema's metadata.
``partition-*.parquet``
    Rows of any types as they came, with a checksum on each page and one of schema and number of rows (`rows_sum`).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import google_crc32c

from flystore.disk import Trust
from flystore.model.errors import Damaged, FlystoreError, InvalidRequest, TooLarge
from flystore.model.late import pa, pq

from ._budget import reserve
from ._keep import Keep, keep_of
from ._limits import require_below
from ._sums import ArrayCheck, written

if TYPE_CHECKING:
    from ._keep_bucket import BucketPart

MOST_ENTRIES = 10_000
"""Buffers in one zip."""

ROWS_PREFIX = "partition-"
"""Begins the names of parts that hold rows of a table."""

_MAGIC = b"PK\x05\x06"
_END = struct.Struct("<4s4H2LH")  # what a zip ends with, but for the comment
_DIRECTORY = struct.Struct("<12xLL2x")  # its directory's size and place, in there
_ENTRY = b"PK\x01\x02"  # begins each line of a zip's directory
_TABLE_SUM = b"crc32c"
_WRONG_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # a method of compression, an encryption or a version that we lack
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    KeyError,
    IndexError,
)


class PartStore:
    """Parts of nodes in a directory or another place, each node under a key of the caller's choice.

    Who writes a part is alone at it: writes to one node are the caller's to serialise.

    Parameters
    ----------
    keep : Keep or Path
        Of a path, the directory.
    trust : Trust, optional
        Shared with others who write to the same store.
    """

    def __init__(self, keep: Keep | Path, trust: Trust | None = None) -> None:
        self.keep = keep_of(keep)
        self._trust = trust or Trust()

    def create(self, key: str) -> None:
        """Make the place for a node's parts; what lies there is removed."""
        folder = self.keep.folder(key)
        with self._trust.writing(f"the parts of {key}"):
            folder.remove()
            folder.make()
            folder.begin_list()

    def write(self, key: str, part: str, content: bytes | pa.Buffer) -> None:
        """Give a part its content; durable when this returns."""
        with self._trust.writing(f"the part {part} of {key}"):
            self.keep.folder(key).put_listed(part, content, "part")

    def path(self, key: str, part: str) -> Path | BucketPart | None:
        """Return where a part lies, for the functions of this module; None if it was never written.

        Raises
        ------
        Damaged
            If it was written and is gone.
        """
        folder = self.keep.folder(key)
        path = folder.part(part)
        if path is not None:
            return path
        if part in written(folder) or not folder.is_there():
            raise Damaged(f"the part {part} of {key} was written and is gone", part=part)
        return None

    def verify(self, key: str) -> ArrayCheck:
        """Check every part of a node against its checksums, and that none is gone."""
        folder, found = self.keep.folder(key), ArrayCheck()
        if not folder.is_there():
            found.damaged.append("its directory is gone")
            return found
        for part in sorted(written(folder) | set(folder.names())):
            if part.startswith("."):
                continue
            try:
                path = self.path(key, part)
                if path is None:
                    continue
                if part.startswith(ROWS_PREFIX):
                    check_rows(path)
                else:
                    (read_parquet if part.endswith(".parquet") else read_zip)(path)
            except Damaged as error:
                found.damaged.append(error.message)
            else:
                found.checked += 1
        return found


@contextmanager
def _wrong_if(kinds: tuple[type[BaseException], ...], path: Path | BucketPart) -> Iterator[None]:
    """Turn what libraries say of bytes that make no sense into `Damaged`; a place that does not answer is none."""
    try:
        yield
    except FlystoreError:
        raise
    except kinds as error:
        raise Damaged(f"the part {path.name} is not what was written: {error}") from error


def _source(path: Path | BucketPart) -> Path | IO[bytes]:
    """Return what PyArrow and `zipfile` open."""
    return path if isinstance(path, Path) else path.open("rb")


# --------------------------------------------------------------------------- buffers in a zip


def pack(buffers: Mapping[str, bytes | memoryview]) -> bytes:
    """Return named buffers as a zip that is not compressed."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, data in buffers.items():
            with archive.open(zipfile.ZipInfo(name), "w") as entry:
                entry.write(data)
    content = sink.getbuffer()
    begin = _DIRECTORY.unpack_from(content, len(content) - _END.size)[1]
    comment = _comment(content[begin : len(content) - 2])
    return b"".join([content[:-2], len(comment).to_bytes(2, "little"), comment])


def _comment(directory: bytes | memoryview) -> bytes:
    return f"crc32c:{google_crc32c.value(bytes(directory)):08x}".encode()


def _opened(path: Path | BucketPart) -> zipfile.ZipFile:
    """Open a zip that `pack` made, if its directory is what was written."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        ending = _END.size + len(_comment(b""))
        file.seek(max(size - ending, 0))
        tail = file.read()
        if len(tail) < ending or tail[: len(_MAGIC)] != _MAGIC:
            raise zipfile.BadZipFile("its end is not there")
        begin = _DIRECTORY.unpack_from(tail)[1]
        file.seek(begin)
        if _comment(file.read(max(size - begin - len(tail) + _END.size - 2, 0))) != tail[_END.size :]:
            raise zipfile.BadZipFile("its directory fails its checksum")
    return zipfile.ZipFile(_source(path))


def unpack_untrusted(data: bytes, wanted: Callable[[str], bool], limit_bytes: int) -> dict[str, bytes]:
    """Return the buffers of a zip that came over the network, by name.

    Parameters
    ----------
    wanted : callable
        Says of each name whether such a buffer may be there.
    limit_bytes : int
        Most bytes of all buffers together; found out before anything is inflated.

    Raises
    ------
    TooLarge
        If it holds more, or more than `MOST_ENTRIES` buffers.
    InvalidRequest
        If it is no zip, a buffer is damaged, there twice, or not wanted.
    """
    # Before its directory is read: 46 bytes of it are an object of half a kilobyte.
    if data.count(_ENTRY) > MOST_ENTRIES:
        raise TooLarge(f"this zip has more than {MOST_ENTRIES} buffers", limit=MOST_ENTRIES)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            _require_these(names, wanted)
            size = sum(entry.file_size for entry in entries)
            require_below(size, limit_bytes, "this zip")
            reserve(2 * size, "this zip")
            return {entry.filename: archive.read(entry) for entry in entries}
    except InvalidRequest:
        raise
    except _WRONG_ZIP as error:
        raise InvalidRequest(f"the body is not a zip of buffers: {error}") from error


def _require_these(names: list[str], wanted: Callable[[str], bool]) -> None:
    if len(set(names)) < len(names):
        raise InvalidRequest("the body is a zip with two buffers of one name")
    extra = [name for name in names if not wanted(name)]
    if extra:
        raise InvalidRequest(f"there is no buffer {extra[0][:80]!r} in what this node holds", found=extra[0][:80])


def names_in(path: Path | BucketPart) -> list[tuple[str, int]]:
    """Return (name, size in bytes) of the buffers in a part.

    Raises
    ------
    Damaged
    """
    with _wrong_if(_WRONG_ZIP, path), _opened(path) as archive:
        return [(entry.filename, entry.file_size) for entry in archive.infolist()]


def read_zip(path: Path | BucketPart, names: Iterable[str] | None = None) -> dict[str, bytes]:
    """Return buffers of a part by name, all or those named.

    Raises
    ------
    Damaged
        If one fails its checksum or is not there.
    """
    with _wrong_if(_WRONG_ZIP, path), _opened(path) as archive:
        return {name: archive.read(name) for name in (archive.namelist() if names is None else names)}


# --------------------------------------------------------------------------- columns in Parquet


def pack_table(table: pa.Table) -> pa.Buffer:
    """Return columns as a Parquet file with checksums."""
    table = table.replace_schema_metadata({_TABLE_SUM: table_sum(table)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue()


def table_sum(table: pa.Table) -> bytes:
    """Return the CRC-32C of names, types and values of columns that hold numbers without null, in hex."""
    total = google_crc32c.value(repr([(field.name, str(field.type)) for field in table.schema]).encode())
    for column in table.columns:
        for piece in column.chunks:
            total = google_crc32c.extend(total, piece.to_numpy(zero_copy_only=False).tobytes())
    return f"{total:08x}".encode()


def rows_of(path: Path | BucketPart) -> int:
    """Return how many rows a part has.

    Raises
    ------
    Damaged
    """
    with _wrong_if(_wrong_parquet(), path):
        return int(pq.read_metadata(_source(path)).num_rows)


def _wrong_parquet() -> tuple[type[BaseException], ...]:
    return (pa.ArrowException, OSError, ValueError, MemoryError)


def read_parquet(path: Path | BucketPart) -> pa.Table:
    """Return the columns of a part.

    Raises
    ------
    Damaged
        If they fail their checksums.
    """
    with _wrong_if(_wrong_parquet(), path):
        table = pq.read_table(_source(path), page_checksum_verification=True)
        fits = (table.schema.metadata or {}).get(_TABLE_SUM) == table_sum(table)
    if not fits:
        raise Damaged(f"the part {path.name} fails its checksum")
    return table


# --------------------------------------------------------------------------- rows of a table in Parquet

_ROWS_SUM = b"flystore.crc32c"


def pack_rows(table: pa.Table) -> pa.Buffer:
    """Return rows as a Parquet file with checksums; the schema's metadata, such as a pandas index, stays.

    Raises
    ------
    InvalidRequest
        If a column is of a type that Parquet cannot hold.
    """
    try:
        # Parquet has not all types of Arrow: seconds come back as milliseconds. The sum is that of what comes back.
        kept = pq.read_schema(_parquet(table.schema.empty_table()))
        told = {**(table.schema.metadata or {}), _ROWS_SUM: rows_sum(kept, table.num_rows)}
        return _parquet(table.replace_schema_metadata(told))
    except pa.ArrowException as error:
        raise InvalidRequest(f"these rows cannot be kept as Parquet: {error}") from error


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    # The compliant type has a name of its own for what is in lists: the schema that came is to come back.
    pq.write_table(table, sink, write_page_checksum=True, compression="zstd", use_compliant_nested_type=False)
    return sink.getvalue()


def rows_sum(schema: pa.Schema, rows: int) -> bytes:
    """Return the CRC-32C of a schema, its metadata and a number of rows, in hex."""
    told = {name: value for name, value in (schema.metadata or {}).items() if name != _ROWS_SUM}
    fields = [(field.name, str(field.type), field.nullable) for field in schema]
    return f"{google_crc32c.value(repr((fields, sorted(told.items()), rows)).encode()):08x}".encode()


def opened_rows(source: pa.NativeFile | Path | BucketPart) -> tuple[pq.ParquetFile, pa.Schema]:
    """Return a part with rows, open, and its schema as it was given to `pack_rows`.

    Raises
    ------
    Damaged
        If its schema or number of rows are not those stored.
    """
    try:
        known = isinstance(source, Path | pa.NativeFile)
        file = pq.ParquetFile(source if known else source.open("rb"), page_checksum_verification=True)
    except FlystoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise Damaged(f"these rows are not what was written: {error}") from error
    try:
        schema = file.schema_arrow
        told = dict(schema.metadata or {})
        if told.pop(_ROWS_SUM, None) != rows_sum(schema, file.metadata.num_rows):
            raise Damaged("these rows fail their checksum")
        return file, schema.with_metadata(told or None)
    except BaseException:
        file.close()
        raise


def check_rows(path: Path | BucketPart) -> None:
    """Read all rows of a part once.

    Raises
    ------
    Damaged
    """
    file, _ = opened_rows(path)
    with file:
        with _wrong_if(_wrong_parquet(), path):
            rows = sum(batch.num_rows for batch in file.iter_batches())
        if rows != file.metadata.num_rows:
            raise Damaged(f"the part {path.name} has {rows} rows, not {file.metadata.num_rows}")
