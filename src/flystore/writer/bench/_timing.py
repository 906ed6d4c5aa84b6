"""How long calls take, and how much of that the machine gave no processor."""

import os
import time
from array import array
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

SLOW_NS = 200_000
"""Above this, the time spent waiting for a processor is asked for."""


class Figures(NamedTuple):
    """How long calls of one kind took.

    Attributes
    ----------
    calls : int
    p50, p99, p999, worst : float
        Microseconds; NaN if there were no calls.
    worst_own : float
        Longest after what a call waited for a processor is taken off, microseconds: other programs are not the
        writer's doing. The same as `worst` where the system does not tell. What a hypervisor took is in it.
    """

    calls: int
    p50: float
    p99: float
    p999: float
    worst: float
    worst_own: float


class Timer:
    """Times calls, one after another, in one thread."""

    def __init__(self) -> None:
        self.samples = array("q")
        self.worst_own = 0

    def time(self, clock: "ProcessorClock", call: Callable[[], object]) -> None:
        """Call and note how long it took."""
        waited = clock.waited()
        began = time.perf_counter_ns()
        call()
        self.note(time.perf_counter_ns() - began, clock, waited)

    def note(self, took: int, clock: "ProcessorClock", waited: int) -> None:
        """Note one call, `waited` being what the clock said before it."""
        self.samples.append(took)
        if took > self.worst_own:
            own = took - (clock.waited() - waited) if took > SLOW_NS else took
            self.worst_own = max(self.worst_own, own)

    def figures(self) -> Figures:
        if not self.samples:
            return Figures(0, *[float("nan")] * 5)
        taken = np.frombuffer(self.samples, np.int64) / 1e3
        p50, p99, p999 = np.percentile(taken, [50, 99, 99.9])
        return Figures(
            len(taken), float(p50), float(p99), float(p999), float(taken.max()), max(0.0, self.worst_own / 1e3)
        )

    @property
    def nbytes(self) -> int:
        """Memory that the notes take, bytes."""
        return len(self.samples) * self.samples.itemsize


class ProcessorClock:
    """How long this thread was ready to run and had no processor; zero where the system does not tell."""

    def __init__(self) -> None:
        try:
            self._descriptor: int | None = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._descriptor = None

    def waited(self) -> int:
        """Return nanoseconds since the thread began."""
        if self._descriptor is None:
            return 0
        return int(os.pread(self._descriptor, 96, 0).split()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Pace:
    """Says when the next call is due.

    Parameters
    ----------
    rate : float
        Per second; 0 never waits.
    """

    def __init__(self, rate: float) -> None:
        self._step = 1 / rate if rate > 0 else 0.0
        self._due = time.perf_counter()

    def wait(self) -> None:
        """Sleep until the next call is due; after a delay, those that were missed follow without a pause."""
        if self._step:
            self._due += self._step
            left = self._due - time.perf_counter()
            if left > 0:
                time.sleep(left)


def private_bytes() -> int:
    """Return the memory of this process that is no file, bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"RssAnon:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
