"""The sync thread looks by itself while a scan goes on, and sleeps when nothing comes.

If these fail, documents wait unsynced for the next one, or each interval of a scan costs the plan a wake-up.
"""

import threading

import pytest

from flystore.journal import _sync as sync_module
from flystore.journal._sync import GroupSync


class Log:
    """Counts its syncs; `grow` is an append as the plan's thread makes it."""

    def __init__(self, group):
        self.group = group
        self.grown = self.synced = self.asked = 0
        self.changed = threading.Condition()
        self._waiting = False

    @property
    def waiting_for_sync(self):
        return self._waiting

    @waiting_for_sync.setter
    def waiting_for_sync(self, value):
        with self.changed:
            self._waiting = value
            self.changed.notify_all()

    @property
    def unsynced(self):
        return self.synced < self.grown

    def sync(self):
        with self.changed:
            self.synced = self.grown
            self.changed.notify_all()
        return self.synced

    def grow(self):
        self.grown += 1
        if not self.waiting_for_sync:
            self.waiting_for_sync = True
            self.asked += 1
            self.group.add(self)

    def wait(self, ready):
        with self.changed:
            assert self.changed.wait_for(ready, 100)


@pytest.fixture
def group():
    group = GroupSync(0.001, lambda: None)
    yield group
    group.close()


def test_a_scan_asks_once_however_many_documents_it_has(group, monkeypatch):
    monkeypatch.setattr(sync_module, "AWAKE_S", 1e6)
    log = Log(group)
    for _ in range(50):
        log.grow()
        log.wait(lambda: log.synced == log.grown)
    assert log.asked == 1


def test_after_a_pause_the_next_document_asks_again_and_is_synced(group, monkeypatch):
    monkeypatch.setattr(sync_module, "AWAKE_S", 0.0)
    log = Log(group)
    for turn in (1, 2, 3):
        log.grow()
        log.wait(lambda: log.synced == log.grown and not log.waiting_for_sync)
        assert log.asked == turn


def test_what_grows_just_when_the_thread_stops_looking_is_synced(group, monkeypatch):
    monkeypatch.setattr(sync_module, "AWAKE_S", 0.0)

    class Late(Log):
        @property
        def unsynced(self):
            found = super().unsynced
            if not found and self.grown == 1 and self.waiting_for_sync:
                self.grown = 2  # between the last look and the end of looking; its writer saw it looking
            return found

    log = Late(group)
    log.grow()
    log.wait(lambda: log.synced == 2)
    assert log.asked == 1


def test_the_end_syncs_what_is_left():
    group = GroupSync(3600, lambda: None)
    log = Log(group)
    log.grow()
    assert group.close()
    assert log.synced == 1
