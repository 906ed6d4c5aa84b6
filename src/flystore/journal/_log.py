"""The log of one run: appended to by the plan's thread, synced by another, read by the shipper.

Three threads meet here and the plan's must not wait for the others: appending holds `_lock` for one
`write`, syncing holds `_sync_lock` for as long as the disk takes and `_lock` only to look where the
log ends, reading holds neither while it reads. Only a thread with `_sync_lock` closes a file, so no
sync ever hits a number that was given to another file.
"""

import contextlib
import logging
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import google_crc32c

from flystore.disk import FULL, datasync, sync_directory, write_all
from flystore.disk.failpoints import reach
from flystore.model import frames
from flystore.model.errors import (
    Damaged,
    FlystoreError,
    InvalidRequest,
    JournalFull,
    Misconfigured,
    OutOfBounds,
    Unavailable,
)

from ._segment import Segment, header_frame, segment_name
from ._space import Space

logger = logging.getLogger("flystore.journal")

SYNC_PATIENCE_S = 1.0
"""Seconds that the shipper waits for a sync under way before it goes on with other runs."""

_CLOSED = -1
_ACKED = struct.Struct("<QIQI")  # ordinal, segment number, offset, CRC-32C of the 20 bytes before


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents of a run, as frames.

    Attributes
    ----------
    first_ordinal : int
        Of its first document.
    count : int
        Documents in it; 0 if there is nothing to send. Templates do not count.
    data : bytes
        The frames, templates among them, byte for byte as they lie on disk.
    """

    first_ordinal: int
    count: int
    data: bytes

    @property
    def end(self) -> int:
        """Ordinal after its last document."""
        return self.first_ordinal + self.count


def closed_error(path: Path) -> Misconfigured:
    """Return what to raise when a document comes after the end."""
    return Misconfigured(
        f"the journal in {path} is closed, or belongs to the process that this one was forked from; no "
        f"document can be kept in it. Was the RunWriter closed while still subscribed?",
        path=str(path),
    )


class Host(Protocol):
    """What a log needs of its journal."""

    path: Path
    epoch: int
    target: str
    segment_bytes: int
    space: Space
    each: bool
    failed: bool

    def grown(self, log: "RunLog") -> None:
        """A log has something to sync that it had not before."""

    def lost(self, error: OSError) -> None:
        """A sync failed; nothing of this journal is claimed durable any more."""


class RunLog:
    """The documents of one run in a journal, numbered from 0 in the order of appending.

    Made by `Journal.open_run` and `Journal.take_over`, never directly.

    Attributes
    ----------
    uid : str
        Uid of the run; empty for the log of documents that belong to no run.
    damage : Damaged or None
        Why the log is readable only up to `end` although more was written; only after a takeover.
    ended : bool
        True once `end_run` was called: no more documents are expected, though more are taken.
    removed : bool
        True once `remove_if_done` deleted its files, until `Journal.readmit`: whoever appends after
        all must see to that.
    """

    def __init__(
        self,
        host: Host,
        uid: str,
        name: str,
        number: int,
        segments: Sequence[Segment] = (),
        *,
        acked: int = 0,
        damage: Damaged | None = None,
        writable: bool = True,
    ) -> None:
        self.uid = uid
        self.name = name
        self.number = number
        self.damage = damage
        self.ended = not writable
        self.removed = False
        self._host = host
        self._writable = writable
        self._segments = list(segments)
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._descriptor = _CLOSED
        self._full_files: list[int] = []
        self._new_names = False
        self._broken: FlystoreError | None = None
        self._closed = False
        self._next_segment = segments[-1].number + 1 if segments else 0
        self._end = segments[-1].end if segments else 0
        self._durable = 0
        self._acked = min(acked, self._end)
        self._cursor: tuple[int, Segment, int] | None = None
        self._spent: list[Segment] = []
        self.waiting_for_sync = False

    def __repr__(self) -> str:
        return (
            f"<RunLog {self.uid or 'of no run'}: {self._end} documents, {self._acked} acknowledged, "
            f"{self._durable} on disk>"
        )

    @property
    def end(self) -> int:
        """Ordinal after the last document: how many were appended."""
        return self._end

    @property
    def durable(self) -> int:
        """Ordinal before which everything survives a power cut."""
        return max(self._durable, self._acked)

    @property
    def unsynced(self) -> bool:
        """Whether a sync would do anything."""
        return bool(self._full_files) or (self._durable < self._end and not self._host.failed)

    @property
    def acked(self) -> int:
        """Ordinal before which everything was acknowledged."""
        return self._acked

    @property
    def pending_bytes(self) -> int:
        """About how many bytes are not acknowledged yet; too high by at most a mark's distance."""
        acked, total = self._acked, 0
        if acked >= self._end:
            return 0
        for segment in tuple(self._segments):
            if segment.end > acked:
                total += segment.size - (segment.mark_before(acked)[1] if segment.first <= acked else 0)
        return total

    # -- appending ------------------------------------------------------------------------------

    def append(self, payloads: Sequence[bytes], *, last: bool = False) -> int:
        """Hand the payloads of one or more documents to the operating system, in one write.

        When this returns, the documents survive the death of this process; a power cut only once
        they are synced, which ``durability="each"`` does before returning.

        Parameters
        ----------
        payloads : sequence of bytes
            As `frames.FrameEncoder.encode` gives them; whole: templates with the document they are for.
        last : bool
            True for the document that ends a run: it may use the space held in reserve.

        Returns
        -------
        int
            Ordinal of the first document among them.

        Raises
        ------
        JournalFull
            If the disk has no room; nothing of `payloads` was kept.
        Unavailable
            If the disk refuses to write for another reason; nothing of `payloads` was kept.
        """
        data, documents = frames.framed(payloads)
        size, host = len(data), self._host
        with self._lock:
            segment = self._segments[-1] if self._descriptor != _CLOSED else None
            if (
                segment is None
                or segment.size + size > host.segment_bytes
                or host.space.exhausted
                or self._broken is not None
            ):
                segment = self._room_for(size, last)
            try:
                reach("journal.before_append")
                write_all(self._descriptor, data)
                reach("journal.after_append")
            except OSError as error:
                self._undo(segment)
                self._write_again(segment, data, last, error)
            ordinal = self._end
            segment.grew(documents, segment.size + size)
            self._end = ordinal + documents
        if host.each:
            self.sync()
        elif not self.waiting_for_sync:
            self.waiting_for_sync = True
            host.grown(self)
        return ordinal

    def _room_for(self, size: int, last: bool) -> Segment:
        """Return the segment to append to; a new one if the last is full or there is none."""
        if self._broken is not None:
            raise self._broken
        if self._host.space.exhausted and not last:
            self._host.space.check()  # nobody else looks while nothing is appended
            if self._host.space.exhausted:
                raise self._full("the reserve is used up")
        if self._descriptor != _CLOSED:
            segment = self._segments[-1]
            if segment.size + size <= self._host.segment_bytes or segment.end == segment.first:
                return segment
        return self._begin_segment(last)

    def _begin_segment(self, last: bool) -> Segment:
        if not self._writable:
            raise InvalidRequest(f"the log of run {self.uid} was taken over; nothing is appended to it")
        number = self._next_segment
        header = header_frame(
            run=self.uid,
            log=self.number,
            number=number,
            first=self._end,
            epoch=self._host.epoch,
            target=self._host.target,
        )
        path = self._host.path / segment_name(self.name, number)
        try:
            descriptor = self._create(path, header)
        except OSError as error:
            if error.errno not in FULL or not last or not self._host.space.give_back():
                raise self._refused(error) from error
            try:
                descriptor = self._create(path, header)
            except OSError as again:
                raise self._refused(again) from again
        segment = Segment(path, number, self._end, len(header))
        if self._descriptor != _CLOSED:
            self._full_files.append(self._descriptor)
        self._descriptor = descriptor
        self._next_segment = number + 1
        self._new_names = True
        self._segments.append(segment)
        return segment

    def _create(self, path: Path, header: bytes) -> int:
        reach("journal.before_segment")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            write_all(descriptor, header)
            reach("journal.after_segment")
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    def _write_again(self, segment: Segment, data: bytes, last: bool, error: OSError) -> None:
        """Write the document that ends a run into the space held in reserve, or say why not."""
        if error.errno not in FULL or not last or not self._host.space.give_back():
            raise self._refused(error) from error
        try:
            write_all(self._descriptor, data)
        except OSError as again:
            self._undo(segment)
            raise self._refused(again) from again

    def _undo(self, segment: Segment) -> None:
        """Take back what a failed write left, so that no later frame follows half a one."""
        try:
            os.ftruncate(self._descriptor, segment.size)
        except OSError as error:
            self._broken = Unavailable(
                f"the journal file {segment.path} holds half a frame that cannot be taken back "
                f"({error.strerror}); nothing more is appended to this run",
                path=str(segment.path),
            )

    def _refused(self, error: OSError) -> FlystoreError:
        if error.errno in FULL:
            return self._full(error.strerror or str(error))
        return Unavailable(
            f"the journal in {self._host.path} cannot be written ({error.strerror}): the document was not "
            f"kept. Look at the disk, or give RunWriter another journal directory.",
            path=str(self._host.path),
        )

    def _full(self, why: str) -> JournalFull:
        free, _ = self._host.space.free()
        return JournalFull(
            f"the journal's disk is full ({why}; {free / 2**20:.1f} MiB free under {self._host.path}): the "
            f"document was not kept. Free some space, or bring the service back so that what it has not "
            f"got yet can be sent.",
            path=str(self._host.path),
            free_bytes=free,
        )

    # -- making durable -------------------------------------------------------------------------

    def sync(self) -> int:
        """Make durable what is appended now; return the ordinal before which that holds.

        A failed sync is reported to the journal and never tried again: the system may have dropped
        the very pages that failed, so a second success would mean nothing.
        """
        with self._sync_lock:
            return self._sync_held()

    def _sync_held(self) -> int:
        with self._lock:
            full, self._full_files = self._full_files, []
            descriptor, upto, names = self._descriptor, self._end, self._new_names
            self._new_names = False
        try:
            if self._host.failed:
                return self._durable
            reach("journal.before_sync")
            for number in full if descriptor == _CLOSED else (*full, descriptor):
                datasync(number)
            if names:
                sync_directory(self._host.path)
            reach("journal.after_sync")
        except OSError as error:
            self._host.lost(error)
            return self._durable
        finally:
            for number in full:
                os.close(number)
        self._durable = max(self._durable, upto)
        return self._durable

    def sync_left(self) -> int:
        """Make durable what a writer that is gone left, as `sync` does: it may have had no time to."""
        with self._sync_lock:
            try:
                for segment in tuple(self._segments):
                    if segment.end > self._acked:
                        _sync_file(segment.path)
                sync_directory(self._host.path)
            except OSError as error:
                self._host.lost(error)
                return self._durable
            self._durable = self._end
            return self._durable

    def end_run(self) -> None:
        """Say that no more documents are expected; its files can go once all is acknowledged."""
        with self._lock:
            self.ended = True
            if self._descriptor != _CLOSED:
                self._full_files.append(self._descriptor)
                self._descriptor = _CLOSED
        if not self.waiting_for_sync:
            self.waiting_for_sync = True
            self._host.grown(self)

    def refuse(self) -> None:
        """Take no more documents, and no more acknowledgements."""
        with self._lock:
            self._closed = True
            self._broken = closed_error(self._host.path)

    def close(self, timeout: float | None = None) -> bool:
        """Sync what is not, close its files and take nothing more; return whether that was done in time.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for a sync that another thread has begun; None waits for ever. After that the
            files stay open until the process ends.
        """
        self.refuse()
        if not self._sync_lock.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            if self._durable < self._end and self._acked < self._end:
                self._sync_held()
            with self._lock:
                self._close_files()
        finally:
            self._sync_lock.release()
        return True

    def abandon(self) -> None:
        """Take no more documents, without any lock: in a forked child nobody would give it back."""
        self._closed = True
        self._broken = closed_error(self._host.path)
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()

    def _close_files(self) -> None:
        if self._descriptor != _CLOSED:
            self._full_files.append(self._descriptor)
            self._descriptor = _CLOSED
        while self._full_files:
            os.close(self._full_files.pop())

    # -- reading --------------------------------------------------------------------------------

    def batch(self, from_ordinal: int, max_bytes: int, *, durable_only: bool = False) -> Batch:
        """Return documents from `from_ordinal` on, as one range of bytes of one segment.

        It begins right after the document before, so templates in between are in it.

        Parameters
        ----------
        max_bytes : int
            Not more than this, bytes, unless the first document alone is larger.
        durable_only : bool
            True leaves out what a power cut could still take.

        Raises
        ------
        OutOfBounds
            If `from_ordinal` was reclaimed, or lies beyond the end.
        """
        with self._lock:
            end = self.durable if durable_only else self._end
            first_kept = self._segments[0].first if self._segments else end
            segment = next((s for s in self._segments if s.first <= from_ordinal < s.end), None)
            # Where the segment ends now, both numbers of one moment: it may be growing.
            whole = (0, 0) if segment is None else (segment.end, segment.size)
        if from_ordinal == end:
            return Batch(from_ordinal, 0, b"")
        if segment is None or from_ordinal > end:
            raise OutOfBounds(
                f"the journal holds documents {first_kept} to {end} of run {self.uid}; document "
                f"{from_ordinal} "
                + ("was acknowledged and its file deleted" if from_ordinal < end else "is not written yet"),
                first=first_kept,
                end=end,
                wanted=from_ordinal,
            )
        descriptor = os.open(segment.path, os.O_RDONLY)
        try:
            offset = self._offset_of(descriptor, segment, from_ordinal)
            stop = self._stop(descriptor, segment, (from_ordinal, offset), whole, max_bytes, end)
            data = os.pread(descriptor, stop[1] - offset, offset)
        finally:
            os.close(descriptor)
        if len(data) != stop[1] - offset:
            raise Damaged(
                f"journal file {segment.path} ends before offset {stop[1]}, which was written",
                path=str(segment.path),
                offset=stop[1],
            )
        self._cursor = (stop[0], segment, stop[1])
        return Batch(from_ordinal, stop[0] - from_ordinal, data)

    def _offset_of(self, descriptor: int, segment: Segment, ordinal: int) -> int:
        cursor = self._cursor
        if cursor is not None and cursor[0] == ordinal and cursor[1] is segment:
            return cursor[2]
        at = segment.mark_before(ordinal)
        return at[1] if at[0] == ordinal else self._walk(descriptor, at, ordinal, None)[1]

    def _stop(
        self,
        descriptor: int,
        segment: Segment,
        start: tuple[int, int],
        whole: tuple[int, int],
        max_bytes: int,
        end: int,
    ) -> tuple[int, int]:
        """Return (ordinal, offset) where the batch ends: at a mark if one serves, else by walking."""
        limit = start[1] + max_bytes
        if whole[1] <= limit and whole[0] <= end:
            return whole
        mark = segment.last_mark_until(limit)
        if mark[1] > start[1] and mark[0] <= end:
            return mark
        return self._walk(descriptor, start, min(whole[0], end), limit)

    def _walk(self, descriptor: int, start: tuple[int, int], until: int, limit: int | None) -> tuple[int, int]:
        """Step from document to document to the ordinal `until`, or as far as the offset `limit` allows.

        At least one step is made.
        """
        ordinal, offset = stop = start
        while ordinal < until:
            head = os.pread(descriptor, frames.HEADER.size + 2, offset)
            length, _ = frames.HEADER.unpack_from(head)
            offset += frames.HEADER.size + length
            if frames.is_document(head[frames.HEADER.size :]):
                ordinal += 1
                if limit is not None and offset > limit and stop != start:
                    break
                stop = (ordinal, offset)
        return stop

    def payloads(self) -> Iterator[bytes]:
        """Yield every payload on disk in order, templates too, checking each.

        Raises
        ------
        Damaged
            Where the log is damaged, after everything that precedes the place.
        """
        for segment in tuple(self._segments):
            with open(segment.path, "rb") as file:
                data = file.read(segment.size)
            skip = True
            for _, payload in frames.split_frames(data, where=str(segment.path)):
                if not skip:
                    yield bytes(payload)
                skip = False
        if self.damage is not None:
            raise self.damage

    # -- acknowledging --------------------------------------------------------------------------

    def acknowledge(self, ordinal: int) -> None:
        """Remember that everything before `ordinal` is stored, and delete the files that are spent.

        The position is not synced: losing it only means sending again what the service then skips.
        """
        with self._lock:
            if self._closed or ordinal <= self._acked or not self._segments:
                return
            self._acked = min(ordinal, self._end)
            while len(self._segments) > 1 and self._segments[0].end <= self._acked:
                self._spent.append(self._segments.pop(0))
            last = self._segments[-1]
            offset = last.size if self._acked == last.end else 0
        # Files are touched outside the lock: the plan's thread may want it.
        self._keep_position(Acked(self._acked, last.number, offset))
        self._reclaim()

    def _reclaim(self) -> bool:
        """Delete the files that are spent, oldest first; return whether all are gone.

        One that the system does not let go is tried again with the next: shipping must not end for it.
        """
        try:
            while self._spent:
                reach("journal.before_reclaim")
                self._spent[0].path.unlink(missing_ok=True)
                reach("journal.after_reclaim")
                self._spent.pop(0)
        except OSError as error:
            logger.warning("%s is stored, but cannot be deleted: %s", self._spent[0].path, error.strerror or error)
        return not self._spent

    def _keep_position(self, acked: "Acked") -> None:
        head = _ACKED.pack(*acked, 0)[:-4]
        # A full disk must not keep an acknowledgement from freeing space.
        with contextlib.suppress(OSError):
            reach("journal.before_position")
            descriptor = os.open(self._host.path / f"{self.name}.acked", os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(descriptor, head + struct.pack("<I", google_crc32c.value(head)), 0)
                reach("journal.after_position")
            finally:
                os.close(descriptor)

    def remove_if_done(self) -> bool:
        """Delete its files if the run has ended and all of it is acknowledged; return whether it is gone.

        While the system does not come back from a sync, or does not delete them, they stay: ask again later.
        """
        if not self._sync_lock.acquire(timeout=SYNC_PATIENCE_S):
            return False
        try:
            with self._lock:
                if self._closed or not self.ended or self._acked < self._end or self.damage is not None:
                    return False
                self._close_files()
                self._spent += self._segments
                self._segments.clear()
                if not self._reclaim():
                    return False
                reach("journal.before_remove")
                for suffix in ("acked", "parked"):
                    (self._host.path / f"{self.name}.{suffix}").unlink(missing_ok=True)
                reach("journal.after_remove")
                self.removed = True
                return True
        except OSError as error:
            logger.warning("the log of run %s is stored, but cannot be deleted: %s", self.uid, error.strerror or error)
            return False
        finally:
            self._sync_lock.release()

    # -- parking --------------------------------------------------------------------------------

    def park(self, reason: str) -> None:
        """Leave a note beside the log for people: why it is not sent."""
        if self._closed:
            return
        with contextlib.suppress(OSError):
            (self._host.path / f"{self.name}.parked").write_text(reason + "\n", encoding="utf-8")

    def unpark(self) -> None:
        """Take the note away again."""
        if not self._closed:
            with contextlib.suppress(OSError):
                (self._host.path / f"{self.name}.parked").unlink(missing_ok=True)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        datasync(descriptor)
    finally:
        os.close(descriptor)


class Acked(NamedTuple):
    """How far a log was acknowledged when its writer last said so.

    Attributes
    ----------
    ordinal : int
    segment : int
        Number of the last segment at that time.
    offset : int
        Length of that segment's good part if all of it was acknowledged, else 0.
    """

    ordinal: int
    segment: int
    offset: int


def read_acked(directory: Path, name: str) -> Acked:
    """Return the position kept for the log `name`; zeros if there is none or it is not whole."""
    try:
        data = (directory / f"{name}.acked").read_bytes()
        ordinal, segment, offset, crc = _ACKED.unpack(data)
    except (OSError, struct.error):
        return Acked(0, 0, 0)
    if google_crc32c.value(data[:-4]) != crc:
        return Acked(0, 0, 0)
    return Acked(ordinal, segment, offset)
