"""How long another user waits while somebody reads all frames, or exports all documents."""

import math
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.figures import Measure, percentile
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.processes import cpu_seconds
from benchmarks.rows.exports import DOCUMENTS
from benchmarks.runs import DATASET, frames_run_of, long_run_of
from benchmarks.suite import FLYSTORE, STOCK, Suite
from benchmarks.workers import Worker

EVERY_S = 0.02
CONTROL = "equal CPU load"


def measure(suite: Suite) -> Iterator[Measure]:
    """Ask for the metadata of a run fifty times a second meanwhile.

    The control is the same service, asked the same while it has nothing else to do and programs that only use the
    processor take as much of it as reader and server did.
    """
    for what, load in (("a full read of frames", _reading), ("an export of documents", _exporting)):
        loads: list[float] = []
        parties = {side: partial(_loaded, suite, side, load, loads) for side in reversed(suite.sides)}
        samples = interleaved({**parties, CONTROL: partial(_control, suite, loads)}, suite.sizes.wait_rounds)
        for quantity, reach in (("p99", "≤ 20 ms"), ("most", "")):
            yield Measure(
                "waits",
                f"another user during {what}: {'p99' if quantity == 'p99' else 'worst'} wait",
                "ms",
                "less",
                column(samples, STOCK, quantity, 1e3),
                column(samples, FLYSTORE, quantity, 1e3),
                {CONTROL: column(samples, CONTROL, quantity, 1e3)},
                reach,
            )


def _reading(suite: Suite, side: str) -> Callable[[], Worker]:
    """Return what begins to read, and gives the worker that does."""
    uid = frames_run_of(suite, side, "raw")

    def begin() -> Worker:
        reader = suite.worker(side)
        reader.begin(
            "read_array_for", **suite.service(side).where, uid=uid, name=DATASET, seconds=suite.sizes.wait_seconds
        )
        return reader

    return begin


def _exporting(suite: Suite, side: str) -> Callable[[], Worker]:
    path = DOCUMENTS.format(uid=long_run_of(suite, side))

    def begin() -> Worker:
        exporter = suite.user(1)
        exporter.begin("download", **suite.service(side).where, path=path, seconds=suite.sizes.wait_seconds)
        return exporter

    return begin


def _loaded(suite: Suite, side: str, load: Callable[[Suite, str], Callable[[], Worker]], loads: list[float]) -> Sample:
    begin, server = load(suite, side), suite.service(side)
    before = cpu_seconds(server.pid)
    at_work = begin()
    before += cpu_seconds(at_work.pid)
    found = _ask(suite, side)
    used = cpu_seconds(server.pid) + cpu_seconds(at_work.pid) - before
    at_work.result("what loads the service")
    if side == FLYSTORE:
        loads.append(used / suite.sizes.wait_seconds)
    return found


def _control(suite: Suite, loads: list[float]) -> Sample:
    share = loads[-1] if loads else 1.0
    burners = [suite.user(2 + number) for number in range(max(1, math.ceil(share)))]
    for burner in burners:
        burner.begin("burn", share=share / len(burners), seconds=suite.sizes.wait_seconds)
    found = _ask(suite, FLYSTORE)
    for burner in burners:
        burner.result("burn")
    return found


def _ask(suite: Suite, side: str) -> Sample:
    path = f"/api/v1/metadata/{frames_run_of(suite, side, 'raw')}"
    waits = suite.user().call(
        "ask_now_and_then", **suite.service(side).where, path=path, every=EVERY_S, seconds=suite.sizes.wait_seconds
    )["took"]
    return {"p99": percentile(waits, 99), "most": max(waits)}
