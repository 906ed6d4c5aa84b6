"""Editing metadata, specs and access tags.

Of a node of the Tiled protocol they are simply replaced. Of a node made from documents the difference is kept as an
overlay: the documents stay what they are, and later ones change what nobody edited.
"""

from typing import Any

import msgspec

from flystore.catalog import Node, Transaction
from flystore.model.errors import InvalidRequest, NotFound, Unsupported
from flystore.model.overlay import Overlay, difference
from flystore.model.structures import Spec

from .browse import STREAMS, is_run
from .changing import Changing, log_operation, require_path, touch
from .operations import Edited, MetadataSet
from .patches import apply_patch
from .requests import MetadataPatch, specs_from_wire, tags_from_wire


class _Wanted(msgspec.Struct, frozen=True):
    """What a node is to say; tags None: what it says now."""

    metadata: Any
    specs: tuple[Spec, ...]
    access_tags: tuple[str, ...] | None


class Editing(Changing):
    """Edits nodes; two edits at once both take effect."""

    def patch_metadata(self, path: tuple[str, ...], patch: MetadataPatch, *, keep_revision: bool) -> None:
        """Apply a patch to what is stored now.

        Raises
        ------
        NotFound
            If there is no such node.
        InvalidRequest
            If the patch is malformed, or leads to what cannot be stored.
        Conflict
            If the patch does not fit.
        """
        with self._catalog.write() as tx:
            node = self._to_edit(tx, path)
            self._edit(tx, node, _patched(node, patch), keep_revision)

    def replace_metadata(
        self,
        path: tuple[str, ...],
        metadata: Any,
        specs: tuple[Spec, ...] | None,
        access_tags: tuple[str, ...] | None = None,
        *,
        keep_revision: bool,
    ) -> dict[str, Any] | None:
        """Replace metadata, specs and access tags; None keeps each.

        Returns
        -------
        dict or None
            The metadata as stored, where it is not what was asked for: the stop document of a run is kept if
            metadata that has its start document lacks it, since that was read before the run ended. A patch removes
            it.

        Raises
        ------
        NotFound
            If there is no such node.
        InvalidRequest
            If this cannot be stored.
        """
        with self._catalog.write() as tx:
            node = self._to_edit(tx, path)
            wanted = node.metadata if metadata is None else _with_stop(node, metadata)
            self._edit(tx, node, _Wanted(wanted, node.specs if specs is None else specs, access_tags), keep_revision)
        return None if metadata is None or wanted is metadata else wanted

    def delete_revision(self, path: tuple[str, ...], number: int) -> None:
        """Forget what a node's metadata was before a change.

        Raises
        ------
        NotFound
            If there is no such node or revision.
        """
        with self._catalog.write() as tx:
            where = _stored(tx, path)
            tx.delete_revision(where, number)
            tx.append_operation(where, "delete-revision", str(number).encode(), self._clock())

    def _to_edit(self, tx: Transaction, path: tuple[str, ...]) -> Node:
        """Return the node at `path`, which nobody else changes until this transaction ends."""
        require_path(path)
        where = _stored(tx, path)
        node = tx.node(where)
        if node is not None and node.origin == "documents" and node.run_uid is not None:
            # Before the node, in the order in which a batch of the run's documents takes them.
            tx.run(node.run_uid)
        node = tx.node_to_change(where)
        if node is None:
            raise NotFound(f"No such entry: {list(path)}", path=list(path))
        return node

    def _edit(self, tx: Transaction, node: Node, wanted: _Wanted, keep_revision: bool) -> None:
        if not isinstance(wanted.metadata, dict):
            raise InvalidRequest("metadata must be a JSON object")
        if node.origin == "documents":
            self._lay_over(tx, node, wanted, keep_revision)
        else:
            self._set(tx, node, wanted, keep_revision)

    def _set(self, tx: Transaction, node: Node, wanted: _Wanted, keep_revision: bool) -> None:
        now = self._clock()
        metadata, specs, tags = wanted.metadata, wanted.specs, wanted.access_tags
        tx.set_metadata(node.path, metadata=metadata, specs=specs, access_tags=tags, keep_revision=keep_revision)
        log_operation(tx, node.path, MetadataSet(metadata, specs, tags), now)
        touch(tx, node.run_uid, now, closed=is_run(node) and bool(metadata.get("stop")))

    def _lay_over(self, tx: Transaction, node: Node, wanted: _Wanted, keep_revision: bool) -> None:
        """Keep what differs; the run's record stays as it is, since nothing was heard of its writer."""
        edit = Overlay(
            difference(node.metadata, wanted.metadata),
            None if wanted.specs == node.specs else wanted.specs,
            None if wanted.access_tags in (None, node.access_tags) else wanted.access_tags,
        )
        tx.edit_node(node.path, edit, keep_revision=keep_revision)
        if not edit.is_empty:
            log_operation(tx, node.path, Edited(edit), self._clock())


def _patched(node: Node, patch: MetadataPatch) -> _Wanted:
    metadata, specs, tags = node.metadata, node.specs, None
    if patch.metadata is not None:
        metadata = apply_patch(metadata, patch.metadata, merge=patch.merge)
    if patch.specs is not None:
        listed = [spec.to_wire() for spec in specs]
        specs = specs_from_wire(apply_patch(listed, patch.specs, merge=patch.merge))
    if patch.access_tags is not None:
        tags = tags_from_wire(apply_patch(list(node.access_tags), patch.access_tags, merge=patch.merge))
    return _Wanted(metadata, specs, tags)


def _with_stop(node: Node, metadata: Any) -> Any:
    """Return metadata that is to replace that of `node`, with the stop document that its sender cannot have seen."""
    made = node.origin == "documents" and len(node.path) == 1
    if made and "stop" in node.metadata and isinstance(metadata, dict) and "start" in metadata:
        return metadata if "stop" in metadata else {**metadata, "stop": node.metadata["stop"]}
    return metadata


def _stored(tx: Transaction, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path at which what is shown at `path` is stored: ``run/streams/x`` may stand for ``run/x``.

    Raises
    ------
    Unsupported
        If it stands for the list of a run's streams, which has no metadata.
    """
    if len(path) < 2 or path[1] != STREAMS:
        return path
    run = tx.node(path[:1])
    if run is None or not is_run(run) or tx.node(path[:2]) is not None:
        return path
    if len(path) == 2:
        raise Unsupported(f"/{'/'.join(path)} stands for the streams of a run and has no metadata", status=405)
    return (path[0], *path[2:])
