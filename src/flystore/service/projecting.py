"""Carrying a projection's changes into the catalogue, inside the transaction that stores the batch."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from flystore.catalog import Path, Transaction
from flystore.model.overlay import Overlay
from flystore.projection import AppendRows, Change, PutNode
from flystore.storage import encode_segments


class EncodedRows(NamedTuple):
    """Rows to append to a series, as they are stored.

    Attributes
    ----------
    path : tuple of str
        Of the stream.
    first_row : int
    pieces : list of (int, bytes)
        Rows and Arrow IPC of successive segments.
    """

    path: tuple[str, ...]
    first_row: int
    pieces: list[tuple[int, bytes]]


Storable = PutNode | EncodedRows


def storable(changes: Iterable[Change | EncodedRows]) -> list[Storable]:
    """Return changes with their rows encoded, which takes time that a transaction should not take."""
    return [
        EncodedRows(change.path, change.first_row, encode_segments(change.batch))
        if isinstance(change, AppendRows)
        else change
        for change in changes
    ]


def apply_changes(
    tx: Transaction,
    uid: str,
    changes: Iterable[Change | EncodedRows],
    received: float,
    *,
    overlays: Mapping[Path, Overlay] | None = None,
) -> list[int]:
    """Store `changes` of run `uid`; return the node ids whose files are worth looking at now.

    Parameters
    ----------
    received : float
        Unix seconds at which the batch came.
    overlays : mapping, optional
        What people edited of each node, as the log tells it, to work the run out again; None: what the nodes keep.
    """
    external: list[int] = []
    for change in storable(changes):
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
                    access_tags=None if overlays is None else (),
                    overlay="kept" if overlays is None else overlays.get(change.path),
                )
                if change.data_source is not None:
                    tx.put_data_source(node.id, change.data_source)
                if change.external is not None:
                    external.append(node.id)
            case EncodedRows():
                first_row = change.first_row
                for rows, body in change.pieces:
                    tx.append_segment(series_of(change.path), first_row, rows, body, received, run_uid=uid)
                    first_row += rows
    return external


def series_of(path: tuple[str, ...]) -> str:
    """Return the name of the segment series of a stream or table."""
    return "/".join(path)
