"""Groups and datasets inside a registered HDF5 file are nodes: listed, described and read like any other.

If these fail, a program that walks through somebody's HDF5 file over HTTP sees other keys, shapes or values than the
file holds, finds an empty file where there is data, or is led out of the read roots by a link.
"""

import warnings
from contextlib import contextmanager

import h5py
import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IMAGES = np.arange(60, dtype="<u2").reshape(5, 3, 4)
LABELS = np.array([b"one", b"three", b"four!"], object)


@pytest.fixture
def made(data):
    """Return a file with groups, datasets of all kinds, links that work and links that do not."""
    path = data / "scan.h5"
    with h5py.File(data / "other.h5", "w") as other:
        other["values"] = np.arange(4.0)
    with h5py.File(data.parent.parent / f"outside-{data.name}.h5", "w") as outside:
        outside["secret"] = np.arange(3)
    with h5py.File(path, "w") as file:
        file.attrs["creator"] = "beamline"
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry.attrs["numbers"] = np.array([1, 2, 3])
        entry.attrs["gone"] = h5py.Empty("f8")
        images = entry.create_dataset("data/images", data=IMAGES, chunks=(2, 3, 4), compression="gzip")
        images.attrs["units"] = "counts"
        entry["data/exposure"] = 0.25
        entry["data/flags"] = np.array([True, False])
        entry["data/nothing"] = np.zeros((0, 3))
        entry.create_dataset("labels", data=LABELS, dtype=h5py.string_dtype())
        entry.create_dataset("uneven", data=[np.arange(2), np.arange(3)], dtype=h5py.vlen_dtype(np.dtype("i4")))
        entry["soft"] = h5py.SoftLink("/entry/data/images")
        entry["beside"] = h5py.ExternalLink("other.h5", "/values")
        entry["broken"] = h5py.SoftLink("/entry/no-such")
        entry["lost"] = h5py.ExternalLink("no-such.h5", "/values")
        entry["outside"] = h5py.ExternalLink(str(data.parent.parent / f"outside-{data.name}.h5"), "/secret")
        many = file.create_group("many")
        for number in range(501):
            many.create_group(f"g{number:03d}")
    return path


def register(client, path, key="scan", metadata=None, **parameters):
    from tiled.structures.core import StructureFamily
    from tiled.structures.data_source import Asset, DataSource, Management

    asset = Asset(data_uri=f"file://localhost{path}", is_directory=False, parameter="data_uris", num=0)
    source = DataSource(
        structure_family=StructureFamily.container,
        structure=None,
        mimetype="application/x-hdf5",
        parameters=parameters,
        management=Management.external,
        assets=[asset],
    )
    return client.new("container", [source], key=key, metadata=metadata or {}, specs=[])


def get(server, path, **parameters):
    headers = {"Authorization": f"Apikey {server.key}"}
    return httpx.get(f"{server.url}/api/v1/{path}", params=parameters, headers=headers, timeout=100)


@contextmanager
def container(server, key):
    """Yield the plain client of a new container; the root's own client takes every key for a run's uid."""
    from tiled.client import from_uri

    with server.tiled() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.create_container(key)
        client = from_uri(f"{server.url}/api/v1/metadata/{key}", api_key=server.key)
        try:
            yield client
        finally:
            client.context.http_client.close()


@pytest.fixture
def client(server):
    with container(server, "files") as client:
        yield client


def shape_of(node):
    """Return a file as the client walks it: keys, shapes, dtypes."""
    if hasattr(node, "shape"):
        return tuple(node.shape), node.dtype.str
    found = {}
    for key in node:
        try:
            found[key] = shape_of(node[key])
        except KeyError:
            found[key] = None
    return found


def test_a_client_walks_a_file_as_it_walks_it_with_stock_tiled(server, stock, client, data):
    path = data / "plain.h5"
    with h5py.File(path, "w") as file:
        file["a/b/c"] = np.arange(6.0).reshape(2, 3)
        file["a/x"] = np.arange(3, dtype=">i2")
        file["a"].attrs["unit"] = "mm"
        file["scalar"] = 7
        file["text"] = "hello"
        file["a/broken"] = h5py.SoftLink("/none")
    register(client, path)
    with container(stock, f"files-{data.name}") as other, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        register(other, path)
        theirs, ours = other["scan"], client["scan"]
        assert shape_of(ours) == shape_of(theirs)
        for inner in ("a/b/c", "a/x", "scalar", "text"):
            np.testing.assert_array_equal(ours[inner].read(), theirs[inner].read())
        assert ours["a"].metadata["unit"] == theirs["a"].metadata["unit"] == "mm"


def test_every_kind_of_dataset_is_read_whole_and_in_parts(client, made):
    register(client, made)
    entry = client["scan/entry"]
    images = entry["data", "images"]
    np.testing.assert_array_equal(images.read(), IMAGES)
    np.testing.assert_array_equal(images[1:4, ::2, -1], IMAGES[1:4, ::2, -1])
    np.testing.assert_array_equal(images.read_block((1, 0, 0)), IMAGES[2:4])
    assert images.metadata == {"units": "counts"}
    np.testing.assert_array_equal(entry["data", "exposure"].read(), [0.25])
    np.testing.assert_array_equal(entry["data", "flags"].read(), [True, False])
    assert entry["data", "nothing"].read().shape == (0, 3)
    np.testing.assert_array_equal(entry["labels"].read(), LABELS.astype("S"))
    np.testing.assert_array_equal(entry["labels"][1:], LABELS.astype("S")[1:])
    np.testing.assert_array_equal(entry["soft"].read(), IMAGES)
    np.testing.assert_array_equal(entry["beside"].read(), np.arange(4.0))


def test_attributes_of_groups_are_metadata_and_what_people_said_comes_first(client, made):
    register(client, made, metadata={"creator": "me"})
    assert client["scan"].metadata["creator"] == "me"
    assert dict(client["scan/entry"].metadata) == {"NX_class": "NXentry", "numbers": [1, 2, 3], "gone": None}


def test_counts_are_true_at_the_top_and_below(server, client, made):
    register(client, made)
    for path, count in (("scan", 2), ("scan/entry", 8), ("scan/many", 501), ("scan/entry/data", 4)):
        resource = get(server, f"metadata/files/{path}").json()["data"]
        assert resource["attributes"]["structure"]["count"] == count, path
        assert get(server, f"search/files/{path}", fields="count").json()["meta"]["count"] == count
    assert len(client["scan"]) == 2
    assert list(client["scan/many"])[-1] == "g500"
    assert client["scan/many"].keys().last() == "g500"
    assert client["scan/many"].keys()[3:5] == ["g003", "g004"]


def test_small_groups_are_inlined_as_deep_as_asked_and_large_ones_are_not(server, client, made):
    register(client, made)

    def contents(**parameters):
        return get(server, "metadata/files/scan", **parameters).json()["data"]["attributes"]["structure"]["contents"]

    assert contents(max_depth=0) is None
    one = contents(max_depth=1)
    assert set(one) == {"entry", "many"}
    assert one["entry"]["attributes"]["structure"]["contents"] is None
    whole = contents()
    entry = whole["entry"]["attributes"]["structure"]["contents"]
    images = entry["data"]["attributes"]["structure"]["contents"]["images"]
    assert images["attributes"]["structure"]["shape"] == [5, 3, 4]
    assert images["attributes"]["ancestors"] == ["files", "scan", "entry", "data"]
    assert whole["many"]["attributes"]["structure"] == {"contents": None, "count": 501}
    assert get(server, "metadata/files/scan", max_depth=6).status_code == 422


def test_what_is_inside_a_file_has_no_tags_and_no_data_sources(server, client, made):
    register(client, made)
    for path in ("scan/entry", "scan/entry/labels"):
        attributes = get(server, f"metadata/files/{path}", include_data_sources="true").json()["data"]["attributes"]
        assert attributes["access_tags"] is None
        assert attributes["data_sources"] is None
    top = get(server, "metadata/files/scan", include_data_sources="true").json()["data"]["attributes"]
    assert top["access_tags"] == []
    assert top["data_sources"][0]["assets"][0]["data_uri"].endswith("scan.h5")


def test_a_broken_link_is_null_in_its_group_and_410_by_itself(server, client, made):
    register(client, made)
    contents = get(server, "metadata/files/scan/entry").json()["data"]["attributes"]["structure"]["contents"]
    assert [key for key in contents if contents[key] is None] == ["broken", "lost", "outside"]
    for key in ("broken", "lost"):
        answer = get(server, f"metadata/files/scan/entry/{key}")
        assert answer.status_code == 410, answer.text
        assert get(server, f"array/full/files/scan/entry/{key}").status_code == 410
        with pytest.raises(KeyError):
            client[f"scan/entry/{key}"]
    assert get(server, "metadata/files/scan/entry/never").status_code == 404
    assert get(server, "metadata/files/scan/entry/labels/0").status_code == 404


def test_a_link_that_leads_outside_the_roots_is_refused(server, client, made):
    register(client, made)
    for route in ("metadata", "array/full"):
        answer = get(server, f"{route}/files/scan/entry/outside")
        assert answer.status_code == 403, answer.text
        assert b"secret" not in answer.content.replace(b"/secret", b"")


def test_values_without_an_array_form_are_listed_and_refused_in_words(server, client, made):
    register(client, made)
    shown = get(server, "metadata/files/scan/entry/uneven").json()["data"]["attributes"]["structure"]
    assert shown["shape"] == [2]
    answer = get(server, "array/full/files/scan/entry/uneven")
    assert answer.status_code == 406
    assert "variable length" in answer.json()["detail"]


def test_a_group_of_a_file_can_be_registered_by_itself(client, made):
    register(client, made, key="part", dataset="/entry/data")
    register(client, made, key="part2", dataset=["entry", "data"])
    for key in ("part", "part2"):
        assert list(client[key]) == ["exposure", "flags", "images", "nothing"]
        np.testing.assert_array_equal(client[f"{key}/images"].read(), IMAGES)


def test_filters_and_orders_inside_a_file(server, client, made):
    from tiled.queries import Key

    register(client, made)
    assert list(client["scan/entry"].search(Key("NX_class") == "NXentry")) == []
    assert list(client["scan"].search(Key("NX_class") == "NXentry")) == ["entry"]
    assert client["scan/entry/data"].search(Key("units") == "counts")["images"].shape == (5, 3, 4)
    assert get(server, "search/files/scan", sort="metadata.x").status_code == 400
    names = [row["id"] for row in get(server, "search/files/scan", sort="-id", fields="").json()["data"]]
    assert names == ["many", "entry"]


def test_a_file_that_is_gone_is_an_error_in_words_and_never_an_empty_container(server, client, made, data):
    register(client, made)
    register(client, data / "never.h5", key="absent")
    assert get(server, "metadata/files/absent").status_code == 422
    assert "does not exist" in get(server, "search/files/absent").json()["detail"]
    made.write_bytes(b"no HDF5 at all")
    assert get(server, "metadata/files/scan/entry").status_code in (422, 503)
    rows = {row["id"]: row for row in get(server, "search/files").json()["data"]}
    assert rows["absent"]["attributes"]["structure"] == {"contents": None, "count": None}


def test_nothing_is_made_or_written_inside_a_file(server, client, made):
    register(client, made)
    headers = {"Authorization": f"Apikey {server.key}"}
    body = {"id": "x", "structure_family": "container", "metadata": {}, "specs": [], "data_sources": []}
    for parent, status in (("scan", 409), ("scan/entry", 404)):
        answer = httpx.post(f"{server.url}/api/v1/metadata/files/{parent}", json=body, headers=headers, timeout=100)
        assert answer.status_code == status, answer.text
    put = httpx.put(
        f"{server.url}/api/v1/array/full/files/scan/entry/data/images", content=b"x" * 120, headers=headers, timeout=100
    )
    assert put.status_code == 405


def test_a_file_is_exported_with_what_is_inside(server, client, made, tmp_path):
    register(client, made, dataset="/entry/data")
    client["scan"].export(str(tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as out:
        np.testing.assert_array_equal(out["images"][()], IMAGES)
    client["scan/images"].export(str(tmp_path / "out.csv"), slice=(0,))
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "out.csv", delimiter=","), IMAGES[0])


def test_the_file_itself_is_downloaded_as_it_is_and_nothing_inside_is_an_asset(server, client, made, tmp_path):
    register(client, made)
    client["scan"].raw_export(str(tmp_path / "raw"))
    (found,) = [path for path in (tmp_path / "raw").rglob("*") if path.is_file()]
    assert found.read_bytes() == made.read_bytes()
    assert get(server, "asset/bytes/files/scan/entry", id=1).status_code == 405


def test_groups_that_hold_each_other_end_where_the_depth_does(server, client, data):
    path = data / "ring.h5"
    with h5py.File(path, "w") as file:
        file["a/x"] = np.arange(2)
        file["a/self"] = file["a"]
        file["a/soft"] = h5py.SoftLink("/a")
        file["loop"] = h5py.SoftLink("/loop")
    register(client, path)
    assert get(server, "metadata/files/scan").status_code == 200
    assert get(server, "metadata/files/scan/loop").status_code == 410
    np.testing.assert_array_equal(client["scan/a/self/soft/self/x"].read(), [0, 1])
