"""Parts of awkward, ragged and sparse nodes come back as they were sent, or as an error, never as other values.

If these fail, a flipped bit becomes a measurement, or a small body fills the memory.
"""

import contextlib
import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flystore.model.errors import Damaged, InvalidRequest, TooLarge
from flystore.storage import (
    MOST_ENTRIES,
    PartStore,
    names_in,
    pack,
    pack_table,
    read_parquet,
    read_zip,
    rows_of,
    unpack_untrusted,
)

BUFFERS = {"node0-offsets": np.arange(5).tobytes(), "node1-data": np.arange(12.0).tobytes(), "node2-data": b""}
TABLE = pa.table({"dim0": np.arange(50, dtype="u8"), "data": np.arange(50) / 7})


@pytest.fixture
def store(tmp_path):
    made = PartStore(tmp_path)
    made.create("7")
    return made


def anything(name):
    return True


def test_buffers_come_back_and_can_be_read_by_any_zip_reader(store):
    store.write("7", "buffers.zip", pack(BUFFERS))
    path = store.path("7", "buffers.zip")
    assert read_zip(path) == BUFFERS
    assert read_zip(path, ["node1-data"]) == {"node1-data": BUFFERS["node1-data"]}
    assert names_in(path) == [(name, len(data)) for name, data in BUFFERS.items()]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_columns_come_back_and_can_be_read_by_any_parquet_reader(store):
    store.write("7", "block-0.parquet", pack_table(TABLE))
    path = store.path("7", "block-0.parquet")
    assert read_parquet(path).equals(TABLE)
    assert rows_of(path) == 50
    assert pq.read_table(path).to_pydict() == TABLE.to_pydict()


def test_a_part_is_replaced_whole(store):
    store.write("7", "a.zip", pack({"x": b"old"}))
    store.write("7", "a.zip", pack({"x": b"new"}))
    assert read_zip(store.path("7", "a.zip")) == {"x": b"new"}
    assert store.verify("7").checked == 1


def test_a_part_that_nobody_wrote_is_not_one_that_is_lost(store):
    assert store.path("7", "a.zip") is None
    store.write("7", "a.zip", pack(BUFFERS))
    store.path("7", "a.zip").unlink()
    with pytest.raises(Damaged, match="gone"):
        store.path("7", "a.zip")
    assert "gone" in store.verify("7").damaged[0]


def test_a_directory_that_is_lost_is_damage(store, tmp_path):
    with pytest.raises(Damaged):
        store.path("8", "a.zip")
    assert store.verify("8").damaged


@pytest.mark.parametrize(("part", "content"), [("a.zip", pack(BUFFERS)), ("a.parquet", bytes(pack_table(TABLE)))])
def test_no_flipped_bit_becomes_a_value(store, part, content):
    store.write("7", part, content)
    path = store.path("7", part)
    read = read_zip if part.endswith("zip") else read_parquet
    good = read(path)
    found = 0
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            # What says nothing about a value, such as the time of an entry, may change.
            assert read(path) == good
        except Damaged:
            found += 1
            assert store.verify("7").damaged
    assert found > len(content) / 3 / 2


@pytest.mark.parametrize("cut", [0, 1, 30, 200])
def test_a_part_that_was_cut_is_damage(store, cut):
    for part, content, read in (("a.zip", pack(BUFFERS), read_zip), ("a.parquet", pack_table(TABLE), read_parquet)):
        store.write("7", part, bytes(content)[:cut])
        with pytest.raises(Damaged):
            read(store.path("7", part))
    assert len(store.verify("7").damaged) == 2


# --------------------------------------------------------------------------- from outside


def deflated(size):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("node0-data", bytes(size))
    return sink.getvalue()


def test_a_zip_that_is_deflated_is_read_too():
    assert unpack_untrusted(deflated(1000), anything, 1000) == {"node0-data": bytes(1000)}


def test_a_bomb_is_refused_before_it_is_inflated():
    bomb = deflated(50 << 20)
    assert len(bomb) < 100_000
    with pytest.raises(TooLarge):
        unpack_untrusted(bomb, anything, 1 << 20)


def test_an_entry_that_lies_about_its_size_is_refused():
    lie = bytearray(deflated(5 << 20))
    at = lie.rindex(b"PK\x01\x02")
    lie[at + 24 : at + 28] = (10).to_bytes(4, "little")
    with pytest.raises(InvalidRequest):
        unpack_untrusted(bytes(lie), anything, 1 << 20)


def test_a_zip_of_very_many_entries_is_refused():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for number in range(MOST_ENTRIES + 1):
            archive.writestr(str(number), b"")
    with pytest.raises(TooLarge):
        unpack_untrusted(sink.getvalue(), anything, 1 << 30)


def test_two_buffers_of_one_name_are_refused():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(InvalidRequest, match="two buffers"):
        unpack_untrusted(sink.getvalue(), anything, 1000)


def test_a_buffer_that_nobody_wants_is_refused():
    with pytest.raises(InvalidRequest, match="passwd"):
        unpack_untrusted(pack({"../../etc/passwd": b"x"}), {"node0-data"}.__contains__, 1000)


@pytest.mark.parametrize(
    "body", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"x" * 1000, pack(BUFFERS)[:-10], pack(BUFFERS)[5:]]
)
def test_what_is_no_zip_is_refused_or_empty(body):
    with contextlib.suppress(InvalidRequest):
        assert unpack_untrusted(body, anything, 1 << 20) in ({}, BUFFERS)


def test_a_damaged_body_never_raises_anything_else():
    content = pack(BUFFERS)
    for at in range(len(content)):
        for bit in (0, 7):
            changed = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
            try:
                unpack_untrusted(changed, anything, 1 << 20)
            except InvalidRequest:
                continue
