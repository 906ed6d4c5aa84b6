"""Validators: which answers a caller may keep, and when it has them already (protocol section 1.6).

Data have an ETag that follows from the state of their node, and is compared before any of them is read. Records are
read from the catalogue anyway and have one of what is in them. Whatever has neither must not be kept: caches such as
that of the stock client take an answer without a validator for good.
"""

import hashlib

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flystore.model.errors import FlystoreError
from flystore.service import Service

from .compression import ITEMSIZE, Endpoint
from .negotiation import JSON, MSGPACK
from .resources import path_of

_SMALL_BYTES = 64 << 10


def knows(headers: Headers, tag: str) -> bool:
    """Return whether the caller says that it has what `tag` stands for; quotes and ``W/`` make no difference."""
    known = headers.get("if-none-match", "")
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
        try:
            version = await run_in_threadpool(service.versions.of, path_of(request))
        except FlystoreError:
            return await endpoint(request)  # knows better what to say
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


def _digest(*parts: bytes) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.hexdigest()


class Validate:
    """Gives records an ETag of their content, and forbids to keep what has none; pure ASGI, around all routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        start: Message | None = None

        async def validated(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "etag" in headers or message["status"] == 304:
                    await send(message)
                elif _is_record(message["status"], headers):
                    start = message
                else:
                    _forbid_keeping(headers)
                    await send(message)
                return
            if start is not None:
                begun, start = start, None
                if await _tagged(Headers(scope=scope), begun, message):
                    _as_known(begun)
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
                await send(begun)
            await send(message)

        await self.app(scope, receive, validated)


def _is_record(status: int, headers: Headers) -> bool:
    may_be_kept = "no-store" not in headers.get("cache-control", "")
    return status == 200 and may_be_kept and headers.get("content-type") in (JSON, MSGPACK)


async def _tagged(asked: Headers, start: Message, message: Message) -> bool:
    """Put a validator on an answer that begins with `message`; return whether the caller has that answer."""
    headers = MutableHeaders(scope=start)
    if message.get("more_body", False):
        _forbid_keeping(headers)
        return False
    parts = (headers["content-type"].encode(), message.get("body", b""))
    small = len(parts[1]) <= _SMALL_BYTES
    headers["etag"] = tag = _digest(*parts) if small else await run_in_threadpool(_digest, *parts)
    return knows(asked, tag)


def _forbid_keeping(headers: MutableHeaders) -> None:
    if "cache-control" not in headers and "expires" not in headers:
        headers["cache-control"] = "no-store"


def _as_known(start: Message) -> None:
    start["status"] = 304
    headers = MutableHeaders(scope=start)
    for name in ("content-type", "content-length"):
        del headers[name]
