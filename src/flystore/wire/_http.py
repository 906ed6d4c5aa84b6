"""Requests over sockets: a pool of kept-alive connections, bodies read where they belong."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from typing import Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from flystore.model.errors import Conflict, DeadlineExceeded, FlystoreError, InvalidRequest, Unavailable

from ._address import ServiceAddress, api_key_from_environment, parse_address
from ._answer import Answer, Body, encode_params, raise_for_error
from ._transport import Headers, Params, StreamedAnswer, Unpacking

CONNECT_SECONDS = 10.0
TIMEOUT_SECONDS = 120.0
"""Without any byte from the service; a cold read of a large chunk from slow disks takes tens of seconds."""

PIECE_BYTES = 1 << 20
"""What is taken from a socket at once: the rate is flat from 1 MiB up, and one piece stays in the cache."""

ATTEMPTS = 3
"""Of a GET whose connection failed."""

FIRST_PAUSE_SECONDS = 0.1
NOT_READY_SECONDS = 5.0
"""How long a GET keeps asking for data that the service says will be there in a moment."""

_POOL_SIZE = 16
_SHORT_BYTES = 16 << 10
_REDIRECTS = (301, 302, 303, 307, 308)


class HttpTransport:
    """A `Transport` to a service at a URL.

    Parameters
    ----------
    base_url : str
        As typed: with or without ``/api/v1``, a node's path or ``?api_key=``. The path is not used here.
    api_key : str, optional
        Wins over one in the URL, which wins over ``FLYSTORE_API_KEY`` and ``TILED_API_KEY``. With none of
        them requests are anonymous.
    timeout : float
        Seconds without a byte from the service before a request fails with `DeadlineExceeded`.
    sleep : callable
        Waits between attempts; given seconds.

    Raises
    ------
    InvalidRequest
        If `base_url` is not the URL of a service. Nothing is sent yet.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        address = parse_address(base_url)
        self._base_url = address.base_url
        self._api_key = api_key or address.api_key or api_key_from_environment()
        self._timeout = timeout
        self._sleep = sleep
        self._lock = threading.Lock()
        self._pool: urllib3.PoolManager | None = None
        self._pool_process = 0
        self._base: tuple[str, urllib3.PoolManager, urllib3.HTTPConnectionPool, str] | None = None
        # Compressing costs a local service more than the bytes cost the loopback.
        self._compressed = {} if address.is_loopback else urllib3.util.make_headers(accept_encoding=True)

    def __reduce__(self) -> Any:
        return (_restore, (self._base_url, self._api_key, self._timeout))

    def __repr__(self) -> str:
        return f"<HttpTransport {self._base_url}>"

    @property
    def where(self) -> str:
        return self._base_url

    @property
    def base_url(self) -> str:
        return self._base_url

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
    ) -> Answer:
        def attempt() -> Answer:
            response = self._send(method, path, params, {**self._compressed, **(headers or {})}, body, timeout)
            with _released(response):
                return Answer(response.status, _lower(response.headers), _whole_body(response))

        return self._repeated(method, path, attempt)

    def readinto(
        self,
        method: str,
        path: str,
        into: memoryview,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
        unpacking: Callable[[memoryview], Unpacking] | None = None,
    ) -> Answer:
        def attempt() -> Answer:
            # No compression: the bytes go straight where they belong.
            codings = "identity" if unpacking is None else "identity, blosc2;q=0.5"
            plain = {**(headers or {}), "Accept-Encoding": codings}
            response = self._send(method, path, params, plain, body, timeout)
            with _released(response):
                what = self._in_words(method, path)
                if unpacking is not None and "content-encoding" in response.headers:
                    _unpack(response, unpacking, into, path, what)
                    return Answer(response.status, _lower(response.headers), b"")
                announced = response.headers.get("content-length", "")
                if announced.isdigit() and int(announced) != len(into):
                    raise size_changed(path, len(into), int(announced))
                _fill(response, into, path, what)
                return Answer(response.status, _lower(response.headers), b"")

        return self._repeated(method, path, attempt)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        body: bytes | bytearray | memoryview | None = None,
        timeout: float | None = None,
    ) -> Iterator[StreamedAnswer]:
        what = self._in_words(method, path)
        try:
            response = self._send(method, path, params, {**self._compressed, **(headers or {})}, body, timeout)
            with _released(response):
                chunks = self._chunks(response, what)
                yield StreamedAnswer(response.status, _lower(response.headers), chunks, partial(_shut, response))
        except HTTPError as error:
            self._fail(what, error)

    def close(self) -> None:
        with self._lock:
            pool, self._pool, self._base = self._pool, None, None
        if pool is not None:
            pool.clear()

    def _chunks(self, response: BaseHTTPResponse, what: str) -> Iterator[bytes]:
        # Errors of the socket are turned here, so that those of the code that takes the chunks are not.
        try:
            yield from response.stream(PIECE_BYTES, decode_content=True)
        except HTTPError as error:
            self._fail(what, error)

    def _send(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Headers,
        body: bytes | bytearray | memoryview | None,
        timeout: float | None,
    ) -> BaseHTTPResponse:
        """Return the response to one request, its body unread, or raise the error it reports."""
        sent = {"User-Agent": "flystore", **headers}
        if self._api_key is not None:
            sent["Authorization"] = f"Apikey {self._api_key}"
        query = encode_params(params)
        target = f"{path}?{query}" if query else path
        for _ in range(3):
            pool, base_path = self._connections()
            response = pool.urlopen(
                method,
                base_path + target,
                body=body,
                headers=sent,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=timeout or self._timeout),
            )
            if response.status not in _REDIRECTS:
                break
            self._follow(method, path, response)
        if response.status >= 400:
            with _released(response):
                failed = _whole_body(response)
            raise_for_error(response.status, _lower(response.headers), failed, self._in_words(method, path))
        return response

    def _follow(self, method: str, path: str, response: BaseHTTPResponse) -> None:
        """Take the service's new base URL from a redirect, if it is the same host and no less secure."""
        with _released(response):
            response.drain_conn()
        location = response.headers.get("location", "")
        old, new = urlsplit(self._base_url), urlsplit(location)
        moved = location.split("?")[0]
        if (
            method == "GET"
            and new.hostname == old.hostname
            and (new.scheme == "https" or old.scheme == new.scheme)
            and moved.endswith(path)
            and moved != self._base_url + path
        ):
            self._base_url = moved.removesuffix(path)
            return
        raise InvalidRequest(
            f"{self._in_words(method, path)} was redirected to {location or 'nowhere'}; if that is "
            "the service, use its URL",
            location=location,
        )

    def _connections(self) -> tuple[Any, str]:
        """Return what sends requests, and what comes before the path of one to it."""
        with self._lock:
            # A forked child must not speak on its parent's sockets.
            if self._pool is None or self._pool_process != os.getpid():
                self._pool = _new_pool(self._base_url)
                self._pool_process = os.getpid()
            if isinstance(self._pool, urllib3.ProxyManager):
                return self._pool, self._base_url
            # Asked with a whole URL, the manager would take it apart anew for each request.
            if self._base is None or self._base[0] != self._base_url or self._base[1] is not self._pool:
                parts = urlsplit(self._base_url)
                connections = self._pool.connection_from_url(self._base_url)
                self._base = self._base_url, self._pool, connections, parts.path
            return self._base[2], self._base[3]

    def _repeated(self, method: str, path: str, attempt: Callable[[], Answer]) -> Answer:
        """Run `attempt`, again a few times if it is a GET that failed for want of a connection or of data."""
        what = self._in_words(method, path)
        pause, failures, waited = FIRST_PAUSE_SECONDS, 0, 0.0
        while True:
            try:
                return attempt()
            except (NewConnectionError, ConnectTimeoutError, ProtocolError) as error:
                failures += 1
                if method != "GET" or failures >= ATTEMPTS or isinstance(error, NameResolutionError):
                    self._fail(what, error)
                self._sleep(pause)
                pause *= 4
            except HTTPError as error:
                self._fail(what, error)
            except FlystoreError as error:
                if method != "GET" or error.kind != "not-ready" or waited >= NOT_READY_SECONDS:
                    raise
                self._sleep(1.0)
                waited += 1.0

    def _in_words(self, method: str, path: str) -> str:
        return f"{method} {self._base_url}{path}"

    def _fail(self, what: str, error: HTTPError) -> NoReturn:
        if isinstance(error, ReadTimeoutError):
            raise DeadlineExceeded(
                f"{what}: no byte from the service for {self._timeout:g} s. It may be busy; try "
                "again, or ask for less at once.",
                url=self._base_url,
            ) from error
        reason = _reason(error)
        if isinstance(error, SSLError):
            advice = "Its certificate is not one this machine trusts; check the URL's host name and the clock."
        elif isinstance(error, (NewConnectionError, ConnectTimeoutError)):
            advice = f"Is the service running and reachable at {self._base_url}?"
        else:
            advice = "The connection broke; try again."
        raise Unavailable(f"{what}: {reason}. {advice}", url=self._base_url) from error


class _InOnePiece:
    """Hands a short body to the socket together with the head, so that whoever waits for it wakes once."""

    _held: list[bytes] | None = None

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any) -> None:
        if not isinstance(body, bytes) or len(body) > _SHORT_BYTES:
            super().request(method, url, body, headers, **options)  # type: ignore[misc]
            return
        held: list[bytes] = []
        self._held = held
        try:
            super().request(method, url, body, headers, **options)  # type: ignore[misc]
        finally:
            self._held = None
        self.send(b"".join(held))

    def send(self, data: Any) -> None:
        if self._held is not None:
            self._held.append(data)
        else:
            super().send(data)  # type: ignore[misc]


class _Connection(_InOnePiece, urllib3.connection.HTTPConnection):
    pass


class _SecureConnection(_InOnePiece, urllib3.connection.HTTPSConnection):
    pass


class _Connections(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecureConnections(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _shut(response: BaseHTTPResponse) -> None:
    """Have a read that waits in another thread end as if the service had gone."""
    with suppress(ValueError, OSError):  # it has ended by itself
        response.shutdown()


def _restore(base_url: str, api_key: str | None, timeout: float) -> HttpTransport:
    return HttpTransport(base_url, api_key, timeout=timeout)


def _new_pool(base_url: str) -> urllib3.PoolManager:
    address = ServiceAddress(base_url, (), None)
    parts = urlsplit(base_url)
    proxy = getproxies_environment().get(parts.scheme)
    if proxy and not address.is_loopback and not proxy_bypass_environment(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, maxsize=_POOL_SIZE)
    pools = urllib3.PoolManager(maxsize=_POOL_SIZE)
    pools.pool_classes_by_scheme = {"http": _Connections, "https": _SecureConnections}
    return pools


def size_changed(path: str, expected: int, found: int) -> Conflict:
    """Return the error for a body of another size than the caller made room for."""
    return Conflict(
        f"{path} has {found} bytes where {expected} were expected: the data has changed since its shape was "
        "read. Look it up again and repeat the read.",
        expected=expected,
        found=found,
    )


@contextmanager
def _released(response: BaseHTTPResponse) -> Iterator[None]:
    """Give the connection back: for reuse if its body was read to the end, else closed."""
    try:
        yield
    except BaseException:
        response.close()
        raise
    finally:
        if not response.closed and response.length_remaining not in (0, None):
            response.close()
        response.release_conn()


def _whole_body(response: BaseHTTPResponse) -> Body:
    length = response.headers.get("content-length", "")
    if not length.isdigit() or int(length) < PIECE_BYTES or "content-encoding" in response.headers:
        return response.read(decode_content=True)
    # One read of many MiB is three times slower than pieces into a buffer.
    whole = bytearray(int(length))
    filled = _fill_from(response, memoryview(whole))
    if filled != len(whole):
        raise ProtocolError(f"the body ended after {filled} of {len(whole)} bytes")
    return whole


def _fill(response: BaseHTTPResponse, into: memoryview, path: str, what: str) -> None:
    filled = 0
    try:
        for n in _filling(response, into):
            filled += n
        if filled != len(into):
            if "content-length" in response.headers:
                raise ProtocolError(f"the body ended after {filled} of {len(into)} bytes")
            raise size_changed(path, len(into), filled)
    except ProtocolError as error:
        # Short bodies are asked for again from the beginning; of long ones, what came is worth more than that.
        if filled and len(into) > PIECE_BYTES:
            raise broken_off(what, filled, len(into), _reason(error)) from error
        raise
    surplus = response.read(PIECE_BYTES)
    if surplus:
        raise size_changed(path, len(into), len(into) + len(surplus))


def _unpack(
    response: BaseHTTPResponse, unpacking: Callable[[memoryview], Unpacking], into: memoryview, path: str, what: str
) -> None:
    with unpacking(into) as unpacked:
        coding = response.headers["content-encoding"]
        if coding != unpacked.coding:
            raise Unavailable(f"{what}: the answer is encoded as {coding!r}, which was not asked for", coding=coding)
        try:
            while count := _receive(response, unpacked.room()):
                unpacked.add(count)
        except ProtocolError as error:
            filled = unpacked.filled()
            if filled > PIECE_BYTES:
                raise broken_off(what, filled, len(into), _reason(error)) from error
            raise
        filled = unpacked.filled()
        if filled != len(into):
            raise size_changed(path, len(into), filled)


def _receive(response: BaseHTTPResponse, into: memoryview) -> int:
    """Read some of a body that is not decoded into a buffer; return how many bytes, 0 at its end.

    urllib3 makes an object of what it reads, whose memory is new to the process each time: that costs as much as
    receiving it. So this goes to the reader of the standard library beneath, and keeps urllib3's account of the rest.
    """
    raw = getattr(response, "_fp", None)
    if not isinstance(raw, HTTPResponse) or response.length_remaining is None:
        return _readinto(response, into)
    try:
        count = raw.readinto(into)
    except TimeoutError as error:
        raise ReadTimeoutError(None, None, "the body stopped arriving") from error  # type: ignore[arg-type]
    except (OSError, HTTPException) as error:
        raise ProtocolError(str(error)) from error
    response.length_remaining -= count
    if not count and response.length_remaining:
        raise ProtocolError(f"{response.length_remaining} bytes are missing")
    return count


def broken_off(what: str, filled: int, expected: int, reason: str) -> Unavailable:
    """Return the error of a body that ended early; the fact `filled` says how many bytes of it are there."""
    return Unavailable(
        f"{what}: the connection broke after {filled} of {expected} bytes: {reason}. Try again.", filled=filled
    )


def _filling(response: BaseHTTPResponse, into: memoryview) -> Iterator[int]:
    """Fill a buffer from a body that is not compressed; yield how many bytes came each time."""
    at = 0
    while at < len(into):
        n = _readinto(response, into[at : at + PIECE_BYTES])
        if n == 0:
            return
        at += n
        yield n


def _readinto(response: BaseHTTPResponse, into: memoryview) -> int:
    piece = response.read(len(into), decode_content=False)
    into[: len(piece)] = piece
    return len(piece)


def _fill_from(response: BaseHTTPResponse, into: memoryview) -> int:
    return sum(_filling(response, into))


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _reason(error: BaseException) -> str:
    """Return the innermost cause as a short text, without object addresses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = str(error) or type(error).__name__
    return text.rsplit(">: ", 1)[-1]
