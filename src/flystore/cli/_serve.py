"""``flystore serve``: find every mistake first, then say that it is ready, then end cleanly."""

import asyncio
import contextlib
import dataclasses
import gc
import re
import resource
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from flystore.embedded import needing_server_parts
from flystore.model.errors import Misconfigured

from ._heaps import keep_few_heaps
from ._listen import BACKLOG, listener_at
from ._logging import FORMATS, log_to_stderr
from ._notify import tell_systemd
from ._workers import supervise

GRACE_SECONDS = 10

"""How long answers that are under way may take after the service was asked to end."""

OTHERS_SECONDS = 0.3
"""What one of several processes waits, when it ends, for the others to have heard of it: three looks of uvicorn's."""

_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"https?://[^/\s]+")


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """The options of ``flystore serve``, as typed."""

    directory: Path | None
    temp: bool
    host: str
    port: int
    api_key: str | None = dataclasses.field(repr=False)
    read: tuple[Path | str, ...]
    maps: tuple[str, ...]
    public: bool
    verbose: bool
    limits: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    metrics_public: bool = False
    log_format: str = "text"
    access_log: bool | None = None
    slow_seconds: float = 0.0
    catalog: str | None = dataclasses.field(default=None, repr=False)
    pool: int = 20
    storage: str | None = None
    workers: int = 1


def run_service(options: ServeOptions) -> None:
    """Serve until asked to end by SIGINT, SIGTERM or SIGHUP.

    Raises
    ------
    Misconfigured
        If it cannot start; says what to do.
    """
    _require_key(options.api_key)
    _require_origins(options.origins)
    if options.log_format not in FORMATS:
        raise Misconfigured(f"--log-format {options.log_format!r} is none; it is {' or '.join(FORMATS)}")
    keep_few_heaps()
    with (
        _ending_on_signals() as ending,
        contextlib.suppress(_AskedToEnd),
        listener_at(options.host, options.port) as listener,
        _directory(options) as directory,
    ):
        url = _url(options.host, listener.getsockname()[1])
        if options.api_key is None:
            key = secrets.token_hex(32)
            url += f"/?api_key={quote(key, safe='')}"
            options = dataclasses.replace(options, api_key=key)
        if options.workers > 1:
            supervise(options, directory, listener, ending, _announcing(url))
        else:
            with _without_pandas(), _collecting_later():
                _serve(options, directory, listener, ending, _announcing(url))


def run_worker(
    options: ServeOptions, directory: Path, listener: socket.socket, number: int, ready: Callable[[], None]
) -> None:
    """Serve as one of several processes that share a socket, until asked to end.

    Parameters
    ----------
    number : int
        Of the process, from 1 on.
    ready : callable
        Called once it answers.

    Raises
    ------
    Misconfigured
        As `run_service` does.
    """
    keep_few_heaps()
    with _ending_on_signals() as ending, contextlib.suppress(_AskedToEnd), _without_pandas(), _collecting_later():
        _serve(options, directory, listener, ending, ready, worker=number)


def _announcing(url: str) -> Callable[[], None]:
    def announce() -> None:
        print(f"flystore is ready at {url}", flush=True)
        tell_systemd("READY=1")

    return announce


def _require_key(key: str | None) -> None:
    if key is not None and not _KEY.fullmatch(key):
        raise Misconfigured(
            "the API key is empty or has spaces or letters beyond ASCII, which no client could send; give "
            "another with --api-key or FLYSTORE_API_KEY, or leave both out to have one made"
        )


def _require_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise Misconfigured(
                f"--allow-origin {origin!r} is no origin; it is scheme and host, and a port if there is one, without a "
                "slash at the end: https://viewer.example.org"
            )


@contextlib.contextmanager
def _directory(options: ServeOptions) -> Iterator[Path]:
    if options.temp and options.directory is not None:
        raise Misconfigured("a directory and --temp were both given; leave one of them out")
    if options.directory is not None:
        yield options.directory
    elif options.temp:
        if options.storage is not None:
            raise Misconfigured("--temp keeps nothing, so there is nothing for a bucket; leave --temp or --storage out")
        with tempfile.TemporaryDirectory(prefix="flystore-") as made:
            yield Path(made)
    else:
        raise Misconfigured(
            "no directory was named; say where to keep the data (flystore serve DIR), or try it with "
            "flystore serve --temp, which keeps nothing"
        )


def _serve(
    options: ServeOptions,
    directory: Path,
    listener: socket.socket,
    ending: "Ending",
    ready: Callable[[], None],
    worker: int = 0,
) -> None:
    with needing_server_parts("the service"):
        import uvicorn

        from flystore.http import REQUEST_ID, Access, Watching, build_app, server_settings
        from flystore.readers import without_plugins
        from flystore.service import Limits, Service
        from flystore.service.limits import SPARE_DESCRIPTORS
        from flystore.storage import PathMap
    key = str(options.api_key)
    log_to_stderr(
        options.verbose,
        style=options.log_format,
        secrets=(key,),
        access=options.access_log,
        request_id=REQUEST_ID.get,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            gc.freeze()  # a full collection from now on looks at what requests made, and not at all that is loaded
            gc.enable()
            if worker:
                listener.listen(BACKLOG)  # see below: asyncio made it as short as what it accepts at a time
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            tell_systemd("STOPPING=1")
            if worker:  # who is told to come again must not come to a process that is about to end
                for server in self.servers:
                    server.close()
                for each in sockets or ():
                    each.close()
                await asyncio.sleep(OTHERS_SECONDS)
            service.following.waking.end()  # else those who follow would be waited for
            await super().shutdown(sockets)

    maps = [PathMap.parse(text) for text in options.maps]
    limits = Limits.parse(options.limits)
    _allow_open_files(limits.connections + SPARE_DESCRIPTORS)
    if worker:  # together they may hold what one alone may
        limits = msgspec.structs.replace(limits, memory_bytes=limits.budget_bytes // options.workers)
    without_plugins()
    with Service.open(
        directory,
        read=options.read,
        maps=maps,
        limits=limits,
        catalog=options.catalog,
        connections=options.pool,
        storage=options.storage,
    ) as service:
        watching = Watching(
            metrics_public=options.metrics_public,
            access_log=options.verbose if options.access_log is None else options.access_log,
            slow_seconds=options.slow_seconds,
            process=str(worker),
        )
        app = build_app(
            service, Access.of(key, public=options.public), allow_origins=options.origins, watching=watching
        )
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,  # ours has the request's id, and no keys
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            # What one process accepts before it looks at anything else, the others do not get.
            backlog=1 if worker else BACKLOG,
            **server_settings(limits),
        )
        server = Server(config)
        ending.hand_over_to(server)
        server.run(sockets=[listener])


def _allow_open_files(wanted: int) -> None:
    """Have the system allow so many, if it may: each connection is one, and shells start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _collecting_later() -> Iterator[None]:
    """Keep Python from looking for garbage during the start: what is loaded stays, and there is ever more of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _without_pandas() -> Iterator[None]:
    """Have libraries take pandas for not installed: a service makes no data frames.

    PyArrow loads it, 0.4 s and 50 MB, only to see whether a list that it is given is one.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not used by a service", name=fullname)


def _url(host: str, port: int) -> str:
    # A wildcard is no address to go to; this machine's own is, from here.
    shown = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


class _AskedToEnd(BaseException):
    """A signal came before the service was ready."""


class Ending:
    """Ends the start by an exception, and a running server by asking it."""

    def __init__(self) -> None:
        self._server: Any = None
        self._asked = False

    def hand_over_to(self, server: Any) -> None:
        self._server = server

    def __call__(self, number: int, frame: Any) -> None:
        if self._server is not None:
            self._server.should_exit = True
        elif not self._asked:  # a second one must not break off the tidying up
            self._asked = True
            raise _AskedToEnd


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[Ending]:
    ending = Ending()
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, ending) for number in numbers}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
