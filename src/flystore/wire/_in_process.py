"""Requests to an ASGI application in the same process: no socket, the same answers.

The application runs on an event loop of its own in a daemon thread, its lifespan around it, so that
code with or without a loop of its own can call it.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from flystore.model.errors import DeadlineExceeded, FlystoreError, InvalidRequest, Unavailable

from ._answer import Answer, encode_params, raise_for_error
from ._http import NOT_READY_SECONDS, TIMEOUT_SECONDS, broken_off, size_changed
from ._transport import Headers, Params, StreamedAnswer, Unpacking

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

START_SECONDS = 60.0
"""For the application's start and for its end; opening a large store may migrate it."""

_CHUNKS_AHEAD = 4
"""How many pieces of a streamed body may wait for whoever takes them."""

_T = TypeVar("_T")


class InProcessTransport:
    """A `Transport` to an ASGI application in this process.

    Parameters
    ----------
    app : ASGI application
        Owned by this transport from now on: its lifespan starts here and ends with `close`.
    api_key : str, optional
        Sent with each request, as over HTTP.
    where : str
        What is opened, in words, for messages.
    timeout : float
        Seconds a request may take before it fails with `DeadlineExceeded`.

    Raises
    ------
    Exception
        Whatever the application raised when it started.
    """

    def __init__(
        self,
        app: AsgiApp,
        api_key: str | None = None,
        *,
        where: str = "the service in this process",
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._where = where
        self._timeout = timeout
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="flystore-in-process", daemon=True)
        self._thread.start()
        self._lifespan = _Lifespan(app)
        try:
            self._wait(self._lifespan.start(), START_SECONDS)
        except BaseException:
            self._closed = True
            self._end_loop()
            raise

    def __repr__(self) -> str:
        return f"<InProcessTransport {self._where}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self._where} is open in this process and cannot be handed to another one; start "
            "`flystore serve` and use from_uri there"
        )

    @property
    def where(self) -> str:
        return self._where

    @property
    def base_url(self) -> str:
        return "http://in-process"

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
    ) -> Answer:
        exchange = self._exchange(method, path, params, headers, body)
        parts: list[bytes] = []

        async def keep(piece: bytes | memoryview) -> None:
            parts.append(piece if isinstance(piece, bytes) else bytes(piece))

        exchange.take = keep
        self._finish(exchange, parts, timeout)
        return Answer(exchange.status, exchange.headers, parts[0] if len(parts) == 1 else b"".join(parts))

    def readinto(
        self,
        method: str,
        path: str,
        into: memoryview,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
        unpacking: Callable[[memoryview], Unpacking] | None = None,
    ) -> Answer:
        exchange = self._exchange(method, path, params, headers, body)
        reported: list[bytes] = []
        at = 0

        async def place(piece: bytes | memoryview) -> None:
            nonlocal at
            if exchange.status >= 400:
                reported.append(bytes(piece))
                return
            size = len(piece)
            if at + size <= len(into):
                into[at : at + size] = piece
            at += size

        def restart() -> None:
            nonlocal at
            at = 0

        exchange.take, exchange.restart = place, restart
        try:
            self._finish(exchange, reported, timeout)
        except Unavailable as error:
            if type(error) is not Unavailable or not 0 < at < len(into) or exchange.status >= 400:
                raise
            raise broken_off(exchange.what, at, len(into), str(error)) from error
        if at != len(into):
            raise size_changed(path, len(into), at)
        return Answer(exchange.status, exchange.headers, b"")

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
    ) -> Iterator[StreamedAnswer]:
        exchange = self._exchange(method, path, params, headers, body)
        limit = timeout or self._timeout
        waiting: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(_CHUNKS_AHEAD)

        async def hand_over(piece: bytes | memoryview) -> None:
            await waiting.put(bytes(piece))

        async def run() -> None:
            try:
                await exchange.run()
            except Exception as error:  # noqa: BLE001 - raised where the chunks are taken
                exchange.started.set()
                await waiting.put(error)
                return
            await waiting.put(None)

        exchange.take = hand_over

        def chunks() -> Iterator[bytes]:
            while (piece := self._wait(waiting.get(), limit)) is not None:
                if isinstance(piece, BaseException):
                    raise self._broken(exchange, piece)
                yield piece

        def end() -> None:
            task.cancel()
            with contextlib.suppress(asyncio.QueueFull):  # then nobody waits
                waiting.put_nowait(Unavailable(f"{exchange.what}: ended from another thread"))

        def abort() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and everything on it
                self._loop.call_soon_threadsafe(end)

        loop = self._open_loop()
        task = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            self._wait(exchange.started.wait(), limit)
            if exchange.status >= 400:
                raise_for_error(exchange.status, exchange.headers, b"".join(chunks()), exchange.what)
            yield StreamedAnswer(exchange.status, exchange.headers, chunks(), abort)
        finally:
            task.cancel()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._lifespan.end(), self._loop).result(START_SECONDS)
        finally:
            self._end_loop()

    def _exchange(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Headers | None,
        body: bytes | bytearray | memoryview | None,
    ) -> "_Exchange":
        sent = {"host": "in-process", "user-agent": "flystore"}
        sent.update((name.lower(), value) for name, value in (headers or {}).items())
        if self._api_key is not None:
            sent["authorization"] = f"Apikey {self._api_key}"
        payload = b"" if body is None else bytes(body)
        if payload or method in ("POST", "PUT", "PATCH"):
            sent["content-length"] = str(len(payload))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(urlsplit(path).path),
            "raw_path": path.encode("ascii"),
            "query_string": encode_params(params).encode("ascii"),
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
            "client": ("in-process", 0),
            "server": ("in-process", 80),
            "state": dict(self._lifespan.state),
        }
        return _Exchange(self._app, scope, payload, f"{method} {path} in {self._where}")

    def _finish(self, exchange: "_Exchange", collected: list[bytes], timeout: float | None) -> None:
        """Run an exchange to its end, waiting a little for data that is not ready; raise what it reports."""
        waited = 0.0
        while True:
            try:
                self._wait(exchange.run(), timeout or self._timeout)
                raise_for_error(exchange.status, exchange.headers, b"".join(collected), exchange.what)
                return
            except FlystoreError as error:
                if (
                    exchange.method != "GET"
                    or error.kind != "not-ready"
                    or not exchange.started.is_set()
                    or waited >= NOT_READY_SECONDS
                ):
                    raise
                self._wait(asyncio.sleep(1.0), self._timeout)
                waited += 1.0
                collected.clear()
                exchange.begin_again()
            except Exception as error:
                raise self._broken(exchange, error) from error

    def _broken(self, exchange: "_Exchange", error: BaseException) -> BaseException:
        if isinstance(error, FlystoreError):
            return error
        failure = Unavailable(
            f"{exchange.what}: the service failed with {type(error).__name__}: {error}. This is a defect; "
            "nothing is known about the request."
        )
        failure.__cause__ = error
        return failure

    def _wait(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T:
        loop = self._open_loop(work)
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(timeout)
        except TimeoutError as error:
            if isinstance(error, FlystoreError) or future.done():
                raise
            future.cancel()
            raise DeadlineExceeded(
                f"{self._where} did not answer within {timeout:g} s; try again, or ask for less at once"
            ) from error
        except BaseException:
            future.cancel()
            raise

    def _open_loop(self, work: Coroutine[Any, Any, Any] | None = None) -> asyncio.AbstractEventLoop:
        problem: FlystoreError | None = None
        if self._closed:
            problem = Unavailable(f"{self._where} is closed; open it again", closed=True)
        elif threading.current_thread() is self._thread:
            problem = InvalidRequest(f"{self._where} cannot be called from inside itself")
        if problem is None:
            return self._loop
        if work is not None:
            work.close()
        raise problem

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _end_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _Exchange:
    """One request and its answer, spoken in ASGI messages."""

    def __init__(self, app: AsgiApp, scope: dict[str, Any], body: bytes, what: str) -> None:
        self.method: str = scope["method"]
        self.what = what
        self.status = 0
        self.headers: dict[str, str] = {}
        self.started = asyncio.Event()
        self.take: Callable[[bytes | memoryview], Awaitable[None]]
        self.restart: Callable[[], None] = lambda: None
        self._app = app
        self._scope = scope
        self._body = body
        self._complete = asyncio.Event()
        self._received = False

    def begin_again(self) -> None:
        self.status, self.headers, self._received = 0, {}, False
        self.started.clear()
        self._complete.clear()
        self.restart()

    async def run(self) -> None:
        try:
            await self._app(dict(self._scope), self._receive, self._send)
        except Exception:
            # An application that answers 500 and then raises has answered.
            if not self._complete.is_set():
                raise
        if not self._complete.is_set():
            raise Unavailable(f"{self.what}: the service ended its answer before it was whole")

    async def _receive(self) -> _Message:
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._complete.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message.get("headers", ())
            }
            self.started.set()
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            if len(piece):
                await self.take(piece)
            if not message.get("more_body", False):
                self._complete.set()


class _Lifespan:
    """The application's start and end, in one task as ASGI wants it."""

    def __init__(self, app: AsgiApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._incoming: asyncio.Queue[_Message] = asyncio.Queue()
        self._outgoing: asyncio.Queue[_Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())
        await self._tell("startup")

    async def end(self) -> None:
        assert self._task is not None
        if not self._task.done():
            await self._tell("shutdown")
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _tell(self, what: str) -> None:
        assert self._task is not None
        await self._incoming.put({"type": f"lifespan.{what}"})
        answer = asyncio.ensure_future(self._outgoing.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            if self._failure is not None:
                raise self._failure
            return
        message = answer.result()
        if message["type"] == f"lifespan.{what}.failed":
            await asyncio.wait({self._task})
            if self._failure is not None:
                raise self._failure
            verb = "start" if what == "startup" else "end cleanly"
            raise Unavailable(f"the service did not {verb}: {message.get('message')}")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        said = False

        async def send(message: _Message) -> None:
            nonlocal said
            said = True
            await self._outgoing.put(message)

        try:
            await self._app(scope, self._incoming.get, send)
        except Exception as error:  # noqa: BLE001 - raised to whoever waits for the start or the end
            # Before the first word it means that the application has no lifespan, which is legal.
            if said or isinstance(error, FlystoreError):
                self._failure = error
