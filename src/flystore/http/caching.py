"""Validators: which answers a caller may keep, and when it has them already (protocol section 1.6).

Data have an ETag that follows from the state of their node, and is compared before any of them is read. Records are
read from the catalogue anyway and have one of what is in them. Whatever has neither must not be kept: caches such as
that of the stock client take an answer without a validator for good.
"""

import hashlib
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

from flystore.catalog import NotAtOnce
from flystore.model.errors import FlystoreError
from flystore.service import Service

from .compression import ITEMSIZE, Endpoint
from .negotiation import JSON, MSGPACK
from .resources import path_of

_RECORDS = (JSON.encode(), MSGPACK.encode())
_SMALL_BYTES = 64 << 10


SIGHT = "flystore.sight"
"""Key in a request's scope of what its array was seen in, None where that may be out of date; see `ShortReads`."""


def knows(headers: Headers, tag: str) -> bool:
    """Return whether the caller says that it has what `tag` stands for; quotes and ``W/`` make no difference."""
    return _names(headers.get("if-none-match", ""), tag)


def _names(known: str, tag: str) -> bool:
    return any(name.strip().removeprefix("W/").strip('"') == tag for name in known.split(","))


def by_version(endpoint: Endpoint, *scopes: str) -> Endpoint:
    """Return a route that reads data only for callers that have not got them as they are now.

    Parameters
    ----------
    scopes : str
        What `endpoint` requires.
    """

    async def answer(request: Request) -> Response:
        if request.method != "GET":
            return await endpoint(request)
        request.app.state.access.require(request, *scopes)
        service: Service = request.app.state.service
        path = path_of(request)
        try:
            try:
                version = service.versions.at_once(path)
            except NotAtOnce:
                version = await run_in_threadpool(service.versions.of, path)
        except FlystoreError:
            return await endpoint(request)  # knows better what to say
        request.scope[SIGHT] = version.sight
        if version.itemsize:
            request.scope[ITEMSIZE] = version.itemsize
        tag = None if version.mark is None else _data_tag(request, version.mark)
        if tag is not None and knows(request.headers, tag):
            return Response(status_code=304, headers={"etag": tag})
        response = await endpoint(request)
        if response.status_code == 200:
            if tag is None:
                response.headers["cache-control"] = "no-store"
            else:
                response.headers["etag"] = tag
        return response

    return answer


def _data_tag(request: Request, mark: bytes) -> str:
    accept = request.headers.get("accept", "").encode("latin-1")
    return _digest(mark, request.scope["path"].encode(), request.scope["query_string"], accept)


def _digest(*parts: Any) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.hexdigest()


async def validate(scope: Scope, known: bytes, start: Message, body: Any, more: bool) -> bool:
    """Give a record an ETag of its content, and forbid to keep what has none; return whether the caller has it.

    Then `start` is the head of an answer that says so, and has no body.

    Parameters
    ----------
    known : bytes
        The request's If-None-Match header; empty if there is none.
    start : Message
        The head of the answer; its headers are changed.
    body : bytes-like
        Its first part; all of it unless there is `more`.
    """
    if scope["method"] not in ("GET", "HEAD"):
        return False
    headers: list[tuple[bytes, bytes]] = start["headers"]
    found = dict(headers)
    if b"etag" in found or start["status"] == 304:
        return False
    media_type = found.get(b"content-type", b"")
    may_be_kept = b"no-store" not in found.get(b"cache-control", b"")
    if more or start["status"] != 200 or not may_be_kept or media_type not in _RECORDS:
        if b"cache-control" not in found and b"expires" not in found:
            headers.append((b"cache-control", b"no-store"))
        return False
    small = len(body) <= _SMALL_BYTES
    tag = _digest(media_type, body) if small else await run_in_threadpool(_digest, media_type, body)
    headers.append((b"etag", tag.encode()))
    if not known or not _names(known.decode("latin-1"), tag):
        return False
    start["status"] = 304
    start["headers"] = [each for each in headers if each[0] not in (b"content-type", b"content-length")]
    return True
