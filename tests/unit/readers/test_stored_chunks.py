"""A chunk that is given away as it lies in the file is that of the rows that were asked for.

If these fail, readers that decode chunks themselves get frames of other events.
"""

import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.readers import EventFiles, Resource, open_reader
from flystore.storage import Roots


def reader_of(directory, values, item, **storage):
    with h5py.File(directory / "a.h5", "w") as file:
        file.create_dataset("d", data=values, **storage)
    resource = Resource(f"file://localhost{directory}/a.h5", {"dataset": "d"})
    return open_reader(EventFiles("application/x-hdf5", values.dtype.str, item, (resource,)), Roots([directory]))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_chunk_holds_just_the_rows_from_its_first(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("stored")
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
    chunks = tuple(data.draw(st.integers(1, n)) for n in shape)
    values = np.arange(np.prod(shape), dtype="<i4").reshape(shape)
    item = data.draw(st.sampled_from([shape[1:], (1, *shape[1:]), (shape[1], 1, shape[2])]))
    with reader_of(directory, values, item, chunks=chunks, compression="gzip") as reader:
        found = reader.stored(0, 1, item)
        seen = values.reshape(shape[0], *item)
        index = tuple(data.draw(st.integers(0, -(-n // c) - 1)) for n, c in zip(seen.shape, found.chunks, strict=True))
        box = found.box(index[0] * found.chunks[0], index)
        plain = zlib.decompress(reader.stored_chunk(0, box))
    region = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, found.chunks, strict=True))
    part = seen[region]
    whole = np.frombuffer(plain, "<i4").reshape(found.chunks)
    assert (whole[tuple(slice(0, n) for n in part.shape)] == part).all()


def test_no_chunk_begins_in_the_middle_of_another(tmp_path):
    with reader_of(tmp_path, np.zeros((4, 3), "<i4"), (3,), chunks=(2, 3)) as reader:
        found = reader.stored(0, 1, (3,))
    assert found.box(2, (1, 0)) == (1, 0)
    assert found.box(3, (1, 0)) is None


@pytest.mark.parametrize(
    ("rows_per_event", "row_shape"),
    [(2, (3,)), (1, (1, 4)), (1, ()), (1, (3, 3))],
)
def test_rows_of_another_shape_have_no_chunks(tmp_path, rows_per_event, row_shape):
    with reader_of(tmp_path, np.zeros((4, 3), "<i4"), (3,), chunks=(2, 3)) as reader:
        assert reader.stored(0, rows_per_event, row_shape) is None


def test_data_without_chunks_has_none(tmp_path):
    with reader_of(tmp_path, np.zeros((4, 3), "<i4"), (3,)) as reader:
        assert reader.stored(0, 1, (3,)) is None


def test_a_chunk_that_was_never_written_or_skipped_a_filter_is_not_given_away(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("d", (6, 3), "<i4", chunks=(2, 3), compression="gzip")
        dataset[0:2] = 1
        dataset.id.write_direct_chunk((2, 0), bytes(24), filter_mask=1)
    resource = Resource(f"file://localhost{tmp_path}/a.h5", {"dataset": "d"})
    files = EventFiles("application/x-hdf5", "<i4", (3,), (resource,))
    with open_reader(files, Roots([tmp_path])) as reader:
        assert reader.stored(0, 1, (3,)) is not None
        given_away = [reader.stored_chunk(0, (number, 0)) is not None for number in range(4)]
    assert given_away == [True, False, False, False]
