"""A disk that does not come back from a sync holds nobody up for longer than he said.

If these fail, a session cannot be ended, or other runs are not sent, because a disk hangs.
"""

import threading

import pytest

from flystore.journal import Journal, is_locked, orphans
from flystore.journal import _log as log_module
from flystore.model.errors import Misconfigured
from flystore.testing.journals import TARGET, document_payloads


@pytest.fixture
def hanging(monkeypatch):
    """A disk whose syncs do not come back until `release` is set; `begun` says that one is under way."""

    class Disk:
        begun, release = threading.Event(), threading.Event()

    real = log_module.datasync

    def datasync(descriptor):
        Disk.begun.set()
        Disk.release.wait()
        real(descriptor)

    monkeypatch.setattr(log_module, "datasync", datasync)
    yield Disk
    Disk.release.set()
    for thread in threading.enumerate():
        if thread.name == "flystore-journal-sync":
            thread.join()


def append(journal, count=3):
    log = journal.open_run("run-1")
    for payloads in document_payloads(count):
        log.append(payloads)
    return log


def ended_syncing():
    for thread in threading.enumerate():
        if thread.name == "flystore-journal-sync":
            thread.join()


def test_closing_returns_in_time_while_a_sync_hangs(tmp_path, hanging, caplog):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=1e-3)
    log = append(journal)
    hanging.begun.wait()
    assert journal.close(0.05) is False
    assert not hanging.release.is_set()
    assert "does not come back from a sync" in caplog.text
    with pytest.raises(Misconfigured, match="closed"):
        log.append(document_payloads(1)[0])
    # Its files are in use: nobody takes it over before.
    assert is_locked(journal.path)
    hanging.release.set()
    ended_syncing()
    assert not is_locked(journal.path)
    assert log.durable == 3
    with Journal.take_over(orphans(tmp_path)[0]) as taken:
        assert taken.logs[0].end == 3


def test_closing_returns_in_time_while_the_plans_own_sync_hangs(tmp_path, hanging):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0, durability="each")
    log = journal.open_run("run-1")
    plan = threading.Thread(target=log.append, args=(document_payloads(1)[0],))
    plan.start()
    hanging.begun.wait()
    assert journal.close(0.05) is False
    hanging.release.set()
    plan.join()
    assert log.durable == 1


def test_a_run_that_is_stored_waits_for_its_files_only_a_moment(tmp_path, hanging, monkeypatch):
    monkeypatch.setattr(log_module, "SYNC_PATIENCE_S", 0.01)
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=1e-3)
    log = append(journal)
    hanging.begun.wait()
    log.end_run()
    log.acknowledge(3)
    assert not log.remove_if_done()
    hanging.release.set()
    assert journal.close(100)
    assert not journal.path.exists()


def test_what_is_appended_until_the_end_is_synced(tmp_path):
    for _ in range(50):
        journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=3600.0)
        log, appended = journal.open_run("run-1"), []
        begun = threading.Event()

        def write(log=log, appended=appended, begun=begun):
            try:
                for payloads in document_payloads(2000):
                    appended.append(log.append(payloads))
                    begun.set()
            except Misconfigured:
                pass

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        assert journal.close()
        thread.join()
        assert log.durable == log.end == len(appended)
