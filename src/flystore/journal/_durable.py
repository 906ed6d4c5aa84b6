"""Files and directories that are still there after a power cut: one helper for each case.

A new name is only durable once its directory is synced, and a replaced file once the new content
was synced before the rename. Elsewhere in the room nobody calls `fsync` on a directory by hand.
"""

import os
from pathlib import Path

datasync = getattr(os, "fdatasync", os.fsync)
"""`os.fdatasync` where the system has it (macOS does not)."""


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path, mode: int = 0o700) -> None:
    """Make `path` and what is missing above it, each durable in its parent; fine if it is there.

    Raises
    ------
    OSError
        As `os.mkdir` does; `FileExistsError` or `NotADirectoryError` if a file is in the way.
    """
    missing = []
    at = path
    while not at.is_dir():
        missing.append(at)
        if at == at.parent:
            break
        at = at.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode)
        except FileExistsError:
            if not directory.is_dir():
                raise
        sync_directory(directory.parent)


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Give `path` this content; after any crash it has the old or the new one, whole."""
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(fresh, path)
    sync_directory(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a short write (a disk that is almost full) goes on with the rest."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])
