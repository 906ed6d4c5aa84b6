"""What a process counts about itself, and the text that Prometheus reads.

The library of Prometheus would do it too. Its locks, label objects and decorators cost several microseconds a sample,
and a request that takes a hundred should not pay for six of them; the text format takes fewer lines than its use.

Each process counts for itself. Every sample has the label ``process``, so that several processes of one service can be
told apart and added up; a counter begins at 0 with each start, as Prometheus expects.
"""

import math
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of histograms of how long something takes."""

LAG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3600.0, 86400.0)
"""The same for how long ago a document was made when it is stored."""

Labels = tuple[str, ...]
Sample = tuple[str, Mapping[str, str], float]
"""Suffix of the name, labels, value."""


class Measure(Protocol):
    """Samples of one name."""

    name: str
    what: str
    kind: str

    def samples(self) -> Iterable[Sample]: ...


class Counter:
    """Numbers that only grow, one for each combination of label values; safe to use from many threads."""

    kind = "counter"

    def __init__(self, name: str, what: str, *labels: str) -> None:
        self.name, self.what, self._labels = name, what, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0}
        self._lock = threading.Lock()

    def add(self, value: float = 1, labels: Labels = ()) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + value

    def samples(self) -> Iterator[Sample]:
        for labels, value in sorted(self._values.copy().items()):
            yield "", dict(zip(self._labels, labels, strict=True)), value


class Histogram:
    """How often values fell below each bound, for each combination of label values; safe to use from many threads.

    Parameters
    ----------
    bounds : sequence of float
        Upper bounds, growing; one at infinity is added.
    """

    kind = "histogram"

    def __init__(self, name: str, what: str, bounds: Sequence[float], *labels: str) -> None:
        self.name, self.what, self._labels = name, what, labels
        self._bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._values: dict[Labels, list[float]] = {} if labels else {(): self._empty()}

    def _empty(self) -> list[float]:
        # A count for each bound, one for what is above all of them, and the sum.
        return [0] * (len(self._bounds) + 1) + [0.0]

    def add(self, value: float, labels: Labels = ()) -> None:
        at = bisect_left(self._bounds, value)
        with self._lock:
            found = self._values.get(labels)
            if found is None:
                found = self._values[labels] = self._empty()
            found[at] += 1
            found[-1] += value

    def samples(self) -> Iterator[Sample]:
        with self._lock:
            values = sorted((labels, list(found)) for labels, found in self._values.items())
        for each, (*counts, total) in values:
            labels = dict(zip(self._labels, each, strict=True))
            below = 0.0
            for bound, count in zip((*self._bounds, math.inf), counts, strict=True):
                below += count
                yield "_bucket", {**labels, "le": _number(bound)}, below
            yield "_sum", labels, total
            yield "_count", labels, below


class Read:
    """A number that is looked up when somebody asks.

    Parameters
    ----------
    read : callable
        Returns the number, or numbers by the value of the one label; one that fails is left out of the text.
    label : str
        Its name; empty where there is one number.
    kind : str
        ``gauge``, or ``counter`` for what only grows.
    """

    def __init__(
        self,
        name: str,
        what: str,
        read: Callable[[], float | Mapping[str, float]],
        *,
        label: str = "",
        kind: str = "gauge",
    ) -> None:
        self.name, self.what, self.kind = name, what, kind
        self._read, self._label = read, label

    def samples(self) -> Iterator[Sample]:
        try:
            found = self._read()
        except (OSError, ValueError):
            return
        if isinstance(found, Mapping):
            for value, number in sorted(found.items()):
                yield "", {self._label: value}, number
        else:
            yield "", {}, found


class Metrics:
    """All that one process counts.

    Parameters
    ----------
    process : str
        Which one of the processes of a service this is.
    """

    def __init__(self, process: str = "0") -> None:
        self.process = process
        self._measures: dict[str, Measure] = {}
        self.keep_all(_of_this_process())

    def keep(self, family: Measure) -> None:
        """Have a family in the text; one of the same name is replaced."""
        self._measures[family.name] = family

    def keep_all(self, families: Iterable[Measure]) -> None:
        for family in families:
            self.keep(family)

    def text(self) -> bytes:
        """Return all samples as Prometheus reads them (text format 0.0.4). It looks things up: not on an event loop."""
        lines = []
        for family in list(self._measures.values()):
            lines += [f"# HELP {family.name} {_escaped(family.what)}", f"# TYPE {family.name} {family.kind}"]
            for suffix, labels, value in family.samples():
                named = {**labels, "process": self.process}
                inner = ",".join(f'{name}="{_escaped(text, quoted=True)}"' for name, text in named.items())
                lines.append(f"{family.name}{suffix}{{{inner}}} {_number(value)}")
        return "\n".join([*lines, ""]).encode()


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


# --- the process itself, under the names that all exporters use

_STARTED = time.time()


def _of_this_process() -> Iterator[Measure]:
    yield Read(
        "process_cpu_seconds_total", "Processor time, user and system, seconds.", time.process_time, kind="counter"
    )
    yield Read("process_start_time_seconds", "When the process began to count, Unix seconds.", lambda: _STARTED)
    yield Read("process_resident_memory_bytes", "Memory in use, bytes.", _resident_bytes)
    yield Read("process_open_fds", "Open file descriptors.", lambda: len(os.listdir("/proc/self/fd")))
    yield Read("process_max_fds", "File descriptors that may be open.", _most_descriptors)


def _resident_bytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _most_descriptors() -> float:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# --- what the use cases count


class IngestCounts:
    """What came by ingest, and what its writers still have."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.batches = Counter("flystore_ingest_batches_total", "Batches stored that had something new.")
        self.documents = Counter("flystore_ingest_documents_total", "Documents stored.")
        self.again = Counter("flystore_ingest_repeated_documents_total", "Documents that came again and were known.")
        self.lag = Histogram(
            "flystore_ingest_lag_seconds",
            "From the time in the last document of a batch that has one to its commit, seconds; both clocks matter.",
            LAG_SECONDS,
        )
        self.backlogs = Backlogs(clock)

    def stored(self, fresh: int, known: int, last_time: float | None) -> None:
        """Count a batch; `last_time` is that of its last document, in Unix seconds."""
        if fresh:
            self.batches.add()
            self.documents.add(fresh)
            if last_time is not None:
                self.lag.add(max(0.0, self._clock() - last_time))
        if known:
            self.again.add(known)

    def measures(self) -> Iterator[Measure]:
        yield from (self.batches, self.documents, self.again, self.lag)
        yield from self.backlogs.measures()


class Backlogs:
    """What writers said was still in their journals, with the batch that they sent last.

    A writer that cannot send says nothing: a backlog that grows without a batch shows on its host
    (`flystore journal list`). What was said is forgotten after `HEARD_S`.
    """

    HEARD_S = 300.0
    MOST_WRITERS = 10_000

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, int, int]] = {}
        self._lock = threading.Lock()

    def note(self, writer: str, documents: int, nbytes: int) -> None:
        """Keep what a writer has, beside the batch it sends now."""
        now = self._clock()
        with self._lock:
            self._told.pop(writer, None)
            self._told[writer] = now, documents, nbytes
            while len(self._told) > self.MOST_WRITERS:
                del self._told[next(iter(self._told))]

    def measures(self) -> Iterator[Measure]:
        of_all = "that writers heard from in the last 5 minutes said to have beside what they sent"
        yield Read("flystore_journal_backlog_documents", f"Documents {of_all}.", lambda: self._sum(1))
        yield Read("flystore_journal_backlog_bytes", f"Bytes {of_all}.", lambda: self._sum(2))
        yield Read("flystore_journal_writers", "Writers heard from in the last 5 minutes.", lambda: len(self._recent()))

    def _sum(self, column: int) -> float:
        return sum(told[column] for told in self._recent())

    def _recent(self) -> list[tuple[float, int, int]]:
        since = self._clock() - self.HEARD_S
        with self._lock:
            return [told for told in self._told.values() if told[0] >= since]
