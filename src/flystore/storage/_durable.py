"""Files and directories that survive a power cut once the call returns."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_TEMPORARY = ".writing-"


def write_durably(path: Path, data: "Buffer") -> None:
    """Write a whole file: afterwards it is there with this content, or as it was before, never in between.

    The parent directory must exist. Readers see the old content or the new, whole.
    """
    with NamedTemporaryFile(dir=path.parent, prefix=_TEMPORARY, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def make_directory_durably(path: Path) -> None:
    """Make a directory and those above it; ones that exist are left as they are."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory (files made, renamed, removed) survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
