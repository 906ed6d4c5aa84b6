"""A short part that is read at once is the same as one that a thread reads, and is not read at once if that could wait.

If these fail, people are shown pixels of another frame or of a file that was replaced, or everybody waits for one read.
"""

import errno
import itertools
import os
import time

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from flystore.catalog import NotAtOnce
from flystore.model.errors import FlystoreError
from flystore.readers import SHORT_BYTES
from flystore.service import Service
from flystore.storage import WouldWait, _near
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of

HOUR = 3600.0
TRIES = 50


def can_tell(directory):
    """Return whether the file system can say that bytes are in memory."""
    file = directory / "probe"
    file.write_bytes(b"x" * 10)
    with open(file, "rb") as opened:
        try:
            return os.preadv(opened.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT) == 10
        except (OSError, AttributeError):
            return False


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    if not can_tell(directory):
        pytest.skip("this file system cannot tell which bytes are in memory; nothing is read at once")
    return directory


@pytest.fixture(scope="module")
def service(files, tmp_path_factory):
    with Service.open(tmp_path_factory.mktemp("store"), read=[files]) as opened:
        for part in (opened._prober, opened.versions):
            part._clock = lambda: time.time() + HOUR  # runs that ended just now ended long ago
        yield opened


numbers = itertools.count()


def write(file, parts, old=True, **options):
    """Write datasets of a file; one that is old is at rest."""
    with h5py.File(file, "w") as opened:
        for name, values in parts.items():
            opened.create_dataset(name, data=values, **options)
    if old:
        os.utime(file, (time.time() - HOUR,) * 2)


def store(service, pieces, item_shape, dtype, **parameters):
    """Store a run whose events are in datasets one after the other; return the path of its array.

    `pieces`: (file, dataset, first, stop) of each stretch of frames.
    """
    run = RunDocuments(f"run-{next(numbers)}", plan_name="count")
    stream = run.stream("primary", img=external(item_shape, dtype_numpy=np.dtype(dtype).str))
    last, seq = None, 1
    for file, dataset, first, stop in pieces:
        if (file, dataset) != last:
            stream.resource("img", file.as_uri(), dataset=dataset, **parameters)
            last = file, dataset
        stream.frames("img", first, stop, seq)
        seq += stop - first
    run.stop()
    service.ingest.batch(run.uid, 0, 1, frames_of(run.documents))
    return run.uid, "primary", "img"


def seen(service, path):
    """Return what the array was seen in, after its files were looked at."""
    service.versions.of(path)
    return service.versions.at_once(path).sight


def at_once(service, path, *wanted, tries=TRIES, **more):
    """Return what is read at once, after a read as usual: the machine may have needed the memory meanwhile."""
    for _ in range(tries):
        service.arrays.read(path, wanted)
        try:
            return bytes(service.short_reads.read(seen(service, path), wanted, **more))
        except NotAtOnce as error:
            why = error
    raise why


def refused(service, path, *wanted, **more):
    """Read as usual; raise unless the same is left to threads then."""
    service.arrays.read(path, wanted)
    with pytest.raises(NotAtOnce):
        service.short_reads.read(seen(service, path), wanted, **more)


DTYPES = ["|u1", "<u2", ">u2", "<i4", ">f8", "|b1", "<c8"]
FILTERS = {
    "none": {},
    "shuffle": {"shuffle": True},
    "checksums": {"fletcher32": True},
    "blosc": dict(hdf5plugin.Blosc(cname="lz4", shuffle=1)),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "lz4": dict(hdf5plugin.LZ4()),
    "gzip": {"compression": "gzip"},
    "blosc-zstd": dict(hdf5plugin.Blosc(cname="zstd")),
}
SLOW = {"gzip", "blosc-zstd"}


def values_of(shape, dtype):
    return (np.arange(np.prod(shape)).reshape(shape) * 7 % 251).astype(dtype)


@st.composite
def datasets(draw):
    """A dataset, how it is stored, and the shape of an event."""
    rows = draw(st.integers(1, 7))
    item = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=3)))
    ones = draw(st.integers(0, len(item)))
    shape = (rows, *item[:ones], 1, *item[ones:]) if draw(st.booleans()) else (rows, *item)
    chunks = tuple(draw(st.integers(1, n)) for n in shape) if draw(st.booleans()) else None
    kind = draw(st.sampled_from(sorted(FILTERS))) if chunks else "none"
    return shape, item, chunks, kind, draw(st.sampled_from(DTYPES))


@st.composite
def selections(draw, shape):
    def one(n):
        bound = st.none() | st.integers(-n - 1, n + 1)
        step = st.none() | st.sampled_from([1, 2, 3, -1, -2])
        return st.integers(-n, n - 1) | st.builds(slice, bound, bound, step)

    return tuple(draw(one(n)) for n in shape[: draw(st.integers(0, len(shape)))])


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data(), made=datasets(), old=st.booleans(), two=st.booleans())
def test_what_is_read_at_once_is_what_is_in_the_file(service, files, data, made, old, two):
    shape, item, chunks, kind, dtype = made
    note(f"{made} {old} {two}")
    values = values_of(shape, dtype)
    names = [files / f"{next(numbers)}.h5" for _ in range(1 + two)]
    for number, name in enumerate(names):
        more = {"chunks": chunks, **FILTERS[kind]} if chunks else {}
        write(name, {"d": values + np.dtype(dtype).type(number)}, old=old, **more)
    pieces = [(name, "d", first, first + 1) for name in names for first in range(shape[0])]
    path = store(service, pieces, item, dtype)
    expected = np.concatenate([values + np.dtype(dtype).type(n) for n in range(len(names))]).astype(dtype)
    expected = expected.reshape(service.browse.entry(path).structure["shape"])  # stacked, or joined along an axis
    for _ in range(4):
        wanted = data.draw(selections(expected.shape))
        right = expected[(*wanted, ...)].tobytes()
        assert bytes(service.arrays.read(path, wanted)) == right
        try:
            assert bytes(service.short_reads.read(seen(service, path), wanted)) == right
        except NotAtOnce:
            continue
        assert kind not in SLOW


@pytest.mark.parametrize("kind", sorted(set(FILTERS) - SLOW))
@pytest.mark.parametrize("old", [True, False])
def test_frames_rows_and_windows_of_what_detectors_write_are_read_at_once(service, files, kind, old):
    file, values = files / f"{kind}-{old}.h5", values_of((5, 64, 48), "<u2")
    write(file, {"d": values}, old=old, chunks=(1, 64, 48), **FILTERS[kind])
    path = store(service, [(file, "d", 0, 3), (file, "d", 3, 5)], (64, 48), "<u2")
    for wanted in (
        (3,),
        (-1,),
        (2, slice(0, 10)),
        (slice(1, 4), slice(10, 20), slice(40, None)),
        (slice(None, None, 2), 5, slice(None, None, 7)),
        (4, 63, 47),
        (),
    ):
        assert at_once(service, path, *wanted) == values[(*wanted, ...)].tobytes()


def test_a_block_and_the_rows_that_a_caller_knew_of_are_read_at_once(service, files):
    file, values = files / "blocks.h5", values_of((6, 4, 5), "<i4")
    write(file, {"d": values}, chunks=(2, 4, 5))
    path = store(service, [(file, "d", 0, 6)], (4, 5), "<i4", chunk_shape=[2, 4, 5])
    sight = seen(service, path)
    service.arrays.read(path)
    block, wanted = (1, 0, 0), (slice(None), slice(1, 3))
    expected = bytes(service.arrays.read_block(path, block, wanted))
    assert bytes(service.short_reads.read(sight, wanted, block=block)) == expected
    assert bytes(service.short_reads.read(sight, (), expected_shape=(4, 4, 5))) == values[:4].tobytes()
    with pytest.raises(NotAtOnce):
        service.short_reads.read(sight, (0,), expected_shape=(9, 9))


def test_several_rows_of_a_file_to_an_event_are_found(service, files):
    file, values = files / "several.h5", values_of((12, 5), "<u2")
    write(file, {"d": values}, chunks=(5, 5))
    path = store(service, [(file, "d", 1, 4)], (3, 5), "<u2", join_method="concat")
    expected = np.frombuffer(service.arrays.read(path), "<u2").reshape(service.browse.entry(path).structure["shape"])
    for wanted in ((slice(2, 7),), (0,), (slice(1, 8, 3), slice(1, 4))):
        assert bytes(service.arrays.read(path, wanted)) == expected[wanted].tobytes()
        assert at_once(service, path, *wanted) == expected[wanted].tobytes()


def changed_in_place(file, other):
    with h5py.File(file, "r+") as opened:
        opened["d"][...] = 1


def replaced(file, other):
    os.replace(other, file)


def replaced_looking_alike(file, other):
    told = os.stat(file)
    os.replace(other, file)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def cut_short(file, other):
    told = os.stat(file)
    os.truncate(file, told.st_size // 2)
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))


def gone(file, other):
    file.unlink()


def led_elsewhere(file, other):
    elsewhere = file.parent.parent / f"outside-{file.name}"
    os.replace(file, elsewhere)
    file.symlink_to(elsewhere)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (changed_in_place, "changed"),
        (replaced, "changed"),
        (replaced_looking_alike, None),
        (cut_short, "changed"),
        (gone, "missing-asset"),
        (led_elsewhere, "outside-roots"),
    ],
)
def test_a_file_that_is_another_one_is_judged_as_ever(service, files, change, kind, old):
    file, other = files / f"{change.__name__}-{old}.h5", files / f"other-{change.__name__}-{old}.h5"
    values = values_of((4, 8, 6), "<u2")
    write(file, {"d": values}, old=old, chunks=(1, 8, 6))
    write(other, {"d": values + 100}, old=False, chunks=(1, 8, 6))
    os.utime(other, (time.time() - 60,) * 2)
    path = store(service, [(file, "d", 0, 4)], (8, 6), "<u2")
    assert at_once(service, path, 2) == values[2].tobytes()
    sight = seen(service, path)
    change(file, other)
    try:
        found, failed = bytes(service.short_reads.read(sight, (2,))), None
    except NotAtOnce as error:
        found, failed = None, error
    if kind is None:  # decision 0006: it cannot be told from the old one; what is shown is what is there
        assert found in (None, (values + 100)[2].tobytes())
        assert bytes(service.arrays.read(path, (2,))) == (values + 100)[2].tobytes()
        return
    assert failed is not None
    with pytest.raises(FlystoreError) as info:
        service.arrays.read(path, (2,))
    assert info.value.kind == kind


def test_what_is_known_of_an_array_is_forgotten_when_anything_is_committed(service, files):
    file, values = files / "grown.h5", values_of((6, 4), "<u2")
    write(file, {"d": values}, chunks=(1, 4))
    path = store(service, [(file, "d", 0, 6)], (4,), "<u2")
    assert at_once(service, path, 1) == values[1].tobytes()
    sights, before = service.versions.sights, seen(service, path)
    assert sights.known(path) is before
    store(service, [(file, "d", 0, 1)], (4,), "<u2")
    assert sights.known(path) is None
    assert seen(service, path) is not before
    assert at_once(service, path, 1) == values[1].tobytes()


def test_a_run_that_goes_on_is_looked_at_in_threads(service, files):
    file, values = files / "open.h5", values_of((6, 4), "<u2")
    write(file, {"d": values}, chunks=(1, 4))
    run = RunDocuments("going on", plan_name="count")
    stream = run.stream("primary", img=external((4,), dtype_numpy="<u2"))
    stream.resource("img", file.as_uri(), dataset="d")
    stream.frames("img", 0, 3)
    service.ingest.batch("going on", 0, 1, frames_of(run.documents))
    path = ("going on", "primary", "img")
    service.arrays.read(path)
    sight = seen(service, path)
    now = time.time() + 2 * HOUR
    service._prober._looked.clear()
    service._prober._clock, before = (lambda: now), service._prober._clock
    try:
        service._prober._looked[sight.entry.node.id] = sight.entry.node.revision, now - 1
        stale = service._prober.is_stale(sight.entry.node, sight.source, sight.entry.observation, sight)
        if stale:
            with pytest.raises(NotAtOnce):
                service.short_reads.read(sight, (1,))
        service._prober._looked[sight.entry.node.id] = sight.entry.node.revision, now
        assert bytes(service.short_reads.read(sight, (1,))) == values[1].tobytes()
    finally:
        service._prober._clock = before


LONG = (1, SHORT_BYTES // 2 + 1)


def test_what_may_take_long_is_left_to_threads(service, files):
    file = files / "long.h5"
    many, holes = np.zeros((1, 64, 64), "u1"), np.zeros((3, 4), "u1")
    with h5py.File(file, "w") as opened:
        opened["long"] = np.zeros((1, *LONG), "<u2")
        opened.create_dataset("large chunk", data=np.zeros((2, *LONG), "<u2"), chunks=(1, *LONG), shuffle=True)
        opened.create_dataset("many", data=many, chunks=(1, 2, 2))
        opened.create_dataset("text", data=np.array([b"a", b"bc"], "S2"))
        opened.create_dataset("gzip", data=holes, compression="gzip")
    for name, item, dtype, wanted in (
        ("long", LONG, "<u2", (0,)),
        ("large chunk", LONG, "<u2", (0, 0, slice(0, 5))),
        ("many", (64, 64), "u1", (0,)),
        ("gzip", (4,), "u1", (0,)),
    ):
        path = store(service, [(file, name, 0, 1)], item, dtype)
        refused(service, path, *wanted)
    assert at_once(service, store(service, [(file, "long", 0, 1)], LONG, "<u2"), 0, 0, slice(7, 9)) == bytes(4)


def test_what_nobody_opened_yet_is_left_to_threads(files, tmp_path):
    file, values = files / "unopened.h5", values_of((2, 4), "<u2")
    write(file, {"d": values})
    with Service.open(tmp_path / "store", read=[files]) as service:
        for part in (service._prober, service.versions):
            part._clock = lambda: time.time() + HOUR
        path = store(service, [(file, "d", 0, 2)], (4,), "<u2")
        with pytest.raises(NotAtOnce, match="not opened"):
            service.short_reads.read(seen(service, path), (1,))
        assert at_once(service, path, 1) == values[1].tobytes()


@pytest.mark.parametrize("table", ["host:/ / nfs4 rw 0 0\n", "none / fuse.sshfs rw 0 0\n", "", None])
def test_files_elsewhere_are_left_to_threads(files, tmp_path, monkeypatch, table):
    mounts = tmp_path / "mounts"
    if table is not None:
        mounts.write_text(table)
    monkeypatch.setattr(_near, "_MOUNTS", mounts)
    file = files / "elsewhere.h5"
    write(file, {"d": values_of((2, 4), "<u2")})
    with Service.open(tmp_path / "store", read=[files]) as service:
        for part in (service._prober, service.versions):
            part._clock = lambda: time.time() + HOUR
        refused(service, store(service, [(file, "d", 0, 2)], (4,), "<u2"), 1)


def test_bytes_that_are_not_in_memory_are_left_to_threads(service, files, monkeypatch):
    file, values = files / "cold.h5", values_of((2, 4), "<u2")
    write(file, {"d": values}, chunks=(1, 4))
    path = store(service, [(file, "d", 0, 2)], (4,), "<u2")
    assert at_once(service, path, 1) == values[1].tobytes()
    read = os.preadv

    def cold(fd, buffers, offset, flags=0):
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not now")
        return read(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", cold)
    refused(service, path, 1)

    def half(fd, buffers, offset, flags=0):
        size = len(buffers[0]) // 2 if flags & os.RWF_NOWAIT else len(buffers[0])
        return read(fd, [buffers[0][:size]], offset, flags)

    monkeypatch.setattr(os, "preadv", half)
    refused(service, path, 1)


def test_memory_is_accounted_for_and_not_waited_for(service, files):
    file, values = files / "budget.h5", values_of((2, 4), "<u2")
    write(file, {"d": values}, chunks=(1, 4))
    path = store(service, [(file, "d", 0, 2)], (4,), "<u2")
    at_once(service, path, 1)
    sight = seen(service, path)
    with service.budget.account() as mine:
        assert bytes(service.short_reads.read(sight, (1,))) == values[1].tobytes()
        assert mine.held_bytes == 2 * values[1].nbytes
        with service.budget.account() as other:
            other.take(service.budget.total_bytes - mine.held_bytes, "all of it")
            with pytest.raises(NotAtOnce):
                service.short_reads.read(sight, (1,))
            assert other.held_bytes + mine.held_bytes == service.budget.total_bytes
        held = mine.held_bytes
        with pytest.raises(NotAtOnce):
            service.short_reads.read(sight, (7,))
        assert mine.held_bytes == held
    assert service.budget.held_bytes == 0


def test_a_near_file_gives_bytes_or_says_that_it_would_wait(service, files):
    file = files / "plain"
    file.write_bytes(bytes(range(100)))
    for _ in range(TRIES):
        with service.arrays._roots.open(file.as_uri()) as opened:
            opened.read(0, 100)
            near = _near.NearFile.of(opened)
            try:
                found = near.read(10, 5), near.holds(10, b"\n"), near.holds(10, b"x")
                break
            except WouldWait:
                continue
    assert found == (bytes(range(10, 15)), True, False)
    with service.arrays._roots.open(file.as_uri()) as opened:
        with pytest.raises(WouldWait):
            _near.NearFile.of(opened).read(90, 20)
        with pytest.raises(WouldWait):
            _near.NearFile.of(opened).stream()
