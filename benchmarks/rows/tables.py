"""Reading the long run as xarray with the client of each side."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.runs import columns_of, long_run_of
from benchmarks.suite import FLYSTORE, STOCK, Suite


def measure(suite: Suite) -> Iterator[Measure]:
    """Read all columns, and two of them."""
    sizes, names = suite.sizes, columns_of(suite)
    run = f"primary.read() of {sizes.events:,} × {sizes.columns}"
    two = [names[3], names[-1]]

    def read(side: str, wanted: list[str] | None) -> Sample:
        return dict(
            suite.worker(side).call(
                "read_table",
                **suite.service(side).where,
                uid=long_run_of(suite, side),
                rows=sizes.events,
                columns=names,
                wanted=wanted,
            )
        )

    for work, wanted, reach in ((run, None, "≤ 25 ms"), (f"{run}: two columns", two, "≤ 8 ms")):
        parties = {side: partial(read, side, wanted) for side in suite.sides}
        interleaved(parties, 1)  # the first read of a process imports
        samples = interleaved(parties, sizes.rounds)
        yield Measure(
            "tables",
            work,
            "ms",
            "less",
            column(samples, STOCK, "seconds", 1e3),
            column(samples, FLYSTORE, "seconds", 1e3),
            reach=reach,
        )
