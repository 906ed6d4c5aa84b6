"""Run an ASGI application on a real socket for as long as a ``with`` block lasts."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def reserved_port() -> socket.socket:
    """Return a socket that holds a port of 127.0.0.1 as long as it is open, and that nobody can connect to.

    A server that allows addresses to be used again can listen there, as often as a test likes. A port that was only
    looked up and let go may be somebody else's by then, or a client that tries it may come to be connected to itself.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


@contextmanager
def serving(
    app: Any, *, lifespan: str = "auto", start_seconds: float = 30.0, settings: dict[str, Any] | None = None
) -> Iterator[str]:
    """Serve `app` with uvicorn in a thread, on a port the system chooses.

    Parameters
    ----------
    app : ASGI application
    lifespan : str
        uvicorn's setting: ``auto``, ``on`` or ``off``.
    settings : dict, optional
        More of uvicorn's settings, such as those of `flystore.http.server_settings`.
    start_seconds : float
        How long the application may take to start.

    Yields
    ------
    str
        Its base URL, ``http://127.0.0.1:<port>``.
    """
    import uvicorn

    # The protocol is named because asyncio switches Nagle's algorithm off only where it is: 40 ms an answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    own: dict[str, Any] = {"log_level": "warning", "lifespan": lifespan, "timeout_graceful_shutdown": 1}
    config = uvicorn.Config(app, **own, **(settings or {}))
    server = uvicorn.Server(config)
    ready = threading.Event()
    failed: list[BaseException] = []

    async def run() -> None:
        # `startup` is where uvicorn begins to accept; there is nothing to poll for.
        original = server.startup

        async def startup(sockets: Any = None) -> None:
            await original(sockets)
            ready.set()

        server.startup = startup  # type: ignore[method-assign]
        await server.serve(sockets=[listener])

    def main() -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(run())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=main, name="flystore-testing-server")
    thread.start()
    try:
        if not ready.wait(start_seconds):
            raise TimeoutError(f"the application did not start within {start_seconds} s")
        if failed or not server.started:
            raise RuntimeError("the application did not start") from (failed[0] if failed else None)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(start_seconds)
        listener.close()
