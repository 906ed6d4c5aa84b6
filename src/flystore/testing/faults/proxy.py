"""A link that can be cut, silenced, slowed down, made to flap, and made to lose an answer after k bytes.

A TCP proxy on 127.0.0.1, in a thread of its own. Every method may be called from any thread and holds at once for
connections that are open and those that come.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

PIECE_BYTES = 1 << 16
_ESTABLISHED = 1  # first byte of TCP_INFO
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends a reset


class Proxy:
    """Forwards connections to a port of this machine; a context manager.

    Attributes
    ----------
    port : int
        Where it listens.
    target : int
        Port that new connections are forwarded to; may be changed.
    delay : float
        Seconds before each piece is passed on, each way.
    rate : float or None
        Bytes a second towards the target, all connections together; None is no limit.
    lost_replies : int
        Answers that were cut since the start.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.rate: float | None = None
        self.lost_replies = 0
        self._lose_after: int | None = None
        self._lose_by_reset = True
        self._refusing = False
        self._forgetting = False
        self._free_at = 0.0
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flapping: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._speaking = asyncio.Event()
        self._speaking.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name="flystore-testing-proxy")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- from any thread ------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset what is open and whatever comes, until `restore`."""
        self._call(self._cut)

    def reset(self) -> None:
        """Reset what is open; what comes is forwarded."""
        self._call(self._reset)

    def silence(self, *, forgetting: bool = False) -> None:
        """Pass nothing on any more, and say nothing about it; what is under way is held until `restore`.

        Parameters
        ----------
        forgetting : bool
            Whether what was held of connections that were given up meanwhile is lost; otherwise it arrives late.
        """

        def hush() -> None:
            self._forgetting = forgetting
            self._speaking.clear()

        self._call(hush)

    def restore(self) -> None:
        """Forward everything again, what was held first."""
        self._call(self._restore)

    def lose_reply(self, after: int = 0, *, reset: bool = True) -> None:
        """Cut the connection that the next answer comes on, after so many bytes of it.

        Parameters
        ----------
        reset : bool
            True resets it, by which bytes may be lost that were sent; False ends it as if that were all.
        """

        def arm() -> None:
            self._lose_after, self._lose_by_reset = after, reset

        self._call(arm)

    def flap(self, up: float, down: float) -> None:
        """Cut and restore in turns, seconds each, until `restore`."""
        self._call(lambda: self._begin_flapping(up, down))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(60)

    # -- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accepted, sock=self._listener))
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(server.wait_closed())

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio takes a cancelled handler for a mistake and says so.
        with contextlib.suppress(asyncio.CancelledError):
            await self._forward(reader, writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _abort(writer)
            return
        if not await self._is_heard(writer):
            _abort(writer)
            return
        try:
            onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _abort(writer)
            return
        pair = (writer, onward[1])
        self._pairs.add(pair)
        there = self._begin(self._pump(reader, onward[1], pair, self._towards))
        back = self._begin(self._pump(onward[0], writer, pair, self._answering))
        await asyncio.wait((there, back))
        self._pairs.discard(pair)
        for each in pair:
            each.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        piece: Callable[[bytes], Coroutine[Any, Any, tuple[bytes, bool]]],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                if not await self._is_heard(pair[0]):
                    for each in pair:
                        _abort(each)
                    return
                data, goes_on = await piece(data)
                if data:
                    writer.write(data)
                    await writer.drain()
                if not goes_on:
                    for each in pair:
                        _end(each, reset=self._lose_by_reset)
                    return
            if writer.can_write_eof():
                writer.write_eof()

    async def _is_heard(self, client: asyncio.StreamWriter) -> bool:
        """Wait until the link is not silent; return whether what was held of a client still arrives."""
        if self._speaking.is_set():
            return True
        await self._speaking.wait()
        return not (self._forgetting and _is_given_up(client))

    async def _towards(self, data: bytes) -> tuple[bytes, bool]:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.rate is not None:
            now = self._loop.time()
            self._free_at = max(now, self._free_at) + len(data) / self.rate
            await asyncio.sleep(self._free_at - now)
        return data, True

    async def _answering(self, data: bytes) -> tuple[bytes, bool]:
        if self.delay:
            await asyncio.sleep(self.delay)
        if self._lose_after is None:
            return data, True
        if len(data) < self._lose_after:
            self._lose_after -= len(data)
            return data, True
        kept, self._lose_after = data[: self._lose_after], None
        self.lost_replies += 1
        return kept, False

    def _cut(self) -> None:
        self._refusing = True
        self._reset()

    def _reset(self) -> None:
        for pair in tuple(self._pairs):
            for each in pair:
                _abort(each)

    def _restore(self) -> None:
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        self._refusing = False
        self._speaking.set()

    def _begin_flapping(self, up: float, down: float) -> None:
        async def flap() -> None:
            while True:
                self._cut()
                await asyncio.sleep(down)
                self._refusing = False
                await asyncio.sleep(up)

        if self._flapping is None:
            self._flapping = self._begin(flap())

    async def _end(self) -> None:
        self._restore()
        self._refusing = True
        self._reset()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _is_given_up(client: asyncio.StreamWriter) -> bool:
    found = client.get_extra_info("socket")
    return bool(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED)


def _end(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if reset:
        _abort(writer)
    else:
        writer.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, at once."""
    with contextlib.suppress(OSError):
        found = writer.get_extra_info("socket")
        if found is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
