"""What every answer carries, those to our own defects too: request id, timing, a cookie (protocol 1.3).

And what every request gets: an account of the memory it takes, and a body that must not keep it waiting.
"""

import asyncio
import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flystore.model.errors import InvalidRequest
from flystore.service import Limits

from .access import KEY_TO_KEEP
from .failures import on_unexpected

_COOKIE = "HttpOnly; Path=/; SameSite=lax"
_COOKIE_VALUE = re.compile(r"[!#-+\--:<-\[\]-~]+")


class Stamp:
    """Pure ASGI, so that bodies pass through untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        scope["flystore.request_id"] = request_id = secrets.token_hex(8)
        cookie = b"".join(value for name, value in scope["headers"] if name == b"cookie")

        begun = False

        async def stamped(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["x-tiled-request-id"] = request_id
                phases = [*headers.getlist("server-timing"), f"app;dur={(time.perf_counter() - started) * 1e3:.1f}"]
                headers["server-timing"] = ", ".join(phases)
                headers.add_vary_header("Origin")
                if b"tiled_csrf=" not in cookie:
                    headers.append("set-cookie", f"tiled_csrf={secrets.token_urlsafe(24)}; {_COOKIE}")
                key = scope.get(KEY_TO_KEEP, "")
                if _COOKIE_VALUE.fullmatch(key) and f"tiled_api_key={key}".encode() not in cookie:
                    headers.append("set-cookie", f"tiled_api_key={key}; {_COOKIE}")
            await send(message)

        service = scope["app"].state.service
        in_time = _InTime(receive, service.limits)
        try:
            with service.budget.account() as scope["flystore.account"]:
                await self.app(scope, in_time.receive, stamped)
        except Exception as error:
            # Answered here and not by Starlette's outermost layer, which raises it again: the server would then
            # close a connection that clients have in their pool, and their next request would be reset.
            if begun:
                raise
            await on_unexpected(Request(scope), error)(scope, receive, stamped)


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
