"""Objects in a bucket that speaks S3: a thin client, with bounded waits and this project's errors.

Credentials, endpoint and region come from the usual variables of the environment (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, …) or from the machine's role.
Everything here waits for the network: never call it on an event loop.

The library that does the work is imported when the first bucket is opened.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from flystore.model.errors import (
    Conflict,
    DeadlineExceeded,
    FlystoreError,
    InvalidRequest,
    Misconfigured,
    MissingAsset,
    NoAccess,
    NotReady,
    Truncated,
    Unavailable,
    Unreadable,
    Unsupported,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

SCHEME = "s3://"

PART_BYTES = 4 << 20
"""Longest range asked for in one request; longer ones are several at once."""

AT_ONCE = 16
"""Requests of this process that are under way at the same time, besides one for each thread that asks."""

REQUEST_SECONDS = 30.0
"""For one request with its answer; another try follows after it, see `RETRY_SECONDS`."""

CONNECT_SECONDS = 5.0

RETRIES = 4
"""Further tries after a request that failed for no fault of ours (refused connection, 5xx, 429)."""

RETRY_SECONDS = 20.0
"""No further try begins so long after the first one."""

_MOST_KEY = 1024
"""Bytes of a key, S3's limit."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w{1,60})\s*</Code>")


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a bucket says about an object.

    Attributes
    ----------
    name : str
        Below the prefix of the `Bucket` that was asked.
    size : int
        Bytes.
    etag : str
        Another one means other content; empty if the bucket gives none.
    mtime_ns : int
        When it was put, ns since 1970; whole seconds in most buckets.
    """

    name: str
    size: int
    etag: str
    mtime_ns: int


class Bucket:
    """The objects below one prefix of a bucket; safe between threads, and nothing to close.

    Names are relative to the prefix, with ``/``. Names with empty segments, ``.`` or ``..`` are `InvalidRequest`.

    Parameters
    ----------
    url : str
        ``s3://bucket`` or ``s3://bucket/prefix``, nothing in it decoded.

    Raises
    ------
    Misconfigured
        If it is no such URL, or if obstore is not installed.

    Notes
    -----
    Every method can raise:

    NoAccess
        If the bucket refuses, or there are no credentials.
    Unavailable, DeadlineExceeded
        If it cannot be reached, or does not answer within the limits of this module.
    Unreadable
        If it answers something else that makes no sense.
    """

    def __init__(self, url: str) -> None:
        bucket, prefix = split_url(url)
        self.bucket = bucket
        self.prefix = prefix
        self.url = f"{SCHEME}{bucket}/{prefix}".rstrip("/")

    def url_of(self, name: str) -> str:
        """Return the URL of an object, for messages."""
        return f"{self.url}/{name}"

    def stat(self, name: str, *, shown: str | None = None) -> ObjectStat:
        """Return what the bucket says about an object (one HEAD).

        Parameters
        ----------
        shown : str or None
            What messages name instead of the object's URL; likewise below.

        Raises
        ------
        MissingAsset
            If it is not there.
        """
        key = self._key(name)
        with _explained(shown or self.url_of(name)):
            return self._stat(_obstore().head(self._store, key))

    def read_into(
        self, name: str, ranges: Sequence[tuple[int, "Buffer"]], *, etag: str = "", shown: str | None = None
    ) -> None:
        """Fill writable buffers with ranges of an object, several requests at once.

        Parameters
        ----------
        ranges : sequence of (int, buffer)
            Where each begins, bytes, and the buffer to fill. Ranges next to one another are not joined.
        etag : str
            Only this version of the object is read; empty for any, and then parts may be of different versions.

        Raises
        ------
        MissingAsset
            If the object is not there.
        NotReady
            If it was replaced by another version; read again.
        Truncated
            If the object ends before a range does.
        """
        key, shown = self._key(name), shown or self.url_of(name)
        parts = []
        for offset, into in ranges:
            view = memoryview(into).cast("B")
            parts += [(offset + at, view[at : at + PART_BYTES]) for at in range(0, len(view), PART_BYTES)]
        _all_done([partial(self._read_part, key, at, view, etag, shown) for at, view in parts])

    def read(self, name: str, *, etag: str = "", shown: str | None = None) -> tuple[bytes, str]:
        """Return a whole object, and its ETag (one GET); errors as `read_into`."""
        key = self._key(name)
        with _explained(shown or self.url_of(name)):
            found = _obstore().get(self._store, key, options={"if_match": etag} if etag else None)
            data = bytes(found.bytes())
            return data, found.meta["e_tag"] or ""

    def put(self, name: str, data: "Buffer", *, if_absent: bool = False, if_etag: str = "") -> str:
        """Store an object whole, and return its ETag; it is there when this returns, and never in part.

        A large one goes up in parts unless a condition is given.

        Parameters
        ----------
        if_absent : bool
            Only if there is none of this name.
        if_etag : str
            Only in place of this version; empty for no such condition.

        Raises
        ------
        Conflict
            If the condition does not hold. A try whose answer was lost may have stored it: a caller that can tell
            its own content should look.
        Unsupported
            If the bucket knows no such condition.
        """
        key = self._key(name)
        mode: Any = "create" if if_absent else {"e_tag": if_etag} if if_etag else "overwrite"
        with _explained(self.url_of(name)):
            view = memoryview(data).cast("B")
            stored = _obstore().put(self._store, key, view, mode=mode)
            return stored["e_tag"] or ""

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        keys = [self._key(name) for name in names]
        if keys:
            with _explained(self.url), suppress(FileNotFoundError):
                _obstore().delete(self._store, keys)

    def listed(self, below: str = "") -> Iterator[ObjectStat]:
        """Yield every object below a name (whole segments), at any depth, in the bucket's order; all for an empty one.

        Raises
        ------
        MissingAsset
            If there is no such bucket. One without such objects yields nothing.
        """
        prefix = self._key(below) if below else self.prefix
        with _explained(f"{SCHEME}{self.bucket}/{prefix}"):
            for found in _obstore().list(self._store, prefix or None, chunk_size=1000):
                for meta in found:
                    yield self._stat(meta)

    def children(self, below: str = "") -> tuple[list[str], list[ObjectStat]]:
        """Return what is directly below a name: "directories", and objects; errors as `listed`."""
        prefix = self._key(below) if below else self.prefix
        with _explained(f"{SCHEME}{self.bucket}/{prefix}"):
            found = _obstore().list_with_delimiter(self._store, prefix or None)
            names = [self._name(common) for common in found["common_prefixes"]]
            return names, [self._stat(meta) for meta in found["objects"]]

    def require_reachable(self) -> None:
        """Ask for a list of one object: says whether the bucket is there, and lets us look.

        Raises
        ------
        MissingAsset
            If there is no such bucket.
        """
        with _explained(self.url):
            for _ in _obstore().list(self._store, self.prefix or None, chunk_size=1):
                return

    @property
    def _store(self) -> Any:
        return _store(self.bucket, _settings(), os.getpid())

    def _key(self, name: str) -> str:
        key = f"{self.prefix}/{name}" if self.prefix else name
        require_key(key, self.url_of(name))
        return key

    def _name(self, key: str) -> str:
        return key[len(self.prefix) :].lstrip("/") if self.prefix else key

    def _stat(self, meta: Any) -> ObjectStat:
        modified = meta["last_modified"]
        mtime_ns = int(modified.timestamp()) * 10**9 + modified.microsecond * 1000
        return ObjectStat(self._name(meta["path"]), meta["size"], meta["e_tag"] or "", mtime_ns)

    def _read_part(self, key: str, offset: int, into: memoryview, etag: str, shown: str) -> None:
        options: dict[str, Any] = {"range": (offset, offset + len(into))}
        if etag:
            options["if_match"] = etag
        with _explained(shown, announced=offset + len(into)):
            found = _obstore().get(self._store, key, options=options)
            data = memoryview(found.bytes()).cast("B")
        if len(data) < len(into):
            raise _truncated(shown, announced=offset + len(into), found=offset + len(data))
        into[:] = data


def split_url(url: str) -> tuple[str, str]:
    """Return bucket and key (or prefix, without a ``/`` at its end) of an ``s3://`` URL.

    Raises
    ------
    Misconfigured
        If it is none.
    """
    if url[: len(SCHEME)].lower() != SCHEME:
        raise Misconfigured(f"{url!r} is not a URL of a bucket; for example s3://bucket/prefix")
    bucket, _, prefix = url[len(SCHEME) :].partition("/")
    prefix = prefix.removesuffix("/")
    if not _BUCKET.fullmatch(bucket):
        raise Misconfigured(f"{url!r} names no bucket; for example s3://bucket/prefix")
    if prefix:
        try:
            require_key(prefix, url)
        except InvalidRequest as error:
            raise Misconfigured(error.message) from error
    return bucket, prefix


def require_key(key: str, shown: str) -> None:
    """Refuse what cannot be the key of an object that is reached here.

    Raises
    ------
    InvalidRequest
    """
    shown = shown if len(shown) <= 200 else shown[:200] + "…"
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{shown!r} is not the name of an object: it is no UTF-8") from error
    if length > _MOST_KEY:
        raise InvalidRequest(f"{shown!r} is not the name of an object: its key has more than {_MOST_KEY} bytes")
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise InvalidRequest(f"{shown!r} is not the name of an object: a part between / is empty, . or ..")
    if any(ord(c) < 32 or ord(c) == 127 for c in key):
        raise InvalidRequest(f"{shown!r} is not the name of an object: it has control characters")


def require_client() -> None:
    """Refuse to go on where the library that reaches buckets is not installed.

    Raises
    ------
    Misconfigured
    """
    _obstore()


@lru_cache(maxsize=1)
def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise Misconfigured(
            "objects in a bucket (s3://…) need the package obstore: pip install 'flystore[objects]'"
        ) from error
    return obstore


def _settings() -> tuple[str, ...]:
    """Return what of the environment decides how a bucket is reached, so that another setting is another connection."""
    return tuple(sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("AWS_")))


@lru_cache(maxsize=64)
def _store(bucket: str, settings: tuple[str, ...], process: int) -> Any:
    """Return the connection to a bucket; one for each process, because a fork takes no threads along."""
    _obstore()
    from obstore.store import S3Store

    endpoints = ("AWS_ENDPOINT_URL_S3=", "AWS_ENDPOINT_URL=", "AWS_ENDPOINT=")
    plain = any(one.startswith(endpoints) and one.partition("=")[2].startswith("http://") for one in settings)
    client: Any = {"timeout": timedelta(seconds=REQUEST_SECONDS), "connect_timeout": timedelta(seconds=CONNECT_SECONDS)}
    retry: Any = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=3),
            "base": 2,
        },
    }
    try:
        return S3Store(
            bucket,
            client_options={**client, **({"allow_http": True} if plain else {})},
            retry_config=retry,
        )
    except Exception as error:
        raise Misconfigured(
            f"the bucket {bucket} cannot be reached with the AWS_… variables as they are: {_first_line(error)}"
        ) from error


_pool_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    with _pool_lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools[os.getpid()] = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="flystore-objects")
        return pool


def _all_done(calls: Sequence[Callable[[], None]]) -> None:
    """Do all, several at once, one of them in this thread; the first error is raised when none runs any more.

    What is waited for writes into buffers of the caller, so nothing may go on after this.
    """
    if len(calls) == 1:
        calls[0]()
        return
    waiting: list[Future[None]] = []
    try:
        pool = _pool()
        waiting += [pool.submit(call) for call in calls[1:]]
        if calls:
            calls[0]()
        for future in waiting:
            future.result()
    finally:
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled():
                future.exception()


@contextmanager
def _explained(shown: str, announced: int | None = None) -> Iterator[None]:
    try:
        yield
    except FlystoreError:
        raise
    except Exception as error:
        raise _in_words(error, shown, announced) from error


def _in_words(error: Exception, shown: str, announced: int | None) -> FlystoreError:
    text = str(error)
    name = type(error).__name__
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    found = _CODE.search(text)
    code = found[1] if found else ""
    said = f" ({code})" if code else f" (status {status})" if status else ""
    if code == "NoSuchBucket":
        return MissingAsset(f"{shown} does not exist: there is no such bucket", uri=shown, missing="bucket")
    if "169.254.169.254" in text or "169.254.170.2" in text:
        return NoAccess(
            f"{shown} cannot be asked for: this service has no credentials; the operator sets AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (or AWS_SKIP_SIGNATURE=true for a public bucket)",
            uri=shown,
        )
    if isinstance(error, FileNotFoundError):
        return MissingAsset(f"{shown} does not exist in the bucket, or there is no such bucket", uri=shown)
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return NoAccess(
            f"{shown} is refused by the bucket{said}: the operator gives this service's credentials leave to use it, "
            "and to list the bucket, without which a missing object is refused too",
            uri=shown,
        )
    if name == "AlreadyExistsError":
        return Conflict(f"{shown} exists already", uri=shown)
    if name == "PreconditionError" and "performing PUT" in text:
        return Conflict(f"{shown} is another version than expected; read it again", uri=shown)
    if name == "PreconditionError":
        return NotReady(f"{shown} was replaced while it was read; read again", uri=shown)
    if name in ("NotSupportedError", "NotImplementedError") or status == 501:
        return Unsupported(f"the bucket of {shown} does not offer what was asked of it{said}", uri=shown)
    if status == 416 and announced is not None:
        size = re.search(r"<ActualObjectSize>(\d+)<", text)
        return _truncated(shown, announced, int(size[1]) if size else None)
    if isinstance(error, ValueError):
        return InvalidRequest(f"{shown[:200]!r} is not the name of an object: {_first_line(error)[:200]}")
    if status in (408, 409, 429) or status >= 500:
        return Unavailable(f"{shown} cannot be had now: the bucket answers {status}{said}; try again later", uri=shown)
    if "TimedOut" in text or "timed out" in text:
        return DeadlineExceeded(
            f"{shown} cannot be had: the bucket does not answer in time; try again later", uri=shown
        )
    if "HTTP error" in text or "reqwest" in text:
        hint = "" if "builder error" not in text else "; an http:// endpoint belongs in AWS_ENDPOINT_URL"
        return Unavailable(f"{shown} cannot be had: the bucket cannot be reached{hint}; try again later", uri=shown)
    if "Received redirect" in text:
        return Unreadable(
            f"{shown} cannot be read: the bucket is in another region; the operator sets AWS_REGION", uri=shown
        )
    return Unreadable(f"{shown} cannot be read: the bucket answers something unexpected{said}", uri=shown)


def _truncated(shown: str, announced: int, found: int | None) -> Truncated:
    end = "before" if found is None else f"at byte {found};"
    expected = f"byte {announced}" if found is None else f"{announced} were expected"
    return Truncated(f"{shown} ends {end} {expected}", uri=shown, announced=announced, found=found)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
