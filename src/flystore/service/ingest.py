"""Ingest: batches of a run's documents, each stored whole, once, and in order.

A batch is (run uid, first ordinal, epoch, frames). What overlaps the watermark is compared by
hash and the rest is stored; a gap is refused with the ordinal expected; only a differing hash is a
clash. The log record, the projection's state and its changes go into one transaction, so no reader
ever sees one without the others. A document's content is never a reason to refuse it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from flystore.catalog import Catalog, Run, Snapshot, Transaction
from flystore.disk.failpoints import reach
from flystore.model.encoding import decoded_size
from flystore.model.errors import (
    Conflict,
    ContentClash,
    Damaged,
    InvalidRequest,
    SequenceGap,
    StaleEpoch,
    TooLarge,
    Unavailable,
)
from flystore.model.frames import FrameDecoder, frame, is_document, split_frames
from flystore.model.queries import INTERRUPTED
from flystore.projection import RunState, advance, verdict
from flystore.storage import reserve

from .limits import Limits
from .log_bodies import in_order, pack, payloads_of
from .probing import Prober
from .projecting import apply_changes
from .recent import Recent
from .requests import seconds_of

log = logging.getLogger("flystore.service")

Writer = Literal["documents", "orphans"]

MAX_UID = 255
"""Characters in the uid of a run."""


class Ack(msgspec.Struct, frozen=True):
    """How far a run is durable.

    Attributes
    ----------
    watermark : int
        The next ordinal expected; everything below it is stored and readable.
    epoch : int
        The run's epoch as stored.
    verdict : str or None
        One line for people, once the run has its stop document.
    """

    watermark: int
    epoch: int
    verdict: str | None = None


class _Arrived(msgspec.Struct):
    """The documents of one batch, still encoded.

    `payloads[i]` is the i-th document, `digests[i]` its hash; `lead[i]` are the template payloads
    that came just before it.
    """

    payloads: list[bytes]
    digests: list[bytes]
    lead: list[list[bytes]]

    def beyond(self, known: int) -> "_Arrived":
        """Return all but the first `known` documents."""
        return _Arrived(self.payloads[known:], self.digests[known:], self.lead[known:])


class _Batch(msgspec.Struct, frozen=True):
    """The envelope of a batch: whose documents, from which ordinal on, from which writer, and when."""

    uid: str
    first: int
    epoch: int
    writer: Writer
    received: float


class _Stored(msgspec.Struct):
    """What a batch led to.

    Attributes
    ----------
    state : RunState or None
        After the batch; None if nothing new came.
    look_at : list of int
        Nodes whose files are worth looking at now.
    stopped : bool
        Whether the run has its stop document.
    projected : bool
        Whether all that is stored is shown.
    """

    ack: Ack
    state: RunState | None
    look_at: list[int]
    stopped: bool
    projected: bool = True


class Ingest:
    """Takes batches; one at a time a run, since the catalogue has one writer."""

    def __init__(
        self,
        catalog: Catalog,
        prober: Prober,
        limits: Limits,
        verdict_line: Callable[[str], str | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._prober = prober
        self._limits = limits
        self._most = limits.budget_bytes
        self._uncounted = self._most // 16
        self._verdict_line = verdict_line
        self._clock = clock
        self._states: Recent[tuple[str, int], RunState] = Recent(64)

    def batch(self, uid: str, first: int, epoch: int, body: bytes) -> Ack:
        """Store a batch and return how far run `uid` is durable.

        Raises
        ------
        InvalidRequest
            The frames are damaged or undecodable, or `uid` cannot name a run.
        SequenceGap
            `first` lies beyond the watermark; carries `expected`.
        ContentClash
            A known ordinal arrives with a different document; carries `ordinal`.
        StaleEpoch
            A newer writer took the run over; carries `epoch`.
        Conflict
            The run was written by the Tiled protocol, or was deleted.
        DiskFull, SyncFailed
            Nothing was stored that is not acknowledged; the second is final until the service is started anew.
        """
        _check_uid(uid)
        return self._take(_Batch(uid, first, epoch, "documents", self._clock()), body)

    def orphans(self, journal: str, first: int, body: bytes) -> int:
        """Keep documents that belong to no run; return the next ordinal expected of `journal`.

        They have no tree: they are in the log, so that nothing a device said is lost. Raises as `batch` does.
        """
        return self._take(_Batch(f"orphans:{journal}", first, 0, "orphans", self._clock()), body).watermark

    def forget(self) -> None:
        """Read states from the catalogue again: somebody else has changed them."""
        self._states.clear()

    def _take(self, batch: "_Batch", body: bytes) -> Ack:
        views = self._split(body)
        # Before the transaction, which must not wait for memory.
        reserve(decoded_size(views, self._uncounted, self._most), "this batch, decoded,")
        reach("service.before_batch")
        with self._catalog.write() as tx:
            run = tx.run(batch.uid)
            watermark = _admit(run, batch)
            state = self._state(batch.uid, run)
            arrived = self._parse(views, state)
            _compare(tx, batch, watermark, arrived)
            fresh = max(0, watermark - batch.first)
            if fresh >= len(arrived.payloads):
                stored = self._known(tx, run, watermark, batch.epoch)
            else:
                stored = self._store(tx, batch, run, state, arrived.beyond(fresh), batch.first + fresh)
        reach("service.after_batch")
        if stored.state is not None and stored.projected:
            self._states[(batch.uid, stored.ack.watermark)] = stored.state
        self._prober.enqueue(stored.look_at)
        if stored.stopped and batch.writer == "documents":
            return msgspec.structs.replace(stored.ack, verdict=self._verdict_line(batch.uid))
        return stored.ack

    def _known(self, tx: Transaction, run: Run | None, watermark: int, epoch: int) -> "_Stored":
        """Answer a batch of which all is stored already."""
        assert run is not None
        if epoch > run.epoch:
            tx.save_run(msgspec.structs.replace(run, epoch=epoch))
        return _Stored(Ack(watermark, max(epoch, run.epoch)), None, [], stopped=not run.open)

    def _store(
        self,
        tx: Transaction,
        batch: "_Batch",
        run: Run | None,
        state: RunState,
        new: _Arrived,
        start: int,
    ) -> "_Stored":
        """Store documents that are new, from ordinal `start` on, with all that follows from them."""
        uid = batch.uid
        decoder = FrameDecoder(state.templates)
        documents: list[tuple[int, str, dict[str, Any]]] = []
        stored: list[bytes] = []
        for ordinal, (lead, payload) in enumerate(zip(new.lead, new.payloads, strict=True), start):
            for template in lead:
                decoder.decode(template)
                stored.append(frame(template))
            decoded = decoder.decode(payload)
            assert decoded is not None
            stored.append(frame(payload))
            documents.append((ordinal, *decoded))
        watermark = start + len(documents)
        body, digests = pack(b"".join(stored)), b"".join(new.digests)
        tx.append_documents(uid, start, len(documents), batch.epoch, digests, body, batch.received)
        look_at: list[int] = []
        projected = watermark
        reach("service.before_projection")
        if batch.writer == "documents":
            state, look_at, projected = self._project(tx, batch, run, state, documents, decoder)
        else:
            state = state.with_templates(decoder.templates)
        reach("service.after_projection")
        stopped = any(name == "stop" for _, name, _ in documents)
        # A late stop document wins over somebody's word that the run was interrupted.
        closed = None if stopped or run is None else run.closed
        tx.save_run(
            Run(
                uid=uid,
                writer=batch.writer,
                watermark=watermark,
                projected=projected,
                epoch=batch.epoch,
                state=state.to_bytes(),
                open=not (stopped or (run is not None and not run.open)),
                last_received=batch.received,
                start_time=_start_time(documents, run),
                verdict=_state_word(state, closed) if batch.writer == "documents" else None,
                closed=closed,
            )
        )
        return _Stored(Ack(watermark, batch.epoch), state, look_at, stopped, projected == watermark)

    def _project(
        self,
        tx: Transaction,
        batch: "_Batch",
        run: Run | None,
        state: RunState,
        documents: Sequence[tuple[int, str, dict[str, Any]]],
        decoder: FrameDecoder,
    ) -> tuple[RunState, list[int], int]:
        """Return the new state, nodes with files to look at, and the ordinal projected up to.

        A defect in the projection must not refuse documents: they are in the log, the tree stays
        where it was, and the next batch (after an upgrade, perhaps) starts from there.
        """
        behind = 0 if run is None else run.projected
        try:
            todo = [*self._missed(tx, batch.uid, behind, documents[0][0]), *documents]
            advanced, changes = advance(state, todo)
            advanced = advanced.with_templates(decoder.templates)
            advanced.to_bytes()  # a state that cannot be kept is none
            with tx.savepoint():
                external = apply_changes(tx, batch.uid, changes, batch.received)
        except Unavailable:  # not the projection failed but the disk; the transaction may be undone already
            raise
        except Exception:  # see above: whatever it is, the documents are kept
            log.exception("run %s: documents from %d on are stored but not shown", batch.uid, behind)
            return state.with_templates(decoder.templates), [], behind
        return advanced, external, documents[-1][0] + 1

    def _missed(self, tx: Transaction, uid: str, behind: int, start: int) -> list[tuple[int, str, dict[str, Any]]]:
        """Return the documents stored earlier that the projection has not seen; normally none."""
        if behind == start:
            return []
        return [found for found in logged_documents(tx, uid) if behind <= found[0] < start]

    def _state(self, uid: str, run: Run | None) -> RunState:
        if run is None:
            return RunState.new(uid)
        # While documents are stored that the projection failed on, the state may change under the same watermark.
        cached = self._states.get((uid, run.watermark)) if run.projected == run.watermark else None
        return cached if cached is not None else RunState.from_bytes(run.state)

    def _split(self, body: bytes) -> list[memoryview]:
        try:
            return [payload for _, payload in split_frames(body, where="the batch")]
        except Damaged as error:
            raise InvalidRequest(f"{error.message}; nothing of it was stored", **error.facts) from error

    def _parse(self, views: Sequence[memoryview], state: RunState) -> _Arrived:
        decoder = FrameDecoder(state.templates)
        arrived = _Arrived([], [], [])
        lead: list[bytes] = []
        for view in views:
            payload = bytes(view)
            if not is_document(payload):
                decoder.decode(payload)
                lead.append(payload)
                continue
            arrived.payloads.append(payload)
            arrived.digests.append(decoder.digest(payload))
            arrived.lead.append(lead)
            lead = []
        if len(arrived.payloads) > self._limits.batch_documents:
            raise TooLarge(
                f"a batch of {len(arrived.payloads)} documents; this service takes "
                f"{self._limits.batch_documents} at once",
                limit=self._limits.batch_documents,
            )
        if not arrived.payloads:
            raise InvalidRequest("the batch holds no document")
        return arrived


def _check_uid(uid: str) -> None:
    if not uid or len(uid) > MAX_UID:
        raise InvalidRequest(f"{uid[:80]!r} cannot name a run: it must have 1 to {MAX_UID} characters")


def _admit(run: Run | None, batch: _Batch) -> int:
    """Return the watermark if the batch may be stored at all."""
    uid, first, epoch = batch.uid, batch.first, batch.epoch
    if run is None:
        if first > 0:
            raise _gap(uid, first, 0)
        return 0
    if run.deleted:
        raise Conflict(f"run {uid} was deleted; its late documents are not stored", reason="deleted")
    if run.writer != batch.writer:
        raise Conflict(
            f"run {uid} was written by the Tiled protocol; documents cannot be added to it", reason="other-writer"
        )
    if epoch < run.epoch:
        raise StaleEpoch(
            f"run {uid} was taken over by a writer of epoch {run.epoch}; this batch is of epoch {epoch}",
            epoch=run.epoch,
        )
    if first > run.watermark:
        raise _gap(uid, first, run.watermark)
    return run.watermark


def _gap(uid: str, first: int, expected: int) -> SequenceGap:
    return SequenceGap(f"run {uid}: the batch starts at document {first}, but {expected} is next", expected=expected)


def _compare(tx: Transaction, batch: _Batch, watermark: int, arrived: _Arrived) -> None:
    uid, first = batch.uid, batch.first
    stop = min(watermark, first + len(arrived.digests))
    if stop <= first:
        return
    for offset, known in enumerate(tx.hashes(uid, first, stop)):
        if known != arrived.digests[offset]:
            ordinal = first + offset
            raise ContentClash(f"run {uid}: document {ordinal} is stored with other content", ordinal=ordinal)


def _state_word(state: RunState, closed: str | None) -> str:
    return verdict(state).state if closed is None else INTERRUPTED


def _start_time(documents: Sequence[tuple[int, str, dict[str, Any]]], run: Run | None) -> float | None:
    if run is not None:
        return run.start_time
    return next((seconds_of(doc) for _, name, doc in documents if name == "start"), None)


def logged_documents(
    tx: Snapshot, uid: str, first: int = 0, *, decoder: FrameDecoder | None = None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield (ordinal, name, document) of a run's log from ordinal `first` on, templates applied.

    A `decoder` that is given has met all the run's templates afterwards.
    """
    decoder = decoder or FrameDecoder()
    for record in in_order(tx.documents(uid), uid):
        ordinal = record.first_ordinal or 0
        for payload in payloads_of(record):
            decoded = decoder.decode(payload)
            if decoded is None:
                continue
            if ordinal >= first:
                yield (ordinal, *decoded)
            ordinal += 1
