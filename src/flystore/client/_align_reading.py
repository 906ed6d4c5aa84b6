"""Reading for `Run.align`: the events of one stream, and the rows of others with their times."""

from typing import Any, NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest

from ._align_request import RATIO, WINDOWS, Job, Request, RunLike, require_variables
from ._dataset import EVENT, PRESENT, SEQ_NUM, TIME
from ._numbered import Layout
from ._panda import PandaCapture
from ._stream import TIMESTAMP_PREFIX
from ._timing import places_of, taken, windows_after, windows_before
from ._words import listed


class Events(NamedTuple):
    """The events that everything is put on."""

    dataset: Any
    seq_num: np.ndarray
    times: np.ndarray | None
    windows: tuple[np.ndarray, np.ndarray, str] | None
    """Starts, stops, and which end belongs to the window."""


class Samples(NamedTuple):
    """The rows of one variable of another stream that were recorded."""

    values: Any
    dims: tuple[str, ...]
    seq_num: np.ndarray
    times: np.ndarray | None
    """None where they are not asked for."""


# --- the events -------------------------------------------------------------------------------


def read_events(run: RunLike, layout: Layout, request: Request) -> Events:
    """Return the events of the reference with the variables that are wanted of it."""
    name, given = request.reference, request.times_of(request.reference)
    wanted = layout.variables if request.variables is None else list(request.variables)
    require_variables(name, wanted, [*layout.variables, *layout.columns])
    helpers = [TIME] if TIME in layout.columns else []
    helpers += [given] if isinstance(given, str) else []
    if not wanted and not layout.columns:
        if not layout.smallest:
            raise InvalidRequest(
                f"{name} has no rows to put anything on; it has {listed(layout.variables) or 'nothing'}"
            )
        helpers.append(layout.smallest)  # nothing else tells which events there are
    dataset, seq_num = layout.read([*wanted, *helpers], lazy=request.lazy)
    times = _times_of_rows(run, name, dataset, seq_num, request)
    windows = _windows(run, given, seq_num, times, request)
    unwanted = [each for each in (*helpers, SEQ_NUM) if each in dataset and each not in (*wanted, TIME)]
    dataset = dataset.drop_vars(unwanted).assign_coords({SEQ_NUM: (TIME, seq_num)})
    if isinstance(given, PandaCapture):
        dataset = _with_gates(dataset, given, _captures_of(run, name, given, seq_num))
    if times is not None and TIME not in dataset.coords:
        dataset = dataset.assign_coords({TIME: times})
    return Events(dataset, seq_num, times, windows)


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
        start, stop = (taken(edge, rows) + shift for edge in given.windows)
        return start, stop, "left"
    if times is None:
        return None
    if wanted == "after":
        end = (run.stop or {}).get("time")
        return *windows_after(times, None if end is None else float(end)), "left"
    begin = run.start.get("time")
    return *windows_before(times, None if begin is None else float(begin)), "right"


def _with_gates(dataset: Any, capture: PandaCapture, rows: np.ndarray) -> Any:
    """Return the Dataset with the gates of its events, and the mean positions that it has not yet."""
    gates = {
        "gate_start": capture.gate_start,
        "gate_end": capture.gate_end,
        "gate_duration": capture.gate_duration,
    }
    coords = {name: (TIME, taken(values, rows)) for name, values in gates.items() if values is not None}
    means = {f"{name}.Mean": (TIME, taken(values, rows)) for name, values in capture.means.items()}
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
        found = None if given.start is None else taken(given.times, rows)
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
    if captures > events and not capture.per_event:
        raise InvalidRequest(
            f"{captures} captures for {events} events of {name}; say how many captures make an event: "
            "per_frame(1), per_frame(2) …",
            captures=captures,
            events=events,
        )
    return places_of(capture.number, seq_num)


def no_time(name: str) -> str:
    return (
        f"nobody knows when the rows of {name} were taken; give it: "
        f'times={{"{name}": PandaCapture.read(run["{name}"], start_time=…)}}, a variable of it, or an array; or put '
        f"streams beside each other by {RATIO}"
    )


# --- other streams ----------------------------------------------------------------------------


class Source:
    """Another stream, read once for all that is wanted of it."""

    def __init__(self, run: RunLike, name: str, layout: Layout, jobs: list[Job], request: Request) -> None:
        self._run, self._name, self._layout, self._request = run, name, layout, request
        self._wanted = [job.variable for job in jobs]
        self._read: dict[str, tuple[Any, np.ndarray]] = {}

    def samples(self, job: Job) -> Samples:
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
                raise InvalidRequest(no_time(self._name))
        coordinate = f"{EVENT if job.variable in self._layout.columns else job.variable}{PRESENT}"
        while coordinate in dataset.data_vars:
            coordinate += "_"  # as `Stream.read` calls it then
        values = found.data
        if coordinate in dataset.coords:
            present = np.flatnonzero(dataset[coordinate].values)
            values, seq_num = values[present], seq_num[present]
            times = None if times is None else times[present]
        return Samples(values, found.dims, seq_num, times)

    def _dataset(self, repeats: str) -> tuple[Any, np.ndarray]:
        if repeats not in self._read:
            given = self._request.times_of(self._name)
            stamps = [TIME, *(f"{TIMESTAMP_PREFIX}{variable}" for variable in self._wanted)]
            helpers = [each for each in stamps if each in self._layout.columns]
            helpers += [given] if isinstance(given, str) else []
            wanted = [*self._wanted, *helpers]
            self._read[repeats] = self._layout.read(wanted, repeats=repeats, lazy=self._request.lazy)
        return self._read[repeats]
