"""Read roots: which files may be served, checked on the descriptor that is read.

A file is opened first and judged after: what counts is where the *open descriptor* leads, symlinks
resolved, so nothing can be swapped between the check and the use. What lies outside the roots is
`OutsideRoots` whether or not it exists there, so an answer never tells what else is on the machine.
Messages name the URI as it was registered and never a path of the server.

A root may also be a part of a bucket (``s3://bucket/prefix``): then the key of an object is what counts, there being
no links.

Hard links cannot be told from the file itself: whoever may link a file into a root may have it served.
"""

import errno
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from flystore.model.errors import (
    FlystoreError,
    InvalidRequest,
    Misconfigured,
    MissingAsset,
    NoAccess,
    OutsideRoots,
    TooLarge,
    Truncated,
    Unreadable,
    Unsupported,
)

from ._objects import Bucket, require_client, split_url
from ._uris import candidate_paths, is_object, is_windows

if TYPE_CHECKING:
    from typing_extensions import Buffer

FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_T = TypeVar("_T")
_MAPPED = re.compile(r"=(?=/|s3://)")

_AT_ONCE = 1 << 24
"""Bytes that are asked for in one call before it is known whether the file has them."""


@dataclass(frozen=True, slots=True)
class PathMap:
    r"""What a writer calls a place, and what this machine calls it.

    Parameters
    ----------
    source : str
        Leading part of the writer's paths; whole segments. Where it looks like Windows, case and the
        kind of slash do not matter.
    target : str
        Absolute path here, or ``s3://bucket/prefix``.
    """

    source: str
    target: str

    @classmethod
    def parse(cls, text: str) -> Self:
        r"""Read ``FROM=TO``, for example ``C:\data=/mnt/data``. TO begins after the last ``=/`` or ``=s3://``.

        Raises
        ------
        Misconfigured
            If FROM is not an absolute path, or TO neither that nor a place in a bucket.
        """
        found = list(_MAPPED.finditer(text))
        source = text[: found[-1].start()] if found else ""
        if not (source.startswith("/") or is_windows(source)):
            raise Misconfigured(
                f"--map {text!r} is not FROM=TO with two absolute paths; for example C:\\data=/mnt/data, or "
                "/data=s3://bucket/data for what lies in a bucket"
            )
        target = text[found[-1].start() + 1 :]
        if is_object(target):
            split_url(target)
        return cls(source, target)

    def apply(self, path: str) -> str | None:
        """Return the path here that `path` means, or None if this map says nothing about it."""
        windows = is_windows(path)
        if windows != is_windows(self.source):
            return None
        prefix, parts = _segments(self.source, windows), _segments(path, windows)
        head = parts[: len(prefix)]
        if windows:
            prefix, head = [p.casefold() for p in prefix], [p.casefold() for p in head]
        if head != prefix:
            return None
        return "/".join([self.target.rstrip("/"), *parts[len(prefix) :]]) or "/"

    @property
    def depth(self) -> int:
        """Number of segments of `source`; the deepest matching map wins."""
        return len(_segments(self.source, is_windows(self.source)))


def _segments(path: str, windows: bool) -> list[str]:
    return [part for part in re.split(r"[/\\]" if windows else "/", path) if part]


class OpenedFile:
    """A regular file inside the roots, open for reading by position.

    Attributes
    ----------
    fd : int
        The checked descriptor; closed by `close`.
    path : str
        Where it really is. For the log and for resolving links, never for an answer.
    uri : str
        As registered; what messages name.
    stat : os.stat_result
        Of the descriptor, when it was opened.

    `flystore.storage.OpenedObject` is the same of an object in a bucket, and has neither `fd` nor `stat`.
    """

    steady: ClassVar[bool] = False
    """Whether what was opened can never change, only be replaced."""

    remote: ClassVar[bool] = False
    """Whether each read is a request over the network, so that few and large ones are better."""

    def __init__(self, fd: int, path: str, uri: str, status: os.stat_result) -> None:
        self.fd = fd
        self.path = path
        self.uri = uri
        self.stat = status

    @property
    def fingerprint(self) -> tuple[int, int, int]:
        """(inode, size in bytes, modification time in ns): another one means other content."""
        return (self.stat.st_ino, self.stat.st_size, self.stat.st_mtime_ns)

    @property
    def size(self) -> int:
        """Size in bytes when opened."""
        return self.stat.st_size

    @property
    def modified_ns(self) -> int:
        """Modification time when opened, ns since 1970."""
        return self.stat.st_mtime_ns

    @property
    def place(self) -> tuple[object, ...]:
        """What tells this file from others, whatever becomes of its content."""
        return (self.stat.st_dev, self.stat.st_ino)

    @property
    def version(self) -> tuple[object, ...]:
        """What tells this content from others."""
        # Also when its inode changed: archives give back old times, and an inode that is free goes to the next file.
        return (self.stat.st_dev, self.stat.st_ctime_ns, self.fingerprint)

    def current_state(self) -> tuple[int, int]:
        """(size in bytes, modification time in ns) now."""
        found = os.fstat(self.fd)
        return found.st_size, found.st_mtime_ns

    def current_size(self) -> int:
        """Size in bytes now; a file being written may have grown."""
        return os.fstat(self.fd).st_size

    def read_into(self, offset: int, into: "Buffer") -> None:
        """Fill a writable buffer with the bytes from `offset` on.

        Raises
        ------
        Truncated
            If the file ends before the buffer is full.
        Unreadable
            If the storage reports an error.
        """
        view = memoryview(into).cast("B")
        done = 0
        while done < len(view):
            try:
                n = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                raise Unreadable(f"{self.uri} cannot be read: {os.strerror(error.errno or 0)}") from error
            if n == 0:
                raise Truncated(
                    f"{self.uri} ends at byte {offset + done}; {offset + len(view)} were expected",
                    uri=self.uri,
                    announced=offset + len(view),
                    found=offset + done,
                )
            done += n

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset` on; errors as `read_into`."""
        data = self._pread(offset, length) if length <= _AT_ONCE else b""
        if len(data) == length:
            return data
        end = self.current_size()
        if offset + length > end:  # before allocating: a damaged header may announce anything
            raise Truncated(
                f"{self.uri} ends at byte {end}; {offset + length} were expected",
                uri=self.uri,
                announced=offset + length,
                found=end,
            )
        whole = bytearray(length)
        self.read_into(offset, whole)
        return bytes(whole)

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise Unreadable(f"{self.uri} cannot be read: {os.strerror(error.errno or 0)}") from error

    def read_some(self, offset: int, into: "Buffer") -> int:
        """Read into a writable buffer; return how many bytes there were, fewer only at the end."""
        return os.preadv(self.fd, [memoryview(into).cast("B")], offset)

    def stored_until(self, offset: int) -> int | None:
        """Return up to where the file's system has stored anything from `offset` on; None where it does not tell."""
        end, size = offset, self.current_size()
        try:
            while end < size:
                end = os.lseek(self.fd, os.lseek(self.fd, end, os.SEEK_DATA), os.SEEK_HOLE)
        except (OSError, AttributeError) as error:
            if getattr(error, "errno", None) != errno.ENXIO:
                return None
        return end

    @contextmanager
    def ahead(self, ranges: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Within, `read_into` of what lies in `ranges` (beginning and length) is quick; a file needs nothing for it.

        Raises
        ------
        NotReady, NoAccess, MissingAsset, Unavailable
            If an object cannot be read, or not as it was when it was opened.
        """
        yield

    def holds(self, offset: int, data: bytes) -> bool:
        """Return whether the file has these bytes at `offset`."""
        return os.pread(self.fd, len(data), offset) == data

    def stream(self) -> "FileStream":
        """Return a file object with a position of its own on the checked descriptor."""
        return FileStream(self)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FileStream(io.RawIOBase):
    """A read-only, seekable file object over an `OpenedFile`; closing it leaves the descriptor open."""

    def __init__(self, file: OpenedFile) -> None:
        self._file = file
        self._position = 0
        self.name = file.uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end()}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the beginning")
        self._position = base + offset
        return self._position

    def _end(self) -> int:
        return self._file.current_size()

    def readinto(self, buffer: "Buffer") -> int:
        n = self._file.read_some(self._position, buffer)
        self._position += n
        return n


class Roots:
    """The places that an operator allows to be read, and the maps from writers' names to them.

    Parameters
    ----------
    read : sequence of Path or str
        Directories, or places in buckets (``s3://bucket/prefix``); symlinks in them are resolved once, here. None at
        all means nothing can be read.
    maps : sequence of PathMap
        Applied when a file is looked for, never stored. The longest match wins, then the first.
    """

    def __init__(self, read: Sequence[Path | str] = (), maps: Sequence[PathMap] = ()) -> None:
        self.read = tuple(_real_root(str(root)) for root in read)
        self.maps = tuple(sorted(maps, key=lambda m: -m.depth))

    def resolve(self, uri: str) -> Path:
        """Return where the file or directory of a URI really is.

        A statement about now only: to read, use `open`, which checks what it opens.

        Raises
        ------
        Unsupported
            Also if it is in a bucket.
        OutsideRoots, MissingAsset, Unreadable, Unsupported, InvalidRequest
            As `open` does.
        """

        def existing(path: str) -> Path:
            if is_object(path):
                raise _in_bucket(path, uri)
            real = self._inside(path, uri)
            os.stat(real)
            return Path(real)

        return self._first(uri, existing)

    def size(self, uri: str) -> int:
        """Return the size in bytes of what a URI names; a statement about now only.

        Raises
        ------
        OutsideRoots, MissingAsset, Unreadable, Unsupported, InvalidRequest
            As `open` does.
        """

        def found(path: str) -> int:
            if is_object(path):
                with self._open_object(path, uri) as file:
                    return file.size
            return os.stat(self._inside(path, uri)).st_size

        return self._first(uri, found)

    def open(self, uri: str) -> OpenedFile:
        """Open a regular file, or an object in a bucket, for reading; a context manager.

        Raises
        ------
        OutsideRoots
            If it lies, or a symlink leads, outside every root; whether or not it exists.
        MissingAsset
            If it would be inside a root and is not there.
        Unreadable
            If it is no regular file (a directory, a pipe, a device) or may not be read.
        Unsupported
            If the URI has another scheme than ``file`` and ``s3``.
        InvalidRequest
            If the URI holds no absolute path, a NUL, or a name that no file system takes.
        NoAccess, Unavailable
            If a bucket refuses, or cannot be reached.
        """
        return self._first(uri, lambda path: self._open_path(path, uri))

    def open_path(self, path: str, uri: str) -> OpenedFile:
        """Open a file by the path it has here (no maps, no decoding), named `uri` in messages.

        For what a link inside a file leads to. Errors as `open`.
        """
        return self._explained(uri, lambda: self._open_path(path, uri))

    def open_below(self, uri: str, relative: str) -> OpenedFile:
        """Open a file below the directory of a URI.

        Parameters
        ----------
        uri : str
            A directory.
        relative : str
            Path below it, with ``/``. Absolute paths and ``..`` are refused.

        Raises
        ------
        InvalidRequest
            If `relative` is not a path below a directory.
        OutsideRoots
            Also if a symlink leads out of this directory, even to elsewhere inside the roots.
        """
        parts = relative.split("/")
        if not relative or relative.startswith("/") or "\\" in relative or "\0" in relative or ".." in parts:
            raise InvalidRequest(f"{relative[:200]!r} is not a path below {uri}")
        name = f"{uri.rstrip('/')}/{relative}"
        place = self._in_bucket(uri)
        if place is not None:
            return self.open_path(f"{place}/{relative}", name)
        directory = self.resolve(uri)
        narrowed = Roots([directory])
        return narrowed.open_path(os.path.join(directory, relative), name)

    def list_files(self, uri: str) -> Iterator[tuple[str, int]]:
        """Yield (name, size in bytes) of the regular files directly in a directory, in no order.

        Symlinks are followed only where they stay inside the roots; others are left out.
        """
        place = self._in_bucket(uri)
        if place is not None:
            yield from ((found.name, found.size) for found in Bucket(place).children()[1])
            return
        directory = self.resolve(uri)

        def entries() -> list[tuple[str, int]]:
            with os.scandir(directory) as found:
                return [(e.name, e.stat().st_size) for e in found if self._listable(e)]

        yield from self._explained(uri, entries)

    def files_below(self, uri: str, most: int) -> list[str]:
        """Return the paths of the regular files at any depth below a directory, with ``/``, relative to it, in order.

        Symlinks to files are followed only where they stay below this directory; those to directories are not.

        Raises
        ------
        TooLarge
            If there are more than `most`.
        Unreadable
            If the URI is no directory, or part of it may not be looked at.
        OutsideRoots, MissingAsset, Unsupported, InvalidRequest
            As `open` does.
        """
        place = self._in_bucket(uri)
        if place is not None:
            names = [found.name for found in itertools.islice(Bucket(place).listed(), most + 1)]
            if len(names) > most:
                raise TooLarge(f"{uri} has more than {most} files", limit=most)
            return sorted(names)
        directory = self.resolve(uri)
        narrowed = Roots([directory])

        def listed() -> list[str]:
            if not directory.is_dir():
                raise Unreadable(f"{uri} is not a directory", uri=uri)
            found: list[str] = []
            waiting = [""]
            while waiting:
                below = waiting.pop()
                with os.scandir(os.path.join(directory, below)) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(f"{below}{entry.name}/")
                        elif narrowed._listable(entry):
                            found.append(f"{below}{entry.name}")
                            if len(found) > most:
                                raise TooLarge(f"{uri} has more than {most} files", limit=most)
            return sorted(found)

        return self._explained(uri, listed)

    def _in_bucket(self, uri: str) -> str | None:
        """Return the URL of a "directory" in a bucket, inside the roots; None if the URI means none of these."""
        place = self.here(candidate_paths(uri)[0])
        if not is_object(place):
            return None
        place = place.rstrip("/")
        _key_of(place)
        if not self._contains(place):
            raise _outside(uri)
        return place

    def _listable(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink() and not self._contains(os.path.realpath(entry.path)):
            return False
        return entry.is_file()

    def here(self, path: str) -> str:
        """Return the path on this machine for a writer's path: mapped, or as it is.

        Raises
        ------
        OutsideRoots
            If it is a Windows path that no map covers.
        """
        for path_map in self.maps:
            mapped = path_map.apply(path)
            if mapped is not None:
                return mapped
        if is_windows(path):
            raise OutsideRoots(f"{path!r} is a Windows path and no map covers it; the operator can add --map FROM=TO")
        return path

    def _first(self, uri: str, use: Callable[[str], _T]) -> _T:
        """Use the first candidate path that is there; the last one's error is the answer if none is."""
        candidates = candidate_paths(uri)
        for path in candidates[:-1]:
            try:
                return self._explained(uri, lambda path=path: use(self.here(path)))  # type: ignore[misc]
            except (MissingAsset, OutsideRoots, InvalidRequest):
                continue
        return self._explained(uri, lambda: use(self.here(candidates[-1])))

    def _explained(self, uri: str, use: Callable[[], _T]) -> _T:
        try:
            return use()
        except FlystoreError:
            raise
        except OSError as error:
            raise _in_words(error, uri) from error
        except ValueError as error:  # an embedded NUL, or a name that cannot be encoded
            raise InvalidRequest(f"{uri[:200]!r} is not a file name") from error

    def _open_object(self, path: str, uri: str) -> OpenedFile:
        _require_object(path, uri)
        if not self._contains(path):
            raise _outside(uri)
        from ._opened_object import opened_object

        return opened_object(path, uri)

    def _open_path(self, path: str, uri: str) -> OpenedFile:
        if is_object(path):
            return self._open_object(path, uri)
        real = self._inside(path, uri)
        # A look before opening: merely opening a device or a pipe can have effects.
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise _not_regular(uri)
        fd = os.open(real, FLAGS)
        try:
            status = os.fstat(fd)
            where = self._checked(fd, real, status, uri)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(uri)
        except BaseException:
            os.close(fd)
            raise
        return OpenedFile(fd, where, uri, status)

    def _inside(self, path: str, uri: str) -> str:
        real = os.path.realpath(path)
        if not self._contains(real):
            raise _outside(uri)
        return real

    def _checked(self, fd: int, real: str, status: os.stat_result, uri: str) -> str:
        """Return where a descriptor leads, after judging that; the name it was opened by does not count."""
        try:
            where = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            # No /proc: the path is resolved again and must still be the same file.
            where = os.path.realpath(real)
            if not os.path.samestat(os.stat(where), status):
                raise _outside(uri) from None
        if not self._contains(where):
            raise _outside(uri)
        return where

    def _contains(self, real: str) -> bool:
        # Strings, both sides resolved; the separator keeps /data2 out of /data.
        return any(real == root or real.startswith(root.rstrip("/") + "/") for root in self.read)


def read_root(root: Path | str) -> Path | str:
    """Return a root as it was written down: a place in a bucket as text, which a `Path` would spoil, or a directory."""
    return str(root) if is_object(str(root)) else Path(root)


def require_root(root: Path | str) -> None:
    """Refuse what can be no root on this machine, before anything is read.

    Whether a bucket can be reached is not asked: it may be away for a while, as may a disk.

    Raises
    ------
    Misconfigured
        If it is neither a directory nor a place in a bucket, or objects cannot be read here.
    """
    if is_object(str(root)):
        require_client()
        split_url(str(root))
    elif not Path(root).is_dir():
        raise Misconfigured(f"the read root {root} is not a directory; make it or name another", root=str(root))


def _real_root(root: str) -> str:
    if not is_object(root):
        return os.path.realpath(root)
    bucket, prefix = split_url(root)
    return f"s3://{bucket}/{prefix}".rstrip("/")


def _key_of(path: str) -> str:
    try:
        return split_url(path)[1]
    except Misconfigured as error:
        raise InvalidRequest(error.message) from error


def _require_object(path: str, uri: str) -> None:
    if not _key_of(path) or path.endswith("/"):
        raise InvalidRequest(f"{uri[:200]!r} is not the name of an object: it has no key")


def _in_bucket(path: str, uri: str) -> Unsupported:
    return Unsupported(f"{uri} is in a bucket, where only files can be had, one by one", uri=uri)


def _outside(uri: str) -> OutsideRoots:
    return OutsideRoots(
        f"{uri} is not inside the read roots of this service; the operator can add a root (--read) or a "
        f"path map (--map)",
        uri=uri,
    )


def _not_regular(uri: str) -> Unreadable:
    return Unreadable(f"{uri} is not a regular file", uri=uri)


def _in_words(error: OSError, uri: str) -> FlystoreError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingAsset(f"{uri} does not exist where this service looks for it", uri=uri)
    if error.errno in (errno.EACCES, errno.EPERM):
        return NoAccess(f"{uri} may not be read by the user that this service runs as", uri=uri)
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
        return InvalidRequest(f"{uri[:200]!r} is not a file name: {os.strerror(error.errno)}")
    reason = os.strerror(error.errno) if error.errno else "input/output error"
    return Unreadable(f"{uri} cannot be opened: {reason}", uri=uri)
