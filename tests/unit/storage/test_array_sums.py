"""Internal arrays know when a file of theirs is damaged or gone, and stay readable with zarr alone.

If these fail, a part of an array that was lost reads as zeros, or an array cannot be read any more without flystore.
"""

import json

import numpy as np
import pytest
import zarr

from flystore.model.errors import Damaged
from flystore.model.structures import ArrayStructure
from flystore.storage import ArrayStore

VALUES = np.arange(24.0).reshape(6, 4)
STRUCTURE = ArrayStructure.of(np.dtype("<f8"), (6, 4), ((2, 2, 2), (4,)))


@pytest.fixture
def store(tmp_path):
    made = ArrayStore(tmp_path)
    made.create("a", STRUCTURE)
    return made


@pytest.fixture
def written(store):
    store.write_full("a", STRUCTURE, VALUES)
    return store


def chunk(store, number):
    return store.directory / "a" / "c" / str(number) / "0"


def test_zarr_alone_reads_what_is_stored(written):
    assert (zarr.open_array(written.directory / "a", mode="r")[:] == VALUES).all()
    assert zarr.open_array(written.directory / "a", mode="r").attrs["dtype"] == "<f8"


def test_a_whole_array_is_checked_file_by_file(written):
    found = written.verify("a")
    assert (found.checked, found.unverified, found.damaged) == (5, [], [])  # metadata, the list, three chunks


def test_what_nobody_wrote_is_zeros_and_no_damage(store):
    assert (store.read("a", STRUCTURE) == 0).all()
    store.write_block("a", STRUCTURE, (1, 0), VALUES[2:4])
    assert (store.read("a", STRUCTURE)[:2] == 0).all()
    assert store.verify("a").damaged == []


def test_a_written_chunk_that_is_gone_is_damage(written):
    chunk(written, 1).unlink()
    with pytest.raises(Damaged, match="the chunk c/1/0 was written and is gone"):
        written.read("a", STRUCTURE)
    assert (written.read("a", STRUCTURE, (slice(4, 6),)) == VALUES[4:6]).all()
    assert written.verify("a").damaged == ["the chunk c/1/0 was written and is gone"]
    written.write_block("a", STRUCTURE, (1, 0), VALUES[2:4])
    assert (written.read("a", STRUCTURE) == VALUES).all()
    assert written.verify("a").damaged == []


def test_zeros_that_were_written_are_kept_like_any_value(store):
    store.write_full("a", STRUCTURE, VALUES)
    store.write_full("a", STRUCTURE, np.zeros((6, 4)))
    assert (store.read("a", STRUCTURE) == 0).all()
    assert store.verify("a").damaged == []
    chunk(store, 2).unlink()
    with pytest.raises(Damaged):
        store.read("a", STRUCTURE)


@pytest.mark.parametrize("content", [b"", b"abc", b"\0" * 40])
def test_a_chunk_that_is_something_else_is_damage(written, content):
    chunk(written, 0).write_bytes(content)
    with pytest.raises(Damaged):
        written.read("a", STRUCTURE, (slice(0, 1),))
    assert written.verify("a").damaged == ["the chunk c/0/0 fails its checksum"]


@pytest.mark.parametrize(
    ("before", "after"),
    [('"separator": "/"', '"separator": "."'), ('"float64"', '"int64"'), ('"fill_value": 0', '"fill_value": 4')],
)
def test_metadata_that_was_changed_is_damage(written, before, after):
    path = written.directory / "a" / "zarr.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(Damaged):
        written.read("a", STRUCTURE)
    assert written.verify("a").damaged[0] == "zarr.json fails its checksum"


def test_a_checksum_that_is_gone_is_noticed(written):
    path = written.directory / "a" / "zarr.json"
    described = json.loads(path.read_text())
    del described["attributes"]["crc32c"]
    path.write_text(json.dumps(described))
    assert "zarr.json has lost its checksum" in written.verify("a").damaged


def test_a_grown_array_is_checked_too(written):
    grown = written.patch("a", STRUCTURE, (6, 0), (3, 4), np.ones((3, 4)), extend=True)
    assert written.verify("a").damaged == []
    assert written.verify("a").checked == 7
    assert (written.read("a", grown)[6:] == 1).all()


def test_an_array_of_before_there_were_lists_is_unverified(written):
    (written.directory / "a" / ".written").unlink()
    path = written.directory / "a" / "zarr.json"
    described = json.loads(path.read_text())
    del described["attributes"]["crc32c"]
    path.write_text(json.dumps(described))
    assert (written.read("a", STRUCTURE) == VALUES).all()
    found = written.verify("a")
    assert found.damaged == []
    assert found.unverified == ["which chunks were written is not known", "zarr.json carries no checksum"]


def test_a_list_whose_last_line_a_power_cut_left_short_is_no_damage(written):
    path = written.directory / "a" / ".written"
    path.write_bytes(path.read_bytes()[:-5])
    assert written.verify("a").damaged == []
    path.write_bytes(b"c/9/9 00000000\n" + path.read_bytes())
    assert written.verify("a").damaged == ["2 lines of .written fail their checksum"]


def test_an_array_that_is_gone_is_damage(store):
    assert store.verify("b").damaged == ["its directory is gone"]


def test_an_array_of_items_without_bytes_is_whole(tmp_path):
    empty = ArrayStore(tmp_path)
    empty.create("e", ArrayStructure.of(np.dtype("<U0"), (3,), None))
    assert empty.verify("e").damaged == []


def test_a_scalar_is_checked(tmp_path):
    scalars = ArrayStore(tmp_path)
    structure = ArrayStructure.of(np.dtype("<i4"), (), None)
    scalars.create("s", structure)
    scalars.write_full("s", structure, np.array(7, "<i4"))
    assert scalars.verify("s").damaged == []
    (tmp_path / "s" / "c").unlink()
    with pytest.raises(Damaged):
        scalars.read("s", structure)
