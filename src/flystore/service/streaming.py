"""Tiled's streams of a node: what was written to it, as messages, from the change feed and the data that are stored.

No second copy is kept. A message's number is made of its place in the feed, so it is the same in every process and
after every restart, and rises, with gaps. What a message tells is read when it is sent: an array's bytes are those
that are there by then.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from flystore.catalog import Catalog, FeedEntry, LogRecord, Node, Snapshot
from flystore.model.errors import FlystoreError, InvalidRequest, NotFound
from flystore.model.late import pa
from flystore.model.structures import ArrayStructure, DataSource, Family
from flystore.storage import parts_of_file

from .arrays import Arrays
from .browse import Browse
from .columns import series_of_table, shown_rows, shown_schema
from .export import plain
from .operations import ACTIONS, ArrayWritten, Created, DataSourcePut, Edited, MetadataSet, RowsWritten, StructureSet
from .tables import Tables
from .waking import topic_of_path

PAYLOAD_BYTES = 500_000
"""Stock clients give up for good on a message beyond 1,000,000 bytes."""

_SEQ_BITS = 12
_PIECE_BITS = 10
_LAST_PIECE = (1 << _PIECE_BITS) - 1
_POSITION_BITS = _SEQ_BITS + _PIECE_BITS
_PAGE = 100
_SOME_BYTES = 4 << 20


class Message(NamedTuple):
    """One update.

    Attributes
    ----------
    sequence : int
        Rises along the stream of a node.
    body : dict
        Of the protocol, but for ``uri``, which is a slice; and ``data_source``, ``data_sources``, which are values.
    payload : bytes or None
        C-ordered bytes of an array, an Arrow file of a table.
    """

    sequence: int
    body: dict[str, Any]
    payload: bytes | None = None


class Messages(NamedTuple):
    """Updates that follow each other; `position` is behind them, `ended` that no more will come."""

    found: list[Message]
    position: int
    more: bool
    ended: bool


class Stream:
    """What one subscriber follows.

    Attributes
    ----------
    node : Node
    source_path : tuple of str
        Where the feed tells of its data: a table of a stream of documents shows the stream's own rows.
    shape : tuple of int
        Of an array, as far as was told.
    """

    def __init__(self, node: Node, source_path: tuple[str, ...], position: int, start: int) -> None:
        self.node = node
        self.source_path = source_path
        self.position = position
        self.start = start
        self.shape: tuple[int, ...] | None = None

    @property
    def topic(self) -> str:
        return topic_of_path(self.source_path)

    def pass_over(self, entry: FeedEntry) -> None:
        """Take what the subscriber was told before, on a connection of before: how long the array was then."""
        if entry.path == self.node.path and "shape" in entry.detail:
            self.shape = tuple(entry.detail["shape"])


class Streaming:
    """Reads the streams of nodes, for any number of subscribers."""

    def __init__(self, catalog: Catalog, browse: Browse, arrays: Arrays, tables: Tables) -> None:
        self._catalog = catalog
        self._browse = browse
        self._arrays = arrays
        self._tables = tables

    def open(self, path: tuple[str, ...], start: int | None) -> Stream:
        """Return the stream of the node at `path`.

        Parameters
        ----------
        start : int or None
            The first number wanted; one that is not there stands for the next that is. None: from now on.

        Raises
        ------
        NotFound
            If there is no such node, or it is no node of its own, as a column.
        InvalidRequest
            If `start` lies behind what this store has: it was set back to an older state; or it is another store's.
        """
        with self._catalog.read() as snapshot:
            entry = self._browse.entry(path, snapshot)
            node = entry.node if path else snapshot.node(())
            if node is None or entry.column is not None or entry.virtual:
                raise NotFound(f"/{'/'.join(path)} has no stream of its own; subscribe to the node it is in")
            if node.family not in (Family.CONTAINER, Family.ARRAY, Family.TABLE):
                raise NotFound(f"/{'/'.join(path)} is of family {node.family}, which has no stream")
            source_path = node.path
            if node.family is Family.TABLE and node.origin == "documents":
                source_path = tuple(series_of_table(node).split("/"))
            last = snapshot.last_position()
            if start is None:
                stream = Stream(node, source_path, last, 0)
                if node.structure is not None and node.family is Family.ARRAY:
                    stream.shape = tuple(node.structure["shape"])
                return stream
            if start >> _POSITION_BITS > last:
                raise InvalidRequest(
                    f"start={start} lies behind all that this store has; it is a number of another store, or this one "
                    "was set back to an older state. Subscribe with start=0, or without start.",
                    start=start,
                )
            begun = self._born(snapshot, node)
            return Stream(node, source_path, max((start >> _POSITION_BITS) - 1, begun - 1, 0), start)

    def page(self, stream: Stream) -> Messages:
        """Return updates beyond the position of `stream`, which is moved behind them."""
        node = stream.node
        with self._catalog.read() as snapshot:
            last = snapshot.last_position()
            after = stream.position
            stop = min(last, after + 100_000) if node.run_uid is None else last
            entries = snapshot.changes(
                after, under=stream.source_path, run_uid=node.run_uid, stop=stop, limit=_PAGE * 10
            )
            full = len(entries) == _PAGE * 10
            if full:  # whole positions only
                stop = entries[-1].position - 1
                if entries[0].position > stop:
                    stop = entries[-1].position
                    more = snapshot.changes(
                        stop - 1, under=stream.source_path, run_uid=node.run_uid, stop=stop, limit=1 << 20
                    )
                    entries = more
                entries = [entry for entry in entries if entry.position <= stop]
            known = snapshot.node(node.path)
            ended = known is None or known.id != node.id  # with what it was in, perhaps
            if not ended and node.run_uid is not None and node.origin == "documents":
                heard = snapshot.run_heard(node.run_uid)
                ended = stop == last and (heard is None or not heard.open)
        found: list[Message] = []
        size = 0
        for at, entry in enumerate(entries):
            if entry.path == node.path and entry.what in ("closed", "deleted"):
                sequence = _sequence(entry)
                if sequence >= stream.start:
                    stream.position = entry.position
                    return Messages(found, entry.position, False, True)
                continue
            if _sequence(entry, _LAST_PIECE) < stream.start:
                stream.pass_over(entry)
                continue
            for message in self._told(stream, entry):
                if message.sequence >= stream.start:
                    found.append(message)
                    size += len(message.payload or b"")
            onward = at + 1 < len(entries) and entries[at + 1].position > entry.position
            if onward and (size > _SOME_BYTES or len(found) >= _PAGE):
                stream.position = entry.position
                return Messages(found, entry.position, True, False)
        stream.position = stop
        return Messages(found, stop, stop < last, ended and stop == last)

    def _born(self, snapshot: Snapshot, node: Node) -> int:
        """Return the position from which on there is this node, and not one before it of the same path."""
        after: tuple[int, int] | int = 0
        born = 0
        if not node.path:
            return born
        while True:
            entries = snapshot.changes(after, under=node.path, run_uid=node.run_uid, limit=1_000)
            for entry in entries:
                if entry.path == node.path and entry.what == "created":
                    born = entry.position
            if len(entries) < 1_000:
                return born
            after = (entries[-1].position, entries[-1].seq)

    def _told(self, stream: Stream, entry: FeedEntry) -> Iterator[Message]:
        """Yield what a change is to the subscribers of this node."""
        node = stream.node
        if node.family is Family.CONTAINER:
            if len(entry.path) == len(node.path) + 1 and entry.what in ("created", "updated"):
                yield from self._child(entry)
        elif entry.path != stream.source_path:
            return
        elif node.family is Family.TABLE:
            if entry.what in ("rows", "data"):
                yield from self._rows(node, entry)
        elif entry.what in ("data", "updated") or (entry.what == "created" and node.origin == "documents"):
            yield from self._array(stream, entry)

    # --- containers -----------------------------------------------------------------------------

    def _child(self, entry: FeedEntry) -> Iterator[Message]:
        record, operation = self._operation(entry)
        with self._catalog.read() as snapshot:
            node = snapshot.node(entry.path)
            source = None if node is None else snapshot.data_source(node.id)
        if entry.what == "created":
            made = operation if isinstance(operation, Created) else None
            if made is None and node is None:
                return  # it is gone, and only its documents say what it was
            if made is not None and node is not None and made.source is not None and source is not None:
                source = msgspec.structs.replace(made.source, id=source.id)
            elif made is not None:
                source = made.source
            told: Any = made or node
            body = {
                "type": "container-child-created",
                "structure_family": str(told.family),
                "specs": [spec.to_wire() for spec in told.specs],
                "metadata": told.metadata,
                "data_sources": [] if source is None else [source],
                "access_tags": list(told.access_tags),
            }
        else:
            if operation is not None and not isinstance(operation, MetadataSet | Edited):
                return
            if operation is None and (node is None or node.family is not Family.CONTAINER):
                return
            told = operation if isinstance(operation, MetadataSet) else node
            if told is None:
                return
            body = {
                "type": "container-child-metadata-updated",
                "specs": [spec.to_wire() for spec in told.specs],
                "metadata": told.metadata,
            }
        yield _message(entry, record, {**body, "key": entry.path[-1]})

    # --- tables ---------------------------------------------------------------------------------

    def _rows(self, node: Node, entry: FeedEntry) -> Iterator[Message]:
        record, operation = self._operation(entry)
        replaced = isinstance(operation, RowsWritten) and operation.replaced
        partition = operation.partition if isinstance(operation, RowsWritten) else None
        try:
            if entry.what == "data":
                table = self._tables.read(node.path, partition=partition)
            else:
                table = self._segment_rows(node, entry.detail["first_row"], entry.detail["rows"])
        except NotFound:
            return
        if not table.num_rows and not replaced:
            return
        pieces = min(max(1, math.ceil(table.nbytes / PAYLOAD_BYTES)), 1 << _PIECE_BITS, max(1, table.num_rows))
        step = math.ceil(table.num_rows / pieces) or 1
        for number, first in enumerate(range(0, max(table.num_rows, 1), step)):
            append = not replaced or number > 0
            body = {
                "type": "table-data",
                "mimetype": "application/vnd.apache.arrow.file",
                "partition": 0 if append else partition,
                "append": append,
            }
            payload = b"".join(parts_of_file(table.slice(first, step)))
            yield _message(entry, record, body, payload, number)

    def _segment_rows(self, node: Node, first: int, rows: int) -> pa.Table:
        schema, _ = shown_schema(node)
        series = series_of_table(node)
        with self._catalog.read() as snapshot:
            began = snapshot.began(series)
            stop = min(first + rows, snapshot.rows(series))
        batches = list(shown_rows(self._catalog, series, schema, stop, began, first=first)) if stop > first else []
        return pa.Table.from_batches(batches, schema=schema)

    # --- arrays ---------------------------------------------------------------------------------

    def _array(self, stream: Stream, entry: FeedEntry) -> Iterator[Message]:
        record, operation = self._operation(entry)
        with self._catalog.read() as snapshot:
            node = snapshot.node(entry.path)
            source = None if node is None else snapshot.data_source(node.id)
        if node is None or source is None or node.id != stream.node.id or node.structure is None:
            return
        structure = ArrayStructure.from_wire(node.structure)
        if isinstance(operation, DataSourcePut) or (operation is None and entry.what != "data"):
            shape = _shape_then(entry, tuple(node.structure["shape"]))
            if isinstance(operation, DataSourcePut):
                source = msgspec.structs.replace(operation.source, id=source.id)
                shape = tuple(source.structure["shape"])
            elif shape == stream.shape or 0 in shape:
                stream.shape = shape
                return
            patch = _grown(stream.shape, shape)
            stream.shape = shape
            yield _reference(entry, record, source, shape, patch)
        elif entry.what != "data":
            return
        elif isinstance(operation, StructureSet):
            offset = (*operation.offset, *(0,) * (len(structure.shape) - len(operation.offset)))
            yield self._region(
                entry, record, node, source, structure, (offset, operation.shape), None, operation.offset
            )
        elif isinstance(operation, ArrayWritten):
            block, shape = operation.block, structure.shape
            offset = (0,) * len(shape)
            if block is not None:
                offset = tuple(sum(sizes[:n]) for sizes, n in zip(structure.chunks, block, strict=True))
                shape = tuple(sizes[n] for sizes, n in zip(structure.chunks, block, strict=True))
            elif shape:  # it may have grown since
                row = structure.numpy_dtype.itemsize * math.prod(shape[1:])
                shape = (min(shape[0], operation.bytes_written // row if row else shape[0]), *shape[1:])
            yield self._region(entry, record, node, source, structure, (offset, shape), block, None)

    def _region(
        self,
        entry: FeedEntry,
        record: LogRecord | None,
        node: Node,
        source: DataSource,
        structure: ArrayStructure,
        region: tuple[tuple[int, ...], tuple[int, ...]],
        block: tuple[int, ...] | None,
        offset: tuple[int, ...] | None,
    ) -> Message:
        begin, shape = region
        if structure.numpy_dtype.itemsize * math.prod(shape) > PAYLOAD_BYTES:
            return _reference(entry, record, source, structure.shape, {"offset": list(begin), "shape": list(shape)})
        wanted = tuple(slice(at, at + n) for at, n in zip(begin, shape, strict=True))
        try:
            payload = bytes(self._arrays.read(node.path, wanted))
        except FlystoreError:
            return _reference(entry, record, source, structure.shape, {"offset": list(begin), "shape": list(shape)})
        body = {
            "type": "array-data",
            "mimetype": "application/octet-stream",
            "shape": list(shape),
            "offset": None if offset is None else list(offset),
            "block": None if block is None else list(block),
        }
        return _message(entry, record, body, payload)

    def _operation(self, entry: FeedEntry) -> tuple[LogRecord | None, Any]:
        """Return the record that brought a change about, and its operation; None for documents."""
        with self._catalog.read() as snapshot:
            record = next(iter(snapshot.log(entry.position - 1, limit=1)), None)
        if record is None or record.position != entry.position or record.kind != "operation":
            return record, None
        kind = ACTIONS.get(record.action or "")
        if kind is None or record.path != entry.path:
            return record, None
        return record, msgspec.msgpack.decode(record.body, type=kind)


def as_json(node: Node, message: Message) -> bytes:
    """Return a payload as JSON: nested lists of an array, lists by column of a table; see `flystore.service.export`."""
    assert message.payload is not None
    if node.family is Family.TABLE:
        table = pa.ipc.open_file(message.payload).read_all()
        columns = {
            name: [value for chunk in column.chunks for value in plain.of_column(chunk)]
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        return plain.encode(columns)
    assert node.structure is not None
    dtype = ArrayStructure.from_wire(node.structure).numpy_dtype
    array = np.frombuffer(message.payload, dtype).reshape(message.body["shape"])
    return plain.encode(array.tolist() if dtype.kind == "V" and not dtype.names else plain.of_array(array))


def _sequence(entry: FeedEntry, piece: int = 0) -> int:
    seq = min(entry.seq, (1 << _SEQ_BITS) - 1)
    return entry.position << _POSITION_BITS | seq << _PIECE_BITS | min(piece, _LAST_PIECE)


def _message(
    entry: FeedEntry, record: LogRecord | None, body: dict[str, Any], payload: bytes | None = None, piece: int = 0
) -> Message:
    sequence = _sequence(entry, piece)
    received = 0.0 if record is None else record.received
    when = datetime.datetime.fromtimestamp(received, datetime.UTC).replace(tzinfo=None).isoformat()
    return Message(sequence, {**body, "sequence": sequence, "timestamp": when}, payload)


def _reference(
    entry: FeedEntry,
    record: LogRecord | None,
    source: DataSource,
    shape: tuple[int, ...],
    patch: dict[str, list[int]] | None,
) -> Message:
    if patch is None:
        slices = ",".join(f":{n}" for n in shape)
    else:
        pairs = zip(patch["offset"], patch["shape"], strict=True)
        slices = ",".join(f"{at}:{at + n}" for at, n in pairs)
    body = {"type": "array-ref", "data_source": source, "patch": patch, "shape": list(shape), "uri": slices}
    return _message(entry, record, body)


def _shape_then(entry: FeedEntry, now: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape an array had when a change was told: not more than it has now.

    Stores of before 2026-11-23 do not tell; then it is taken for what it is now.
    """
    then = entry.detail.get("shape")
    if then is None or len(then) != len(now) or tuple(then[1:]) != now[1:] or not now:
        return now
    return (min(then[0], now[0]), *now[1:])


def _grown(old: tuple[int, ...] | None, new: tuple[int, ...]) -> dict[str, list[int]] | None:
    """Return what was added to an array that grew along its first axis; None if it is not that."""
    if old is None or len(old) != len(new) or not new or old[1:] != new[1:] or new[0] <= old[0]:
        return None
    return {"offset": [old[0], *[0] * (len(new) - 1)], "shape": [new[0] - old[0], *new[1:]]}
