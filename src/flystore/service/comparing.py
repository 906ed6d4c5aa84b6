"""Comparing: the trees worked out again from the log, and held against those that are stored.

Nothing is changed. Runs that came as documents are worked out in a temporary catalogue, one at a time, with what people
edited of them laid over, and undone there. For nodes of the Tiled protocol the operations are folded into what each
should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from flystore.catalog import Catalog, Node, Run, Snapshot, Transaction
from flystore.model.late import pa
from flystore.model.structures import DataSource, Family
from flystore.projection import RunState, advance, segment, verdict

from .checking import run_uids
from .columns import series_of_table, stored_names, stored_pieces
from .findings import Check
from .ingest import logged_documents
from .operations import RowsWritten
from .projecting import apply_changes, series_of
from .rebuilding import as_shown, batches, folded, overlays_of, subtree


class _Undo(Exception):
    """Ends a transaction whose work is not wanted."""


def compare_trees(catalog: Catalog, check: Check, scratch: Path | None = None) -> None:
    """Note in `check` what of nodes, rows, frame maps and runs does not follow from the log.

    Parameters
    ----------
    scratch
        Where a temporary catalogue is made; None is the system's place for temporary files.
    """
    known = {""}
    with (
        TemporaryDirectory(prefix="flystore-verify-", dir=scratch) as directory,
        Catalog.open(f"sqlite:///{directory}/catalog.sqlite") as temporary,
    ):
        for uid in run_uids(catalog):
            with catalog.read() as stored:
                run = stored.run(uid)
                if run is not None and run.writer == "documents" and not run.deleted:
                    known |= _compare_run(stored, temporary, run, check)
    with catalog.read() as stored:
        known |= _compare_protocol(stored, check)
        for node_id in _ids(stored):
            node = stored.node_by_id(node_id)
            if node is not None and "/".join(node.path) not in known:
                check.bad(f"/{'/'.join(node.path)}", "nothing in the log made it")


def _ids(stored: Snapshot) -> Iterator[int]:
    after = 0
    while ids := stored.node_ids(after):
        yield from ids
        after = ids[-1]


def _compare_run(stored: Snapshot, temporary: Catalog, run: Run, check: Check) -> set[str]:
    """Compare one run; return the paths that its documents make."""
    root = (segment(run.uid),)
    paths: set[str] = set()
    try:
        with temporary.write() as again:
            state, overlays = RunState.new(run.uid), overlays_of(stored, root)
            for documents in batches(logged_documents(stored, run.uid)):
                documents = [document for document in documents if document[0] < run.projected]
                state, changes = advance(state, documents)
                apply_changes(again, run.uid, changes, run.last_received, overlays=overlays)
            paths = {"/".join(node.path) for node in subtree(again, root)}
            _compare_nodes(stored, again, root, check)
            _compare_record(run, state, stored.node(root), check)
            raise _Undo
    except _Undo:
        pass
    except Exception as error:  # noqa: BLE001  a damaged page may raise anything; the other runs are looked at all the same
        check.bad(f"run {run.uid}", error)
    return paths


def _compare_record(run: Run, state: RunState, root: Node | None, check: Check) -> None:
    where = f"the record of run {run.uid}"
    if run.projected != run.watermark:
        check.bad(where, f"documents from {run.projected} to {run.watermark} are stored and not shown")
    if run.node_id != (None if root is None else root.id):
        check.bad(where, "it belongs to another node")
    if run.state:
        kept = RunState.from_bytes(run.state)
        if kept.with_templates({}).to_bytes() != state.with_templates({}).to_bytes():
            check.bad(where, "its state is not the one that its documents lead to")
    said = verdict(state).state
    # Looking at files may have made the verdict a worse one; what documents alone decide stays.
    if said == "running" and run.closed is None and not run.open:
        check.bad(where, "it counts as ended and has no stop document")
    if said != "running" and run.open:
        check.bad(where, "it counts as open and has its stop document")


def _compare_nodes(stored: Snapshot, again: Transaction, root: tuple[str, ...], check: Check) -> None:
    wanted = {node.path: node for node in subtree(again, root)}
    found = {node.path: node for node in subtree(stored, root)}
    for path in sorted({*wanted, *found}):
        where = f"/{'/'.join(path)}"
        if path not in found:
            check.bad(where, "the log makes it, and it is not there")
        elif path not in wanted:
            check.bad(where, "it does not follow from the log")
        elif differing := _differing(as_shown(found[path]), as_shown(wanted[path])):
            check.bad(where, f"its {', '.join(differing)} do not follow from the log")
        elif _source_of(stored, found[path]) != _source_of(again, wanted[path]):
            check.bad(where, "where its data lies does not follow from the log")
        elif path in wanted and not _same_rows(stored, again, path):
            check.bad(f"the rows of {where}", "they are not those that its documents hold")
        else:
            check.checked += 1


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [name for name in wanted if found[name] != wanted[name]]


def _source_of(snapshot: Snapshot, node: Node) -> DataSource | None:
    return _without_ids(snapshot.data_source(node.id))


def _without_ids(source: DataSource | None) -> DataSource | None:
    if source is None:
        return None
    assets = tuple(msgspec.structs.replace(asset, id=None) for asset in source.assets)
    return msgspec.structs.replace(source, id=None, assets=assets)


def _same_rows(stored: Snapshot, again: Snapshot, path: tuple[str, ...]) -> bool:
    series = series_of(path)
    if stored.rows(series) != again.rows(series):
        return False
    if stored.rows(series) == 0:
        return True
    names = sorted(stored_names(stored, series) | stored_names(again, series))
    return all(
        same_values(one, other)
        for one, other in zip(stored_pieces(stored, series, names), stored_pieces(again, series, names), strict=True)
    )


def same_values(one: list[pa.Array], other: list[pa.Array]) -> bool:
    """Return whether two columns hold the same values, however they are cut into pieces; NaN equals NaN."""
    kinds = {piece.type for piece in (*one, *other)}
    if len(kinds) == 1 and pa.chunked_array(one).equals(pa.chunked_array(other)):
        return True
    # NaN, and pieces without a type because the column was not there yet: value by value.
    return repr([v for piece in one for v in piece.to_pylist()]) == repr(
        [v for piece in other for v in piece.to_pylist()]
    )


# --------------------------------------------------------------------------- nodes of the protocol


def _compare_protocol(stored: Snapshot, check: Check) -> set[str]:
    wanted = folded(stored)
    rows = _rows_written(stored)
    for path, node in wanted.items():
        where = f"/{'/'.join(path)}"
        found = stored.node(path)
        if found is None:
            check.bad(where, "the log makes it, and it is not there")
            continue
        differing = _differing(as_shown(found), node.as_shown())
        if differing:
            check.bad(where, f"its {', '.join(differing)} do not follow from the log")
        elif _source_of(stored, found) != _without_ids(node.source):
            check.bad(where, "where its data lies does not follow from the log")
        elif found.family is Family.TABLE and stored.rows(series_of_table(found)) != rows.get(path, 0):
            held = stored.rows(series_of_table(found))
            check.bad(f"the rows of {where}", f"{rows.get(path, 0)} rows were written, {held} are there")
        else:
            check.checked += 1
    return {"/".join(path) for path in wanted}


def _rows_written(stored: Snapshot) -> dict[tuple[str, ...], int]:
    """Return how many rows the operations in the log leave in each table."""
    rows: dict[tuple[str, ...], int] = {}
    after = 0
    while records := list(stored.operations(after, limit=500)):
        for record in records:
            after = record.position
            path = record.path or ()
            if record.action == RowsWritten.action:
                told = msgspec.msgpack.decode(record.body, type=RowsWritten)
                if told.partition is None:  # others are in files, not among the rows of the catalogue
                    rows[path] = told.rows + (0 if told.replaced else rows.get(path, 0))
            elif record.action == "delete":
                rows = {known: n for known, n in rows.items() if known[: len(path)] != path}
    return rows
