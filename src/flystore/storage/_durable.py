"""Arrays as the Zarr library has them, in directories whose files are written durably.

Zarr takes longer to load than the rest of a service, so nothing but `ArrayStore` imports this, and late.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from flystore.disk import make_directory, replace_file
from flystore.disk.failpoints import reach
from flystore.model.errors import Damaged

from ._sums import METADATA, WRITTEN, checked_metadata, summed_metadata, written, written_line

_ALL_CHUNKS: Any = {"write_empty_chunks": True}  # zeros that somebody wrote are not zeros that nobody wrote


class DurableStore(LocalStore):
    """A directory whose files are written durably, and whose losses show when they are read."""

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
        return written(self.root)

    async def set(self, key: str, value: Buffer) -> None:
        self.set_sync(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        path = self.root / key
        if key == METADATA:
            replace_file(path, summed_metadata(value.to_bytes()))
            return
        new = not path.exists()
        reach("storage.before_chunk")
        make_directory(path.parent)
        replace_file(path, value.as_buffer_like())
        reach("storage.after_chunk")
        if new:
            # After the chunk and not synced: if this line is lost, less is known, and nothing wrong is said.
            with (self.root / WRITTEN).open("ab") as listed:
                listed.write(written_line(key))


def create(path: Path, **as_zarr: Any) -> None:
    """Make an array in the directory `path`; what it is to be is said as `zarr.create_array` takes it."""
    codecs = [BloscCodec(cname="lz4"), Crc32cCodec()]
    zarr.create_array(store=DurableStore(path), compressors=codecs, zarr_format=3, **as_zarr)


def opened(path: Path) -> Any:
    """Return the array in the directory `path`, to be read and written."""
    return zarr.open_array(DurableStore(path), mode="r+", zarr_format=3).with_config(_ALL_CHUNKS)
