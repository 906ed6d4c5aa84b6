"""A catalogue copied into another database, row by row as it stands: ids, positions and checksums stay what they are.

Rows go in the order of their keys, a few megabytes a transaction, and each transaction notes how far it came. So a copy
that is killed goes on where it was. Until the end the target bears a schema version that no program opens. At the end
all rows of both are read again and compared.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from flystore.disk.failpoints import reach
from flystore.model.errors import Conflict, Misconfigured

from . import _words
from ._database import Database, Session, connect, plain_errors
from ._file import _opened
from ._json import from_json
from ._migrations import SCHEMA, UNFINISHED, stored_version
from ._schema import feed, log, metadata, nodes, schema_version

BATCH_BYTES = 4 << 20
BATCH_ROWS = 2_000

_state = sa.Table(
    "flystore_copying",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

TABLES = [table for table in metadata.sorted_tables if table.name != schema_version.name]


class Origin(msgspec.Struct, frozen=True):
    """Of what a copy is: the store's name, and how far its log went."""

    store: str
    position: int


class Copied(msgspec.Struct):
    """How far a copy came.

    Attributes
    ----------
    last : dict
        Table -> key of the last row that is there.
    done : list of str
        Tables that are there whole.
    """

    origin: Origin
    last: dict[str, list[Any]] = {}
    done: list[str] = []


class Compared(msgspec.Struct, frozen=True):
    """What a table holds: how many rows, and a SHA-256 over all of them in the order of their keys, in hex."""

    table: str
    rows: int
    sha256: str


class Source:
    """A catalogue that is read and never changed, as of one moment in PostgreSQL.

    Raises
    ------
    Misconfigured
        If there is none, or its schema is another than this program's.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._connection: sa.Connection
        if parsed.get_backend_name() == "sqlite":
            path = Path(str(parsed.database))
            if not path.is_file():
                raise Misconfigured(f"there is no catalogue at {path}; name the directory of a store")
            self._engine = sa.create_engine("sqlite://", creator=lambda: _opened(path), poolclass=sa.pool.StaticPool)
            self._connection = self._engine.connect()
        else:
            connect(url, create=False).close()  # whose words for what is wrong are better than the driver's
            self._engine = sa.create_engine(parsed.set(drivername="postgresql+psycopg"), poolclass=sa.pool.NullPool)
            self._connection = self._engine.connect().execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        try:
            with plain_errors():
                self._require_current(url)
                name, position = self._connection.execute(sa.select(feed.c.store, feed.c.position)).one()
                newest = self._connection.execute(sa.select(sa.func.max(log.c.position))).scalar()
        except BaseException:
            self.close()
            raise
        self.origin = Origin(name, max(position, newest or 0))

    def _require_current(self, url: str) -> None:
        shown = make_url(url).render_as_string(hide_password=True)
        if not sa.inspect(self._connection).has_table(schema_version.name):
            raise Misconfigured(f"there is no catalogue at {shown}")
        version = self._connection.execute(sa.select(schema_version.c.version)).scalar()
        if version == UNFINISHED:
            raise Misconfigured(f"{shown} is itself a copy that is not finished; finish that one first")
        if version != SCHEMA:
            raise Misconfigured(f"{shown} has schema {version}, a copy needs {SCHEMA}; run `flystore migrate` first")

    def rows(self, table: sa.Table, after: Sequence[Any] | None = None) -> Iterator[dict[str, Any]]:
        """Yield rows in the order of their keys, those after a key if one is given."""
        return _rows(self._connection, table, after)

    def next_id(self, table: sa.Table) -> int | None:
        """Return the last id that was given to a row of a table, deleted ones included; None: it gives none."""
        return _last_id(self._connection, table)

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


def _rows(connection: sa.Connection, table: sa.Table, after: Sequence[Any] | None) -> Iterator[dict[str, Any]]:
    keys = list(table.primary_key.columns)
    statement = sa.select(table).order_by(*keys)
    if after is not None:
        bound = [sa.literal(value, column.type) for value, column in zip(after, keys, strict=True)]
        statement = statement.where(sa.tuple_(*keys) > sa.tuple_(*bound))
    found = connection.execution_options(stream_results=True, yield_per=64).execute(statement)
    try:
        for row in found:
            yield dict(row._mapping)
    finally:
        found.close()


class Target:
    """A catalogue that is being made; made anew, or gone on with.

    Raises
    ------
    Conflict
        If there is a catalogue that is no copy of this source, or of another state of it.
    """

    def __init__(self, url: str, origin: Origin) -> None:
        self._database: Database = connect(url, create=True)
        self.finished = False
        try:
            self.copied = self._begun(origin, make_url(url).render_as_string(hide_password=True))
        except BaseException:
            self.close()
            raise

    def _begun(self, origin: Origin, shown: str) -> Copied:
        with self._database.reading() as session:
            version = stored_version(session)
            if version == SCHEMA:
                name, position = session.connection.execute(sa.select(feed.c.store, feed.c.position)).one()
                if (name, position) != (origin.store, origin.position):
                    raise Conflict(f"{shown} holds another store; copy into an empty place. Nothing was changed.")
                self.finished = True
                return Copied(origin, done=[str(table.name) for table in TABLES])
            if version == UNFINISHED:
                content = session.connection.execute(sa.select(_state.c.state)).scalar()
                copied = msgspec.msgpack.decode(content or b"", type=Copied)
                if copied.origin != origin:
                    raise Conflict(
                        f"{shown} holds the beginning of another copy, or the source was written to since; end what "
                        "writes to the source, remove the target, and begin anew"
                    )
                return copied
            if version != 0:
                raise Conflict(f"{shown} holds a catalogue of schema {version}; copy into an empty place")
        with self._database.writing() as session:
            if sa.inspect(session.connection).get_table_names():
                raise Conflict(f"{shown} holds tables already; copy into an empty place. Nothing was changed.")
            metadata.create_all(session.connection)
            _words.create(session.connection)
            _state.create(session.connection)
            copied = Copied(origin)
            session.connection.execute(_state.insert().values(id=1, state=msgspec.msgpack.encode(copied)))
            session.connection.execute(schema_version.insert().values(version=UNFINISHED))
        return copied

    def fill(self, source: Source, tell: Callable[[str, int], None] | None = None) -> None:
        """Copy what is not there yet; `tell` is called with a table's name and how many rows were added."""
        for table in TABLES:
            if table.name in self.copied.done:
                continue
            for batch in _batches(source.rows(table, self.copied.last.get(table.name))):
                self._add(table, batch)
                if tell is not None:
                    tell(table.name, len(batch))
            self._end(table, source.next_id(table))

    def _add(self, table: sa.Table, batch: list[dict[str, Any]]) -> None:
        reach("copy.before_batch")
        last = [batch[-1][column.name] for column in table.primary_key.columns]
        with self._database.writing() as session:
            session.connection.execute(table.insert(), batch)
            if table is nodes:
                for row in batch:
                    if row["indexed"] and row["parent_id"] is not None:
                        _words.replace(session, row["id"], row["parent_id"], None, from_json(row["metadata"]))
            self.copied.last[str(table.name)] = last
            self._note(session)
        reach("copy.after_batch")

    def _end(self, table: sa.Table, last_id: int | None) -> None:
        with self._database.writing() as session:
            if last_id is not None:
                _set_last_id(session.connection, table, last_id)
            self.copied.done.append(str(table.name))
            self._note(session)
        reach("copy.after_table")

    def _note(self, session: Session) -> None:
        session.connection.execute(_state.update().values(state=msgspec.msgpack.encode(self.copied)))

    def compared(self) -> Iterator[Compared]:
        """Yield what each table holds."""
        with self._database.reading() as session:
            for table in TABLES:
                yield digest(table, _rows(session.connection, table, None))

    def finish(self) -> None:
        """Make it a catalogue that can be served."""
        if self.finished:
            return
        reach("copy.before_finish")
        with self._database.writing() as session:
            _state.drop(session.connection)
            session.connection.execute(schema_version.delete())
            session.connection.execute(schema_version.insert().values(version=SCHEMA))
        reach("copy.after_finish")

    def close(self) -> None:
        self._database.close()


def digest(table: sa.Table, rows: Iterator[dict[str, Any]]) -> Compared:
    """Return a sum of all rows of a table."""
    summed, count = hashlib.sha256(), 0
    names = [column.name for column in table.columns]
    encoder = msgspec.msgpack.Encoder()
    for row in rows:
        summed.update(encoder.encode([row[name] for name in names]))
        count += 1
    return Compared(str(table.name), count, summed.hexdigest())


def digest_of_source(source: Source, name: str) -> Compared:
    """Return a sum of all rows of a source's table."""
    table = metadata.tables[name]
    return digest(table, source.rows(table))


@contextmanager
def opened_source(url: str) -> Iterator[Source]:
    """Give a catalogue to copy from."""
    with plain_errors(), closing(Source(url)) as source:
        yield source


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, (bytes, str)))
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _gives_ids(table: sa.Table) -> bool:
    return "id" in table.columns and table.columns["id"].identity is not None


def _last_id(connection: sa.Connection, table: sa.Table) -> int | None:
    if not _gives_ids(table):
        return None
    if connection.dialect.name == "sqlite":
        found = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,)).scalar()
        return int(found or 0)
    sequence = connection.execute(sa.text("SELECT pg_get_serial_sequence(:name, 'id')"), {"name": table.name}).scalar()
    last, called = connection.exec_driver_sql(f"SELECT last_value, is_called FROM {sequence}").one()
    return int(last) if called else 0


def _set_last_id(connection: sa.Connection, table: sa.Table, last: int) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
        connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, last))
        return
    connection.execute(
        sa.text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last, :called)"),
        {"name": table.name, "last": max(1, last), "called": last > 0},
    )
