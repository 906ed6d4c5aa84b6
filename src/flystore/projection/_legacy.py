"""Datums: which rows of a Resource the value of an Event names."""

from typing import Any, NamedTuple

from ._normalize import whole_number


class DatumIndices(NamedTuple):
    """Rows [start, stop) of a resource, and what is left of the Datum's kwargs."""

    start: int
    stop: int
    kwargs: dict[str, Any]
    frame: tuple[int, int]


def datum_indices(kwargs: dict[str, Any], seq: int, frame: tuple[int, int]) -> DatumIndices:
    """Return the rows that a Datum means, by the first rule that applies.

    1. ``indices`` = {start, stop}: these.
    2. ``point_number`` p: row p.
    3. ``frame`` f: up to and including row f, from where the last Datum of this key ended. If f falls back, a new
       file has begun and the count goes on from the total so far.
    4. The Event's own seq_num, less one.

    Parameters
    ----------
    kwargs
        Of the Datum, JSON view; not changed.
    seq : int
        Seq_num of the first Event that names the Datum.
    frame : (int, int)
        (carried, index) after the last Datum of this key; (0, 0) at first. The new value is in the result.
    """
    rest = {name: value for name, value in kwargs.items() if name not in ("indices", "point_number", "frame")}
    indices, point, last = (
        kwargs.get("indices"),
        whole_number(kwargs.get("point_number")),
        kwargs.get("frame"),
    )
    if isinstance(indices, dict):
        start, stop = whole_number(indices.get("start")), whole_number(indices.get("stop"))
        if start is not None and stop is not None and 0 <= start < stop:
            return DatumIndices(start, stop, rest, frame)
    if point is not None and point >= 0:
        return DatumIndices(point, point + 1, rest, frame)
    last = whole_number(last)
    if last is not None and last >= 0:
        carried, index = frame
        start, stop = carried + index, carried + last + 1
        if stop <= start:
            carried, stop = start, start + last + 1
        return DatumIndices(start, stop, rest, (carried, last + 1))
    start = max(0, seq - 1)
    return DatumIndices(start, start + 1, rest, frame)
