"""Raw assets: the files behind a node, whole or in ranges (protocol section 10)."""

import hashlib
import re
import secrets
import time
from collections.abc import Iterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flystore.model.errors import InvalidRequest
from flystore.service import QUIET_S, Service
from flystore.storage import OpenedFile, reserve

from .failures import answer
from .negotiation import OCTETS, PIECE_BYTES, json_response
from .parameters import needed_integer
from .ranges import http_date, is_known, wanted_ranges
from .resources import path_of

_UNSAFE = re.compile(r'[\x00-\x1f\x7f"\\]')


async def asset_bytes(request: Request) -> Response:
    """``GET /asset/bytes/{path}?id=``: a file as it is, or the ranges of it that the caller wants."""
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    asset_id = needed_integer(request, "id")
    relative = request.query_params.get("relative_path")
    file, name = await run_in_threadpool(service.assets.open, path_of(request), asset_id, relative)
    try:
        return _answer(request, file, name)
    except BaseException:
        file.close()
        raise


async def asset_manifest(request: Request) -> Response:
    """``GET /asset/manifest/{path}?id=``: the files of a directory, by their paths relative to it."""
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    names = await run_in_threadpool(service.assets.manifest, path_of(request), needed_integer(request, "id"))
    return await run_in_threadpool(json_response, {"manifest": names})


def _answer(request: Request, file: OpenedFile, name: str) -> Response:
    modified = file.modified_ns / 1e9
    # A file just written to may be so again within one tick of its clock: what is sent of it now is known by nothing.
    once = secrets.token_hex(8) if abs(time.time() - modified) < QUIET_S else ""
    etag = f'"{hashlib.blake2b(repr((file.fingerprint, once)).encode(), digest_size=16).hexdigest()}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": etag,
        "last-modified": http_date(modified),
        "x-content-type-options": "nosniff",
    }
    if not once and is_known(request.headers, etag, modified):
        file.close()
        return Response(b"", 304, headers)
    ranges = wanted_ranges(request.headers, file.size, etag, None if once else modified)
    if ranges is not None and not ranges:
        file.close()
        refusal = answer(
            InvalidRequest(f"none of the ranges asked for lies in this file of {file.size} bytes", status=416)
        )
        refusal.headers["content-range"] = f"bytes */{file.size}"
        return refusal
    return _Download(file, ranges, headers, name)


class _Download(Response):
    """A file, or some ranges of it, read in pieces from the descriptor that was checked; closes it."""

    def __init__(self, file: OpenedFile, ranges: list[range] | None, headers: dict[str, str], name: str) -> None:
        self._file = file
        parts = [range(file.size)] if ranges is None else ranges
        self._parts: list[range | bytes] = list(parts)
        media_type = OCTETS
        if len(parts) > 1:
            boundary = secrets.token_hex(12)
            media_type = f"multipart/byteranges; boundary={boundary}"
            self._parts = list(_with_heads(parts, boundary, file.size))
        elif ranges is not None:
            headers["content-range"] = f"bytes {parts[0].start}-{parts[0].stop - 1}/{file.size}"
        super().__init__(b"", 200 if ranges is None else 206, headers)
        # As bytes, because names are UTF-8: clients read them as that, and take no other spelling.
        shown = _UNSAFE.sub("_", name).encode("utf-8", "replace")
        self.raw_headers.append((b"content-disposition", b'attachment; filename="' + shown + b'"'))
        self.headers["content-type"] = media_type
        self.headers["content-length"] = str(sum(map(len, self._parts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await run_in_threadpool(reserve, PIECE_BYTES, "this download")
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for part in self._parts:
                if isinstance(part, bytes):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    continue
                for at in range(part.start, part.stop, PIECE_BYTES):
                    length = min(PIECE_BYTES, part.stop - at)
                    if await request.is_disconnected():
                        return  # sending would not tell, and the rest of a large file would be read for nobody
                    piece = await run_in_threadpool(self._file.read, at, length)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._file.close()


def _with_heads(ranges: list[range], boundary: str, size: int) -> Iterator[range | bytes]:
    for part in ranges:
        head = f"\r\n--{boundary}\r\ncontent-type: {OCTETS}\r\ncontent-range: bytes {part.start}-{part.stop - 1}/{size}"
        yield f"{head}\r\n\r\n".encode()
        yield part
    yield f"\r\n--{boundary}--\r\n".encode()
