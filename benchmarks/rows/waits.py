"""How long another user waits while somebody reads all frames, or exports all documents."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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
    for what, loading in (("a full read of frames", _reading), ("an export of documents", _exporting)):
        shares: list[float] = []
        # flystore is first in the first round, so that every control has a load to be like: the newest.
        parties = {side: partial(_loaded, suite, side, loading, shares) for side in reversed(suite.sides)}
        samples = interleaved({**parties, CONTROL: partial(_control, suite, shares)}, suite.sizes.wait_rounds)
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


class Load(NamedTuple):
    """What keeps a service busy: who does it, and what they are told to do."""

    worker: Worker
    task: str
    arguments: dict[str, Any]


def _reading(suite: Suite, side: str) -> Load:
    uid = frames_run_of(suite, side, "raw")
    return Load(suite.worker(side), "read_array_for", {"uid": uid, "name": DATASET})


def _exporting(suite: Suite, side: str) -> Load:
    return Load(suite.user(1), "download", {"path": DOCUMENTS.format(uid=long_run_of(suite, side))})


def _loaded(suite: Suite, side: str, loading: Callable[[Suite, str], Load], shares: list[float]) -> Sample:
    load, service = loading(suite, side), suite.service(side)
    pids = (service.pid, load.worker.pid)
    cpu, began = sum(map(cpu_seconds, pids)), time.perf_counter()
    load.worker.begin(load.task, **service.where, **load.arguments, seconds=suite.sizes.wait_seconds)
    found = _ask(suite, side)
    share = (sum(map(cpu_seconds, pids)) - cpu) / (time.perf_counter() - began)
    load.worker.result(load.task)
    if side == FLYSTORE:
        shares.append(share)
    return found


def _control(suite: Suite, shares: list[float]) -> Sample:
    share = shares[-1]
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
