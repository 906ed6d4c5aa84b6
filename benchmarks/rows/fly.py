"""A flyscan of many keys whose frames are in a file: what StreamDatum and stop cost."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import column, interleaved
from benchmarks.suite import FLYSTORE, STOCK, Suite

SHAPE = (8, 8)


def measure(suite: Suite) -> Iterator[Measure]:
    """Announce each frame of each key with a StreamDatum of its own."""
    sizes = suite.sizes
    names = [f"field_{number:02d}" for number in range(sizes.fly_keys)]
    file = suite.files / "fly.h5"
    suite.machine().call("make_small_frames", file=str(file), names=names, frames=sizes.fly_frames, shape=SHAPE)
    arguments = {"file": str(file), "datasets": dict.fromkeys(names, SHAPE), "frames": sizes.fly_frames, "each": 1}

    def write(side: str) -> dict[str, float]:
        found = suite.worker(side).call("write_frames", **suite.service(side).where, **arguments)
        return {**found, "rate": found["documents"] / found["seconds"]}

    samples = interleaved({side: partial(write, side) for side in suite.sides}, sizes.rounds)
    work = f"{sizes.fly_keys} keys × {sizes.fly_frames:,} StreamDatum"
    for what, quantity, unit, scale, reach in (
        ("emission to stored", "rate", "docs/s", 1.0, "≥ 50,000 docs/s"),
        ("stop, to the plan", "stop", "ms", 1e3, "≤ 1 ms"),
        ("stop to readable", "readable", "ms", 1e3, "≤ 100 ms"),
    ):
        yield Measure(
            "fly",
            f"{work}: {what}",
            unit,
            "more" if quantity == "rate" else "less",
            column(samples, STOCK, quantity, scale),
            column(samples, FLYSTORE, quantity, scale),
            reach=reach,
        )
