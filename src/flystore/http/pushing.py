"""Answers that never end by themselves: something is sent whenever there is news, and a sign of life in between."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flystore.service.waking import Follower

from .measuring import PUSHED

PLACE = "flystore.place"
"""Key in a WebSocket's scope under which a route leaves the token of what it sent last."""


class PushedResponse(Response):
    """Sends parts as they come, until there are no more, the client goes, or the service ends.

    Nothing is collected for a client that does not take them: the parts are asked for one at a time, and the
    connection ends after the patience that every answer has.

    Parameters
    ----------
    follower : Follower
        Stopped when the client goes; closed at the end.
    parts : async iterator of bytes
        Waits on `follower`. The first part comes at once, since the head is sent with it.
    """

    def __init__(
        self,
        follower: Follower,
        parts: AsyncIterator[bytes],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(b"", headers={"cache-control": "no-store", **(headers or {})}, media_type=media_type)
        del self.headers["content-length"]
        self._follower = follower
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PUSHED] = True
        gone = asyncio.ensure_future(stop_when_gone(self._follower, receive, "http.disconnect"))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self._parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            self._follower.close()


async def stop_when_gone(follower: Follower, receive: Receive, last: str) -> None:
    """Stop `follower` once a message of type `last` comes; what a client sends before is not looked at."""
    try:
        while (await receive())["type"] != last:
            pass
    finally:
        follower.stop()
