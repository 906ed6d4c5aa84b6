"""F10: a sync of the service's disk fails.

If these fail, the service goes on acknowledging what its disk has dropped: after a failed sync the kernel may call the
next one a success without the data.
"""

import random
import re
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from flystore.model.errors import Unavailable
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
)
from flystore.testing.faults.roles import BROKEN_VARIABLE
from flystore.testing.faults.storing import bodies_of
from flystore.testing.faults.syscalls import is_available, traced
from flystore.wire import HttpTransport

pytestmark = pytest.mark.skipif(not is_available(), reason="strace is not installed, or may not trace here")

RUN, EVENTS, BATCH = 1, 48, 6
SYNCS = ("fsync", "fdatasync")
LEDGER_CALL = "writev"
_REDUNDANT = re.compile(r" fdatasync\([0-9]+<[^>]*/store>\)")


def sync_failing_at(
    fork_server: ForkServer, place: Path, seed: int, which: tuple[str, int] | None, broken: tuple[str, ...] = ()
) -> tuple[list[str], Ledger]:
    """Store a run with one sync failing; return the calls that were made, and the ledger.

    Parameters
    ----------
    which : (str, int) or None
        Name of the call, and its number among the calls of that name; None lets no sync fail.
    """
    place.mkdir()
    options = {
        "directory": str(place / "store"),
        "ledger": str(place / "ledger"),
        "seed": seed,
        "run": RUN,
        "events": EVENTS,
        "batch": BATCH,
        "checkpoint_bytes": 0,
    }
    environment = {BROKEN_VARIABLE: ",".join(broken)}
    child = fork_server.spawn("stubborn", options, log=place / "log", environment=environment)
    inject = None if which is None else f"{which[0]}:error=EIO:when={which[1]}"
    try:
        child.until("event")
        with traced(child, place / "calls", inject, also=[LEDGER_CALL]):
            child.wait()
    finally:
        child.kill()
    return (place / "calls").read_text(errors="replace").splitlines(), Ledger(place / "ledger")


def acknowledged_after(calls: list[str]) -> tuple[bool, int]:
    """Return whether a sync failed, and how many acknowledgements the ledger got after that.

    SQLite syncs the directory with ``fdatasync`` when it begins a log, and does not look at the answer. The service
    has synced it before, with ``fsync``, and did look: that one is redundant and may fail.
    """
    injected = [place for place, call in enumerate(calls) if "(INJECTED)" in call]
    failed = next((place for place in injected if not _REDUNDANT.search(calls[place])), None)
    if failed is None:
        return bool(injected), 0
    return True, sum(r"[\"acknowledged\"" in call for call in calls[failed:] if f" {LEDGER_CALL}(" in call)


def fail_each_sync(
    fork_server: ForkServer,
    scratch: Path,
    report: FaultReport,
    chosen: list[tuple[str, int]],
    broken: tuple[str, ...] = (),
) -> None:
    load = Load(report.seed)
    documents = load.documents(RUN, EVENTS)
    unreached: list[str] = []
    for name, number in chosen:
        place = scratch / f"{name}-{number}"
        calls, ledger = sync_failing_at(fork_server, place, report.seed, (name, number), broken)
        with ledger:
            failed, after = acknowledged_after(calls)
            if not failed:
                # A checkpoint that meets a reader in another thread puts off what it would have synced.
                unreached.append(f"{name} {number}: {(place / 'log').read_text()[-500:]}")
                continue
            findings = Findings()
            if after:
                findings.add("lost", after, f"{after} acknowledgements after {name} {number} had failed")
            report.count(findings)
            findings.require_none()
            on_disk = check_disk(place / "store", ledger, load, deep=True)
            report.count(on_disk)
            on_disk.require_none()
            # Started anew, it takes what it refused; what it had is found again.
            uid = load.uid(RUN)
            began = time.monotonic()
            with Service.open(place / "store") as service:
                report.recovery.append(time.monotonic() - began)
                for first, body in bodies_of(documents, range(BATCH, len(documents), BATCH)):
                    assert service.ingest.batch(uid, first, 1, body).watermark >= first
            ledger.begun(uid, RUN, EVENTS)
            ledger.sent(uid, len(documents))
            ledger.acknowledged(uid, len(documents))
            findings = check_disk(place / "store", ledger, load, deep=True)
            report.count(findings, acknowledged=False)
            findings.require_none()
        report.cycles += 1
    assert len(unreached) <= len(chosen) // 2, f"not reached: {unreached}"


@pytest.fixture
def syncs(fork_server, tmp_path, seed) -> list[tuple[str, int]]:
    """Return every sync that storing the run takes: the name of the call, and its number among those."""
    calls, ledger = sync_failing_at(fork_server, tmp_path / "dry", seed, None)
    ledger.close()
    # strace counts for each thread by itself, and fails the call with this number in all.
    counts = Counter(tuple(call.split("(")[0].split()) for call in calls)
    most = {name: max(count for (_, *of), count in counts.items() if of == [name]) for name in SYNCS}
    found = [(name, number) for name, count in most.items() for number in range(1, count + 1)]
    assert len(found) > 40
    return found


@pytest.mark.timeout(3000)
def test_after_a_failed_sync_nothing_is_acknowledged_and_a_restart_mends_it(
    fork_server, tmp_path, seed, cycles, fault_report, syncs
):
    report = fault_report("F10 failed sync")
    report.notes["of so many syncs"] = len(syncs)
    chosen = random.Random(seed).sample(syncs, min(cycles(12, len(syncs)), len(syncs)))
    fail_each_sync(fork_server, tmp_path, report, sorted(chosen))
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


def test_a_service_that_trusts_the_next_sync_is_found(fork_server, tmp_path, seed, syncs):
    report = FaultReport("control", seed)
    with pytest.raises(FaultFound, match="acknowledgements after"):
        fail_each_sync(fork_server, tmp_path, report, syncs[len(syncs) // 4 :][:8], broken=("sync-trusted-again",))


@pytest.mark.timeout(600)
def test_a_served_store_whose_sync_failed_is_read_and_takes_all_after_a_restart(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F10 failed sync, served")
    rng = random.Random(seed)
    with FaultyService(fork_server, tmp_path / "store") as service:
        service.start()
        with Acquisition(service.url, tmp_path, seed) as acquisition:
            acquisition.begin(1, 20)
            acquisition.finish()
            for _ in range(cycles(2, 30)):
                report.cycles += 1
                fail_one_served_sync(service, acquisition, tmp_path / f"calls-{report.cycles}", rng)
                report.count(check_disk(service.directory, acquisition.ledger, acquisition.load))
                began = time.monotonic()
                service.start()
                report.recovery.append(time.monotonic() - began)
                acquisition.finish()
                with closing(HttpTransport(service.url, KEY)) as transport:
                    uids = list(acquisition.ledger.runs)[-2:]
                    found = check_api(transport, acquisition.ledger, acquisition.load, uids)
                report.count(found, acknowledged=False)
                found.require_none()
    assert (report.lost, report.doubled, report.phantom, report.half) == (0, 0, 0, 0), report.line()


def require_more_refusals(acquisition: Acquisition, uids: list[str], count: int) -> None:
    """Wait until the writer has tried so many times more."""
    runs = acquisition.ledger.runs
    tried = sum(runs[uid].unknown for uid in uids)
    assert acquisition.ledger.reload_until(lambda: sum(runs[uid].unknown for uid in uids) >= tried + count)


def fail_one_served_sync(service: FaultyService, acquisition: Acquisition, calls: Path, rng: random.Random) -> None:
    """Let a sync fail while runs come in; return once the service has refused, was read, and was ended."""
    inject = f"{','.join(SYNCS)}:error=EIO:when={rng.randint(1, 4)}"
    with traced(service, calls, inject), closing(HttpTransport(service.url, KEY)) as transport:
        uids = acquisition.begin(2, 40)
        until = time.monotonic() + 100
        while (said := read_only(transport)) is None and time.monotonic() < until:
            acquisition.join()
            uids += acquisition.begin(1, 20)
        assert said is not None
        acquisition.join()
        uids += acquisition.begin(1, 20)  # of this one nothing is stored
        acquisition.join()
        # One request after the other: when two more were refused, all that came before has been answered.
        require_more_refusals(acquisition, uids, 2)
        acknowledged = {uid: acquisition.ledger.runs[uid].acknowledged for uid in uids}
        require_more_refusals(acquisition, uids, 3)
        assert {uid: acquisition.ledger.runs[uid].acknowledged for uid in uids} == acknowledged
        check_api(transport, acquisition.ledger, acquisition.load, list(acquisition.ledger.runs)[:1]).require_none()
    service.kill()


def read_only(transport: HttpTransport) -> str | None:
    """Return what the service says of itself if it stores nothing any more."""
    try:
        transport.request("GET", "/healthz")
    except Unavailable as error:
        return str(error) if '"status":"read-only"' in str(error) else None
    return None
