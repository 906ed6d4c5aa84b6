"""Internal arrays: arrays that clients send, kept as Zarr v3 in a directory or a bucket, readable without us.

One folder an array. Chunks are Blosc-compressed and carry a CRC-32C, so a flipped bit is an error and
never a value. Numbers, booleans and datetimes are stored as Zarr's own types. What Zarr v3 has no settled
type for (strings, bytes, structured and extended-precision values) is stored as ``uint8`` with one more
axis, the bytes of an item; `dtype` in the attributes says how to view it: ``z[...].view(dtype)[..., 0]``.
Items of no bytes (``U0``) have nothing to store.

A part that nobody wrote reads as zeros, so what was written has to be known: `.written` lists the chunks that were,
one a line, and one of them that is gone is an error, not zeros. ``zarr.json`` carries a CRC-32C of itself in its
attributes. Arrays of earlier versions have neither: they are *unverified* there.

Every chunk and every metadata file is written durably and whole. A write of several chunks that is cut
short leaves some of them new. Writes to one array are serialised, between processes as well.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flystore.disk import Trust
from flystore.disk.failpoints import reach
from flystore.model.errors import Conflict, Damaged, FlystoreError, InvalidRequest, OutOfBounds
from flystore.model.late import late
from flystore.model.slices import Item, normalise, result_shape, selected
from flystore.model.structures import ArrayStructure

from ._keep import Folder, Keep, keep_of
from ._limits import require_below
from ._passing import StoredArray, stored_array, stored_chunk
from ._sums import ArrayCheck, check_array

_T = TypeVar("_T")

MAX_CHUNK_BYTES = 2**30
"""Most bytes of one stored chunk, decoded; Blosc itself ends at 2 GiB."""

_GROWING_CHUNK_BYTES = 2**20
"""Chunk size aimed at along an axis that begins empty, whose chunk length nobody could choose."""

_durable = late("flystore.storage._durable")
"""Loaded, and Zarr with it, when the first array is made or opened."""

_NATIVE = frozenset("?bhilqBHILQefdFDmM")


class ArrayStore:
    """Arrays in a directory or another place, each under a key of the caller's choice.

    The caller keeps the structure; what is stored may already be longer than it says, when a write that
    extended the array was cut short.

    Parameters
    ----------
    keep : Keep or Path
        Of a path, the directory; made if it does not exist.
    trust : Trust, optional
        Shared with others who write to the same store; None is the arrays' own. All that writes may raise
        `DiskFull`, and `SyncFailed` once a sync has failed.
    """

    def __init__(self, keep: Keep | Path, trust: Trust | None = None) -> None:
        self.keep = keep_of(keep)
        self._trust = trust or Trust()
        self._locks = self.keep.locks("array")

    @property
    def directory(self) -> Path:
        """Of this machine; see `Keep`."""
        return self.keep.directory

    def create(self, key: str, structure: ArrayStructure) -> None:
        """Make an array; unwritten parts read as zeros (False, empty text, 1970 for datetimes).

        Raises
        ------
        Conflict
            If there is one under this key.
        InvalidRequest
            If the dtype holds Python objects, or a chunk is larger than `MAX_CHUNK_BYTES`.
        """
        dtype = structure.numpy_dtype
        if dtype.hasobject:
            raise InvalidRequest(f"arrays of {dtype} hold Python objects, which are not stored")
        folder = self.keep.folder(key)
        with self._lock(key), self._writing(key):
            if folder.is_there():
                raise Conflict(f"there is an array under {key!r} already")
            extra = () if _is_native(dtype) else (dtype.itemsize,)
            chunks = _storage_chunks(structure) if 0 not in extra else ()
            folder.make()
            if 0 in extra:
                return
            stored = _stored_dtype(dtype)
            reach("storage.before_create")
            _durable.create(
                folder,
                shape=structure.shape + extra,
                chunks=chunks + extra,
                dtype=stored,
                fill_value=np.zeros((), stored)[()],
                dimension_names=None if extra else structure.dims,
                attributes={"dtype": structure.dtype},
            )
            folder.begin_list()
            reach("storage.after_create")

    def read(
        self,
        key: str,
        structure: ArrayStructure,
        selection: Sequence[Item] = (),
        limit_bytes: int | None = None,
    ) -> np.ndarray:
        """Return part of an array, C-ordered, in the structure's dtype.

        Raises
        ------
        TooLarge
            If the result takes more than `limit_bytes`; before anything is read.
        OutOfBounds, InvalidRequest
            If the selection does not fit the structure.
        Damaged
            If a stored chunk fails its checksum, or the array is not there.
        """
        dtype = structure.numpy_dtype
        normal = normalise(selection, structure.shape)
        shape = result_shape(normal, structure.shape)
        require_below(math.prod(shape) * dtype.itemsize, limit_bytes, "this slice")
        if dtype.itemsize == 0 or 0 in shape:
            return np.zeros(shape, dtype) if dtype.itemsize else np.ndarray(shape, dtype)
        forward, flips = _forward(normal, structure.shape)
        stored = self._guarded(key, lambda: np.asarray(self._open(key)[forward]))
        return np.ascontiguousarray(_from_stored(stored, dtype)[flips]).reshape(shape)

    def write_full(self, key: str, structure: ArrayStructure, data: "bytes | np.ndarray") -> None:
        """Replace the whole array.

        Raises
        ------
        InvalidRequest
            If `data` is not the array's size in bytes.
        """
        values = _values(data, structure.shape, structure.numpy_dtype)
        self._write(key, structure, tuple(slice(0, n) for n in structure.shape), values)

    def write_block(
        self,
        key: str,
        structure: ArrayStructure,
        block: Sequence[int],
        data: "bytes | np.ndarray",
        within: Sequence[Item] = (),
    ) -> None:
        """Replace one block, or a part of it; `block` counts the structure's chunks along each axis.

        Parameters
        ----------
        within : sequence of slice or int
            Relative to the block; empty: all of it.

        Raises
        ------
        OutOfBounds
            If there is no such block, or `within` does not fit it.
        InvalidRequest
            If `data` is not that size in bytes.
        """
        corner = block_region(structure, block)
        inside = tuple(part.stop - part.start for part in corner)
        normal = normalise(within, inside)
        values = _values(data, result_shape(normal, inside), structure.numpy_dtype)
        if values.size == 0:
            return
        forward, flips = _forward(normal, inside)
        region = tuple(
            slice(part.start + begin.start, begin.start + part.stop, part.step)
            for begin, part in zip(corner, forward, strict=True)
        )
        lengths = tuple(len(range(part.start, part.stop, part.step or 1)) for part in region)
        turned = np.ascontiguousarray(values.reshape(lengths)[flips])
        self._write(key, structure, region, turned.reshape(lengths))  # what had no axes has one now

    def patch(
        self,
        key: str,
        structure: ArrayStructure,
        offset: Sequence[int],
        shape: Sequence[int],
        data: "bytes | np.ndarray",
        extend: bool = False,
    ) -> ArrayStructure:
        """Write a rectangle, growing the array where asked, and return the structure it now has.

        Parameters
        ----------
        offset : sequence of int
            Where the rectangle begins; fewer entries than axes mean the leading ones, the rest is 0.
        shape : sequence of int
            Of the rectangle, one entry an axis.
        extend : bool
            Let the array grow. Chunks are then those it is stored in.

        Raises
        ------
        Conflict
            If the rectangle does not fit and `extend` is false.
        InvalidRequest
            If offset, shape and data do not belong together.
        """
        starts = _checked_offset(offset, shape, structure)
        region = tuple(slice(start, start + n) for start, n in zip(starts, shape, strict=True))
        values = _values(data, tuple(shape), structure.numpy_dtype)
        needed = tuple(max(part.stop, n) for part, n in zip(region, structure.shape, strict=True))
        if needed == structure.shape:
            self._write(key, structure, region, values)
            return structure
        if not extend:
            raise Conflict(
                f"a patch of shape {tuple(shape)} at {starts} does not fit an array of shape "
                f"{structure.shape}. Use ?extend=true to let the array grow.",
                shape=list(structure.shape),
            )
        return self._extend(key, structure, needed, region, values)

    def verify(self, key: str) -> ArrayCheck:
        """Check every stored byte of an array against its checksum, and that no chunk is gone.

        Nothing is decompressed. A write that goes on at the same time is no damage.
        """
        folder = self.keep.folder(key)
        found = check_array(folder)
        if not found.damaged:
            return found
        with self._locks.keeping_writers_out(key):
            return check_array(folder)

    def stored(self, key: str, structure: ArrayStructure) -> StoredArray | None:
        """Return how the chunks of an array are stored; None where nothing is stored, or in an unknown way.

        Raises
        ------
        Damaged
            If the array is not there, or its metadata fail their checksum.
        """
        if structure.numpy_dtype.itemsize == 0:
            return None
        return self._guarded(key, lambda: stored_array(self._folder(key), structure))

    def stored_chunk(self, key: str, stored: StoredArray, index: Sequence[int]) -> bytes | None:
        """Return a chunk as it is stored, after a look at its checksum; None if nobody wrote it.

        Raises
        ------
        Damaged
            If it was written and is gone, or fails its checksum.
        """
        return self._guarded(key, lambda: stored_chunk(self._folder(key), stored, index))

    def delete(self, key: str) -> None:
        """Remove an array; one that is not there is removed already."""
        folder = self.keep.folder(key)
        with self._lock(key), self._writing(key):
            folder.remove()

    def _extend(
        self,
        key: str,
        structure: ArrayStructure,
        shape: tuple[int, ...],
        region: tuple[slice, ...],
        values: np.ndarray,
    ) -> ArrayStructure:
        dtype = structure.numpy_dtype
        if dtype.itemsize == 0:
            return ArrayStructure.of(dtype, shape, None, structure.dims)

        def grow(array: Any) -> tuple[int, ...]:
            extra = array.shape[len(shape) :]
            # Never shrink: a write that was cut short may have left the stored array longer.
            grown = tuple(max(a, b) for a, b in zip(shape, array.shape, strict=False)) + extra
            if grown != array.shape:
                array.resize(grown)
            array[region] = _to_stored(values)
            return tuple(array.chunks[: len(shape)])

        sizes = self._change(key, grow)
        return ArrayStructure.of(dtype, shape, _regular(shape, sizes), structure.dims)

    def _write(self, key: str, structure: ArrayStructure, region: tuple[slice, ...], values: np.ndarray) -> None:
        if values.nbytes == 0:
            return
        self._change(key, lambda array: array.__setitem__(region, _to_stored(values)))

    def _change(self, key: str, change: Callable[[Any], _T]) -> _T:
        folder = self.keep.folder(key)

        def once() -> _T:
            with _durable.changing(folder) as array:
                return change(array)

        with self._lock(key), self._writing(key):
            return self._guarded(key, lambda: folder.again_if_overtaken(once))

    def _open(self, key: str) -> Any:
        return _durable.opened(self._folder(key))

    def _writing(self, key: str) -> AbstractContextManager[None]:
        return self._trust.writing(f"the array {key!r}")

    def _guarded(self, key: str, use: Callable[[], _T]) -> _T:
        """Turn what Zarr says about bad bytes into `Damaged`; OSError (disk full) goes through."""
        try:
            return use()
        except FlystoreError:
            raise
        except (ValueError, KeyError, RuntimeError, TypeError, FileNotFoundError) as error:
            raise Damaged(f"the stored array {key!r} cannot be read or written: {error}") from error

    def _folder(self, key: str) -> Folder:
        return self.keep.folder(key)

    def _lock(self, key: str) -> AbstractContextManager[None]:
        return self._locks.holding(key)


def block_region(structure: ArrayStructure, block: Sequence[int]) -> tuple[slice, ...]:
    """Return the part of an array that a block of its structure covers.

    Raises
    ------
    OutOfBounds
        If there is no such block, or not one index an axis.
    """
    if len(block) != len(structure.shape):
        raise OutOfBounds(f"block {tuple(block)} does not have one index for each of the array's axes")
    region = []
    for axis, (i, lengths) in enumerate(zip(block, structure.chunks, strict=True)):
        if not 0 <= i < len(lengths):
            raise OutOfBounds(f"block index {i} is outside axis {axis}, which has {len(lengths)} blocks")
        start = sum(lengths[:i])
        region.append(slice(start, start + lengths[i]))
    return tuple(region)


def _is_native(dtype: np.dtype) -> bool:
    return dtype.char in _NATIVE


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    return dtype if _is_native(dtype) else np.dtype("u1")


def _to_stored(values: np.ndarray) -> np.ndarray:
    if _is_native(values.dtype):
        return values
    contiguous = np.ascontiguousarray(values)
    return np.frombuffer(contiguous.tobytes(), "u1").reshape(*values.shape, values.dtype.itemsize)


def _from_stored(stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if _is_native(dtype):
        return stored.astype(dtype, copy=False)
    return np.ndarray(stored.shape[:-1], dtype, np.ascontiguousarray(stored))


def _storage_chunks(structure: ArrayStructure) -> tuple[int, ...]:
    itemsize = max(structure.numpy_dtype.itemsize, 1)
    sizes = [max(lengths, default=0) for lengths in structure.chunks]
    nbytes = itemsize * math.prod(n for n in sizes if n)
    if nbytes > MAX_CHUNK_BYTES:
        raise InvalidRequest(
            f"a chunk of {nbytes} bytes is larger than the limit of {MAX_CHUNK_BYTES}; choose smaller chunks"
        )
    if 0 in sizes:
        empty = sizes.index(0)
        sizes[empty] = max(1, _GROWING_CHUNK_BYTES // nbytes)
    return tuple(max(n, 1) for n in sizes)


def _regular(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        (size,) * (n // size) + ((n % size,) if n % size or not n else ()) for n, size in zip(shape, sizes, strict=True)
    )


def _values(data: "bytes | np.ndarray", shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if isinstance(data, np.ndarray):
        if data.shape != shape:
            raise InvalidRequest(f"the data has shape {data.shape}, not {shape}")
        return data.astype(dtype, copy=False)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidRequest(
            f"the body has {len(data)} bytes; {dtype} of shape {shape} needs {expected}",
            announced=expected,
            found=len(data),
        )
    # Not zeros: of text without letters, numpy would make text of one.
    return np.ndarray(shape, dtype, data if expected else None)


def _checked_offset(offset: Sequence[int], shape: Sequence[int], structure: ArrayStructure) -> tuple[int, ...]:
    ndim = len(structure.shape)
    if len(shape) != ndim or len(offset) > ndim or any(n < 0 for n in (*offset, *shape)):
        raise InvalidRequest(
            f"a patch of shape {tuple(shape)} at offset {tuple(offset)} does not belong to an array of {ndim} axes"
        )
    return (*offset, *(0,) * (ndim - len(offset)))


def _forward(selection: Sequence[Item], shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
    """Return the selection with positive steps and kept axes, and what turns its result around."""
    forward, flips = [], []
    for item, n in zip(selection, shape, strict=True):
        if not isinstance(item, slice):
            forward.append(slice(item, item + 1))
            flips.append(slice(None))
            continue
        indices = selected(item, n)
        flip = indices.step < 0
        ordered = indices[::-1] if flip else indices
        forward.append(slice(ordered[0], ordered[-1] + 1, ordered.step))
        flips.append(slice(None, None, -1) if flip else slice(None))
    # With the ellipsis also what has no axes stays an array: a scalar would be of this machine's byte order.
    return tuple(forward), (*flips, ...)
