"""Arrays and groups as Zarr stores, formats 2 and 3 (protocol section 12).

A reader of Zarr takes 404 for "never written" and gives fill values. So 404 is only what has no node or no such
document; a chunk that should be there and cannot be sent is another status.
"""

import hashlib
import re
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import FlystoreError, NotFound
from flystore.service import Service

from .failures import status_of
from .negotiation import OCTETS, BytesResponse
from .resources import segments_of, url_path

V2, V3 = 2, 3
_DOCUMENTS = {V2: frozenset({".zgroup", ".zattrs", ".zarray", ".zmetadata"}), V3: frozenset({"zarr.json"})}
_CHUNK_V2 = re.compile(r"\d{1,19}(\.\d{1,19}){0,31}")
_NUMBER = re.compile(r"\d{1,19}")


async def v2(request: Request) -> Response:
    return await _answer(request, V2)


async def v3(request: Request) -> Response:
    return await _answer(request, V3)


async def _answer(request: Request, version: int) -> Response:
    request.app.state.access.require(request, "read:data")
    path = segments_of(request.path_params.get("path", ""))
    if path and path[-1] in _DOCUMENTS[version]:
        return await _document(request, path)
    where, index = _as_chunk(path, version)
    if index is not None:
        answer = await _chunk(request, where, index, version)
        if answer is not None:
            return answer
    return await _listing(request, path, version)


async def _document(request: Request, path: tuple[str, ...]) -> Response:
    request.app.state.access.require(request, "read:data", "read:metadata")
    service: Service = request.app.state.service

    def make() -> bytes:
        return _ENCODER.encode(service.zarr.document(path[:-1], path[-1]))

    return _tagged(request, await run_in_threadpool(make))


def _as_chunk(path: tuple[str, ...], version: int) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Return array and index if a path may be that of a chunk; a node can have such a name as well."""
    if version == V2:
        if path and _CHUNK_V2.fullmatch(path[-1]):
            return path[:-1], tuple(int(part) for part in path[-1].split("."))
        return path, None
    at = len(path)
    while at and _NUMBER.fullmatch(path[at - 1]):
        at -= 1
    if at and path[at - 1] == "c":
        return path[: at - 1], tuple(int(part) for part in path[at:])
    return path, None


async def _chunk(request: Request, path: tuple[str, ...], index: tuple[int, ...], version: int) -> Response | None:
    """Answer with a chunk; None if `path` is no array: then a child may have the name of a chunk."""
    service: Service = request.app.state.service

    def read() -> tuple[bytes, str] | None:
        body = service.zarr.chunk(path, index, version)
        return None if body is None else (body, _tag(body))

    try:
        found = await run_in_threadpool(read)
    except FlystoreError as error:
        if (error.facts.get("status") or status_of(error)) != 404:
            raise
        # Whoever asks for a chunk has opened an array: it is gone since, and was not "never written".
        raise NotFound(error.message, **{**error.facts, "status": 410}) from error
    if found is None:
        return None
    return _unless_known(request, *found, OCTETS)


async def _listing(request: Request, path: tuple[str, ...], version: int) -> Response:
    request.app.state.access.require(request, "read:data", "read:metadata")
    service: Service = request.app.state.service
    base = f"{request.url.scheme}://{request.url.netloc}{request.scope.get('root_path', '')}/zarr/v{version}"

    def make() -> bytes:
        names = service.zarr.children(path)
        if names is None:
            return _ENCODER.encode({})
        return _ENCODER.encode(["/".join((base, url_path((*path, name)))) for name in names])

    return _tagged(request, await run_in_threadpool(make))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a document")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


def _tag(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _tagged(request: Request, body: bytes) -> Response:
    """Answer with text of no declared type, as stock does: fsspec looks for links in a listing only then."""
    return _unless_known(request, body, _tag(body), None)


def _unless_known(request: Request, body: bytes, tag: str, media_type: str | None) -> Response:
    headers = {"etag": f'"{tag}"'}
    known = [part.strip().removeprefix("W/").strip('"') for part in request.headers.get("if-none-match", "").split(",")]
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers) if media_type is None else BytesResponse(body, media_type, headers)
