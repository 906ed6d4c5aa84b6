"""Which sample belongs to which event, by count or by time: arithmetic on arrays and nothing else.

Nothing is filled in and nothing is carried on beyond what was measured unless a rule says so in its own words; each
event gets a verdict, one of

=========== ============================================================================================
`EXACT`     the sample of this very event, by ratio, or one taken at the very same time
`WITHIN`    a sample (for linear: one on either side) within the tolerance; for windows: at least one in it
`PARTIAL`   some of the several samples that belong to the event by ratio are there, not all
`BEYOND`    the sample that would be taken is farther away than the tolerance
`OUTSIDE`   the event lies before the first sample or behind the last, where nothing is known
`EMPTY`     no sample lies in the event's window
`MISSING`   the sample that belongs to the event was not recorded, or nobody knows the event's time or window
=========== ============================================================================================

Only the first three come with a value. Times are seconds on one common clock, float64; with Unix seconds their grain
is 0.24 µs (2^-22 s). Samples need not be in order of time; those whose time is not finite are never taken, and of
several taken at the same time the last one counts.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest

EXACT = "exact"
WITHIN = "within"
PARTIAL = "partial"
BEYOND = "beyond"
OUTSIDE = "outside"
EMPTY = "empty"
MISSING = "missing"

VERDICTS = (EXACT, WITHIN, PARTIAL, BEYOND, OUTSIDE, EMPTY, MISSING)


class Matched(NamedTuple):
    """Which sample each event takes.

    Attributes
    ----------
    places : (n,) int64, or (n, k) by ratio
        Place of the sample as it was given, -1 where there is none.
    verdict : (n,) text
        One of `VERDICTS` for each event.
    """

    places: np.ndarray
    verdict: np.ndarray


class Between(NamedTuple):
    """Which two samples each event lies between.

    Attributes
    ----------
    left, right : (n,) int64
        Places of the samples before and behind the event as they were given, -1 where there is none. Equal where a
        sample was taken at the very time of the event.
    weight : (n,) float64
        Of the right one, 0 up to 1.
    verdict : (n,) text
        One of `VERDICTS` for each event.
    """

    left: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    verdict: np.ndarray


class Bins(NamedTuple):
    """Which samples lie in the window of each event.

    Attributes
    ----------
    order : (m,) int64
        Places of the samples with a time, as they were given, in order of time.
    first, stop : (n,) int64
        The window's samples are ``order[first:stop]``.
    verdict : (n,) text
        One of `VERDICTS` for each event.
    """

    order: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    verdict: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of samples in each window, (n,) int64; 0 also where nobody knows the window."""
        return self.stop - self.first


# --- by count ---------------------------------------------------------------------------------


def ratio_of(events: int, rows: int) -> Fraction:
    """Return how many rows belong to each event, or which part of one.

    Parameters
    ----------
    events, rows : int
        How many there are in all, missing ones counted.

    Returns
    -------
    Fraction
        A whole number k, or 1/k where one row belongs to k events. 1 if there are neither.

    Raises
    ------
    InvalidRequest
        If the one is no whole multiple of the other; carries `events` and `rows`.
    """
    if events > 0 and rows > 0:
        ratio = Fraction(rows, events)
        if 1 in (ratio.numerator, ratio.denominator):
            return ratio
    elif events == rows == 0:
        return Fraction(1)
    raise InvalidRequest(
        f"{rows} rows are no whole multiple of {events} events, nor a whole part of them; if you know how many rows "
        "belong to each event give that number in place of the word ratio: 4, or Fraction(1, 4)",
        events=events,
        rows=rows,
    )


def match_by_ratio(events: np.ndarray, rows: np.ndarray, ratio: Fraction) -> Matched:
    """Return the rows that belong to each event when both are counted from 1 without a break.

    Parameters
    ----------
    events : (n,) int64
        Seq_num of each event.
    rows : (m,) int64
        Seq_num of each row, in any order; of equal ones the last counts.
    ratio : Fraction
        Rows for each event: k, or 1/k.

    Returns
    -------
    Matched
        With ratio k above 1 the places are (n, k): event e has the rows (e - 1) k + 1 to e k. Otherwise they are
        (n,): event e has the row (e - 1) // (1/ratio) + 1.

    Raises
    ------
    InvalidRequest
        If `ratio` is neither k nor 1/k.

    Examples
    --------
    >>> match_by_ratio(np.array([1, 2]), np.array([1, 2, 4]), Fraction(2)).places
    array([[ 0,  1],
           [-1,  2]])
    """
    if ratio <= 0 or 1 not in (ratio.numerator, ratio.denominator):
        raise InvalidRequest(f"a ratio is a whole number or 1 over a whole number, not {ratio}", ratio=str(ratio))
    if ratio > 1:
        per_event = ratio.numerator
        wanted = (events[:, np.newaxis] - 1) * per_event + 1 + np.arange(per_event)
    else:
        wanted = (events - 1) // ratio.denominator + 1
    places = places_of(rows, wanted)
    there = places >= 0 if places.ndim == 2 else places[:, np.newaxis] >= 0
    verdict = np.where(there.all(axis=1), EXACT, np.where(there.any(axis=1), PARTIAL, MISSING))
    return Matched(places, verdict)


def places_of(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the last place of each wanted number in `rows`, -1 where it is not there."""
    if not len(rows):
        return np.full(wanted.shape, -1, np.int64)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    last = np.searchsorted(ordered, wanted, side="right") - 1
    return np.where((last >= 0) & (ordered[last] == wanted), order[last], -1)


# --- by time ----------------------------------------------------------------------------------


def match_nearest(events: np.ndarray, samples: np.ndarray, tolerance: float | None = None) -> Matched:
    """Return the sample nearest in time to each event; of two equally near ones the earlier.

    Parameters
    ----------
    events : (n,) float64
        Seconds; NaN where nobody knows.
    samples : (m,) float64
        Seconds on the same clock, in any order.
    tolerance : float, optional
        Seconds, this far and no farther. None: any distance, but only for events between the first sample and the
        last.
    """
    times, order = _in_time(samples)
    limit = _checked(tolerance)
    left, right, known = _neighbours(times, events)
    to_left = np.where(left >= 0, events - _at(times, left), np.inf)
    to_right = np.where(right < len(times), _at(times, right) - events, np.inf)
    # The last of those that were taken together with the right neighbour.
    right = np.searchsorted(times, _at(times, right), side="right") - 1
    chosen = np.where(to_left <= to_right, left, right)
    distance = np.minimum(to_left, to_right)
    outside = (left < 0) | ~np.isfinite(to_right)
    near = known & (distance <= limit) & ~(outside & (tolerance is None))
    verdict = np.select([~known, near & (distance == 0), near, outside], [MISSING, EXACT, WITHIN, OUTSIDE], BEYOND)
    return Matched(np.where(near, _at(order, chosen, -1), -1), verdict)


def match_previous(events: np.ndarray, samples: np.ndarray, tolerance: float | None = None) -> Matched:
    """Return the last sample at or before each event: what was valid then, for signals that report changes.

    Parameters
    ----------
    events, samples
        As for `match_nearest`.
    tolerance : float, optional
        Seconds that a sample stays valid. None: until the next one, and the last one for ever.
    """
    times, order = _in_time(samples)
    limit = _checked(tolerance)
    left, _, known = _neighbours(times, events)
    before = left >= 0
    age = np.where(before, events - _at(times, left), np.inf)
    near = known & before & (age <= limit)
    verdict = np.select([~known, near & (age == 0), near, ~before], [MISSING, EXACT, WITHIN, OUTSIDE], BEYOND)
    return Matched(np.where(near, _at(order, left, -1), -1), verdict)


def match_linear(events: np.ndarray, samples: np.ndarray, tolerance: float | None = None) -> Between:
    """Return the two samples on either side of each event, and how to weigh them.

    Parameters
    ----------
    events, samples
        As for `match_nearest`.
    tolerance : float, optional
        Seconds that either of the two may be away from the event; a sample at the very time of the event needs no
        other. None: any distance. Events before the first sample and behind the last have none.
    """
    times, order = _in_time(samples)
    limit = _checked(tolerance)
    left, right, known = _neighbours(times, events)
    inside = known & (left >= 0) & (right < len(times))
    before, behind = _at(times, left), _at(times, right)
    exact = inside & (before == events)
    right = np.where(exact, left, right)
    near = inside & (exact | ((events - before <= limit) & (behind - events <= limit)))
    with np.errstate(invalid="ignore", divide="ignore"):
        # Not 0/0 at an exact hit: the places are equal there and the weight is 0.
        weight = np.where(near & ~exact, (events - before) / (behind - before), 0.0)
    verdict = np.select([~known, exact, near, ~inside], [MISSING, EXACT, WITHIN, OUTSIDE], BEYOND)
    return Between(np.where(near, _at(order, left, -1), -1), np.where(near, _at(order, right, -1), -1), weight, verdict)


def interpolate(values: np.ndarray, between: Between) -> np.ndarray:
    """Return left + weight × (right - left) for each event, NaN where it lies between no two samples.

    Parameters
    ----------
    values : (m, …)
        Numbers or truth values, one row a sample. NaN on either side gives NaN.
    between : Between

    Returns
    -------
    (n, …) float64 or complex128

    Raises
    ------
    InvalidRequest
        If `values` are text, times or objects.
    """
    numbers = _numbers(values, "linear interpolation")
    found = np.full((len(between.left), *numbers.shape[1:]), np.nan, numbers.dtype)
    there = between.left >= 0
    left, right = numbers[between.left[there]], numbers[between.right[there]]
    weight = between.weight[there].reshape(-1, *(1,) * (numbers.ndim - 1))
    found[there] = np.where(weight == 0, left, left + weight * (right - left))
    return found


def _numbers(values: np.ndarray, what: str) -> np.ndarray:
    if values.dtype.kind not in "biufc":
        raise InvalidRequest(
            f"{what} needs numbers, not values of dtype {values.dtype}; nearest, previous and last take any values"
        )
    return values.astype(np.result_type(values.dtype, np.float64))


def _in_time(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite times in order, and the places they had."""
    usable = np.flatnonzero(np.isfinite(samples))
    order = usable[np.argsort(samples[usable], kind="stable")]
    return samples[order], order


def _neighbours(times: np.ndarray, events: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the last place at or before each event, the first at or behind it, and which events have a time.

    -1 and ``len(times)`` where there is none.
    """
    known = np.isfinite(events) & bool(len(times))
    left = np.searchsorted(times, events, side="right") - 1
    right = np.searchsorted(times, events, side="left")
    return left, right, known


def _at(values: np.ndarray, places: np.ndarray, blank: Any = np.nan) -> np.ndarray:
    """Return the values at places, `blank` at places outside."""
    if not len(values):
        return np.full(len(places), blank)
    inside = (places >= 0) & (places < len(values))
    return np.where(inside, values[np.clip(places, 0, len(values) - 1)], blank)


def _checked(tolerance: float | None) -> float:
    if tolerance is None:
        return np.inf
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float, np.number)) or not tolerance >= 0:
        raise InvalidRequest(f"a tolerance is a number of seconds, 0 or more, not {tolerance!r}")
    return float(tolerance)


# --- by window --------------------------------------------------------------------------------


def windows_before(events: np.ndarray, begin: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return for each event the time since the one before it, the first one's since `begin`.

    Parameters
    ----------
    events : (n,) float64
        Seconds, in any order.
    begin : float, optional
        Seconds; None if nobody knows, and the first event has no window then.

    Returns
    -------
    start, stop : (n,) float64
        NaN for events without a window. Meant to be taken without `start` and with `stop`.
    """
    start = np.full(len(events), np.nan)
    times, order = _in_time(events)
    if len(order):
        start[order] = np.concatenate([[np.nan if begin is None else begin], times[:-1]])
    return start, np.where(np.isfinite(start), events, np.nan)


def windows_after(events: np.ndarray, end: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return for each event the time until the one behind it, the last one's until `end`.

    Parameters
    ----------
    events : (n,) float64
        Seconds, in any order.
    end : float, optional
        Seconds; None if nobody knows, and the last event has no window then.

    Returns
    -------
    start, stop : (n,) float64
        NaN for events without a window. Meant to be taken with `start` and without `stop`.
    """
    stop = np.full(len(events), np.nan)
    times, order = _in_time(events)
    if len(order):
        stop[order] = np.concatenate([times[1:], [np.nan if end is None else end]])
    return np.where(np.isfinite(stop), events, np.nan), stop


def bin_samples(samples: np.ndarray, start: np.ndarray, stop: np.ndarray, *, closed: str = "left") -> Bins:
    """Return which samples lie in each window.

    Parameters
    ----------
    samples : (m,) float64
        Seconds, in any order.
    start, stop : (n,) float64
        Seconds; a window without either, or that stops before it starts, is nobody's. Windows may overlap, and a
        sample is then in several.
    closed : str
        ``left``: a sample at `start` is in the window and one at `stop` is not. ``right``: the other way round.
    """
    times, order = _in_time(samples)
    with np.errstate(invalid="ignore"):
        known = stop >= start
    side: Any = "left" if closed == "left" else "right"
    first = np.where(known, np.searchsorted(times, start, side=side), 0)
    last = np.where(known, np.searchsorted(times, stop, side=side), 0)
    verdict = np.select([~known, last > first], [MISSING, WITHIN], EMPTY)
    return Bins(order, first.astype(np.int64), last.astype(np.int64), verdict)


def bin_count(bins: Bins) -> np.ndarray:
    """Return how many samples lie in each window: (n,) int64, or float64 with NaN if a window is unknown."""
    unknown = bins.verdict == MISSING
    return np.where(unknown, np.nan, bins.counts) if unknown.any() else bins.counts


def bin_last(bins: Bins) -> np.ndarray:
    """Return the place of the last sample in each window, (n,) int64, -1 where there is none."""
    return np.where(bins.stop > bins.first, _at(bins.order, bins.stop - 1, -1), -1).astype(np.int64)


def bin_mean(values: np.ndarray, bins: Bins) -> np.ndarray:
    """Return the mean of the samples in each window, each counted once whatever time it stands for.

    Parameters
    ----------
    values : (m, …)
        Numbers or truth values, one row a sample. NaN in a window makes its mean NaN.
    bins : Bins

    Returns
    -------
    (n, …) float64 or complex128
        NaN where a window has no samples.

    Raises
    ------
    InvalidRequest
        If `values` are text, times or objects.
    """
    ordered = _numbers(values, "a mean")[bins.order]
    found = np.full((len(bins.first), *ordered.shape[1:]), np.nan, ordered.dtype)
    filled = bins.stop > bins.first
    if filled.any():
        # A row more, so that `stop` may be the end; every second sum is one from a stop to the next start.
        padded = np.concatenate([ordered, np.zeros_like(ordered[:1])])
        edges = np.stack([bins.first[filled], bins.stop[filled]], axis=1).reshape(-1)
        sums = np.add.reduceat(padded, edges, axis=0)[::2]
        found[filled] = sums / bins.counts[filled].reshape(-1, *(1,) * (ordered.ndim - 1))
    return found


# --- taking rows ------------------------------------------------------------------------------


def taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the numbers at places, (n,) float64, NaN where the place is -1."""
    return _at(values.astype(np.float64), places)


# --- order ------------------------------------------------------------------------------------


def first_disorder(times: np.ndarray) -> int | None:
    """Return the place of the first time that is not above the one before it, None if all are.

    Parameters
    ----------
    times : (n,) float64
        NaN are passed over.
    """
    usable = np.flatnonzero(~np.isnan(times))
    wrong = np.flatnonzero(np.diff(times[usable]) <= 0)
    return int(usable[wrong[0] + 1]) if len(wrong) else None
