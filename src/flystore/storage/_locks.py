"""Locks between all who write to one store: threads of this process, and other processes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flystore.disk import make_directory

LOCKS_DIRECTORY = ".locks"
_MANY = 64
"""Lock files of one kind; keys share them, so one may wait for a stranger, never wrongly go on."""


class FileLocks:
    """Exclusive locks by key, as `flock` on files of a directory: the kernel drops those of a process that dies.

    Not reentrant: who holds a key of a kind must not ask for any key of that kind.

    Parameters
    ----------
    directory : Path
        Of the store; the files are below `LOCKS_DIRECTORY` in it, and empty.
    kind : str
        What is locked; two kinds do not know of each other.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory / LOCKS_DIRECTORY
        self._kind = kind

    @contextmanager
    def holding(self, key: int | str) -> Iterator[None]:
        """Hold the lock of `key` for the block, waiting for who holds it."""
        # Opened each time: two threads that share a descriptor would not keep each other out.
        try:
            descriptor = os.open(self._path(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            make_directory(self._directory)
            descriptor = os.open(self._path(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with _locked(descriptor):
            yield

    @contextmanager
    def keeping_writers_out(self, key: int | str) -> Iterator[None]:
        """Hold the lock of `key` if anybody ever did; makes no file, so it does for a backup that nobody writes to."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        with _locked(descriptor):
            yield

    def _path(self, key: int | str) -> Path:
        number = int(key) % _MANY if str(key).isdecimal() else sum(str(key).encode()) % _MANY
        return self._directory / f"{self._kind}-{number}"


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Lock a file for the block, and close it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
