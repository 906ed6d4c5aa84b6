"""Writing: everything within one transaction, and its place in the log.

Positions are commit order. A transaction collects its log records and changes, and gets their
positions from the feed's one row as the last thing it does; that row stays locked until the commit,
so a later position is never visible before an earlier one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa

from flystore.model.errors import Conflict, InvalidRequest, NotFound
from flystore.model.structures import BLUESKY_RUN, DataSource, Family, Spec

from . import _leaves, _words
from ._database import Database, Fixed, Session
from ._json import from_json, to_json
from ._log import HASH_BYTES
from ._nodes import LAST_CHARACTER, below, specs_text
from ._rows import Node, Observation, Origin, Path, Run, Segment, What, path_text
from ._runs import FIELDS as RUN_FIELDS
from ._schema import (
    NO_NUM,
    ORPHANS,
    assets,
    changes,
    child_counts,
    data_sources,
    feed,
    leaves,
    log,
    nodes,
    observations,
    revisions,
    runs,
    segments,
)
from ._snapshot import Snapshot

PATH_LIMIT = 2_000
"""Longest path in UTF-8 bytes; PostgreSQL indexes no more than 2,704."""


def _insert(table: sa.Table, *columns: str) -> sa.Insert:
    return sa.insert(table).values({name: sa.bindparam(name) for name in columns})


def _upsert(table: sa.Table, keys: Sequence[str], columns: Sequence[str]) -> Fixed:
    """Return ``INSERT … ON CONFLICT DO UPDATE`` of `columns`, or ``DO NOTHING`` without any."""

    def build(insert: Callable[..., Any]) -> Any:
        statement = insert(table).values({name: sa.bindparam(name) for name in (*keys, *columns)})
        if not columns:
            return statement.on_conflict_do_nothing(index_elements=keys)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in columns}
        )

    return Fixed(build)


_NODE_VALUES = (
    "family",
    "run_uid",
    "time_updated",
    "revision",
    "access_tags",
    "specs",
    "structure",
    "metadata",
)
_NEW_NODE = Fixed(
    _insert(
        nodes,
        "parent_id",
        "key",
        "path",
        "origin",
        "indexed",
        "children_indexed",
        "time_created",
        "external",
        *_NODE_VALUES,
    ).returning(nodes.c.id)
)
_CHANGE_NODE = Fixed(
    sa.update(nodes)
    .where(nodes.c.id == sa.bindparam("of"))
    .values({name: sa.bindparam(name) for name in (*_NODE_VALUES, "external")})
)
_LOCK_NODE = Fixed(sa.select(nodes.c.id).where(nodes.c.path == sa.bindparam("path")).with_for_update())
_LOCK_RUN_ROW = Fixed(sa.select(runs.c.uid).where(runs.c.uid == sa.bindparam("of")).with_for_update())
_NEW_LEAF = Fixed(_insert(leaves, "parent_id", "key", "value", "node_id"))
_NO_LEAF = Fixed(
    sa.delete(leaves).where(
        leaves.c.parent_id == sa.bindparam("parent_id"),
        leaves.c.key == sa.bindparam("key"),
        leaves.c.value == sa.bindparam("value"),
        leaves.c.node_id == sa.bindparam("node_id"),
    )
)
_NEW_COUNT = Fixed(_insert(child_counts, "node_id", "count"))
_COUNT_CHILDREN = Fixed(
    sa.update(child_counts)
    .where(child_counts.c.node_id == sa.bindparam("of"))
    .values(count=child_counts.c.count + sa.bindparam("more"))
)
_SOURCE_VALUES = ("family", "mimetype", "management", "structure", "parameters", "properties")
_PUT_SOURCE = _upsert(data_sources, ("node_id",), _SOURCE_VALUES)
_NEW_ASSET = Fixed(
    lambda insert: (
        insert(assets)
        .values(
            {
                name: sa.bindparam(name)
                for name in ("data_source_id", "parameter", "num", "data_uri", "is_directory", "size")
            }
        )
        .on_conflict_do_nothing(index_elements=["data_source_id", "parameter", "num"])
    )
)
_PUT_OBSERVATION = _upsert(
    observations, ("node_id", "num"), ("time", "status", "rows", "fingerprint", "detail")
)
_PUT_RUN = _upsert(runs, ("uid",), [name for name in RUN_FIELDS if name != "uid"])
_RUN_HAS_NODE = Fixed(
    sa.update(runs).where(runs.c.uid == sa.bindparam("of")).values(node_id=sa.bindparam("node_id"))
)
_NEW_REVISION = Fixed(
    _insert(revisions, "node_id", "number", "time_updated", "specs", "access_tags", "metadata")
)
_LAST_REVISION = Fixed(
    sa.select(sa.func.max(revisions.c.number)).where(revisions.c.node_id == sa.bindparam("of"))
)
_NO_REVISION = Fixed(
    sa.delete(revisions).where(
        revisions.c.node_id == sa.bindparam("of"), revisions.c.number == sa.bindparam("at")
    )
)
_NEW_SEGMENT = Fixed(_insert(segments, "series", "first_row", "rows", "received", "uri", "body"))
_SEGMENTS_WITHIN = Fixed(
    sa.select(segments.c.first_row, segments.c.rows)
    .where(
        segments.c.series == sa.bindparam("of"),
        segments.c.first_row >= sa.bindparam("low"),
        segments.c.first_row < sa.bindparam("high"),
    )
    .order_by(segments.c.first_row)
)
_NO_SEGMENTS = Fixed(
    sa.delete(segments).where(
        segments.c.series == sa.bindparam("of"),
        segments.c.first_row >= sa.bindparam("low"),
        segments.c.first_row < sa.bindparam("high"),
    )
)
_NEXT_POSITION = Fixed(
    sa.update(feed).values(position=feed.c.position + sa.bindparam("n")).returning(feed.c.position)
)
_LOG_VALUES = (
    "kind",
    "run_uid",
    "first_ordinal",
    "count",
    "epoch",
    "path",
    "action",
    "received",
    "hashes",
    "body",
)
_NEW_RECORD = Fixed(_insert(log, "position", *_LOG_VALUES))
_NEW_CHANGE = Fixed(_insert(changes, "position", "seq", "path", "run_uid", "what", "detail"))
_FOREVER = 1 << 62


class Transaction(Snapshot):
    """Reads and writes that become visible together, or not at all; valid within ``with catalog.write()``.

    What is written can be read back at once, except log records and changes: they have no position
    before the commit.
    """

    def __init__(self, database: Database, session: Session, clock: Callable[[], float]) -> None:
        super().__init__(session)
        self._database = database
        self._clock = clock
        self._records: list[dict[str, Any]] = []
        self._changes: list[tuple[int, dict[str, Any]]] = []
        self._more_children: Counter[int] = Counter()
        self._run_nodes: dict[str, int] = {}
        self._finished = False

    # --- the log ---

    def append_documents(
        self,
        uid: str | None,
        first_ordinal: int,
        count: int,
        epoch: int,
        hashes: bytes,
        body: bytes,
        received: float,
    ) -> None:
        """Add a batch of documents to the log.

        Parameters
        ----------
        uid
            The run; None for documents of no run.
        first_ordinal
            Where `log_end` is; what fits elsewhere is refused at the latest by the database.
        hashes
            16 bytes a document.
        received
            Unix seconds.

        Raises
        ------
        InvalidRequest
            If the numbers do not belong together.
        Conflict
            If a record that begins there is stored already (raised at the commit).
        """
        if count < 1 or first_ordinal < 0 or len(hashes) != HASH_BYTES * count:
            raise InvalidRequest(
                f"{count} documents from ordinal {first_ordinal} on with {len(hashes)} bytes of hashes "
                f"make no batch; there are {HASH_BYTES} bytes a document"
            )
        self._add_record(
            kind="documents",
            run_uid=ORPHANS if uid is None else uid,
            first_ordinal=first_ordinal,
            count=count,
            epoch=epoch,
            hashes=hashes,
            body=body,
            received=received,
        )

    def append_operation(self, path: Sequence[str], action: str, body: bytes, received: float) -> None:
        """Add an operation of the Tiled protocol on the node at `path` to the log."""
        self._add_record(
            kind="operation", path=path_text(path), action=storable(action), body=body, received=received
        )

    def note_change(
        self, path: Sequence[str], what: What, detail: Mapping[str, Any], *, run_uid: str | None = None
    ) -> None:
        """Tell followers of a change that no other method tells of."""
        change = {"path": path_text(path), "run_uid": run_uid, "what": what, "detail": to_json(detail)}
        self._changes.append((max(0, len(self._records) - 1), change))

    # --- nodes ---

    def put_node(
        self,
        path: Sequence[str],
        family: Family,
        specs: Iterable[Spec],
        metadata: Mapping[str, Any],
        structure: Mapping[str, Any] | None,
        *,
        external: bytes | None = None,
        origin: Origin = "protocol",
        run_uid: str | None = None,
        access_tags: Iterable[str] | None = None,
        exist_ok: bool = True,
    ) -> Node:
        """Make a node or bring it up to date; it keeps its id and the time it was made.

        Parameters
        ----------
        structure
            Wire form; None for containers.
        run_uid
            The run the node belongs to. Its topmost node becomes `Run.node_id`.
        access_tags
            None: none for a new node, unchanged for an old one.
        exist_ok
            With false, a node that exists is a `Conflict`.

        Raises
        ------
        NotFound
            If the parent does not exist.
        Conflict
            If there is a node and `exist_ok` is false, or one of another origin or run; the message
            is its path, ``/a/b``. If the parent is not a container.
        InvalidRequest
            If a segment cannot be a key.
        """
        path = check_path(path)
        self._session.execute(_LOCK_NODE, {"path": path_text(path)})
        old = self.node(path)
        if old is not None and (not exist_ok or (path and (old.origin != origin or old.run_uid != run_uid))):
            raise Conflict(f"/{path_text(path)}", path=list(path))
        tags = tuple(access_tags) if access_tags is not None else (old.access_tags if old else ())
        wanted = _Wanted(family, tuple(specs), to_json(metadata), _structure_text(structure), external, tags)
        if old is None:
            return self._create(path, wanted, origin, run_uid)
        return self._update(old, wanted)

    def set_metadata(
        self,
        path: Sequence[str],
        *,
        metadata: Mapping[str, Any] | None = None,
        specs: Iterable[Spec] | None = None,
        access_tags: Iterable[str] | None = None,
        keep_revision: bool = True,
    ) -> Node:
        """Change what is not None, and with `keep_revision` keep what was before.

        Raises
        ------
        NotFound
            If there is no node at `path`.
        """
        old = self._existing(path)
        wanted = msgspec.structs.replace(
            _Wanted.of(old),
            metadata=to_json(old.metadata if metadata is None else metadata),
            specs=old.specs if specs is None else tuple(specs),
            access_tags=old.access_tags if access_tags is None else tuple(access_tags),
        )
        if keep_revision:
            row = self._session.one(_LAST_REVISION, {"of": old.id})
            revision = {
                "node_id": old.id,
                "number": 1 + (row[0] or 0 if row else 0),
                "time_updated": old.time_updated,
                "specs": specs_text(old.specs),
                "access_tags": to_json(old.access_tags),
                "metadata": to_json(old.metadata),
            }
            self._session.execute(_NEW_REVISION, revision)
        return self._update(old, wanted)

    def set_structure(self, path: Sequence[str], structure: Mapping[str, Any] | None) -> Node:
        """Change a node's structure.

        Raises
        ------
        NotFound
            If there is no node at `path`.
        """
        old = self._existing(path)
        return self._update(
            old, msgspec.structs.replace(_Wanted.of(old), structure=_structure_text(structure))
        )

    def delete_revision(self, path: Sequence[str], number: int) -> None:
        """Forget a revision.

        Raises
        ------
        NotFound
            If there is no such node or revision.
        """
        node = self._existing(path)
        if self._session.execute(_NO_REVISION, {"of": node.id, "at": number}).rowcount == 0:
            raise NotFound(f"/{path_text(path)} has no revision {number}", path=list(path), number=number)

    def delete_node(self, path: Sequence[str], *, recursive: bool = False) -> int:
        """Remove a node, and with `recursive` all below it; return how many nodes that were.

        Their data sources, observations, revisions and segments go with them; runs among them
        become tombstones. The log keeps what it has.

        Raises
        ------
        NotFound
            If there is no node at `path`.
        Conflict
            If it has children and `recursive` is false.
        InvalidRequest
            If it is the root.
        """
        node = self._existing(path)
        if not node.path:
            raise InvalidRequest("the root cannot be deleted")
        if not recursive and self._count_children(node.id):
            raise Conflict(
                f"/{path_text(path)} has children; delete them first, or delete with recursive=true",
                path=list(path),
            )
        low, high = below(node.path)
        text = path_text(node.path)
        inside = sa.or_(nodes.c.path == text, sa.and_(nodes.c.path >= low, nodes.c.path < high))
        self._unindex(inside)
        ids = sa.select(nodes.c.id).where(inside)
        connection = self._session.connection
        connection.execute(sa.delete(leaves).where(leaves.c.node_id.in_(ids)))
        connection.execute(sa.delete(child_counts).where(child_counts.c.node_id.in_(ids)))
        connection.execute(
            sa.update(runs)
            .where(runs.c.node_id.in_(ids))
            .values(deleted=True, open=False, node_id=None, state=b"", verdict=None)
        )
        series = segments.c.series
        connection.execute(
            sa.delete(segments).where(sa.or_(series == text, sa.and_(series >= low, series < high)))
        )
        removed = connection.execute(sa.delete(nodes).where(inside)).rowcount
        if node.parent_id is not None:
            self._more_children[node.parent_id] -= 1
        self.note_change(node.path, "deleted", {}, run_uid=node.run_uid)
        return removed

    # --- data sources, observations ---

    def put_data_source(self, node_id: int, source: DataSource) -> DataSource:
        """Store how a node's data is stored; return it with ids.

        A node has one data source: it keeps its id. Assets are added by (parameter, num); those
        that are there stay as they are.

        Raises
        ------
        NotFound
            If `source` has an id that is not the node's data source's.
        """
        known = self.data_source(node_id) if source.id is not None else None
        if source.id is not None and (known is None or known.id != source.id):
            raise NotFound(f"data source {source.id} does not belong to this node", id=source.id)
        values = {
            "node_id": node_id,
            "family": str(source.family),
            "mimetype": storable(source.mimetype),
            "management": str(source.management),
            "structure": to_json(source.structure),
            "parameters": to_json(source.parameters),
            "properties": to_json(source.properties),
        }
        self._session.execute(_PUT_SOURCE, values)
        stored = self.data_source(node_id)
        assert stored is not None
        if not source.assets:
            return stored
        self._session.many(
            _NEW_ASSET,
            [
                {
                    "data_source_id": stored.id,
                    "parameter": storable(asset.parameter),
                    "num": NO_NUM if asset.num is None else asset.num,
                    "data_uri": storable(asset.data_uri),
                    "is_directory": asset.is_directory,
                    "size": asset.size,
                }
                for asset in source.assets
            ],
        )
        stored = self.data_source(node_id)
        assert stored is not None
        return stored

    def save_observation(self, observation: Observation) -> None:
        """Keep what was found, in place of what was found before."""
        self._session.execute(
            _PUT_OBSERVATION,
            {
                "node_id": observation.node_id,
                "num": NO_NUM if observation.num is None else observation.num,
                "time": observation.time,
                "status": observation.status,
                "rows": observation.rows,
                "fingerprint": to_json(observation.fingerprint),
                "detail": storable(observation.detail),
            },
        )

    # --- runs ---

    def run(self, uid: str) -> Run | None:
        """Return what is kept of a run, and keep other writers from it until this transaction ends."""
        self._database.lock_run(self._session, uid)
        self._session.execute(_LOCK_RUN_ROW, {"of": uid})
        return super().run(uid)

    def save_run(self, run: Run) -> None:
        """Store what is to be kept of a run."""
        if run.node_id is None and not run.deleted:
            known = super().run(run.uid)
            found = self._run_nodes.get(run.uid, known.node_id if known is not None else None)
            run = msgspec.structs.replace(run, node_id=found)
        self._session.execute(_PUT_RUN, {name: getattr(run, name) for name in RUN_FIELDS})

    # --- slow data ---

    def append_segment(
        self, series: str, first_row: int, rows: int, body: bytes, received: float | None = None
    ) -> None:
        """Append rows to a series.

        Parameters
        ----------
        series
            Path of the stream or table, segments joined by ``/``.
        first_row
            Where `rows` of the series is.
        body
            Arrow IPC.

        Raises
        ------
        Conflict
            If the series does not end at `first_row`; carries `expected`.
        """
        expected = self.rows(series)
        if first_row != expected or rows < 1:
            raise Conflict(
                f"{rows} rows from row {first_row} on do not continue {series}, which has {expected}",
                expected=expected,
            )
        now = self._clock() if received is None else received
        self._store_segment(series, Segment(first_row, rows, body, now))
        path = tuple(series.split("/"))
        node = self.node(path)
        detail = {"first_row": first_row, "rows": rows}
        self.note_change(path, "rows", detail, run_uid=None if node is None else node.run_uid)

    def replace_segments(self, series: str, merged: Sequence[Segment]) -> None:
        """Put fewer, larger segments in place of those that hold the same rows.

        Raises
        ------
        Conflict
            If the rows are not exactly those of some stored segments.
        """
        if not merged:
            return
        low, high = merged[0].first_row, merged[-1].first_row + merged[-1].rows
        bounds = {"of": series, "low": low, "high": high}
        stored = [(row[0], row[1]) for row in self._session.all(_SEGMENTS_WITHIN, bounds)]
        for spans in (stored, [(segment.first_row, segment.rows) for segment in merged]):
            if not _covers(spans, low, high):
                raise Conflict(f"rows {low} to {high} of {series} are not what is stored there; read again")
        self._session.execute(_NO_SEGMENTS, bounds)
        for segment in merged:
            self._store_segment(series, segment)

    def drop_series(self, series: str) -> None:
        """Remove all rows of a series; no error if there are none."""
        self._session.execute(_NO_SEGMENTS, {"of": series, "low": 0, "high": _FOREVER})

    # --- the transaction itself ---

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is done within, and only that, if it raises; the exception goes on.

        After a failed statement PostgreSQL takes nothing more within a transaction, so what may
        fail and be survived has to be done in one of these.
        """
        kept = (
            len(self._records),
            len(self._changes),
            Counter(self._more_children),
            dict(self._run_nodes),
        )
        self._session.sql("SAVEPOINT flystore")
        try:
            yield
        except BaseException:
            self._session.sql("ROLLBACK TO SAVEPOINT flystore")
            self._session.sql("RELEASE SAVEPOINT flystore")
            del self._records[kept[0] :]
            del self._changes[kept[1] :]
            self._more_children, self._run_nodes = kept[2], kept[3]
            raise
        self._session.sql("RELEASE SAVEPOINT flystore")

    def finish(self) -> int | None:
        """Give records and changes their positions; return the last, None if there are none.

        Called by `Catalog.write` just before the commit.
        """
        if self._finished:
            raise InvalidRequest("this transaction has ended")
        self._finished = True
        # In order of ids, and the feed last: two transactions never wait for each other in a circle.
        counts = [
            {"of": node_id, "more": more} for node_id, more in sorted(self._more_children.items()) if more
        ]
        for params in counts:
            self._session.execute(_COUNT_CHILDREN, params)
        n = max(len(self._records), 1 if self._changes else 0)
        if n == 0:
            return None
        row = self._session.one(_NEXT_POSITION, {"n": n})
        assert row is not None
        last = int(row[0])
        first = last - n + 1
        self._session.many(
            _NEW_RECORD, [{**record, "position": first + i} for i, record in enumerate(self._records)]
        )
        seqs: Counter[int] = Counter()
        told = []
        for index, change in self._changes:
            told.append({**change, "position": first + index, "seq": seqs[index]})
            seqs[index] += 1
        self._session.many(_NEW_CHANGE, told)
        return last

    def _add_record(self, **values: Any) -> None:
        self._records.append({**dict.fromkeys(_LOG_VALUES), **values})

    def _count_children(self, node_id: int) -> int:
        return super()._count_children(node_id) + self._more_children[node_id]

    def _existing(self, path: Sequence[str]) -> Node:
        self._session.execute(_LOCK_NODE, {"path": path_text(path)})
        node = self.node(path)
        if node is None:
            raise NotFound(f"there is no node at {'/'.join(path)!r}", path=list(path))
        return node

    def _create(self, path: Path, wanted: "_Wanted", origin: Origin, run_uid: str | None) -> Node:
        parent = self.node(path[:-1])
        if parent is None:
            raise NotFound(
                f"there is no node at {'/'.join(path[:-1])!r} to hold {path[-1]!r}", path=list(path)
            )
        if parent.family is not Family.CONTAINER:
            raise Conflict(
                f"/{path_text(parent.path)} is of family {parent.family} and holds no children",
                path=list(parent.path),
            )
        now = self._clock()
        is_run = any(spec.name == BLUESKY_RUN.name for spec in wanted.specs)
        indexed = parent.children_indexed
        values = {
            **wanted.columns(),
            "parent_id": parent.id,
            "key": path[-1],
            "path": path_text(path),
            "origin": origin,
            "run_uid": run_uid,
            "indexed": indexed,
            # Below a run there are few siblings; indexing them would cost ten times the runs.
            "children_indexed": indexed and not is_run,
            "time_created": now,
            "time_updated": now,
            "revision": 1,
        }
        row = self._session.one(_NEW_NODE, values)
        assert row is not None
        node_id = int(row[0])
        if wanted.family is Family.CONTAINER:
            self._session.execute(_NEW_COUNT, {"node_id": node_id, "count": 0})
        self._more_children[parent.id] += 1
        node = wanted.node(
            id=node_id,
            parent_id=parent.id,
            path=path,
            origin=origin,
            run_uid=run_uid,
            indexed=indexed,
            children_indexed=indexed and not is_run,
            time_created=now,
            time_updated=now,
            revision=1,
        )
        self._index(None, node)
        if run_uid is not None and parent.run_uid != run_uid:
            self._run_nodes[run_uid] = node_id
            self._session.execute(_RUN_HAS_NODE, {"of": run_uid, "node_id": node_id})
        self.note_change(path, "created", {"family": str(wanted.family)}, run_uid=run_uid)
        return node

    def _update(self, old: Node, wanted: "_Wanted") -> Node:
        if wanted == _Wanted.of(old):
            return old
        now = self._clock()
        node = wanted.node(
            id=old.id,
            parent_id=old.parent_id,
            path=old.path,
            origin=old.origin,
            run_uid=old.run_uid,
            indexed=old.indexed,
            children_indexed=old.children_indexed,
            time_created=old.time_created,
            time_updated=now,
            revision=old.revision + 1,
        )
        changed = {"run_uid": node.run_uid, "time_updated": now, "revision": node.revision, "of": old.id}
        self._session.execute(_CHANGE_NODE, {**wanted.columns(), **changed})
        self._index(old, node)
        self.note_change(old.path, "updated", {"family": str(wanted.family)}, run_uid=old.run_uid)
        return node

    def _index(self, old: Node | None, new: Node) -> None:
        """Bring the leaves and words of a node up to date; only what differs is written."""
        if not new.indexed or new.parent_id is None:
            return
        before = (
            set() if old is None else _leaves.leaves_of(old.metadata, old.family, old.specs, old.access_tags)
        )
        wanted = _leaves.leaves_of(new.metadata, new.family, new.specs, new.access_tags)
        where = {"parent_id": new.parent_id, "node_id": new.id}
        self._session.many(_NO_LEAF, [{**where, "key": k, "value": v} for k, v in sorted(before - wanted)])
        self._session.many(_NEW_LEAF, [{**where, "key": k, "value": v} for k, v in sorted(wanted - before)])
        words_before = None if old is None else old.metadata
        _words.replace(self._session, new.id, new.parent_id, words_before, new.metadata)

    def _unindex(self, inside: sa.ColumnElement[bool]) -> None:
        """Take the words of the indexed nodes among `inside` out."""
        columns = (nodes.c.id, nodes.c.parent_id, nodes.c.metadata)
        last = 0
        while True:
            some = sa.select(*columns).where(inside, nodes.c.indexed.is_(sa.true()), nodes.c.id > last)
            rows = self._session.compose(some.order_by(nodes.c.id).limit(500))
            for node_id, parent_id, text in rows:
                _words.replace(self._session, node_id, parent_id, from_json(text), None)
                last = node_id
            if len(rows) < 500:
                return

    def _store_segment(self, series: str, segment: Segment) -> None:
        self._session.execute(_NEW_SEGMENT, {"series": series, **msgspec.structs.asdict(segment)})


class _Wanted(msgspec.Struct, frozen=True):
    """What a caller decides about a node; JSON as text, so that it can be compared."""

    family: Family
    specs: tuple[Spec, ...]
    metadata: str
    structure: str | None
    external: bytes | None
    access_tags: tuple[str, ...]

    @classmethod
    def of(cls, node: Node) -> "_Wanted":
        structure = _structure_text(node.structure)
        return cls(
            node.family, node.specs, to_json(node.metadata), structure, node.external, node.access_tags
        )

    def columns(self) -> dict[str, Any]:
        return {
            "family": str(self.family),
            "specs": specs_text(self.specs),
            "metadata": self.metadata,
            "structure": self.structure,
            "external": self.external,
            "access_tags": to_json(self.access_tags),
        }

    def node(self, **rest: Any) -> Node:
        return Node(
            family=self.family,
            specs=self.specs,
            metadata=from_json(self.metadata),
            structure=None if self.structure is None else from_json(self.structure),
            external=self.external,
            access_tags=self.access_tags,
            **rest,
        )


def check_path(path: Sequence[str]) -> Path:
    """Return `path` if each segment can be a key.

    Raises
    ------
    InvalidRequest
        If one is empty, ``.`` or ``..``, holds ``/`` or a character that no text can hold, or if the
        path is too long.
    """
    for key in path:
        if key in ("", ".", "..") or "/" in key or key != storable(key) or key.startswith(LAST_CHARACTER):
            raise InvalidRequest(
                f"{key!r:.80} cannot be a key: it must be text without '/', and not '.' or '..'"
            )
    if len(path_text(path).encode()) > PATH_LIMIT:
        raise InvalidRequest(
            f"the path of {path[-1]!r:.80} is longer than {PATH_LIMIT} bytes", limit=PATH_LIMIT
        )
    return tuple(path)


def storable(text: str) -> str:
    """Return `text` without the characters that PostgreSQL cannot hold: zero and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _structure_text(structure: Mapping[str, Any] | None) -> str | None:
    return None if structure is None else to_json(structure)


def _covers(spans: Sequence[tuple[int, int]], low: int, high: int) -> bool:
    at = low
    for first, n in spans:
        if first != at:
            return False
        at += n
    return at == high
