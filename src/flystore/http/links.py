"""How fast bodies leave for each client: compressing what the link takes faster than the codec makes costs both sides.

Only the time counts in which the service waited for the client to take more, and only after what the sockets take in at
once. A client about whom nothing is known is taken to be far away.
"""

import time
from collections import OrderedDict

from starlette.types import Message, Scope, Send

FAST_BYTES_PER_S = 300e6
"""From this rate on, arrays go as they are: the codecs make no more than 600 MB/s of a core that others want too."""

HERE_BYTES_PER_S = 10e6
"""The same for clients on this host: what is slow there is not the link but the client, and decoding slows it more."""

LINKS = "flystore.links"
"""Key in a request's scope of the `Links`; None where nothing is to be encoded."""

_LONG_PART = 64 << 10
_AT_ONCE_BYTES = 8 << 20
_ENOUGH_BYTES = 8 << 20
_MOST_CLIENTS = 1000


class Links:
    """Rates at which clients took their last long bodies, by address."""

    def __init__(self) -> None:
        self._rates: OrderedDict[str, float] = OrderedDict()

    def is_fast(self, scope: Scope) -> bool:
        """Return whether the client of a request is known to take bodies faster than they could be compressed."""
        client = _client(scope)
        return self._rates.get(client, 0.0) >= (HERE_BYTES_PER_S if _is_here(client, scope) else FAST_BYTES_PER_S)

    def note(self, scope: Scope, rate: float) -> None:
        """Keep at what rate in bytes/s the client took a long body."""
        client = _client(scope)
        self._rates[client] = rate
        self._rates.move_to_end(client)
        while len(self._rates) > _MOST_CLIENTS:
            self._rates.popitem(last=False)

    def timed(self, scope: Scope, send: Send) -> Send:
        """Return `send`, measured where the body is long."""
        return _Timed(self, scope, send)


def _client(scope: Scope) -> str:
    # Behind a proxy on this host everybody seems near; whom it speaks for it says in a header.
    for name, value in scope["headers"]:
        if name in (b"x-forwarded-for", b"forwarded"):
            return str(value, "latin-1")[:200]
    client = scope.get("client")
    return client[0] if client else ""


def _is_here(client: str, scope: Scope) -> bool:
    server = scope.get("server")
    return client.startswith("127.") or client == "::1" or (server is not None and client == server[0])


class _Timed:
    __slots__ = ("_bytes", "_links", "_noted", "_scope", "_seconds", "_send")

    def __init__(self, links: Links, scope: Scope, send: Send) -> None:
        self._links, self._scope, self._send = links, scope, send
        self._bytes, self._seconds, self._noted = 0, 0.0, 0

    async def __call__(self, message: Message) -> None:
        size = len(message.get("body", b""))
        if size < _LONG_PART:
            await self._send(message)
            return
        began = time.perf_counter()
        await self._send(message)
        self._bytes += size
        if self._bytes <= _AT_ONCE_BYTES:
            return
        self._noted += size
        self._seconds += time.perf_counter() - began
        if self._noted >= _ENOUGH_BYTES:
            self._links.note(self._scope, self._noted / max(self._seconds, 1e-9))
            self._noted, self._seconds = 0, 0.0
