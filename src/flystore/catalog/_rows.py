"""The values the catalogue gives and takes."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from flystore.model.overlay import Overlay
from flystore.model.structures import Family, Spec

Path = tuple[str, ...]
"""Segments from the root down; ``()`` is the root."""

Origin = Literal["documents", "protocol"]
"""Who made a node: the projection of documents, or a request of the Tiled protocol."""


class Node(msgspec.Struct, frozen=True):
    """An entry of the catalogue.

    Attributes
    ----------
    id : int
        Never used again, not even after the node is deleted.
    parent_id : int or None
        None for the root only.
    structure : dict or None
        Wire form, as announced; None for containers.
    external : bytes or None
        Encoded `ExternalArray` of an array in files that documents announced.
    origin : str
        ``documents`` or ``protocol``.
    run_uid : str or None
        The run the node belongs to.
    indexed : bool
        Whether search among its siblings uses the index; below a run it looks at each.
    time_created, time_updated : float
        Unix seconds.
    revision : int
        Grows with every change of the node; good for an ETag.
    overlay : Overlay or None
        What people edited of a node made from documents; `metadata`, `specs` and `access_tags` show it already.
    """

    id: int
    parent_id: int | None
    path: Path
    family: Family
    specs: tuple[Spec, ...]
    metadata: dict[str, Any]
    structure: dict[str, Any] | None
    external: bytes | None
    access_tags: tuple[str, ...]
    origin: Origin
    run_uid: str | None
    indexed: bool
    children_indexed: bool
    time_created: float
    time_updated: float
    revision: int
    overlay: Overlay | None = None

    @property
    def key(self) -> str:
        """The last segment; ``""`` for the root."""
        return self.path[-1] if self.path else ""


class Page(msgspec.Struct, frozen=True):
    """Some children.

    Attributes
    ----------
    next_cursor : int or None
        What to give as `after` for the next page, in order of insertion; None at the end.
    next_offset : int or None
        What to give as `offset` for the next page, in any order; None at the end.
    count : int or None
        How many match in all, where it was asked for: exact up to 1,000 matches of one query, wherever the number is
        kept (no query; one value of a key with at most 1,000 values), and where this is the only page; otherwise a
        number that is less.
    """

    nodes: list[Node]
    next_cursor: int | None
    next_offset: int | None
    count: int | None = None


class KeysPage(msgspec.Struct, frozen=True):
    """The keys of some children; `next_cursor` and `next_offset` as in `Page`."""

    keys: list[str]
    next_cursor: int | None
    next_offset: int | None


class Run(msgspec.Struct, frozen=True):
    """What is kept of a run beside its nodes.

    Attributes
    ----------
    writer : str
        Which kind of writer came first: ``documents``, ``protocol``, or ``orphans`` for documents of no run.
    watermark : int
        The next ordinal expected; all below are stored.
    projected : int
        Documents below this ordinal are in the tree; normally the watermark.
    epoch : int
        Of the writer heard last; older ones are refused.
    state : bytes
        The projection's state after `projected` documents.
    open : bool
        No stop document yet.
    last_received : float
        Unix seconds, this service's clock.
    start_time : float or None
        Of the start document, Unix seconds; None while unknown.
    verdict : str or None
        State word of the documents' verdict; None where there is none to give.
    closed : str or None
        Why somebody closed the run without a stop document; None if nobody did.
    deleted : bool
        A tombstone: the tree is gone, late batches are not stored.
    node_id : int or None
        The run's node; None while it has none. Left None in `save_run`, it is found or kept.
    """

    uid: str
    writer: str
    watermark: int
    projected: int
    epoch: int
    state: bytes
    open: bool
    last_received: float
    start_time: float | None = None
    verdict: str | None = None
    closed: str | None = None
    state_version: int = 1
    deleted: bool = False
    node_id: int | None = None


class RunHeard(msgspec.Struct, frozen=True):
    """Whether a run is open, and when it was heard of last; as in `Run`, of which the rest may be large."""

    open: bool
    last_received: float


class LogRecord(msgspec.Struct, frozen=True):
    """One record of the log.

    Attributes
    ----------
    position : int
        From 1, in the order of commits.
    kind : str
        ``documents`` or ``operation``.
    run_uid : str or None
        Of documents; None if they belong to no run.
    first_ordinal, count : int or None
        Which documents of the run; None for an operation.
    hashes : bytes or None
        16 bytes a document; of an operation 16 bytes, None if it was stored before those had any.
    path, action : of an operation; None for documents.
    received : float
        Unix seconds.
    body : bytes
        Frames, or an operation's body.
    """

    position: int
    kind: Literal["documents", "operation"]
    run_uid: str | None
    first_ordinal: int | None
    count: int | None
    epoch: int | None
    hashes: bytes | None
    path: Path | None
    action: str | None
    received: float
    body: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of its body."""
        return len(self.body)


What = Literal["created", "updated", "deleted", "rows", "data", "closed"]


class FeedEntry(msgspec.Struct, frozen=True):
    """One change of the tree, as the feed tells it.

    Attributes
    ----------
    position, seq : int
        Together the resume token: give it as `after` and what follows is told.
    what : str
        ``created``, ``updated``, ``deleted`` (with all below it), ``rows`` (rows were appended), ``data`` (what a
        node holds was written to), ``closed`` (its writer will add no more).
    detail : dict
        ``created``, ``updated``: ``family``, and of an array its ``shape`` then; ``rows``: ``first_row`` and ``rows``.
    """

    position: int
    seq: int
    path: Path
    run_uid: str | None
    what: str
    detail: dict[str, Any]


class Committed(msgspec.Struct, frozen=True):
    """What a commit touched, for those who wait for it.

    Attributes
    ----------
    first, last : int
        Its positions in the log and the feed.
    run_uids : frozenset of str
        Runs that have new documents or changes.
    paths : frozenset of str
        Nodes that changed or were operated on, as stored (see `path_text`).
    """

    first: int
    last: int
    run_uids: frozenset[str]
    paths: frozenset[str]


BY_COLUMNS = "columns:"
"""In place of a file's URI: the rows lie in one row of the table for each column."""


class Segment(msgspec.Struct, frozen=True):
    """Consecutive rows of a series of slow data.

    Attributes
    ----------
    first_row, rows : int
        Rows ``first_row … first_row + rows - 1`` of the series, in arrival order.
    body : bytes or None
        Arrow IPC; the header of the columns if the rows are stored by columns; None if they were moved to a file.
    uri : str or None
        The file they were moved to; `BY_COLUMNS` if they are stored by columns.
    received : float
        Unix seconds.
    crc : int or None
        CRC-32C of `body`; None if it was stored before there were checksums.
    columns : dict of int to bytes
        Of rows stored by columns: those that were asked for, by their number.
    """

    first_row: int
    rows: int
    body: bytes | None
    received: float
    uri: str | None = None
    crc: int | None = None
    columns: dict[int, bytes] = {}

    @property
    def by_columns(self) -> bool:
        return self.uri == BY_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of what was read of it."""
        return len(self.body or b"") + sum(map(len, self.columns.values()))


class Observation(msgspec.Struct, frozen=True):
    """What was found in the files of a node, and when; the last one is kept.

    Attributes
    ----------
    num : int or None
        Of one asset; None: of the node as a whole.
    time : float
        Unix seconds.
    status : str
        A word: ``readable``, ``missing``, ``unreadable`` …
    rows : int or None
        Readable rows; None if nothing could be said.
    fingerprint : dict
        What to compare to see whether a file changed (inode, size, mtime).
    detail : str
        One sentence for people; ``""`` if there is nothing to say.
    """

    node_id: int
    time: float
    status: str
    rows: int | None = None
    fingerprint: dict[str, Any] = {}
    detail: str = ""
    num: int | None = None


class Revision(msgspec.Struct, frozen=True):
    """What a node's metadata, specs and tags were before a change; `number` from 1."""

    number: int
    metadata: dict[str, Any]
    specs: tuple[Spec, ...]
    access_tags: tuple[str, ...]
    time_updated: float


def path_text(path: Sequence[str]) -> str:
    """Return a path as stored: segments joined by ``/``, ``""`` for the root."""
    return "/".join(path)


def path_of(text: str) -> Path:
    return tuple(text.split("/")) if text else ()
