"""Bringing a catalogue to the schema that this version knows, at open.

Migration n takes the schema from version n - 1 to n, in a transaction of its own: after a crash the
catalogue is at one of the versions, and the next open goes on from there. A newer catalogue is refused.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from flystore.model.errors import Misconfigured

from . import _kept, _words
from ._database import Database, Session
from ._schema import (
    child_counts,
    extensions,
    feed,
    leaf_zones,
    log_edits,
    many_valued,
    metadata,
    nodes,
    schema_version,
    segments,
    value_counts,
)

Migration = Callable[[sa.Connection], None]


def _first(connection: sa.Connection) -> None:
    """Make everything, with an empty root."""
    metadata.create_all(connection)
    _words.create(connection)
    connection.execute(feed.insert().values(id=1, position=0))
    root = (
        nodes.insert()
        .values(
            parent_id=None,
            key="",
            path="",
            family="container",
            origin="protocol",
            run_uid=None,
            indexed=False,
            children_indexed=True,
            time_created=0.0,
            time_updated=0.0,
            revision=1,
            access_tags="[]",
            specs="[]",
            structure=None,
            metadata="{}",
            external=None,
        )
        .returning(nodes.c.id)
    )
    root_id = connection.execute(root).scalar_one()
    connection.execute(child_counts.insert().values(node_id=root_id, count=0))


def _second(connection: sa.Connection) -> None:
    """Give segments a checksum.

    Those that are there have none and stay so, *unverified*, until they are written again: `flystore rebuild`
    does that for all that came as documents. To sum them here would vouch for whatever they are by now.
    """
    _add_column(connection, segments.c.crc)


def _third(connection: sa.Connection) -> None:
    """Give nodes made from documents a place for what people edited, and the log an index of such edits."""
    _add_column(connection, nodes.c.overlay)
    log_edits.create(connection, checkfirst=True)


def _add_column(connection: sa.Connection, column: sa.Column) -> None:
    table = column.table.name
    if column.name in {known["name"] for known in sa.inspect(connection).get_columns(table)}:
        return  # `_first` makes the tables of today
    kind = column.type.compile(connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}")


def _fourth(connection: sa.Connection) -> None:
    """Count the values of the keys, and note between which bounds neighbours lie."""
    for table in (value_counts, many_valued, leaf_zones):
        table.create(connection, checkfirst=True)
    _kept.recount(connection)


def _fifth(connection: sa.Connection) -> None:
    """Give the store a name, so that a place in its log is not taken for one in another's."""
    _add_column(connection, feed.c.store)
    connection.execute(feed.update().values(store=secrets.token_hex(8)))


def _sixth(connection: sa.Connection) -> None:
    """Make a place to note where arrays are extended, for all processes to see."""
    extensions.create(connection, checkfirst=True)


MIGRATIONS: tuple[Migration, ...] = (_first, _second, _third, _fourth, _fifth, _sixth)

SCHEMA = len(MIGRATIONS)
"""The schema version that this program knows."""

UNFINISHED = 1_000_000_000
"""Stands for the version of a catalogue that a copy is being made into."""


class Step(NamedTuple):
    """One migration: the version that it leads to, and what it does, in a sentence."""

    version: int
    what: str


def steps_from(version: int, migrations: Sequence[Migration] = MIGRATIONS) -> list[Step]:
    """Return what is to be done to a catalogue of a version; nothing for one that is not there yet."""
    if version == 0:
        return []
    said = [(step.__doc__ or "Change the schema.").partition("\n")[0] for step in migrations]
    return [Step(number + 1, said[number]) for number in range(version, len(migrations))]


def migrate(
    database: Database,
    migrations: Sequence[Migration] = MIGRATIONS,
    *,
    create: bool,
    tell: Callable[[Step, bool], None] | None = None,
) -> None:
    """Bring a catalogue to version ``len(migrations)``, one version after the other, each whole or not at all.

    Parameters
    ----------
    tell : callable, optional
        Called with each step before it is done, with False, and after, with True.

    Raises
    ------
    Misconfigured
        If the catalogue is newer than this program, or there is none and `create` is false.
    """
    known = len(migrations)
    with database.reading() as session:
        if stored_version(session) == known:
            return
    while _one_more(database, migrations, create, tell):
        pass


def _one_more(
    database: Database, migrations: Sequence[Migration], create: bool, tell: Callable[[Step, bool], None] | None
) -> bool:
    """Do the next step, or all of them where there is nothing yet; return whether there are more."""
    known = len(migrations)
    with database.writing() as session:
        database.lock_run(session, "migration")  # other processes may be opening it too
        version = stored_version(session)
        if version == UNFINISHED:
            raise Misconfigured("this catalogue is a copy that is not finished; run the same `flystore copy` again")
        if version > known:
            raise Misconfigured(
                f"this catalogue was written by a newer flystore (schema {version}; this program knows "
                f"{known}). Install the newer flystore; nothing was changed.",
                stored=version,
                known=known,
            )
        if version == 0 and not create:
            raise Misconfigured("there is no catalogue in this database")
        if version == known:
            return False
        reached = known if version == 0 else version + 1
        told = steps_from(version, migrations)[:1]
        for step in told if tell is not None else ():
            tell(step, False)  # type: ignore[misc]
        for migration in migrations[version:reached]:
            migration(session.connection)
        session.connection.execute(schema_version.delete())
        session.connection.execute(schema_version.insert().values(version=reached))
    for step in told if tell is not None else ():
        tell(step, True)  # type: ignore[misc]
    return reached < known


def stored_version(session: Session) -> int:
    """Return the version stored; 0 if there is no catalogue."""
    if not sa.inspect(session.connection).has_table(schema_version.name):
        return 0
    return int(session.compose(sa.select(schema_version.c.version))[0][0])
