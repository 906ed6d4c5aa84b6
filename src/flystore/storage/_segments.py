"""Segments: batches of rows of slow data as Arrow IPC, ours and those that arrive from outside.

Segments are written uncompressed: for batches of 10 to 10,000 rows of measured values zstd saves about a
tenth of the bytes and costs 3 to 20 times the time of writing and up to 70 times that of reading.
What arrives from outside is measured before it is inflated, and validated before any value is touched:
1,856 bytes of Arrow can claim 50 MB, and wrong string offsets can crash a process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from flystore.model.errors import Damaged, InvalidRequest
from flystore.model.late import pa

from ._budget import reserve
from ._limits import require_below

SEGMENT_BYTES = 8 << 20
"""About how large a segment is at most, bytes: what a reader of a few rows has to take out of the catalogue."""

_FILE_MAGIC = b"ARROW1"
_FILE_HEADER = 8  # the magic, padded; after it a file holds the same messages as a stream
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_RECORD_BATCH, _DICTIONARY_BATCH = "record batch", "dictionary"


def encode_segment(batch: pa.RecordBatch) -> bytes:
    """Return a record batch as an Arrow IPC stream; schema and schema metadata included."""
    schema = batch.schema
    if all(map(_is_plain, schema.types)):
        # What a writer of streams writes, without making one: for one event that took longer than all its values.
        return b"".join((schema.serialize(), batch.serialize(), _END_OF_STREAM))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether nothing of a type lies outside its record batch, as dictionaries do, also those within others."""
    return pa.types.is_primitive(kind) or pa.types.is_string(kind)


def encode_segments(batch: pa.RecordBatch, size: int = SEGMENT_BYTES) -> list[tuple[int, bytes]]:
    """Return the rows of a record batch as segments of about `size` bytes; none if it has no rows.

    Returns
    -------
    list of (rows, bytes)
        In their order; a single row that is larger is a segment of its own.
    """
    if not batch.num_rows:
        return []
    whole = encode_segment(batch)
    step = max(1, batch.num_rows * size // len(whole))
    if step >= batch.num_rows:
        return [(batch.num_rows, whole)]
    pieces = [batch.slice(at, step) for at in range(0, batch.num_rows, step)]
    return [(piece.num_rows, encode_segment(piece)) for piece in pieces]


def decode_segment(data: bytes) -> pa.RecordBatch:
    """Return the batch of `encode_segment`, without copying: it refers to `data`.

    Raises
    ------
    Damaged
        If the bytes are not a segment. Contents are not validated: checksums belong to whoever stores them.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            return reader.read_next_batch()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise Damaged(f"a segment of {len(data)} bytes cannot be decoded: {error}") from error


# --------------------------------------------------------------------------- from outside


def decode_untrusted(data: bytes, limit_bytes: int) -> pa.Table:
    """Return the table in an Arrow file or stream that came over the network.

    Parameters
    ----------
    data : bytes
        An Arrow IPC file or stream.
    limit_bytes : int
        Most bytes the table may take inflated, and most values it may hold.

    Returns
    -------
    pyarrow.Table
        Fully validated. Schema metadata (a pandas index, for example) is kept.

    Raises
    ------
    TooLarge
        If it is, or claims to be, larger; found out before anything is inflated.
    InvalidRequest
        If the bytes are not Arrow, or not valid Arrow.
    """
    if data[: len(_FILE_MAGIC)] == _FILE_MAGIC:
        # A file's footer may name the same message any number of times; its messages in order may not.
        data = data[_FILE_HEADER:]
    buffer = pa.py_buffer(data)
    try:
        size = _inflated_size(buffer)
        require_below(size, limit_bytes, "this Arrow body")
        # As it is read, as it is converted to the table's columns, and as it is stored.
        reserve(3 * size, "this Arrow body")
        with pa.ipc.open_stream(buffer) as reader:
            batches = []
            values = 0
            for batch in reader:
                values += sum(_count_values(column) for column in batch.columns) + batch.num_rows
                require_below(values, limit_bytes, "this Arrow body")
                batch.validate(full=True)
                batches.append(batch)
            return pa.Table.from_batches(batches, schema=reader.schema)
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid Arrow: {error}") from error


def _inflated_size(buffer: pa.Buffer) -> int:
    total = 0
    for message in pa.ipc.MessageReader.open_stream(buffer):
        total += 0 if message.body is None else message.body.size
        if message.type in (_RECORD_BATCH, _DICTIONARY_BATCH):
            total += _claimed(message)
    return total


def _claimed(message: pa.ipc.Message) -> int:
    """Return the size that the compressed buffers of a message say they inflate to."""
    batch = _Flat(message.metadata.to_pybytes()).root().table(2)
    if message.type == _DICTIONARY_BATCH:
        batch = batch.table(1) if batch is not None else None
    if batch is None or batch.table(3) is None:  # no compression
        return 0
    body = memoryview(message.body)
    claimed = 0
    for offset, length in batch.pairs(2):
        if length <= 0:
            continue
        if offset < 0 or offset + length > len(body) or length < 8:
            raise InvalidRequest("the body is not valid Arrow: a buffer lies outside its message")
        (size,) = struct.unpack_from("<q", body, offset)
        claimed += max(size, 0)  # -1: this buffer was left uncompressed
    return claimed


class _Flat:
    """As much of the flatbuffer encoding as an Arrow message's header needs; struct checks the bounds."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def root(self) -> _Flat:
        return _Flat(self.data, *struct.unpack_from("<I", self.data, 0))

    def _field(self, number: int) -> int | None:
        (back,) = struct.unpack_from("<i", self.data, self.position)
        vtable = self.position - back
        if vtable < 0:
            raise struct.error("vtable before the beginning")
        (size,) = struct.unpack_from("<H", self.data, vtable)
        if 4 + 2 * number + 2 > size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, vtable + 4 + 2 * number)
        return self.position + offset if offset else None

    def table(self, number: int) -> _Flat | None:
        at = self._field(number)
        if at is None:
            return None
        return _Flat(self.data, at + struct.unpack_from("<I", self.data, at)[0])

    def pairs(self, number: int) -> Iterator[tuple[int, int]]:
        at = self._field(number)
        if at is None:
            return
        at += struct.unpack_from("<I", self.data, at)[0]
        (count,) = struct.unpack_from("<I", self.data, at)
        for i in range(count):  # unpack_from ends a lie about the count at the end of the data
            yield struct.unpack_from("<qq", self.data, at + 4 + 16 * i)


def _count_values(array: pa.Array) -> int:
    """Return how many values an array claims, nested ones included; some take no bytes at all."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        return len(array) * max(kind.list_size, 1)
    if pa.types.is_struct(kind):
        return len(array) + sum(_count_values(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return len(array) + len(array.values)
    return len(array)
