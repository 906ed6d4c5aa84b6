"""A bucket as a place for the bytes of arrays and parts.

An object is put whole or not at all, and is there for everybody once the bucket has answered. A change that reads first
(a part of a chunk, the list of what was written, the shape of an array) is put on the condition that what was read is
still there; else it begins again, so that writers on several machines do not undo each other's work. Where a bucket
knows no conditions, writers on one machine are still kept apart by locks, and `BucketKeep.conditional` is False.
"""

import io
import json
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from flystore.disk.failpoints import reach
from flystore.model.errors import (
    Conflict,
    Damaged,
    FlystoreError,
    Misconfigured,
    MissingAsset,
    NoAccess,
    Unavailable,
    Unsupported,
)

from ._keep import Locks, checked_key
from ._objects import Bucket
from ._opened_object import OpenedObject
from ._sums import WRITTEN, listed_in, written_line

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")

MARK = "flystore.json"
"""Object that says whose arrays are below a prefix."""

TRIES = 40
"""Times that a change begins again because others were in between."""

_ARRAYS = "arrays"
_MADE = ".made"
"""Object of each folder: an empty prefix is not there."""

_TRIED = ".trying"

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
_AT_ONCE = 1 << 20
"""Bytes of a part that is read whole when it is opened."""


class Overtaken(Exception):
    """Another writer changed what this one had read."""


class BucketKeep:
    """Folders as prefixes below one prefix of a bucket.

    Parameters
    ----------
    url : str
        ``s3://bucket`` or ``s3://bucket/prefix``.
    directory : Path
        Of this machine, for locks.
    locks : callable
        Gives the locks of a kind.

    Raises
    ------
    Misconfigured
        If it is no such address, or obstore is not installed.

    Attributes
    ----------
    conditional : bool
        Whether the bucket knows conditions, as `examine` found.
    """

    def __init__(self, url: str, directory: Path, locks: Callable[[str], Locks]) -> None:
        self.bucket = Bucket(url)
        self.url = self.bucket.url
        self.directory = directory
        self.locks = locks
        self.conditional = True

    def folder(self, key: str) -> "BucketFolder":
        return BucketFolder(self.bucket, f"{_ARRAYS}/{checked_key(key)}", self.conditional)

    def uri(self, key: str) -> str:
        return self.bucket.url_of(f"{_ARRAYS}/{checked_key(key)}")

    def opened(self, key: str, relative: str) -> OpenedObject:
        """Open a file of a folder; close it.

        Raises
        ------
        MissingAsset
            If there is none.
        InvalidRequest
            If it is no path below a folder.
        """
        name = f"{_ARRAYS}/{checked_key(key)}/{relative}"
        return OpenedObject(self.bucket, name, self.bucket.url_of(name), self.bucket.stat(name))

    def files(self) -> Iterator[str]:
        """Yield the names of all files of all folders, ``<key>/<path>``, in the bucket's order."""
        for one in self.bucket.listed(_ARRAYS):
            if not one.name.endswith(f"/{_MADE}"):
                yield one.name[len(_ARRAYS) + 1 :]

    def file(self, name: str) -> "BucketPart | None":
        """Return a file of `files` to be opened; None if there is none."""
        key, _, path = name.partition("/")
        return self.folder(key).part(path)

    def put_file(self, name: str, content: bytes) -> None:
        """Put a file of a folder, whole."""
        key, _, path = name.partition("/")
        self.folder(key).put(path, content)

    def is_marked(self) -> bool:
        """Return whether the prefix is some store's."""
        return self._marked() is not None

    def examine(self) -> None:
        """Find out by trying whether objects can be put, read, listed and removed, and whether conditions are kept.

        Raises
        ------
        Misconfigured
            If the bucket is not there, refuses, or does not give back what was put.
        Unavailable
            If it does not answer.
        """
        name = f"{_TRIED}/{secrets.token_hex(8)}"
        try:
            first = self.bucket.put(name, b"1")
            try:
                self.conditional = self._keeps_conditions(name, first)
                content, _ = self.bucket.read(name)
                if content != b"1" or name not in [one.name for one in self.bucket.listed(_TRIED)]:
                    raise Misconfigured(f"{self.url} does not give back what was put there; name another bucket")
            finally:
                self.bucket.delete([name])
        except (Unavailable, Misconfigured):
            raise
        except FlystoreError as error:
            raise Misconfigured(f"the storage {self.url} cannot be used: {error.message}", url=self.url) from error

    def _keeps_conditions(self, name: str, etag: str) -> bool:
        try:
            return (
                bool(etag)
                and self._refuses(name, if_absent=True)
                and self._refuses(name, if_etag='"00000000000000000000000000000000"')
                and bool(self.bucket.put(name, b"1", if_etag=etag))
            )
        except (Unsupported, Conflict):
            return False

    def _refuses(self, name: str, *, if_absent: bool = False, if_etag: str = "") -> bool:
        try:
            self.bucket.put(name, b"1", if_absent=if_absent, if_etag=if_etag)
        except Conflict:
            return True
        return False

    def look(self) -> None:
        """Ask for the mark.

        Raises
        ------
        FlystoreError
            If it cannot be read.
        """
        self.bucket.read(MARK)

    def belongs_to(self, store: str) -> None:
        """Mark the prefix as that of a store, or find that it is.

        Raises
        ------
        Misconfigured
            If it is another one's.
        """
        found = self._marked()
        if found is None:
            with suppress(Conflict):  # of another process that begins now, or of ours, whose answer was lost
                self.bucket.put(MARK, json.dumps({"store": store}).encode(), if_absent=self.conditional)
            found = self._marked()
        if found != store:
            raise Misconfigured(
                f"{self.url} holds the arrays of another store; name the prefix that belongs to this catalogue, or the "
                "catalogue that belongs to it",
                url=self.url,
            )

    def _marked(self) -> str | None:
        content = _content(self.bucket, MARK)
        try:
            return None if content is None else str(json.loads(content[0])["store"])
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(f"{self.bucket.url_of(MARK)} is not what was stored") from error


def _content(bucket: Bucket, name: str) -> tuple[bytes, str] | None:
    """Return an object's content and version; None if there is none, which is not said of a bucket that is gone."""
    try:
        with _always_allowed():
            return bucket.read(name)
    except MissingAsset as error:
        if error.facts.get("missing") == "bucket":
            raise _gone(bucket) from error
        return None


@contextmanager
def _always_allowed() -> Iterator[None]:
    """Say of a refusal that it may be tried again: what we keep is ours, and who asks for it has done nothing wrong."""
    try:
        yield
    except NoAccess as error:
        raise Unavailable(error.message) from error


@contextmanager
def _to_be_written(url: str) -> Iterator[None]:
    """Say of what keeps an object from being written that it may be tried again: it is no fault of who writes."""
    try:
        yield
    except (Conflict, Unavailable, Unsupported):
        raise
    except FlystoreError as error:
        raise Unavailable(f"{url} cannot be written: {error.message}; nothing was acknowledged") from error


def _gone(bucket: Bucket) -> Unavailable:
    return Unavailable(f"{bucket.url} is gone: there is no such bucket; make it anew or restore it")


class BucketFolder:
    """Objects below a prefix."""

    def __init__(self, bucket: Bucket, prefix: str, conditional: bool) -> None:
        self.bucket = bucket
        self.url = bucket.url_of(prefix)
        self._prefix = prefix
        self._conditional = conditional

    def is_there(self) -> bool:
        try:
            return next(iter(self.bucket.listed(self._prefix)), None) is not None
        except MissingAsset as error:
            raise _gone(self.bucket) from error

    def make(self) -> None:
        self.put(_MADE, b"{}")

    def remove(self) -> None:
        with _to_be_written(self.url):
            names = [one.name for one in self.bucket.listed(self._prefix)]
            if names:
                reach("storage.before_delete")
                self.bucket.delete(names)
                reach("storage.after_delete")

    def get(self, name: str) -> bytes | None:
        found = self.got(name)
        return None if found is None else found[0]

    def got(self, name: str) -> tuple[bytes, str] | None:
        """Return a file's content and version; None if there is none."""
        return _content(self.bucket, self._name(name))

    def put(self, name: str, content: "Buffer") -> None:
        with _to_be_written(self.url):
            self.bucket.put(self._name(name), content)

    def put_over(self, name: str, content: "Buffer", version: str | None) -> None:
        """Put a file in place of the version that was read; None: of nothing.

        Raises
        ------
        Overtaken
            If another one is there.
        """
        if not self._conditional:
            self.put(name, content)
            return
        try:
            with _to_be_written(self.url):
                self.bucket.put(self._name(name), content, if_absent=version is None, if_etag=version or "")
        except Conflict as error:
            raise Overtaken from error

    def names(self) -> list[str]:
        below = len(self._prefix) + 1
        found = (one.name[below:] for one in self.bucket.listed(self._prefix))
        return [name for name in found if name != _MADE]

    def begin_list(self) -> None:
        self.put(WRITTEN, b"")

    def list_written(self, names: Iterable[str]) -> None:
        """Add files to the list of what was written, after what others added meanwhile."""
        wanted = sorted(names)

        def add() -> None:
            found = self.got(WRITTEN)
            before, version = (b"", None) if found is None else found
            known = listed_in(before)
            new = [written_line(name) for name in wanted if name not in known]
            if new:
                self.put_over(WRITTEN, b"".join([before, *new]), version)

        if wanted:
            self.again_if_overtaken(add)

    def put_listed(self, name: str, content: "Buffer", what: str) -> None:
        reach(f"storage.before_{what}")
        self.put(name, content)
        reach(f"storage.after_{what}")
        self.list_written([name])

    def part(self, name: str) -> "BucketPart | None":
        try:
            with _always_allowed():
                found = self.bucket.stat(self._name(name))
        except MissingAsset:
            return None
        return BucketPart(self.bucket, self._name(name), found.size, found.etag, found.mtime_ns)

    def again_if_overtaken(self, change: Callable[[], _T]) -> _T:
        pause = _FIRST_PAUSE
        for _ in range(TRIES):
            try:
                return change()
            except Overtaken:
                time.sleep(random.uniform(pause / 2, pause))
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise Unavailable(
            f"{self.url} is changed by others all the time, {TRIES} times while this was to be; try again later"
        )

    def _name(self, name: str) -> str:
        return f"{self._prefix}/{name}"


class BucketPart:
    """An object to be opened; all of what is read is of one version.

    Attributes
    ----------
    name : str
        The last part of the object's name.
    size : int
        Bytes.
    mtime_ns : int
        When it was put, ns since 1970.
    """

    def __init__(self, bucket: Bucket, name: str, size: int, etag: str, mtime_ns: int) -> None:
        self._bucket = bucket
        self._path = name
        self._etag = etag
        self.name = name.rpartition("/")[2]
        self.size = size
        self.mtime_ns = mtime_ns

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open it for reading, with a position of its own.

        Raises
        ------
        NotReady
            If another version is there by now, as reading does.
        """
        assert mode == "rb"
        if self.size <= _AT_ONCE:
            with _always_allowed():
                return io.BytesIO(self._bucket.read(self._path, etag=self._etag)[0])
        return io.BufferedReader(_Ranges(self), _AT_ONCE)

    def read_into(self, offset: int, into: "Buffer") -> None:
        """Fill a buffer from `offset` on."""
        with _always_allowed():
            self._bucket.read_into(self._path, [(offset, into)], etag=self._etag)


class _Ranges(io.RawIOBase):
    """The bytes of an object, by ranges."""

    def __init__(self, part: BucketPart) -> None:
        self._part = part
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._part.size)[whence]
        return self._position

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._part.size - self._position))
        if n:
            self._part.read_into(self._position, view[:n])
            self._position += n
        return n
