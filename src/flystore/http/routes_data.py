"""Arrays, tables, ragged rows: the bytes (protocol sections 5 to 7)."""

import re
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import InvalidRequest, Unsupported
from flystore.model.slices import parse_slice
from flystore.service import Service

from .negotiation import JSON, OCTETS, BytesResponse, read_body, read_json, record
from .parameters import flag, integers, needed_integer
from .resources import path_of
from .routes_browse import ARROW_FILE

ZIP = "application/zip"


def _require_format(request: Request, *served: str, aliases: tuple[str, ...] = ()) -> str:
    """Return the format to answer in; ``format=`` wins over Accept, nothing said means the first."""
    asked = request.query_params.get("format") or request.headers.get("accept") or "*/*"
    for part in asked.split(","):
        name = part.split(";")[0].strip()
        if name in ("*/*", *aliases):
            return served[0]
        if name in served:
            return name
    raise Unsupported(
        "None of the media types requested by the client are supported. "
        f"Supported: {', '.join(served)}. Requested: {asked}."
    )


def _attachment(request: Request) -> dict[str, str]:
    """Return the header that names the download, if the caller asked for a name."""
    name = request.query_params.get("filename")
    if name is None:
        return {}
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return {"content-disposition": f'attachment; filename="{plain}"'}


def _expected_shape(request: Request) -> tuple[int, ...] | None:
    text = request.query_params.get("expected_shape")
    if text is None:
        return None
    return () if text == "scalar" else integers(text, "expected_shape")


async def array_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    media_type = _require_format(request, OCTETS)
    wanted = parse_slice(request.query_params.get("slice", ""))
    expected = _expected_shape(request)
    data = await run_in_threadpool(service.arrays.read, path_of(request), wanted, expected_shape=expected)
    return BytesResponse(data, media_type, _attachment(request))


async def array_block(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    media_type = _require_format(request, OCTETS)
    if "block" not in request.query_params:
        raise InvalidRequest("the parameter block is missing")
    block = integers(request.query_params["block"], "block")
    wanted = parse_slice(request.query_params.get("slice", ""))
    expected = _expected_shape(request)
    data = await run_in_threadpool(service.arrays.read_block, path_of(request), block, wanted, expected_shape=expected)
    return BytesResponse(data, media_type, _attachment(request))


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


async def _columns(request: Request) -> list[str] | None:
    """Return the columns asked for in the query or a JSON body; None and empty mean all."""
    asked: list[str] = [*request.query_params.getlist("column"), *request.query_params.getlist("field")]
    if request.method == "POST":
        content: Any = await read_json(request, request.app.state.limits.json_bytes)
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise InvalidRequest("the body must be a JSON list of column names")
        asked += content
    return asked or None


async def table_partition(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    media_type = _require_format(request, ARROW_FILE, aliases=("arrow", "feather"))
    partition = needed_integer(request, "partition")
    columns = await _columns(request)
    body = await run_in_threadpool(service.tables.arrow_file, path_of(request), columns, partition=partition)
    return BytesResponse(body, media_type, _attachment(request))


async def table_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    media_type = _require_format(request, ARROW_FILE, aliases=("arrow", "feather"))
    columns = await _columns(request)
    body = await run_in_threadpool(service.tables.arrow_file, path_of(request), columns)
    return BytesResponse(body, media_type, _attachment(request))


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


async def ragged_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    wanted = parse_slice(request.query_params.get("slice", ""))
    media_type = _require_format(request, ZIP, JSON)
    if media_type == JSON:
        scalar = await run_in_threadpool(service.ragged.scalar, path_of(request), wanted)
        return Response(msgspec.json.encode(scalar), media_type=JSON)
    body = await run_in_threadpool(service.ragged.buffers, path_of(request), wanted)
    return BytesResponse(body, media_type, _attachment(request))
