"""Streams of a run on the events of one of them: the right sample, or none and the reason.

If these fail, people plot against a ring current, a temperature or a position of another moment.
"""

import re
import warnings
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from flystore import open_store
from flystore.client import DoubtfulTimes, MissingRows, PandaCapture
from flystore.model.errors import InvalidRequest, NotFound
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.testing.documents import RunDocuments, external, internal
from flystore.testing.streams import put_in_place
from flystore.wire import api_path

STREAMS = Path(__file__).parents[2] / "data" / "streams"
BEGIN = 1000.0
FRAMES = 100 + np.arange(12 * 2 * 3, dtype="<u2").reshape(12, 2, 3)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store", read=[tmp_path]) as store:
        yield store


def sent(store, documents, uid):
    """Send the documents of a run as RunWriter does, and return the run."""
    encoder = FrameEncoder()
    body = b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))
    store.transport.request(
        "POST",
        api_path("ingest", uid),
        params={"first": 0, "epoch": 1},
        headers={"Content-Type": FRAMES_MIMETYPE},
        body=body,
    )
    return store[uid]


@contextmanager
def told(*patterns):
    """Expect a `MissingRows` warning of each pattern; others of that kind may come as well."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", MissingRows)
        yield
    said = [str(warning.message) for warning in caught]
    for pattern in patterns:
        assert any(re.search(pattern, text) for text in said), (pattern, said)


class Beamline:
    """A run to be put together: streams of Events at given times, and frames in files."""

    def __init__(self, store, directory):
        self.store, self.directory = store, directory
        self.run = RunDocuments("a-run", scan_id=3)

    def events(self, name, times, stamps=None, seq_nums=None, **columns):
        """Add a stream of Events; `times` are seconds since the start of the run, `stamps` those of the values."""
        keys = {key: internal("string" if isinstance(values[0], str) else "number") for key, values in columns.items()}
        stream = self.run.stream(name, **keys)
        stamps = times if stamps is None else stamps
        seq_nums = range(1, len(times) + 1) if seq_nums is None else seq_nums
        for row, (seq_num, time, stamp) in enumerate(zip(seq_nums, times, stamps, strict=True)):
            self.run.add(
                "event",
                {
                    "uid": self.run.new_uid("event"),
                    "descriptor": stream.descriptor,
                    "seq_num": seq_num,
                    "time": BEGIN + time,
                    "data": {key: values[row] for key, values in columns.items()},
                    "timestamps": dict.fromkeys(columns, BEGIN + stamp),
                    "filled": {},
                },
            )
        return self

    def frames(self, name, *ranges, key=None, values=FRAMES):
        """Add a stream of frames in a file; `ranges` are (first, behind the last), of indices, and of seq_nums."""
        key = key or f"{name}_img"
        with h5py.File(self.directory / f"{name}.h5", "w") as file:
            file["data"] = values
        stream = self.run.stream(name, **{key: external(values.shape[1:], values.dtype.str)})
        stream.resource(key, f"file://localhost{self.directory}/{name}.h5", dataset="data")
        for first, last, seq in ranges:
            stream.frames(key, first, last, seq)
        return self

    def done(self, exit_status="success", **num_events):
        self.run.stop(exit_status, num_events=num_events)
        return self.sent()

    def sent(self):
        return sent(self.store, self.run.documents, "a-run")


@pytest.fixture
def beamline(store, tmp_path):
    return Beamline(store, tmp_path)


@pytest.fixture
def ring(beamline):
    """A step scan of four events, and a ring current that was sent five times meanwhile."""
    beamline.events("primary", [1.0, 2.0, 3.0, 4.0], motor=[0.1, 0.2, 0.3, 0.4])
    beamline.events("ring_monitor", [0.9, 1.1, 2.0, 2.5, 3.5], current=[90, 110, 200, 250, 350])
    return beamline


# --- by time ----------------------------------------------------------------------------------


def test_a_monitor_is_interpolated_at_each_event(ring):
    with told(r"current is outside 1 \(seq_num 4\) of 4 events"):
        found = ring.done().align("primary", {"ring_monitor": "linear"})
    np.testing.assert_allclose(found["current"], [100.0, 200.0, 300.0, np.nan])
    assert found["current_match"].values.tolist() == ["within", "exact", "within", "outside"]
    assert_array_equal(found["motor"], [0.1, 0.2, 0.3, 0.4])
    assert_array_equal(found["time"], BEGIN + np.arange(1.0, 5.0))
    assert_array_equal(found["seq_num"], [1, 2, 3, 4])


def test_the_nearest_and_the_previous_sample_tell_when_they_were_taken(ring):
    run = ring.done()
    nearest = run.align("primary", {"ring_monitor": "nearest"}, tolerance=0.5)
    assert_array_equal(nearest["current"], [90, 200, 250, 350])
    assert nearest["current"].dtype == np.int64
    np.testing.assert_allclose(nearest["current_time"], BEGIN + np.array([0.9, 2.0, 2.5, 3.5]))
    previous = run.align("primary", {"ring_monitor": "previous"})
    assert_array_equal(previous["current"], [90, 200, 250, 350])
    assert previous["current_match"].values.tolist() == ["within", "exact", "within", "within"]


def test_beyond_the_tolerance_there_is_no_value(ring):
    with told(r"beyond 1 \(seq_num 3\), outside 1 \(seq_num 4\)"):
        found = ring.done().align("primary", {"ring_monitor": "nearest"}, tolerance={"ring_monitor": 0.2})
    assert_array_equal(found["current"], [90, 200, np.nan, np.nan])
    assert_array_equal(found["current_time"].isnull(), [False, False, True, True])


def test_an_offset_sets_a_clock_right(ring):
    run = ring.done()
    late = run.align("primary", {"ring_monitor": "nearest"}, offset={"ring_monitor": 0.5}, tolerance=0.5)
    # As if sent at 1.4, 1.6, 2.5, 3.0, 4.0.
    assert_array_equal(late["current"], [90, 110, 250, 350])
    np.testing.assert_allclose(late["current_time"], BEGIN + np.array([1.4, 1.6, 3.0, 4.0]))
    both = run.align("primary", {"ring_monitor": "nearest"}, offset={"ring_monitor": 7, "primary": 7}, tolerance=0.5)
    assert_array_equal(both["current"], [90, 200, 250, 350])


def test_values_count_at_their_own_time_and_not_at_that_of_their_event(beamline):
    beamline.events("primary", [1.0, 2.0], motor=[1.0, 2.0])
    beamline.events("monitor", [1.0, 2.0, 3.0], stamps=[0.0, 1.0, 2.0], x=[10.0, 20.0, 30.0])
    run = beamline.done()
    assert_array_equal(run.align("primary", {"monitor": "nearest"})["x"], [20.0, 30.0])
    assert_array_equal(run.align("primary", {"monitor": "nearest"}, times={"monitor": "time"})["x"], [10.0, 20.0])


def test_the_time_of_an_event_can_be_that_of_one_of_its_values(beamline):
    beamline.events("primary", [1.5, 2.5], stamps=[1.0, 2.0], motor=[1.0, 2.0])
    beamline.events("monitor", [0.0, 4.0], x=[0.0, 4.0])
    found = beamline.done().align("primary", {"monitor": "linear"}, times={"primary": "ts_motor"})
    np.testing.assert_allclose(found["x"], [1.0, 2.0])
    assert "ts_motor" not in found


def test_times_can_be_given_as_instants(ring):
    instants = (np.array([1.1, 2.0, 2.5, 3.5]) + BEGIN) * 1e9
    found = ring.done().align(
        "primary", {"ring_monitor": "nearest"}, times={"primary": np.round(instants).astype("M8[ns]")}, tolerance=1e-6
    )
    assert_array_equal(found["current"], [110, 200, 250, 350])


def test_each_variable_of_a_stream_can_have_its_own_rule(beamline):
    beamline.events("primary", [1.0, 2.0], motor=[1.0, 2.0])
    beamline.events("slow", [0.0, 4.0], temp=[10.0, 50.0], valve=["open", "shut"], other=[0.0, 0.0])
    run = beamline.done()
    found = run.align("primary", {"slow": {"temp": "linear", "valve": "previous"}})
    np.testing.assert_allclose(found["temp"], [20.0, 30.0])
    assert found["valve"].values.tolist() == ["open", "open"]
    assert "other" not in found
    with pytest.raises(InvalidRequest, match="slow/valve: linear interpolation needs numbers"):
        run.align("primary", {"slow": "linear"})


def test_text_that_matches_nothing_is_marked(beamline):
    beamline.events("primary", [1.0], motor=[1.0])
    beamline.events("slow", [2.0], valve=["shut"])
    with told("outside 1"):
        found = beamline.done().align("primary", {"slow": "previous"})
    assert found["valve"].values.tolist() == ["<NA>"]


def test_samples_taken_again_after_a_pause_count_at_their_own_times(beamline):
    beamline.events("primary", [1.0, 2.0, 8.0, 9.0], seq_nums=[1, 2, 2, 3], motor=[1.0, 2.0, 2.5, 3.0])
    beamline.events("monitor", [1.0, 2.0, 8.0], seq_nums=[1, 2, 2], x=[10.0, 20.0, 80.0])
    run = beamline.done()
    found = run.align("primary", {"monitor": "nearest"}, tolerance=1.0)
    assert_array_equal(found["seq_num"], [1, 2, 3])
    assert_array_equal(found["motor"], [1.0, 2.5, 3.0])
    assert_array_equal(found["x"], [10.0, 80.0, 80.0])


def test_a_sample_that_was_taken_again_stays_where_it_was_in_time(beamline):
    beamline.events("primary", [1.0, 2.2], motor=[1.0, 2.0])
    beamline.events("monitor", [1.0, 2.0, 8.0], seq_nums=[1, 2, 2], x=[10.0, 20.0, 80.0])
    assert_array_equal(beamline.done().align("primary", {"monitor": "nearest"})["x"], [10.0, 20.0])


def test_the_recorded_monitor_is_where_it_was(store, tmp_path):
    case = put_in_place(STREAMS, "monitor_baseline", tmp_path)
    ((uid, documents),) = case.runs.items()
    run = sent(store, documents, uid)
    with told("ring_current"):
        linear = run.align("primary", {"ring_current_monitor": "linear"})
    # The second sample came 0.6 ms after the first event's time, 53 ms after the first sample.
    first, second = 0.36373242030620534, 0.8390667551668579
    begin, end, event = 1795340536.082388, 1795340536.135193, 1795340536.1346934
    assert linear["ring_current"].values[0] == pytest.approx(
        first + (second - first) * (event - begin) / (end - begin), rel=1e-4
    )
    assert linear["ring_current_match"].values.tolist() == ["within", "outside", "outside", "outside"]
    previous = run.align("primary", {"ring_current_monitor": "previous", "baseline": "previous"})
    assert_array_equal(previous["ring_current"], [first, second, second, second])
    assert (previous["motor1_match"] == "within").all()


# --- by count ---------------------------------------------------------------------------------


def test_the_recorded_flyscan_of_two_rates_is_put_together_exactly(store, tmp_path):
    case = put_in_place(STREAMS, "flyscan_two_streams", tmp_path)
    ((uid, documents),) = case.runs.items()
    run = sent(store, documents, uid)
    found = run.align("slow", {"fast": "ratio", "positions": "ratio"})
    assert found["Angle"].dims == ("time", "fast_row")
    with h5py.File(case.directory / "panda.h5") as file:
        assert_array_equal(found["Angle"], file["Angle"][:12].reshape(4, 3))
    with h5py.File(case.directory / "det_fast.h5") as file:
        assert_array_equal(found["det_fast"].values[:, :, 0], file["/entry/data/data"][:12].reshape(4, 3, 12, 16))
    assert_array_equal(found["motor"], [1.0, 2.0, 3.0, 4.0])
    assert (found["Angle_match"] == "exact").all()
    turned = run.align("fast", {"slow": "ratio"}, variables=["Angle"])
    assert_array_equal(turned["det_slow-sum"], np.repeat(run["slow"]["det_slow-sum"].read(), 3))
    assert "det_fast" not in turned


def test_a_lost_frame_shifts_nothing(beamline):
    beamline.frames("slow", (0, 3, 1))
    beamline.frames("fast", (0, 2, 1), (3, 6, 4), key="img")
    with told(r"img is partial 1 \(seq_num 2\) of 3 events"):
        found = beamline.done(slow=3, fast=6).align("slow", {"fast": "ratio"}, variables=[])
    assert found["img"].shape == (3, 2, 2, 3)
    assert_array_equal(found["img"][0], FRAMES[:2])
    assert np.isnan(found["img"][1, 0]).all()
    assert_array_equal(found["img"][1, 1], FRAMES[3])
    assert_array_equal(found["img"][2], FRAMES[4:6])
    assert found["img_match"].values.tolist() == ["exact", "partial", "exact"]


def test_a_variable_with_a_gap_in_a_stream_without_one_shifts_nothing(beamline, tmp_path):
    with h5py.File(tmp_path / "camera.h5", "w") as file:
        file["data"] = FRAMES
    beamline.events("primary", [1.0, 2.0, 3.0], x=[1.0, 2.0, 3.0])
    fast = beamline.run.stream("fast", y=internal(), img=external([2, 3], "<u2"))
    fast.resource("img", f"file://localhost{tmp_path}/camera.h5", dataset="data")
    for number in range(6):
        fast.event(y=float(number))
        if number != 2:
            fast.frames("img", number, number + 1)
    with told(r"img is partial 1 \(seq_num 2\)"):
        found = beamline.done(primary=3, fast=6).align("primary", {"fast": "ratio"})
    assert_array_equal(found["y"], [[0, 1], [2, 3], [4, 5]])
    assert np.isnan(found["img"].values[1, 0]).all()
    assert_array_equal(np.delete(found["img"].values.reshape(6, 2, 3), 2, axis=0), np.delete(FRAMES[:6], 2, axis=0))


def test_a_reference_with_a_gap_keeps_its_numbers(beamline):
    beamline.frames("slow", (0, 1, 1), (2, 4, 3))
    beamline.frames("fast", (0, 8, 1), key="img")
    with told("none of the variables has seq_num 2"):
        found = beamline.done(slow=4, fast=8).align("slow", {"fast": "ratio"})
    assert_array_equal(found["seq_num"], [1, 3, 4])
    assert_array_equal(found["slow_img"], FRAMES[[0, 2, 3]])
    assert_array_equal(found["img"], FRAMES[[[0, 1], [4, 5], [6, 7]]])


def test_a_ratio_is_not_guessed_from_a_run_that_was_broken_off_or_goes_on(beamline):
    beamline.frames("slow", (0, 3, 1))
    beamline.frames("fast", (0, 9, 1), key="img")  # of 4 an event, had it not been broken off
    run = beamline.sent()
    with pytest.raises(InvalidRequest, match="has no end yet"):
        run.align("slow", {"fast": "ratio"})
    run = beamline.done("abort", slow=3, fast=9).refresh()
    with pytest.raises(InvalidRequest, match="broken off"):
        run.align("slow", {"fast": "ratio"})
    with told(r"img is partial 1 \(seq_num 3\) of 3"):
        found = run.align("slow", {"fast": 4})
    assert_array_equal(found["img"][:2].values.reshape(8, 2, 3), FRAMES[:8])
    slow = run.align("fast", {"slow": Fraction(1, 4)}, variables=[])
    assert_array_equal(slow["slow_img"], FRAMES[[0] * 4 + [1] * 4 + [2]])


def test_a_ratio_is_not_guessed_where_the_stop_document_does_not_count(beamline):
    beamline.frames("slow", (0, 3, 1))
    beamline.frames("fast", (0, 9, 1), key="img")
    with pytest.raises(InvalidRequest, match="does not count the events of both"):
        beamline.done(slow=3).align("slow", {"fast": "ratio"})


def test_frames_lost_at_the_end_do_not_change_the_ratio(beamline):
    beamline.frames("slow", (0, 3, 1))
    beamline.frames("fast", (0, 6, 1), key="img")
    with told(r"img is missing 1 \(seq_num 3\) of 3"):
        found = beamline.done(slow=3, fast=9).align("slow", {"fast": "ratio"})
    assert_array_equal(found["img"][:2].values.reshape(6, 2, 3), FRAMES[:6])


def test_numbers_that_divide_by_nothing_are_refused(beamline):
    beamline.events("primary", [1.0, 2.0], x=[1.0, 2.0])
    beamline.frames("fast", (0, 5, 1))
    with pytest.raises(InvalidRequest, match="5 rows are no whole multiple of 2 events"):
        beamline.done(primary=2, fast=5).align("primary", {"fast": "ratio"})


# --- by window --------------------------------------------------------------------------------


def test_samples_are_counted_and_averaged_since_the_event_before(ring):
    found = ring.done().align("primary", {"ring_monitor": ["mean", "count"]}, window="before")
    assert_array_equal(found["current_count"], [1, 2, 1, 1])
    assert_array_equal(found["current_mean"], [90.0, 155.0, 250.0, 350.0])
    assert found["current_count"].dtype == np.int64


def test_samples_can_be_taken_until_the_next_event(ring):
    run = ring.done()
    assert_array_equal(
        run.align("primary", {"ring_monitor": "count"}, window="after")["current"], [1, 2, 1, 0]
    )  # without a warning: none is a number
    with told(r"current is empty 1 \(seq_num 4\)"):
        last = run.align("primary", {"ring_monitor": "last"}, window="after")
    assert_array_equal(last["current"], [110, 250, 350, np.nan])
    np.testing.assert_allclose(last["current_time"][:3], BEGIN + np.array([1.1, 2.5, 3.5]))


def test_windows_can_be_given(ring):
    starts = BEGIN + np.array([0.0, 0.0, 2.0, 5.0])
    with told("empty 1"):
        found = ring.done().align("primary", {"ring_monitor": "mean"}, window=(starts, starts + 2.0))
    assert_array_equal(found["current"], [100.0, 100.0, (200 + 250 + 350) / 3, np.nan])


def test_while_the_run_goes_on_the_last_window_is_unknown(ring):
    with told(r"missing 1 \(seq_num 4\)"):
        found = ring.sent().align("primary", {"ring_monitor": "count"}, window="after")
    assert_array_equal(found["current"], [1, 2, 1, np.nan])


# --- frames, gates and signals ----------------------------------------------------------------


@pytest.fixture
def flight(beamline):
    """Six gates of a PandA, from 5 s after the start on, two for each of three frames, and a temperature."""
    beamline.frames("panda", (0, 6, 1), key="TS", values=np.arange(6) * 0.5)
    beamline.frames("camera", (0, 3, 1), key="img")
    beamline.events("temp_monitor", [0.0, 10.0], temp=[0.0, 10.0])
    return beamline


def capture_of(run, **more):
    return PandaCapture.read(run["panda"], start_time=BEGIN + 5, names={"gate_start": "TS"}, **more)


def test_a_stream_from_files_alone_has_times_once_a_capture_gives_them(flight):
    run = flight.done(panda=6, camera=3)
    with pytest.raises(InvalidRequest, match="nobody knows when the rows of panda were taken"):
        run.align("panda", {"temp_monitor": "linear"})
    found = run.align("panda", {"temp_monitor": "linear"}, times={"panda": capture_of(run)})
    np.testing.assert_allclose(found["temp"], 5 + np.arange(6) * 0.5)
    np.testing.assert_allclose(found["time"], BEGIN + 5 + np.arange(6) * 0.5)
    assert_array_equal(found["gate_start"], np.arange(6) * 0.5)


def test_a_variable_with_an_offset_gives_them_as_well(flight):
    run = flight.done(panda=6, camera=3)
    found = run.align(
        "panda", {"temp_monitor": "linear"}, times={"panda": "TS"}, offset={"panda": BEGIN + 5}, variables=[]
    )
    np.testing.assert_allclose(found["temp"], 5 + np.arange(6) * 0.5)
    assert "TS" not in found


def test_several_gates_of_a_frame_are_put_on_it(flight):
    run = flight.done(panda=6, camera=3)
    with pytest.raises(InvalidRequest, match=r"6 captures for 3 events of camera; .* per_frame\(1\)"):
        run.align("camera", {"temp_monitor": "linear"}, times={"camera": capture_of(run)})
    gates = capture_of(run, means=["TS"]).per_frame(2, frames=3)
    found = run.align("camera", {"temp_monitor": "linear", "panda": "ratio"}, times={"camera": gates})
    assert_array_equal(found["img"], FRAMES[:3])
    np.testing.assert_allclose(found["gate_start"], [0.0, 1.0, 2.0])
    np.testing.assert_allclose(found["TS.Mean"], [0.25, 1.25, 2.25])
    np.testing.assert_allclose(found["temp"], [5.0, 6.0, 7.0])
    assert_array_equal(found["TS"], [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]])


def test_more_captures_than_frames_are_fine_once_somebody_said_how_they_belong(flight):
    run = flight.done("abort", panda=6, camera=3)
    gates = capture_of(run).per_frame(1)
    found = run.align("camera", {"temp_monitor": "linear"}, times={"camera": gates})
    assert_array_equal(found["gate_start"], [0.0, 0.5, 1.0])


def test_gates_and_frames_that_were_lost_at_different_places_do_not_meet(beamline):
    beamline.frames("panda", (0, 1, 1), (2, 4, 3), key="TS", values=np.arange(4) * 1.0)
    beamline.frames("camera", (0, 2, 1), (3, 4, 4), key="img")
    beamline.events("temp_monitor", [0.0, 20.0], temp=[0.0, 20.0])
    run = beamline.done(panda=4, camera=4)
    with told("camera: none .* seq_num 3", "panda: none .* seq_num 2", r"temp is missing 1 \(seq_num 2\) of 3"):
        found = run.align("camera", {"temp_monitor": "linear"}, times={"camera": capture_of(run)})
    assert_array_equal(found["seq_num"], [1, 2, 4])
    assert_array_equal(found["img"], FRAMES[[0, 1, 3]])
    np.testing.assert_allclose(found["temp"], [5.0, np.nan, 8.0])
    assert_array_equal(found["gate_start"], [0.0, np.nan, 3.0])


def test_gates_are_windows_of_their_own(beamline):
    beamline.frames("panda", (0, 3, 1), key="TS", values=np.arange(3) * 1.0)
    beamline.events("counter", [4.9, 5.0, 5.2, 5.6, 6.1, 6.3, 7.9], counts=[1, 2, 3, 4, 5, 6, 7])
    run = beamline.done(panda=3)
    gates = PandaCapture(np.arange(3.0), np.arange(3.0) + 0.5, start_time=BEGIN + 5)
    with told("empty 1"):
        found = run.align("panda", {"counter": ["count", "mean"]}, times={"panda": gates})
    assert_array_equal(found["counts_count"], [2, 2, 0])
    assert_array_equal(found["counts_mean"], [2.5, 5.5, np.nan])


def test_gates_move_with_the_offset_of_their_clock(beamline):
    beamline.frames("panda", (0, 2, 1), key="TS", values=np.arange(2) * 1.0)
    beamline.events("counter", [5.1, 6.1, 6.2], counts=[1, 2, 3])
    gates = PandaCapture(np.arange(2.0), np.arange(2.0) + 0.5, start_time=BEGIN)
    found = beamline.done(panda=2).align("panda", {"counter": "count"}, times={"panda": gates}, offset={"panda": 5})
    assert_array_equal(found["counts"], [1, 2])
    assert_array_equal(found["time"], BEGIN + np.array([5.0, 6.0]))


def test_captures_of_a_lost_event_are_lost_and_the_others_keep_their_frames(beamline):
    beamline.frames("panda", (0, 1, 1), (2, 3, 3), key="TS", values=np.arange(6.0).reshape(3, 2))
    run = beamline.done(panda=3)
    with told("none of the variables has seq_num 2"):
        capture = capture_of(run)
    assert capture.stamps.tolist() == [0.0, 1.0, 4.0, 5.0]
    assert capture.number.tolist() == [1, 2, 5, 6]
    assert_array_equal(capture.per_frame(2).stamps, [0.0, np.nan, 4.0])


def test_a_fast_capture_is_binned_onto_slow_events(flight):
    flight.events("primary", [5.0, 6.0, 7.5], motor=[1.0, 2.0, 3.0])
    run = flight.done(panda=6, camera=3, primary=3)
    found = run.align("primary", {"panda": ["mean", "count", "last"]}, times={"panda": capture_of(run)})
    assert_array_equal(found["TS_count"], [1, 2, 3])
    np.testing.assert_allclose(found["TS_mean"], [0.0, 0.75, 2.0])
    np.testing.assert_allclose(found["TS_last"], [0.0, 1.0, 2.5])


def test_stamps_that_cannot_be_right_are_warned_of(beamline):
    beamline.frames("panda", (0, 3, 1), key="TS", values=np.array([0.0, 1.0, 2000.0]))
    beamline.events("temp_monitor", [0.0, 10.0], temp=[0.0, 10.0])
    run = beamline.done(panda=3)
    bad = PandaCapture([0.0, 2.0, 1.0], start_time=BEGIN)
    with pytest.warns(DoubtfulTimes, match="row 2"):
        run.align("panda", {"temp_monitor": "linear"}, times={"panda": bad})


# --- shape of the result ----------------------------------------------------------------------


def test_a_name_that_is_taken_gets_the_name_of_the_stream(beamline):
    beamline.events("primary", [1.0, 2.0], x=[1.0, 2.0])
    beamline.events("a", [0.0, 4.0], x=[0.0, 4.0])
    beamline.events("b", [0.0, 4.0], x=[0.0, 8.0])
    found = beamline.done().align("primary", {"a": "linear", "b": "linear"})
    assert_array_equal(found["x"], [1.0, 2.0])
    np.testing.assert_allclose(found["a_x"], [1.0, 2.0])
    np.testing.assert_allclose(found["b_x"], [2.0, 4.0])


def test_frames_of_two_sizes_have_axes_of_their_own(beamline):
    beamline.frames("slow", (0, 3, 1), key="img")
    beamline.frames("other", (0, 3, 1), key="img", values=np.zeros((3, 4, 5)))
    found = beamline.done(slow=3, other=3).align("slow", {"other": "ratio"})
    assert found["img"].shape == (3, 2, 3)
    assert found["other_img"].shape == (3, 4, 5)


def test_arrays_can_be_left_with_the_service(beamline):
    beamline.frames("slow", (0, 3, 1), key="img")
    beamline.frames("fast", (0, 2, 1), (3, 6, 4), key="raw")
    run = beamline.done(slow=3, fast=6)
    with told("partial 1"):
        lazy = run.align("slow", {"fast": "ratio"}, lazy=True)
    with told("partial 1"):
        found = run.align("slow", {"fast": "ratio"})
    assert lazy["img"].chunks is not None
    assert lazy["raw"].chunks is not None
    for name in ("img", "raw"):
        assert_array_equal(lazy[name].compute(), found[name])


def test_a_stream_in_which_nothing_happened_is_named(beamline):
    beamline.events("primary", [1.0, 2.0], x=[1.0, 2.0])
    beamline.events("monitor", [], temp=[1.0])
    run = beamline.done()
    with told("monitor has no variables"):
        assert list(run.align("primary", {"monitor": "linear"})) == ["x"]
    with pytest.raises(InvalidRequest, match="monitor has no rows"):
        run.align("monitor", {"primary": "linear"})


def test_frames_that_never_reached_the_file_match_nothing(beamline):
    beamline.events("primary", [1.0, 2.0], x=[1.0, 2.0])
    beamline.frames("fast", (0, 4, 1), key="img", values=FRAMES[:0])
    run = beamline.done(primary=2, fast=4)
    run.check()
    with told(r"img is missing 2 \(seq_num 1-2\) of 2"):
        found = run.align("primary", {"fast": "ratio"})
    assert found["img"].shape == (2, 2, 2, 3)
    assert np.isnan(found["img"]).all()


def test_a_warning_names_the_line_that_asked(ring):
    run = ring.done()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.align("primary", {"ring_monitor": "linear"})
        run.align("primary", {"ring_monitor": "linear"}, times={"primary": PandaCapture([2.0, 1.0], start_time=BEGIN)})
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name] * 3


def test_nothing_else_is_needed(ring):
    run = ring.done()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run.align("primary", {})
    assert found.drop_vars("seq_num").identical(run["primary"].read())


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "options", "error", "words"),
    [
        ({"ring_monitor": "closest"}, {}, InvalidRequest, "one of ratio, nearest"),
        ({"ring_monitor": True}, {}, InvalidRequest, "one of ratio, nearest"),
        ({"ring_monitor": 1.5}, {}, InvalidRequest, "one of ratio, nearest"),
        ({"ring_monitor": []}, {}, InvalidRequest, "one of ratio, nearest"),
        ({"ring_monitor": None}, {}, InvalidRequest, "one of ratio, nearest"),
        ({"ring_monitor": 0}, {}, InvalidRequest, "whole number"),
        ({"ring_monitor": {"voltage": "linear"}}, {}, NotFound, "has no voltage; it has current"),
        ({"nope": "linear"}, {}, NotFound, "nope"),
        ({"primary": "linear"}, {}, InvalidRequest, "cannot be one of them"),
        ({"ring_monitor": "linear"}, {"variables": ["nope"]}, NotFound, "has no nope"),
        ({"ring_monitor": "linear"}, {"offset": {"ring": 1}}, InvalidRequest, "offset is given for ring"),
        ({"ring_monitor": "linear"}, {"offset": {"primary": "1 s"}}, InvalidRequest, "offset of primary"),
        ({"ring_monitor": "linear"}, {"tolerance": {"ring": 1}}, InvalidRequest, "tolerance is given for ring"),
        ({"ring_monitor": "linear"}, {"tolerance": -1}, InvalidRequest, "tolerance is a number"),
        ({"ring_monitor": "linear"}, {"times": {"primary": np.zeros(3)}}, InvalidRequest, "3 times are given"),
        ({"ring_monitor": "linear"}, {"times": {"primary": ["a"] * 4}}, InvalidRequest, "times of primary"),
        ({"ring_monitor": "linear"}, {"times": {"ring_monitor": "nope"}}, NotFound, "nope"),
        ({"ring_monitor": "mean"}, {"window": "around"}, InvalidRequest, "window is one of before, after"),
        ({"ring_monitor": "mean"}, {"window": np.zeros(4)}, InvalidRequest, "window is one of before, after"),
        ({"ring_monitor": "mean"}, {"window": ([0.0], [1.0])}, InvalidRequest, "for each of the 4 events"),
    ],
)
def test_a_mistake_is_named(ring, others, options, error, words):
    run = ring.done()
    with pytest.raises(error, match=words):
        run.align("primary", others, **options)


def test_rows_that_nobody_assigned_to_events_are_refused(beamline, tmp_path):
    beamline.events("primary", [1.0, 2.0], x=[1.0, 2.0])
    beamline.frames("fast", (0, 2, 1))
    run = beamline.done(primary=2, fast=2)
    with pytest.raises(InvalidRequest, match="no stream of this run"):
        run.align("fast/fast_img", {})
