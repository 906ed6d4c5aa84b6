"""Finding runs among very many, over bare HTTP: at two sizes, to see what grows."""

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.figures import Measure, percentile
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.processes import Broken
from benchmarks.services import Service, bare_service
from benchmarks.suite import FLYSTORE, STOCK, Suite
from benchmarks.workers import Worker

STOCK_ASKED = 3
WHOLE = "whole"
BARE = "bare ASGI"
FILL_SECONDS = 3600.0
"""For filling a catalogue: a million runs take nine minutes of a processor that does nothing else."""

Start = Mapping[str, Any]


def _eq(key: str, value: Any) -> list[tuple[str, str]]:
    return [("filter[eq][condition][key]", key), ("filter[eq][condition][value]", json.dumps(value))]


def _like(start: Start) -> list[tuple[str, str]]:
    pattern = json.dumps(start["uid"][:8] + "%")
    return [("filter[like][condition][key]", "start.uid"), ("filter[like][condition][pattern]", pattern)]


def _search(*conditions: tuple[str, str], limit: int = 10, sort: str = "") -> str:
    return "/api/v1/search/?" + urlencode([*conditions, ("page[limit]", limit), *([("sort", sort)] if sort else [])])


def _number(*conditions: tuple[str, str]) -> str:
    # Only what is asked for alone is counted to the end by stock.
    return "/api/v1/search/?" + urlencode([*conditions, ("fields", "count")])


FAST = {"p50": "≤ 5 ms", "p99": "≤ 20 ms"}
KEPT = {"p50": "≤ 20 ms"}
NEWEST = "-start.time"
QUESTIONS: dict[str, tuple[Callable[[Start], str], dict[str, str]]] = {
    "uid": (lambda run: f"/api/v1/metadata/{run['uid']}", FAST),
    "newest 100 by time": (lambda run: _search(limit=100, sort=NEWEST), FAST),
    "plan_name ==": (lambda run: _search(*_eq("start.plan_name", run["plan_name"])), FAST),
    "scan_id ==": (lambda run: _search(*_eq("start.scan_id", run["scan_id"])), FAST),
    "partial uid": (lambda run: _search(*_like(run)), FAST),
    "full text, rare word": (
        lambda run: _search(("filter[fulltext][condition][text]", "zirconolite")),
        FAST,
    ),
    "full text, common word": (
        lambda run: _search(("filter[fulltext][condition][text]", "calibration")),
        FAST,
    ),
    "number of all": (lambda run: _number(), KEPT),
    "distinct plan_name with counts": (
        lambda run: "/api/v1/distinct/?metadata=start.plan_name&counts=true",
        KEPT,
    ),
    "plan_name == and sample, newest first": (
        lambda run: _search(
            *_eq("start.plan_name", run["plan_name"]), *_eq("start.sample.name", run["sample"]["name"]), sort=NEWEST
        ),
        KEPT,
    ),
    "partial uid and plan_name, newest first": (
        lambda run: _search(*_like(run), *_eq("start.plan_name", run["plan_name"]), sort=NEWEST),
        KEPT,
    ),
    "number with plan_name ==": (
        lambda run: _number(*_eq("start.plan_name", run["plan_name"])),
        {"p50": "linear in matches"},
    ),
}
"""What is asked, from the start document of a run, and the figure to reach."""


def measure(suite: Suite) -> Iterator[Measure]:
    """Ask every question of each catalogue; which run it is about changes from question to question."""
    sizes = suite.sizes
    with contextlib.ExitStack() as stack:
        filler = stack.enter_context(suite.a_worker(FLYSTORE, "catalogue"))
        bare = stack.enter_context(bare_service(suite.directory / "bare-catalogue.log"))
        served: dict[str, tuple[Service, int]] = {}
        if STOCK in suite.sides and sizes.stock_catalogue:
            service = stack.enter_context(_stock(suite, filler, sizes.stock_catalogue))
            served[STOCK] = service, sizes.stock_catalogue
        for runs in sizes.catalogue:
            directory = _flystore(suite, filler, runs)
            served[f"{runs:,} runs"] = stack.enter_context(suite.a_service(FLYSTORE, directory)), runs
        for name, (question, reach) in QUESTIONS.items():
            suite.say(f"catalogue: {name}")
            _require_the_same(suite, filler, name, question, served)
            parties = {
                party: partial(_ask, suite, filler, service, question, runs, STOCK_ASKED if party == STOCK else None)
                for party, (service, runs) in served.items()
            }
            parties[BARE] = partial(_ask_bare, suite, bare)
            interleaved({party: ask for party, ask in parties.items() if party != STOCK}, 1)
            yield from _lines(suite, name, reach, interleaved(parties, sizes.rounds, {STOCK: sizes.stock_rounds}))


def _require_the_same(
    suite: Suite,
    filler: Worker,
    name: str,
    question: Callable[[Start], str],
    served: Mapping[str, tuple[Service, int]],
) -> None:
    """Raise unless stock finds the same in a catalogue of the same runs: else it would not be the same question."""
    (start,) = filler.call("starts", numbers=[77])
    found = {
        party: suite.user().call("found", **service.where, path=question(start))
        for party, (service, runs) in served.items()
        if runs == suite.sizes.stock_catalogue
    }
    if len({json.dumps(answer) for answer in found.values()}) > 1:
        raise Broken(f"{name}: the services find different runs: {str(found)[:1000]}")


def _lines(suite: Suite, name: str, reach: Mapping[str, str], samples: dict[str, list[Sample]]) -> Iterator[Measure]:
    smallest = f"{suite.sizes.catalogue[0]:,} runs"
    for runs in suite.sizes.catalogue:
        party = f"{runs:,} runs"
        for quantity in ("p50", "p99"):
            yield Measure(
                "catalogue",
                f"{party}: {name}, {quantity}",
                "ms",
                "less",
                column(samples, STOCK, quantity, 1e3) if runs == suite.sizes.stock_catalogue else [],
                column(samples, party, quantity, 1e3),
                {
                    BARE: column(samples, BARE, quantity, 1e3),
                    **({smallest: column(samples, smallest, quantity, 1e3)} if party != smallest else {}),
                },
                reach.get(quantity, ""),
            )


def _ask(
    suite: Suite,
    filler: Worker,
    service: Service,
    question: Callable[[Start], str],
    runs: int,
    asked: int | None,
    drawn: random.Random = random.Random(1),  # noqa: B008 - goes on from call to call
) -> Sample:
    numbers = [drawn.randrange(runs) for _ in range(asked or suite.sizes.asked)]
    paths = [question(start) for start in filler.call("starts", numbers=numbers)]
    return _asked(suite, service, paths)


def _ask_bare(suite: Suite, service: Service) -> Sample:
    return _asked(suite, service, ["/"] * suite.sizes.asked)


def _asked(suite: Suite, service: Service, paths: list[str]) -> Sample:
    took = suite.user().call("latencies", **service.where, paths=paths, rounds=1)["took"]
    return {"p50": percentile(took, 50), "p99": percentile(took, 99)}


def _flystore(suite: Suite, filler: Worker, runs: int) -> Path:
    directory = (suite.keep or suite.directory) / f"flystore-of-{runs}"
    if not (directory / WHOLE).exists():
        suite.say(f"filling a catalogue of flystore with {runs:,} runs")
        filler.begin("fill_flystore", directory=str(directory), runs=runs)
        filler.result("fill_flystore", FILL_SECONDS)
        (directory / WHOLE).touch()
    return directory


@contextlib.contextmanager
def _stock(suite: Suite, filler: Worker, runs: int) -> Iterator[Service]:
    directory = (suite.keep or suite.directory) / f"stock-of-{runs}"
    if not (directory / WHOLE).exists():
        with suite.a_service(STOCK, directory):
            pass  # makes the catalogue
        suite.say(f"filling a catalogue of stock with {runs:,} runs")
        filler.begin("fill_stock", database=str(directory / "catalog.db"), runs=runs)
        filler.result("fill_stock", FILL_SECONDS)
        (directory / WHOLE).touch()
    with suite.a_service(STOCK, directory) as service:
        yield service
