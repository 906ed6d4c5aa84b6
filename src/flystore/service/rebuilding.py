"""Rebuilding: the trees worked out again from the log, in place.

For a run that came as documents everything below it follows from them and from what people edited since: its nodes
are put again with the edits in the log laid over them, its rows are written again, and nodes that no longer follow are
removed. For nodes made by the Tiled protocol the operations are
folded into what each node should be now; the rows and arrays they refer to are data, not conclusions, and stay.
"""

import logging
from collections.abc import Iterator
from typing import Any

import msgspec

from flystore.catalog import Catalog, Node, Path, Snapshot, Transaction
from flystore.model.errors import Damaged
from flystore.model.frames import FrameDecoder
from flystore.model.overlay import Overlay
from flystore.model.structures import DataSource, Family, Spec
from flystore.projection import PutNode, RunState, advance, segment, verdict

from .browse import everything_below
from .ingest import logged_documents
from .operations import Created, DataSourcePut, Edited, MetadataSet, StructureSet
from .projecting import apply_changes, series_of

log = logging.getLogger("flystore.service")

BATCH = 10_000
"""Documents worked through at a time, so that memory does not grow with the run."""


class Rebuilt(msgspec.Struct):
    """What a rebuild did.

    Attributes
    ----------
    runs : int
        Runs worked out again from their documents.
    nodes : int
        Nodes of the protocol compared with their operations.
    changed : list of str
        Paths of nodes that are different now, new or removed.
    failed : list of str
        Uids of runs that could not be worked out and stay as they were; the log says why.
    """

    runs: int = 0
    nodes: int = 0
    changed: list[str] = []
    failed: list[str] = []


def rebuild(catalog: Catalog) -> Rebuilt:
    """Work all trees out again; each run and then all protocol nodes in one transaction each.

    Raises
    ------
    Damaged
        If a record of the log cannot be read; what was rebuilt before stays.
    """
    done = Rebuilt()
    for uid in list(_document_runs(catalog)):
        try:
            with catalog.write() as tx:
                done.changed += rebuild_run(tx, uid)
        except Damaged:
            raise
        except Exception:  # a defect that one run brings out must not keep the others from being mended
            log.exception("run %s could not be worked out again; it stays as it was", uid)
            done.failed.append(uid)
        else:
            done.runs += 1
    with catalog.write() as tx:
        done.nodes, changed = _refold(tx)
        done.changed += changed
    return done


def _document_runs(catalog: Catalog) -> Iterator[str]:
    after = ""
    while True:
        with catalog.read() as snapshot:
            uids = snapshot.run_uids(after)
            runs = [run for uid in uids if (run := snapshot.run(uid)) is not None]
        if not uids:
            return
        yield from (run.uid for run in runs if run.writer == "documents" and not run.deleted)
        after = uids[-1]


def rebuild_run(tx: Transaction, uid: str) -> list[str]:
    """Work a run's tree out again; return the paths of nodes that changed."""
    run = tx.run(uid)
    if run is None:
        return []
    root = (segment(uid),)
    before = {node.path: as_shown(node) for node in subtree(tx, root)}
    for path, shown in before.items():
        if shown["family"] == Family.CONTAINER:
            tx.drop_series(series_of(path))
    state, put, overlays = RunState.new(uid), set(), overlays_of(tx, root)
    for documents in batches(logged_documents(tx, uid)):
        state, changes = advance(state, documents)
        apply_changes(tx, uid, changes, run.last_received, overlays=overlays)
        put |= {change.path for change in changes if isinstance(change, PutNode)}
    for path in sorted(set(before) - put, key=len, reverse=True):
        tx.delete_node(path, recursive=True)
    templates = RunState.from_bytes(run.state).templates if run.state else _templates(tx, uid)
    tx.save_run(
        msgspec.structs.replace(
            run,
            state=state.with_templates(templates).to_bytes(),
            projected=run.watermark,
            verdict=run.verdict if run.closed is not None else verdict(state).state,
        )
    )
    after = {node.path: as_shown(node) for node in subtree(tx, root)}
    return ["/".join(path) for path in sorted({*before, *after}) if before.get(path) != after.get(path)]


def overlays_of(tx: Snapshot, root: Path) -> dict[Path, Overlay]:
    """Return what people edited of the nodes at and below `root`, as the log tells it.

    Raises
    ------
    Damaged
        If an edit in the log cannot be read.
    """
    overlays: dict[Path, Overlay] = {}
    for record in tx.edits(root):
        path = record.path or ()
        try:
            edit = msgspec.msgpack.decode(record.body, type=Edited).edit
        except msgspec.MsgspecError as error:
            raise Damaged(f"the edit of /{'/'.join(path)} in the log cannot be read: {error}") from error
        overlays[path] = overlays[path].then(edit) if path in overlays else edit
    return overlays


def _templates(tx: Snapshot, uid: str) -> dict[int, bytes]:
    decoder = FrameDecoder()
    for _ in logged_documents(tx, uid, decoder=decoder):
        pass
    return decoder.templates


def batches(documents: Iterator[tuple[int, str, dict[str, Any]]]) -> Iterator[list[tuple[int, str, dict[str, Any]]]]:
    batch = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def subtree(tx: Snapshot, path: tuple[str, ...]) -> list[Node]:
    root = tx.node(path)
    return [] if root is None else [root, *everything_below(tx, path)]


def as_shown(node: Node) -> dict[str, Any]:
    """Return what readers see of a node: not its id, its times or how often it was put."""
    return {
        "family": node.family,
        "specs": node.specs,
        "metadata": node.metadata,
        "structure": node.structure,
        "external": node.external,
        "access tags": node.access_tags,
        "edits": node.overlay,
    }


class _Wanted(msgspec.Struct):
    """What operations lead to for one node."""

    family: Family
    specs: tuple[Spec, ...]
    metadata: dict[str, Any]
    structure: dict[str, Any] | None
    source: DataSource | None
    run_uid: str | None
    access_tags: tuple[str, ...] = ()

    def as_shown(self) -> dict[str, Any]:
        """Return what readers are to see of the node, as `as_shown` has it."""
        return {
            "family": self.family,
            "specs": self.specs,
            "metadata": self.metadata,
            "structure": self.structure,
            "external": None,
            "access tags": self.access_tags,
            "edits": None,
        }


def _refold(tx: Transaction) -> tuple[int, list[str]]:
    wanted = folded(tx)
    changed = []
    for path, node in wanted.items():
        known = tx.node(path)
        if known is not None and as_shown(known) == node.as_shown():
            continue
        changed.append("/".join(path))
        made = tx.put_node(
            path,
            node.family,
            node.specs,
            node.metadata,
            node.structure,
            origin="protocol",
            run_uid=node.run_uid,
            access_tags=node.access_tags,
        )
        if node.source is not None:
            stored = tx.data_source(made.id)
            tx.put_data_source(made.id, msgspec.structs.replace(node.source, id=None if stored is None else stored.id))
    return len(wanted), changed


def folded(tx: Snapshot) -> dict[tuple[str, ...], _Wanted]:
    """Return what the operations in the log, one after the other, make of each node."""
    wanted: dict[tuple[str, ...], _Wanted] = {}
    after = 0
    while True:
        records = list(tx.operations(after, limit=500))
        if not records:
            return wanted
        for record in records:
            after = record.position
            if record.path is not None:
                _fold(wanted, record.path, record.action or "", record.body)


def with_known_assets(put: DataSourcePut, before: DataSource | None) -> DataSource:
    """Return the data source that an operation led to, with the assets of before where it names only what is new."""
    if not put.more or before is None:
        return put.source
    both = (*before.assets, *put.source.assets)
    order = sorted(both, key=lambda asset: (asset.parameter, -1 if asset.num is None else asset.num))
    return msgspec.structs.replace(put.source, assets=tuple(order))


def _fold(wanted: dict[tuple[str, ...], _Wanted], path: tuple[str, ...], action: str, body: bytes) -> None:
    try:
        match action:
            case Created.action:
                made = msgspec.msgpack.decode(body, type=Created)
                wanted[path] = _Wanted(
                    made.family, made.specs, made.metadata, made.structure, made.source, made.run_uid, made.access_tags
                )
            case DataSourcePut.action:
                put = msgspec.msgpack.decode(body, type=DataSourcePut)
                wanted[path].source = source = with_known_assets(put, wanted[path].source)
                wanted[path].structure = source.structure
            case MetadataSet.action:
                told = msgspec.msgpack.decode(body, type=MetadataSet)
                wanted[path].metadata, wanted[path].specs = told.metadata, told.specs
                if told.access_tags is not None:
                    wanted[path].access_tags = told.access_tags
            case StructureSet.action:
                wanted[path].structure = msgspec.msgpack.decode(body, type=StructureSet).structure
            case "delete":
                for below in [known for known in wanted if known[: len(path)] == path]:
                    del wanted[below]
    except (msgspec.MsgspecError, KeyError) as error:
        raise Damaged(f"the operation {action} on /{'/'.join(path)} in the log cannot be read: {error!r}") from error
