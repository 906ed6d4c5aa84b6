"""Ingest: batches of a run's documents, each stored whole, once, and in order.

A batch is (run uid, first ordinal, epoch, frames). What overlaps the watermark is compared by
hash and the rest is stored; a gap is refused with the ordinal expected; only a differing hash is a
clash. The log record, the projection's state and its changes go into one transaction, so no reader
ever sees one without the others. A document's content is never a reason to refuse it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from flystore.catalog import Catalog, Run, Snapshot, Transaction
from flystore.disk.failpoints import reach
from flystore.model.blocks import EventBlock, Item
from flystore.model.encoding import decoded_size
from flystore.model.errors import (
    Conflict,
    ContentClash,
    InvalidRequest,
    SequenceGap,
    StaleEpoch,
    TooLarge,
    Unavailable,
)
from flystore.model.frames import FrameDecoder, is_document
from flystore.model.queries import INTERRUPTED
from flystore.projection import RunState, advance, verdict
from flystore.storage import reserve

from .arriving import Arrived, beyond, decoded, split
from .limits import Limits
from .log_bodies import in_order, pack, payloads_of
from .metrics import IngestCounts
from .probing import Prober
from .projecting import Storable, apply_changes, storable
from .recent import Recent
from .requests import seconds_of

log = logging.getLogger("flystore.service")

Writer = Literal["documents", "orphans"]

TRIES = 3
"""How often a batch is tried whose transaction the database undid because it and another one met."""

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


class _Batch(msgspec.Struct, frozen=True):
    """The envelope of a batch: whose documents, from which ordinal on, from which writer, and when."""

    uid: str
    first: int
    epoch: int
    writer: Writer
    received: float


class _Work(msgspec.Struct, frozen=True):
    """What a batch comes to if the run is still at `before` when it is stored.

    Attributes
    ----------
    before : RunState
    arrived : Arrived
    body : bytes
        The documents as the log keeps them.
    after : RunState
        With the templates of the batch; its tree is that of before if the projection failed.
    changes : list of changes
    failure : Exception or None
        A defect of the projection.
    """

    before: RunState
    arrived: Arrived
    body: bytes
    after: RunState
    changes: list[Storable]
    failure: Exception | None = None


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
        counts: IngestCounts | None = None,
        keep: Callable[[str, int, bytes, int], None] | None = None,
    ) -> None:
        self.counts = counts or IngestCounts(clock)
        self._catalog = catalog
        self._prober = prober
        self._limits = limits
        self._most = limits.budget_bytes
        self._uncounted = self._most // 16
        self._verdict_line = verdict_line
        self._keep = keep
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
        payloads = split(body)
        if len(payloads) > self._limits.batch_documents:
            self._require_few(payloads)
        reserve(decoded_size(payloads, self._uncounted, self._most), "this batch, decoded,")
        for _ in range(TRIES - 1):
            try:
                return self._taken(batch, body, payloads)
            except Unavailable as error:
                if not error.facts.get("met"):
                    raise
                log.info("run %s: %s", batch.uid, error)
        return self._taken(batch, body, payloads)

    def _taken(self, batch: "_Batch", body: bytes, payloads: Sequence[bytes]) -> Ack:
        reach("service.before_batch")
        # Before the transaction, which keeps all other writers waiting: usually the run is as it was left.
        work = self._prepared(batch, body, payloads)
        with self._catalog.write() as tx:
            run = tx.run(batch.uid)
            watermark = _admit(run, batch)
            state = self._state(batch.uid, run)
            if work is not None and not (_behind(run) == batch.first and _are_same(work.before, state)):
                work = None
            arrived = work.arrived if work is not None else decoded(body, payloads, state.templates, batch.first)
            _compare(tx, batch, watermark, arrived)
            fresh = max(0, watermark - batch.first)
            if fresh >= len(arrived.digests):
                stored = self._known(tx, run, watermark, batch.epoch)
            else:
                if work is None or fresh:
                    first = batch.first + fresh
                    if fresh:
                        arrived = decoded(*beyond(payloads, fresh), state.templates, first)
                    work = self._work(batch, state, arrived, partial(self._missed, tx, batch.uid, _behind(run), first))
                stored = self._store(tx, batch, run, work, batch.first + fresh)
        reach("service.after_batch")
        new = 0 if stored.state is None else len(arrived.digests)
        self.counts.stored(new, fresh if new else len(arrived.digests), _last_time(arrived.items))
        if stored.state is not None and stored.projected:
            self._states[(batch.uid, stored.ack.watermark)] = stored.state
        self._prober.enqueue(stored.look_at)
        if stored.stopped and batch.writer == "documents":
            return msgspec.structs.replace(stored.ack, verdict=self._verdict_line(batch.uid))
        return stored.ack

    def _require_few(self, payloads: Sequence[bytes]) -> None:
        count = sum(map(is_document, payloads))
        if count > self._limits.batch_documents:
            raise TooLarge(
                f"a batch of {count} documents; this service takes {self._limits.batch_documents} at once",
                limit=self._limits.batch_documents,
            )

    def _prepared(self, batch: "_Batch", body: bytes, payloads: Sequence[bytes]) -> _Work | None:
        """Return what the batch comes to if the run goes on with it; None if it does not.

        Errors are left to the transaction, which sees the run as it is by then.
        """
        state = self._states.get((batch.uid, batch.first))
        if state is None:
            with self._catalog.read() as snapshot:
                run = snapshot.run(batch.uid)
            if batch.first != (0 if run is None else run.watermark) or batch.first != _behind(run):
                return None
            if run is not None and (run.deleted or run.writer != batch.writer):  # whose state is none of documents
                return None
            state = self._state(batch.uid, run)
        try:
            return self._work(batch, state, decoded(body, payloads, state.templates, batch.first), list)
        except InvalidRequest:
            return None

    def _work(
        self,
        batch: "_Batch",
        state: RunState,
        arrived: Arrived,
        missed: Callable[[], Sequence[tuple[int, str, dict[str, Any]]]],
    ) -> _Work:
        """Work out what follows from documents that are new, and from those `missed`, which came before.

        A defect in the projection must not refuse documents: they are in the log, the tree stays
        where it was, and the next batch (after an upgrade, perhaps) starts from there.
        """
        body, unchanged = pack(arrived.frames), state.with_templates(arrived.templates)
        if batch.writer != "documents":
            return _Work(state, arrived, body, unchanged, [])
        try:
            advanced, changes = advance(state, [*missed(), *arrived.items])
            advanced = advanced.with_templates(arrived.templates)
            advanced.to_bytes()  # a state that cannot be kept is none
            return _Work(state, arrived, body, advanced, storable(changes))
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - see above: whatever it is, the documents are kept
            return _Work(state, arrived, body, unchanged, [], error)

    def _known(self, tx: Transaction, run: Run | None, watermark: int, epoch: int) -> "_Stored":
        """Answer a batch of which all is stored already."""
        assert run is not None
        if epoch > run.epoch:
            tx.save_run(msgspec.structs.replace(run, epoch=epoch))
        return _Stored(Ack(watermark, max(epoch, run.epoch)), None, [], stopped=not run.open)

    def _store(self, tx: Transaction, batch: "_Batch", run: Run | None, work: _Work, start: int) -> "_Stored":
        """Store documents that are new, from ordinal `start` on, with all that follows from them."""
        uid, digests = batch.uid, work.arrived.digests
        watermark = start + len(digests)
        tx.append_documents(uid, start, len(digests), batch.epoch, b"".join(digests), work.body, batch.received)
        if self._keep is not None:
            tx.once_stored(partial(self._keep, uid, start, work.arrived.frames, watermark))
        reach("service.before_projection")
        look_at: list[int] = []
        state, failure = work.after, work.failure
        if failure is None:
            look_at, failure = self._apply(tx, batch, work)
        projected = watermark
        if failure is not None:
            state, projected = work.before.with_templates(work.arrived.templates), _behind(run)
            log.error("run %s: documents from %d on are stored but not shown", uid, projected, exc_info=failure)
        reach("service.after_projection")
        single = [item for item in work.arrived.items if isinstance(item, tuple)]
        stopped = any(name == "stop" for _, name, _ in single)
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
                start_time=_start_time(single, run),
                verdict=_state_word(state, closed) if batch.writer == "documents" else None,
                closed=closed,
            )
        )
        return _Stored(Ack(watermark, batch.epoch), state, look_at, stopped, projected == watermark)

    def _apply(self, tx: Transaction, batch: "_Batch", work: _Work) -> tuple[list[int], Exception | None]:
        """Store the changes; return nodes with files to look at, and a defect that left nothing of them."""
        try:
            with tx.savepoint():
                return apply_changes(tx, batch.uid, work.changes, batch.received), None
        except Unavailable:  # not the projection failed but the disk; the transaction may be undone already
            raise
        except Exception as error:  # noqa: BLE001 - see `_work`
            return [], error

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


def _last_time(items: Sequence[Item]) -> float | None:
    """Return the time in the last document that has one, of the last few items; Unix seconds."""
    for item in items[:-4:-1]:
        if isinstance(item, EventBlock):
            return float(item.times[-1])
        if isinstance(item, tuple) and item[1] in ("start", "descriptor", "event", "stop"):
            return seconds_of(item[2])
    return None


def _are_same(one: RunState, other: RunState) -> bool:
    return one is other or one == other


def _behind(run: Run | None) -> int:
    """Return up to where the documents of a run are shown."""
    return 0 if run is None else run.projected


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


def _compare(tx: Transaction, batch: _Batch, watermark: int, arrived: Arrived) -> None:
    uid, first = batch.uid, batch.first
    stop = min(watermark, first + len(arrived.digests))
    if stop <= first:
        return
    for offset, known in enumerate(tx.hashes(uid, first, stop)):
        if known != arrived.digests[offset]:
            ordinal = first + offset
            raise ContentClash(f"run {uid}: document {ordinal} is stored with other content", ordinal=ordinal)


def _state_word(state: RunState, closed: str | None) -> str:
    if closed is not None:
        return INTERRUPTED
    # Worked out for nothing else: until the stop document comes it takes a tenth of a millisecond of each batch.
    return "running" if state.stop is None else verdict(state).state


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
