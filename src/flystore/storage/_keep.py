"""A place for the bytes of arrays and parts, and a directory as one.

What belongs together, an array or the parts of a node, is a folder under a key; names in it have slashes. Who keeps
arrays asks nothing else of the place, so that a bucket (`_keep_bucket.py`) does as well.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from flystore.disk import make_directory, replace_file, sync_directory
from flystore.disk.failpoints import reach
from flystore.model.errors import InvalidRequest

from ._locks import FileLocks
from ._sums import WRITTEN, written_line
from ._uris import uri_of_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._keep_bucket import BucketPart

_T = TypeVar("_T")


class Locks(Protocol):
    """Exclusive locks by key, between all who write to one place; dropped when their holder dies."""

    def holding(self, key: int | str) -> AbstractContextManager[None]:
        """Hold the lock of `key` for the block, waiting for who holds it."""

    def keeping_writers_out(self, key: int | str) -> AbstractContextManager[None]:
        """Hold the lock of `key` for the block; makes nothing where nobody ever wrote."""


class Folder(Protocol):
    """What is kept under one key."""

    def is_there(self) -> bool:
        """Return whether it was made."""

    def make(self) -> None:
        """Make it, durably; it is there already, or not, as the caller knows."""

    def remove(self) -> None:
        """Remove all of it, durably; what is not there is removed already."""

    def get(self, name: str) -> bytes | None:
        """Return a file's content; None if there is none."""

    def names(self) -> list[str]:
        """Return the names of all files, in no order; what is half written is left out."""

    def begin_list(self) -> None:
        """Begin the list of what was written (`WRITTEN`), of which nothing is known so far."""

    def put_listed(self, name: str, content: "Buffer", what: str) -> None:
        """Give a file its content, whole and durably, and list it; `what` it is, for failpoints."""

    def part(self, name: str) -> "Path | BucketPart | None":
        """Return a file to be opened; None if there is none."""

    def again_if_overtaken(self, change: Callable[[], _T]) -> _T:
        """Do a change that reads first, from the beginning again if another writer was in between."""


class Keep(Protocol):
    """A place for folders.

    Attributes
    ----------
    directory : Path
        Of this machine: where a directory keeps all, and any other place nothing that lasts.
    """

    directory: Path

    def folder(self, key: str) -> Folder:
        """Return the folder under a key; InvalidRequest if it is no key."""

    def uri(self, key: str) -> str:
        """Return the address of a folder."""

    def locks(self, kind: str) -> Locks:
        """Return locks; two kinds do not know of each other."""


def checked_key(key: str) -> str:
    """Return a key that can be the name of a folder.

    Raises
    ------
    InvalidRequest
    """
    parts = key.split("/")
    if not all(parts) or any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        raise InvalidRequest(f"{key!r} is not a storage key")
    return key


class DirectoryKeep:
    """Folders as directories of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def folder(self, key: str) -> "DirectoryFolder":
        return DirectoryFolder(self.directory / checked_key(key))

    def uri(self, key: str) -> str:
        return uri_of_path(str(self.directory.resolve() / key))

    def locks(self, kind: str) -> FileLocks:
        return FileLocks(self.directory, kind)


class DirectoryFolder:
    """A directory whose files are written durably and replaced whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_there(self) -> bool:
        return self.path.is_dir()

    def make(self) -> None:
        make_directory(self.path)

    def remove(self) -> None:
        if self.path.exists():
            reach("storage.before_delete")
            shutil.rmtree(self.path)
            sync_directory(self.path.parent)
            reach("storage.after_delete")

    def get(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        return [
            os.path.relpath(os.path.join(where, name), self.path).replace(os.sep, "/")
            for where, _, files in os.walk(self.path)
            for name in files
            if not name.startswith(".writing-")
        ]

    def begin_list(self) -> None:
        (self.path / WRITTEN).touch()
        sync_directory(self.path)

    def put_listed(self, name: str, content: "Buffer", what: str) -> None:
        path = self.path / name
        new = not path.exists()
        reach(f"storage.before_{what}")
        if path.parent != self.path:  # else the folder was made, or it was removed and stays so
            make_directory(path.parent)
        replace_file(path, content)
        reach(f"storage.after_{what}")
        if new:
            # After the file and not synced: if this line is lost, less is known, and nothing wrong is said.
            with (self.path / WRITTEN).open("ab") as listed:
                listed.write(written_line(name))

    def part(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.exists() else None

    def again_if_overtaken(self, change: Callable[[], _T]) -> _T:
        return change()  # writers hold a lock that the kernel keeps


def keep_of(place: "Keep | Path") -> Keep:
    """Return a place for folders; of a path, the directory."""
    return DirectoryKeep(place) if isinstance(place, Path) else place


__all__ = [
    "DirectoryFolder",
    "DirectoryKeep",
    "Folder",
    "Keep",
    "Locks",
    "checked_key",
    "keep_of",
]
