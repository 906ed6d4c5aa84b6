"""Chunks that lie in Zarr's own terms already, and go to its readers as they are.

Of an array that this service keeps, and of HDF5 datasets whose filters have a name in Zarr. The grid is that of the
catalogue in any case, so that it stays the same whatever is found in the files: chunks that lie otherwise are encoded.
"""

import math
from collections.abc import Sequence

import numpy as np

from flystore.model.errors import FlystoreError, Unsupported
from flystore.model.structures import SEGMENT_ARRAY_MIMETYPE, ZARR_MIMETYPE, ArrayStructure, DataSource
from flystore.projection import ExternalArray
from flystore.readers import Chunked, open_reader, open_registered
from flystore.storage import ArrayStore, Roots, StoredArray, reserve, without_sum

from .arrays import Arrays
from .changed import WatchedRoots
from .entries import Entry
from .files import event_files
from .observed import as_found
from .zarr_format import V2, V3, Form, grid_of, is_possible, shown_dtype

_DEFLATE, _SHUFFLE, _FLETCHER32, _BLOSC, _ZSTD = 1, 2, 3, 32001, 32015
_BLOSC_NAMES = {0: "blosclz", 1: "lz4", 2: "lz4hc", 4: "zlib", 5: "zstd"}
_ORDERS = (
    (_SHUFFLE, _DEFLATE, _FLETCHER32),
    (_SHUFFLE, _DEFLATE),
    (_SHUFFLE, _FLETCHER32),
    (_DEFLATE, _FLETCHER32),
    (_SHUFFLE, _ZSTD),
    (_ZSTD, _FLETCHER32),
    (_DEFLATE,),
    (_FLETCHER32,),
    (_BLOSC,),
    (_ZSTD,),
    (),
)
"""Pipelines that are passed on: those of devices, in the order in which HDF5 has them.

A document that was made while the file could not be opened says Blosc. A reader that still has it fails on a chunk that
is stored otherwise, and never takes it for values.
"""


class StoredForms:
    """In which form the chunks of an array are shown, and those that are stored in it."""

    def __init__(self, arrays: Arrays, store: ArrayStore, roots: Roots) -> None:
        self._arrays = arrays
        self._store = store
        self._roots = roots

    def form(self, entry: Entry, source: DataSource | None, structure: ArrayStructure, version: int) -> Form:
        """Return how an array is shown; a file that cannot be opened now makes no difference to the grid.

        Raises
        ------
        Unsupported
            If Zarr has no data type for it.
        Damaged
            If it is kept here, and is not what was stored.
        """
        dtype = shown_dtype(structure.numpy_dtype, version)
        if source is not None and source.mimetype == ZARR_MIMETYPE:
            return self._kept_form(entry, structure, version)
        plain = Form.plain(_grid(entry, source, structure), dtype)
        if not _is_in_files(entry, source) or dtype.fields is not None:
            return plain
        try:
            found = self._chunked(entry, source, structure)
        except FlystoreError:  # reading says why
            return plain
        return _form_of(found, plain, version) or plain

    def chunk(
        self,
        entry: Entry,
        source: DataSource | None,
        structure: ArrayStructure,
        form: Form,
        index: Sequence[int],
        region: Sequence[slice],
        version: int,
    ) -> bytes | None:
        """Return a chunk that is stored just as `form` says; None if it is to be encoded.

        Raises
        ------
        Damaged
            If it is kept here and fails its checksum.
        Changed, Unreadable, MissingAsset, OutsideRoots
            If its file cannot be read, or is not the one that was observed.
        """
        if source is not None and source.mimetype == ZARR_MIMETYPE:
            return self._kept_chunk(entry, structure, form, index, version)
        whole = all(part.stop - part.start == n for part, n in zip(region, form.chunks, strict=True))
        if not whole or not _is_in_files(entry, source):
            return None
        reserve(math.prod(form.chunks) * form.numpy_dtype.itemsize, f"a chunk of /{'/'.join(entry.path)}")
        if entry.node is not None and entry.node.external is not None:
            return self._external_chunk(entry, form, index, region[0], version)
        assert source is not None
        return self._registered_chunk(entry, source, form, index, region[0], version)

    # --- arrays that this service keeps ---

    def _kept_form(self, entry: Entry, structure: ArrayStructure, version: int) -> Form:
        dtype = shown_dtype(structure.numpy_dtype, version)
        stored = self._stored(entry, structure)
        if stored is None:
            return Form.plain(_grid(entry, None, structure), dtype)
        form = _kept_as(stored, version)
        return form if is_possible(form, version) else Form.plain(stored.chunks, dtype)

    def _kept_chunk(
        self, entry: Entry, structure: ArrayStructure, form: Form, index: Sequence[int], version: int
    ) -> bytes | None:
        assert entry.node is not None
        stored = self._stored(entry, structure)
        if stored is None or _kept_as(stored, version) != form:
            return None
        reserve(2 * math.prod(form.chunks) * form.numpy_dtype.itemsize, f"a chunk of /{'/'.join(entry.path)}")
        chunk = self._store.stored_chunk(str(entry.node.id), stored, index)
        return without_sum(chunk) if chunk is not None and stored.summed and version == V2 else chunk

    def _stored(self, entry: Entry, structure: ArrayStructure) -> StoredArray | None:
        assert entry.node is not None
        return self._store.stored(str(entry.node.id), structure)

    # --- arrays in files of others ---

    def _chunked(self, entry: Entry, source: DataSource | None, structure: ArrayStructure) -> Chunked | None:
        watched = WatchedRoots(self._roots)
        if entry.node is not None and entry.node.external is not None:
            external = ExternalArray.from_bytes(entry.node.external)
            with open_reader(event_files(external), watched) as reader:
                return reader.stored(0, *_rows_of(external))
        assert source is not None
        assert entry.node is not None
        with open_registered(source, ArrayStructure.from_wire(entry.node.structure), watched) as registered:
            return registered.stored()

    def _external_chunk(
        self, entry: Entry, form: Form, index: Sequence[int], rows: slice, version: int
    ) -> bytes | None:
        assert entry.node is not None
        assert entry.node.external is not None
        external = as_found(ExternalArray.from_bytes(entry.node.external), entry.observation)
        factor, row_shape = _rows_of(external)
        events = np.arange(rows.start // factor, -(-rows.stop // factor), dtype=np.int64)
        resources, file_rows = external.locate(events)
        number = int(resources[0])
        if (resources != number).any() or (np.diff(file_rows) != 1).any():
            return None
        self._arrays.require_unchanged(entry, {number: None})
        watched = WatchedRoots(self._roots)
        with open_reader(event_files(external), watched) as reader:
            found = reader.stored(number, factor, row_shape)
            if found is None or _form_of(found, form, version) != form:
                return None
            box = found.box(int(file_rows[0]) * factor + rows.start % factor, index)
            chunk = None if box is None else reader.stored_chunk(number, box)
            if chunk is not None:
                self._arrays.require_unchanged(entry, {number: reader.fingerprint(number)}, watched)
        return chunk

    def _registered_chunk(
        self, entry: Entry, source: DataSource, form: Form, index: Sequence[int], rows: slice, version: int
    ) -> bytes | None:
        assert entry.node is not None
        self._arrays.require_unchanged(entry, {0: None})
        watched = WatchedRoots(self._roots)
        with open_registered(source, ArrayStructure.from_wire(entry.node.structure), watched) as reader:
            found = reader.stored()
            if found is None or _form_of(found, form, version) != form:
                return None
            box = found.box(rows.start, index)
            chunk = None if box is None else reader.stored_chunk(box)
            if chunk is not None:
                self._arrays.require_unchanged(entry, {0: reader.fingerprint()}, watched)
        return chunk


def _is_in_files(entry: Entry, source: DataSource | None) -> bool:
    if entry.column is not None or entry.node is None:
        return False
    return entry.node.external is not None or (source is not None and source.mimetype != SEGMENT_ARRAY_MIMETYPE)


def _rows_of(external: ExternalArray) -> tuple[int, tuple[int, ...]]:
    """Return how many rows of the array an event is, and the shape of one."""
    if external.join == "concat" and external.item_shape:
        return external.item_shape[0], external.item_shape[1:]
    return 1, external.item_shape


def _grid(entry: Entry, source: DataSource | None, structure: ArrayStructure) -> tuple[int, ...]:
    dtype, shape = structure.numpy_dtype, structure.shape
    longest = tuple(max(lengths, default=0) for lengths in structure.chunks)
    if entry.column is None and entry.node is not None and entry.node.external is not None:
        external = ExternalArray.from_bytes(entry.node.external)
        told = external.chunk_shape
        if external.join == "stack" and len(told) == len(external.item_shape) and external.item_shape[:1] == (1,):
            told = (told[0], 1, *told[1:])  # devices tell the chunks of the dataset, which has no axis for one frame
        return grid_of(shape, (*told, *shape[len(told) :]), dtype, growing=not told)
    is_kept = entry.column is not None or source is None or source.mimetype == SEGMENT_ARRAY_MIMETYPE
    growing = is_kept or (bool(shape) and len(structure.chunks[0]) == 1)
    return grid_of(shape, longest, dtype, growing=growing)


def _kept_as(stored: StoredArray, version: int) -> Form:
    sums = ({"id": "crc32c"},) if stored.summed and version == V3 else ()
    return Form(stored.chunks, stored.dtype, (stored.blosc, *sums))


def _form_of(found: Chunked | None, shown: Form, version: int) -> Form | None:
    """Return the form in which a dataset is stored; None if its grid is another or Zarr has no words for it."""
    if found is None or found.chunks != shown.chunks:
        return None
    numbers = tuple(number for number, _ in found.form.filters)
    if numbers not in _ORDERS:
        return None
    try:
        codecs = tuple(_codec(number, values, found.form.dtype) for number, values in found.form.filters)
        form = Form(shown.chunks, ArrayStructure.of(shown_dtype(found.form.dtype, version), ()).dtype, codecs)
    except Unsupported:
        return None
    return form if is_possible(form, version) else None


def _codec(number: int, values: Sequence[int], dtype: np.dtype) -> dict[str, object]:
    match number:
        case 1:
            return {"id": "zlib", "level": values[0] if values else 6}
        case 2:
            return {"id": "shuffle", "elementsize": values[0] if values else dtype.itemsize}
        case 3:
            return {"id": "fletcher32"}
        case 32015:
            return {"id": "zstd", "level": values[0] if values else 3}
    code, shuffle = (values[6] if len(values) > 6 else 0), (values[5] if len(values) > 5 else 1)
    if code not in _BLOSC_NAMES or shuffle not in (0, 1, 2):
        raise Unsupported("Zarr has no name for this compression")
    return {
        "id": "blosc",
        "cname": _BLOSC_NAMES[code],
        "clevel": min(values[4], 9) if len(values) > 4 else 5,
        "shuffle": shuffle,
        "blocksize": 0,
        "typesize": dtype.itemsize,
    }
