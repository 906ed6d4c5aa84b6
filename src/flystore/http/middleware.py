"""What every answer carries, those to our own defects too: request id, timing, a cookie (protocol 1.3)."""

import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .failures import on_unexpected


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
                headers["server-timing"] = f"app;dur={(time.perf_counter() - started) * 1e3:.1f}"
                headers.add_vary_header("Origin")
                if b"tiled_csrf=" not in cookie:
                    value = f"tiled_csrf={secrets.token_urlsafe(24)}; HttpOnly; Path=/; SameSite=lax"
                    headers.append("set-cookie", value)
            await send(message)

        try:
            await self.app(scope, receive, stamped)
        except Exception as error:
            # Answered here and not by Starlette's outermost layer, which raises it again: the server would then
            # close a connection that clients have in their pool, and their next request would be reset.
            if begun:
                raise
            await on_unexpected(Request(scope), error)(scope, receive, stamped)
