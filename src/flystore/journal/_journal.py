"""A journal: the directory in which one writer process keeps the documents of its runs.

<home>/<name>/lock          held while the process lives
journal       format, target and epoch (JSON, replaced as a whole)
reserve       space for the stop documents of a full disk
<run>.<n>.frames    segments
<run>.acked         how far the service has it
<run>.parked        why it is not sent, for people
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Self

from flystore.disk import make_directory, replace_file, sync_directory
from flystore.disk.failpoints import reach
from flystore.model.errors import Conflict, Damaged, Misconfigured

from ._home import default_home, make_home, network_filesystem
from ._lock import DirectoryLock, is_locked
from ._log import RunLog, closed_error, read_acked
from ._segment import (
    VERSION,
    Segment,
    SegmentHeader,
    last_begun,
    open_segment,
    parse_segment_name,
    peek_header,
    safe_name,
)
from ._space import Space
from ._sync import GroupSync

logger = logging.getLogger("flystore.journal")

SEGMENT_BYTES = 8 * 2**20
"""Default size at which a run goes on in a new file, bytes."""

RESERVE_BYTES = 4 * 2**20
"""Default space held ahead for stop documents, bytes."""

SYNC_INTERVAL_S = 0.05
"""Default seconds from an append to the sync that makes it durable."""

Durability = Literal["group", "each"]

_ORPHANS = "~no-run"
_OWN_FILES = frozenset({"lock", "journal", "reserve"})
_OWN_SUFFIXES = frozenset({".frames", ".acked", ".parked"})
_OPEN: "weakref.WeakSet[Journal]" = weakref.WeakSet()


class Identity(NamedTuple):
    """What a journal says about itself.

    Attributes
    ----------
    target : str
        Where it is to be shipped to, without any key.
    epoch : int
        Of its present writer, from 1; raised by each takeover.
    """

    target: str
    epoch: int


class JournalState(NamedTuple):
    """How a journal is, at one moment.

    Attributes
    ----------
    path : Path
    nbytes : int
        Bytes of documents on disk that are not acknowledged yet.
    durability : str
        ``"group"``, ``"each"``, or ``"lost: why"`` after a sync failed.
    free_bytes, disk_bytes : int
        Free for this user, and the size of the disk.
    warnings : tuple of str
        Sentences for people; empty if all is well.
    """

    path: Path
    nbytes: int
    durability: str
    free_bytes: int
    disk_bytes: int
    warnings: tuple[str, ...]


class Journal:
    """The logs of one writer process; made by `create` or `take_over`.

    Attributes
    ----------
    path : Path
        Its directory.
    target : str
        Where it is to be shipped to, without any key.
    epoch : int
        To be sent with each batch.
    """

    def __init__(
        self,
        path: Path,
        lock: DirectoryLock,
        identity: Identity,
        *,
        durability: Durability = "group",
        sync_interval: float = SYNC_INTERVAL_S,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = 0,
    ) -> None:
        self.path = path
        self.target, self.epoch = identity
        self.segment_bytes = segment_bytes
        self.each = durability == "each"
        self.failed = False
        self.space = Space(path, reserve_bytes)
        self.unreadable: list[Damaged] = []
        self._lock = lock
        self._durability: str = durability
        self._network = network_filesystem(path)
        self._logs: list[RunLog] = []
        self._numbers = 0
        self._guard = threading.Lock()
        self._sync = GroupSync(sync_interval, self.space.check)
        self._closed = False
        _OPEN.add(self)
        if self._network:
            logger.warning("%s", self._network_warning())

    def __repr__(self) -> str:
        return f"<Journal {self.path}, {len(self._logs)} logs, epoch {self.epoch}, for {self.target}>"

    @property
    def name(self) -> str:
        """Name of its directory; no two journals share one."""
        return self.path.name

    @property
    def logs(self) -> tuple[RunLog, ...]:
        """Its logs, in the order in which they were opened; those removed left out."""
        with self._guard:
            return tuple(log for log in self._logs if not log.removed)

    # -- making and taking ----------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        home: Path | str | None = None,
        *,
        target: str,
        durability: Durability = "group",
        sync_interval: float = SYNC_INTERVAL_S,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> Self:
        """Make an empty journal under `home` and hold it.

        Parameters
        ----------
        home : Path or str, optional
            Directory of journals; made if need be. None is `default_home`.
        target : str
            Where it is to be shipped to, without any key.
        durability : {"group", "each"}
            ``"group"`` syncs in the background, ``"each"`` before an append returns.
        sync_interval : float
            Seconds from an append to its sync; only for ``"group"``.
        segment_bytes, reserve_bytes : int
            Size of a segment, and of the space held ahead for stop documents.

        Raises
        ------
        Misconfigured
            If the directory cannot be made or written to.
        """
        if durability not in ("group", "each"):
            raise Misconfigured(f"durability is 'group' or 'each', not {durability!r}")
        if not sync_interval >= 0:
            raise Misconfigured(f"sync_interval is a number of seconds, 0 or more, not {sync_interval!r}")
        home = default_home() if home is None else Path(home).expanduser().absolute()
        make_home(home)
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            lock = _make_locked(home, name, Identity(target, 1))
        except OSError as error:
            raise Misconfigured(
                f"no journal can be made under {home} ({error.strerror}); free some space or name another "
                f"directory: RunWriter(…, journal=DIR)",
                path=str(home),
            ) from error
        return cls(
            home / name,
            lock,
            Identity(target, 1),
            durability=durability if sync_interval > 0 else "each",
            sync_interval=sync_interval,
            segment_bytes=segment_bytes,
            reserve_bytes=reserve_bytes,
        )

    @classmethod
    def take_over(cls, path: Path | str, *, target: str | None = None, pause: Callable[[], None] | None = None) -> Self:
        """Hold a journal whose writer is gone, raise its epoch, and read its logs again.

        Torn last frames are left out and reported to the log. Damage is kept in the `damage` of the
        log it is in; a file that tells not even whose it is is listed in `unreadable`. Nothing is
        changed but the epoch.

        Parameters
        ----------
        target : str, optional
            Where it is to be shipped to from now on; None leaves that as it was.
        pause : callable, optional
            Called now and then while reading, to let other threads run.

        Raises
        ------
        Conflict
            If another writer holds it, or has taken it over and finished with it.
        """
        path = Path(path)
        lock = DirectoryLock.take(path)
        if lock is None:
            raise Conflict(f"the journal {path} is held by another writer, or gone", path=str(path))
        try:
            found = identity(path)
            raised = Identity(found.target if target is None else target, found.epoch + 1)
            reach("journal.before_takeover")
            _write_identity(path, raised)
            reach("journal.after_takeover")
            lock.note(_holder())
            (path / "reserve").unlink(missing_ok=True)
            journal = cls(path, lock, raised)
            journal._read_logs(pause)
        except BaseException:
            lock.release()
            raise
        return journal

    def _read_logs(self, pause: Callable[[], None] | None) -> None:
        logs = []
        for name, files in sorted(segment_files(self.path).items()):
            log = self._read_log(name, files, pause)
            if log is not None:
                log.sync_left()
                logs.append(log)
        self._logs = sorted(logs, key=lambda log: log.number)
        self._numbers = self._logs[-1].number + 1 if self._logs else 0

    def _read_log(self, name: str, files: list[tuple[int, Path]], pause: Callable[[], None] | None) -> RunLog | None:
        """Read the segments of one log until one is damaged; None if it holds not even a header."""
        segments: list[Segment] = []
        header: SegmentHeader | None = None
        damage: Damaged | None = None
        last = last_begun(files)
        for number, path in files:
            opened = open_segment(path, number, last=number >= last, pause=pause)
            if opened.torn_at is not None:
                logger.warning(
                    "journal file %s, segment %d, offset %d: a torn last frame was dropped, as is normal "
                    "after a power cut",
                    path,
                    number,
                    opened.torn_at,
                )
            damage = opened.damage
            if opened.segment is not None and opened.header is not None:
                missing = missing_before(opened.segment, segments)
                if missing is not None:
                    damage = missing
                else:
                    segments.append(opened.segment)
                    header = opened.header
            if damage is not None:
                logger.error("%s", damage)
                break
        if header is None:
            if damage is not None:
                self.unreadable.append(damage)
            return None
        acked = max(read_acked(self.path, name).ordinal, segments[0].first)
        return RunLog(self, header.run, name, header.log, segments, acked=acked, damage=damage, writable=False)

    # -- logs -----------------------------------------------------------------------------------

    def open_run(self, uid: str) -> RunLog:
        """Return the log of a run: the open one, or a new one that begins at ordinal 0.

        A run that ended and begins again with the same uid (someone replays it) gets a log of its
        own; the service finds each document again where it has it.
        """
        with self._guard:
            for log in reversed(self._logs):
                if log.uid == uid and not log.ended:
                    return log
            return self._new_log(uid, safe_name(uid))

    def open_orphans(self) -> RunLog:
        """Return the log of documents that belong to no run."""
        with self._guard:
            for log in self._logs:
                if not log.uid and not log.ended:
                    return log
            return self._new_log("", _ORPHANS)

    def _new_log(self, uid: str, name: str) -> RunLog:
        if self._closed:
            raise closed_error(self.path)
        number = self._numbers
        self._numbers += 1
        self._logs = [log for log in self._logs if not log.removed]
        if any(log.name == name for log in self._logs):
            name = f"{name}~{number}"
        log = RunLog(self, uid, name, number)
        self._logs.append(log)
        return log

    def readmit(self, log: RunLog) -> None:
        """List a log again that was removed and then appended to."""
        with self._guard:
            log.removed = False
            if log not in self._logs:
                self._logs.append(log)

    def grown(self, log: RunLog) -> None:
        self._sync.add(log)

    def lost(self, error: OSError) -> None:
        self.failed = True
        self._durability = f"lost: {error.strerror or error}"
        logger.critical(
            "a sync of the journal in %s failed (%s). Documents still go to the operating system and to the "
            "service, but until then a power cut could take them: look at the disk, then start a new writer.",
            self.path,
            error.strerror or error,
        )

    # -- state and end --------------------------------------------------------------------------

    def state(self) -> JournalState:
        free, size = self.space.free()
        return JournalState(
            self.path,
            sum(log.pending_bytes for log in self.logs),
            self._durability,
            free,
            size,
            tuple(self._warnings()),
        )

    def _warnings(self) -> Iterator[str]:
        if self._network:
            yield self._network_warning()
        if self.failed:
            yield f"durability {self._durability}"
        if self.space.exhausted:
            yield f"the disk under {self.path} is full: only stop documents are taken"
        elif self.space.low:
            yield f"less than a tenth of the disk under {self.path} is free"
        yield from (str(damage) for damage in self.unreadable)

    def _network_warning(self) -> str:
        return (
            f"the journal {self.path} is on a network file system ({self._network}): an outage there stops "
            f"plans, and locks may not hold. Name a local directory: RunWriter(…, journal=DIR)"
        )

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, timeout: float | None = None) -> bool:
        """Sync, close the files and let the lock go; remove the directory if all was acknowledged.

        What is not acknowledged stays for the next writer to take over. Closing twice is harmless.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for the disk; None waits for ever. If they are over, nothing is appended any
            more, and the lock goes when the system comes back from the sync, or the process ends.

        Returns
        -------
        bool
            True if all is synced and closed; also if it was closed before.
        """
        with self._guard:
            if self._closed:
                return True
            self._closed = True
        for log in self.logs:
            log.refuse()
        until = None if timeout is None else time.monotonic() + timeout
        ended = self._sync.close(lambda: self._let_go(until), timeout) and not self._lock.held
        if not ended:
            logger.warning(
                "the disk under %s does not come back from a sync within %g s; the journal is left to it: what is "
                "not stored is sent later, but until the sync is done a power cut could take it",
                self.path,
                timeout or 0.0,
            )
        return ended

    def _let_go(self, until: float | None) -> None:
        """Close what is synced; the last thing that is done with the journal."""
        done, closed = not self.unreadable, True
        for log in self.logs:
            closed &= log.close(None if until is None else max(0.0, until - time.monotonic()))
            done = done and log.damage is None and log.acked >= log.end
        if not closed:  # a sync is under way in these files: the end of the process lets the lock go
            return
        try:
            self.space.remove()
            if done and self._lock.held:
                remove_directory(self.path)
        except OSError as error:
            logger.error("the journal %s is closed, but cannot be tidied up: %s", self.path, error)
        finally:
            self._lock.release()

    def abandon(self) -> None:
        """Forget everything without touching a file or a lock: this is a forked child's copy."""
        self._closed = True
        for log in self._logs:
            log.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def missing_before(segment: Segment, before: list[Segment]) -> Damaged | None:
    """Return what is wrong if documents between the last segment and this one are gone.

    Nothing is said of those before the first segment: files only go once they are acknowledged.
    """
    expected = before[-1].end if before else segment.first
    if segment.first == expected:
        return None
    return Damaged(
        f"journal file {segment.path}, segment {segment.number}, begins with document {segment.first}, but "
        f"documents {expected} to {segment.first - 1} are in no file. What precedes them is readable; the "
        f"file is kept.",
        path=str(segment.path),
        segment=segment.number,
        frame=0,
        offset=0,
    )


def _abandon_in_child() -> None:
    for journal in list(_OPEN):
        journal.abandon()


os.register_at_fork(after_in_child=_abandon_in_child)


def _make_locked(home: Path, name: str, who: Identity) -> DirectoryLock:
    """Make the directory under a hidden name and show it once it is locked, so nobody finds it unheld."""
    hidden = home / f".{name}"
    make_directory(hidden, 0o700)
    lock = DirectoryLock.take(hidden, create=True)
    if lock is None:
        raise Misconfigured(f"the new journal {hidden} is locked by another process; try again")
    try:
        lock.note(_holder())
        _write_identity(hidden, who)
        reach("journal.before_create")
        os.rename(hidden, home / name)
        reach("journal.after_create")
        sync_directory(home)
    except BaseException:
        lock.release()
        raise
    return lock


def _holder() -> str:
    return f"held by process {os.getpid()} on {socket.gethostname()}\n"


def _write_identity(path: Path, who: Identity) -> None:
    content = {"format": VERSION, "target": who.target, "epoch": who.epoch}
    replace_file(path / "journal", json.dumps(content).encode())


def identity(path: Path) -> Identity:
    """Return the target and epoch of a journal, from its segments if its own file is damaged.

    Raises
    ------
    Misconfigured
        If a newer flystore wrote it.
    Damaged
        If nothing in it says where it is to go.
    """
    try:
        content = json.loads((path / "journal").read_bytes())
        found, version = Identity(str(content["target"]), int(content["epoch"])), int(content["format"])
    except (OSError, ValueError, KeyError, TypeError):
        headers = [peek_header(file) for files in segment_files(path).values() for _, file in files]
        known = [Identity(header.target, header.epoch) for header in headers if header is not None]
        if not known:
            raise Damaged(
                f"the journal {path} does not say where it is to be sent; it is kept as it is", path=str(path)
            ) from None
        return max(known, key=lambda each: each.epoch)
    if version > VERSION:
        raise Misconfigured(
            f"the journal {path} has format {version}; this flystore reads up to {VERSION}: use a newer one"
        )
    return found


def segment_files(path: Path) -> dict[str, list[tuple[int, Path]]]:
    """Return the segment files of each log, by log name, in order."""
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for entry in os.scandir(path):
        parsed = parse_segment_name(entry.name)
        if parsed is not None:
            found[parsed[0]].append((parsed[1], path / entry.name))
    for files in found.values():
        files.sort()
    return dict(found)


def has_unacknowledged(path: Path) -> bool:
    """Return whether a journal holds anything its last writer knew no acknowledgement of; reads no frames."""
    try:
        for name, files in segment_files(path).items():
            acked = read_acked(path, name)
            number, last = files[-1]
            if number != acked.segment or last.stat().st_size != acked.offset:
                return True
    except FileNotFoundError:  # another process finished with it just now
        return False
    return False


def journals(home: Path | str) -> list[Path]:
    """Return the directories of all journals under `home`, oldest first; empty if there is no such home."""
    home = Path(home)
    if not home.is_dir():
        return []
    shown = (entry for entry in home.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in shown if (entry / "lock").exists())


def orphans(home: Path | str) -> list[Path]:
    """Return the journals whose writer is gone and that hold unacknowledged documents, oldest first."""
    return [path for path in journals(home) if not is_locked(path) and has_unacknowledged(path)]


def remove_spent(home: Path | str) -> list[Path]:
    """Delete the journals whose writer is gone and that hold nothing more; return what was deleted."""
    removed = []
    for path in journals(home):
        # Asked before locking too: a lock held for a moment only may turn a taker away.
        lock = None if has_unacknowledged(path) else DirectoryLock.take(path)
        if lock is None:
            continue
        try:
            if not has_unacknowledged(path):
                remove_directory(path)
                removed.append(path)
        finally:
            lock.release()
    return removed


def remove_directory(path: Path) -> None:
    """Delete a journal that holds nothing any more; the caller holds its lock, which goes last."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "lock"):
        if entry.name in _OWN_FILES or entry.suffix in _OWN_SUFFIXES or entry.name.startswith("."):
            entry.unlink()
    with contextlib.suppress(OSError):  # something that is not ours lies in it
        path.rmdir()
