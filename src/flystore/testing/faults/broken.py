"""Deliberately broken variants of flystore, by name: what a fault test must be able to find.

A fault test that no broken variant makes fail proves nothing. Each variant breaks one promise in one place of the
production code, by putting another function there.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class _Patch(NamedTuple):
    target: Any
    name: str
    value: Any


Make = Callable[[], list[_Patch]]
SHOWN_TO, LOOKS = 8, 4
"""Readers who are shown a half state by ``commit-twice-and-show``, and how often each asks for documents meanwhile: of
four times in a row, two have the rows asked for in between."""

_VARIANTS: dict[str, Make] = {}


def variant(name: str) -> Callable[[Make], Make]:
    """Add a variant: a function that returns what it puts where, and imports only when called."""

    def add(make: Make) -> Make:
        _VARIANTS[name] = make
        return make

    return add


def names() -> list[str]:
    return sorted(_VARIANTS)


def apply(*variants: str) -> list[_Patch]:
    """Break this process for good; return what was there before."""
    before = []
    for name in variants:
        for patch in _VARIANTS[name]():
            # Straight from the class: a static or class method would come bound.
            held = vars(patch.target).get(patch.name, getattr(patch.target, patch.name))
            before.append(_Patch(patch.target, patch.name, held))
            setattr(patch.target, patch.name, patch.value)
    return before


@contextmanager
def broken(*variants: str) -> Iterator[None]:
    """Break this process for as long as the block lasts."""
    before = apply(*variants)
    try:
        yield
    finally:
        for patch in reversed(before):
            setattr(patch.target, patch.name, patch.value)


# --- the service -------------------------------------------------------------------------------------------


@variant("ack-before-commit")
def _ack_before_commit() -> list[_Patch]:
    """Batches are acknowledged at once and stored a moment later."""
    from flystore.service.ingest import Ack, Ingest

    real = Ingest._take
    waiting: queue.Queue[Callable[[], Any]] = queue.Queue()
    started: list[threading.Thread] = []
    promised: dict[str, int] = {}

    def store_later() -> None:
        while True:
            work = waiting.get()
            threading.Event().wait(0.02)
            work()

    def take(self: Any, batch: Any, body: bytes) -> Any:
        from flystore.model.frames import is_document, split_frames

        count = sum(is_document(payload) for _, payload in split_frames(body))
        if batch.first > promised.get(batch.uid, 0):
            return real(self, batch, body)
        promised[batch.uid] = max(promised.get(batch.uid, 0), batch.first + count)
        waiting.put(lambda: real(self, batch, body))
        if not started:
            started.append(threading.Thread(target=store_later, daemon=True))
            started[0].start()
        return Ack(promised[batch.uid], batch.epoch)

    return [_Patch(Ingest, "_take", take)]


@variant("no-dedupe")
def _no_dedupe() -> list[_Patch]:
    """Whatever comes is taken for new and appended."""
    from flystore.service.ingest import Ingest

    real = Ingest.batch

    def batch(self: Any, uid: str, first: int, epoch: int, body: bytes) -> Any:
        with self._catalog.read() as snapshot:
            run = snapshot.run(uid)
        return real(self, uid, first if run is None else run.watermark, epoch, body)

    return [_Patch(Ingest, "batch", batch)]


@variant("no-compare")
def _no_compare() -> list[_Patch]:
    """A document under a known ordinal is taken for the known one, whatever it says."""
    from flystore.service import ingest

    return [_Patch(ingest, "_compare", lambda *_: None)]


@variant("no-epoch")
def _no_epoch() -> list[_Patch]:
    """A writer that was taken over may go on."""
    from flystore.service import ingest

    real = ingest._admit

    def admit(run: Any, batch: Any) -> Any:
        import msgspec

        late = run is not None and batch.epoch < run.epoch
        return real(run, msgspec.structs.replace(batch, epoch=run.epoch) if late else batch)

    return [_Patch(ingest, "_admit", admit)]


@variant("gaps-accepted")
def _gaps_accepted() -> list[_Patch]:
    """A batch that begins beyond the watermark is stored behind what is there."""
    from flystore.model.errors import SequenceGap
    from flystore.service.ingest import Ingest

    real = Ingest.batch

    def batch(self: Any, uid: str, first: int, epoch: int, body: bytes) -> Any:
        try:
            return real(self, uid, first, epoch, body)
        except SequenceGap as gap:
            return real(self, uid, int(gap.facts["expected"]), epoch, body)

    return [_Patch(Ingest, "batch", batch)]


def _committing_twice(dwell: Callable[[], object]) -> _Patch:
    """Rows are committed by themselves; `dwell` is how long they stay alone."""
    from flystore.catalog._transaction import Transaction

    real = Transaction.append_segment

    def append_segment(self: Any, *args: Any, **more: Any) -> Any:
        real(self, *args, **more)
        self._session.sql("RELEASE SAVEPOINT flystore")
        self._session.sql("COMMIT")
        dwell()
        self._session.sql("BEGIN IMMEDIATE")
        self._session.sql("SAVEPOINT flystore")

    return _Patch(Transaction, "append_segment", append_segment)


@variant("commit-twice")
def _commit_twice() -> list[_Patch]:
    """Rows are committed by themselves, before the log record and the run that they belong to."""
    # Batches are few and quick: somebody must come by meanwhile.
    return [_committing_twice(lambda: threading.Event().wait(0.03))]


@variant("commit-twice-and-show")
def _commit_twice_and_show() -> list[_Patch]:
    """As ``commit-twice``, and rows stay alone until people have asked for documents so often that one has seen it."""
    from flystore.service.documents import Documents

    real = Documents.frames
    asked, changed = [0], threading.Condition()

    def frames(self: Any, *args: Any, **more: Any) -> Any:
        with changed:
            asked[0] += 1
            changed.notify_all()
        return real(self, *args, **more)

    def dwell() -> None:
        with changed:
            wanted = asked[0] + SHOWN_TO * LOOKS
            changed.wait_for(lambda: asked[0] >= wanted, 1.0)  # a run that nobody reads goes on, too

    return [_committing_twice(dwell), _Patch(Documents, "frames", frames)]


@variant("no-fsync")
def _no_fsync() -> list[_Patch]:
    """Nothing is synced: neither files, nor directories, nor the catalogue."""
    from flystore import disk
    from flystore.catalog._database import SqliteDatabase
    from flystore.journal import _log

    real = SqliteDatabase._connect

    def connect(self: Any) -> Any:
        connection = real(self)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    def nothing(descriptor: int) -> None:
        """Sync nothing."""

    return [
        _Patch(os, "fsync", nothing),
        _Patch(os, "fdatasync", nothing),
        _Patch(disk, "datasync", nothing),
        _Patch(_log, "datasync", nothing),
        _Patch(SqliteDatabase, "_connect", connect),
    ]


@variant("synchronous-normal")
def _synchronous_normal() -> list[_Patch]:
    """SQLite syncs its log only now and then: a power cut may take the last commits."""
    from flystore.catalog._database import SqliteDatabase

    real = SqliteDatabase._connect

    def connect(self: Any) -> Any:
        connection = real(self)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return [_Patch(SqliteDatabase, "_connect", connect)]


@variant("sync-trusted-again")
def _sync_trusted_again() -> list[_Patch]:
    """A failed sync is an error like any other: who asks again is served."""
    from flystore.disk import Trust

    return [_Patch(Trust, "require", lambda self: None)]


@variant("full-disk-ignored")
def _full_disk_ignored() -> list[_Patch]:
    """A batch for which there is no room is acknowledged like any other."""
    from flystore.model.errors import DiskFull
    from flystore.service.ingest import Ack, Ingest

    real = Ingest._take

    def take(self: Any, batch: Any, body: bytes) -> Any:
        from flystore.model.frames import is_document, split_frames

        try:
            return real(self, batch, body)
        except DiskFull:
            count = sum(is_document(payload) for _, payload in split_frames(body))
            return Ack(batch.first + count, batch.epoch)

    return [_Patch(Ingest, "_take", take)]


# --- the writer --------------------------------------------------------------------------------------------


@variant("buffered-journal")
def _buffered_journal() -> list[_Patch]:
    """Documents are collected in memory, sixteen at a time, before they go to the operating system."""
    from flystore.journal._log import RunLog

    real = RunLog.append

    def append(self: Any, payloads: Any, *, last: bool = False) -> int:
        kept = self.__dict__.setdefault("_kept_back", [])
        kept.append(list(payloads))
        if len(kept) < 16 and not last:
            return self.end + len(kept) - 1
        whole = [payload for each in kept for payload in each]
        kept.clear()
        return real(self, whole, last=last)

    return [_Patch(RunLog, "append", append)]


@variant("no-adoption")
def _no_adoption() -> list[_Patch]:
    """What earlier writers left is not looked for."""
    from flystore.writer._shipper import Shipper

    return [_Patch(Shipper, "_adopt", lambda self, home: None)]


@variant("epoch-kept")
def _epoch_kept() -> list[_Patch]:
    """A takeover does not raise the epoch, so the writer that was taken over is not told apart."""
    from flystore.journal import _journal

    real = _journal._write_identity

    def write(path: Any, who: Any) -> None:
        who = who._replace(epoch=1)
        real(path, who)

    make = _journal.Journal.__init__

    def init(self: Any, path: Any, lock: Any, identity: Any, **more: Any) -> None:
        make(self, path, lock, identity._replace(epoch=1), **more)

    return [_Patch(_journal, "_write_identity", write), _Patch(_journal.Journal, "__init__", init)]


@variant("forget-on-failure")
def _forget_on_failure() -> list[_Patch]:
    """A batch that did not get through is given up."""
    from flystore.writer._shipper import Shipper

    real = Shipper._refused

    def refused(self: Any, shipment: Any, first: int, count: int, data: bytes, error: Any) -> None:
        real(self, shipment, first, count, data, error)
        shipment.next = first + count
        shipment.log.acknowledge(first + count)

    return [_Patch(Shipper, "_refused", refused)]


# --- damage and backups ------------------------------------------------------------------------------------


class _EqualToAll(int):
    """A checksum that every other one is equal to."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@variant("no-checksums")
def _no_checksums() -> list[_Patch]:
    """Checksums of log frames, rows and array chunks are stored, and never looked at."""
    from types import SimpleNamespace

    from zarr.codecs import Crc32cCodec

    from flystore.catalog import _slow
    from flystore.model import frames
    from flystore.storage import _durable

    def decode(self: Any, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return chunk_spec.prototype.buffer.from_array_like(chunk_bytes.as_numpy_array()[:-4])

    return [
        _Patch(frames, "google_crc32c", SimpleNamespace(value=lambda data: _EqualToAll(0))),
        _Patch(_slow, "problem_of", lambda segment: None),
        _Patch(Crc32cCodec, "_decode_sync", decode),
        _Patch(_durable, "checked_metadata", lambda content: True),
        _Patch(_durable, "written", lambda directory: frozenset()),
    ]


@variant("no-compare-trees")
def _no_compare_trees() -> list[_Patch]:
    """``verify --deep`` works nothing out again, and the index is not compared with the nodes."""
    from flystore.catalog import Snapshot
    from flystore.service import verifying

    return [
        _Patch(verifying, "compare_trees", lambda *_: None),
        _Patch(Snapshot, "problems_of", lambda self, node: []),
    ]


@variant("no-fingerprints")
def _no_fingerprints() -> list[_Patch]:
    """A file is taken for the one that was observed because it has the same name."""
    from flystore.service import array_files, changed

    return [
        _Patch(array_files, "change", lambda *_, **__: None),
        _Patch(array_files, "written_since", lambda *_: None),
        _Patch(changed, "change", lambda *_, **__: None),
    ]


@variant("backup-by-copy")
def _backup_by_copy() -> list[_Patch]:
    """The catalogue's file is copied as it lies there, without what is only in its write-ahead log yet."""
    import shutil

    from flystore.service import backup

    return [_Patch(backup, "copy_catalog", shutil.copyfile)]


@variant("backup-without-rename")
def _backup_without_rename() -> list[_Patch]:
    """A backup is made under its own name, and its manifest is written first."""
    from contextlib import contextmanager

    from flystore.service import backup

    real = backup._copy_store

    @contextmanager
    def making(target: Any) -> Any:
        target.mkdir()
        yield target

    def copy_store(directory: Any, target: Any) -> Any:
        target.mkdir()
        facts = backup._Facts(backup.SCHEMA, 0, 0, set())
        empty = backup.Manifest(backup.FORMAT, "0", facts.schema, 0, 0, 0.0, 0.0, []).summed()
        (target.parent / backup.MANIFEST).write_bytes(backup.msgspec.json.encode(empty))
        return real(directory, target)

    return [_Patch(backup, "_making", making), _Patch(backup, "_copy_store", copy_store)]


@variant("full-journal-drops")
def _full_journal_drops() -> list[_Patch]:
    """A document for which the journal has no room is dropped, and nobody is told."""
    from flystore.journal._log import RunLog
    from flystore.model.errors import JournalFull

    real = RunLog.append

    def append(self: Any, payloads: Any, *, last: bool = False) -> int:
        try:
            return real(self, payloads, last=last)
        except JournalFull:
            return self.end

    return [_Patch(RunLog, "append", append)]


# --- following ---------------------------------------------------------------------------------------------


@variant("told-before-commit")
def _told_before_commit() -> list[_Patch]:
    """Followers are woken a moment before they can read what they are woken for."""
    from flystore.catalog import Catalog, Transaction

    @contextmanager
    def write(self: Any) -> Iterator[Any]:
        with self._database.writing() as session:
            transaction = Transaction(self._database, session, self._clock, self._known)
            yield transaction
            committed = transaction.finish()
            if committed is not None:
                self._tell(committed)
                threading.Event().wait(0.05)

    return [_Patch(Catalog, "write", write)]


@variant("feed-token-ahead")
def _feed_token_ahead() -> list[_Patch]:
    """The token of a page is that of the feed's end when it is sent, not when it was read."""
    from flystore.service.following import Following, Place, _Tokens

    real = Following._read_page

    def read_page(self: Any, *arguments: Any) -> Any:
        page, place = real(self, *arguments)
        threading.Event().wait(0.01)
        with self._catalog.read() as snapshot:
            ahead = Place(snapshot.last_position())
            if not page.more:
                import msgspec

                return msgspec.structs.replace(page, next=_Tokens(snapshot)(ahead)), ahead
        return page, place

    return [_Patch(Following, "_read_page", read_page)]
