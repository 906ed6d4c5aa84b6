"""Captures of real PandAs, made into files by their own writer, are joined to frames and to slow signals.

If these fail, a flyscan's frames get positions and ring currents of another moment, or stamps that cannot be right
are taken for good ones.
"""

import gzip
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pandablocks.connections import DataConnection
from pandablocks.hdf import create_default_pipeline, stop_pipeline

from flystore import DoubtfulTimes, MissingRows, PandaCapture, RunWriter, open_store
from flystore.testing.documents import RunDocuments, external, internal

DUMPS = Path(__file__).parents[1] / "data" / "panda"
ARMED = "2026-03-05T20:27:12.607841574Z"
STARTED = "2026-03-05T20:27:12.608875498Z"
UNIX = 1772742432.608875498
GRAIN = 2.4e-7
"""Seconds that Unix times in float64 tell apart."""

CAPTURES = {"slow_dump.bin": (5, 1.0), "fast_dump.bin": (58, 0.01), "raw_dump.bin.gz": (10_000, 2e-6)}
"""Rows, and seconds from one to the next."""


def dump(name):
    """Return what a PandA sent, with the times of arming and enabling that newer ones put into the header."""
    data = (DUMPS / name).read_bytes()
    data = gzip.decompress(data) if name.endswith(".gz") else data
    times = f'<data arm_time="{ARMED}" start_time="{STARTED}" '.encode()
    return data.replace(b"<data ", times, 1)


def written(name, path):
    """Write the HDF5 file that pandablocks writes of a dump, and return its attributes and columns."""
    connection = DataConnection()
    connection.connect(scaled=not name.startswith("raw"))
    pipeline = create_default_pipeline(iter([str(path)]), {})
    try:
        for data in connection.receive_bytes(dump(name)):
            pipeline[0].queue.put_nowait(data)
    finally:
        stop_pipeline(pipeline)
    with h5py.File(path) as file:
        return dict(file.attrs), {key: file[key][()] for key in file}


class Flown(NamedTuple):
    """A run with a PandA's file, a detector's, and a ring current of 100 mA that falls by 2 mA a second."""

    run: object
    attributes: dict
    columns: dict
    frames: np.ndarray

    def capture(self, **more):
        return PandaCapture.read(
            self.run["panda"],
            start_time=self.attributes["start_time"],
            arm_time=self.attributes["arm_time"],
            **more,
        )


def current(times):
    """Return mA at Unix seconds."""
    return 100.0 - 2.0 * (np.asarray(times) - UNIX)


@pytest.fixture
def fly(tmp_path):
    """A function that stores a run of a dump and so many captures a frame, and reads it through our client."""
    with open_store(tmp_path / "store", read=[tmp_path]) as store:

        def go(name, captures_per_frame=1, lost=(), change=None):
            attributes, columns = written(name, tmp_path / "panda.h5")
            if change is not None:
                with h5py.File(tmp_path / "panda.h5", "r+") as file:
                    change(file)
            count = len(columns["PCAP.TS_START.Value"])
            frames = np.arange(count // captures_per_frame * 6, dtype="<u4").reshape(-1, 2, 3)
            with h5py.File(tmp_path / "camera.h5", "w") as file:
                file["data"] = frames
            run = _documents(tmp_path, columns, frames, count, lost)
            with RunWriter(store, journal=tmp_path / "journal") as writer:
                for kind, doc in run.documents:
                    writer(kind, doc)
                writer.flush(timeout=100)
            return Flown(store["flown"], attributes, columns, frames)

        yield go


def _documents(directory, columns, frames, count, lost):
    run = RunDocuments("flown")
    run.documents[0][1]["time"] = UNIX - 1
    panda = run.stream("panda", **{key: external([], values.dtype.str) for key, values in columns.items()})
    for key in columns:
        panda.resource(key, f"file://localhost{directory}/panda.h5", dataset=f"/{key}")
        panda.frames(key, 0, count)
    camera = run.stream("camera", img=external([2, 3], "<u4"))
    camera.resource("img", f"file://localhost{directory}/camera.h5", dataset="data")
    for first, last in _without(len(frames), lost):
        camera.frames("img", first, last)
    ring = run.stream("ring_monitor", current=internal())
    for number in range(61):
        # Sent by another clock, an odd moment before and after the flight.
        time = UNIX - 0.535 + number * 0.1
        event = ring.event(current=float(current(time)))
        event.update(time=time + 0.003, timestamps={"current": time})
    run.stop(num_events={"panda": count, "camera": len(frames), "ring_monitor": 61})
    run.documents[-1][1]["time"] = UNIX + 7
    return run


def _without(count, lost):
    """Return ranges of all frames but the lost ones."""
    edges = [-1, *sorted(lost), count]
    return [(a + 1, b) for a, b in pairwise(edges) if b > a + 1]


# --- what comes back --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTURES)
def test_gates_and_mean_positions_are_those_of_the_file(fly, name):
    flown = fly(name)
    count, period = CAPTURES[name]
    capture = flown.capture()
    assert len(capture) == count
    assert_array_equal(capture.gate_start, flown.columns["PCAP.TS_START.Value"])
    assert_allclose(np.diff(capture.gate_start), period, rtol=1e-6)
    assert_array_equal(capture.means["COUNTER1.OUT"], np.arange(1, count + 1))
    assert_array_equal(capture.means["COUNTER2.OUT"], 2 * np.arange(1, count + 1))
    assert capture.check(longest=7.0) == []
    assert str(flown.run.verdict).endswith("0 gaps, stored")


@pytest.mark.parametrize("name", CAPTURES)
def test_the_start_of_the_file_makes_gates_absolute(fly, name):
    flown = fly(name)
    capture = flown.capture()
    assert capture.start == np.datetime64(STARTED.removesuffix("Z"))
    stamps = np.round(flown.columns["PCAP.TS_START.Value"] * 1e9).astype(np.int64)
    assert_array_equal((capture.datetimes - capture.start).astype(np.int64), stamps)
    assert_allclose(capture.times, UNIX + capture.gate_start, rtol=0, atol=GRAIN)


def test_raw_captures_tell_how_long_gates_were_open(fly):
    flown = fly("raw_dump.bin.gz")
    capture = flown.capture()
    assert_allclose(capture.gate_duration, 1e-6)  # 125 ticks
    start, end = capture.windows
    assert_allclose(end - start, 1e-6, atol=GRAIN)


# --- joined -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "per_frame"), [("fast_dump.bin", 1), ("fast_dump.bin", 2), ("raw_dump.bin.gz", 4)])
def test_frames_signals_and_positions_meet(fly, name, per_frame):
    flown = fly(name, per_frame)
    gates = flown.capture().per_frame(per_frame, len(flown.frames))
    found = flown.run.align("camera", {"ring_monitor": "linear"}, times={"camera": gates}, tolerance=0.1)
    start = flown.columns["PCAP.TS_START.Value"][::per_frame]
    assert_array_equal(found["img"], flown.frames)
    assert_allclose(found["gate_start"], start, rtol=0, atol=1e-12)
    assert_allclose(found["COUNTER1.OUT.Mean"], np.arange(1, 1 + len(start)) * per_frame - (per_frame - 1) / 2)
    assert_allclose(found["current"], current(UNIX + start), rtol=0, atol=1e-6)
    assert set(found["current_match"].values) <= {"within", "exact"}


def test_by_count_each_frame_has_its_captures(fly):
    flown = fly("fast_dump.bin", 2)
    found = flown.run.align("camera", {"panda": "ratio"}, variables=["img"])
    assert_array_equal(found["COUNTER3.OUT.Value"], flown.columns["COUNTER3.OUT.Value"].reshape(29, 2))
    assert (found["COUNTER3.OUT.Value_match"] == "exact").all()


def test_a_lost_frame_shifts_neither_gates_nor_positions(fly):
    flown = fly("fast_dump.bin", 2, lost={3, 4, 20})
    kept = [n for n in range(29) if n not in (3, 4, 20)]
    gates = flown.capture().per_frame(2, 29)
    with pytest.warns(MissingRows, match="none of the variables has seq_num 4-5, 21"):
        found = flown.run.align("camera", {"ring_monitor": "linear"}, times={"camera": gates})
    start = flown.columns["PCAP.TS_START.Value"][::2][kept]
    assert_array_equal(found["seq_num"], np.array(kept) + 1)
    assert_array_equal(found["img"], flown.frames[kept])
    assert_allclose(found["gate_start"], start)
    assert_allclose(found["COUNTER1.OUT.Mean"], np.array(kept) * 2 + 1.5)
    assert_allclose(found["current"], current(UNIX + start), rtol=0, atol=1e-6)


def test_nothing_is_carried_on_past_the_first_and_the_last_sample(fly):
    flown = fly("slow_dump.bin")
    # Samples from 0.535 s before the start to 5.465 s after it; 2 s are added, so gates at 0 s and 1 s have none.
    with pytest.warns(MissingRows, match=r"current is outside 2 \(seq_num 1-2\) of 5"):
        found = flown.run.align(
            "panda", {"ring_monitor": "linear"}, times={"panda": flown.capture()}, offset={"ring_monitor": 2.0}
        )
    assert_array_equal(np.isnan(found["current"]), [True, True, False, False, False])
    assert_allclose(found["current"][2:], current(UNIX + flown.columns["PCAP.TS_START.Value"][2:] - 2), atol=1e-5)


def test_a_capture_is_averaged_between_slow_samples(fly):
    flown = fly("fast_dump.bin")
    with pytest.warns(MissingRows, match=r"Mean_mean is empty 54 \(seq_num 1-5, 13-61\)"):
        found = flown.run.align(
            "ring_monitor",
            {"panda": {"COUNTER1.OUT.Mean": ["mean", "count"]}},
            times={"panda": flown.capture()},
            window="after",
        )
    counts = found["COUNTER1.OUT.Mean_count"].values
    assert counts.sum() == 58
    # The sixth sample was sent 35 ms before the start and the seventh 65 ms after it.
    assert counts[5:12].tolist() == [7, 10, 10, 10, 10, 10, 1]
    assert_allclose(found["COUNTER1.OUT.Mean_mean"][5:7], [4.0, 12.5])


# --- what is wrong ----------------------------------------------------------------------------


def _set(row, value):
    def change(file):
        file["PCAP.TS_START.Value"][row] = value

    return change


@pytest.mark.parametrize(
    ("change", "what", "row"),
    [
        (_set(0, 812.5), "first-stamp", 0),
        (_set(0, -8e-9), "no-gate", 0),
        (_set(30, 0.29), "order", 30),
        (_set(30, 0.0), "order", 30),
    ],
    ids=["left over from before", "no gate", "repeated", "back to zero"],
)
def test_a_bad_stamp_is_named_by_its_row(fly, change, what, row):
    flown = fly("fast_dump.bin", change=change)
    with pytest.warns(DoubtfulTimes, match=r"stamps of a PandA: .*"):
        capture = flown.capture()
    (finding,) = capture.check()
    assert (finding.what, finding.row) == (what, row)


def test_an_acquisition_that_started_before_arming_is_named(fly):
    flown = fly("fast_dump.bin")
    with pytest.warns(DoubtfulTimes, match="before arming"):
        PandaCapture.read(flown.run["panda"], start_time=STARTED, arm_time="2026-03-05T20:27:12.7Z")


def test_a_file_gives_the_same_capture_as_the_stream(fly, tmp_path):
    flown = fly("raw_dump.bin.gz")
    with h5py.File(tmp_path / "panda.h5") as file:
        local = PandaCapture.read(file, start_time=file.attrs["start_time"])
    stored = flown.capture()
    assert_array_equal(local.datetimes, stored.datetimes)
    assert_array_equal(local.gate_duration, stored.gate_duration)
    assert local.means.keys() == stored.means.keys()
