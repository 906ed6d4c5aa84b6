"""F09: a disk is full, under the catalogue, the arrays or the journal, and has room again.

If these fail, a full disk costs documents, a restart, or the sight of what is stored; or a plan goes on without
knowing that nothing is kept any more.
"""

import json
import random
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from flystore.model.errors import DiskFull, JournalFull, Unavailable
from flystore.testing.faults import (
    KEY,
    QUICK_WRITER,
    Acquisition,
    FaultFound,
    FaultReport,
    FaultyService,
    Findings,
    ForkServer,
    Ledger,
    Load,
    RecordingTransport,
    broken,
    check_api,
    check_disk,
)
from flystore.testing.faults.disks import NoDisk, SmallDisk, missing, small_disk
from flystore.testing.faults.storing import ARRAY_ITEMS, array_key, new_array
from flystore.wire import HttpTransport, api_path
from flystore.writer import RunWriter

pytestmark = pytest.mark.skipif(missing("mount", "umount") is not None, reason=missing("mount", "umount") or "")

CYCLES_A_DISK = 5
BLOCKS = 40


@contextmanager
def disk_at(path: Path, megabytes: int):
    """Mount a small disk; skip where that is not possible."""
    try:
        with small_disk(path, megabytes) as disk:
            yield disk
    except NoDisk as reason:
        pytest.skip(f"this machine mounts no small disk: {reason}")


def require_nothing_wrong(report: FaultReport) -> None:
    assert report.acknowledged > 0
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


def health_of(transport: HttpTransport) -> str:
    try:
        return transport.request("GET", "/healthz").body.decode()
    except Unavailable as error:
        return str(error)


def require_trusted(transport: HttpTransport) -> None:
    """While its disk is full a service may say that it is; it must not say that it needs a restart."""
    assert "read-only" not in health_of(transport), "a full disk cost the trust in it"


def require_stores(transport: HttpTransport) -> None:
    until = time.monotonic() + 60
    while (said := health_of(transport)) != '{"status":"ready"}':  # which it says anew each second
        assert time.monotonic() < until, said
        require_trusted(transport)
        time.sleep(0.05)


# --- under the catalogue ---------------------------------------------------------------------------------------


def fill_catalogue(
    fork_server: ForkServer,
    scratch: Path,
    report: FaultReport,
    cycles: int,
    broken_service: tuple[str, ...] = (),
    patience: float = 100.0,
) -> None:
    rng = random.Random(report.seed)
    while report.cycles < cycles:
        place = scratch / f"c{report.cycles}"
        place.mkdir()
        with disk_at(place / "disk", 24) as disk:
            service = FaultyService(fork_server, disk.path / "store", broken=broken_service)
            with service.start(), Acquisition(service.url, place, report.seed + report.cycles) as acquisition:
                acquisition.begin(1, 20)
                acquisition.finish()
                for _ in range(min(CYCLES_A_DISK, cycles - report.cycles)):
                    fill_catalogue_once(disk, service, acquisition, rng, report, patience)


def fill_catalogue_once(
    disk: SmallDisk,
    service: FaultyService,
    acquisition: Acquisition,
    rng: random.Random,
    report: FaultReport,
    patience: float,
) -> None:
    ledger, load = acquisition.ledger, acquisition.load
    disk.fill(rng.randint(0, 300_000))
    until = time.monotonic() + patience
    while not (full := "is full" in (acquisition.writer.status().last_error or "")) and time.monotonic() < until:
        acquisition.join()
        if service.broken:  # it does not say that it is full
            acquisition.finish()
            check_disk(service.directory, ledger, load).require_none()
        acquisition.begin(2, 60, pause=0.001)
        time.sleep(0.02)
    acquisition.join()
    with closing(HttpTransport(service.url, KEY)) as transport:
        require_trusted(transport)
        # What is stored is read as ever; and no half of a batch is there.
        for found in (check_disk(service.directory, ledger, load), check_api(transport, ledger, load, stored(ledger))):
            report.count(found, acknowledged=False)
            found.require_none()
        assert full, f"{disk.free()} bytes were enough: {acquisition.writer.status()!r}"
        began = time.monotonic()
        disk.empty()
        acquisition.finish()
        report.recovery.append(time.monotonic() - began)
        require_stores(transport)
        report.cycles += 1
        found = check_disk(service.directory, ledger, load, deep=True)
        report.count(found)
        found.require_none()
        found = check_api(transport, ledger, load, stored(ledger))
        report.count(found, acknowledged=False)
        found.require_none()


def stored(ledger: Ledger) -> list[str]:
    """Return the first runs and the last of which something is acknowledged."""
    found = [uid for uid, known in ledger.runs.items() if known.acknowledged]
    return list(dict.fromkeys([*found[:1], *found[-2:]]))


@pytest.mark.timeout(3000)
def test_a_full_disk_under_the_catalogue_refuses_whole_batches_and_passes(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F09 disk full under the catalogue")
    fill_catalogue(fork_server, tmp_path, report, cycles(5, 50))
    require_nothing_wrong(report)


def test_a_service_that_acknowledges_what_has_no_room_is_found(fork_server, tmp_path, seed):
    report = FaultReport("control", seed)
    with pytest.raises(FaultFound, match="lost"):
        fill_catalogue(fork_server, tmp_path, report, 1, ("full-disk-ignored",))


# --- under the arrays ------------------------------------------------------------------------------------------


def put_block(transport: HttpTransport, ledger: Ledger, load: Load, number: int, block: int) -> None:
    key = array_key(load, number)
    ledger.sent(key, block + 1)
    body = load.array(number, block, ARRAY_ITEMS).tobytes()
    headers = {"Content-Type": "application/octet-stream"}
    path = api_path("array", "block", key)
    transport.request("PUT", path, params={"block": str(block)}, headers=headers, body=body)
    ledger.acknowledged(key, block + 1)


def check_blocks(findings: Findings, transport: HttpTransport, ledger: Ledger, load: Load, number: int) -> None:
    key = array_key(load, number)
    headers = {"Accept": "application/octet-stream"}
    answer = transport.request("GET", api_path("array", "full", key), headers=headers)
    blocks = np.frombuffer(answer.body, "<f8").reshape(BLOCKS, ARRAY_ITEMS)
    known = ledger.arrays[key]
    findings.acknowledged += known.acknowledged
    for block in range(BLOCKS):
        if block < known.acknowledged:
            if not np.array_equal(blocks[block], load.array(number, block, ARRAY_ITEMS)):
                findings.add("lost", 1, f"{key}, block {block}: not what was acknowledged")
        elif block >= known.sent and blocks[block].any():
            findings.add("phantom", 1, f"{key}, block {block}: was never sent")


def fill_arrays(
    fork_server: ForkServer, scratch: Path, report: FaultReport, cycles: int, broken_service: tuple[str, ...] = ()
) -> None:
    rng, load = random.Random(report.seed), Load(report.seed)
    store = scratch / "store"
    store.mkdir()
    with (
        disk_at(store / "arrays", 4) as disk,
        FaultyService(fork_server, store, broken=broken_service).start() as service,
        closing(HttpTransport(service.url, KEY)) as transport,
        Ledger(scratch / "ledger") as ledger,
    ):
        for number in range(cycles):
            key = array_key(load, number)
            ledger.begun(key, number, BLOCKS)
            headers = {"Content-Type": "application/json"}
            body = json.dumps(new_array(key, BLOCKS)).encode()
            transport.request("POST", "/api/v1/metadata/", headers=headers, body=body)
            disk.fill(4096 * rng.randint(0, BLOCKS - 5))
            first = put_until_full(transport, ledger, load, number)
            require_trusted(transport)
            findings = Findings()
            check_blocks(findings, transport, ledger, load, number)
            began = time.monotonic()
            disk.empty()
            for block in range(first, BLOCKS):
                put_block(transport, ledger, load, number, block)
            report.recovery.append(time.monotonic() - began)
            check_blocks(findings, transport, ledger, load, number)
            report.count(findings)
            findings.require_none()
            report.cycles += 1
            transport.request("DELETE", api_path("metadata", key), params={"external_only": "false"})


def put_until_full(transport: HttpTransport, ledger: Ledger, load: Load, number: int) -> int:
    """Write block after block; return the number of the one that found no room."""
    for block in range(BLOCKS):
        try:
            put_block(transport, ledger, load, number, block)
        except DiskFull:
            return block
    pytest.fail("there was room for all")


@pytest.mark.timeout(3000)
def test_a_full_disk_under_the_arrays_refuses_whole_blocks_and_passes(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F09 disk full under the arrays", unit="blocks")
    fill_arrays(fork_server, tmp_path, report, cycles(5, 100))
    require_nothing_wrong(report)


# --- under the journal -----------------------------------------------------------------------------------------


FILLING, ENDING = 3500, 5
"""Events of the run that fills the disk, and of the one that ends on a full disk."""


class Plan:
    """One run that is given to a RunWriter document by document."""

    def __init__(self, writer: RunWriter, ledger: Ledger, load: Load, number: int, events: int) -> None:
        self._writer, self._ledger, self._uid = writer, ledger, load.uid(number)
        self._left = list(enumerate(load.documents(number, events)))[::-1]
        self.longest = 0.0
        ledger.begun(self._uid, number, events)

    def go_on(self, *, keep: int = 0) -> None:
        """Give all documents but the last `keep`; one that is refused is given again the next time."""
        while len(self._left) > keep:
            ordinal, (name, doc) = self._left[-1]
            self._ledger.sent(self._uid, ordinal + 1)
            began = time.perf_counter()
            try:
                self._writer(name, doc)
            finally:
                self.longest = max(self.longest, time.perf_counter() - began)
            self._left.pop()
            self._ledger.journaled(self._uid, ordinal + 1)


def fill_journal(fork_server: ForkServer, scratch: Path, report: FaultReport, cycles: int) -> None:
    """Have a run fill a journal's disk while the service is away; another ends on it; then there is room again."""
    rng, load, longest = random.Random(report.seed), Load(report.seed), 0.0
    options = {**QUICK_WRITER, "reserve_bytes": 128 * 1024}
    with (
        disk_at(scratch / "journal", 4) as disk,
        Ledger(scratch / "ledger") as ledger,
        FaultyService(fork_server, scratch / "store").start() as service,
        closing(RecordingTransport(service.url, KEY, ledger)) as transport,
        RunWriter(transport, journal=disk.path, **options) as writer,
    ):
        for number in range(cycles):
            service.kill()
            disk.fill(rng.randint(200_000, 500_000))
            filling = Plan(writer, ledger, load, 2 * number, FILLING)
            ending = Plan(writer, ledger, load, 2 * number + 1, ENDING)
            ending.go_on(keep=1)
            with pytest.raises(JournalFull, match="Free some space"):
                filling.go_on()
            ending.go_on()  # for a stop there is room
            with pytest.raises(JournalFull):
                filling.go_on()
            disk.empty()
            began = time.monotonic()
            filling.go_on()  # without the service: the disk has room, and that is enough
            report.recovery.append(time.monotonic() - began)
            longest = max(longest, filling.longest, ending.longest)
            service.start()
            writer.flush(100)
            uids = [load.uid(2 * number), load.uid(2 * number + 1)]
            for uid in uids:
                ledger.acknowledged(uid, ledger.runs[uid].journaled)  # what the callback returned for is promised
            report.cycles += 1
            found = check_disk(service.directory, ledger, load, uids)
            report.count(found)
            found.require_none()
        # That a plan does not wait for room is shown by its being told while there is none.
        report.notes["longest call"] = f"{1e3 * longest:.0f} ms"


@pytest.mark.timeout(3000)
def test_a_full_disk_under_the_journal_stops_the_plan_keeps_the_stop_and_passes(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F09 disk full under the journal")
    fill_journal(fork_server, tmp_path, report, cycles(3, 50))
    require_nothing_wrong(report)


def test_a_journal_that_drops_what_has_no_room_is_found(fork_server, tmp_path, seed):
    report = FaultReport("control", seed)
    with broken("full-journal-drops"), pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        fill_journal(fork_server, tmp_path, report, 1)
