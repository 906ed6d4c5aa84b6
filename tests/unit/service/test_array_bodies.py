"""What is sent piece by piece is what h5py reads, whatever the slice, the layout and the gaps.

If these fail, people get the wrong pixels where a read is long, and the right ones where they look closely.
"""

import itertools
import os
import tempfile
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from flystore.model.errors import TooLarge, Truncated, Unreadable
from flystore.model.frames import FrameEncoder
from flystore.model.slices import format_slice, parse_slice
from flystore.model.structures import ArrayStructure
from flystore.service import Limits, NewNode, Service, arrays
from flystore.storage import OpenedFile
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of

CODECS = {
    "none": {},
    "gzip": {"compression": "gzip", "shuffle": True},
    "fletcher": {"compression": "gzip", "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "blosc": dict(hdf5plugin.Blosc(cname="lz4", shuffle=1)),
    "blosc-bit": dict(hdf5plugin.Blosc(cname="zstd", shuffle=2)),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "zstd": dict(hdf5plugin.Zstd()),
}
NUMBER = itertools.count()


@pytest.fixture(scope="module")
def service():
    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / "data"
        data.mkdir()
        with Service.open(Path(home) / "store", read=[data]) as opened:
            opened.data = data
            yield opened


def write(path, values, chunks=None, **storage):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=chunks, **storage)
    return f"file://localhost{path}"


def register(service, uri, values):
    structure = ArrayStructure.of(values.dtype, values.shape)
    key = f"a{next(NUMBER)}"
    source = {
        "structure_family": "array",
        "mimetype": "application/x-hdf5",
        "structure": structure.to_wire(),
        "parameters": {"dataset": "x"},
        "assets": [{"data_uri": uri, "is_directory": False, "parameter": "data_uris", "num": 0}],
        "management": "external",
    }
    wire = {"id": key, "structure_family": "array", "metadata": {}, "data_sources": [source]}
    service.nodes.create((), NewNode.from_wire(wire))
    return (key,)


def announce(service, item, dtype, files, **parameters):
    """Store a run whose frames are those announced, as (uri, [(first, stop, first seq_num)])."""
    run = RunDocuments(f"run{next(NUMBER)}")
    stream = run.stream("primary", img=external(list(item), np.dtype(dtype).str))
    for uri, ranges in files:
        stream.resource("img", uri, dataset="x", **parameters)
        for start, stop, seq in ranges:
            stream.frames("img", start, stop, seq, seq + stop - start)
    run.stop()
    service.ingest.batch(run.uid, 0, 1, frames_of(run.documents, FrameEncoder()))
    return (run.uid, "primary", "img")


def body(service, path, wanted=(), sent_bytes=64, **given):
    """Return the bytes and how long the pieces were."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SENT_BYTES", sent_bytes)
        found = service.arrays.body(path, wanted, **given)
        pieces = [bytes(piece) for piece in found.pieces]
    assert sum(map(len, pieces)) == found.nbytes
    return b"".join(pieces), [len(piece) for piece in pieces]


def descriptors_of(path):
    """Return the descriptors of this process that lead to a file."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
                found.append(descriptor)
        except FileNotFoundError:  # the one that listed them
            continue
    return found


@st.composite
def datasets(draw):
    """Draw an array, how it is stored, and an index into it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(["<u2", ">i4", "<f8", "|u1", "|b1", "<c8"]))
    values = (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)
    codec = draw(st.sampled_from(["contiguous", *CODECS]))
    chunks = None
    if codec != "contiguous":
        chunks = tuple(draw(st.integers(1, n)) for n in shape)
    storage = CODECS.get(codec, {})
    index = draw(basic_indices(shape, allow_ellipsis=False, allow_newaxis=False))
    return values, chunks, storage, index if isinstance(index, tuple) else (index,)


SOME = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@SOME
@given(datasets(), st.integers(1, 400))
def test_a_registered_array_is_sent_as_numpy_slices_it(service, drawn, sent_bytes):
    values, chunks, storage, index = drawn
    uri = write(service.data / f"{next(NUMBER)}.h5", values, chunks, **storage)
    path = register(service, uri, values)
    wanted = parse_slice(format_slice(index))
    expected = values[index]
    found, _ = body(service, path, wanted, sent_bytes, expected_shape=np.shape(expected))
    assert found == np.asarray(expected, values.dtype).tobytes()
    assert bytes(service.arrays.read(path, wanted)) == found


@SOME
@given(st.data(), st.sampled_from([*CODECS]), st.sampled_from(["stack", "concat"]), st.integers(1, 400))
def test_announced_frames_are_sent_in_the_order_of_their_events(service, data, codec, join, sent_bytes):
    deep, height, width = (data.draw(st.integers(1, n)) for n in (3, 5, 6))
    files, expected, seq = [], [], 1
    for number in range(data.draw(st.integers(1, 2))):
        events = data.draw(st.integers(1, 8))
        values = np.arange(events * deep * height * width, dtype="<u2").reshape(-1, height, width) + number * 1000
        chunks = (data.draw(st.integers(1, deep)), height, data.draw(st.integers(1, width)))
        uri = write(service.data / f"{next(NUMBER)}.h5", values, chunks, **CODECS[codec])
        ranges, first = [], 0
        while first < events:
            # Frames that were never announced; not the first of a further file, which would say that numbers go on.
            first += data.draw(st.integers(0, 2)) if number == 0 or first else 0
            stop = min(events, first + data.draw(st.integers(1, 4)))
            if stop > first:
                ranges.append((first, stop, seq))
                expected.append(values.reshape(events, deep, height, width)[first:stop])
                seq += stop - first + data.draw(st.integers(0, 1))  # events without a frame
            first = max(stop, first)
        files.append((uri, ranges))
    if not expected:
        return
    path = announce(service, (deep, height, width), "<u2", files, chunk_shape=[1], join_method=join)
    whole = np.concatenate(expected)
    shape = tuple(service.browse.entry(path).structure["shape"])
    if join == "concat":
        whole = whole.reshape(-1, height, width)
    assert shape == whole.shape
    index = data.draw(basic_indices(whole.shape, allow_ellipsis=False, allow_newaxis=False))
    index = index if isinstance(index, tuple) else (index,)
    found, _ = body(service, path, parse_slice(format_slice(index)), sent_bytes)
    assert found == whole[index].tobytes()


def test_pieces_are_whole_chunks_and_files_are_opened_once(service, monkeypatch):
    values = np.arange(40 * 64, dtype="<u2").reshape(40, 8, 8)
    uri = write(service.data / "once.h5", values, (2, 8, 8), **CODECS["blosc"])
    path = announce(service, (8, 8), "<u2", [(uri, [(0, 40, 1)])], chunk_shape=[2, 8, 8])
    body(service, path)  # so that they have been looked at
    reads, opened = [], []
    real_read, real_open = OpenedFile.read, OpenedFile.__init__

    def read(self, offset, length):
        reads.append(offset)
        return real_read(self, offset, length)

    def begin(self, *given):
        opened.append(given)
        real_open(self, *given)

    monkeypatch.setattr(OpenedFile, "read", read)
    monkeypatch.setattr(OpenedFile, "__init__", begin)
    found, lengths = body(service, path, (), 1024)
    assert found == values.tobytes()
    assert set(lengths) == {1024}
    assert sorted(reads) == sorted(set(reads)), "a chunk was read twice"
    assert len(reads) == 20
    assert len(opened) <= 3, "once to be read, and to be looked at before"


def test_what_lies_beyond_a_hole_is_told_when_it_is_reached(service):
    path = service.data / "holes.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (20, 8, 8), "<u2", chunks=(1, 8, 8))
        data[:10] = 1
    key = register(service, f"file://localhost{path}", np.empty((20, 8, 8), "<u2"))
    assert service.browse.entry(key).structure["shape"][0] in (10, 20)
    with pytest.raises((Unreadable, Truncated)):
        body(service, key, (slice(0, 20),), 256, expected_shape=(20, 8, 8))
    assert body(service, key, (slice(0, 10),), 256)[0] == np.ones((10, 8, 8), "<u2").tobytes()


def test_a_damaged_chunk_ends_the_pieces_and_closes_the_file(service):
    values = np.arange(40 * 64, dtype="<u2").reshape(40, 8, 8)
    name = service.data / "damaged.h5"
    uri = write(name, values, (1, 8, 8), compression="gzip")
    path = register(service, uri, values)
    with h5py.File(name) as file:
        offset = file["x"].id.get_chunk_info(30).byte_offset
    with open(name, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 8)
    assert service.arrays._prober.wait_idle(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SENT_BYTES", 256)
        pieces = service.arrays.body(path).pieces
        taken = []
        taken.append(bytes(next(pieces)))
        assert descriptors_of(name)
        with pytest.raises(Unreadable, match="damaged"):
            taken.extend(bytes(piece) for piece in pieces)
    assert b"".join(taken) == values[:30].tobytes()
    assert not descriptors_of(name)


def test_the_limit_counts_the_whole_answer_and_not_its_pieces(tmp_path):
    values = np.zeros((100, 8, 8), "<u2")
    with Service.open(tmp_path / "store", read=[tmp_path], limits=Limits(response_bytes=values.nbytes - 1)) as service:
        path = register(service, write(tmp_path / "x.h5", values, (1, 8, 8)), values)
        with pytest.raises(TooLarge):
            service.arrays.body(path)
        service.arrays.body(path, (slice(0, 99),)).pieces.close()


def test_a_run_under_way_is_looked_at_without_a_transaction_each_time(service, monkeypatch):
    values = np.arange(10 * 64, dtype="<u2").reshape(10, 8, 8)
    uri = write(service.data / "under_way.h5", values, (1, 8, 8))
    path = announce(service, (8, 8), "<u2", [(uri, [(0, 10, 1)])])
    body(service, path)
    kept, found = [], []
    prober = service.arrays._prober
    with service.browse.moment() as moment:
        heard = moment.run_heard(path[0]).last_received
    clock = [heard + 1.0]
    monkeypatch.setattr(prober, "_clock", lambda: clock[0])
    real_keep, real_found = prober._keep, prober.found
    monkeypatch.setattr(prober, "_keep", lambda *given: kept.append(given) or real_keep(*given))
    monkeypatch.setattr(prober, "found", lambda *given, **more: found.append(given) or real_found(*given, **more))
    for _ in range(5):
        assert body(service, path)[0] == values.tobytes()
        clock[0] += 1.0
    assert len(found) == 5
    assert len(kept) <= 1
    clock[0] = heard + 60.0
    body(service, path)
    body(service, path)
    assert len(found) == 6, "once after all was quiet"
    assert len(kept) >= 1
