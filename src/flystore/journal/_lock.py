"""A lock on a directory that dies with the process that holds it."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path
from typing import Self

_HELD: "weakref.WeakSet[DirectoryLock]" = weakref.WeakSet()


class DirectoryLock:
    """An exclusive `flock` on the file `lock` of a directory.

    The kernel gives it back when the process ends, however it ends. Only one holder exists at a
    time, in this process or another.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    @classmethod
    def take(cls, directory: Path, *, create: bool = False) -> Self | None:
        """Return the held lock, or None if another has it or the directory is gone."""
        path = directory / "lock"
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        try:
            descriptor = os.open(path, flags, 0o600)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the directory between our open and our lock.
            if os.fstat(descriptor).st_ino != os.stat(path).st_ino:
                raise FileNotFoundError(path)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def note(self, text: str) -> None:
        """Write into the lock file who holds it, for people who look."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(directory: Path) -> bool:
    """Return whether a living process holds the directory; False if there is no such directory."""
    path = directory / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    with contextlib.closing(os.fdopen(descriptor, "rb+", buffering=0)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _let_go_in_child() -> None:
    # A forked child shares the open file and so would keep the lock when its parent dies.
    # Closing the child's copy does not unlock; the parent's stays.
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
