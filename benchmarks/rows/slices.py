"""Parts of the stack of frames: single frames at random, a small window of all, every tenth frame thinned."""

import random
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.figures import Measure, percentile
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.runs import DATASET, KINDS, bring_in, frames_file, frames_run_of, warm_up
from benchmarks.suite import FLYSTORE, STOCK, Suite

CUTS: dict[str, list[list[int | None]]] = {
    "[:, 100:110, 100:110]": [[None, None, None], [100, 110, None], [100, 110, None]],
    "[::10, ::4, ::4]": [[None, None, 10], [None, None, 4], [None, None, 4]],
}
REACH = {"raw": "≤ h5py", "blosc": "≤ 1.2 × h5py"}


def measure(suite: Suite) -> Iterator[Measure]:
    """Read with the client of each side, and with h5py from the file."""
    for kind in KINDS:
        yield from _frames(suite, kind)
        for shown, cut in CUTS.items():
            yield _cut(suite, kind, shown, cut)


def _frames(suite: Suite, kind: str) -> Iterator[Measure]:
    sizes, file, drawn = suite.sizes, frames_file(suite, kind), random.Random(1)

    def some(count: int) -> list[int]:
        return [drawn.randrange(sizes.frames) for _ in range(count)]

    def read(side: str, count: int) -> Sample:
        arguments = {**suite.service(side).where, "uid": frames_run_of(suite, side, kind), "name": DATASET}
        bring_in(suite, kind)
        return _percentiles(suite.worker(side).call("read_frames", **arguments, numbers=some(count)))

    def read_file() -> Sample:
        arguments = {"file": str(file.path), "name": DATASET, "numbers": some(sizes.frames_asked)}
        bring_in(suite, kind)
        return _percentiles(suite.machine().call("read_file_frames", **arguments))

    parties: dict[str, Callable[[], Sample]] = {
        "h5py, file open": read_file,
        FLYSTORE: partial(read, FLYSTORE, sizes.frames_asked),
    }
    if STOCK in suite.sides:
        parties[STOCK] = partial(read, STOCK, sizes.stock_frames_asked)
    for side in suite.sides:
        warm_up(suite, side, side, kind)
    samples = interleaved(parties, sizes.rounds)
    for quantity, reach in (("p50", "≤ 1.4 ms"), ("p99", "≤ 4 ms")):
        yield Measure(
            "slices",
            f"one random frame of {kind}, {quantity}",
            "ms",
            "less",
            column(samples, STOCK, quantity, 1e3),
            column(samples, FLYSTORE, quantity, 1e3),
            {"h5py, file open": column(samples, "h5py, file open", quantity, 1e3)},
            reach,
        )


def _percentiles(found: dict[str, list[float]]) -> Sample:
    return {"p50": percentile(found["took"], 50), "p99": percentile(found["took"], 99)}


def _cut(suite: Suite, kind: str, shown: str, cut: list[list[int | None]]) -> Measure:
    file = frames_file(suite, kind)

    def read(side: str) -> Sample:
        arguments = {**suite.service(side).where, "uid": frames_run_of(suite, side, kind), "name": DATASET}
        bring_in(suite, kind)
        return dict(suite.worker(side).call("read_array", **arguments, cut=cut))

    def read_file() -> Sample:
        bring_in(suite, kind)
        return dict(suite.machine().call("read_file", file=str(file.path), name=DATASET, cut=cut))

    parties: dict[str, Callable[[], Sample]] = {
        "h5py": read_file,
        **{side: partial(read, side) for side in suite.sides},
    }
    interleaved({name: call for name, call in parties.items() if name != STOCK}, 1)
    samples = interleaved(parties, suite.sizes.rounds)
    return Measure(
        "slices",
        f"{shown} of {kind}",
        "ms",
        "less",
        column(samples, STOCK, "seconds", 1e3),
        column(samples, FLYSTORE, "seconds", 1e3),
        {"h5py": column(samples, "h5py", "seconds", 1e3)},
        REACH[kind],
    )
