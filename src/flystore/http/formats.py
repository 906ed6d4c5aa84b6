"""Which format an answer has, and sending it in pieces (protocol sections 5.2 and 8)."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flystore.model.errors import Unsupported
from flystore.service.export import REGISTRY, Choice

from .negotiation import BytesResponse

_WHOLE_BYTES = 1 << 20
"""What is no longer goes out with its length, and not in chunks."""


def asked_formats(request: Request) -> list[str]:
    """Return media types and file extensions that the caller takes, best first; ``format=`` wins over Accept."""
    text = request.query_params.get("format") or request.headers.get("accept") or "*/*"
    return [part.strip() for part in text.split(",") if part.strip()] or ["*/*"]


def choose(request: Request, *names: str) -> Choice:
    """Return the format of the answer for a node with the specs and the family of `names`.

    Raises
    ------
    Unsupported
        If there is none that the caller takes.
    """
    return REGISTRY.choose(names, asked_formats(request))


async def choose_or_missing(request: Request, family: str, exists: Callable[[], Any]) -> Choice:
    """Return the format for a node of `family`; if there is none, what `exists` says of the node comes first."""
    try:
        return choose(request, family)
    except Unsupported:
        await run_in_threadpool(exists)
        raise


def attachment(request: Request) -> dict[str, str]:
    """Return the header that names the download, if the caller asked for a name."""
    name = request.query_params.get("filename")
    if name is None:
        return {}
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return {"content-disposition": f'attachment; filename="{plain}"'}


async def exported(request: Request, choice: Choice, opened: Callable[[], Any]) -> Response:
    """Answer with a node in the chosen format.

    Parameters
    ----------
    opened : callable
        Returns the source that the format encodes; called in a worker thread, as is all that reads and encodes.
    """
    return await in_pieces(lambda: choice.encode(opened()), choice.media_type, attachment(request))


async def in_pieces(
    begin: Callable[[], Iterator[bytes]], media_type: str, headers: dict[str, str] | None = None
) -> Response:
    """Answer with a body made in worker threads; what fails before its first pieces is an answer of its own."""

    def begun() -> tuple[list[bytes], Iterator[bytes] | None]:
        pieces = iter(begin())
        first: list[bytes] = []
        size = 0
        for piece in pieces:
            first.append(piece)
            size += len(piece)
            if size > _WHOLE_BYTES:
                return first, pieces
        return first, None

    first, rest = await run_in_threadpool(begun)
    if rest is None:
        return BytesResponse(b"".join(first), media_type, headers)
    return StreamingResponse(_sent(first, rest), media_type=media_type, headers=headers)


async def _sent(first: list[bytes], rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    try:
        while first:
            yield first.pop(0)
        async for piece in iterate_in_threadpool(rest):
            if piece:
                yield piece
    finally:
        close = getattr(rest, "close", None)  # files and transactions are let go at once, also when the client left
        if close is not None:
            close()
