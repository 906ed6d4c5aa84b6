"""The log keeps what it was given, in the order of commits, and the feed misses nothing.

If these fail, a follower skips a change for ever, or a rebuild gives another tree.
"""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.catalog import Catalog, Transaction
from flystore.model.errors import Conflict, InvalidRequest
from flystore.model.structures import BLUESKY_RUN, Family, Spec

BOX = Family.CONTAINER


def digest(ordinal):
    return ordinal.to_bytes(16, "big")


def append(tx, uid, first, count, body=b"body"):
    tx.append_documents(uid, first, count, 1, b"".join(digest(first + i) for i in range(count)), body, 5.0)


@pytest.mark.parametrize("uid", ["u", None])
def test_batches_come_back_in_order_and_whole(catalog, uid):
    for i, (first, n) in enumerate(((0, 3), (3, 1), (4, 6))):
        with catalog.write() as tx:
            assert tx.log_end(uid) == first
            append(tx, uid, first, n, bytes([i]) * 1_000)
            append(tx, "other", first, n)

    with catalog.read() as snapshot:
        records = list(snapshot.documents(uid))
        assert snapshot.log_end(uid) == 10
        assert snapshot.log_end("nobody") == 0
        assert list(snapshot.documents("nobody")) == []
    assert [(r.first_ordinal, r.count, r.body) for r in records] == [
        (0, 3, b"\0" * 1_000),
        (3, 1, b"\1" * 1_000),
        (4, 6, b"\2" * 1_000),
    ]
    first = records[0]
    assert (first.kind, first.run_uid, first.epoch, first.received) == ("documents", uid, 1, 5.0)
    assert (first.path, first.action) == (None, None)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), first=st.integers(0, 20), more=st.integers(0, 20))
def test_any_part_of_a_run_can_be_read(catalog, counts, first, more):
    with catalog.write() as tx:
        uid = f"run{tx.last_position()}"
        at = 0
        for n in counts:
            append(tx, uid, at, n)
            at += n
    stop = first + more

    with catalog.read() as snapshot:
        hashes = snapshot.hashes(uid, first, stop)
        records = list(snapshot.documents(uid, first, stop))
        endless = list(snapshot.documents(uid, first))

    wanted = range(first, min(stop, at))
    assert hashes == [digest(i) for i in wanted]
    held = {r.first_ordinal + i for r in records for i in range(r.count)}
    assert held.issuperset(wanted)
    assert all(r.first_ordinal < stop and r.first_ordinal + r.count > first for r in records)
    assert endless[: len(records)] == records
    assert list(catalog.documents(uid, first, stop)) == records


def test_a_run_of_many_batches_is_read_page_by_page(catalog):
    with catalog.write() as tx:
        for i in range(200):
            append(tx, "u", i, 1, str(i).encode())

    with catalog.read() as snapshot:
        assert [int(record.body) for record in snapshot.documents("u")] == list(range(200))
        assert [int(record.body) for record in snapshot.documents("u", 150)] == list(range(150, 200))
    assert [int(record.body) for record in catalog.documents("u")] == list(range(200))


def test_the_same_batch_cannot_be_stored_twice(catalog):
    with catalog.write() as tx:
        append(tx, "u", 0, 2)
    with pytest.raises(Conflict), catalog.write() as tx:
        append(tx, "u", 0, 2)

    with catalog.read() as snapshot:
        assert len(list(snapshot.documents("u"))) == 1
        assert snapshot.last_position() == 1


@pytest.mark.parametrize(("count", "hashes"), [(0, b""), (1, b""), (2, b"h" * 16)])
def test_a_batch_whose_numbers_contradict_each_other_is_refused(catalog, count, hashes):
    with catalog.write() as tx, pytest.raises(InvalidRequest, match="make no batch"):
        tx.append_documents("u", 0, count, 0, hashes, b"", 0.0)


def test_operations_and_documents_share_one_order(catalog):
    with catalog.write() as tx:
        append(tx, "u", 0, 1)
        tx.append_operation(("a", "b"), "put", b"body", 7.0)
    with catalog.write() as tx:
        append(tx, None, 0, 1)

    with catalog.read() as snapshot:
        records = list(snapshot.log())
        (operation,) = snapshot.operations()
        assert list(snapshot.log(1, limit=1)) == records[1:2]
        assert list(snapshot.operations(2)) == []
    assert [(r.position, r.kind, r.run_uid) for r in records] == [
        (1, "documents", "u"),
        (2, "operation", None),
        (3, "documents", None),
    ]
    assert (operation.path, operation.action, operation.body, operation.received) == (("a", "b"), "put", b"body", 7.0)


def test_the_feed_tells_what_each_record_did(catalog):
    with catalog.write() as tx:
        append(tx, "u", 0, 1)
        tx.put_node(("u",), BOX, [BLUESKY_RUN], {}, None, origin="documents", run_uid="u")
        tx.put_node(("u", "primary"), BOX, [], {}, None, origin="documents", run_uid="u")
        append(tx, "u", 1, 1)
        tx.append_segment("u/primary", 0, 4, b"")
    with catalog.write() as tx:
        tx.put_node(("u",), BOX, [BLUESKY_RUN], {"stop": 1}, None, origin="documents", run_uid="u")
        tx.put_node(("other",), BOX, [], {}, None)
    with catalog.write() as tx:
        tx.delete_node(("u",), recursive=True)
        tx.note_change(("other",), "updated", {"why": "said so"})

    with catalog.read() as snapshot:
        told = snapshot.changes()
        assert snapshot.last_position() == 4
    assert [(c.position, c.seq, c.path, c.what, c.detail) for c in told] == [
        (1, 0, ("u",), "created", {"family": "container"}),
        (1, 1, ("u", "primary"), "created", {"family": "container"}),
        (2, 0, ("u", "primary"), "rows", {"first_row": 0, "rows": 4}),
        (3, 0, ("u",), "updated", {"family": "container"}),
        (3, 1, ("other",), "created", {"family": "container"}),
        (4, 0, ("u",), "deleted", {}),
        (4, 1, ("other",), "updated", {"why": "said so"}),
    ]


def test_the_feed_goes_on_from_any_change_and_can_be_narrowed(catalog):
    with catalog.write() as tx:
        for uid in ("u", "v", "u0"):
            tx.put_node((uid,), BOX, [BLUESKY_RUN], {}, None, run_uid=uid)
            tx.put_node((uid, "primary"), BOX, [], {}, None, run_uid=uid)

    with catalog.read() as snapshot:
        every = snapshot.changes()
        for i, change in enumerate(every):
            assert snapshot.changes((change.position, change.seq)) == every[i + 1 :]
            assert snapshot.changes((change.position, change.seq), limit=1) == every[i + 1 : i + 2]
        assert snapshot.changes(every[-1].position) == []
        assert [c.path for c in snapshot.changes(under=("u",))] == [("u",), ("u", "primary")]
        assert [c.path for c in snapshot.changes(under=("v", "primary"))] == [("v", "primary")]
        assert snapshot.changes(under=()) == every
        assert snapshot.changes(run_uid="u0") == every[4:]


def test_a_transaction_that_changes_nothing_takes_no_position(catalog):
    with catalog.write() as tx:
        tx.put_node(("n",), BOX, [], {}, None)
    with catalog.write() as tx:
        tx.put_node(("n",), BOX, [], {}, None)

    with catalog.read() as snapshot:
        assert snapshot.last_position() == 1


def test_watchers_are_told_after_the_commit_until_they_end_it(catalog, caplog):
    told = []

    def watcher(committed):
        with catalog.read() as snapshot:
            told.append((committed.first, committed.last, snapshot.last_position(), committed.run_uids))

    def broken(committed):
        raise RuntimeError("on purpose")

    catalog.watch(broken)
    end = catalog.watch(watcher)
    for _ in range(2):
        with catalog.write() as tx:
            append(tx, "u", tx.log_end("u"), 1)
    end()
    end()
    with catalog.write() as tx:
        append(tx, "u", 2, 1)

    assert told == [(1, 1, 1, {"u"}), (2, 2, 2, {"u"})]
    assert "on purpose" in caplog.text


class Follower:
    """Reads the feed as clients do, and checks that nothing comes late."""

    def __init__(self, catalog):
        self.catalog = catalog
        self.seen = []

    def poll(self):
        with self.catalog.read() as snapshot:
            self.seen += snapshot.changes(self.seen[-1].position if self.seen else 0)
        return [change.path[0] for change in self.seen]


def test_what_is_committed_later_has_the_later_position(fresh_postgres):
    """The first to begin is the last to commit: a serial id would hide it from who read the other."""
    with Catalog.open(fresh_postgres) as catalog, Catalog.open(fresh_postgres) as elsewhere:
        follower = Follower(catalog)
        with catalog.write() as slow:
            slow.put_node(("slow",), BOX, [], {}, None)
            append(slow, "slow", 0, 1)
            with elsewhere.write() as quick:
                quick.put_node(("quick",), BOX, [], {}, None)
                append(quick, "quick", 0, 1)
            assert follower.poll() == ["quick"]

        assert follower.poll() == ["quick", "slow"]
        assert [change.position for change in follower.seen] == [1, 2]


def test_a_commit_that_has_its_position_holds_back_those_after_it(fresh_postgres):
    """Between taking a position and the commit nobody else gets one."""
    with Catalog.open(fresh_postgres) as catalog, Catalog.open(fresh_postgres) as elsewhere:
        follower = Follower(catalog)
        waiting = threading.Event()
        done = threading.Event()

        def other():
            with elsewhere.write() as tx:
                tx.put_node(("second",), BOX, [], {}, None)
                waiting.set()
            done.set()

        writer = catalog._database.writing()
        first = Transaction(catalog._database, writer.__enter__(), catalog._clock)
        first.put_node(("first",), BOX, [], {}, None)
        first.finish()
        thread = threading.Thread(target=other)
        thread.start()
        waiting.wait(100)
        wait_until_blocked(catalog)

        assert not done.is_set()
        assert follower.poll() == []
        writer.__exit__(None, None, None)
        thread.join(100)
        assert follower.poll() == ["first", "second"]
        assert [change.position for change in follower.seen] == [1, 2]


def wait_until_blocked(catalog):
    """Return once some session waits for a lock; fails after a while."""
    for _ in range(100_000):
        with catalog._database.reading() as session:
            row = session.driver.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            ).fetchone()
        if row[0]:
            return
    pytest.fail("nobody waits")


def test_followers_of_many_writers_see_every_position_in_order(catalog_url):
    """Writers in threads of their own, a follower beside them: no gap ever, nothing out of order."""
    writers, commits = 3, 15
    with Catalog.open(catalog_url) as catalog:
        failures = []

        def write(name):
            try:
                for i in range(commits):
                    with catalog.write() as tx:
                        tx.put_node((f"{name}-{i}",), BOX, [Spec("S")], {"v": i}, None)
                        append(tx, name, i, 1)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(writers)]
        for thread in threads:
            thread.start()
        follower = Follower(catalog)
        while any(thread.is_alive() for thread in threads):
            follower.poll()
        follower.poll()
        for thread in threads:
            thread.join()

        assert failures == []
        assert [change.position for change in follower.seen] == list(range(1, writers * commits + 1))
        with catalog.read() as snapshot:
            assert snapshot.count(()) == writers * commits
