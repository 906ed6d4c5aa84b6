"""Slices: the protocol's slice text, and what it selects from an array of a given shape.

Everything here is arithmetic on Python integers, done before any byte is read, so no request can
overflow, allocate, or be answered with something it did not ask for. A *selection* is a tuple of
integers (the axis is dropped) and slices (the axis is kept), at most one an axis.
"""

import re
from collections.abc import Sequence
from operator import index
from typing import TypeAlias

from .errors import InvalidRequest, OutOfBounds

Item: TypeAlias = int | slice
Selection: TypeAlias = tuple[Item, ...]

MAX_DIMS = 16
"""Most axes a request may slice; numpy itself allows 64, no detector has more than a handful."""

MAX_DIGITS = 19
"""Most digits of one number: enough for 2**63, and short enough that parsing costs nothing."""

_NUMBER = rf"-?[0-9]{{1,{MAX_DIGITS}}}"
_ITEM = re.compile(rf"(?P<index>{_NUMBER})|(?:{_NUMBER})?:(?:{_NUMBER})?(?::(?:{_NUMBER})?)?")


def parse_slice(text: str) -> Selection:
    """Return the selection that a query such as ``"0:6:1,0"`` names.

    Parameters
    ----------
    text : str
        Comma-separated integers and ``start:stop:step`` with any part left out. Empty means everything.

    Returns
    -------
    tuple of (int or slice)
        As written: negative numbers and missing parts are kept, see `normalise`.

    Raises
    ------
    InvalidRequest
        If the text is not such a list, has more than `MAX_DIMS` items or a number of more than
        `MAX_DIGITS` digits, or a step is 0.
    """
    if not text:
        return ()
    if text.count(",") >= MAX_DIMS:
        raise InvalidRequest(f"a slice may have at most {MAX_DIMS} dimensions, this one has more")
    return tuple(_parse_item(part) for part in text.split(","))


def _parse_item(part: str) -> Item:
    match = _ITEM.fullmatch(part)
    if match is None:
        shown = part if len(part) <= 40 else part[:40] + "…"
        raise InvalidRequest(
            f"{shown!r} is not a slice: write an integer or start:stop:step, numbers of at most "
            f"{MAX_DIGITS} digits, separated by commas, without spaces"
        )
    if match["index"] is not None:
        return int(part)
    return _checked(slice(*(int(number) if number else None for number in part.split(":"))))


def _checked(item: slice) -> slice:
    if item.step == 0:
        raise InvalidRequest("a slice cannot have step 0")
    return item


def normalise(selection: Sequence[Item], shape: Sequence[int]) -> Selection:
    """Return the selection with one item an axis and every number in range.

    Parameters
    ----------
    selection : sequence of (int or slice)
        Fewer items than axes mean the remaining axes whole.
    shape : sequence of int

    Returns
    -------
    tuple of (int or slice)
        As many as axes. Integers lie in ``[0, n)``. Slices have all three numbers, except that `stop`
        is None where a negative step runs to the beginning; an axis of which nothing is selected is
        ``slice(0, 0, 1)``. Applied to an array of `shape` they select what the argument selects.

    Raises
    ------
    OutOfBounds
        If an integer lies outside its axis.
    InvalidRequest
        If there are more items than axes, a step is 0, or an item is neither integer nor slice.
    """
    if len(selection) > len(shape):
        raise InvalidRequest(
            f"the slice has {len(selection)} dimensions, the array {len(shape)} (shape {tuple(shape)})"
        )
    whole = (slice(None),) * (len(shape) - len(selection))
    return tuple(
        _normalise_item(item, n, axis) for axis, (item, n) in enumerate(zip((*selection, *whole), shape, strict=True))
    )


def _normalise_item(item: Item, n: int, axis: int) -> Item:
    if isinstance(item, slice):
        try:
            start, stop, step = _checked(item).indices(n)
        except TypeError as error:
            raise InvalidRequest(f"{item!r} is not a slice of integers") from error
        if not range(start, stop, step):
            return slice(0, 0, 1)
        return slice(start, None if stop < 0 else stop, step)
    try:
        position = index(item)
    except TypeError as error:
        raise InvalidRequest(f"an axis is selected by an integer or a slice, not by {item!r}") from error
    if not -n <= position < n:
        raise OutOfBounds(
            f"index {position} is outside axis {axis}, which has {n} entries",
            axis=axis,
            index=position,
            length=n,
        )
    return position + n if position < 0 else position


def selected(item: slice, n: int) -> range:
    """Return the indices that a slice selects from an axis of length `n`, in its order."""
    return range(*item.indices(n))


def result_shape(selection: Sequence[Item], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what a selection gives; axes selected by an integer are gone.

    Raises
    ------
    OutOfBounds, InvalidRequest
        As `normalise` does.
    """
    return tuple(
        len(selected(item, n))
        for item, n in zip(normalise(selection, shape), shape, strict=True)
        if isinstance(item, slice)
    )


def format_slice(selection: Sequence[Item]) -> str:
    """Return the text that `parse_slice` reads back as the same selection.

    ``slice(None)`` becomes ``:``. An empty selection becomes the empty text, which selects everything.
    """
    return ",".join(_format_item(item) for item in selection)


def _format_item(item: Item) -> str:
    if not isinstance(item, slice):
        return str(index(item))
    start, stop, step = ("" if part is None else str(index(part)) for part in (item.start, item.stop, item.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")
