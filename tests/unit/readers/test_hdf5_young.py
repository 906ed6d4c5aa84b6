"""What is remembered of a file that may be changing still is used only while it holds.

If these fail, people are shown one chunk's values under another's number, or every frame of a run under way costs the
reading of all its chunk index.
"""

import os

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.readers import EventFiles, Resource, _h5file, _hdf5, open_reader
from flystore.readers._h5file import Trace
from flystore.storage import Roots

ITEM = (4, 8)


def read(path, rows):
    files = EventFiles("application/x-hdf5", "<i4", ITEM, (Resource(f"file://localhost{path}", {"dataset": "x"}),))
    with open_reader(files, Roots([path.parent])) as reader:
        rows = np.asarray(rows)
        return reader.read(np.zeros(len(rows), int), rows)


def frames(n, first=0):
    return np.arange(first, first + n * 32, dtype="<i4").reshape(n, *ITEM)


def write(path, values, order=None, **storage):
    """Write frames, a chunk each, in an order that decides where in the file they lie."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", values.shape, values.dtype, chunks=(1, *ITEM), **storage)
        for place in range(len(values)) if order is None else order:
            data[place] = values[place]
    return path


@pytest.fixture
def described(monkeypatch):
    """Count how often a chunk index is read."""
    calls = []
    real = _hdf5.layout_of
    monkeypatch.setattr(_hdf5, "layout_of", lambda *given: calls.append(given) or real(*given))
    monkeypatch.setattr(_hdf5, "_young", _hdf5._KeptYoung())
    monkeypatch.setattr(_h5file, "SETTLED_NS", 10**18)  # young however long the test takes
    monkeypatch.setattr(_hdf5, "_kept", _hdf5._Kept())
    return calls


def test_the_chunk_index_of_a_young_file_is_read_once_while_it_stays(tmp_path, described):
    path = write(tmp_path / "x.h5", frames(50))
    for row in range(20):
        assert (read(path, [row]) == frames(50)[row]).all()
    os.utime(path)  # touched, and not changed
    assert (read(path, [7]) == frames(50)[7]).all()
    assert len(described) == 1


def test_a_file_changed_within_the_same_tick_of_the_clock_is_read_anew(tmp_path, described):
    values = frames(6)
    path = write(tmp_path / "x.h5", values)
    before = path.stat()
    assert (read(path, range(6)) == values).all()
    other = write(tmp_path / "y.h5", values, order=[5, 4, 3, 2, 1, 0])
    with open(path, "r+b") as file:  # the same inode
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert (read(path, range(6)) == values).all()
    assert len(described) == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=8), swmr=st.booleans())
def test_a_growing_file_gives_at_any_time_what_h5py_gives(tmp_path_factory, steps, swmr):
    path = tmp_path_factory.mktemp("growing") / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("x", (0, *ITEM), "<i4", maxshape=(None, *ITEM), chunks=(1, *ITEM))
        if swmr:
            file.swmr_mode = True
        written = 0
        for count, look in steps:
            data.resize(written + count, axis=0)
            data[written:] = frames(count, written * 32)
            written += count
            data.flush()
            file.flush()
            if look and swmr:
                assert (read(path, range(written)) == frames(written)).all()
    assert (read(path, range(written)) == frames(written)).all()
    with h5py.File(path, "r+") as file:
        file["x"][0] = -1
    assert (read(path, [0]) == -1).all()


def test_a_trace_is_good_only_while_all_its_bytes_are_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    with Roots([tmp_path]).open(f"file://localhost{path}") as file:
        trace = Trace()
        assert not trace.holds(file)
        trace.begin(file)
        trace.add(10, bytes(range(10, 20)))
        trace.add(90, bytes(range(90, 100)))
        assert trace.holds(file)
        with open(path, "ab") as more:
            more.write(b"more")
        assert trace.holds(file)
        with open(path, "r+b") as other:
            other.seek(95)
            other.write(b"\0")
        assert not trace.holds(file)
        os.truncate(path, 50)
        assert not trace.holds(file)


def test_a_trace_of_more_than_is_kept_is_good_for_nothing(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    with Roots([tmp_path]).open(f"file://localhost{path}") as file:
        trace = Trace(most=15)
        trace.begin(file)
        trace.add(0, bytes(10))
        assert trace.holds(file)
        trace.add(10, bytes(10))
        assert not trace.holds(file)


def test_what_is_remembered_of_young_files_stays_small(tmp_path, described):
    kept = _hdf5._young
    kept._most = 4, 2**24
    for number in range(10):
        read(write(tmp_path / f"{number}.h5", frames(3)), [0])
    assert len(kept._layouts) == 4
    assert kept._nbytes == sum(trace.nbytes for _, trace in kept._layouts.values())
    kept._most = 4, 1
    read(write(tmp_path / "last.h5", frames(3)), [0])
    assert not kept._layouts
    assert kept._nbytes == 0
