"""The thread that makes appended frames durable, a group at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

SPACE_CHECK_S = 5.0
"""Seconds between two looks at the free space, while there is something to sync."""


class Syncable(Protocol):
    """What the thread syncs."""

    waiting_for_sync: bool

    def sync(self) -> int:
        """Make durable what is there now."""


class GroupSync:
    """Calls `sync` on everything that grew, one interval after it did.

    A power cut takes at most what was appended within one interval plus one sync. The thread starts
    with the first document and sleeps while nothing is appended.

    Parameters
    ----------
    interval : float
        Seconds between the first unsynced append and the sync.
    check_space : callable
        Called now and then from the thread.
    """

    def __init__(self, interval: float, check_space: Callable[[], None]) -> None:
        self._interval = interval
        self._check_space = check_space
        self._grown: deque[Syncable] = deque()
        self._something = threading.Event()
        self._stop = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, log: Syncable) -> None:
        """Have `log` synced soon. The caller sets its `waiting_for_sync`, the thread clears it."""
        self._grown.append(log)
        if self._thread is None:
            self._start()
        if not self._something.is_set():
            self._something.set()

    def _start(self) -> None:
        with self._start_lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="flystore-journal-sync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            self._something.wait()
            # Cleared before the pause: whatever is set after it, the end included, is seen next time.
            self._something.clear()
            stopping = self._stop.wait(self._interval)
            self._sync_all()
            if stopping:
                return
            now = time.monotonic()
            if now - looked >= SPACE_CHECK_S:
                looked = now
                self._check_space()

    def _sync_all(self) -> None:
        while self._grown:
            log = self._grown.popleft()
            # Cleared first: what is appended from here on asks for the next sync.
            log.waiting_for_sync = False
            log.sync()

    def close(self) -> None:
        """Sync what is left and end the thread."""
        with self._start_lock:
            self._stop.set()
            thread = self._thread
        self._something.set()
        if thread is not None:
            thread.join()
        self._sync_all()
