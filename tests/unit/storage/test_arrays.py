"""Internal arrays keep every value, grow as the protocol says, and never hand out damaged ones.

If these fail, arrays that people upload come back changed.
"""

import threading

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.errors import Conflict, Damaged, InvalidRequest, OutOfBounds, TooLarge
from flystore.model.structures import ArrayStructure
from flystore.storage import ArrayStore

DTYPES = [
    "?",
    "<i1",
    ">i4",
    "<u8",
    "<f2",
    ">f8",
    "<f16",
    "<c16",
    "<M8[ns]",
    "<m8[10us]",
    ">M8[s]",
    "S5",
    "<U3",
    ">U3",
    "V6",
    "S0",
    "<U0",
    [("a", "<i4"), ("b", ">f8")],
    [("a", "<i4"), ("b", "<f8", (2,)), ("c", [("d", "S3")])],
]


@pytest.fixture
def store(tmp_path):
    return ArrayStore(tmp_path / "arrays")


def some_values(dtype, shape):
    dtype = np.dtype(dtype)
    n = int(np.prod(shape))
    if dtype.kind == "?" or dtype.kind == "b":
        return (np.arange(n) % 3 == 0).reshape(shape)
    if dtype.kind in "SU" and dtype.itemsize:
        return np.array([f"{i % 100}" for i in range(n)], dtype).reshape(shape)
    if dtype.kind in "SU" or dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    if dtype.kind == "V":
        return np.frombuffer(np.random.default_rng(0).integers(1, 60, n * dtype.itemsize).astype("u1"), dtype).reshape(
            shape
        )
    return np.arange(1, n + 1).astype(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_byte_for_byte(store, dtype):
    values = some_values(dtype, (5, 3))
    structure = ArrayStructure.of(values.dtype, (5, 3), ((2, 2, 1), (3,)), ("y", "x"))
    store.create("a/b", structure)
    assert store.read("a/b", structure).tobytes() == bytes(values.nbytes)

    store.write_full("a/b", structure, values.tobytes())

    found = store.read("a/b", structure)
    assert found.dtype == values.dtype
    assert found.tobytes() == values.tobytes()
    assert store.read("a/b", structure, (slice(None, None, -2), 1)).tobytes() == values[::-2, 1].tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1, 1)])
def test_scalars_and_empty_arrays_are_arrays(store, shape):
    values = some_values("f8", shape)
    structure = ArrayStructure.of("f8", shape)
    store.create("a", structure)
    store.write_full("a", structure, values.tobytes())
    found = store.read("a", structure)
    assert found.shape == shape
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scalars_of_every_dtype_come_back_byte_for_byte(store, dtype):
    values = some_values(dtype, ())
    structure = ArrayStructure.of(values.dtype, ())
    store.create("a", structure)
    for write in (
        lambda: store.write_full("a", structure, values.tobytes()),
        lambda: store.write_block("a", structure, (), values.tobytes()),
        lambda: store.patch("a", structure, (), (), values.tobytes()),
    ):
        write()
        found = store.read("a", structure)
        assert (found.dtype, found.shape) == (values.dtype, ())
        assert found.tobytes() == values.tobytes()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_slices_are_those_of_numpy(tmp_path_factory, data):
    store = ArrayStore(tmp_path_factory.mktemp("s"))
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    chunks = tuple((min(3, n),) * (n // min(3, n)) + ((n % 3,) if n > 3 and n % 3 else ()) for n in shape)
    values = some_values("<i4", shape)
    structure = ArrayStructure.of("<i4", shape, chunks)
    store.create("x", structure)
    for block in np.ndindex(*(len(axis) for axis in chunks)):
        region = tuple(slice(sum(axis[:i]), sum(axis[: i + 1])) for axis, i in zip(chunks, block, strict=True))
        store.write_block("x", structure, block, values[region].tobytes())
    bound = st.one_of(st.none(), st.integers(-8, 8))
    items = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2]))
    selection = tuple(data.draw(st.one_of(items, st.integers(-n, n - 1))) for n in shape)
    np.testing.assert_array_equal(store.read("x", structure, selection), values[selection])


def test_unwritten_blocks_read_as_zeros(store):
    structure = ArrayStructure.of("i4", (4, 2), ((2, 2), (2,)))
    store.create("x", structure)
    store.write_block("x", structure, (1, 0), np.full((2, 2), 7, "i4").tobytes())
    assert store.read("x", structure).tolist() == [[0, 0], [0, 0], [7, 7], [7, 7]]


def test_a_patch_inside_changes_only_its_rectangle(store):
    structure = ArrayStructure.of("i4", (3, 3))
    store.create("x", structure)
    assert store.patch("x", structure, (1,), (1, 2), np.array([[5, 6]], "i4").tobytes()) == structure
    assert store.read("x", structure).tolist() == [[0, 0, 0], [5, 6, 0], [0, 0, 0]]


def test_growing_rederives_the_chunks_from_the_stored_chunk_size(store):
    structure = ArrayStructure.of("i4", (2, 3), dims=("t", "x"))
    store.create("x", structure)
    store.write_full("x", structure, np.arange(6, dtype="i4").tobytes())

    grown = store.patch("x", structure, (2, 0), (1, 3), np.array([[7, 8, 9]], "i4").tobytes(), extend=True)

    assert grown.chunks == ((2, 1), (3,))
    assert grown.shape == (3, 3)
    assert grown.dims == ("t", "x")
    assert store.read("x", grown).tolist() == [[0, 1, 2], [3, 4, 5], [7, 8, 9]]
    assert store.read("x", structure).tolist() == [[0, 1, 2], [3, 4, 5]]  # until the new one is committed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_grows_from_nothing(store, dtype):
    values = some_values(dtype, (5, 2))
    structure = ArrayStructure.of(values.dtype, (0, 2))
    store.create("x", structure)
    for row in range(5):
        structure = store.patch("x", structure, (row,), (1, 2), values[row : row + 1].tobytes(), extend=True)
    assert structure.shape == (5, 2)
    assert len(structure.chunks[0]) == 1  # not one chunk a row
    assert store.read("x", structure).tobytes() == values.tobytes()


def test_a_patch_that_does_not_fit_says_how_to_make_it_fit(store):
    structure = ArrayStructure.of("i4", (2,))
    store.create("x", structure)
    with pytest.raises(Conflict, match=r"Use \?extend=true"):
        store.patch("x", structure, (2,), (1,), bytes(4))


@pytest.mark.parametrize(
    ("offset", "shape", "length"),
    [
        ((0, 0), (1,), 4),
        ((0,), (1, 1), 4),
        ((-1,), (1,), 4),
        ((0,), (-1,), 4),
        ((0,), (1,), 5),
        ((0,), (2,), 4),
    ],
)
def test_a_patch_that_makes_no_sense_is_an_invalid_request(store, offset, shape, length):
    structure = ArrayStructure.of("i4", (2,))
    store.create("x", structure)
    with pytest.raises(InvalidRequest):
        store.patch("x", structure, offset, shape, bytes(length), extend=True)


def test_a_body_of_the_wrong_length_changes_nothing(store):
    structure = ArrayStructure.of("i4", (3,), ((2, 1),))
    store.create("x", structure)
    store.write_full("x", structure, np.array([1, 2, 3], "i4").tobytes())
    with pytest.raises(InvalidRequest, match="needs 12"):
        store.write_full("x", structure, bytes(11))
    with pytest.raises(InvalidRequest, match="needs 4"):
        store.write_block("x", structure, (1,), bytes(8))
    for block in ((2,), (-1,), (), (0, 0)):
        with pytest.raises(OutOfBounds):
            store.write_block("x", structure, block, bytes(8))
    assert store.read("x", structure).tolist() == [1, 2, 3]


def test_a_result_above_the_limit_is_refused_before_it_is_made(store):
    structure = ArrayStructure.of("f8", (10**9, 10**3), ((10**9,), (10**3,)))
    with pytest.raises(InvalidRequest, match="smaller chunks"):
        store.create("x", structure)
    structure = ArrayStructure.of("f8", (10**6, 10**6), ((10**3,) * 10**3, (10**3,) * 10**3))
    store.create("x", structure)
    with pytest.raises(TooLarge):
        store.read("x", structure, limit_bytes=2**20)
    assert store.read("x", structure, (0, slice(0, 4)), limit_bytes=2**20).tolist() == [0, 0, 0, 0]


def test_a_flipped_bit_is_an_error_and_never_a_value(store):
    structure = ArrayStructure.of("i4", (4,))
    store.create("x", structure)
    store.write_full("x", structure, np.arange(4, dtype="i4").tobytes())
    chunk = store.directory / "x/c/0"
    original = chunk.read_bytes()
    for position in range(len(original)):
        chunk.write_bytes(original[:position] + bytes([original[position] ^ 4]) + original[position + 1 :])
        with pytest.raises(Damaged):
            store.read("x", structure)


def test_an_array_that_is_gone_is_damage_and_not_zeros(store):
    structure = ArrayStructure.of("i4", (4,))
    store.create("x", structure)
    store.delete("x")
    store.delete("x")
    with pytest.raises(Damaged):
        store.read("x", structure)


def test_arrays_are_not_made_twice_and_hold_no_objects(store):
    structure = ArrayStructure.of("i4", (4,))
    store.create("x", structure)
    with pytest.raises(Conflict):
        store.create("x", structure)
    with pytest.raises(InvalidRequest, match="objects"):
        store.create("y", ArrayStructure("|O", (1,), ((1,),)))
    for key in ("", "../x", "a/../b", "/x", "a//b", "a\\b", ".hidden"):
        with pytest.raises(InvalidRequest):
            store.create(key, structure)


def test_zarr_alone_can_read_what_is_stored(store):
    numbers = ArrayStructure.of(">f8", (4, 2), dims=("t", "x"))
    store.create("n", numbers)
    store.write_full("n", numbers, some_values(">f8", (4, 2)).tobytes())
    array = zarr.open_array(store.directory / "n", mode="r")
    assert array[...].tolist() == some_values(">f8", (4, 2)).tolist()
    assert array.metadata.dimension_names == ("t", "x")

    texts = ArrayStructure.of("<U3", (2,))
    store.create("t", texts)
    store.write_full("t", texts, np.array(["ab", "cde"]).tobytes())
    array = zarr.open_array(store.directory / "t", mode="r")
    assert array[...].view(array.attrs["dtype"])[..., 0].tolist() == ["ab", "cde"]


def test_blocks_written_at_once_all_arrive(store):
    """Blocks here do not fall on stored chunks, so a lost lock would lose values."""
    structure = ArrayStructure.of("i4", (64,), ((3,) + (1,) * 61,))
    store.create("x", structure)
    store.write_block("x", structure, (0,), np.array([0, 1, 2], "i4").tobytes())

    def write(blocks):
        for block in blocks:
            store.write_block("x", structure, (block,), np.int32(block + 2).tobytes())

    threads = [threading.Thread(target=write, args=(range(1 + i, 62, 4),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("x", structure).tolist() == list(range(64))
