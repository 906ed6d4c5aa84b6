"""A catalogue in SQLite as a file: copied while others write to it, and checked page by page."""

import sqlite3
from contextlib import closing
from pathlib import Path

from flystore.model.errors import Damaged, Misconfigured

from ._database import BUSY_S, plain_errors
from ._schema import schema_version

_MOST_PROBLEMS = 100


def copy_catalog(source: Path, target: Path) -> None:
    """Copy the catalogue in the file `source` as it is at one moment, commits included that are not in the file yet.

    Writers of other processes go on. The copy is one file that needs no other; it is not synced.

    Raises
    ------
    Misconfigured
        If there is no such file.
    Damaged
        If the file is no catalogue, or so damaged that it cannot be copied.
    Unavailable
        If the disk of the copy is full.
    """
    if not source.is_file():
        raise Misconfigured(f"there is no catalogue at {source}", path=str(source))
    with plain_errors(), closing(_opened(source)) as given, closing(sqlite3.connect(target)) as copy:
        given.backup(copy)  # in one step: a writer between two would make it begin again
    make_one_file(target)


def make_one_file(path: Path) -> None:
    """Move all of a catalogue that nobody has open into its one file; it stays so until it is opened to be served."""
    with plain_errors(), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def version_of(path: Path) -> int:
    """Return the schema version of the catalogue in a file; 0 if there is none.

    Raises
    ------
    Damaged
        If the file cannot be read.
    """
    with plain_errors(), closing(_opened(path)) as connection:
        known = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (schema_version.name,)).fetchone()
        if known is None:
            return 0
        row = connection.execute(f"SELECT version FROM {schema_version.name}").fetchone()
        if row is None:
            raise Damaged(f"the catalogue {path} has lost its schema version", path=str(path))
        return int(row[0])


def has_node(path: Path, node_id: int) -> bool:
    """Return whether the catalogue in a file has a node of this id now."""
    with plain_errors(), closing(_opened(path)) as connection:
        return connection.execute("SELECT 1 FROM nodes WHERE id = ?", (node_id,)).fetchone() is not None


def problems_in_file(path: Path) -> list[str]:
    """Return what SQLite itself finds wrong with the pages of a catalogue, up to 100 sentences; none if all is well.

    It looks at the form of pages and at whether indexes have what tables have, not at values: those carry no checksum.
    """
    try:
        with closing(_opened(path)) as connection:
            rows = connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall()
            found = [str(row[0]) for row in rows if row[0] != "ok"]
            rows = connection.execute("PRAGMA foreign_key_check").fetchall()
            return found + [f"row {row[1]} of {row[0]} belongs to no row of {row[2]}" for row in rows[:_MOST_PROBLEMS]]
    except sqlite3.Error as error:
        return [str(error)]


def _opened(path: Path) -> sqlite3.Connection:
    # Read-only: the last connection that could write would move the write-ahead log into the file when it closes.
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
