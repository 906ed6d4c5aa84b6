"""Sending what lies in orphaned journals at somebody's command, without a RunWriter."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flystore.journal import Journal, RunLog, is_locked
from flystore.model.errors import Conflict, DeadlineExceeded, FlystoreError, Unavailable
from flystore.wire import api_path

from ._options import ShippingOptions
from ._shipper import Shipper
from ._target import Target, target_of

PATIENCE_S = 30.0
"""Default seconds without anything stored after which `deliver` gives up."""

STEP_S = 0.5
_END_S = 5.0
_ATTEMPTS = 5


@dataclass
class Delivery:
    """What became of it.

    Attributes
    ----------
    stored, total : int
        Documents that the service has now, of those that were waiting.
    left : list of str
        A sentence for each thing that is not sent, with the reason; empty if all is stored.
    """

    stored: int = 0
    total: int = 0
    left: list[str] = field(default_factory=list)


def deliver(
    paths: Sequence[Path],
    where: Any,
    *,
    api_key: str | None = None,
    redirect: bool = False,
    patience: float = PATIENCE_S,
    tell: Callable[[Delivery], None] | None = None,
) -> Delivery:
    """Send what orphaned journals hold, until all is stored or nothing goes on.

    Runs that were parked are tried again.

    Parameters
    ----------
    paths : sequence of Path
        Journals. One that a living writer holds is left to it.
    where : str, client or store
        As for `RunWriter`.
    api_key : str, optional
        As for `RunWriter`.
    redirect : bool
        True marks the journals with this address for good, after it has answered once. False leaves the
        marks as they are.
    patience : float
        Seconds without anything stored after which this gives up.
    tell : callable, optional
        Called twice a second with how far it is.

    Raises
    ------
    FlystoreError
        If `redirect` and the address does not answer, or does not take the key: no journal was changed.
    """
    target = target_of(where, api_key)
    delivery = Delivery()
    journals: list[Journal] = []
    ended = True
    try:
        if redirect:
            target.transport.request("GET", api_path())
        for path in paths:
            taken = _taken(path, target.name if redirect else None, delivery)
            if taken is not None:
                journals.append(taken)
        ended = _Sending(target, journals, delivery).send(patience, tell)
    finally:
        for journal in journals:
            journal.close()
        if target.owned and ended:
            target.transport.close()
    return delivery


def _taken(path: Path, target: str | None, delivery: Delivery) -> Journal | None:
    for _ in range(_ATTEMPTS):
        try:
            return Journal.take_over(path, target=target)
        except Conflict:
            # A writer that looks whether it is held holds it for a moment.
            if is_locked(path) or not path.exists():
                break
        except (FlystoreError, OSError) as error:
            delivery.left.append(f"{path.name} cannot be taken over: {error}")
            return None
    delivery.left.append(f"{path.name} is held by a living process, or was sent by one just now")
    return None


class _Sending:
    def __init__(self, target: Target, journals: list[Journal], delivery: Delivery) -> None:
        self._delivery = delivery
        self._problem = target.problem
        self._shipper = Shipper(target.transport, None, options=ShippingOptions(linger=0.0))
        self._logs: list[tuple[RunLog, str, int]] = []
        for journal in journals:
            delivery.left += [str(damage) for damage in journal.unreadable]
            logs = [log for log in journal.logs if not log.remove_if_done()]
            if logs:
                self._shipper.journals.append(journal)
            for log in logs:
                label = f"run {log.uid}" if log.uid else "documents of no run"
                self._logs.append((log, label, log.acked))
                self._shipper.take(log, label, journal=journal)
        delivery.total = sum(log.end - acked for log, _, acked in self._logs)

    def send(self, patience: float, tell: Callable[[Delivery], None] | None) -> bool:
        """Send what there is; return whether no request is under way any more."""
        if not self._logs:
            return True
        if self._problem is not None:
            self._say_what_is_left(self._problem)
            return True
        self._shipper.start()
        ended = False
        try:
            self._wait(patience, tell)
        finally:
            ended = self._shipper.stop(_END_S)
            self._count()
        self._say_what_is_left(self._shipper.last_error)
        return ended

    def _wait(self, patience: float, tell: Callable[[Delivery], None] | None) -> None:
        last = time.monotonic()
        while True:
            before = self._delivery.stored
            try:
                self._shipper.wait_for(self._shipper.is_idle, STEP_S, lambda: "sending")
            except DeadlineExceeded:
                pass
            except Unavailable:  # the shipper itself failed, and said why
                return
            else:
                return
            finally:
                self._count()
                if tell is not None:
                    tell(self._delivery)
            now = time.monotonic()
            if self._delivery.stored > before:
                last = now
            elif now - last >= patience:
                return

    def _count(self) -> None:
        self._delivery.stored = sum(log.acked - acked for log, _, acked in self._logs)

    def _say_what_is_left(self, error: str | None) -> None:
        parked = {shipment.log: shipment.parked for shipment in self._shipper.parked()}
        for log, label, _ in self._logs:
            reason = parked.get(log)
            if reason is not None:
                self._delivery.left.append(f"{label} is parked: {reason.kind}: {reason}")
            elif log.acked < log.end:
                self._delivery.left.append(
                    f"{label}: {log.end - log.acked} documents not stored: {error or 'no answer'}"
                )
