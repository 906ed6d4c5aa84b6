"""Room on the journal's disk: a reserve held ahead, and words before it runs out.

The reserve is a file of allocated blocks. When the disk is full it is given back, and what it frees
takes the stop documents of the runs that are open; other documents are refused until there is room
for a reserve again. So a run that a full disk ends still ends.
"""

import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger("flystore.journal")

LOW_FRACTION = 0.10
"""Less free space than this share of the disk is warned about."""


class Space:
    """The reserve of one journal.

    Parameters
    ----------
    directory : Path
        The journal's directory, which exists.
    reserve_bytes : int
        Size of the reserve, bytes. 0 keeps none: then nothing is refused before the disk is full.

    Attributes
    ----------
    exhausted : bool
        True while there is no room for the reserve: only stop documents are taken.
    low : bool
        True while less than a tenth of the disk is free.
    """

    def __init__(self, directory: Path, reserve_bytes: int) -> None:
        self._path = directory / "reserve"
        self._bytes = reserve_bytes
        self._lock = threading.Lock()
        self._held = False
        self.exhausted = False
        self.low = False
        self._hold()
        self.check()

    def free(self) -> tuple[int, int]:
        """Return (free bytes for this user, size of the disk in bytes); zeros if the directory is gone."""
        try:
            found = os.statvfs(self._path.parent)
        except FileNotFoundError:
            return 0, 0
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def give_back(self) -> bool:
        """Free the reserve; return whether there was one to free."""
        with self._lock:
            self.exhausted = self._bytes > 0
            if not self._held:
                return False
            self._path.unlink(missing_ok=True)
            self._held = False
            return True

    def check(self) -> None:
        """Look at the disk: hold the reserve again if there is room, and say once if space is low."""
        free, size = self.free()
        if self.exhausted and free >= 2 * self._bytes:
            self._hold()
        low = size > 0 and free < LOW_FRACTION * size
        if low and not self.low:
            logger.warning(
                "%.0f %% of the disk under %s is free (%.1f MiB). When it is full, plans stop: free space.",
                100 * free / size,
                self._path.parent,
                free / 2**20,
            )
        self.low = low

    def _hold(self) -> None:
        with self._lock:
            if self._bytes == 0 or self._held:
                return
            try:
                _allocate(self._path, self._bytes)
            except OSError as error:
                self._path.unlink(missing_ok=True)
                self.exhausted = True
                logger.error(
                    "no room for a reserve of %.1f MiB under %s (%s): only stop documents are taken until "
                    "space is freed",
                    self._bytes / 2**20,
                    self._path.parent,
                    error.strerror,
                )
                return
            self._held = True
            self.exhausted = False

    def remove(self) -> None:
        """Delete the reserve for good."""
        with self._lock:
            self._path.unlink(missing_ok=True)
            self._held = False


def _allocate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.pwrite(descriptor, bytes(size), 0)
    finally:
        os.close(descriptor)
