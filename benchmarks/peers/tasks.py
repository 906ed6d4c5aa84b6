"""What both sides are asked to do: run plans, send runs, read. Written once, so that both do the same.

Times are in seconds, memory in bytes. A task that reads checks what it got, and fails if it is wrong.
"""

import contextlib
import gzip
import http.client
import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from .documents import Document, column_names, frames_run, long_run, renamed

READABLE_SECONDS = 60.0
LIVE_COLUMNS = 5


class Writing(NamedTuple):
    """A writer: its callback, what waits until all is stored, and what ends it."""

    callback: Callable[[str, dict[str, Any]], Any]
    settle: Callable[[], Any]
    close: Callable[[], Any]


class Timed:
    """A callback that notes how long each call took."""

    def __init__(self, callback: Callable[[str, dict[str, Any]], Any]) -> None:
        self._callback = callback
        self.calls: list[float] = []

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        began = time.perf_counter()
        self._callback(name, doc)
        self.calls.append(time.perf_counter() - began)


class SideTasks:
    """Tasks of a side; what differs are `make_client` and `make_writer`."""

    def __init__(self) -> None:
        self._clients: dict[str, Any] = {}

    def make_client(self, url: str, key: str) -> Any:
        raise NotImplementedError

    def make_writer(self, url: str, key: str) -> Writing:
        raise NotImplementedError

    def ready(self) -> bool:
        """Answer: whoever waits for it knows that everything is imported."""
        return True

    def touch(self, nbytes: int) -> None:
        touch(nbytes)

    def client(self, url: str, key: str) -> Any:
        """Return the client of a service, kept from task to task."""
        if url not in self._clients:
            self._clients[url] = self.make_client(url, key)
        return self._clients[url]

    def make_live_writer(self, url: str, key: str) -> Writing:
        """Return a writer that sends each event by itself, as people who want to see it have it."""
        return self.make_writer(url, key)

    def subscribed(self, url: str, key: str, uid: str, told: Callable[[int], Any]) -> contextlib.AbstractContextManager:
        """Tell the seq_num of each event of a run that comes from now on."""
        raise NotImplementedError

    @contextlib.contextmanager
    def writer(self, url: str, key: str) -> Iterator[Writing]:
        writing = self.make_writer(url, key)
        try:
            yield writing
        finally:
            writing.close()

    # --- writing ----------------------------------------------------------------------------------

    def engine_runs(self, url: str, key: str, events: int, runs: int) -> dict[str, float]:
        """Run ``count`` with and without the writer, in turns; return medians, and the slowest callback of all."""
        from bluesky import RunEngine
        from bluesky.plans import count
        from ophyd.sim import det

        engine = RunEngine({}, context_managers=[])
        alone, beside, blocked, worst = [], [], [], []
        with self.writer(url, key) as writing:
            timed = Timed(writing.callback)
            for number in range(runs + 1):
                before = _seconds(lambda: engine(count([det], events)))
                token = engine.subscribe(timed)
                timed.calls.clear()
                after = _seconds(lambda: engine(count([det], events)))
                engine.unsubscribe(token)
                writing.settle()
                if number == 0:
                    continue  # the first ones import and connect
                alone.append(before)
                beside.append(after)
                blocked.append(sum(timed.calls))
                worst.append(max(timed.calls))
        engine.loop.call_soon_threadsafe(engine.loop.stop)
        return {
            "alone": statistics.median(alone),
            "wall": statistics.median(beside),
            "blocked": statistics.median(blocked),
            "worst": max(worst),
        }

    def write_long(self, url: str, key: str, events: int, columns: int) -> dict[str, Any]:
        """Send a run of scalars as fast as it goes, until the last row of the last column can be read."""
        uid = str(uuid.uuid4())
        with self.writer(url, key) as writing:
            cpu, began = time.process_time(), time.perf_counter()
            for name, doc in long_run(uid, events, columns):
                writing.callback(name, doc)
            writing.settle()
            stored = time.perf_counter() - began
            column = f"{uid}/primary/internal/{column_names(columns)[-1]}"
            wait_until_readable(url, key, column, "", lambda body: len(body) == 8 * events)
            seconds = time.perf_counter() - began
            return {"uid": uid, "seconds": seconds, "stored": stored, "cpu": time.process_time() - cpu}

    def make_long(self, events: int, columns: int) -> dict[str, float]:
        """Make the same documents and send them nowhere."""
        cpu, began = time.process_time(), time.perf_counter()
        for _ in long_run(str(uuid.uuid4()), events, columns):
            pass
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}

    def write_frames(
        self, url: str, key: str, file: str, datasets: dict[str, list[int]], frames: int, each: int
    ) -> dict[str, Any]:
        """Send a run whose frames are in a file, until its last frame can be read."""
        uid = str(uuid.uuid4())
        shapes = {name: tuple(shape) for name, shape in datasets.items()}
        documents = list(frames_run(uid, file, shapes, frames, each))
        name, shape = next(reversed(shapes.items()))
        last = ",".join([str(frames - 1)] + [":"] * len(shape))
        wanted = int(np.prod(shape)) * 2
        with self.writer(url, key) as writing:
            began = time.perf_counter()
            for document in documents[:-1]:
                writing.callback(*document)
            before_stop = time.perf_counter()
            writing.callback(*documents[-1])
            stopped = time.perf_counter()
            writing.settle()
            stored = time.perf_counter()
            wait_until_readable(url, key, f"{uid}/primary/{name}", last, lambda body: len(body) == wanted)
            readable = time.perf_counter()
        return {
            "uid": uid,
            "documents": len(documents),
            "seconds": stored - began,
            "stop": stopped - before_stop,
            "readable": readable - stopped,
        }

    def write_recorded(self, url: str, key: str, file: str, salt: str) -> dict[str, list[float]]:
        """Send recorded runs one after another; return for each how long the plan was blocked, and until stored."""
        blocked, stored = [], []
        with self.writer(url, key) as writing:
            for documents in recorded_runs(file, salt):
                timed = Timed(writing.callback)
                for document in documents:
                    timed(*document)
                ended = time.perf_counter()
                writing.settle()
                stored.append(time.perf_counter() - ended)
                blocked.append(sum(timed.calls))
        return {"blocked": blocked, "stored": stored}

    def live(self, url: str, key: str, events: int, burst: int, every: float, looks: int) -> dict[str, float]:
        """Send events one by one and have a subscriber wait for each; then as fast as they go; then read each.

        Parameters
        ----------
        events : int
            One by one, `every` so many seconds.
        burst : int
            As fast as they go.
        looks : int
            How many events are read as soon as they can be.

        Returns
        -------
        dict
            ``told`` and ``visible``: median seconds from the call of the writer; ``rate``: events a second, from the
            first call until the subscriber has the last; ``lost``: events that did not come, or came twice.
        """
        uid = str(uuid.uuid4())
        emitted: dict[int, float] = {}
        arrived: dict[int, list[float]] = {}
        documents = iter(long_run(uid, 1 + events + burst + looks, LIVE_COLUMNS))
        writing = self.make_live_writer(url, key)

        def emit() -> int:
            name, doc = next(documents)
            number = int(doc.get("seq_num", 0))
            emitted[number] = time.perf_counter()
            writing.callback(name, doc)
            return number

        def told(number: int) -> None:
            arrived.setdefault(number, []).append(time.perf_counter())

        try:
            while emit() != 1:  # stock makes the table with the first event
                pass
            writing.settle()
            with self.subscribed(url, key, uid, told):
                first, second = range(2, 2 + events), range(2 + events, 2 + events + burst)
                for _ in first:
                    emit()
                    time.sleep(every)
                _wait_for(lambda: first[-1] in arrived)
                for _ in second:
                    emit()
                _wait_for(lambda: second[-1] in arrived)
                seen = []
                for _ in range(looks):
                    number = emit()
                    path = f"{uid}/primary/internal/{column_names(1)[0]}"
                    wait_until_readable(url, key, path, str(number - 1), lambda body: len(body) == 8)
                    seen.append(time.perf_counter() - emitted[number])
            for document in documents:
                writing.callback(*document)
            writing.settle()
        finally:
            writing.close()
        return {
            "told": statistics.median(arrived[number][0] - emitted[number] for number in first if number in arrived),
            "rate": burst / (arrived[second[-1]][0] - emitted[second[0]]),
            "visible": statistics.median(seen),
            "lost": sum(len(arrived.get(number, ())) != 1 for number in (*first, *second)),
        }

    # --- reading ----------------------------------------------------------------------------------

    def read_table(
        self, url: str, key: str, uid: str, rows: int, columns: list[str], wanted: list[str] | None
    ) -> dict[str, float]:
        """Read a stream as xarray, all of it or the `wanted` columns."""
        stream = self.client(url, key)[uid]["primary"]
        began = time.perf_counter()
        found = stream.read() if wanted is None else stream.read(wanted)
        seconds = time.perf_counter() - began
        for name in wanted or columns:
            number = columns.index(name)
            expect(np.array_equal(found[name].values, np.arange(1, rows + 1) + number * 0.25), f"the values of {name}")
        return {"seconds": seconds}

    def read_array(self, url: str, key: str, uid: str, name: str, cut: list[list[int | None]]) -> dict[str, float]:
        """Read part of an array with frames; pixels [0, 0] and [100, 100] of frame k are k."""
        array = self.client(url, key)[uid]["primary"][name]
        slices = slices_of(cut)
        began = time.perf_counter()
        found = np.asarray(array[slices])
        seconds = time.perf_counter() - began
        expect_frames(found, array.shape[0], slices)
        return {"seconds": seconds, "bytes": found.nbytes}

    def read_array_for(self, url: str, key: str, uid: str, name: str, seconds: float) -> dict[str, float]:
        """Read the whole of an array again and again, for so long at least."""
        array = self.client(url, key)[uid]["primary"][name]
        cpu, began = time.process_time(), time.perf_counter()
        while time.perf_counter() - began < seconds:
            np.asarray(array[:])
        return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}

    def read_frames(self, url: str, key: str, uid: str, name: str, numbers: list[int]) -> dict[str, list[float]]:
        """Read single frames."""
        array = self.client(url, key)[uid]["primary"][name]
        took = []
        for number in numbers:
            began = time.perf_counter()
            frame = np.asarray(array[number])
            took.append(time.perf_counter() - began)
            expect(int(frame[0, 0]) == number, f"frame {number}")
        return {"took": took}


def touch(nbytes: int) -> None:
    """Write to so much memory and give it back: a virtual machine has it ready then, whoever used it last.

    Those that return unused memory to their host after seconds have it given page by page when it is touched again,
    which takes longer than reading into it, and falls on whichever party comes after a pause.
    """
    np.ones(nbytes, np.uint8)


def slices_of(cut: list[list[int | None]]) -> tuple[slice, ...]:
    """Return slices from their three numbers each."""
    return tuple(slice(*numbers) for numbers in cut)


def expect_frames(found: np.ndarray, frames: int, slices: tuple[slice, ...]) -> None:
    """Raise unless the frames are the ones that were asked for.

    Parameters
    ----------
    found : (n, rows, columns) uint16
        Its first pixel is the number of its frame, in every cut that is measured.
    """
    wanted = np.arange(frames, dtype=np.uint16)[slices[0]]
    expect(np.array_equal(found[:, 0, 0], wanted), "the frames")


def expect(true: bool, what: str) -> None:
    """Raise if `what` came back wrong: a figure of wrong data would be worse than none."""
    if not true:
        raise RuntimeError(f"{what} did not come back as written")


def recorded_runs(file: str, salt: str) -> list[list[Document]]:
    """Return the runs of a recording one after another, with uids of their own for each salt."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        documents = renamed(json.load(opened), json.dumps, json.loads, salt)
    runs: list[list[Document]] = []
    for name, doc in documents:
        if name == "start":
            runs.append([])
        runs[-1].append((name, doc))
    return runs


def wait_until_readable(url: str, key: str, node: str, cut: str, whole: Callable[[bytes], bool]) -> None:
    """Ask for part of an array until the answer is whole."""
    path = f"/api/v1/array/full/{node}?format=application/octet-stream" + (f"&slice={cut}" if cut else "")
    host = urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=READABLE_SECONDS)
    deadline = time.perf_counter() + READABLE_SECONDS
    while True:
        connection.request("GET", path, headers={"Authorization": f"Apikey {key}"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200 and whole(body):
            break
        if time.perf_counter() > deadline:
            raise RuntimeError(f"not readable: {answer.status}, {len(body)} bytes, {body[:200]!r}")
        time.sleep(0.002)
    connection.close()


def _wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + READABLE_SECONDS
    while not ready():
        if time.perf_counter() > deadline:
            raise RuntimeError("the subscriber was not told of the last event")
        time.sleep(0.001)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
