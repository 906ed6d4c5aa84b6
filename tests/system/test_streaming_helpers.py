"""The streaming helpers of bluesky-tiled-plugins, unmodified, follow runs in flystore as in stock Tiled.

If these fail, a live display that was made for Tiled stands still, or shows frames that are not there yet as an error.
"""

import os
import signal
import subprocess
import sys
import threading

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


class Workers:
    """``flystore serve --workers 2`` on a port that is the test's."""

    def __init__(self, home, data, port):
        command = [sys.executable, "-m", "flystore.cli", "serve", home, "--port", port, "--workers", 2]
        command += ["--read", data]
        self.url, self.key = f"http://127.0.0.1:{port}", API_KEY
        given = {name: value for name, value in os.environ.items() if not name.startswith("FLYSTORE_")}
        self._process = subprocess.Popen(
            [str(each) for each in command],
            stdout=subprocess.PIPE,
            text=True,
            env={**given, "FLYSTORE_API_KEY": self.key},
            start_new_session=True,
        )
        assert "ready at" in self._process.stdout.readline()

    def end(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=GENEROUS)


def test_a_display_is_told_all_whichever_of_two_workers_took_it(tmp_path):
    (tmp_path / "data").mkdir()
    with reserved_port() as port:
        service = Workers(tmp_path / "store", tmp_path / "data", port.getsockname()[1])
        (client,) = clients(service)
        scan = Scan("shared", tmp_path / "data")
        with scan.file, RunWriter(service.url, api_key=service.key, journal=tmp_path / "journal") as writer:

            def points(first, stop):
                scan.file.to(stop)
                for number in range(first, stop):
                    scan.point(number)
                for name, doc in scan.new():
                    writer(name, doc)

            try:
                with Display(client, streams=None) as shown:
                    points(0, 3)
                    shown.wait(whole(3))
                    points(3, 5)
                    shown.wait(whole(5))
                    are_right(shown, 5)
            finally:
                client.context.http_client.close()
                writer.flush(GENEROUS)
                service.end()
