"""Bodies of log records: frames, compressed. The first byte says how, so that it can change."""

from collections.abc import Iterable, Iterator

import zstandard

from flystore.catalog import LogRecord
from flystore.model.errors import Damaged, InvalidRequest
from flystore.model.frames import is_document, payloads_in, scan

_ZSTD = b"\x01"
_LEVEL = 1  # 623k events/s where level 3 does 409k, for a tenth more bytes
_MOST_RATIO = 1 << 16
"""A block of zstd holds at most 128 KiB and takes at least 4 bytes; a record that claims more lies."""


def pack(frames: bytes) -> bytes:
    return _ZSTD + zstandard.ZstdCompressor(level=_LEVEL).compress(frames)


def unpack(body: bytes, where: str = "") -> bytes:
    """Return the frames of a log record.

    Raises
    ------
    Damaged
        If the record is not what `pack` made; names `where`.
    """
    place = where or "a log record"
    if body[:1] != _ZSTD:
        raise Damaged(f"{place} begins with {body[:1]!r}, which this version does not know", where=where)
    try:
        if zstandard.frame_content_size(body[1:]) > _MOST_RATIO * len(body):
            raise zstandard.ZstdError("its length cannot be true")
        return zstandard.ZstdDecompressor().decompress(body[1:])
    except (zstandard.ZstdError, MemoryError) as error:
        raise Damaged(f"{place} cannot be decompressed: {error}", where=where) from error


def place_of(record: LogRecord) -> str:
    """Return where a record of documents is, in words."""
    run = f"run {record.run_uid}" if record.run_uid is not None else "documents of no run"
    return f"the log of {run}, record {record.position}, documents from {record.first_ordinal} on"


def payloads_of(record: LogRecord) -> Iterator[bytes]:
    """Yield the payloads of a record of documents, templates and documents in their order.

    Raises
    ------
    Damaged
        If a frame fails its checksum, or there are not as many documents as were stored; names the place.
    """
    where = place_of(record)
    body = unpack(record.body, where)
    payloads, end = payloads_in(body)
    documents = 0
    for payload in payloads:
        try:
            documents += is_document(payload)
        except InvalidRequest as error:
            raise Damaged(f"{where}: {error.message}", where=where) from error
        yield payload
    _require_whole(record, body, end, documents, where)


def frames_of(record: LogRecord) -> bytes:
    """Return the frames of a record of documents as they came, all of them checked.

    Raises
    ------
    Damaged
        As `payloads_of`.
    """
    where = place_of(record)
    body = unpack(record.body, where)
    payloads, end = payloads_in(body)
    try:
        documents = sum(map(is_document, payloads))
    except InvalidRequest as error:
        raise Damaged(f"{where}: {error.message}", where=where) from error
    _require_whole(record, body, end, documents, where)
    return body


def _require_whole(record: LogRecord, body: bytes, end: int, documents: int, where: str) -> None:
    if end < len(body):
        raise Damaged(f"{where}: {scan(body).problem}", where=where, offset=end)
    if documents != record.count:
        raise Damaged(f"{where}: {record.count} documents were stored, {documents} are there", where=where)


def in_order(records: Iterable[LogRecord], uid: str | None, watermark: int = 0) -> Iterator[LogRecord]:
    """Yield the records of a run, which must follow each other from document 0 on.

    Raises
    ------
    Damaged
        If documents between two records are not there, or at the end those below `watermark`.
    """
    expected = 0
    for record in records:
        if record.first_ordinal != expected:
            raise Damaged(f"{place_of(record)}: documents from {expected} on should come first", where=place_of(record))
        yield record
        expected += record.count or 0
    if expected < watermark:
        raise Damaged(f"the log of run {uid} ends after {expected} documents; {watermark} were stored", where=str(uid))
