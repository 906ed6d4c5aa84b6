"""Streams of one run beside each other: read, matched by count or by time, put on the events of one of them."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from flystore.model.errors import InvalidRequest, NotFound
from flystore.model.structures import Family

from . import _timing as timing
from ._array import Array
from ._dataset import EVENT, PRESENT, SEQ_NUM, TIME, MissingRows, placed_lazily
from ._numbered import read_numbered, table_columns
from ._panda import PandaCapture
from ._stream import TIMESTAMP_PREFIX, Stream
from ._words import listed, ranges

RATIO = "ratio"
BY_TIME = ("nearest", "previous", "linear")
IN_WINDOWS = ("mean", "count", "last")
WINDOWS = ("before", "after")

Word = str | int | Fraction
How = Word | Sequence[Word]


class RunLike(Protocol):
    """What aligning needs to know of a run."""

    @property
    def start(self) -> dict[str, Any]: ...
    @property
    def stop(self) -> dict[str, Any] | None: ...
    def __getitem__(self, key: str) -> Any: ...


class Request(NamedTuple):
    """What `Run.align` was asked for; the members are its parameters."""

    reference: str
    others: Mapping[str, How | Mapping[str, How]]
    tolerance: float | Mapping[str, float | None] | None = None
    offset: Mapping[str, float] | None = None
    times: Mapping[str, Any] | None = None
    window: Any = None
    variables: Sequence[str] | None = None
    lazy: bool = False

    def offset_of(self, stream: str) -> float:
        """Return the seconds to be added to a stream's times."""
        return _seconds(f"the offset of {stream}", (self.offset or {}).get(stream, 0.0))

    def times_of(self, stream: str) -> Any:
        """Return what was given as a stream's times, None if nothing was."""
        return (self.times or {}).get(stream)

    def tolerance_of(self, stream: str) -> float | None:
        return self.tolerance.get(stream) if isinstance(self.tolerance, Mapping) else self.tolerance


class _Job(NamedTuple):
    """One variable of another stream to be put on the events."""

    stream: str
    variable: str
    word: Word
    name: str
    """What it is to be called, if nothing else is."""

    @property
    def by_count(self) -> bool:
        return not isinstance(self.word, str) or self.word == RATIO


class _Events(NamedTuple):
    """The events that everything is put on."""

    dataset: Any
    seq_num: np.ndarray
    times: np.ndarray | None
    windows: tuple[np.ndarray, np.ndarray, str] | None
    """Starts, stops, and which end belongs to the window."""


class _Samples(NamedTuple):
    """The rows of one variable of another stream that were recorded."""

    values: Any
    dims: tuple[str, ...]
    seq_num: np.ndarray
    times: np.ndarray | None
    """None where they are not asked for."""


class _Result(NamedTuple):
    """A variable on the events."""

    values: Any
    dims: tuple[str, ...]
    verdict: np.ndarray
    times: np.ndarray | None = None
    """When the sample of each event was taken, where it is one sample."""


def align_streams(run: RunLike, request: Request) -> Any:
    """Return streams on the events of one of them as a Dataset; see `Run.align`."""
    streams = {name: _stream(run, name) for name in (request.reference, *request.others)}
    _require_known(request, streams)
    jobs = {name: _jobs(streams[name], name, how, request) for name, how in request.others.items()}
    events = _read_events(run, streams[request.reference], request)
    for given in (request.times or {}).values():
        if isinstance(given, PandaCapture):
            given.warn(_lasted(run), stacklevel=4)  # the line that called Run.align
    dataset = events.dataset
    said = [f"{name} has no variables" for name, wanted in jobs.items() if not wanted]
    for name, wanted in jobs.items():
        source = _Source(run, streams[name], name, wanted, request)
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


# --- what was asked for -----------------------------------------------------------------------


def _stream(run: RunLike, name: str) -> Stream:
    found = run[name]
    if not isinstance(found, Stream):
        raise InvalidRequest(f"{name} is no stream of this run but a {type(found).__name__.lower()}")
    return found


def _require_known(request: Request, streams: Mapping[str, Stream]) -> None:
    """Raise if something is given for a stream that is not aligned."""
    if request.reference in request.others:
        raise InvalidRequest(f"{request.reference} is what the others are put on; it cannot be one of them")
    for what in ("offset", "times", "tolerance"):
        given = getattr(request, what)
        unknown = [name for name in given if name not in streams] if isinstance(given, Mapping) else []
        if unknown:
            raise InvalidRequest(f"{what} is given for {listed(unknown)}, but aligned are {listed(streams)}")


def _jobs(stream: Stream, name: str, how: How | Mapping[str, How], request: Request) -> list[_Job]:
    readable = _variables(stream)
    if isinstance(how, Mapping):
        _require_variables(name, how, readable)
        wanted = dict(how)
    else:
        given = request.times_of(name)
        times = given if isinstance(given, str) else None
        wanted = {variable: how for variable in readable if variable != times}
    jobs = []
    for variable, one in wanted.items():
        words = _words(name, one)
        suffixes = [f"_{word}" for word in words] if len(words) > 1 else [""]
        jobs += [_Job(name, variable, word, variable + end) for word, end in zip(words, suffixes, strict=True)]
    return jobs


def _variables(stream: Stream) -> list[str]:
    """Return what can be read of a stream, timestamps, seq_num and time left out."""
    columns = table_columns(stream)
    arrays = [part.key for part in stream.parts() if part.structure_family in (Family.ARRAY, Family.RAGGED)]
    plain = [each for each in columns if each not in (TIME, SEQ_NUM) and not each.startswith(TIMESTAMP_PREFIX)]
    return list(dict.fromkeys([*plain, *arrays]))


def _require_variables(stream: str, wanted: Any, known: list[str]) -> None:
    unknown = [variable for variable in wanted if variable not in known]
    if unknown:
        raise NotFound(f"{stream} has no {listed(unknown)}; it has {listed(known, 30)}", keys=unknown)


def _words(stream: str, how: Any) -> list[Word]:
    words: list[Word] = list(how) if isinstance(how, (list, tuple)) else [how]
    known = (RATIO, *BY_TIME, *IN_WINDOWS)
    for word in words:
        is_number = isinstance(word, (int, Fraction)) and not isinstance(word, bool)
        if not (is_number or (isinstance(word, str) and word in known)):
            raise InvalidRequest(
                f"how to put {stream} on the events is one of {listed(known)}, or how many of its rows belong to each "
                f"event (4, Fraction(1, 4)), not {word!r}"
            )
    return words


def _seconds(what: str, given: Any) -> float:
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = np.nan
    if not np.isfinite(found):
        raise InvalidRequest(f"{what} is a number of seconds, not {given!r}")
    return found


# --- the events -------------------------------------------------------------------------------


def _read_events(run: RunLike, stream: Stream, request: Request) -> _Events:
    name, given = request.reference, request.times_of(request.reference)
    readable, columns = _variables(stream), table_columns(stream)
    wanted = readable if request.variables is None else list(request.variables)
    _require_variables(name, wanted, [*readable, *columns])
    helpers = [TIME] if TIME in columns else []
    helpers += [given] if isinstance(given, str) else []
    if not wanted and not columns:
        helpers.append(_smallest(stream, readable))  # nothing else tells which events there are
    dataset, seq_num = read_numbered(stream, [*wanted, *helpers], lazy=request.lazy)
    times = _times_of_rows(run, name, dataset, seq_num, request)
    windows = _windows(run, given, seq_num, times, request)
    unwanted = [each for each in (*helpers, SEQ_NUM) if each in dataset and each not in (*wanted, TIME)]
    dataset = dataset.drop_vars(unwanted).assign_coords({SEQ_NUM: (TIME, seq_num)})
    if isinstance(given, PandaCapture):
        dataset = _with_gates(dataset, given, _captures_of(run, name, given, seq_num))
    if times is not None and TIME not in dataset.coords:
        dataset = dataset.assign_coords({TIME: times})
    return _Events(dataset, seq_num, times, windows)


def _smallest(stream: Stream, readable: list[str]) -> str:
    arrays = [part for part in stream.parts() if isinstance(part, Array) and part.shape]
    if not arrays:
        raise InvalidRequest(f"{stream.key} has no rows to put anything on; it has {listed(readable) or 'nothing'}")
    return min(arrays, key=lambda part: part.nbytes).key


def _windows(
    run: RunLike, given: Any, seq_num: np.ndarray, times: np.ndarray | None, request: Request
) -> tuple[np.ndarray, np.ndarray, str] | None:
    wanted = request.window
    if isinstance(wanted, (tuple, list)) and len(wanted) == 2:
        start, stop = (np.asarray(edge, np.float64) for edge in wanted)
        if start.shape != (len(seq_num),) or stop.shape != (len(seq_num),):
            raise InvalidRequest(f"windows have one start and one stop for each of the {len(seq_num)} events")
        return start, stop, "left"
    if wanted is not None and not (isinstance(wanted, str) and wanted in WINDOWS):
        raise InvalidRequest(f"window is one of {listed(WINDOWS)} or a pair (starts, stops), not {wanted!r}")
    if wanted is None and isinstance(given, PandaCapture) and given.start is not None and given.windows is not None:
        rows, shift = _captures_of(run, request.reference, given, seq_num), request.offset_of(request.reference)
        start, stop = (timing.taken(edge, rows) + shift for edge in given.windows)
        return start, stop, "left"
    if times is None:
        return None
    if wanted == "after":
        end = (run.stop or {}).get("time")
        return *timing.windows_after(times, None if end is None else float(end)), "left"
    begin = run.start.get("time")
    return *timing.windows_before(times, None if begin is None else float(begin)), "right"


def _with_gates(dataset: Any, capture: PandaCapture, rows: np.ndarray) -> Any:
    """Return the Dataset with the gates of its events, and the mean positions that it has not yet."""
    gates = {
        "gate_start": capture.gate_start,
        "gate_end": capture.gate_end,
        "gate_duration": capture.gate_duration,
    }
    coords = {name: (TIME, timing.taken(values, rows)) for name, values in gates.items() if values is not None}
    means = {f"{name}.Mean": (TIME, timing.taken(values, rows)) for name, values in capture.means.items()}
    dataset = dataset.assign_coords({name: found for name, found in coords.items() if name not in dataset})
    return dataset.assign({name: found for name, found in means.items() if name not in dataset})


# --- times of rows ----------------------------------------------------------------------------


def _times_of_rows(
    run: RunLike, name: str, dataset: Any, seq_num: np.ndarray, request: Request, stamps: str = TIME
) -> np.ndarray | None:
    """Return Unix seconds of a stream's rows, (rows,) float64, its offset added; None if nobody knows.

    `stamps` is the column to be taken if nothing was given.
    """
    given = request.times_of(name)
    if isinstance(given, PandaCapture):
        rows = _captures_of(run, name, given, seq_num)
        found = None if given.start is None else timing.taken(given.times, rows)
    elif given is None:
        found = dataset[stamps].values.astype(np.float64) if stamps in dataset.variables else None
    else:
        found = _as_seconds(name, dataset[given].values if isinstance(given, str) else np.asarray(given))
        if len(found) != len(seq_num):
            raise InvalidRequest(f"{len(found)} times are given for {name}, which has {len(seq_num)} rows")
    return None if found is None else found + request.offset_of(name)


def _as_seconds(name: str, given: np.ndarray) -> np.ndarray:
    if given.ndim == 1 and given.dtype.kind == "M":
        instants = given.astype("M8[ns]")
        return np.where(np.isnat(instants), np.nan, instants.astype(np.int64) / 1e9)
    if given.ndim != 1 or given.dtype.kind not in "iuf":
        raise InvalidRequest(
            f"the times of {name} are one Unix time or datetime64 for each row, a variable of it that holds such, or a "
            f"PandaCapture, not {given.ndim}-dimensional {given.dtype}"
        )
    return given.astype(np.float64)


def _captures_of(run: RunLike, name: str, capture: PandaCapture, seq_num: np.ndarray) -> np.ndarray:
    """Return the row of the capture that belongs to each event, -1 where it was lost."""
    announced = ((run.stop or {}).get("num_events") or {}).get(name) or 0
    events, captures = max(int(announced), int(seq_num.max(initial=0))), int(capture.number.max(initial=0))
    if captures > events:
        raise InvalidRequest(
            f"{captures} captures for {events} events of {name}; if several captures make an event, take per_frame, "
            "which is told how many",
            captures=captures,
            events=events,
        )
    return timing.places_of(capture.number, seq_num)


def _no_time(name: str) -> str:
    return (
        f"nobody knows when the rows of {name} were taken; give it: "
        f'times={{"{name}": PandaCapture.read(run["{name}"], start_time=…)}}, a variable of it, or an array; or put '
        f"streams beside each other by {RATIO}"
    )


# --- other streams ----------------------------------------------------------------------------


class _Source:
    """Another stream, read once for all that is wanted of it."""

    def __init__(self, run: RunLike, stream: Stream, name: str, jobs: list[_Job], request: Request) -> None:
        self._run, self._stream, self._name, self._request = run, stream, name, request
        self._columns = table_columns(stream)
        self._wanted = [job.variable for job in jobs]
        self._read: dict[str, tuple[Any, np.ndarray]] = {}

    def samples(self, job: _Job) -> _Samples:
        given = self._request.times_of(self._name)
        # Rows that are counted, or that were given times by somebody, are those that `Stream.read` gives; what else
        # has a time counts at that time, also what was taken again later.
        repeats = "all" if not job.by_count and (given is None or isinstance(given, str)) else "last"
        dataset, seq_num = self._dataset(repeats)
        found = dataset[job.variable]
        if found.dims[:1] != (TIME,):
            raise InvalidRequest(
                f"nobody announced which events of {self._name} the rows of {job.variable} belong to; leave it out by "
                f'naming those that are wanted: {{"{self._name}": {{"…": "{job.word}"}}}}'
            )
        times = None
        if not job.by_count:
            own = f"{TIMESTAMP_PREFIX}{job.variable}"
            stamps = own if own in dataset.variables else TIME
            times = _times_of_rows(self._run, self._name, dataset, seq_num, self._request, stamps)
            if times is None:
                raise InvalidRequest(_no_time(self._name))
        coordinate = f"{EVENT if job.variable in self._columns else job.variable}{PRESENT}"
        values = found.data
        if coordinate in dataset.coords:
            present = np.flatnonzero(dataset[coordinate].values)
            values, seq_num = values[present], seq_num[present]
            times = None if times is None else times[present]
        return _Samples(values, found.dims, seq_num, times)

    def _dataset(self, repeats: str) -> tuple[Any, np.ndarray]:
        if repeats not in self._read:
            given = self._request.times_of(self._name)
            stamps = [TIME, *(f"{TIMESTAMP_PREFIX}{variable}" for variable in self._wanted)]
            helpers = [each for each in stamps if each in self._columns]
            helpers += [given] if isinstance(given, str) else []
            wanted = [*self._wanted, *helpers]
            self._read[repeats] = read_numbered(self._stream, wanted, repeats=repeats, lazy=self._request.lazy)
        return self._read[repeats]


# --- one variable -----------------------------------------------------------------------------


def _on_events(run: RunLike, job: _Job, samples: _Samples, events: _Events, request: Request) -> _Result:
    if job.by_count:
        return _by_count(run, job, samples, events, request)
    if events.times is None and not (job.word in IN_WINDOWS and events.windows is not None):
        raise InvalidRequest(_no_time(request.reference))
    with _named(job):
        return (_by_time if job.word in BY_TIME else _in_windows)(job, samples, events, request)


def _by_count(run: RunLike, job: _Job, samples: _Samples, events: _Events, request: Request) -> _Result:
    if isinstance(job.word, str):
        ratio = _ratio(run, job.stream, samples, events, request)
    else:
        ratio = Fraction(job.word)
    matched = timing.match_by_ratio(events.seq_num, samples.seq_num, ratio)
    found = placed_lazily(samples.values, matched.places.reshape(-1))
    found = found.reshape(*matched.places.shape, *found.shape[1:])
    # Several rows an event have an axis of their own behind the events.
    own = (f"{job.stream}_row",) if matched.places.ndim == 2 else ()
    return _Result(found, (TIME, *own, *samples.dims[1:]), matched.verdict)


def _ratio(run: RunLike, stream: str, samples: _Samples, events: _Events, request: Request) -> Fraction:
    stop = run.stop
    if stop is None or stop.get("exit_status", "success") != "success":
        # Streams of a run that was broken off end anywhere, and a wrong number may divide as well.
        state = "has no end yet" if stop is None else "was broken off"
        raise InvalidRequest(
            f"this run {state}, so its numbers of rows do not tell how many of {stream} belong to each event of "
            f"{request.reference}; give that number in place of the word {RATIO}: 4, or Fraction(1, 4)"
        )
    announced = stop.get("num_events") or {}
    counts = [
        max(int(announced.get(name) or 0), int(seen.max(initial=0)))
        for name, seen in ((request.reference, events.seq_num), (stream, samples.seq_num))
    ]
    return timing.ratio_of(*counts)


def _by_time(job: _Job, samples: _Samples, events: _Events, request: Request) -> _Result:
    assert events.times is not None
    assert samples.times is not None
    tolerance = request.tolerance_of(job.stream)
    if job.word == "linear":
        between = timing.match_linear(events.times, samples.times, tolerance)
        return _Result(timing.interpolate(np.asarray(samples.values), between), samples.dims, between.verdict)
    match = timing.match_nearest if job.word == "nearest" else timing.match_previous
    matched = match(events.times, samples.times, tolerance)
    return _picked(samples, matched.places, matched.verdict)


def _in_windows(job: _Job, samples: _Samples, events: _Events, request: Request) -> _Result:
    assert events.windows is not None
    assert samples.times is not None
    start, stop, closed = events.windows
    bins = timing.bin_samples(samples.times, start, stop, closed=closed)
    if job.word == "count":
        return _Result(timing.bin_count(bins), (TIME,), bins.verdict)
    if job.word == "mean":
        return _Result(timing.bin_mean(np.asarray(samples.values), bins), samples.dims, bins.verdict)
    return _picked(samples, timing.bin_last(bins), bins.verdict)


def _picked(samples: _Samples, places: np.ndarray, verdict: np.ndarray) -> _Result:
    assert samples.times is not None
    values = placed_lazily(samples.values, places)
    return _Result(values, samples.dims, verdict, timing.taken(samples.times, places))


@contextmanager
def _named(job: _Job) -> Iterator[None]:
    """Say which variable it is that a rule cannot be used on."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"{job.stream}/{job.variable}: {error}", **error.facts) from error


# --- putting together -------------------------------------------------------------------------


def _with_result(dataset: Any, job: _Job, result: _Result) -> tuple[Any, str]:
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


def _lost(name: str, job: _Job, verdict: np.ndarray, seq_num: np.ndarray) -> list[str]:
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
