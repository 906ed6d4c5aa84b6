"""Lists in lists of numbers: sliced, joined, and as the buffers that clients of the protocol read.

Such data is a tree of at most one branch: `Lists` of unequal and `Regular` lists of equal length, around `Values`.
Slices mean what they mean for numpy; along an axis of unequal lists each list is sliced by itself.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec
import numpy as np

from flystore.model.errors import InvalidRequest, OutOfBounds
from flystore.model.slices import Item

from . import forms
from .export import plain

_FAR = 1 << 62


class Values(msgspec.Struct, frozen=True):
    """Numbers; further axes of `data` have one length each."""

    data: np.ndarray

    def __len__(self) -> int:
        return len(self.data)


class Lists(msgspec.Struct, frozen=True):
    """Lists of unequal length: list i is ``content[offsets[i]:offsets[i + 1]]``; offsets begin with 0 and end with
    the length of the content.
    """

    offsets: np.ndarray
    content: "Nested"

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Regular(msgspec.Struct, frozen=True):
    """Lists of `size` items each."""

    length: int
    size: int
    content: "Nested"

    def __len__(self) -> int:
        return self.length


Nested: TypeAlias = Values | Lists | Regular


def count(node: Nested) -> int:
    """Return how many numbers there are."""
    return int(node.data.size) if isinstance(node, Values) else count(node.content)


def innermost(node: Nested) -> np.ndarray:
    """Return all numbers."""
    return node.data if isinstance(node, Values) else innermost(node.content)


# --------------------------------------------------------------------------- slicing


def part(node: Nested, start: int, stop: int) -> Nested:
    """Return the items from `start` to `stop` along the first axis, without copying values."""
    match node:
        case Values():
            return Values(node.data[start:stop])
        case Regular():
            return Regular(stop - start, node.size, part(node.content, start * node.size, stop * node.size))
        case Lists():
            offsets = node.offsets[start : stop + 1]
            return Lists(offsets - offsets[0], part(node.content, int(offsets[0]), int(offsets[-1])))


def take(node: Nested, index: np.ndarray) -> Nested:
    """Return some items along the first axis, in the order of `index`."""
    match node:
        case Values():
            return Values(node.data[index])
        case Regular():
            inside = (index[:, None] * node.size + np.arange(node.size)).ravel()
            return Regular(len(index), node.size, take(node.content, inside))
        case Lists():
            starts = node.offsets[:-1][index]
            return _gathered(node.content, starts, node.offsets[1:][index] - starts)


def _gathered(content: Nested, starts: np.ndarray, counts: np.ndarray, step: int = 1) -> Lists:
    """Return lists that begin at `starts` of `content` and go on with `step`."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    inside = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], counts)
    return Lists(offsets, take(content, np.repeat(starts, counts) + inside * step))


def select(node: Nested, items: Sequence[Item]) -> Nested | np.generic:
    """Return a slice; a single number is a numpy scalar.

    Raises
    ------
    OutOfBounds
        If an index lies outside a list.
    InvalidRequest
        If there are more items than axes.
    """
    if not items:
        return node
    first, rest = items[0], items[1:]
    if isinstance(first, slice):
        rows = range(*first.indices(len(node)))
        if rows.step == 1 and rows:
            return _inside(part(node, rows.start, rows.stop), rest)
        return _inside(take(node, np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)), rest)
    place = first + len(node) if first < 0 else first
    if not 0 <= place < len(node):
        raise OutOfBounds(f"index {first} is outside the first axis, which has {len(node)} entries", index=first)
    return _select_of_one(part(node, place, place + 1), rest)


def _select_of_one(node: Nested, items: Sequence[Item]) -> Nested | np.generic:
    """Return a slice of the only item of `node`."""
    match node:
        case Values():
            if node.data.ndim == 1:
                _require_axes(items, 0)
                return node.data[0]
            return select(Values(node.data[0]), items)
        case Regular() | Lists():
            return select(node.content, items)


def _inside(node: Nested, items: Sequence[Item]) -> Nested:
    """Slice the axes after the first."""
    if not items:
        return node
    first, rest = items[0], items[1:]
    match node:
        case Values():
            _require_axes(items, node.data.ndim - 1)
            try:
                return Values(node.data[(slice(None), *items)])
            except IndexError as error:
                raise OutOfBounds(f"an index is outside its axis: {error}") from error
        case Regular():
            starts = np.arange(node.length, dtype=np.int64) * node.size
            lengths = np.full(node.length, node.size, np.int64)
        case Lists():
            starts, lengths = node.offsets[:-1], np.diff(node.offsets)
    if isinstance(first, int):
        wanted = max(min(first, _FAR), -_FAR)
        if ((lengths <= wanted) | (lengths < -wanted)).any():
            raise OutOfBounds(f"index {first} is outside some of the lists, the shortest has {lengths.min()} items")
        return _inside(take(node.content, starts + wanted + (lengths if wanted < 0 else 0)), rest)
    begins, counts, step = _each(first, lengths)
    found = _gathered(node.content, starts + begins, counts, step)
    inner = _inside(found.content, rest)
    if isinstance(node, Regular):
        return Regular(node.length, len(range(*first.indices(node.size))), inner)
    return Lists(found.offsets, inner)


def _each(item: slice, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return where a slice begins in each list and how many items it takes, and its step."""
    step = max(min(item.step or 1, _FAR), -_FAR)
    lowest, highest = (0, lengths) if step > 0 else (-1, lengths - 1)
    begins = _bound(item.start, lengths, lowest, highest, lowest if step > 0 else highest)
    ends = _bound(item.stop, lengths, lowest, highest, highest if step > 0 else lowest)
    span = ends - begins if step > 0 else begins - ends
    return begins, np.maximum(-(-span // abs(step)), 0), step


def _bound(told: int | None, lengths: np.ndarray, lowest: Any, highest: Any, absent: Any) -> np.ndarray:
    if told is None:
        return np.broadcast_to(absent, lengths.shape)
    told = max(min(told, _FAR), -_FAR)
    return np.clip(told + (lengths if told < 0 else 0), lowest, highest)


def _require_axes(items: Sequence[Item], axes: int) -> None:
    if len(items) > axes:
        raise InvalidRequest(f"the slice has {len(items) - axes} more dimensions than the data")


# --------------------------------------------------------------------------- joining and fitting


def joined(nodes: Sequence[Nested]) -> Nested:
    """Return data of one shape, one after the other."""
    first = nodes[0]
    if len(nodes) == 1:
        return first
    match first:
        case Values():
            return Values(np.concatenate([innermost(node) for node in nodes]))
        case Regular():
            return Regular(sum(map(len, nodes)), first.size, joined([node.content for node in nodes]))  # type: ignore[union-attr]
        case Lists():
            lengths = np.concatenate([np.diff(node.offsets) for node in nodes])  # type: ignore[union-attr]
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            return Lists(offsets, joined([node.content for node in nodes]))  # type: ignore[union-attr]


def fitted(node: Nested, inner: Sequence[int | None], dtype: np.dtype) -> Nested:
    """Return the same data in the one way in which data of a shape is kept; `inner` are the axes after the first.

    Raises
    ------
    InvalidRequest
        If it has another shape or dtype. Nothing at all is of any dtype.
    """
    if not inner:
        if not isinstance(node, Values) or node.data.ndim != 1:
            raise InvalidRequest("the data has more axes than this node")
        native = dtype.newbyteorder("=")
        if node.data.dtype != native and node.data.size:
            raise InvalidRequest(f"the data is {node.data.dtype}; this node holds {dtype}")
        return Values(node.data.astype(native, copy=False))
    lists = _as_lists(node)
    wanted, rest = inner[0], inner[1:]
    if wanted is None:
        return Lists(lists.offsets, fitted(lists.content, rest, dtype))
    if (np.diff(lists.offsets) != wanted).any():
        raise InvalidRequest(f"the data has lists that are not of length {wanted}, as this node announced")
    content = fitted(lists.content, rest, dtype)
    if isinstance(content, Values):
        return Values(content.data.reshape(len(node), wanted, *content.data.shape[1:]))
    return Regular(len(node), wanted, content)


def _as_lists(node: Nested) -> Lists:
    match node:
        case Lists():
            return node
        case Regular():
            return Lists(np.arange(node.length + 1, dtype=np.int64) * node.size, node.content)
        case Values():
            if node.data.ndim == 1 and node.data.size:
                raise InvalidRequest("the data has fewer axes than this node")
            size = node.data.shape[1] if node.data.ndim > 1 else 0
            flat = node.data.reshape(len(node) * size, *node.data.shape[2:])
            return Lists(np.arange(len(node) + 1, dtype=np.int64) * size, Values(flat))


# --------------------------------------------------------------------------- buffers


def from_buffers(form: dict[str, Any], length: int, buffers: forms.Buffers) -> Nested:
    """Return the data that buffers hold.

    Raises
    ------
    InvalidRequest
        If they do not make what the form says, or it is something else than lists of numbers.
    """
    forms.buffer_names(form)
    forms.check_buffers(form, length, buffers)
    return _decoded(form, length, buffers)


def _decoded(form: dict[str, Any], length: int, buffers: forms.Buffers) -> Nested:
    match form["class"]:
        case "NumpyArray":
            shape = (length, *forms.inner_shape(form))
            data = np.frombuffer(buffers[f"{form['form_key']}-data"], forms.dtype_of(form), int(np.prod(shape)))
            return Values(data.reshape(shape))
        case "EmptyArray":
            return Values(np.zeros(0))
        case "RegularArray":
            size = forms.size_of(form)
            return Regular(length, size, _decoded(form["content"], length * size, buffers))
        case "ListOffsetArray":
            offsets = forms.integers(form, "offsets", length + 1, buffers).astype(np.int64)
            content = _decoded(form["content"], int(offsets[-1]), buffers)
            return Lists(offsets - offsets[0], part(content, int(offsets[0]), int(offsets[-1])))
        case "ListArray":
            starts = forms.integers(form, "starts", length, buffers).astype(np.int64)
            stops = forms.integers(form, "stops", length, buffers).astype(np.int64)
            return _gathered(_decoded(form["content"], int(stops.max(initial=0)), buffers), starts, stops - starts)
        case other:
            raise InvalidRequest(f"a ragged array consists of lists of numbers, not of {other}")


def to_buffers(node: Nested) -> tuple[dict[str, Any], dict[str, bytes | memoryview]]:
    """Return the form of data and its buffers by name."""
    buffers: dict[str, bytes | memoryview] = {}
    return _encoded(node, 0, buffers), buffers


def _encoded(node: Nested, level: int, buffers: dict[str, bytes | memoryview]) -> dict[str, Any]:
    key = f"node{level}"
    common = {"parameters": {}, "form_key": key}
    match node:
        case Values():
            data = np.ascontiguousarray(node.data.astype(node.data.dtype.newbyteorder("<"), copy=False))
            buffers[f"{key}-data"] = data.tobytes()
            shape = list(data.shape[1:])
            return {"class": "NumpyArray", "primitive": data.dtype.name, "inner_shape": shape, **common}
        case Lists():
            buffers[f"{key}-offsets"] = node.offsets.astype("<i8").tobytes()
            content = _encoded(node.content, level + 1, buffers)
            return {"class": "ListOffsetArray", "offsets": "i64", "content": content, **common}
        case Regular():
            content = _encoded(node.content, level + 1, buffers)
            return {"class": "RegularArray", "size": node.size, "content": content, **common}


def to_lists(node: Nested) -> Any:
    """Return data as nested Python lists, as JSON shows it."""
    if isinstance(node, Values):
        return plain.of_array(node.data)
    lists = _as_lists(node)
    content = to_lists(lists.content)
    bounds = lists.offsets.tolist()
    return [content[start:stop] for start, stop in pairwise(bounds)]
