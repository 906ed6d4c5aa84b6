"""The thread that makes appended frames durable, a group at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

SPACE_CHECK_S = 5.0
"""Seconds between two looks at the free space, while there is something to sync."""


AWAKE_S = 1.0
"""Seconds that the thread goes on looking by itself after a log last grew.

Waking a thread costs the plan's tens of microseconds, so it is not done at each interval of a scan.
"""


class Syncable(Protocol):
    """What the thread syncs."""

    waiting_for_sync: bool
    """True while the thread looks at it by itself."""

    @property
    def unsynced(self) -> bool:
        """Whether there is something to sync."""

    def sync(self) -> int:
        """Make durable what is there now."""


class GroupSync:
    """Calls `sync` on everything that grew, within one interval after it did.

    A power cut takes at most what was appended within one interval plus one sync. The thread starts
    with the first document and sleeps while nothing is appended.

    Parameters
    ----------
    interval : float
        Seconds between the first unsynced append and the sync, at most.
    check_space : callable
        Called now and then from the thread.
    """

    def __init__(self, interval: float, check_space: Callable[[], None]) -> None:
        self._interval = interval
        self._check_space = check_space
        self._grown: deque[tuple[Syncable, float]] = deque()  # with the moment at which it was last seen to grow
        self._something = threading.Event()
        self._stop = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._finish: Callable[[], None] | None = None

    def add(self, log: Syncable) -> None:
        """Have `log` synced from now on. The caller sets its `waiting_for_sync`, the thread clears it."""
        self._grown.append((log, time.monotonic()))
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
            if not self._grown:
                self._something.wait()
            # Cleared before the pause: whatever is set after it, the end included, is seen next time.
            self._something.clear()
            stopping = self._stop.wait(self._interval)
            try:
                self._sync_all()
            finally:
                if stopping and self._finish is not None:
                    self._finish()
            if stopping:
                return
            now = time.monotonic()
            if now - looked >= SPACE_CHECK_S:
                looked = now
                self._check_space()

    def _sync_all(self) -> None:
        now = time.monotonic()
        for _ in range(len(self._grown)):
            log, grew = self._grown.popleft()
            if log.unsynced:
                log.sync()
                self._grown.append((log, now))
            elif now - grew < AWAKE_S:
                self._grown.append((log, grew))
            else:
                # Cleared before the last look: what is appended from here on asks for the next sync.
                log.waiting_for_sync = False
                if log.unsynced:
                    log.sync()

    def close(self, finish: Callable[[], None] | None = None, timeout: float | None = None) -> bool:
        """Sync what is left, call `finish`, and end the thread; return whether that was done in time.

        Parameters
        ----------
        finish : callable, optional
            Called once after the last sync, by the thread: so also when the system comes back from a
            sync only after the time is over.
        timeout : float, optional
            Seconds to wait for the system; None waits for ever.
        """
        with self._start_lock:
            self._finish = finish
            self._stop.set()
            thread = self._thread
        self._something.set()
        if thread is not None:
            thread.join(timeout)
            return not thread.is_alive()
        self._sync_all()
        if finish is not None:
            finish()
        return True
