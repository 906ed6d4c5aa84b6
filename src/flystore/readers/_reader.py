"""Reading an externally stored data key by event: which resource, which event of it, which part."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from flystore.model.errors import FlystoreError, InvalidRequest, MissingAsset, NoAccess, OutsideRoots
from flystore.model.slices import Item, normalise, result_shape
from flystore.storage import FileRuns, Roots, require_below

from ._events import Events, mismatch
from ._gather import in_parts, ranges_of
from ._hdf5 import Hdf5Rows
from ._registry import open_rows
from ._sequence import NumberedNames, SequenceRows
from ._source import EventFiles, Probe, Resource, ResourceProbe, RowSource, is_checksummed
from ._stored import Chunked, as_stored

_OPEN_AT_ONCE = 64

MOST_PROBED = 2**24
"""Most events that a probe looks at one by one."""


def open_reader(files: EventFiles, roots: Roots) -> "EventReader":
    """Return a reader of a data key; files are opened when they are first needed.

    A reader sees a file as it was when it opened it: for a file that grows, take a new reader.
    """
    return EventReader(files, roots)


class EventReader:
    """Values of events, by resource and event number; a context manager. Not for several threads at a time."""

    def __init__(self, files: EventFiles, roots: Roots) -> None:
        self.files = files
        self._roots = roots
        self._dtype = files.numpy_dtype
        self._open: OrderedDict[int, Events] = OrderedDict()

    def close(self) -> None:
        """Close all files; a second call does nothing."""
        while self._open:
            self._open.popitem()[1].source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def probe(self, *, growing: bool = False) -> Probe:
        """Return how far each resource can be read now. Never raises for what is wrong with a file.

        Parameters
        ----------
        growing : bool
            The files are being written: events at the end that may only have been begun count as not there.
        """
        return Probe(tuple(self._probe(number, growing) for number in range(len(self.files.resources))))

    def fingerprint(self, resource: int) -> tuple[int, ...]:
        """Return what a resource's files were like when they were opened; as in `ResourceProbe`."""
        return self._events(resource).source.fingerprint

    def present(self, resource: int, rows: np.ndarray) -> np.ndarray:
        """Return which events were written.

        Parameters
        ----------
        resource : int
            Number of the resource.
        rows : (n,) int64
            Events of it.

        Returns
        -------
        (n,) bool
            False: an unallocated chunk, a missing virtual source or file of a sequence, or beyond the last.

        Raises
        ------
        MissingAsset, OutsideRoots, Unreadable, Unsupported
            If the file as a whole cannot be read.
        """
        return self._events(resource).present(np.asarray(rows, np.int64))

    def read(
        self,
        resources: np.ndarray,
        rows: np.ndarray,
        inner: Sequence[Item] = (),
        limit_bytes: int | None = None,
    ) -> np.ndarray:
        """Return values of events.

        Parameters
        ----------
        resources : (n,) int
            Number of the resource of each event.
        rows : (n,) int64
            Number of each event within its resource; any order, repeats allowed.
        inner : sequence of (int or slice)
            Part of each value; fewer entries than axes mean the remaining axes whole.
        limit_bytes : int or None
            Most bytes that the result, or any one chunk on the way, may take.

        Returns
        -------
        (n, *item)[:, *inner] in the announced dtype, C-ordered.

        Raises
        ------
        TooLarge
            Before anything is read.
        OutOfBounds, InvalidRequest
            If `inner` does not fit the item.
        Truncated
            If a file holds fewer events; carries `announced` and `found`.
        Unreadable
            If an event was never written, or the file is not what was announced; never fill values.
        MissingAsset, OutsideRoots, Unsupported
        """
        resources, rows = np.asarray(resources, np.int64), np.asarray(rows, np.int64)
        normal = normalise(inner, self.files.item_shape)
        shape = (len(rows), *result_shape(normal, self.files.item_shape))
        require_below(math.prod(shape) * self._dtype.itemsize, limit_bytes, "this slice")
        if 0 in shape:
            return np.empty(shape, self._dtype)
        if (resources == resources[0]).all():
            values = self._events(int(resources[0])).read(rows, normal, limit_bytes)
            return np.ascontiguousarray(values)
        out = np.empty(shape, self._dtype)
        for number in np.unique(resources).tolist():
            mine = resources == number
            out[mine] = self._events(number).read(rows[mine], normal, limit_bytes)
        return out

    def file_runs(self, resource: int, events: range, *, encoded: bool = False) -> FileRuns | None:
        """Return where whole neighbouring events lie in a resource's file; None if they must be read.

        Parameters
        ----------
        events : range
            Of the resource, not empty, step 1.
        encoded : bool
            As Blosc frames, each of which decodes to the values of some of them; false: as they are.

        Raises
        ------
        MissingAsset, OutsideRoots, Unreadable, Unsupported
            If the file as a whole cannot be read.
        """
        found = self._events(resource)
        source = found.source
        inside = events.start >= 0 and events.stop <= found.count
        if not isinstance(source, Hdf5Rows) or not inside or source.dtype != self._dtype:
            return None
        each = found.rows_per_event
        rows = range(events.start * each, events.stop * each)
        return source.blosc_runs(rows) if encoded else source.file_runs(rows)

    def stored(self, resource: int, rows_per_event: int, row_shape: Sequence[int]) -> Chunked | None:
        """Return how a resource's chunks are stored, as chunks of an array of its rows; None if they are not.

        Parameters
        ----------
        rows_per_event : int
            Rows of the array that one event is; others than the file has make None.
        row_shape : sequence of int
            Of one row of the array.

        Raises
        ------
        MissingAsset, OutsideRoots, Unreadable, Unsupported
            If the file as a whole cannot be read.
        """
        events = self._events(resource)
        return as_stored(events.source, row_shape) if events.rows_per_event == rows_per_event else None

    def stored_chunk(self, resource: int, box: tuple[int, ...]) -> bytes | None:
        """Return a chunk of a resource as it lies in the file; None if it is not there in one piece."""
        source: Any = self._events(resource).source
        return source.stored_chunk(box)

    def _events(self, number: int) -> Events:
        if not 0 <= number < len(self.files.resources):
            raise InvalidRequest(f"there is no resource {number}; there are {len(self.files.resources)}")
        if number not in self._open:
            resource = self.files.resources[number]
            source = self._source(resource)
            try:
                events = Events(source, self.files.item_shape, self._dtype)
                _require_files(events, resource)
                self._open[number] = events
            except BaseException:
                source.close()
                raise
            while len(self._open) > _OPEN_AT_ONCE:
                self._open.popitem(last=False)[1].source.close()
        self._open.move_to_end(number)
        return self._open[number]

    def _source(self, resource: Resource) -> RowSource:
        parameters = {**self.files.parameters, **resource.parameters}

        def opener(uri: str) -> RowSource:
            return open_rows(self._roots, uri, self.files.mimetype, parameters, self._dtype)

        if resource.template is None:
            return opener(resource.uri)
        name = f"the files {resource.uri}{resource.template}"
        return SequenceRows(name, NumberedNames(self._roots, resource), opener)

    def _probe(self, number: int, growing: bool) -> ResourceProbe:
        try:
            events = self._events(number)
            return _found(events, events.written() if growing else events.count)
        except FlystoreError as error:
            return ResourceProbe(status_of(error), why=error.message, kind=error.kind)


def _require_files(events: Events, resource: Resource) -> None:
    """Refuse a sequence whose files hold another part of an event than was announced: none would be found."""
    found, announced = events.rows_per_event, resource.files_per_event
    if resource.template is not None and found != announced and math.prod(events.item_shape) > 0:
        raise mismatch(
            f"{events.source.name} hold {events.source.shape[1:]} each, so {found} make one event of shape "
            f"{events.item_shape}; {announced} files an event were announced",
            announced,
            found,
        )


def status_of(error: FlystoreError) -> str:
    """Return the status by which a probe reports an error."""
    if isinstance(error, OutsideRoots):
        return "outside-roots"
    if isinstance(error, MissingAsset):
        return "missing"
    if isinstance(error, NoAccess):
        return "no-access"
    return "mismatch" if error.facts.get("reason") == "mismatch" else "unreadable"


def _found(events: Events, count: int) -> ResourceProbe:
    source = events.source
    looked_at = min(count, MOST_PROBED)
    holes = ranges_of(~in_parts(events.present, looked_at))
    truncated = ranges_of(in_parts(events.truncated, looked_at))
    why = None
    if truncated:
        why = f"{source.name}: the file ends before the bytes of {sum(b - a for a, b in truncated)} events"
    elif holes:
        why = f"{source.name}: {sum(b - a for a, b in holes)} of {count} events were never written"
    return ResourceProbe(
        "ok",
        why=why,
        events=count,
        holes=holes,
        truncated=truncated,
        unverified=source.unverified,
        checksummed=is_checksummed(source),
        shape=source.shape,
        dtype=str(source.dtype),
        chunks=source.chunks,
        fingerprint=source.fingerprint,
        modified_ns=source.modified_ns,
    )
