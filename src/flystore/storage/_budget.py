"""Memory that the requests under way may hold together, counted before it is allocated.

A limit on one request does not bound fifty at once. So each request has an account, found through a context
variable, which follows it into its worker thread; whoever is about to allocate much reserves it there first. What does
not fit now waits a moment for others to end; what could never fit is refused. Outside any account nothing is counted:
who uses the readers in a script has the machine to himself.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Condition

from flystore.model.errors import TooLarge, Unavailable

from ._limits import human_bytes

WAIT_SECONDS = 10.0
"""How long a request waits for memory that others hold."""

_MOST_WAITING = 16
"""Requests that may wait at once: each keeps a worker thread, and some must be left for small requests."""

_CONTROL_GROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_account: ContextVar["Account | None"] = ContextVar("flystore_account", default=None)


class Budget:
    """So many bytes for all accounts together.

    Parameters
    ----------
    total_bytes : int
    wait_seconds : float
        How long a reservation waits for what others hold.
    """

    def __init__(self, total_bytes: int, wait_seconds: float = WAIT_SECONDS) -> None:
        self.total_bytes = total_bytes
        self._wait_seconds = wait_seconds
        self._held = 0
        self._waiting = 0
        self._changed = Condition()

    @property
    def held_bytes(self) -> int:
        """Bytes reserved now, by all accounts."""
        return self._held

    @contextmanager
    def account(self) -> Iterator["Account"]:
        """Open an account for what runs in the block, threads started with its context included."""
        opened = Account(self)
        token = _account.set(opened)
        try:
            yield opened
        finally:
            _account.reset(token)
            opened.give_back(opened.held_bytes)

    def _take(self, account: "Account", nbytes: int, what: str, wait: bool) -> bool:
        with self._changed:
            if account.held_bytes + nbytes > self.total_bytes:
                raise TooLarge(
                    f"{what} needs {human_bytes(account.held_bytes + nbytes)} of memory; all requests together have "
                    f"{human_bytes(self.total_bytes)}. Ask for a smaller slice, or in pieces.",
                    wanted=account.held_bytes + nbytes,
                    limit=self.total_bytes,
                )
            if self._held + nbytes > self.total_bytes and not (wait and self._waited(nbytes)):
                if not wait:
                    return False
                raise Unavailable(
                    f"{what} needs {human_bytes(nbytes)} of memory, which other requests hold; try again in a moment",
                    limit=self.total_bytes,
                )
            self._held += nbytes
            account.held_bytes += nbytes
            return True

    def _waited(self, nbytes: int) -> bool:
        if self._waiting >= _MOST_WAITING:
            return False
        self._waiting += 1
        try:
            return self._changed.wait_for(lambda: self._held + nbytes <= self.total_bytes, self._wait_seconds)
        finally:
            self._waiting -= 1

    def _give_back(self, account: "Account", nbytes: int) -> None:
        with self._changed:
            self._held -= nbytes
            account.held_bytes -= nbytes
            self._changed.notify_all()


class Account:
    """What one request holds of a budget.

    Attributes
    ----------
    held_bytes : int
    """

    def __init__(self, budget: Budget) -> None:
        self.held_bytes = 0
        self._budget = budget

    def try_take(self, nbytes: int, what: str) -> bool:
        """Reserve `nbytes` if they are free now; for an event loop, which must not wait.

        Raises
        ------
        TooLarge
            If the account would need more than there is for all.
        """
        return self._budget._take(self, nbytes, what, wait=False)

    def take(self, nbytes: int, what: str) -> None:
        """Reserve `nbytes`, waiting a moment if others hold them.

        Raises
        ------
        TooLarge
            If the account would need more than there is for all.
        Unavailable
            If they did not become free.
        """
        self._budget._take(self, nbytes, what, wait=True)

    def give_back(self, nbytes: int) -> None:
        self._budget._give_back(self, nbytes)


def reserve(nbytes: int, what: str) -> None:
    """Reserve memory until the request ends; `what` is the subject of a refusal. Errors as `Account.take`."""
    account = _account.get()
    if account is not None and nbytes > 0:
        account.take(nbytes, what)


@contextmanager
def held(nbytes: int, what: str) -> Iterator[None]:
    """Reserve memory for the block only; errors as `Account.take`."""
    account = _account.get()
    if account is None or nbytes <= 0:
        yield
        return
    account.take(nbytes, what)
    try:
        yield
    finally:
        account.give_back(nbytes)


@contextmanager
def released() -> Iterator[None]:
    """Give back at the end of the block what was reserved within it: for work that is done piece by piece."""
    account = _account.get()
    before = 0 if account is None else account.held_bytes
    try:
        yield
    finally:
        if account is not None:
            account.give_back(account.held_bytes - before)


def memory_of_this_machine() -> int:
    """Return the bytes of memory that this process may use: the machine's, or less in a container."""
    # Not os.sysconf alone: in a container it tells the host's.
    sizes = [_machine_bytes(), *(_limit_in(place) for place in _CONTROL_GROUPS), *map(_limit_in, _own_groups())]
    return int(min(sizes))


def _machine_bytes() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return 4.0 * 2**30


def _limit_in(place: Path) -> float:
    try:
        return float(place.read_text())
    except (OSError, ValueError):  # there is none, or it says "max"
        return math.inf


def _own_groups() -> Iterator[Path]:
    """Yield where the limits of this process's own control groups are, in version 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
        elif not controllers:
            yield Path(f"/sys/fs/cgroup{path}/memory.max")
