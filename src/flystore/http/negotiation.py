"""Encodings of records and bodies, as the protocol's sections 1.4 and 1.2 want them.

Content types carry no charset: clients compare the header for equality.
"""

from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flystore.model.encoding import MAX_DEPTH, decoded_size, require_shallow
from flystore.model.errors import InvalidRequest, TooLarge, Unsupported
from flystore.storage import Account, reserve

JSON = "application/json"
MSGPACK = "application/x-msgpack"
OCTETS = "application/octet-stream"

PIECE_BYTES = 1 << 20
"""Bodies leave in views of this size, so a slow reader holds one piece and not the whole body twice."""

_STEP_BYTES = 4 << 20
_SMALL_BYTES = 1 << 20
_LARGEST_VALUE = 72
"""Bytes of memory that one byte of a body can become: an empty object, and its place in a list."""


def _plain(value: Any) -> Any:
    """Encode what msgspec does not know: numpy scalars and arrays that metadata may still hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in an answer")


_JSON = msgspec.json.Encoder(enc_hook=_plain)
_MSGPACK = msgspec.msgpack.Encoder(enc_hook=_plain)


def wants_msgpack(accept: str) -> bool:
    """Return whether the first type of `accept` that we can serve is msgpack."""
    for part in accept.split(","):
        name = part.split(";")[0].strip()
        if name == MSGPACK:
            return True
        if name in (JSON, "*/*"):
            return False
    return False


def record(request: Request, content: Any, status: int = 200) -> Response:
    """Answer with plain objects, as msgpack or JSON, whichever the caller named first."""
    if wants_msgpack(request.headers.get("accept", "")):
        return Response(_MSGPACK.encode(content), status, media_type=MSGPACK)
    return Response(_JSON.encode(content), status, media_type=JSON)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON whatever the caller accepts; errors are always this."""
    return Response(_JSON.encode(content), status, headers=headers, media_type=JSON)


class BytesResponse(Response):
    """A body of known length, sent piece by piece without a copy.

    Parameters
    ----------
    content : bytes-like
        Must not change until it is sent.
    """

    def __init__(self, content: Any, media_type: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(b"", headers=headers, media_type=media_type)
        self._view = memoryview(content).cast("B") if len(content) else memoryview(b"")
        self.headers["content-length"] = str(len(self._view))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        total = len(self._view)
        for at in range(0, total, PIECE_BYTES):
            more = at + PIECE_BYTES < total
            piece = self._view[at : at + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": more})
        if total == 0:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body, refusing one longer than `limit` bytes before it is all here.

    Raises
    ------
    TooLarge
        With the limit, as soon as the announced or received length exceeds it.
    Unsupported
        If it is compressed: then its length would say nothing about its size.
    Unavailable
        If other requests hold the memory for it.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Unsupported(f"bodies are taken as they are, not encoded as {encoding[:40]!r}", status=415)
    announced = request.headers.get("content-length")
    if announced is not None and announced.isdigit() and (len(announced) > 19 or int(announced) > limit):
        raise TooLarge(
            f"a body of {announced[:40]} bytes; this service takes {limit} at once. Send it in pieces.",
            limit=limit,
        )
    parts, size, reserved = [], 0, 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(
                f"the body exceeds the {limit} bytes this service takes at once. Send it in pieces.",
                limit=limit,
            )
        parts.append(part)
        # As it arrives, because announcing costs nothing. Twice: its parts, and the parts joined.
        if 2 * size > reserved:
            await _reserve(request, _STEP_BYTES)
            reserved += _STEP_BYTES
    return b"".join(parts)


async def _reserve(request: Request, nbytes: int) -> None:
    account: Account = request.scope["flystore.account"]
    if not account.try_take(nbytes, "this body"):
        await run_in_threadpool(account.take, nbytes, "this body")


async def read_json(request: Request, limit: int) -> Any:
    """Return the JSON (or msgpack, if so labelled) of a body, whatever else its Content-Type says.

    Raises
    ------
    InvalidRequest
        If it is neither, or containers nest deeper than `MAX_DEPTH`.
    """
    body = await read_body(request, limit)
    if request.headers.get("content-type", "").split(";")[0].strip() == MSGPACK:
        budget = request.app.state.service.budget.total_bytes
        body = await run_in_threadpool(_as_json, body, limit, budget)
    if len(body) < _SMALL_BYTES:
        return _decoded(body)
    return await run_in_threadpool(_decoded, body)


def _as_json(body: bytes, limit: int, budget: int) -> bytes:
    """Return msgpack as JSON: what has no place there is then refused, or text, whoever sent it."""
    reserve(decoded_size([body], budget // 16, budget), "this body, decoded,")
    try:
        text = msgspec.json.encode(msgspec.msgpack.decode(body, ext_hook=_no_extension))
    except (msgspec.MsgspecError, RecursionError, UnicodeError, TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"the body is not msgpack of plain values: {error}") from error
    if len(text) > limit:
        raise TooLarge(f"the body takes {len(text)} bytes as JSON; this service takes {limit}", limit=limit)
    return text


def _no_extension(code: int, data: memoryview) -> Any:
    raise ValueError(f"it holds an extension type ({code})")


def _decoded(body: bytes) -> Any:
    containers = body.count(b"[") + body.count(b"{")
    # Characters within strings count as well: then it is a little too much, and never too little.
    reserve(2 * len(body) + _LARGEST_VALUE * (containers + body.count(b",")), "this body, decoded,")
    try:
        content = msgspec.json.decode(body)
        if containers > MAX_DEPTH:
            require_shallow(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    return content


def expect_object(content: Any) -> dict[str, Any]:
    """Return `content` if it is a JSON object.

    Raises
    ------
    InvalidRequest
        If it is anything else.
    """
    if not isinstance(content, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(content).__name__}")
    return content
