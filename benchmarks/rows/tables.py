"""Reading the long run as xarray with the client of each side."""

import os
from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.runs import columns_of, long_run_of
from benchmarks.suite import FLYSTORE, STOCK, Suite

SENDFILE = "TCP sendfile"


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
        parties[SENDFILE] = partial(_send, suite, 8 * sizes.events * (1 + len(wanted or names)))
        interleaved(parties, 1)  # the first read of a process imports
        samples = interleaved(parties, sizes.rounds)
        yield Measure(
            "tables",
            work,
            "ms",
            "less",
            column(samples, STOCK, "seconds", 1e3),
            column(samples, FLYSTORE, "seconds", 1e3),
            {SENDFILE: column(samples, SENDFILE, "seconds", 1e3)},
            reach,
        )


def _send(suite: Suite, nbytes: int) -> Sample:
    """Send as many bytes as the values and the numbers of their events are."""
    file = suite.files / f"bytes-{nbytes}"
    if not file.exists():
        file.write_bytes(bytes(range(256)) * (nbytes // 256 + 1))
        os.truncate(file, nbytes)
    return dict(suite.machine().call("send_file", file=str(file)))
