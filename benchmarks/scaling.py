"""How much 1, 2 and 4 processes of one service do: ``python -m benchmarks.scaling [--catalog URL] [--workers 1 2 4]``.

Documents stored a second, pages listed a second and small tables read a second, by clients in processes of their own
that each ask one thing after the other. Rows of one kind of question come from one run, processes in turns. The clients
need processors, too: on a machine with few of them the figures say how little is in the way, and not what more
processes would do.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import urllib3

from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.testing.documents import RunDocuments, internal

KEY = "scaling"
EVENTS = 500
READY = re.compile(r"flystore is ready at (http://\S+)\n")


def _run(uid: str) -> bytes:
    run = RunDocuments(uid)
    stream = run.stream("primary", x=internal(), y=internal())
    for value in range(EVENTS):
        stream.event(x=float(value), y=value * 0.5)
    run.stop()
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in run.documents for payload in encoder.encode(name, doc))


class _Client:
    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._number = 0
        self._pool = urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}"})

    def _ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        answer = self._pool.request(
            method, f"{self._url}/api/v1{path}", body=body, headers={**self._pool.headers, **headers}, retries=3
        )
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:300]!r}")

    def store(self) -> int:
        """Store a run; return its documents."""
        self._number += 1
        uid = f"{self._name}-{self._number}"
        self._ask("POST", f"/ingest/{uid}?first=0&epoch=0", _run(uid), **{"Content-Type": FRAMES_MIMETYPE})
        return EVENTS + 3

    def list_runs(self) -> int:
        self._ask("GET", "/search/?page[limit]=20&sort=-")
        return 1

    def read_table(self) -> int:
        self._ask("GET", "/table/full/seed-1/primary/internal?format=application/vnd.apache.arrow.file")
        return 1


def _work(url: str, name: str, task: str, until: float, start: Any, results: Any) -> None:
    client = _Client(url, name)
    do: Callable[[], int] = getattr(client, task)
    start.wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < until:
        done += do()
    results.put(done / (time.perf_counter() - began))


@contextmanager
def _served(directory: Path, workers: int, catalog: str | None) -> Iterator[str]:
    more = [] if catalog is None else ["--catalog", catalog]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "flystore.cli",
            "serve",
            str(directory),
            "--port",
            "0",
            "--workers",
            str(workers),
            *more,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLYSTORE_API_KEY": KEY},
    )
    assert process.stdout is not None
    try:
        found = READY.fullmatch(process.stdout.readline())
        if found is None:
            raise RuntimeError("the service did not start")
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def _rate(url: str, name: str, task: str, clients: int, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), context.Barrier(clients)
    processes = [
        context.Process(target=_work, args=(url, f"{name}-{number}", task, seconds, start, results))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    rates = [results.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    return float(sum(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--catalog", help="an empty PostgreSQL database; else SQLite in a temporary directory")
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    tasks = {"store": "documents/s", "list_runs": "pages of 20 runs/s", "read_table": f"tables of {EVENTS} rows/s"}
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.rounds):
            for workers in options.workers:
                with _served(Path(place) / "store", workers, options.catalog) as url:
                    seed = _Client(url, "seed")
                    seed.store()  # sent again, it is known
                    for task in tasks:
                        name = f"r{number}w{workers}"
                        rate = _rate(url, name, task, options.clients, options.seconds)
                        found.setdefault((task, workers), []).append(rate)
    lines = ["| | " + " | ".join(f"{workers} processes" for workers in options.workers) + " |"]
    lines.append("|---|" + "---:|" * len(options.workers))
    for task, what in tasks.items():
        rates = " | ".join(f"{median(found[task, workers]):,.0f}" for workers in options.workers)
        lines.append(f"| {what} | {rates} |")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
