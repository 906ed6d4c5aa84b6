"""The catalogue of many runs is what ingesting these runs gives.

If these fail, figures about large catalogues are figures about something else.
"""

import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog
from flystore.catalog._schema import child_counts, leaves, nodes, runs
from flystore.model.frames import FrameEncoder, frame
from flystore.service import Service
from flystore.testing.many_runs import RARE_WORD, documents_of, fill, start_of

RUNS = 40


def shipped(documents):
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))


def rows_of(service, table, *columns):
    with service._catalog.read() as snapshot:
        return sorted(map(tuple, snapshot._session.compose(sa.select(*(table.c[name] for name in columns)))))


@pytest.fixture
def both(tmp_path):
    """A store that was filled, and one that took the same documents in."""
    fill(tmp_path / "filled", RUNS, seed=3)
    filled, ingested = Service.open(tmp_path / "filled"), Service.open(tmp_path / "ingested")
    try:
        for i in range(RUNS):
            documents = documents_of(i, seed=3)
            ingested.ingest.batch(documents[0][1]["uid"], 0, 1, shipped(documents))
        yield filled, ingested
    finally:
        filled.close()
        ingested.close()


def test_a_filled_store_holds_what_ingesting_the_runs_would_have_stored(both):
    filled, ingested = both

    for table, columns in (
        (nodes, ("path", "key", "family", "origin", "run_uid", "indexed", "children_indexed", "specs", "metadata")),
        (leaves, ("key", "value")),
        (child_counts, ("count",)),
        (runs, ("uid", "writer", "watermark", "projected", "open", "start_time", "verdict", "state")),
    ):
        assert rows_of(filled, table, *columns) == rows_of(ingested, table, *columns)


def test_nothing_is_wrong_with_a_filled_store_and_its_log_gives_the_same_trees(both):
    filled, _ = both
    before = rows_of(filled, nodes, "path", "metadata")

    rebuilt = filled.rebuild()

    assert rebuilt.runs == RUNS
    assert rows_of(filled, nodes, "path", "metadata") == before
    with filled._catalog.read() as snapshot:
        assert [problem for i in snapshot.node_ids() for problem in snapshot.problems_of(snapshot.node_by_id(i))] == []
        assert len(list(snapshot.documents(start_of(0, seed=3)["uid"]))) == 1


def test_more_runs_can_be_ingested_into_a_filled_catalogue(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        fill(catalog, 3)
        with catalog.write() as tx:
            node = tx.put_node(("another",), "container", [], {}, None)
        with catalog.read() as snapshot:
            assert snapshot.count(()) == 4
            assert snapshot.node_by_id(node.id).key == "another"


def test_runs_are_the_same_in_a_larger_catalogue_and_others_for_another_seed():
    assert start_of(7, seed=1) == start_of(7, seed=1)
    assert start_of(7, seed=1)["uid"] != start_of(7, seed=2)["uid"]
    assert RARE_WORD in start_of(5_077)["purpose"]
