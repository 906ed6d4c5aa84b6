"""The tutorial, with flystore's own writer and client: over a service, and in one process without one.

If these fail, the first thing a beamline scientist tries does not work.
"""

from contextlib import contextmanager

import bluesky.plans as bp
import pytest
import xarray
from bluesky_tiled_plugins import TiledWriter
from ophyd.sim import det, hw

from flystore import RunWriter, from_uri, open_store

stock_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=["a service", "in process"])
def opened(request, tmp_path, data):
    """A function that opens a client to write with and to read with."""

    @contextmanager
    def open_client():
        if request.param == "in process":
            with open_store(tmp_path / "store", read=[data]) as store:
                yield store, store
        else:
            server = request.getfixturevalue("server")
            with from_uri(server.url, api_key=server.key) as client:
                yield server.url, client

    return open_client


def write(where, documents, tmp_path):
    with RunWriter(where, api_key="secret" if isinstance(where, str) else None, journal=tmp_path / "journal") as writer:
        for name, doc in documents:
            writer(name, doc)
        writer.flush(timeout=100)
        return writer.status()


def stock_dataset(stock, documents):
    """Return what stock writer 2.0.12, stock service and stock client make of the same documents."""
    with stock.tiled() as client:
        writer = TiledWriter(client)
        for name, doc in documents:
            writer(name, doc)
        return client[documents[0][1]["uid"]]["primary"].read()


@stock_warnings
@pytest.mark.parametrize("device", ["det", "img"])
def test_a_count_reads_as_from_stock(opened, stock, recorded, tmp_path, data, device):
    detector = det if device == "det" else hw(save_path=str(data)).img
    documents = recorded(bp.count([detector], 10))
    uid = documents[0][1]["uid"]
    with opened() as (where, client):
        write(where, documents, tmp_path)
        new, old = client[uid]["primary"].read(), client[uid]["streams/primary"].read()
    theirs = stock_dataset(stock, documents)
    xarray.testing.assert_identical(new, theirs)
    xarray.testing.assert_identical(old, theirs)
    assert new[device].shape[0] == 10


def test_the_writer_is_a_callback_of_the_run_engine(opened, recorded, tmp_path, caplog):
    with opened() as (where, client):
        key = "secret" if isinstance(where, str) else None
        caplog.set_level("INFO", logger="flystore.writer")
        with RunWriter(where, api_key=key, journal=tmp_path / "journal") as writer:
            documents = recorded(bp.count([det], 3), writer)
            writer.wait(documents[0][1]["uid"], 3, timeout=60)
        run = client[-1]
        assert run.start["uid"] == documents[0][1]["uid"]
        assert "3/3 points, 0 gaps, stored" in caplog.text


def test_documents_come_back_exactly(opened, recorded, tmp_path):
    documents = recorded(bp.count([det], 3))
    with opened() as (where, client):
        write(where, documents, tmp_path)
        found = client[-1].documents()
        assert not found.reconstructed
        assert list(found) == documents


def test_runs_are_found_by_uid_part_of_it_scan_id_and_place(opened, recorded, tmp_path):
    with opened() as (where, client):
        uids = []
        for _ in range(3):
            documents = recorded(bp.count([det], 1))
            write(where, documents, tmp_path)
            uids.append(documents[0][1]["uid"])
        assert [run.start["uid"] for run in client.values()] == uids
        assert client[uids[1]].start["uid"] == uids[1]
        assert client[uids[1][:9]].start["uid"] == uids[1]
        assert client[1].start["uid"] == uids[-1], "scan id 1 came three times; the latest counts"
        assert client[-3].start["uid"] == uids[0]
        assert len(client.search(plan_name="count")) == 3
        assert len(client.search(plan_name="scan")) == 0


@stock_warnings
def test_a_stock_client_reads_what_our_writer_wrote(server, stock, recorded, tmp_path):
    documents = recorded(bp.count([det], 10))
    write(server.url, documents, tmp_path)
    with server.tiled() as client:
        ours = client[documents[0][1]["uid"]]["primary"].read()
    xarray.testing.assert_identical(ours, stock_dataset(stock, documents))


@stock_warnings
def test_our_client_reads_what_a_stock_writer_wrote_and_says_what_cannot_be_known(server, recorded):
    documents = recorded(bp.count([hw(save_path=str(server.data)).img], 4))
    with server.tiled() as tiled:
        writer = TiledWriter(tiled)
        for name, doc in documents:
            writer(name, doc)
        theirs = tiled[-1]["primary"].read()
    with from_uri(server.url, api_key=server.key) as client:
        run = client[-1]
        xarray.testing.assert_identical(run["primary"].read(), theirs)
        assert "frame map not announced" in str(run.verdict)
        rebuilt = run.documents()
        assert rebuilt.reconstructed
        names = [name for name, _ in rebuilt]
        assert names[0] == "start"
        assert names[-1] == "stop"
        assert names.count("event") == 4


def test_what_a_dead_process_left_is_shipped_by_the_next(server, recorded, tmp_path):
    documents = recorded(bp.count([det], 3))
    home = tmp_path / "journal"
    offline = RunWriter("http://127.0.0.1:9", api_key="secret", journal=home)
    for name, doc in documents:
        offline(name, doc)
    status = str(offline.status())
    offline.close(timeout=0)
    assert "not yet stored" in status
    with from_uri(server.url, api_key=server.key) as client:
        assert len(client) == 0
