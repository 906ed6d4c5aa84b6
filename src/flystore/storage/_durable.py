"""Arrays as the Zarr library has them, in folders whose files are written durably.

Zarr takes longer to load than the rest of a service, so nothing but `ArrayStore` imports this, and late.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from flystore.disk import replace_file
from flystore.model.errors import Damaged

from ._keep import DirectoryFolder, Folder
from ._sums import METADATA, checked_metadata, summed_metadata, written

_ALL_CHUNKS: Any = {"write_empty_chunks": True}  # zeros that somebody wrote are not zeros that nobody wrote


class DurableStore(LocalStore):
    """A directory whose files are written durably, and whose losses show when they are read."""

    def __init__(self, folder: DirectoryFolder) -> None:
        super().__init__(folder.path)
        self._folder = folder

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return self._checked(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return self._checked(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))

    def _checked(self, key: str, found: Buffer | None) -> Buffer | None:
        if key == METADATA and found is not None:
            checked_metadata(found.to_bytes())
        if found is None and key in self._written:
            raise Damaged(f"the chunk {key} was written and is gone", chunk=key)
        return found

    @cached_property
    def _written(self) -> frozenset[str]:
        return written(self._folder)

    async def set(self, key: str, value: Buffer) -> None:
        self.set_sync(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        if key == METADATA:
            replace_file(self._folder.path / key, summed_metadata(value.to_bytes()))
        else:
            self._folder.put_listed(key, value.as_buffer_like(), "chunk")

    def settle(self) -> None:
        """Nothing is left to do."""


def _store_of(folder: Folder) -> Any:
    if isinstance(folder, DirectoryFolder):
        return DurableStore(folder)
    from ._bucket_arrays import BucketStore
    from ._keep_bucket import BucketFolder

    assert isinstance(folder, BucketFolder)
    return BucketStore(folder)


def create(folder: Folder, **as_zarr: Any) -> None:
    """Make an array in a folder; what it is to be is said as `zarr.create_array` takes it."""
    codecs = [BloscCodec(cname="lz4"), Crc32cCodec()]
    store = _store_of(folder)
    try:
        zarr.create_array(store=store, compressors=codecs, zarr_format=3, **as_zarr)
    finally:
        store.settle()


def opened(folder: Folder) -> Any:
    """Return the array in a folder, to be read; `changing` gives it to be written."""
    return zarr.open_array(_store_of(folder), mode="r+", zarr_format=3).with_config(_ALL_CHUNKS)


@contextmanager
def changing(folder: Folder) -> Iterator[Any]:
    """Give the array in a folder, to be read and written; what was written is listed at the end."""
    store = _store_of(folder)
    try:
        yield zarr.open_array(store, mode="r+", zarr_format=3).with_config(_ALL_CHUNKS)
    finally:
        store.settle()
