"""About, metadata, search, distinct: what is there (protocol sections 3 and 4)."""

from importlib.metadata import version
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from flystore.catalog import Snapshot
from flystore.model.errors import InvalidRequest
from flystore.model.structures import Family
from flystore.service import Entry, Service
from flystore.service.export import JSON, REGISTRY, ZIP

from .negotiation import record
from .parameters import PageRequest, flag, integer, page_request
from .resources import Rendering, base_url, path_of, url_path

FLYSTORE_VERSION = version("flystore")
TILED_VERSION = "0.2.20"
"""The release whose protocol this is; clients compare `library_version` with it."""

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
    return record(request, _about(request))


async def metadata(request: Request) -> Response:
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    rendering = Rendering(request)
    integer(request, "max_depth", most=5)
    with_root = flag(request, "root_path", False)

    def work() -> Any:
        with service.browse.moment() as moment:
            return _resource(service, rendering, service.browse.entry(path_of(request), moment), moment)

    data = await run_in_threadpool(work)
    meta = {"root_path": request.scope.get("root_path", "") + "/api"} if with_root else {}
    return record(request, {"data": data, "error": None, "links": None, "meta": meta})


def _resource(service: Service, rendering: Rendering, entry: Entry, moment: Snapshot) -> dict[str, Any]:
    count = None
    if entry.family is Family.CONTAINER and rendering.fields & {"structure", "count"}:
        count = service.browse.count(entry, (), moment)
    sources = service.browse.data_sources(entry, moment) if rendering.with_sources else None
    return rendering.resource(entry, count=count, sources=sources)


async def search(request: Request) -> Response:
    request.app.state.access.require(request, "read:metadata")
    service: Service = request.app.state.service
    wanted = page_request(request)
    count_only = request.query_params.getlist("fields") == ["count"]
    rendering = Rendering(request)

    def work() -> tuple[list[Any], int, dict[str, int]]:
        with service.browse.moment() as moment:
            entry = service.browse.container(path_of(request), moment)
            if count_only:
                return [], service.browse.count(entry, wanted.queries, moment), {}
            page = service.browse.children(
                entry,
                wanted.queries,
                wanted.sort,
                limit=wanted.limit,
                offset=wanted.offset,
                cursor=wanted.cursor,
                moment=moment,
            )
            if rendering.keys_only:
                data = [rendering.resource(child) for child in page.entries]
            else:
                data = [_resource(service, rendering, child, moment) for child in page.entries]
        if page.next_cursor is not None and wanted.offset is None:
            return data, page.count, {"page[cursor]": page.next_cursor}
        return data, page.count, {} if page.next_offset is None else {"page[offset]": page.next_offset}

    data, count, onward = await run_in_threadpool(work)
    answer = {
        "data": data,
        "error": None,
        "links": _page_links(request, wanted, onward),
        "meta": {"count": count},
    }
    return record(request, answer)


def _page_links(request: Request, wanted: PageRequest, onward: dict[str, int]) -> dict[str, Any]:
    """Return links that carry page parameters only; the client adds its filters and sorting again."""
    here = f"{base_url(request)}/search/{url_path(path_of(request))}"
    limit = wanted.limit
    own = {"page[limit]": limit}
    if wanted.cursor is not None:
        own = {"page[cursor]": wanted.cursor, **own}
    if wanted.offset is not None:
        own = {"page[offset]": wanted.offset, **own}
    following = f"{here}?{_query({**onward, 'page[limit]': limit})}" if onward else None
    return {
        "self": f"{here}?{_query(own)}",
        "first": f"{here}?{_query({'page[limit]': limit})}",
        "next": following,
    }


def _query(parameters: dict[str, Any]) -> str:
    return urlencode(parameters, safe="[]")


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
