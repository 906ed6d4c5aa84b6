"""Samples go to the events that they belong to, by count or by time, and what has no sample is told apart.

If these fail, a current, a temperature or a position of another moment stands beside a frame, or one that
nobody measured.
"""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flystore.client._timing import (
    BEYOND,
    EMPTY,
    EXACT,
    MISSING,
    OUTSIDE,
    PARTIAL,
    WITHIN,
    bin_count,
    bin_last,
    bin_mean,
    bin_samples,
    first_disorder,
    interpolate,
    match_by_ratio,
    match_linear,
    match_nearest,
    match_previous,
    ratio_of,
    windows_after,
    windows_before,
)
from flystore.model.errors import InvalidRequest

# Quarters of a second on a small range: equal times, hits and ties are frequent, and sums are exact.
moments = st.one_of(st.integers(-8, 40).map(lambda n: n / 4), st.just(np.nan))
some_times = st.lists(moments, max_size=12).map(lambda found: np.array(found, np.float64))
tolerances = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]))


def usable(samples):
    """Return (time, place) of samples with a time, in order of time and then of arrival."""
    return sorted((float(t), place) for place, t in enumerate(samples) if np.isfinite(t))


def spread(samples):
    times = [t for t, _ in usable(samples)]
    return (times[0], times[-1]) if times else None


# --- the rules against slow and simple ones ---------------------------------------------------


@given(some_times, some_times, tolerances)
def test_nearest_is_what_looking_at_every_sample_gives(events, samples, tolerance):
    matched = match_nearest(events, samples, tolerance)
    for event, place, verdict in zip(events, matched.places, matched.verdict, strict=True):
        known = usable(samples)
        if np.isnan(event) or not known:
            assert (place, verdict) == (-1, MISSING)
            continue
        distance, time = min((abs(event - t), t) for t, _ in known)
        best = max(p for t, p in known if t == time)
        first, last = spread(samples)
        if tolerance is None and not first <= event <= last:
            assert (place, verdict) == (-1, OUTSIDE)
        elif distance > (np.inf if tolerance is None else tolerance):
            assert (place, verdict) == (-1, BEYOND if first <= event <= last else OUTSIDE)
        else:
            assert (place, verdict) == (best, EXACT if distance == 0 else WITHIN)


@given(some_times, some_times, tolerances)
def test_previous_is_what_looking_at_every_sample_gives(events, samples, tolerance):
    matched = match_previous(events, samples, tolerance)
    for event, place, verdict in zip(events, matched.places, matched.verdict, strict=True):
        known = usable(samples)
        before = [(t, p) for t, p in known if t <= event]
        if np.isnan(event) or not known:
            assert (place, verdict) == (-1, MISSING)
        elif not before:
            assert (place, verdict) == (-1, OUTSIDE)
        elif tolerance is not None and event - max(before)[0] > tolerance:
            assert (place, verdict) == (-1, BEYOND)
        else:
            assert (place, verdict) == (max(before)[1], EXACT if max(before)[0] == event else WITHIN)


@given(some_times, some_times, tolerances, st.data())
def test_linear_is_what_two_neighbours_give(events, samples, tolerance, data):
    values = data.draw(arrays(np.float64, len(samples), elements=st.integers(-100, 100)))
    between = match_linear(events, samples, tolerance)
    found = interpolate(values, between)
    limit = np.inf if tolerance is None else tolerance
    for event, value, verdict in zip(events, found, between.verdict, strict=True):
        known = usable(samples)
        before, behind = [k for k in known if k[0] <= event], [k for k in known if k[0] >= event]
        if np.isnan(event) or not known:
            assert (np.isnan(value), verdict) == (True, MISSING)
        elif not before or not behind:
            assert (np.isnan(value), verdict) == (True, OUTSIDE)
        elif max(before)[0] == event:
            assert (value, verdict) == (values[max(before)[1]], EXACT)
        elif event - max(before)[0] > limit or behind[0][0] - event > limit:
            assert (np.isnan(value), verdict) == (True, BEYOND)
        else:
            (left, at_left), (right, at_right) = max(before), behind[0]
            share = Fraction(event - left) / Fraction(right - left)
            truth = float(Fraction(values[at_left]) * (1 - share) + Fraction(values[at_right]) * share)
            assert value == pytest.approx(truth, abs=1e-9)
            assert verdict == WITHIN


@given(arrays(np.float64, st.integers(2, 20), elements=st.integers(0, 10**6), unique=True))
def test_linear_between_distinct_samples_is_that_of_numpy(samples):
    values = np.sin(samples)
    events = np.linspace(samples.min(), samples.max(), 50)
    order = np.argsort(samples)
    found = interpolate(values, match_linear(events, samples))
    np.testing.assert_allclose(found, np.interp(events, samples[order], values[order]), atol=1e-9)


@given(some_times, some_times, some_times, st.sampled_from(["left", "right"]), st.data())
def test_windows_hold_what_looking_at_every_sample_gives(samples, start, stop, closed, data):
    n = min(len(start), len(stop))
    start, stop = start[:n], stop[:n]
    values = data.draw(arrays(np.float64, (len(samples), 2), elements=st.integers(-100, 100)))
    bins = bin_samples(samples, start, stop, closed=closed)
    means, counts, last = bin_mean(values, bins), bin_count(bins), bin_last(bins)
    for i in range(n):
        if not stop[i] >= start[i]:
            assert bins.verdict[i] == MISSING
            assert np.isnan(counts[i])
            assert np.isnan(means[i]).all()
            assert last[i] == -1
            continue
        inside = [
            (t, p)
            for t, p in usable(samples)
            if (start[i] <= t < stop[i] if closed == "left" else start[i] < t <= stop[i])
        ]
        assert counts[i] == len(inside)
        assert bins.verdict[i] == (WITHIN if inside else EMPTY)
        assert last[i] == (max(inside)[1] if inside else -1)
        if inside:
            np.testing.assert_allclose(means[i], values[[p for _, p in inside]].mean(axis=0), atol=1e-12)
        else:
            assert np.isnan(means[i]).all()


@given(some_times, some_times, st.integers(-8, 40).map(lambda n: n / 4))
def test_counts_since_the_event_before_add_up_to_all_samples(events, samples, begin):
    known = events[np.isfinite(events)]
    begin = min(begin, *known) if len(known) else begin
    counts = bin_count(bin_samples(samples, *windows_before(events, begin), closed="right"))
    last = known.max() if len(known) else begin
    assert np.nansum(counts) == sum(begin < t <= last for t, _ in usable(samples))
    assert np.array_equal(np.isnan(counts), np.isnan(events))


@given(some_times, some_times, st.integers(-8, 40).map(lambda n: n / 4))
def test_counts_until_the_next_event_add_up_to_all_samples(events, samples, end):
    known = events[np.isfinite(events)]
    end = max(end, *known) if len(known) else end
    counts = bin_count(bin_samples(samples, *windows_after(events, end), closed="left"))
    first = known.min() if len(known) else end
    assert np.nansum(counts) == sum(first <= t < end for t, _ in usable(samples))


@given(st.integers(1, 6), st.integers(0, 8), st.data())
def test_rows_by_ratio_belong_to_the_event_that_their_number_says(k, events, data):
    there = data.draw(st.lists(st.integers(1, max(1, k * events)), unique=True))
    rows = np.array(there, np.int64)
    seq_num = np.arange(1, events + 1)
    matched = match_by_ratio(seq_num, rows, Fraction(k))
    for e in range(events):
        expected = [there.index(r) if r in there else -1 for r in range(e * k + 1, e * k + k + 1)]
        assert np.atleast_1d(matched.places[e]).tolist() == expected
        lost = expected.count(-1)
        assert matched.verdict[e] == (EXACT if not lost else MISSING if lost == k else PARTIAL)


@given(st.integers(1, 6), st.integers(1, 8))
def test_a_slower_row_belongs_to_several_events(k, rows):
    matched = match_by_ratio(np.arange(1, rows * k + 1), np.arange(1, rows + 1), Fraction(1, k))
    assert matched.places.tolist() == [row for row in range(rows) for _ in range(k)]
    assert (matched.verdict == EXACT).all()


# --- by hand ----------------------------------------------------------------------------------


def test_nothing_is_carried_on_beyond_the_samples():
    events, samples = np.array([0.0, 10.0]), np.array([4.0, 5.0])
    assert match_nearest(events, samples).verdict.tolist() == [OUTSIDE, OUTSIDE]
    assert match_linear(events, samples).verdict.tolist() == [OUTSIDE, OUTSIDE]
    assert match_previous(events, samples).verdict.tolist() == [OUTSIDE, WITHIN]  # it holds until it changes


def test_a_tolerance_reaches_beyond_the_samples_for_nearest():
    assert match_nearest(np.array([3.75, 5.5]), np.array([4.0, 5.0]), 0.25).verdict.tolist() == [WITHIN, OUTSIDE]


def test_of_two_equally_near_samples_the_earlier_is_taken():
    assert match_nearest(np.array([1.5]), np.array([2.0, 1.0])).places.tolist() == [1]


def test_of_samples_at_one_time_the_last_that_came_is_taken():
    assert match_previous(np.array([2.0, 3.0]), np.array([2.0, 2.0])).places.tolist() == [1, 1]
    assert match_nearest(np.array([1.9]), np.array([0.0, 2.0, 2.0])).places.tolist() == [2]


def test_a_value_that_is_nan_stays_nan_and_does_not_spread():
    values, samples = np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, 2.0])
    between = match_linear(np.array([0.0, 0.5, 1.0, 2.0]), samples)
    np.testing.assert_array_equal(interpolate(values, between), [1.0, np.nan, np.nan, 3.0])
    bins = bin_samples(samples, np.array([0.0, 0.5, 1.5]), np.array([0.5, 1.5, 2.5]))
    np.testing.assert_array_equal(bin_mean(values, bins), [1.0, np.nan, 3.0])


def test_frames_are_interpolated_pixel_by_pixel():
    frames = np.stack([np.zeros((2, 3), np.uint16), np.full((2, 3), 10, np.uint16)])
    found = interpolate(frames, match_linear(np.array([0.25]), np.array([0.0, 1.0])))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[0], np.full((2, 3), 2.5))


def test_overlapping_windows_share_their_samples():
    bins = bin_samples(np.arange(6.0), np.array([0.0, 1.0, 0.0]), np.array([3.0, 6.0, 6.0]))
    assert bin_count(bins).tolist() == [3, 5, 6]
    assert bin_mean(np.arange(6.0), bins).tolist() == [1.0, 3.0, 2.5]


def test_counts_are_whole_numbers_unless_a_window_is_unknown():
    samples = np.arange(4.0)
    assert bin_count(bin_samples(samples, np.array([0.0]), np.array([2.0]))).dtype == np.int64
    unknown = bin_count(bin_samples(samples, np.array([0.0, np.nan]), np.array([2.0, 3.0])))
    np.testing.assert_array_equal(unknown, [2, np.nan])


def test_the_first_window_is_unknown_without_a_beginning():
    start, stop = windows_before(np.array([2.0, 5.0]))
    np.testing.assert_array_equal(start, [np.nan, 2.0])
    np.testing.assert_array_equal(stop, [np.nan, 5.0])


@pytest.mark.parametrize("bad", [-1, np.nan, "1 s", True])
def test_a_tolerance_that_is_no_length_of_time_is_refused(bad):
    for match in (match_nearest, match_previous, match_linear):
        with pytest.raises(InvalidRequest, match="tolerance is a number of seconds"):
            match(np.zeros(1), np.zeros(1), bad)


@pytest.mark.parametrize("values", [np.array(["open", "shut"]), np.array(["2026-01-01"] * 2, "M8[s]")])
def test_text_and_times_are_neither_interpolated_nor_averaged(values):
    with pytest.raises(InvalidRequest, match="needs numbers"):
        interpolate(values, match_linear(np.zeros(1), np.arange(2.0)))
    with pytest.raises(InvalidRequest, match="needs numbers"):
        bin_mean(values, bin_samples(np.arange(2.0), np.zeros(1), np.ones(1)))


@pytest.mark.parametrize(("events", "rows", "ratio"), [(4, 12, 3), (12, 4, Fraction(1, 3)), (5, 5, 1), (0, 0, 1)])
def test_whole_ratios_are_found(events, rows, ratio):
    assert ratio_of(events, rows) == ratio


@pytest.mark.parametrize(("events", "rows"), [(4, 11), (4, 6), (0, 3), (3, 0)])
def test_other_ratios_are_refused_with_the_numbers(events, rows):
    with pytest.raises(InvalidRequest) as caught:
        ratio_of(events, rows)
    assert (caught.value.events, caught.value.rows) == (events, rows)


@pytest.mark.parametrize("ratio", [Fraction(2, 3), Fraction(0), Fraction(-1)])
def test_a_ratio_is_a_whole_number_or_one_over_it(ratio):
    with pytest.raises(InvalidRequest, match="whole number"):
        match_by_ratio(np.arange(3), np.arange(3), ratio)


@pytest.mark.parametrize(
    ("times", "row"),
    [([], None), ([1.0], None), ([1.0, 2.0, 3.0], None), ([1.0, 1.0], 1), ([1.0, np.nan, 0.5, 0.2], 2)],
)
def test_the_first_row_out_of_order_is_named(times, row):
    assert first_disorder(np.array(times)) == row


def test_no_rule_warns_on_empty_or_unknown_times():
    nothing, unknown = np.zeros(0), np.full(3, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for events in (nothing, unknown, np.arange(3.0)):
            for samples in (nothing, unknown, np.arange(3.0)):
                match_nearest(events, samples)
                match_previous(events, samples)
                interpolate(np.zeros(len(samples)), match_linear(events, samples))
                bins = bin_samples(samples, *windows_before(events, 0.0), closed="right")
                bin_mean(np.zeros(len(samples)), bins)
