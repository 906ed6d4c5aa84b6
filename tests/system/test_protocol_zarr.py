"""Any array and any stream opens with zarr-python and xarray over HTTP, in both formats, with the values stored.

If these fail, a program that reads Zarr computes with other values than were measured, or with fill values
where a file could not be read.
"""

import json
import urllib.error
import urllib.request

import h5py
import numpy as np
import pytest
import xarray
import zarr
from fsspec.implementations.http import HTTPFileSystem
from zarr.storage import FsspecStore

from flystore import RunWriter, from_uri
from flystore.http import Access, build_app
from flystore.model.structures import (
    ZARR_MIMETYPE,
    ArrayStructure,
    Asset,
    DataSource,
    Family,
    Management,
)
from flystore.service import NewNode
from flystore.testing.beamline import Camera, Defects, Panda, flyscan, run_engine
from flystore.testing.serving import serving

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:.*does not have a Zarr V3 specification.*",
    "ignore:The data type:UserWarning",
    "ignore:The dtype:UserWarning",
)

FORMATS = pytest.mark.parametrize("version", [2, 3])


def get(server, path, key=None, **headers):
    """Return status, headers and body of an answer; `key` empty sends none."""
    key = server.key if key is None else key
    headers |= {"Authorization": f"Apikey {key}"} if key else {}
    request = urllib.request.Request(f"{server.url}/zarr/{path}", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def document(server, path):
    status, _, body = get(server, path)
    assert status == 200, body
    return json.loads(body)


@pytest.fixture
def store(server):
    """Return stores over HTTP; what they opened is closed afterwards."""
    opened = []

    def make(version, *path):
        headers = {"Authorization": f"Apikey {server.key}"}
        fs = HTTPFileSystem(asynchronous=True, client_kwargs={"headers": headers}, skip_instance_cache=True)
        opened.append(fs)
        url = "/".join((server.url, "zarr", f"v{version}", *path))
        return FsspecStore(fs, path=url, read_only=True)

    yield make

    async def close(fs):
        if fs._session is not None:
            await fs._session.close()

    from zarr.core.sync import sync

    for fs in opened:
        sync(close(fs))


def put(server, path, values, *, chunks=None, dims=None, metadata=None, write=True):
    """Have the service keep an array, as if a client had sent it."""
    structure = ArrayStructure.of(values.dtype, values.shape, chunks, dims)
    source = DataSource(Family.ARRAY, ZARR_MIMETYPE, structure.to_wire(), management=Management.WRITABLE)
    new = NewNode(path[-1], Family.ARRAY, metadata or {}, (), (source,))
    server.service.nodes.create(path[:-1], new)
    if write and values.nbytes:
        server.service.nodes.write_array(path, values.tobytes())


def container(server, *path, specs=()):
    server.service.nodes.create(path[:-1], NewNode(path[-1], Family.CONTAINER, {}, specs, ()))


def some(dtype, shape):
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(0)
    if dtype.kind in "SU":
        return rng.integers(0, 1000, shape).astype(dtype)
    if dtype.fields is not None:
        found = np.zeros(shape, dtype)
        for name in dtype.names:
            found[name] = some(dtype[name], shape)
        return found
    if dtype.kind == "V":
        return np.ndarray(shape, dtype, rng.integers(0, 255, (*shape, dtype.itemsize)).astype("u1"))
    return rng.integers(0, 100, shape).astype(dtype)


def same(found, values):
    return found.shape == values.shape and np.asarray(found).astype(values.dtype).tobytes() == values.tobytes()


DTYPES = ["?", "<i2", ">i4", "<u8", "<f4", ">f8", "<c16", "<M8[ns]", ">M8[us]", "<m8[s]", "S4", "<U3", ">U5", "V3"]


@FORMATS
@pytest.mark.parametrize("dtype", [*DTYPES, [("a", ">i4"), ("b", "<f8")], [("a", "<i4"), ("s", "S3")]], ids=str)
def test_an_array_that_is_kept_reads_as_it_was_sent(server, store, version, dtype):
    for shape in [(), (7,), (0, 3), (4, 3, 5)]:
        values, key = some(dtype, shape), f"a{len(shape)}"
        chunks = tuple((2,) * (n // 2) + ((1,) if n % 2 else ()) or (0,) for n in shape)
        put(server, (key,), values, chunks=chunks)
        assert same(zarr.open_array(store(version, key), mode="r", zarr_format=version)[...], values), shape


@FORMATS
def test_chunks_that_are_kept_are_sent_as_they_are_stored(server, version):
    values = some("<i4", (6, 5))
    put(server, ("a",), values, chunks=((2, 2, 2), (5,)))
    (directory,) = (server.directory / "arrays").glob("[0-9]*")
    name = "a/1.0" if version == 2 else "a/c/1/0"
    body = get(server, f"v{version}/{name}")[2]
    on_disk = (directory / "c" / "1" / "0").read_bytes()
    assert body == (on_disk[:-4] if version == 2 else on_disk)


@FORMATS
def test_chunks_of_unequal_lengths_become_a_uniform_grid(server, store, version):
    values = some("<f8", (10, 4))
    put(server, ("a",), values, chunks=((3, 5, 2), (1, 3)))
    found = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)
    assert found.chunks == (5, 3)
    assert same(found[...], values)


@FORMATS
def test_a_part_that_nobody_wrote_reads_as_everywhere(server, store, version):
    put(server, ("a",), np.zeros((4, 2)), chunks=((2, 2), (2,)), write=False)
    server.service.nodes.write_block(("a",), (1, 0), np.full((2, 2), 7.0).tobytes())
    assert get(server, f"v{version}/a/" + ("0.0" if version == 2 else "c/0/0"))[0] == 200
    found = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)[...]
    assert found.tolist() == [[0, 0], [0, 0], [7, 7], [7, 7]]


@FORMATS
def test_an_array_that_grew_goes_on_in_the_same_chunks(server, store, version):
    put(server, ("a",), np.arange(4.0), chunks=((4,),))
    before = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)
    server.service.nodes.patch_array(("a",), np.arange(4.0, 10).tobytes(), offset=(4,), shape=(6,), extend=True)
    after = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)
    assert before[...].tolist() == [0, 1, 2, 3]
    assert after[...].tolist() == list(range(10))
    assert before.chunks == after.chunks


# --- groups ------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_container_is_a_group_in_which_one_name_has_one_length(server, store, version, consolidated):
    container(server, "g")
    put(server, ("g", "image"), some("<u2", (4, 3)), dims=("y", "x"), metadata={"units": "counts"})
    put(server, ("g", "line"), some("<f8", (5,)), dims=("x",))
    put(server, ("g", "twice"), some("<f8", (4, 4)), dims=("y", "y"))
    put(server, ("g", "bare"), some("<f8", (2, 2)))
    put(server, ("g", "precise"), some("g", (2,)))
    found = xarray.open_zarr(store(version, "g"), consolidated=consolidated, zarr_format=version).load()
    assert {name: variable.dims for name, variable in found.variables.items()} == {
        "image": ("y", "x"),
        "line": ("line_x",),
        "twice": ("y", "twice_dim1"),
        "bare": ("bare_dim0", "bare_dim1"),
    }
    assert found["image"].attrs == {"units": "counts"}
    for name in found.variables:
        assert same(found[name].values, np.asarray(server_values(server, "g", name)))


def server_values(server, *path):
    with from_uri(server.url, api_key=server.key) as client:
        for part in path:
            client = client[part]
        return client.read()


@FORMATS
def test_metadata_that_xarray_would_take_for_instructions_changes_no_value(server, store, version):
    container(server, "g")
    put(server, ("g", "a"), np.arange(3.0), dims=("x",), metadata={"units": "s", "dtype": "number", "shape": [3]})
    found = xarray.open_zarr(store(version, "g"), zarr_format=version).load()
    assert found["a"].dtype == np.float64
    assert found["a"].values.tolist() == [0, 1, 2]


@FORMATS
def test_groups_in_groups_open_as_a_tree(server, store, version):
    container(server, "g")
    container(server, "g", "inner")
    put(server, ("g", "inner", "a"), some("<i4", (3,)))
    for consolidated in (True, False):
        group = zarr.open_group(store(version, "g"), mode="r", zarr_format=version, use_consolidated=consolidated)
        assert list(group.group_keys()) == ["inner"]
        assert same(group["inner/a"][...], some("<i4", (3,)))


KEYS = {
    "x": {"source": "sim", "dtype": "number", "shape": [], "units": "s"},
    "name": {"source": "sim", "dtype": "string", "shape": []},
    "on": {"source": "sim", "dtype": "boolean", "shape": []},
    "wave": {"source": "sim", "dtype": "array", "shape": [5], "dtype_numpy": "<f8"},
    "loose": {"source": "sim", "dtype": "array", "shape": [None], "dtype_numpy": "<f8"},
}


def write_run(server, tmp_path, rows=6):
    documents = [
        ("start", {"uid": "run-1", "time": 1000.0, "scan_id": 1}),
        ("descriptor", {"uid": "d", "run_start": "run-1", "name": "primary", "time": 1000.0, "data_keys": KEYS}),
    ]
    for number in range(1, rows + 1):
        data = {
            "x": 0.5 * number,
            "name": "n" * number,
            "on": number % 2 == 0,
            "wave": np.arange(5.0) + number,
            "loose": np.arange(float(number)),
        }
        stamps = dict.fromkeys(data, 1000.0 + number)
        event = {"uid": f"e{number}", "descriptor": "d", "seq_num": number, "time": 1000.0 + number}
        documents.append(("event", {**event, "data": data, "timestamps": stamps}))
    documents.append(("stop", {"uid": "s", "run_start": "run-1", "time": 2000.0, "exit_status": "success"}))
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        for name, doc in documents:
            writer(name, doc)
        writer.flush(timeout=100)


@FORMATS
@pytest.mark.parametrize("consolidated", [True, False])
def test_a_stream_is_one_group_with_columns_beside_arrays(server, store, tmp_path, version, consolidated):
    write_run(server, tmp_path)
    found = xarray.open_zarr(store(version, "run-1", "primary"), consolidated=consolidated, zarr_format=version).load()
    with from_uri(server.url, api_key=server.key) as client:
        expected = client["run-1"]["primary"].read(["time", "seq_num", "x", "name", "on", "wave"])
    assert found["x"].dims == ("time",)
    assert found["wave"].dims[0] == "time"
    assert found.sizes["time"] == 6
    assert "loose" not in found
    for name in expected.variables:
        assert found[name].values.tolist() == expected[name].values.tolist(), name


@FORMATS
def test_a_table_is_a_group_of_its_columns(server, store, tmp_path, version):
    write_run(server, tmp_path)
    group = zarr.open_group(store(version, "run-1", "primary", "internal"), mode="r", zarr_format=version)
    assert group["x"][...].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert group["x"][2:4].tolist() == [1.5, 2.0]


@FORMATS
def test_the_older_layout_opens_too(server, store, tmp_path, version):
    write_run(server, tmp_path)
    group = zarr.open_group(store(version, "run-1", "streams", "primary"), mode="r", zarr_format=version)
    assert group["x"].shape == (6,)


@FORMATS
def test_a_reader_that_opened_a_stream_while_it_grew_gets_the_rows_it_knows(server, store, tmp_path, version):
    keys = {"x": KEYS["x"]}
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        writer("start", {"uid": "run-1", "time": 1.0})
        descriptor = {"uid": "d", "run_start": "run-1", "name": "primary", "time": 1.0, "data_keys": keys}
        writer("descriptor", descriptor)
        opened = []
        for number in range(1, 4):
            event = {"uid": f"e{number}", "descriptor": "d", "seq_num": number, "time": 1.0, "data": {"x": number}}
            writer("event", {**event, "timestamps": {"x": 1.0}})
            writer.wait("run-1", number, until="readable", timeout=100)
            opened.append(zarr.open_array(store(version, "run-1", "primary", "x"), mode="r", zarr_format=version))
        assert [array[...].tolist() for array in opened] == [[1], [1, 2], [1, 2, 3]]


def test_the_stream_of_a_flyscan_opens_with_xarray_by_its_address(server):
    """As the how-to page says it, without a store of one's own."""
    run = fly(server, Camera(server.data, compression="gzip", shuffle=True))
    with from_uri(server.url, api_key=server.key) as client:
        expected = client[run]["primary"]["camera"].read()
    for version in (2, 3):
        found = xarray.open_dataset(
            f"{server.url}/zarr/v{version}/{run}/primary",
            engine="zarr",
            storage_options={"headers": {"Authorization": f"Apikey {server.key}"}},
        )
        assert same(found["camera"].values, expected)
        assert found["camera"].dims[0] == "time"


def fly(server, *cameras, events=4):
    with run_engine() as engine, RunWriter(server.url, api_key=server.key, journal=server.directory / "j") as writer:
        uids = []
        engine.subscribe(lambda name, doc: uids.append(doc["uid"]), "start")
        engine.subscribe(writer)
        engine(flyscan(Panda(server.data), list(cameras), events, burst=1))
        writer.flush(timeout=100)
    return uids[0]


# --- files of others ---------------------------------------------------------------------------


def register(server, name, values, *, chunks, seen=None, **storage):
    """Register an HDF5 dataset with chunks of a shape, announced as they are."""
    with h5py.File(server.data / f"{name}.h5", "w") as file:
        file.create_dataset("d", data=values, chunks=chunks, **storage)
    seen = values.shape if seen is None else seen
    grid = (*chunks[:1], *(1,) * (len(seen) - len(chunks)), *chunks[1:])
    lengths = [(size,) * (n // size) + ((n % size,) if n % size else ()) for n, size in zip(seen, grid, strict=True)]
    structure = ArrayStructure.of(values.dtype, seen, tuple(lengths))
    asset = Asset(f"file://localhost{server.data}/{name}.h5", parameter="data_uris", num=0)
    source = DataSource(Family.ARRAY, "application/x-hdf5", structure.to_wire(), {"dataset": "d"}, {}, (asset,))
    server.service.nodes.create((), NewNode(name, Family.ARRAY, {}, (), (source,)))


PIPELINES = {
    "plain": {},
    "gzip": {"compression": "gzip", "compression_opts": 6},
    "shuffled": {"compression": "gzip", "shuffle": True},
    "summed": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "only-summed": {"fletcher32": True},
}


@pytest.mark.parametrize("storage", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("dtype", ["<u2", ">f8"])
def test_chunks_of_hdf5_files_are_sent_as_they_are_stored(server, store, storage, dtype):
    values = some(dtype, (7, 6, 4))
    register(server, "a", values, chunks=(2, 3, 4), **storage)
    with h5py.File(server.data / "a.h5") as file:
        stored = file["d"].id.read_direct_chunk((2, 3, 0))[1]
    assert get(server, "v2/a/1.1.0")[2] == stored
    if not storage:
        assert get(server, "v3/a/c/1/1/0")[2] == stored
    for version in (2, 3):
        assert same(zarr.open_array(store(version, "a"), mode="r", zarr_format=version)[...], values)


def external_run(server, tmp_path, values, ranges, *, item, chunk_shape, parameters=None, **storage):
    """Store a run whose frames are those of `values` in the file x.h5; `ranges` are (index, seq_num, count)."""
    with h5py.File(server.data / "x.h5", "w") as file:
        file.create_dataset("x", data=values, **storage)
    key = {"dtype": "array", "shape": item, "dtype_numpy": "<u2", "source": "s", "external": "STREAM:"}
    given = {"dataset": "x", "chunk_shape": chunk_shape, **(parameters or {})}
    uri = f"file://localhost{server.data}/x.h5"
    run = {"run_start": "r"}
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        writer("start", {"uid": "r", "time": 1.0})
        writer("descriptor", {"uid": "d", "name": "primary", "time": 1.0, "data_keys": {"x": key}} | run)
        resource = {"uid": "sr", "data_key": "x", "mimetype": "application/x-hdf5", "uri": uri, "parameters": given}
        writer("stream_resource", resource | run)
        for number, (index, seq, count) in enumerate(ranges):
            datum = {"uid": f"sr/{number}", "stream_resource": "sr", "descriptor": "d"}
            datum["indices"] = {"start": index, "stop": index + count}
            writer("stream_datum", {**datum, "seq_nums": {"start": seq, "stop": seq + count}})
        writer("stop", {"uid": "s", "time": 2.0, "exit_status": "success"} | run)
        writer.flush(timeout=100)


@pytest.mark.parametrize("deep", [1, 2])
def test_frames_are_found_by_event_and_sent_as_stored_where_they_follow_each_other(server, store, tmp_path, deep):
    values = some("<u2", (8, 6, 5))
    ranges = [(4, 1, 3), (1, 4, 1), (2, 5, 2)]  # frames 4, 5, 6, 1, 2, 3 are the events 1 to 6
    storage = {"compression": "gzip", "chunks": (deep, 6, 5)}
    external_run(server, tmp_path, values, ranges, item=[1, 6, 5], chunk_shape=[deep, 6, 5], **storage)
    expected = values[[4, 5, 6, 1, 2, 3]].reshape(6, 1, 6, 5)
    for version in (2, 3):
        found = zarr.open_array(store(version, "r", "primary", "x"), mode="r", zarr_format=version)
        assert found.chunks[0] == deep
        assert same(found[...], expected)
        group = xarray.open_zarr(store(version, "r", "primary"), zarr_format=version)
        assert same(group["x"].values, expected)
    with h5py.File(server.data / "x.h5") as file:
        stored = {frame: file["x"].id.read_direct_chunk((frame, 0, 0))[1] for frame in range(0, 8, deep)}
    sent = [get(server, f"v2/r/primary/x/{index}.0.0.0")[2] for index in range(6 // deep)]
    if deep == 1:
        assert sent == [stored[frame] for frame in (4, 5, 6, 1, 2, 3)]
    else:  # 4 and 5 lie in one chunk; 6 and 1 do not, and 2 and 3 do
        assert [body in stored.values() for body in sent] == [True, False, True]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_frames_that_are_joined_along_an_axis_are_sent_as_stored(server, store, tmp_path, chunk):
    values = some("<u2", (6, 4, 5))
    how = {"join_method": "concat"}
    storage = {"compression": "gzip", "chunks": (chunk, 4, 5)}
    shape = [chunk, 4, 5]
    external_run(server, tmp_path, values, [(0, 1, 3)], item=[2, 4, 5], chunk_shape=shape, parameters=how, **storage)
    for version in (2, 3):
        found = zarr.open_array(store(version, "r", "primary", "x"), mode="r", zarr_format=version)
        assert same(found[...], values)
    if chunk < 3:
        with h5py.File(server.data / "x.h5") as file:
            stored = file["x"].id.read_direct_chunk((chunk, 0, 0))[1]
        assert get(server, "v2/r/primary/x/1.0.0")[2] == stored


@FORMATS
def test_a_file_that_was_replaced_since_its_run_is_an_error(server, store, tmp_path, version):
    values = some("<u2", (4, 6, 5))
    storage = {"compression": "gzip", "chunks": (1, 6, 5)}
    external_run(server, tmp_path, values, [(0, 1, 4)], item=[1, 6, 5], chunk_shape=[1, 6, 5], **storage)
    opened = zarr.open_array(store(version, "r", "primary", "x"), mode="r", zarr_format=version)
    assert same(opened[...], values.reshape(4, 1, 6, 5))
    with h5py.File(server.data / "x.h5", "w") as file:
        file.create_dataset("x", data=values[:2], chunks=(1, 6, 5), compression="gzip")
    with pytest.raises(Exception, match=r"422|503|400"):
        opened[...]


def test_chunks_that_lie_otherwise_are_encoded(server, store):
    values = some("<u2", (8, 6, 4))
    register(server, "a", values, seen=(4, 2, 6, 4), chunks=(2, 6, 4))
    assert document(server, "v2/a/.zarray")["compressor"]["id"] == "blosc"
    for version in (2, 3):
        found = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)[...]
        assert same(found, values.reshape(4, 2, 6, 4))


@pytest.mark.parametrize("storage", [{}, {"compression": "gzip"}], ids=["plain", "gzip"])
@FORMATS
def test_rows_that_are_missing_are_left_out_and_never_zeros(server, store, version, storage):
    camera = Camera(server.data, defects=Defects(unwritten=frozenset({1})), **storage)
    run = fly(server, camera)
    found = xarray.open_zarr(store(version, run, "primary"), zarr_format=version).load()
    assert found["camera"].dims[0] == "camera_event"
    assert found["camera"].shape[0] == 3
    for row, event in enumerate((0, 2, 3)):
        assert same(found["camera"].values[row].reshape(camera.shape), camera.frame(event))


@FORMATS
def test_a_file_that_is_gone_is_an_error_and_never_zeros(server, store, version):
    run = fly(server, Camera(server.data))
    opened = zarr.open_group(store(version, run, "primary"), mode="r", zarr_format=version)["camera"]
    (server.data / "camera.h5").unlink()
    with pytest.raises(Exception, match="422"):
        opened[...]
    again = zarr.open_group(store(version, run, "primary"), mode="r", zarr_format=version)
    with pytest.raises(Exception, match="422"):
        again["camera"][...]


@FORMATS
def test_a_file_cut_short_is_an_error_and_never_zeros(server, store, version):
    register(server, "a", some("<u2", (4, 50, 50)), chunks=(1, 50, 50))
    opened = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)
    whole = (server.data / "a.h5").read_bytes()
    (server.data / "a.h5").write_bytes(whole[:-5000])
    with pytest.raises(Exception, match="422"):
        opened[...]


@FORMATS
def test_a_chunk_that_was_kept_and_is_gone_or_damaged_is_an_error(server, store, version):
    put(server, ("a",), some("<i4", (4,)), chunks=((2, 2),))
    opened = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)
    (chunk,) = (server.directory / "arrays").glob("*/c/1")
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(Exception, match="500"):
        opened[...]
    chunk.unlink()
    with pytest.raises(Exception, match="500"):
        opened[...]


@FORMATS
def test_an_array_that_is_deleted_or_shorter_is_an_error_for_who_has_it_open(server, store, version):
    put(server, ("a",), some("<i4", (4,)), chunks=((2, 2),))
    opened = zarr.open_array(store(version, "a"), mode="r", zarr_format=version)
    server.service.nodes.delete(("a",), recursive=False, external_only=False)
    with pytest.raises(Exception, match="410"):
        opened[...]
    put(server, ("a",), some("<i4", (2,)), chunks=((2,),))
    with pytest.raises(Exception, match="400"):
        opened[...]


# --- routes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("v2/none/.zarray", 404),
        ("v2/a/.zgroup", 404),
        ("v2/.zarray", 404),
        ("v2/.zmetadata", 404),
        ("v2/.zgroup", 200),
        ("v2/a/0", 400),
        ("v2/a/0.0.0", 400),
        ("v2/a/9.0", 400),
        ("v2/a/0.0", 200),
        ("v2//a//0.0", 200),
        ("v2/none/0.0", 410),
        ("v2/a/none", 404),
        ("v2/a/" + "9" * 30, 404),
        ("v3/zarr.json", 200),
        ("v3/none/zarr.json", 404),
        ("v3/a/c/0", 400),
        ("v3/a/c/0/0", 200),
        ("v3/a/c/0/9", 400),
        ("v3/none/c/0/0", 410),
        ("v3", 200),
        ("v3/", 200),
        ("v2", 200),
        ("v1/a", 404),
        ("v2/a/%00", 404),
    ],
)
def test_each_mistake_has_its_status(server, path, status):
    put(server, ("a",), some("<i4", (4, 2)))
    assert get(server, path)[0] == status


def test_what_zarr_has_no_form_for_is_refused_in_words(server):
    put(server, ("a",), some("g", (2,)))
    for path in ("v2/a/.zarray", "v3/a/zarr.json", "v2/a/0", "v3/a/c/0"):
        status, _, body = get(server, path)
        assert status == 406
        assert "no data type" in json.loads(body)["detail"]


def test_a_child_may_have_the_name_of_a_chunk(server, store):
    container(server, "0")
    container(server, "0", "c")
    put(server, ("0", "c", "1"), some("<i4", (3,)))
    for version in (2, 3):
        group = zarr.open_group(store(version, "0"), mode="r", zarr_format=version, use_consolidated=False)
        assert same(group["c/1"][...], some("<i4", (3,)))
        assert document(server, f"v{version}/0/c") == [f"{server.url}/zarr/v{version}/0/c/1"]
        assert document(server, f"v{version}/0/c/1") == {}


def test_a_list_of_children_has_the_form_in_which_fsspec_finds_them(server):
    container(server, "g")
    for number in range(350):
        container(server, "g", f"child {number}")
    status, headers, body = get(server, "v2/g")
    assert status == 200
    assert "content-type" not in headers
    assert json.loads(body)[-1] == f"{server.url}/zarr/v2/g/child%20349"
    assert len(json.loads(body)) == 350


def test_a_container_too_large_to_consolidate_still_opens(server, store):
    container(server, "g")
    for number in range(501):
        container(server, "g", f"c{number}")
    assert get(server, "v2/g/.zmetadata")[0] == 404
    assert "consolidated_metadata" not in document(server, "v3/g/zarr.json")
    assert "c7" in zarr.open_group(store(3, "g"), mode="r", zarr_format=3)


def test_an_answer_that_is_known_already_is_not_sent_again(server):
    put(server, ("a",), some("<i4", (4,)))
    for path in ("v2/a/.zarray", "v2/a/0", "v3/a/zarr.json", "v3/a/c/0", "v2"):
        status, headers, _ = get(server, path)
        assert status == 200
        again, same_headers, body = get(server, path, **{"If-None-Match": headers["etag"]})
        assert (again, body, same_headers["etag"]) == (304, b"", headers["etag"])
    server.service.nodes.write_array(("a",), bytes(16))
    assert get(server, "v2/a/0", **{"If-None-Match": get(server, "v2")[1]["etag"]})[0] == 200


def test_who_has_no_key_reads_nothing_unless_reading_is_public(server):
    put(server, ("a",), some("<i4", (4,)))
    paths = ("v2", "v2/a/.zarray", "v2/a/0", "v3/a/zarr.json", "v3/a/c/0")
    assert [get(server, path, key="")[0] for path in paths] == [401] * 5
    assert [get(server, path, key="wrong")[0] for path in paths] == [401] * 5
    with serving(build_app(server.service, Access.of(server.key, public=True))) as url:
        assert [get(server._replace(url=url), path, key="")[0] for path in paths] == [200] * 5
