"""F01, F12: the service is killed at any moment, or asked to end, while documents come in.

If these fail, documents that the service had acknowledged are gone after a crash or a restart, are stored twice, or
people find a run whose rows, nodes and log do not belong together.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flystore.testing.faults import (
    KEY,
    Acquisition,
    FaultReport,
    FaultyService,
    ForkServer,
    check_api,
    check_disk,
)
from flystore.wire import HttpTransport

EVENTS = 40
SLOW_PLACES = [
    "catalog.before_commit",
    "catalog.after_commit",
    "catalog.before_checkpoint",
    "service.before_projection",
    "service.after_batch",
]
"""Where the service is made to dwell in half of the cycles: moments that are short otherwise."""


@contextmanager
def beamline(
    fork_server: ForkServer, scratch: Path, seed: int, broken: tuple[str, ...] = ()
) -> Iterator[tuple[FaultyService, Acquisition]]:
    with FaultyService(fork_server, scratch / "store", broken=broken) as service:
        service.start()
        with Acquisition(service.url, scratch, seed) as acquisition:
            yield service, acquisition


def kill(service: FaultyService) -> None:
    service.kill()


def stop(service: FaultyService) -> None:
    assert service.stop() == 0, "the service did not end as it should"


def wait_for_some_moment(rng: random.Random, acquisition: Acquisition, uids: list[str]) -> None:
    """Wait until some moment: of the clock, which may come before the first batch, or of what is acknowledged."""
    if rng.random() < 0.4:
        time.sleep(rng.uniform(0.002, 0.12))
        return
    ledger, wanted = acquisition.ledger, rng.randint(1, 10)
    ledger.reload_until(
        lambda: bool(acquisition.writer.status().parked) or sum(ledger.runs[uid].acknowledged for uid in uids) >= wanted
    )


def interrupt_while_writing(
    service: FaultyService, acquisition: Acquisition, report: FaultReport, cycles: int, interrupt=kill, dwell=None
) -> None:
    """Interrupt the service at random moments; check on disk before it is back, and through the API after.

    `dwell` is a place where it is slow in every cycle; None takes one of `SLOW_PLACES` in half of them.
    """
    rng = random.Random(f"{report.seed}/{report.cycles}")
    ledger, load = acquisition.ledger, acquisition.load
    for cycle in range(cycles):
        uids = acquisition.begin(2, rng.randint(10, EVENTS))
        wait_for_some_moment(rng, acquisition, uids)
        interrupt(service)
        report.count(check_disk(service.directory, ledger, load, uids))
        place = dwell or (rng.choice(SLOW_PLACES) if rng.random() < 0.5 else None)
        service.failpoints = {} if place is None else {place: "delay:0.05" if dwell else "delay:0.005"}
        began = time.monotonic()
        service.start()
        report.recovery.append(time.monotonic() - began)
        acquisition.finish()
        report.cycles += 1
        last = cycle == cycles - 1
        findings = [
            check_disk(service.directory, ledger, load, None if last else uids, deep=last),
            check_api(HttpTransport(service.url, KEY), ledger, load, uids),
        ]
        for found in findings:
            report.count(found, acknowledged=False)
            found.require_none()


def require_nothing_wrong(report: FaultReport) -> None:
    assert report.acknowledged > 0
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


@pytest.mark.timeout(3000)
def test_a_service_killed_at_any_moment_keeps_what_it_acknowledged_once(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F01 service killed")
    with beamline(fork_server, tmp_path, seed) as (service, acquisition):
        interrupt_while_writing(service, acquisition, report, cycles(30, 1000))
        report.notes["requests without an answer"] = sum(known.unknown for known in acquisition.ledger.runs.values())
    require_nothing_wrong(report)


@pytest.mark.timeout(3000)
def test_a_service_asked_to_end_under_load_ends_and_keeps_what_it_acknowledged(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F12 service restarted")
    with beamline(fork_server, tmp_path, seed) as (service, acquisition):
        interrupt_while_writing(service, acquisition, report, cycles(10, 100), interrupt=stop)
    require_nothing_wrong(report)


@pytest.mark.parametrize(
    ("broken", "interrupt", "dwell"),
    [
        ("ack-before-commit", kill, None),
        ("commit-twice", kill, None),
        ("no-dedupe", kill, "catalog.after_commit"),
        ("ack-before-commit", stop, None),
    ],
)
def test_a_broken_service_is_found(fork_server, tmp_path, seed, broken, interrupt, dwell):
    report = FaultReport("control", seed)

    def interrupt_often() -> None:
        with beamline(fork_server, tmp_path, seed, broken=(broken,)) as (service, acquisition):
            for _ in range(100):
                interrupt_while_writing(service, acquisition, report, 1, interrupt, dwell)
                assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0)

    with pytest.raises(AssertionError):
        interrupt_often()
    assert report.lost or report.doubled or report.half
