"""Writing arrays and tables, and ragged rows: the bytes (protocol sections 5 to 7); reading is `routes_export`."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import InvalidRequest, Unsupported
from flystore.service import Service

from .negotiation import OCTETS, read_body, record
from .parameters import flag, integers, needed_integer
from .resources import path_of


async def put_array_full(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    body = await _octets(request)
    if flag(request, "persist", True):
        await run_in_threadpool(service.nodes.write_array, path_of(request), body)
    return record(request, None)


async def put_array_block(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    block = integers(request.query_params.get("block", ""), "block")
    body = await _octets(request)
    if flag(request, "persist", True):
        await run_in_threadpool(service.nodes.write_block, path_of(request), block, body)
    return record(request, None)


async def patch_array_full(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    offset = integers(request.query_params.get("offset", ""), "offset")
    shape = integers(request.query_params.get("shape", ""), "shape")
    extend = flag(request, "extend", False)
    body = await _octets(request)
    if not flag(request, "persist", True):
        raise InvalidRequest("persist=false has no effect here: this service has no live subscribers to show it to")
    structure = await run_in_threadpool(
        service.nodes.patch_array, path_of(request), body, offset=offset, shape=shape, extend=extend
    )
    return record(request, structure)


async def _octets(request: Request) -> bytes:
    named = request.headers.get("content-type", OCTETS).split(";")[0].strip()
    if named != OCTETS:
        raise Unsupported(f"array data must be {OCTETS}, not {named}", status=415)
    return await read_body(request, request.app.state.limits.body_bytes)


async def patch_table_partition(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    partition = needed_integer(request, "partition")
    body = await read_body(request, request.app.state.limits.body_bytes)
    await run_in_threadpool(service.nodes.append_rows, path_of(request), partition, body)
    return record(request, None)


async def put_table(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    body = await read_body(request, request.app.state.limits.body_bytes)
    await run_in_threadpool(service.nodes.replace_rows, path_of(request), body)
    return record(request, None)
