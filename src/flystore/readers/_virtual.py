"""HDF5 virtual datasets: rows that lie in other datasets, fetched from there through the same checks.

HDF5 itself is never asked to read one: it would open any file that the mapping names, and fill what it
does not find with zeros. Mappings of regular hyperslabs are understood, which is what Odin, Eiger and area
detectors write: boxes, single frames and interleaved frames, of limited or unlimited length.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flystore.model.errors import MissingAsset, Unreadable, Unsupported
from flystore.storage import OpenedFile, require_below

from ._gather import cross, some
from ._late import h5py
from ._source import RowSource

MAX_MAPPINGS = 100_000
_OPEN_AT_ONCE = 32
_MOST_ROWS = 2**20
_UNLIMITED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Stripe:
    """Indices along an axis: `count` blocks of `block`, their beginnings `stride` apart.

    HDF5 says 2**64 - 1 for a count or block that goes on for ever.
    """

    start: int
    stride: int
    count: int
    block: int

    @property
    def size(self) -> int:
        """Number of indices."""
        return self.count * self.block

    @property
    def unlimited(self) -> bool:
        return _UNLIMITED in (self.count, self.block)

    def place(self, indices: np.ndarray) -> np.ndarray:
        """Return where each index stands among these, -1 if it is not one of them."""
        number, within = np.divmod(indices - self.start, self.stride)
        inside = (number >= 0) & (number < self.count) & (within < self.block)
        return np.where(inside, number * self.block + within, -1)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the index that stands at each place."""
        number, within = np.divmod(places, self.block)
        return self.start + number * self.stride + within

    def cut(self, n: int) -> Stripe:
        """Return these indices without end, ended where an axis of length `n` has no further whole block."""
        room = max(0, n - self.start)
        if self.block == _UNLIMITED:
            return _stripe(self.start, 1, 1, room)
        return _stripe(self.start, self.stride, max(0, room - self.block + self.stride) // self.stride, self.block)

    def with_length(self, length: int) -> Stripe:
        """Return these indices without end, ended after `length` of them."""
        if self.block == _UNLIMITED:
            return _stripe(self.start, 1, 1, length)
        return _stripe(self.start, self.stride, length // self.block, self.block)

    @property
    def end(self) -> int:
        """One more than the last index, 0 if there is none."""
        return self.start + (self.count - 1) * self.stride + self.block if self.size else 0


def _stripe(start: int, stride: int, count: int, block: int) -> Stripe:
    # A single block has no stride worth the name, and HDF5 gives 1.
    return Stripe(start, max(block if count == 1 and block != _UNLIMITED else stride, 1), count, block)


@dataclass(frozen=True, slots=True)
class Mapping:
    """One rectangle of a virtual dataset and where it lies, as the file says it.

    `out_of` is None where all of the source is meant.
    """

    file: str
    dataset: str
    into: tuple[Stripe, ...]
    out_of: tuple[Stripe, ...] | None


@dataclass(frozen=True, slots=True)
class Settled:
    """A mapping once the source's shape is known.

    `pairs` holds, for each virtual axis, the axis of the source that runs along with it, or None where the
    rectangle has one index only. Pairs ascend, and their stripes are equally long. An axis of the source
    that belongs to none has one index.
    """

    into: tuple[Stripe, ...]
    out_of: tuple[Stripe, ...]
    pairs: tuple[int | None, ...]

    def source_rows(self, places: np.ndarray) -> np.ndarray:
        """Return the source's rows for each place, or all that are mapped where every place takes all."""
        stripe = self.out_of[0]
        if self.pairs[0] == 0:
            return stripe.at(places)
        if stripe.size > _MOST_ROWS:
            raise Unsupported(f"a virtual source maps {stripe.size} rows to one; the limit is {_MOST_ROWS}")
        return stripe.at(np.arange(stripe.size))


def mappings_of(dataset: h5py.Dataset, name: str) -> tuple[Mapping, ...]:
    """Describe an open virtual dataset.

    Raises
    ------
    Unsupported
        If a mapping is not of regular hyperslabs, or names its files by a pattern.
    """
    sources = dataset.virtual_sources()
    if len(sources) > MAX_MAPPINGS:
        raise Unsupported(f"{name} has {len(sources)} virtual sources; the limit is {MAX_MAPPINGS}")
    return tuple(_mapping(source, name) for source in sources)


def _mapping(source: Any, name: str) -> Mapping:
    file_name, dataset_name = source.file_name, source.dset_name
    if "%" in file_name.replace("%%", "") or "%" in dataset_name.replace("%%", ""):
        raise Unsupported(f"{name}: virtual sources named by a pattern ({file_name!r}) are not read here")
    into = _stripes(source.vspace, name)
    if into is None:
        into = tuple(_stripe(0, 1, 1, n) for n in source.vspace.get_simple_extent_dims())
    if any(stripe.unlimited for stripe in into[1:]):
        raise Unsupported(f"{name}: only the first axis of a virtual dataset may be unlimited")
    return Mapping(
        file_name.replace("%%", "%"), dataset_name.replace("%%", "%"), into, _stripes(source.src_space, name)
    )


def _stripes(space: Any, name: str) -> tuple[Stripe, ...] | None:
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return None
    if kind == h5py.h5s.SEL_HYPERSLABS and space.is_regular_hyperslab():
        columns = zip(*space.get_regular_hyperslab(), strict=True)
        stripes = tuple(_stripe(*(int(n) for n in column)) for column in columns)
        limited = [stripe for stripe in stripes if not stripe.unlimited]
        # Beyond this the arithmetic below would not fit 64 bits; no file holds as much.
        if math.prod(s.size for s in limited) > 2**60 or any(s.start + s.stride > 2**60 for s in limited):
            raise Unsupported(f"{name}: a virtual source is mapped to more places than any file has")
        return stripes
    raise Unsupported(f"{name}: a virtual source is mapped by an irregular selection, which is not read here")


def settle(mapping: Mapping, source_shape: tuple[int, ...], name: str) -> Settled:
    """Find which axes run along with each other: all of them, or those longer than one, in order.

    Raises
    ------
    Unsupported
        If the axes do not correspond.
    """
    into = mapping.into
    out_of = mapping.out_of or tuple(_stripe(0, 1, 1, n) for n in source_shape)
    if len(out_of) != len(source_shape):
        raise Unsupported(f"{name}: a virtual source does not have the axes that it is mapped with")
    if into[0].unlimited:
        if not out_of[0].unlimited or len(into) != len(out_of):
            raise Unsupported(f"{name}: an unlimited mapping does not run along the first axis of its source")
        first = out_of[0].cut(source_shape[0])
        whole = into[0].block if into[0].block != _UNLIMITED else 1
        first = out_of[0].with_length(first.size // whole * whole)
        into, out_of = (into[0].with_length(first.size), *into[1:]), (first, *out_of[1:])
    elif len(into) == len(out_of):
        out_of = tuple(b.with_length(a.size) if b.unlimited else b for a, b in zip(into, out_of, strict=True))
    if len(into) == len(out_of) and all(a.size == b.size for a, b in zip(into, out_of, strict=True)):
        return Settled(into, out_of, tuple(range(len(into))))
    wanted = [axis for axis, stripe in enumerate(into) if stripe.size != 1]
    moving = [axis for axis, stripe in enumerate(out_of) if stripe.size != 1]
    if [into[a].size for a in wanted] != [out_of[a].size for a in moving]:
        raise Unsupported(f"{name}: a virtual source is mapped between axes that do not correspond")
    partner = dict(zip(wanted, moving, strict=True))
    return Settled(into, out_of, tuple(partner.get(axis) for axis in range(len(into))))


class VirtualRows:
    """Rows of a virtual dataset; see `RowSource`."""

    def __init__(
        self,
        name: str,
        file: OpenedFile,
        owner: OpenedFile,
        shape: tuple[int, ...],
        dtype: np.dtype,
        mappings: tuple[Mapping, ...],
        opener: Callable[[Mapping], RowSource],
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.chunks: tuple[int, ...] | None = None
        self.unverified = False
        self.fingerprint: tuple[int, ...] = file.fingerprint
        self.modified_ns = file.modified_ns
        self._file = file
        self._owner = owner
        self._mappings = mappings
        self._opener = opener
        self._open: OrderedDict[tuple[str, str], RowSource] = OrderedDict()
        self._absent: dict[tuple[str, str], MissingAsset] = {}
        self.shape = self._extent(shape)

    def _extent(self, declared: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape; HDF5 works out an unlimited one from the sources, which it cannot open here."""
        if not any(mapping.into[0].unlimited for mapping in self._mappings):
            return declared
        try:
            ends = [self._first(mapping).end for mapping in self._mappings]
        except BaseException:
            self._close_sources()
            raise
        return (max(ends), *declared[1:])

    def _first(self, mapping: Mapping) -> Stripe:
        """Return the rows that a mapping provides; none where its source decides and is missing."""
        if not mapping.into[0].unlimited:
            return mapping.into[0]
        try:
            return self._source(mapping)[1].into[0]
        except MissingAsset:
            return Stripe(0, 1, 0, 1)

    def _close_sources(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def close(self) -> None:
        self._close_sources()
        self._owner.close()
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        covered = np.zeros(len(rows), np.int64)
        for mapping in self._mappings:
            mine, places = self._rows_of(mapping, rows)
            if len(mine):
                there = self._there(mapping, places)
                covered[mine[there]] += math.prod(stripe.size for stripe in mapping.into[1:])
        whole = math.prod(self.shape[1:])
        if (covered > whole).any():
            raise Unsupported(f"{self.name}: virtual sources overlap, which is not read here")
        return covered == whole

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        found = np.zeros(len(rows), bool)
        for mapping in self._mappings:
            mine, places = self._rows_of(mapping, rows)
            there = self._there(mapping, places) if len(mine) else np.zeros(0, bool)
            if there.any():
                source, settled = self._source(mapping)
                cut = source.truncated(settled.source_rows(places[there]))
                found[mine[there]] |= cut if settled.pairs[0] == 0 else cut.any()
        return found

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        filled = np.zeros(len(rows), np.int64)
        for mapping in self._mappings:
            mine, places = self._rows_of(mapping, rows)
            if len(mine):
                filled[mine] += self._copy(mapping, mine, places, rest, out, limit_bytes)
        wrong = filled != math.prod(map(len, rest))
        if wrong.any():
            raise Unreadable(
                f"{self.name}: rows {some(rows[wrong])} are not in its virtual sources",
                rows=rows[wrong][:100].tolist(),
            )
        return out

    def _rows_of(self, mapping: Mapping, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of `rows` a mapping holds, and where each stands among its rows."""
        places = self._first(mapping).place(rows)
        mine = np.flatnonzero(places >= 0)
        return mine, places[mine]

    def _there(self, mapping: Mapping, places: np.ndarray) -> np.ndarray:
        """Return which places of a mapping have all of their source rows written."""
        try:
            source, settled = self._source(mapping)
        except MissingAsset:
            return np.zeros(len(places), bool)
        asked = settled.source_rows(places)
        there = asked < source.shape[0]
        there[there] = source.present(asked[there])
        return there if settled.pairs[0] == 0 else np.full(len(places), bool(there.all()))

    def _source(self, mapping: Mapping) -> tuple[RowSource, Settled]:
        key = (mapping.file, mapping.dataset)
        if key in self._absent:
            raise self._absent[key]
        if key not in self._open:
            try:
                self._open[key] = self._opener(mapping)
            except MissingAsset as error:
                self._absent[key] = error
                raise
        self._open.move_to_end(key)
        while len(self._open) > _OPEN_AT_ONCE:
            self._open.popitem(last=False)[1].close()
        source = self._open[key]
        if source.dtype != self.dtype:
            raise Unsupported(f"{self.name}: {source.name} holds {source.dtype}, the virtual dataset {self.dtype}")
        return source, settle(mapping, source.shape, self.name)

    def _copy(
        self,
        mapping: Mapping,
        mine: np.ndarray,
        places: np.ndarray,
        rest: tuple[range, ...],
        out: np.ndarray,
        limit_bytes: int | None,
    ) -> int:
        """Copy one mapping's part of the selection and return how many values of each row that was."""
        try:
            source, settled = self._source(mapping)
        except MissingAsset:
            return 0  # these rows are then too few, which is said in words
        wanted: dict[int, np.ndarray] = {}
        into = [mine]
        if settled.pairs[0] is not None:
            wanted[settled.pairs[0]] = settled.out_of[settled.pairs[0]].at(places)
        for axis, r in enumerate(rest, start=1):
            along = settled.into[axis].place(np.arange(r.start, r.stop, r.step))
            chosen = np.flatnonzero(along >= 0)
            if not len(chosen):
                return 0
            into.append(chosen)
            partner = settled.pairs[axis]
            if partner is not None:
                wanted[partner] = settled.out_of[partner].at(along[chosen])
        values = self._values(source, settled, wanted, limit_bytes)
        shape = [len(indices) for indices in into]
        if settled.pairs[0] is None:
            shape[0] = 1  # one row of the source, however often it was asked for
        out[np.ix_(*into)] = values.reshape(shape)
        return math.prod(shape[1:])

    def _values(
        self, source: RowSource, settled: Settled, wanted: dict[int, np.ndarray], limit_bytes: int | None
    ) -> np.ndarray:
        """Read the product of index arrays from a source; an axis without one has its only index."""
        indices = [wanted.get(axis, np.array([stripe.start], np.int64)) for axis, stripe in enumerate(settled.out_of)]
        if any(int(i.max()) >= n for i, n in zip(indices, source.shape, strict=True)):
            raise Unreadable(f"{self.name}: {source.name} is smaller than what is mapped of it")
        lows = [int(i.min()) for i in indices[1:]]
        ranges = tuple(range(low, int(i.max()) + 1) for low, i in zip(lows, indices[1:], strict=True))
        needed = len(indices[0]) * math.prod(map(len, ranges)) * self.dtype.itemsize
        require_below(needed, limit_bytes, f"a part of {source.name}")
        values = source.read(indices[0], ranges, limit_bytes)
        picks = (i - low for i, low in zip(indices[1:], lows, strict=True))
        return values[cross(np.arange(len(values)), *picks)]
