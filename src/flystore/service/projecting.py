"""Carrying a projection's changes into the catalogue, inside the transaction that stores the batch."""

from collections.abc import Iterable

from flystore.catalog import Transaction
from flystore.projection import AppendRows, Change, PutNode
from flystore.storage import encode_segment


def apply_changes(tx: Transaction, uid: str, changes: Iterable[Change], received: float) -> list[int]:
    """Store `changes` of run `uid`; return the node ids whose files are worth looking at now.

    Parameters
    ----------
    received : float
        Unix seconds at which the batch came.
    """
    external: list[int] = []
    for change in changes:
        match change:
            case PutNode():
                node = tx.put_node(
                    change.path,
                    change.family,
                    change.specs,
                    change.metadata,
                    change.structure,
                    external=change.external,
                    origin="documents",
                    run_uid=uid,
                )
                if change.data_source is not None:
                    tx.put_data_source(node.id, change.data_source)
                if change.external is not None:
                    external.append(node.id)
            case AppendRows():
                body = encode_segment(change.batch)
                tx.append_segment(series_of(change.path), change.first_row, change.batch.num_rows, body, received)
    return external


def series_of(path: tuple[str, ...]) -> str:
    """Return the name of the segment series of a stream or table."""
    return "/".join(path)
