"""The long run as files over bare HTTP: its documents as JSON texts, its table as CSV."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.processes import Watch
from benchmarks.runs import long_run_of
from benchmarks.suite import FLYSTORE, STOCK, Suite

MB = 1e-6
ARROW = "Arrow's CSV writer, one thread, in memory"
DOCUMENTS = "/api/v1/container/full/{uid}?format=application/json-seq"
TABLE = "/api/v1/table/full/{uid}/primary/internal?format=text/csv"


def measure(suite: Suite) -> Iterator[Measure]:
    """Download both; the server's memory is what it has more at most than before."""
    sizes = suite.sizes
    run = f"{sizes.events:,} × {sizes.columns}"
    for what, path, seconds_reach, first_reach in (
        ("documents", DOCUMENTS, "≤ 1 s", "≤ 20 ms"),
        ("CSV", TABLE, "≤ 0.3 s", ""),
    ):
        parties = {side: partial(_download, suite, side, path) for side in suite.sides}
        if path == TABLE:
            parties[ARROW] = partial(_print, suite)
        samples = interleaved(parties, sizes.rounds, {STOCK: sizes.stock_rounds})
        for quantity, part, unit, scale, reach in (
            ("seconds", "all of it", "s", 1.0, seconds_reach),
            ("first", "first byte", "ms", 1e3, first_reach),
            ("grown", "server's memory above what it had", "MB", MB, "flat"),
        ):
            yield Measure(
                "exports",
                f"{what} of {run}: {part}",
                unit,
                "less",
                column(samples, STOCK, quantity, scale),
                column(samples, FLYSTORE, quantity, scale),
                {ARROW: floor} if (floor := column(samples, ARROW, quantity, scale)) else {},
                reach,
            )


def _print(suite: Suite) -> Sample:
    return dict(suite.machine().call("print_table", rows=suite.sizes.events, columns=suite.sizes.columns))


def _download(suite: Suite, side: str, path: str) -> Sample:
    uid, service = long_run_of(suite, side), suite.service(side)
    with Watch(service.pid) as server:
        found = suite.user().call("download", **service.where, path=path.format(uid=uid))
    return {**found, "grown": server.most[0] - server.before[0]}
