"""What every answer carries: request id, timing, the cookie that clients look for (protocol 1.3)."""

import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


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

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-tiled-request-id"] = request_id
                headers["server-timing"] = f"app;dur={(time.perf_counter() - started) * 1e3:.1f}"
                headers.add_vary_header("Origin")
                if b"tiled_csrf=" not in cookie:
                    value = f"tiled_csrf={secrets.token_urlsafe(24)}; HttpOnly; Path=/; SameSite=lax"
                    headers.append("set-cookie", value)
            await send(message)

        await self.app(scope, receive, stamped)
