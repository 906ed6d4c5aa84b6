"""A long run of scalars, from its first document until its last row can be read."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.processes import Watch
from benchmarks.suite import FLYSTORE, STOCK, Suite

MB = 1e-6
PER = 100_000


def measure(suite: Suite) -> Iterator[Measure]:
    """Write with a new process each time, so that its memory is of this run alone; the services are new, too."""
    suite.fresh()
    sizes = suite.sizes
    events = {STOCK: sizes.stock_events, FLYSTORE: sizes.events}
    parties = {side: partial(_write, suite, side, events[side]) for side in suite.sides}
    samples = interleaved({**parties, "floor": partial(_make, suite)}, sizes.rounds)
    work = f"a run of {sizes.events:,} events × {sizes.columns} columns"
    fewer = f"stock: {sizes.stock_events:,} events" if sizes.stock_events != sizes.events else ""

    def line(what: str, quantity: str, unit: str, scale: float = 1.0, reach: str = "", note: str = "") -> Measure:
        return Measure(
            "long",
            f"{work}: {what}",
            unit,
            "more" if quantity == "rate" else "less",
            stock=column(samples, STOCK, quantity, scale),
            flystore=column(samples, FLYSTORE, quantity, scale),
            floors={"making the documents": found} if (found := column(samples, "floor", quantity, scale)) else {},
            reach=reach,
            note=note,
        )

    yield line("first emission to all readable", "rate", "events/s", reach="≥ 60,000 events/s", note=fewer)
    yield line(f"client CPU for {PER:,} events", "cpu", "s", note=fewer)
    yield line("client RSS, most", "client", "MB", MB, "≤ 150 MB", fewer)
    yield line("server RSS, most", "server", "MB", MB, "≤ 300 MB", fewer)


def _write(suite: Suite, side: str, events: int) -> Sample:
    service = suite.service(side)
    with suite.a_worker(side, "side") as writer:
        writer.call("ready")  # its imports are done
        with Watch(writer.pid) as client, Watch(service.pid) as server:
            found = writer.call("write_long", **service.where, events=events, columns=suite.sizes.columns)
    return {
        "rate": events / found["seconds"],
        "cpu": found["cpu"] * PER / events,
        "client": client.most[0],
        "server": server.most[0],
    }


def _make(suite: Suite) -> Sample:
    events = suite.sizes.events
    found = suite.worker(FLYSTORE).call("make_long", events=events, columns=suite.sizes.columns)
    return {"rate": events / found["seconds"], "cpu": found["cpu"] * PER / events}
