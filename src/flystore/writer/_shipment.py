"""One run on its way to the service."""

from typing import Any

from flystore.journal import Journal, RunLog
from flystore.model.errors import FlystoreError
from flystore.wire import api_path

from ._backoff import Backoff
from ._options import MODEST_BATCH_BYTES
from ._status import RunStatus

QUICK_S = 0.25
"""Seconds within which a batch is stored by a service that can take larger ones."""


class Shipment:
    """How far one log is sent, and what stands in the way.

    Attributes
    ----------
    next : int
        Ordinal to send next.
    max_bytes : int
        Size of a batch, bytes.
    most_bytes : int
        What `max_bytes` may grow to; made smaller when the service finds a batch too large.
    not_before : float
        Moment on the shipper's clock before which nothing of this run is sent.
    parked : FlystoreError or None
        Why nothing is sent any more.
    verdict : str or None
        What the service last said of the run.
    followed : bool
        Whether somebody waited for the run's documents when the service answered last.
    noted : bool
        Whether a note beside the log may say that it is parked.
    told : bool
        Whether people were told that the run has ended but is not stored yet.
    """

    def __init__(
        self, journal: Journal, log: RunLog, label: str, *, most_bytes: int, backoff: Backoff, adopted: bool
    ) -> None:
        self.journal = journal
        self.log = log
        self.label = label
        self.adopted = adopted
        self.allow_size(most_bytes)
        self.backoff = backoff
        self.next = log.acked
        self.not_before = 0.0
        self.parked: FlystoreError | None = None
        self.verdict: str | None = None
        self.followed = False
        self.noted = adopted
        self.told = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to send, now or later."""
        return self.parked is None and (self.next < self.log.end or self.log.damage is not None)

    def is_ready(self, now: float) -> bool:
        return self.waiting and now >= self.not_before

    def allow_size(self, most_bytes: int) -> None:
        """Begin with modest batches, which may grow to `most_bytes`."""
        self.most_bytes = most_bytes
        self.max_bytes = min(most_bytes, MODEST_BATCH_BYTES)

    def fit_batches(self, size: int, seconds: float) -> None:
        """Make batches larger after one of `size` bytes was stored in so many seconds; infinity: it was not."""
        if seconds > QUICK_S:
            self.max_bytes = min(self.max_bytes, MODEST_BATCH_BYTES)
        elif 2 * size > self.max_bytes:
            self.max_bytes = min(self.most_bytes, 2 * self.max_bytes)

    def refuse_size(self, size: int) -> None:
        """Make batches smaller for good: one of `size` bytes is too large for the service."""
        self.most_bytes = self.max_bytes = max(1, min(self.max_bytes, size) // 2)

    def route(self, first: int) -> tuple[str, dict[str, Any]]:
        """Return path and parameters of the request that carries the documents from `first` on."""
        params: dict[str, Any] = {"first": first, "epoch": self.journal.epoch}
        if self.log.uid:
            return api_path("ingest", self.log.uid), params
        # Documents of no run have no uid that tells one writer's from another's: the journal's name does.
        return api_path("ingest-orphans"), {"journal": self.journal.name, **params}

    def status(self) -> RunStatus:
        return RunStatus(
            uid=self.log.uid,
            label=self.label,
            journaled=self.log.end,
            stored=self.log.acked,
            ended=self.log.ended,
            parked=None if self.parked is None else str(self.parked),
            verdict=self.verdict,
            adopted=self.adopted,
        )
