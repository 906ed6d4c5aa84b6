"""Events of a resource: which rows one event is, and how a slice of events becomes rows and columns.

One event is `k` consecutive rows, where `k` times the size of a row is the size of the announced value.
A dataset of (20, 10, 15) holds 5 events of shape (4, 10, 15), or 20 of (1, 10, 15) or (10, 15).
"""

import math
from collections.abc import Sequence

import numpy as np

from flystore.model.errors import InvalidRequest, Truncated, Unreadable
from flystore.model.slices import Item, selected
from flystore.storage import require_below

from ._source import RowSource, written_rows


def mismatch(message: str, announced: object, found: object) -> Unreadable:
    """Return the error of a file that holds something else than what was announced."""
    return Unreadable(message, reason="mismatch", announced=announced, found=found)


def require_dtype(source: RowSource, announced: np.dtype) -> None:
    """Refuse a source whose dtype is not the announced one; only the byte order may differ.

    Raises
    ------
    Unreadable
        With the fact ``reason="mismatch"``.
    """
    if not same_but_for_byte_order(source.dtype, announced):
        raise mismatch(
            f"{source.name} holds {source.dtype}; {announced} was announced", str(announced), str(source.dtype)
        )


def same_but_for_byte_order(a: np.dtype, b: np.dtype) -> bool:
    """Return whether two dtypes hold the same values; padding between fields does not count."""
    if a.subdtype or b.subdtype:
        return a.shape == b.shape and same_but_for_byte_order(a.base, b.base)
    if a.fields is None or b.fields is None:
        return a.fields is None and b.fields is None and a.newbyteorder("=") == b.newbyteorder("=")
    return a.names == b.names and all(
        same_but_for_byte_order(a.fields[name][0], b.fields[name][0]) for name in a.names or ()
    )


class Events:
    """A `RowSource` seen as events of an announced shape.

    Raises
    ------
    Unreadable
        With the fact ``reason="mismatch"``, if an event is no whole number of rows, or the dtype is another.
    """

    def __init__(self, source: RowSource, item_shape: Sequence[int], dtype: np.dtype) -> None:
        require_dtype(source, dtype)
        self.source = source
        self.item_shape = tuple(item_shape)
        self.dtype = dtype
        row, item = math.prod(source.shape[1:]), math.prod(self.item_shape)
        if item and (row == 0 or item % row):
            raise mismatch(
                f"{source.name} has shape {source.shape}; events of shape {self.item_shape} were announced, "
                f"and no whole number of its rows makes one",
                list(self.item_shape),
                list(source.shape),
            )
        self.rows_per_event = item // row if item else 1
        self.count = source.shape[0] // self.rows_per_event

    def present(self, events: np.ndarray) -> np.ndarray:
        """Return (n,) bool: whether all rows of each event were written; False beyond the last."""
        answer = np.zeros(len(events), bool)
        inside = (events >= 0) & (events < self.count)
        if inside.any():
            answer[inside] = self.source.present(self._rows(events[inside])).reshape(-1, self.rows_per_event).all(1)
        return answer

    def truncated(self, events: np.ndarray) -> np.ndarray:
        """Return (n,) bool for events in range: whether bytes of each lie beyond the end of the file."""
        if not len(events):
            return np.zeros(0, bool)
        return np.any(self.source.truncated(self._rows(events)).reshape(-1, self.rows_per_event), axis=1)

    def written(self) -> int:
        """Return up to which event a file that is written to now surely holds what was written: see `written_rows`."""
        return min(written_rows(self.source) // self.rows_per_event, self.count)

    def _rows(self, events: np.ndarray) -> np.ndarray:
        return (events[:, None] * self.rows_per_event + np.arange(self.rows_per_event)).reshape(-1)

    def read(self, events: np.ndarray, inner: Sequence[Item], limit_bytes: int | None = None) -> np.ndarray:
        """Return (n, *result) values of events in the announced dtype.

        Parameters
        ----------
        events : (n,) int64
        inner : sequence of (int or slice)
            Normalised, one for each axis of the item.

        Raises
        ------
        Truncated
            If an event lies beyond the last whole one.
        Unreadable, TooLarge
        """
        kept = [len(_indices(i, n)) for i, n in zip(inner, self.item_shape, strict=True)]
        shape = (len(events), *(n for n, i in zip(kept, inner, strict=True) if isinstance(i, slice)))
        if 0 in (len(events), *kept):
            return np.empty(shape, self.dtype)
        self._require_inside(events)
        values = self._aligned(events, inner, limit_bytes)
        if values is None:
            values = self._whole(events, inner, limit_bytes)
        return values.reshape(shape).astype(self.dtype, copy=False)

    def _require_inside(self, events: np.ndarray) -> None:
        low, high = int(events.min()), int(events.max())
        if low < 0:
            raise InvalidRequest(f"{self.source.name}: there is no event {low}")
        if high >= self.count:
            raise Truncated(
                f"{self.source.name} holds {self.count} whole events ({self.source.shape[0]} rows, "
                f"{self.rows_per_event} an event); event {high} was announced",
                announced=high + 1,
                found=self.count,
                unit="events",
            )

    def _aligned(self, events: np.ndarray, inner: Sequence[Item], limit_bytes: int | None) -> np.ndarray | None:
        """Read just what is wanted, where the item's last axes are the row's; None where they are not."""
        item_axes = [axis for axis, n in enumerate(self.item_shape) if n != 1]
        row_axes = [axis for axis, n in enumerate(self.source.shape[1:]) if n != 1]
        lead = len(item_axes) - len(row_axes)
        tail = item_axes[max(lead, 0) :]
        if lead < 0 or [self.item_shape[a] for a in tail] != [self.source.shape[1 + a] for a in row_axes]:
            return None
        indices = [_indices(i, n) for i, n in zip(inner, self.item_shape, strict=True)]
        rows = events * self.rows_per_event
        stride = self.rows_per_event
        for axis in item_axes[:lead]:
            stride //= self.item_shape[axis]
            rows = np.add.outer(rows, np.asarray(indices[axis]) * stride)
        rest = [range(1)] * (len(self.source.shape) - 1)
        for row_axis, item_axis in zip(row_axes, tail, strict=True):
            wanted = indices[item_axis]
            rest[row_axis] = wanted if wanted.step > 0 else wanted[::-1]
        values = self.source.read(rows.reshape(-1), tuple(rest), limit_bytes)
        turned = tuple(slice(None, None, 1 if indices[a].step > 0 else -1) for a in tail)
        values = values.reshape(*rows.shape, *(len(indices[a]) for a in tail))
        return values[(slice(None),) * rows.ndim + turned]

    def _whole(self, events: np.ndarray, inner: Sequence[Item], limit_bytes: int | None) -> np.ndarray:
        """Read events whole, where rows and items share no axes, and cut them in memory."""
        nbytes = len(events) * math.prod(self.item_shape) * self.dtype.itemsize
        require_below(nbytes, limit_bytes, f"whole events of {self.source.name}, which are read to be cut,")
        rest = tuple(range(n) for n in self.source.shape[1:])
        values = self.source.read(self._rows(events), rest, limit_bytes)
        return values.reshape(len(events), *self.item_shape)[(slice(None), *inner)]


def _indices(item: Item, n: int) -> range:
    return selected(item, n) if isinstance(item, slice) else range(item, item + 1)
