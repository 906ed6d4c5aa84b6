"""F02: the service dies or fails at each place where it writes, by name and by system call.

If these fail, there is a moment in which a crash leaves something half done that the next start does not mend, or
an error of the disk is taken for success.
"""

import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from flystore.disk import failpoints
from flystore.journal import orphans
from flystore.model.errors import Conflict, DeadlineExceeded, NotFound, SyncFailed, Unavailable
from flystore.service import Service, merging
from flystore.service.backup import ARRAYS_DIRECTORY, back_up, restore
from flystore.service.copying import Place, copy_store
from flystore.storage import PartStore
from flystore.testing.faults import (
    KEY,
    Acquisition,
    FaultFound,
    FaultReport,
    FaultyService,
    FaultyWriter,
    ForkServer,
    Ledger,
    Load,
    check_api,
    check_disk,
    content_of,
    names_in_source,
)
from flystore.testing.faults.points import Handler
from flystore.testing.faults.storing import ARRAY_ITEMS, array_key, new_array
from flystore.testing.faults.syscalls import calls_in, is_available, traced
from flystore.wire import HttpTransport, api_path

PLACES = names_in_source()
PART_PLACES = {"storage.before_part", "storage.after_part"}  # around one durable write, which is failed by itself
SERVER_PLACES = [
    name
    for name in PLACES
    if name.partition(".")[0] in ("catalog", "disk", "service", "storage") and name not in PART_PLACES
]
WRITER_PLACES = [name for name in PLACES if name.partition(".")[0] in ("journal", "writer")]
EVENTS = 40
BLOCKS = 3
RUN = 1  # without a detector, so that no other thread writes what was found of its files
OPERATIONS_S = 100.0


@dataclass
class Station:
    """A service that may die at any moment, and what goes on around it."""

    service: FaultyService
    acquisition: Acquisition
    report: FaultReport

    @property
    def ledger(self) -> Ledger:
        return self.acquisition.ledger

    @property
    def load(self) -> Load:
        return self.acquisition.load

    def revive(self, *, restart: bool = False) -> None:
        """If the service has died, or is to be restarted, look at what it left and start it without the fault."""
        if self.service.alive:
            if not restart:
                return
            self.service.stop()
            count(self.report, "restarted after a failed write")
        else:
            self.service.wait()
            count(self.report, "died")
        self.report.count(check_disk(self.service.directory, self.ledger, self.load))
        self.service.failpoints = {}
        began = time.monotonic()
        self.service.start()
        self.report.recovery.append(time.monotonic() - began)

    def until_done(self, operation: Callable[[HttpTransport], object]) -> None:
        """Repeat an operation until the service has done it, as a client would whose answer is lost."""
        until = time.monotonic() + OPERATIONS_S
        while True:
            assert time.monotonic() < until, "the service does not come back"
            transport = HttpTransport(self.service.url, KEY)
            try:
                operation(transport)
                return
            except SyncFailed:  # as its message says
                self.revive(restart=True)
            except Unavailable:
                self.revive()
            finally:
                transport.close()

    def settle(self) -> None:
        """Wait until the writer has got rid of everything, restarting the service as an operator would."""
        self.acquisition.join()
        until, patience = time.monotonic() + OPERATIONS_S, 1.0
        while time.monotonic() < until:
            try:
                self.acquisition.writer.flush(patience)
                return
            except DeadlineExceeded:
                self.revive(restart=True)
                patience *= 2  # on a busy machine it may only be slow
        raise AssertionError(f"not all was stored: {self.acquisition.writer.status()!r}")

    def use_arrays(self) -> None:
        """Make two arrays, fill one, delete the other."""
        key = array_key(self.load, RUN)
        self.ledger.begun(key, RUN, BLOCKS)
        for name in (key, f"{key}-deleted"):
            self.until_done(lambda transport, name=name: make_array(transport, name))
        for block in range(BLOCKS):
            self.ledger.sent(key, block + 1)
            body = self.load.array(RUN, block, ARRAY_ITEMS).tobytes()
            self.until_done(lambda transport, block=block, body=body: write_block(transport, key, block, body))
            self.ledger.acknowledged(key, block + 1)
        self.until_done(lambda transport: delete(transport, f"{key}-deleted"))


def make_array(transport: HttpTransport, key: str) -> None:
    try:
        transport.request(
            "POST",
            api_path("metadata") + "/",
            headers={"Content-Type": "application/json"},
            body=json.dumps(new_array(key, BLOCKS)).encode(),
        )
    except Conflict:
        return  # the answer was lost, the array is there


def write_block(transport: HttpTransport, key: str, block: int, body: bytes) -> None:
    transport.request(
        "PUT",
        api_path("array", "block", key),
        params={"block": str(block)},
        headers={"Content-Type": "application/octet-stream"},
        body=body,
    )


def delete(transport: HttpTransport, key: str) -> None:
    try:
        transport.request("DELETE", api_path("metadata", key), params={"recursive": True, "external_only": False})
    except NotFound:
        return  # the answer was lost, the array is gone


def count(report: FaultReport, what: str) -> None:
    report.notes[what] = report.notes.get(what, 0) + 1


def start_anyhow(service: FaultyService, report: FaultReport) -> None:
    """Start the service; if the fault strikes before it is ready, once more without."""
    try:
        service.start()
    except EOFError:
        service.wait()
        count(report, "died at the start")
        service.failpoints = {}
        service.start()


def require_second_restart_changes_nothing(service: FaultyService) -> None:
    service.kill()
    before = content_of(service.directory)
    service.start()
    service.kill()
    assert content_of(service.directory) == before, "a restart changed what is stored"


def fail_service_at(
    fork_server: ForkServer,
    scratch: Path,
    report: FaultReport,
    failpoints: dict[str, str],
    broken: tuple[str, ...] = (),
    seen: Path | None = None,
) -> None:
    """Have the service fail at a place while a run and arrays are stored; it must come out as if it had not."""
    scratch.mkdir()
    service = FaultyService(fork_server, scratch / "store", failpoints=failpoints, broken=broken, seen=seen)
    with service:
        start_anyhow(service, report)
        with Acquisition(service.url, scratch, report.seed) as acquisition:
            station = Station(service, acquisition, report)
            uids = acquisition.begin(2, EVENTS, pause=0.001)
            station.use_arrays()
            station.settle()
            # The fault may still be to come, when files are looked at for instance: not while we compare.
            service.kill()
            service.failpoints = {}
            service.start()
            found = [
                check_disk(service.directory, acquisition.ledger, station.load, deep=True),
                check_api(HttpTransport(service.url, KEY), acquisition.ledger, station.load, uids),
            ]
        report.count(found[0])
        report.count(found[1], acknowledged=False)
        report.cycles += 1
        require_second_restart_changes_nothing(service)
    for each in found:
        each.require_none()


def require_nothing_wrong(report: FaultReport) -> None:
    assert report.acknowledged > 0
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("action", ["die", pytest.param("error", marks=pytest.mark.faults_long)])
def test_a_service_that_fails_at_any_place_comes_back_whole(fork_server, tmp_path, seed, cycles, fault_report, action):
    report = fault_report(f"F02 service: {action} at each failpoint")
    rng = random.Random(seed)
    for turn in range(cycles(1, 6)):
        for place in SERVER_PLACES:
            at = turn + 1 if turn < 2 else rng.randint(3, 15)
            fail_service_at(fork_server, tmp_path / f"{turn}-{place}", report, {place: f"{action}@{at}"})
            assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), f"{place} {action}@{at}"
    report.notes["places"] = len(SERVER_PLACES)
    require_nothing_wrong(report)


@pytest.mark.parametrize("broken", ["ack-before-commit", "commit-twice"])
def test_a_broken_service_is_found_at_a_failpoint(fork_server, tmp_path, seed, broken):
    report = FaultReport("control", seed)

    def fail_often() -> None:
        for at in range(2, 12):
            place = {"catalog.before_commit": f"die@{at}"}
            fail_service_at(fork_server, tmp_path / str(at), report, place, (broken,))
            assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0)

    with pytest.raises(AssertionError):
        fail_often()
    assert report.lost or report.half or report.doubled


@pytest.mark.timeout(3000)
def test_a_writer_whose_writes_fail_stops_the_plan_or_loses_nothing(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F02 writer: error at each failpoint")
    rng, load, home, ledger = random.Random(seed), Load(seed), tmp_path / "journal", tmp_path / "ledger"
    with FaultyService(fork_server, tmp_path / "store") as service, Ledger(ledger) as book:
        service.start()
        writer = FaultyWriter(fork_server, journal=home, ledger=ledger, seed=seed, log=tmp_path / "writer.log")
        for turn in range(cycles(1, 6)):
            for place in WRITER_PLACES:
                run = report.cycles
                book.begun(load.uid(run), run, EVENTS)
                action = {place: f"error@{turn + 1 if turn < 2 else rng.randint(3, 30)}"}
                fail_writer_at(writer, service, run, action)
                book.reload()
                known = book.runs[load.uid(run)]
                book.acknowledged(load.uid(run), known.journaled)
                found = check_disk(service.directory, book, load, [load.uid(run)])
                report.count(found)
                report.cycles += 1
                assert found.clean, f"{action}: {found}"
                assert orphans(home) == [], f"{action}: a journal was left behind"
    report.notes["places"] = len(WRITER_PLACES)
    require_nothing_wrong(report)


def fail_writer_at(writer: FaultyWriter, service: FaultyService, run: int, failpoints: dict[str, str]) -> None:
    """Let an acquisition run into an error, and another process send what it left."""
    first = writer.start(service.url, [(run, EVENTS)], flush=2.0, failpoints=failpoints, segment_bytes=4000)
    assert first.wait() == 0, first.log_tail()
    taker = writer.start(service.url, [], flush=90.0)
    assert taker.wait() == 0, taker.log_tail()


def back_up_and_write_parts(directory: Path, scratch: Path) -> set[str]:
    """Return the places reached; what comes of failing at these is in the tests of backups, parts and merging."""
    reached: set[str] = set()
    failpoints.install(Handler({}, reached.add))
    try:
        back_up(directory, scratch / "backup")
        restore(scratch / "backup", scratch / "restored")
        parts = PartStore(scratch / "restored" / ARRAYS_DIRECTORY)
        parts.create("node")
        parts.write("node", "part.zip", b"content")
        merge_rows(scratch / "restored")
        copy_store(Place(scratch / "restored"), Place(scratch / "copied"))
    finally:
        failpoints.install(None)
    return reached


def merge_rows(directory: Path) -> None:
    """Put the rows of all runs together, however few they are."""
    with patch.multiple(merging, LEAST_SEGMENTS=1, _WHOLE_BYTES=0), Service.open(directory) as service:
        with service._catalog.read() as snapshot:
            names = [name for uid in snapshot.run_uids("") for name in snapshot.series_below(uid)]
        assert sum(map(service.merger.merge_series, names))


def leave_and_take_over(writer: FaultyWriter, service: FaultyService, run: int, ledger: Path, seen: Path) -> None:
    """Kill an acquisition when it has written most of a run, and let another process send what it left."""
    left = writer.start(service.url, [(run, 100)], pause=0.001, segment_bytes=2000, seen=seen)
    with Ledger(ledger) as book:
        book.reload_until(lambda: any(known.run == run and known.journaled > 90 for known in book.runs.values()))
    left.kill()
    assert writer.start(service.url, [], flush=90.0, seen=seen).wait() == 0


def test_each_failpoint_is_reached(fork_server, tmp_path, seed):
    """A name that no fault test reaches is a place that nobody has seen fail."""
    seen, report = tmp_path / "seen", FaultReport("reached", seed)
    fail_service_at(fork_server, tmp_path / "service", report, {}, seen=seen)
    with FaultyService(fork_server, tmp_path / "store") as service:
        writer = FaultyWriter(
            fork_server, journal=tmp_path / "journal", ledger=tmp_path / "ledger", seed=seed, log=tmp_path / "log"
        )
        service.start()
        for run in range(1, 20):  # which of them come before the end of a process, and which in the next, is not sure
            leave_and_take_over(writer, service, run, tmp_path / "ledger", seen=seen)
            if set(WRITER_PLACES) <= set(seen.read_text().split()):
                break
        reached = back_up_and_write_parts(service.directory, tmp_path)
    missing = set(PLACES) - set(seen.read_text().split()) - reached
    assert not missing, f"never reached: {sorted(missing)}; give `fail_service_at` or the writer something that does"
    assert len(PLACES) > 20


# --- each system call that writes --------------------------------------------------------------------------

SMALL_RUN = {"run": RUN, "size": 46, "batch": 6}  # 60 documents
SMALL_ARRAY = {"run": RUN, "size": 3, "batch": 0}


def store_traced(
    fork_server: ForkServer, scratch: Path, seed: int, what: dict[str, int], inject: str | None, **environment: str
) -> Path:
    """Have a process store something while its system calls are traced; return what strace wrote."""
    scratch.mkdir()
    options = {"directory": str(scratch / "store"), "ledger": str(scratch / "ledger"), "seed": seed, **what}
    child = fork_server.spawn("store", options, log=scratch / "log", environment=environment)
    child.until("event")
    try:
        with traced(child, scratch / "calls", inject):
            child.wait()
    finally:
        child.signal(signal.SIGKILL)
    return scratch / "calls"


def compare_after(fork_server: ForkServer, scratch: Path, seed: int, report: FaultReport) -> None:
    """Check what a process left whose call failed, start a service on it, and check that too."""
    load = Load(seed)
    with Ledger(scratch / "ledger") as ledger, FaultyService(fork_server, scratch / "store") as service:
        found = check_disk(service.directory, ledger, load, deep=True)
        report.count(found)
        found.require_none()
        service.start()
        found = check_api(HttpTransport(service.url, KEY), ledger, load)
        report.count(found, acknowledged=False)
        found.require_none()
        require_second_restart_changes_nothing(service)
    report.cycles += 1


def points_of(fork_server: ForkServer, scratch: Path, seed: int, what: dict[str, int]) -> list[tuple[str, int]]:
    """Return each writing call of a process that stores something: (name, how many before it and itself)."""
    calls = calls_in(store_traced(fork_server, scratch, seed, what, None))
    return [(name, number) for name, count in sorted(calls.items()) for number in range(1, count + 1)]


@pytest.fixture
def strace():
    if not is_available():
        pytest.skip("strace is not installed, or may not trace here")


@pytest.mark.faults_long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("what", [SMALL_RUN, SMALL_ARRAY], ids=["run", "array"])
@pytest.mark.parametrize("action", ["signal=KILL", "error=EIO"])
def test_a_store_whose_process_fails_at_any_writing_call_is_whole(
    fork_server, tmp_path, seed, cycles, fault_report, strace, action, what
):
    report = fault_report(f"F02 {action} at each writing system call ({'run' if what['batch'] else 'array'})")
    points = points_of(fork_server, tmp_path / "counted", seed, what)
    chosen = random.Random(seed).sample(points, min(len(points), cycles(25, 10**6)))
    for call, number in chosen:
        scratch = tmp_path / f"{call}-{number}"
        store_traced(fork_server, scratch, seed, what, f"{call}:{action}:when={number}")
        compare_after(fork_server, scratch, seed, report)
    report.notes["calls"] = len(points)


def test_a_broken_store_is_found_at_a_writing_call(fork_server, tmp_path, seed, strace):
    report = FaultReport("control", seed)
    writes = dict(points_of(fork_server, tmp_path / "counted", seed, SMALL_RUN))["pwrite64"]

    def fail_often() -> None:
        for number in range(writes // 2, writes, 7):
            scratch = tmp_path / str(number)
            inject = f"pwrite64:signal=KILL:when={number}"
            store_traced(fork_server, scratch, seed, SMALL_RUN, inject, FLYSTORE_BROKEN="commit-twice")
            compare_after(fork_server, scratch, seed, report)

    with pytest.raises(FaultFound):
        fail_often()


@pytest.mark.parametrize("place", sorted({*PART_PLACES, "disk.before_rename", "disk.after_rename"}))
def test_a_part_whose_write_fails_is_the_old_or_the_new_one(tmp_path, place):
    parts = PartStore(tmp_path)
    parts.create("node")
    parts.write("node", "part.zip", b"old")
    failpoints.install(Handler({place: "error"}))
    try:
        with pytest.raises(SyncFailed):
            parts.write("node", "part.zip", b"new")
    finally:
        failpoints.install(None)
    path = PartStore(tmp_path).path("node", "part.zip")
    assert path is not None
    assert path.read_bytes() in (b"old", b"new")
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".writing")] == []
