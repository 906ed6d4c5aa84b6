"""Making, changing and removing nodes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from flystore.model.errors import Conflict, InvalidRequest, NotFound
from flystore.model.overlay import Overlay
from flystore.model.structures import BLUESKY_RUN, Family, Spec

from . import _kept, _leaves, _words
from ._database import Fixed, insert_of
from ._json import from_json, storable, to_json
from ._nodes import LAST_CHARACTER, NodeReads, below, overlay_of, overlay_text, specs_text
from ._rows import Node, Origin, Path, path_text
from ._schema import child_counts, leaves, nodes, revisions, runs, segments
from ._slow import bounds_of_columns
from ._write_log import WriteLog

PATH_LIMIT = 2_000
"""Longest path in UTF-8 bytes; PostgreSQL indexes no more than 2,704."""


_NODE_VALUES = (
    "family",
    "run_uid",
    "time_updated",
    "revision",
    "access_tags",
    "specs",
    "structure",
    "metadata",
    "overlay",
)
_NEW_NODE = Fixed(
    insert_of(
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
_DATA_CHANGED = Fixed(sa.update(nodes).where(nodes.c.id == sa.bindparam("of")).values(revision=nodes.c.revision + 1))
_LOCK_NODE = Fixed(sa.select(nodes.c.id).where(nodes.c.path == sa.bindparam("path")).with_for_update())
_NEW_LEAF = Fixed(insert_of(leaves, "parent_id", "key", "value", "node_id"))
_NO_LEAF = Fixed(
    sa.delete(leaves).where(
        leaves.c.parent_id == sa.bindparam("parent_id"),
        leaves.c.key == sa.bindparam("key"),
        leaves.c.value == sa.bindparam("value"),
        leaves.c.node_id == sa.bindparam("node_id"),
    )
)
_NEW_COUNT = Fixed(insert_of(child_counts, "node_id", "count"))
_RUN_HAS_NODE = Fixed(sa.update(runs).where(runs.c.uid == sa.bindparam("of")).values(node_id=sa.bindparam("node_id")))
_NEW_REVISION = Fixed(insert_of(revisions, "node_id", "number", "time_updated", "specs", "access_tags", "metadata"))
_LAST_REVISION = Fixed(sa.select(sa.func.max(revisions.c.number)).where(revisions.c.node_id == sa.bindparam("of")))
_NO_REVISION = Fixed(
    sa.delete(revisions).where(revisions.c.node_id == sa.bindparam("of"), revisions.c.number == sa.bindparam("at"))
)


class WriteNodes(NodeReads, WriteLog):
    """Nodes as a transaction changes them."""

    _clock: Callable[[], float]
    _more_children: Counter[int]
    """By how much the numbers of children will change, by node id."""
    _leaf_changes: _kept.LeafChanges
    _run_nodes: dict[str, int]
    """Topmost nodes of runs, made in this transaction."""

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
        overlay: Overlay | Literal["kept"] | None = "kept",
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
        overlay
            What people edited, laid over `metadata`, `specs` and `access_tags`; ``"kept"``: what they edited before,
            None: nothing.
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
        specs = tuple(specs)
        edited = (None if old is None else old.overlay) if overlay == "kept" else overlay
        if edited is not None:
            metadata = edited.over(metadata)
            specs = specs if edited.specs is None else edited.specs
            tags = tags if edited.access_tags is None else edited.access_tags
        wanted = _Wanted(
            family, specs, to_json(metadata), _structure_text(structure), external, tags, overlay_text(edited)
        )
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
            self._keep_revision(old)
        return self._update(old, wanted)

    def edit_node(self, path: Sequence[str], edit: Overlay, *, keep_revision: bool = True) -> Node:
        """Edit a node that was made from documents, on top of earlier edits; `put_node` keeps it.

        Raises
        ------
        NotFound
            If there is no node at `path`.
        """
        old = self._existing(path)
        overlay = edit if old.overlay is None else old.overlay.then(edit)
        wanted = msgspec.structs.replace(
            _Wanted.of(old),
            metadata=to_json(edit.over(old.metadata)),
            specs=old.specs if edit.specs is None else edit.specs,
            access_tags=old.access_tags if edit.access_tags is None else edit.access_tags,
            overlay=overlay_text(overlay),
        )
        if keep_revision:
            self._keep_revision(old)
        return self._update(old, wanted)

    def set_structure(self, path: Sequence[str], structure: Mapping[str, Any] | None) -> Node:
        """Change a node's structure.

        Raises
        ------
        NotFound
            If there is no node at `path`.
        """
        old = self._existing(path)
        return self._update(old, msgspec.structs.replace(_Wanted.of(old), structure=_structure_text(structure)))

    def note_data(self, node_id: int) -> None:
        """Note that what a node holds was written to, which its row does not show: its revision grows."""
        self._session.execute(_DATA_CHANGED, {"of": node_id})

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
        if not recursive and self.count_children(node.id):
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
        if node.parent_id is not None and node.indexed:
            entries = connection.execute(sa.select(leaves.c.key, leaves.c.value).where(leaves.c.node_id == node.id))
            self._leaf_changes.remove(node.parent_id, [(row[0], bytes(row[1])) for row in entries])
        _kept.forget_parents(self._session, ids)
        connection.execute(sa.delete(leaves).where(leaves.c.node_id.in_(ids)))
        connection.execute(sa.delete(child_counts).where(child_counts.c.node_id.in_(ids)))
        connection.execute(
            sa.update(runs)
            .where(runs.c.node_id.in_(ids))
            .values(deleted=True, open=False, node_id=None, state=b"", verdict=None)
        )
        series = segments.c.series
        columns = bounds_of_columns(text)
        connection.execute(
            sa.delete(segments).where(
                sa.or_(
                    series == text,
                    sa.and_(series >= low, series < high),
                    sa.and_(series >= columns[0], series < columns[1]),
                )
            )
        )
        removed = connection.execute(sa.delete(nodes).where(inside)).rowcount
        for parent_id in self._leaf_changes.parents:
            if self.node_by_id(parent_id) is None:
                self._leaf_changes.drop(parent_id)
        if node.parent_id is not None:
            self._more_children[node.parent_id] -= 1
        self.note_change(node.path, "deleted", {}, run_uid=node.run_uid)
        return removed

    def count_children(self, node_id: int) -> int:
        return super().count_children(node_id) + self._more_children[node_id]

    def counts_of_children(self, node_ids: Sequence[int]) -> list[int]:
        stored = super().counts_of_children(node_ids)
        return [n + self._more_children[node_id] for n, node_id in zip(stored, node_ids, strict=True)]

    def node_to_change(self, path: Sequence[str]) -> Node | None:
        """Return the node at `path`, or None, and keep other writers from it until this transaction ends."""
        self._session.execute(_LOCK_NODE, {"path": path_text(path)})
        return self.node(path)

    def _existing(self, path: Sequence[str]) -> Node:
        node = self.node_to_change(path)
        if node is None:
            raise NotFound(f"there is no node at {'/'.join(path)!r}", path=list(path))
        return node

    def _keep_revision(self, old: Node) -> None:
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

    def _create(self, path: Path, wanted: "_Wanted", origin: Origin, run_uid: str | None) -> Node:
        parent = self.node(path[:-1])
        if parent is None:
            raise NotFound(f"there is no node at {'/'.join(path[:-1])!r} to hold {path[-1]!r}", path=list(path))
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
        self.note_change(path, "created", _told_of(node), run_uid=run_uid)
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
        self.note_change(old.path, "updated", _told_of(node), run_uid=old.run_uid)
        return node

    def _index(self, old: Node | None, new: Node) -> None:
        """Bring the leaves and words of a node up to date; only what differs is written."""
        if not new.indexed or new.parent_id is None:
            return
        before = set() if old is None else _leaves.leaves_of(old.metadata, old.family, old.specs, old.access_tags)
        wanted = _leaves.leaves_of(new.metadata, new.family, new.specs, new.access_tags)
        self._leaf_changes.remove(new.parent_id, before - wanted)
        self._leaf_changes.add(new.parent_id, new.id, wanted - before)
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


def _told_of(node: Node) -> dict[str, Any]:
    """Return what the feed tells of a node that was made or changed: of an array also how long it was then."""
    told: dict[str, Any] = {"family": str(node.family)}
    if node.family is Family.ARRAY and node.structure is not None:
        told["shape"] = list(node.structure["shape"])
    return told


class _Wanted(msgspec.Struct, frozen=True):
    """What a caller decides about a node; JSON as text, so that it can be compared."""

    family: Family
    specs: tuple[Spec, ...]
    metadata: str
    structure: str | None
    external: bytes | None
    access_tags: tuple[str, ...]
    overlay: str | None

    @classmethod
    def of(cls, node: Node) -> "_Wanted":
        structure, overlay = _structure_text(node.structure), overlay_text(node.overlay)
        return cls(node.family, node.specs, to_json(node.metadata), structure, node.external, node.access_tags, overlay)

    def columns(self) -> dict[str, Any]:
        return {
            "family": str(self.family),
            "specs": specs_text(self.specs),
            "metadata": self.metadata,
            "structure": self.structure,
            "external": self.external,
            "access_tags": to_json(self.access_tags),
            "overlay": self.overlay,
        }

    def node(self, **rest: Any) -> Node:
        return Node(
            family=self.family,
            specs=self.specs,
            metadata=from_json(self.metadata),
            structure=None if self.structure is None else from_json(self.structure),
            external=self.external,
            access_tags=self.access_tags,
            overlay=None if self.overlay is None else overlay_of(self.overlay),
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
            raise InvalidRequest(f"{key!r:.80} cannot be a key: it must be text without '/', and not '.' or '..'")
    if len(path_text(path).encode()) > PATH_LIMIT:
        raise InvalidRequest(f"the path of {path[-1]!r:.80} is longer than {PATH_LIMIT} bytes", limit=PATH_LIMIT)
    return tuple(path)


def _structure_text(structure: Mapping[str, Any] | None) -> str | None:
    return None if structure is None else to_json(structure)
