"""Content codings: what a body is compressed with, if that is worth it (protocol section 1.7).

In worker threads and piece by piece, so an answer of any size takes a piece's memory more. Clients decode a body as one
stream of zstd or gzip; blosc2 has no streams, and a body is as many of its frames as there were pieces. Frames of blosc
1, which numcodecs makes, are frames of blosc 2.
"""

import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import zstandard
from numcodecs import blosc
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]

ITEMSIZE = "flystore.itemsize"
"""Key in a request's scope under which a route may leave the bytes of an item of its body, for those that shuffle."""

_AS_IT_IS = "flystore.as_it_is"

_PIECE_BYTES = 1 << 20
_GATHER_BYTES = 64 << 10
"""Of a body that comes in small pieces so much is compressed at once."""

_LARGEST_ITEM = 255
_USUAL_ITEM = 8

_TEXT = ("zstd", "gzip")
_BINARY = ("blosc2", "zstd", "gzip")
_CODINGS = {
    "application/json": _TEXT,
    "application/json-seq": _TEXT,
    "application/x-msgpack": _TEXT,
    "application/octet-stream": _BINARY,
    "application/vnd.apache.arrow.file": _BINARY,
    "text/csv": _TEXT,
    "text/x-comma-separated-values": _TEXT,
    "text/comma-separated-values": _TEXT,
    "application/vnd.ms-excel": _TEXT,  # which is csv here, as in the protocol
    "text/plain": _TEXT,
    "text/html": _TEXT,
}
"""Codings by media type, best first. What is not here is compressed already, or has no bytes to spare."""


def as_it_is(endpoint: Endpoint) -> Endpoint:
    """Return a route whose bodies are never compressed, because what they are made of is."""

    async def answer(request: Request) -> Response:
        request.scope[_AS_IT_IS] = True
        return await endpoint(request)

    return answer


class _Encoder(Protocol):
    def add(self, piece: memoryview) -> bytes:
        """Return `piece` in a form that can be decoded with all before it, though more may come."""

    def end(self) -> bytes: ...


class _Zstd:
    def __init__(self, media_type: str, itemsize: int) -> None:
        self._stream = zstandard.ZstdCompressor(level=1 if _CODINGS.get(media_type) == _BINARY else 3).compressobj()

    def add(self, piece: memoryview) -> bytes:
        return self._stream.compress(piece) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._stream.flush()


class _Gzip:
    def __init__(self, media_type: str, itemsize: int) -> None:
        self._stream = zlib.compressobj(1, wbits=31)

    def add(self, piece: memoryview) -> bytes:
        return self._stream.compress(piece) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush()


class _Blosc:
    def __init__(self, media_type: str, itemsize: int) -> None:
        self._itemsize = itemsize if 0 < itemsize <= _LARGEST_ITEM else _USUAL_ITEM

    def add(self, piece: memoryview) -> bytes:
        itemsize = self._itemsize if len(piece) % self._itemsize == 0 else 1
        return blosc.compress(np.frombuffer(piece, f"V{itemsize}"), b"lz4", 5, blosc.SHUFFLE)

    def end(self) -> bytes:
        return b""


_ENCODERS: dict[str, type] = {"blosc2": _Blosc, "zstd": _Zstd, "gzip": _Gzip}


class Choice(NamedTuple):
    """A coding for an answer.

    Attributes
    ----------
    name : str or None
        None: as it is.
    required : bool
        Whether the caller takes nothing that is not encoded.
    """

    name: str | None
    required: bool = False


def accepted(header: str) -> dict[str, float]:
    """Return the codings that an Accept-Encoding header names, with their weights from 0 (refused) to 1.

    A weight that makes no sense counts as refused: the caller takes the body as it is.
    """
    found: dict[str, float] = {}
    for part in header.split(","):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        if not name:
            continue
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        found[{"x-gzip": "gzip"}.get(name, name)] = weight
    return found


def _weight(text: str) -> float:
    if len(text) > 5 or not text.replace(".", "", 1).isdecimal():
        return 0.0
    weight = float(text)
    return weight if weight <= 1 else 0.0


def choose_coding(header: str, media_type: str) -> Choice:
    """Return the coding of an answer of `media_type`: of those the caller likes best, the best for the type."""
    weights = accepted(header)
    others = weights.get("*", 0.0)
    required = weights.get("identity", weights.get("*", 1.0)) == 0.0
    possible = _CODINGS.get(media_type, _TEXT if required else ())
    liked = [(weights.get(name, others), name) for name in possible]
    best = max((weight for weight, _ in liked), default=0.0)
    if best <= 0 or best < weights.get("identity", 0.0):
        return Choice(None)
    return Choice(next(name for weight, name in liked if weight == best), required)


class Compress:
    """Compresses bodies for callers that take it; pure ASGI, in front of all routes."""

    def __init__(self, app: ASGIApp, least_bytes: int = 1000) -> None:
        self.app = app
        self._least_bytes = least_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "HEAD" or not self._least_bytes:
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, _Answer(scope, send, self._least_bytes).take)


class _Answer:
    """One answer on its way out. Its head is kept back until it is known what becomes of the body."""

    def __init__(self, scope: Scope, send: Send, least_bytes: int) -> None:
        self._scope = scope
        self._send = send
        self._least_bytes = least_bytes
        self._start: Message | None = None
        self._choice = Choice(None)
        self._media_type = ""
        self._encoder: _Encoder | None = None
        self._decided = False
        self._gathered: list[Any] = []
        self._gathered_bytes = 0

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._body(message.get("body", b""), message.get("more_body", False))
        else:
            await self._send(message)

    async def _begin(self, start: Message) -> None:
        headers = MutableHeaders(scope=start)
        self._media_type = headers.get("content-type", "").split(";")[0].strip().lower()
        may_change = _may_change(start["status"], headers) and _AS_IT_IS not in self._scope
        if start["status"] == 304 or (may_change and self._media_type in _CODINGS):
            headers.add_vary_header("Accept-Encoding")
        if may_change:
            asked = Headers(scope=self._scope).get("accept-encoding", "")
            self._choice = choose_coding(asked, self._media_type)
        if self._choice.name is None:
            await self._send(start)
        else:
            self._start = start

    async def _body(self, body: Any, more: bool) -> None:
        if self._decided and self._encoder is None:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
            return
        if len(body):
            self._gathered.append(body)
            self._gathered_bytes += len(body)
        if more and self._gathered_bytes < _GATHER_BYTES:
            return
        parts, self._gathered, self._gathered_bytes = self._gathered, [], 0
        view = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        pieces = list(_pieces(view))
        if not self._decided:
            # Of a short body, what is left is known at once; of a long one, the first piece speaks for the others.
            await self._decide(pieces.pop(0), last=not more and not pieces)
            if not more and not pieces:
                return
        for number, piece in enumerate(pieces):
            await self._pass_on(piece, last=not more and number == len(pieces) - 1)

    async def _decide(self, piece: memoryview, *, last: bool) -> None:
        """Send the head and the first piece, encoded if that is worth it."""
        start, required = self._start, self._choice.required
        assert start is not None
        assert self._choice.name is not None
        self._decided = True
        if len(piece) < self._least_bytes and not required:
            await self._send(start)
            await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
            return
        encoder = _ENCODERS[self._choice.name](self._media_type, self._scope.get(ITEMSIZE, _USUAL_ITEM))
        began = time.perf_counter()
        encoded = await run_in_threadpool(_encoded, encoder, piece, last)
        took = (time.perf_counter() - began) * 1e3
        headers = MutableHeaders(scope=start)
        if 10 * len(encoded) < 9 * len(piece) or required:
            self._encoder = encoder
            headers["content-encoding"] = self._choice.name
            headers.append("server-timing", f"compress;dur={took:.1f};ratio={len(piece) / max(len(encoded), 1):.2f}")
            if last:
                headers["content-length"] = str(len(encoded))
            else:
                del headers["content-length"]
        await self._send(start)
        body = encoded if self._encoder is not None else piece
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def _pass_on(self, piece: memoryview, *, last: bool) -> None:
        body: Any = piece
        if self._encoder is not None:
            body = await run_in_threadpool(_encoded, self._encoder, piece, last)
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


def _may_change(status: int, headers: Headers) -> bool:
    """Return whether a body may be encoded: it is there, is not, and nobody counts its bytes."""
    if status < 200 or status in (204, 206, 304):
        return False
    return not any(name in headers for name in ("content-encoding", "content-range", "accept-ranges"))


def _pieces(view: memoryview) -> Iterator[memoryview]:
    """Yield the parts in which a body is compressed; one, of no bytes, if it has none."""
    for at in range(0, max(len(view), 1), _PIECE_BYTES):
        yield view[at : at + _PIECE_BYTES]


def _encoded(encoder: _Encoder, piece: memoryview, last: bool) -> bytes:
    found = encoder.add(piece) if len(piece) else b""
    return found + encoder.end() if last else found
