"""The words index for full text: FTS5 in SQLite, a GIN index over arrays of words in PostgreSQL.

Both are given the words that `flystore.model.queries.words_of` finds, so both agree with the
meaning of the query; neither keeps the text. FTS5's ``ascii`` tokenizer takes every character of
such a word for a part of it. A word of a private character and the parent's id says whose child a
node is, so that a search never looks at the children of others.
"""

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from flystore.model.queries import words_of

from ._database import Fixed, Session

_PARENT_MARK = "\ue000"  # private use: never part of a word

_SQLITE = sa.table("words", sa.column("rowid"), sa.column("words"))  # FTS5: a table has a column of its own name
_CREATE_SQLITE = "CREATE VIRTUAL TABLE words USING fts5(body, content='', detail=none, columnsize=0, tokenize='ascii')"

_WORD_LIST = sa.ARRAY(sa.Text)
_metadata = sa.MetaData()
_POSTGRES = sa.Table(
    "words",
    _metadata,
    sa.Column("node_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("words", _WORD_LIST, nullable=False),
    sa.Index("words_by_word", "words"),
)

_ADD = {
    "sqlite": Fixed(sa.text("INSERT INTO words(rowid, body) VALUES (:node_id, :words)")),
    "postgresql": Fixed(sa.text("INSERT INTO words(node_id, words) VALUES (:node_id, :words)")),
}
# An index without its content has to be told what to take out.
_REMOVE = {
    "sqlite": Fixed(sa.text("INSERT INTO words(words, rowid, body) VALUES ('delete', :node_id, :words)")),
    "postgresql": Fixed(sa.text("DELETE FROM words WHERE node_id = :node_id")),
}


def create(connection: sa.Connection) -> None:
    """Make the index of a new catalogue."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_CREATE_SQLITE)
    else:
        for index in _POSTGRES.indexes:  # not where it is made: it loads the dialect
            index.dialect_options["postgresql"]["using"] = "gin"
        _metadata.create_all(connection)


def replace(
    session: Session,
    node_id: int,
    parent_id: int,
    old: Mapping[str, Any] | None,
    new: Mapping[str, Any] | None,
) -> None:
    """Index the words of `new` metadata for a node in place of those of `old`; None is no entry."""
    before = None if old is None else words_of(old)
    wanted = None if new is None else words_of(new)
    if before == wanted:
        return
    for statement, words in ((_REMOVE, before), (_ADD, wanted)):
        if words is not None:
            params = {"node_id": node_id, "words": _stored(session, words, parent_id)}
            session.execute(statement[session.database], params)


def _stored(session: Session, words: Collection[str], parent_id: int) -> Any:
    listed = [*sorted(words), f"{_PARENT_MARK}{parent_id}"]
    return " ".join(listed) if session.database == "sqlite" else listed


def having(database: str, words: Collection[str], parent_id: int) -> tuple[sa.FromClause, Any, Any]:
    """Return (table, its column of node ids, the condition) of the children of a parent with all `words`."""
    listed = [*sorted(words), f"{_PARENT_MARK}{parent_id}"]
    if database == "sqlite":
        table = _SQLITE.alias()
        sought = " AND ".join(f'"{word}"' for word in listed)
        return table, table.c.rowid, table.c.words.op("MATCH")(sought)
    alias = _POSTGRES.alias()
    return alias, alias.c.node_id, alias.c.words.op("@>", is_comparison=True)(sa.literal(listed, _WORD_LIST))
