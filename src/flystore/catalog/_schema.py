"""The tables, one set for both databases.

Text is ordered by code point everywhere: ``COLLATE "C"`` in PostgreSQL, SQLite's own order. JSON is
kept as text, so that key order and odd characters survive and both databases store the same bytes;
what search needs of it lies in `leaves` and the words index.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TEXT = sa.Text().with_variant(sa.TEXT(collation="C"), "postgresql")
_SECONDS: sa.Double[float] = sa.Double()


def _id() -> sa.Column:
    # An id is never used again (AUTOINCREMENT, identity): caches and feeds are keyed by it.
    return sa.Column("id", _BIG, sa.Identity(), primary_key=True)


schema_version = sa.Table(
    "flystore_schema", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False)
)

# The root is a row like any other, of path "". Wide columns come last: SQLite reads a row from its start.
nodes = sa.Table(
    "nodes",
    metadata,
    _id(),
    sa.Column("parent_id", _BIG),
    sa.Column("key", _TEXT, nullable=False),
    sa.Column("path", _TEXT, nullable=False, unique=True),
    sa.Column("family", _TEXT, nullable=False),
    sa.Column("origin", _TEXT, nullable=False),
    sa.Column("run_uid", _TEXT),
    sa.Column("indexed", sa.Boolean, nullable=False),
    sa.Column("children_indexed", sa.Boolean, nullable=False),
    sa.Column("time_created", _SECONDS, nullable=False),
    sa.Column("time_updated", _SECONDS, nullable=False),
    sa.Column("revision", _BIG, nullable=False),
    sa.Column("access_tags", _TEXT, nullable=False),
    sa.Column("specs", _TEXT, nullable=False),
    sa.Column("structure", _TEXT),
    sa.Column("metadata", _TEXT, nullable=False),
    sa.Column("external", sa.LargeBinary),
    sa.Column("overlay", _TEXT),
    sa.Index("nodes_by_parent", "parent_id", "id"),
    sqlite_autoincrement=True,
)

# Beside the nodes, because a node's row is wide and a run's birth would rewrite its parent's.
child_counts = sa.Table(
    "child_counts",
    metadata,
    sa.Column("node_id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("count", _BIG, nullable=False),
)

# One row a leaf of an indexed node; `_leaves` says what is in key and value.
leaves = sa.Table(
    "leaves",
    metadata,
    sa.Column("parent_id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("key", _TEXT, primary_key=True),
    sa.Column("value", sa.LargeBinary, primary_key=True),
    sa.Column("node_id", _BIG, primary_key=True, autoincrement=False),
    sa.Index("leaves_by_node", "node_id", "key", "value"),
    sqlite_with_rowid=False,
)

# What `_kept` keeps about the leaves: how many have each value of a key …
value_counts = sa.Table(
    "value_counts",
    metadata,
    sa.Column("parent_id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("key", _TEXT, primary_key=True),
    sa.Column("value", sa.LargeBinary, primary_key=True),
    sa.Column("count", _BIG, nullable=False),
    sqlite_with_rowid=False,
)

# … but for keys that have too many different ones …
many_valued = sa.Table(
    "many_valued",
    metadata,
    sa.Column("parent_id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("key", _TEXT, primary_key=True),
    sqlite_with_rowid=False,
)

# … and between which bounds the values of neighbouring children lie.
leaf_zones = sa.Table(
    "leaf_zones",
    metadata,
    sa.Column("parent_id", _BIG, primary_key=True, autoincrement=False),
    sa.Column("key", _TEXT, primary_key=True),
    sa.Column("zone", _BIG, primary_key=True, autoincrement=False),
    sa.Column("low", sa.LargeBinary, nullable=False),
    sa.Column("high", sa.LargeBinary, nullable=False),
    sa.Index("leaf_zones_by_low", "parent_id", "key", "low", "zone"),
    sa.Index("leaf_zones_by_high", "parent_id", "key", "high", "zone"),
    sqlite_with_rowid=False,
)

data_sources = sa.Table(
    "data_sources",
    metadata,
    _id(),
    sa.Column("node_id", _BIG, sa.ForeignKey("nodes.id", ondelete="CASCADE"), nullable=False, unique=True),
    sa.Column("family", _TEXT, nullable=False),
    sa.Column("mimetype", _TEXT, nullable=False),
    sa.Column("management", _TEXT, nullable=False),
    sa.Column("structure", _TEXT, nullable=False),
    sa.Column("parameters", _TEXT, nullable=False),
    sa.Column("properties", _TEXT, nullable=False),
    sqlite_autoincrement=True,
)

NO_NUM = -1
"""Stands for a `num` of None, because a unique index takes nulls for different."""

assets = sa.Table(
    "assets",
    metadata,
    _id(),
    sa.Column("data_source_id", _BIG, sa.ForeignKey("data_sources.id", ondelete="CASCADE"), nullable=False),
    sa.Column("parameter", _TEXT, nullable=False),
    sa.Column("num", _BIG, nullable=False),
    sa.Column("data_uri", _TEXT, nullable=False),
    sa.Column("is_directory", sa.Boolean, nullable=False),
    sa.Column("size", _BIG),
    sa.UniqueConstraint("data_source_id", "parameter", "num"),
    sqlite_autoincrement=True,
)

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("node_id", _BIG, sa.ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", _BIG, primary_key=True, autoincrement=False),
    sa.Column("time_updated", _SECONDS, nullable=False),
    sa.Column("specs", _TEXT, nullable=False),
    sa.Column("access_tags", _TEXT, nullable=False),
    sa.Column("metadata", _TEXT, nullable=False),
)

observations = sa.Table(
    "observations",
    metadata,
    sa.Column("node_id", _BIG, sa.ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("num", _BIG, primary_key=True, autoincrement=False),
    sa.Column("time", _SECONDS, nullable=False),
    sa.Column("status", _TEXT, nullable=False),
    sa.Column("rows", _BIG),
    sa.Column("fingerprint", _TEXT, nullable=False),
    sa.Column("detail", _TEXT, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("uid", _TEXT, primary_key=True),
    sa.Column("node_id", _BIG),
    sa.Column("writer", _TEXT, nullable=False),
    sa.Column("watermark", _BIG, nullable=False),
    sa.Column("projected", _BIG, nullable=False),
    sa.Column("epoch", _BIG, nullable=False),
    sa.Column("open", sa.Boolean, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("last_received", _SECONDS, nullable=False),
    sa.Column("start_time", _SECONDS),
    sa.Column("verdict", _TEXT),
    sa.Column("closed", _TEXT),
    sa.Column("state_version", sa.Integer, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Index("runs_by_silence", "open", "last_received"),
    sa.Index("runs_by_verdict", "verdict", "node_id"),
    sa.Index("runs_by_node", "node_id"),
)

EDITED = "edit-metadata"
"""`log.action` of edits of nodes that were made from documents; rebuilding a run looks for its own."""

ORPHANS = ""
"""`log.run_uid` of documents that belong to no run; operations have null."""

log = sa.Table(
    "log",
    metadata,
    sa.Column("position", _BIG, primary_key=True, autoincrement=False),
    sa.Column("kind", _TEXT, nullable=False),
    sa.Column("run_uid", _TEXT),
    sa.Column("first_ordinal", _BIG),
    sa.Column("count", _BIG),
    sa.Column("epoch", _BIG),
    sa.Column("path", _TEXT),
    sa.Column("action", _TEXT),
    sa.Column("received", _SECONDS, nullable=False),
    sa.Column("hashes", sa.LargeBinary),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Index("log_by_run", "run_uid", "first_ordinal", unique=True),
    sa.Index("log_by_kind", "kind", "position"),
)
log_edits = sa.Index(
    "log_edits",
    log.c.path,
    log.c.position,
    sqlite_where=log.c.action == EDITED,
)
"""Only edits are in it: batches and the other operations cost nothing."""


def describe_for_postgresql() -> None:
    """Say what only PostgreSQL is told: to say it of an index loads that dialect, 30 ms and 2 MB of each start."""
    log_edits.dialect_options["postgresql"]["where"] = log.c.action == EDITED


# Where arrays were extended: whoever saw the same end as another must not write over what that one wrote.
extensions = sa.Table(
    "extensions",
    metadata,
    sa.Column("node_id", _BIG, sa.ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    sa.Column("place", _TEXT, primary_key=True),
    sqlite_with_rowid=False,
)

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("position", _BIG, primary_key=True, autoincrement=False),
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("path", _TEXT, nullable=False),
    sa.Column("run_uid", _TEXT),
    sa.Column("what", _TEXT, nullable=False),
    sa.Column("detail", _TEXT, nullable=False),
    sa.Index("changes_by_run", "run_uid", "position", "seq"),
    sqlite_with_rowid=False,
)

# One row. Locked by the last statements of a transaction until its commit: positions are commit order.
# `store` is drawn once and tells this log from every other.
feed = sa.Table(
    "feed",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", _BIG, nullable=False),
    sa.Column("store", _TEXT),
)

segments = sa.Table(
    "segments",
    metadata,
    _id(),
    sa.Column("series", _TEXT, nullable=False),
    sa.Column("first_row", _BIG, nullable=False),
    sa.Column("rows", _BIG, nullable=False),
    sa.Column("received", _SECONDS, nullable=False),
    sa.Column("uri", _TEXT),
    sa.Column("body", sa.LargeBinary),
    sa.Column("crc", _BIG),
    sa.UniqueConstraint("series", "first_row"),
    sqlite_autoincrement=True,
)
