"""A store copied to another place and another database, compared at the end; ended at any point, it goes on.

The catalogue goes row by row (`flystore.catalog`), so that every id, position, hash and checksum is that of the source:
what a reader, a writer with a journal or a follower with a token knows of the source is true of the copy. Files of
arrays go as they are. Only at the end, after all of both sides was read again and found to be the same, does the
copy become a store that can be served.

Files are reached through `Files`, so that a bucket can stand for a directory on either side.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import msgspec

from flystore.catalog import Compared, Source, Target, digest_of_source, opened_source, others_at
from flystore.disk import FULL, make_directory, replace_file, sync_directory
from flystore.disk.failpoints import reach
from flystore.model.errors import Conflict, Damaged, DiskFull, Misconfigured, Unavailable
from flystore.storage import BucketKeep

from .backup import ARRAYS_DIRECTORY, CATALOG_AT_FILE, CATALOG_FILE, MANIFEST, STORAGE_FILE, STORE, storage_of
from .belonging import mark
from .keeping import bucket_keep

_PIECE = 1 << 20
_PARTIAL = ".writing-copy-"


class Files(Protocol):
    """Files of arrays and parts, by name: ``<key>/<path>``, with slashes."""

    def names(self) -> Iterator[str]:
        """Yield the names of all files, in their order; what is being written is left out."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if there is none."""

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file."""

    def write(self, name: str, content: Iterator[bytes]) -> None:
        """Make a file, durably, whole or not at all."""

    def end(self) -> None:
        """Make all names durable."""


class DirectoryFiles:
    """Files below a directory, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> Iterator[str]:
        for path in sorted(self.directory.rglob("*")):
            if path.is_file() and not path.name.startswith(".writing-"):
                name = path.relative_to(self.directory).as_posix()
                if not _is_lock(name):
                    yield name

    def size(self, name: str) -> int | None:
        try:
            return (self.directory / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str) -> Iterator[bytes]:
        with open(self.directory / name, "rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    def write(self, name: str, content: Iterator[bytes]) -> None:
        path = self.directory / name
        make_directory(path.parent)
        partial = path.parent / f"{_PARTIAL}{path.name}"
        with open(partial, "wb") as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        reach("copy.before_rename")
        partial.replace(path)

    def end(self) -> None:
        make_directory(self.directory)
        for path in [self.directory, *self.directory.rglob("*")]:
            if path.is_dir():
                sync_directory(path)
        for left in self.directory.rglob(f"{_PARTIAL}*"):  # of a copy that was killed
            left.unlink()


def _is_lock(name: str) -> bool:
    return name.startswith(".")


class BucketFiles:
    """Files in a bucket, as a service has them there."""

    def __init__(self, keep: BucketKeep) -> None:
        self._keep = keep

    def names(self) -> Iterator[str]:
        return self._keep.files()

    def size(self, name: str) -> int | None:
        part = self._keep.file(name)
        return None if part is None else part.size

    def read(self, name: str) -> Iterator[bytes]:
        part = self._keep.file(name)
        if part is None:
            raise FileNotFoundError(name)
        with part.open() as file:
            while piece := file.read(_PIECE):
                yield piece

    def write(self, name: str, content: Iterator[bytes]) -> None:
        self._keep.put_file(name, b"".join(content))

    def end(self) -> None:
        """Nothing is left to do: a bucket has what it has acknowledged."""


class Place(msgspec.Struct, frozen=True):
    """Where a store is: its directory, the address of its catalogue if that is in PostgreSQL, and that of its bucket.

    Attributes
    ----------
    storage : str or None
        ``s3://bucket/prefix`` if arrays are there; None: what the directory says.
    """

    directory: Path
    catalog: str | None = None
    storage: str | None = None

    @property
    def url(self) -> str:
        return self.catalog or f"sqlite:///{self.directory.resolve() / CATALOG_FILE}"

    @property
    def files(self) -> Files:
        keep = self.bucket
        return DirectoryFiles(self.directory / ARRAYS_DIRECTORY) if keep is None else BucketFiles(keep)

    @property
    def bucket(self) -> BucketKeep | None:
        """The bucket that keeps the arrays, if one does."""
        storage = self.storage or storage_of(self.directory)
        return None if storage is None else bucket_keep(self.directory, storage)


class Report(msgspec.Struct):
    """What a copy holds, compared row by row and byte by byte with its source.

    Attributes
    ----------
    tables : list of Compared
    files, nbytes : int
        Of arrays and parts.
    again : bool
        Whether the copy was finished before, and was only compared.
    """

    tables: list[Compared] = []
    files: int = 0
    nbytes: int = 0
    again: bool = False


Tell = Callable[[str, int], None]


def copy_store(source: Place, target: Place, *, tell: Tell | None = None) -> Report:
    """Copy a store, or go on with a copy that was ended, and compare both.

    Parameters
    ----------
    source : Place
        A store that nobody writes to; or ``store/`` of a backup.
    target : Place
        Of its own, empty or not there.
    tell : callable, optional
        Called with the name of a table, or ``files``, and how many rows or bytes were added.

    Raises
    ------
    Misconfigured
        If there is no store, it is in use, of another schema, or both places are one.
    Conflict
        If the target holds something else, or the source was written to meanwhile.
    Damaged
        If a copy differs from its source.
    DiskFull, Unavailable
        What was copied stays; run it again.
    """
    source, target = _checked(source, target)
    try:
        with opened_source(source.url) as given:
            _require_own(target, given)
            _require_own_bucket(source, target, given)
            with closing(Target(target.url, given.origin)) as made:
                report = Report(again=made.finished)
                if not made.finished:
                    _copy_files(source.files, target.files, tell)
                    made.fill(given, tell)
                _compare(source, target, given, made, report)
                _require_still(source, given)
                made.finish()
            bucket = target.bucket
            if bucket is not None:
                replace_file(target.directory / STORAGE_FILE, bucket.url.encode())
            if target.catalog is not None:
                mark(target.directory, target.catalog, given.origin.store)
            (target.directory / _MARK).unlink(missing_ok=True)
            return report
    except OSError as error:
        if error.errno in FULL or error.errno == errno.EFBIG:
            raise DiskFull(f"the disk of {target.directory} is full; free space, then run it again") from error
        raise Unavailable(f"the copy was interrupted ({error}); run it again, it goes on where it was") from error


def _checked(source: Place, target: Place) -> tuple[Place, Place]:
    directory = source.directory
    if (directory / MANIFEST).exists() and source.catalog is None:
        directory = directory / STORE  # of a backup
    source = Place(directory.absolute(), source.catalog, source.storage)
    target = Place(target.directory.absolute(), target.catalog, target.storage)
    if source.catalog is None and not (source.directory / CATALOG_FILE).is_file():
        raise Misconfigured(f"there is no store in {source.directory}; name the directory that it was served from")
    one, other = source.directory.resolve(), target.directory.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise Misconfigured(f"{target.directory} is, holds, or lies in the source; copy to a directory of its own")
    if source.url == target.url:
        raise Misconfigured("source and target name the same catalogue; name another database, or another schema")
    if source.catalog is None and others_at(source.url):
        raise Misconfigured(
            f"the store {source.directory} is in use; end what writes to it, or copy a backup of it (flystore backup)"
        )
    return source, target


def _require_own(target: Place, source: Source) -> None:
    """Refuse a directory that holds what no copy into it has made."""
    try:
        make_directory(target.directory)
    except OSError as error:
        raise Misconfigured(f"{target.directory} cannot be made ({error.strerror}); choose another") from error
    known = {
        ARRAYS_DIRECTORY,
        STORAGE_FILE,
        CATALOG_AT_FILE,
        CATALOG_FILE,
        f"{CATALOG_FILE}-wal",
        f"{CATALOG_FILE}-shm",
    }
    mark = target.directory / _MARK
    held = {path.name for path in target.directory.iterdir()} - {_MARK}
    wanted = msgspec.json.encode(source.origin)
    if mark.exists() and held:  # without anything else, it is of a copy that was ended before it began
        if mark.read_bytes() != wanted:
            raise Conflict(
                f"{target.directory} holds the beginning of another copy, or the source was written to since; end what "
                "writes to the source, remove the target, and begin anew"
            )
        return
    if held - known or (held and not _is_finished(target, source)):
        raise Conflict(f"{target.directory} is not empty; copy into a directory of its own. Nothing was changed.")
    if not held:
        with open(mark, "wb") as file:
            file.write(wanted)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(target.directory)


def _require_own_bucket(source: Place, target: Place, given: Source) -> None:
    """Refuse a bucket that holds what no copy of this store has put there."""
    bucket, other = target.bucket, source.bucket
    if bucket is None:
        return
    if other is not None and f"{other.url}/".startswith(f"{bucket.url}/"):
        raise Misconfigured(f"{bucket.url} is, or holds, where the source keeps its arrays; name another prefix")
    bucket.examine()
    if not bucket.is_marked() and next(bucket.files(), None) is not None:
        raise Conflict(f"{bucket.url} is not empty; copy to a prefix of its own. Nothing was changed.")
    bucket.belongs_to(given.origin.store)


_MARK = ".copying"
"""File in a target's directory that says of what it is to be a copy; it goes when the copy is whole."""


def _is_finished(target: Place, source: Source) -> bool:
    if target.catalog is None and not (target.directory / CATALOG_FILE).is_file():
        return False
    try:
        with closing(Target(target.url, source.origin)) as made:
            return made.finished
    except Conflict:
        return False


def _copy_files(source: Files, target: Files, tell: Tell | None) -> None:
    for name in source.names():
        size = source.size(name)
        if size is not None and target.size(name) == size:
            continue  # made whole before; its content is compared at the end
        reach("copy.before_file")
        target.write(name, source.read(name))
        reach("copy.after_file")
        if tell is not None:
            tell("files", size or 0)
    target.end()


def _compare(source: Place, target: Place, given: Source, made: Target, report: Report) -> None:
    """Read all of both sides again."""
    reach("copy.before_compare")
    wrong = []
    for copied in made.compared():
        told = digest_of_source(given, copied.table)
        if copied != told:
            wrong.append(f"the table {copied.table} has {copied.rows} rows, the source {told.rows}, or others")
        report.tables.append(copied)
    ours, theirs = source.files, target.files
    names, there = list(ours.names()), set(theirs.names())
    for name in names:
        there.discard(name)
        one, two = _sum(ours, name), _sum(theirs, name)
        if one != two:
            wrong.append(f"the file {name} differs")
        report.files += 1
        report.nbytes += one[0]
    wrong += [f"the file {name} is not in the source" for name in sorted(there)]
    if wrong:
        raise Damaged(
            f"the copy in {target.directory} is not what is in the source: {wrong[0]}"
            + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            + ". It was damaged, or the source was written to meanwhile: end what writes to it, remove the target, "
            "and begin anew.",
            problems=wrong,
        )


def _require_still(source: Place, given: Source) -> None:
    """Refuse to end a copy of what is the past already."""
    with opened_source(source.url) as again:
        if again.origin != given.origin:
            raise Conflict(
                f"the source {source.directory} was written to while it was copied, up to log position "
                f"{again.origin.position}; end what writes to it, remove the target, and begin anew"
            )


def _sum(files: Files, name: str) -> tuple[int, str]:
    summed, size = hashlib.sha256(), 0
    try:
        for piece in files.read(name):
            summed.update(piece)
            size += len(piece)
    except FileNotFoundError:
        return -1, "missing"
    return size, summed.hexdigest()
