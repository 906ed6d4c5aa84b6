"""The catalogue itself: opening it, and transactions."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self, TypeVar

from flystore.disk import Trust
from flystore.model.errors import NotReady

from ._database import Database, connect
from ._kept import Known
from ._migrations import Step, migrate
from ._rows import Committed, LogRecord, Segment
from ._slow import Choose
from ._snapshot import Snapshot
from ._transaction import Transaction

_log = logging.getLogger("flystore.catalog")

_PAGE_ROWS, _PAGE_BYTES = 256, 1 << 20

_Stored = TypeVar("_Stored", LogRecord, Segment)


def _some(stored: Iterable[_Stored]) -> list[_Stored]:
    """Return the first of what is stored, as much as is good to hold at once."""
    found, size = [], 0
    for item in stored:
        found.append(item)
        size += item.nbytes
        if len(found) >= _PAGE_ROWS or size >= _PAGE_BYTES:
            break
    return found


class Catalog:
    """An open catalogue; safe to use from many threads.

    Use `open`. Close it, or use it as a context manager.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._watchers: list[Callable[[Committed], None]] = []
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._known = Known()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = True,
        clock: Callable[[], float] = time.time,
        trust: Trust | None = None,
        tell: Callable[[Step, bool], None] | None = None,
        connections: int | None = None,
    ) -> Self:
        """Open the catalogue at `url`, made or brought up to date if need be.

        Parameters
        ----------
        url
            ``sqlite:///FILE`` (its directory is made) or ``postgresql://USER@HOST/NAME``.
        create
            Make it if there is none.
        clock
            Gives Unix seconds for the times of nodes.
        trust
            Shared with others who write to the same store; None is the catalogue's own.
        tell
            Called before and after each step that brings it up to date; see `migrate`.
        connections
            To PostgreSQL, at most, at a time; None is 20.

        Raises
        ------
        Misconfigured
            If the address cannot work, the file lies on a network file system, the catalogue is
            newer than this program, or there is none and `create` is false.
        Unavailable
            If the database does not answer.
        """
        database = connect(url, create=create, trust=trust, connections=connections)
        try:
            migrate(database, create=create, tell=tell)
        except BaseException:
            database.close()
            raise
        return cls(database, clock)

    @property
    def backend(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._database.name

    @contextmanager
    def read(self) -> Iterator[Snapshot]:
        """Give a consistent view; nothing blocks it and it blocks nothing."""
        with self._database.reading() as session:
            yield Snapshot(session)

    @contextmanager
    def glance(self) -> Iterator[Snapshot]:
        """Give a consistent view on an event loop, which a thread for each read would cost ten times as much.

        For a few reads of single rows, and for nothing else: a listing or a search takes as long as it takes.

        Raises
        ------
        NotAtOnce
            If a row is long, another process keeps the database busy, or it is not on this machine. Use `read` in
            a thread then.
        """
        with self._database.glancing() as session:
            yield Snapshot(session)

    def changes(self) -> int:
        """Return a number that is another one once anything was committed, by whichever process.

        What was read after a call is still so as long as later calls return the same. Cheap enough for an event loop.

        Raises
        ------
        NotAtOnce
            If it cannot be told at once: read again what you want to know.
        """
        return self._database.changes()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Give a transaction: stored whole at the end, or on an exception not at all.

        One at a time with SQLite, so keep it short. Begun within another of the same thread it would
        wait for ever, and is refused.

        Raises
        ------
        DiskFull
            If there is no room; nothing was stored.
        SyncFailed
            If the disk failed this write or an earlier one; nothing is stored until the process starts anew.
        """
        if getattr(self._mine, "writing", False):
            raise RuntimeError("this thread is writing already; use that transaction")
        self._mine.writing = True
        try:
            with self._database.writing() as session:
                transaction = Transaction(self._database, session, self._clock, self._known)
                yield transaction
                committed = transaction.finish()
        finally:
            self._mine.writing = False
        transaction.stored()
        if committed is not None:
            self._tell(committed)

    def documents(self, uid: str | None, first: int = 0, stop: int | None = None) -> Iterator[LogRecord]:
        """Yield a run's records as `Snapshot.documents` does, with no transaction open in between.

        For what may take long: sending them to a client.
        """
        at = first
        while stop is None or at < stop:
            with self.read() as snapshot:
                records = _some(snapshot.documents(uid, at, stop))
            if not records:
                return
            yield from records
            at = (records[-1].first_ordinal or 0) + (records[-1].count or 0)

    def segments(
        self, series: str, first: int, stop: int, began: int | None, *, choose: Choose | None = None
    ) -> Iterator[Segment]:
        """Yield a series' segments as `Snapshot.segments` does, with no transaction open in between.

        Parameters
        ----------
        began
            What `Snapshot.began` said when the rows were counted.
        choose
            As in `Snapshot.segments`. Where rows are merged meanwhile, a segment may begin before the end of the one
            before it.

        Raises
        ------
        NotReady
            If rows were replaced since.
        """
        at = first
        while at < stop:
            with self.read() as snapshot:
                if snapshot.began(series) != began:
                    raise NotReady(f"the rows of {series} were replaced while they were read; read again")
                found = _some(snapshot.segments(series, at, stop, choose=choose))
            if not found:
                return
            yield from found
            at = found[-1].first_row + found[-1].rows

    def watch(self, told: Callable[[Committed], None]) -> Callable[[], None]:
        """Call `told` after each commit of this process, once all can read it.

        It is called in the committing thread and must return at once. Returns a function that ends it.
        """
        with self._lock:
            self._watchers.append(told)

        def end() -> None:
            with self._lock:
                if told in self._watchers:
                    self._watchers.remove(told)

        return end

    def listen(self, heard: Callable[[], None]) -> Callable[[], None] | None:
        """Call `heard`, in a thread of the catalogue's, after commits of other processes.

        It is also called when some may have been missed, so it has to look for itself what is new. Returns a function
        that ends it, or None if the database tells nobody: ask for `changes` every so often then.
        """
        return self._database.listen(heard)

    def holding(self, name: str) -> AbstractContextManager[None]:
        """Return an exclusive lock, between all processes that share a database in PostgreSQL; not reentrant.

        It is dropped when its holder dies, or loses the database.

        Raises
        ------
        Unavailable
            If the database does not answer, or others held the lock for too long.
        """
        held: AbstractContextManager[None] = self._database.holding(name)
        return held

    def _tell(self, committed: Committed) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for told in watchers:
            try:
                told(committed)
            except Exception:  # noqa: BLE001  the commit stands, whatever becomes of the news of it
                _log.exception("a watcher of the catalogue failed at position %d", committed.last)

    def close(self) -> None:
        """Close all connections; snapshots still open end when they are left."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
