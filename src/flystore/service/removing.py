"""Removing nodes, and the word of a writer that it is done with one."""

import msgspec

from flystore.catalog import Node, Transaction
from flystore.model.errors import Conflict, InvalidRequest, NotFound
from flystore.model.structures import Management

from .browse import everything_below
from .changing import Changing, made_from_documents
from .columns import series_of_table


class Removing(Changing):
    """Removes nodes."""

    def delete(self, path: tuple[str, ...], *, recursive: bool, external_only: bool) -> None:
        """Remove a node; files that others wrote are never touched.

        Raises
        ------
        Conflict
            If it has children and `recursive` is False, or holds data that this service keeps and
            `external_only` is True.
        """
        if not path:
            raise InvalidRequest("the root cannot be deleted", status=405)
        with self._catalog.write() as tx:
            node = tx.node(path)
            if node is None:
                raise NotFound(f"No such entry: {list(path)}", path=list(path))
            if node.origin == "documents" and len(path) > 1:
                raise made_from_documents(node)
            # Before its nodes, in the order in which a batch of its documents takes them.
            run = tx.run(node.run_uid) if len(path) == 1 and node.run_uid is not None else None
            below = list(everything_below(tx, path))
            if below and not recursive:
                raise Conflict(
                    "Cannot delete a node that is not empty. Delete its contents first or pass `recursive=True`."
                )
            kept = [found for found in (node, *below) if _internal(tx, found)]
            if kept and external_only:
                raise Conflict(
                    "Some items in this tree are internally managed. Pass external_only=False to delete them too."
                )
            for found in kept:
                tx.drop_series(series_of_table(found))
            tx.delete_node(path, recursive=recursive)
            tx.append_operation(path, "delete", b"", self._clock())
            if run is not None:
                tx.save_run(msgspec.structs.replace(run, deleted=True, open=False, state=b""))
        for found in kept:
            self._arrays.delete(str(found.id))

    def close(self, path: tuple[str, ...]) -> None:
        """Record that the writer will add no more to this node.

        Raises
        ------
        NotFound
        """
        with self._catalog.write() as tx:
            node = tx.node(path)
            if node is None:
                raise NotFound(f"No such entry: {list(path)}", path=list(path))
            tx.append_operation(path, "close", b"", self._clock())
            tx.note_change(path, "closed", {"family": str(node.family)}, run_uid=node.run_uid)


def _internal(tx: Transaction, node: Node) -> bool:
    source = tx.data_source(node.id)
    return source is not None and source.management is not Management.EXTERNAL
