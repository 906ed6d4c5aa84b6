"""Segments: the files of a run's log, and how they are read again after a crash.

A segment is a header frame and then the frames of documents and templates, byte for byte as they
go over the wire. Its header says whose it is, so a file can be told apart even when everything
beside it is lost:

    ``["flystore-journal", version, run uid, log number, segment number, first ordinal, epoch, target]``
"""

import hashlib
import os
import re
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from flystore.model import frames
from flystore.model.errors import Damaged, InvalidRequest

MAGIC = "flystore-journal"
VERSION = 1

MARK_BYTES = 64 * 1024
"""About this many bytes lie between two marks of a segment."""

WINDOW_BYTES = 32 * 1024
"""Read and checked at a time; between two windows other threads (the plan's) get their turn."""

_NAME = re.compile(r"(?P<log>.+)\.(?P<number>[0-9]{6})\.frames")
_PLAIN_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
# Payloads begin with a short msgpack array whose first member is the kind.
_PAYLOAD_START = re.compile(rb"[\x90-\x9f][\x00-\x02]")


class SegmentHeader(msgspec.Struct, array_like=True, frozen=True):
    """First frame of a segment.

    Attributes
    ----------
    run : str
        Uid of the run; empty for documents that belong to no run.
    log : int
        Number of the log in its journal, in the order of opening, from 0.
    number : int
        Number of the segment in its log, from 0.
    first : int
        Ordinal of the first document in it.
    epoch : int
        Epoch of the writer that made it.
    target : str
        Where it is to be shipped to; without any key.
    """

    magic: str
    version: int
    run: str
    log: int
    number: int
    first: int
    epoch: int
    target: str


def safe_name(uid: str) -> str:
    """Return a file name for a run: the uid itself where it is tame, otherwise a hash of it."""
    if _PLAIN_UID.fullmatch(uid):
        return uid
    return "~" + hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def segment_name(log: str, number: int) -> str:
    return f"{log}.{number:06d}.frames"


def parse_segment_name(name: str) -> tuple[str, int] | None:
    """Return (log name, number), or None if the file is no segment."""
    found = _NAME.fullmatch(name)
    return (found["log"], int(found["number"])) if found else None


class Segment:
    """What is known of one segment file.

    Attributes
    ----------
    first, end : int
        Ordinals of its first document and of the one after its last.
    size : int
        Offset just after the last document's frame, bytes.
    marks : list of (int, int)
        Now and then an (ordinal, offset): where the document begins, templates before it included.
    """

    __slots__ = ("end", "first", "marks", "number", "path", "size")

    def __init__(self, path: Path, number: int, first: int, header_bytes: int) -> None:
        self.path = path
        self.number = number
        self.first = self.end = first
        self.size = header_bytes
        self.marks: list[tuple[int, int]] = [(first, header_bytes)]

    def grew(self, documents: int, size: int) -> None:
        """Note that the file now ends at `size` with `documents` more."""
        self.end += documents
        self.size = size
        if size - self.marks[-1][1] >= MARK_BYTES:
            self.marks.append((self.end, size))

    def mark_before(self, ordinal: int) -> tuple[int, int]:
        """Return the last mark at or before `ordinal`."""
        return self.marks[bisect_right(self.marks, ordinal, key=lambda mark: mark[0]) - 1]

    def last_mark_until(self, offset: int) -> tuple[int, int]:
        """Return the last mark at or before `offset`, which is not inside the header."""
        return self.marks[bisect_right(self.marks, offset, key=lambda mark: mark[1]) - 1]


class Opened(NamedTuple):
    """A segment file read again.

    Attributes
    ----------
    header : SegmentHeader or None
        None if not even that is whole.
    segment : Segment or None
    torn_at : int or None
        Offset of a torn last frame, which is left out.
    damage : Damaged or None
        What is wrong, if anything but a torn last frame is; `segment` holds what precedes it.
    """

    header: SegmentHeader | None
    segment: Segment | None
    torn_at: int | None
    damage: Damaged | None


def open_segment(path: Path, number: int, *, last: bool, pause: Callable[[], None] | None = None) -> Opened:
    """Read and check every frame of a segment.

    Parameters
    ----------
    last : bool
        True if no segment with anything in it follows: only there a torn end is what a power cut leaves.
    pause : callable, optional
        Called after each window, to let other threads run.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _Reading(descriptor, path, number, last, pause or _let_others_run).read()
    finally:
        os.close(descriptor)


def _let_others_run() -> None:
    time.sleep(0.0001)  # a sleep of nothing has the interpreter back before another thread is awake


class _Reading:
    def __init__(self, descriptor: int, path: Path, number: int, last: bool, pause: Callable[[], None]) -> None:
        self.descriptor, self.path, self.number, self.last, self.pause = (
            descriptor,
            path,
            number,
            last,
            pause,
        )
        self.file_bytes = os.fstat(descriptor).st_size
        self.at = 0
        self.frame = -1  # the header; documents and templates count from 0

    def read(self) -> Opened:
        header: SegmentHeader | None = None
        segment: Segment | None = None
        window = WINDOW_BYTES
        while self.at < self.file_bytes:
            # Not beyond where it ended at first: a living writer may be appending to it.
            buffer = os.pread(self.descriptor, min(window, self.file_bytes - self.at), self.at)
            found = frames.scan(buffer)
            spans = found.spans
            if header is None and spans:
                if spans[0][0] == spans[0][1]:
                    return self._ended(None, None, torn=True)  # zeros, as in `_take`
                try:
                    header = read_header(buffer[spans[0][0] : spans[0][1]])
                except InvalidRequest as error:
                    return Opened(None, None, None, self._damage(str(error)))
                header_bytes = spans[0][1]
                segment = Segment(self.path, header.number, header.first, header_bytes)
                self.frame += 1
                spans = spans[1:]
            if segment is not None:
                ended = self._take(header, segment, buffer, spans)
                if ended is not None:
                    return ended
            self.at += found.valid
            at_end = self.at - found.valid + len(buffer) >= self.file_bytes
            if found.problem is not None and (at_end or not found.torn):
                return self._ended(header, segment, found.torn)
            window = WINDOW_BYTES if found.valid else 2 * window
            self.pause()
        if header is None:
            return self._ended(None, None, True)
        return Opened(header, segment, None, None)

    def _take(
        self, header: SegmentHeader | None, segment: Segment, buffer: bytes, spans: list[tuple[int, int]]
    ) -> Opened | None:
        """Count the good frames; return the end if one of them is none after all."""
        base = self.at
        for start, stop in spans:
            if start == stop:
                # Eight zeros are an empty frame with a right checksum: what a power cut may leave.
                self.at = base + start - frames.HEADER.size
                return self._ended(header, segment, torn=True)
            try:
                if frames.is_document(buffer[start : start + 2]):
                    segment.grew(1, base + stop)
            except InvalidRequest as error:
                self.at = base + start - frames.HEADER.size
                return Opened(header, segment, None, self._damage(str(error)))
            self.frame += 1
        return None

    def _ended(self, header: SegmentHeader | None, segment: Segment | None, torn: bool) -> Opened:
        """Tell a torn end from damage: after a torn frame nothing good follows."""
        if not torn or self._good_frame_follows():
            return Opened(header, segment, None, self._damage("the frame's length or checksum is wrong"))
        if not self.last:
            return Opened(header, segment, None, self._damage("the segment ends inside a frame, but others follow"))
        return Opened(header, segment, self.at, None)

    def _good_frame_follows(self) -> bool:
        rest = os.pread(self.descriptor, self.file_bytes - self.at, self.at)
        for found in _PAYLOAD_START.finditer(rest, frames.HEADER.size + 1):
            start = found.start() - frames.HEADER.size
            length, _ = frames.HEADER.unpack_from(rest, start)
            stop = found.start() + length
            if length >= 2 and stop <= len(rest) and frames.scan(rest[start:stop]).problem is None:
                return True
        return False

    def _damage(self, why: str) -> Damaged:
        place = "its header" if self.frame < 0 else f"frame {self.frame}"
        return Damaged(
            f"journal file {self.path}, segment {self.number}, {place} at offset {self.at}: {why}. What "
            f"precedes it is readable; the file is kept.",
            path=str(self.path),
            segment=self.number,
            frame=self.frame,
            offset=self.at,
        )


def read_header(payload: bytes) -> SegmentHeader:
    """Return the header in a segment's first payload.

    Raises
    ------
    InvalidRequest
        If it is none, or of a later format.
    """
    try:
        header = msgspec.msgpack.decode(payload, type=SegmentHeader)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"this is not the header of a journal segment ({error})") from error
    if header.magic != MAGIC:
        raise InvalidRequest("this is not the header of a journal segment")
    if header.version > VERSION:
        raise InvalidRequest(
            f"the journal has format {header.version}; this flystore reads up to {VERSION}: use a newer one"
        )
    return header


def header_frame(*, run: str, log: int, number: int, first: int, epoch: int, target: str) -> bytes:
    """Return the first frame of a new segment."""
    header = SegmentHeader(MAGIC, VERSION, run, log, number, first, epoch, target)
    return frames.frame(msgspec.msgpack.encode(header))


def last_begun(files: Sequence[tuple[int, Path]]) -> int:
    """Return the number of the last of a log's segments whose header is whole; 0 if there is none.

    A segment is synced before the one that follows it. So a power cut may leave this one torn and those behind it
    empty, as names whose content never reached the disk; a torn one before it was damaged otherwise.

    Parameters
    ----------
    files : sequence of (int, Path)
        Number and file of each segment, in order.
    """
    return next((number for number, path in reversed(files) if peek_header(path) is not None), 0)


def peek_header(path: Path) -> SegmentHeader | None:
    """Return a segment's header without reading the rest; None if it is not whole."""
    try:
        with open(path, "rb") as file:
            length, _ = frames.HEADER.unpack(file.read(frames.HEADER.size))
            file.seek(0)
            found = frames.scan(file.read(frames.HEADER.size + min(length, WINDOW_BYTES)))
            if not found.spans:
                return None
            file.seek(found.spans[0][0])
            return read_header(file.read(found.spans[0][1] - found.spans[0][0]))
    except (OSError, InvalidRequest, struct.error):
        return None
