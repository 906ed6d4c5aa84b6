"""Where a store keeps arrays and parts: its directory, or a bucket that several services may share.

A store is told once. Its directory then says which bucket (`STORAGE_FILE`), and the bucket says which store, so that
arrays are neither looked for in the wrong place nor mixed with those of another store.
"""

import logging
from contextlib import AbstractContextManager
from pathlib import Path

from flystore.catalog import Catalog
from flystore.disk import make_directory, replace_file
from flystore.model.errors import Misconfigured
from flystore.storage import BucketKeep, DirectoryKeep, FileLocks, Keep, Locks

from .backup import ARRAYS_DIRECTORY, STORAGE_FILE, storage_of

log = logging.getLogger("flystore.service")


def opened_keep(directory: Path, storage: str | None, catalog: Catalog) -> Keep:
    """Return where a store keeps arrays and parts, after trying it.

    Parameters
    ----------
    storage : str, optional
        ``s3://bucket/prefix``; None: the bucket that this store was given before, or else the directory.

    Raises
    ------
    Misconfigured
        If the bucket is not there, refuses, or belongs to another store; if this store keeps its arrays elsewhere, or
        obstore is not installed.
    Unavailable
        If the bucket does not answer.
    """
    arrays = directory / ARRAYS_DIRECTORY
    make_directory(arrays)
    told = storage_of(directory)
    storage = storage or told
    if storage is None:
        return DirectoryKeep(arrays)
    keep = bucket_keep(directory, storage, catalog)
    if told not in (None, keep.url):
        raise Misconfigured(
            f"the store {directory} keeps its arrays in {told}, not in {keep.url}; give that address",
            directory=str(directory),
        )
    if told is None and any(not path.name.startswith(".") for path in arrays.iterdir()):
        raise Misconfigured(
            f"the store {directory} keeps its arrays in the directory already; leave --storage out, or copy the "
            f"store to the bucket: flystore copy {directory} NEW --to-storage {keep.url}",
            directory=str(directory),
        )
    keep.examine()
    if not keep.conditional:
        log.warning(
            "%s ignores the conditions If-None-Match and If-Match: writers of this machine are kept apart, those of "
            "several machines are not; let one machine write, or use a bucket that knows conditions",
            keep.url,
        )
    keep.belongs_to(store_of(catalog))
    if told is None:
        replace_file(directory / STORAGE_FILE, keep.url.encode())
    return keep


def bucket_keep(directory: Path, storage: str, catalog: Catalog | None = None) -> BucketKeep:
    """Return a bucket as a place for arrays, nothing tried yet."""

    def locks(kind: str) -> Locks:
        # Chunks and lists are put on conditions; what has to wait for its turn waits in the database, if that is what
        # several machines share.
        if catalog is not None and kind != "array" and catalog.backend == "postgresql":
            return _CatalogLocks(catalog, kind)
        return FileLocks(directory / ARRAYS_DIRECTORY, kind)

    return BucketKeep(storage, directory, locks)


def kept_in(directory: Path) -> Keep:
    """Return where the store in a directory keeps arrays and parts, to be read; nothing is tried."""
    storage = storage_of(directory)
    return DirectoryKeep(directory / ARRAYS_DIRECTORY) if storage is None else bucket_keep(directory, storage)


def store_of(catalog: Catalog) -> str:
    """Return what tells a catalogue from every other one."""
    with catalog.read() as snapshot:
        return snapshot.store()


class _CatalogLocks:
    """Locks in the database that all services share."""

    def __init__(self, catalog: Catalog, kind: str) -> None:
        self._catalog = catalog
        self._kind = kind

    def holding(self, key: int | str) -> AbstractContextManager[None]:
        return self._catalog.holding(f"{self._kind} {key}")

    keeping_writers_out = holding
