"""Revisions: what a node's metadata was before it was changed (protocol section 4.6)."""

from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.catalog import Revision
from flystore.service import Service

from .negotiation import record
from .paging import paged
from .parameters import needed_integer, page_request
from .resources import path_of


async def revisions(request: Request) -> Response:
    """``GET /revisions/{path}``: oldest first."""
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    wanted = page_request(request)
    start = wanted.offset or wanted.cursor or 0

    def work() -> tuple[list[Revision], int]:
        return service.browse.revisions(path_of(request), offset=start, limit=wanted.limit)

    found, count = await run_in_threadpool(work)
    end = start + len(found)
    onward = {"page[offset]": end} if end < count else {}
    return record(request, paged(request, "revisions", wanted, [_resource(one) for one in found], count, onward))


def _resource(revision: Revision) -> dict[str, Any]:
    return {
        "revision_number": revision.number,
        "attributes": {
            "metadata": revision.metadata,
            "specs": [spec.to_wire() for spec in revision.specs],
            "access_tags": list(revision.access_tags),
            "time_updated": datetime.fromtimestamp(revision.time_updated, UTC),
        },
    }


async def delete_revision(request: Request) -> Response:
    """``DELETE /revisions/{path}?number=``: forget one."""
    request.app.state.access.require(request, "delete:revision")
    service: Service = request.app.state.service
    number = needed_integer(request, "number")
    await run_in_threadpool(service.nodes.delete_revision, path_of(request), number)
    return record(request, None)
