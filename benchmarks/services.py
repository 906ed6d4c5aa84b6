"""Services as child processes: stock, flystore, and a bare ASGI application."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .processes import Broken, child, tail

KEY = "0123456789abcdef"
START_SECONDS = 120.0
READY = b"flystore is ready at "


@dataclass(frozen=True)
class Service:
    """One that answers.

    Attributes
    ----------
    url, key : str
    pid : int
    start_seconds : float
        From its command to its first answer to a request with the key.
    """

    url: str
    key: str
    pid: int
    start_seconds: float

    @property
    def where(self) -> dict[str, str]:
        """The arguments of most tasks."""
        return {"url": self.url, "key": self.key}


@contextlib.contextmanager
def flystore_service(directory: Path, files: Path) -> Iterator[Service]:
    """Run ``flystore serve`` on a directory; `files` is where the detectors write."""
    command = [sys.executable, "-m", "flystore.cli", "serve", str(directory), "--port", "0", "--read", str(files)]
    log = directory.with_suffix(".log")
    began = time.perf_counter()
    with child(command, log, stdout=subprocess.PIPE, env={"FLYSTORE_API_KEY": KEY}) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            raise Broken(f"flystore did not start:\n{tail(log)}")
        url = line.removeprefix(READY).decode().strip()
        _wait_for_answer(process, url, "/api/v1/", log)
        yield Service(url, KEY, process.pid, time.perf_counter() - began)


@contextlib.contextmanager
def stock_service(python: str, directory: Path, files: Path) -> Iterator[Service]:
    """Run ``tiled serve config`` as the plugins tell operators to: SQLite, DuckDB, the streaming cache in memory."""
    directory.mkdir(exist_ok=True)
    settings = {
        "authentication": {"single_user_api_key": KEY},
        "streaming_cache": {"uri": "memory"},
        "media_types": {
            "BlueskyRun": {"application/json-seq": "bluesky_tiled_plugins.exporters:json_seq_exporter"},
        },
        "trees": [
            {
                "path": "/",
                "tree": "catalog",
                "args": {
                    "uri": f"sqlite:///{directory}/catalog.db",
                    "writable_storage": [f"file://localhost{directory}/data", f"duckdb:///{directory}/tables.duckdb"],
                    "readable_storage": [str(files)],
                    "init_if_not_exists": True,
                    "specs": [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}],
                },
            }
        ],
    }
    # JSON is YAML.
    (directory / "config.yml").write_text(json.dumps(settings))
    port = free_port()
    command = [python, "-m", "tiled", "serve", "config", str(directory / "config.yml"), "--port", str(port)]
    log = directory.with_suffix(".log")
    began = time.perf_counter()
    with child(command, log, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for_answer(process, url, "/api/v1/", log)
        yield Service(url, KEY, process.pid, time.perf_counter() - began)


@contextlib.contextmanager
def bare_service(log: Path) -> Iterator[Service]:
    """Run an ASGI application that answers everything at once with the same kilobyte."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.peers.bare:app", "--port", str(port)]
    began = time.perf_counter()
    with child([*command, "--log-level", "error"], log, stdout=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for_answer(process, url, "/", log)
        yield Service(url, KEY, process.pid, time.perf_counter() - began)


def free_port() -> int:
    """Return a port of this host at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for_answer(process: subprocess.Popen[bytes], url: str, path: str, log: Path) -> None:
    deadline = time.perf_counter() + START_SECONDS
    while process.poll() is None and time.perf_counter() < deadline:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=START_SECONDS)
        try:
            connection.request("GET", path, headers={"Authorization": f"Apikey {KEY}"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.005)
    raise Broken(f"no answer from {' '.join(map(str, process.args))[:200]}:\n{tail(log)}")  # type: ignore[arg-type]
