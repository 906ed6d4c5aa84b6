"""What is read of an HDF5 file by event is what h5py reads of it, for every layout, filter and slice.

If these fail, people see other pixels than the detector took.
"""

import hashlib
import os
import threading

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest, OutOfBounds, TooLarge, Truncated, Unreadable, Unsupported
from flystore.readers import EventFiles, Resource, open_reader
from flystore.storage import Roots

DTYPES = ["?", "<u1", "<i2", ">u2", "<u4", ">i8", "<f2", "<f4", ">f8", "<c8", "S5"]


def values_of(dtype, shape, seed=0):
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    if dtype.kind == "S":
        return np.array([b"%d" % i for i in range(n)], dtype).reshape(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


def reader_of(path, dtype, item_shape, dataset="entry/data"):
    files = EventFiles(
        "application/x-hdf5",
        np.dtype(dtype).descr if np.dtype(dtype).fields else np.dtype(dtype).str,
        tuple(item_shape),
        (Resource(f"file://localhost{path}", {"dataset": dataset}),),
    )
    return open_reader(files, Roots([path.parent]))


def read(reader, rows, inner=(), **kwargs):
    rows = np.asarray(rows)
    return reader.read(np.zeros(len(rows), int), rows, inner, **kwargs)


def write(path, values, **kwargs):
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", data=values, **kwargs)
    return path


def compact(path, values):
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        group = file.create_group("entry")
        space = h5py.h5s.create_simple(values.shape)
        dataset = h5py.h5d.create(group.id, b"data", h5py.h5t.py_create(values.dtype, logical=True), space, plist)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values))
    return path


FILTERS = {
    "raw": {},
    "deflate": {"compression": "gzip"},
    "shuffle-deflate": {"compression": "gzip", "shuffle": True},
    "fletcher32": {"fletcher32": True},
    "shuffle-fletcher32-deflate": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "shuffle-lzf": {"compression": "lzf", "shuffle": True},
    "szip": {"compression": "szip"},
    "blosc-lz4": dict(hdf5plugin.Blosc(cname="lz4")),
    "blosc-zstd-bitshuffle": dict(hdf5plugin.Blosc(cname="zstd", shuffle=2)),
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4-blocks": dict(hdf5plugin.LZ4(nbytes=64)),
    "zstd": dict(hdf5plugin.Zstd()),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle-lz4-blocks": dict(hdf5plugin.Bitshuffle(cname="lz4", nelems=16)),
    "bitshuffle-zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("dtype", ["<u2", ">f8", "<u1", "<i4"])
def test_every_filter_is_undone(tmp_path, name, dtype):
    values = values_of(dtype, (10, 7, 9))
    values[3] = 0
    path = write(tmp_path / "x.h5", values, chunks=(3, 4, 9), **FILTERS[name])
    with reader_of(path, dtype, (7, 9)) as reader:
        np.testing.assert_array_equal(read(reader, range(10)), values)
        np.testing.assert_array_equal(
            read(reader, [9, 0, 3, 3], (slice(None, None, -2), 4)), values[[9, 0, 3, 3]][:, ::-2, 4]
        )


@pytest.mark.parametrize("name", ["bitshuffle-lz4", "bitshuffle-zstd", "bitshuffle", "lz4", "zstd", "blosc-lz4"])
@pytest.mark.parametrize("content", ["noise", "ramp", "zeros"])
def test_compressed_frames_of_any_content_are_undone(tmp_path, name, content):
    """Noise does not shrink, so some blocks are stored as they are or grow."""
    shape = (3, 61, 67)
    values = {
        "noise": np.random.default_rng(1).integers(0, 2**16, shape),
        "ramp": np.arange(np.prod(shape)).reshape(shape),
        "zeros": np.zeros(shape),
    }[content].astype("<u2")
    path = write(tmp_path / "x.h5", values, chunks=(1, 61, 67), **FILTERS[name])
    with reader_of(path, "<u2", (61, 67)) as reader:
        np.testing.assert_array_equal(read(reader, range(3)), values)


def test_a_bitshuffled_block_that_compresses_to_its_own_length_is_undone(tmp_path):
    """Blosc, which undoes the others, would take such a block for one that was stored as it is."""
    rng = np.random.default_rng(2)
    values = np.zeros((4000, 64), "u1")
    for row in values:
        noisy = rng.integers(20, 64)
        row[:noisy] = rng.integers(0, 256, noisy)
    path = write(tmp_path / "x.h5", values, chunks=(1, 64), **hdf5plugin.Bitshuffle(cname="lz4", nelems=64))
    with h5py.File(path) as file:
        chunks = [file["entry/data"].id.read_direct_chunk((i, 0))[1] for i in range(len(values))]
    assert any(int.from_bytes(chunk[12:16], "big") == 64 for chunk in chunks)
    with reader_of(path, "u1", (64,)) as reader:
        np.testing.assert_array_equal(read(reader, range(len(values))), values)


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "compact"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_as_announced(tmp_path, layout, dtype):
    values = values_of(dtype, (6, 2, 3))
    path = tmp_path / "x.h5"
    if layout == "compact":
        compact(path, values)
    else:
        write(path, values, **({"chunks": (4, 2, 2)} if layout == "chunked" else {}))
    with reader_of(path, dtype, (2, 3)) as reader:
        found = read(reader, [5, 0, 1], (1, slice(0, 3, 2)))
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, values[[5, 0, 1]][:, 1, ::2])


def test_structured_values_come_back_with_their_fields(tmp_path):
    dtype = np.dtype([("a", "<i4"), ("b", "<f8", (2,))])
    values = np.zeros((4,), dtype)
    values["a"], values["b"] = np.arange(4), np.arange(8).reshape(4, 2)
    path = write(tmp_path / "x.h5", values, chunks=(3,))
    with reader_of(path, dtype, ()) as reader:
        found = read(reader, [3, 1])
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values[[3, 1]])


def test_padding_between_fields_does_not_count(tmp_path):
    padded = np.dtype([("a", "i1"), ("b", "<f8")], align=True)
    values = np.zeros(4, padded)
    values["a"], values["b"] = np.arange(4), np.arange(4) / 2
    path = write(tmp_path / "x.h5", values)
    packed = np.dtype([("a", "i1"), ("b", "<f8")])
    with reader_of(path, packed, ()) as reader:
        found = read(reader, range(4))
        assert found.dtype == packed
        assert found.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("shape", "item", "per_event"),
    [
        ((20, 10, 15), (4, 10, 15), 4),
        ((20, 10, 15), (1, 10, 15), 1),
        ((20, 10, 15), (10, 15), 1),
        ((20, 10, 15), (2, 2, 10, 15), 4),
        ((6,), (), 1),
        ((6,), (1,), 1),
        ((6,), (3,), 3),
        ((6, 1), (), 1),
        ((5, 4, 10, 15), (4, 10, 15), 1),
        ((6, 1, 10), (10,), 1),
        ((6, 1, 10), (2, 10), 2),
        ((6, 20), (4, 5), 1),
        ((6, 4, 5), (20,), 1),
        ((6, 4, 5), (2, 4, 5, 1), 2),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_events_are_whole_numbers_of_rows(tmp_path, shape, item, per_event, chunked):
    values = values_of("<i4", shape)
    chunks = tuple(max(1, n // 2) for n in shape)
    path = write(tmp_path / "x.h5", values, **({"chunks": chunks} if chunked else {}))
    events = values.reshape(shape[0] // per_event, *item)
    with reader_of(path, "<i4", item) as reader:
        assert reader.probe().resources[0].events == len(events)
        np.testing.assert_array_equal(read(reader, range(len(events))), events)
        for inner in (tuple(slice(None, None, -1) for _ in item), (0,) * len(item), (slice(0, 1),) * len(item)):
            np.testing.assert_array_equal(read(reader, [1, 0], inner), events[[1, 0]][(slice(None), *inner)])


def test_rows_that_make_no_whole_event_are_left_over(tmp_path):
    path = write(tmp_path / "x.h5", values_of("<i4", (10, 3)))
    with reader_of(path, "<i4", (4, 3)) as reader:
        assert reader.probe().resources[0].events == 2
        assert reader.present(0, [0, 1, 2, -1]).tolist() == [True, True, False, False]
        with pytest.raises(Truncated) as caught:
            read(reader, [0, 2])
    assert (caught.value.announced, caught.value.found) == (3, 2)
    assert "10 rows" in caught.value.message


@pytest.mark.parametrize(("shape", "item"), [((20, 10, 15), (4, 10, 14)), ((6, 4), (3,)), ((6, 4), ()), ((6, 0), (2,))])
def test_another_shape_than_announced_is_a_mismatch_that_names_both(tmp_path, shape, item):
    path = write(tmp_path / "x.h5", np.zeros(shape, "<i4"))
    with reader_of(path, "<i4", item) as reader:
        with pytest.raises(Unreadable, match="entry/data") as caught:
            read(reader, [0])
        assert str(shape) in caught.value.message
        assert str(item) in caught.value.message
        assert reader.probe().resources[0].status == "mismatch"


@pytest.mark.parametrize("announced", ["<i8", "<u4", "<f4", "?", "S4", [("a", "<i4")]])
def test_another_dtype_than_announced_is_a_mismatch_that_names_both(tmp_path, announced):
    path = write(tmp_path / "x.h5", np.zeros(3, "<i4"))
    with reader_of(path, announced, ()) as reader:
        with pytest.raises(Unreadable, match="int32"):
            read(reader, [0])
        assert reader.probe().resources[0].status == "mismatch"


def test_only_the_byte_order_is_converted(tmp_path):
    path = write(tmp_path / "x.h5", np.arange(3, dtype=">i4"))
    with reader_of(path, "<i4", ()) as reader:
        found = read(reader, [2, 1])
        assert (found.dtype, found.tolist()) == (np.dtype("<i4"), [2, 1])


@st.composite
def datasets(draw):
    per_event = draw(st.integers(1, 3))
    rest = tuple(draw(st.lists(st.integers(1, 6), max_size=2)))
    events = draw(st.integers(1, 7))
    shape = (events * per_event, *rest)
    layout = draw(st.sampled_from(["contiguous", "chunked", "deflate", "compact"]))
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    dtype = draw(st.sampled_from(["<i2", ">f4", "<u1"]))
    item = (per_event, *rest) if per_event > 1 or draw(st.booleans()) else rest
    bound = st.one_of(st.none(), st.integers(-8, 8))
    part = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2]))
    inner = tuple(draw(st.one_of(part, st.integers(-n, n - 1))) for n in item[: draw(st.integers(0, len(item)))])
    rows = draw(st.lists(st.integers(0, events - 1), max_size=9))
    return shape, layout, chunks, dtype, item, inner, rows


@settings(deadline=None, max_examples=150)
@given(datasets())
def test_slices_are_those_of_numpy(tmp_path_factory, case):
    shape, layout, chunks, dtype, item, inner, rows = case
    values = values_of(dtype, shape, seed=3)
    path = tmp_path_factory.mktemp("h5") / "x.h5"
    if layout == "compact":
        compact(path, values)
    else:
        kwargs = {"contiguous": {}, "chunked": {"chunks": chunks}}.get(layout)
        write(path, values, **({"chunks": chunks, "compression": "gzip"} if kwargs is None else kwargs))
    expected = values.reshape(-1, *item)[np.asarray(rows, int)][(slice(None), *inner)]
    with reader_of(path, dtype, item) as reader:
        found = read(reader, rows, inner)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kwargs", [{}, {"chunks": (7, 300, 200)}, {"chunks": (1, 512, 512), "compression": "gzip"}])
def test_frames_larger_than_a_piece_are_read_right(tmp_path, kwargs):
    values = values_of("<u2", (20, 512, 512))
    path = write(tmp_path / "x.h5", values, **kwargs)
    with reader_of(path, "<u2", (512, 512)) as reader:
        np.testing.assert_array_equal(read(reader, range(20)), values)
        np.testing.assert_array_equal(
            read(reader, range(0, 20, 3), (slice(100, 400, 7), slice(500, 10, -3))),
            values[::3, 100:400:7, 500:10:-3],
        )
        np.testing.assert_array_equal(
            read(reader, [19, 3, 4, 5, 3], (slice(None), 511)), values[[19, 3, 4, 5, 3], :, 511]
        )


def test_one_column_of_a_huge_row_takes_little_memory(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", shape=(2, 50_000, 4000), dtype="u1")[1, ::10_000, 7] = 5
    with reader_of(path, "u1", (50_000, 4000)) as reader:
        found = read(reader, [1], (slice(0, None, 10_000), 7), limit_bytes=2**20)
    assert found.tolist() == [[5, 5, 5, 5, 5]]


def test_a_userblock_shifts_nothing(tmp_path):
    values = values_of("<i4", (5, 4))
    for name, kwargs in {"a": {}, "b": {"chunks": (2, 4)}, "c": {"chunks": (2, 4), "compression": "gzip"}}.items():
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w", userblock_size=1024) as file:
            file.create_dataset("entry/data", data=values, **kwargs)
        with reader_of(path, "<i4", (4,)) as reader:
            np.testing.assert_array_equal(read(reader, range(5)), values)


@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
@pytest.mark.parametrize("maxshape", [None, (None, 4, 3), (None, None, 3), (20, 4, 3)])
@pytest.mark.parametrize("chunks", [(1, 4, 3), (5, 2, 2), (10, 4, 3)])
def test_every_kind_of_chunk_index_is_mapped(tmp_path, libver, maxshape, chunks):
    values = values_of("<i4", (10, 4, 3))
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("entry/data", data=values, chunks=chunks, maxshape=maxshape)
    with reader_of(path, "<i4", (4, 3)) as reader:
        np.testing.assert_array_equal(read(reader, range(10)), values)
        assert reader.probe().resources[0].holes == ()


def test_enumerations_and_booleans_are_their_numbers(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        kind = h5py.enum_dtype({"open": 0, "closed": 1}, basetype="u1")
        file.create_dataset("entry/data", data=np.array([0, 1, 1], "u1"), dtype=kind, chunks=(2,))
    with reader_of(path, "u1", ()) as reader:
        assert read(reader, range(3)).tolist() == [0, 1, 1]


def test_values_that_hdf5_must_convert_are_converted(tmp_path):
    """Space-padded text and numbers of odd precision are not what numpy would make of their bytes."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        text = h5py.h5t.C_S1.copy()
        text.set_size(4)
        text.set_strpad(h5py.h5t.STR_SPACEPAD)
        for name, chunks in (("c", None), ("k", (2,))):
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            if chunks:
                plist.set_chunk(chunks)
            h5py.h5d.create(file.id, name.encode(), text, h5py.h5s.create_simple((3,)), plist)
            file[name][...] = np.array([b"ab", b"c", b"defg"], "S4")
    for name in ("c", "k"):
        with reader_of(path, "S4", (), name) as reader:
            assert read(reader, [2, 0, 1]).tolist() == [b"defg", b"ab", b"c"]


@pytest.mark.parametrize("make", ["text", "ragged", "reference", "field"])
def test_values_of_variable_length_are_unsupported(tmp_path, make):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        if make == "text":
            file["entry/data"] = ["a", "bc"]
        elif make == "ragged":
            file.create_dataset("entry/data", (2,), h5py.vlen_dtype("i4"))
        elif make == "reference":
            file.create_dataset("entry/data", (2,), h5py.ref_dtype)
        else:
            file.create_dataset("entry/data", (2,), np.dtype([("a", h5py.string_dtype())]))
    with reader_of(path, "S4", ()) as reader:
        with pytest.raises(Unsupported, match="variable length"):
            read(reader, [0])
        assert reader.probe().resources[0].status == "unreadable"


def test_a_scalar_is_one_row_and_nothing_is_nothing(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["one"] = np.float64(2.5)
        file["none"] = h5py.Empty("f8")
        file.create_dataset("empty", (0, 3), "f8", maxshape=(None, 3))
    with reader_of(path, "f8", (), "one") as reader:
        assert read(reader, [0]).tolist() == [2.5]
    with reader_of(path, "f8", (), "none") as reader, pytest.raises(Unreadable):
        read(reader, [0])
    with reader_of(path, "f8", (3,), "empty") as reader:
        assert reader.probe().resources[0].events == 0
        assert read(reader, []).shape == (0, 3)
        with pytest.raises(Truncated):
            read(reader, [0])


def test_a_file_with_the_inode_size_and_time_of_another_one_is_read_anew(tmp_path):
    values = values_of("<u2", (8, 4, 6))
    first = write(tmp_path / "a.h5", values, chunks=(1, 2, 6))
    second = write(tmp_path / "b.h5", values, chunks=(1, 4, 3))
    size = max(first.stat().st_size, second.stat().st_size)
    for path in (first, second):
        os.truncate(path, size)
        os.utime(path, (1_500_000_000, 1_500_000_000))
    before = first.stat()
    with reader_of(first, "<u2", (4, 6)) as reader:
        np.testing.assert_array_equal(read(reader, range(8)), values)
    while first.stat().st_ctime_ns == before.st_ctime_ns:  # as fine as the file system's clock
        first.write_bytes(second.read_bytes())  # as an archive does that gives back old times
        os.utime(first, (1_500_000_000, 1_500_000_000))
    now = first.stat()
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    with reader_of(first, "<u2", (4, 6)) as reader:
        np.testing.assert_array_equal(read(reader, range(8)), values)


def test_slices_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path / "x.h5", np.zeros((3, 4), "<i4"))
    with reader_of(path, "<i4", (4,)) as reader:
        with pytest.raises(OutOfBounds):
            read(reader, [0], (4,))
        with pytest.raises(InvalidRequest):
            read(reader, [0], (0, 0))
        with pytest.raises(InvalidRequest):
            read(reader, [-1])
        with pytest.raises(InvalidRequest):
            reader.read(np.array([1]), np.array([0]))


def test_results_above_the_limit_are_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", (10**6, 10**6, 10**3), "f8", chunks=(10**4, 10**4, 1))
        file.create_dataset("bomb", (1, 2**28), "u1", chunks=(1, 2**28), compression="gzip")[0, :10] = 1
    assert path.stat().st_size < 2**20
    with reader_of(path, "f8", (10**6, 10**3)) as reader, pytest.raises(TooLarge):
        read(reader, [0], limit_bytes=2**28)
    with reader_of(path, "u1", (2**28,), "bomb") as reader, pytest.raises(TooLarge, match="one chunk"):
        read(reader, [0], (slice(0, 10),), limit_bytes=2**20)


def test_a_dataset_of_too_many_chunks_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", (10**12,), "f8", chunks=(1,))
    with reader_of(path, "f8", ()) as reader, pytest.raises(Unsupported, match="chunks"):
        read(reader, [0])


def test_reading_changes_no_file_and_leaves_no_thread(tmp_path):
    values = values_of("<u2", (16, 512, 512))
    path = write(tmp_path / "x.h5", values, chunks=(1, 512, 512), compression="gzip")
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    threads = set(threading.enumerate())
    with reader_of(path, "<u2", (512, 512)) as reader:
        reader.probe()
        read(reader, range(16))
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before
    assert set(threading.enumerate()) <= threads


def test_several_files_are_one_sequence_of_events(tmp_path):
    for i in range(100):
        write(tmp_path / f"{i}.h5", np.full((4, 2), i * 10, "<i4") + np.arange(4)[:, None].astype("<i4"))
    files = EventFiles(
        "application/x-hdf5",
        "<i4",
        (2,),
        tuple(Resource(f"file://localhost{tmp_path}/{i}.h5", {"dataset": "/entry/data"}) for i in range(100)),
    )
    with open_reader(files, Roots([tmp_path])) as reader:
        found = reader.read(np.array([2, 0, 1, 2]), np.array([0, 3, 1, 2]), (slice(0, 1),))
        assert found.tolist() == [[20], [3], [11], [22]]
        assert [r.events for r in reader.probe().resources] == [4] * 100
        assert len(os.listdir("/proc/self/fd")) < 100
        every = reader.read(np.repeat(np.arange(100), 4), np.tile(np.arange(4), 100), (0,))
    assert every.tolist() == [i * 10 + row for i in range(100) for row in range(4)]
