"""What every answer carries, those to our own defects too: request id, timing, a cookie (protocol 1.3), a validator.

And what every request gets: an account of the memory it takes, and a body that must not keep it waiting. All of it is
done in one place, once a head, because each layer around an application costs every request.
"""

import asyncio
import re
import secrets
import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flystore.model.errors import InvalidRequest
from flystore.service import Limits
from flystore.storage import FileRuns

from .access import KEY_TO_KEEP
from .caching import validate
from .compression import Compressed, add_to_vary, compressed
from .failures import on_exception
from .file_runs import FILE_RUNS
from .links import LINKS, Links
from .measuring import REQUEST_ID, Measuring, told_request_id
from .releases import require_recent

_COOKIE = "HttpOnly; Path=/; SameSite=lax"
_COOKIE_VALUE = re.compile(r"[!#-+\--:<-\[\]-~]+")


class Answering:
    """Around all routes: validates, compresses and stamps their answers. Pure ASGI: bodies pass through untouched.

    Parameters
    ----------
    measuring : Measuring
        Is told of each request once it is answered.
    least_bytes : int
        Shorter answers are not compressed; 0: none is.
    """

    def __init__(self, app: ASGIApp, measuring: Measuring, least_bytes: int = 0) -> None:
        self.app = app
        self._measuring = measuring
        self._least_bytes = least_bytes
        self._links = Links()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service = scope["app"].state.service
        scope[LINKS] = self._links if self._least_bytes else None
        answer = Outgoing(scope, self._links.timed(scope, send), self._least_bytes, self._links)
        in_time = _InTime(receive, service.limits)
        token = REQUEST_ID.set(answer.request_id)
        self._measuring.under_way += 1
        try:
            require_recent(scope)
            with service.budget.account() as scope["flystore.account"]:
                await self.app(scope, in_time.receive, answer.take)
        except Exception as error:
            # Also a defect is answered: the server would close a connection that clients have in their pool, and
            # their next request would be reset.
            if answer.begun:
                raise
            await on_exception(Request(scope), error)(scope, receive, answer.take)
            error.__traceback__ = None  # an error that is raised again and again would keep all its frames
        finally:
            self._measuring.under_way -= 1
            seconds = time.perf_counter() - answer.started
            self._measuring.finished(scope, answer.status, seconds, answer.sent_bytes, in_time.taken_bytes)
            REQUEST_ID.reset(token)


class Outgoing:
    """One answer on its way out. Its head waits for the first part of its body, which tells what to say.

    Attributes
    ----------
    begun : bool
        Whether anything was sent.
    status : int
        0 until then.
    sent_bytes : int
        Of the body, as it was handed on.
    started : float
        When the request came, on the clock of `time.perf_counter`.
    """

    def __init__(self, scope: Scope, send: Send, least_bytes: int, links: Links | None = None) -> None:
        self.begun = False
        self.status = self.sent_bytes = 0
        self.started = time.perf_counter()
        self._links = links
        self._scope = scope
        self._send = send
        self._least_bytes = least_bytes
        self._start: Message | None = None
        self._compressed: Compressed | None = None
        self._told_id = told_request_id(scope)
        scope["flystore.request_id"] = self.request_id = self._told_id or secrets.token_hex(8)

    async def take(self, message: Message) -> None:
        """Take a message of the application."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] == "http.response.body":
            body, more = message.get("body", b""), message.get("more_body", False)
            if self._compressed is not None:
                await self._compressed.body(body, more)
                return
            if self._start is not None:
                await self._begin(body, more)
                return
            self.sent_bytes += len(body)
        elif message["type"] == FILE_RUNS:
            if self._compressed is not None and self._compressed.is_encoding:
                await self._read_to_encode(message["runs"])
                return
            self.sent_bytes += message["runs"].nbytes
        await self._send(message)

    async def _read_to_encode(self, runs: FileRuns) -> None:
        assert self._compressed is not None
        pieces = runs.read()
        while piece := await run_in_threadpool(next, pieces, b""):
            await self._compressed.body(piece, True)

    async def _begin(self, body: Any, more: bool) -> None:
        """Send the head and the first part of the body."""
        start, self._start = self._start, None
        assert start is not None
        start["headers"] = list(start["headers"])
        asked = _Asked(self._scope)
        if await validate(self._scope, asked.known, start, body, more):
            body = b""
        near = self._links is not None and bool(asked.codings) and self._links.is_fast(self._scope)
        encoded = compressed(self._scope, asked.codings, self._least_bytes, start, self._stamped, near=near)
        if encoded is not None:
            self._compressed = encoded
            await encoded.body(body, more)
            return
        self._stamp(start, asked.cookie)
        await self._send(start)
        self.sent_bytes += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _stamped(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._stamp(message, _Asked(self._scope).cookie)
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)

    def _stamp(self, start: Message, cookie: bytes) -> None:
        self.begun = True
        self.status = start["status"]
        took = f"app;dur={(time.perf_counter() - self.started) * 1e3:.1f}".encode()
        found = dict(start["headers"])
        add_to_vary(start, found, b"Origin")
        headers: list[tuple[bytes, bytes]] = start["headers"]
        if b"server-timing" in found:
            took = b", ".join([*(value for name, value in headers if name == b"server-timing"), took])
            headers = start["headers"] = [each for each in headers if each[0] != b"server-timing"]
        headers.append((b"x-tiled-request-id", self.request_id.encode()))
        if self._told_id is not None:
            headers.append((b"x-request-id", self.request_id.encode()))
        headers.append((b"server-timing", took))
        if b"tiled_csrf=" not in cookie:
            headers.append((b"set-cookie", f"tiled_csrf={secrets.token_urlsafe(24)}; {_COOKIE}".encode()))
        key = self._scope.get(KEY_TO_KEEP)
        if key and _COOKIE_VALUE.fullmatch(key) and f"tiled_api_key={key}".encode() not in cookie:
            headers.append((b"set-cookie", f"tiled_api_key={key}; {_COOKIE}".encode()))


class _Asked:
    """The headers of a request on which its answer's head depends; empty where there are none."""

    __slots__ = ("codings", "cookie", "known")

    def __init__(self, scope: Scope) -> None:
        self.codings = self.cookie = self.known = b""
        for name, value in scope["headers"]:
            if name == b"accept-encoding":
                self.codings = self.codings or value
            elif name == b"if-none-match":
                self.known = self.known or value
            elif name == b"cookie":
                self.cookie += value


class _InTime:
    """Receives a body, and refuses one that comes slower than the limits allow.

    Only the time in which the service waits for the client counts.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._waited = 0.0
        self._bytes = 0
        self._more = True

    @property
    def taken_bytes(self) -> int:
        return self._bytes

    async def receive(self) -> Message:
        if not self._more:  # what comes now is that the client has gone, whenever that may be
            return await self._receive()
        began = time.monotonic()
        allowed = self._limits.patience_seconds + self._bytes / self._limits.slowest_rate - self._waited
        try:
            async with asyncio.timeout(allowed):
                message = await self._receive()
        except TimeoutError:
            raise InvalidRequest(
                f"the body stopped arriving after {self._bytes} bytes; send it faster than "
                f"{self._limits.slowest_rate} bytes/s, or in smaller pieces",
                status=408,
            ) from None
        self._waited += time.monotonic() - began
        self._bytes += len(message.get("body", b""))
        self._more = bool(message.get("more_body", False))
        return message
