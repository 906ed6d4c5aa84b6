"""What every request leaves behind: counts by family of routes, and a line in the log where it is wanted.

It is done once, after the answer, on the event loop: dictionaries without locks. A request costs two microseconds.
"""

import logging
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.routing import BaseRoute
from starlette.types import Scope

from flystore.catalog import slow_queries
from flystore.service import Service
from flystore.service.metrics import SECONDS, Measure, Metrics, Read, Sample

log = logging.getLogger("flystore.requests")

REQUEST_ID: ContextVar[str] = ContextVar("flystore_request_id", default="")
"""Of the request on whose behalf the code runs; follows it into worker threads, for the log."""

PUSHED = "flystore.pushed"
"""Key in a request's scope of an answer that goes on until its reader has enough."""

KIND = "flystore.error_kind"
"""Key in a request's scope of the `kind` of the error that it was answered with."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")
_MOST_OF_QUERY = 2000


class Watching(msgspec.Struct, frozen=True):
    """How a service lets itself be watched.

    Attributes
    ----------
    metrics_public : bool
        Whether ``/metrics`` takes no key.
    access_log : bool
        Whether each request is logged.
    slow_seconds : float
        Requests that take longer are logged; 0: none is.
    process : str
        Which process of a service this is, as metrics name it.
    """

    metrics_public: bool = False
    access_log: bool = False
    slow_seconds: float = 0.0
    process: str = "0"


def told_request_id(scope: Scope) -> str | None:
    """Return the id that the caller gave a request, in ``X-Request-ID`` or Tiled's header; None if it gave none.

    One that is no short word is not taken: it would go into logs.
    """
    for name, value in scope["headers"]:
        if (name == b"x-request-id" or name == b"x-tiled-request-id") and _ID.fullmatch(value):
            return str(value, "ascii")
    return None


class _Kept:
    """Samples that are worked out when somebody asks."""

    def __init__(self, name: str, what: str, kind: str) -> None:
        self.name, self.what, self.kind = name, what, kind
        self.values: dict[tuple[str, ...], float] = {}
        self.labels: tuple[str, ...] = ()

    def samples(self) -> Iterator[Sample]:
        for labels, value in sorted(self.values.copy().items()):
            yield "", dict(zip(self.labels, labels, strict=True)), value


class _Durations:
    """A histogram for one thread: that of the event loop."""

    kind = "histogram"

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what
        self.values: dict[str, list[float]] = {}

    def add(self, family: str, seconds: float) -> None:
        found = self.values.get(family)
        if found is None:
            found = self.values[family] = [0] * (len(SECONDS) + 1) + [0.0]
        found[bisect_left(SECONDS, seconds)] += 1
        found[-1] += seconds

    def samples(self) -> Iterator[Sample]:
        bounds = [*(f"{bound:g}" for bound in SECONDS), "+Inf"]
        for family, found in sorted(self.values.copy().items()):
            *counts, total = list(found)
            below = 0.0
            for bound, count in zip(bounds, counts, strict=True):
                below += count
                yield "_bucket", {"family": family, "le": bound}, below
            yield "_sum", {"family": family}, total
            yield "_count", {"family": family}, below


class Measuring:
    """Counts the requests of one application.

    Attributes
    ----------
    under_way : int
        Requests that are not answered to the end.
    """

    def __init__(self, service: Service, routes: Iterable[BaseRoute], watching: Watching) -> None:
        self.watching = watching
        self.under_way = 0
        self.metrics = Metrics(watching.process)
        self._families = {family for route in routes if (family := _family(getattr(route, "path", "")))}
        self._count = _Kept("flystore_requests_total", "Requests, by family of routes, method and status.", "counter")
        self._count.labels = ("family", "method", "status")
        self._sent = _Kept("flystore_sent_bytes_total", "Bytes of bodies of answers, as sent.", "counter")
        self._taken = _Kept("flystore_received_bytes_total", "Bytes of bodies of requests.", "counter")
        self._sent.labels = self._taken.labels = ("family",)
        self._seconds = _Durations("flystore_request_seconds", "From the head of a request to the end of its answer.")
        self.metrics.keep_all([self._count, self._seconds, self._sent, self._taken])
        self.metrics.keep(Read("flystore_requests_under_way", "Requests being answered.", lambda: self.under_way))
        self.metrics.keep_all(_slow_measures())
        self.metrics.keep_all(service.measures())

    def finished(self, scope: Scope, status: int, seconds: float, sent: int, taken: int) -> None:
        """Count a request, and log it if it is wanted.

        Parameters
        ----------
        status : int
            0: the caller went away before there was an answer.
        seconds : float
        sent, taken : int
            Bytes of the bodies.
        """
        path = scope["path"]
        if root := scope.get("root_path"):
            path = path.removeprefix(root)
        family = _family(path)
        if family not in self._families:
            family = "other"
        method = scope["method"]
        if method not in _METHODS:
            method = "other"
        key = (family, method, str(status) if status else "none")
        counts = self._count.values
        counts[key] = counts.get(key, 0) + 1
        if sent:
            self._sent.values[(family,)] = self._sent.values.get((family,), 0) + sent
        if taken:
            self._taken.values[(family,)] = self._taken.values.get((family,), 0) + taken
        watching = self.watching
        slow = 0 < watching.slow_seconds <= seconds and PUSHED not in scope
        if PUSHED not in scope:  # such an answer lasts as long as its reader likes
            self._seconds.add(family, seconds)
        if slow or status >= 500 or watching.access_log:
            _say(scope, family, status, seconds, sent, taken, slow)


def _family(path: str) -> str:
    """Return what names the family of a path: ``array`` of ``/api/v1/array/full/x``, ``zarr`` of ``/zarr/v3/x``."""
    parts = path.split("/", 4)
    if len(parts) > 3 and parts[1] == "api":
        return parts[3] or "about"
    if len(parts) > 1:
        return "about" if parts[1] == "api" else parts[1] or "home"
    return ""


def _say(scope: Scope, family: str, status: int, seconds: float, sent: int, taken: int, slow: bool) -> None:
    kind = scope.get(KIND)
    level = logging.ERROR if status >= 500 and status != 503 else logging.WARNING if slow or status >= 500 else 20
    if not log.isEnabledFor(level):
        return
    client = scope.get("client")
    facts = {
        "method": scope["method"],
        "path": scope["path"],
        "query": _query(scope["query_string"]),
        "family": family,
        "status": status,
        "seconds": round(seconds, 6),
        "sent_bytes": sent,
        "received_bytes": taken,
        "client": client[0] if client else "",
        "request": scope.get("flystore.request_id", ""),
        **({"error": kind} if kind else {}),
        **({"slow": True} if slow else {}),
    }
    target = f"{facts['path']}?{facts['query']}" if facts["query"] else facts["path"]
    why = f" {kind}" if kind else ""
    log.log(
        level,
        "%s%s %s -> %s%s in %.1f ms, %d bytes",
        "slow: " if slow else "",
        scope["method"],
        _printable(target),
        status or "nobody to answer",
        why,
        seconds * 1e3,
        sent,
        extra={"flystore": facts},
    )


def _printable(text: str) -> str:
    """Return text that stays in one line of a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _query(text: bytes) -> str:
    """Return a query without its key, however that is written."""
    if not text:
        return ""
    short = text[:_MOST_OF_QUERY].decode("latin-1")
    if "%" not in short and "api_key" not in short:
        return short
    pairs = parse_qsl(short, keep_blank_values=True)
    return urlencode(
        [(name, "…" if name.strip().lower() == "api_key" else value) for name, value in pairs], safe="…/:,"
    )


def _slow_measures() -> Iterator[Measure]:
    yield Read(
        "flystore_slow_queries_total",
        "Statements of the catalogue that took 0.1 s or more, by the read or write that they are part of.",
        lambda: {name: found.times for name, found in slow_queries().items()},
        label="query",
        kind="counter",
    )
    yield Read(
        "flystore_slow_queries_seconds_total",
        "How long these took, seconds.",
        lambda: {name: found.seconds for name, found in slow_queries().items()},
        label="query",
        kind="counter",
    )
