"""Fixtures of the writer's tests: a service, writers that are closed, and a look for what was left behind."""

import json
import threading
from contextlib import ExitStack

import pytest

from flystore.testing.ingest_server import IngestServer, IngestStore
from flystore.testing.serving import reserved_port
from flystore.writer import RunWriter

QUICK = {"linger": 0.0, "first_pause": 0.01, "longest_pause": 0.05, "reserve_bytes": 0}


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(60.0)
    assert [thread for thread in left if thread.is_alive()] == []


@pytest.fixture
def server():
    with IngestServer(IngestStore()) as server:
        yield server


@pytest.fixture
def unused_port():
    """Return a function that gives a port at which nobody listens but who is told of it, for as long as the test."""
    with ExitStack() as held:
        yield lambda: held.enter_context(reserved_port()).getsockname()[1]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def make_writer(home):
    """Return a function that makes writers which hurry; they are closed at the end."""
    writers = []

    def make(where, **options):
        writer = RunWriter(where, **{"journal": home, **QUICK, **options})
        writers.append(writer)
        return writer

    yield make
    for writer in writers:
        writer.close(0)


@pytest.fixture
def recorded(pytestconfig):
    """Return a function that gives the documents of a recorded stream."""

    def load(case):
        folder = pytestconfig.rootpath / "tests" / "data" / "streams" / case
        text = (folder / "documents.jsonl").read_text().replace("{{root}}", str(folder).lstrip("/"))
        return [(line["name"], line["doc"]) for line in map(json.loads, text.splitlines())]

    return load
