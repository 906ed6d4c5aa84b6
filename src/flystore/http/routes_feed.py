"""The change feed, asked for, waited for, or pushed; and a run's documents pushed as they come."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import msgspec
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from flystore.model.errors import FlystoreError
from flystore.model.frames import FRAMES_MIMETYPE
from flystore.service import Service
from flystore.service.following import MOST_ENTRIES, Following, Page, Place, Subject
from flystore.service.waking import Follower

from .failures import answer
from .measuring import PUSHED
from .negotiation import record
from .parameters import flag, integer
from .pushing import PLACE, PushedResponse, stop_when_gone
from .resources import path_of

LINES = "application/x-ndjson"
MOST_WAIT_SECONDS = 60
BEAT_SECONDS = 15
"""How often somebody who is told nothing hears that the service is there."""

SIGN_OF_LIFE = bytes(8)
"""Between frames of documents: a frame without content, which readers of a feed of documents pass over."""

BROKEN = 1011
"""Close code: the catalogue or a file could not be read."""

RECONSTRUCTED_HEADER = "x-flystore-reconstructed"
OPEN_HEADER = "x-flystore-run-open"
"""Whether more documents were expected of the run when the answer began; an answer that ends before the run does is one
that the service could not go on with."""

_encode = msgspec.json.Encoder().encode


class _Asked(NamedTuple):
    """What a follower of the feed wants."""

    subject: Subject
    place: Place
    limit: int
    lag: int | None
    beat: int


async def feed(request: Request) -> Response:
    """``GET /feed/{path}``: changes beyond a token, now, as soon as there are some, or as they come."""
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    wait = integer(request, "wait", 0, most=MOST_WAIT_SECONDS) or 0
    pushed = flag(request, "follow", False)
    if wait or pushed:
        service.following.waking.require_room()
    asked = await _asked(service.following, request)
    if pushed:
        follower = service.following.waking.follower(asked.subject.topic)
        return PushedResponse(follower, _lines(service.following, follower, asked), LINES)
    if wait:
        request.scope[PUSHED] = True
    else:
        page, _ = await run_in_threadpool(_page, service.following, asked, asked.place)
        return record(request, msgspec.to_builtins(page))
    with service.following.waking.follower(asked.subject.topic) as follower:
        gone = asyncio.ensure_future(stop_when_gone(follower, request.receive, "http.disconnect"))
        try:
            page = await _awaited(service.following, follower, asked, wait)
        finally:
            gone.cancel()
        return record(request, msgspec.to_builtins(page))


async def feed_socket(socket: WebSocket) -> None:
    """``WS /feed/{path}``: each message is a page of changes."""
    service: Service = socket.app.state.service
    try:
        socket.app.state.access.require(socket, "read:metadata")
        service.following.waking.require_room()
        asked = await _asked(service.following, socket)
    except FlystoreError as error:
        await refuse(socket, error)
        return
    await socket.accept()
    with service.following.waking.follower(asked.subject.topic) as follower:
        await pushed_to(socket, follower, _pages(service.following, follower, asked))


async def pushed_to(socket: WebSocket, follower: Follower, pages: AsyncIterator[Page]) -> None:
    """Send pages until the client goes or the service ends."""
    gone = asyncio.ensure_future(stop_when_gone(follower, socket.receive, "websocket.disconnect"))
    try:
        async for page in pages:
            await socket.send_text(_encode(page).decode())
            socket.scope[PLACE] = page.next
        if not gone.done():
            await socket.close(1012, "the service ends")
    except FlystoreError as error:
        if not gone.done():
            await socket.close(BROKEN, f"{error.kind}; go on after {socket.scope.get(PLACE, 'the last token')}"[:120])
    except (WebSocketDisconnect, RuntimeError):
        if not gone.done():
            raise
    finally:
        gone.cancel()


async def refuse(socket: WebSocket, error: FlystoreError) -> None:
    """Answer a request for a WebSocket that is not granted, as any other request."""
    await socket.send_denial_response(answer(error))


async def _asked(following: Following, request: HTTPConnection) -> _Asked:
    limit = integer(request, "limit", MOST_ENTRIES, least=1, most=MOST_ENTRIES) or MOST_ENTRIES
    lag = integer(request, "lag", least=1, most=100_000)
    beat = integer(request, "beat", BEAT_SECONDS, least=1, most=MOST_WAIT_SECONDS) or BEAT_SECONDS
    token = request.query_params.get("after")
    subject = await run_in_threadpool(following.subject, path_of(request))
    place = await run_in_threadpool(following.place, token)
    return _Asked(subject, place, limit, lag, beat)


def _page(following: Following, asked: _Asked, after: Place) -> tuple[Page, Place]:
    return following.page(asked.subject, after, asked.limit, lag=asked.lag)


async def _next(following: Following, asked: _Asked, after: Place) -> tuple[Page, Place]:
    found = following.page_at_once(asked.subject, after, asked.limit, lag=asked.lag)
    if found is None:
        found = await run_in_threadpool(_page, following, asked, after)
    return found


async def _awaited(following: Following, follower: Follower, asked: _Asked, seconds: int) -> Page:
    """Return the first page that has something, or the one at the end of the time."""
    loop = asyncio.get_running_loop()
    until, place = loop.time() + seconds, asked.place
    while True:
        mark = follower.mark
        page, place = await _next(following, asked, place)
        if page.entries or page.lagged or page.more:
            return page
        left = until - loop.time()
        if left <= 0 or follower.ended:
            return page
        await follower.wait(mark, left)


async def _pages(following: Following, follower: Follower, asked: _Asked) -> AsyncIterator[Page]:
    """Yield a page at once, then one whenever there is something, and an empty one each beat."""
    place, due = asked.place, True
    while not follower.ended:
        mark = follower.mark
        page, place = await _next(following, asked, place)
        if page.entries or page.lagged or page.run_open is False or due:
            yield page
        if not page.more:
            due = not await follower.wait(mark, asked.beat)


async def _lines(following: Following, follower: Follower, asked: _Asked) -> AsyncIterator[bytes]:
    async for page in _pages(following, follower, asked):
        yield _encode(page) + b"\n"


# --- documents --------------------------------------------------------------------------------


async def documents_pushed(request: Request) -> Response:
    """``GET /documents/{path}?follow=true``: the frames there are, and more as they come, to the end of the run."""
    service: Service = request.app.state.service
    following = service.following
    first = integer(request, "first") or 0
    beat = integer(request, "beat", BEAT_SECONDS, least=1, most=MOST_WAIT_SECONDS) or BEAT_SECONDS
    following.waking.require_room()
    uid, is_open = await run_in_threadpool(following.run, path_of(request))
    follower = following.waking.follower(following.topic_of_documents(uid))
    try:
        found = await run_in_threadpool(service.documents.frames, path_of(request), first)
    except BaseException:
        follower.close()
        raise
    parts = _frames(following, follower, uid, found.pieces, found.end, first, beat)
    headers = {RECONSTRUCTED_HEADER: "false", OPEN_HEADER: "true" if is_open else "false"}
    return PushedResponse(follower, parts, FRAMES_MIMETYPE, headers)


async def _frames(
    following: Following, follower: Follower, uid: str, known: Iterator[bytes], at: int, first: int, beat: int
) -> AsyncIterator[bytes]:
    yield SIGN_OF_LIFE
    async for piece in iterate_in_threadpool(known):
        yield piece
    while not follower.ended:
        mark = follower.mark
        found = following.frames_at_once(uid, at, first)
        if found is None:
            found = await run_in_threadpool(following.frames, uid, at, first)
        for piece in found.pieces:
            yield piece
        if found.ended:
            return
        at = found.next
        if not found.pieces and not await follower.wait(mark, beat):
            yield SIGN_OF_LIFE
