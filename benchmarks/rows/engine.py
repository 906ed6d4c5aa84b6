"""How long a RunEngine waits for its writer in a run of ten events."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure, ratios
from benchmarks.interleave import column, interleaved
from benchmarks.suite import FLYSTORE, STOCK, Suite

EVENTS = 10


def measure(suite: Suite) -> Iterator[Measure]:
    """Run ``count([det], 10)`` with and without the writer, in turns within each side."""
    runs = suite.sizes.engine_runs
    parties = {
        side: partial(suite.worker(side).call, "engine_runs", **suite.service(side).where, events=EVENTS, runs=runs)
        for side in suite.sides
    }
    samples = interleaved(parties, suite.sizes.rounds)
    for quantity, work, reach in (
        ("blocked", f"RunEngine blocked by a run of {EVENTS} events", "≤ 1 ms"),
        ("worst", f"its slowest callback, of {runs} runs", "≤ 2.5 ms"),
        ("wall", f"RE(count([det], {EVENTS})), wall time", ""),
    ):
        yield Measure(
            "engine",
            work,
            "ms",
            "less",
            stock=column(samples, STOCK, quantity, 1e3),
            flystore=column(samples, FLYSTORE, quantity, 1e3),
            floors={"no writer": column(samples, FLYSTORE, "alone", 1e3)} if quantity == "wall" else {},
            reach=reach,
        )
    times = {side: ratios(column(samples, side, "wall"), column(samples, side, "alone")) for side in (STOCK, FLYSTORE)}
    yield Measure(
        "engine",
        "that wall time against no writer at all",
        "×",
        "less",
        times[STOCK],
        times[FLYSTORE],
        reach="≤ 1.05 ×",
    )
