"""Sending arrays as bytes: piece by piece, the next one read while the last one is on its way."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flystore.service import ArrayBody, TableBody
from flystore.storage import FileRuns

from .file_runs import FILE_RUNS
from .formats import attachment
from .negotiation import OCTETS, PIECE_BYTES, BytesResponse


async def octets(request: Request, opened: Callable[[], ArrayBody]) -> Response:
    """Answer with the bytes of an array; see `in_turn`."""
    return await in_turn(request, opened, OCTETS)


async def in_turn(request: Request, opened: Callable[[], ArrayBody | TableBody], media_type: str) -> Response:
    """Answer with bytes that are read in turn; what fails before the second piece is an answer of its own.

    Parameters
    ----------
    opened : callable
        Called in a worker thread, where also the pieces are read.
    """
    nbytes, first, rest, coding = await run_in_threadpool(_begun, opened)
    headers = attachment(request)
    if coding is not None:
        headers |= {"content-encoding": coding, "vary": "Accept-Encoding"}
    if rest is None:
        return BytesResponse(first, media_type, headers)
    return PiecesResponse(nbytes, first, rest, media_type, headers)


Pieces = Iterator[memoryview | FileRuns] | Iterator[memoryview]


def _begun(opened: Callable[[], ArrayBody | TableBody]) -> tuple[int, memoryview, Pieces | None, str | None]:
    body = opened()
    nbytes, pieces = body.nbytes, body.pieces
    coding = body.coding if isinstance(body, ArrayBody) else None
    try:
        first = next(pieces, memoryview(b""))
        if isinstance(first, FileRuns):
            raise RuntimeError("a first piece is read: what is wrong with it is an answer of its own")
    except BaseException:
        _close(pieces)
        raise
    if len(first) == nbytes:
        _close(pieces)
        return nbytes, first, None, coding
    return nbytes, first, pieces, coding


def _next(pieces: Pieces) -> memoryview | FileRuns:
    for piece in pieces:
        return piece
    raise RuntimeError("an array ended before its announced length")


def _close(pieces: Pieces) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


class PiecesResponse(Response):
    """A body of known length whose pieces are read in worker threads as the client takes them.

    A piece that cannot be read ends the connection before the announced length: the client knows that what it has is
    not all, and learns why when it asks for the rest.

    Parameters
    ----------
    nbytes : int
        Of the whole body.
    first : memoryview
        Of bytes; not empty.
    rest : iterator of memoryview or FileRuns
        Further pieces; closed at the end, whatever happens. `FileRuns` only for who takes them, and not as the last.
    """

    def __init__(
        self,
        nbytes: int,
        first: memoryview,
        rest: Pieces,
        media_type: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(b"", headers=headers, media_type=media_type)
        self._nbytes = nbytes
        self._first = first
        self._rest = rest
        self.headers["content-length"] = str(nbytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(receive))
        ahead: asyncio.Future[Any] | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            piece: memoryview | FileRuns = self._first
            left = self._nbytes
            while not gone.done():
                if isinstance(piece, FileRuns):  # nothing is read beside it: there is nothing to wait for
                    left -= piece.nbytes
                    await send({"type": FILE_RUNS, "runs": piece})
                    ahead = asyncio.ensure_future(run_in_threadpool(_next, self._rest))
                    piece = await ahead
                    ahead = None
                    continue
                left -= len(piece)
                if left > 0:
                    ahead = asyncio.ensure_future(run_in_threadpool(_next, self._rest))
                for at in range(0, len(piece), PIECE_BYTES):
                    view = piece[at : at + PIECE_BYTES]
                    more = left > 0 or at + PIECE_BYTES < len(piece)
                    await send({"type": "http.response.body", "body": view, "more_body": more})
                if ahead is None:
                    return
                piece = await ahead
                ahead = None
        finally:
            gone.cancel()
            under_way = {gone} if ahead is None else {gone, ahead}
            await asyncio.wait(under_way)
            for task in under_way:
                if not task.cancelled():
                    task.exception()  # nobody asks for it any more
            await run_in_threadpool(_close, self._rest)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
