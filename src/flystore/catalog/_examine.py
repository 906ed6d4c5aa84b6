"""What can be said of a catalogue's database without opening it for use: nothing is made, nothing is changed."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from flystore.disk import Remark
from flystore.model.errors import FlystoreError

from ._database import connect
from ._file import _opened, version_of
from ._migrations import SCHEMA, UNFINISHED, stored_version
from ._schema import log, schema_version

LEAST_SQLITE = (3, 35, 0)
LEAST_POSTGRES = 14
MOST_SKEW_S = 1.0
"""Between the clock of the database's machine and this one, without a remark."""

_FEW_CONNECTIONS = 60


def examine_file(path: Path) -> list[Remark]:
    """Look at a catalogue in SQLite, which may be in use and need not be there yet."""
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        return [
            Remark(
                "database",
                "problem",
                f"SQLite {sqlite3.sqlite_version} is too old; use a Python with {'.'.join(map(str, LEAST_SQLITE))} "
                "or newer.",
            )
        ]
    said = f"SQLite {sqlite3.sqlite_version}"
    try:
        there = path.exists()
    except PermissionError:
        text = f"{path.parent} cannot be looked into by this user; run this as the service's user."
        return [Remark("database", "problem", text)]
    if not there:
        return [Remark("database", "ok", f"{said}; there is no catalogue yet, the first start makes it.")]
    try:
        version = version_of(path)
        remarks = [_schema_remark(version, f"{path} ({said})")]
        if 0 < version <= SCHEMA:
            remarks += _file_remarks(path)
    except FlystoreError as error:
        return [Remark("database", "problem", f"{error.message}; restore a backup, or name another directory.")]
    except sqlite3.Error as error:
        return [Remark("database", "problem", f"{path} cannot be read ({error}); restore a backup.")]
    return remarks


def _file_remarks(path: Path) -> list[Remark]:
    remarks = []
    connection = _opened(path)
    try:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            remarks.append(
                Remark("database", "ok", f"{path} has no write-ahead log yet; the next start switches it on.")
            )
        newest = connection.execute(
            f"SELECT max(received) FROM (SELECT received FROM {log.name} ORDER BY position DESC LIMIT 100)"
        ).fetchone()[0]
    finally:
        connection.close()
    ahead = (newest or 0.0) - time.time()
    if ahead > MOST_SKEW_S:
        remarks.append(
            Remark(
                "clock",
                "problem",
                f"the newest record of the catalogue was stored {ahead:,.0f} s after now, so this machine's clock was "
                "set back; set it right (chronyc makestep, timedatectl set-ntp true).",
            )
        )
    return remarks


def _schema_remark(version: int, where: str) -> Remark:
    if version == UNFINISHED:
        text = f"{where} is a copy that is not finished; run the same `flystore copy` again."
        return Remark("schema", "problem", text)
    if version > SCHEMA:
        text = f"{where} has schema {version}, this flystore knows {SCHEMA}; install the newer flystore."
        return Remark("schema", "problem", text)
    if version == 0:
        return Remark("schema", "ok", f"{where} has no tables yet; the first start makes them.")
    if version < SCHEMA:
        text = f"{where} has schema {version}; the next start brings it to {SCHEMA}, or `flystore migrate` before it."
        return Remark("schema", "warning", text)
    return Remark("schema", "ok", f"{where} has schema {version}, as this flystore.")


def examine_server(url: str) -> list[Remark]:
    """Look at a catalogue in PostgreSQL, which may be in use."""
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):  # what SQLAlchemy says has the whole address in it
        return [Remark("database", "problem", "--catalog is no address; it looks like postgresql://USER@HOST/NAME.")]
    shown = address.render_as_string(hide_password=True)
    if address.get_backend_name() != "postgresql":
        text = f"--catalog {shown} is not in PostgreSQL; it looks like postgresql://USER@HOST/NAME."
        return [Remark("database", "problem", text)]
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return [Remark("database", "problem", "psycopg is not installed; pip install 'flystore[postgres]'.")]
    engine = sa.create_engine(
        address.set(drivername="postgresql+psycopg"),
        poolclass=sa.pool.NullPool,
        connect_args={"connect_timeout": 10},
    )
    try:
        with engine.connect() as connection:
            return _server_remarks(connection, shown)
    except SQLAlchemyError as error:
        reason = (str(getattr(error, "orig", error)).strip().splitlines() or [type(error).__name__])[0]
        text = f"the database at {shown} does not answer ({reason}); start it, or correct the address and its password."
        return [Remark("database", "problem", text)]
    finally:
        engine.dispose()


def _server_remarks(connection: sa.Connection, shown: str) -> list[Remark]:
    def ask(text: str) -> Any:
        return connection.exec_driver_sql(text).scalar()

    number = int(ask("SHOW server_version_num"))
    if number // 10_000 < LEAST_POSTGRES:
        text = f"{shown} is PostgreSQL {number // 10_000}; use {LEAST_POSTGRES} or newer."
        return [Remark("database", "problem", text)]
    remarks = [Remark("database", "ok", f"{shown} answers: PostgreSQL {number // 10_000}.")]
    for setting in ("fsync", "full_page_writes"):
        if ask(f"SHOW {setting}") != "on":
            text = f"{setting} is off in {shown}, so a power cut loses or spoils what was acknowledged; switch it on."
            remarks.append(Remark("durability", "problem", text))
    if ask("SHOW synchronous_commit") == "off":
        text = f"synchronous_commit is off for this user of {shown}, so acknowledged documents may be lost; set it on."
        remarks.append(Remark("durability", "problem", text))
    encoding = ask("SHOW server_encoding")
    if encoding != "UTF8":
        text = f"the database {shown} has the encoding {encoding}; make one with ENCODING 'UTF8'."
        remarks.append(Remark("encoding", "problem", text))
    if int(ask("SHOW max_connections")) < _FEW_CONNECTIONS:
        text = f"{shown} allows {ask('SHOW max_connections')} connections, and each service takes up to 40; allow more."
        remarks.append(Remark("connections", "warning", text))
    has_tables = ask(f"SELECT to_regclass('{schema_version.name}') IS NOT NULL")
    version = int(ask(f"SELECT version FROM {schema_version.name}") or 0) if has_tables else 0
    remarks.append(_schema_remark(version, shown))
    if version < SCHEMA and not ask("SELECT has_schema_privilege(current_schema(), 'CREATE')"):
        text = f"this user may make no tables in {shown}; GRANT CREATE ON SCHEMA to it, or name another."
        remarks.append(Remark("schema", "problem", text))
    return [*remarks, _clock_remark(connection, shown)]


def _clock_remark(connection: sa.Connection, shown: str) -> Remark:
    before = time.time()
    there = float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar() or 0.0)
    after = time.time()
    skew = there - min(max(there, before), after)  # no difference where it lies between the two looks
    if abs(skew) > MOST_SKEW_S:
        text = f"the clock of {shown} is {skew:+,.1f} s off this machine's; have both follow a time server (chrony)."
        return Remark("clock", "problem" if abs(skew) > 60 else "warning", text)
    return Remark("clock", "ok", f"the clock of {shown} agrees with this machine's to {MOST_SKEW_S:g} s.")


def version_at(url: str) -> int:
    """Return the schema version of the catalogue at an address; 0 if there is none. Nothing is made or changed.

    Raises
    ------
    Unavailable
        If a PostgreSQL server does not answer.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(str(parsed.database))
        return version_of(path) if path.is_file() else 0
    with closing(connect(url, create=False)) as database, database.reading() as session:
        return stored_version(session)


def others_at(url: str) -> bool:
    """Return whether other processes have the catalogue open; where that cannot be told: no.

    In PostgreSQL anybody who is connected to the database counts.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _is_open(Path(str(parsed.database)))
    with closing(connect(url, create=False)) as database, database.reading() as session:
        found = session.compose(
            sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )
        return bool(found[0][0])


def _is_open(path: Path) -> bool:
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        # All who have it open in WAL mode share a lock on the file, of which this is the opposite.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return True
            if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):  # a backup on a medium for reading only
                return False
            raise
    return False
