"""A service whose disk is full or failing refuses what it cannot store, and goes on reading.

If these fail, a full disk stores half a batch, or takes the data away from those who only want to look at it.
"""

import errno
import os
from contextlib import closing

import numpy as np
import pytest

from flystore.http import Access, build_app
from flystore.model.errors import DiskFull, SyncFailed, Unavailable
from flystore.model.frames import FrameEncoder, frame
from flystore.model.structures import ArrayStructure
from flystore.service import Service, ingest
from flystore.service.requests import NewNode
from flystore.testing.documents import RunDocuments, internal
from flystore.wire import InProcessTransport

STRUCTURE = ArrayStructure.of(np.dtype("<i8"), (4,))


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def body():
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal())
    stream.event(x=1.0)
    run.stop()
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in run.documents for payload in encoder.encode(name, doc))


def create_array(service):
    source = {"structure_family": "array", "structure": STRUCTURE.to_wire(), "management": "writable"}
    wire = {"id": "a", "structure_family": "array", "metadata": {}, "data_sources": [source]}
    service.nodes.create((), NewNode.from_wire(wire))


def test_a_disk_that_is_full_while_a_batch_is_shown_refuses_the_batch(service, body, monkeypatch):
    def full(*_):
        raise DiskFull("the disk of the catalogue is full")

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "apply_changes", full)
        with pytest.raises(DiskFull):
            service.ingest.batch("run", 0, 1, body)
    assert service.ingest.batch("run", 0, 1, body).watermark == 4


def test_after_a_failed_sync_of_an_array_nothing_is_stored_and_all_is_read(service, body, monkeypatch):
    create_array(service)
    service.nodes.write_array(("a",), np.arange(4).tobytes())
    service.ingest.batch("run", 0, 1, body)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(SyncFailed):
            service.nodes.write_array(("a",), np.arange(4, 8).tobytes())
    with pytest.raises(SyncFailed):
        service.nodes.write_array(("a",), np.arange(4, 8).tobytes())
    with pytest.raises(SyncFailed):
        service.ingest.batch("other", 0, 1, body)
    assert np.frombuffer(service.arrays.read(("a",)), "<i8").tolist() in ([0, 1, 2, 3], [4, 5, 6, 7])
    assert service.tables.read(("run", "primary", "internal"))["x"].to_pylist() == [1.0]
    assert service.verdicts.of(("run",), look=True).state == "complete"


def test_who_watches_over_the_service_is_told_that_it_stores_nothing(service):
    with closing(InProcessTransport(build_app(service, Access.of("k")), "k")) as transport:
        assert transport.request("GET", "/healthz").decode() == {"status": "ready"}
        service._trust.lose("catalog.sqlite: disk I/O error")
        with pytest.raises(Unavailable, match=r'"status":"read-only","reason":"its disk failed a write') as failed:
            transport.request("GET", "/healthz")
        assert "catalog.sqlite" not in str(failed.value), "who has no key learns how files are called"
