"""Arrays written and read by the unmodified Tiled client are what the client wrote, of every type and by every route.

If these fail, values are wrong or lost, or a slip of the caller makes his client try again for 45 s.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import dask.array
import numpy as np
import pytest
import urllib3
from tiled.client.utils import ClientError
from tiled.structures.array import ArrayStructure, BuiltinDtype, Field, StructDtype
from tiled.structures.core import StructureFamily
from tiled.structures.data_source import DataSource
from tiled.utils import Conflicts

from flystore.service import Service

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

OCTETS = "application/octet-stream"
ARRAYS = {
    "floats": np.linspace(0, 1, 24).reshape(2, 3, 4),
    "big-endian": np.arange(12, dtype=">i4").reshape(3, 4),
    "big-endian floats": np.arange(5, dtype=">f8"),
    "booleans": np.array([[True, False], [False, True]]),
    "complex": np.array([1 + 2j, 3 - 4j]),
    "half": np.arange(6, dtype="f2"),
    "times": np.array(["2026-01-01T00:00:01", "NaT"], "M8[ns]"),
    "days": np.array(["2026-01-01", "2026-05-06"], "M8[D]"),
    "tens of microseconds": np.array([1, 2, 3], "m8[10us]"),
    "strings": np.array([["a", "bcd"], ["", "äö"]]),
    "bytes": np.array([b"ab", b"c"]),
    "raw bytes": np.array([b"ab\0c", b"c\0\0d"], "V4"),
    "scalar": np.array(3.5),
    "string scalar": np.array("word"),
    "nothing": np.zeros((0, 3)),
    "nothing between": np.zeros((2, 0, 3), "i2"),
    "one": np.array([7], "u1"),
}


@pytest.fixture
def home(server):
    with server.tiled() as client:
        yield client.create_container("box")


@pytest.fixture
def raw(server):
    pool = urllib3.PoolManager(retries=False)

    def send(method, path, body=None, content_type=OCTETS):
        headers = {"Authorization": f"Apikey {server.key}"}
        headers |= {"Content-Type": content_type} if content_type else {}
        return pool.request(method, f"{server.url}/api/v1{path}", body=body, headers=headers)

    yield send
    pool.clear()


def chunked(home, values, chunks, key="a", dtype=None):
    structure = ArrayStructure(
        data_type=dtype or BuiltinDtype.from_numpy_dtype(values.dtype), shape=values.shape, chunks=chunks
    )
    return home.new(
        StructureFamily.array, [DataSource(structure=structure, structure_family=StructureFamily.array)], key=key
    )


# --------------------------------------------------------------------------- types


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_of_any_type_comes_back_as_it_was(home, name):
    values = ARRAYS[name]
    home.write_array(values, key="a")
    found = home["a"].read()
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_a_record_array_keeps_its_fields(home, raw):
    dtype = np.dtype([("a", "<i4"), ("b", ">f8"), ("when", "M8[ms]"), ("word", "U3")])
    values = np.array([(1, 2.5, 3, "abc"), (-1, -2.5, 4, "")], dtype)
    node = chunked(home, values, ((2,),), dtype=StructDtype.from_numpy_dtype(dtype))
    node.write(values)
    found = home["a"].read()
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    assert home["a"][1]["a"] == -1
    raw_bytes = home.write_array(values, key="v").read()
    assert raw_bytes.tobytes() == values.tobytes()


def test_fields_may_hold_arrays_and_records(home):
    dtype = np.dtype([("a", "<i4"), ("b", "<f4", (2,)), ("c", [("d", "<i2"), ("e", "S2")])])
    values = np.array([(1, [2, 3], (4, b"xy")), (5, [6, 7], (8, b"z"))], dtype)
    declared = StructDtype(
        itemsize=dtype.itemsize,
        fields=[
            Field(name="a", dtype=BuiltinDtype.from_numpy_dtype(np.dtype("<i4")), shape=None),
            Field(name="b", dtype=BuiltinDtype.from_numpy_dtype(np.dtype("<f4")), shape=(2,)),
            Field(name="c", dtype=StructDtype.from_numpy_dtype(dtype["c"]), shape=None),
        ],
    )
    node = chunked(home, values, ((2,),), dtype=declared)
    node.write(values)
    assert home["a"].read().tobytes() == values.tobytes()


# --------------------------------------------------------------------------- blocks and slices


def test_slices_of_blocks_are_relative_to_the_block(home, raw):
    values = np.arange(60).reshape(6, 10)
    node = chunked(home, values, ((4, 2), (3, 3, 4)))
    node.write(values)
    np.testing.assert_array_equal(node.read_block((1, 2)), values[4:, 6:])
    np.testing.assert_array_equal(node.read_block((0, 1), slice=(slice(1, 3), 2)), values[1:3, 5])
    np.testing.assert_array_equal(node[::2, -1], values[::2, -1])
    whole = values[4:, 6:].tobytes()
    assert raw("GET", "/array/block/box/a?block=1,2&expected_shape=2,4").data == whole
    for wrong in (
        "block=1,3",
        "block=1",
        "block=1,2,0",
        "block=x",
        "",
        "block=1,2&expected_shape=4,2",
        "block=1,2&slice=a",
    ):
        assert raw("GET", f"/array/block/box/a?{wrong}").status == 422, wrong
    for wrong in ("slice=0:1:0", "slice=99", "slice=0,0,0", "slice=...", "expected_shape=1,2", "expected_shape=x"):
        assert raw("GET", f"/array/full/box/a?{wrong}").status == 422, wrong
    assert raw("GET", "/array/block/box/a?block=0,0&format=nope").status == 406


@pytest.mark.parametrize("part", [np.s_[1:3, :], np.s_[1:2, 1], np.s_[2, 0:2], np.s_[3, 2], np.s_[...]], ids=str)
def test_a_slice_of_a_block_is_written_where_the_client_says(home, part):
    values = np.arange(48).reshape(8, 6)
    node = chunked(home, values, ((4, 4), (3, 3)))
    node.write(values)
    new = -values[4:, 3:][part] - 1
    values[4:, 3:][part] = new
    node.write_block(new, (1, 1), slice=part)
    np.testing.assert_array_equal(home["a"].read(), values)


@pytest.mark.parametrize(
    ("text", "part"),
    [("::2,1", np.s_[::2, 1]), ("::-1,0:2", np.s_[::-1, 0:2]), ("-1", np.s_[-1]), ("2:2", np.s_[2:2])],
)
def test_slices_of_blocks_that_the_client_does_not_send_are_written_as_well(home, raw, text, part):
    values = np.arange(48).reshape(8, 6)
    node = chunked(home, values, ((4, 4), (3, 3)))
    node.write(values)
    new = -values[4:, 3:][part] - 1
    values[4:, 3:][part] = new
    assert raw("PUT", f"/array/block/box/a?block=1,1&slice={text}", new.tobytes()).status == 200
    np.testing.assert_array_equal(home["a"].read(), values)


def test_a_wrong_body_is_refused_and_changes_nothing(home, raw):
    values = np.arange(6.0).reshape(2, 3)
    home.write_array(values, key="a")
    for method, path in (
        ("PUT", "/array/full/box/a"),
        ("PUT", "/array/block/box/a?block=0,0"),
        ("PUT", "/array/block/box/a?block=0,0&slice=0:1"),
        ("PATCH", "/array/full/box/a?offset=0,0&shape=2,3"),
    ):
        assert raw(method, path, b"short").status == 422
        assert raw(method, path, b"{}", "application/json").status == 415
    assert raw("PUT", "/array/block/box/a?block=5,0", b"").status == 422
    assert raw("PUT", "/array/block/box/a", b"").status == 422
    np.testing.assert_array_equal(home["a"].read(), values)


def test_what_is_not_to_be_kept_is_not_kept(home, raw):
    values = np.arange(6).reshape(2, 3)
    node = home.write_array(values, key="a")
    node.write(values * 2, persist=False)
    node.write_block(values * 2, (0, 0), persist=False)
    node.patch(values[:1] * 2, offset=1, persist=False)
    np.testing.assert_array_equal(home["a"].read(), values)
    assert node.structure().shape == (2, 3)
    with pytest.raises(ValueError, match="persist"):
        node.patch(values, offset=2, extend=True, persist=False)
    assert raw("PUT", "/array/full/nowhere?persist=false", b"").status == 404


# --------------------------------------------------------------------------- growing


def test_patches_overwrite_and_extend_and_the_chunks_follow(home):
    values = np.arange(6).reshape(2, 3)
    node = home.write_array(values, key="a")
    with pytest.raises(Conflicts, match="Pass keyword argument extend=true"):
        node.patch(np.ones((1, 3), int), offset=2)
    node.patch(np.ones((1, 3), int), offset=2, extend=True)
    assert node.structure().shape == (3, 3)
    assert node.structure().chunks == ((2, 1), (3,))
    node.patch(np.full((1, 2), 9), offset=(0, 1))
    np.testing.assert_array_equal(home["a"].read(), [[0, 9, 9], [3, 4, 5], [1, 1, 1]])
    assert home["a"].structure() == node.structure()


def test_blocks_of_a_dask_array_arrive_in_any_order_at_once(home):
    values = np.arange(900.0).reshape(30, 30)
    home.write_array(dask.array.from_array(values, chunks=(7, 11)), key="a")
    np.testing.assert_array_equal(home["a"].read(), values)


def test_no_row_is_lost_when_two_services_on_one_directory_extend_an_array_at_once(home, server):
    home.write_array(np.zeros((0, 2), "i8"), key="a")
    path, each, writers = ("box", "a"), 8, 6
    with Service.open(server.directory) as other:

        def extend(who):
            nodes = (server.service if who % 2 else other).nodes
            for n in range(each):
                at = n * writers + who
                row = np.array([[who + 1, n + 1]], "i8")
                nodes.patch_array(path, row.tobytes(), offset=(at,), shape=(1, 2), extend=True)

        with ThreadPoolExecutor(writers) as pool:
            for done in [pool.submit(extend, who) for who in range(writers)]:
                done.result()
    found = home["a"].read()
    assert found.shape == (each * writers, 2)
    assert [tuple(row) for row in found] == [(who + 1, n + 1) for n in range(each) for who in range(writers)]


def test_who_extends_where_another_just_did_is_told_and_writes_over_nothing(home, server):
    home.write_array(np.zeros((1, 2), "i8"), key="a")
    one, other = home["a"], home["a"]  # both saw one row
    one.patch(np.full((1, 2), 1), offset=1, extend=True)
    for late in (np.full((1, 2), 2), np.full((3, 2), 2)):
        with pytest.raises(Conflicts, match="was extended at"):
            other.patch(late, offset=(1, 0), extend=True)
    one.patch(np.full((1, 2), 1), offset=1, extend=True)  # as after a lost reply
    np.testing.assert_array_equal(home["a"].read(), [[0, 0], [1, 1]])
    other.patch(np.full((1, 2), 3), offset=1)
    other.refresh().patch(np.full((1, 2), 2), offset=2, extend=True)
    np.testing.assert_array_equal(home["a"].read(), [[0, 0], [3, 3], [2, 2]])


def test_rows_that_arrive_in_any_order_fill_an_array_that_grows(home):
    home.write_array(np.zeros((0, 2), "i8"), key="a")
    for n in (3, 0, 2, 1):
        home["a"].patch(np.full((1, 2), n), offset=n, extend=True)
    np.testing.assert_array_equal(home["a"].read(), [[n, n] for n in range(4)])


def test_no_row_is_lost_when_clients_extend_an_array_at_once_and_who_loses_tries_again(home, server):
    home.write_array(np.zeros((0, 2), "i8"), key="a")

    def extend(who):
        with server.tiled("/api/v1/metadata/box/a") as node:
            for n in range(6):
                while True:
                    try:
                        node.patch(np.array([[who, n]]), offset=node.shape[0], extend=True)
                        break
                    except Conflicts:
                        node.refresh()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(extend, who) for who in range(1, 5)]:
            done.result()
    found = [tuple(row) for row in home["a"].read().tolist()]
    assert sorted(found) == [(who, n) for who in range(1, 5) for n in range(6)]


def test_readers_never_see_a_row_that_is_not_written_yet(home, server):
    home.write_array(np.ones((1, 3), "i8"), key="a")
    stop = threading.Event()

    def poll():
        with server.tiled("/api/v1/metadata/box/a") as node:
            while not stop.is_set():
                assert node.refresh().read().all()

    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(poll)
        try:
            for n in range(1, 20):
                home["a"].patch(np.full((1, 3), n), offset=n, extend=True)
        finally:
            stop.set()
        reading.result()


def test_an_array_that_is_not_kept_here_cannot_be_written_to(home, raw):
    home.write_table({"x": [1, 2]}, key="t")
    assert raw("PUT", "/array/full/box/t/x", b"12345678").status in (404, 405)
    assert raw("PUT", "/array/full/box", b"").status == 404
    assert raw("PATCH", "/array/full/box/t?offset=0&shape=1", b"").status == 404
    with pytest.raises(ClientError):
        home["t"]["x"].write(np.array([1, 2]))
