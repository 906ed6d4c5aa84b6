"""Arrays of the Zarr library in a folder of a bucket.

Zarr takes longer to load than the rest of a service, so nothing but `_durable` imports this, and late.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from functools import cached_property
from threading import Condition
from typing import Self, TypeVar

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from flystore.disk.failpoints import reach
from flystore.model.errors import Damaged

from ._keep_bucket import BucketFolder, Overtaken
from ._sums import METADATA, WRITTEN, checked_metadata, listed_in, summed_metadata

_T = TypeVar("_T")


class BucketStore(Store):
    """One use of an array: what is read and then written is written only over what was read.

    Each request is made in a thread, several at once. `settle` ends the use.
    """

    supports_writes = True
    supports_deletes = False
    supports_listing = True

    def __init__(self, folder: BucketFolder) -> None:
        super().__init__(read_only=False)
        self._folder = folder
        self._versions: dict[str, str | None] = {}
        self._put: set[str] = set()
        self._running = 0
        self._ended = False
        self._changed = Condition()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    async def _apart(self, use: Callable[[], _T]) -> _T:
        return await asyncio.to_thread(self._counted, use)

    def _counted(self, use: Callable[[], _T]) -> _T:
        with self._changed:
            if self._ended:
                raise Overtaken
            self._running += 1
        try:
            return use()
        except BaseException:
            with self._changed:
                self._ended = True  # what was to be put after this has no use, and must not come late
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def settle(self) -> None:
        """Wait for what is under way, allow nothing more, and list what was written."""
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: self._running == 0)
        self._folder.list_written(self._put)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        content = await self._apart(lambda: self._get(key))
        if content is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(_within(content, byte_range))

    def _get(self, key: str) -> bytes | None:
        found = self._folder.got(key)
        if found is None and key.startswith("c"):
            found = self._missing(key)
        self._versions[key] = None if found is None else found[1]
        if found is None:
            return None
        if key == METADATA:
            checked_metadata(found[0])
        return found[0]

    def _missing(self, key: str) -> tuple[bytes, str] | None:
        if key not in self._listed:
            return None
        found = self._folder.got(key)  # it may have been written between the two
        if found is None:
            raise Damaged(f"the chunk {key} was written and is gone", chunk=key)
        return found

    @cached_property
    def _listed(self) -> frozenset[str]:
        content = self._folder.get(WRITTEN)
        if content is None:
            raise Damaged(f"the list of what was written ({WRITTEN}) is gone")
        return listed_in(content)

    async def set(self, key: str, value: Buffer) -> None:
        content = value.to_bytes()
        await self._apart(lambda: self._set(key, content))

    def _set(self, key: str, content: bytes) -> None:
        if key == METADATA:
            content = summed_metadata(content)
        else:
            reach("storage.before_chunk")
        if key in self._versions:
            self._folder.put_over(key, content, self._versions.pop(key))
        else:
            self._folder.put(key, content)
        if key != METADATA:
            reach("storage.after_chunk")
            self._put.add(key)

    async def exists(self, key: str) -> bool:
        return await self._apart(lambda: self._folder.get(key) is not None)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def delete(self, key: str) -> None:
        raise NotImplementedError("chunks are never removed one by one")

    async def list(self) -> AsyncIterator[str]:
        for name in await self._apart(self._folder.names):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for name in self.list():
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        below = prefix.rstrip("/") + "/" if prefix else ""
        seen: set[str] = set()
        async for name in self.list_prefix(below):
            seen.add(name[len(below) :].partition("/")[0])
        for name in sorted(seen):
            yield name

    def with_read_only(self, read_only: bool = False) -> Self:
        raise NotImplementedError("one store is one use")


def _within(content: bytes, byte_range: ByteRequest | None) -> bytes:
    match byte_range:
        case RangeByteRequest(start, end):
            return content[start:end]
        case OffsetByteRequest(offset):
            return content[offset:]
        case SuffixByteRequest(suffix):
            return content[-suffix:]
    return content
