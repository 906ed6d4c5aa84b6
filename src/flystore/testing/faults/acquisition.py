"""The acquisition side in the test's own process: a RunWriter that is given runs of a load."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from flystore.model.errors import DeadlineExceeded
from flystore.writer import RunWriter

from .ledger import Ledger
from .load import Document, Load
from .process import KEY, QUICK_WRITER
from .recording import RecordingTransport

FLUSH_S = 100.0
"""Seconds in which everything must be stored once nothing is in the way."""


class Acquisition:
    """One RunWriter, the ledger of what it sends, and the runs it was given.

    Parameters
    ----------
    url : str
        Of the service, or of a proxy before it.
    scratch : Path
        Directory for ledger and journal.
    **options
        Of RunWriter, over `QUICK_WRITER`.

    Attributes
    ----------
    longest_call : float
        Seconds that the slowest call of the writer took.
    """

    def __init__(self, url: str, scratch: Path, seed: int, **options: Any) -> None:
        self.load = Load(seed)
        self.ledger = Ledger(scratch / "ledger")
        self.transport = RecordingTransport(url, KEY, self.ledger)
        self.writer = RunWriter(self.transport, journal=scratch / "journal", **{**QUICK_WRITER, **options})
        self.runs = 0
        self.longest_call = 0.0
        self._thread: threading.Thread | None = None

    def begin(self, count: int, events: int, *, pause: float = 0.003) -> list[str]:
        """Take so many interleaved runs in a thread; return their uids.

        Parameters
        ----------
        pause : float
            Seconds after every fourth document of each run.
        """
        runs = [self.announce(events) for _ in range(count)]
        self._thread = threading.Thread(target=self._feed, args=([documents for _, documents in runs], pause))
        self._thread.start()
        return [uid for uid, _ in runs]

    def announce(self, events: int) -> tuple[str, list[Document]]:
        """Enter a new run into the ledger; return its uid and documents, for the test to give to the writer."""
        number = self.runs
        self.runs += 1
        self.ledger.begun(self.load.uid(number), number, events)
        return self.load.uid(number), self.load.documents(number, events)

    def _feed(self, feeds: list[list[Document]], pause: float) -> None:
        for place in range(max(map(len, feeds))):
            for feed in feeds:
                if place < len(feed):
                    began = time.perf_counter()
                    self.writer(*feed[place])
                    self.longest_call = max(self.longest_call, time.perf_counter() - began)
            if pause and place % 4 == 3:
                time.sleep(pause)

    def join(self) -> None:
        """Wait until the runs that were begun are over."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self, timeout: float = FLUSH_S) -> None:
        """Wait until the runs are over and all of them is stored.

        Raises
        ------
        AssertionError
            If it is not in time, or a run was parked.
        """
        self.join()
        with suppress(DeadlineExceeded):
            self.writer.flush(timeout)
            return
        raise AssertionError(f"not all was stored within {timeout:g} s: {self.writer.status()!r}")

    def close(self) -> None:
        self.join()
        self.writer.close(0)
        self.transport.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
