"""F23: a detector's file is deleted, replaced, shrunk, written to or locked away after it was registered.

If these fail, people are given frames of another scan under the name of theirs, or are told that frames never were
taken when somebody moved a directory.
"""

import os
import random
import shutil
import time

import h5py
import numpy as np
import pytest

from flystore.model.errors import Changed, FlystoreError, MissingAsset, NoAccess, Truncated, Unreadable
from flystore.service import Service
from flystore.service.changed import QUIET_S
from flystore.testing.faults import broken
from flystore.testing.faults.storing import frames_of

FRAMES, SHAPE = 6, (4, 5)
LONG = 1000.0


def frames_like(rng, count=FRAMES):
    return rng.integers(1, 60_000, (count, *SHAPE), dtype="<u2")


def write(path, values, *, chunked=True):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        more = {"chunks": (1, *SHAPE), "maxshape": (None, *SHAPE), "compression": "gzip"} if chunked else {}
        file.create_dataset("image", data=values, **more)


def documents(uid, path, count=FRAMES):
    keys = {
        "image": {
            "source": "x",
            "dtype": "array",
            "shape": [1, *SHAPE],
            "dtype_numpy": "<u2",
            "external": "STREAM:",
        }
    }
    yield "start", {"uid": uid, "time": 1.0, "scan_id": 1}
    described = {"data_keys": keys, "configuration": {}, "hints": {}, "object_keys": {"det": ["image"]}}
    yield "descriptor", {"uid": f"{uid}-d", "run_start": uid, "name": "primary", "time": 1.0, **described}
    yield (
        "stream_resource",
        {
            "uid": f"{uid}-r",
            "run_start": uid,
            "data_key": "image",
            "mimetype": "application/x-hdf5",
            "uri": f"file://localhost{path}",
            "parameters": {"dataset": "/image", "chunk_shape": [1, *SHAPE]},
        },
    )
    span = {"start": 0, "stop": count}
    seqs = {"start": 1, "stop": count + 1}
    yield (
        "stream_datum",
        {"uid": f"{uid}-s", "stream_resource": f"{uid}-r", "descriptor": f"{uid}-d", "indices": span, "seq_nums": seqs},
    )
    yield "stop", {"uid": f"{uid}-e", "run_start": uid, "time": 2.0, "exit_status": "success", "num_events": {}}


class Beamline:
    """A service whose clock the test turns, and one run after the other with a file each."""

    def __init__(self, directory, seed):
        self.data = directory / "data"
        self.data.mkdir()
        self.rng = np.random.default_rng(seed)
        self.now = time.time() - 10 * LONG
        self.service = Service.open(directory / "store", read=[self.data])
        for part in (self.service.ingest, self.service._prober, self.service.verdicts):
            part._clock = lambda: self.now
        self.number = 0

    def take(self, *, chunked=True):
        """Store a run; return its path, its file and its frames."""
        self.number += 1
        uid = f"run-{self.number}"
        file = self.data / uid / "image.h5"
        values = frames_like(self.rng)
        write(file, values, chunked=chunked)
        os.utime(file, (self.now, self.now))
        self.service.ingest.batch(uid, 0, 1, frames_of(list(documents(uid, file))))
        self.service._prober.wait_idle(100)
        return (uid, "primary", "image"), file, values

    def settle(self, path):
        """Let time pass and somebody read, so that the file is known as it stays."""
        self.now += LONG
        self.read(path)
        self.now += LONG

    def read(self, path):
        return np.frombuffer(self.service.arrays.read(path), "<u2").reshape(-1, *SHAPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.service.close()


@pytest.fixture
def beamline(tmp_path, seed):
    with Beamline(tmp_path, seed) as made:
        yield made


def at(path, when):
    os.utime(path, (when, when))


def delete(line, file, other):
    file.unlink()
    return MissingAsset


def directory_renamed(line, file, other):
    file.parent.rename(file.parent.with_name(f"{file.parent.name}-moved"))
    return MissingAsset


def replaced_by_a_newer_file(line, file, other):
    new = file.with_name("new.h5")
    write(new, other)
    at(new, line.now)
    new.replace(file)
    return Changed


def replaced_by_an_older_file(line, file, other):
    new = file.with_name("new.h5")
    write(new, other)
    at(new, line.now - 100 * LONG)
    new.replace(file)
    return Changed


def written_over_in_place(line, file, other):
    new = file.with_name("new.h5")
    write(new, other)
    with file.open("r+b") as held:
        held.write(new.read_bytes())
        held.truncate()
    new.unlink()
    at(file, line.now)
    return Changed


def shrunk(line, file, other):
    size = file.stat().st_size
    with file.open("r+b") as held:
        held.truncate(line.rng.integers(0, size))
    at(file, line.now)
    return Changed


def grown(line, file, other):
    with h5py.File(file, "a") as held:
        held["image"].resize(FRAMES + 2, axis=0)
        held["image"][FRAMES:] = other[:2]
    at(file, line.now)
    return Changed


AFTER = [
    delete,
    directory_renamed,
    replaced_by_a_newer_file,
    replaced_by_an_older_file,
    written_over_in_place,
    shrunk,
    grown,
]


def act_and_read(line, report, rng, cycles, actions):
    """Do something to a settled file and read: the old values, or an error of the right kind."""
    for _ in range(cycles):
        action = rng.choice(actions)
        path, file, values = line.take()
        line.settle(path)
        assert (line.read(path) == values).all()
        expected = action(line, file, frames_like(line.rng))
        for _ in range(2):
            with pytest.raises(FlystoreError) as found:
                line.read(path)
            if type(found.value) is not expected:
                report.phantom += 1
                raise AssertionError(f"{action.__name__}: {found.value!r}, expected {expected.__name__}")
            line.now += LONG
        status = line.service.verdicts.of(path[:1], look=True).files[0].status
        assert status in ("missing", "changed"), (action.__name__, status)
        report.cycles += 1


def test_a_file_that_is_another_one_after_its_run_is_never_served(beamline, fault_report, seed, cycles):
    report = fault_report("F23 files deleted, replaced, shrunk, written to", unit="files")
    act_and_read(beamline, report, random.Random(seed), cycles(5 * len(AFTER), 100 * len(AFTER)), AFTER)


@pytest.mark.parametrize("action", [replaced_by_a_newer_file, replaced_by_an_older_file, written_over_in_place, grown])
def test_without_fingerprints_a_new_file_is_found_to_be_served_as_the_old_one(beamline, fault_report, seed, action):
    report = fault_report("F23 control: no fingerprints", unit="files")
    with broken("no-fingerprints"), pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        act_and_read(beamline, report, random.Random(seed), 1, [action])


def test_a_file_that_comes_back_is_served_again(beamline):
    path, file, values = beamline.take()
    beamline.settle(path)
    kept = file.with_name("kept.h5")
    shutil.copy2(file, kept)
    replaced_by_a_newer_file(beamline, file, frames_like(beamline.rng))
    with pytest.raises(Changed, match="are not those that were observed"):
        beamline.read(path)
    beamline.service.verdicts.of(path[:1], look=True)
    beamline.now += LONG
    shutil.copy2(kept, file)  # another inode, the same size and time
    assert (beamline.read(path) == values).all()


def test_a_file_that_was_gone_and_comes_back_as_another_is_not_served(beamline):
    path, file, _ = beamline.take()
    beamline.settle(path)
    file.unlink()
    with pytest.raises(MissingAsset):
        beamline.read(path)
    beamline.service.verdicts.of(path[:1], look=True)
    beamline.now += LONG
    write(file, frames_like(beamline.rng))
    with pytest.raises(Changed):
        beamline.read(path)


def test_a_new_file_is_served_once_somebody_accepted_it(beamline):
    path, file, _ = beamline.take()
    beamline.settle(path)
    other = frames_like(beamline.rng)
    replaced_by_a_newer_file(beamline, file, other)
    with pytest.raises(Changed, match="flystore verify DIR --accept run-1/primary/image"):
        beamline.read(path)
    assert beamline.service.accept_files(path[:1]) == ["run-1/primary/image"]
    assert (beamline.read(path) == other).all()
    beamline.now += LONG
    replaced_by_a_newer_file(beamline, file, frames_like(beamline.rng))
    with pytest.raises(Changed):
        beamline.read(path)


def test_a_file_may_grow_while_its_run_is_written_and_a_little_after(beamline):
    path, file, values = beamline.take()
    for _ in range(3):
        assert (beamline.read(path) == values).all()
        beamline.now += QUIET_S / 4
        grown(beamline, file, frames_like(beamline.rng))
    assert (beamline.read(path) == values).all()


@pytest.mark.parametrize(
    ("action", "expected"),
    [(shrunk, Unreadable), (replaced_by_a_newer_file, Changed), (replaced_by_an_older_file, Changed)],
)
def test_a_file_that_is_cut_or_replaced_is_not_served_even_while_it_may_grow(beamline, action, expected):
    path, file, values = beamline.take()
    assert (beamline.read(path) == values).all()
    beamline.now += 1.0
    action(beamline, file, frames_like(beamline.rng))
    with pytest.raises(expected):
        beamline.read(path)


def test_moving_a_file_to_another_disk_changes_nothing(beamline):
    path, file, values = beamline.take()
    beamline.settle(path)
    copy = file.with_name("copy.h5")
    shutil.copy2(file, copy)
    file.unlink()
    copy.rename(file)
    assert (beamline.read(path) == values).all()


def test_a_file_cut_off_while_it_is_read_ends_the_read(beamline, monkeypatch):
    from flystore.storage import OpenedFile

    path, file, _ = beamline.take(chunked=False)
    beamline.settle(path)
    real = OpenedFile.read_into

    def cut_first(self, offset, into):
        os.truncate(file, offset + 7)
        real(self, offset, into)

    monkeypatch.setattr(OpenedFile, "read_into", cut_first)
    with pytest.raises((Truncated, Changed, Unreadable)):
        beamline.read(path)


def test_a_file_that_may_not_be_read_says_so(beamline, monkeypatch):
    path, file, _ = beamline.take()
    beamline.settle(path)
    real = os.stat

    def forbidden(where, *args, **more):
        if str(where) == str(file):
            raise PermissionError(13, "Permission denied")
        return real(where, *args, **more)

    monkeypatch.setattr(os, "stat", forbidden)
    with pytest.raises(NoAccess, match="may not be read by the user"):
        beamline.read(path)
    assert beamline.service.verdicts.of(path[:1], look=True).files[0].status == "no-access"
