"""A progress bar for reads that people wait for, only where a person looks on."""

import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

SHOW_ABOVE_BYTES = 64 << 20
SHOW_AFTER_SECONDS = 1.0

_SCREEN = threading.Lock()


def someone_is_watching() -> bool:
    """Return whether progress would be seen: a terminal or a notebook, and not switched off.

    ``FLYSTORE_PROGRESS=0`` switches it off.
    """
    if os.environ.get("FLYSTORE_PROGRESS", "") == "0":
        return False
    if "ipykernel" in sys.modules:
        return True
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


class Progress:
    """Shows how many bytes have arrived, once a read proves to be long.

    Parameters
    ----------
    label : str
        What is read.
    total : int
        Bytes expected. Above `SHOW_ABOVE_BYTES` the bar shows at once, else after `SHOW_AFTER_SECONDS`.
    watched : bool, optional
        Whether anyone looks on; worked out if left out.
    """

    def __init__(self, label: str, total: int, *, watched: bool | None = None) -> None:
        self.shown = False
        self._label = label
        self._total = total
        self._watched = someone_is_watching() if watched is None else watched
        self._lock = threading.Lock()
        self._done = 0
        self._started = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._watched and self._total > SHOW_ABOVE_BYTES:
            self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            _SCREEN.release()

    def advance(self, size: int) -> None:
        """Say that `size` more bytes are here. May be called from any thread."""
        with self._lock:
            self._done += size
            if not self._watched:
                return
            is_long = time.monotonic() - self._started > SHOW_AFTER_SECONDS
            if is_long and not self.shown and self._done < self._total:
                self._show()
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)

    def _show(self) -> None:
        # A terminal can show one bar at a time; reads in other threads go on without.
        self.shown = _SCREEN.acquire(blocking=False)
        if not self.shown:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._label, total=self._total, completed=self._done)
        self._bar.start()
