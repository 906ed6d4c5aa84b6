"""WebSockets within limits: one that takes nothing is told how far it came, and ended.

What a client has not taken waits in the connection's buffer, and the application waits for the buffer; so a client
that never reads costs one buffer, for as long as `Limits.patience_seconds`.
"""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from flystore.service import Limits

from .pushing import PLACE

LAGGED = 4008
"""Close code: the client did not take what was sent; the reason names the token to go on from."""


class LimitedSocket(WebSocketsSansIOProtocol):
    """A WebSocket whose client has to take what it is sent."""

    limits: Limits
    _late: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel()
        self._late = self.loop.call_later(self.limits.patience_seconds, self._lagged)

    def resume_writing(self) -> None:
        self._cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # a refusal is an answer too; uvicorn would log it as a failure

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _lagged(self) -> None:
        if self.close_sent or self.disconnected:
            self.transport.abort()
            return
        token = self.scope.get(PLACE)
        self.conn.send_close(LAGGED, f"lagged; go on after {token}" if token else "lagged")
        self.transport.write(b"".join(self.conn.data_to_send()))  # behind what waits, for when it is read at last
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": LAGGED})
        self.writable.set()
        self._late = self.loop.call_later(self.limits.patience_seconds, self.transport.abort)


def limited_socket(limits: Limits, **settings: Any) -> LimitedSocket:
    """Return the protocol of one connection."""
    made = LimitedSocket(**settings)
    made.limits = limits
    return made
