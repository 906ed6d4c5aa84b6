"""The thread that brings journaled documents to the service.

It sends the journal's frames byte for byte and never looks into a document: it shares the
interpreter with the plan, and each thing it did would be taken from there. For the same reason it
collects for a moment (`linger`) before it sends, unless someone waits; for a run that somebody follows only as long
as keeps its share of the interpreter small. One batch is in memory at a
time, the backlog is on disk. Order is kept per run; runs take turns.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flystore.disk.failpoints import reach
from flystore.journal import Journal, RunLog
from flystore.model import frames
from flystore.model.errors import (
    Conflict,
    Damaged,
    DeadlineExceeded,
    FlystoreError,
    OutOfBounds,
    Unavailable,
)
from flystore.wire import Transport, api_path

from ._adoption import LeftBehind
from ._answers import Step, next_step, read_answer
from ._backoff import Backoff
from ._options import MODEST_BATCH_BYTES, ShippingOptions
from ._shipment import Shipment
from ._status import RunStatus

logger = logging.getLogger("flystore.writer")

REMEMBERED = 16
"""Stored runs that `status` still shows."""

AWAKE_S = 1.0
"""Seconds that the thread goes on looking by itself after something was stored, so that no document has to ring.

Waking a thread costs the plan's tens of microseconds.
"""

TIDYING_S = 0.01
"""Seconds after the end of a run that are the plan's, which still tidies up and is waited for by people."""

RESTS = 4
"""While somebody follows a run, sending takes at most one part in so many and one of the plan's interpreter."""

LOOK_S = 30.0
"""Seconds between two looks for what other processes of this host left since."""


class _Pause(NamedTuple):
    """How long to sleep.

    Attributes
    ----------
    seconds : float or None
        None: until something rings.
    listens : bool
        True if a new document may end it.
    """

    seconds: float | None
    listens: bool


class Shipper:
    """Sends the logs of a journal, and of journals that earlier writers left for the same target.

    Parameters
    ----------
    journal : Journal or None
        Of the writer whose runs are shipped; None ships only what is taken with a journal of its own.
    home : Path or None
        Directory in which to look for what earlier writers left; None does not look.
    clock, chance : callable
        Seconds that only grow, and numbers from 0 to 1.
    """

    def __init__(
        self,
        transport: Transport,
        journal: Journal | None,
        *,
        home: Path | None = None,
        options: ShippingOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.asleep = False
        """True while a new document has to ring; read without a lock by the plan's thread."""
        self.watched = 0
        """How many threads wait for something; while there are any, each document rings."""
        self.connected: bool | None = None
        self.last_error: str | None = None
        self.journals = [] if journal is None else [journal]
        self._own = journal
        self._transport = transport
        self._home = home
        self._left_behind = LeftBehind("" if journal is None else journal.target)
        self._next_look = 0.0
        self._options = options or ShippingOptions()
        self._clock = clock
        self._chance = chance
        self._backoff = self._new_backoff()
        self._not_before = 0.0
        self._awake_until = 0.0
        self._rest_until = 0.0
        self._failures = 0
        self._shipments: list[Shipment] = []
        self._stored: deque[RunStatus] = deque(maxlen=REMEMBERED)
        self._bell = threading.Event()
        self._changed = threading.Condition()
        self._hurried = False
        self._ending = False
        self._adopting = home is not None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="flystore-shipper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _new_backoff(self) -> Backoff:
        options = self._options
        if self._chance is None:
            return Backoff(options.first_pause, options.longest_pause)
        return Backoff(options.first_pause, options.longest_pause, self._chance)

    # -- called by the plan's thread ------------------------------------------------------------

    def take(self, log: RunLog, label: str, *, journal: Journal | None = None) -> None:
        """Ship a log from now on; if it is shipped already, nothing changes.

        Parameters
        ----------
        journal : Journal, optional
            The one that it is in, if that was taken over; None is the writer's own.
        """
        shipment = Shipment(
            journal or self.journals[0],
            log,
            label,
            most_bytes=self._options.max_batch_bytes,
            backoff=self._new_backoff(),
            adopted=journal is not None,
        )
        with self._changed:
            if self.shipment_of(log) is None:
                self._shipments.append(shipment)

    def ring(self) -> None:
        """Wake the thread: there is something to send. Cheap enough to call after each document."""
        if self.asleep:
            self.asleep = False
            self._bell.set()
        if self.watched:
            with self._changed:
                self._changed.notify_all()

    def end(self) -> None:
        """Send what there is a moment after the end of a run, when the plan has tidied up."""
        self._ending = True
        self.asleep = False
        self._bell.set()

    def hurry(self) -> None:
        """Send what there is without collecting more."""
        self._hurried = True
        self.asleep = False
        self._bell.set()

    # -- called by anyone -----------------------------------------------------------------------

    def wait_for(
        self,
        ready: Callable[[], bool],
        timeout: float | None,
        what: Callable[[], str],
        *,
        give_up: bool = False,
    ) -> None:
        """Wait until `ready`, sending without delay meanwhile.

        Parameters
        ----------
        ready : callable
            Asked whenever something was stored, parked or journaled. May raise.
        timeout : float or None
            Seconds; None waits for ever.
        what : callable
            Says in words what was waited for.
        give_up : bool
            True ends the wait when an attempt made meanwhile does not reach the service.

        Raises
        ------
        DeadlineExceeded
            If the time is over.
        Unavailable
            If `give_up` and the service was not reached, or if nothing is sent any more.
        """
        until = None if timeout is None else self._clock() + timeout
        with self._changed:
            self.watched += 1
            failures = self._failures
            self.hurry()
            try:
                while not ready():
                    if (give_up and self._failures > failures) or not self._thread.is_alive():
                        raise Unavailable(f"{what()}: {self.last_error}")
                    left = None if until is None else until - self._clock()
                    if left is not None and left <= 0:
                        raise DeadlineExceeded(f"{what()}: not within {timeout:g} s{self._why()}")
                    self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            finally:
                self.watched -= 1

    def _why(self) -> str:
        return "" if self.connected or self.last_error is None else f"; last error: {self.last_error}"

    def shipment_of(self, log: RunLog) -> Shipment | None:
        """Return the shipment of a log; None once all of it is stored."""
        return next((shipment for shipment in self._shipments if shipment.log is log), None)

    def is_idle(self) -> bool:
        """Return whether nothing is left to send but what is parked."""
        return not self._adopting and not any(shipment.waiting for shipment in tuple(self._shipments))

    def all_stored(self) -> bool:
        """Return whether nothing is left to send; then raises what parked a run of this writer, if any."""
        if not self.is_idle():
            return False
        for shipment in tuple(self._shipments):
            if shipment.parked is not None and not shipment.adopted:
                raise shipment.parked
        return True

    def parked(self) -> list[Shipment]:
        """Return the shipments that are parked."""
        with self._changed:
            return [shipment for shipment in self._shipments if shipment.parked is not None]

    def retry_parked(self) -> int:
        """Try parked runs again; return how many there were."""
        count = 0
        with self._changed:
            for shipment in self._shipments:
                if shipment.parked is not None and shipment.log.damage is None:
                    shipment.parked = None
                    shipment.next = shipment.log.acked
                    shipment.allow_size(self._options.max_batch_bytes)
                    shipment.log.unpark()
                    count += 1
        self.retry_now()
        return count

    def retry_now(self) -> None:
        """Do not wait for the end of a pause."""
        self._not_before = 0.0
        for shipment in tuple(self._shipments):
            shipment.not_before = 0.0
        self.hurry()

    def runs(self) -> tuple[RunStatus, ...]:
        """Return how each run is: those stored last, then those under way."""
        with self._changed:
            return (*self._stored, *(shipment.status() for shipment in self._shipments))

    def stop(self, timeout: float) -> bool:
        """End the thread; return whether it ended in time. A request under way is not interrupted."""
        self._stopping = True
        self._bell.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._greet()
            self._look()
            self._adopting = False
            self._tell()
            while not self._stopping:
                self._wait()
                if not self._stopping:
                    self._send_round()
        except Exception:
            logger.exception("the shipper failed; documents are kept in the journal and the next RunWriter sends them")
            self.last_error = "the shipper failed; see the log. The next RunWriter sends what is journaled."
            self.connected = False
        finally:
            if self._stopping:
                # Taken while the writer closed without waiting any longer for this thread.
                for journal in tuple(self.journals):
                    if journal is not self._own:
                        journal.close()
            self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self) -> None:
        """Sleep until it is time to send something."""
        lingered = False
        while not self._stopping:
            self._look_after()
            pause = self._pause(lingered)
            if pause.seconds == 0.0:
                return
            began = self._clock()
            if pause.listens:
                over = self._listen(lingered)
            else:
                over = not self._bell.wait(self._until_look(pause.seconds))
            # A sleep that only ended to look for orphans has not waited for more documents.
            lingered = lingered or (over and pause.seconds is not None and self._clock() - began >= pause.seconds)
            # Cleared before the next look: what rings from here on is seen by it.
            self._bell.clear()

    def _look_after(self) -> None:
        """Do what is due beside sending."""
        self._tell_of_ended_runs()
        if self._clock() >= self._next_look:
            self._look()
            # Whose files could not go, because the disk did not come back from a sync.
            for shipment in tuple(self._shipments):
                if shipment.log.ended and shipment.log.acked >= shipment.log.end:
                    self._finish(shipment)

    def _until_look(self, seconds: float | None) -> float:
        """Return how long to sleep: `seconds`, but not beyond the next look for orphans."""
        look = max(0.0, self._next_look - self._clock())
        return look if seconds is None else min(seconds, look)

    def _listen(self, lingered: bool) -> bool:
        """Sleep until a new document rings or a run's pause is over; return whether the latter."""
        self.asleep = True
        # What was journaled before that line is seen by this look, what comes after it rings.
        pause = self._pause(lingered)
        rung = not pause.listens or self._bell.wait(self._until_look(pause.seconds))
        self.asleep = False
        return not rung

    def _pause(self, lingered: bool) -> "_Pause":
        """Return how long to sleep before something can be sent, and whether new documents change that."""
        waiting = [shipment for shipment in tuple(self._shipments) if shipment.waiting]
        if any(shipment.followed and not shipment.log.ended for shipment in tuple(self._shipments)):
            rest = self._rest_until - self._clock()
            if rest > 0 and not self._ending and not self._hurried and not self.watched:
                return _Pause(rest, listens=False)
            lingered = True
        if not waiting:
            if not lingered and self._options.linger > 0 and not self.watched and self._clock() < self._awake_until:
                return _Pause(self._options.linger, listens=False)
            return _Pause(None, listens=True)
        now = self._clock()
        if now < self._not_before:
            return _Pause(self._not_before - now, listens=False)
        ready = [shipment for shipment in waiting if shipment.is_ready(now)]
        if not ready:
            return _Pause(min(shipment.not_before for shipment in waiting) - now, listens=True)
        if lingered or self._hurried or self.watched or self._options.linger <= 0:
            return _Pause(0.0, listens=False)
        pending = sum(shipment.log.pending_bytes for shipment in ready)
        enough = pending >= min(self._options.max_batch_bytes, MODEST_BATCH_BYTES) // 4
        most = TIDYING_S if self._ending else math.inf
        return _Pause(0.0 if enough else min(most, self._options.linger), listens=False)

    def _backlog(self, journal: Journal, documents: int, nbytes: int) -> str:
        """Return the name of a journal, and how many documents and bytes wait in it beside those on their way."""
        logs = [shipment.log for shipment in tuple(self._shipments) if shipment.journal is journal]
        waiting = sum(log.end - log.acked for log in logs) - documents
        size = sum(log.pending_bytes for log in logs) - nbytes
        return f"{journal.name};{max(0, waiting)};{max(0, size)}"

    def _send_round(self) -> None:
        """Send one batch of each run that has something to send."""
        self._hurried = self._ending = False
        began = time.thread_time()
        for shipment in tuple(self._shipments):
            now = self._clock()
            if self._stopping or now < self._not_before:
                return
            if shipment.is_ready(now):
                self._send(shipment)
        took = time.thread_time() - began
        self._rest_until = self._clock() + min(self._options.linger, RESTS * took)

    def _send(self, shipment: Shipment) -> None:
        log = shipment.log
        if shipment.next >= log.end and log.damage is not None:
            self._park(shipment, log.damage)
            return
        try:
            batch = log.batch(shipment.next, shipment.max_bytes)
        except OutOfBounds as error:
            self._park(
                shipment,
                Conflict(
                    f"the service wants document {shipment.next} of this run again, but it had acknowledged "
                    f"it: {error}. Was the service set back to an older state?"
                ),
            )
            return
        except (Damaged, OSError) as error:
            self._park(
                shipment,
                error if isinstance(error, Damaged) else Damaged(f"the journal cannot be read: {error}"),
            )
            return
        if batch.count == 0:
            return
        path, params = shipment.route(batch.first_ordinal)
        began = self._clock()
        try:
            reach("writer.before_send")
            answer = self._transport.request(
                "POST",
                path,
                params=params,
                headers={
                    "Content-Type": frames.FRAMES_MIMETYPE,
                    "Accept": "application/json",
                    "X-Flystore-Backlog": self._backlog(shipment.journal, batch.count, len(batch.data)),
                },
                body=batch.data,
                timeout=self._options.request_timeout,
            )
            reach("writer.after_send")
            stored = read_answer(answer)
            if stored.watermark <= batch.first_ordinal:
                raise Unavailable(
                    f"{self._transport.where} took documents {batch.first_ordinal} to {batch.end - 1} but "
                    f"says it expects {stored.watermark} next"
                )
        except FlystoreError as error:
            shipment.fit_batches(len(batch.data), math.inf)
            self._refused(shipment, batch.first_ordinal, batch.count, batch.data, error)
        except Exception as error:
            # Whatever a transport raises against its promise must not end the shipping of the others.
            logger.exception("sending %s failed in an unexpected way", shipment.label)
            self._later(Unavailable(f"sending failed: {error!r}"))
        else:
            shipment.fit_batches(len(batch.data), self._clock() - began)
            shipment.followed = stored.followed
            self._accepted(shipment, stored.watermark, stored.verdict)

    def _accepted(self, shipment: Shipment, watermark: int, verdict: str | None) -> None:
        self._reached()
        shipment.backoff.reset()
        log = shipment.log
        shipment.next = min(watermark, log.end)
        shipment.verdict = verdict or shipment.verdict
        if shipment.noted:  # an earlier attempt was refused, this one was not
            shipment.noted = False
            log.unpark()
        log.acknowledge(shipment.next)
        self._awake_until = self._clock() + AWAKE_S
        if log.ended and log.acked >= log.end:
            self._finish(shipment)
        self._tell()

    def _reached(self) -> None:
        if self.connected is False:
            logger.info("%s answers again", self._transport.where)
            self._next_look = min(self._next_look, self._clock())
        self.connected, self.last_error = True, None
        self._backoff.reset()

    def _finish(self, shipment: Shipment) -> None:
        if not shipment.log.remove_if_done():
            return
        with self._changed:
            self._shipments.remove(shipment)
            self._stored.append(shipment.status())
        line = shipment.verdict or f"{shipment.label}: {shipment.log.end} documents, stored"
        logger.info("%s [%s]", line, shipment.log.uid[:8])
        if shipment.adopted and not shipment.journal.logs and not shipment.journal.unreadable:
            self.journals.remove(shipment.journal)
            shipment.journal.close()

    def _refused(self, shipment: Shipment, first: int, count: int, data: bytes, error: FlystoreError) -> None:
        step = next_step(error)
        if step is Step.LATER:
            self._later(error)
            return
        self._reached()
        if step is Step.RESUME:
            self._resume(shipment, first, error)
        elif step is Step.SMALLER and count > 1:
            shipment.refuse_size(len(data))
        elif frames.scan(data).problem is not None:
            self._park(shipment, Damaged(f"the journal of {shipment.label} is damaged on disk: {error}"))
        elif step is Step.LATER_THIS_RUN:
            self.last_error = str(error)
            shipment.not_before = self._clock() + shipment.backoff.next()
        else:
            self._park(shipment, error)

    def _resume(self, shipment: Shipment, first: int, error: FlystoreError) -> None:
        expected = error.facts.get("expected")
        if type(expected) is int and 0 <= expected <= shipment.log.end and expected != first:
            shipment.next = expected
            return
        self.last_error = str(error)
        shipment.not_before = self._clock() + shipment.backoff.next()

    def _later(self, error: FlystoreError) -> None:
        """The service is not there: everything waits."""
        if self.connected is not False:
            logger.warning(
                "%s cannot be reached; documents are kept in %s and sent later: %s",
                self._transport.where,
                ", ".join(str(journal.path) for journal in self.journals[:1]) or "no journal",
                error,
            )
        self.connected, self.last_error = False, str(error)
        self._not_before = self._clock() + self._backoff.next()
        self._failures += 1
        self._tell()

    def _park(self, shipment: Shipment, error: FlystoreError) -> None:
        self.last_error = str(error)
        shipment.noted = True
        shipment.log.park(f"{error.kind}: {error}")
        logger.error(
            "%s is not sent any more, and stays in the journal %s: %s",
            shipment.label,
            shipment.journal.path,
            error,
        )
        shipment.parked = error  # at last: who finds it parked finds the note and the words as well
        self._tell()

    def _tell_of_ended_runs(self) -> None:
        """Tell people once of each run that has ended while the service is away."""
        if self.connected is not False:
            return
        for shipment in tuple(self._shipments):
            if shipment.log.ended and shipment.waiting and not shipment.told and not shipment.adopted:
                shipment.told = True
                logger.info("%s: %d documents, journaled, not yet stored", shipment.label, shipment.log.end)

    # -- beginning ------------------------------------------------------------------------------

    def _greet(self) -> None:
        """Knock once, so that a wrong URL or key is known before the first scan."""
        try:
            self._transport.request("GET", api_path(), timeout=self._options.request_timeout)
        except FlystoreError as error:
            if next_step(error) is Step.LATER:
                self._later(error)
                self._not_before = 0.0  # the first document tries again at once
            else:
                self.connected, self.last_error = True, str(error)
                logger.error("%s does not accept this writer: %s", self._transport.where, error)
        except Exception as error:
            logger.exception("knocking at %s failed in an unexpected way", self._transport.where)
            self.connected, self.last_error = False, repr(error)
        else:
            self._reached()

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Targets of other services for which documents wait on this host."""
        return self._left_behind.elsewhere

    def _look(self) -> None:
        """Look for what writers that are gone left; the next time in a while."""
        if self._home is not None:
            self._adopt(self._home)
        self._next_look = self._clock() + LOOK_S

    def _adopt(self, home: Path) -> None:
        """Take over what writers that are gone left for the same target."""
        for journal in self._left_behind.take(home, stopping=lambda: self._stopping):
            for log in journal.logs:
                label = f"run {log.uid[:8]}" if log.uid else "documents of no run"
                logger.info("%s: %d documents left by an earlier writer", label, log.end - log.acked)
                self.take(log, label, journal=journal)
            self.journals.append(journal)
