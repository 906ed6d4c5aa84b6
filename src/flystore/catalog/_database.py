"""Connections and transactions of the two databases, behind one face.

Statements that are always the same are `Fixed`: written with SQLAlchemy, turned into text once, and
given to the driver directly (a point read through SQLAlchemy costs three times as much). Composed
searches go through SQLAlchemy, which caches their text by shape. Both share one connection, and
the transaction is the driver's.
"""

import logging
import os
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from flystore.disk import Trust, sync_directory
from flystore.disk.failpoints import reach
from flystore.model.errors import Conflict, Damaged, DiskFull, FlystoreError, InvalidRequest, Misconfigured, Unavailable

from ._place import prepare
from ._slowness import SLOW_S, note_slow

log = logging.getLogger("flystore.catalog")

BUSY_S = 30.0
"""How long a SQLite statement waits for another process before `Unavailable`, seconds."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.000_2, 0.003
"""Between looks whether another process is done with writing."""

CHECKPOINT_BYTES = 4 << 20
"""When SQLite's write-ahead log is longer, its content moves into the file."""

GLANCE_BYTES = 256 << 10
"""Of a row, or a value of one, that is read on an event loop."""

_LEFT_TO_THREADS = frozenset({sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""Why SQLite gives up a glance, in so far as another read may be answered."""

_DISK_FAILED = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_CLOSE,
        sqlite3.SQLITE_IOERR_BEGIN_ATOMIC,
        sqlite3.SQLITE_IOERR_COMMIT_ATOMIC,
        sqlite3.SQLITE_IOERR_ROLLBACK_ATOMIC,
    }
)
"""Extended codes after which nobody knows what of a write reached the disk."""

Row = Sequence[Any]


@cache
def _dialect(database: str) -> Dialect:
    if database == "sqlite":
        return sqlite.dialect(paramstyle="named")
    # Here, because what few need takes as long to load as SQLAlchemy's own parts together.
    from sqlalchemy.dialects.postgresql import psycopg

    return psycopg.dialect()


def _insert(database: str) -> Callable[..., Any]:
    """Return the database's ``INSERT``, which knows ``ON CONFLICT``."""
    if database == "sqlite":
        return sqlite.insert
    from sqlalchemy.dialects import postgresql

    return postgresql.insert


class Fixed:
    """A statement whose text never changes; parameters by name.

    Parameters
    ----------
    build
        The statement, or a function of the database's `insert` for one with ``ON CONFLICT``.
    """

    def __init__(self, build: Any) -> None:
        self._build = build
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def of(self, database: str) -> tuple[str, dict[str, Any]]:
        """Return the SQL for ``sqlite`` or ``postgresql``, and the parameters that are always the same."""
        found = self._compiled.get(database)
        if found is None:
            statement = self._build if hasattr(self._build, "compile") else self._build(_insert(database))
            compiled = statement.compile(dialect=_dialect(database))
            constant = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[database] = (str(compiled), constant)
        return found


def insert_of(table: sa.Table, *columns: str) -> sa.Insert:
    """Return ``INSERT`` of `columns`, parameters by their names."""
    return sa.insert(table).values({name: sa.bindparam(name) for name in columns})


def upsert(table: sa.Table, keys: Sequence[str], columns: Sequence[str], *, update: bool = True) -> Fixed:
    """Return ``INSERT`` of a row that, where there is one of these keys, changes it or leaves it alone."""

    def build(insert: Callable[..., Any]) -> Any:
        statement = insert(table).values({name: sa.bindparam(name) for name in (*keys, *columns)})
        if not update:
            return statement.on_conflict_do_nothing(index_elements=keys)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in columns}
        )

    return Fixed(build)


class Among:
    """A select of rows that belong to some ids, as few texts, so that none is put together for a page.

    There is a text for 1, 2, 4 … 512 ids; where fewer are asked for, the last one stands for the missing.

    Parameters
    ----------
    select
        Without a condition on the ids.
    ids
        The column that they are compared with.
    """

    _MOST = 512

    def __init__(self, select: sa.Select, ids: sa.ColumnElement[int]) -> None:
        self._select = select
        self._ids = ids
        self._texts: dict[int, tuple[Fixed, list[str]]] = {}

    def rows(self, session: "Session", ids: Sequence[int]) -> list[Row]:
        """Return the rows of `ids`, in no order; empty if there are no ids."""
        found: list[Row] = []
        for start in range(0, len(ids), self._MOST):
            some = ids[start : start + self._MOST]
            statement, names = self._text_for(1 << (len(some) - 1).bit_length())
            missing = [some[-1]] * (len(names) - len(some))
            found += session.all(statement, dict(zip(names, [*some, *missing], strict=True)))
        return found

    def _text_for(self, size: int) -> tuple[Fixed, list[str]]:
        if size not in self._texts:
            names = [f"id{place}" for place in range(size)]
            wanted = self._ids.in_([sa.bindparam(name) for name in names])
            self._texts[size] = Fixed(self._select.where(wanted)), names
        return self._texts[size]


class Session:
    """One connection within one transaction."""

    def __init__(self, database: str, connection: sa.Connection, driver: Any) -> None:
        self.database = database
        self.connection = connection
        self.driver = driver

    def all(self, statement: Fixed, params: Mapping[str, Any] | None = None) -> list[Row]:
        began = perf_counter()
        found: list[Row] = self.execute(statement, params).fetchall()
        _noting_slowness(began)
        return found

    def one(self, statement: Fixed, params: Mapping[str, Any] | None = None) -> Row | None:
        """Return the first row, or None."""
        began = perf_counter()
        found: Row | None = self.execute(statement, params).fetchone()
        _noting_slowness(began)
        return found

    def execute(self, statement: Fixed, params: Mapping[str, Any] | None = None) -> Any:
        """Return the driver's cursor."""
        text, constant = statement.of(self.database)
        return self.driver.execute(text, {**constant, **params} if params else constant)

    def many(self, statement: Fixed, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            text, constant = statement.of(self.database)
            assert not constant  # statements for many rows take all from the row
            self.driver.cursor().executemany(text, rows)

    def compose(self, statement: sa.Executable, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Return the rows of a statement put together for this call."""
        began = perf_counter()
        found: list[Row] = list(self.connection.execute(statement, params))
        _noting_slowness(began)
        return found

    def prepared(self, statement: sa.Select) -> Callable[[Mapping[str, Any]], list[Row]]:
        """Return a function that runs a composed statement again and again, each time with parameters by name.

        The parameters have some value in the statement.
        """
        compiled = statement.compile(dialect=_dialect(self.database), compile_kwargs={"render_postcompile": True})
        text, constant = str(compiled), compiled.params

        def run(params: Mapping[str, Any]) -> list[Row]:
            began = perf_counter()
            found: list[Row] = self.driver.execute(text, {**constant, **params}).fetchall()
            _noting_slowness(began)
            return found

        return run

    def large(self, value: sa.Column[bytes], where: Fixed, row_id: int) -> bytes | None:
        """Return a long value of one row; None if the row is not there.

        SQLite reads it into its place at once: a statement has it copied twice, into memory that is new each time.

        Parameters
        ----------
        value
            The column; bytes, and never null.
        where
            Selects the column by ``id``, for the database that has no such way.
        row_id : int
            Of the integer primary key.
        """
        if self.database == "sqlite":
            try:
                with self.driver.blobopen(value.table.name, value.name, row_id, readonly=True) as opened:
                    return bytes(opened.read())
            except sqlite3.OperationalError as error:
                if "no such rowid" in str(error):
                    return None
                raise
        row = self.one(where, {"id": row_id})
        return None if row is None else bytes(row[0])

    def sql(self, text: str) -> None:
        """Run a statement that has no parameters and gives no rows."""
        self.driver.execute(text)

    @property
    def is_over(self) -> bool:
        """Whether the database undid the whole transaction by itself, as SQLite does when a disk is full or fails."""
        return self.database == "sqlite" and not self.driver.in_transaction


def _noting_slowness(began: float) -> None:
    seconds = perf_counter() - began
    if seconds >= SLOW_S:
        note_slow(seconds)


class NotAtOnce(Exception):
    """A read on an event loop that might take long; do it in a thread, with `Database.reading`."""


class Database(Protocol):
    """Gives sessions, each in a transaction of its own."""

    name: str

    def reading(self) -> Any:
        """Return a context manager: a session that sees one state of the database throughout."""

    def glancing(self) -> Any:
        """Return a context manager: a session as of `reading`, for point reads on an event loop.

        It waits for no other process, and refuses long rows from their length, before they are read: `NotAtOnce`.
        """

    def changes(self) -> int:
        """Return a number that is another one once anything was committed, by whomever; waits as `glancing` does."""

    def writing(self) -> Any:
        """Return a context manager: a session that commits at the end or, on an exception, rolls back."""

    def lock_run(self, session: Session, uid: str) -> None:
        """Keep other writers from run `uid` until the transaction ends, even if it has no row yet."""

    def notify(self, session: Session, position: int) -> None:
        """Have other processes that listen told of the last position, once the transaction is committed."""

    def listen(self, heard: Callable[[], None]) -> Callable[[], None] | None:
        """Call `heard`, in a thread, after commits of other processes and whenever some may have been missed.

        Returns a function that ends it; None if the database tells nobody.
        """

    def holding(self, name: str) -> Any:
        """Return a context manager: an exclusive lock between all who share the database, dropped when they die."""

    def close(self) -> None: ...


def connect(url: str, *, create: bool, trust: Trust | None = None, connections: int | None = None) -> Database:
    """Return the database at a URL, ``sqlite:///FILE`` or ``postgresql://…``.

    `trust` is lost when the disk fails a write to a file; a PostgreSQL server sees to its own disk. `connections` is
    the most that are open to such a server at a time; None is what it is by default.

    Raises
    ------
    Misconfigured
        If the URL or the place cannot work.
    Unavailable
        If a PostgreSQL server does not answer.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise Misconfigured(
            f"{_without_password(url)!r} is not the address of a catalogue; it is sqlite:///FILE or "
            "postgresql://USER@HOST/NAME"
        ) from None  # what SQLAlchemy says has the whole address in it
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise Misconfigured("a catalogue in memory cannot be shared between connections; name a file")
        return SqliteDatabase(Path(str(parsed.database)), trust or Trust(), create=create)
    if backend == "postgresql":
        from ._postgres import MOST_CONNECTIONS, PostgresDatabase

        return PostgresDatabase(parsed, connections or MOST_CONNECTIONS)
    raise Misconfigured(f"catalogues are kept in SQLite or PostgreSQL, not in {backend}")


def shown_address(url: str) -> str:
    """Return the address of a catalogue, for people: without a password.

    Raises
    ------
    Misconfigured
        If it is none.
    """
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        raise Misconfigured(f"{_without_password(url)!r} is not the address of a catalogue") from None


def _without_password(url: str) -> str:
    """Return an address that could not be read, for people."""
    return re.sub(r"^([^:]*:/*[^:@/]*):.*@", r"\1:***@", url)


# --- SQLite -----------------------------------------------------------------------------------


class SqliteDatabase:
    """One file: one connection that writes, guarded by a lock, and as many that read as there are readers.

    A commit returns once it is durable. The write-ahead log is moved into the file here and not by SQLite itself,
    which keeps to itself that a sync failed while it did.
    """

    name = "sqlite"

    def __init__(self, path: Path, trust: Trust, *, create: bool) -> None:
        self.path = path
        self._trust = trust
        self._wal = f"{path}-wal"
        if not path.exists() and not create:
            raise Misconfigured(f"there is no catalogue at {path}", path=str(path))
        prepare(path)
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=sa.pool.NullPool)
        self._unwaiting = sa.create_engine("sqlite://", creator=partial(self._connect, 0.0), poolclass=sa.pool.NullPool)
        self._write_lock = threading.Lock()
        self._idle: deque[Session] = deque()
        self._idle_glances: deque[Session] = deque()
        self._counting: Session | None = None
        self._count_lock = threading.Lock()
        self._closed = False
        with plain_errors(), self._noticing_failures():
            self._writer = self._session()
            try:
                # A process that was killed may have left commits that it wrote and had no time to sync. They are
                # seen from now on, and documents sent again are acknowledged because of them.
                self._checkpoint()
                self._writer.driver.execute("PRAGMA busy_timeout=0")  # `_begin` waits, and then all is ours
            except BaseException:
                self.close()
                raise
        with trust.writing(f"the directory of {path}"):
            sync_directory(path.parent)

    def _connect(self, busy_seconds: float = BUSY_S) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=busy_seconds, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":  # SQLite keeps to itself that a sync failed meanwhile
            connection.close()
            raise Unavailable(f"the catalogue {self.path} cannot have a write-ahead log; look at the disk, start again")
        for pragma in (
            "synchronous=FULL",  # NORMAL may lose the last commits in a power cut
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-16000",  # KiB
            "wal_autocheckpoint=0",  # see `_checkpoint`
            f"journal_size_limit={CHECKPOINT_BYTES}",  # after a checkpoint the log shrinks to this
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _session(self, engine: sa.Engine | None = None, *, query_only: bool = False) -> Session:
        connection = (engine or self._engine).connect()
        driver = connection.connection.driver_connection
        assert driver is not None
        if query_only:
            driver.execute("PRAGMA query_only=ON")
        return Session(self.name, connection, driver)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with plain_errors():
            try:
                session = self._idle.pop()
            except IndexError:
                session = self._session(query_only=True)
            try:
                session.driver.execute("BEGIN")
                yield session
            finally:
                self._give_back(session, self._idle)

    @contextmanager
    def glancing(self) -> Iterator[Session]:
        with self._without_waiting():
            try:
                session = self._idle_glances.pop()
            except IndexError:
                session = self._session(self._unwaiting, query_only=True)
                session.driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, GLANCE_BYTES)
            try:
                session.driver.execute("BEGIN")
                yield session
            finally:
                self._give_back(session, self._idle_glances)

    def _give_back(self, session: Session, idle: deque[Session]) -> None:
        session.driver.rollback()
        if self._closed:
            session.connection.close()
        else:
            idle.append(session)

    def changes(self) -> int:
        with self._count_lock:
            if self._closed:
                raise NotAtOnce("the catalogue is closed")
            try:
                if self._counting is None:  # the number is of one connection, and counts what the others commit
                    self._counting = self._session(self._unwaiting, query_only=True)
                return int(self._counting.driver.execute("PRAGMA data_version").fetchone()[0])
            except (sqlite3.Error, SQLAlchemyError) as error:
                raise _not_at_once(error) from error

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        """Turn what only a thread may wait for, or read, into `NotAtOnce`."""
        try:
            yield
        except (sqlite3.Error, SQLAlchemyError) as error:
            raise _not_at_once(error) from error

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._write_lock, plain_errors(), self._noticing_failures():
            self._trust.require()
            driver = self._writer.driver
            self._begin(driver)
            try:
                yield self._writer
                reach("catalog.before_commit")
                driver.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # what failed first is what matters
                    driver.rollback()
                raise
            reach("catalog.after_commit")
            if self._log_bytes() > CHECKPOINT_BYTES:
                self._checkpoint()

    def _begin(self, driver: sqlite3.Connection) -> None:
        """Wait for the turn of this process: SQLite itself would look again later and later, after 100 ms at last."""
        until, pause = monotonic() + BUSY_S, _FIRST_PAUSE
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if (_code(error) or 0) & 0xFF != sqlite3.SQLITE_BUSY or monotonic() >= until:
                    raise
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _log_bytes(self) -> int:
        try:
            return os.stat(self._wal).st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self) -> None:
        """Sync the write-ahead log and move into the file what no reader needs there; waits for nobody."""
        reach("catalog.before_checkpoint")
        try:
            self._writer.driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            if _code(error) in _DISK_FAILED:
                raise
            # What is committed is in the log, so nothing is lost; the next commit tries again.
            log.warning("the write-ahead log of %s stays as it is: %s", self.path, error)
        reach("catalog.after_checkpoint")

    @contextmanager
    def _noticing_failures(self) -> Iterator[None]:
        """Lose trust if the disk fails a write, wherever in the transaction."""
        try:
            yield
        except Exception as error:
            failed = _sqlite_error(error)
            if failed is not None and _code(failed) in _DISK_FAILED:
                raise self._trust.lose(f"{self.path}: {failed}, {failed.sqlite_errorname}") from error
            raise

    def lock_run(self, session: Session, uid: str) -> None:
        """Nothing to do: there is one writer."""

    def notify(self, session: Session, position: int) -> None:
        """Nothing to do: `changes` says it."""

    def listen(self, heard: Callable[[], None]) -> None:
        return None

    def holding(self, name: str) -> Any:
        raise NotAtOnce("only processes of one machine share a file; they lock files")

    def close(self) -> None:
        self._closed = True
        for idle in (self._idle, self._idle_glances):
            while idle:
                idle.pop().connection.close()
        with self._count_lock:
            if self._counting is not None:
                self._counting.connection.close()
                self._counting = None
        with self._write_lock:
            self._writer.connection.close()
        self._engine.dispose()
        self._unwaiting.dispose()


# --- errors -----------------------------------------------------------------------------------


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the drivers' errors into ours."""
    try:
        yield
    except FlystoreError:
        raise
    except sqlite3.Error as error:
        raise _from_sqlite(error) from error
    except SQLAlchemyError as error:
        origin = getattr(error, "orig", None)
        if isinstance(origin, sqlite3.Error):
            raise _from_sqlite(origin) from error
        if origin is not None and type(origin).__module__.startswith("psycopg"):
            raise _from_postgres(origin) from error
        raise
    except UnicodeDecodeError as error:  # what SQLite says of a damaged page may hold bytes of it
        raise Damaged(f"the catalogue is damaged: it holds text that is none ({error})") from error
    except Exception as error:  # psycopg is optional, so its classes cannot be named here
        if type(error).__module__.startswith("psycopg"):
            raise _from_postgres(error) from error
        raise


def _code(error: sqlite3.Error) -> int | None:
    """Return the extended code; None for a mistake in the use of the driver."""
    return getattr(error, "sqlite_errorcode", None)


def _sqlite_error(error: BaseException | None) -> sqlite3.Error | None:
    """Return what SQLite said that led to `error`, if it did."""
    while error is not None and not isinstance(error, sqlite3.Error):
        error = error.__cause__ or error.__context__
    return error


def _not_at_once(error: sqlite3.Error | SQLAlchemyError) -> Exception:
    """Return `NotAtOnce` for what only a thread may wait for, or read; else the error in our words."""
    failed = _sqlite_error(error)
    if failed is None:
        return error
    return NotAtOnce(str(failed)) if (_code(failed) or 0) & 0xFF in _LEFT_TO_THREADS else _from_sqlite(failed)


def _from_sqlite(error: sqlite3.Error) -> Exception:
    code = _code(error)
    primary = None if code is None else code & 0xFF
    if isinstance(error, sqlite3.IntegrityError):
        return Conflict(f"another writer stored the same at the same time ({error}); read again")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(f"another process holds the catalogue for more than {BUSY_S:g} s; try again")
    if primary == sqlite3.SQLITE_FULL:
        return DiskFull("the disk of the catalogue is full; nothing was stored. Free space, then try again.")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Damaged(f"the catalogue file is damaged ({error}); stop the service and restore it from a backup")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Misconfigured(f"the catalogue file cannot be opened for writing ({error})")
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL):
        return Unavailable(f"the catalogue cannot be reached ({error})")
    if "Could not decode to UTF-8" in str(error):
        return Damaged(f"the catalogue is damaged: it holds text that is none ({error})")
    if primary == sqlite3.SQLITE_TOOBIG:
        return InvalidRequest(f"a value is too large for the catalogue ({error})")
    return error


def _from_postgres(error: Exception) -> Exception:
    names = {cls.__name__ for cls in type(error).__mro__}
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "IntegrityError" in names:
        return Conflict(f"another writer stored the same at the same time ({first}); read again")
    if names & {"DeadlockDetected", "SerializationFailure"}:
        return Unavailable(f"writers of the catalogue met ({first}); nothing was stored, try again", met=True)
    if "QueryCanceled" in names:
        return Unavailable(f"the catalogue's database gave up a search that took too long ({first}); narrow it")
    if "LockNotAvailable" in names:
        return Unavailable(f"another process holds the catalogue for more than {BUSY_S:g} s; try again")
    if "DiskFull" in names:
        return DiskFull(f"the disk of the catalogue's database is full ({first}); nothing was stored")
    if "OperationalError" in names or "InterfaceError" in names:
        return Unavailable(f"the catalogue's database cannot answer now ({first}); try again")
    if "DataError" in names:
        return InvalidRequest(f"a value does not fit into the catalogue ({first})")
    return error
