"""Validation of runs at ``/custom/validate``, where bluesky-tiled-plugins looks for it (protocol section 16.3)."""

from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import InvalidRequest
from flystore.service import Ignored, Service

from .negotiation import expect_object, json_response, read_json
from .parameters import flag
from .resources import path_of


async def validate(request: Request) -> Response:
    """``GET`` or ``POST /custom/validate/{path}?fix=&read=``; the body may name errors to ignore."""
    request.app.state.access.require(request, "read:data", "read:metadata", "write:metadata")
    service: Service = request.app.state.service
    patterns: Any = None
    if request.method == "POST":
        content = await read_json(request, request.app.state.limits.json_bytes)
        patterns = expect_object(content).get("ignore_errors")
    if not isinstance(patterns or [], list) or not all(isinstance(pattern, str) for pattern in patterns or []):
        raise InvalidRequest("ignore_errors must be a list of regular expressions")
    ignored = Ignored(patterns or [])
    fix, read = flag(request, "fix", False), flag(request, "read", False)
    if fix and request.method == "GET":
        raise InvalidRequest("GET changes nothing; ask with POST to have structures corrected", status=405)

    def work() -> Any:
        return service.validating.run(path_of(request), fix=fix, read=read, ignored=ignored)

    return json_response(msgspec.structs.asdict(await run_in_threadpool(work)))
