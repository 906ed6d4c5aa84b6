"""Many threads read while one writes; none sees half of anything, and nothing is left behind.

If these fail, people polling a running scan see rows without their node, or the service runs out of
connections after a week.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flystore.catalog import Catalog
from flystore.model import queries as q
from flystore.model.errors import InvalidRequest
from flystore.model.structures import Family


def test_readers_beside_a_writer_see_nodes_rows_counts_and_search_agree(catalog_url):
    stop, begun = threading.Event(), threading.Semaphore(0)

    def watch(catalog):
        looks = 0
        while looks == 0 or not stop.is_set():
            with catalog.read() as snapshot:
                rows = snapshot.rows("s")
                seen = (
                    snapshot.count(()),
                    snapshot.last_position(),
                    snapshot.count((), q.KeyPresent("v")),
                    len(snapshot.child_keys((), query=q.FullText("walrus"), limit=1_000).keys),
                )
            assert seen == (rows, rows, rows, rows)
            looks += 1
            if looks == 1:
                begun.release()

    with Catalog.open(catalog_url) as catalog, ThreadPoolExecutor(4) as pool:
        watching = [pool.submit(watch, catalog) for _ in range(4)]
        try:
            for _ in watching:
                assert begun.acquire(timeout=60)
            for i in range(60):
                with catalog.write() as tx:
                    tx.put_node((f"n{i}",), Family.CONTAINER, [], {"v": i, "w": "walrus"}, None)
                    tx.append_segment("s", i, 1, b"row")
        finally:
            stop.set()
        for future in watching:
            future.result()


def test_a_thread_may_read_within_its_own_read(catalog):
    with catalog.read() as outer, catalog.read() as inner:
        assert outer.node(()) == inner.node(())


def test_a_snapshot_left_by_an_exception_gives_its_connection_back(catalog):
    for _ in range(100):
        with pytest.raises(InvalidRequest), catalog.read() as snapshot:
            snapshot.children((), offset=1, after=1)
    with catalog.read() as snapshot:
        assert snapshot.node(()) is not None


def test_a_reader_cannot_write(catalog):
    with pytest.raises(Exception, match=r"read-?only"), catalog.read() as snapshot:
        snapshot._session.sql("DELETE FROM nodes")


def test_a_snapshot_still_open_at_close_ends_in_peace(tmp_path):
    catalog = Catalog.open(f"sqlite:///{tmp_path}/c.db")
    with catalog.read() as snapshot:
        catalog.close()
        assert snapshot.node(()) is not None
