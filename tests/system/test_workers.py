"""Several processes behind one address, on SQLite and on PostgreSQL.

If these fail, a beamline that asked for more processes loses documents when one of them dies, or reads from one what
another one was never told.
"""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bluesky.plans as bp
import numpy as np
import pytest
import urllib3
from bluesky import RunEngine
from ophyd.sim import hw

from flystore import RunWriter, from_uri

KEY = "workers-key"
SECONDS = 100
WORKERS = 4 if os.environ.get("FLYSTORE_FAULTS") == "full" else 2
READY = re.compile(r"flystore is ready at (http://\S+)\n")
_NUMBER = re.compile(rb'process="([0-9]+)"')


class Running:
    """``flystore serve --workers``, with what it printed."""

    def __init__(self, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLYSTORE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flystore.cli", "serve", "--port", "0", "--workers", str(WORKERS)]
            + [str(argument) for argument in arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "FLYSTORE_API_KEY": KEY},
        )
        self._lines = queue.SimpleQueue()
        self.errors = []
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _read_errors(self):
        self.errors.extend(self.process.stderr)

    def ready(self):
        line = self._lines.get(timeout=SECONDS)
        found = READY.fullmatch(line)
        assert found, (line, self.errors)
        return found[1]

    def children(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return [int(text) for text in file.read().split()]

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(SECONDS)
        finally:
            self.process.kill()
            for thread in self._threads:
                thread.join(SECONDS)
            self.process.stdout.close()
            self.process.stderr.close()
        return status


@pytest.fixture
def serve():
    started = []

    def start(*arguments):
        started.append(Running(*arguments))
        return started[-1]

    yield start
    for each in started:
        if not each.process.stdout.closed:
            each.end()


def pytest_generate_tests(metafunc):
    if "running" in metafunc.fixturenames:
        metafunc.parametrize("running", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def running(request, serve, tmp_path):
    """A service of several processes, on either database."""
    more = []
    if request.param == "postgresql":
        more = ["--catalog", request.getfixturevalue("fresh_postgres"), "--pool", "6"]
    return serve(tmp_path / "store", *more)


def ask(url, method, path, body=None, **headers):
    """Ask on a connection of its own, again while nobody answers; return (status, body)."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}", **headers}) as pool:
                answer = pool.request(method, f"{url}{path}", body=body, retries=False, timeout=SECONDS)
                if answer.status != 503:
                    return answer.status, answer.data
        except urllib3.exceptions.HTTPError:
            pass  # the process that had it was killed
        assert time.monotonic() < until


def number_of(url):
    """Return which process answers."""
    return int(_NUMBER.search(ask(url, "GET", "/metrics")[1])[1])


def state_of(pid):
    """Return the letter of a process' state; Z if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def alone(running, kept):
    """Have only one child answer; the others stand still until `go_on`."""
    until = time.monotonic() + SECONDS
    for pid in running.children():
        os.kill(pid, signal.SIGCONT if pid == kept else signal.SIGSTOP)
        while (state_of(pid) == "T") == (pid == kept):
            assert time.monotonic() < until
            time.sleep(0.001)


def go_on(running):
    for pid in running.children():
        os.kill(pid, signal.SIGCONT)


# --- starting and ending ----------------------------------------------------------------------------


def test_all_processes_answer_at_one_address_and_end_together(serve, tmp_path):
    running = serve(tmp_path / "store")
    url = running.ready()
    pids = running.children()
    assert len(pids) == WORKERS
    answered = set()
    for pid in pids:
        alone(running, pid)
        answered.add(number_of(url))
    go_on(running)
    assert answered == set(range(1, WORKERS + 1))
    assert running.end() == 0
    assert not running.errors
    assert [pid for pid in pids if state_of(pid) != "Z"] == []


def test_a_mistake_is_said_once_and_ends_the_command(serve, tmp_path):
    running = serve(tmp_path / "store", "--read", tmp_path / "nowhere")
    assert running.process.wait(SECONDS) == 2
    running.end()
    assert len(running.errors) == 1
    assert "nowhere is not a directory" in running.errors[0]


def test_workers_do_not_outlive_who_started_them(serve, tmp_path):
    running = serve(tmp_path / "store")
    running.ready()
    pids = running.children()
    running.end(signal.SIGKILL)
    until = time.monotonic() + SECONDS
    while any(state_of(pid) != "Z" for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.02)


# --- one store ---------------------------------------------------------------------------------------


def made_array(url, values):
    """Make an array by the protocol; return its path."""
    data = {
        "structure_family": "array",
        "metadata": {},
        "specs": [],
        "data_sources": [
            {
                "structure_family": "array",
                "mimetype": "application/x-zarr",
                "management": "writable",
                "assets": [],
                "structure": {
                    "shape": [len(values)],
                    "chunks": [[len(values)]],
                    "dims": None,
                    "resizable": False,
                    "data_type": {"endianness": "little", "kind": "i", "itemsize": 8},
                },
            }
        ],
    }
    status, body = ask(
        url, "POST", "/api/v1/metadata/", json.dumps(data).encode(), **{"Content-Type": "application/json"}
    )
    assert status == 200, body
    key = json.loads(body)["id"]
    status, body = ask(
        url, "PUT", f"/api/v1/array/full/{key}", values.tobytes(), **{"Content-Type": "application/octet-stream"}
    )
    assert status == 200, body
    return key


def extend(url, key, at, values):
    return ask(
        url,
        "PATCH",
        f"/api/v1/array/full/{key}?offset={at}&shape={len(values)}&extend=true",
        values.tobytes(),
        **{"Content-Type": "application/octet-stream"},
    )


def test_who_saw_the_same_end_by_another_process_does_not_write_over_it(running):
    url = running.ready()
    key = made_array(url, np.arange(2))
    first, second, *_ = running.children()
    alone(running, first)
    assert extend(url, key, 2, np.array([10, 11]))[0] == 200
    alone(running, second)
    status, body = extend(url, key, 2, np.array([20, 21]))
    assert (status, json.loads(body)["error"]["kind"]) == (409, "conflict")
    assert extend(url, key, 2, np.array([10, 11]))[0] == 200  # a repeat, as after an answer that was lost
    go_on(running)
    with from_uri(url, KEY) as client:
        assert client[key].read().tolist() == [0, 1, 10, 11]


def test_processes_that_are_killed_lose_nothing_and_double_nothing(running, tmp_path):
    url = running.ready()
    key = made_array(url, np.arange(1))
    written, over, steps = {}, threading.Event(), threading.Semaphore(0)

    def scans(name):
        with RunWriter(
            url, api_key=KEY, journal=tmp_path / name, first_pause=0.01, longest_pause=0.1, linger=0.001
        ) as writer:
            engine = RunEngine({}, context_managers=[])
            engine.subscribe(writer)
            for _ in range(5):
                documents = []
                token = engine.subscribe(lambda name, doc, kept=documents: kept.append(doc["uid"]))
                (uid,) = engine(bp.count([hw().det], 5))
                engine.unsubscribe(token)
                written[uid] = documents
                writer.flush(SECONDS)
                steps.release()

    def parts():
        for number in range(1, 21):
            assert extend(url, key, number, np.array([number]))[0] == 200
            steps.release()

    def reads():
        while not over.is_set():
            assert ask(url, "GET", "/api/v1/search/?page[limit]=5")[0] == 200

    with ThreadPoolExecutor(4) as threads:
        reading = threads.submit(reads)
        writing = [threads.submit(scans, "a"), threads.submit(scans, "b"), threads.submit(parts)]
        try:
            for pid in running.children():
                for _ in range(4):  # with those that are left, until all that there were are gone
                    assert steps.acquire(timeout=SECONDS)
                os.kill(pid, signal.SIGKILL)
            for future in writing:
                future.result(SECONDS)
        finally:
            over.set()
        reading.result(SECONDS)

    with from_uri(url, KEY) as client:
        assert len(written) == 10
        assert {uid for uid in client if uid != key} == set(written)
        for uid, documents in written.items():
            assert [doc["uid"] for _, doc in client[uid].documents() if "uid" in doc] == documents
        assert client[key].read().tolist() == list(range(21))
