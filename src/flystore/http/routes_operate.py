"""For those who watch over a service: is it alive, can it work, what did it count."""

import asyncio

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.service import Service
from flystore.service.health import NOT_READY, READY, Health
from flystore.service.metrics import CONTENT_TYPE

from .negotiation import json_response

PATIENCE_S = 5.0
"""For so long whoever asks waits for the database and the disk."""


async def alive(request: Request) -> Response:
    """``GET /healthz/live``: the process answers. If it does not, start it anew."""
    return json_response({"status": "alive"})


async def health(request: Request) -> Response:
    """``GET /healthz``: ``{"status": "ready"}`` as Tiled says it, or 503 with a reason that names no place."""
    found = await _looked(request)
    if found.status == READY:
        return json_response({"status": READY})
    return json_response({"status": found.status, "reason": found.reason}, 503)


async def _looked(request: Request) -> Health:
    service: Service = request.app.state.service
    state = request.app.state
    if not hasattr(state, "health_thread"):
        # One thread beside those that read data: these may all be busy, and a disk that hangs must not take more.
        state.health_thread = CapacityLimiter(1)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await anyio.to_thread.run_sync(
                service.readiness.look, limiter=state.health_thread, abandon_on_cancel=True
            )
    except TimeoutError:
        return Health(NOT_READY, f"the catalogue or the storage took more than {PATIENCE_S:g} s")


async def metrics(request: Request) -> Response:
    """``GET /metrics``: what this process counted, for Prometheus."""
    measuring = request.app.state.measuring
    if not measuring.watching.metrics_public:
        request.app.state.access.require(request, "metrics")
    return Response(await run_in_threadpool(measuring.metrics.text), headers={"content-type": CONTENT_TYPE})
