"""Arrays and parts in a directory and in a bucket alike.

If these fail, a facility that keeps its arrays in a bucket reads other values than were written, loses what another
machine wrote at the same time, or is told that nothing was written where something is gone.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.model.errors import Conflict, Damaged, Misconfigured, NotReady, Unavailable
from flystore.model.structures import ArrayStructure
from flystore.storage import (
    ArrayStore,
    BucketKeep,
    DirectoryKeep,
    FileLocks,
    PartStore,
    check_rows,
    names_in,
    opened_rows,
    pack,
    pack_rows,
    pack_table,
    read_parquet,
    read_zip,
    rows_of,
)
from flystore.storage import _keep_bucket as keep_bucket
from flystore.storage._objects import Bucket
from flystore.testing.buckets import s3_server

_NUMBERS = count()


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        server.make_bucket("flystore-tests")
        yield server


def bucket_keep(directory, prefix=None):
    def locks(kind):
        return FileLocks(directory, kind)

    return BucketKeep(f"s3://flystore-tests/{prefix or next(_NUMBERS)}/kept", directory, locks)


@pytest.fixture(params=["directory", "bucket"])
def keep(request, tmp_path):
    if request.param == "directory":
        return DirectoryKeep(tmp_path / "arrays")
    request.getfixturevalue("s3")
    return bucket_keep(tmp_path / "locks")


_SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data(), shape=_SHAPES, dtype=st.sampled_from(["<i4", ">f8", "<U3", "|b1"]))
def test_an_array_written_in_random_blocks_and_patches_is_what_numpy_has(keep, data, shape, dtype):
    key = str(next(_NUMBERS))
    chunk = tuple(data.draw(st.integers(1, n)) for n in shape)
    chunks = tuple((c,) * (n // c) + ((n % c,) if n % c else ()) for c, n in zip(chunk, shape, strict=True))
    structure = ArrayStructure.of(np.dtype(dtype), shape, chunks)
    store = ArrayStore(keep)
    store.create(key, structure)
    expected = np.zeros(shape, dtype)
    for number in range(data.draw(st.integers(1, 4))):
        start = tuple(data.draw(st.integers(0, n - 1)) for n in expected.shape)
        extent = tuple(data.draw(st.integers(1, 4)) for _ in shape)
        values = (np.arange(np.prod(extent)).reshape(extent) + number + 1).astype(dtype)
        grown = tuple(max(n, a + b) for n, a, b in zip(expected.shape, start, extent, strict=True))
        larger = np.zeros(grown, dtype)
        larger[tuple(slice(n) for n in expected.shape)] = expected
        larger[tuple(slice(a, a + b) for a, b in zip(start, extent, strict=True))] = values
        structure = store.patch(key, structure, start, extent, values, extend=True)
        expected = larger
        assert structure.shape == expected.shape
    assert np.array_equal(store.read(key, structure), expected)
    check = store.verify(key)
    assert not check.damaged
    assert not check.unverified


def test_a_key_is_taken_once_and_free_again_after_it_was_deleted(keep):
    store = ArrayStore(keep)
    structure = ArrayStructure.of("i4", (3,))
    store.create("7", structure)
    with pytest.raises(Conflict):
        store.create("7", structure)
    store.delete("7")
    store.delete("7")
    store.create("7", structure)
    assert store.read("7", structure).tolist() == [0, 0, 0]


def test_items_of_no_bytes_and_scalars_are_kept_too(keep):
    store = ArrayStore(keep)
    nothing, scalar = ArrayStructure.of("U0", (2,)), ArrayStructure.of("f8", ())
    store.create("nothing", nothing)
    store.create("scalar", scalar)
    store.write_full("scalar", scalar, np.float64(2.5).tobytes())
    assert store.read("nothing", nothing).tolist() == ["", ""]
    assert store.read("scalar", scalar) == 2.5
    assert not store.verify("nothing").damaged
    assert store.verify("scalar").checked == 3


def test_a_chunk_that_is_gone_is_damage_and_one_that_nobody_wrote_is_zeros(keep):
    store = ArrayStore(keep)
    structure = ArrayStructure.of("i4", (4,), ((2, 2),))
    store.create("1", structure)
    store.write_block("1", structure, (0,), np.array([1, 2], "i4").tobytes())
    assert store.read("1", structure).tolist() == [1, 2, 0, 0]
    stored = store.stored("1", structure)
    assert store.stored_chunk("1", stored, (1,)) is None
    assert store.stored_chunk("1", stored, (0,)) is not None
    _remove(keep, "1", "c/0")
    with pytest.raises(Damaged, match="gone"):
        store.read("1", structure)
    with pytest.raises(Damaged, match="gone"):
        store.stored_chunk("1", stored, (0,))
    assert store.verify("1").damaged


def _remove(keep, key, name):
    folder = keep.folder(key)
    if isinstance(keep, BucketKeep):
        folder.bucket.delete([f"arrays/{key}/{name}"])
    else:
        (folder.path / name).unlink()


def test_parts_of_every_kind_come_back(keep):
    parts = PartStore(keep)
    parts.create("n")
    table = pa.table({"x": np.arange(400_000), "y": np.random.default_rng(1).random(400_000)})
    parts.write("n", "buffers.zip", pack({"a": b"1234", "b": bytes(3 << 20)}))
    parts.write("n", "table.parquet", pack_table(table))
    parts.write("n", "partition-0.parquet", pack_rows(table))
    assert names_in(parts.path("n", "buffers.zip")) == [("a", 4), ("b", 3 << 20)]
    assert read_zip(parts.path("n", "buffers.zip"), ["a"]) == {"a": b"1234"}
    assert read_parquet(parts.path("n", "table.parquet")).equals(table)
    assert rows_of(parts.path("n", "table.parquet")) == 400_000
    file, schema = opened_rows(parts.path("n", "partition-0.parquet"))
    with file:
        assert schema.equals(table.schema)
        assert file.read(["y"]).equals(table.select(["y"]))
    assert parts.path("n", "other.zip") is None
    assert parts.verify("n").checked == 3
    parts.write("n", "buffers.zip", pack({"a": b"5"}))
    assert read_zip(parts.path("n", "buffers.zip")) == {"a": b"5"}
    _remove(keep, "n", "buffers.zip")
    with pytest.raises(Damaged, match="gone"):
        parts.path("n", "buffers.zip")
    assert parts.verify("n").damaged
    parts.create("n")
    assert parts.path("n", "buffers.zip") is None


def test_a_part_that_is_cut_short_is_damage(keep):
    parts = PartStore(keep)
    parts.create("n")
    for name in ("buffers.zip", "table.parquet"):
        whole = bytes(pack({"a": b"1234"}) if name.endswith("zip") else pack_table(pa.table({"x": [1, 2]})))
        parts.write("n", name, whole[:-5])
        with pytest.raises(Damaged):
            (names_in if name.endswith("zip") else read_parquet)(parts.path("n", name))


def test_a_part_in_a_bucket_that_is_replaced_while_it_is_read_is_said_and_never_a_mixture(s3, tmp_path):
    parts = PartStore(bucket_keep(tmp_path))
    parts.create("n")
    numbers = np.random.default_rng(1).random((2, 1_000_000))
    parts.write("n", "partition-0.parquet", pack_rows(pa.table({"x": numbers[0]})))
    file, _ = opened_rows(parts.path("n", "partition-0.parquet"))
    old = parts.path("n", "partition-0.parquet")
    parts.write("n", "partition-0.parquet", pack_rows(pa.table({"x": numbers[1]})))
    with file, pytest.raises(NotReady, match="read again"):
        file.read()
    with pytest.raises(NotReady, match="read again"):
        check_rows(old)
    file, _ = opened_rows(parts.path("n", "partition-0.parquet"))
    with file:
        assert np.array_equal(file.read()["x"].to_numpy(), numbers[1])


# --------------------------------------------------------------------------- several machines, one bucket


class _NoLocks:
    """What keeps apart the writers of one machine; for those of two there is none."""

    def holding(self, key):
        return threading.RLock()

    keeping_writers_out = holding


def _machines(tmp_path, number):
    prefix = next(_NUMBERS)
    url = f"s3://flystore-tests/{prefix}/kept"
    return [BucketKeep(url, tmp_path / str(one), lambda kind: _NoLocks()) for one in range(number)]


def test_machines_that_write_to_one_chunk_at_the_same_time_all_keep_what_they_wrote(s3, tmp_path):
    stores = [ArrayStore(keep) for keep in _machines(tmp_path, 3)]
    structure = ArrayStructure.of("i4", (24,), ((24,),))
    stores[0].create("1", structure)
    start = threading.Barrier(3)

    def write(number):
        start.wait()
        for place in range(number, 24, 3):
            stores[number].patch("1", structure, (place,), (1,), np.array([place + 1], "i4"))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write, number) for number in range(3)]:
            done.result()
    assert stores[0].read("1", structure).tolist() == list(range(1, 25))
    assert not stores[0].verify("1").damaged


def test_machines_that_write_parts_at_the_same_time_list_them_all(s3, tmp_path):
    stores = [PartStore(keep) for keep in _machines(tmp_path, 3)]
    stores[0].create("1")
    start = threading.Barrier(3)

    def write(number):
        start.wait()
        for part in range(5):
            stores[number].write("1", f"{number}-{part}.zip", pack({"a": b"1"}))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write, number) for number in range(3)]:
            done.result()
    folder = stores[0].keep.folder("1")
    assert len(keep_bucket.listed_in(folder.get(".written"))) == 15
    assert stores[0].verify("1").checked == 15


def test_without_conditions_a_write_of_another_machine_is_undone_which_is_why_the_start_says_so(s3, tmp_path):
    """The negative control of the two tests above: with conditions ignored, one of two writers is lost."""
    keeps = _machines(tmp_path, 2)
    for keep in keeps:
        keep.conditional = False
    ArrayStore(keeps[0]).create("1", ArrayStructure.of("i4", (2,)))
    one, other = (keep.folder("1") for keep in keeps)
    seen, version = other.got(".written")
    one.list_written(["c/0"])
    other.put_over(".written", seen + b"", version)
    assert keep_bucket.listed_in(one.get(".written")) == frozenset()
    for keep in keeps:
        keep.conditional = True
    seen, version = keeps[1].folder("1").got(".written")
    keeps[0].folder("1").list_written(["c/0"])
    with pytest.raises(keep_bucket.Overtaken):
        keeps[1].folder("1").put_over(".written", seen, version)


def test_a_writer_that_is_overtaken_each_time_gives_up_with_a_word(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(keep_bucket, "TRIES", 3)
    monkeypatch.setattr(keep_bucket, "_LONGEST_PAUSE", 0.001)
    (keep,) = _machines(tmp_path, 1)

    def overtaken():
        raise keep_bucket.Overtaken

    with pytest.raises(Unavailable, match="try again later"):
        keep.folder("1").again_if_overtaken(overtaken)


# --------------------------------------------------------------------------- what a bucket can be like


def test_a_bucket_is_tried_before_it_is_used(s3, tmp_path, monkeypatch):
    keep = bucket_keep(tmp_path)
    keep.examine()
    assert keep.conditional
    assert list(keep.bucket.listed()) == []
    put = Bucket.put
    monkeypatch.setattr(Bucket, "put", lambda self, name, data, **condition: put(self, name, data))
    keep.examine()
    assert not keep.conditional


def test_a_bucket_that_is_not_there_is_said_and_never_taken_for_zeros(s3, tmp_path):
    keep = BucketKeep("s3://flystore-nowhere/x", tmp_path, lambda kind: FileLocks(tmp_path, kind))
    with pytest.raises(Misconfigured, match="no such bucket"):
        keep.examine()
    structure = ArrayStructure.of("i4", (2,))
    with pytest.raises(Unavailable, match="no such bucket"):
        ArrayStore(keep).read("1", structure)
    with pytest.raises(Unavailable, match="no such bucket"):
        PartStore(keep).path("1", "a.zip")


def test_a_prefix_belongs_to_one_store(s3, tmp_path):
    keep = bucket_keep(tmp_path)
    keep.belongs_to("one")
    keep.belongs_to("one")
    with pytest.raises(Misconfigured, match="another store"):
        keep.belongs_to("two")
