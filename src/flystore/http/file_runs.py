"""Bytes that go from a file to a socket within the kernel, past the loop and its buffers.

`offering` wraps an application for one connection of uvicorn: requests that could be answered that way say so in
``scope["extensions"]``, and a message of that name, with `FileRuns` under ``runs``, is then a part of the body. Where
the extension is not offered (TLS, other servers, systems without sendfile), bodies are read and sent as always.
"""

import asyncio
import os
import select
import socket
import sys
from asyncio import Transport
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from flystore.model.errors import Truncated, Unreadable
from flystore.service import Limits
from flystore.storage import FileRuns

FILE_RUNS = "flystore.file_runs"
"""Name of the extension, and type of its message: ``{"type": …, "runs": FileRuns}``. The body goes on after it."""

_AT_ONCE_BYTES = 8 << 20
_POLLED_MS = 20
"""How long a thread waits for a client that takes nothing, before the event loop does."""

_SYSCTLS = ("/proc/sys/net/ipv4/tcp_wmem", "/proc/sys/net/ipv4/tcp_rmem")
_USUAL_SOCKETS_BYTES = 10 << 20
_PIECES_BYTES = 9 << 20


def takes_file_runs(scope: Scope) -> bool:
    """Return whether parts of the answer to a request may be `FileRuns`."""
    return FILE_RUNS in scope.get("extensions", ())


def bytes_to_read_last() -> int:
    """Return how many bytes must be read and sent after `FileRuns` for these to have left the kernel's hands.

    What sendfile hands over are the file's own pages: whoever writes to the file changes what a client has not yet
    taken. A file that is unchanged when the last piece is read was so when the last byte sent that way was taken, if
    what lies between the two is more than the sockets at both ends hold.
    """
    found = 0
    for name in _SYSCTLS:
        try:
            with open(name) as file:
                found += int(file.read().split()[2])
        except (OSError, ValueError, IndexError):
            return _USUAL_SOCKETS_BYTES + _PIECES_BYTES
    return found + _PIECES_BYTES


class Connection(Protocol):
    """What is needed of uvicorn's protocol of a connection."""

    limits: Limits
    transport: Transport
    loop: asyncio.AbstractEventLoop


def can_send_files(transport: Transport) -> bool:
    """Return whether bytes of files can go to a transport's socket past it."""
    sock = transport.get_extra_info("socket")
    plain = transport.get_extra_info("sslcontext") is None and transport.get_extra_info("ssl_object") is None
    return sys.platform == "linux" and plain and sock is not None and sock.type == socket.SOCK_STREAM


def offering(app: ASGIApp, connection: Connection) -> ASGIApp:
    """Return an application that may answer on a connection with `FileRuns`."""

    async def offered(scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if scope["type"] == "http" and scope["method"] == "GET" and isinstance(cycle, RequestResponseCycle):
            scope.setdefault("extensions", {})[FILE_RUNS] = {}

            async def sending(message: Message) -> None:
                if message["type"] == FILE_RUNS:
                    await _send(connection, cycle, message["runs"])
                else:
                    await cycle.send(message)  # type: ignore[arg-type]

            await app(scope, receive, sending)
        else:
            await app(scope, receive, send)

    return offered


async def _send(connection: Connection, cycle: RequestResponseCycle, runs: FileRuns) -> None:
    if cycle.chunked_encoding or not cycle.response_started or runs.nbytes > cycle.expected_content_length:
        raise RuntimeError("bytes of files are sent within a body of known length")
    if not await _emptied(cycle):
        return
    fd = os.dup(cycle.transport.get_extra_info("socket").fileno())  # the transport may close its own meanwhile
    try:
        if await _Sending(connection, cycle, runs, fd).all():
            cycle.expected_content_length -= runs.nbytes
    finally:
        os.close(fd)


async def _emptied(cycle: RequestResponseCycle) -> bool:
    """Wait until all that was written before is with the kernel; return whether the client is still there."""
    transport = cycle.transport
    transport.set_write_buffer_limits(high=0)  # so that writing is paused while there is anything
    try:
        while transport.get_write_buffer_size() and not _gone(cycle):
            if cycle.flow.write_paused:
                await cycle.flow.drain()
            else:
                await asyncio.sleep(0)
    finally:
        transport.set_write_buffer_limits()
    return not _gone(cycle)


def _gone(cycle: RequestResponseCycle) -> bool:
    return cycle.disconnected or cycle.transport.is_closing()


class _Sending:
    """One answer's stretches of a file on their way, by a worker thread as long as the client takes them."""

    def __init__(self, connection: Connection, cycle: RequestResponseCycle, runs: FileRuns, fd: int) -> None:
        self._connection, self._cycle, self._runs, self._fd = connection, cycle, runs, fd
        self._at = self._done = 0
        self._stopped = False

    async def all(self) -> bool:
        """Send them; return whether the client took all.

        Raises
        ------
        Truncated, Unreadable
            If the file ends earlier, or its storage reports an error.
        """
        loop, limits = self._connection.loop, self._connection.limits
        deadline = loop.time() + limits.patience_seconds
        while self._at < len(self._runs.runs):
            if _gone(self._cycle):
                return False
            before = self._at, self._done
            try:
                sent = await self._in_thread()
            except ConnectionError:
                self._cycle.transport.abort()
                return False
            deadline = min(deadline + sent / limits.slowest_rate, loop.time() + limits.patience_seconds)
            if before == (self._at, self._done) and not await self._writable(deadline):
                self._cycle.transport.abort()
                return False
        return True

    async def _in_thread(self) -> int:
        """Send what the client takes at once; also if this is cancelled, the thread ends before descriptors close."""
        task = asyncio.ensure_future(run_in_threadpool(self._some))
        try:
            await asyncio.wait({task})
        finally:
            self._stopped = True
            while not task.done():
                await asyncio.wait({task})
            self._stopped = False
        return task.result()

    async def _writable(self, deadline: float) -> bool:
        """Wait until the client takes more; return whether it did in time."""
        loop = self._connection.loop
        ready = asyncio.Event()
        loop.add_writer(self._fd, ready.set)
        try:
            while not ready.is_set() and not _gone(self._cycle):
                left = deadline - loop.time()
                if left <= 0:
                    return False
                await _within(ready, min(left, 1.0))
        finally:
            loop.remove_writer(self._fd)
        return True

    def _some(self) -> int:
        """Send a few megabytes, or until the client has taken nothing for a while; return how many bytes."""
        sent, polled = 0, select.poll()
        polled.register(self._fd, select.POLLOUT)
        while self._at < len(self._runs.runs) and sent < _AT_ONCE_BYTES and not self._stopped:
            offset, length = self._runs.runs[self._at]
            try:
                n = os.sendfile(self._fd, self._runs.file.fd, offset + self._done, length - self._done)
            except BlockingIOError:
                if polled.poll(_POLLED_MS):
                    continue
                break
            except ConnectionError:
                raise
            except OSError as error:
                raise Unreadable(f"{self._runs.file.uri} cannot be read: {os.strerror(error.errno or 0)}") from error
            if n == 0:
                raise self._truncated(offset + self._done, offset + length)
            sent += n
            self._done += n
            if self._done == length:
                self._at, self._done = self._at + 1, 0
        return sent

    def _truncated(self, at: int, end: int) -> Truncated:
        uri = self._runs.file.uri
        return Truncated(f"{uri} ends at byte {at}; {end} were expected", uri=uri, announced=end, found=at)


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
