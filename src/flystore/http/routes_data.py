"""Writing arrays and tables, and ragged rows: the bytes (protocol sections 5 to 7); reading is `routes_export`."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import InvalidRequest, Unsupported
from flystore.model.slices import parse_slice
from flystore.service import Service
from flystore.service.export import ARROW

from .negotiation import OCTETS, read_body, record
from .parameters import flag, integers, needed_integer
from .resources import path_of

POSSIBLE_REPEAT = "X-Flystore-Possible-Repeat"
"""On the answer to an append that was, byte for byte, the append before it: which rows those are."""

_ALSO_ARROW = ("application/vnd.apache.arrow.stream", "application/octet-stream")


async def put_array_full(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    body = await _octets(request)
    if flag(request, "persist", True):
        await run_in_threadpool(service.nodes.write_array, path_of(request), body)
    else:
        await run_in_threadpool(service.nodes.require_array, path_of(request))
    return record(request, None)


async def put_array_block(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    if "block" not in request.query_params:
        raise InvalidRequest("the parameter block is missing")
    block = integers(request.query_params["block"], "block")
    within = parse_slice(request.query_params.get("slice", ""))
    body = await _octets(request)
    if flag(request, "persist", True):
        await run_in_threadpool(service.nodes.write_block, path_of(request), block, body, within)
    else:
        await run_in_threadpool(service.nodes.require_array, path_of(request))
    return record(request, None)


async def patch_array_full(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    offset = integers(request.query_params.get("offset", ""), "offset")
    shape = integers(request.query_params.get("shape", ""), "shape")
    extend = flag(request, "extend", False)
    body = await _octets(request)
    if not flag(request, "persist", True):
        if extend:
            raise InvalidRequest("Cannot PATCH an array with both parameters extend and persist=false", status=400)
        # For those who watch the array; what is stored stays as it is.
        return record(request, await run_in_threadpool(service.nodes.require_array, path_of(request), offset, shape))
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
    body = await _arrow(request)
    repeated = await run_in_threadpool(service.nodes.append_rows, path_of(request), partition, body)
    answer = record(request, None)
    if repeated is not None:
        first, rows = repeated
        answer.headers[POSSIBLE_REPEAT] = f"rows {first}-{first + rows - 1}"
    return answer


async def put_table(request: Request) -> Response:
    return await _put_rows(request, None)


async def put_table_partition(request: Request) -> Response:
    return await _put_rows(request, needed_integer(request, "partition"))


async def _put_rows(request: Request, partition: int | None) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    body = await _arrow(request)
    await run_in_threadpool(service.nodes.replace_rows, path_of(request), body, partition)
    return record(request, None)


async def _arrow(request: Request) -> bytes:
    named = request.headers.get("content-type", ARROW).split(";")[0].strip()
    if named not in (ARROW, *_ALSO_ARROW):
        raise Unsupported(f"rows must be sent as {ARROW}, not {named[:80]}", status=415)
    return await read_body(request, request.app.state.limits.body_bytes)
