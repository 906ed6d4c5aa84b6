"""HDF5 files, opened on a checked descriptor and walked link by link.

HDF5 itself never opens a file here: it is given a file object that reads the descriptor which `Roots` has
checked. So check and use are the same file, HDF5's own file locks and its in-process sharing of open files
play no part, and what is seen is what is on disk. Links are followed by this module, one component
at a time; a link to another file goes through `Roots` again.

A file being written in SWMR mode carries a mark and an end-of-file address that is out of date; both are
shown to HDF5 as they would be in a closed file, which is what its own SWMR reader does. The writer's order
of flushing keeps such a file consistent. A file that is open for writing without SWMR is consistent after each
flush, and promises nothing between two. What was read of it counts only if all of it was in the file at one
time: it is looked at a second time, and read again if it is not as it was.
"""

from __future__ import annotations

import posixpath
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeVar

from flystore.model.errors import (
    FlystoreError,
    MissingAsset,
    NotReady,
    Truncated,
    Unreadable,
    Unsupported,
)
from flystore.storage import FileStream, OpenedFile, Roots, is_windows, without_waiting

from ._late import h5py, numcodecs

if TYPE_CHECKING:
    from typing_extensions import Buffer

H5_LOCK = RLock()
"""Held around every use of h5py: HDF5 does one thing at a time anyway."""

_plugins = True

SETTLED_NS = 10 * 10**9
"""A file that changed less than 10 s ago may still be changing."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = 48  # bytes of a version 2 or 3 superblock with 8-byte addresses, checksum included
_WRITING, _SWMR = 0x01, 0x04
_TRIES = 8
_MAX_LINKS = 32

_T = TypeVar("_T")


class Trace:
    """What HDF5 read of a file to find something out: as long as those bytes are there, it would find the same.

    Parameters
    ----------
    most : int
        Bytes that are kept; more than that make it worthless.
    """

    def __init__(self, most: int = 2**22) -> None:
        self.nbytes = 0
        self.swmr = False
        """Whether a SWMR writer has the file open, which keeps it consistent."""
        self.closed = False
        """Whether the file says that nobody has it open for writing; those of before HDF5 1.10 do not say."""
        self._most = most
        self._size = 0
        self._state = (0, 0)
        self._parts: list[tuple[int, bytes]] = []

    def begin(self, file: OpenedFile) -> None:
        """Forget what was read before."""
        self._state = file.current_state()
        self.nbytes, self._parts, self._size = 0, [], self._state[0]
        self.swmr = self.closed = False

    def add(self, offset: int, data: bytes) -> None:
        self.nbytes += len(data)
        if self.nbytes <= self._most:
            self._parts.append((offset, data))

    @property
    def is_whole(self) -> bool:
        return 0 < self.nbytes <= self._most

    def holds(self, file: OpenedFile) -> bool:
        """Return whether a file, which may have grown, has all those bytes where they were."""
        if not self.is_whole or file.current_size() < self._size:
            return False
        return all(file.holds(offset, data) for offset, data in self._parts)

    def require_steady(self, file: OpenedFile) -> None:
        """Refuse what was found if its bytes may never have been in the file at one time.

        Raises
        ------
        NotReady
        """
        if not (self.swmr or (self.holds(file) if self.is_whole else file.current_state() == self._state)):
            raise NotReady(f"{file.uri} was written to while it was read; try again in a moment", uri=file.uri)


class _Stream(FileStream):
    """A file as HDF5 is to see it: the marks of a SWMR writer taken off the superblock."""

    def __init__(self, file: OpenedFile, trace: Trace | None = None) -> None:
        super().__init__(file)
        self._trace = trace
        self._at = -1
        self._superblock = b""
        self._patch()

    def _patch(self) -> None:
        size = self._file.current_size()
        at = 0
        while at + _SUPERBLOCK <= size:
            head = bytearray(_SUPERBLOCK)
            del head[self._file.read_some(at, head) :]
            if self._trace is not None:
                self._trace.add(at, bytes(head))
            if head[:8] == _SIGNATURE:
                self._take_marks_off(bytes(head), at, size)
                return
            at = at * 2 or 512

    def _take_marks_off(self, head: bytes, at: int, size: int) -> None:
        version, addresses, flags = head[8], head[9], head[11]
        if self._trace is not None:
            self._trace.closed = version >= 3 and not flags & _WRITING
        if version < 3 or addresses != 8 or not flags & _WRITING:
            return
        if self._trace is not None:
            self._trace.swmr = bool(flags & _SWMR)
        patched = head[:11] + b"\0" + head[12:28] + struct.pack("<Q", size) + head[36:44]
        self._superblock = patched + struct.pack("<I", numcodecs.jenkins.jenkins_lookup3(patched, 0))
        self._at = at

    @property
    def growing(self) -> bool:
        """Whether a writer has the file open, or died with it open."""
        return self._at >= 0

    def readinto(self, buffer: Buffer) -> int:
        start = self.tell()
        n = super().readinto(buffer)
        if self._trace is not None:
            self._trace.add(start, bytes(memoryview(buffer).cast("B")[:n]))
        low, high = max(start, self._at), min(start + n, self._at + _SUPERBLOCK)
        if self.growing and low < high:
            view = memoryview(buffer).cast("B")
            view[low - start : high - start] = self._superblock[low - self._at : high - self._at]
        return n


def without_plugins() -> None:
    """Have HDF5 load no filter from any place, in this process: for a service, not for somebody's own session.

    Filters that are not known are refused before HDF5 sees them; this is the second wall.
    """
    global _plugins
    _plugins = False


def _forget_plugins() -> None:
    while h5py.h5pl.size():
        h5py.h5pl.remove(0)


def is_settling(file: OpenedFile) -> bool:
    """Return whether the file changed so recently that it may be changing still."""
    return not file.steady and time.time_ns() - file.current_state()[1] < SETTLED_NS


def with_dataset(
    roots: Roots,
    file: OpenedFile,
    path: str,
    use: Callable[[h5py.Dataset, OpenedFile], _T],
    trace: Trace | None = None,
) -> _T:
    """Return what `use` makes of a dataset and the file that holds it, another one if links led there.

    Nothing of h5py may outlive the call. A file that is written to is read again if it changed midway. `trace` is told
    what was read of `file`, not of others; what is given is then what the file held at one time.

    Raises
    ------
    Unreadable
        If the file or the object makes no sense; `NotReady` if the file is still changing.
    Truncated
        If the file is shorter than HDF5 recorded.
    OutsideRoots, MissingAsset
        If a link leads to a file that may not be read, or is not there.
    Unsupported
        If a link is of a kind that is not followed.
    """

    def found(stack: ExitStack) -> _T:
        if trace is not None:
            trace.begin(file)
        dataset, owner = _find(stack, roots, file, path, trace)
        result = use(dataset, owner)
        if trace is not None:
            trace.require_steady(file)
        return result

    return while_settling(file, path, found)


def while_settling(file: OpenedFile, path: str, use: Callable[[ExitStack], _T]) -> _T:
    """Return what `use` makes of HDF5, called under its lock, and again if a file that is changing made no sense.

    Nothing of h5py may outlive the call; what is opened goes on the stack.

    Raises
    ------
    Unreadable
        As `with_dataset`, and all that `use` raises on purpose.
    """

    def locked() -> _T:
        with H5_LOCK, ExitStack() as stack:
            return use(stack)

    for attempt in range(_TRIES):
        try:
            return without_waiting(locked)
        except NotReady:
            if attempt == _TRIES - 1 or file.steady:
                raise
        except FlystoreError:
            raise
        # What h5py raises depends on where HDF5 stumbled over a half-written or damaged structure.
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
            if attempt == _TRIES - 1 or not is_settling(file):
                raise _explained(error, file, path) from error
        time.sleep(0.001 * 2**attempt)
    raise AssertionError("unreachable")


def _explained(error: Exception, file: OpenedFile, path: str) -> Unreadable:
    text = str(error)
    stated = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", text)
    if stated:
        found, announced = int(stated[1]), int(stated[2])
        return Truncated(
            f"{file.uri} ends at byte {found}; HDF5 recorded {announced} bytes when it was written",
            uri=file.uri,
            found=found,
            announced=announced,
        )
    reason = re.sub(r"^(Unable to|Can't) synchronously ", "cannot ", text)
    if is_settling(file):
        return NotReady(f"{file.uri}, dataset {path!r}: {reason}. It changed moments ago; try again.")
    return Unreadable(f"{file.uri}, dataset {path!r}: {reason}", uri=file.uri, dataset=path)


@contextmanager
def _opened(file: OpenedFile, trace: Trace | None = None) -> Iterator[h5py.File]:
    stream = _Stream(file, trace)
    if not _plugins:
        _forget_plugins()
    with h5py.File(stream, "r") as opened:
        yield opened


# --------------------------------------------------------------------------- links


def _find(
    stack: ExitStack, roots: Roots, file: OpenedFile, path: str, trace: Trace | None
) -> tuple[h5py.Dataset, OpenedFile]:
    """Follow a path to a dataset. Every file on the way stays open as long as the stack."""
    here, owner = walk(stack, roots, file, path, trace)
    if not isinstance(here, h5py.Dataset):
        raise _no_dataset(file, path, "it is not a dataset")
    return here, owner


def walk(
    stack: ExitStack, roots: Roots, file: OpenedFile, path: str, trace: Trace | None = None
) -> tuple[Any, OpenedFile]:
    """Follow a path to whatever it names. Every file on the way stays open as long as the stack.

    Raises
    ------
    Unreadable
        If it leads nowhere; carries ``absent``: ``path`` if there is no such name, ``link`` if a link is broken.
    OutsideRoots, MissingAsset, Unsupported
        As `with_dataset`.
    """
    group = stack.enter_context(_opened(file, trace))["/"]
    trail: list[str] = _components(path)
    here, owner, links = group, file, 0
    while trail:
        name, trail = trail[0], trail[1:]
        absent = "link" if links else "path"
        if not isinstance(here, h5py.Group):
            raise _no_dataset(file, path, f"{here.name!r} is not a group", absent)
        link = _link(here, name, file, path, absent)
        if isinstance(link, h5py.HardLink):
            here = here[name]
            continue
        links += 1
        if links > _MAX_LINKS:
            raise _no_dataset(file, path, f"more than {_MAX_LINKS} links follow one another", "link")
        trail = _components(link.path) + trail
        if isinstance(link, h5py.ExternalLink):
            owner = _linked_file(stack, roots, owner, link.filename)
            here = stack.enter_context(_opened(owner))["/"]
        elif link.path.startswith("/"):
            here = here.file["/"]
    return here, owner


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _link(group: h5py.Group, name: str, file: OpenedFile, path: str, absent: str) -> Any:
    if name not in group.id:  # of the link itself; says nothing about where it leads
        raise _no_dataset(file, path, f"there is no {name!r} in {group.name!r}", absent)
    try:
        return group.get(name, getlink=True)
    except TypeError as error:
        raise Unsupported(f"{file.uri}: the link {name!r} is of a kind that is not followed") from error


def _no_dataset(file: OpenedFile, path: str, why: str, absent: str = "path") -> Unreadable:
    return Unreadable(f"{file.uri} has no dataset {path!r}: {why}", uri=file.uri, dataset=path, absent=absent)


def _linked_file(stack: ExitStack, roots: Roots, owner: OpenedFile, name: str) -> OpenedFile:
    return stack.enter_context(open_linked(roots, owner, name))


def open_linked(roots: Roots, owner: OpenedFile, name: str) -> OpenedFile:
    """Open the file that an external link or a virtual dataset in `owner` names, inside the roots only.

    A relative name is looked for beside the file that holds it. An absolute one where it says, through the
    path maps; if it is not there, under its last component beside the file, as HDF5 does.

    Raises
    ------
    OutsideRoots, MissingAsset, Unreadable
    """
    label = f"{name!r}, linked from {owner.uri},"
    beside = posixpath.dirname(owner.path)
    if not (name.startswith("/") or is_windows(name)):
        return roots.open_path(posixpath.join(beside, name), label)
    try:
        return roots.open_path(roots.here(name), label)
    except MissingAsset:
        last = re.split(r"[/\\]", name)[-1]
        return roots.open_path(posixpath.join(beside, last), label)


def dataset_path(value: object, uri: str) -> str:
    """Return the parameter ``dataset`` as a path; a list is its components.

    Raises
    ------
    Unreadable
        If there is none.
    """
    parts: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    path = "/".join(part for part in parts if isinstance(part, str))
    if not path.strip("/") or "\0" in path:
        raise Unreadable(f"{uri}: nothing says which dataset is meant (parameter 'dataset')", uri=uri)
    return path
