"""The ASGI application: routes, access, errors, in one place to read."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from flystore.service import Service

from . import (
    routes_assets,
    routes_browse,
    routes_buffers,
    routes_data,
    routes_docs,
    routes_export,
    routes_feed,
    routes_nodes,
    routes_operate,
    routes_revisions,
    routes_runs,
    routes_stream,
    routes_validation,
    routes_zarr,
)
from .access import Access
from .caching import by_version
from .compression import Endpoint, as_it_is
from .dispatch import Dispatch, SocketEndpoint
from .measuring import Measuring, Watching
from .middleware import Answering

API = "/api/v1"

SOCKETS: dict[str, SocketEndpoint] = {
    f"{API}/feed/": routes_feed.feed_socket,
    f"{API}/stream/single/": routes_stream.stream_socket,
}
"""What answers WebSockets, by what their path begins with; the rest of it is a node's path."""


def build_app(
    service: Service, access: Access, *, allow_origins: Sequence[str] = (), watching: Watching | None = None
) -> Starlette:
    """Return the application that serves `service`; it does not close it.

    Parameters
    ----------
    allow_origins : sequence of str
        Origins (``https://viewer.example.org``) whose pages may ask with a person's credentials. None: browsers let
        no page of another origin read anything.
    watching : Watching, optional
        Which requests are logged, and who may read the metrics; None logs errors and wants the key.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield

    routes = _routes()
    app = _Application(routes=routes, lifespan=lifespan)
    app.state.service = service
    app.state.measuring = Measuring(service, routes, watching or Watching())
    app.state.access = access
    app.state.limits = service.limits
    app.state.origins = list(allow_origins)
    return app


class _Application(Starlette):
    """Routes behind one layer, and behind another one if pages of other origins may ask."""

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = Answering(Dispatch(self.router, SOCKETS), self.state.measuring, self.state.limits.compress_bytes)
        return _sharing(app, self.state.origins) if self.state.origins else app


def _sharing(app: ASGIApp, origins: list[str]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_credentials=True,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=["X-Tiled-Request-ID", "X-Request-ID"],
    )


def _routes() -> list[BaseRoute]:
    def route(path: str, endpoint: object, *methods: str) -> Route:
        made = Route(path, endpoint, methods=list(methods))  # type: ignore[arg-type]
        assert made.methods is not None
        if "HEAD" not in methods:
            made.methods.discard("HEAD")  # would do all the work of a GET; the protocol has none
        return made

    def data(path: str, endpoint: Endpoint, *methods: str, scopes: tuple[str, ...] = ("read:data",)) -> Route:
        return route(path, by_version(endpoint, *scopes), *methods)

    return [
        route("/", home, "GET", "HEAD"),
        route("/healthz", routes_operate.health, "GET", "HEAD"),
        route("/healthz/live", routes_operate.alive, "GET", "HEAD"),
        route("/metrics", routes_operate.metrics, "GET"),
        route(f"{API}/metrics", routes_operate.metrics, "GET"),
        route("/openapi.json", routes_docs.openapi, "GET"),
        route("/docs", routes_docs.docs, "GET"),
        route(f"{API}/docs", routes_docs.docs, "GET"),
        route(API, to_about, "GET"),
        route(f"{API}/", routes_browse.about, "GET"),
        route(f"{API}/metadata", routes_browse.metadata, "GET"),
        route(f"{API}/metadata/{{path:path}}", routes_browse.metadata, "GET"),
        route(f"{API}/search/{{path:path}}", routes_browse.search, "GET"),
        route(f"{API}/search-deep/{{path:path}}", routes_browse.search_deep, "GET"),
        route(f"{API}/revisions/{{path:path}}", routes_revisions.revisions, "GET"),
        route(f"{API}/revisions/{{path:path}}", routes_revisions.delete_revision, "DELETE"),
        route(f"{API}/distinct/{{path:path}}", routes_browse.distinct, "GET"),
        data(f"{API}/array/full/{{path:path}}", routes_buffers.array_full, "GET"),
        data(f"{API}/array/block/{{path:path}}", routes_buffers.array_block, "GET"),
        route(f"{API}/array/full/{{path:path}}", routes_buffers.put_array_full, "PUT"),
        route(f"{API}/array/block/{{path:path}}", routes_buffers.put_array_block, "PUT"),
        route(f"{API}/array/full/{{path:path}}", routes_data.patch_array_full, "PATCH"),
        data(f"{API}/table/partition/{{path:path}}", routes_export.table_partition, "GET", "POST"),
        data(f"{API}/table/full/{{path:path}}", routes_export.table_full, "GET", "POST"),
        route(f"{API}/table/partition/{{path:path}}", routes_data.patch_table_partition, "PATCH"),
        route(f"{API}/table/partition/{{path:path}}", routes_data.put_table_partition, "PUT"),
        route(f"{API}/table/full/{{path:path}}", routes_data.put_table, "PUT"),
        data(
            f"{API}/container/full/{{path:path}}",
            routes_export.container_full,
            "GET",
            "POST",
            scopes=("read:data", "read:metadata"),
        ),
        data(f"{API}/node/full/{{path:path}}", routes_export.node_full, "GET", "POST"),
        data(f"{API}/awkward/full/{{path:path}}", routes_buffers.awkward_full, "GET"),
        route(f"{API}/awkward/full/{{path:path}}", routes_buffers.put_awkward, "PUT"),
        data(f"{API}/awkward/buffers/{{path:path}}", routes_buffers.awkward_buffers, "GET", "POST"),
        data(f"{API}/ragged/full/{{path:path}}", routes_buffers.ragged_full, "GET"),
        route(f"{API}/ragged/full/{{path:path}}", routes_buffers.put_ragged_full, "PUT"),
        route(f"{API}/ragged/block/{{path:path}}", routes_buffers.put_ragged_block, "PUT"),
        route(f"{API}/ragged/full/{{path:path}}", routes_buffers.patch_ragged, "PATCH"),
        route(f"{API}/asset/bytes/{{path:path}}", routes_assets.asset_bytes, "GET"),
        route(f"{API}/asset/manifest/{{path:path}}", routes_assets.asset_manifest, "GET"),
        route(f"{API}/metadata/{{path:path}}", routes_nodes.create, "POST"),
        route(f"{API}/register/{{path:path}}", routes_nodes.register, "POST"),
        route(f"{API}/data_source/{{path:path}}", routes_nodes.put_data_source, "PUT"),
        route(f"{API}/metadata/{{path:path}}", routes_nodes.patch_metadata, "PATCH"),
        route(f"{API}/metadata/{{path:path}}", routes_nodes.put_metadata, "PUT"),
        route(f"{API}/metadata/{{path:path}}", routes_nodes.delete, "DELETE"),
        route(f"{API}/stream/close/{{path:path}}", routes_nodes.close_stream, "DELETE"),
        route(f"{API}/ingest/{{uid:path}}", routes_runs.ingest, "POST"),
        route(f"{API}/ingest-orphans", routes_runs.ingest_orphans, "POST"),
        route(f"{API}/documents/{{path:path}}", routes_runs.documents, "GET"),
        route(f"{API}/frames/{{path:path}}", routes_runs.frames, "GET"),
        route(f"{API}/verdict/{{path:path}}", routes_runs.verdict, "GET"),
        route(f"{API}/close/{{path:path}}", routes_runs.close_run, "POST"),
        route(f"{API}/feed", routes_feed.feed, "GET"),
        route(f"{API}/feed/{{path:path}}", routes_feed.feed, "GET"),
        route("/custom/validate/{path:path}", routes_validation.validate, "GET", "POST"),
        route("/zarr/v2", as_it_is(routes_zarr.v2), "GET"),
        route("/zarr/v2/{path:path}", as_it_is(routes_zarr.v2), "GET"),
        route("/zarr/v3", as_it_is(routes_zarr.v3), "GET"),
        route("/zarr/v3/{path:path}", as_it_is(routes_zarr.v3), "GET"),
    ]


async def home(request: Request) -> Response:
    """Answer a person who opened the address in a browser."""
    return PlainTextResponse(
        "This is flystore. Read it from Python:\n\n"
        "    from flystore import from_uri\n"
        f'    client = from_uri("{request.url.scheme}://{request.url.netloc}", api_key="...")\n'
    )


async def to_about(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}{API}/", status_code=307)
