"""Documents in, changes out: the routing of a batch.

Nothing here raises on the content of a document. What makes no sense is counted in a note, and the rest goes on;
the document itself is in the log.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from flystore.model.blocks import DatumBlock, EventBlock, Item, StreamDatum

from ._changes import AppendRows, Change, PutNode
from ._frames import stream_frames
from ._legacy import datum_indices
from ._metadata import json_view
from ._names import segment
from ._nodes import array_nodes, digest, external_nodes, node_digest, run_node, stream_node, table_nodes
from ._normalize import LARGEST_INDEX, WIDEST_RANGE, announced_range, announced_resource
from ._notes import add_note, note_id
from ._pages import bulk_datums, bulk_events, page_datums, page_events
from ._state import (
    EXACT_RANGES,
    PARKED_LIMIT,
    USED_DATUMS,
    DatumState,
    DescriptorState,
    ParkedRange,
    ResourceState,
    RunState,
    StreamState,
    WaitingReference,
)
from ._stream import ExternalWork, StreamWork

Document = Mapping[str, Any]


def advance(state: RunState, documents: Iterable[tuple[int, str, Document] | Item]) -> tuple[RunState, list[Change]]:
    """Take a batch of documents in.

    Parameters
    ----------
    state : RunState
        After the batch before; not changed.
    documents : iterable of (ordinal, name, document), or blocks of them
        In the order of their ordinals. The content may be anything. A block gives what its documents would one by
        one.

    Returns
    -------
    state : RunState
    changes : list of PutNode and AppendRows
        Nodes as they are after the batch, each path once, parents before children; then rows, at most one
        `AppendRows` a stream.

    Notes
    -----
    However a run is cut into batches, the last `PutNode` of each path and the rows joined are the same. They are the
    same, too, in any order of documents that event-model allows and that keeps each stream's own order, and with
    StreamDatums in any order.
    """
    batch = _Batch(state)
    for item in documents:
        if isinstance(item, EventBlock):
            batch.take_events(item)
        elif isinstance(item, DatumBlock):
            batch.take_stream_datums(item)
        else:
            batch.take(*item)
    return batch.finish()


class _JoinedRanges:
    """Ranges of StreamDatums that go on from each other, so that a thousand of one file are added as one.

    To `ExternalWork.add` it makes no difference: of ranges that arrive while nothing else changes, the second is
    merged with the first if it goes on from it.
    """

    def __init__(self, batch: "_Batch") -> None:
        self._batch = batch
        self._works: dict[tuple[str, str], ExternalWork | None] = {}
        self._open: dict[ExternalWork, list[Any]] = {}
        self._going: dict[str, list[Any]] = {}

    def goes_on(self, datum: StreamDatum) -> bool:
        """Take one in that goes on from the last of its resource and descriptor, as nearly all do; else False."""
        known = self._going.get(datum.stream_resource)
        if known is None or known[5] != datum.descriptor:
            return False
        bounds = datum.indices
        index = bounds.start
        count = bounds.stop - index
        bounds = datum.seq_nums
        seq, joined = bounds.start, known[4]
        if (
            index != known[2] + joined
            or seq != known[3] + joined
            or bounds.stop - seq != count
            or not 0 < count <= WIDEST_RANGE
            or index >= LARGEST_INDEX - count
            or seq >= LARGEST_INDEX - count
        ):
            return False
        known[4] = joined + count
        return True

    def add(self, ordinal: int, datum: StreamDatum) -> bool:
        """Take one in; False, and nothing done, if there is more to it than a range of a known file."""
        index, seq = datum.indices.start, datum.seq_nums.start
        count = datum.indices.stop - index
        uneven = datum.seq_nums.stop - seq != count
        if uneven or index < 0 or not 0 < count <= WIDEST_RANGE or not -LARGEST_INDEX < seq < LARGEST_INDEX - count:
            return False
        if index >= LARGEST_INDEX - count:
            return False
        uid = datum.stream_resource
        where = (uid, datum.descriptor)
        work = self._works[where] if where in self._works else self._find(*where)
        if work is None:
            return False
        known = self._open.get(work)
        if known is not None:
            if known[0] == uid and known[2] + known[4] == index and known[3] + known[4] == seq:
                known[4] += count
                return True
            self._close(work, known)
        self._open[work] = self._going[uid] = [uid, ordinal, index, seq, count, datum.descriptor]
        return True

    def _find(self, uid: str, descriptor_uid: str) -> ExternalWork | None:
        resource, descriptor = self._batch.resources.get(uid), self._batch.descriptors.get(descriptor_uid)
        found = None
        if resource is not None and resource.data_key is not None and descriptor is not None:
            found = self._batch.stream(descriptor.stream).frames_of(resource.data_key)
        self._works[uid, descriptor_uid] = found
        return found

    def _close(self, work: ExternalWork, found: list[Any]) -> None:
        uid, ordinal, index, seq, count, _ = found
        if self._going.get(uid) is found:
            del self._going[uid]
        work.add(uid, ordinal, index, seq, count, self._batch.newest_waiting)

    def end(self) -> None:
        """Add what is left."""
        for work, found in self._open.items():
            self._close(work, found)
        self._open.clear()
        self._going.clear()


class _Batch:
    """Working copies of what a batch touches."""

    def __init__(self, state: RunState) -> None:
        self.before = state
        self.start = state.start
        self.stop = state.stop
        self.specs = state.specs
        self.notes = dict(state.notes)
        self.streams: dict[str, StreamWork] = {}
        self.descriptors = dict(state.descriptors)
        self.resources = dict(state.resources)
        self.datums = dict(state.datums)
        self.used = dict(state.used)
        self.parked = dict(state.parked)
        self.own_parked: dict[str, list[ParkedRange]] = {}
        self.waiting = dict(state.waiting)
        waiting = [found.ordinal for each in (self.parked, self.waiting) for some in each.values() for found in some]
        self.waiting_number = len(waiting)
        self.newest_waiting = max(waiting, default=-1)
        self.handlers: dict[str, Callable[[int, Any], None]] = {
            "start": self.on_start,
            "stop": self.on_stop,
            "descriptor": self.on_descriptor,
            "event": self.on_event,
            "event_page": lambda ordinal, doc: self.on_events(ordinal, page_events(doc)),
            "bulk_events": lambda ordinal, doc: self.on_events(ordinal, bulk_events(doc)),
            "resource": self.on_resource,
            "datum": self.on_datum,
            "datum_page": lambda ordinal, doc: self.on_datums(ordinal, page_datums(doc)),
            "bulk_datum": lambda ordinal, doc: self.on_datums(ordinal, bulk_datums(doc)),
            "stream_resource": self.on_stream_resource,
            "stream_datum": self.on_stream_datum,
        }

    def note(self, kind: str, stream: str = "", key: str = "", detail: str = "") -> None:
        add_note(self.notes, note_id(kind, stream, key, detail))

    def take(self, ordinal: int, name: str, doc: Document) -> None:
        handler = self.handlers.get(name)
        if handler is None:
            self.note("unknown-document", detail=str(name)[:100])
            return
        try:
            if self.stop is not None and name != "stop":
                self.note("after-stop")
            if self.start is None and name != "start":
                self.note("no-start")
            handler(ordinal, doc)
        except Exception as error:  # noqa: BLE001
            # A document may hold anything at all, and none of it may end an acquisition. What the handlers
            # foresee they note by name; this is for the rest.
            self.note("malformed", key=name, detail=type(error).__name__)

    def take_events(self, block: EventBlock) -> None:
        descriptor = self.descriptors.get(block.descriptor)
        taken = (
            descriptor is not None and self._is_running and self.stream(descriptor.stream).add_events(block, descriptor)
        )
        if not taken:
            for document in block.documents():
                self.take(*document)

    def take_stream_datums(self, block: DatumBlock) -> None:
        if not self._is_running:
            for document in block.documents():
                self.take(*document)
            return
        joined = _JoinedRanges(self)
        goes_on = joined.goes_on
        for number, datum in enumerate(block.datums):
            if goes_on(datum):
                continue
            ordinal = block.first + number
            if not joined.add(ordinal, datum):
                joined.end()  # what comes next may change what ranges are joined with
                self.take(ordinal, "stream_datum", block.document(number))
        joined.end()

    @property
    def _is_running(self) -> bool:
        return self.start is not None and self.stop is None

    def stream(self, name: str) -> StreamWork:
        work = self.streams.get(name)
        if work is None:
            state = self.before.streams.get(name) or StreamState(name, segment(name), {})
            work = self.streams[name] = StreamWork(state, self.notes)
        return work

    # --- run ---------------------------------------------------------------------------------------------

    def on_start(self, ordinal: int, doc: Document) -> None:
        if self.start is not None:
            self.note("second-start")
            return
        self.specs = tuple(self._specs(doc.get("tiled_specs")))
        shown = {key: value for key, value in doc.items() if key not in ("tiled_access_tags", "tiled_specs")}
        self.start = json_view(shown)
        if doc.get("uid") != self.before.run_uid:
            self.note("other-run")

    def _specs(self, asked: Any) -> Iterable[tuple[str, str | None]]:
        for spec in asked if isinstance(asked, (list, tuple)) else ():
            if isinstance(spec, str):
                yield spec, None
            elif isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
                version = spec.get("version")
                yield spec["name"], None if version is None else str(version)
            else:
                self.note("bad-spec")

    def on_stop(self, ordinal: int, doc: Document) -> None:
        if self.stop is not None:
            self.note("second-stop")
            return
        self.stop = json_view(dict(doc))
        if doc.get("run_start") != self.before.run_uid:
            self.note("other-run")

    def on_descriptor(self, ordinal: int, doc: Document) -> None:
        uid = str(doc["uid"])
        if uid in self.descriptors:
            self.note("second-descriptor")
            return
        name = doc.get("name")
        if not isinstance(name, str):
            self.note("no-stream-name")
            name = "primary"
        declared = doc.get("data_keys")
        external = [key for key, value in declared.items() if "external" in value] if declared else []
        self.stream(name).describe(doc)
        self.descriptors[uid] = DescriptorState(name, tuple(external))
        self._unpark(uid)

    # --- slow data ---------------------------------------------------------------------------------------

    def on_event(self, ordinal: int, doc: Document) -> None:
        descriptor = self.descriptors.get(doc["descriptor"])
        if descriptor is None:
            self.note("unknown-descriptor")
            return
        for key, datum_id, seq in self.stream(descriptor.stream).add_event(doc, descriptor):
            self._refer(WaitingReference(ordinal, descriptor.stream, key, seq), datum_id)

    def on_events(self, ordinal: int, events: Iterable[Document]) -> None:
        for event in events:
            self.on_event(ordinal, event)

    # --- external data, as announced now -----------------------------------------------------------------

    def on_stream_resource(self, ordinal: int, doc: Document) -> None:
        self._announce(ordinal, doc, str(doc.get("data_key") or ""))

    def _announce(self, ordinal: int, doc: Document, data_key: str | None) -> None:
        uid = str(doc["uid"])
        if uid in self.resources:
            self.note("second-resource")
            return
        found = announced_resource(doc, legacy=data_key is None)
        if found.relative:
            self.note("relative-path", detail=found.relative)
        self.resources[uid] = ResourceState(ordinal, data_key, found.mimetype, found.uri, found.parameters)
        self._unpark(uid)
        if data_key is not None:
            return
        # Events may have named Datums of this resource before it came.
        for name, stream in self.before.streams.items():
            if any(uid in external.resources for external in stream.external.values()):
                self.stream(name)

    def on_stream_datum(self, ordinal: int, doc: Document) -> None:
        uid, descriptor = doc["stream_resource"], doc["descriptor"]
        if not isinstance(uid, str) or not isinstance(descriptor, str):
            raise TypeError("a reference is no text")
        found = announced_range(doc)
        if found is None:
            self.note("bad-range", key=self._data_key(uid))
            return
        if found.oddity:
            self.note(found.oddity, key=self._data_key(uid))
        self._add_range(ParkedRange(ordinal, uid, descriptor, found.index, found.seq, found.count))

    def _data_key(self, uid: str) -> str:
        resource = self.resources.get(uid)
        return "" if resource is None else resource.data_key or ""

    def _add_range(self, found: ParkedRange) -> None:
        resource = self.resources.get(found.resource)
        descriptor = self.descriptors.get(found.descriptor)
        if resource is None or resource.data_key is None:
            self._park(found.resource, found)
        elif descriptor is None:
            self._park(found.descriptor, found)
        else:
            frames = self.stream(descriptor.stream).frames_of(resource.data_key)
            frames.add(found.resource, found.ordinal, found.index, found.seq, found.count, self.newest_waiting)

    def _park(self, awaited: str, found: ParkedRange) -> None:
        here = self.own_parked.get(awaited)
        if here is None:
            here = self.own_parked[awaited] = list(self.parked.get(awaited, ()))
            self.parked[awaited] = here
        last = here[-1] if here else None
        if (
            last is not None
            and len(here) >= EXACT_RANGES
            and (last.resource, last.descriptor) == (found.resource, found.descriptor)
            and (last.index + last.count, last.seq + last.count) == (found.index, found.seq)
        ):
            here[-1] = msgspec.structs.replace(last, count=last.count + found.count)
        elif self._may_wait(found.ordinal):
            here.append(found)

    def _may_wait(self, ordinal: int) -> bool:
        if self.waiting_number >= PARKED_LIMIT:
            self.note("parked-full")
            return False
        self.waiting_number += 1
        self.newest_waiting = max(self.newest_waiting, ordinal)
        return True

    def _waits_no_more(self) -> None:
        self.waiting_number -= 1
        if not self.waiting_number:
            self.newest_waiting = -1

    def _unpark(self, uid: str) -> None:
        self.own_parked.pop(uid, None)
        for found in self.parked.pop(uid, ()):
            self._waits_no_more()
            self._add_range(found)

    # --- external data, as announced by Resource and Datum -----------------------------------------------

    def on_resource(self, ordinal: int, doc: Document) -> None:
        self._announce(ordinal, doc, None)

    def on_datum(self, ordinal: int, doc: Document) -> None:
        datum_id = str(doc["datum_id"])
        kwargs = json_view(doc.get("datum_kwargs") or {})
        if datum_id not in self.datums and len(self.datums) >= PARKED_LIMIT:
            self.note("parked-full")
            return
        self.datums[datum_id] = DatumState(str(doc["resource"]), kwargs if isinstance(kwargs, dict) else {})
        for reference in self.waiting.pop(datum_id, ()):
            self._waits_no_more()
            self._refer(reference, datum_id)

    def on_datums(self, ordinal: int, datums: Iterable[Document]) -> None:
        for datum in datums:
            self.on_datum(ordinal, datum)

    def _refer(self, reference: WaitingReference, datum_id: str) -> None:
        """Take in that a value of an Event names a Datum."""
        datum = self.datums.pop(datum_id, None) or self.used.pop(datum_id, None)
        if datum is None:
            if self._may_wait(reference.ordinal):
                self.waiting[datum_id] = (*self.waiting.get(datum_id, ()), reference)
            return
        frames = self.stream(reference.stream).frames_of(reference.key)
        if datum.index is None:
            found = datum_indices(datum.kwargs, reference.seq, frames.frame)
            frames.frame = found.frame
            frames.datum_kwargs.setdefault(datum.resource, found.kwargs)
            datum = DatumState(datum.resource, datum.kwargs, (found.start, found.stop))
        start, stop = datum.index or (0, 0)
        if stop - start > WIDEST_RANGE or stop > LARGEST_INDEX:
            self.note("bad-range", key=reference.key)
        elif stop - start == 1:
            frames.add(datum.resource, reference.ordinal, start, reference.seq, 1, self.newest_waiting)
        else:
            # Several rows for one Event: no seq_num fits them all, so they are numbered by index, as TiledWriter
            # does it for every Datum.
            self.note("several-rows", reference.stream, reference.key)
            frames.add(datum.resource, reference.ordinal, start, start + 1, stop - start, self.newest_waiting)
        self.used[datum_id] = datum
        if len(self.used) > USED_DATUMS:
            del self.used[next(iter(self.used))]

    # --- the end of the batch ----------------------------------------------------------------------------

    def finish(self) -> tuple[RunState, list[Change]]:
        if self.stop is not None and self.before.stop is None:
            # Nodes of external keys get metadata when the run ends.
            for name, stream in self.before.streams.items():
                if stream.external:
                    self.stream(name)
        run = segment(self.before.run_uid)
        puts: list[PutNode] = []
        rows: list[AppendRows] = []
        streams = dict(self.before.streams)
        for name, work in self.streams.items():
            batch = work.take_rows()
            if batch is not None:
                rows.append(AppendRows((run, work.before.segment), work.before.rows, batch))
            after = work.freeze()
            nodes, put = self._stream_nodes(run, work, after)
            puts += nodes
            streams[name] = msgspec.structs.replace(after, put=put)
        after_run = RunState(
            self.before.run_uid,
            self.before.version,
            self.start,
            self.stop,
            self.specs,
            streams,
            self.descriptors,
            self.resources,
            self.datums,
            self.used,
            self.parked,
            self.waiting,
            self.notes,
            self.before.put,
            self.before.templates,
        )
        top = run_node(after_run)
        mark = node_digest(top)
        if mark != self.before.put:
            puts.insert(0, top)
            after_run = msgspec.structs.replace(after_run, put=mark)
        return after_run, [*puts, *rows]

    def _stream_nodes(self, run: str, work: StreamWork, after: StreamState) -> tuple[list[PutNode], dict[str, bytes]]:
        """Return the nodes of a stream that are not as they were put last, and the new marks."""
        put = dict(after.put)
        out: list[PutNode] = []

        def offer(node: PutNode, mark: bytes) -> None:
            name = "/".join(node.path[2:])
            if put.get(name) != mark:
                put[name] = mark
                out.append(node)

        if work.metadata is not work.before.metadata or not put:
            node = stream_node(run, after)
            offer(node, node_digest(node))
        if after.rows:
            if work.columns_changed or not work.before.rows:
                for node in table_nodes(run, after):
                    offer(node, node_digest(node))
            if work.columns_changed or after.rows != work.before.rows:
                for node in array_nodes(run, after):
                    offer(node, node_digest(node))
        if after.external:
            frames = stream_frames(after, self.resources)
            for node, depends_on in external_nodes(run, after, frames, self.stop is not None):
                offer(node, digest(depends_on))
        return out, put
