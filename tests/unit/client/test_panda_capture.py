"""What a PandA captured gives the time and the place of each gate, and stamps that cannot be right are named.

If these fail, frames of a flyscan are put at positions of another moment.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flystore.client import DoubtfulTimes, PandaCapture
from flystore.model.errors import InvalidRequest, NotFound

START = "2026-03-05T20:27:12.608875498Z"
UNIX = 1772742432.608875498


def gates(n=4, period=0.5, high=0.25):
    start = 5.6e-8 + period * np.arange(n)
    return start, start + high


def found(capture, **options):
    return [(finding.what, finding.row) for finding in capture.check(**options)]


# --- times ------------------------------------------------------------------------------------


def test_stamps_and_a_start_give_instants_to_the_nanosecond():
    capture = PandaCapture(gates()[0], start_time=START)
    assert capture.datetimes[0] == np.datetime64("2026-03-05T20:27:12.608875554")
    assert capture.datetimes[3] == np.datetime64("2026-03-05T20:27:14.108875554")
    np.testing.assert_allclose(capture.times, UNIX + gates()[0], rtol=0, atol=2.4e-7)


@given(st.integers(0, 2**31 * 10**9 - 1), arrays(np.int64, st.integers(1, 5), elements=st.integers(0, 10**13)))
def test_instants_are_exact_and_unix_seconds_to_their_grain(start, ticks):
    # Up to a day of 8 ns ticks.
    capture = PandaCapture(ticks * 8e-9, start_time=np.datetime64(start, "ns"))
    assert (capture.datetimes.astype(np.int64) == start + ticks * 8).all()
    exact = [start + int(t) * 8 for t in ticks]
    for unix, nanoseconds in zip(capture.times, exact, strict=True):
        whole = int(unix)
        assert abs((whole - nanoseconds // 10**9) * 10**9 + round((unix - whole) * 1e9) - nanoseconds % 10**9) <= 240


@pytest.mark.parametrize(
    "given_as",
    [
        START,
        START.removesuffix("Z"),
        "2026-03-05T21:27:12.608875498+01:00",
        "2026-03-05T14:57:12.608875498-0530",
        np.datetime64(START.removesuffix("Z")),
        np.str_(START),
    ],
)
def test_a_start_can_be_written_in_several_ways(given_as):
    assert PandaCapture([0.0], start_time=given_as).start == np.datetime64(START.removesuffix("Z"), "ns")


def test_a_start_in_unix_seconds_is_that_float():
    assert PandaCapture([0.0], start_time=1.5).start == np.datetime64("1970-01-01T00:00:01.5", "ns")


@pytest.mark.parametrize("nonsense", ["yesterday", "", "NaT", np.nan, [1, 2], True, np.datetime64("NaT")])
def test_a_start_that_is_no_time_is_refused(nonsense):
    with pytest.raises(InvalidRequest, match="start_time"):
        PandaCapture([0.0], start_time=nonsense)


def test_the_offset_of_a_hardware_clock_is_added():
    capture = PandaCapture([0.0], start_time="2024-03-05T20:27:12.605729480Z", hw_time_offset_ns=2155797)
    assert capture.start == np.datetime64("2024-03-05T20:27:12.607885277")


def test_without_a_start_times_are_refused_and_stamps_are_there():
    capture = PandaCapture(*gates())
    np.testing.assert_array_equal(capture.stamps, gates()[0])
    for ask in ("times", "datetimes", "windows"):
        with pytest.raises(InvalidRequest, match="nobody said when"):
            getattr(capture, ask)


def test_gates_end_where_they_are_said_to_or_after_their_duration():
    start, end = gates()
    np.testing.assert_allclose(PandaCapture(start, end, start_time=0.0).windows[1], end)
    np.testing.assert_allclose(PandaCapture(start, None, end - start, start_time=0.0).windows[1], end)
    assert PandaCapture(start, start_time=0.0).windows is None
    assert PandaCapture(trigger=start, start_time=0.0).windows is None


def test_a_trigger_alone_gives_times_too():
    capture = PandaCapture(trigger=[0.5, 1.0], start_time=100.0)
    assert capture.times.tolist() == [100.5, 101.0]
    assert capture.gate_start is None


# --- what is wrong ----------------------------------------------------------------------------


def test_a_sound_capture_has_nothing_wrong():
    start, end = gates()
    armed = "2026-03-05T20:27:12.607841574Z"
    capture = PandaCapture(start, end, end - start, start_time=START, arm_time=armed)
    assert found(capture, longest=10.0) == []


def test_the_first_stamp_that_is_not_above_the_one_before_is_named():
    start, _ = gates(6)
    start[4] = start[3]
    assert found(PandaCapture(start)) == [("order", 4)]


def test_a_first_stamp_left_over_from_the_time_before_is_named_and_not_the_second():
    start, _ = gates(5)
    start[0] = 77.0
    capture = PandaCapture(start)
    assert found(capture) == [("first-stamp", 0)]
    assert "77.000000000 s" in capture.check()[0].words


def test_behind_a_bad_first_stamp_the_order_is_looked_at_as_well():
    start, _ = gates(6)
    start[0], start[4] = 77.0, 0.1
    assert found(PandaCapture(start)) == [("first-stamp", 0), ("order", 4)]


def test_a_lone_first_stamp_later_than_the_run_took_is_named():
    assert found(PandaCapture([77.0]), longest=10.0) == [("first-stamp", 0)]
    assert found(PandaCapture([77.0])) == []


def test_a_first_stamp_before_arming_is_named():
    capture = PandaCapture(gates()[0], start_time=START, arm_time="2026-03-05T20:27:13Z")
    assert found(capture) == [("first-stamp", 0)]
    assert "before arming" in capture.check()[0].words


def test_a_capture_without_a_gate_is_named_and_has_no_time():
    start, end = gates()
    start[2] = end[2] = -8e-9
    capture = PandaCapture(start, end, start_time=START)
    assert found(capture) == [("no-gate", 2)]
    assert np.isnan(capture.times).tolist() == [False, False, True, False]
    assert np.isnat(capture.datetimes).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda start, end, high: end.__setitem__(1, start[1] - 0.1), "row 1 ends before it starts"),
        (lambda start, end, high: end.__setitem__(2, start[3] + 0.1), "row 2 ends behind the start of the next"),
        (lambda start, end, high: high.__setitem__(0, 0.3), "row 0 was high for longer than it lasted"),
    ],
)
def test_a_gate_that_cannot_be_is_named(change, words):
    start, end = gates()
    high = end - start
    change(start, end, high)
    (finding,) = PandaCapture(start, end, high).check()
    assert finding.what == "gate"
    assert words in finding.words


def test_gates_that_touch_are_fine():
    start, _ = gates(3)
    assert found(PandaCapture(start, np.append(start[1:], 2.0))) == []


# --- several captures a frame -----------------------------------------------------------------


def test_captures_of_a_frame_are_weighted_with_the_time_their_gates_were_open():
    capture = PandaCapture(
        [0.0, 1.0, 2.0, 3.0], [0.5, 1.5, 2.1, 3.3], [0.5, 0.5, 0.1, 0.3], {"x": [1.0, 3.0, 4.0, 8.0]}, start_time=0.0
    )
    frames = capture.per_frame(2)
    assert frames.gate_start.tolist() == [0.0, 2.0]
    assert frames.gate_end.tolist() == [1.5, 3.3]
    np.testing.assert_allclose(frames.gate_duration, [1.0, 0.4])
    np.testing.assert_allclose(frames.means["x"], [2.0, 7.0])
    assert frames.number.tolist() == [1, 2]


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_the_mean_of_a_frame_is_the_mean_of_all_its_ticks(captures, frames, data):
    n = captures * frames
    ticks = data.draw(arrays(np.int64, n, elements=st.integers(1, 50)))
    trace = [data.draw(arrays(np.float64, int(t), elements=st.integers(-100, 100))) for t in ticks]
    starts = np.cumsum(ticks) - ticks
    capture = PandaCapture(starts * 8e-9, (starts + ticks) * 8e-9, ticks * 8e-9, {"x": [part.mean() for part in trace]})
    made = capture.per_frame(captures, frames)
    truth = [np.concatenate(trace[f * captures : (f + 1) * captures]).mean() for f in range(frames)]
    np.testing.assert_allclose(made.means["x"], truth, atol=1e-9)


def test_without_durations_every_gate_counts_the_same():
    assert PandaCapture([0.0, 1.0], means={"x": [1.0, 4.0]}).per_frame(2).means["x"].tolist() == [2.5]


def test_a_capture_without_a_gate_counts_for_nothing():
    frames = PandaCapture([-8e-9, 1.0, -8e-9, -8e-9], means={"x": [99.0, 4.0, 99.0, 99.0]}).per_frame(2)
    np.testing.assert_array_equal(frames.gate_start, [1.0, np.nan])
    np.testing.assert_array_equal(frames.means["x"], [4.0, np.nan])


def test_a_frame_of_which_a_capture_was_lost_is_unknown_and_the_others_stay():
    capture = PandaCapture([0.0, 1.0, 3.0, 4.0, 5.0], means={"x": [0.0, 1, 3, 4, 5]}, number=[1, 2, 4, 5, 6])
    frames = capture.per_frame(2, 3)
    np.testing.assert_array_equal(frames.means["x"], [0.5, np.nan, 4.5])
    np.testing.assert_array_equal(frames.gate_start, [0.0, np.nan, 4.0])


def test_numbers_that_do_not_fit_are_refused():
    capture = PandaCapture(np.arange(7.0))
    with pytest.raises(InvalidRequest, match="7 captures do not make 3 frames of 2"):
        capture.per_frame(2, 3)
    with pytest.raises(InvalidRequest, match="1 capture or more"):
        capture.per_frame(0)
    assert np.isnan(capture.per_frame(2).stamps).tolist() == [False, False, False, True]


# --- columns ----------------------------------------------------------------------------------


def test_columns_are_found_by_the_names_that_a_panda_gives():
    capture = PandaCapture.read(
        {
            "PCAP.TS_START.Value": np.array([0.0, 1e-6]),
            "PCAP.GATE_DURATION.Value": np.array([125.0, 250.0]),
            "INENC1.VAL.Mean": np.array([1.5, 2.5]),
            "INENC1.VAL.Min": np.array([1.0, 2.0]),
        }
    )
    np.testing.assert_allclose(capture.gate_duration, [1e-6, 2e-6])
    assert list(capture.means) == ["INENC1.VAL"]
    assert repr(capture) == "<PandaCapture: 2 captures since an unknown start, means of INENC1.VAL>"


def test_columns_can_have_other_names_and_units():
    capture = PandaCapture.read(
        {"TS": [0.0, 1.0], "open_for": [0.25, 0.25], "Angle": [3.0, 4.0], "other": [0.0, 0.0]},
        names={"gate_start": "TS", "gate_duration": "open_for"},
        means=["Angle"],
        tick=1.0,
    )
    assert capture.gate_duration.tolist() == [0.25, 0.25]
    assert capture.means["Angle"].tolist() == [3.0, 4.0]


def test_a_shifted_duration_is_shifted_back():
    capture = PandaCapture.read({"PCAP.TS_START.Value": [0.0], "PCAP.SAMPLES.Value": [125]}, shift_sum=3)
    np.testing.assert_allclose(capture.gate_duration, [8e-6])


def test_several_captures_an_event_are_put_one_after_the_other():
    capture = PandaCapture.read({"PCAP.TS_START.Value": np.arange(6.0).reshape(3, 2)})
    assert capture.stamps.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_wrong_is_warned_of_when_it_is_read():
    with pytest.warns(DoubtfulTimes, match="row 3"):
        PandaCapture.read({"PCAP.TS_START.Value": [0.0, 1.0, 2.0, 1.5]})


def test_columns_that_are_not_there_are_named():
    with pytest.raises(NotFound, match=r"no column of stamps \(PCAP.TS_START.Value\) among Angle"):
        PandaCapture.read({"Angle": [1.0]})
    with pytest.raises(NotFound, match="there is no TS among Angle"):
        PandaCapture.read({"Angle": [1.0]}, names={"gate_start": "TS"})
    with pytest.raises(InvalidRequest, match="names are of gate_start"):
        PandaCapture.read({"Angle": [1.0]}, names={"start": "Angle"})


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(InvalidRequest, match="one length"):
        PandaCapture([0.0, 1.0], means={"x": [1.0]})
    with pytest.raises(InvalidRequest, match="without stamps"):
        PandaCapture(means={"x": [1.0]})
