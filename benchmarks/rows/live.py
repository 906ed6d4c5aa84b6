"""How soon an event is with a subscriber, how many a second one by one, and how soon it can be read."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import column, interleaved
from benchmarks.suite import FLYSTORE, STOCK, Suite

EVERY_S = 0.05
LOOKS = 20


def measure(suite: Suite) -> Iterator[Measure]:
    """Write event by event; writer and subscriber are threads of one process, as the plan and its live table are."""
    events = {FLYSTORE: suite.sizes.live_events, STOCK: min(suite.sizes.live_events, suite.sizes.stock_live_events)}
    parties = {
        side: partial(
            suite.worker(side).call,
            "live",
            **suite.service(side).where,
            events=events[side],
            burst=suite.sizes.live_burst if side == FLYSTORE else events[side],
            every=EVERY_S,
            looks=LOOKS,
        )
        for side in suite.sides
    }
    samples = interleaved(parties, suite.sizes.rounds, {STOCK: suite.sizes.stock_rounds})
    for quantity, work, unit, scale, reach in (
        ("told", "an event, from the writer's call to a subscriber, median", "ms", 1e3, "≤ 3 ms"),
        ("rate", "events as fast as they go, each stored, until a subscriber has the last", "events/s", 1.0, "≥ 2,000"),
        ("visible", "an event, from the writer's call to its value in a read, median", "ms", 1e3, "≤ 5 ms"),
        ("lost", "events that a subscriber missed or got twice", "events", 1.0, "0"),
    ):
        yield Measure(
            "live",
            work,
            unit,
            "more" if quantity == "rate" else "less",
            column(samples, STOCK, quantity, scale),
            column(samples, FLYSTORE, quantity, scale),
            reach=reach,
        )
