"""The circumstances under which the writer is measured."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flystore.disk import make_directory
from flystore.journal import default_home
from flystore.model import frames
from flystore.model.errors import InvalidRequest, Misconfigured
from flystore.writer._writer import RunWriter

from ._events import RunOfEvents
from ._service import LinkProcess, Remote, link_to, nowhere, service
from ._timing import Figures, Pace, ProcessorClock, Timer, private_bytes

SCENARIOS = {
    "machine": "nothing is kept: calls that only compute, for what this machine takes by itself",
    "up": "the service answers",
    "slow": "1 MB/s towards the service, answers after 0.05 to 5 s",
    "flapping": "the link to the service comes and goes every 0.7 s",
    "absent": "nothing listens where the service should be",
    "backlog": "the service was away, and catches up while acquisition goes on",
    "readable": "each event is waited for until it can be read back",
}
"""Names, and what they mean."""

_OF_ANY_SERVICE = ("machine", "up", "readable")
_ALONE = ("machine", "absent")
_HOW: dict[str, dict[str, Any]] = {
    "slow": {"up": True, "rate": 1e6, "delays": [0.05, 5.0]},
    "flapping": {"up": True, "flaps": [0.7, 0.7]},
}
_CYCLE = 8  # of so many calls one writes the same bytes and one does nothing, for comparison
_LOOK_S = 0.25
_COMPUTING_NS = 15_000  # about what keeping an event costs: as often hit by what the machine takes
_WAITS = 200
_WAIT_RATE = 50.0
_DRAIN_RATE = 1000.0
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    Attributes
    ----------
    scenarios : tuple of str
        Keys of `SCENARIOS`.
    rates : tuple of float
        Events a second; 0 is as fast as it goes.
    seconds : float
        For each scenario at each rate.
    backlog : int
        Events that wait when the service comes back, in the scenario ``backlog``.
    to : str or None
        URL of a service to measure against; None starts one. It gets runs with ``purpose`` "flystore bench".
    api_key : str or None
        Its key.
    directory : Path or None
        Where the journals go while it is measured; None is beside `flystore.journal.default_home`.
    """

    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    rates: tuple[float, ...] = (1000.0, 10000.0, 0.0)
    seconds: float = 10.0
    backlog: int = 100_000
    to: str | None = None
    api_key: str | None = None
    directory: Path | None = None

    @property
    def of_service(self) -> tuple[str, ...]:
        """The scenarios that can be measured against the service."""
        return tuple(SCENARIOS) if self.to is None else _OF_ANY_SERVICE


class Row(NamedTuple):
    """One scenario at one rate.

    Attributes
    ----------
    scenario : str
    rate : float
        Events a second that were asked for; 0 is as fast as it goes.
    reached : float
        Events a second that there were.
    callback : Figures
        Of `RunWriter.__call__`; for ``readable`` of the call and the wait together.
    nothing, write : Figures
        Of a call that does nothing and of one that writes as many bytes to a file, made between the others.
    stored : float
        Documents a second that the service acknowledged meanwhile.
    backlog : int
        Documents that were not acknowledged at the end.
    drained : float or None
        Of ``backlog``: documents acknowledged for each that was made meanwhile.
    grown_bytes : int
        By how much the private memory of this process grew.
    """

    scenario: str
    rate: float
    reached: float
    callback: Figures
    nothing: Figures
    write: Figures
    stored: float
    backlog: int
    drained: float | None
    grown_bytes: int


def measure(options: BenchOptions) -> Iterator[Row]:
    """Measure, and yield each row when it is known.

    Raises
    ------
    InvalidRequest
        If a scenario is none, or needs a link and the service is not ours.
    Misconfigured
        If the service cannot be started, or no journal can be made.
    """
    _require(options)
    with _directory(options.directory) as directory, contextlib.ExitStack() as stack:
        link: LinkProcess | None = None
        direct = linked = Remote(options.to or nowhere(), options.api_key)
        if options.to is None and not set(options.scenarios) <= set(_ALONE):
            direct = stack.enter_context(service())
            link = stack.enter_context(link_to(direct.url))
            linked = Remote(link.url, direct.api_key)
        for scenario in options.scenarios:
            # What is up needs no link, and a link would take its time.
            remote = Remote(nowhere(), None) if scenario == "absent" else linked
            bench = _Bench(directory, direct if scenario in _OF_ANY_SERVICE else remote, link, own=options.to is None)
            if scenario == "machine":
                for rate in options.rates:
                    yield computing(rate, options.seconds)
            elif scenario == "readable":
                yield bench.readable(min(_WAITS, max(10, int(options.seconds * _WAIT_RATE))))
            elif scenario == "backlog":
                for rate in [rate for rate in options.rates if rate] or [_DRAIN_RATE]:
                    yield bench.backlog(rate, options.backlog, options.seconds)
            else:
                for rate in options.rates:
                    yield bench.load(scenario, rate, options.seconds)


def computing(rate: float, seconds: float) -> Row:
    """Measure calls that do nothing but compute: whatever is longer, neither a writer nor a disk has caused.

    A virtual machine is stopped now and then by what it runs on, for tens of milliseconds, and no figure of its own
    tells which call that hit.
    """
    timer, pace, none = Timer(), Pace(rate), Timer().figures()
    began = time.perf_counter()
    with ProcessorClock() as clock:
        while time.perf_counter() - began < seconds:
            pace.wait()
            timer.time(clock, _compute)
    reached = len(timer.samples) / (time.perf_counter() - began)
    return Row("machine", rate, reached, timer.figures(), none, none, 0.0, 0, None, 0)


def _compute() -> None:
    end = time.perf_counter_ns() + _COMPUTING_NS
    while time.perf_counter_ns() < end:
        pass


def _require(options: BenchOptions) -> None:
    for scenario in options.scenarios:
        if scenario not in SCENARIOS:
            raise InvalidRequest(f"there is no scenario {scenario!r}; there are {', '.join(SCENARIOS)}")
        if scenario not in options.of_service:
            raise InvalidRequest(
                f"the scenario {scenario!r} needs a service of its own; against one that runs already, there are "
                f"{', '.join(options.of_service)}"
            )
    if options.seconds <= 0 or options.backlog < 0 or min(options.rates, default=0) < 0:
        raise InvalidRequest("seconds are above 0, and rates and the backlog are not below it")


@contextlib.contextmanager
def _directory(directory: Path | None) -> Iterator[Path]:
    parent = directory or default_home().parent
    try:
        make_directory(parent)
        made = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    except OSError as error:
        raise Misconfigured(
            f"no journal can be made under {parent} ({error.strerror}); name another directory with --journal",
            path=str(parent),
        ) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class _Bench:
    """Measures against one service."""

    def __init__(self, directory: Path, remote: Remote, link: LinkProcess | None, *, own: bool) -> None:
        self._directory = directory
        self._remote = remote
        self._link = link
        self._own = own

    def load(self, scenario: str, rate: float, seconds: float) -> Row:
        self._be(scenario)
        with self._writer() as writer, _Load(writer, self._directory, rate) as load:
            if scenario == "up":
                load.warm_up()
                load.begin(rate)
            load.run(seconds)
            return load.row(scenario)

    def backlog(self, rate: float, wanted: int, seconds: float) -> Row:
        """Let a backlog grow, then measure while it is sent and events go on."""
        assert self._link is not None
        self._link.be(up=False)
        with self._writer() as writer, _Load(writer, self._directory, 0.0) as load:
            load.grow(wanted)
            self._link.be(up=True)
            # The writer may be in a pause between two attempts: what counts begins with the first batch.
            before = load.stored()
            load.begin(rate)
            load.run(60, until=lambda: load.stored() > before)
            load.begin(rate)
            made, stored = load.made, load.stored()
            load.run(max(10 * seconds, wanted / 1000), until=lambda: load.stored() >= load.made - 2 * rate * _LOOK_S)
            drained = (load.stored() - stored) / max(1, load.made - made)
            return load.row("backlog")._replace(drained=drained)

    def readable(self, count: int) -> Row:
        timer, pace = Timer(), Pace(_WAIT_RATE)
        with self._writer() as writer, _Load(writer, self._directory, _WAIT_RATE) as load, ProcessorClock() as clock:
            load.warm_up()
            for _ in range(count):
                pace.wait()
                event = load.documents.event()

                def emit_and_wait(event: dict = event) -> None:
                    writer("event", event)
                    writer.wait(load.documents.uid, event["seq_num"], until="readable", timeout=_PATIENCE_S)

                timer.time(clock, emit_and_wait)
            return load.row("readable")._replace(callback=timer.figures())

    def _be(self, scenario: str) -> None:
        if self._link is not None and scenario in _HOW:
            self._link.be(**_HOW[scenario])

    @contextlib.contextmanager
    def _writer(self) -> Iterator[RunWriter]:
        home = Path(tempfile.mkdtemp(prefix="journal-", dir=self._directory))
        writer = RunWriter(self._remote.url, api_key=self._remote.api_key, journal=home)
        try:
            yield writer
        finally:
            # What others see in their service is whole; ours is thrown away.
            writer.close(0 if self._own else _PATIENCE_S)
            shutil.rmtree(home, ignore_errors=True)


class _Load:
    """Events of one run at a steady rate, timed; other calls between them, for comparison."""

    def __init__(self, writer: RunWriter, directory: Path, rate: float) -> None:
        self._writer = writer
        self.documents = RunOfEvents()
        for name, doc in self.documents.begin():
            writer(name, doc)
        encoder = frames.FrameEncoder()
        self._bytes = frames.framed(encoder.encode("event", self.documents.event())[-1:])[0]
        self.documents.made = 0
        self._path = directory / "plain"
        self._plain = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write_plainly: Callable[[], object] = partial(os.write, self._plain, self._bytes)
        self.begin(rate)

    def begin(self, rate: float) -> None:
        """Forget what was measured, and go on at another rate."""
        self._rate = rate
        self._callback, self._nothing, self._write = Timer(), Timer(), Timer()
        self._before = private_bytes()
        self._made_before, self._stored_before = self.documents.made, self.stored()
        self._began = time.perf_counter()

    @property
    def made(self) -> int:
        """How many documents there are."""
        return self.documents.made + 2

    def stored(self) -> int:
        """Return how many documents the service has acknowledged."""
        return sum(run.stored for run in self._writer.status().runs if run.uid == self.documents.uid)

    def grow(self, count: int) -> None:
        """Make events as fast as it goes, not timed."""
        for _ in range(count):
            self._writer("event", self.documents.event())

    def warm_up(self) -> None:
        """Have a few events stored: the first ones make a service load its parts."""
        self.grow(10)
        self._writer.flush(_PATIENCE_S)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Go on for so long, or until something is the case."""
        pace = Pace(self._rate * _CYCLE / (_CYCLE - 2))
        end, look, number = time.perf_counter() + seconds, time.perf_counter() + _LOOK_S, 0
        with ProcessorClock() as clock:
            while (now := time.perf_counter()) < end:
                if now >= look and until is not None:
                    if until():
                        return
                    look = now + _LOOK_S
                pace.wait()
                number += 1
                self._once(number % _CYCLE, clock)

    def _once(self, turn: int, clock: ProcessorClock) -> None:
        timer: Timer
        call: Callable[[], object]
        waited = clock.waited()
        # Made after the pause, as a plan does it: what the callback finds in the caches is what it would find there.
        if turn == 1:
            self.documents.made -= 1
            self.documents.event()
            timer, call = self._write, self._write_plainly
        else:
            event = self.documents.event()
            if turn == 5:
                self.documents.made -= 1
                timer, call = self._nothing, partial(_nothing, "event", event)
            else:
                timer, call = self._callback, partial(self._writer, "event", event)
        began = time.perf_counter_ns()
        call()
        timer.note(time.perf_counter_ns() - began, clock, waited)

    def row(self, scenario: str) -> Row:
        seconds = time.perf_counter() - self._began
        stored = self.stored()
        notes = self._callback.nbytes + self._nothing.nbytes + self._write.nbytes
        return Row(
            scenario=scenario,
            rate=self._rate,
            reached=(self.documents.made - self._made_before) / seconds,
            callback=self._callback.figures(),
            nothing=self._nothing.figures(),
            write=self._write.figures(),
            stored=(stored - self._stored_before) / seconds,
            backlog=self.made - stored,
            drained=None,
            grown_bytes=private_bytes() - self._before - notes,
        )

    def __enter__(self) -> "_Load":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._plain)
        self._path.unlink(missing_ok=True)
        for name, doc in self.documents.end():
            self._writer(name, doc)


def _nothing(name: str, doc: object) -> None:
    """What every callback costs at least."""
