"""Real runs of an instrument, recorded: how long the plan waits, and until they are stored."""

from collections.abc import Iterator
from functools import partial
from itertools import count

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.suite import FLYSTORE, STOCK, Suite


def measure(suite: Suite) -> Iterator[Measure]:
    """Send ten runs of the USAXS instrument of the APS one after another, with new uids each time."""
    if suite.recorded is None:
        suite.say("recorded: left out, because there is no recording; name one with --recorded")
        return
    salts = count()

    def send(side: str) -> Sample:
        found = suite.worker(side).call(
            "write_recorded", **suite.service(side).where, file=str(suite.recorded), salt=f"{side}{next(salts)}"
        )
        return {
            "all": sum(found["blocked"]),
            "worst": max(found["blocked"]),
            "stored": max(found["stored"]),
            "runs": len(found["blocked"]),
        }

    samples = interleaved(
        {side: partial(send, side) for side in suite.sides}, suite.sizes.rounds, {STOCK: suite.sizes.stock_rounds}
    )
    runs = int(samples[FLYSTORE][0]["runs"])
    for what, quantity, reach in (
        (f"{runs} runs: plan blocked, in all", "all", "≤ 10 ms"),
        ("plan blocked, the worst run", "worst", ""),
        ("last document to stored, the worst run", "stored", "≤ 100 ms"),
    ):
        yield Measure(
            "recorded",
            f"real USAXS runs: {what}",
            "ms",
            "less",
            # Stock has stored a run when its last callback returns: what it takes for it is in what it blocks.
            [] if quantity == "stored" else column(samples, STOCK, quantity, 1e3),
            column(samples, FLYSTORE, quantity, 1e3),
            reach=reach,
            note="stock stores within its callbacks" if quantity == "stored" else "",
        )
