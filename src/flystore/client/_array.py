"""Arrays: sliced like numpy arrays, each slice a few requests whose bytes land in the result."""

import inspect
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from flystore.model.errors import FlystoreError, NotFound, TooLarge, Unavailable, Unsupported
from flystore.model.structures import ArrayStructure
from flystore.wire import api_path

from ._align import Rows, places_of
from ._frames import BadFrames, BloscFrames, can_decode
from ._missing import MissingRows, is_marked
from ._node import Node
from ._pieces import Piece, Plan, cut, lazy_chunks, plan_read, rest_of, runs_of
from ._progress import Progress
from ._session import Item, Session
from ._words import human_bytes, human_dtype, human_shape

AT_ONCE = 4
"""Requests under way together, of reads that cannot be one stretch."""

_LONG_BYTES = 8 << 20
"""From here on threads that decode are worth their start; services send less from memory anyway."""

BREAKS = 5
"""How often a connection may break within one request, if each time more had come."""

_NO_MAP = frozenset({"not-found", "unsupported", "method-not-allowed", "invalid-request"})
"""Kinds with which services say that nobody announced an array's frames, or that they have no such route."""


class Frames(NamedTuple):
    """Which event and which frame each row of an externally stored array is.

    Attributes
    ----------
    seq_num : (n,) int64
        Of the event.
    take : (n,) int64
        How often this seq_num had come before: 0 unless the event was retaken after a pause.
    resource : (n,) int64
        Number of the file, or set of files, in order of announcement.
    frame_index : (n,) int64
        Place in that file.
    stream : Rows
        Events of the stream, whether or not they have a frame here; (m,) int64 each.
    """

    seq_num: np.ndarray
    take: np.ndarray
    resource: np.ndarray
    frame_index: np.ndarray
    stream: Rows


class Array(Node):
    """An array kept by the service.

    ``array[...]`` and ``array[10:20, ::2]`` read parts as numpy does; ``array.dask`` reads lazily.
    `shape` is as it was at the last look; a growing array shows more after `refresh`.

    An array of frames has a row for each frame that there is. Where its rows are not those of the stream (a gap, a file
    still growing) its first dimension is called ``<key>_event``, reading by place warns once (`MissingRows`), and
    `seq_num`, `frame_index` and `present` tell which is which.
    """

    def __init__(self, session: Session, item: Item) -> None:
        super().__init__(session, item)
        self._structure = ArrayStructure.from_wire(item.structure)
        self._warned = False

    def refresh(self) -> "Array":
        """Ask the service for the array's present shape, and return the array."""
        super().refresh()
        self._structure = ArrayStructure.from_wire(self._item.structure)
        return self

    # --- what it is ---------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._structure.shape

    @property
    def dtype(self) -> np.dtype:
        return self._structure.numpy_dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dims(self) -> tuple[str, ...] | None:
        """Names of the axes, None where nobody named them, or not each of them."""
        return self._structure.axis_names

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Lengths of the chunks the service reads at once, for each axis."""
        return self._structure.chunks

    @property
    def size(self) -> int:
        """Number of items."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes once read."""
        return self._structure.nbytes

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a scalar has no length")
        return self.shape[0]

    # --- reading ------------------------------------------------------------------------------

    def read(self, wanted: Any = None, *, progress: Progress | None = None) -> np.ndarray:
        """Return the array or a part of it.

        Parameters
        ----------
        wanted : index, optional
            What goes between the brackets of a numpy array: integers, slices with any step, an
            Ellipsis, and on one axis a list or 1-D array of integers or truth values (one request for
            each stretch of neighbours). None means everything.
        progress : Progress, optional
            Of a larger read that this one is part of.

        Returns
        -------
        numpy.ndarray
            Of `dtype`, byte order kept. An integer for each axis gives a numpy scalar, as with numpy.

        Raises
        ------
        OutOfBounds
            If an index lies outside.
        InvalidRequest
            For new axes, several lists, or more axes than there are.
        Conflict
            If the array has changed since its shape was learnt; `refresh` it.
        Unreadable, MissingAsset
            If the service cannot read the files; says which and why.
        """
        plan = plan_read(wanted, self.shape)
        if progress is None:
            self._warn_of_missing_rows()
            with Progress(f"reading {self.key}", math.prod(plan.box_shape) * self.dtype.itemsize) as own:
                return self._read(plan, own)
        return self._read(plan, progress)

    def _read(self, plan: Plan, progress: Progress) -> np.ndarray:
        if plan.rows is not None:
            return self._read_rows(plan, progress)
        found = self._read_box(plan.box, plan.box_shape, progress)
        return found[plan.finish] if plan.finish else found

    def _warn_of_missing_rows(self) -> None:
        """Say it where somebody takes a row's place for the number of its event."""
        if self._warned or not is_marked(self.key, self.dims):
            return
        self._warned = True
        warnings.warn(
            f"the {len(self)} rows of {self._shown_path} are not those of its stream, row by row: some events have "
            "no frame here, or more than one. `seq_num` tells which event each row is, and the stream's "
            "`read()` aligns them.",
            MissingRows,
            stacklevel=_outside_this_package(),
        )

    def __getitem__(self, wanted: Any) -> np.ndarray:
        return self.read((None,) if wanted is None else wanted)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array kept by a service cannot be had without a copy")
        found = self.read()
        return found if dtype is None else found.astype(dtype)

    def _read_rows(self, plan: Plan, progress: Progress) -> np.ndarray:
        """Read the stretches of neighbours that a list picks, and put its rows together."""
        rows, axis = plan.rows, plan.axis
        assert rows is not None
        offset = plan.box[axis].start
        parts, held = [], []
        for start, stop in runs_of(rows):
            box = (*plan.box[:axis], slice(offset + start, offset + stop, 1), *plan.box[axis + 1 :])
            shape = (*plan.box_shape[:axis], stop - start, *plan.box_shape[axis + 1 :])
            parts.append(self._read_box(box, shape, progress))
            held.append(np.arange(start, stop))
        if not parts:
            return self._read_box(plan.box, plan.box_shape, progress)[plan.finish]
        where = np.searchsorted(np.concatenate(held), rows)
        return np.take(np.concatenate(parts, axis=axis), where, axis=axis)[plan.finish]

    def _read_box(self, box: tuple[slice, ...], shape: tuple[int, ...], progress: Progress) -> np.ndarray:
        dtype = self.dtype
        if dtype.hasobject:
            raise Unsupported(f"{self._shown_path} holds Python objects, which this client does not read")
        found = np.empty(shape, dtype) if dtype.itemsize else np.zeros(shape, dtype)
        octets: Any = found.reshape(-1).view(np.uint8) if found.nbytes else bytearray()
        target = memoryview(octets)
        pieces = list(cut(box, dtype.itemsize, self.chunks))
        whole = len(pieces) == 1 and shape == self.shape and all(part.step == 1 for part in box)

        def fetch(piece: Piece, breaks: int = 0) -> None:
            into = target[piece.start * dtype.itemsize : piece.stop * dtype.itemsize]
            try:
                self._fetch(piece, into, whole=whole and breaks == 0)
            except (Unavailable, TooLarge) as error:
                left = self._left_of(piece, error)
                if not left or breaks == BREAKS:
                    raise
                progress.advance((left[0].start - piece.start) * dtype.itemsize)
                for further in left:
                    fetch(further, breaks + 1)
                return
            progress.advance(len(into))

        for piece in pieces:
            fetch(piece)
        return found

    def _left_of(self, piece: Piece, error: FlystoreError) -> list[Piece]:
        """Return what to ask for after a request failed; nothing if asking makes no sense."""
        itemsize = self.dtype.itemsize
        if isinstance(error, TooLarge):
            limit = error.facts.get("limit")
            smaller = rest_of(piece, 0, itemsize, self.chunks, most=limit) if isinstance(limit, int) else []
            return smaller if len(smaller) > 1 else []
        # The rest of a body that broke off: if the service cannot read it, it then says why.
        filled = int(error.facts.get("filled", 0))
        return rest_of(piece, filled // itemsize, itemsize, self.chunks) if filled else []

    def _fetch(self, piece: Piece, into: memoryview, *, whole: bool) -> None:
        params: dict[str, str] = {"expected_shape": ",".join(map(str, piece.shape)) or "scalar"}
        if not whole:
            params["slice"] = piece.text
        headers = {"Accept": "application/octet-stream"}
        route = api_path("array", "full", *self.path)
        if len(into) >= _LONG_BYTES and can_decode():
            try:
                self.transport.readinto("GET", route, into, params=params, headers=headers, unpacking=BloscFrames)
                return
            except BadFrames:
                pass  # the service decodes them itself, or says which chunk is damaged
        self.transport.readinto("GET", route, into, params=params, headers=headers)

    def to_dask(self, chunks: Any = None) -> Any:
        """Return a dask array that reads its chunks when they are computed.

        Parameters
        ----------
        chunks : optional
            As dask takes them. By default those of the service, small ones joined.

        Raises
        ------
        Unsupported
            If dask is not installed.
        """
        self._warn_of_missing_rows()
        return self.lazy(chunks)

    def lazy(self, chunks: Any = None) -> Any:
        """Return the same as `to_dask`, for a reader that looks after missing rows itself."""
        da = _import_dask()
        name = f"{self.key or 'array'}-{da.core.tokenize(self.uri, self.shape, self.dtype.str)}"
        if chunks is None:
            chunks = lazy_chunks(self.chunks, self.dtype.itemsize)
        meta = np.empty((0,) * self.ndim, self.dtype)
        return da.from_array(_Quiet(self), chunks=chunks, name=name, meta=meta, asarray=True)

    @property
    def dask(self) -> Any:
        """The array as a dask array; see `to_dask`."""
        return self.to_dask()

    # --- which event is which row -------------------------------------------------------------

    def frames(self) -> Frames:
        """Return which event and which frame each row is.

        Raises
        ------
        NotFound
            If the array is not stored in detectors' files, or its writer did not announce which frames
            belong to which events (stock writers send a number of rows).
        """
        # Imported here: the projection brings more of Arrow than most sessions need.
        from flystore.projection import FrameMap

        try:
            wire = self._session.record(api_path("frames", *self.path))
        except FlystoreError as error:
            if error.kind in _NO_MAP:
                raise NotFound(
                    f"nobody announced which frames of {self._shown_path} belong to which events; its rows "
                    "are in the order of the file"
                ) from error
            raise
        rows = FrameMap.from_wire(wire).rows()
        runs = wire.get("stream") or []
        seq_nums = [np.arange(seq, seq + count) for seq, _, count in runs]
        takes = [np.full(count, take) for _, take, count in runs]
        none = np.zeros(0, np.int64)
        stream = Rows(np.concatenate([none, *seq_nums]), np.concatenate([none, *takes]))
        return Frames(rows.seq_nums, rows.take, rows.resource, rows.index, stream)

    @property
    def seq_num(self) -> np.ndarray:
        """Seq_num of the event of each row, (rows,) int64; see `frames`."""
        return self.frames().seq_num

    @property
    def frame_index(self) -> np.ndarray:
        """Place of each row in its file, (rows,) int64; see `frames`."""
        return self.frames().frame_index

    @property
    def present(self) -> np.ndarray:
        """Whether each row of the stream has a row here, (rows of the stream,) bool, in the order of its rows."""
        frames = self.frames()
        return places_of(Rows(frames.seq_num, frames.take), frames.stream) >= 0

    # --- showing ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        named = f", axes {', '.join(self.dims)}" if self.dims else ""
        return (
            f"<Array {self._shown_path}: {human_shape(self.shape)} {human_dtype(self.dtype)}, "
            f"{human_bytes(self.nbytes)}{named}>"
        )


class _Quiet:
    """An array as dask reads it, chunk by chunk: what there was to say has been said."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, wanted: Any) -> np.ndarray:
        with Progress("", 0, watched=False) as progress:
            return self.array.read(wanted, progress=progress)


def _outside_this_package() -> int:
    """Return the stack level, for `warnings.warn` in the caller, of the first frame outside of the client."""
    level, frame = 1, inspect.currentframe()
    frame = frame.f_back if frame is not None else None
    while frame is not None and frame.f_globals.get("__name__", "").startswith("flystore.client"):
        level, frame = level + 1, frame.f_back
    return level


def in_parallel(work: Any, pieces: list[Any]) -> None:
    """Do `work` on each piece, a few at once; after a failure, which is raised, no more are begun."""
    if len(pieces) <= 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(pieces)), thread_name_prefix="flystore-read") as pool:
        futures = [pool.submit(work, piece) for piece in pieces]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _import_dask() -> Any:
    try:
        import dask.array
    except ImportError as error:
        raise Unsupported("reading lazily needs dask: pip install 'flystore[xarray]'") from error
    return dask.array
