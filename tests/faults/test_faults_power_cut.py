"""F03, F04: the power of the disk is cut, under the service or under the journal.

If these fail, documents and arrays that the service acknowledged, or that the journal called durable, are gone when
the machine comes back, or the store does not open any more.
"""

import json
import random
import shutil
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from flystore.journal import Journal
from flystore.model.errors import FlystoreError
from flystore.model.frames import FrameDecoder
from flystore.service import Service
from flystore.testing.faults import (
    KEY,
    Acquisition,
    FaultFound,
    FaultReport,
    FaultyService,
    Findings,
    ForkServer,
    Ledger,
    Load,
    check_api,
    check_disk,
    check_documents,
)
from flystore.testing.faults.disks import NoDisk, loop_disk, lying_library, missing, standing_still
from flystore.testing.faults.roles import BROKEN_VARIABLE
from flystore.testing.faults.storing import ARRAY_ITEMS, array_key, new_array
from flystore.wire import HttpTransport, api_path

pytestmark = pytest.mark.skipif(
    missing("mkfs.ext4", "mount", "umount") is not None,
    reason=missing("mkfs.ext4", "mount", "umount") or "",
)

CUTS_A_DISK = 10
"""After so many cuts the disk is made anew: each cut copies and checks all that is on it."""

SERVED_EVERY = 5
"""Of so many disks that came back one is served by a process of its own, and read through the API."""

EVENTS = 30
BLOCKS = 6


@pytest.fixture
def disks(tmp_path):
    """Return a maker of loop disks; skips where there are none."""

    @contextmanager
    def make():
        try:
            with loop_disk(tmp_path) as disk:
                yield disk
        except NoDisk as reason:
            pytest.skip(f"this machine mounts no file as a disk: {reason}")

    return make


def store_array(url: str, ledger: Ledger, load: Load, number: int) -> None:
    """Make an array through the API and write its blocks."""
    key = array_key(load, number)
    ledger.begun(key, number, BLOCKS)
    with closing(HttpTransport(url, KEY)) as transport:
        body = json.dumps(new_array(key, BLOCKS)).encode()
        transport.request("POST", "/api/v1/metadata/", headers={"Content-Type": "application/json"}, body=body)
        for block in range(BLOCKS):
            ledger.sent(key, block + 1)
            body = load.array(number, block, ARRAY_ITEMS).tobytes()
            headers = {"Content-Type": "application/octet-stream"}
            path = api_path("array", "block", key)
            transport.request("PUT", path, params={"block": str(block)}, headers=headers, body=body)
            ledger.acknowledged(key, block + 1)


def check_arrays(findings: Findings, service: Service, ledger: Ledger, load: Load) -> None:
    for key, known in ledger.arrays.items():
        findings.acknowledged += known.acknowledged
        if known.acknowledged == 0:
            continue
        try:
            found = service.arrays.read((key,))
        except FlystoreError as error:
            findings.add("lost", known.acknowledged, f"{key}: {error.kind}: {error}")
            continue
        blocks = np.frombuffer(found, "<f8").reshape(BLOCKS, ARRAY_ITEMS)
        for block in range(known.acknowledged):
            if not np.array_equal(blocks[block], load.array(known.run, block, ARRAY_ITEMS)):
                findings.add("lost", 1, f"{key}, block {block}: not what was acknowledged")


def cut_power_of_service(
    fork_server: ForkServer, disks, scratch: Path, report: FaultReport, cycles: int, *, lying: ForkServer | None = None
) -> None:
    """Cut the power at random moments under load, and look at what comes back, with a service on it."""
    rng = random.Random(report.seed)
    while report.cycles < cycles:
        place = scratch / f"s{report.cycles}"
        place.mkdir()
        with disks() as disk, FaultyService(lying or fork_server, disk.path / "store") as service:
            service.start()
            with Acquisition(service.url, place, report.seed + report.cycles) as acquisition:
                for _ in range(min(CUTS_A_DISK, cycles - report.cycles)):
                    cut_once(fork_server, disk, place, service, acquisition, rng, report)
            service.kill()
        shutil.rmtree(place)


def cut_once(fork_server, disk, place: Path, service, acquisition, rng: random.Random, report: FaultReport) -> None:
    number = acquisition.runs
    acquisition.begin(1, rng.randint(5, EVENTS), pause=0.002)
    array = threading.Thread(target=store_array, args=(service.url, acquisition.ledger, acquisition.load, number))
    array.start()
    time.sleep(rng.uniform(0.002, 0.08))
    if rng.random() < 0.7:
        known = acquisition.ledger.runs[acquisition.load.uid(number)]
        acquisition.ledger.reload_until(lambda: known.acknowledged > 0)
    book = place / f"ledger-{report.cycles}"
    try:
        with ExitStack() as held:
            with standing_still(service.pid):
                # What is acknowledged from here on was not, for whoever lost the power now.
                shutil.copyfile(acquisition.ledger.path, book)
                left = held.enter_context(disk.after_power_cut(place))
            with Ledger(book) as ledger:
                check_cut(fork_server, left.path / "store", ledger, acquisition.load, report)
    finally:
        array.join()  # before the service goes away
    report.cycles += 1
    acquisition.finish()


def check_cut(fork_server, store: Path, ledger: Ledger, load: Load, report: FaultReport) -> None:
    """Compare the disk that came back, as it lies there and as a service shows it."""
    findings = check_disk(store, ledger, load, deep=True)
    report.count(findings)
    findings.require_none()
    began = time.monotonic()
    with Service.open(store) as service:
        report.recovery.append(time.monotonic() - began)
        arrays = Findings()
        check_arrays(arrays, service, ledger, load)
    report.count(arrays)
    arrays.require_none()
    if report.cycles % SERVED_EVERY == 0:
        stored = [uid for uid, known in ledger.runs.items() if known.acknowledged]
        with FaultyService(fork_server, store).start() as served, closing(HttpTransport(served.url, KEY)) as transport:
            found = check_api(transport, ledger, load, stored[-2:])
        report.count(found, acknowledged=False)
        found.require_none()


def require_nothing_wrong(report: FaultReport) -> None:
    assert report.acknowledged > 0
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


@pytest.mark.timeout(3000)
def test_what_the_service_acknowledged_is_there_after_a_power_cut(
    fork_server, disks, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F03 power cut of the service", unit="documents and blocks")
    cut_power_of_service(fork_server, disks, tmp_path, report, cycles(20, 1000))
    require_nothing_wrong(report)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="not installed: gcc")
def test_a_disk_that_lies_about_syncs_is_found(fork_server, disks, tmp_path, seed, monkeypatch):
    report = FaultReport("control", seed)
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(lying_library(tmp_path)))
        server = ForkServer()
    with server as lying, pytest.raises(FaultFound, match="lost"):
        cut_power_of_service(fork_server, disks, tmp_path, report, 40, lying=lying)


# --- the journal -----------------------------------------------------------------------------------------------


def cut_power_of_journal(
    fork_server: ForkServer,
    disks,
    scratch: Path,
    report: FaultReport,
    cycles: int,
    durability: str,
    broken: tuple[str, ...] = (),
) -> None:
    rng = random.Random(report.seed)
    options = {"seed": report.seed, "first": 1, "events": EVENTS, "durability": durability, "sync_interval": 0.005}
    environment = {BROKEN_VARIABLE: ",".join(broken)}
    while report.cycles < cycles:
        with disks() as disk:
            for _ in range(min(CUTS_A_DISK, cycles - report.cycles)):
                place = scratch / f"j{report.cycles}"
                place.mkdir()
                named = {"home": str(disk.path / place.name), "ledger": str(place / "ledger")}
                child = fork_server.spawn("journal", {**options, **named}, log=place / "log", environment=environment)
                with ExitStack() as held:
                    try:
                        child.until("event")
                        with Ledger(place / "ledger") as ledger:
                            wanted = rng.randint(0, 2 * EVENTS)
                            ledger.reload_until(lambda ledger=ledger, wanted=wanted: durable(ledger) >= wanted)
                        time.sleep(rng.uniform(0, 0.02))
                        with standing_still(child.pid):
                            left = held.enter_context(disk.after_power_cut(place))
                            child.kill()
                    finally:
                        child.kill()
                    with Ledger(place / "ledger") as ledger:
                        findings = check_journal(left.path / place.name, ledger, Load(report.seed))
                report.cycles += 1
                report.count(findings)
                findings.require_none()
                shutil.rmtree(place)
                shutil.rmtree(disk.path / place.name)


def durable(ledger: Ledger) -> int:
    return sum(known.acknowledged for known in ledger.runs.values())


def check_journal(home: Path, ledger: Ledger, load: Load) -> Findings:
    """Have another process's journal taken over, as the next writer does, and compare."""
    findings = Findings()
    found: dict[str, list] = {}
    for path in sorted(home.iterdir()) if home.exists() else ():
        with Journal.take_over(path) as journal:
            for damage in journal.unreadable:
                findings.add("half", 1, str(damage))
            for log in journal.logs:
                if log.damage is not None:
                    findings.add("half", 1, str(log.damage))
                decoder = FrameDecoder()
                decoded = (decoder.decode(payload) for payload in log.payloads())
                found[log.uid] = [document for document in decoded if document is not None]
    for uid, known in ledger.runs.items():
        check_documents(findings, load.documents(known.run, known.events), known, found.pop(uid, []))
    for uid in found:
        findings.add("phantom", 1, f"run {uid} was never sent")
    return findings


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("durability", ["each", "group"])
def test_what_the_journal_called_durable_is_there_after_a_power_cut(
    fork_server, disks, tmp_path, seed, cycles, fault_report, durability
):
    report = fault_report(f"F04 power cut of the journal, {durability}")
    cut_power_of_journal(fork_server, disks, tmp_path, report, cycles(15, 500), durability)
    require_nothing_wrong(report)


def test_a_journal_that_syncs_nothing_is_found(fork_server, disks, tmp_path, seed):
    report = FaultReport("control", seed)
    with pytest.raises(FaultFound, match="lost"):
        cut_power_of_journal(fork_server, disks, tmp_path, report, 40, "each", broken=("no-fsync",))
