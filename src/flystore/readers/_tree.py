"""HDF5 files as trees: groups and datasets below a path, their attributes and shapes, no values.

Links are followed as for datasets: component by component, other files inside the roots only. What a link that
leads nowhere, or outside, stands for has a place in its group's listing, and None in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np

from flystore.model.errors import FlystoreError, MissingAsset, NotFound, TooLarge, Unavailable, Unreadable, Unsupported
from flystore.model.structures import ArrayStructure
from flystore.storage import OpenedFile, Roots, held, require_below, reserve

from ._h5file import walk, while_settling
from ._late import h5py

HDF5 = "application/x-hdf5"

MOST_NODES = 5_000
"""Objects described in one answer; groups beyond are listed by themselves."""

MOST_KEYS = 1_000_000
_NODE_BYTES = 2_000
_KEY_BYTES = 200
_MOST_ATTRIBUTE_VALUES = 100_000
_MOST_CHUNKS = 1 << 12
_CHUNK_BYTES = 64 << 20
_MOST_STRINGS = 1 << 20
_STRING_BYTES = 256


class FileNode(msgspec.Struct, frozen=True):
    """A group or dataset.

    Attributes
    ----------
    attributes : dict
        HDF5 attributes as plain values; one that cannot be read is a sentence that says so.
    structure : ArrayStructure or None
        Of a dataset; None: a group. A scalar has shape ``(1,)``.
    keys : tuple of str
        What is in a group, in the file's order.
    children : dict or None
        The same described; None where that was not asked for or would be too much. A broken link is None.
    text : bool
        The values are strings of variable length, shown as bytes of the longest one's length.
    unreadable : str or None
        Why the values have no array form; the structure then has values of no bytes.
    """

    attributes: dict[str, Any]
    structure: ArrayStructure | None = None
    keys: tuple[str, ...] = ()
    children: dict[str, FileNode | None] | None = None
    text: bool = False
    unreadable: str | None = None


def describe(
    roots: Roots,
    uri: str,
    path: str,
    *,
    depth: int = 0,
    most: int = 500,
    only: Sequence[str] | None = None,
) -> FileNode:
    """Return what lies at `path` of an HDF5 file.

    Parameters
    ----------
    depth : int
        How many levels of groups are described below it.
    most : int
        A group with more children than this is not described further.
    only : sequence of str, optional
        Describe these children of the group, with `depth` at least 1, however many there are.

    Raises
    ------
    NotFound
        If there is no such name; with the fact ``status=410`` if it is a link that leads nowhere.
    OutsideRoots
        If a link leads outside the roots.
    MissingAsset, Unreadable, Truncated, NotReady, Unsupported
        If the file cannot be read.
    """
    with roots.open(uri) as file:

        def found(stack: ExitStack) -> FileNode:
            return _Description(stack, roots, file, most).at(path, depth, only)

        try:
            return while_settling(file, path, found)
        except MissingAsset as error:  # of the file that a link names; this one is open
            raise _broken(uri, path, error.message) from error
        except Unreadable as error:
            absent = error.facts.get("absent")
            if absent == "link":
                raise _broken(uri, path, error.message) from error
            if absent == "path":
                raise NotFound(error.message, uri=uri, dataset=path) from error
            raise


def read_text(roots: Roots, uri: str, path: str) -> np.ndarray:
    """Return all strings of a dataset that holds strings of variable length, as bytes of the longest one's length.

    Raises
    ------
    TooLarge
        If there are too many for that.
    Unsupported
        If it holds something else, or lies in other files.
    """
    with roots.open(uri) as file:

        def found(stack: ExitStack) -> np.ndarray:
            dataset, _ = walk(stack, roots, file, path)
            return _strings(dataset, f"{uri}, dataset {path!r}")

        return while_settling(file, path, found)


def _broken(uri: str, path: str, why: str) -> NotFound:
    return NotFound(f"a link at {path!r} in {uri} leads nowhere: {why}", uri=uri, dataset=path, status=410)


class _Description:
    """One walk; nothing of it outlives the stack."""

    def __init__(self, stack: ExitStack, roots: Roots, file: OpenedFile, most: int) -> None:
        self._stack = stack
        self._roots = roots
        self._file = file
        self._most = most
        self._left = MOST_NODES

    def at(self, path: str, depth: int, only: Sequence[str] | None = None) -> FileNode:
        here, _ = walk(self._stack, self._roots, self._file, path)
        return self._described(here, path, depth, only)

    def _described(self, here: Any, path: str, depth: int, only: Sequence[str] | None = None) -> FileNode:
        self._left -= 1
        reserve(_NODE_BYTES, f"the tree of {self._file.uri}")
        attributes = _attributes(here)
        if isinstance(here, h5py.Dataset):
            return _dataset(here, f"{self._file.uri}, dataset {path!r}", attributes)
        if not isinstance(here, h5py.Group):  # a named datatype: nothing to read
            return FileNode(attributes, keys=(), children={})
        keys = self._keys(here)
        known = set(keys)
        wanted = keys if only is None else [key for key in only if key in known]
        children: dict[str, FileNode | None] | None = None
        if only is not None or (depth > 0 and len(keys) <= self._most and len(keys) <= self._left):
            children = {key: self._child(here, key, path, max(depth, 1) - 1) for key in wanted}
        return FileNode(attributes, keys=tuple(keys), children=children)

    def _keys(self, group: h5py.Group) -> list[str]:
        count = len(group)
        if count > MOST_KEYS:
            raise TooLarge(f"{group.name!r} of {self._file.uri} holds {count} objects", limit=MOST_KEYS)
        reserve(_KEY_BYTES * count, f"the keys of {group.name!r} of {self._file.uri}")
        # A name that is no text is shown in some form and cannot be asked for.
        return [key.encode("utf-8", "backslashreplace").decode() for key in group]

    def _child(self, group: h5py.Group, key: str, path: str, depth: int) -> FileNode | None:
        try:
            if isinstance(group.get(key, getlink=True), h5py.HardLink):
                return self._described(group[key], f"{path.rstrip('/')}/{key}", depth)
            # From where the path began: a link is relative to the file that holds it, and `walk` knows which. On a
            # stack of its own, or a group of many links would keep as many files open.
            with ExitStack() as stack:
                here, _ = walk(stack, self._roots, self._file, f"{path.rstrip('/')}/{key}")
                return self._described(here, f"{path.rstrip('/')}/{key}", depth)
        except (TooLarge, Unavailable):
            raise
        # What h5py raises depends on where HDF5 stumbled; a sound neighbour must be shown all the same.
        except (FlystoreError, OSError, RuntimeError, KeyError, ValueError, TypeError):
            return None


def _dataset(dataset: h5py.Dataset, name: str, attributes: dict[str, Any]) -> FileNode:
    shape = (1,) if dataset.shape == () else dataset.shape
    if shape is None:  # a null dataspace: an array of nothing is what it is
        return FileNode(attributes, ArrayStructure.of(_plain_dtype(dataset.dtype), (0,)))
    if dataset.dtype.hasobject:
        try:
            strings = _strings(dataset, name)
        except (Unsupported, TooLarge) as error:
            return FileNode(attributes, ArrayStructure.of("S0", shape), unreadable=error.message)
        return FileNode(attributes, ArrayStructure.of(strings.dtype, shape), text=True)
    dtype = _plain_dtype(dataset.dtype)
    stored = dataset.chunks if dataset.shape else None
    return FileNode(attributes, ArrayStructure.of(dtype, shape, _chunks(shape, stored, dtype.itemsize)))


def _plain_dtype(dtype: np.dtype) -> np.dtype:
    """Return a dtype without what h5py notes in it, such as names of an enumeration."""
    if dtype.hasobject:
        return np.dtype("S1")
    return dtype if dtype.fields is not None or dtype.subdtype is not None else np.dtype(dtype.str)


def _chunks(shape: tuple[int, ...], stored: tuple[int, ...] | None, itemsize: int) -> tuple[tuple[int, ...], ...]:
    """Return chunks of whole stored ones, few enough to be listed; of other data, of some MB along the first axes."""
    lengths = list(stored or shape)
    if stored is None:
        size = itemsize
        for axis in range(len(shape) - 1, -1, -1):
            lengths[axis] = max(1, min(shape[axis], _CHUNK_BYTES // max(size, 1)))
            size *= lengths[axis]
    for axis, n in enumerate(shape):
        lengths[axis] = max(1, lengths[axis]) * max(1, -(-n // (max(1, lengths[axis]) * _MOST_CHUNKS)))
    return tuple(_axis(n, length) for n, length in zip(shape, lengths, strict=True))


def _axis(n: int, length: int) -> tuple[int, ...]:
    whole, rest = divmod(n, length)
    return (length,) * whole + ((rest,) if rest else ()) or (0,)


def _strings(dataset: Any, name: str) -> np.ndarray:
    if not isinstance(dataset, h5py.Dataset) or h5py.check_string_dtype(dataset.dtype) is None:
        raise Unsupported(f"{name} holds values of variable length or references, which have no array form")
    if dataset.external or dataset.is_virtual:
        raise Unsupported(f"{name} holds strings of variable length that lie elsewhere; they are not followed")
    if dataset.size > _MOST_STRINGS:
        raise TooLarge(f"{name} holds {dataset.size} strings of variable length", limit=_MOST_STRINGS)
    if dataset.size and not dataset.id.get_storage_size():
        raise Unsupported(f"{name} was never written")
    with held(_STRING_BYTES * dataset.size, f"the strings of {name}"):
        values = np.asarray(dataset[()], dtype=object)
        longest = max((len(value) for value in values.flat), default=0)
        require_below(longest * values.size, None, f"the strings of {name}")
        reserve(2 * longest * values.size, f"the strings of {name}")
        return values.astype(f"S{max(longest, 1)}").reshape(dataset.shape or (1,))


# --------------------------------------------------------------------------- attributes


def _attributes(here: Any) -> dict[str, Any]:
    found = {}
    for name in here.attrs:
        key = name.encode("utf-8", "backslashreplace").decode()
        try:
            found[key] = _attribute(here.attrs, name)
        # As above: whatever is wrong with one must not hide the others.
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            found[key] = f"(this attribute cannot be read: {error})"
    return found


def _attribute(attributes: h5py.AttributeManager, name: str) -> Any:
    # Asked before it is read: an attribute can be as large as a dataset.
    shape = attributes.get_id(name).shape
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count > _MOST_ATTRIBUTE_VALUES:
        return f"(this attribute holds {count} values; {_MOST_ATTRIBUTE_VALUES} are shown)"
    reserve(64 * count, f"the attribute {name!r}")
    return _plain(attributes[name])


def _plain(value: Any) -> Any:
    match value:
        case h5py.Empty() | None:
            return None
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case bool() | int() | float():
            return value
        case complex():
            return [value.real, value.imag]
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if isinstance(value, (np.ndarray, np.generic)):
            made = value.tolist()
            # A long double stays what it is.
            return float(made) if isinstance(made, np.floating) else _plain(made)
    return str(value)
