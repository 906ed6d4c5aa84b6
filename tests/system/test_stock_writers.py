"""Unmodified stock writers and the unmodified stock client work against flystore, with stock's results.

If these fail, a facility cannot put flystore in the place of its Tiled server.
"""

import bluesky.plans as bp
import pytest
import tiled.client
import xarray
from bluesky.callbacks.tiled_writer import TiledWriter as ClassicWriter
from bluesky_tiled_plugins import TiledWriter as PluginWriter
from ophyd.sim import det, hw

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WRITERS = {"classic": ClassicWriter, "plugin": PluginWriter}


def replay(documents, writer):
    for name, doc in documents:
        writer(name, doc)


@pytest.fixture(params=sorted(WRITERS))
def writer_class(request):
    return WRITERS[request.param]


def read_both_layouts(client, uid):
    return client[uid]["primary"].read(), client[uid]["streams/primary"].read()


@pytest.mark.parametrize("shots", [1, 10])
def test_a_count_of_a_detector_reads_as_from_stock(server, stock, recorded, writer_class, shots):
    documents = recorded(bp.count([det], shots))
    uid = documents[0][1]["uid"]
    found = []
    for service in (server, stock):
        with service.tiled() as client:
            replay(documents, writer_class(client))
            found.append(client[uid]["primary"].read())
    ours, theirs = found
    xarray.testing.assert_identical(ours, theirs)


def test_image_files_announced_by_resource_and_datum_read_as_from_stock(server, stock, recorded, writer_class):
    documents = recorded(bp.count([hw(save_path=str(server.data)).img], 10))
    uid = documents[0][1]["uid"]
    found = []
    for service in (server, stock):
        with service.tiled() as client:
            replay(documents, writer_class(client))
            found.append(client[uid]["primary"].read())
    ours, theirs = found
    assert ours["img"].shape[0] == 10
    xarray.testing.assert_identical(ours, theirs)


def test_the_older_layout_answers_too(server, recorded, writer_class):
    documents = recorded(bp.count([det], 3))
    with server.tiled() as client:
        replay(documents, writer_class(client))
        new, old = read_both_layouts(client, documents[0][1]["uid"])
    xarray.testing.assert_identical(new, old)


def test_the_root_is_a_catalogue_of_runs(server, recorded):
    with server.tiled() as client:
        writer = PluginWriter(client)
        uids = []
        for _ in range(2):
            documents = recorded(bp.count([det], 1))
            replay(documents, writer)
            uids.append(documents[0][1]["uid"])
        assert type(client).__name__ == "CatalogOfBlueskyRuns"
        assert client[-1].start["uid"] == uids[-1]
        assert client[uids[0][:8]].start["uid"] == uids[0]
        assert client[documents[0][1]["scan_id"]].start["uid"] in uids
        assert list(client) == uids
        assert len(client) == 2
        assert tiled.client is not None
