"""What fault tests share: how often (the tier), with which seed, processes to fork from, and the report."""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flystore.testing.faults import FaultReport, ForkServer
from flystore.testing.faults import report as reports

TIER = os.environ.get("FLYSTORE_FAULTS", "quick")
_PROPERTY = "fault"


@pytest.fixture
def cycles() -> Callable[[int, int], int]:
    """Return which of two numbers the tier asks for: ``cycles(quick, full)``."""
    if TIER not in ("quick", "full"):
        raise pytest.UsageError(f"FLYSTORE_FAULTS is quick or full, not {TIER!r}")
    return lambda quick, full: full if TIER == "full" else quick


@pytest.fixture
def seed() -> int:
    """Decides load and faults; ``FLYSTORE_SEED=N`` repeats one."""
    given = os.environ.get("FLYSTORE_SEED")
    found = secrets.randbelow(2**31) if given is None else int(given)
    print(f"FLYSTORE_SEED={found}")  # noqa: T201 - shown when the test fails
    return found


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture
def fault_report(seed: int, record_property: Callable[[str, object], None]) -> Iterator[Callable[..., FaultReport]]:
    """Return a maker of reports: ``fault_report("F01 server killed")``; printed when the test ends, however it does."""
    made: list[FaultReport] = []

    def make(fault: str, **more: object) -> FaultReport:
        made.append(FaultReport(fault, seed, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        print(each.line())  # noqa: T201
        record_property(_PROPERTY, each.as_dict())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the lines; with several processes they come here from all of them, and are written once."""
    if report.when == "teardown":
        found = [value for name, value in report.user_properties if name == _PROPERTY]
        _LINES.extend(found)
        path = os.environ.get(reports.VARIABLE)
        if path and "PYTEST_XDIST_WORKER" not in os.environ:
            reports.write(found, Path(path))


_LINES: list[dict] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _LINES:
        terminalreporter.section("faults")
        for found in _LINES:
            terminalreporter.write_line(reports.line_of(found))
