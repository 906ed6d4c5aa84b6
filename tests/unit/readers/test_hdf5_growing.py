"""A file that is being written, was cut off, or whose writer died gives what was written, and no more.

If these fail, people see zeros for frames that are not there yet, or cannot see a scan while it runs.
"""

import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

from flystore.model.errors import NotReady, Truncated, Unreadable
from flystore.readers import EventFiles, Resource, _h5file, _hdf5, open_reader
from flystore.storage import Roots


def reader_of(path, item=(4, 5), dataset="d", dtype="<u2"):
    files = EventFiles("application/x-hdf5", dtype, item, (Resource(f"file://localhost{path}", {"dataset": dataset}),))
    return open_reader(files, Roots([path.parent]))


def read(reader, rows):
    return reader.read(np.zeros(len(rows), int), np.asarray(rows))


def age(path):
    os.utime(path, (1, 1))


@pytest.mark.parametrize("kwargs", [{}, {"compression": "gzip"}])
def test_a_file_is_read_while_this_process_writes_it(tmp_path, kwargs):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        data = file.create_dataset("d", (0, 4, 5), "<u2", maxshape=(None, 4, 5), chunks=(1, 4, 5), **kwargs)
        file.swmr_mode = True
        for n in range(1, 40):
            data.resize(n, 0)
            data[n - 1] = n
            data.flush()
            with reader_of(path) as reader:
                assert reader.probe().resources[0].events == n
                assert reader.present(0, range(n)).all()
                np.testing.assert_array_equal(read(reader, range(n))[:, 0, 0], np.arange(1, n + 1))
    with reader_of(path) as reader:
        assert reader.probe().resources[0].events == 39


WRITER = """
import sys, h5py
path, swmr, frames = sys.argv[1], sys.argv[2] == "swmr", int(sys.argv[3])
libver = "earliest" if sys.argv[2] == "earliest" else "latest"
file = h5py.File(path, "w", libver=libver)
data = file.create_dataset("d", (0, 4, 5), "<u2", maxshape=(None, 4, 5), chunks=(1, 4, 5))
if swmr:
    file.swmr_mode = True
for n in range(1, frames + 1):
    data.resize(n, 0)
    data[n - 1] = n
    if sys.argv[4] == "flush":
        data.flush() if swmr else file.flush()
    print(n, flush=True)
sys.stdin.readline()
"""


def writer(path, mode, frames, flush="flush"):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), mode, str(frames), flush],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process, kill):
    if kill:
        process.send_signal(signal.SIGKILL)
    else:
        process.stdin.write("\n")
        process.stdin.flush()
    process.wait(timeout=100)
    process.stdin.close()
    process.stdout.close()


def test_a_file_is_read_while_another_process_writes_it(tmp_path):
    path = tmp_path / "x.h5"
    process = writer(path, "swmr", 300)
    seen = 0
    for line in process.stdout:
        reported = int(line)
        if reported % 10 and reported < 300:
            continue
        with reader_of(path) as reader:
            events = reader.probe().resources[0].events
            assert events >= reported
            np.testing.assert_array_equal(read(reader, range(reported))[:, 3, 4], np.arange(1, reported + 1))
        seen += 1
        if reported == 300:
            break
    finish(process, kill=False)
    assert seen == 30


def test_after_the_writer_was_killed_every_reported_frame_is_read(tmp_path):
    path = tmp_path / "x.h5"
    process = writer(path, "swmr", 50)
    assert any(line.strip() == "50" for line in process.stdout)
    finish(process, kill=True)
    age(path)
    with reader_of(path) as reader:
        assert reader.probe().resources[0].events == 50
        np.testing.assert_array_equal(read(reader, range(50))[:, 0, 0], np.arange(1, 51))


@pytest.mark.parametrize("young", [True, False])
def test_a_file_left_open_without_swmr_is_read_as_far_as_it_was_flushed(tmp_path, monkeypatch, young):
    monkeypatch.setattr(_h5file, "SETTLED_NS", 10**18 if young else 0)
    path = tmp_path / "x.h5"
    process = writer(path, "plain", 5)
    assert any(line.strip() == "5" for line in process.stdout)
    for killed in (False, True):
        if killed:
            finish(process, kill=True)
        with reader_of(path) as reader:
            assert reader.probe().resources[0].events == 5
            np.testing.assert_array_equal(read(reader, range(5))[:, 3, 4], np.arange(1, 6))


def test_what_was_never_in_a_file_at_one_time_is_not_given(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["d"] = np.ones((5, 4, 5), "<u2")
    real, writes = _hdf5.layout_of, iter(range(10**6))

    def described(*given):
        found = real(*given)
        with open(path, "r+b") as file:  # a byte of the superblock, which HDF5 has just read
            file.seek(20)
            file.write(bytes([1 - next(writes) % 2]))
        return found

    monkeypatch.setattr(_hdf5, "layout_of", described)
    monkeypatch.setattr(_h5file, "SETTLED_NS", 10**18)
    with reader_of(path) as reader, pytest.raises(NotReady, match="while it was read"):
        read(reader, [0])
    assert next(writes) > 1, "it was tried again"


@pytest.mark.parametrize("mode", ["plain", "earliest"])
def test_a_file_that_was_never_flushed_is_unreadable(tmp_path, mode):
    path = tmp_path / "x.h5"
    process = writer(path, mode, 5, flush="never")
    assert any(line.strip() == "5" for line in process.stdout)
    finish(process, kill=True)
    age(path)
    with reader_of(path) as reader, pytest.raises(Unreadable):
        read(reader, [0])


@pytest.mark.parametrize("chunks", [(1, 4, 5), (3, 4, 5), (1, 2, 5)])
def test_rows_whose_chunks_were_never_written_are_not_present_and_never_zeros(tmp_path, chunks):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("d", (12, 4, 5), "<u2", chunks=chunks, fillvalue=7)
        data[3:6] = 1
        data[9, :2] = 1  # half a frame, where chunks are half frames
    with reader_of(path) as reader:
        present = reader.present(0, range(12))
        assert present[3:6].all()
        assert not present[:3].any()
        assert not present[6:9].any()
        assert present[9] == (chunks[1] == 4)
        assert reader.probe().resources[0].holes[0] == (0, 3)
        assert reader.probe().resources[0].events == 12
        assert not reader.probe().resources[0].unverified
        assert (read(reader, [3, 5]) == 1).all()
        for row in (0, 8):
            with pytest.raises(Unreadable, match="never written") as caught:
                read(reader, [4, row])
            assert caught.value.rows == [row]


def test_an_event_is_present_when_all_its_rows_are(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("d", (8, 5), "<u2", chunks=(1, 5))[1:6] = 1
    with reader_of(path, (2, 5)) as reader:
        assert reader.present(0, range(4)).tolist() == [False, True, True, False]


def test_contiguous_data_that_was_never_written_is_not_present(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("d", (4, 4, 5), "<u2")
    with reader_of(path) as reader:
        assert not reader.present(0, range(4)).any()
        assert reader.probe().resources[0].unverified
        with pytest.raises(Unreadable, match="never written"):
            read(reader, [0])


def test_data_allocated_early_is_unverified(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 4, 5))
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        space = h5py.h5s.create_simple((4, 4, 5))
        h5py.h5d.create(file.id, b"d", h5py.h5t.STD_U16LE, space, plist)
    with reader_of(path) as reader:
        assert reader.probe().resources[0].unverified
        assert reader.present(0, range(4)).all()


@pytest.mark.parametrize("kwargs", [{}, {"chunks": (1, 4, 5)}, {"chunks": (1, 4, 5), "compression": "gzip"}])
def test_a_file_cut_short_says_how_much_is_there(tmp_path, kwargs):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=np.arange(2000, dtype="<u2").reshape(100, 4, 5), **kwargs)
    size = path.stat().st_size
    os.truncate(path, size - 300)
    age(path)
    with reader_of(path) as reader:
        with pytest.raises(Truncated) as caught:
            read(reader, range(100))
        assert caught.value.announced > caught.value.found
        assert "x.h5" in caught.value.message


def test_a_file_cut_while_it_is_open_is_truncated_and_no_crash(tmp_path):
    path = tmp_path / "x.h5"
    values = np.arange(2000, dtype="<u2").reshape(100, 4, 5)
    for kwargs in ({}, {"chunks": (1, 4, 5)}, {"chunks": (1, 4, 5), "compression": "gzip"}):
        with h5py.File(path, "w") as file:
            file.create_dataset("d", data=values, **kwargs)
        with reader_of(path) as reader:
            assert reader.probe().resources[0].truncated == ()
            os.truncate(path, 3000)
            truncated = reader.probe().resources[0].truncated
            assert truncated
            assert truncated[-1][1] == 100
            with pytest.raises(Truncated):
                read(reader, [99])
        path.unlink()


def test_a_flipped_bit_under_a_checksum_is_an_error(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("d", data=np.ones((2, 4, 5), "<u2"), chunks=(1, 4, 5), fletcher32=True)
        at = data.id.get_chunk_info(1).byte_offset
    with open(path, "r+b") as file:
        file.seek(at + 5)
        file.write(b"\x40")
    with reader_of(path) as reader:
        assert (read(reader, [0]) == 1).all()
        with pytest.raises(Unreadable, match=r"chunk \(1, 0, 0\) is damaged"):
            read(reader, [1])


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_damaged_compressed_chunks_are_errors(tmp_path, compression):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(0).integers(0, 9, (2, 40, 50)).astype("<u2")
        data = file.create_dataset("d", data=values, chunks=(1, 40, 50), compression=compression)
        info = data.id.get_chunk_info(1)
    with open(path, "r+b") as file:
        file.seek(info.byte_offset)
        file.write(b"\xff" * info.size)
    age(path)
    with reader_of(path, (40, 50)) as reader:
        np.testing.assert_array_equal(read(reader, [0])[0], values[0])
        with pytest.raises(Unreadable):
            read(reader, [1])


def test_a_file_replaced_by_another_is_seen_anew(tmp_path):
    path = tmp_path / "x.h5"
    for n in (3, 5):
        with h5py.File(tmp_path / "new.h5", "w") as file:
            file.create_dataset("d", data=np.full((n, 4, 5), n, "<u2"), chunks=(1, 4, 5))
        age(tmp_path / "new.h5")
        (tmp_path / "new.h5").replace(path)
        for _ in range(2):  # the second time from what was kept
            with reader_of(path) as reader:
                assert reader.probe().resources[0].events == n
                assert (read(reader, range(n)) == n).all()
