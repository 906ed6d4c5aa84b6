"""Files and directories that are still there after a power cut: one helper for each case.

A new name is only durable once its directory is synced, and a replaced file only once the new content was
synced before the rename. Nobody else in flystore calls `fsync` on a directory.
"""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from ._examine import Remark, examine_directory
from ._mounts import file_system_of
from ._trust import FULL, FailedSync, Trust
from .failpoints import reach

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "FULL",
    "FailedSync",
    "Remark",
    "Trust",
    "datasync",
    "examine_directory",
    "file_system_of",
    "make_directory",
    "replace_file",
    "sync_directory",
    "write_all",
]

_TEMPORARY = ".writing-"

datasync = getattr(os, "fdatasync", os.fsync)
"""`os.fdatasync` where the system has it (macOS does not)."""


def replace_file(path: Path, content: "Buffer") -> None:
    """Give `path` this content; after any crash it has the old or the new one, whole.

    The directory must exist.

    Raises
    ------
    FailedSync
        If the content or the name may not last; an `OSError`.
    """
    reach("disk.before_replace")
    with NamedTemporaryFile(dir=path.parent, prefix=_TEMPORARY, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            _sync(file.fileno(), path)
            reach("disk.before_rename")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    reach("disk.after_rename")
    sync_directory(path.parent)
    reach("disk.after_replace")


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make `path` and what is missing above it, each durable in its parent; fine if it is there.

    Raises
    ------
    OSError
        As `os.mkdir` does; `FileExistsError` or `NotADirectoryError` if a file is in the way.
    """
    missing = []
    at = path
    while not at.is_dir() and at != at.parent:
        missing.append(at)
        at = at.parent
    for directory in reversed(missing):
        reach("disk.before_mkdir")
        try:
            directory.mkdir(mode)
        except FileExistsError:
            if not directory.is_dir():
                raise
        reach("disk.after_mkdir")
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable: files made, renamed, removed.

    Raises
    ------
    FailedSync
        If they may not last; an `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor, path)
    finally:
        os.close(descriptor)


def _sync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise FailedSync.of(error, str(path)) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a short write (a disk that is almost full) goes on with the rest."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])
