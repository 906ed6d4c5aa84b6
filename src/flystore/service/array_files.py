"""Reading parts of arrays that lie in files of others: opened once, and held against what was observed of them."""

import itertools
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import numpy as np

from flystore.model.errors import Changed, Unreadable
from flystore.model.slices import Selection, selected
from flystore.model.structures import ArrayStructure, DataSource
from flystore.projection import RowRun
from flystore.readers import EventReader, ResourceProbe, open_reader, open_registered, read_short
from flystore.storage import FileRuns, NearNames, Roots, WouldWait

from .changed import CHANGED, Fingerprint, WatchedRoots, change, settled_at, written_since
from .entries import Entry
from .files import event_files
from .observed import found_array, found_in, found_of, is_growing

_WAITS = (0.002, 0.01, 0.05, 0.2)
"""Seconds after which files that are written to are read again."""

ReadPart = Callable[[Selection], np.ndarray]
"""Reads the part of an array that a normalised selection picks."""


class RunsOf(Protocol):
    """Tells where such a part lies in a file, as it is or `encoded` as Blosc frames; None if it must be read."""

    def __call__(self, picked: Selection, *, encoded: bool = False) -> FileRuns | None: ...


class Known:
    """What was observed of the files of an array that is read, against which they are held."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._observed: Sequence[ResourceProbe | None] = found_in(entry.observation)
        if entry.node is not None and entry.node.external is not None and self._observed:
            self._observed = found_of(found_array(entry.node, entry.observation)[1], entry.observation)
        self._settled = settled_at(entry.observation) is not None

    def require(self, used: Mapping[int, Fingerprint | None], watched: WatchedRoots | None = None) -> None:
        """Refuse values of files that are not those observed; as `Arrays.require_unchanged`."""
        why = None
        for number, fingerprint in used.items():
            known = self._observed[number] if number < len(self._observed) else None
            if known is not None and known.status == CHANGED:
                why = why or known.why
            elif known is not None and known.fingerprint is not None and fingerprint is not None:
                why = why or change(known.fingerprint, fingerprint, settled=self._settled)
        if watched is not None:
            why = why or written_since(self._entry.observation, watched)
        if why is not None:
            path = "/".join(self._entry.path)
            raise Changed(
                f"the files of /{path} are not those that were observed: {why}. Put the old ones back, or take the "
                f"new ones for right: flystore verify DIR --accept {path}",
                path=list(self._entry.path),
            )


@contextmanager
def registered(entry: Entry, source: DataSource, roots: Roots, limit_bytes: int) -> Iterator[ReadPart]:
    """Give what reads parts of files that a client registered."""
    assert entry.node is not None
    structure = ArrayStructure.from_wire(entry.node.structure)
    watched, known = WatchedRoots(roots), Known(entry)
    known.require({0: None})
    with open_registered(source, structure, watched) as reader:

        def read(picked: Selection) -> np.ndarray:
            try:
                found = reader.read(picked, limit_bytes=limit_bytes)
            except Unreadable:
                known.require(watched.fingerprints([asset.data_uri for asset in source.assets]))
                raise
            known.require({0: reader.fingerprint()}, watched)
            return found

        yield read


class FileArray:
    """An array made of documents, as its files were found to have it: what any read of it needs.

    Attributes
    ----------
    files : EventFiles
    """

    def __init__(self, entry: Entry) -> None:
        assert entry.node is not None
        _, self._external = found_array(entry.node, entry.observation)
        self._joined = self._external.join == "concat" and bool(self._external.item_shape)
        self._factor = self._external.item_shape[0] if self._joined else 1
        self._known = Known(entry)
        self.files = event_files(self._external)

    def read(
        self,
        picked: Selection,
        structure: ArrayStructure,
        reader: EventReader,
        watched: WatchedRoots,
        limit_bytes: int,
    ) -> np.ndarray:
        """Return rows through the frame map: by event, never by position in the files.

        Parameters
        ----------
        picked : tuple of (int or slice)
            Normalised, not empty.
        structure : ArrayStructure
            Of the array.
        reader : EventReader
            Of `files`, through the roots `watched`.
        """
        factor, joined, first = self._factor, self._joined, picked[0]
        rows = selected(first, structure.shape[0]) if isinstance(first, slice) else range(first, first + 1)
        # Not all rows and then those chosen: documents may announce more than memory holds.
        chosen = np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
        if factor == 1 and rows.step > 0:
            events, place = chosen, np.arange(len(chosen))
        else:
            events, place = np.unique(chosen // factor, return_inverse=True)
        resources, file_rows = self._external.locate(events)
        inner = (slice(None), *picked[1:]) if joined else picked[1:]
        one = bool((resources == resources[0]).all())
        used = [int(number) for number in (resources[:1] if one else np.unique(resources))]
        self._known.require(dict.fromkeys(used))
        try:
            found = reader.read(resources, file_rows, inner, limit_bytes=limit_bytes)
        except Unreadable:  # that a file is another one explains more than what is odd about it
            uris = [resource.uri for resource in self.files.resources]
            self._known.require(watched.fingerprints(uris))
            raise
        self._known.require({number: reader.fingerprint(number) for number in used}, watched)
        if joined:  # along the first axis: an event is several rows of the array
            found = found.reshape(-1, *found.shape[2:])
            place = place * factor + chosen % factor
        if rows.step == 1:  # neighbours, and most often all there is: no copy
            found = found[int(place[0]) : int(place[0]) + len(rows)]
        else:
            found = found[place]
        # With an Ellipsis, one item stays an array: as a scalar it would lose its byte order.
        return found[0, ...] if isinstance(first, int) else found

    def read_short(self, picked: Selection, length: int, watched: WatchedRoots) -> np.ndarray:
        """Return the same of neighbouring rows in one file, on an event loop; axes of length 1 may be missing.

        Parameters
        ----------
        length : int
            Of the array.
        watched : WatchedRoots
            Which give `NearFile`.

        Raises
        ------
        WouldWait
            If `read` has to do it, in a thread.
        """
        first = picked[0]
        rows = selected(first, length) if isinstance(first, slice) else range(first, first + 1)
        items = self._external.item_shape[1:] if self._joined else self._external.item_shape
        rest = tuple(
            selected(item, n) if isinstance(item, slice) else range(item, item + 1)
            for item, n in zip(picked[1:], items, strict=True)
        )
        if rows.step < 0 or any(part.step < 0 for part in rest):
            raise WouldWait("it runs backwards")
        number, shift = self._stretch(rows[0] // self._factor, rows[-1] // self._factor)
        by = shift * self._factor
        self._known.require({number: None})
        file_rows = range(rows.start + by, rows.stop + by, rows.step)
        found, fingerprint = read_short(self.files, number, file_rows, rest, items, watched)
        self._known.require({number: fingerprint}, watched)
        return found

    def file_runs(
        self,
        picked: Selection,
        structure: ArrayStructure,
        reader: EventReader,
        watched: WatchedRoots,
        *,
        encoded: bool = False,
    ) -> FileRuns | None:
        """Return where neighbouring whole rows lie in one file; None if they must be read.

        Parameters
        ----------
        picked, structure, reader, watched
            As `read` takes them.
        encoded : bool
            As `EventReader.file_runs` takes it.
        """
        first, rest = picked[0], picked[1:]
        if not isinstance(first, slice) or structure.numpy_dtype != self.files.numpy_dtype:
            return None
        rows = selected(first, structure.shape[0])
        pairs = zip(rest, structure.shape[1:], strict=True)
        whole = all(isinstance(item, slice) and selected(item, n) == range(n) for item, n in pairs)
        if not whole or rows.step != 1 or rows.start % self._factor or rows.stop % self._factor:
            return None
        start, stop = rows.start // self._factor, rows.stop // self._factor
        try:
            number, shift = self._stretch(start, stop - 1)
        except WouldWait:
            return None
        self._known.require({number: None})
        runs = reader.file_runs(number, range(start + shift, stop + shift), encoded=encoded)
        self._known.require({number: reader.fingerprint(number)}, watched)
        return runs

    def _stretch(self, first: int, last: int) -> tuple[int, int]:
        """Return in which resource a stretch of events is, and by how much its numbers there are higher."""
        ends, runs = self._runs
        at = bisect_right(ends, first)
        if at == len(ends) or last >= ends[at]:
            raise WouldWait("it is in several places")
        run = runs[at]
        return run.resource, run.index - self._external.resources[run.resource].base - (ends[at] - run.count)

    @cached_property
    def _runs(self) -> tuple[list[int], tuple[RowRun, ...]]:
        runs = self._external.frame_map.row_runs
        return list(itertools.accumulate(run.count for run in runs)), runs


@contextmanager
def announced(
    entry: Entry, structure: ArrayStructure, roots: Roots, limit_bytes: int, near: NearNames
) -> Iterator[ReadPart]:
    """Give what reads rows of an array made of documents; files that could be opened are noted as `near`."""
    with announced_files(entry, structure, roots, limit_bytes, near) as (read, _):
        yield read


@contextmanager
def announced_files(
    entry: Entry, structure: ArrayStructure, roots: Roots, limit_bytes: int, near: NearNames
) -> Iterator[tuple[ReadPart, RunsOf]]:
    """Give the same, and what tells where rows lie that need not be read to be sent."""
    array, watched = FileArray(entry), WatchedRoots(roots)
    with open_reader(array.files, watched) as reader:

        def read(picked: Selection) -> np.ndarray:
            for wait in _WAITS if is_growing(entry.observation) else ():
                try:
                    found = array.read(picked, structure, reader, watched, limit_bytes)
                except Changed:
                    raise
                except Unreadable:  # in the middle of a change; what is known to be there will be there again
                    time.sleep(wait)
                    reader.close()
                else:
                    break
            else:
                found = array.read(picked, structure, reader, watched, limit_bytes)
            note()
            return found

        def runs_of(picked: Selection, *, encoded: bool = False) -> FileRuns | None:
            if is_growing(entry.observation):  # it may be written to while it is sent
                return None
            found = array.file_runs(picked, structure, reader, watched, encoded=encoded)
            note()
            return found

        def note() -> None:
            for uri, path in watched.paths.items():
                near.note(uri, path)

        yield read, runs_of
