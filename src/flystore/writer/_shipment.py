"""One run on its way to the service."""

from typing import Any

from flystore.journal import Journal, RunLog
from flystore.model.errors import FlystoreError
from flystore.wire import api_path

from ._backoff import Backoff
from ._status import RunStatus


class Shipment:
    """How far one log is sent, and what stands in the way.

    Attributes
    ----------
    next : int
        Ordinal to send next.
    max_bytes : int
        Size of a batch, bytes; made smaller when the service finds a batch too large.
    not_before : float
        Moment on the shipper's clock before which nothing of this run is sent.
    parked : FlystoreError or None
        Why nothing is sent any more.
    verdict : str or None
        What the service last said of the run.
    noted : bool
        Whether a note beside the log may say that it is parked.
    told : bool
        Whether people were told that the run has ended but is not stored yet.
    """

    def __init__(
        self, journal: Journal, log: RunLog, label: str, *, max_bytes: int, backoff: Backoff, adopted: bool
    ) -> None:
        self.journal = journal
        self.log = log
        self.label = label
        self.adopted = adopted
        self.max_bytes = max_bytes
        self.backoff = backoff
        self.next = log.acked
        self.not_before = 0.0
        self.parked: FlystoreError | None = None
        self.verdict: str | None = None
        self.noted = adopted
        self.told = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to send, now or later."""
        return self.parked is None and (self.next < self.log.end or self.log.damage is not None)

    def is_ready(self, now: float) -> bool:
        return self.waiting and now >= self.not_before

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
