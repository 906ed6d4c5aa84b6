"""What is sent as it lies in a file is what reading it gives, whatever the shape, the chunks and the slice.

If these fail, long reads give other pixels than short ones, or half of a file that was replaced meanwhile.
"""

import os

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_array_bodies import NUMBER, announce, descriptors_of, service, write

from flystore.model.errors import NotReady, Unreadable
from flystore.service import arrays
from flystore.storage import FileRuns

__all__ = ["service"]

SOME = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
LONG_AGO = 1_500_000_000


def at_rest(uri):
    path = uri.removeprefix("file://localhost")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return uri


def pieces(service, path, wanted, sent_bytes, read_last):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SENT_BYTES", sent_bytes)
        patch.setattr(arrays, "_FROM_FILES_BYTES", 3 * sent_bytes)
        found = service.arrays.body(path, wanted, read_last=read_last)
        parts, from_files = [], 0
        for piece in found.pieces:
            if isinstance(piece, FileRuns):
                from_files += piece.nbytes
                parts.append(b"".join(piece.read()))
                assert len(parts[-1]) == piece.nbytes
            else:
                parts.append(bytes(piece))
        assert sum(map(len, parts)) == found.nbytes
    return parts, from_files


@SOME
@given(st.data())
def test_what_lies_in_a_file_is_what_is_read(service, data):
    events, deep = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 3))
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    dtype = data.draw(st.sampled_from(["<u2", ">i4", "<f8", "|u1", "|b1"]))
    stored = data.draw(st.sampled_from([dtype, np.dtype(dtype).newbyteorder("S").str]))
    count = events * deep * height * width
    values = (np.arange(count) * 7 % 251).astype(stored).reshape(events * deep, height, width)
    chunks, storage = None, {}
    if data.draw(st.booleans()):
        chunks = (data.draw(st.integers(1, events * deep)), height, data.draw(st.integers(1, width)))
        storage = data.draw(st.sampled_from([{}, {}, {"compression": "gzip"}]))
    uri = at_rest(write(service.data / f"{next(NUMBER)}.h5", values, chunks, **storage))
    gap = data.draw(st.integers(0, events - 1))
    ranges = [(0, gap, 1)] if gap else []
    ranges.append((min(gap + data.draw(st.integers(0, 1)), events - 1), events, gap + 1))
    join = data.draw(st.sampled_from(["stack", "concat"]))
    path = announce(service, (deep, height, width), dtype, [(uri, ranges)], chunk_shape=[1], join_method=join)
    length = service.browse.entry(path).structure["shape"][0]
    start = data.draw(st.integers(0, length - 1))
    wanted = (slice(start, data.draw(st.integers(start + 1, length)), data.draw(st.sampled_from([1, 1, 2]))),)
    sent_bytes, read_last = data.draw(st.integers(1, 200)), data.draw(st.integers(0, 400))
    parts, _ = pieces(service, path, wanted, sent_bytes, read_last)
    assert b"".join(parts) == bytes(service.arrays.read(path, wanted))


@pytest.mark.parametrize("chunks", [None, (1, 8, 8), (4, 8, 8)])
def test_the_middle_of_a_long_body_is_not_read(service, chunks):
    values = np.arange(100 * 64, dtype="<u2").reshape(100, 8, 8)
    uri = at_rest(write(service.data / f"{next(NUMBER)}.h5", values, chunks))
    path = announce(service, (8, 8), "<u2", [(uri, [(0, 100, 1)])], chunk_shape=[1])
    parts, from_files = pieces(service, path, (), 512, 1024)
    assert b"".join(parts) == values.tobytes()
    assert len(parts[0]) == 512
    assert from_files == values.nbytes - 512 - 1024


def test_a_file_that_may_still_be_changing_is_read(service):
    values = np.arange(100 * 64, dtype="<u2").reshape(100, 8, 8)
    name = service.data / f"{next(NUMBER)}.h5"
    uri = write(name, values, (1, 8, 8))
    os.utime(name, (2**32, 2**32))  # the clock of its writer is ahead
    path = announce(service, (8, 8), "<u2", [(uri, [(0, 100, 1)])], chunk_shape=[1])
    parts, from_files = pieces(service, path, (), 512, 1024)
    assert (b"".join(parts), from_files) == (values.tobytes(), 0)


def test_frames_that_were_never_written_are_not_sent_as_fill_values(service):
    name = service.data / f"{next(NUMBER)}.h5"
    with h5py.File(name, "w") as file:
        data = file.create_dataset("x", (60, 8, 8), "<u2", chunks=(1, 8, 8))
        data[:20] = 1
        data[40:] = 1
    path = announce(service, (8, 8), "<u2", [(at_rest(f"file://localhost{name}"), [(0, 60, 1)])], chunk_shape=[1])
    shape = tuple(service.browse.entry(path).structure["shape"])
    if shape == (60, 8, 8):
        with pytest.raises(Unreadable, match="never written"):
            pieces(service, path, (), 512, 1024)
    else:  # rows that are not there are left out
        parts, _ = pieces(service, path, (), 512, 1024)
        assert b"".join(parts) == np.ones(shape, "<u2").tobytes()


@pytest.mark.parametrize("change", ["written over", "cut short"])
def test_a_file_that_changes_while_it_is_sent_ends_the_body(service, change):
    values = np.arange(100 * 64, dtype="<u2").reshape(100, 8, 8)
    name = service.data / f"{next(NUMBER)}.h5"
    path = announce(service, (8, 8), "<u2", [(at_rest(write(name, values, (1, 8, 8))), [(0, 100, 1)])], chunk_shape=[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SENT_BYTES", 512)
        found = service.arrays.body(path, read_last=1024).pieces
        next(found)
        assert isinstance(next(found), FileRuns)
        with open(name, "r+b") as file:
            if change == "cut short":
                file.truncate(name.stat().st_size // 2)
            else:
                file.seek(name.stat().st_size // 2)
                file.write(b"\xff" * 100)
        with pytest.raises(NotReady, match="was written to while it was sent"):
            next(found)
    assert not descriptors_of(name)
