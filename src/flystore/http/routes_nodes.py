"""Creating, registering and changing nodes, as stock writers do it (protocol section 9)."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.model.errors import InvalidRequest, Unsupported
from flystore.service import MetadataPatch, NewNode, Service, data_source_from_wire, specs_from_wire, tags_from_wire

from .negotiation import expect_object, read_json, record
from .parameters import flag
from .releases import WORDS, Words, told_tags
from .resources import base_url, data_source_to_wire, links, path_of


async def create(request: Request) -> Response:
    """``POST /metadata/{parent}``: a node whose data this service keeps, or a file sequence still empty."""
    request.app.state.access.require(request, "write:metadata", "create:node")
    return await _make(request, with_assets=False)


async def register(request: Request) -> Response:
    """``POST /register/{parent}``: a node whose data lies in files that others wrote."""
    request.app.state.access.require(request, "write:metadata", "create:node", "register")
    return await _make(request, with_assets=True)


async def _make(request: Request, *, with_assets: bool) -> Response:
    service: Service = request.app.state.service
    content = expect_object(await read_json(request, request.app.state.limits.json_bytes))
    new = NewNode.from_wire(content)
    if not with_assets and any(source.assets for source in new.data_sources):
        raise InvalidRequest("a data source with assets is registered with POST /register, not /metadata")
    entry, sources = await run_in_threadpool(service.nodes.create, path_of(request), new)
    answer = {
        "id": entry.path[-1],
        "links": links(base_url(request), entry.path, entry.family, entry.structure),
        "data_sources": [data_source_to_wire(source) for source in sources],
        "access_tags": list(new.access_tags),
    }
    words: Words | None = request.scope.get(WORDS)
    return record(request, answer if words is None else words.attributes(answer))


async def put_data_source(request: Request) -> Response:
    """``PUT /data_source/{path}``: the writer knows more about the files; no Content-Type needed."""
    request.app.state.access.require(request, "write:metadata", "register")
    service: Service = request.app.state.service
    content = expect_object(await read_json(request, request.app.state.limits.json_bytes))
    source = data_source_from_wire(expect_object(content.get("data_source")))
    await run_in_threadpool(service.nodes.update_data_source, path_of(request), source)
    return record(request, None)


async def patch_metadata(request: Request) -> Response:
    request.app.state.access.require(request, "write:metadata")
    service: Service = request.app.state.service
    content = expect_object(await read_json(request, request.app.state.limits.json_bytes))
    kind = content.get("content-type")
    if kind not in ("application/json-patch+json", "application/merge-patch+json"):
        raise Unsupported("valid content types: application/json-patch+json, application/merge-patch+json")
    patch = MetadataPatch(
        merge=kind == "application/merge-patch+json",
        metadata=content.get("metadata"),
        specs=content.get("specs"),
        access_tags=told_tags(content),
    )
    path = path_of(request)
    keep = not flag(request, "drop_revision", False)
    await run_in_threadpool(service.nodes.patch_metadata, path, patch, keep_revision=keep)
    return record(request, {"id": path[-1] if path else ""})


async def put_metadata(request: Request) -> Response:
    request.app.state.access.require(request, "write:metadata")
    service: Service = request.app.state.service
    content = expect_object(await read_json(request, request.app.state.limits.json_bytes))
    metadata: Any = content.get("metadata")
    specs = None if content.get("specs") is None else specs_from_wire(content["specs"])
    told = told_tags(content)
    tags = None if told is None else tags_from_wire(told)
    path = path_of(request)
    keep = not flag(request, "drop_revision", False)
    stored = await run_in_threadpool(service.nodes.replace_metadata, path, metadata, specs, tags, keep_revision=keep)
    answer = {"id": path[-1] if path else ""}
    return record(request, answer if stored is None else {**answer, "metadata": stored})


async def delete(request: Request) -> Response:
    request.app.state.access.require(request, "delete:node", "delete:revision")
    service: Service = request.app.state.service
    await run_in_threadpool(
        service.nodes.delete,
        path_of(request),
        recursive=flag(request, "recursive", False),
        external_only=flag(request, "external_only", True),
    )
    return record(request, None)


async def close_stream(request: Request) -> Response:
    """``DELETE /stream/close/{path}``: the writer will add no more to this node."""
    request.app.state.access.require(request, "write:data")
    service: Service = request.app.state.service
    await run_in_threadpool(service.nodes.close, path_of(request))
    return record(request, None)
