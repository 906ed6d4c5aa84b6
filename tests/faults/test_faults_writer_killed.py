"""F05, F06: the acquisition process is killed, alone or together with the service, in either order.

If these fail, documents for which the plan's callback had returned never reach the service after a crash of the
acquisition, reach it twice, or a process that everyone takes for dead still writes into the run.
"""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flystore.journal import orphans
from flystore.model.errors import StaleEpoch
from flystore.model.frames import FRAMES_MIMETYPE
from flystore.testing.faults import (
    KEY,
    FaultFound,
    FaultReport,
    FaultyService,
    FaultyWriter,
    ForkServer,
    Ledger,
    Load,
    check_api,
    check_disk,
    names_in_source,
    stored_upto,
)
from flystore.testing.faults.storing import frames_of
from flystore.wire import HttpTransport, api_path

PLACES = [name for name in names_in_source() if name.partition(".")[0] in ("journal", "writer", "disk")]
FLUSH_S = 100.0
SEGMENT_BYTES = 6000
PAUSE_S = 0.0005


@dataclass
class Host:
    """An acquisition host, the service, and the ledger between them."""

    service: FaultyService
    writer: FaultyWriter
    ledger: Ledger
    load: Load
    home: Path
    rng: random.Random
    broken: tuple[str, ...]
    runs: int = 0
    batch_bytes: int = 1 << 20

    def begin(self, failpoints: dict[str, str]):
        """Start an acquisition of two runs; return the process and their uids."""
        numbers = [(self.runs, self.rng.randint(10, 60)), (self.runs + 1, self.rng.randint(10, 60))]
        self.runs += 2
        for number, events in numbers:
            self.ledger.begun(self.load.uid(number), number, events)
        child = self.writer.start(
            self.service.url,
            numbers,
            pause=PAUSE_S,
            flush=FLUSH_S,
            failpoints=failpoints,
            broken=self.broken,
            segment_bytes=SEGMENT_BYTES,
            max_batch_bytes=self.batch_bytes,
        )
        return child, [self.load.uid(number) for number, _ in numbers]

    def let_write(self, child, uids: list[str]) -> None:
        """Wait until some moment: of the clock, which may come before the first document, or of what is journaled."""
        if self.rng.random() < 0.3:
            time.sleep(self.rng.uniform(0.01, 0.15))
            return
        wanted = self.rng.randint(1, sum(self.ledger.runs[uid].events for uid in uids))
        self.ledger.reload_until(
            lambda: not child.alive or sum(self.ledger.runs[uid].journaled for uid in uids) >= wanted
        )

    def adopt(self, failpoints: dict[str, str]) -> bool:
        """Start a process that sends what is left; return whether it came to its end."""
        child = self.writer.start(self.service.url, [], flush=FLUSH_S, failpoints=failpoints, broken=self.broken)
        status = child.wait(FLUSH_S + 15)
        assert status in (0, -signal.SIGKILL), child.log_tail()
        return status == 0


@contextmanager
def host(
    fork_server: ForkServer,
    scratch: Path,
    seed: int,
    broken: tuple[str, ...] = (),
    broken_service: tuple[str, ...] = (),
) -> Iterator[Host]:
    ledger, home = scratch / "ledger", scratch / "journal"
    with FaultyService(fork_server, scratch / "store", broken=broken_service) as service, Ledger(ledger) as book:
        writer = FaultyWriter(fork_server, journal=home, ledger=ledger, seed=seed, log=scratch / "writer.log")
        yield Host(service.start(), writer, book, Load(seed), home, random.Random(seed), broken)


def kill_writer(at: Host, report: FaultReport, *, place: str | None = None, both: bool = False) -> None:
    """Kill the acquisition at a place or at a random moment, have another process take over, and compare."""
    failpoints = {} if place is None else {place: f"die@{at.rng.randint(1, 40)}"}
    child, uids = at.begin(failpoints)
    at.let_write(child, uids)
    if both and at.rng.random() < 0.5:
        at.service.kill()
        time.sleep(at.rng.uniform(0, 0.02))
    child.kill()
    if both:
        if at.service.alive:
            time.sleep(at.rng.uniform(0, 0.02))
            at.service.kill()
        at.service.start()
    at.ledger.reload()
    for uid in uids:  # what the callback returned for is promised from then on
        at.ledger.acknowledged(uid, at.ledger.runs[uid].journaled)
    before = {uid: stored_upto(at.service.directory, uid) for uid in uids}
    began = time.monotonic()
    if not at.adopt({} if place is None else {place: "die"}):
        assert at.adopt({})
    report.recovery.append(time.monotonic() - began)
    report.cycles += 1
    findings = [
        check_disk(at.service.directory, at.ledger, at.load, uids),
        check_api(HttpTransport(at.service.url, KEY), at.ledger, at.load, uids),
    ]
    for place_in_line, found in enumerate(findings):
        report.count(found, acknowledged=place_in_line == 0)
        found.require_none()
    assert orphans(at.home) == [], "a journal was left behind"
    for uid in uids:
        if stored_upto(at.service.directory, uid)[0] > before[uid][0] > 0:
            require_old_epoch_refused(at, uid)


def require_old_epoch_refused(at: Host, uid: str) -> None:
    """Speak as the process that was killed, as if it were not dead after all."""
    watermark, _ = stored_upto(at.service.directory, uid)
    late = frames_of([("event", at.load.event(at.load.number(uid), 999))])
    with pytest.raises(StaleEpoch):
        HttpTransport(at.service.url, KEY).request(
            "POST",
            api_path("ingest", uid),
            params={"first": watermark, "epoch": 1},
            headers={"Content-Type": FRAMES_MIMETYPE},
            body=late,
        )


def require_nothing_wrong(report: FaultReport) -> None:
    assert report.acknowledged > 0
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


@pytest.mark.timeout(3000)
def test_a_killed_acquisition_loses_nothing_the_callback_returned_for(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F05 writer killed")
    with host(fork_server, tmp_path, seed) as at:
        for _ in range(cycles(25, 500)):
            kill_writer(at, report)
        check_disk(at.service.directory, at.ledger, at.load, deep=True).require_none()
    require_nothing_wrong(report)


@pytest.mark.timeout(3000)
def test_an_acquisition_killed_at_each_of_its_writes_loses_nothing(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F05 writer killed at failpoints")
    with host(fork_server, tmp_path, seed) as at:
        for cycle in range(cycles(len(PLACES), 500)):
            kill_writer(at, report, place=PLACES[cycle % len(PLACES)])
    report.notes["places"] = len(PLACES)
    require_nothing_wrong(report)


@pytest.mark.timeout(3000)
def test_writer_and_service_killed_together_lose_nothing(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F06 writer and service killed")
    with host(fork_server, tmp_path, seed) as at:
        for _ in range(cycles(20, 300)):
            kill_writer(at, report, both=True)
        check_disk(at.service.directory, at.ledger, at.load, deep=True).require_none()
    require_nothing_wrong(report)


@pytest.mark.parametrize(
    ("broken", "both"),
    [("buffered-journal", False), ("no-adoption", False), ("epoch-kept", False), ("buffered-journal", True)],
)
def test_a_broken_writer_is_found(fork_server, tmp_path, seed, broken, both):
    report = FaultReport("control", seed)

    # A writer that dies when a batch of a few documents was stored leaves more for the one that takes over.
    place = "writer.after_send" if broken == "epoch-kept" else None

    def kill_often() -> None:
        with host(fork_server, tmp_path, seed, broken=(broken,)) as at:
            at.batch_bytes = 1500 if place else at.batch_bytes
            for _ in range(40):
                kill_writer(at, report, place=place, both=both)

    # A process that is taken for dead and is not refused is found by its not being refused.
    with pytest.raises(pytest.fail.Exception if broken == "epoch-kept" else FaultFound):
        kill_often()
