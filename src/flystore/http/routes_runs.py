"""What the Tiled protocol lacks: ingest in batches, documents, frame tables, verdicts."""

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flystore.model.errors import InvalidRequest
from flystore.model.frames import FRAMES_MIMETYPE
from flystore.projection import segment
from flystore.service import Service

from .negotiation import expect_object, read_body, read_json, record
from .parameters import flag, integer, needed_integer
from .resources import path_of
from .routes_export import documents_as_json, wants_json_lines
from .routes_feed import documents_pushed

RECONSTRUCTED_HEADER = "x-flystore-reconstructed"

BACKLOG_HEADER = "x-flystore-backlog"
_BACKLOG = re.compile(r"([A-Za-z0-9._-]{1,200});([0-9]{1,15});([0-9]{1,18})")
"""Name of the writer's journal, documents and bytes in it beside those that come."""


async def ingest(request: Request) -> Response:
    """``POST /ingest/{uid}?first=&epoch=``: store a batch of frames whole or not at all.

    The answer says how far the run is durable; a batch sent again changes nothing.
    """
    request.app.state.access.require(request, "write:metadata", "write:data", "create:node", "register")
    service: Service = request.app.state.service
    first, epoch = needed_integer(request, "first"), needed_integer(request, "epoch")
    body = await _frames(request)
    uid = request.path_params["uid"]
    _note_backlog(request, service)
    ack = await run_in_threadpool(service.ingest.batch, uid, first, epoch, body)
    followed = service.following.waking.is_followed((segment(uid),), uid)
    stored = {"watermark": ack.watermark, "epoch": ack.epoch, "verdict": ack.verdict, "followed": followed}
    return record(request, stored)


async def ingest_orphans(request: Request) -> Response:
    """``POST /ingest-orphans``: keep documents that belong to no run anyone has seen."""
    request.app.state.access.require(request, "write:metadata", "write:data", "create:node", "register")
    service: Service = request.app.state.service
    first = integer(request, "first") or 0
    body = await _frames(request)
    journal = request.query_params.get("journal", "")
    _note_backlog(request, service)
    watermark = await run_in_threadpool(service.ingest.orphans, journal, first, body)
    return record(request, {"watermark": watermark, "epoch": 0, "verdict": None, "followed": False})


def _note_backlog(request: Request, service: Service) -> None:
    told = _BACKLOG.fullmatch(request.headers.get(BACKLOG_HEADER, ""))
    if told is not None:
        service.ingest.counts.backlogs.note(told[1], int(told[2]), int(told[3]))


async def _frames(request: Request) -> bytes:
    named = request.headers.get("content-type", "").split(";")[0].strip()
    if named != FRAMES_MIMETYPE:
        raise InvalidRequest(f"documents must come as {FRAMES_MIMETYPE}, not {named or 'unnamed'}", status=415)
    return await read_body(request, request.app.state.limits.body_bytes)


async def documents(request: Request) -> Response:
    """``GET /documents/{uid}``: the run's documents as frames or lines of JSON, exactly or reconstructed."""
    request.app.state.access.require(request, "read:metadata", "read:data")
    if flag(request, "follow", False):
        return await documents_pushed(request)
    if wants_json_lines(request):
        return await documents_as_json(request)
    service: Service = request.app.state.service
    first = integer(request, "first") or 0
    found = await run_in_threadpool(service.documents.frames, path_of(request), first)
    headers = {RECONSTRUCTED_HEADER: "true" if found.reconstructed else "false"}
    return StreamingResponse(_in_thread(found.pieces), media_type=FRAMES_MIMETYPE, headers=headers)


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in iterate_in_threadpool(pieces):
        yield piece


async def frames(request: Request) -> Response:
    """``GET /frames/{path}``: which event and which frame each row of an external array is."""
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    found: Any = await run_in_threadpool(service.arrays.frame_table, path_of(request))
    return record(request, found)


async def close_run(request: Request) -> Response:
    """``POST /close/{uid}``: declare a run interrupted that lost its writer; the answer is its verdict."""
    request.app.state.access.require(request, "write:metadata")
    service: Service = request.app.state.service
    content = expect_object(await read_json(request, request.app.state.limits.json_bytes))
    reason = content.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidRequest('the body must name a reason: {"reason": "…"}')
    found = await run_in_threadpool(service.verdicts.close, path_of(request), reason.strip())
    return record(request, msgspec.structs.asdict(found))


async def verdict(request: Request) -> Response:
    """``GET /verdict/{uid}``: what is complete and what is missing; ``?look=true`` opens the files."""
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    look = flag(request, "look", False)
    found = await run_in_threadpool(service.verdicts.of, path_of(request), look=look)
    return record(request, msgspec.structs.asdict(found))
