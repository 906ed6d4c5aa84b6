"""About, metadata, search, distinct: what is there (protocol sections 3 and 4)."""

import time
from importlib.metadata import version
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.catalog import NotAtOnce, Snapshot
from flystore.model.errors import InvalidRequest
from flystore.model.queries import Lookup
from flystore.model.structures import Family
from flystore.service import INLINED_DEPTH, Entry, Place, Service
from flystore.service.browse import require_family
from flystore.service.export import JSON, REGISTRY, ZIP

from .negotiation import record
from .paging import paged
from .parameters import flag, integer, page_request
from .ranges import http_date
from .resources import Rendering, base_url, path_of

FLYSTORE_VERSION = version("flystore")
TILED_VERSION = "0.2.20"
"""The release whose protocol this is; clients compare `library_version` with it."""

ABOUT_SECONDS = 600
"""How long callers may go by what they were told about this service."""

_QUERIES = [
    "fulltext",
    "lookup",
    "keys_filter",
    "eq",
    "noteq",
    "comparison",
    "contains",
    "in",
    "notin",
    "keypresent",
    "like",
    "specs",
    "access_tags_filter",
    "structure_family",
]


def _about(request: Request) -> dict[str, Any]:
    base = base_url(request)
    return {
        "api_version": 0,
        "library_version": f"{TILED_VERSION}+flystore.{FLYSTORE_VERSION}",
        "formats": {"ragged": [ZIP, JSON], **REGISTRY.formats()},
        "aliases": REGISTRY.aliases(),
        "queries": _QUERIES,
        "authentication": {
            "required": not request.app.state.access.public,
            "providers": [],
            "links": None,
        },
        "links": {"self": base, "documentation": f"{base}/docs"},
        "meta": {"root_path": request.scope.get("root_path", "") + "/api"},
    }


async def about(request: Request) -> Response:
    response = record(request, _about(request))
    response.headers["expires"] = http_date(time.time() + ABOUT_SECONDS)
    return response


async def metadata(request: Request) -> Response:
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    rendering = Rendering(request)
    depth = integer(request, "max_depth", INLINED_DEPTH, most=5) or 0
    with_root = flag(request, "root_path", False)

    path = path_of(request)

    def work() -> Any:
        with service.browse.moment() as moment:
            found = service.browse.find(path, moment)
            if isinstance(found, Entry) and found.file is None:
                return _resource(service, rendering, found, moment)
        return _inside(service, rendering, service.browse.inside.read(found, depth), depth)

    try:
        if not rendering.is_short:
            raise NotAtOnce
        with service.browse.glance() as glance:
            data = _resource(service, rendering, service.browse.at_once(path, glance), glance)
    except NotAtOnce:
        data = await run_in_threadpool(work)
    meta = {"root_path": request.scope.get("root_path", "") + "/api"} if with_root else {}
    return record(request, {"data": data, "error": None, "links": None, "meta": meta})


def _inside(service: Service, rendering: Rendering, entry: Entry, depth: int) -> dict[str, Any]:
    """Return what is inside a file, or stands for one, with `depth` levels of what is below it."""
    assert entry.file is not None
    assert entry.file.found is not None
    found = entry.file.found
    contents = None
    if depth > 0 and found.children is not None and "structure" in rendering.fields:
        below = ((key, service.browse.inside.child(entry, key)) for key in found.children)
        contents = {
            key: None if child is None else _inside(service, rendering, child, depth - 1) for key, child in below
        }
    sources = service.browse.data_sources(entry) if rendering.with_sources else None
    count = len(found.keys) if entry.family is Family.CONTAINER else None
    return rendering.resource(entry, count=count, sources=sources, contents=contents)


def _resource(service: Service, rendering: Rendering, entry: Entry, moment: Snapshot) -> dict[str, Any]:
    count = service.browse.count(entry, (), moment) if _is_counted(rendering, entry) else None
    sources = service.browse.data_sources(entry, moment) if rendering.with_sources else None
    return rendering.resource(entry, count=count, sources=sources)


def _resources(service: Service, rendering: Rendering, entries: list[Entry], moment: Snapshot) -> list[dict[str, Any]]:
    """Return the resources of a page: the same as of each alone, counted in one statement."""
    counted = [place for place, entry in enumerate(entries) if _is_counted(rendering, entry)]
    counts = dict(zip(counted, service.browse.counts([entries[place] for place in counted], moment), strict=True))
    return [
        rendering.resource(
            entry,
            count=counts.get(place),
            sources=service.browse.data_sources(entry, moment) if rendering.with_sources else None,
        )
        for place, entry in enumerate(entries)
    ]


def _is_counted(rendering: Rendering, entry: Entry) -> bool:
    # What stands for a file is counted when it is asked for itself: a listing opens no files.
    wanted = entry.family is Family.CONTAINER and entry.file is None
    return wanted and bool(rendering.fields & {"structure", "count"})


async def search(request: Request) -> Response:
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    wanted = page_request(request)
    count_only = request.query_params.getlist("fields") == ["count"]
    rendering = Rendering(request)

    def work() -> tuple[list[Any], int, dict[str, int]]:
        with service.browse.moment() as moment:
            found = service.browse.find(path_of(request), moment)
            if isinstance(found, Entry) and found.file is None:
                return listed(require_family(found, Family.CONTAINER), moment)
        entry = service.browse.inside.read(found) if isinstance(found, Place) else found
        return listed(require_family(entry, Family.CONTAINER), None)

    def listed(entry: Entry, moment: Snapshot | None) -> tuple[list[Any], int, dict[str, int]]:
        if count_only:
            return [], service.browse.count(entry, wanted.queries, moment), {}
        page = service.browse.children(
            entry,
            wanted.queries,
            wanted.sort,
            limit=wanted.limit,
            offset=wanted.offset,
            cursor=wanted.cursor,
            keys_only=rendering.keys_only,
            moment=moment,
        )
        if rendering.keys_only:
            data = [rendering.resource(child) for child in page.entries]
        elif moment is None:
            data = [_inside(service, rendering, child, 0) for child in page.entries]
        else:
            data = _resources(service, rendering, page.entries, moment)
        if page.next_cursor is not None and wanted.offset is None:
            return data, page.count, {"page[cursor]": page.next_cursor}
        return data, page.count, {} if page.next_offset is None else {"page[offset]": page.next_offset}

    data, count, onward = await run_in_threadpool(work)
    response = record(request, paged(request, "search", wanted, data, count, onward))
    if not any(isinstance(query, Lookup) for query in wanted.queries):
        response.headers["cache-control"] = "must-revalidate"
    return response


async def search_deep(request: Request) -> Response:
    """``GET /search-deep/{path}``: what matches at any depth below a container."""
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    wanted = page_request(request)
    depth = integer(request, "max_depth", least=1, most=64)
    if "sort" in request.query_params:
        raise InvalidRequest("a search at any depth has one order, that of insertion: leave sort out", status=400)
    count_only = request.query_params.getlist("fields") == ["count"]
    rendering = Rendering(request)

    def work() -> tuple[list[Any], int, dict[str, int]]:
        with service.browse.moment() as moment:
            entry = service.browse.container(path_of(request), moment)
            if count_only:
                return [], service.browse.count_descendants(entry, wanted.queries, depth, moment), {}
            page = service.browse.descendants(
                entry,
                wanted.queries,
                max_depth=depth,
                limit=wanted.limit,
                offset=wanted.offset,
                cursor=wanted.cursor,
                moment=moment,
            )
            if rendering.keys_only:
                data = [rendering.resource(found) for found in page.entries]
            else:
                data = _resources(service, rendering, page.entries, moment)
        return data, page.count, {} if page.next_cursor is None else {"page[cursor]": page.next_cursor}

    data, count, onward = await run_in_threadpool(work)
    return record(request, paged(request, "search-deep", wanted, data, count, onward))


async def distinct(request: Request) -> Response:
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    wanted = page_request(request)
    keys = tuple(request.query_params.getlist("metadata"))
    if any(not key for key in keys):
        raise InvalidRequest("a metadata key to list the values of is empty")
    families = flag(request, "structure_families", False)
    specs = flag(request, "specs", False)
    counts = flag(request, "counts", False)

    def work() -> dict[str, Any]:
        with service.browse.moment() as moment:
            return service.browse.distinct(
                service.browse.container(path_of(request), moment),
                wanted.queries,
                keys=keys,
                families=families,
                specs=specs,
                counts=counts,
                moment=moment,
            )

    return record(request, await run_in_threadpool(work))
