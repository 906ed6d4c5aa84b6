"""HDF5 datasets: metadata and chunk map through h5py, bytes by position, decoded outside HDF5's lock.

A chunk that was never written is a row that is not there, and never fill values. Contiguous and compact
datasets cannot tell a row that was written from one that was not: they are `unverified`.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from flystore.model.errors import NotReady, OutsideRoots, TooLarge, Truncated, Unavailable, Unreadable, Unsupported
from flystore.storage import FileRuns, NearFile, OpenedFile, Roots, WouldWait, held, require_below, reserve

from ._chunks import THREADS, Piece, pieces, run_all
from ._filters import (
    BLOSC,
    BLOSC_HEAD,
    BY_HDF5,
    FLETCHER32,
    NAMES,
    BadChunk,
    Filter,
    are_blosc_frames,
    decode,
    decode_into,
    is_planned,
    is_quick,
    without_helpers,
)
from ._gather import as_range, c_strides, gather, linear_index, some, spans
from ._h5file import Trace, is_settling, open_linked, with_dataset
from ._late import h5py
from ._source import RowSource
from ._stored import StoredForm
from ._virtual import Mapping, VirtualRows, mappings_of

MAX_CHUNKS = 2**24
"""Most chunks of one dataset; more would take minutes to map, and no detector writes them."""

_BOX_BYTES = 2**20
"""Size aimed at for the parts in which contiguous data is read."""

_DRAIN = 2**16
_CHUNK_ENTRY = 128  # bytes of one chunk's place, while the map is sorted
_BATCH = 2**14
_MERGED_BYTES = 2**21
_COPY_WEIGHT = 8
"""How many bytes are copied in the time in which one is decoded."""

_AHEAD_BYTES = 2**26
"""Stored bytes that are fetched together where each read is a request over the network."""

_NESTED = 4
_BLANK_BYTES = 2**26
_TAIL_BYTES = 2**12

SHORT_BYTES = 2**20
"""Most bytes that are read, or decoded, on an event loop for one answer: some tenths of a millisecond."""

_SHORT_PARTS = 32
_SHORT_TRACE = 2**18


@dataclass(frozen=True, slots=True)
class ChunkMap:
    """Where the chunks of a dataset are; only those that exist.

    `keys` are ascending linear indices into the grid of chunks; the others are parallel to it.
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the position of each key, -1 where the chunk does not exist."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def find_one(self, key: int) -> int | None:
        """Return the position of a key; None where the chunk does not exist."""
        if key < len(self.keys) and self.keys[key] == key:  # as it is where all chunks exist
            return key
        at = bisect_left(self.keys, key)
        return at if at < len(self.keys) and self.keys[at] == key else None


@dataclass(frozen=True, slots=True)
class Layout:
    """All there is to know about a dataset without its data.

    Attributes
    ----------
    shape : tuple of int
        At least one axis.
    raw : bool
        The stored bytes are the dtype's bytes; false: HDF5 converts.
    box : tuple of int
        Shape of a chunk, or of the parts in which other data is read.
    chunks : ChunkMap or None
        None: not chunked.
    offset : int or None
        Of contiguous data; None: not contiguous, or nothing was written.
    fill : bytes or None
        A value as it is where nothing was written; None: not known.
    """

    shape: tuple[int, ...]
    scalar: bool
    dtype: np.dtype
    kind: str
    raw: bool
    box: tuple[int, ...]
    filters: tuple[Filter, ...] = ()
    chunks: ChunkMap | None = None
    offset: int | None = None
    unverified: bool = False
    mappings: tuple[Mapping, ...] = ()
    fill: bytes | None = None

    @property
    def moves(self) -> bool:
        """Whether what is written may move when more is: a chunk that gets longer with each of its rows."""
        return bool(self.filters) and self.box[0] > 1

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of boxes along each axis."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.box, strict=True))


# --------------------------------------------------------------------------- what a dataset is


def layout_of(dataset: h5py.Dataset, name: str) -> Layout:
    """Describe an open dataset.

    Raises
    ------
    Unsupported
        If it holds strings of variable length, references or objects, uses an unknown filter, or has too
        many chunks.
    OutsideRoots
        If its data is in other files by external raw storage, which is never followed.
    Unreadable
        If it has no data at all (a null dataspace).
    """
    if dataset.external:
        raise OutsideRoots(
            f"{name} keeps its data in other files (HDF5 external raw storage), which this service does not follow",
        )
    if dataset.shape is None:
        raise Unreadable(f"{name} is empty: it has no data at all")
    dtype, raw = _dtype_of(dataset, name)
    shape = tuple(int(n) for n in dataset.shape) or (1,)
    base: dict[str, Any] = {"shape": shape, "scalar": dataset.shape == (), "dtype": dtype, "raw": raw}
    base["fill"] = np.asarray(dataset.fillvalue, dtype).tobytes() if raw and not dtype.subdtype else None
    plist = dataset.id.get_create_plist()
    kind = plist.get_layout()
    if kind == h5py.h5d.VIRTUAL:
        mappings = mappings_of(dataset, name)
        return Layout(**base, kind="virtual", box=shape, mappings=mappings)
    if kind == h5py.h5d.CHUNKED:
        return _chunked(dataset, plist, name, base)
    box = _boxes(shape, dtype.itemsize)
    if kind == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return Layout(**base, kind="contiguous", box=box, offset=offset, unverified=True)
    return Layout(**base, kind="compact", box=box, unverified=True)


def _dtype_of(dataset: h5py.Dataset, name: str) -> tuple[np.dtype, bool]:
    stored = dataset.id.get_type()
    dtype = dataset.dtype
    if dtype.hasobject:
        raise Unsupported(
            f"{name} holds values of variable length or references, which have no array form; only values "
            f"of fixed size can be read"
        )
    if dtype.itemsize == 0:
        raise Unsupported(f"{name} holds values of no bytes")
    raw = bool(h5py.h5t.py_create(dtype, logical=True) == stored)
    # h5py keeps enumeration names and the like in the dtype's metadata; nobody beyond here needs them.
    return (dtype if dtype.fields is not None or dtype.subdtype else np.dtype(dtype.str)), raw


def _boxes(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return a box of at most about `_BOX_BYTES`, whole along the last axes."""
    box = list(shape)
    for axis in range(len(shape)):
        tail = itemsize * math.prod(box[axis + 1 :])
        if tail >= _BOX_BYTES:
            box[axis] = 1
        else:
            box[axis] = max(1, min(shape[axis], _BOX_BYTES // max(tail, 1)))
            break
    return tuple(max(n, 1) for n in box)


def _chunked(dataset: h5py.Dataset, plist: Any, name: str, base: dict[str, Any]) -> Layout:
    filters = []
    for i in range(plist.get_nfilters()):
        number, _, values, _ = plist.get_filter(i)
        filters.append(Filter(int(number), tuple(int(v) for v in values)))
    unknown = [f.number for f in filters if f.number not in NAMES]
    if unknown:
        raise Unsupported(
            f"{name} is compressed with HDF5 filter {unknown[0]}, which is not known here", filter=unknown[0]
        )
    layout = Layout(
        **base,
        kind="chunked",
        box=tuple(int(n) for n in dataset.chunks),
        filters=tuple(filters),
        unverified=plist.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY,
    )
    count = math.prod(layout.grid)
    if count > MAX_CHUNKS:
        raise Unsupported(f"{name} declares {count} chunks; the limit is {MAX_CHUNKS}")
    return _with_chunks(layout, _map_chunks(dataset, layout, name))


def _with_chunks(layout: Layout, chunks: ChunkMap) -> Layout:
    values = {field: getattr(layout, field) for field in Layout.__slots__}
    return Layout(**{**values, "chunks": chunks})


def _map_chunks(dataset: h5py.Dataset, layout: Layout, name: str) -> ChunkMap:
    grid, box = np.array(layout.grid), np.array(layout.box)
    columns: list[tuple[np.ndarray, ...]] = []
    waiting: list[Any] = []

    def drain() -> None:
        at = np.array([info.chunk_offset for info in waiting], np.int64) // box
        inside = (at < grid).all(axis=1)  # others hold nothing that can be selected
        offsets = np.array([info.byte_offset for info in waiting], np.int64)
        sizes = np.array([info.size for info in waiting], np.int64)
        masks = np.array([info.filter_mask for info in waiting], np.int64)
        keys = np.ravel_multi_index(tuple(at[inside].T), layout.grid)
        reserve(_CHUNK_ENTRY * len(waiting), f"the chunk index of {name}")
        columns.append((keys, offsets[inside], sizes[inside], masks[inside]))
        waiting.clear()

    refused: list[TooLarge | Unavailable] = []

    def take(info: Any) -> bool | None:
        waiting.append(info)
        if len(waiting) == _DRAIN:
            try:
                drain()
            except (TooLarge, Unavailable) as error:  # HDF5 would go on to the last chunk all the same
                refused.append(error)
                return True
        return None

    if 0 not in layout.grid and dataset.id.get_storage_size():
        dataset.id.chunk_iter(take)
    if refused:
        raise refused[0]
    if waiting:
        drain()
    if not columns:
        nothing = np.zeros(0, np.int64)
        return ChunkMap(nothing, nothing, nothing, nothing)
    keys, offsets, sizes, masks = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(keys, kind="stable")
    if len(keys) > 1 and (np.diff(keys[order]) == 0).any():
        raise Unreadable(f"{name} has two chunks in one place; its index is damaged")
    return ChunkMap(keys[order], offsets[order], sizes[order], masks[order])


# --------------------------------------------------------------------------- layouts kept


class _Kept:
    """Layouts of files at rest, by file and dataset; the least recently used go first."""

    def __init__(self, entries: int = 256, chunks: int = 2 * 10**6) -> None:
        self._most = entries, chunks
        self._chunks = 0
        self._layouts: OrderedDict[Any, Layout] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any) -> Layout | None:
        with self._lock:
            if key in self._layouts:
                self._layouts.move_to_end(key)
            return self._layouts.get(key)

    def put(self, key: Any, layout: Layout) -> None:
        with self._lock:
            if key in self._layouts:
                return
            self._layouts[key] = layout
            self._chunks += _weight(layout)
            while len(self._layouts) > self._most[0] or (self._chunks > self._most[1] and len(self._layouts) > 1):
                _, gone = self._layouts.popitem(last=False)
                self._chunks -= _weight(gone)


def _weight(layout: Layout) -> int:
    return 0 if layout.chunks is None else len(layout.chunks.keys)


_kept = _Kept()


class _KeptYoung:
    """Layouts of files that may be changing still, each good while what it was made of is in the file."""

    def __init__(self, entries: int = 64, nbytes: int = 2**24) -> None:
        self._most = entries, nbytes
        self._nbytes = 0
        self._layouts: OrderedDict[Any, tuple[Layout, Trace]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, file: OpenedFile) -> tuple[Layout, Trace] | tuple[None, None]:
        with self._lock:
            kept = self._layouts.get(key)
        if kept is None or (isinstance(file, NearFile) and kept[1].nbytes > _SHORT_TRACE) or not kept[1].holds(file):
            return None, None
        return kept

    def last(self, key: Any, file: OpenedFile) -> Layout | None:
        """Return the last layout if its rows are where they were, whatever the file holds beside them."""
        with self._lock:
            layout, _ = self._layouts.get(key, (None, None))
        if layout is None or layout.moves or layout.kind == "virtual":
            return None
        ends = 0 if layout.chunks is None else (layout.chunks.offsets + layout.chunks.sizes).max(initial=0)
        return layout if file.current_size() >= ends else None

    def put(self, key: Any, layout: Layout, trace: Trace) -> None:
        if not trace.is_whole:
            return
        with self._lock:
            self._forget(key)
            self._layouts[key] = layout, trace
            self._nbytes += trace.nbytes
            while len(self._layouts) > self._most[0] or self._nbytes > self._most[1]:
                self._forget(next(iter(self._layouts)))

    def _forget(self, key: Any) -> None:
        gone = self._layouts.pop(key, None)
        self._nbytes -= gone[1].nbytes if gone is not None else 0


_young = _KeptYoung()


# --------------------------------------------------------------------------- rows


class Hdf5Rows:
    """Rows of a dataset whose bytes are in one file; see `RowSource`."""

    def __init__(
        self,
        roots: Roots,
        file: OpenedFile,
        owner: OpenedFile,
        path: str,
        layout: Layout,
        trace: Trace | None = None,
    ) -> None:
        self.name = f"{file.uri}, dataset {path!r}"
        self.shape = layout.shape
        self.dtype = layout.dtype
        self.chunks: tuple[int, ...] | None = layout.box if layout.kind == "chunked" else None
        self.unverified = layout.unverified
        self.checksummed = layout.kind == "chunked" and any(f.number == FLETCHER32 for f in layout.filters)
        self.fingerprint: tuple[int, ...] = file.fingerprint
        if owner is not file:
            self.fingerprint += owner.fingerprint
        self.modified_ns = max(file.modified_ns, owner.modified_ns)
        self._roots = roots
        self._file = file
        self._owner = owner
        self._path = path
        self._layout = layout
        # A writer without SWMR may put something else where a chunk was that it moved.
        self._trace = trace if trace is not None and layout.moves and not trace.swmr else None
        self._whole: np.ndarray | None = None

    def close(self) -> None:
        self._owner.close()
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        layout = self._layout
        if layout.chunks is None:
            return np.full(len(rows), layout.kind == "compact" or layout.offset is not None)
        if self._whole is None:
            per_row = max(1, math.prod(layout.grid[1:]))
            counts = np.bincount(layout.chunks.keys // per_row, minlength=layout.grid[0])
            self._whole = counts == per_row
        return self._whole[rows // layout.box[0]]

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        layout = self._layout
        if layout.chunks is not None:
            beyond = np.zeros(layout.grid[0], bool)
            late = layout.chunks.offsets + layout.chunks.sizes > self._owner.current_size()
            beyond[layout.chunks.keys[late] // max(1, math.prod(layout.grid[1:]))] = True
            return beyond[rows // layout.box[0]]
        if layout.offset is None:
            return np.zeros(len(rows), bool)
        return rows >= self._rows_in_file(layout.offset)

    def _rows_in_file(self, offset: int) -> int:
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        return max(0, self._owner.current_size() - offset) // row_bytes if row_bytes else self.shape[0]

    def written_rows(self) -> int:
        """Return up to which row a file that is being written to surely holds what was written.

        Without SWMR a filtered chunk of several rows moves each time that it is written out, and what lay there may be
        used for something else while it is read: such chunks count when they are full, or nobody writes any more.
        """
        rows, several = self._rows_not_blank(), self._layout.box[0]
        unsteady = self._trace is not None and not self._trace.closed
        return rows // several * several if unsteady else rows

    def _rows_not_blank(self) -> int:
        """Return up to which row there is something other than the fill value, where that is all there is to go by.

        That is so of contiguous data, and of the last chunk if it holds several rows. More than `_BLANK_BYTES` are not
        looked through: then all counts as written.
        """
        layout, row_bytes = self._layout, self.dtype.itemsize * math.prod(self.shape[1:])
        rows = self.shape[0]
        if layout.fill is None or not row_bytes or not layout.raw:
            return rows
        first = 0
        if layout.chunks is not None:
            chunks = np.flatnonzero(self.present(np.arange(rows))) if layout.box[0] > 1 else np.zeros(0, int)
            if not len(chunks) or row_bytes * layout.box[0] > _BLANK_BYTES:
                return rows
            first = int(chunks[-1]) // layout.box[0] * layout.box[0]
            rows = int(chunks[-1]) + 1
        elif layout.offset is not None:
            rows = min(rows, self._rows_in_file(layout.offset), self._rows_stored(layout.offset, row_bytes))
        fill, left = np.frombuffer(layout.fill, np.uint8), _BLANK_BYTES
        step = max(1, _BOX_BYTES // row_bytes) if layout.chunks is None else layout.box[0]
        while rows > first and left > 0:
            start = max(first, rows - step)
            found = self.read(np.arange(start, rows), tuple(map(range, self.shape[1:])))
            blank = found.reshape(rows - start, -1, 1).view(np.uint8).reshape(rows - start, -1, len(fill)) == fill
            there = np.flatnonzero(~blank.all((1, 2)))
            if len(there):
                # A row that ends with nothing may be on its way to the disk.
                last = int(there[-1])
                return start + last + (not blank[last, -(_TAIL_BYTES // len(fill)) - 1 :].all())
            left -= found.nbytes
            rows = start
        return rows

    def _rows_stored(self, offset: int, row_bytes: int) -> int:
        """Return up to which row the file's system has stored anything; where it does not tell, all."""
        end = self._owner.stored_until(offset)
        if end is None:
            return self.shape[0]
        return -(-(end - offset) // row_bytes)

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        layout = self._layout
        working = 0
        if layout.filters or layout.kind == "compact" or not layout.raw:
            nbytes = layout.dtype.itemsize * math.prod(layout.box)
            require_below(nbytes, limit_bytes, f"one chunk of {self.name}")
            # As stored, between two filters and decoded, in each thread.
            working = 3 * nbytes * min(THREADS, math.prod(layout.grid))
        if layout.kind == "contiguous":
            self._require_long_enough(rows)
        out = np.empty((len(rows), *map(len, rest)), layout.dtype)
        waiting = pieces(rows, rest, layout.box)
        with held(working, f"a few chunks of {self.name}"):
            while batch := list(itertools.islice(waiting, _BATCH)):
                self._read_batch(rows, batch, out)
        if self._trace is not None:
            self._trace.require_steady(self._file)
        return out

    def read_short(self, selection: tuple[range, ...]) -> np.ndarray:
        """Return the same as `read` of a file that is a `NearFile`, on an event loop.

        Parameters
        ----------
        selection : tuple of range
            One for each axis: in range, not empty, positive step.

        Raises
        ------
        WouldWait
            If it takes more than a few short reads and a quick codec, or something is wrong.
        """
        self._require_short(selection)
        layout, file_bytes = self._layout, self._owner.current_size()
        out = np.empty(tuple(map(len, selection)), layout.dtype)
        with without_helpers() if layout.filters else nullcontext():
            self._read_parts(pieces(selection[0], selection[1:], layout.box), file_bytes, out)
        return out

    def _read_parts(self, parts: Iterator[Piece], file_bytes: int, out: np.ndarray) -> None:
        layout = self._layout
        for part in parts:
            if layout.chunks is None:
                self._cutting(part, out)()
                continue
            at = layout.chunks.find_one(linear_index(part.box, layout.grid))
            if at is None or layout.chunks.offsets[at] + layout.chunks.sizes[at] > file_bytes:
                raise WouldWait("a chunk is not there")
            if layout.filters:
                self._decoding(part, out, layout.chunks, at)()
            elif layout.chunks.sizes[at] == layout.dtype.itemsize * math.prod(layout.box):
                self._copying(part, out, layout.chunks, at)()
            else:
                raise WouldWait("a chunk is not whole")

    def _require_short(self, selection: tuple[range, ...]) -> None:
        """Raise `WouldWait` unless reading takes a few short reads and, of compressed chunks, a quick codec."""
        layout = self._layout
        if layout.kind not in ("chunked", "contiguous") or not layout.raw or not is_quick(layout.filters):
            raise WouldWait("HDF5 reads it, or a slow codec")
        if self._trace is not None:
            raise WouldWait("a chunk may be moved meanwhile")
        if layout.chunks is None and layout.offset is None:
            raise WouldWait("nothing was written")
        reach = [(r[0], r[-1]) for r in selection]
        parts = math.prod(b // n - a // n + 1 for (a, b), n in zip(reach, layout.box, strict=True))
        each = layout.dtype.itemsize * math.prod(layout.box)
        if not layout.filters:
            # Of what lies uncompressed in a box, no more is read than lies between the first byte and the last.
            inside = [min(b - a, n - 1) for (a, b), n in zip(reach, layout.box, strict=True)]
            strides = c_strides(layout.box, layout.dtype.itemsize)
            each = layout.dtype.itemsize + sum(n * stride for n, stride in zip(inside, strides, strict=True))
        if parts > _SHORT_PARTS or parts * each > SHORT_BYTES:
            raise WouldWait("it is long")

    def file_runs(self, rows: range) -> FileRuns | None:
        """Return where neighbouring rows lie in the file, if their bytes there are those of the dtype.

        Parameters
        ----------
        rows : range
            In range, not empty, step 1.

        Returns
        -------
        FileRuns or None
            None where they must be read: they are encoded, cut into columns, not there, or the file is still changing.
        """
        layout, owner = self._layout, self._owner
        plain = layout.raw and not layout.filters and not layout.scalar
        if not plain or type(owner) is not OpenedFile or is_settling(owner):
            return None
        row_bytes = layout.dtype.itemsize * math.prod(layout.shape[1:])
        if layout.chunks is None:
            if layout.kind != "contiguous" or layout.offset is None:
                return None
            runs = [(layout.offset + rows.start * row_bytes, len(rows) * row_bytes)]
        elif layout.box[1:] == layout.shape[1:]:
            runs = _runs_of_chunks(layout.chunks, rows, layout.box[0], row_bytes)
        else:
            return None
        size = owner.current_size()
        if not runs or any(offset + length > size for offset, length in runs):
            return None
        return FileRuns(owner, tuple(runs))

    def blosc_runs(self, rows: range) -> FileRuns | None:
        """Return where the chunks of neighbouring rows lie in the file, if they are Blosc frames of just these rows.

        Each frame was looked at: its header tells the length of a chunk, and the length that it has in the file.

        Parameters
        ----------
        rows : range
            In range, not empty, step 1.

        Returns
        -------
        FileRuns or None
            None where rows are to be decoded here, or `file_runs` would be None for the state of the file.
        """
        layout, owner = self._layout, self._owner
        length = layout.box[0]
        chunked = layout.chunks is not None and layout.raw and layout.box[1:] == layout.shape[1:]
        of_blosc = [each.number for each in layout.filters] == [BLOSC]
        if not chunked or not of_blosc or rows.start % length or rows.stop % length:
            return None
        if type(owner) is not OpenedFile or is_settling(owner):
            return None
        assert layout.chunks is not None
        at = layout.chunks.find(np.arange(rows.start // length, rows.stop // length))
        if (at < 0).any() or layout.chunks.masks[at].any():
            return None
        starts, sizes = layout.chunks.offsets[at].astype(np.int64), layout.chunks.sizes[at].astype(np.int64)
        if int((starts + sizes).max()) > owner.current_size() or int(sizes.min()) < BLOSC_HEAD.itemsize:
            return None
        heads = b"".join(owner.read(start, BLOSC_HEAD.itemsize) for start in starts.tolist())
        if not are_blosc_frames(heads, sizes, layout.dtype.itemsize * math.prod(layout.box)):
            return None
        return FileRuns(owner, tuple(_stretches(starts, starts + sizes)))

    def stored(self) -> StoredForm | None:
        layout = self._layout
        if layout.chunks is None or not layout.raw or layout.scalar:
            return None
        return StoredForm(layout.shape, layout.box, layout.dtype, tuple((f.number, f.values) for f in layout.filters))

    def stored_chunk(self, box: tuple[int, ...]) -> bytes | None:
        layout = self._layout
        if layout.chunks is None or not all(0 <= i < n for i, n in zip(box, layout.grid, strict=True)):
            return None
        at = int(layout.chunks.find(np.ravel_multi_index([[i] for i in box], layout.grid))[0])
        if at < 0 or layout.chunks.masks[at]:
            return None
        offset, size = int(layout.chunks.offsets[at]), int(layout.chunks.sizes[at])
        if offset + size > self._owner.current_size():
            return None
        return self._owner.read(offset, size)

    def _require_long_enough(self, rows: np.ndarray) -> None:
        offset = self._layout.offset
        if offset is None:
            raise self._never_written(rows)
        last, found = int(rows.max()), self._rows_in_file(offset)
        if last >= found:
            raise Truncated(
                f"{self.name}: the file ends after {found} rows; {self.shape[0]} are declared and row {last} "
                f"was asked for",
                announced=self.shape[0],
                found=found,
                unit="rows",
            )

    def _read_batch(self, rows: np.ndarray, parts: list[Piece], out: np.ndarray) -> None:
        layout = self._layout
        if not self._owner.remote or layout.kind == "compact" or not layout.raw or not is_planned(layout.filters):
            self._read_group(rows, parts, out)
            return
        places = [-1] * len(parts) if layout.chunks is None else self._found(rows, parts, layout.chunks)
        group: list[Piece] = []
        wanted: list[tuple[int, int]] = []
        for part, at in zip(parts, places, strict=True):
            group.append(part)
            wanted += self._stretches_of(part, at)
            if sum(length for _, length in wanted) >= _AHEAD_BYTES:
                self._fetch_and_read(rows, group, wanted, out)
                group, wanted = [], []
        if group:
            self._fetch_and_read(rows, group, wanted, out)

    def _fetch_and_read(
        self, rows: np.ndarray, parts: list[Piece], wanted: list[tuple[int, int]], out: np.ndarray
    ) -> None:
        with self._owner.ahead(wanted):
            self._read_group(rows, parts, out)

    def _stretches_of(self, part: Piece, at: int) -> list[tuple[int, int]]:
        """Return (beginning, length) in the file of all that is read for a piece, whose chunk is the one at `at`."""
        layout = self._layout
        if layout.chunks is not None and layout.filters:
            return [(int(layout.chunks.offsets[at]), int(layout.chunks.sizes[at]))]
        offset, strides = self._origin(part, at)
        runs = [part.rows] if isinstance(part.rows, range) else _runs(np.unique(part.rows))
        return [s for run in runs for s in spans(offset, strides, (run, *part.rest), layout.dtype.itemsize)]

    def _read_group(self, rows: np.ndarray, parts: list[Piece], out: np.ndarray) -> None:
        layout = self._layout
        nbytes = sum(math.prod(part.shape) for part in parts) * layout.dtype.itemsize
        if layout.chunks is None:
            if layout.kind == "compact" or not layout.raw:
                self._read_by_hdf5(parts, out)
            else:
                run_all([self._cutting(part, out) for part in parts], nbytes // _COPY_WEIGHT)
            return
        at = self._found(rows, parts, layout.chunks)
        if not layout.raw or not is_planned(layout.filters):
            self._read_by_hdf5(parts, out)
            return
        if not layout.filters:
            self._require_whole(parts, at, layout.chunks)
            jobs = [self._copying(p, out, layout.chunks, i) for p, i in self._merged(parts, at, layout.chunks)]
            nbytes //= _COPY_WEIGHT
        else:
            jobs = [self._decoding(p, out, layout.chunks, i) for p, i in zip(parts, at, strict=True)]
            nbytes = layout.dtype.itemsize * math.prod(layout.box) * len(parts)
        run_all(jobs, nbytes)

    def _found(self, rows: np.ndarray, parts: list[Piece], chunks: ChunkMap) -> list[int]:
        """Look the chunks up before anything is read: each exists and lies within the file."""
        boxes = np.array([part.box for part in parts], np.int64)
        at = chunks.find(np.ravel_multi_index(tuple(boxes.T), self._layout.grid))
        missing = np.flatnonzero(at < 0)
        if len(missing):
            raise self._never_written(np.concatenate([rows[parts[i].into_rows] for i in missing[:100]]))
        end, size = int((chunks.offsets[at] + chunks.sizes[at]).max()), self._owner.current_size()
        if end > size:
            raise Truncated(
                f"{self.name}: the file ends at byte {size}; its chunk index announces {end}",
                announced=end,
                found=size,
                unit="bytes",
            )
        return [int(i) for i in at]

    def _never_written(self, rows: np.ndarray) -> Unreadable:
        return Unreadable(
            f"{self.name}: rows {some(rows)} were never written", rows=sorted({int(r) for r in rows[:100]})
        )

    def _decoding(self, part: Piece, out: np.ndarray, chunks: ChunkMap, index: int) -> Callable[[], None]:
        box, filters, dtype = self._layout.box, self._layout.filters, self.dtype

        def job() -> None:
            stored = self._owner.read(int(chunks.offsets[index]), int(chunks.sizes[index]))
            mask, nbytes = int(chunks.masks[index]), dtype.itemsize * math.prod(box)
            place = out[part.target] if part.shape == box and isinstance(part.into_rows, slice) else None
            try:
                if (
                    place is not None
                    and isinstance(part.rows, range)
                    and place.flags.c_contiguous
                    and decode_into(stored, filters, mask, place)
                ):
                    return
                data = decode(stored, filters, mask, dtype.itemsize, nbytes)
            except BadChunk as error:
                raise Unreadable(f"{self.name}: chunk {part.box} is damaged: {error}") from error
            out[part.target] = np.ndarray(box, dtype, data)[part.source]

        return job

    def _require_whole(self, parts: list[Piece], at: list[int], chunks: ChunkMap) -> None:
        nbytes = self.dtype.itemsize * math.prod(self._layout.box)
        for wrong in np.flatnonzero(chunks.sizes[at] != nbytes)[:1]:
            raise Unreadable(
                f"{self.name}: chunk {parts[wrong].box} has {chunks.sizes[at[wrong]]} bytes; a chunk is {nbytes}"
            )

    def _merged(self, parts: list[Piece], at: list[int], chunks: ChunkMap) -> list[tuple[Piece, int]]:
        """Join pieces whose chunks lie one after the other in the file; thousands of small ones are common."""
        box = self._layout.box
        if box[1:] != self.shape[1:] or not all(isinstance(part.into_rows, slice) for part in parts):
            return list(zip(parts, at, strict=True))
        nbytes = self.dtype.itemsize * math.prod(box)
        most = max(1, _MERGED_BYTES // max(nbytes, 1))
        result: list[tuple[Piece, int]] = []
        first = 0
        for number, (part, index) in enumerate(zip(parts, at, strict=True)):
            if result and number - first < most:
                last, start = result[-1]
                follows = int(chunks.offsets[index]) == int(chunks.offsets[start]) + (number - first) * nbytes
                joined = _join(last, part, (number - first) * box[0]) if follows else None
                if joined is not None:
                    result[-1] = joined, start
                    continue
            first = number
            result.append((part, index))
        return result

    def _origin(self, part: Piece, index: int) -> tuple[int, tuple[int, ...]]:
        """Return where the box of a piece begins in the file, and the bytes from one index to the next."""
        layout = self._layout
        if layout.chunks is not None:
            return int(layout.chunks.offsets[index]), c_strides(layout.box, layout.dtype.itemsize)
        strides = c_strides(layout.shape, layout.dtype.itemsize)
        corner = sum(i * b * s for i, b, s in zip(part.box, layout.box, strides, strict=True))
        return (layout.offset or 0) + corner, strides

    def _copying(self, part: Piece, out: np.ndarray, chunks: ChunkMap, index: int) -> Callable[[], None]:
        offset, strides = int(chunks.offsets[index]), c_strides(self._layout.box, self.dtype.itemsize)
        return lambda: self._gather(offset, strides, part, out)

    def _cutting(self, part: Piece, out: np.ndarray) -> Callable[[], None]:
        offset, strides = self._origin(part, -1)
        return lambda: self._gather(offset, strides, part, out)

    def _gather(self, offset: int, strides: tuple[int, ...], part: Piece, out: np.ndarray) -> None:
        if isinstance(part.rows, range) and isinstance(part.into_rows, slice):
            gather(self._owner, offset, strides, (part.rows, *part.rest), out[part.target])
            return
        # Rows in no order, or repeated: each run of neighbours is read once and dealt out.
        wanted, dealt = np.unique(np.asarray(part.rows), return_inverse=True)
        even = as_range(wanted)
        if even is not None:  # backwards, most often
            between = np.empty((len(wanted), *part.shape[1:]), self.dtype)
            gather(self._owner, offset, strides, (even, *part.rest), between)
            out[part.target] = between[dealt]
            return
        between = np.empty((len(wanted), *part.shape[1:]), self.dtype)
        start = 0
        for run in _runs(wanted):
            gather(self._owner, offset, strides, (run, *part.rest), between[start : start + len(run)])
            start += len(run)
        out[part.target] = between[dealt]

    def _read_by_hdf5(self, parts: list[Piece], out: np.ndarray) -> None:
        """Read what has filters or types that only HDF5 undoes, box by box; nothing here opens a file."""
        layout = self._layout
        if not {f.number for f in layout.filters} <= BY_HDF5 | _UNDONE_BY_BOTH:
            raise Unsupported(f"{self.name}: this combination of filters and types cannot be read here")

        def read(dataset: h5py.Dataset, owner: OpenedFile) -> None:
            for part in parts:
                if layout.scalar:
                    out[part.target] = dataset[()]
                    continue
                starts = [i * b for i, b in zip(part.box, layout.box, strict=True)]
                region = tuple(
                    slice(s, min(s + b, n)) for s, b, n in zip(starts, layout.box, layout.shape, strict=True)
                )
                out[part.target] = dataset[region][part.source]

        with_dataset(self._roots, self._file, self._path, read)


def _runs(rows: np.ndarray) -> list[range]:
    """Return ascending rows as runs of neighbours."""
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return [range(int(rows[start]), int(rows[stop - 1]) + 1) for start, stop in itertools.pairwise(edges)]


def _runs_of_chunks(chunks: ChunkMap, rows: range, length: int, row_bytes: int) -> list[tuple[int, int]]:
    """Return where rows lie that are `length` a chunk; nothing if a chunk is missing or has another size."""
    first, last = rows.start // length, (rows.stop - 1) // length
    at = chunks.find(np.arange(first, last + 1))
    if (at < 0).any() or (chunks.sizes[at] != length * row_bytes).any():
        return []
    starts = chunks.offsets[at].astype(np.int64)
    ends = starts + length * row_bytes
    ends[-1] = starts[-1] + (rows.stop - last * length) * row_bytes
    starts[0] += (rows.start - first * length) * row_bytes
    return _stretches(starts, ends)


def _stretches(starts: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """Return where each stretch of pieces that follow each other begins, and its length."""
    apart = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    begins, stops = starts[np.r_[0, apart]], ends[np.r_[apart - 1, len(ends) - 1]]
    return [(int(begin), int(stop - begin)) for begin, stop in zip(begins, stops, strict=True)]


def _join(a: Piece, b: Piece, shift: int) -> Piece | None:
    """Return two pieces as one, `b`'s box beginning `shift` rows after `a`'s; None if rows are left between."""
    if not (isinstance(a.rows, range) and isinstance(b.rows, range)):
        return None
    if not (isinstance(a.into_rows, slice) and isinstance(b.into_rows, slice)):
        return None
    if a.rows.step != 1 or b.rows.step != 1 or a.rows.stop != b.rows.start + shift:
        return None
    rows = range(a.rows.start, b.rows.stop + shift)
    return Piece(a.box, rows, a.rest, slice(a.into_rows.start, b.into_rows.stop), a.into_rest)


_UNDONE_BY_BOTH = frozenset({1, 2, 3})  # deflate, shuffle, fletcher32: always compiled into HDF5


def open_hdf5(roots: Roots, file: OpenedFile, path: str, nested: int = 0) -> RowSource:
    """Return a dataset of an opened file as rows; the file is then the result's to close.

    Raises
    ------
    Unreadable, Truncated, NotReady, OutsideRoots, MissingAsset, Unsupported
        See `with_dataset` and `layout_of`. The file stays open.
    """
    name = f"{file.uri}, dataset {path!r}"
    settling = is_settling(file)
    key = (file.version, path)
    place = (file.place, path)
    layout, trace = _young.get(place, file) if settling else (_kept.get(key), None)
    owner = file
    if isinstance(file, NearFile) and (layout is None or layout.kind == "virtual"):
        raise WouldWait("its layout is not known")
    if layout is None:
        trace = Trace() if settling else None

        def describe(dataset: h5py.Dataset, found: OpenedFile) -> tuple[Layout, OpenedFile]:
            return layout_of(dataset, name), found

        found = file
        try:
            layout, found = with_dataset(roots, file, path, describe, trace)
        except NotReady:  # written to so often that it was not the same for as long as this takes
            layout, trace = _young.last(place, file), None
            if layout is None:
                raise
        if found is not file:
            owner = _again(roots, found, name)
        elif layout.kind != "virtual":
            if trace is not None:
                _young.put(place, layout, trace)
            elif not is_settling(file):
                _kept.put(key, layout)
    if layout.kind != "virtual":
        return Hdf5Rows(roots, file, owner, path, layout, trace)
    if nested >= _NESTED:
        if owner is not file:
            owner.close()
        raise Unreadable(f"{name}: virtual datasets are nested more than {_NESTED} deep")

    def source(mapping: Mapping) -> RowSource:
        if mapping.file == ".":
            linked = roots.open_path(owner.path, owner.uri)
        else:
            linked = open_linked(roots, owner, mapping.file)
        try:
            return open_hdf5(roots, linked, mapping.dataset, nested + 1)
        except BaseException:
            linked.close()
            raise

    return VirtualRows(name, file, owner, layout.shape, layout.dtype, layout.mappings, source)


def _again(roots: Roots, found: OpenedFile, name: str) -> OpenedFile:
    """Open the file in which a walk along links ended; it was closed with the walk, and is judged again."""
    owner = roots.open_path(found.path, found.uri)
    if owner.fingerprint != found.fingerprint:
        owner.close()
        raise NotReady(f"{name} lies in another file, which is changing; try again in a moment")
    return owner
