"""The other side: a service in a process of its own, and the link to it."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flystore.model.errors import Misconfigured

READY = "flystore is ready at "


class Remote(NamedTuple):
    """A service to send to.

    Attributes
    ----------
    url : str
    api_key : str or None
    """

    url: str
    api_key: str | None


class LinkProcess:
    """The process of a `Link`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = process
        self.url = url

    def be(self, **how: Any) -> None:
        """Make the link so, see `Link`; returns when it is."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(how) + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


@contextlib.contextmanager
def service() -> Iterator[Remote]:
    """Run ``flystore serve --temp`` as long as the ``with`` block lasts.

    Raises
    ------
    Misconfigured
        If it does not start; with what it said.
    """
    key = secrets.token_hex(16)
    command = [*_humble(), sys.executable, "-m", "flystore.cli", "serve", "--temp", "--port", "0"]
    environment = {**os.environ, "FLYSTORE_API_KEY": key}
    with (
        tempfile.TemporaryFile("w+") as said,
        _child(command, stderr=said, env=environment) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            process.wait()
            said.seek(0)
            raise Misconfigured(
                f"the service to measure against did not start; it said: {said.read().strip()}\nWith --to URL "
                f"the writer is measured against one that runs already, with --scenario absent against none."
            )
        yield Remote(line.removeprefix(READY).strip(), key)


@contextlib.contextmanager
def link_to(url: str) -> Iterator[LinkProcess]:
    """Run a link to the service at `url` as long as the ``with`` block lasts."""
    parts = urlsplit(url)
    command = [*_humble(), sys.executable, "-m", __name__.replace("_service", "_link")]
    with _child([*command, parts.hostname or "127.0.0.1", str(parts.port)], stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield LinkProcess(process, f"http://127.0.0.1:{int(process.stdout.readline())}")
        process.stdin.close()


def nowhere() -> str:
    """Return a URL of this host at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def _humble() -> list[str]:
    # It stands for another machine, so it is not to take processors from what is measured.
    nice = shutil.which("nice")
    return [nice, "-n", "19"] if nice else []


@contextlib.contextmanager
def _child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
