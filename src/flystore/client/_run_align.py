"""Streams of one run put on the events of one of them, matched by count or by time."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest

from . import _timing as timing
from ._align_reading import Events, Samples, Source, no_time, read_events
from ._align_request import BY_TIME, IN_WINDOWS, RATIO, Job, Request, RunLike, jobs_of, require_known, stream_of
from ._dataset import TIME, placed_lazily
from ._missing import MissingRows
from ._numbered import Layout
from ._panda import PandaCapture
from ._words import ranges


class _Result(NamedTuple):
    """A variable on the events."""

    values: Any
    dims: tuple[str, ...]
    verdict: np.ndarray
    times: np.ndarray | None = None
    """When the sample of each event was taken, where it is one sample."""


def align_streams(run: RunLike, request: Request) -> Any:
    """Return streams on the events of one of them as a Dataset; see `Run.align`."""
    names = (request.reference, *request.others)
    require_known(request, names)
    layouts = {name: Layout.of(stream_of(run, name)) for name in names}
    jobs = {name: jobs_of(name, how, layouts[name].variables, request) for name, how in request.others.items()}
    events = read_events(run, layouts[request.reference], request)
    for given in (request.times or {}).values():
        if isinstance(given, PandaCapture):
            given.warn(_lasted(run), stacklevel=4)  # the line that called Run.align
    dataset = events.dataset
    said = [f"{name} has no variables" for name, wanted in jobs.items() if not wanted]
    for name, wanted in jobs.items():
        source = Source(run, name, layouts[name], wanted, request)
        for job in wanted:
            result = _on_events(run, job, source.samples(job), events, request)
            dataset, called = _with_result(dataset, job, result)
            said += _lost(called, job, result.verdict, events.seq_num)
    if said:
        _say(request.reference, said)
    return dataset


def _lasted(run: RunLike) -> float | None:
    """Return the seconds from start to stop, None while nobody knows."""
    begin, end = run.start.get("time"), (run.stop or {}).get("time")
    return None if begin is None or end is None else float(end) - float(begin)


# --- one variable -----------------------------------------------------------------------------


def _on_events(run: RunLike, job: Job, samples: Samples, events: Events, request: Request) -> _Result:
    if job.by_count:
        return _by_count(run, job, samples, events, request)
    if events.times is None and not (job.word in IN_WINDOWS and events.windows is not None):
        raise InvalidRequest(no_time(request.reference))
    with _named(job):
        return (_by_time if job.word in BY_TIME else _in_windows)(job, samples, events, request)


def _by_count(run: RunLike, job: Job, samples: Samples, events: Events, request: Request) -> _Result:
    ratio = _ratio(run, job.stream, request) if isinstance(job.word, str) else Fraction(job.word)
    matched = timing.match_by_ratio(events.seq_num, samples.seq_num, ratio)
    found = placed_lazily(samples.values, matched.places.reshape(-1))
    found = found.reshape(*matched.places.shape, *found.shape[1:])
    # Several rows an event have an axis of their own behind the events.
    own = (f"{job.stream}_row",) if matched.places.ndim == 2 else ()
    return _Result(found, (TIME, *own, *samples.dims[1:]), matched.verdict)


def _ratio(run: RunLike, stream: str, request: Request) -> Fraction:
    """Return how many rows belong to each event if the run's end tells it.

    What came is not counted: streams of a run that was broken off end anywhere, lost rows may be the last ones, and a
    wrong number may divide as well.
    """
    stop = run.stop
    state = ""
    if stop is None:
        state = "this run has no end yet"
    elif stop.get("exit_status", "success") != "success":
        state = "this run was broken off"
    else:
        announced = stop.get("num_events") or {}
        events, rows = announced.get(request.reference), announced.get(stream)
        if isinstance(events, int) and isinstance(rows, int):
            return timing.ratio_of(events, rows)
        state = "the stop document does not count the events of both"
    raise InvalidRequest(
        f"{state}, so nobody knows for sure how many rows of {stream} belong to each event of {request.reference}; "
        f"give that number in place of the word {RATIO}: 4, or Fraction(1, 4)"
    )


def _by_time(job: Job, samples: Samples, events: Events, request: Request) -> _Result:
    assert events.times is not None
    assert samples.times is not None
    tolerance = request.tolerance_of(job.stream)
    if job.word == "linear":
        between = timing.match_linear(events.times, samples.times, tolerance)
        return _Result(timing.interpolate(np.asarray(samples.values), between), samples.dims, between.verdict)
    match = timing.match_nearest if job.word == "nearest" else timing.match_previous
    matched = match(events.times, samples.times, tolerance)
    return _picked(samples, matched.places, matched.verdict)


def _in_windows(job: Job, samples: Samples, events: Events, request: Request) -> _Result:
    assert events.windows is not None
    assert samples.times is not None
    start, stop, closed = events.windows
    bins = timing.bin_samples(samples.times, start, stop, closed=closed)
    if job.word == "count":
        return _Result(timing.bin_count(bins), (TIME,), bins.verdict)
    if job.word == "mean":
        return _Result(timing.bin_mean(np.asarray(samples.values), bins), samples.dims, bins.verdict)
    return _picked(samples, timing.bin_last(bins), bins.verdict)


def _picked(samples: Samples, places: np.ndarray, verdict: np.ndarray) -> _Result:
    assert samples.times is not None
    values = placed_lazily(samples.values, places)
    return _Result(values, samples.dims, verdict, timing.taken(samples.times, places))


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Say which variable it is that a rule cannot be used on."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{job.stream}/{job.variable}: {error}", **error.facts) from error


# --- putting together -------------------------------------------------------------------------


def _with_result(dataset: Any, job: Job, result: _Result) -> tuple[Any, str]:
    """Return the Dataset with a variable and what tells of it, and what the variable is called there."""
    name = job.name
    while {name, f"{name}_match", f"{name}_time"} & set(dataset.variables):
        name = f"{job.stream}_{name}"
    lengths = result.values.shape
    dims = tuple(
        dim if dataset.sizes.get(dim, length) == length else f"{job.stream}_{dim}"
        for dim, length in zip(result.dims, lengths, strict=True)
    )
    coords = {f"{name}_match": (TIME, result.verdict)}
    if result.times is not None:
        coords[f"{name}_time"] = (TIME, result.times)
    return dataset.assign({name: (dims, result.values)}).assign_coords(coords), name


def _lost(name: str, job: Job, verdict: np.ndarray, seq_num: np.ndarray) -> list[str]:
    """Return what is to be said of the events that have no value."""
    fine = [timing.EXACT, timing.WITHIN]
    if job.word == "count":
        fine.append(timing.EMPTY)  # none is a number as well
    parts = []
    for word in timing.VERDICTS:
        rows = seq_num[verdict == word]
        if word not in fine and len(rows):
            parts.append(f"{word} {len(rows)} (seq_num {ranges(np.unique(rows))})")
    return [f"{name} is {', '.join(parts)} of {len(verdict)} events"] if parts else []


def _say(reference: str, said: list[str]) -> None:
    message = (
        f"on the events of {reference}: {'; '.join(said)}. There is no value where nothing matches, and the "
        "coordinates …_match tell why."
    )
    # The line that called Run.align: _say, align_streams, Run.align.
    warnings.warn(message, MissingRows, stacklevel=4)
