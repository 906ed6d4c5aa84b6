"""What all changes by the Tiled protocol have in common.

Each is one transaction: the operation in the log and what it does to the catalogue. Bytes are durable before the
transaction that makes them visible.
"""

import time
from collections.abc import Callable

import msgspec

from flystore.catalog import Catalog, Node, Transaction
from flystore.model.errors import InvalidRequest, MadeFromDocuments, NotFound
from flystore.storage import ArrayStore

from .browse import Browse
from .kept import KeptNodes
from .limits import Limits
from .operations import Operation
from .probing import Prober
from .protocol_runs import ProtocolState
from .written_tables import WrittenTables


class Changing:
    """What changes are made with."""

    def __init__(
        self,
        catalog: Catalog,
        browse: Browse,
        arrays: ArrayStore,
        kept: KeptNodes,
        prober: Prober,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._browse = browse
        self._arrays = arrays
        self._parts = kept.store
        self._tables = WrittenTables(kept, limits)
        self._prober = prober
        self._limits = limits
        self._clock = clock
        self._patching = arrays.keep.locks("patch")

    def _node(self, tx: Transaction, path: tuple[str, ...]) -> Node:
        """Return the node at `path`, to be changed in this transaction and by nobody else meanwhile.

        Raises
        ------
        NotFound
            If there is none.
        MadeFromDocuments
            If it belongs to a run that RunWriter wrote.
        """
        require_path(path)
        node = tx.node_to_change(path)
        if node is None:
            raise NotFound(f"No such entry: {list(path)}", path=list(path))
        require_writable(node)
        return node


def require_path(path: tuple[str, ...]) -> None:
    if not path:
        raise InvalidRequest("the root cannot be changed", status=405)


def require_writable(node: Node) -> None:
    if node.origin == "documents":
        raise made_from_documents(node)


def made_from_documents(node: Node) -> MadeFromDocuments:
    return MadeFromDocuments(
        f"/{'/'.join(node.path)} is worked out from the documents of run {node.run_uid}: its metadata, specs and "
        "access tags can be edited, its structure and data cannot"
    )


def log_operation(tx: Transaction, path: tuple[str, ...], operation: Operation, now: float) -> None:
    tx.append_operation(path, operation.action, operation.to_bytes(), now)


def touch(tx: Transaction, run_uid: str | None, now: float, *, closed: bool = False, repeated: int = 0) -> None:
    """Note that a run's writer was heard of, and that so many rows that it sent may be repeats."""
    run = tx.run(run_uid) if run_uid is not None else None
    if run is None:
        return
    run = msgspec.structs.replace(run, last_received=now)
    if repeated and run.writer == "protocol":
        run = msgspec.structs.replace(run, state=ProtocolState.of(run).repeated(repeated).to_bytes())
    if closed and (run.open or run.closed is not None):
        # A late stop document wins over somebody's word that the run was interrupted.
        run = msgspec.structs.replace(run, open=False, closed=None, verdict="complete")
    tx.save_run(run)
