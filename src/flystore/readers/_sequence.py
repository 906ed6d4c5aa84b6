"""Sequences: many files of equal shape, each one row."""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Protocol

import numpy as np

from flystore.model.errors import InvalidRequest, MissingAsset, OutsideRoots, Unreadable
from flystore.storage import Roots, candidate_paths

from ._source import Resource, RowSource
from ._template import FileTemplate

_REQUESTS = 8
"""Files of a bucket that are read at the same time, at most …"""

_REQUESTED_BYTES = 2**26
"""… and so that decoding them takes no more than this."""

_SIDE_BY_SIDE = 8
"""Files at the end of a sequence that may be written at the same time."""


class Names(Protocol):
    """Which files a sequence consists of, by row."""

    def uri(self, row: int) -> str:
        """Return the URI of a row's file."""
        ...

    def exist(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool: whether the file of each row is there and not empty."""
        ...

    def count(self) -> int:
        """Return the rows up to the last one whose file is there."""
        ...

    def first(self) -> int | None:
        """Return the first row whose file is there, None if there is none."""
        ...


class ListedNames:
    """Files that are listed one by one, in order."""

    def __init__(self, roots: Roots, uris: Sequence[str]) -> None:
        self._roots = roots
        self._uris = uris

    def uri(self, row: int) -> str:
        return self._uris[row]

    def count(self) -> int:
        return len(self._uris)

    def first(self) -> int | None:
        return next((row for row, uri in enumerate(self._uris) if self._exists(uri)), None)

    def exist(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self._exists(self._uris[row]) for row in rows.tolist()], bool)

    def _exists(self, uri: str) -> bool:
        try:
            return self._roots.size(uri) > 0
        except (MissingAsset, FileNotFoundError):
            return False


class NumberedNames:
    """Files that are named by a template; the directory is read once."""

    def __init__(self, roots: Roots, resource: Resource) -> None:
        self._roots = roots
        self._template = FileTemplate.parse(resource.template or "")
        self._prefix = resource.uri
        self._first = resource.first_file
        self._rows: set[int] | None = None

    def uri(self, row: int) -> str:
        return self._joined(self._template.name(self._first + row))

    def _joined(self, name: str) -> str:
        if self._prefix.endswith("/") and name.startswith("/"):
            return self._prefix + name[1:]
        return self._prefix + name

    def exist(self, rows: np.ndarray) -> np.ndarray:
        there = self._there()
        return np.array([row in there for row in rows.tolist()], bool)

    def count(self) -> int:
        return max(self._there(), default=-1) + 1

    def first(self) -> int | None:
        return min(self._there(), default=None)

    def _there(self) -> set[int]:
        """Return the rows whose files are there and not empty; the directory is read once."""
        if self._rows is None:
            numbers = [number for number, size in self._list().items() if size > 0]
            # A template without a field names one file, which is row 0.
            first = 0 if self._template.spec is None else self._first
            self._rows = {number - first for number in numbers if number >= first}
        return self._rows

    def _list(self) -> dict[int, int]:
        """Return the size in bytes of every file of the sequence that is there, by number."""
        whole = FileTemplate(self._joined(self._template.before), self._template.spec, self._template.after)
        cut = max(whole.before.rfind("/"), whole.before.rfind("\\")) + 1
        if "/" in whole.after or "\\" in whole.after:
            raise Unreadable(f"{self._prefix}: the number is in the name of a directory, which is not read here")
        directory = whole.before[:cut]
        # A percent-encoded URI has an encoded prefix, the directory's entries have not.
        spellings = {
            FileTemplate(re.split(r"[/\\]", before)[-1], whole.spec, after)
            for before, after in zip(_spellings(whole.before), _spellings("/" + whole.after), strict=False)
            for after in (after[1:],)
        }
        try:
            entries = dict(self._roots.list_files(directory))
        except MissingAsset:
            return {}
        found: dict[int, int] = {}
        for template in spellings:
            for name, size in entries.items():
                number = 0 if template.spec is None and name == template.name(0) else template.number(name)
                if number is not None:
                    found[number] = size
        return found


def _spellings(uri: str) -> tuple[str, str]:
    paths = candidate_paths(uri)
    return paths[0], paths[-1]


class SequenceRows:
    """A sequence of files as rows, each of the shape of the first that can be read; see `RowSource`."""

    def __init__(self, name: str, names: Names, opener: Callable[[str], RowSource]) -> None:
        self.name = name
        self._names = names
        self._opener = opener
        self._count = names.count()
        row = self._first_there()
        with_first = opener(names.uri(row))
        try:
            self._file_shape = with_first.shape
            self.dtype = with_first.dtype
            self.unverified = with_first.unverified
            self.fingerprint: tuple[int, ...] = (self._count, *with_first.fingerprint)
            self.modified_ns = with_first.modified_ns
            self._remote = getattr(with_first, "remote", False)
        finally:
            with_first.close()
        self.shape = (self._count, *self._file_shape)
        self.chunks: tuple[int, ...] | None = (1, *self._file_shape)
        if self._count > row + 1:
            self._note_last()

    def _first_there(self) -> int:
        row = self._names.first()
        if row is None:
            # Says what is wrong with the first one: missing, outside, unreadable.
            self._opener(self._names.uri(0)).close()
            raise MissingAsset(f"{self.name}: no file of the sequence is there")
        return row

    def _note_last(self) -> None:
        """Let the newest file count in the fingerprint; it is where a growing sequence changes."""
        try:
            last = self._opener(self._names.uri(self._count - 1))
        except (Unreadable, MissingAsset, OutsideRoots, InvalidRequest):
            return
        self.fingerprint += last.fingerprint
        self.modified_ns = max(self.modified_ns, last.modified_ns)
        last.close()

    def close(self) -> None:
        pass  # files are closed as soon as they were read

    def present(self, rows: np.ndarray) -> np.ndarray:
        return self._names.exist(rows)

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(rows), bool)  # would mean opening every file; reading one says it

    def written_rows(self) -> int:
        """Return up to which row the files are whole; looks back only as far as files are written side by side."""
        there = np.flatnonzero(self._names.exist(np.arange(self._count)))
        written = self._count
        for row in there[: -_SIDE_BY_SIDE - 1 : -1].tolist():
            if not self._is_whole(row):
                written = row
        return written

    def _is_whole(self, row: int) -> bool:
        try:
            source = self._opener(self._names.uri(row))
        except (Unreadable, MissingAsset):
            return False
        try:
            return not source.truncated(np.arange(source.shape[0])).any()
        except Unreadable:
            return False
        finally:
            source.close()

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        inside = np.arange(rest[0].start, rest[0].stop, rest[0].step)

        def read_one(i: int, row: int) -> None:
            source = self._opener(self._names.uri(row))
            try:
                if source.shape != self._file_shape or source.dtype != self.dtype:
                    raise Unreadable(
                        f"{source.name} is {source.dtype} {source.shape}; the sequence is {self.dtype} "
                        f"{self._file_shape}",
                    )
                out[i] = source.read(inside, rest[1:], limit_bytes)
            finally:
                source.close()

        jobs = [partial(read_one, i, row) for i, row in enumerate(rows.tolist())]
        decoding = 3 * self.dtype.itemsize * math.prod(self._file_shape)
        side_by_side = min(_REQUESTS, len(jobs), _REQUESTED_BYTES // max(decoding, 1)) if self._remote else 1
        if side_by_side < 2:
            for job in jobs:
                job()
        else:
            _read_side_by_side(jobs, side_by_side)
        return out


def _read_side_by_side(jobs: Sequence[Callable[[], None]], threads: int) -> None:
    """Run jobs that wait for the network, several at once, within the account of this request."""
    with ThreadPoolExecutor(threads, thread_name_prefix="flystore-images") as pool:
        waiting = [pool.submit(copy_context().run, job) for job in jobs]
        try:
            for future in waiting:
                future.result()
        finally:
            for future in waiting:
                future.cancel()
