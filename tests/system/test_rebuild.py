"""The log is the truth: the trees worked out again from it are the same trees.

If these fail, a defect in the projection costs data, because it cannot be mended afterwards.
"""

from pathlib import Path

import pytest
from bluesky_tiled_plugins import TiledWriter

from flystore import RunWriter
from flystore.catalog import Catalog
from flystore.service import Service
from flystore.service.browse import everything_below
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[1] / "data" / "streams"


@pytest.fixture
def filled(server, data, tmp_path):
    """A service that holds every recorded stream, written by documents and some by the stock writer."""
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        for case in recorded_cases(STREAMS):
            for name, doc in put_in_place(STREAMS, case, data).documents:
                writer(name, doc)
        writer.flush(timeout=100)
    with server.tiled() as client:
        for case in ("flyscan_panda", "monitor_baseline", "reconfigure"):
            home = data / "again"
            home.mkdir(exist_ok=True)
            recorded = put_in_place(STREAMS, case, home)
            stock = TiledWriter(client)
            for name, doc in renamed(recorded.documents):
                stock(name, doc)
    return server


def renamed(documents):
    """Give the runs new uids, so that they can be stored a second time."""
    starts = {doc["uid"] for name, doc in documents if name == "start"}

    def new(value):
        return f"again-{value}" if isinstance(value, str) and value in starts else value

    return [(name, {key: new(value) for key, value in doc.items()}) for name, doc in documents]


def everything(catalog: Catalog):
    with catalog.read() as snapshot:
        nodes = list(everything_below(snapshot, ()))
        return {
            node.path: (
                node.id,
                node.family,
                node.specs,
                node.metadata,
                node.structure,
                node.external,
                snapshot.data_source(node.id),
                snapshot.rows("/".join(node.path)),
            )
            for node in nodes
        }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_rebuilding_gives_the_same_trees(filled):
    service = filled.service
    before = everything(service._catalog)
    done = service.rebuild()
    assert done.runs >= len(recorded_cases(STREAMS))
    assert done.changed == []
    assert everything(service._catalog) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_rebuilding_mends_a_tree_that_was_spoiled(filled):
    service = filled.service
    before = everything(service._catalog)
    with service._catalog.write() as tx:
        for path, (_, family, specs, *_) in before.items():
            if len(path) == 3 and path[-1] == "internal":
                tx.put_node(path, family, specs, {"spoiled": True}, None, origin=tx.node(path).origin, run_uid=path[0])
    done = service.rebuild()
    assert done.changed
    after = everything(service._catalog)
    assert after == before


def test_values_read_the_same_after_a_rebuild(tmp_path, data):
    from flystore import open_store

    case = put_in_place(STREAMS, "flyscan_two_streams", data)
    with open_store(tmp_path / "store", read=[data]) as store:
        with RunWriter(store, journal=tmp_path / "journal") as writer:
            for name, doc in case.documents:
                writer(name, doc)
            writer.flush(timeout=100)
        before = {name: store[-1][name].read() for name in store[-1]}
    with Service.open(tmp_path / "store", read=[data]) as service:
        service.rebuild()
    with open_store(tmp_path / "store", read=[data]) as store:
        for name, dataset in before.items():
            assert store[-1][name].read().identical(dataset)
