"""What is asked most costs a few statements and no thread, and nothing that may take long is done on the event loop.

If these fail, a service answers hundreds of requests a second where it could answer thousands, or everybody waits
while one of them is answered.
"""

import asyncio
import itertools
import sqlite3

import anyio.to_thread
import h5py
import msgspec
import numpy as np
import pytest
from blockbuster import blockbuster_ctx

import flystore
from flystore.catalog import Catalog, NotAtOnce
from flystore.http import Access, build_app, routes_browse
from flystore.http.dispatch import Dispatch
from flystore.model.frames import FrameEncoder, frame
from flystore.model.structures import ArrayStructure
from flystore.service import NewNode, Service
from flystore.testing.documents import RunDocuments, external, internal

KEPT = ArrayStructure.of(np.dtype("<i8"), (4, 5))
API = "/api/v1"
IMAGES = np.arange(6 * 4 * 5, dtype="<u2").reshape(6, 4, 5)
LARGE = {"note": "x" * 300_000}


class Counted:
    """What the requests since `begin` have cost."""

    def __init__(self):
        self.statements, self.threads = [], 0

    def begin(self):
        self.statements.clear()
        self.threads = 0

    @property
    def reads(self):
        return [text for text in self.statements if text.startswith("SELECT")]


@pytest.fixture
def counted(monkeypatch):
    found = Counted()
    connect, run = sqlite3.connect, anyio.to_thread.run_sync

    def connected(*args, **more):
        connection = connect(*args, **more)
        connection.set_trace_callback(found.statements.append)
        return connection

    async def hop(*args, **more):
        found.threads += 1
        return await run(*args, **more)

    monkeypatch.setattr(sqlite3, "connect", connected)
    monkeypatch.setattr(anyio.to_thread, "run_sync", hop)
    return found


def frames_of(documents):
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))


def fill(service, files):
    """Store a run with a column, an array in a file and one in its Events, and what clients made."""
    with h5py.File(files / "a.h5", "w") as opened:
        opened.create_dataset("entry/data/data", data=IMAGES, chunks=(1, 4, 5))
    run = RunDocuments("run", plan_name="count", sample={"name": "é", "mass": 1.5})
    stream = run.stream("primary", x=internal(), img=external((4, 5)), line=internal("array", (3,)))
    stream.resource("img", (files / "a.h5").as_uri())
    for value in range(6):
        stream.event(x=float(value), line=[value, 0.5, 2.0])
    stream.frames("img", 0, 6)
    run.stop()
    service.ingest.batch("run", 0, 0, frames_of(run.documents))
    create(service, "box", "container", metadata={"a": [1, None, {"b": 2}]})
    create(service, "large", "container", metadata=LARGE)
    create(service, "kept", "array", KEPT)
    service.nodes.write_array(("kept",), np.arange(20).tobytes())


def create(service, key, family, structure=None, metadata=None):
    sources = []
    if structure is not None:
        sources = [{"structure_family": family, "structure": structure.to_wire(), "management": "writable"}]
    wire = {"id": key, "structure_family": family, "metadata": metadata or {}, "data_sources": sources}
    service.nodes.create((), NewNode.from_wire(wire))


@pytest.fixture
def service(tmp_path, counted):
    files = tmp_path / "files"
    files.mkdir()
    with Service.open(tmp_path / "store", read=[files]) as opened:
        fill(opened, files)
        yield opened


@pytest.fixture
def app(service):
    return build_app(service, Access.of("secret"))


async def answered(app, path, query="", method="GET", **headers):
    """Return status, headers and body of the application's answer."""
    named = {"host": "here:8000", "authorization": "Apikey secret", **headers}
    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()],
    }
    sent, bodies = [], [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if not bodies:
            await asyncio.Event().wait()
        return bodies.pop()

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(bytes(message.get("body", b"")) for message in sent[1:])


def asked(app, *args, **more):
    return asyncio.run(answered(app, *args, **more))


NODES = ["", "run", "run/primary", "run/primary/internal", "run/primary/img", "box", "kept"]


@pytest.mark.parametrize("path", NODES)
def test_the_record_of_a_node_takes_three_short_reads_and_no_thread(app, counted, path):
    asked(app, f"{API}/metadata/{path}")
    counted.begin()
    status, _, body = asked(app, f"{API}/metadata/{path}")
    assert (status, msgspec.json.decode(body)["error"]) == (200, None)
    assert counted.threads == 0
    assert 1 <= len(counted.reads) <= 3


def test_its_cost_is_the_same_however_much_is_below_it(service, app, counted):
    costs = []
    for first in (0, 50):
        for n in range(first, first + 50):
            create(service, f"more-{n}", "container")
        counted.begin()
        asked(app, f"{API}/metadata/")
        costs.append([text.partition(" WHERE ")[0] for text in counted.reads])
    assert costs[0] == costs[1]


@pytest.mark.parametrize("path", [*NODES, "large", "run/primary/x", "run/streams/primary", "nobody", "run/nobody"])
@pytest.mark.parametrize("accept", ["application/json", "application/x-msgpack"])
def test_a_record_is_the_same_read_on_the_loop_or_in_a_thread(app, monkeypatch, path, accept):
    status, headers, body = asked(app, f"{API}/metadata/{path}", accept=accept)

    def refused(self):
        raise NotAtOnce

    monkeypatch.setattr(Catalog, "glance", refused)
    again, others, same = asked(app, f"{API}/metadata/{path}", accept=accept)
    assert (status, body) == (again, same)
    assert headers.get("etag") == others.get("etag")


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("large", ""),
        ("run/primary/img", "include_data_sources=true"),
        ("run", "select_metadata=start.plan_name"),
        ("nobody", ""),
    ],
)
def test_what_may_take_long_is_read_in_a_thread(app, counted, path, query):
    asked(app, f"{API}/metadata/{path}", query)
    counted.begin()
    asked(app, f"{API}/metadata/{path}", query)
    assert counted.threads >= 1


def test_a_slice_takes_one_thread_and_none_for_a_caller_who_has_it(app, counted):
    path, query = f"{API}/array/full/kept", "slice=1:3"
    status, headers, body = asked(app, path, query, accept="application/octet-stream")
    assert (status, body) == (200, np.arange(5, 15).tobytes())
    counted.begin()
    asked(app, path, query, accept="application/octet-stream")
    assert counted.threads == 1
    counted.begin()
    known = {"accept": "application/octet-stream", "if_none_match": headers["etag"]}
    assert asked(app, path, query, **known)[0] == 304
    assert counted.threads == 0


async def watched(app, questions):
    """Return questions with the statuses of their answers; what blocks the loop is a 500."""
    with blockbuster_ctx(scanned_modules=flystore) as watching:
        for function in watching.functions.values():
            # What a glance reads on the loop are single short rows; see `Catalog.glance`.
            function.can_block_in("http/routes_browse.py", {"metadata"})
            function.can_block_in("service/versions.py", {"at_once"})
            # What is read of files there is few bytes of memory; see `ShortReads.read`.
            function.can_block_in("service/short_reads.py", {"read"})
        return [
            (path, accept, (await answered(app, path, accept=accept, accept_encoding="zstd, blosc2"))[0])
            for path, accept in questions
        ]


def test_nothing_blocks_the_event_loop(app):
    """Of everything that can be read; data in several formats, and compressed."""
    arrays = ("run/primary/img", "run/primary/internal/line", "run/primary/internal/x", "kept")
    records = [
        "/healthz",
        f"{API}/",
        *(f"{API}/metadata/{path}" for path in (*NODES, "large", "run/primary/internal/x", "run/streams/primary")),
        *(f"{API}/search/{path}" for path in ("", "run")),
        f"{API}/distinct/",
        f"{API}/documents/run",
        f"{API}/verdict/run",
        f"{API}/revisions/box",
        "/zarr/v3/run/primary/img/zarr.json",
        "/zarr/v3/kept/c/0/0",
    ]
    data = [
        *(f"{API}/array/full/{path}" for path in arrays),
        f"{API}/table/full/run/primary/internal",
        f"{API}/container/full/run/primary",
    ]
    formats = ["application/json", "application/octet-stream", "text/csv", "application/vnd.apache.arrow.file"]
    questions = [*itertools.product(records, ["*/*"]), *itertools.product(data, formats)]

    statuses = asyncio.run(watched(app, questions))
    assert [found for found in statuses if found[2] >= 500] == []
    assert sum(status == 200 for _, _, status in statuses) > len(statuses) * 2 // 3


def test_what_blocks_the_event_loop_would_be_seen(app, monkeypatch):
    async def here(work, *args):
        return work(*args)

    monkeypatch.setattr(routes_browse, "run_in_threadpool", here)
    assert asyncio.run(watched(app, [(f"{API}/search/", "*/*")]))[0][2] == 500


def test_a_route_is_the_one_that_the_router_would_take(app):
    dispatch = Dispatch(app.router)
    checked = 0
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    rests = ["", "a", "a/b/c", "/a", "a/", "%2F", "metadata/x"]
    for route, method, rest in itertools.product(app.routes, methods, rests):
        path = route.path.partition("{")[0] + (rest if "{" in route.path else "")
        scope = {"type": "http", "method": method, "path": path, "headers": []}
        full = [one for one in app.routes if one.matches(dict(scope))[0].name == "FULL"]
        found = dispatch._endpoint(scope)
        assert found is (full[0].endpoint if full else None)
        if full:
            assert scope["path_params"] == full[0].matches(dict(scope))[1]["path_params"]
            checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/healthz/", "GET", 307), (f"{API}/search/", "POST", 405), ("/", "HEAD", 200)],
)
def test_what_has_no_route_is_refused_or_sent_on_as_the_router_says(app, path, method, status):
    found, headers, body = asked(app, path, method=method)
    assert found == status
    assert "x-tiled-request-id" in headers
    if status in (404, 405):
        assert msgspec.json.decode(body)["error"]["kind"] in ("not-found", "method-not-allowed")


def test_behind_a_prefix_the_routes_are_the_same(app):
    async def prefixed(scope, receive, send):
        await app({**scope, "root_path": "/store", "path": f"/store{scope['path']}"}, receive, send)

    status, _, body = asked(prefixed, f"{API}/metadata/box")
    assert status == 200
    link = msgspec.json.decode(body)["data"]["links"]["self"]
    assert link == f"http://here:8000/store{API}/metadata/box"


@pytest.mark.parametrize("host", ["here", "here:80", "[::1]:8000", "a_b"])
def test_links_begin_with_the_host_that_the_caller_named(app, host):
    _, _, body = asked(app, f"{API}/metadata/box", host=host)
    assert msgspec.json.decode(body)["data"]["links"]["self"] == f"http://{host}{API}/metadata/box"


@pytest.mark.parametrize("name", ["api_key", "api%5Fkey", "%61pi_key"])
def test_a_key_in_the_query_is_found_however_its_name_is_written(app, name):
    status, headers, _ = asked(app, f"{API}/metadata/box", f"{name}=secret", authorization="")
    assert status == 200
    assert "tiled_api_key=secret" in str(headers)
    assert asked(app, f"{API}/metadata/box", f"{name}=wrong")[0] == 401


def test_there_is_one_layer_around_the_routes_and_one_more_for_pages_of_others(service):
    def layers(app):
        inner, found = app.build_middleware_stack(), []
        while not isinstance(inner, Dispatch):
            found.append(type(inner).__name__)
            inner = inner.app
        return found

    access = Access.of("secret")
    assert layers(build_app(service, access)) == ["Answering"]
    assert layers(build_app(service, access, allow_origins=["https://a.example"])) == ["CORSMiddleware", "Answering"]


@pytest.mark.parametrize("query", ["", "include_data_sources=true", "fields=count", "fields=metadata&fields=specs"])
@pytest.mark.parametrize("path", ["", "run", "run/primary"])
def test_a_page_says_of_each_child_what_a_request_for_it_alone_says(service, app, path, query):
    for n in range(7):
        create(service, f"more-{n}", "container", metadata={"n": n})
    service.nodes.create(("more-3",), NewNode.from_wire({"id": "in", "structure_family": "container", "metadata": {}}))
    # Asked for as a count alone, a page is no page.
    also = f"{query}&fields=structure" if query == "fields=count" else query
    _, _, body = asked(app, f"{API}/search/{path}", f"{also}&page[limit]=100")
    page = msgspec.json.decode(body)["data"]
    assert page
    for child in page:
        where = "/".join([*child["attributes"]["ancestors"], child["id"]])
        status, _, alone = asked(app, f"{API}/metadata/{where}", also)
        assert (status, msgspec.json.decode(alone)["data"]) == (200, child)


def test_a_page_takes_as_many_reads_however_long_it_is(service, app, counted):
    for n in range(40):
        create(service, f"box-{n}", "container", metadata={"n": n})
        create(service, f"kept-{n}", "array", KEPT)
    costs = []
    for limit in (5, 20, 80):
        query = f"page[limit]={limit}"
        asked(app, f"{API}/search/", query)
        counted.begin()
        _, _, body = asked(app, f"{API}/search/", query)
        assert len(msgspec.json.decode(body)["data"]) == limit
        costs.append(len(counted.reads))
    assert costs[0] == costs[1] == costs[2] <= 10
