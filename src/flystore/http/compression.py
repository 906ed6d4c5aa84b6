"""Content codings: what a body is compressed with, if that is worth it (protocol section 1.7).

In worker threads and piece by piece, so an answer of any size takes a piece's memory more. Clients decode a body as one
stream of zstd or gzip; blosc2 has no streams, and a body is as many of its frames as there were pieces. Frames of blosc
1, which numcodecs makes, are frames of blosc 2.
"""

import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import zstandard
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope, Send

from flystore.model.late import late

blosc = late("numcodecs.blosc")

Endpoint = Callable[[Request], Awaitable[Response]]

ITEMSIZE = "flystore.itemsize"
"""Key in a request's scope under which a route may leave the bytes of an item of its body, for those that shuffle."""

AS_IT_IS = "flystore.as_it_is"
"""Key in a request's scope that says that its answer is not to be encoded."""

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

_FIXED = frozenset({b"content-encoding", b"content-range", b"accept-ranges"})
"""Headers of bodies that are encoded, or whose bytes are counted."""


def as_it_is(endpoint: Endpoint) -> Endpoint:
    """Return a route whose bodies are never compressed, because what they are made of is."""

    async def answer(request: Request) -> Response:
        request.scope[AS_IT_IS] = True
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


NO_CODING = Choice(None)


@lru_cache(maxsize=64)
def choose_coding(header: str, media_type: str) -> Choice:
    """Return the coding of an answer of `media_type`: of those the caller likes best, the best for the type."""
    weights = accepted(header)
    others = weights.get("*", 0.0)
    required = weights.get("identity", weights.get("*", 1.0)) == 0.0
    possible = _CODINGS.get(media_type, _TEXT if required else ())
    liked = [(weights.get(name, others), name) for name in possible]
    best = max((weight for weight, _ in liked), default=0.0)
    if best <= 0 or best < weights.get("identity", 0.0):
        return NO_CODING
    return Choice(next(name for weight, name in liked if weight == best), required)


def takes_frames(header: str, *, near: bool) -> bool:
    """Return whether the caller is best sent bytes that are stored as Blosc frames as these frames.

    Parameters
    ----------
    header : str
        Accept-Encoding. Who weighs codings against ``identity`` in it takes what costs no encoding.
    near : bool
        The caller takes bytes faster than most decode them.
    """
    weights = accepted(header)
    if weights.get("blosc2", 0.0) <= 0:
        return False
    if "identity" in weights:
        return True
    return not near and choose_coding(header, "application/octet-stream").name == "blosc2"


class Compressed:
    """One answer on its way out, encoded if that is worth it; its head is kept back until that is known.

    Parameters
    ----------
    choice : Choice
        With a name.
    start : Message
        The head; its headers are changed.
    send : callable
        Takes what is to go out.
    """

    def __init__(
        self, choice: Choice, media_type: str, itemsize: int, least_bytes: int, start: Message, send: Send
    ) -> None:
        self._choice = choice
        self._media_type = media_type
        self._itemsize = itemsize
        self._least_bytes = least_bytes
        self._start = start
        self._send = send
        self._encoder: _Encoder | None = None
        self._decided = False
        self._gathered: list[Any] = []
        self._gathered_bytes = 0

    @property
    def is_encoding(self) -> bool:
        """Whether the rest of a long body must come through here; else it may go past this."""
        return self._encoder is not None or not self._decided

    async def body(self, body: Any, more: bool) -> None:
        """Take a part of the body, and whether others follow."""
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
        assert self._choice.name is not None
        self._decided = True
        if len(piece) < self._least_bytes and not required:
            await self._send(start)
            await self._send({"type": "http.response.body", "body": piece, "more_body": not last})
            return
        encoder = _ENCODERS[self._choice.name](self._media_type, self._itemsize)
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


def compressed(
    scope: Scope, asked: bytes, least_bytes: int, start: Message, send: Send, *, near: bool = False
) -> Compressed | None:
    """Return what encodes the answer that begins with `start`; None if it goes as it is.

    The head says afterwards what caches must know, whichever it is.

    Parameters
    ----------
    asked : bytes
        The request's Accept-Encoding header; empty if there is none.
    least_bytes : int
        0: nothing is encoded.
    near : bool
        The client takes bytes faster than they are encoded: arrays and tables go as they are, if it takes them so.
    """
    if scope["method"] == "HEAD" or not least_bytes:
        return None
    status, headers = start["status"], start["headers"]
    found = dict(headers)
    named = found.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()
    may_change = _may_change(status, found) and AS_IT_IS not in scope
    if status == 304 or (may_change and named in _CODINGS):
        add_to_vary(start, found, b"Accept-Encoding")
    if not may_change:
        return None
    choice = choose_coding(asked.decode("latin-1"), named) if asked else NO_CODING
    if choice.name is None or (near and not choice.required and _CODINGS.get(named) == _BINARY):
        return None
    return Compressed(choice, named, scope.get(ITEMSIZE, _USUAL_ITEM), least_bytes, start, send)


def add_to_vary(start: Message, found: Mapping[bytes, bytes], name: bytes) -> None:
    """Tell caches that the answer also depends on the request's header `name`.

    Parameters
    ----------
    found : mapping
        The answer's headers by name, in small letters.
    """
    before = found.get(b"vary")
    if before is None:
        start["headers"].append((b"vary", name))
    elif name.lower() not in (each.strip() for each in before.lower().split(b",")):
        others = [each for each in start["headers"] if each[0] != b"vary"]
        start["headers"] = [*others, (b"vary", before + b", " + name)]


def _may_change(status: int, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a body may be encoded: it is there, is not, and nobody counts its bytes."""
    if status < 200 or status in (204, 206, 304):
        return False
    return headers.keys().isdisjoint(_FIXED)


def _pieces(view: memoryview) -> Iterator[memoryview]:
    """Yield the parts in which a body is compressed; one, of no bytes, if it has none."""
    for at in range(0, max(len(view), 1), _PIECE_BYTES):
        yield view[at : at + _PIECE_BYTES]


def _encoded(encoder: _Encoder, piece: memoryview, last: bool) -> bytes:
    found = encoder.add(piece) if len(piece) else b""
    return found + encoder.end() if last else found
