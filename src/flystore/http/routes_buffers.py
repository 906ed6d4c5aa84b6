"""Awkward, ragged and sparse nodes: what is sent and read of them (protocol sections 5 and 7).

Sparse arrays share the routes of arrays. Which of the two a node is decides its family, which is only looked up where
the request leaves it open: bytes as they are have only arrays.
"""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import InvalidRequest, NotFound, Unsupported
from flystore.model.slices import parse_slice
from flystore.model.structures import Family
from flystore.service import Service
from flystore.service.export import ARROW, OCTETS, ZIP

from . import routes_data, routes_export
from .formats import asked_formats, choose, choose_or_missing, exported
from .negotiation import read_body, read_json, record
from .parameters import flag, integers
from .resources import path_of

# --------------------------------------------------------------------------- awkward


async def awkward_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    return await _awkward(request, None)


async def awkward_buffers(request: Request) -> Response:
    """Answer with the buffers of some parts of the form: the keys in the query, or a JSON list of them."""
    request.app.state.access.require(request, "read:data")
    keys: Any = request.query_params.getlist("form_key")
    if request.method == "POST":
        content = await read_json(request, request.app.state.limits.json_bytes)
        if not isinstance(content, list) or not all(isinstance(key, str) for key in content):
            raise InvalidRequest("the body must be a JSON list of form keys")
        keys += content
    elif not keys:
        keys = None
    return await _awkward(request, keys)


async def _awkward(request: Request, keys: list[str] | None) -> Response:
    service: Service = request.app.state.service
    path = path_of(request)
    choice = await choose_or_missing(request, Family.AWKWARD, lambda: service.awkward.require(path))
    if keys is not None and choice.format.media_type != ZIP:
        raise Unsupported(f"some buffers are sent as {ZIP} only; ask for the whole array as {choice.media_type}")
    return await exported(request, choice, lambda: service.awkward.read(path, keys))


async def put_awkward(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    body = await _body(request, ZIP)
    await run_in_threadpool(service.awkward.write, path_of(request), body)
    return record(request, None)


# --------------------------------------------------------------------------- ragged


async def ragged_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    path = path_of(request)
    wanted = parse_slice(request.query_params.get("slice", ""))
    choice = await choose_or_missing(request, Family.RAGGED, lambda: service.ragged.require(path))
    return await exported(request, choice, lambda: service.ragged.read(path, wanted))


async def put_ragged_full(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    body = await _body(request, ZIP)
    if flag(request, "persist", True):
        await run_in_threadpool(service.ragged.write, path_of(request), body)
    return record(request, None)


async def put_ragged_block(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    block = _block(request)
    body = await _body(request, ZIP)
    if flag(request, "persist", True):
        await run_in_threadpool(service.ragged.write_block, path_of(request), block, body)
    return record(request, None)


async def patch_ragged(request: Request) -> Response:
    """Add rows at the end; the answer is the structure afterwards."""
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    offset = integers(request.query_params.get("offset", ""), "offset")
    shape = integers(request.query_params.get("shape", ""), "shape")
    extend = flag(request, "extend", False)
    if not flag(request, "persist", True):
        raise InvalidRequest("rows that are not kept cannot be added; leave persist out", status=400)
    body = await _body(request, ZIP)
    structure = await run_in_threadpool(
        lambda: service.ragged.append(path_of(request), body, offset=offset, shape=shape, extend=extend)
    )
    return record(request, structure)


# --------------------------------------------------------------------------- arrays, which may be sparse


async def array_full(request: Request) -> Response:
    return await _array(request, routes_export.array_full)


async def array_block(request: Request) -> Response:
    return await _array(request, routes_export.array_block, with_block=True)


async def _array(request: Request, dense: Any, *, with_block: bool = False) -> Response:
    request.app.state.access.require(request, "read:data")
    if asked_formats(request)[0] == OCTETS:
        try:
            return await dense(request)
        except NotFound:
            if not await run_in_threadpool(_is_sparse, request):
                raise
    elif not await run_in_threadpool(_is_sparse, request):
        return await dense(request)
    service: Service = request.app.state.service
    path = path_of(request)
    block = _block(request) if with_block else None
    wanted = parse_slice(request.query_params.get("slice", ""))
    shape = routes_export.expected_shape(request)
    return await exported(
        request,
        choose(request, Family.SPARSE),
        lambda: service.sparse.read(path, wanted, block=block, expected_shape=shape),
    )


def _is_sparse(request: Request) -> bool:
    service: Service = request.app.state.service
    try:
        return service.browse.entry(path_of(request)).family is Family.SPARSE
    except NotFound:
        return False


async def put_array_full(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    if _type_of(request) != ARROW:
        return await routes_data.put_array_full(request)
    service: Service = request.app.state.service
    body = await _body(request, ARROW)
    if flag(request, "persist", True):
        await run_in_threadpool(service.sparse.write, path_of(request), body)
    return record(request, None)


async def put_array_block(request: Request) -> Response:
    request.app.state.access.require(request, "write:data")
    if _type_of(request) != ARROW:
        return await routes_data.put_array_block(request)
    service: Service = request.app.state.service
    block = _block(request)
    body = await _body(request, ARROW)
    if flag(request, "persist", True):
        await run_in_threadpool(service.sparse.write_block, path_of(request), block, body)
    return record(request, None)


# --------------------------------------------------------------------------- bodies


def _block(request: Request) -> tuple[int, ...]:
    if "block" not in request.query_params:
        raise InvalidRequest("the parameter block is missing")
    return integers(request.query_params["block"], "block")


def _type_of(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip()


async def _body(request: Request, media_type: str) -> bytes:
    named = _type_of(request)
    if named not in ("", media_type):
        raise Unsupported(f"this must be sent as {media_type}, not {named[:80]}", status=415)
    return await read_body(request, request.app.state.limits.body_bytes)
