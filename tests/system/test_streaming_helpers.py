"""The streaming helpers of bluesky-tiled-plugins, unmodified, follow runs in flystore as in stock Tiled.

If these fail, a live display that was made for Tiled stands still, or shows frames that are not there yet as an error.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from bluesky_tiled_plugins.streaming import subscribe_to_streams
from tiled.client import from_uri

from flystore import RunWriter
from flystore.testing.documents import RunDocuments, external, internal
from flystore.testing.growing import GrowingFile, frame
from flystore.testing.serving import reserved_port
from flystore.testing.stock_server import API_KEY, write_with_stock

pytestmark = pytest.mark.filterwarnings("ignore")  # the stock client's own
GENEROUS = 120.0
SHAPE = (6, 8)


class Display:
    """What a live display that uses `subscribe_to_streams` has been told: rows and frames by data key."""

    def __init__(self, client, **settings):
        self.rows = {}
        self.frames = {}
        self.failed = []
        self.sequences = {}
        self._changed = threading.Condition()
        self._subscription = subscribe_to_streams(client, self._take, **settings)

    def _take(self, update):
        try:
            data = update.data()
        except Exception as error:  # told by the test
            with self._changed:
                self.failed.append(error)
                self._changed.notify_all()
            return
        with self._changed:
            keys = update.run_uid, update.stream_name, update.data_keys
            self.sequences.setdefault(keys, []).append(update.sequence)
            if isinstance(data, np.ndarray):
                patch = update.update.patch
                begin = patch.offset[0] if patch else 0
                frames = self.frames.setdefault(update.stream_name, {})
                frames.update((begin + n, each) for n, each in enumerate(data))
            else:
                for key in update.data_keys:
                    self.rows.setdefault((update.stream_name, key), []).extend(data[key].tolist())
            self._changed.notify_all()

    def wait(self, done):
        with self._changed:
            assert self._changed.wait_for(lambda: self.failed or done(self), GENEROUS), (self.rows, self.frames)
        assert not self.failed
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._subscription.disconnect()


def clients(*servers):
    return [from_uri(each.url, api_key=each.key) for each in servers]


@pytest.fixture
def stocks(server, stock):
    found = clients(server, stock)
    yield found
    for each in found:
        each.context.http_client.close()


class Scan:
    """A run with a scalar and a camera whose file is written by another process."""

    def __init__(self, uid, directory, kind="swmr"):
        self.file = GrowingFile(kind, directory / f"{uid}-{kind}", SHAPE, 8)
        self.run = RunDocuments(uid, plan_name="scan")
        self.stream = self.run.stream("primary", x=internal(), img=external(list(SHAPE), "<u2"))
        self.stream.resource("img", self.file.uri, self.file.mimetype, **self.file.parameters)
        self._taken = 0

    def point(self, number):
        self.stream.event(x=float(number))
        self.stream.frames("img", number, number + 1)

    def new(self):
        """Return the documents that were made since it was asked last."""
        found, self._taken = self.run.documents[self._taken :], len(self.run.documents)
        return found


def whole(count):
    def done(display):
        there = display.frames.get("primary", {})
        return len(there) == count and len(display.rows.get(("primary", "x"), ())) == count

    return done


def are_right(display, count):
    assert display.rows["primary", "x"] == [float(n) for n in range(count)]
    for number, found in display.frames["primary"].items():
        np.testing.assert_array_equal(found, frame(number, SHAPE))
    for sequences in display.sequences.values():
        assert len(set(sequences)) == len(sequences)


def test_a_run_of_the_stock_writer_is_shown_as_stock_tiled_shows_it(server, stock, stocks, data):
    scan = Scan("shown", data)
    with scan.file:
        scan.file.to(5)
        for number in range(5):
            scan.point(number)
        scan.run.stop()
        scan.file.close()
    documents = scan.new()
    for each, client in zip((server, stock), stocks, strict=True):
        with Display(client, streams={"primary": ["x", "img"]}, metadata_filter=lambda s: s["uid"] == "shown") as shown:
            write_with_stock(each.url, documents, batch_size=1)
            are_right(shown.wait(whole(5)), 5)


@pytest.mark.parametrize("join", ["before", "after"])
def test_a_run_of_ours_is_shown_while_its_frames_arrive(server, stocks, data, tmp_path, join):
    scan = Scan("ours", data)
    with scan.file, RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:

        def send():
            for name, doc in scan.new():
                writer(name, doc)
            writer.flush(GENEROUS)

        def begin():
            scan.file.to(2)
            scan.point(0)
            scan.point(1)
            send()

        if join == "after":
            begin()
        with Display(stocks[0], streams=None) as shown:
            if join == "before":
                begin()
            shown.wait(whole(2))
            scan.point(2)
            scan.point(3)
            send()  # before they are written: the display waits for them
            scan.file.to(4)
            shown.wait(whole(4))
            scan.run.stop()
            send()
            are_right(shown, 4)


class Served:
    """``flystore serve`` on a port that is the test's, with so many workers."""

    def __init__(self, home, data, port, workers):
        command = [sys.executable, "-m", "flystore.cli", "serve", home, "--port", port, "--workers", workers]
        command += ["--read", data]
        self._command = [str(each) for each in command]
        self.url, self.key = f"http://127.0.0.1:{port}", API_KEY
        self.begin()

    def begin(self):
        given = {name: value for name, value in os.environ.items() if not name.startswith("FLYSTORE_")}
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            text=True,
            env={**given, "FLYSTORE_API_KEY": self.key},
            start_new_session=True,
        )
        assert "ready at" in self._process.stdout.readline()

    def kill_workers(self):
        """Kill one worker after the other, and yield after each."""
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
            yield

    def end(self, *, everyone=False):
        """End it; `everyone`: as systemd does, who tells each process."""
        send = os.killpg if everyone else os.kill
        send(self._process.pid, signal.SIGTERM)
        self._process.communicate(timeout=GENEROUS)


class Watched:
    """A run that is written to a service while a display of Tiled's follows it."""

    def __init__(self, service, tmp_path):
        self._service = service
        (self._client,) = clients(service)
        self._scan = Scan("shared", tmp_path / "data")
        self._writer = RunWriter(service.url, api_key=service.key, journal=tmp_path / "journal")
        self.display = Display(self._client, streams=None)

    def points(self, first, stop):
        self._scan.file.to(stop)
        for number in range(first, stop):
            self._scan.point(number)
        for name, doc in self._scan.new():
            self._writer(name, doc)

    def __enter__(self):
        self._scan.file.__enter__()
        return self

    def __exit__(self, *exc):
        self.display.__exit__(*exc)
        self._client.context.http_client.close()
        self._writer.flush(GENEROUS)
        self._writer.close()
        self._scan.file.__exit__(*exc)
        self._service.end()


def test_a_display_is_told_all_whichever_of_two_workers_took_it(tmp_path):
    (tmp_path / "data").mkdir()
    with (
        reserved_port() as port,
        Watched(Served(tmp_path / "store", tmp_path / "data", port.getsockname()[1], 2), tmp_path) as watched,
    ):
        watched.points(0, 3)
        watched.display.wait(whole(3))
        watched.points(3, 5)
        watched.display.wait(whole(5))
        are_right(watched.display, 5)


@pytest.mark.parametrize(
    ("workers", "everyone"),
    [
        pytest.param(1, False, id="one-process"),
        pytest.param(2, False, id="two-workers"),
        pytest.param(2, True, id="two-workers-each-told"),
    ],
)
def test_a_display_goes_on_when_the_service_is_started_anew(tmp_path, workers, everyone):
    (tmp_path / "data").mkdir()
    with reserved_port() as port:
        service = Served(tmp_path / "store", tmp_path / "data", port.getsockname()[1], workers)
        with Watched(service, tmp_path) as watched:
            watched.points(0, 3)
            watched.display.wait(whole(3))
            service.end(everyone=everyone)
            watched.points(3, 5)  # while it is away
            service.begin()
            watched.display.wait(whole(5))
            watched.points(5, 6)
            watched.display.wait(whole(6))
            are_right(watched.display, 6)


def test_a_display_goes_on_when_workers_die(tmp_path):
    (tmp_path / "data").mkdir()
    with reserved_port() as port:
        service = Served(tmp_path / "store", tmp_path / "data", port.getsockname()[1], 2)
        with Watched(service, tmp_path) as watched:
            for count, _ in enumerate(itertools.chain([None], service.kill_workers()), 1):
                watched.points(count - 1, count)
                watched.display.wait(whole(count))
            assert count == 3
            are_right(watched.display, count)
