"""Encodings of records and bodies, as the protocol's sections 1.4 and 1.2 want them.

Content types carry no charset: clients compare the header for equality.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flystore.model.errors import InvalidRequest, TooLarge

JSON = "application/json"
MSGPACK = "application/x-msgpack"
OCTETS = "application/octet-stream"

PIECE_BYTES = 1 << 20
"""Bodies leave in views of this size, so a slow reader holds one piece and not the whole body twice."""


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
    """
    announced = request.headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise TooLarge(
            f"a body of {announced} bytes; this service takes {limit} at once. Send it in pieces.",
            limit=limit,
        )
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(
                f"the body exceeds the {limit} bytes this service takes at once. Send it in pieces.",
                limit=limit,
            )
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, limit: int) -> Any:
    """Return the JSON (or msgpack, if so labelled) of a body, whatever else its Content-Type says."""
    body = await read_body(request, limit)
    try:
        if request.headers.get("content-type", "").split(";")[0].strip() == MSGPACK:
            return msgspec.msgpack.decode(body)
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error


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
