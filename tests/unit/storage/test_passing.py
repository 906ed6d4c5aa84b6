"""Chunks of internal arrays are given away just as they are stored, and never when they are damaged.

If these fail, whoever decodes them gets values that nobody sent.
"""

import numcodecs
import numpy as np
import pytest

from flystore.model.errors import Damaged
from flystore.model.structures import ArrayStructure
from flystore.storage import ArrayStore, without_sum


@pytest.fixture
def store(tmp_path):
    return ArrayStore(tmp_path / "arrays")


@pytest.mark.parametrize("dtype", ["<i4", ">f8", "?", "<M8[ns]", "<U3", "S4", [("a", ">i2"), ("b", "<f4")]])
def test_a_chunk_decodes_to_the_bytes_of_its_values(store, dtype):
    structure = ArrayStructure.of(dtype, (4, 3), ((2, 2), (3,)))
    values = np.arange(12).astype("i8").reshape(4, 3)
    values = values.astype(dtype) if not isinstance(dtype, list) else np.array([(n, n) for n in range(12)], dtype)
    store.create("a", structure)
    store.write_full("a", structure, values.reshape(4, 3))
    stored = store.stored("a", structure)
    chunk = store.stored_chunk("a", stored, (1, 0))
    assert stored.summed
    found = np.frombuffer(numcodecs.get_codec({"id": "blosc"}).decode(without_sum(chunk)), "u1")
    told = ArrayStructure(stored.dtype, (), ()).numpy_dtype
    assert (np.ndarray((2, 3), told, found) == values.reshape(4, 3)[2:]).all()


def test_a_chunk_that_nobody_wrote_is_none(store):
    structure = ArrayStructure.of("<i4", (4,), ((2, 2),))
    store.create("a", structure)
    store.write_block("a", structure, (1,), np.arange(2, dtype="<i4"))
    stored = store.stored("a", structure)
    assert store.stored_chunk("a", stored, (0,)) is None
    assert store.stored_chunk("a", stored, (1,)) is not None


@pytest.mark.parametrize("harm", ["flipped", "short", "gone"])
def test_a_chunk_that_is_damaged_is_not_given_away(store, harm):
    structure = ArrayStructure.of("<i4", (4,), ((2, 2),))
    store.create("a", structure)
    store.write_full("a", structure, np.arange(4, dtype="<i4"))
    path = store.directory / "a" / "c" / "1"
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:3] if harm == "short" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(Damaged):
        store.stored_chunk("a", store.stored("a", structure), (1,))


def test_items_of_no_bytes_have_nothing_stored(store):
    structure = ArrayStructure.of("<U0", (4,))
    store.create("a", structure)
    assert store.stored("a", structure) is None
