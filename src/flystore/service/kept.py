"""What writing awkward, ragged and sparse nodes has in common: parts in files first, then the operation in the log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from flystore.catalog import Catalog, Node
from flystore.model.errors import Damaged, FlystoreError, MadeFromDocuments, NotFound, NotReady, Truncated, Unsupported
from flystore.model.structures import DataSource, Family, Management
from flystore.storage import PartStore

from .browse import Browse, require_family
from .operations import ArrayWritten, RowsWritten, StructureSet

_LATELY = 10.0


class KeptNodes:
    """Nodes whose data this service keeps as parts.

    One write at a time goes on at one node, in all processes; readers are never kept waiting.

    Attributes
    ----------
    store : PartStore
    """

    def __init__(
        self, catalog: Catalog, browse: Browse, store: PartStore, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = store
        self._catalog = catalog
        self._browse = browse
        self._clock = clock
        self._locks = store.keep.locks("node")

    def found(self, path: tuple[str, ...], family: Family) -> tuple[Node, DataSource | None]:
        """Return a node of a family and where its data lies.

        Raises
        ------
        NotFound
        """
        with self._browse.moment() as moment:
            node = require_family(self._browse.entry(path, moment), family).node
            assert node is not None
            return node, moment.data_source(node.id)

    def readable(self, path: tuple[str, ...], family: Family, mimetype: str) -> Node:
        """Return a node that is kept as parts.

        Raises
        ------
        NotFound
        Unsupported
            If its data lies elsewhere.
        """
        node, source = self.found(path, family)
        if not is_kept(source, mimetype):
            raise Unsupported(f"/{'/'.join(path)} holds no {family} data that this service knows how to read")
        return node

    @contextmanager
    def writing(self, path: tuple[str, ...], family: Family, mimetype: str) -> Iterator[Node]:
        """Give a node to write to, as it is once others have written.

        Raises
        ------
        NotFound
        MadeFromDocuments
        Unsupported
            If this service does not keep its data.
        """
        node, source = self.found(path, family)
        if node.origin == "documents":
            raise MadeFromDocuments(
                f"/{'/'.join(path)} is worked out from the documents of run {node.run_uid}; "
                "it cannot be changed by itself"
            )
        if not is_kept(source, mimetype):
            raise Unsupported(f"/{'/'.join(path)} is not a node whose data this service keeps", status=405)
        with self._locks.holding(node.id):
            yield self.found(path, family)[0]

    def log(self, node: Node, operation: ArrayWritten | StructureSet | RowsWritten) -> None:
        """Make a write known: the operation in the log, and the node's structure if it is another one now.

        Raises
        ------
        NotFound
            If the node was deleted meanwhile.
        """
        log_write(self._catalog, node, operation, self._clock())

    def never_written(self, node: Node, what: str) -> FlystoreError:
        """Return what to say of a part that nobody wrote yet: try again, if the node is young."""
        error = NotReady if self._clock() - node.time_updated < _LATELY else Truncated
        return error(f"{what} of /{'/'.join(node.path)} was never written", path=list(node.path))

    def gone(self, node: Node, error: Damaged) -> FlystoreError:
        """Return what to say of a part that cannot be read: its files go after the node that is deleted."""
        with self._catalog.read() as snapshot:
            known = snapshot.node(node.path)
        if known is None or known.id != node.id:
            return NotReady(f"/{'/'.join(node.path)} was replaced while it was read; read again")
        return Damaged(f"/{'/'.join(node.path)}: {error.message}", path=list(node.path))


def log_write(
    catalog: Catalog,
    node: Node,
    operation: ArrayWritten | StructureSet | RowsWritten,
    now: float,
    *,
    extended_at: tuple[int, ...] | None = None,
) -> None:
    """Make a write known that reached the disk at `now`, Unix seconds; see `KeptNodes.log`.

    `extended_at` is where an array was extended, for the next one who wants to.
    """
    with catalog.write() as tx:
        known = tx.node(node.path)
        if known is None or known.id != node.id:
            raise NotFound(f"No such entry: {list(node.path)}", path=list(node.path))
        if isinstance(operation, StructureSet):
            tx.set_structure(node.path, operation.structure)
        if extended_at is not None:
            tx.note_extension(node.id, extended_at)
        tx.note_data(node.id)
        tx.append_operation(node.path, operation.action, operation.to_bytes(), now)
        tx.note_change(node.path, "data", {"family": str(node.family)}, run_uid=node.run_uid)
        run = tx.run(node.run_uid) if node.run_uid is not None else None
        if run is not None:
            tx.save_run(msgspec.structs.replace(run, last_received=now))


def is_kept(source: DataSource | None, mimetype: str) -> bool:
    return source is not None and source.mimetype == mimetype and source.management is not Management.EXTERNAL
