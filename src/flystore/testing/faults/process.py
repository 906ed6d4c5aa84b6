"""The two sides of flystore as processes that a test can kill: `FaultyService` and `FaultyWriter`."""

import re
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from flystore.testing.serving import reserved_port

from . import points
from .forkserver import PATIENCE_S, Child, ForkServer
from .roles import BROKEN_VARIABLE

KEY = "fault-key"
"""The API key of every `FaultyService`."""

_READY = re.compile(r"flystore is ready at http://127\.0\.0\.1:[0-9]+")

QUICK_WRITER: dict[str, Any] = {
    "linger": 0.002,
    "request_timeout": 5.0,
    "first_pause": 0.005,
    "longest_pause": 0.02,
    "reserve_bytes": 0,
}
"""Options of RunWriter with which a test need not wait: many small batches, short pauses."""


def _environment(failpoints: Mapping[str, str], broken: Sequence[str], seen: Path | None) -> dict[str, str]:
    found = {points.VARIABLE: points.written(failpoints), BROKEN_VARIABLE: ",".join(broken)}
    return found if seen is None else {**found, points.SEEN_VARIABLE: str(seen)}


class FaultyService:
    """``flystore serve`` on one directory and one port, started as often as a test likes.

    Parameters
    ----------
    server : ForkServer
    directory : Path
        Of the store. Its log lies beside it, in ``<directory>.log``.
    read : sequence of Path
        Read roots.
    failpoints : mapping of str to str
        Actions by place, see `points`.
    broken : sequence of str
        Names of broken variants.
    seen : Path, optional
        File to which places that are reached are written.
    options : sequence of str
        Further options of ``flystore serve``.

    Attributes
    ----------
    port : int
        The same from the first start on; 0 before.
    """

    def __init__(
        self,
        server: ForkServer,
        directory: Path,
        *,
        read: Sequence[Path] = (),
        failpoints: Mapping[str, str] | None = None,
        broken: Sequence[str] = (),
        seen: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.port = 0
        self.failpoints = dict(failpoints or {})
        self.broken = tuple(broken)
        self.key = KEY
        self._seen = seen
        self._options = list(options)
        self._read = [str(root) for root in read]
        self._server = server
        self._child: Child | None = None
        self._held: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    def begin(self) -> None:
        """Start it and do not wait until it is ready."""
        if self._held is None:  # for as long as it is away, too
            self._held = reserved_port()
            self.port = self._held.getsockname()[1]
        options = {
            "directory": str(self.directory),
            "port": self.port,
            "key": self.key,
            "read": self._read,
            "options": self._options,
        }
        self._child = self._server.spawn(
            "service",
            options,
            log=self.directory.with_suffix(".log"),
            environment=_environment(self.failpoints, self.broken, self._seen),
        )

    def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises
        ------
        EOFError
            If it ends before, as a failpoint may have it.
        """
        self.begin()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        while True:
            message = self._running().message()
            ready = _READY.search(str(message.get("text", "")))
            if ready is not None:
                return

    def kill(self) -> None:
        """``kill -9``; one that died of itself is only collected."""
        self._running().kill()
        self._child = None

    def stop(self, timeout: float = PATIENCE_S) -> int:
        """Ask it to end, as an operator would; return its status."""
        child = self._running()
        child.signal(signal.SIGTERM)
        status = child.wait(timeout)
        self._child = None
        return status

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait until it ends by itself; return its status."""
        status = self._running().wait(timeout)
        self._child = None
        return status

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("the service was not started")
        return self._child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self.kill()
        if self._held is not None:
            self._held.close()


class FaultyWriter:
    """An acquisition process with a RunWriter, see `roles.writer`; one process each time.

    Parameters
    ----------
    journal : Path
        Home of journals; shared by the processes of one acquisition host.
    ledger : Path
    log : Path
        Where it writes what goes wrong.
    """

    def __init__(self, server: ForkServer, *, journal: Path, ledger: Path, seed: int, log: Path) -> None:
        self._server = server
        self._fixed = {"journal": str(journal), "ledger": str(ledger), "seed": seed}
        self._log = log

    def start(
        self,
        url: str,
        runs: Sequence[tuple[int, int]],
        *,
        pause: float = 0.0,
        flush: float = 0.0,
        failpoints: Mapping[str, str] | None = None,
        broken: Sequence[str] = (),
        seen: Path | None = None,
        **options: Any,
    ) -> Child:
        """Start one; it says ``ready``, ``written``, and with a `flush` in seconds ``stored``.

        Parameters
        ----------
        runs : sequence of (int, int)
            Number in the load and events of each run.
        pause : float
            Seconds after each document.
        **options
            Of RunWriter, over `QUICK_WRITER`.
        """
        given = {
            **self._fixed,
            "url": url,
            "key": KEY,
            "runs": list(runs),
            "pause": pause,
            "flush": flush,
            "options": {**QUICK_WRITER, **options},
        }
        environment = _environment(failpoints or {}, broken, seen)
        return self._server.spawn("writer", given, log=self._log, environment=environment)
