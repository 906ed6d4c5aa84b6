"""Following a service: what changes, as it changes, over as many connections as it takes.

The service keeps all that happens in one order, and every change has a token. A connection that breaks, or a service
that is started anew, is asked again from the last token; nothing is missed and nothing comes twice.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec

from flystore.model.errors import FlystoreError, NotReady, Unavailable
from flystore.wire import Transport

from ._session import Path, node_route

log = logging.getLogger("flystore.client")

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

BEAT_S = 15
"""How often the service gives a sign of life while there is nothing to tell."""

_SILENCES = 3
"""Signs of life that may be missing before the connection is taken for broken."""

LAGGED = "lagged"
NOW = "now"


@dataclass(frozen=True, slots=True)
class Change:
    """One change in a service.

    Attributes
    ----------
    path : tuple of str
        Of the node, from the root.
    what : str
        ``created``, ``updated``, ``deleted`` (with all below it), ``rows`` (rows were appended), ``data``
        (what a node holds was written to), ``closed`` (its writer will add no more); or ``lagged``:
        more happened than was to be told one by one. Look at the present state then; what was skipped can still be
        followed from ``detail["after"]``.
    detail : dict
        ``created``, ``updated``: ``family``, and of an array its ``shape`` then; ``rows``: ``first_row`` and ``rows``.
    run : str or None
        Uid of the run that the node belongs to.
    position : int
        In the order of commits; several changes of one commit share it. 0 for ``lagged``.
    token : str
        Given as `after`, it leads to what came behind this very change.
    """

    path: Path
    what: str
    detail: dict[str, Any]
    run: str | None
    position: int
    token: str


class Followed(Iterator[T], Generic[T]):
    """An iterator that waits for more; use it in a ``with`` block, or close it.

    It goes on by itself after a connection broke or the service was started anew.
    """

    def __init__(self, line: "Line", items: Generator[T, None, None]) -> None:
        self._line = line
        self._items = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        """End the iteration, from any thread: a wait in another one ends at once."""
        self._line.close()
        with suppress(ValueError):  # it runs in another thread, and ends there
            self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Calling(Generic[T]):
    """Calls a function with each item, in a thread of its own; use it in a ``with`` block, or close it.

    If the function is slow the service waits; if it raises, the following ends, and `wait` raises the same.
    """

    def __init__(self, followed: Followed[T], callback: Callable[..., Any], *, spread: bool = False) -> None:
        self._followed = followed
        self._callback = callback
        self._spread = spread
        self._error: BaseException | None = None
        self._done = threading.Event()  # a join that Ctrl-C breaks off takes the thread for ended
        self._thread = threading.Thread(target=self._run, name="flystore-follow", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more may come."""
        return not self._done.is_set()

    @property
    def error(self) -> BaseException | None:
        """What ended it, if it did not end by itself."""
        return self._error

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end of what is followed; return whether it has come.

        Raises
        ------
        Exception
            What the function raised, or why the service could not be followed.
        """
        done = self._done.wait(seconds)
        if self._error is not None:
            raise self._error
        return done

    def close(self) -> None:
        """Call no more. A call under way ends first, unless it is this one."""
        self._followed.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            for item in self._followed:
                if self._followed._line.closed:
                    break
                if self._spread:
                    self._callback(*item)  # type: ignore[misc]
                else:
                    self._callback(item)
        except BaseException as error:  # noqa: BLE001 - kept for whoever waits
            self._error = error
            log.error("following ended: %s", error)
        finally:
            self._followed.close()
            self._done.set()


class Line:
    """Answers that the service goes on with, one after the other until it is closed.

    Parameters
    ----------
    route : str
    accept : str
        Media type.
    beat : int
        Seconds between signs of life that the service is asked for.
    """

    def __init__(self, transport: Transport, route: str, accept: str, *, beat: int = BEAT_S) -> None:
        self._transport = transport
        self._route = route
        self._headers = {"Accept": accept, "Accept-Encoding": "identity"}  # compressed, small parts would wait
        self._beat = beat
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._abort: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """End the wait for more, now and from now on; from any thread."""
        self._closed.set()
        with self._lock:
            abort = self._abort
        if abort is not None:
            abort()

    def answers(self, params: Callable[[], Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, str], Iterator[bytes]]]:
        """Yield (headers, chunks) of one answer after the other; whoever has enough stops asking.

        Parameters
        ----------
        params : callable
            Gives the query of the next request: where to go on.
        """
        pause = FIRST_PAUSE_S
        while not self.closed:
            began = time.monotonic()
            try:
                query = {"follow": True, "beat": self._beat, **params()}
                patience = float(_SILENCES * self._beat)
                with self._transport.stream(
                    "GET", self._route, params=query, headers=self._headers, timeout=patience
                ) as answer:
                    with self._lock:
                        self._abort = answer.abort
                    if self.closed:
                        return
                    yield answer.headers, answer.chunks
            except (Unavailable, NotReady, CancelledError) as error:
                self._went(error)
            finally:
                with self._lock:
                    self._abort = None
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            self._closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _went(self, error: Exception) -> None:
        if self.closed:
            return
        if isinstance(error, FlystoreError) and error.facts.get("closed"):
            raise error
        log.info("following goes on with another connection: %s", error)


def changes(
    transport: Transport,
    path: Path,
    *,
    after: str | None,
    lag: int | None = None,
    timeout: float | None = None,
    to_the_end: bool = False,
) -> Followed[Change]:
    """Return what changes at `path` and below.

    Parameters
    ----------
    after : str or None
        A token, ``now``, or None: from the beginning.
    lag : int, optional
        More changes than this are skipped, and said to be.
    timeout : float, optional
        Seconds without a change after which the iteration ends.
    to_the_end : bool
        End once the run that is followed has ended and all its changes were told.
    """
    route = node_route("feed", path)
    if after == NOW:  # that is when this was called, and not when somebody takes the first change
        answer = transport.request("GET", route, params={"after": NOW}, headers={"Accept": "application/json"})
        after = answer.decode()["next"]
    beat = BEAT_S if timeout is None else max(1, min(BEAT_S, int(timeout / 2)))
    line = Line(transport, route, "application/x-ndjson", beat=beat)
    return Followed(line, _changes(line, path, after, lag, timeout, to_the_end))


def _changes(
    line: Line, path: Path, after: str | None, lag: int | None, timeout: float | None, to_the_end: bool
) -> Generator[Change, None, None]:
    heard = time.monotonic()
    for page in pages(line, after, lag):
        if page["lagged"]:
            heard = time.monotonic()
            yield Change(path, LAGGED, dict(page["lagged"]), None, 0, page["next"])
        for entry in page["entries"]:
            yield Change(
                tuple(entry["path"]), entry["what"], entry["detail"], entry["run"], entry["position"], entry["token"]
            )
            heard = time.monotonic()
        if to_the_end and page["run_open"] is False and not page["more"]:
            return
        if timeout is not None and time.monotonic() - heard >= timeout:
            return


def pages(line: Line, after: str | None, lag: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the pages of a feed, empty ones as signs of life; each is read on from where the one before it ended."""
    place = after

    def params() -> dict[str, Any]:
        return {"after": place, "lag": lag}

    for _, chunks in line.answers(params):
        rest = b""
        try:
            for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for text in whole:
                    page = msgspec.json.decode(text)
                    place = page["next"]
                    yield page
                    if line.closed:
                        return
        except (Unavailable, CancelledError) as error:
            line._went(error)
