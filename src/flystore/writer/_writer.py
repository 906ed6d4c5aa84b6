"""RunWriter: the callback that a RunEngine is given."""

import atexit
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Literal, Self

from flystore.journal import (
    RESERVE_BYTES,
    SEGMENT_BYTES,
    SYNC_INTERVAL_S,
    Durability,
    Journal,
    default_home,
)
from flystore.model.errors import FlystoreError, InvalidRequest, Misconfigured, NotFound

from ._options import (
    FIRST_PAUSE_S,
    LINGER_S,
    LONGEST_PAUSE_S,
    MAX_BATCH_BYTES,
    REQUEST_TIMEOUT_S,
    ShippingOptions,
)
from ._routing import Router
from ._run import Run
from ._shipper import Shipper
from ._status import WriterStatus
from ._target import target_of

logger = logging.getLogger("flystore.writer")

CLOSE_TIMEOUT_S = 10.0
"""Default seconds that `RunWriter.close` goes on sending."""

SYNC_GRACE_S = 1.0
"""Seconds that the last sync gets at least, however short the time for sending."""

EXIT_TIMEOUT_S = 5.0
"""Seconds that all writers together go on sending when the interpreter ends."""

_OPEN: "weakref.WeakSet[RunWriter]" = weakref.WeakSet()


class RunWriter:
    """Keeps every document of a RunEngine: in a journal on local disk at once, in the service soon after.

    ``RE.subscribe(RunWriter("http://localhost:8000", api_key="secret"))``

    Calling it writes the document to the journal and returns; a thread sends it on. The plan never
    waits for the service, and what the service has not got when the process ends, however it ends,
    the next RunWriter of this user on this host sends.

    Parameters
    ----------
    where : str, client or store
        URL of the service, what `from_uri` returned, or what `open_store` returned. A URL that cannot be
        reached, or is none, is no error: documents are kept, and `status` and the log say so.
    api_key : str, optional
        Key of the service; only with a URL. None takes it from the URL or the environment, as
        `from_uri` does.
    journal : Path or str, optional
        Directory in which journals are kept, on a local disk. None is `flystore.journal.default_home`:
        ``$XDG_STATE_HOME/flystore/journal`` or ``~/.local/state/flystore/journal``.
    durability : {"group", "each"}
        ``"group"`` syncs in the background: a power cut of this host takes at most the last
        `sync_interval` plus one sync. ``"each"`` syncs before returning, some 0.2 ms to many ms a
        document. A process that dies loses nothing either way.
    sync_interval : float
        Seconds from a document to its sync; 0 is the same as ``"each"``.
    max_batch_bytes : int
        Most bytes in one request; a single larger document goes alone.
    linger : float
        Seconds to collect documents before sending; `wait` and `flush` do not wait for it.
    request_timeout : float
        Seconds without a byte from the service before a request is tried again.
    first_pause, longest_pause : float
        Seconds between attempts while the service is away: at first, and at most.
    segment_bytes : int
        Size at which a run goes on in a new journal file, bytes. Acknowledged files are deleted.
    reserve_bytes : int
        Space held ahead on the journal's disk for stop documents, bytes.

    Raises
    ------
    Misconfigured
        If no journal can be made in the directory.
    InvalidRequest
        If `where` is nothing that documents can be sent to.
    """

    def __init__(
        self,
        where: Any,
        *,
        api_key: str | None = None,
        journal: Path | str | None = None,
        durability: Durability = "group",
        sync_interval: float = SYNC_INTERVAL_S,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        linger: float = LINGER_S,
        request_timeout: float = REQUEST_TIMEOUT_S,
        first_pause: float = FIRST_PAUSE_S,
        longest_pause: float = LONGEST_PAUSE_S,
        segment_bytes: int = SEGMENT_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        if max_batch_bytes <= 0:
            raise Misconfigured(f"max_batch_bytes is a number of bytes above 0, not {max_batch_bytes}")
        self._target = target_of(where, api_key)
        home = default_home() if journal is None else Path(journal).expanduser().absolute()
        self._journal = Journal.create(
            home,
            target=self._target.name,
            durability=durability,
            sync_interval=sync_interval,
            segment_bytes=segment_bytes,
            reserve_bytes=reserve_bytes,
        )
        options = ShippingOptions(max_batch_bytes, linger, request_timeout, first_pause, longest_pause)
        self._shipper = Shipper(self._target.transport, self._journal, home=home, options=options)
        self._router = Router(self._journal)
        self._closed = False
        self._closing = threading.Lock()
        if self._target.problem is not None:
            logger.error("nothing can be sent: %s. Documents are kept in %s.", self._target.problem, self._journal.path)
        _OPEN.add(self)
        self._shipper.start()

    def __call__(self, name: str, doc: Any) -> None:
        """Keep a document: when this returns it survives the death of this process.

        Nothing about a document's content makes this fail; what is odd about it, the service notes.

        Raises
        ------
        JournalFull
            If the journal's disk is full: the one storage condition that stops a plan.
        Unavailable
            If that disk refuses to write for another reason.
        Misconfigured
            If the writer was closed.
        """
        if type(name) is not str:
            name = str(getattr(name, "name", name))
        run, stream, ends = self._router.place(name, doc)
        run.append(name, doc, stream)
        log = run.log
        if run.untracked or log.removed:
            self._track(run)
        if ends and not run.ended:
            log.end_run()
            self._router.end(run)
            self._shipper.end()
        shipper = self._shipper
        if shipper.asleep or shipper.watched:
            shipper.ring()

    def _track(self, run: Run) -> None:
        """Have a run shipped: a new one, or one that got a document after all of it was stored."""
        run.untracked = False
        if run.log.removed:
            self._journal.readmit(run.log)
        self._shipper.take(run.log, run.label)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until every journaled document is stored, those that earlier writers left included.

        Parameters
        ----------
        timeout : float, optional
            Seconds; None waits for ever, however long the service is away.

        Raises
        ------
        DeadlineExceeded
            If the time is over; nothing is lost by that.
        FlystoreError
            What parked a run of this writer, as the error that the service gave.
        """
        self._shipper.wait_for(
            self._shipper.all_stored, timeout, lambda: f"storing what is journaled in {self._journal.path}"
        )

    def wait(
        self,
        uid: str,
        seq_num: int,
        stream: str = "primary",
        until: Literal["durable", "readable"] = "durable",
        timeout: float | None = 10.0,
    ) -> None:
        """Wait until a row of a stream is stored in the service, sending it at once.

        A row is the last document so far, of each detector, that carries the sequence number: events,
        event pages and stream data. If there is none yet, this waits for it too.

        Parameters
        ----------
        uid : str
            Of a run that is open, or ended not long ago.
        seq_num : int
            From 1, as in the events.
        stream : str
            Name of the stream.
        until : {"durable", "readable"}
            ``"durable"``: it survives anything that happens to this host or the service. ``"readable"``:
            whoever asks the service gets it. The service acknowledges a document only when both hold.
        timeout : float, optional
            Seconds; None waits for ever.

        Raises
        ------
        NotFound
            If this writer knows no such run.
        DeadlineExceeded
            If the time is over; nothing is lost by that.
        FlystoreError
            What parked the run, as the error that the service gave.
        """
        if until not in ("durable", "readable"):
            raise InvalidRequest(f"until is 'durable' or 'readable', not {until!r}")
        run = self._router.run(uid)
        if run is None:
            raise NotFound(f"this writer knows no run {uid!r}: it is too long ago, or was never begun here")

        def is_stored() -> bool:
            positions = run.streams.get(stream)
            ordinal = None if positions is None else positions.last_with(seq_num)
            if ordinal is not None and run.log.acked > ordinal:
                return True
            shipment = self._shipper.shipment_of(run.log)
            if shipment is not None and shipment.parked is not None:
                raise shipment.parked
            return False

        self._shipper.wait_for(is_stored, timeout, lambda: f"storing row {seq_num} of {run.label}, {stream}")

    def retry_parked(self) -> int:
        """Try again to send the runs that are parked, for example after the key was mended.

        Returns
        -------
        int
            How many runs that are.
        """
        return self._shipper.retry_parked()

    def status(self) -> WriterStatus:
        """Return how the writer is; its repr is made for people."""
        shipper = self._shipper
        states = [journal.state() for journal in tuple(shipper.journals)]
        own = states[0]
        warnings = [warning for state in states for warning in state.warnings]
        warnings += [
            f"documents for {target} wait on this host, left by earlier writers" for target in shipper.elsewhere
        ]
        return WriterStatus(
            url=self._target.name,
            connected=shipper.connected,
            last_error=self._target.problem or shipper.last_error,
            journal=own.path,
            pending_bytes=sum(state.nbytes for state in states),
            durability=own.durability,
            free_bytes=own.free_bytes,
            warnings=tuple(warnings),
            runs=shipper.runs(),
            closed=self._closed,
        )

    def __repr__(self) -> str:
        return f"<RunWriter to {self._target.name}, journal {self._journal.path}>"

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is left and end; what cannot be sent stays in the journal for the next writer.

        Documents that come later raise `Misconfigured`. If the service cannot be reached, or does not
        take a run, this does not wait for it.

        Parameters
        ----------
        timeout : float
            Seconds to go on sending, and to wait for a local disk that hangs in a sync, at most. 0 sends
            nothing more; up to two seconds more go to a request and a sync that are under way.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            _OPEN.discard(self)
            timeout = min(timeout, threading.TIMEOUT_MAX / 2)
            began = time.monotonic()
            self._send_what_is_left(timeout)
            left = max(0.0, timeout - (time.monotonic() - began))
            ended = self._shipper.stop(min(left, 1.0) + 0.2)
            self._say_what_is_left()
            until = max(began + timeout, time.monotonic() + SYNC_GRACE_S)
            for journal in tuple(self._shipper.journals):
                journal.close(max(0.0, until - time.monotonic()))
            if self._target.owned and ended:
                self._target.transport.close()

    def _send_what_is_left(self, timeout: float) -> None:
        if timeout <= 0:
            return
        self._shipper.retry_now()
        try:
            self._shipper.wait_for(self._shipper.is_idle, timeout, lambda: "closing", give_up=True)
        except FlystoreError as error:
            logger.debug("closing with documents left: %s", error)

    def _say_what_is_left(self) -> None:
        left = [run for run in self._shipper.runs() if run.stored < run.journaled]
        if left:
            logger.warning(
                "%d documents of %d runs are journaled, not yet stored; the next RunWriter on this host "
                "sends them from %s",
                sum(run.journaled - run.stored for run in left),
                len(left),
                self._journal.path.parent,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close_all() -> None:
    """End the writers that nobody closed; together they may delay the interpreter's end only so much."""
    until = time.monotonic() + EXIT_TIMEOUT_S
    for writer in list(_OPEN):
        writer.close(max(0.0, until - time.monotonic()))


atexit.register(_close_all)
# A forked child has neither the threads nor the journals of these writers.
os.register_at_fork(after_in_child=_OPEN.clear)
