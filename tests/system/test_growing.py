"""Arrays are read while their files grow: no errors, and only whole frames, each the right one.

If these fail, people who watch a scan see black or half frames, frames under another's number, or an error message each
time the detector is just writing.
"""

import os
import random
import socket
import threading
import time

import numpy as np
import pytest
import tifffile
import urllib3

from flystore import RunWriter, from_uri
from flystore.http import Access, build_app, file_runs, routes_export, server_settings
from flystore.readers._hdf5 import Hdf5Rows
from flystore.readers._sequence import SequenceRows
from flystore.service import Limits, Service
from flystore.testing.documents import RunDocuments, external
from flystore.testing.growing import KINDS, GrowingFile, frame, wrong_frames
from flystore.testing.serving import serving
from flystore.testing.stock_server import API_KEY as KEY

# That an array has not yet a row for each event is what this is about; and filters hold for all threads at once.
pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = (48, 32)
MOST = 24
GENEROUS = 120.0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = tmp_path_factory.mktemp("growing")
    (made / "data").mkdir()
    return made


@pytest.fixture(scope="module")
def service(home):
    with Service.open(home / "store", read=[home / "data"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(service):
    with serving(build_app(service, Access.of(KEY)), settings=server_settings(Limits())) as found:
        yield found


@pytest.fixture
def http(url):
    with urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}"}) as pool:

        def get(path, **headers):
            given = {**pool.headers, **headers}
            return pool.request("GET", f"{url}/api/v1{path}", headers=given, retries=False)

        yield get


class Growing:
    """A run of one array whose file another process writes; the documents go through a real `RunWriter`."""

    def __init__(self, url, home, kind, shape=SHAPE, most=MOST, *, journal):
        self.uid = f"{kind}-{journal.parent.name}"
        self.file = GrowingFile(kind, home / "data" / self.uid, shape, most)
        self.announced = self.written = self._sent = 0
        self._writer = RunWriter(url, api_key=KEY, journal=journal)
        self._run = RunDocuments(self.uid)
        self._stream = self._run.stream("primary", img=external(list(shape), "<u2"))
        self._stream.resource("img", self.file.uri, self.file.mimetype, **self.file.parameters)

    def __enter__(self):
        self._writer.__enter__()
        self.file.__enter__()
        return self

    def __exit__(self, *exc):
        self.file.__exit__(*exc)
        self._writer.__exit__(*exc)

    def announce(self, until):
        self._stream.frames("img", self.announced, until)
        self.announced = until
        self._send()

    def write(self, until):
        self.file.to(until)
        self.written = until

    def stop(self):
        self.file.close()
        self._run.stop()
        self._send()

    def _send(self):
        for name, doc in self._run.documents[self._sent :]:
            self._writer(name, doc)
        self._sent = len(self._run.documents)
        self._writer.flush(GENEROUS)


class Hammer(threading.Thread):
    """Reads an array again and again until all frames are there; every answer is right and none is shorter."""

    def __init__(self, name, take, most):
        super().__init__(name=name)
        self.looks, self.seen, self.error = 0, 0, None
        self._take, self._most = take, most
        self._looked = threading.Condition()
        self.ended = threading.Event()

    def run(self):
        try:
            while self.seen < self._most and not self.ended.is_set():
                self._check(*self._take())
                with self._looked:
                    self.looks += 1
                    self._looked.notify_all()
        except BaseException as error:  # told by whoever waits
            with self._looked:
                self.error = error
                self._looked.notify_all()

    def _check(self, first, found, rows):
        wrong = [first + n for n, each in enumerate(found) if not np.array_equal(each, frame(first + n, SHAPE))]
        assert not wrong, f"{self.name}: of {rows} frames, {wrong} are not what was written"
        assert rows >= self.seen, f"{self.name}: there were {self.seen} frames, now there are {rows}"
        self.seen = rows

    def wait_for_two_looks(self):
        """Wait for a look that began later than this call."""
        with self._looked:
            until = self.looks + 2
            done = self._looked.wait_for(
                lambda: self.looks >= until or self.error is not None or not self.is_alive(), GENEROUS
            )
        if self.error is not None:
            raise self.error
        assert done


def by_full(http, uid):
    def take():
        answer = http(f"/array/full/{uid}/primary/img", Accept="application/octet-stream")
        assert answer.status == 200, answer.data
        found = np.frombuffer(answer.data, "<u2").reshape(-1, *SHAPE)
        return 0, found, len(found)

    return take


def by_block(http, uid):
    chosen = random.Random(uid)

    def take():
        described = http(f"/metadata/{uid}/primary/img").json()["data"]["attributes"]["structure"]
        rows, lengths = described["shape"][0], described["chunks"][0]
        if not rows:
            return 0, [], 0
        number = chosen.randrange(len(lengths))
        expected = f"{lengths[number]},{SHAPE[0]},{SHAPE[1]}"
        answer = http(
            f"/array/block/{uid}/primary/img?block={number},0,0&expected_shape={expected}",
            Accept="application/octet-stream",
        )
        assert answer.status == 200, answer.data
        found = np.frombuffer(answer.data, "<u2").reshape(-1, *SHAPE)
        assert len(found) == lengths[number]
        return sum(lengths[:number]), found, rows

    return take


def by_own_client(client, uid):
    def take():
        found = client[uid]["primary"]["img"][:]
        return 0, found, len(found)

    return take


def by_stock_client(client, uid):
    def take():
        found = client[uid]["primary"]["img"].read()
        return 0, found, len(found)

    return take


@pytest.fixture
def hammers(url, http):
    """Return a function that starts a reader of each kind; all have ended well when the test has."""

    from tiled.client import from_uri as stock_from_uri

    started = []
    with from_uri(url, KEY) as own:
        stock = stock_from_uri(url, api_key=KEY)

        def start(uid, most):
            takes = {
                "full": by_full(http, uid),
                "block": by_block(http, uid),
                "own": by_own_client(own, uid),
                "stock": by_stock_client(stock, uid),
            }
            started.extend(Hammer(name, take, most) for name, take in takes.items())
            for each in started:
                each.start()
            return started

        yield start
        for each in started:
            each.ended.set()
        for each in started:
            each.join()
        stock.context.http_client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_reads_while_files_grow_gets_whole_and_right_frames_and_no_error(url, home, tmp_path, hammers, kind):
    with Growing(url, home, kind, journal=tmp_path / "journal") as growing:
        growing.announce(2)  # there is no file yet
        readers = hammers(growing.uid, MOST)

        def read():
            for each in readers:
                each.wait_for_two_looks()

        read()
        growing.write(1)
        read()
        growing.announce(9)
        growing.file.begin(1)
        read()
        growing.write(12)  # frame by frame while they read, and more than was announced
        growing.file.begin(12)
        growing.announce(20)
        read()
        for until in range(13, MOST):
            growing.write(until)
            if until > growing.announced:
                growing.announce(min(until + 5, MOST - 1))
        read()
        growing.file.begin(MOST - 1)
        read()
        growing.write(MOST)
        growing.announce(MOST)
        growing.stop()
        for each in readers:
            each.join(GENEROUS)
            assert (each.error, each.seen) == (None, MOST), each.name


@pytest.mark.parametrize(
    ("kind", "broken"), [("contiguous", Hdf5Rows), ("swmr-four-a-chunk", Hdf5Rows), ("tiff", SequenceRows)]
)
def test_a_service_that_looks_only_at_what_files_announce_is_found_out(
    url, home, tmp_path, http, monkeypatch, kind, broken
):
    monkeypatch.setattr(broken, "written_rows", lambda self: self.shape[0])
    with Growing(url, home, kind, journal=tmp_path / "journal") as growing:
        growing.write(5)
        growing.file.begin(5)
        growing.announce(8)
        hammer = Hammer("full", by_full(http, growing.uid), MOST)
        hammer.run()
        assert isinstance(hammer.error, AssertionError)


def test_what_was_cut_off_is_an_error_or_not_there_until_it_is_written_again(url, home, tmp_path, http):
    with Growing(url, home, "tiff", journal=tmp_path / "journal") as growing:
        growing.write(6)
        growing.announce(6)
        assert by_full(http, growing.uid)()[2] == 6
        os.truncate(growing.file.path / "f_00004.tiff", 700)

        def rows_become(wanted):
            deadline = time.monotonic() + GENEROUS
            while True:
                answer = http(f"/array/full/{growing.uid}/primary/img", Accept="application/octet-stream")
                if answer.status == 200:
                    found = np.frombuffer(answer.data, "<u2").reshape(-1, *SHAPE)
                    assert not wrong_frames(found)
                    if len(found) == wanted:
                        return
                else:  # until it is looked at again
                    assert answer.json()["error"]["kind"] == "truncated"
                assert time.monotonic() < deadline

        rows_become(4)
        tifffile.imwrite(growing.file.path / "f_00004.tiff", frame(4, SHAPE), photometric="minisblack")
        rows_become(6)


LONG = (256, 512)


def test_a_long_answer_is_whole_though_the_file_grows_while_it_is_sent(url, home, tmp_path, http, monkeypatch):
    sent = []
    real = file_runs._send

    async def send(connection, cycle, runs):
        sent.append(runs.nbytes)
        await real(connection, cycle, runs)

    monkeypatch.setattr(file_runs, "_send", send)
    monkeypatch.setattr(routes_export, "bytes_to_read_last", lambda: 4 << 20)
    with Growing(url, home, "flushed-of-old", LONG, 64, journal=tmp_path / "journal") as growing:
        growing.write(60)
        growing.announce(60)
        os.utime(growing.file.path, (1_500_000_000, 1_500_000_000))  # quiet, as in a long pause
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            host, port = url.removeprefix("http://").split(":")
            client.connect((host, int(port)))
            client.sendall(
                f"GET /api/v1/array/full/{growing.uid}/primary/img HTTP/1.1\r\nHost: {host}\r\n"
                f"Authorization: Apikey {KEY}\r\nAccept: application/octet-stream\r\nConnection: close\r\n\r\n".encode()
            )
            got = client.recv(1 << 16)
            growing.write(63)
            growing.announce(63)
            pieces = [got, *iter(lambda: client.recv(1 << 20), b"")]
        got = b"".join(pieces)
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        found = np.frombuffer(body, "<u2").reshape(-1, *LONG)
        assert len(found) == 60
        assert not wrong_frames(found)
        assert not sent  # the kernel would have sent pages that nobody can vouch for
        growing.write(64)
        growing.announce(64)
        growing.stop()
        os.utime(growing.file.path, (1_500_000_000, 1_500_000_000))
        answer = http(f"/array/full/{growing.uid}/primary/img", Accept="application/octet-stream")
        found = np.frombuffer(answer.data, "<u2").reshape(-1, *LONG)
        assert len(found) == 64
        assert not wrong_frames(found)
        assert sent
