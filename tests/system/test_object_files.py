"""Files in a bucket, named by ``s3://``, are read as files on a disk are: the same values, the same errors.

If these fail, a run whose frames lie in a bucket has other pixels than its file, parts of two uploads are mixed, each
frame costs a walk through the whole file, or a bucket that refuses looks like data that was never written.
"""

import asyncio
import contextlib
import io
import socket
import sys

import numpy as np
import pytest
import tifffile
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore import from_uri
from flystore.cli import main
from flystore.client import MissingRows
from flystore.http import Access, build_app
from flystore.model.errors import (
    DeadlineExceeded,
    FlystoreError,
    Misconfigured,
    MissingAsset,
    NoAccess,
    NotReady,
    OutsideRoots,
    Truncated,
    Unavailable,
    Unreadable,
)
from flystore.model.frames import FrameEncoder
from flystore.readers._h5file import H5_LOCK
from flystore.readers._hdf5 import open_hdf5
from flystore.readers._registry import open_rows
from flystore.service import Service
from flystore.service.changed import change
from flystore.storage import Bucket, NearNames, PathMap, Roots, _objects, _opened_object
from flystore.testing.buckets import s3_server
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of
from flystore.testing.serving import serving

h5py = pytest.importorskip("h5py")
hdf5plugin = pytest.importorskip("hdf5plugin")
pytest.importorskip("moto")
pytest.importorskip("obstore")

KEY = "k" * 32
FRAMES, SHAPE = 12, (64, 96)
VALUES = (np.arange(FRAMES * 64 * 96) % 65_521).astype("<u2").reshape(FRAMES, *SHAPE)
KINDS = {
    "contiguous": {},
    "raw": {"chunks": (1, *SHAPE)},
    "tiles": {"chunks": (5, 20, 50)},
    "blosc": {"chunks": (1, *SHAPE), **hdf5plugin.Blosc(cname="zstd")},
    "gzip": {"chunks": (4, *SHAPE), "compression": "gzip"},
}
TIFF = "multipart/related;type=image/tiff"


def hdf5(values=VALUES, **kinds):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, how in (kinds or KINDS).items():
            file.create_dataset(name, data=values, **how)
    return stream.getvalue()


def tiff(values):
    stream = io.BytesIO()
    tifffile.imwrite(stream, values)
    return stream.getvalue()


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        server.make_bucket("facility")
        server.make_bucket("secret")
        yield server


@pytest.fixture(scope="module")
def bucket(s3):
    found = Bucket("s3://facility/data")
    found.put("x.h5", hdf5())
    for row, frame in enumerate(VALUES):
        if row != 7:
            found.put(f"shots/img_{row:06d}.tiff", tiff(frame))
    Bucket("s3://facility/other").put("x.h5", hdf5())
    return found


@pytest.fixture(scope="module")
def held(s3, bucket, tmp_path_factory):
    """A service whose read root is in the bucket, and its URL."""
    store = tmp_path_factory.mktemp("objects") / "store"
    maps = [PathMap.parse("/beamline/data=s3://facility/data")]
    with (
        Service.open(store, read=["s3://facility/data"], maps=maps) as service,
        serving(build_app(service, Access.of(KEY))) as url,
    ):
        yield service, url


def stored(service, uid, keys, count=FRAMES):
    """Store a run whose keys are (uri, mimetype, parameters); return its documents."""
    run = RunDocuments(uid)
    stream = run.stream("primary", **{key: external(SHAPE, "<u2") for key in keys})
    for key, (uri, mimetype, parameters) in keys.items():
        stream.resource(key, uri, mimetype, **parameters)
        stream.frames(key, 0, count, 1, count + 1)
    run.stop()
    service.ingest.batch(run.uid, 0, 1, frames_of(run.documents, FrameEncoder()))
    return run


def in_hdf5(uri, name="raw"):
    return (uri, "application/x-hdf5", {"dataset": name, "chunk_shape": [1]})


@pytest.fixture(scope="module")
def run(held):
    keys = {name: in_hdf5("s3://facility/data/x.h5", name) for name in KINDS}
    keys["mapped"] = in_hdf5("file://localhost/beamline/data/x.h5")
    stored(held[0], "run-of-objects", keys)
    return "run-of-objects"


def test_the_own_client_reads_what_is_in_the_bucket(held, run):
    with from_uri(held[1], api_key=KEY) as client:
        stream = client[run]["primary"]
        for name in (*KINDS, "mapped"):
            np.testing.assert_array_equal(stream[name][...], VALUES)
            for index in (3, np.s_[2:9:3], np.s_[::-1, 5:20, ::7], np.s_[:, 1, 2]):
                np.testing.assert_array_equal(stream[name][index], VALUES[index])


def test_stock_tiled_reads_the_same(held, run):
    from tiled.client import from_uri as stock_from_uri

    client = stock_from_uri(f"{held[1]}/api/v1", api_key=KEY)
    try:
        for name in KINDS:
            np.testing.assert_array_equal(np.asarray(client[run]["primary"][name].read()), VALUES)
            np.testing.assert_array_equal(np.asarray(client[run]["primary"][name][4:6]), VALUES[4:6])
    finally:
        client.context.http_client.close()


def test_a_sequence_of_images_has_its_gap_where_an_object_is_missing(held):
    stored(held[0], "shots", {"img": ("s3://facility/data/shots/", TIFF, {"template": "img_{:06d}.tiff"})})
    there = [row for row in range(FRAMES) if row != 7]
    with from_uri(held[1], api_key=KEY) as client:
        array = client["shots"]["primary"]["img"]
        with pytest.warns(MissingRows):
            np.testing.assert_array_equal(array[...], VALUES[there])
        np.testing.assert_array_equal(array[7], VALUES[8])


def test_a_frame_costs_a_look_and_a_request_and_no_walk_through_the_file(bucket, s3):
    roots = Roots(["s3://facility/data"])
    for name in ("contiguous", "raw", "blosc"):
        for frame in (2, 3):
            s3.requests.clear()
            rows = open_rows(roots, "s3://facility/data/x.h5", "application/x-hdf5", {"dataset": name}, VALUES.dtype)
            found = rows.read(np.array([frame]), tuple(map(range, SHAPE)))
            rows.close()
            np.testing.assert_array_equal(found[0], VALUES[frame])
        assert [method for method, path in s3.requests if path.endswith("x.h5")] == ["HEAD", "GET"], name


def test_nor_does_a_frame_that_is_asked_for_by_a_client(held, run, s3):
    url = f"{held[1]}/api/v1/array/full/{run}/primary"
    headers = {"Authorization": f"Apikey {KEY}", "Accept": "application/octet-stream"}
    with urllib3.PoolManager(headers=headers) as pool:
        for frame in (2, 3):
            s3.requests.clear()
            answer = pool.request("GET", f"{url}/blosc?slice={frame}")
            assert answer.data == VALUES[frame].tobytes()
        asked = [method for method, path in s3.requests if path.endswith("x.h5")]
    # Of a run that has just ended the files are looked at again before they are read: another HEAD, now and then.
    assert asked.count("GET") == 1
    assert len(asked) <= 4


def test_chunks_that_lie_side_by_side_come_with_one_request(held, run, s3):
    with from_uri(held[1], api_key=KEY) as client:
        array = client[run]["primary"]["blosc"]
        np.testing.assert_array_equal(array[0:2], VALUES[0:2])
        s3.requests.clear()
        np.testing.assert_array_equal(array[2:10], VALUES[2:10])
    assert [method for method, path in s3.requests].count("GET") <= 2  # not eight


def failing(service, uid, uri, name="raw"):
    stored(service, uid, {"img": in_hdf5(uri, name)})


def error_of(held, uid):
    with from_uri(held[1], api_key=KEY) as client, pytest.raises(FlystoreError) as caught:
        client[uid]["primary"]["img"][0]
    return caught.value


def test_a_missing_object_is_missing_and_named_as_registered(held):
    failing(held[0], "missing", "s3://facility/data/nothing.h5")
    error = error_of(held, "missing")
    assert isinstance(error, MissingAsset)
    assert "s3://facility/data/nothing.h5" in str(error)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://facility/other/x.h5",
        "s3://facility/datax/x.h5",
        "s3://secret/data/x.h5",
        "s3://facility/nothing.h5",
    ],
)
def test_what_is_outside_the_roots_is_not_even_asked_for(s3, bucket, uri):
    s3.requests.clear()
    with pytest.raises(OutsideRoots):
        Roots(["s3://facility/data"]).open(uri)
    assert not s3.requests


@pytest.mark.parametrize("uri", ["s3://facility/data/../other/x.h5", "s3://facility/data/%2e%2e/other/x.h5"])
def test_no_name_leads_out_of_the_roots(s3, bucket, uri):
    with pytest.raises(FlystoreError) as caught:
        Roots(["s3://facility/data"]).open(uri)
    assert caught.value.kind in ("invalid-request", "missing-asset", "outside-roots")


def test_a_bucket_does_not_open_files_and_a_directory_no_objects(tmp_path, s3):
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(OutsideRoots):
        Roots(["s3://facility/data"]).open(f"file://localhost{tmp_path}/x.h5")
    with pytest.raises(OutsideRoots):
        Roots([tmp_path]).open("s3://facility/data/x.h5")


def test_a_bucket_that_refuses_says_so(held, s3, bucket):
    bucket.put("closed.h5", hdf5())
    failing(held[0], "refused", "s3://facility/data/closed.h5")
    s3.refused = "closed.h5"
    try:
        error = error_of(held, "refused")
    finally:
        s3.refused = ""
    assert isinstance(error, NoAccess)
    assert "s3://facility/data/closed.h5 is refused by the bucket" in str(error)


def test_a_truncated_object_is_truncated(held, bucket):
    whole = hdf5(contiguous={})
    bucket.put("short.h5", whole[: len(whole) - VALUES[0].nbytes])
    failing(held[0], "short", "s3://facility/data/short.h5", "contiguous")
    assert isinstance(error_of(held, "short"), Unreadable)
    with Roots(["s3://facility/data"]).open("s3://facility/data/short.h5") as file, pytest.raises(Truncated):
        file.read(len(whole) - 10, 10)


def test_parts_of_two_versions_are_never_mixed(bucket):
    bucket.put("twice.h5", hdf5(raw=KINDS["raw"]))
    roots = Roots(["s3://facility/data"])
    rows = open_rows(roots, "s3://facility/data/twice.h5", "application/x-hdf5", {"dataset": "raw"}, VALUES.dtype)
    rest = tuple(map(range, SHAPE))
    np.testing.assert_array_equal(rows.read(np.arange(3), rest), VALUES[:3])
    bucket.put("twice.h5", hdf5(VALUES + 1, raw=KINDS["raw"]))
    with pytest.raises(NotReady, match="replaced while it was read"):
        rows.read(np.arange(3), rest)
    rows.close()
    again = open_rows(roots, "s3://facility/data/twice.h5", "application/x-hdf5", {"dataset": "raw"}, VALUES.dtype)
    np.testing.assert_array_equal(again.read(np.arange(3), rest), VALUES[:3] + 1)
    again.close()


def test_an_object_of_the_same_length_put_in_its_place_is_another_one(bucket):
    roots = Roots(["s3://facility/data"])
    bucket.put("same", b"old")
    with roots.open("s3://facility/data/same") as old:
        bucket.put("same", b"new")
        with roots.open("s3://facility/data/same") as new:
            assert old.fingerprint != new.fingerprint
            assert new.read(0, 3) == b"new"


def test_a_link_to_another_file_is_followed_within_the_roots_only(bucket):
    for target, expected in (("x.h5", None), ("../other/x.h5", FlystoreError), ("s3://secret/x.h5", FlystoreError)):
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            file["link"] = h5py.ExternalLink(target, "/raw")
        bucket.put("linked.h5", stream.getvalue())

        def opened():
            return open_rows(
                Roots(["s3://facility/data"]),
                "s3://facility/data/linked.h5",
                "application/x-hdf5",
                {"dataset": "link"},
                VALUES.dtype,
            )

        if expected is None:
            rows = opened()
            np.testing.assert_array_equal(rows.read(np.arange(2), tuple(map(range, SHAPE))), VALUES[:2])
            rows.close()
        else:
            with pytest.raises(expected):
                opened()


def test_a_key_with_odd_characters_is_found_as_it_stands_and_percent_encoded(bucket):
    bucket.put("50% of #1/ü x.bin", b"odd")
    roots = Roots(["s3://facility/data"])
    for uri in ("s3://facility/data/50% of #1/ü x.bin", "s3://facility/data/50%25%20of%20%231/%C3%BC%20x.bin"):
        with roots.open(uri) as file:
            assert file.read(0, 3) == b"odd"


def test_the_file_itself_can_be_had(held, run):
    with urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}"}) as pool:
        found = pool.request("GET", f"{held[1]}/api/v1/metadata/{run}/primary/raw?include_data_sources=true").json()
        asset = found["data"]["attributes"]["data_sources"][0]["assets"][0]
        assert asset["data_uri"] == "s3://facility/data/x.h5"
        answer = pool.request("GET", f"{held[1]}/api/v1/asset/bytes/{run}/primary/raw?id={asset['id']}")
    assert h5py.File(io.BytesIO(answer.data))["raw"][5].tobytes() == VALUES[5].tobytes()


def test_a_stock_client_registers_an_array_and_a_table_in_the_bucket(held, bucket):
    import pandas
    from tiled.client import from_uri as stock_from_uri
    from tiled.structures.array import ArrayStructure
    from tiled.structures.core import StructureFamily
    from tiled.structures.data_source import Asset, DataSource, Management
    from tiled.structures.table import TableStructure

    frame = pandas.DataFrame({"a": np.arange(5), "b": np.linspace(0, 1, 5)})
    stream = io.BytesIO()
    frame.to_parquet(stream)
    bucket.put("t.parquet", stream.getvalue())
    bucket.put("t.csv", frame.to_csv(index=False).encode())
    stream = io.BytesIO()
    np.save(stream, VALUES)
    bucket.put("v.npy", stream.getvalue())
    client = stock_from_uri(f"{held[1]}/api/v1", api_key=KEY)

    def source(name, mimetype, structure, family):
        assets = [Asset(data_uri=f"s3://facility/data/{name}", is_directory=False, parameter="data_uri", num=0)]
        return DataSource(
            structure_family=family,
            mimetype=mimetype,
            structure=structure,
            parameters={},
            management=Management.external,
            assets=assets,
        )

    try:
        for name, mimetype in (("t.parquet", "application/x-parquet"), ("t.csv", "text/csv")):
            made = client.new(
                structure_family=StructureFamily.table,
                data_sources=[source(name, mimetype, TableStructure.from_pandas(frame), StructureFamily.table)],
                metadata={},
                specs=[],
                key=name.replace(".", "_"),
            )
            pandas.testing.assert_frame_equal(made.read(), frame)
        made = client.new(
            structure_family=StructureFamily.array,
            data_sources=[
                source("v.npy", "application/x-npy", ArrayStructure.from_array(VALUES), StructureFamily.array)
            ],
            metadata={},
            specs=[],
            key="v_npy",
        )
        np.testing.assert_array_equal(np.asarray(made.read()), VALUES)
    finally:
        client.context.http_client.close()


def test_a_bucket_that_is_away_is_unavailable_and_a_read_works_when_it_is_back(s3, bucket):
    roots = Roots(["s3://facility/data"])
    s3.stop()
    try:
        with pytest.raises(Unavailable, match="cannot be reached"):
            roots.open("s3://facility/data/x.h5")
    finally:
        s3.start()
    with roots.open("s3://facility/data/x.h5") as file:
        assert file.read(0, 4) == b"\x89HDF"


def test_a_root_that_is_no_bucket_ends_the_start(tmp_path, monkeypatch):
    for root in ("s3://", "s3://x", "s3://facility//data"):
        with pytest.raises(Misconfigured, match="s3://"):
            Service.open(tmp_path / "store", read=[root])
    monkeypatch.setattr("sys.argv", ["flystore", "serve", str(tmp_path / "store"), "--read", "s3://", "--port", "0"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2


@pytest.fixture(scope="module")
def both(bucket, tmp_path_factory):
    """The same file on a disk and in the bucket: how to open a dataset of either."""
    place = tmp_path_factory.mktemp("local")
    (place / "x.h5").write_bytes(hdf5())

    def opened(name):
        for roots, uri in (
            (Roots([place]), f"file://localhost{place}/x.h5"),
            (Roots(["s3://facility/data"]), "s3://facility/data/x.h5"),
        ):
            yield open_rows(roots, uri, "application/x-hdf5", {"dataset": name}, VALUES.dtype)

    return opened


def parts(length):
    return st.builds(
        lambda a, b, step: range(min(a, b), max(a, b) + 1, step),
        st.integers(0, length - 1),
        st.integers(0, length - 1),
        st.integers(1, length),
    )


@given(
    name=st.sampled_from(sorted(KINDS)),
    rows=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=8),
    rest=st.tuples(parts(SHAPE[0]), parts(SHAPE[1])),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_is_the_same_from_a_disk_and_from_a_bucket(both, name, rows, rest):
    local, remote = both(name)
    try:
        rows = np.array(rows)
        np.testing.assert_array_equal(local.read(rows, rest), remote.read(rows, rest))
        np.testing.assert_array_equal(local.present(rows), remote.present(rows))
        assert (local.shape, local.dtype, local.chunks) == (remote.shape, remote.dtype, remote.chunks)
    finally:
        local.close()
        remote.close()


def test_the_lock_of_hdf5_is_never_held_while_the_bucket_is_asked(bucket, monkeypatch):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["link"] = h5py.ExternalLink("lately.h5", "/gzip")
    bucket.put("linking.h5", stream.getvalue())
    bucket.put("lately.h5", hdf5(VALUES + 3))
    owned = []
    real_read, real_stat = Bucket.read_into, Bucket.stat

    def read_into(self, *args, **kwargs):
        owned.append(H5_LOCK._is_owned())
        return real_read(self, *args, **kwargs)

    def stat(self, *args, **kwargs):
        owned.append(H5_LOCK._is_owned())
        return real_stat(self, *args, **kwargs)

    monkeypatch.setattr(Bucket, "read_into", read_into)
    monkeypatch.setattr(Bucket, "stat", stat)
    roots = Roots(["s3://facility/data"])
    rows = open_rows(roots, "s3://facility/data/linking.h5", "application/x-hdf5", {"dataset": "link"}, VALUES.dtype)
    np.testing.assert_array_equal(rows.read(np.arange(FRAMES), tuple(map(range, SHAPE))), VALUES + 3)
    rows.close()
    assert len(owned) > 3
    assert not any(owned)


def test_the_event_loop_never_asks_a_bucket(held, run, s3, monkeypatch):
    loops = []

    def noting(name):
        real = getattr(Bucket, name)

        def noted(self, *args, **kwargs):
            with contextlib.suppress(RuntimeError):
                loops.append(asyncio.get_running_loop())
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Bucket, name, noted)

    for name in ("stat", "read_into", "children", "listed"):
        noting(name)
    with from_uri(held[1], api_key=KEY) as client:
        for _ in range(3):
            np.testing.assert_array_equal(client[run]["primary"]["raw"][1, :2, :2], VALUES[1, :2, :2])
            np.testing.assert_array_equal(client[run]["primary"]["mapped"][1, :2, :2], VALUES[1, :2, :2])
    assert s3.requests
    assert not loops
    near = NearNames()
    near.note("file://localhost/beamline/data/x.h5", "s3://facility/data/x.h5")
    assert "file://localhost/beamline/data/x.h5" not in near


def test_a_settled_run_is_not_served_what_was_put_in_its_place():
    old, new, longer = (-5, 100, 10**18), (-6, 100, 10**18), (-7, 200, 2 * 10**18)
    assert change(old, old, settled=True) is None
    assert "the object was replaced" in change(old, new, settled=True)
    assert "the object was replaced" in change(old, longer, settled=True)
    assert change(old, longer, settled=False) is None  # an object grows by being put anew


def test_a_bucket_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(_objects, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(_objects, "RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        with pytest.raises(DeadlineExceeded, match="does not answer in time"):
            Bucket("s3://facility").stat("data/x.h5")


def test_without_the_library_the_start_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    _objects._obstore.cache_clear()
    try:
        with pytest.raises(Misconfigured, match=r"pip install 'flystore\[objects\]'"):
            Service.open(tmp_path / "store", read=["s3://facility/data"])
    finally:
        _objects._obstore.cache_clear()


def test_a_file_whose_index_lies_all_over_it_is_read_all_the_same(bucket, s3, monkeypatch):
    monkeypatch.setattr(_opened_object, "_MOST_TURNS", 0)
    bucket.put("scattered.h5", hdf5(VALUES + 5))
    roots = Roots(["s3://facility/data"])
    name = "s3://facility/data/scattered.h5"
    with contextlib.closing(open_rows(roots, name, "application/x-hdf5", {"dataset": "gzip"}, VALUES.dtype)) as rows:
        np.testing.assert_array_equal(rows.read(np.arange(5), tuple(map(range, SHAPE))), VALUES[:5] + 5)
    bucket.put("scattered.h5", hdf5(VALUES + 6))
    with roots.open(name) as file:
        s3.refused = "scattered.h5"
        try:
            with pytest.raises(NoAccess):
                open_hdf5(roots, file, "gzip")
        finally:
            s3.refused = ""


def test_groups_and_datasets_inside_a_registered_file_are_nodes(held, bucket):
    from tiled.client import from_uri as stock_from_uri
    from tiled.structures.core import StructureFamily
    from tiled.structures.data_source import Asset, DataSource, Management

    asset = Asset(data_uri="s3://facility/data/x.h5", is_directory=False, parameter="data_uris", num=0)
    source = DataSource(
        structure_family=StructureFamily.container,
        structure=None,
        mimetype="application/x-hdf5",
        parameters={},
        management=Management.external,
        assets=[asset],
    )
    client = stock_from_uri(f"{held[1]}/api/v1", api_key=KEY)
    try:
        inside = client.new("container", [source], key="scan-in-a-bucket", metadata={}, specs=[])
        assert sorted(inside) == sorted(KINDS)
        np.testing.assert_array_equal(np.asarray(inside["blosc"][3]), VALUES[3])
    finally:
        client.context.http_client.close()
