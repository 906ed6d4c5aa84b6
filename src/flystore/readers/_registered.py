"""Arrays that clients of the protocol register: files one after the other, seen in the registered shape.

The files' datasets are joined along their first axis (HDF5, single files) or stacked, one file an index (a
sequence); then the reader's ``slice`` is taken, and the result is seen in the structure's shape, C-ordered. A
larger file serves its first rows; a smaller one ends the read with `Truncated`.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import msgspec
import numpy as np

from flystore.model.errors import FlystoreError, InvalidRequest, NotReady, Truncated
from flystore.model.slices import Item, normalise, parse_slice, result_shape, selected
from flystore.model.structures import ArrayStructure, DataSource
from flystore.storage import Roots, require_below

from ._events import Events, mismatch, require_dtype
from ._gather import in_parts
from ._reader import MOST_PROBED, status_of
from ._registry import is_sequence, open_rows
from ._sequence import ListedNames, SequenceRows
from ._source import RowSource, is_checksummed, written_rows
from ._stored import Chunked, as_stored

_OPEN_AT_ONCE = 64


class ArrayProbe(msgspec.Struct, frozen=True):
    """What was found of a registered array.

    Attributes
    ----------
    status, why, kind, checksummed, fingerprint, modified_ns
        As in `ResourceProbe`.
    rows : int
        Entries of the structure's first axis that can be read from the beginning without a break; at most as
        many as the structure has. Of a scalar, 1.
    found : tuple of int or None
        Shape of the joined files, None if unknown.
    """

    status: str
    why: str | None = None
    kind: str | None = None
    rows: int = 0
    found: tuple[int, ...] | None = None
    checksummed: bool = False
    fingerprint: tuple[int, ...] | None = None
    modified_ns: int | None = None


def open_registered(data_source: DataSource, structure: ArrayStructure, roots: Roots) -> "ArrayReader":
    """Return a reader of a data source that a client registered; files are opened when first needed.

    Parameters
    ----------
    data_source : DataSource
        Its mimetype, parameters (``dataset``, ``slice``, ``squeeze``, …) and assets are used; assets in the
        order of their `num`.
    structure : ArrayStructure
        Shape and dtype as registered. Chunks do not matter here: reshaping is C-ordered, whatever
        ``properties["chunks"]`` says about how the files are stacked.
    """
    return ArrayReader(data_source, structure, roots)


class ArrayReader:
    """A registered array; a context manager. Not for several threads at a time."""

    def __init__(self, data_source: DataSource, structure: ArrayStructure, roots: Roots) -> None:
        self.data_source = data_source
        self.structure = structure
        self._roots = roots
        self._dtype = structure.numpy_dtype
        self._source: RowSource | None = None

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def probe(self, *, growing: bool = False) -> ArrayProbe:
        """Return how far the array can be read now. Never raises for what is wrong with a file.

        Parameters
        ----------
        growing : bool
            As `EventReader.probe` takes it.
        """
        try:
            source = self._joined()
            count = self._require_fitting(source)
            return self._found(source, count, written_rows(source) if growing else source.shape[0])
        except FlystoreError as error:
            return ArrayProbe(status_of(error), why=error.message, kind=error.kind)

    def read(self, selection: Sequence[Item] = (), limit_bytes: int | None = None) -> np.ndarray:
        """Return part of the array, C-ordered, in the registered dtype.

        Raises
        ------
        TooLarge
            Before anything is read.
        OutOfBounds, InvalidRequest
            If the selection does not fit the structure.
        Truncated
            If the files hold less; carries `announced`, `found` and `modified_ns`.
        Unreadable, MissingAsset, OutsideRoots, Unsupported
        """
        shape = self.structure.shape
        normal = normalise(selection, shape)
        wanted = result_shape(normal, shape)
        require_below(math.prod(wanted) * self._dtype.itemsize, limit_bytes, "this slice")
        if 0 in wanted:
            return np.empty(wanted, self._dtype)
        source = self._joined()
        count = self._require_fitting(source)
        if not shape:
            return self._flat(source, 0, 1, limit_bytes).reshape(())
        first = normal[0]
        indices = selected(first, shape[0]) if isinstance(first, slice) else range(first, first + 1)
        self._require_rows(source, count, max(indices[0], indices[-1]))
        values = self._entries(source, indices, normal[1:], limit_bytes)
        return np.ascontiguousarray(values).reshape(wanted)

    def fingerprint(self) -> tuple[int, ...]:
        """Return what the files were like when they were opened; as in `ArrayProbe`."""
        return self._joined().fingerprint

    def as_found(self) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype of the joined files, whatever is registered.

        Raises
        ------
        MissingAsset, OutsideRoots, Unreadable, Unsupported
            If a file cannot be read, or two cannot be joined.
        """
        source = self._joined()
        return source.shape, source.dtype

    def stored(self) -> Chunked | None:
        """Return how the chunks of the one file behind the array are stored, as chunks of the array; None if not so.

        Raises
        ------
        MissingAsset, OutsideRoots, Unreadable, Unsupported
            If the file as a whole cannot be read.
        """
        source = self._joined()
        if not self.structure.shape or self._require_fitting(source) != source.shape[0]:
            return None
        return as_stored(source, self.structure.shape[1:])

    def stored_chunk(self, box: tuple[int, ...]) -> bytes | None:
        """Return a chunk of the file as it lies there; None if it is not there in one piece."""
        source: Any = self._joined()
        return source.stored_chunk(box)

    def _entries(self, source: RowSource, indices: range, inner: Sequence[Item], limit_bytes: int | None) -> np.ndarray:
        item = self.structure.shape[1:]
        row = math.prod(source.shape[1:])
        if row and math.prod(item) % row == 0:
            events = Events(source, item, self._dtype)
            return events.read(np.asarray(indices, np.int64), inner, limit_bytes)
        # One row of the files holds several entries, or parts of some: read what covers them and cut.
        low, high = min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1
        size = math.prod(item)
        values = self._flat(source, low * size, high * size, limit_bytes).reshape(high - low, *item)
        places = np.asarray(indices, np.int64) - low
        part: tuple[Any, ...] = (slice(None), *inner)
        return values[places][part]

    def _flat(self, source: RowSource, start: int, stop: int, limit_bytes: int | None) -> np.ndarray:
        row = math.prod(source.shape[1:])
        first, last = start // row, -(-stop // row)
        require_below((last - first) * row * source.dtype.itemsize, limit_bytes, f"the part of {source.name} to be cut")
        rest = tuple(range(n) for n in source.shape[1:])
        values = source.read(np.arange(first, last), rest, limit_bytes).reshape(-1)
        return values[start - first * row : stop - first * row].astype(self._dtype, copy=False)

    def _require_fitting(self, source: RowSource) -> int:
        """Return how many whole entries of the first axis the files hold; refuse what cannot be one."""
        require_dtype(source, self._dtype)
        item, row = math.prod(self.structure.shape[1:]), math.prod(source.shape[1:])
        if item and (row == 0 or (item % row and row % item)):
            raise mismatch(
                f"{source.name} has shape {source.shape}, which does not divide into the registered "
                f"{self.structure.shape}",
                list(self.structure.shape),
                list(source.shape),
            )
        return source.shape[0] * row // item if item else self.structure.shape[0]

    def _require_rows(self, source: RowSource, count: int, last: int) -> None:
        if last >= count:
            raise Truncated(
                f"{source.name} holds {count} entries along the first axis; {self.structure.shape[0]} are "
                f"registered. If it is being written, the rest may still be arriving.",
                announced=self.structure.shape[0],
                found=count,
                unit="rows",
                modified_ns=source.modified_ns,
            )

    def _found(self, source: RowSource, count: int, written: int) -> ArrayProbe:
        announced = self.structure.shape[0] if self.structure.shape else 1
        item, row = math.prod(self.structure.shape[1:]), max(1, math.prod(source.shape[1:]))
        rows = min(written, -(-announced * item // row), MOST_PROBED)
        good = in_parts(lambda some: source.present(some) & ~source.truncated(some), rows)
        unbroken = rows if good.all() else int(np.argmin(good))
        readable = min(count, unbroken * row // item) if item else count
        why = None
        if readable < announced:
            why = f"{source.name}: {readable} of {announced} registered entries can be read"
        return ArrayProbe(
            "ok",
            why=why,
            rows=min(readable, announced),
            checksummed=is_checksummed(source),
            found=source.shape,
            fingerprint=source.fingerprint,
            modified_ns=source.modified_ns,
        )

    def _joined(self) -> RowSource:
        if self._source is None:
            self._source = _sliced(self._stacked(), self.data_source.parameters.get("slice"))
        return self._source

    def _stacked(self) -> RowSource:
        assets = sorted(
            enumerate(self.data_source.assets),
            key=lambda pair: (pair[1].num is None, pair[1].num or 0, pair[0]),
        )
        uris = [asset.data_uri for _, asset in assets]
        if not uris:
            raise InvalidRequest("this array has no files yet")
        parameters = dict(self.data_source.parameters)
        mimetype = self.data_source.mimetype

        def opener(uri: str) -> RowSource:
            return open_rows(self._roots, uri, mimetype, parameters, self._dtype)

        if is_sequence(mimetype):
            name = f"the sequence of {len(uris)} files from {uris[0]}"
            return SequenceRows(name, ListedNames(self._roots, uris), opener)
        if len(uris) == 1:
            return opener(uris[0])
        return JoinedRows(uris, opener)


class JoinedRows:
    """Several files one after the other along their first axis, a few of them open; see `RowSource`."""

    def __init__(self, uris: Sequence[str], opener: Callable[[str], RowSource]) -> None:
        self._uris = uris
        self._opener = opener
        self._open: OrderedDict[int, RowSource] = OrderedDict()
        self._counts: list[int] = []
        try:
            first = self._part(0)
            self.name = f"{first.name} and {len(uris) - 1} more"
            self.dtype = first.dtype
            self.chunks = first.chunks
            self.unverified = False
            self.fingerprint: tuple[int, ...] = ()
            self.modified_ns = 0
            self._row_shape = first.shape[1:]
            for number in range(len(uris)):
                self._describe(self._part(number))
        except BaseException:
            self.close()
            raise
        self._edges = np.cumsum([0, *self._counts])
        self.shape: tuple[int, ...] = (int(self._edges[-1]), *self._row_shape)

    def _describe(self, part: RowSource) -> None:
        if part.shape[1:] != self._row_shape or part.dtype != self.dtype:
            raise mismatch(
                f"{part.name} is {part.dtype} {part.shape} and cannot be joined to {self.name}, which are "
                f"{self.dtype} with rows of {self._row_shape}",
                list(self._row_shape),
                list(part.shape),
            )
        self._counts.append(part.shape[0])
        self.unverified |= part.unverified
        self.fingerprint += part.fingerprint
        self.modified_ns = max(self.modified_ns, part.modified_ns)

    def _part(self, number: int) -> RowSource:
        if number not in self._open:
            part = self._open[number] = self._opener(self._uris[number])
            if number < len(self._counts) and part.shape != (self._counts[number], *self._row_shape):
                raise NotReady(f"{part.name} changes while it is read; try again in a moment")
            while len(self._open) > _OPEN_AT_ONCE:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        answer = np.zeros(len(rows), bool)
        for part, mine, local in self._split(rows):
            answer[mine] = part.present(local)
        return answer

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        answer = np.zeros(len(rows), bool)
        for part, mine, local in self._split(rows):
            answer[mine] = part.truncated(local)
        return answer

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        for part, mine, local in self._split(rows):
            out[mine] = part.read(local, rest, limit_bytes)
        return out

    def _split(self, rows: np.ndarray) -> Iterator[tuple[RowSource, np.ndarray, np.ndarray]]:
        """Yield each part in question, which of `rows` are its, and their numbers in it."""
        owners = np.searchsorted(self._edges, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == number)
            yield self._part(number), mine, rows[mine] - self._edges[number]


class SlicedRows:
    """A part of another source, every axis kept; see `RowSource`."""

    def __init__(self, source: RowSource, indices: tuple[range, ...]) -> None:
        self._source = source
        self._indices = indices
        self.name = source.name
        self.shape: tuple[int, ...] = tuple(len(i) for i in indices)
        self.dtype = source.dtype
        self.chunks: tuple[int, ...] | None = None
        self.unverified = source.unverified
        self.fingerprint: tuple[int, ...] = source.fingerprint
        self.modified_ns = source.modified_ns

    def close(self) -> None:
        self._source.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        return self._source.present(self._rows(rows))

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        return self._source.truncated(self._rows(rows))

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        inner = [base[r.start : r.stop : r.step] for base, r in zip(self._indices[1:], rest, strict=True)]
        forward = tuple(i if i.step > 0 else i[::-1] for i in inner)
        turned = tuple(slice(None, None, 1 if i.step > 0 else -1) for i in inner)
        return self._source.read(self._rows(rows), forward, limit_bytes)[(slice(None), *turned)]

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        first = self._indices[0]
        return first.start + rows * first.step


def _sliced(source: RowSource, text: Any) -> RowSource:
    """Apply the parameter ``slice``; axes that it drops stay, one long, because all is reshaped anyway."""
    if not text:
        return source
    try:
        if not isinstance(text, str):
            raise InvalidRequest(f"the parameter 'slice' is text such as '0:10,:,3', not {text!r}")
        # As numpy writes them: with brackets and spaces, perhaps.
        selection = normalise(parse_slice(text.strip("[]() ").replace(" ", "")), source.shape)
    except BaseException:
        source.close()
        raise
    indices = tuple(
        selected(item, n) if isinstance(item, slice) else range(item, item + 1)
        for item, n in zip(selection, source.shape, strict=True)
    )
    return SlicedRows(source, indices)
