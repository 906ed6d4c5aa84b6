"""HDF5 virtual datasets: rows that lie in other datasets, fetched from there through the same checks.

HDF5 itself is never asked to read one: it would open any file that the mapping names, and fill what it
does not find with zeros. Mappings of regular hyperslabs are understood, which is what Odin, Eiger and area
detectors write: boxes and interleaved frames, of limited or unlimited length.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import h5py
import numpy as np

from flystore.model.errors import MissingAsset, Unreadable, Unsupported
from flystore.storage import OpenedFile

from ._gather import some
from ._source import RowSource

MAX_MAPPINGS = 100_000
_OPEN_AT_ONCE = 32
_UNLIMITED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Stripe:
    """Indices along an axis: `count` blocks of `block`, their beginnings `stride` apart."""

    start: int
    stride: int
    count: int
    block: int

    def __len__(self) -> int:
        return self.count * self.block

    def place(self, indices: np.ndarray) -> np.ndarray:
        """Return where each index stands among these, -1 if it is not one of them."""
        number, within = np.divmod(indices - self.start, self.stride)
        inside = (number >= 0) & (number < self.count) & (within < self.block)
        return np.where(inside, number * self.block + within, -1)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the index that stands at each place."""
        number, within = np.divmod(places, self.block)
        return self.start + number * self.stride + within


@dataclass(frozen=True, slots=True)
class Mapping:
    """One rectangle of a virtual dataset and where it lies; `into` and `out_of` have equal lengths per pair.

    `pairs` holds, for each virtual axis, the axis of the source that runs along with it, or None where
    the rectangle has one index only. `fixed` are the source's axes that belong to none.
    """

    file: str
    dataset: str
    into: tuple[Stripe, ...]
    out_of: tuple[Stripe, ...]
    pairs: tuple[int | None, ...]


def mappings_of(dataset: h5py.Dataset, name: str) -> tuple[Mapping, ...]:
    """Describe an open virtual dataset.

    Raises
    ------
    Unsupported
        If a mapping is not of regular hyperslabs, or names its files by pattern.
    """
    sources = dataset.virtual_sources()
    if len(sources) > MAX_MAPPINGS:
        raise Unsupported(f"{name} has {len(sources)} virtual sources; the limit is {MAX_MAPPINGS}")
    return tuple(_mapping(source, tuple(dataset.shape), name) for source in sources)


def _mapping(source: object, shape: tuple[int, ...], name: str) -> Mapping:
    file_name, dataset_name = source.file_name, source.dset_name  # type: ignore[attr-defined]
    if "%" in file_name.replace("%%", "") or "%" in dataset_name.replace("%%", ""):
        raise Unsupported(f"{name}: virtual sources named by a pattern ({file_name!r}) are not read here")
    into = _stripes(source.vspace, name)  # type: ignore[attr-defined]
    out_of = _stripes(source.src_space, name)  # type: ignore[attr-defined]
    into = tuple(_limited(stripe, n) for stripe, n in zip(into, shape, strict=True))
    out_of, pairs = _paired(into, out_of, name)
    return Mapping(file_name.replace("%%", "%"), dataset_name.replace("%%", "%"), into, out_of, pairs)


def _stripes(space: "h5py.h5s.SpaceID", name: str) -> tuple[Stripe, ...]:
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return tuple(Stripe(0, max(n, 1), 1, n) for n in space.get_simple_extent_dims())
    if kind == h5py.h5s.SEL_HYPERSLABS and space.is_regular_hyperslab():
        columns = zip(*space.get_regular_hyperslab(), strict=True)
        return tuple(Stripe(int(a), max(int(b), 1), int(c), int(d)) for a, b, c, d in columns)
    raise Unsupported(f"{name}: a virtual source is mapped by an irregular selection, which is not read here")


def _limited(stripe: Stripe, n: int) -> Stripe:
    """Cut a stripe that goes on for ever to what lies within an axis of length `n`."""
    if stripe.count == _UNLIMITED:
        room = max(0, n - stripe.start)
        return Stripe(stripe.start, stripe.stride, -(-room // stripe.stride), stripe.block)
    if stripe.block == _UNLIMITED:
        return Stripe(stripe.start, n + 1, 1, max(0, n - stripe.start))
    return stripe


def _paired(
    into: tuple[Stripe, ...], out_of: tuple[Stripe, ...], name: str
) -> tuple[tuple[Stripe, ...], tuple[int | None, ...]]:
    """Find which axes run along with each other: those longer than one, in order."""
    unlimited = [s for s in out_of if _UNLIMITED in (s.count, s.block)]
    moving = [i for i, s in enumerate(out_of) if s in unlimited or len(s) != 1]
    pairs: list[int | None] = []
    result = list(out_of)
    wanted = [axis for axis, stripe in enumerate(into) if len(stripe) != 1]
    if len(into) == len(out_of):
        moving = wanted = list(range(len(into)))
    if len(moving) != len(wanted):
        raise Unsupported(f"{name}: a virtual source is mapped between axes that do not correspond")
    partner = dict(zip(wanted, moving, strict=True))
    for axis, stripe in enumerate(into):
        other = partner.get(axis)
        pairs.append(other)
        if other is None:
            continue
        if result[other] in unlimited:
            result[other] = _as_long_as(result[other], len(stripe))
        if len(result[other]) != len(stripe):
            raise Unsupported(f"{name}: a virtual source is mapped between axes of different lengths")
    return tuple(result), tuple(pairs)


def _as_long_as(stripe: Stripe, length: int) -> Stripe:
    if stripe.block == _UNLIMITED:
        return Stripe(stripe.start, length + 1, 1, length)
    return Stripe(stripe.start, stripe.stride, -(-length // stripe.block), stripe.block)


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
        self.shape = shape
        self.dtype = dtype
        self.chunks = None
        self.unverified = False
        self.fingerprint = file.fingerprint
        self.modified_ns = file.stat.st_mtime_ns
        self._file = file
        self._owner = owner
        self._mappings = mappings
        self._opener = opener
        self._open: OrderedDict[tuple[str, str], RowSource] = OrderedDict()
        self._absent: dict[tuple[str, str], MissingAsset] = {}

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        self._owner.close()
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        covered = np.zeros(len(rows), np.int64)
        for mapping in self._mappings:
            mine, source_rows = self._rows_of(mapping, rows)
            if not len(mine):
                continue
            there = self._there(mapping, source_rows)
            covered[mine[there]] += math.prod(len(stripe) for stripe in mapping.into[1:])
        whole = math.prod(self.shape[1:])
        if (covered > whole).any():
            raise Unsupported(f"{self.name}: virtual sources overlap, which is not read here")
        return covered == whole

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        found = np.zeros(len(rows), bool)
        for mapping in self._mappings:
            mine, source_rows = self._rows_of(mapping, rows)
            there = self._there(mapping, source_rows) if len(mine) else np.zeros(0, bool)
            if there.any():
                found[mine[there]] |= self._source(mapping).truncated(source_rows[there])
        return found

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        filled = np.zeros(len(rows), np.int64)
        for mapping in self._mappings:
            mine, source_rows = self._rows_of(mapping, rows)
            if len(mine):
                filled[mine] += self._copy(mapping, mine, source_rows, rest, out, limit_bytes)
        wrong = filled != math.prod(map(len, rest))
        if wrong.any():
            raise Unreadable(
                f"{self.name}: rows {some(rows[wrong])} are in no virtual source",
                rows=rows[wrong][:100].tolist(),
            )
        return out

    def _rows_of(self, mapping: Mapping, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of `rows` a mapping holds, and their rows in the source."""
        places = mapping.into[0].place(rows)
        mine = np.flatnonzero(places >= 0)
        axis = mapping.pairs[0]
        if axis == 0:
            return mine, mapping.out_of[0].at(places[mine])
        if axis is None:
            return mine, np.full(len(mine), mapping.out_of[0].start)
        raise Unsupported(f"{self.name}: a virtual source is mapped across its first axis, which is not read")

    def _there(self, mapping: Mapping, source_rows: np.ndarray) -> np.ndarray:
        try:
            source = self._source(mapping)
        except MissingAsset:
            return np.zeros(len(source_rows), bool)
        there = source_rows < source.shape[0]
        there[there] = source.present(source_rows[there])
        return there

    def _source(self, mapping: Mapping) -> RowSource:
        key = (mapping.file, mapping.dataset)
        if key in self._absent:
            raise self._absent[key]
        if key not in self._open:
            try:
                source = self._opener(mapping)
            except MissingAsset as error:
                self._absent[key] = error
                raise
            self._open[key] = source
            if len(source.shape) != len(mapping.out_of) and mapping.out_of:
                raise Unreadable(f"{self.name}: {source.name} does not have the axes that it is mapped with")
            if source.dtype != self.dtype:
                raise Unsupported(
                    f"{self.name}: {source.name} holds {source.dtype}, the virtual dataset {self.dtype}"
                )
        self._open.move_to_end(key)
        source = self._open[key]
        while len(self._open) > _OPEN_AT_ONCE:
            self._open.popitem(last=False)[1].close()
        return source

    def _copy(
        self,
        mapping: Mapping,
        mine: np.ndarray,
        source_rows: np.ndarray,
        rest: tuple[range, ...],
        out: np.ndarray,
        limit_bytes: int | None,
    ) -> int:
        """Copy one mapping's part of the selection and return how many values of each row that was."""
        source_axes: dict[int, np.ndarray] = {}
        into: list[np.ndarray] = []
        for axis, wanted in enumerate(rest, start=1):
            places = mapping.into[axis].place(np.arange(wanted.start, wanted.stop, wanted.step))
            chosen = np.flatnonzero(places >= 0)
            if not len(chosen):
                return 0
            into.append(chosen)
            partner = mapping.pairs[axis]
            if partner is not None:
                source_axes[partner] = mapping.out_of[partner].at(places[chosen])
        source = self._source(mapping)
        if int(source_rows.max()) >= source.shape[0]:
            raise Unreadable(f"{self.name}: {source.name} has {source.shape[0]} rows; more are mapped")
        ranges, picks, shape = [], [], [len(source_rows)]
        for axis in range(1, len(source.shape)):
            indices = source_axes.get(axis, np.array([mapping.out_of[axis].start]))
            low, high = int(indices.min()), int(indices.max())
            if high >= source.shape[axis]:
                raise Unreadable(f"{self.name}: {source.name} is smaller than what is mapped of it")
            ranges.append(range(low, high + 1))
            picks.append(indices - low)
        values = source.read(source_rows, tuple(ranges), limit_bytes)
        if picks:
            values = values[np.ix_(np.arange(len(values)), *picks)]
        shape += [len(chosen) for chosen in into]
        out[np.ix_(mine, *into)] = values.reshape(shape)
        return math.prod(shape[1:])
