"""A commit that the disk failed is the last one, and a full disk leaves no half transaction.

If these fail, batches are acknowledged that a power cut takes, or a run's watermark runs ahead of its log.
"""

import resource
import sqlite3
from contextlib import contextmanager

import pytest

from flystore.catalog import Catalog
from flystore.catalog import _database as database
from flystore.disk import Trust
from flystore.model.errors import SyncFailed
from flystore.model.structures import Family


@pytest.fixture
def trust():
    return Trust()


@pytest.fixture
def catalog(tmp_path, trust):
    with Catalog.open(f"sqlite:///{tmp_path / 'c.sqlite'}", trust=trust) as opened:
        yield opened


@contextmanager
def files_no_longer_than(nbytes):
    """Let the system refuse (EFBIG, which SQLite calls an I/O error) what is written beyond `nbytes` of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def put(catalog, key, size=10):
    with catalog.write() as tx:
        tx.put_node((key,), Family.CONTAINER, (), {"text": "x" * size}, None, origin="protocol", run_uid=None)


def keys(catalog):
    with catalog.read() as snapshot:
        return [node.key for node in snapshot.children((), limit=100).nodes]


def test_after_a_commit_that_the_disk_failed_nothing_is_stored_and_reads_go_on(catalog, trust, tmp_path):
    put(catalog, "before")
    with files_no_longer_than((tmp_path / "c.sqlite-wal").stat().st_size + 100), pytest.raises(SyncFailed):
        put(catalog, "failed")
    assert trust.lost is not None
    assert "SQLITE_IOERR_WRITE" in trust.lost
    with pytest.raises(SyncFailed):  # though the disk is well again
        put(catalog, "after")
    assert keys(catalog) == ["before"]
    catalog.close()
    with Catalog.open(f"sqlite:///{tmp_path / 'c.sqlite'}") as again:
        put(again, "after")
        assert keys(again) == ["before", "after"]


def test_a_failure_within_a_savepoint_is_noticed_though_the_caller_survives_it(catalog, trust, tmp_path):
    """SQLite undoes the whole transaction then; what follows would be stored by itself, without what came before."""
    limit = (tmp_path / "c.sqlite-wal").stat().st_size + 100_000

    def put_many(tx):  # more than the cache holds, so some is written before the commit
        with tx.savepoint():
            for number in range(40):
                metadata = {"text": "x" * 2**20}
                tx.put_node((f"n{number}",), Family.CONTAINER, (), metadata, None, origin="protocol", run_uid=None)

    with files_no_longer_than(limit), pytest.raises(SyncFailed), catalog.write() as tx:
        put_many(tx)
    assert trust.lost is not None
    assert keys(catalog) == []


def test_trust_is_lost_when_moving_the_write_ahead_log_into_the_file_fails(tmp_path, trust, monkeypatch):
    monkeypatch.setattr(database, "CHECKPOINT_BYTES", 0)
    path = tmp_path / "c.sqlite"
    with Catalog.open(f"sqlite:///{path}", trust=trust) as catalog:
        put(catalog, "before")
        # Room for the log, which begins anew, and none for the file to grow.
        with files_no_longer_than(path.stat().st_size + 10_000), pytest.raises(SyncFailed):
            put(catalog, "durable", 100_000)
        assert trust.lost is not None
        with pytest.raises(SyncFailed):
            put(catalog, "after")
    with Catalog.open(f"sqlite:///{path}") as again:
        assert keys(again) == ["before", "durable"]


def test_the_write_ahead_log_stays_short(catalog, tmp_path):
    for number in range(12):
        put(catalog, f"n{number}", 2**20)
    assert (tmp_path / "c.sqlite-wal").stat().st_size < database.CHECKPOINT_BYTES + 3 * 2**20
    assert (tmp_path / "c.sqlite").stat().st_size > 4 * 2**20


def test_what_a_killed_process_committed_is_synced_into_the_file_before_anybody_sees_it(tmp_path):
    path = tmp_path / "c.sqlite"
    with Catalog.open(f"sqlite:///{path}") as first:
        put(first, "known")
        # What a kill leaves: the file without what only the log has.
        saved = path.read_bytes(), path.with_name("c.sqlite-wal").read_bytes()
    left = tmp_path / "left.sqlite"
    left.write_bytes(saved[0])
    left.with_name("left.sqlite-wal").write_bytes(saved[1])
    with Catalog.open(f"sqlite:///{left}"):
        alone = tmp_path / "alone.sqlite"
        alone.write_bytes(left.read_bytes())
        connection = sqlite3.connect(alone)
        try:
            assert connection.execute("SELECT count(*) FROM nodes WHERE key = 'known'").fetchone() == (1,)
        finally:
            connection.close()


def test_a_second_start_after_a_kill_changes_nothing(tmp_path):
    path = tmp_path / "c.sqlite"
    with Catalog.open(f"sqlite:///{path}") as first:
        put(first, "known")
        saved = path.read_bytes(), path.with_name("c.sqlite-wal").read_bytes()
    path.write_bytes(saved[0])
    path.with_name("c.sqlite-wal").write_bytes(saved[1])
    with Catalog.open(f"sqlite:///{path}") as again:
        assert keys(again) == ["known"]
    after = path.read_bytes()
    with Catalog.open(f"sqlite:///{path}"):
        pass
    assert path.read_bytes() == after
