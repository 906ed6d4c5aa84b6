"""Reading arrays: whatever a node's data lies in, the same slices give the same values."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from flystore.catalog import Catalog
from flystore.model.errors import (
    Damaged,
    NotFound,
    NotReady,
    TooLarge,
    Unsupported,
)
from flystore.model.structures import (
    SEGMENT_ARRAY_MIMETYPE,
    ZARR_MIMETYPE,
    ArrayStructure,
    DataSource,
    Family,
)
from flystore.projection import ExternalArray, RunState, array_of_column, stream_rows
from flystore.storage import ArrayStore, FileRuns, NearNames, Roots, released, reserve

from .array_files import Known, ReadPart, announced, announced_files, registered
from .browse import Browse, require_family
from .changed import Fingerprint, WatchedRoots
from .chunks import reserve_chunks
from .columns import column_to_numpy, read_table, series_of_table, stands_alone, stored_pieces
from .entries import Entry
from .export import ArraySource
from .limits import Limits
from .observed import present_map
from .parts import PIECE_BYTES, Index, Part, as_bytes, planned_part, rows_of
from .probing import Prober

SENT_BYTES = 4 << 20
"""What is read at a time of an array that is sent as bytes: one piece is read while the last one is on its way."""

_FROM_FILES_BYTES = 32 << 20
"""Of a file, sent as they lie there, before it is held against what it was."""

_FIRST_BYTES = 1 << 20
"""Read before the head is sent, of what was looked at before: the client waits for it."""

_SENT_AT_ONCE = 3
"""Pieces of one answer in memory: one on its way, one waiting, one being read."""


BLOSC_FRAMES = "blosc2"
"""Coding, as HTTP names it, of a body that is Blosc frames one after the other; frames of Blosc 1 are frames of 2."""


class ArrayBody(NamedTuple):
    """Part of an array as bytes, C-ordered, in its declared dtype.

    Attributes
    ----------
    nbytes : int
        Of all pieces together.
    pieces : iterator of memoryview or FileRuns
        Read as they are taken. Files are open until it ends or is closed. Only who asks for them is given `FileRuns`.
    coding : str or None
        `BLOSC_FRAMES` if what is sent are frames that decode to the bytes; only for who asks for it.
    """

    nbytes: int
    pieces: Iterator[memoryview | FileRuns]
    coding: str | None = None


class Arrays:
    """Slices of arrays: external files, arrays kept as Zarr, columns of slow data."""

    def __init__(
        self,
        catalog: Catalog,
        browse: Browse,
        store: ArrayStore,
        roots: Roots,
        prober: Prober,
        limits: Limits,
        near: NearNames | None = None,
    ) -> None:
        self._near = near or NearNames()
        self._catalog = catalog
        self._browse = browse
        self._store = store
        self._roots = roots
        self._prober = prober
        self._limits = limits

    def read(
        self,
        path: tuple[str, ...],
        wanted: tuple[Index, ...] = (),
        *,
        expected_shape: tuple[int, ...] | None = None,
    ) -> memoryview:
        """Return a rectangular part of an array as C-ordered bytes in its declared dtype.

        Parameters
        ----------
        wanted : tuple of slice or int
            Fewer than axes means the rest whole; an int drops its axis.
        expected_shape : tuple of int, optional
            Shape of the result as the caller worked it out. An array may have grown since: then a
            whole read gives the rows that the caller knows of.

        Raises
        ------
        NotFound
            If there is no array at `path`.
        OutOfBounds, InvalidRequest, TooLarge
            If the slice does not fit, or the result exceeds the limit; before anything is read.
        Unreadable, MissingAsset, OutsideRoots
            If the files cannot be read as announced; says which and why.
        """
        planned = self._planned(path, wanted, None, expected_shape)
        self._require_small(path, planned.structure, planned.shape)
        return as_bytes(self._part(*planned))

    def read_block(
        self,
        path: tuple[str, ...],
        block: tuple[int, ...],
        wanted: tuple[Index, ...] = (),
        *,
        expected_shape: tuple[int, ...] | None = None,
    ) -> memoryview:
        """Return one block, as the structure's chunks bound it; `wanted` is relative to the block.

        Raises
        ------
        OutOfBounds
            If there is no such block.
        """
        planned = self._planned(path, wanted, block, expected_shape)
        self._require_small(path, planned.structure, planned.shape)
        return as_bytes(self._part(*planned))

    def body(
        self,
        path: tuple[str, ...],
        wanted: tuple[Index, ...] = (),
        *,
        block: tuple[int, ...] | None = None,
        expected_shape: tuple[int, ...] | None = None,
        read_last: int | None = None,
        encoded: bool = False,
    ) -> ArrayBody:
        """Return the same bytes as `read`, or `read_block`, in pieces that are read as they are taken.

        Whatever the size, a few pieces of about `SENT_BYTES` are in memory, or of one entry of the first axis if that
        is larger. All are read from files in the state in which they are when the first is.

        Parameters
        ----------
        read_last : int, optional
            Bytes. What lies in a file as it is sent may be given as `FileRuns`, but for a first piece and at least so
            many bytes at the end. These are told to be sent when the next piece is taken, and held against the file
            then and with each piece that is read after them. Without it, all is read.
        encoded : bool
            Give a long body as the Blosc frames that the chunks in the file are, where they are all of it.

        Raises
        ------
        As `read` and `read_block`; what is wrong with the files, also when pieces are taken.
        """
        planned = self._planned(path, wanted, block, expected_shape)
        size = self._require_below(path, planned.structure, planned.shape)
        if not planned.structure.numpy_dtype.itemsize:
            self._part(*planned)
            return ArrayBody(0, iter(()))  # text without letters: values, and no bytes
        largest = next(planned.pieces(SENT_BYTES)).nbytes
        # Twice if there is but one: what is read, and what is put in order of it.
        at_once = 2 if largest == size else 2 + _SENT_AT_ONCE
        reserve(at_once * largest, f"this part of /{'/'.join(path)}")
        node = planned.entry.node
        of_documents = planned.entry.file is None and node is not None and node.external is not None
        of_files = of_documents and planned.entry.column is None
        if encoded and of_files and largest < size:
            body = self._encoded(planned, read_last)
            if body is not None:
                return body
        if read_last is not None and of_files:
            parts = list(planned.pieces(SENT_BYTES))
            last = _first_of_last(parts, read_last)
            if last > 1:
                return ArrayBody(size, self._sent_from_files(planned, parts, last))
        return ArrayBody(size, self._sent(planned))

    def _sent_from_files(self, planned: Part, parts: list[Part], last: int) -> Iterator[memoryview | FileRuns]:
        """Yield a first piece, what lies between it and the one numbered `last` as it is in the file, and the rest."""
        limit = self._limits.response_bytes
        with announced_files(planned.entry, planned.structure, self._roots, limit, self._near) as (read, runs_of):
            yield _read_bytes(read, parts[0])
            runs = runs_of(_joined(parts[1:last]))
            if runs is not None:
                for at in range(0, runs.nbytes, _FROM_FILES_BYTES):
                    yield runs.part(at, at + _FROM_FILES_BYTES)
                    runs.require_unchanged()
            for part in parts[1 if runs is None else last :]:
                found = _read_bytes(read, part)
                if runs is not None:
                    runs.require_unchanged()
                yield found

    def _encoded(self, planned: Part, read_last: int | None) -> ArrayBody | None:
        """Return a body of chunks as they are stored; None if that cannot be."""
        limit = self._limits.response_bytes
        with ExitStack() as files:
            opened = announced_files(planned.entry, planned.structure, self._roots, limit, self._near)
            _, runs_of = files.enter_context(opened)
            runs = runs_of(planned.picked, encoded=True)
            if runs is None:
                return None
            return ArrayBody(runs.nbytes, _sent_encoded(runs, read_last, files.pop_all()), BLOSC_FRAMES)

    def _sent(self, planned: Part) -> Iterator[memoryview]:
        for found in self._read_in_pieces(planned, SENT_BYTES):
            yield as_bytes(found)

    def source(
        self,
        path: tuple[str, ...],
        wanted: tuple[Index, ...] = (),
        *,
        block: tuple[int, ...] | None = None,
        expected_shape: tuple[int, ...] | None = None,
        limited: bool = True,
    ) -> ArraySource:
        """Return a part of an array, or of one block, to be read piece by piece.

        Parameters
        ----------
        limited : bool
            Refuse what is larger than one answer may be; not for what goes to a file.

        Raises
        ------
        As `read` and `read_block`; what is wrong with the files, when the pieces are read.
        """
        planned = self._planned(path, wanted, block, expected_shape)
        if limited:
            self._require_below(path, planned.structure, planned.shape)
        structure, entry = planned.structure, planned.entry
        names = structure.axis_names or tuple(f"{path[-1]}_dim{axis}" for axis in range(len(structure.shape)))
        kept = zip(names, planned.picked, strict=True)
        return ArraySource(
            name="/" + "/".join(path),
            dtype=structure.numpy_dtype,
            shape=planned.shape,
            read=lambda: self._pieces(planned),
            metadata=entry.metadata,
            dims=tuple(name for name, item in kept if isinstance(item, slice)),
            specs=tuple(spec.name for spec in entry.specs),
        )

    def _pieces(self, planned: Part) -> Iterator[np.ndarray]:
        return self._read_in_pieces(planned, PIECE_BYTES)

    def _read_in_pieces(self, planned: Part, most: int) -> Iterator[np.ndarray]:
        with self._opened(planned) as read:
            for piece in planned.pieces(most):
                with released():
                    found = read(piece)
                if not found.size:
                    found = np.zeros(piece.shape, piece.structure.numpy_dtype)
                yield found.reshape(piece.shape)

    @contextmanager
    def _opened(self, planned: Part) -> Iterator[Callable[[Part], np.ndarray]]:
        """Give what reads pieces of a planned part; files of others are opened once for all of them."""
        entry, source = planned.entry, planned.source
        if planned.nbytes == 0 or entry.file is not None or entry.node is None or entry.column is not None:
            yield lambda piece: self._part(*piece)
        elif entry.node.external is not None:
            with self._announced(entry, planned.structure) as read:
                yield lambda piece: read(piece.picked)
        elif source is not None and source.mimetype not in (SEGMENT_ARRAY_MIMETYPE, ZARR_MIMETYPE):
            with registered(entry, source, self._roots, self._limits.response_bytes) as read:
                yield lambda piece: read(piece.picked)
        else:
            yield lambda piece: self._part(*piece)

    def _planned(
        self,
        path: tuple[str, ...],
        wanted: tuple[Index, ...],
        block: tuple[int, ...] | None,
        expected_shape: tuple[int, ...] | None,
    ) -> Part:
        entry, source = self._array(path)
        structure = ArrayStructure.from_wire(entry.structure)
        return planned_part(entry, structure, wanted, block, expected_shape, source)

    def frame_table(self, path: tuple[str, ...]) -> dict[str, Any]:
        """Return which event and which frame each row of an external array is: the frame map's wire form.

        ``stream`` has the rows of the array's stream beside it, as runs of (seq_num, take, count).

        Raises
        ------
        NotFound
            If the array is not external, or nobody announced its frames (stock writers send a row count).
        """
        self._array(path)  # files that should be are looked at, which no transaction waits for
        with self._catalog.read() as snapshot:
            entry = require_family(self._browse.entry(path, snapshot), Family.ARRAY)
            node = entry.node
            if node is None or node.external is None:
                raise NotFound(f"/{'/'.join(path)} has no frame map", path=list(path))
            run = snapshot.run(node.run_uid or "")
        external = ExternalArray.from_bytes(node.external)
        assert run is not None
        state = RunState.from_bytes(run.state)
        stream = next(stream for stream in state.streams.values() if stream.segment == node.path[1])
        return {**present_map(external, entry.observation).to_wire(), "stream": stream_rows(stream, state.resources)}

    def _array(self, path: tuple[str, ...]) -> tuple[Entry, DataSource | None]:
        """Return an array and where its data lies, which columns do not say; files that should be are looked at."""
        entry, source, stale = self._found(path)
        if stale:
            assert entry.node is not None
            self._prober.look(entry.node)
            entry, source, _ = self._found(path)
        return entry, source

    def _found(self, path: tuple[str, ...]) -> tuple[Entry, DataSource | None, bool]:
        """Return an array, where its data lies, and whether its files should be looked at before they are read."""
        with self._browse.moment() as moment:
            found = self._browse.find(path, moment)
            if isinstance(found, Entry):
                entry = require_family(found, Family.ARRAY)
                assert entry.node is not None
                if entry.column is not None:
                    return entry, None, False
                # Where the files of documents are the node says itself; a frame a chunk makes the rest long.
                of_documents = entry.node.external is not None
                fetch = moment.data_source_head if of_documents else moment.data_source
                source = fetch(entry.node.id)
                stale = entry.file is None and self._prober.is_stale(entry.node, source, entry.observation, moment)
                return entry, source, stale
        entry = require_family(self._browse.inside.read(found), Family.ARRAY)
        assert entry.file is not None
        return entry, entry.file.array_source(ArrayStructure.from_wire(entry.structure)), False

    def _require_small(self, path: tuple[str, ...], structure: ArrayStructure, shape: tuple[int, ...]) -> None:
        # Twice: what is read, and what is put in order of it.
        reserve(2 * self._require_below(path, structure, shape), f"this part of /{'/'.join(path)}")

    def _require_below(self, path: tuple[str, ...], structure: ArrayStructure, shape: tuple[int, ...]) -> int:
        size = math.prod(shape) * structure.numpy_dtype.itemsize
        if size > self._limits.response_bytes:
            raise TooLarge(
                f"this part of /{'/'.join(path)} has {size} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once. Ask for a smaller slice.",
                wanted=size,
                limit=self._limits.response_bytes,
            )
        return size

    def _part(
        self,
        entry: Entry,
        source: DataSource | None,
        structure: ArrayStructure,
        picked: tuple[Index, ...],
        shape: tuple[int, ...],
    ) -> np.ndarray:
        dtype = structure.numpy_dtype
        if entry.file is not None:
            return self._browse.inside.values(entry, structure, picked, self._limits.response_bytes)
        if 0 in shape or dtype.itemsize == 0:
            return np.zeros(0, np.uint8)  # no bytes; numpy might not be able to make the shape all the same
        node = entry.node
        assert node is not None
        if node.external is not None and entry.column is None:
            with self._announced(entry, structure) as read:
                return read(picked)
        if source is None and entry.column is None:
            raise Unsupported(f"/{'/'.join(node.path)} has no data source", status=405)
        if source is None or source.mimetype == SEGMENT_ARRAY_MIMETYPE:
            rows, first = rows_of(picked[0], structure.shape[0])
            known = (slice(0, len(rows)), *(slice(0, length) for length in structure.shape[1:]))
            found = self._stored(entry, rows)[known][(first, *picked[1:], ...)].astype(dtype, copy=False)
            if found.shape != shape:
                raise NotReady(f"the rows of /{'/'.join(entry.path)} were replaced while they were read; read again")
            return found
        if source.mimetype == ZARR_MIMETYPE:
            reserve_chunks(structure, entry.path)
            return self._kept(entry, structure, picked)
        with registered(entry, source, self._roots, self._limits.response_bytes) as read:
            return read(picked)

    def _announced(self, entry: Entry, structure: ArrayStructure) -> AbstractContextManager[ReadPart]:
        return announced(entry, structure, self._roots, self._limits.response_bytes, self._near)

    def require_unchanged(
        self, entry: Entry, used: Mapping[int, Fingerprint | None], watched: WatchedRoots | None = None
    ) -> None:
        """Refuse values of files that are not those observed.

        Parameters
        ----------
        used : dict of int to tuple or None
            Resources, with the fingerprints of the files that were read; None before anything was.
        watched : WatchedRoots, optional
            What they were read through.
        """
        Known(entry).require(used, watched)

    def _stored(self, entry: Entry, rows: range) -> np.ndarray:
        """Return some rows of slow data, of step 1, as they are now, with the structure they have now.

        That may be wider than when the slice was planned, and more rows may be there; what was there then is where it
        was.
        """
        with self._catalog.read() as snapshot:
            now = require_family(self._browse.entry(entry.path, snapshot), Family.ARRAY)
            assert now.node is not None
            if now.column is not None:
                files = self._browse.table_files.source_of(now.node, snapshot)
                if files is not None:
                    return self._browse.table_files.column(now.node, files, now.column)[rows.start : rows.stop]
                if not stands_alone(now.node, now.column):
                    whole = read_table(snapshot, now.node, [now.column])
                    return column_to_numpy(whole.column(0))[rows.start : rows.stop]
                return column_to_numpy(read_table(snapshot, now.node, [now.column], rows).column(0))
            source = snapshot.data_source(now.node.id)
            assert source is not None
            (pieces,) = stored_pieces(snapshot, series_of_table(now.node), [source.parameters["column"]], rows)
        return array_of_column(pieces, ArrayStructure.from_wire(now.structure))

    def _kept(self, entry: Entry, structure: ArrayStructure, picked: tuple[Index, ...]) -> np.ndarray:
        """Read an array that this service keeps."""
        assert entry.node is not None
        try:
            return self._store.read(str(entry.node.id), structure, picked)
        except Damaged:
            # Its files go after the transaction that deletes it: what is missing then is the node.
            if self._browse.entry(entry.path).node != entry.node:
                raise NotReady(f"/{'/'.join(entry.path)} was replaced while it was read; read again") from None
            raise


def _sent_encoded(runs: FileRuns, read_last: int | None, files: ExitStack) -> Iterator[memoryview | FileRuns]:
    """Yield bytes of a file as `Arrays._sent_from_files` does, and close it."""
    with files:
        first = min(_FIRST_BYTES, runs.nbytes)
        last = first if read_last is None else max(first, runs.nbytes - read_last)
        yield _as_stored(runs, 0, first)
        for at in range(first, last, _FROM_FILES_BYTES):
            yield runs.part(at, min(at + _FROM_FILES_BYTES, last))
            runs.require_unchanged()
        for at in range(last, runs.nbytes, SENT_BYTES):
            yield _as_stored(runs, at, at + SENT_BYTES)


def _as_stored(runs: FileRuns, start: int, stop: int) -> memoryview:
    wanted = runs.part(start, stop)
    found = memoryview(np.empty(wanted.nbytes, np.uint8))  # type: ignore[arg-type]
    done = 0
    with released():
        for offset, length in wanted.runs:
            runs.file.read_into(offset, found[done : done + length])
            done += length
    runs.require_unchanged()
    return found


def _first_of_last(parts: list[Part], nbytes: int) -> int:
    """Return the number of the part from which on all together have at least so many bytes; 0 if none is."""
    for number in range(len(parts) - 1, -1, -1):
        nbytes -= parts[number].nbytes
        if nbytes <= 0:
            return number
    return 0


def _joined(parts: list[Part]) -> tuple[Index, ...]:
    """Return what successive pieces of one part pick together."""
    first, last = parts[0].picked[0], parts[-1].picked[0]
    assert isinstance(first, slice)
    assert isinstance(last, slice)
    return (slice(first.start, last.stop, first.step), *parts[0].picked[1:])


def _read_bytes(read: ReadPart, part: Part) -> memoryview:
    with released():
        return as_bytes(read(part.picked).reshape(part.shape))
