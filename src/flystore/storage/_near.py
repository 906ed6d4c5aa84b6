"""Files that can be read without waiting: on a disk of this machine, and the bytes in memory already.

An event loop may read such bytes itself, which costs less than asking a thread to. Everything that is not certain is
`WouldWait`, and left to a thread.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from flystore.disk import file_system_of
from flystore.model.errors import FlystoreError

from ._budget import _account
from ._roots import FLAGS, FileStream, OpenedFile, Roots
from ._uris import is_object

if TYPE_CHECKING:
    from typing_extensions import Buffer

# fmt: off
_OF_THIS_MACHINE = frozenset({
    "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs",
})
# fmt: on

_MOUNTS = Path("/proc/self/mounts")
_MOST_NAMES = 10_000


class WouldWait(Exception):
    """Something cannot be had at once; ask for it in a thread, which says what is wrong if anything is."""


class NearFile(OpenedFile):
    """A file of which only what is in memory is read; the rest is `WouldWait`, as is its end."""

    @classmethod
    def of(cls, file: OpenedFile) -> "NearFile":
        """Return the same open file; there is one descriptor, so close one of them."""
        return cls(file.fd, file.path, file.uri, file.stat)

    def read_into(self, offset: int, into: "Buffer") -> None:
        view = memoryview(into).cast("B")
        try:
            n = os.preadv(self.fd, [view], offset, os.RWF_NOWAIT)
        except OSError as error:  # not in memory, or a file system that cannot tell
            raise WouldWait(str(error)) from error
        if n < len(view):
            raise WouldWait(f"{n} of {len(view)} bytes")

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(offset, data)
        return bytes(data)

    def holds(self, offset: int, data: bytes) -> bool:
        return self.read(offset, len(data)) == data

    def stream(self) -> FileStream:
        raise WouldWait("a library reads what it wants")


class NearNames:
    """The URIs whose files were opened before, and lie on a disk of this machine; safe between threads."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, bool] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, uri: str) -> bool:
        return self._names.get(uri, False)

    def note(self, uri: str, path: str) -> None:
        """Remember whether the file of a URI, which really is at `path`, is near. Not on an event loop."""
        if uri in self._names:
            return
        near = not is_object(path) and _is_near(path)
        with self._lock:
            self._names[uri] = near
            while len(self._names) > _MOST_NAMES:
                self._names.popitem(last=False)


class NearRoots(Roots):
    """Roots that open what was opened before under the same name, is near, and still is a regular file inside.

    What counts is, as ever, where the open descriptor leads. The name is not walked before: it was, and what it leads
    to now is refused after opening, by a thread that says why.
    """

    near: NearNames

    def _open_path(self, path: str, uri: str) -> OpenedFile:
        if uri not in self.near:
            raise WouldWait("it was not opened before")
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WouldWait("it is no regular file")
        fd = os.open(path, FLAGS)
        try:
            status = os.fstat(fd)
            where = self._checked(fd, path, status, uri)
            if not stat.S_ISREG(status.st_mode):
                raise WouldWait("it is no regular file")
        except BaseException:
            os.close(fd)
            raise
        return NearFile(fd, where, uri, status)


def _is_near(path: str) -> bool:
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return False
    return file_system_of(path, mounts) in _OF_THIS_MACHINE


@contextmanager
def reserved_at_once(lasting: int, meanwhile: int, what: str) -> Iterator[None]:
    """Reserve memory for work on an event loop, where nobody may wait for it; within, nothing more is counted.

    Parameters
    ----------
    lasting, meanwhile : int
        Bytes until the request ends, and bytes of the block only.

    Raises
    ------
    WouldWait
        If others hold the memory.
    """
    account = _account.get()
    try:
        if account is not None and not account.try_take(lasting + meanwhile, what):
            raise WouldWait("other requests hold the memory")
    except FlystoreError as error:
        raise WouldWait(error.message) from error
    token = _account.set(None)
    try:
        yield
    except BaseException:
        if account is not None:
            account.give_back(lasting)
        raise
    finally:
        _account.reset(token)
        if account is not None:
            account.give_back(meanwhile)
