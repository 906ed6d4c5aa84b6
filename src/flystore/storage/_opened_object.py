"""An object of a bucket as an opened file: one version of it, however often it is replaced meanwhile.

Small reads, which are how a library looks around in a file, go through pages that are kept for all that read the same
version. Parts of the data are read as they are wanted, or fetched together before they are.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from flystore.model.errors import FlystoreError, Truncated, Unreadable

from ._budget import _account, held, reserve
from ._objects import Bucket, ObjectStat, split_url
from ._roots import OpenedFile

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")

PAGE_BYTES = 1 << 18
"""Read at a time where a library looks around."""

_KEPT_PAGES = 64
_LONG_PAGES = 4
_LONGEST_STEP = 16
"""Pages fetched at once, at most, by who reads on and on."""

_MOST_TURNS = 64
_GAP_BYTES = 1 << 16
"""What lies between two ranges is read with them if it is not longer: a request takes as long as about so much."""


class OpenedObject(OpenedFile):
    """An object inside the roots, for reading by position; it has no descriptor.

    All that is read is of the version that was found when it was opened. If there is another one by then, reading is
    `NotReady`.
    """

    steady = True
    remote = True

    def __init__(self, bucket: Bucket, key: str, uri: str, found: ObjectStat) -> None:
        # Nothing of the base: there is no descriptor.
        self.path = bucket.url_of(key)
        self.uri = uri
        self._bucket = bucket
        self._key = key
        self._found = found
        self._ahead: tuple[list[int], list[memoryview]] = ([], [])
        digest = hashlib.blake2b(found.etag.encode(), digest_size=8).digest()
        self._tag = -1 - (int.from_bytes(digest) >> 4)

    @property
    def fingerprint(self) -> tuple[int, int, int]:
        """(number made of the ETag, negative; size in bytes; modification time in ns)."""
        return (self._tag, self._found.size, self._found.mtime_ns)

    @property
    def size(self) -> int:
        return self._found.size

    @property
    def modified_ns(self) -> int:
        return self._found.mtime_ns

    @property
    def place(self) -> tuple[object, ...]:
        return (self.path,)

    @property
    def version(self) -> tuple[object, ...]:
        return (self.path, self._found.etag, self._found.size)

    def current_size(self) -> int:
        """Size in bytes when opened: this version has no other."""
        return self._found.size

    def current_state(self) -> tuple[int, int]:
        return self._found.size, self._found.mtime_ns

    def stored_until(self, offset: int) -> int | None:
        return None

    def read_into(self, offset: int, into: "Buffer") -> None:
        view = memoryview(into).cast("B")
        self._require(offset, len(view))
        starts, found = self._ahead
        at = bisect_right(starts, offset) - 1
        if at >= 0 and offset + len(view) <= starts[at] + len(found[at]):
            view[:] = found[at][offset - starts[at] : offset - starts[at] + len(view)]
        else:
            self._fetch([(offset, view)])

    def read(self, offset: int, length: int) -> bytes:
        self._require(offset, length)  # before allocating: a damaged header may announce anything
        whole = bytearray(length)
        self.read_into(offset, whole)
        return bytes(whole)

    def _require(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise Truncated(
                f"{self.uri} ends at byte {self.size}; {offset + length} were expected",
                uri=self.uri,
                announced=offset + length,
                found=self.size,
            )

    def read_some(self, offset: int, into: "Buffer") -> int:
        view = memoryview(into).cast("B")
        view = view[: max(0, min(len(view), self.size - offset))]
        later, done = _later.get(), 0
        if later is None and len(view) > _LONG_PAGES * PAGE_BYTES:  # data, which is not asked for again so soon
            self.read_into(offset, view)
            return len(view)
        while done < len(view):
            number, within = divmod(offset + done, PAGE_BYTES)
            page = self._page(number, -(-(within + len(view) - done) // PAGE_BYTES), later)
            n = min(len(page) - within, len(view) - done)
            view[done : done + n] = page[within : within + n]
            done += n
        return len(view)

    def holds(self, offset: int, data: bytes) -> bool:
        return offset + len(data) <= self.size and self.read(offset, len(data)) == data

    def _page(self, number: int, wanted: int, later: "Later | None") -> bytes:
        key = (self.version, number)
        page = later.pages.get(key) if later is not None else None
        page = page or _pages.get(key)
        if page is None:
            if later is not None:
                wanted = max(wanted, later.step(key))
                later.put_off(lambda: self._fetch_pages(number, wanted))
            try:
                page = self._fetch_pages(number, wanted)[key]
            except FlystoreError as error:
                if later is not None:  # a library in between may take it for something else
                    later.failed = error
                raise
        if later is not None:
            later.pages[key] = page
        return page

    def _fetch_pages(self, number: int, count: int) -> "Pages":
        start = number * PAGE_BYTES
        later = _later.get()
        if later is not None:  # it keeps them all; elsewhere only the last ones stay
            later.reserve(min(count * PAGE_BYTES, self.size - start), f"what is read of {self.uri}")
        whole = bytearray(min(count * PAGE_BYTES, self.size - start))
        self._fetch([(start, memoryview(whole))])
        pages = {
            (self.version, number + at // PAGE_BYTES): bytes(whole[at : at + PAGE_BYTES])
            for at in range(0, len(whole), PAGE_BYTES)
        }
        _pages.put(pages)
        if later is not None:
            later.pages.update(pages)
        return pages

    def _fetch(self, ranges: Sequence[tuple[int, memoryview]]) -> None:
        if not self._found.etag:
            raise Unreadable(
                f"{self.uri} cannot be read: the bucket gives it no ETag, so that parts of two versions could be mixed",
                uri=self.uri,
            )
        self._bucket.read_into(self._key, ranges, etag=self._found.etag, shown=self.uri)

    @contextmanager
    def ahead(self, ranges: Sequence[tuple[int, int]]) -> Iterator[None]:
        joined = _joined(ranges, self.size)
        with held(sum(stop - start for start, stop in joined), f"what is read of {self.uri}"):
            starts = [start for start, _ in joined]
            found = [memoryview(bytearray(stop - start)) for start, stop in joined]
            self._fetch(list(zip(starts, found, strict=True)))
            before, self._ahead = self._ahead, (starts, found)
            try:
                yield
            finally:
                self._ahead = before

    def close(self) -> None:
        """Let go of what was fetched ahead; there is nothing to close, and nothing more to be done."""
        self._ahead = ([], [])


def _joined(ranges: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return (start, stop) of what to read for ranges (start, length), near ones together, none beyond the end."""
    joined: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        stop = min(start + length, size)
        if start >= stop:
            continue
        if joined and start - joined[-1][1] <= _GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return joined


Key = tuple[tuple[object, ...], int]
Pages = dict[Key, bytes]


class _KeptPages:
    """Pages of objects, by version; the least recently used go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pages: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
            return self._pages.get(key)

    def put(self, pages: Pages) -> None:
        with self._lock:
            self._pages.update(pages)
            while len(self._pages) > self._most:
                self._pages.popitem(last=False)


_pages = _KeptPages(_KEPT_PAGES)


class _PutOff(Exception):
    """Something must be fetched first."""


class Later:
    """What was fetched for work that is done under a lock, and what it needs next."""

    def __init__(self) -> None:
        self.pages: Pages = {}
        self.stats: dict[str, ObjectStat | FlystoreError] = {}
        self.failed: FlystoreError | None = None
        """What went wrong where nothing could be put off any more."""
        self._turns = 0
        self._wanted: Callable[[], object] | None = None
        self._step = 1
        self._held = 0

    def reserve(self, nbytes: int, what: str) -> None:
        """Reserve memory until the work is done."""
        reserve(nbytes, what)
        self._held += nbytes

    def end(self) -> None:
        """Give back what was reserved."""
        account = _account.get()
        if account is not None:
            account.give_back(self._held)

    def step(self, key: Key) -> int:
        """Return how many pages to fetch from one on: more, the longer reading went straight on."""
        version, number = key
        self._step = min(2 * self._step, _LONGEST_STEP) if (version, number - 1) in self.pages else 1
        return self._step

    def put_off(self, fetch: Callable[[], object]) -> None:
        """Have the work begun anew after `fetch`; return where that was so often that it is better done at once."""
        if self._turns < _MOST_TURNS:
            self._turns += 1
            self._wanted = fetch
            raise _PutOff

    @property
    def waits(self) -> bool:
        """Whether something must be fetched before the work can go on."""
        return self._wanted is not None

    def fetch(self) -> None:
        """Fetch it."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            wanted()


_later: ContextVar[Later | None] = ContextVar("flystore_later", default=None)


def without_waiting(work: Callable[[], _T]) -> _T:
    """Return what `work` does under a lock that it takes itself, the network being asked outside of it.

    Where it needs something of an object that is not here, it is left with an error, that is fetched, and it is begun
    anew. After many such turns, as with a file whose index lies all over it, it is fetched in the middle of the work.
    """
    later, account = Later(), _account.get()
    token = _later.set(later)
    try:
        while True:
            before = account.held_bytes if account is not None else 0
            try:
                done = work()
            except Exception:  # whatever a library makes of the error it was given
                if later.failed is not None:
                    raise later.failed from None
                if not later.waits:
                    raise
            else:
                if later.failed is not None:
                    raise later.failed
                if not later.waits:
                    return done
            if account is not None:  # the same is reserved anew
                account.give_back(account.held_bytes - before)
            later.fetch()
    finally:
        _later.reset(token)
        later.end()


def opened_object(url: str, uri: str) -> OpenedObject:
    """Open an object by its URL, for reading; nothing is decoded, and no root asked.

    Raises
    ------
    MissingAsset, NoAccess, Unavailable, Unreadable, InvalidRequest
        See `Bucket`.
    """
    name, key = split_url(url)
    bucket = Bucket(f"s3://{name}")
    later = _later.get()
    if later is None:
        return OpenedObject(bucket, key, uri, bucket.stat(key, shown=uri))
    if url not in later.stats:
        later.put_off(lambda: _note(later, bucket, key, url, uri))
        _note(later, bucket, key, url, uri)
    found = later.stats[url]
    if isinstance(found, FlystoreError):
        raise found
    return OpenedObject(bucket, key, uri, found)


def _note(later: Later, bucket: Bucket, key: str, url: str, uri: str) -> None:
    try:
        later.stats[url] = bucket.stat(key, shown=uri)
    except FlystoreError as error:  # it may have been one of several places to look
        later.stats[url] = error
