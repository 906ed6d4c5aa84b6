"""The unmodified client gets the same from compressed and from kept answers, and never what was before an append.

If these fail, somebody with a cache looks at yesterday's data, or nobody's second read is quicker than the first.
"""

import gzip
import re
import time
import warnings

import numpy as np
import pandas
import pyarrow as pa
import pytest
import urllib3
import zstandard
from tiled.client import from_uri
from tiled.client.cache import Cache
from tiled.client.constructors import from_context

from flystore import RunWriter
from flystore.http import Access, build_app
from flystore.service import Limits, Service
from flystore.testing.beamline import Camera, Panda, flyscan, run_engine
from flystore.testing.serving import serving

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

ARRAY = np.arange(300_000, dtype="<u2").reshape(300, 1000)


class Traffic:
    """The stock client, and what went over the wire for it."""

    def __init__(self, server, cache=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client = from_uri(server.url, api_key=server.key, cache=cache)
        self.answers = []
        transport = self.client.context.http_client._transport.transport
        send = transport.handle_request

        def noted(request):
            answer = send(request)
            self.answers.append((answer.status_code, dict(answer.headers)))
            return answer

        transport.handle_request = noted

    def at(self, *path):
        """Return the node at `path`, asked for anew; the catalogue of runs itself looks for runs only."""
        return from_context(self.client.context, node_path_parts=path)

    def statuses(self, action):
        """Return what `action` returns, and the statuses of the answers that it took."""
        self.answers.clear()
        return action(), [status for status, _ in self.answers]


@pytest.fixture
def traffic(server):
    made = Traffic(server)
    yield made
    made.client.context.http_client.close()


@pytest.fixture
def cached(server, tmp_path):
    made = Traffic(server, Cache(tmp_path / "cache.db"))
    yield made
    made.client.context.http_client.close()


@pytest.fixture
def get(server):
    pool = urllib3.PoolManager(retries=False)

    def asked(path, method="GET", key=server.key, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        known = {"Authorization": f"Apikey {key}"} if key else {}
        return pool.request(method, f"{server.url}{path}", headers=known | named, decode_content=False)

    yield asked
    pool.clear()


@pytest.fixture
def fly(server, tmp_path):
    """A function that flies a camera through the real RunEngine."""

    def flown(*, stop=True):
        panda, camera = Panda(server.data), Camera(server.data, frames_per_event=2)
        with run_engine() as engine, RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
            engine.subscribe(lambda name, doc: writer(name, doc) if stop or name != "stop" else None)
            engine(flyscan(panda, [camera], 4))
            writer.flush(timeout=100)

    return flown


@pytest.fixture
def later(server):
    """Stop the service's clock, and return a function that puts it on by an hour."""
    now = [time.time()]
    for part in (server.service.ingest, server.service._prober, server.service.versions):
        part._clock = lambda: now[0]

    def go():
        now[0] += 3600

    return go


# --------------------------------------------------------------------------- compression


def test_the_client_reads_compressed_answers_as_they_were_written(traffic):
    home = traffic.client.create_container("basement", metadata={"text": "walrus " * 1000})
    home.write_array(ARRAY, key="a")
    frame = pandas.DataFrame({"x": np.arange(100_000) / 4, "name": ["crab"] * 100_000})
    home.write_table(frame, key="t")
    traffic.answers.clear()
    home = traffic.at("basement")
    assert home.metadata["text"] == "walrus " * 1000
    np.testing.assert_array_equal(home["a"].read(), ARRAY)
    pandas.testing.assert_frame_equal(home["t"].read(), frame, check_dtype=False)
    encodings = {headers["content-type"]: headers.get("content-encoding") for _, headers in traffic.answers}
    assert encodings["application/octet-stream"] == "blosc2"
    assert encodings["application/vnd.apache.arrow.file"] == "blosc2"
    assert {headers.get("content-encoding") for _, headers in traffic.answers} >= {"zstd", "blosc2"}


def test_arrays_of_every_width_come_through_in_many_frames(traffic):
    home = traffic.client.create_container("basement")
    for dtype in ("u1", "<i2", ">f4", "<c16", "S3", "<U5"):
        values = (np.arange(900_001) % 97).astype(dtype)
        home.write_array(values, key=dtype)
        np.testing.assert_array_equal(home[dtype].read(), values)
        assert traffic.answers[-1][1]["content-encoding"] == "blosc2"


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
def test_a_long_export_is_one_stream_that_any_client_decodes(traffic, server, encoding):
    traffic.client.create_container("basement").write_array(ARRAY, key="a")
    url = f"{server.url}/api/v1/array/full/basement/a?format=csv"
    headers = {"Authorization": f"Apikey {server.key}", "Accept-Encoding": encoding}
    with urllib3.PoolManager() as pool:
        answer = pool.request("GET", url, headers=headers, decode_content=False)
    assert answer.headers.get("content-encoding", "identity") == encoding
    assert "content-length" not in answer.headers, "it was sent while it was made"
    decode = {"gzip": gzip.decompress, "zstd": zstandard.ZstdDecompressor().decompressobj().decompress}
    text = decode.get(encoding, bytes)(answer.data).decode()
    rows = [[int(number) for number in line.split(",")] for line in text.splitlines()]
    np.testing.assert_array_equal(rows, ARRAY)


def test_what_is_compressed_says_so_and_how_long_it_took(traffic, get):
    traffic.client.create_container("basement").write_array(ARRAY, key="a")
    answer = get("/api/v1/array/full/basement/a", Accept_Encoding="zstd")
    assert answer.headers["vary"].replace(" ", "").lower().split(",") == ["accept-encoding", "origin"]
    assert re.search(r"compress;dur=[\d.]+;ratio=[\d.]+, app;dur=", answer.headers["server-timing"])
    plain = get("/api/v1/array/full/basement/a")
    assert plain.data == ARRAY.tobytes()
    assert "content-encoding" not in plain.headers
    assert "compress" not in plain.headers["server-timing"]


def test_files_are_sent_as_they_are_because_their_ranges_are_counted(server, get, fly, traffic):
    fly()
    node = frames_of(traffic.client)
    asset = node.include_data_sources().data_sources()[0].assets[0].id
    path = node.uri.split("/metadata/")[1]
    answer = get(f"/api/v1/asset/bytes/{path}?id={asset}", Accept_Encoding="zstd, gzip")
    assert answer.status == 200
    assert "content-encoding" not in answer.headers
    assert int(answer.headers["content-length"]) == len(answer.data)


def test_a_service_told_not_to_compress_does_not(tmp_path):
    with (
        Service.open(tmp_path / "store", limits=Limits(compress_bytes=0)) as service,
        serving(build_app(service, Access.of("k"))) as url,
        urllib3.PoolManager() as pool,
    ):
        headers = {"Authorization": "Apikey k", "Accept-Encoding": "gzip, zstd"}
        answer = pool.request("GET", f"{url}/api/v1/", headers=headers, decode_content=False)
    assert "content-encoding" not in answer.headers
    assert answer.json()["library_version"].startswith("0.2.20")


def test_chunks_of_zarr_are_sent_as_they_are_stored(traffic, get):
    traffic.client.create_container("basement").write_array(ARRAY, key="a")
    plain = get("/zarr/v3/basement/a/c/0/0")
    assert plain.status == 200
    assert get("/zarr/v3/basement/a/c/0/0", Accept_Encoding="gzip, deflate, zstd").data == plain.data


# --------------------------------------------------------------------------- caching


def test_a_second_read_is_not_sent_again_and_is_the_same(cached, server):
    home = cached.client.create_container("basement", metadata={"colour": "blue"})
    home.write_array(ARRAY[:100], key="a")
    home.write_table(pandas.DataFrame({"x": range(1000)}), key="t")
    home.write_awkward([[1, 2], [], [3]], key="k")
    home.write_ragged([[1.0], [2.0, 3.0]], key="r")

    def read():
        place = cached.at("basement")
        found = [place["a"].read().tolist(), place["a"][3:5].tolist(), place["t"].read().to_dict()]
        return [*found, place["t"]["x"].read().tolist(), place["r"].read().tolist(), list(place)]

    first, statuses = cached.statuses(read)
    assert 200 in statuses
    again, statuses = cached.statuses(read)
    assert again == first
    assert set(statuses) == {304}


def test_what_was_written_or_appended_meanwhile_is_read(cached):
    home = cached.client.create_container("basement")
    array = home.write_array(np.zeros((4, 1000)), key="a")
    table = home.create_appendable_table(pa.schema([("x", pa.int64())]), key="t")
    table.append_partition(0, {"x": list(range(500))})
    ragged = home.write_ragged([[1.0], [2.0, 3.0]], key="r")
    frame = home.write_table(pandas.DataFrame({"x": range(500)}), key="f")
    sparse = home.write_sparse(coords=np.array([[0, 1]]), data=np.array([0.5, 0.5]), shape=(3,), key="s")
    for number in range(1, 4):
        array.write(np.full((4, 1000), number, "f8"))
        assert (cached.at("basement", "a").read() == number).all()
        array.write_block(np.full((4, 1000), -number, "f8"), (0, 0))
        assert (cached.at("basement", "a").read() == -number).all()
        table.append_partition(0, {"x": [number]})
        assert len(cached.at("basement", "t").read()) == 500 + number
        assert cached.at("basement", "t", "x").read()[-1] == number
        ragged.write([[float(number)], [2.0, 3.0]])
        assert cached.at("basement", "r").read()[0].tolist() == [number]
        frame.write(pandas.DataFrame({"x": [number] * 500}))
        assert set(cached.at("basement", "f").read()["x"]) == {number}
        sparse.write(coords=np.array([[0, 2]]), data=np.array([float(number), 1.0]))
        assert cached.at("basement", "s").read().todense().tolist() == [number, 0, 1]
        home.update_metadata({"n": number})
        assert cached.at("basement").metadata["n"] == number
        home.create_container(f"c{number}")
        assert f"c{number}" in list(cached.at("basement"))


def test_a_node_that_was_made_anew_is_not_the_old_one(cached):
    home = cached.client.create_container("basement")
    for number in range(3):
        home.write_array(np.full(1000, number), key="a")
        assert (cached.at("basement", "a").read() == number).all()
        home["a"].delete(external_only=False)


def test_another_store_at_the_same_address_is_not_taken_for_the_first(tmp_path):
    tags = []
    for name in ("one", "two"):
        with Service.open(tmp_path / name) as service, serving(build_app(service, Access.of("k"))) as url:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                client = from_uri(url, api_key="k")
            client.write_array(np.full(1000, len(name)), key="a")
            client.context.http_client.close()
            with urllib3.PoolManager() as pool:
                answer = pool.request("GET", f"{url}/api/v1/array/full/a", headers={"Authorization": "Apikey k"})
            tags.append(answer.headers["etag"])
    assert re.fullmatch("[0-9a-f]{32}", tags[0])
    assert tags[0] != tags[1]


def frames_of(client):
    uid = client.keys().last()
    stream = client[uid]["primary"]
    return next(stream[key] for key in stream if len(stream[key].shape) >= 3)


def test_frames_are_kept_only_once_their_run_and_their_files_are_quiet(cached, fly, later):
    fly()
    node = frames_of(cached.client)
    first, statuses = cached.statuses(node.read)
    again, more = cached.statuses(node.read)
    assert statuses == more == [200], "the file is younger than ten seconds"
    assert {headers["cache-control"] for _, headers in cached.answers} == {"no-store"}
    later()
    assert cached.statuses(node.read)[1] == [200]
    kept, statuses = cached.statuses(node.read)
    assert statuses == [304]
    np.testing.assert_array_equal(kept, first)
    np.testing.assert_array_equal(again, first)


def test_while_a_run_is_open_its_frames_are_never_kept(cached, fly, later):
    fly(stop=False)
    later()
    node = frames_of(cached.client)
    for _ in range(3):
        assert cached.statuses(node.read)[1] == [200]


def test_nothing_is_read_for_a_caller_who_has_it(traffic, server, get, monkeypatch):
    traffic.client.create_container("basement").write_array(ARRAY, key="a")
    tag = get("/api/v1/array/full/basement/a?slice=0:3").headers["etag"]

    def read(*args, **options):
        raise AssertionError("the payload was read")

    monkeypatch.setattr(server.service.arrays, "body", read)
    answer = get("/api/v1/array/full/basement/a?slice=0:3", If_None_Match=f'"other", {tag}')
    assert (answer.status, answer.data, answer.headers["etag"]) == (304, b"", tag)
    assert "content-type" not in answer.headers
    assert get("/api/v1/array/full/basement/a?slice=0:4", If_None_Match=tag).status == 500
    assert get("/api/v1/array/full/basement/a?slice=0:3", key=None, If_None_Match=tag).status == 401


def test_a_tag_is_of_one_representation(traffic, get):
    traffic.client.create_container("basement").write_array(ARRAY[:3], key="a")
    asked = {"/api/v1/array/full/basement/a", "/api/v1/metadata/basement/a"}
    for path in asked:
        tags = [get(path, Accept=accept).headers["etag"] for accept in ("application/json", "*/*")]
        other = get(path, Accept="application/x-msgpack" if "metadata" in path else "text/csv").headers["etag"]
        assert other not in tags


def test_every_answer_either_can_be_checked_or_must_not_be_kept(traffic, get):
    home = traffic.client.create_container("basement")
    home.write_array(ARRAY, key="a")
    for path in ("", "metadata/", "search/", "search/basement", "distinct/?structure_families=true", "metadata/nope"):
        answer = get(f"/api/v1/{path}")
        assert ("etag" in answer.headers) != (answer.headers.get("cache-control") == "no-store"), path
    for path in ("/", "/nowhere"):
        assert get(path).headers["cache-control"] == "no-store"


def test_records_say_how_long_they_hold(traffic, get):
    traffic.client.create_container("basement")
    assert get("/api/v1/search/").headers["cache-control"] == "must-revalidate"
    lookup = get("/api/v1/search/?filter[lookup][condition][key]=basement")
    assert "cache-control" not in lookup.headers
    assert "expires" in get("/api/v1/").headers
    tag = get("/api/v1/search/").headers["etag"]
    known = get("/api/v1/search/", If_None_Match=tag)
    assert (known.status, known.data, known.headers["cache-control"]) == (304, b"", "must-revalidate")
    assert re.fullmatch("[0-9a-f]{32}", tag)


# --------------------------------------------------------------------------- headers


def test_who_may_not_is_told_in_the_words_of_the_protocol(get, server):
    anonymous = get("/api/v1/metadata/", key=None)
    assert anonymous.status == 401
    assert anonymous.headers["www-authenticate"] == 'Bearer scope="read:metadata"'
    assert anonymous.headers["x-tiled-root"] == f"{server.url}/api/v1"
    assert anonymous.json()["detail"] == (
        "Not enough permissions. Requires scopes ['read:metadata']. Request had scopes []"
    )
    wrong = get("/api/v1/metadata/", key="wrong")
    assert (wrong.status, wrong.json()["detail"]) == (401, "Invalid API key")


def test_there_is_no_head(get):
    for path in ("/api/v1/", "/api/v1/metadata/", "/api/v1/array/full/x"):
        answer = get(path, method="HEAD")
        assert answer.status == 405
        assert "HEAD" not in answer.headers["allow"]
    assert get("/healthz", method="HEAD").status == 200


def test_a_key_in_the_address_is_remembered_by_browsers(get, server):
    answer = get(f"/api/v1/metadata/?api_key={server.key}", key=None)
    cookies = answer.headers.getlist("set-cookie")
    kept = next(cookie for cookie in cookies if cookie.startswith("tiled_api_key="))
    assert kept == f"tiled_api_key={server.key}; HttpOnly; Path=/; SameSite=lax"
    known = get("/api/v1/metadata/", key=None, Cookie=f"tiled_api_key={server.key}; tiled_csrf=x")
    assert known.status == 200
    assert "set-cookie" not in known.headers
    wrong = get("/api/v1/metadata/?api_key=wrong", key=None)
    assert not any("api_key" in cookie for cookie in wrong.headers.getlist("set-cookie"))


def test_pages_of_the_origins_named_may_ask_and_no_others(tmp_path):
    ours = "https://viewer.example.org"
    with (
        Service.open(tmp_path / "store") as service,
        serving(build_app(service, Access.of("k"), allow_origins=[ours])) as url,
        urllib3.PoolManager() as pool,
    ):
        asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "authorization"}
        allowed = pool.request("OPTIONS", f"{url}/api/v1/metadata/x", headers={"Origin": ours, **asked})
        refused = pool.request("OPTIONS", f"{url}/api/v1/metadata/x", headers={"Origin": "https://evil.org", **asked})
        answer = pool.request("GET", f"{url}/api/v1/", headers={"Origin": ours})
    assert allowed.status == 200
    assert allowed.headers["access-control-allow-origin"] == ours
    assert "access-control-allow-origin" not in refused.headers
    assert answer.headers["access-control-allow-origin"] == ours
    assert "X-Tiled-Request-ID" in answer.headers["access-control-expose-headers"].split(", ")
    assert "Origin" in answer.headers["vary"]
