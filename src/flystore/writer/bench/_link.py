"""A link to a service that can be slow, come and go: a process of its own between writer and service.

``python -m flystore.writer.bench._link HOST PORT`` prints the port at which it listens, and then obeys lines of JSON
on its standard input, answering each: ``{"up": true, "rate": 1000000, "delays": [0.05, 5]}``. It ends with its input.
"""

import asyncio
import contextlib
import json
import random
import sys
from typing import Any

PIECE_BYTES = 16 * 1024


class Link:
    """Forwards connections; how, may change at any time.

    Attributes
    ----------
    up : bool
        While False, nothing listens, and what was open is cut.
    rate : float or None
        Bytes a second that pass towards the service, all connections together; None is as fast as it goes.
    delays : (float, float) or None
        Seconds that an answer is held back, at least and at most; short ones are as likely as long ones.
    flaps : (float, float) or None
        Seconds for which it is up, and then down, again and again.
    """

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flapping: asyncio.Task[None] | None = None
        self._rate: float | None = None
        self._delays: tuple[float, float] | None = None
        self._free_at = 0.0

    async def obey(self, up: bool = True, rate: Any = None, delays: Any = None, flaps: Any = None) -> None:
        """Become as told."""
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        self._rate, self._delays = rate, delays
        await self._be(up)
        if flaps:
            self._flapping = asyncio.create_task(self._flap(*flaps))

    async def listen(self) -> int:
        """Begin to listen; return the port, which stays the same."""
        await self._be(True)
        return self._port

    async def _flap(self, seconds_up: float, seconds_down: float) -> None:
        while True:
            await self._be(True)
            await asyncio.sleep(seconds_up)
            await self._be(False)
            await asyncio.sleep(seconds_down)

    async def _be(self, up: bool) -> None:
        if up and self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, reuse_address=True)
            self._port = self._server.sockets[0].getsockname()[1]
        elif not up and self._server is not None:
            self._server.close()
            self._server = None
            for writer in tuple(self._open):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        asked = asyncio.Event()
        try:
            there, back = await asyncio.open_connection(*self._where)
            self._open.add(back)
            ways = [
                asyncio.create_task(self._towards(reader, back, asked)),
                asyncio.create_task(self._back(there, writer, asked)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(back)
            back.transport.abort()
        except OSError:
            pass  # the service is not there: neither is the link
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _towards(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                asked.set()
                if self._rate:
                    now = asyncio.get_running_loop().time()
                    self._free_at = max(now, self._free_at) + len(piece) / self._rate
                    await asyncio.sleep(self._free_at - now)
                writer.write(piece)
                await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if asked.is_set() and self._delays:
                    least, most = self._delays
                    await asyncio.sleep(least * (most / least) ** random.random())
                asked.clear()
                writer.write(piece)
                await writer.drain()


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


async def _main(host: str, port: int) -> None:
    link = Link(host, port)
    _say(await link.listen())
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await link.obey(**json.loads(line))
        _say("obeyed")
    await link.obey(up=False)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
