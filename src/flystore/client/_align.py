"""Rows that belong to the same event, put beside each other: arithmetic on (seq_num, take).

Each source of a stream (its table, each detector's array) has rows; a row is of an event, and an
event is a seq_num and a *take*: 0 for the first time the seq_num came, 1 when it came again after a
pause, and so on. Takes are counted by arrival, so the second frame of seq_num 7 is that of the second
event 7.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest

JOINS = ("outer", "inner", "left", "right", "exact")
REPEATS = ("last", "all")


class Rows(NamedTuple):
    """Which event each row of a source is; two (n,) int64 arrays."""

    seq_num: np.ndarray
    take: np.ndarray


class Aligned(NamedTuple):
    """Events in order, and where each source has them.

    Attributes
    ----------
    events : Rows
        Ascending by (seq_num, take).
    places : list of (n,) int64
        For each source the row of each event, -1 where it has none.
    """

    events: Rows
    places: list[np.ndarray]


def takes_of(seq_num: np.ndarray) -> np.ndarray:
    """Return how often each value came before in the array, (n,) int64."""
    if (seq_num[1:] > seq_num[:-1]).all():  # as nearly always: a tenth of the time of sorting
        return np.zeros(len(seq_num), np.int64)
    order = np.argsort(seq_num, kind="stable")
    ordered = seq_num[order]
    firsts = np.searchsorted(ordered, ordered, side="left")
    takes = np.empty(len(seq_num), np.int64)
    takes[order] = np.arange(len(seq_num)) - firsts
    return takes


def align_rows(sources: Sequence[Rows], *, join: str = "outer", repeats: str = "last") -> Aligned:
    """Return the events of all sources and where each source has them.

    Parameters
    ----------
    sources : sequence of Rows
        (seq_num, take) occurs once in each.
    join : str
        As in xarray. ``outer``: events that any source has. ``inner``: only those that every source has.
        ``left``, ``right``: those of the first or the last source. ``exact``: all must have the same.
    repeats : str
        ``last``: of each seq_num only the last take that any source has. ``all``: every take.

    Raises
    ------
    InvalidRequest
        If `join` or `repeats` is something else, or `join` is ``exact`` and the sources differ.
    """
    require_choice("join", join, JOINS)
    require_choice("repeats", repeats, REPEATS)
    seq = np.concatenate([np.zeros(0, np.int64), *(source.seq_num for source in sources)])
    take = np.concatenate([np.zeros(0, np.int64), *(source.take for source in sources)])
    order = np.lexsort((take, seq))
    seq, take = seq[order], take[order]
    differs = np.ones(len(seq), bool)
    differs[1:] = (seq[1:] != seq[:-1]) | (take[1:] != take[:-1])
    seq, take = seq[differs], take[differs]
    if repeats == "last" and len(seq):
        is_last = np.append(seq[1:] != seq[:-1], True)
        seq, take = seq[is_last], take[is_last]
    events = Rows(seq, take)
    places = [places_of(source, events) for source in sources]
    kept = _kept(places, join) if places else np.ones(len(seq), bool)
    return Aligned(Rows(seq[kept], take[kept]), [place[kept] for place in places])


def _kept(places: Sequence[np.ndarray], join: str) -> np.ndarray:
    """Return which of the events that any source has stay, (n,) bool."""
    there = np.stack([place >= 0 for place in places])
    match join:
        case "left":
            return there[0]
        case "right":
            return there[-1]
        case "inner":
            return np.all(there, axis=0, keepdims=False)
        case "exact" if not there.all():
            lacking = int((~there.all(axis=0)).sum())
            raise InvalidRequest(
                f"the variables do not have the same events: {lacking} of {there.shape[1]} are not in all of them. "
                'Use join="outer" to have what is missing marked, or "inner" to leave it out.',
                lacking=lacking,
            )
    return np.ones(there.shape[1], bool)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def places_of(source: Rows, events: Rows) -> np.ndarray:
    """Return for each event the row of `source` that is it, or -1."""
    places = np.full(len(events.seq_num), -1, np.int64)
    if not len(source.seq_num) or not len(places):
        return places
    width = int(max(source.take.max(), events.take.max())) + 1
    known = source.seq_num * width + source.take
    order = np.argsort(known, kind="stable")
    wanted = events.seq_num * width + events.take
    found = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    is_there = known[order][found] == wanted
    places[is_there] = order[found[is_there]]
    return places


def is_identity(places: np.ndarray, rows: int) -> bool:
    """Return whether `places` takes each of `rows` rows once, in order."""
    return len(places) == rows and bool((places == np.arange(rows)).all())


def marked_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype that holds the values of `dtype` and can mark some as missing.

    Floats, complex numbers, times and text keep theirs (NaN, NaT, ``<NA>``). Integers become float32 up
    to 16 bits, else float64; truth values and the rest become objects.
    """
    if dtype.kind in "fcmM":
        return dtype
    if dtype.kind in "iu":
        return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    if dtype.kind == "U":
        return np.promote_types(dtype, "<U4")
    return np.dtype(object)


def missing_value(dtype: np.dtype) -> object:
    """Return what marks a missing value in an array of a dtype that `marked_dtype` gave."""
    if dtype.kind in "mM":
        return np.array("NaT", dtype)[()]
    return "<NA>" if dtype.kind == "U" else np.nan


def placed(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the rows of `values` at `places`, those at -1 marked as missing (see `marked_dtype`)."""
    if is_identity(places, len(values)):
        return values
    missing = places < 0
    if not missing.any():
        return values[places]
    dtype = marked_dtype(values.dtype)
    found = np.full((len(places), *values.shape[1:]), missing_value(dtype), dtype)
    found[~missing] = values[places[~missing]]
    return found
