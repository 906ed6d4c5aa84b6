"""A catalogue in PostgreSQL: a pool of connections with a bound, and what is waited for, each with a bound too.

A server that goes away ends what is under way as `Unavailable`; connections that it broke are replaced before they are
used, so that a restart of the server is seen by nobody who asks afterwards.
"""

import logging
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from flystore.disk.failpoints import reach
from flystore.model.errors import Misconfigured, Unavailable

from ._database import BUSY_S, Fixed, NotAtOnce, Session, plain_errors
from ._schema import describe_for_postgresql

log = logging.getLogger("flystore.catalog")

MOST_CONNECTIONS = 20
"""Of one process, unless it was told otherwise: a quarter of them write. One more hears of commits of others."""

LEAST_CONNECTIONS = 2

POOL_WAIT_S = 10.0
"""How long a request waits for a connection while all are in use."""

CONNECT_S = 5
"""How long a server may take to answer a new connection."""

READ_S = 60.0
"""How long one statement of a reader may take."""

FROZEN_S = 120.0
"""How long a transaction may stand still until the server ends it: its process, or the way to it, is gone."""

_IDLE = 4
"""Connections of each kind that are kept while nobody asks."""

_KEEPALIVE = {
    "connect_timeout": str(CONNECT_S),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "flystore",
}
"""A host that is gone without a word is found out after some 25 s."""

_RETRY_S = 1.0
"""Between attempts to listen again."""

_LOCK_RUN = Fixed(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:uid, 20))"))
_HOLD = Fixed(sa.text("SELECT pg_advisory_lock(hashtextextended(:name, 21))"))
_LET_GO = Fixed(sa.text("SELECT pg_advisory_unlock(hashtextextended(:name, 21))"))
_NOTIFY = Fixed(sa.text("SELECT pg_notify(:channel, :payload)"))
_STORE = "SELECT store FROM feed"


class PostgresDatabase:
    """A pool of connections; readers see one state (REPEATABLE READ), writers the latest of each row.

    Parameters
    ----------
    connections : int
        The most that are open at a time. Readers and writers have pools of their own, so that a hundred slow searches
        do not keep documents from being stored.
    """

    name = "postgresql"

    def __init__(self, url: sa.URL, connections: int = MOST_CONNECTIONS) -> None:
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise Misconfigured("a catalogue in PostgreSQL needs psycopg; install flystore[postgres]") from error
        if connections < LEAST_CONNECTIONS:
            raise Misconfigured(
                f"{connections} connections to PostgreSQL are too few; a process needs {LEAST_CONNECTIONS}, one that "
                "reads and one that writes"
            )
        describe_for_postgresql()
        self._where = url.render_as_string(hide_password=True)
        query = {name: value for name, value in _KEEPALIVE.items() if name not in url.query}
        self._url = url.set(drivername="postgresql+psycopg").update_query_dict(query)
        self._me = secrets.token_hex(4)
        self._channel: str | None = None
        self._listeners: list[_Listener] = []
        writers = max(1, connections // 4)
        self._writers = self._pool(writers, {"lock_timeout": BUSY_S, "idle_in_transaction_session_timeout": FROZEN_S})
        self._lockers = self._pool(connections, {"lock_timeout": BUSY_S})
        self._readers = self._pool(
            connections - writers,
            {"statement_timeout": READ_S, "idle_in_transaction_session_timeout": FROZEN_S},
            reading=True,
        )

    def _pool(self, most: int, seconds: dict[str, float], *, reading: bool = False) -> sa.Engine:
        kept = min(most, _IDLE)
        engine = sa.create_engine(
            self._url,
            pool_size=kept,
            max_overflow=most - kept,
            pool_timeout=POOL_WAIT_S,
            pool_pre_ping=True,
            pool_use_lifo=True,
        )

        def prepare(connection: Any, _: Any) -> None:
            connection.execute("".join(f"SET {name} = {int(1000 * value)};" for name, value in seconds.items()))
            connection.commit()
            if reading:
                from psycopg import IsolationLevel

                connection.isolation_level = IsolationLevel.REPEATABLE_READ
                connection.read_only = True

        sa.event.listen(engine, "connect", prepare)
        return engine

    @contextmanager
    def _session(self, engine: sa.Engine) -> Iterator[Session]:
        try:
            connection = engine.connect()
        except sa.exc.TimeoutError:
            raise Unavailable(
                f"all connections to the catalogue's database were in use for {POOL_WAIT_S:g} s; try again, or allow "
                "more with --pool"
            ) from None
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
            raise Unavailable(f"the catalogue at {self._where} does not answer: {reason}") from error
        driver = connection.connection.driver_connection
        try:
            with plain_errors():
                yield Session(self.name, connection, _Binary(driver))
        finally:
            if driver is not None and driver.closed:
                connection.invalidate()
            connection.close()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._session(self._readers) as session:
            try:
                yield session
            finally:
                session.driver.rollback()

    def glancing(self) -> AbstractContextManager[Session]:
        raise NotAtOnce("the database is elsewhere")

    def changes(self) -> int:
        raise NotAtOnce("the database is elsewhere")

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._session(self._writers) as session:
            try:
                yield session
                reach("catalog.before_commit")
                session.driver.commit()
            except BaseException:
                session.driver.rollback()
                raise
            reach("catalog.after_commit")

    def lock_run(self, session: Session, uid: str) -> None:
        session.execute(_LOCK_RUN, {"uid": uid})

    def notify(self, session: Session, position: int) -> None:
        if self._channel is None:
            row = session.driver.execute(_STORE).fetchone()
            self._channel = _channel(row[0])
        session.execute(_NOTIFY, {"channel": self._channel, "payload": f"{position} {self._me}"})

    def listen(self, heard: Callable[[], None]) -> Callable[[], None]:
        listener = _Listener(self._url, self._me, heard)
        self._listeners.append(listener)
        return listener.end

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        with self._session(self._lockers) as session:
            session.execute(_HOLD, {"name": name})
            session.driver.commit()  # it outlives the transaction, which must not stand still meanwhile
            try:
                yield
            finally:
                try:
                    session.execute(_LET_GO, {"name": name})
                    session.driver.commit()
                except Exception as error:  # noqa: BLE001  the lock goes with the connection
                    log.warning("a lock was lost with its connection to the database: %s", _first_line(error))
                    session.connection.invalidate()

    def close(self) -> None:
        for listener in self._listeners:
            listener.end()
        self._lockers.dispose()
        self._writers.dispose()
        self._readers.dispose()


class _Binary:
    """A psycopg connection whose values come in binary: as text, a body would be twice as long."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, text: str, params: Any = None) -> Any:
        cursor = self._connection.cursor(binary=True)
        return cursor.execute(text, params)

    def cursor(self) -> Any:
        return self._connection.cursor()

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        if not self._connection.closed:
            self._connection.rollback()


def _channel(store: str) -> str:
    # Of the store and not of the database: a database may hold several, each in a schema.
    return f"flystore_{store}"


class _Listener:
    """Hears of commits on a connection of its own, and gets another one when that breaks."""

    def __init__(self, url: sa.URL, me: str, heard: Callable[[], None]) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._me = me
        self._heard = heard
        self._broken = False
        self._ended = threading.Event()
        self._bell, self._rope = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="flystore-listening", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Hear of nothing any more. Ending twice is harmless."""
        if not self._ended.is_set():
            self._ended.set()
            self._rope.send(b".")
            self._thread.join()
            self._bell.close()
            self._rope.close()

    def _run(self) -> None:
        import psycopg

        while not self._ended.is_set():
            try:
                self._listen()
            except (psycopg.Error, OSError) as error:
                if not self._broken:
                    log.warning("commits of other processes are heard later than usual: %s", _first_line(error))
                self._broken = True
                self._ended.wait(_RETRY_S)

    def _listen(self) -> None:
        import psycopg

        with closing(psycopg.connect(self._url, autocommit=True)) as connection:
            row = connection.execute(_STORE).fetchone()
            connection.execute(f'LISTEN "{_channel(str(row[0] if row else None))}"')
            if self._broken:
                log.warning("commits of other processes are heard at once again")
            self._broken = False
            self._heard()  # of what was committed before
            while True:
                select.select([connection.fileno(), self._bell.fileno()], [], [])
                if self._ended.is_set():
                    return
                told = [note.payload for note in connection.notifies(timeout=0)]
                if any(not payload.endswith(self._me) for payload in told):
                    self._heard()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
