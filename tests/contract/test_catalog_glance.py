"""What an event loop reads of the catalogue is short, and everything else is left to a thread.

If these fail, a service stands still for everybody while one long row is read, or while another process is at work.
"""

import sqlite3

import pytest

from flystore.catalog import Catalog, NotAtOnce
from flystore.catalog._database import GLANCE_BYTES
from flystore.model.structures import Family


def put(tx, key, **metadata):
    return tx.put_node((key,), Family.CONTAINER, [], metadata, None)


def test_a_glance_shows_what_a_read_does_or_leaves_it_to_a_read(catalog):
    with catalog.write() as tx:
        node_id = put(tx, "a", x=1).id
    with catalog.read() as snapshot:
        read = snapshot.node(("a",)), snapshot.count_children(node_id), snapshot.observation(node_id)
    try:
        with catalog.glance() as snapshot:
            assert (snapshot.node(("a",)), snapshot.count_children(node_id), snapshot.observation(node_id)) == read
    except NotAtOnce:
        assert catalog.backend == "postgresql"


@pytest.fixture
def local(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.db") as opened:
        yield opened


def test_a_long_row_is_left_to_a_thread_and_the_next_short_one_is_not(local):
    with local.write() as tx:
        put(tx, "short", x="x")
        put(tx, "long", x="x" * GLANCE_BYTES)
    for _ in range(2):
        with pytest.raises(NotAtOnce), local.glance() as snapshot:
            snapshot.node(("long",))
        with local.glance() as snapshot:
            assert snapshot.node(("short",)).metadata == {"x": "x"}
    with local.read() as snapshot:
        assert len(snapshot.node(("long",)).metadata["x"]) == GLANCE_BYTES


def test_a_glance_does_not_wait_for_another_process(local, tmp_path):
    with local.glance() as snapshot:
        assert snapshot.node(()) is not None
    other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    try:
        # Nothing that a process does to a database with a write-ahead log locks readers out but this.
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        local.close()
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE nodes SET revision = revision")
        with pytest.raises(NotAtOnce), local.glance() as snapshot:
            snapshot.node(())
    finally:
        other.close()


def test_a_glance_sees_one_moment(local):
    with local.write() as tx:
        put(tx, "a")
    with local.glance() as snapshot:
        before = snapshot.node(("a",))
        with local.write() as tx:
            put(tx, "b")
            tx.note_data(before.id)
        assert snapshot.node(("a",)) == before
        assert snapshot.node(("b",)) is None
    with local.glance() as snapshot:
        assert snapshot.node(("b",)) is not None
        assert snapshot.node(("a",)).revision > before.revision


def test_what_was_found_in_one_file_is_looked_up_and_not_searched_for(local):
    with local.write() as tx:
        node = put(tx, "a")
    with local.read() as snapshot:
        driver = snapshot._session.driver
        plans, texts = [], []
        driver.set_trace_callback(texts.append)
        snapshot.observation(node.id)
        driver.set_trace_callback(None)
        for text in texts:
            plans += [row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {text}")]
    assert plans
    assert all("node_id=? AND num=?" in plan for plan in plans)
