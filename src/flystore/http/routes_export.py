"""Reading whole nodes in any format: arrays, tables, containers, documents (protocol sections 5, 6.1, 8, 16.4)."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.catalog import NotAtOnce
from flystore.model.errors import InvalidRequest
from flystore.model.slices import Selection, parse_slice
from flystore.model.structures import Family
from flystore.service import Service
from flystore.service.export import ARROW, JSON_SEQ, OCTETS, REGISTRY

from .caching import SIGHT
from .compression import takes_frames
from .file_runs import bytes_to_read_last, takes_file_runs
from .formats import asked_formats, attachment, choose, choose_or_missing, exported
from .links import LINKS
from .negotiation import BytesResponse, read_json
from .parameters import integers, needed_integer
from .resources import path_of
from .sending import in_turn, octets


def expected_shape(request: Request) -> tuple[int, ...] | None:
    text = request.query_params.get("expected_shape")
    if text is None:
        return None
    return () if text == "scalar" else integers(text, "expected_shape")


async def array_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    path = path_of(request)
    wanted = parse_slice(request.query_params.get("slice", ""))
    expected = expected_shape(request)
    choice = await choose_or_missing(request, "array", lambda: service.exports.names(path, Family.ARRAY))
    if choice.format.media_type != OCTETS:
        return await exported(request, choice, lambda: service.exports.array(path, wanted, expected_shape=expected))
    return await _octets(request, wanted, None, expected)


async def array_block(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    path = path_of(request)
    if "block" not in request.query_params:
        raise InvalidRequest("the parameter block is missing")
    block = integers(request.query_params["block"], "block")
    wanted = parse_slice(request.query_params.get("slice", ""))
    expected = expected_shape(request)
    choice = await choose_or_missing(request, "array", lambda: service.exports.names(path, Family.ARRAY))
    if choice.format.media_type != OCTETS:
        return await exported(
            request, choice, lambda: service.exports.array(path, wanted, block=block, expected_shape=expected)
        )
    return await _octets(request, wanted, block, expected)


async def _octets(
    request: Request, wanted: Selection, block: tuple[int, ...] | None, expected: tuple[int, ...] | None
) -> Response:
    """Answer with part of an array as it is: at once if it is short and in memory, else piece by piece from threads."""
    service: Service = request.app.state.service
    path = path_of(request)
    sight = request.scope.get(SIGHT)
    if sight is not None:
        try:
            found = service.short_reads.read(sight, wanted, block=block, expected_shape=expected)
            return BytesResponse(found, OCTETS, attachment(request))
        except NotAtOnce:
            pass
    read_last = bytes_to_read_last() if takes_file_runs(request.scope) else None
    encoded = _takes_frames(request)
    return await octets(
        request,
        lambda: service.arrays.body(
            path, wanted, block=block, expected_shape=expected, read_last=read_last, encoded=encoded
        ),
    )


def _takes_frames(request: Request) -> bool:
    asked = request.headers.get("accept-encoding", "")
    if request.method != "GET" or "blosc2" not in asked:
        return False
    links = request.scope.get(LINKS)
    return takes_frames(asked, near=links is None or links.is_fast(request.scope))


async def asked_names(request: Request, *parameters: str) -> list[str] | None:
    """Return the columns or fields asked for in the query or a JSON body; None and empty mean all.

    Raises
    ------
    InvalidRequest
        If the body is no list of names.
    """
    asked = [name for parameter in parameters for name in request.query_params.getlist(parameter)]
    if request.method == "POST":
        content: Any = await read_json(request, request.app.state.limits.json_bytes)
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise InvalidRequest("the body must be a JSON list of names")
        asked += content
    return list(dict.fromkeys(asked)) or None


async def table_partition(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    return await _table(request, needed_integer(request, "partition"))


async def table_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data")
    return await _table(request, None)


async def _table(request: Request, partition: int | None) -> Response:
    service: Service = request.app.state.service
    path = path_of(request)
    columns = await asked_names(request, "column", "field")
    choice = await choose_or_missing(request, "table", lambda: service.exports.names(path, Family.TABLE))
    if partition is not None and choice.format.media_type == ARROW:
        return await in_turn(
            request, lambda: service.tables.arrow(path, columns, partition=partition), choice.media_type
        )
    return await exported(request, choice, lambda: service.exports.table(path, columns, partition=partition))


async def container_full(request: Request) -> Response:
    request.app.state.access.require(request, "read:data", "read:metadata")
    service: Service = request.app.state.service
    path = path_of(request)
    fields = await asked_names(request, "field")
    names = await run_in_threadpool(service.exports.names, path, Family.CONTAINER)
    return await exported(request, choose(request, *names), lambda: service.exports.container(path, fields))


async def node_full(request: Request) -> Response:
    """Answer as the route of the node's family would: what older clients ask for tables and containers."""
    request.app.state.access.require(request, "read:data")
    service: Service = request.app.state.service
    names = await run_in_threadpool(service.exports.names, path_of(request), Family.TABLE, Family.CONTAINER)
    return await (_table(request, None) if names[-1] == Family.TABLE else container_full(request))


def wants_json_lines(request: Request) -> bool:
    """Return whether documents are wanted as lines of JSON, which stock clients ask for by Accept."""
    return any(name.split(";")[0].strip() == JSON_SEQ for name in asked_formats(request))


async def documents_as_json(request: Request) -> Response:
    """``GET /documents/{uid}`` with ``Accept: application/json-seq``: one ``{"name", "doc"}`` a line."""
    fill = request.query_params.get("fill", "false").lower()
    if fill not in ("", "false", "no", "0"):
        raise InvalidRequest(
            f"fill={fill[:20]!r}: this service does not put external data into documents; read the arrays of the run, "
            "or leave fill out"
        )
    service: Service = request.app.state.service
    path = path_of(request)
    choice = REGISTRY.choose(("BlueskyRun",), (JSON_SEQ,))
    return await exported(request, choice, lambda: service.exports.run(path))
