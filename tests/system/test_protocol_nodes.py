"""Nodes are made, filled, changed and deleted by the unmodified Tiled client as the protocol says.

If these fail, a writer cannot finish a scan, one change of metadata eats another, or data goes that nobody meant to
delete.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tifffile
import urllib3
from tiled.client.utils import ClientError
from tiled.structures.array import ArrayStructure, BuiltinDtype
from tiled.structures.core import Spec
from tiled.structures.data_source import Asset, DataSource, Management

from flystore.service import MetadataPatch, Service
from flystore.service.verifying import verify

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

TIFFS = "multipart/related;type=image/tiff"
ARRAY = {
    "data_type": {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None},
    "chunks": [[2]],
    "shape": [2],
    "dims": None,
    "resizable": False,
}


@pytest.fixture
def home(server):
    with server.tiled() as client:
        yield client.create_container("box")


class Raw:
    """Requests that no client sends; the answer is (status, decoded body)."""

    def __init__(self, server):
        self.pool = urllib3.PoolManager(retries=False)
        self._server = server

    def __call__(self, method, path, content=None, **headers):
        body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Authorization": f"Apikey {self._server.key}", **headers}
        answer = self.pool.request(method, f"{self._server.url}/api/v1{path}", body=body, headers=headers)
        return answer.status, json.loads(answer.data)


@pytest.fixture
def raw(server):
    made = Raw(server)
    yield made
    made.pool.clear()


def new(family="container", key="k", sources=(), **more):
    return {
        "id": key,
        "structure_family": family,
        "metadata": {},
        "specs": [],
        "data_sources": list(sources),
        "ancestors": ["", "ignored"],
        **more,
    }


def source(**more):
    return {
        "structure_family": "array",
        "structure": ARRAY,
        "mimetype": None,
        "parameters": {},
        "properties": {},
        "assets": [],
        "management": "writable",
        **more,
    }


def asset(uri, num=0):
    return {"data_uri": uri, "is_directory": False, "parameter": "data_uris", "num": num}


# --------------------------------------------------------------------------- made


def test_what_cannot_be_made_is_refused_with_the_words_that_clients_know(home, raw):
    home.create_container("inner")
    assert raw("POST", "/metadata/nowhere", new())[0] == 404
    status, answer = raw("POST", "/metadata/box", new(key="inner"))
    assert (status, answer["detail"]) == (409, "/box/inner")
    assert raw("POST", "/metadata/box", new("array", sources=[source(mimetype="a/b")]))[0] == 415
    unknown = source(mimetype="a/b", assets=[asset("file:///x")])
    assert raw("POST", "/register/box", new("array", sources=[unknown]))[0] == 415
    home.write_array(np.zeros(2), key="a")
    home.write_table({"x": [1]}, key="t")
    for parent in ("/metadata/box/a", "/metadata/box/t"):
        assert raw("POST", parent, new())[0] == 409
    for wrong in (
        new(key="a/b"),
        new(key=".."),
        new("array"),
        new("nonsense"),
        new(metadata=[]),
        new(specs=["a name"]),
        new(specs=[{"name": str(i), "version": None} for i in range(21)]),
        new(specs=[{"name": "a", "version": None}] * 2),
        new(specs=[{"name": "a" * 256, "version": None}]),
        new("array", sources=[source(extra=1)]),
        new("array", sources=[source(structure={**ARRAY, "chunks": [[1]]})]),
        new("array", sources=[source(structure={**ARRAY, "dims": ["y", "x"]})]),
        new("array", sources=[source(structure={**ARRAY, "chunks": [[2], [1]]})]),
        new("array", sources=[source(assets=[asset("file:///x")])]),
        b"no json",
    ):
        status, answer = raw("POST", "/metadata/box", wrong)
        assert status == 422, (wrong, answer)
    assert sorted(home) == ["a", "inner", "t"]


def test_a_node_without_a_key_gets_one_and_the_answer_is_bare(raw):
    content = new(metadata={"a": 1})
    del content["id"]
    status, answer = raw("POST", "/metadata/", content)
    assert status == 200
    assert set(answer) >= {"id", "links", "data_sources", "access_tags"}
    assert raw("GET", f"/metadata/{answer['id']}")[0] == 200


# --------------------------------------------------------------------------- files that become known by and by


@pytest.fixture
def sequence(home, data):
    """A sequence of images as both stock writers make it: empty, then file by file."""
    for number in range(5):
        tifffile.imwrite(data / f"{number}.tif", np.full((2, 3), number, "u2"))
    structure = ArrayStructure(
        data_type=BuiltinDtype.from_numpy_dtype(np.dtype("<u2")), shape=(0, 2, 3), chunks=((0,), (2,), (3,))
    )
    made = DataSource(
        structure_family="array", structure=structure, mimetype=TIFFS, management=Management.external, assets=[]
    )
    node = home.new("array", [made], key="images")

    def known(n, **more):
        wire = {
            "id": node.data_sources()[0].id,
            "structure_family": "array",
            "structure": {
                "data_type": {"endianness": "little", "kind": "u", "itemsize": 2, "dt_units": None},
                "shape": [n, 2, 3],
                "chunks": [[1] * n if n else [0], [2], [3]],
                "dims": None,
                "resizable": False,
            },
            "mimetype": TIFFS,
            "parameters": {},
            "properties": {},
            "assets": [asset(f"file://localhost{data / f'{i}.tif'}", i) for i in range(n)],
            "management": "external",
        }
        return {"data_source": {**wire, **more}}

    return known


def test_files_are_added_without_a_content_type_and_as_often_as_the_writer_likes(sequence, home, raw):
    for n in (1, 3, 3, 5, 5):
        assert raw("PUT", "/data_source/box/images?patch_shape=1,2,3&patch_offset=0,0,0", sequence(n)) == (200, None)
    assert [a.num for a in home["images"].data_sources()[0].assets] == list(range(5))
    np.testing.assert_array_equal(home["images"].read()[:, 0, 0], range(5))


def test_the_data_source_of_another_node_cannot_be_changed_through_this_one(sequence, home, raw):
    home.write_array(np.zeros(2), key="other")
    wrong = home["other"].data_sources()[0].id
    assert raw("PUT", "/data_source/box/images", sequence(1, id=wrong))[0] == 404
    assert raw("PUT", "/data_source/box/other", sequence(1))[0] == 404
    assert raw("PUT", "/data_source/box/nowhere", sequence(1))[0] == 404
    assert raw("PUT", "/data_source/box/other", sequence(1, id=wrong))[0] == 405
    assert raw("PUT", "/data_source/box/images", sequence(1, mimetype="a/b"))[0] == 415
    assert raw("PUT", "/data_source/box/images", {"data_source": {"id": 1}})[0] == 422
    assert raw("PUT", "/data_source/box/images", b"")[0] == 422


def test_a_long_scan_that_repeats_all_files_writes_each_of_them_once(sequence, home, raw, server):
    for n in range(60):
        assert raw("PUT", "/data_source/box/images", sequence(n)) == (200, None)
    with server.service._catalog.read() as snapshot:
        bodies = [len(record.body) for record in snapshot.operations(limit=1000) if record.action == "put-data-source"]
    assert len(bodies) == 59  # the first said nothing new
    # An asset is about 100 bytes; what was known is not repeated. The structure lists a number for each file.
    assert max(bodies) < bodies[1] + 200
    assert [a.num for a in home["images"].data_sources()[0].assets] == list(range(59))
    before = home["images"].data_sources()[0]
    server.service.rebuild()
    after = home["images"].data_sources()[0]
    assert before == after
    assert not any(check.damaged for check in verify(server.directory, deep=True).checks)


# --------------------------------------------------------------------------- metadata


def test_metadata_is_patched_merged_and_replaced_and_what_was_before_is_kept(home, raw):
    home.update_metadata({"a": 1, "b": {"c": 2}})
    home.patch_metadata({"b": {"c": None, "d": 3}}, content_type="application/merge-patch+json")
    assert dict(home.metadata) == {"a": 1, "b": {"d": 3}}
    home.replace_metadata({"z": 0}, specs=[Spec("mine", "1")])
    assert dict(home.metadata) == {"z": 0}
    assert [spec.name for spec in home.specs] == ["mine"]
    assert [dict(revision["attributes"]["metadata"]) for revision in home.metadata_revisions[:]] == [
        {},
        {"a": 1, "b": {"c": 2}},
        {"a": 1, "b": {"d": 3}},
    ]
    home.update_metadata({"y": 1}, drop_revision=True)
    assert len(home.metadata_revisions[:]) == 3
    nothing = [{"op": "remove", "path": "/no"}]
    patch = {"content-type": "application/json-patch+json", "metadata": nothing, "specs": None}
    assert raw("PATCH", "/metadata/box", patch)[0] in (409, 422)
    assert raw("PATCH", "/metadata/box", {**patch, "content-type": "text/plain"})[0] == 406
    assert raw("PATCH", "/metadata/box", {**patch, "metadata": "text"})[0] == 422
    assert raw("PATCH", "/metadata/nowhere", patch)[0] == 404
    assert raw("PUT", "/metadata/box", {"metadata": []})[0] == 422


def test_no_key_is_lost_when_many_patch_one_node_at_once_in_two_services(home, server):
    with Service.open(server.directory) as other:

        def patch(number):
            nodes = (server.service if number % 2 else other).nodes
            operation = [{"op": "add", "path": f"/k{number}", "value": number}]
            nodes.patch_metadata(("box",), MetadataPatch(False, operation), keep_revision=True)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(patch, number) for number in range(40)]:
                done.result()
    assert dict(home.refresh().metadata) == {f"k{number}": number for number in range(40)}
    assert len(home.metadata_revisions[:]) == 40


# --------------------------------------------------------------------------- deleted


def test_only_what_was_meant_is_deleted(home, data, raw, server):
    file = data / "0.tif"
    tifffile.imwrite(file, np.zeros((2, 3), "u2"))
    structure = ArrayStructure(
        data_type=BuiltinDtype.from_numpy_dtype(np.dtype("<u2")), shape=(2, 3), chunks=((2,), (3,))
    )
    files = [Asset(data_uri=f"file://localhost{file}", is_directory=False, parameter="data_uri", num=None)]
    kept = DataSource(
        structure_family="array",
        structure=structure,
        mimetype="image/tiff",
        management=Management.external,
        assets=files,
    )
    inner = home.create_container("inner")
    inner.new("array", [kept], key="theirs")
    inner.write_array(np.arange(2), key="ours")
    inner.write_table(pd.DataFrame({"x": [1]}), key="table")
    live = inner.create_appendable_table(pa.schema([("x", pa.int64())]), key="live")
    live.append_partition(0, {"x": [1]})
    with pytest.raises(ClientError, match=r"409.*not empty"):
        inner.delete()
    with pytest.raises(ClientError, match=r"409.*Some items in this tree are internally managed"):
        inner.delete(recursive=True)
    with pytest.raises(ClientError, match=r"409.*internally managed"):
        inner["ours"].delete()
    assert sorted(inner) == ["live", "ours", "table", "theirs"]
    inner["theirs"].delete()
    assert file.exists()
    directories = [path for path in (server.directory / "arrays").iterdir() if not path.name.startswith(".")]
    assert len(directories) == 2
    inner.delete(recursive=True, external_only=False)
    assert "inner" not in home
    assert not any(path.exists() for path in directories)
    assert raw("DELETE", "/metadata/box/inner")[0] == 404
    assert raw("DELETE", "/metadata/")[0] == 405


def test_ids_are_never_used_again(home):
    seen = set()
    for _ in range(4):
        node = home.write_array(np.zeros(2), key="a")
        found = node.data_sources()[0]
        ids = (found.id, found.assets[0].id, found.assets[0].data_uri)
        assert not seen & {("source", ids[0]), ("asset", ids[1]), ("place", ids[2])}
        seen |= {("source", ids[0]), ("asset", ids[1]), ("place", ids[2])}
        node.delete(external_only=False)


def test_the_writer_says_that_a_stream_is_over(home, raw):
    home.write_array(np.zeros(2), key="a").close_stream()
    assert raw("DELETE", "/stream/close/box/nowhere")[0] == 404


def test_a_change_is_seen_by_whoever_asks_after_the_answer(home, server):
    with server.tiled("/api/v1/metadata/box") as other:
        for number in range(10):
            home.update_metadata({"n": number})
            assert other.refresh().metadata["n"] == number
