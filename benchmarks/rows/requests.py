"""Small requests a second, over eight connections to one process."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.runs import DATASET, frames_run_of
from benchmarks.services import Service, bare_service
from benchmarks.suite import FLYSTORE, STOCK, Suite

CONNECTIONS = 8
FRAMES = 64
BARE = "bare ASGI"


def measure(suite: Suite) -> Iterator[Measure]:
    """Ask as fast as answers come; every answer is read to its end and must be 200."""
    with bare_service(suite.directory / "bare.log") as bare:
        for what, path, count, reach in (
            ("GET of metadata", "/api/v1/metadata/{uid}/primary", 1, "≥ 4,000 a second"),
            (
                "GET of a slice of 10 kB",
                "/api/v1/array/full/{uid}/primary/" + DATASET + "?slice={frame},0:10&format=application/octet-stream",
                FRAMES,
                "≥ 2,500 a second",
            ),
        ):
            parties = {
                side: partial(_ask, suite, suite.service(side), _paths(suite, side, path, count))
                for side in suite.sides
            }
            parties[BARE] = partial(_ask, suite, bare, ["/"])
            samples = interleaved(parties, suite.sizes.rounds)
            yield Measure(
                "requests",
                f"{what}, {CONNECTIONS} connections",
                "1/s",
                "more",
                column(samples, STOCK, "rate"),
                column(samples, FLYSTORE, "rate"),
                {BARE: column(samples, BARE, "rate")},
                reach,
            )


def _paths(suite: Suite, side: str, path: str, count: int) -> list[str]:
    uid = frames_run_of(suite, side, "raw")
    return [path.format(uid=uid, frame=frame) for frame in range(count)]


def _ask(suite: Suite, service: Service, paths: list[str]) -> Sample:
    return dict(
        suite.user().call(
            "load", **service.where, paths=paths, connections=CONNECTIONS, seconds=suite.sizes.load_seconds
        )
    )
