"""F19: a store is backed up while it is written to, the backup is cut short or damaged, and restored.

If these fail, the one copy that is left after a disk died is half of a store, is missing what was acknowledged long
before it was made, or is taken for whole when it is not.
"""

import random
import signal
import time
from pathlib import Path
from typing import ClassVar

import pytest

from flystore.disk import failpoints
from flystore.model.errors import Damaged, FlystoreError, Misconfigured
from flystore.service import Service
from flystore.service.backup import MANIFEST, back_up, restore, verify_backup
from flystore.service.verifying import verify
from flystore.testing.faults import (
    Acquisition,
    FaultFound,
    FaultyService,
    Findings,
    Ledger,
    Load,
    broken,
    check_disk,
    points,
)
from flystore.testing.faults.ledger import Known
from flystore.testing.faults.roles import BROKEN_VARIABLE
from flystore.testing.faults.storing import array_key, store_array, store_run

EVENTS = 60


class Moment:
    """The ledger as it was: what a backup that begins now must hold."""

    arrays: ClassVar[dict] = {}

    def __init__(self, ledger):
        self.runs = {
            uid: Known(known.run, known.events, acknowledged=known.acknowledged) for uid, known in ledger.runs.items()
        }

    def close(self, ledger):
        """Note what was sent until the backup was made: it may hold no more."""
        for uid, known in ledger.runs.items():
            self.runs.setdefault(uid, Known(known.run, known.events)).sent = known.sent


def back_up_while_writing(fork_server, scratch, report, cycles):
    """Back up a service at random moments of a busy acquisition, restore, and compare with the ledger."""
    rng = random.Random(report.seed)
    with (
        FaultyService(fork_server, scratch / "store") as service,
        Acquisition(service.start().url if service.port == 0 else service.url, scratch, report.seed) as acquisition,
    ):
        for cycle in range(cycles):
            acquisition.begin(3, EVENTS, pause=0.01)
            time.sleep(rng.uniform(0.05, 0.5))
            if cycle == 0:  # so that the first one has something to hold
                acquisition.ledger.reload_until(
                    lambda: any(run.acknowledged for run in acquisition.ledger.runs.values())
                )
            moment = Moment(acquisition.ledger)
            target, restored = scratch / f"backup-{cycle}", scratch / f"restored-{cycle}"
            manifest = back_up(service.directory, target)
            moment.close(acquisition.ledger)
            began = time.monotonic()
            restore(target, restored)
            report.recovery.append(time.monotonic() - began)
            check_restored(restored, moment, acquisition, report)
            assert manifest.position > 0
            acquisition.finish()
            report.cycles += 1


def check_restored(directory, moment, acquisition, report):
    found = verify(directory, deep=True).damaged
    findings = check_disk(directory, moment, acquisition.load, deep=True)
    report.count(findings)
    findings.require_none()
    assert found == []


def test_a_backup_made_while_writing_is_a_state_that_was(fork_server, tmp_path, fault_report, cycles):
    report = fault_report("F19 backup while writing")
    back_up_while_writing(fork_server, tmp_path, report, cycles(4, 50))
    assert report.acknowledged > 0


def test_copying_the_file_as_it_lies_there_is_found_to_lose_what_was_acknowledged(fork_server, tmp_path, fault_report):
    report = fault_report("F19 control: catalogue copied as a file")
    with broken("backup-by-copy"), pytest.raises((FaultFound, FlystoreError, AssertionError)):
        back_up_while_writing(fork_server, tmp_path, report, 10)


# --- arrays that are made and deleted meanwhile ----------------------------------------------------------------


def small_store(directory, seed, runs=2):
    load = Load(seed)
    with Ledger(directory / "ledger") as ledger:
        for run in range(runs):
            store_run(directory / "store", ledger, load, run, 20, 10)
            store_array(directory / "store", ledger, load, run, 3)
    return load


def test_arrays_that_are_deleted_while_they_are_copied_are_left_out(tmp_path, seed):
    load = small_store(tmp_path, seed, runs=3)
    with Service.open(tmp_path / "store") as service:
        left = [array_key(load, run) for run in range(3)]

        def delete_one(name):
            if name == "backup.after_catalog" and left:
                service.nodes.delete((left.pop(),), recursive=False, external_only=False)

        failpoints.install(delete_one)
        try:
            manifest = back_up(tmp_path / "store", tmp_path / "backup")
        finally:
            failpoints.install(None)
    assert manifest.missing == []
    restore(tmp_path / "backup", tmp_path / "restored")
    assert verify(tmp_path / "restored", deep=True).damaged == []


def test_arrays_that_grow_while_they_are_copied_are_whole(tmp_path, seed):
    load = small_store(tmp_path, seed)
    key = (array_key(load, 0),)
    with Service.open(tmp_path / "store") as service:

        def grow(name):
            if name in ("backup.after_catalog", "backup.before_file"):
                shape = service.browse.entry(key).structure["shape"]
                body = load.array(0, 99, 64).tobytes()
                service.nodes.patch_array(key, body, offset=(shape[0],), shape=(64,), extend=True)

        failpoints.install(grow)
        try:
            back_up(tmp_path / "store", tmp_path / "backup")
        finally:
            failpoints.install(None)
    restore(tmp_path / "backup", tmp_path / "restored")
    assert verify(tmp_path / "restored", deep=True).damaged == []
    with Service.open(tmp_path / "restored") as service:
        shape = service.browse.entry(key).structure["shape"]
        assert len(service.arrays.read(key)) == 8 * shape[0]


# --- killed while it is made -----------------------------------------------------------------------------------


PLACES = [
    "backup.before_copy",
    "backup.after_catalog",
    "backup.before_file",
    "backup.after_file",
    "backup.before_manifest",
    "backup.after_manifest",
    "backup.after_rename",
]


def kill_while_backing_up(fork_server, directory, target, place, count, variant=""):
    """Return whether the backup was made; killed when a place is reached for the n-th time, it is whole or none."""
    environment = {points.VARIABLE: points.written({place: f"die@{count}"}), BROKEN_VARIABLE: variant}
    options = {"directory": str(directory), "target": str(target)}
    child = fork_server.spawn("backup", options, log=target.with_suffix(".log"), environment=environment)
    ended = child.wait()
    assert ended in (0, -signal.SIGKILL), child.log_tail()
    try:
        manifest, problems = verify_backup(target)
    except Misconfigured:
        assert not target.exists(), "there is a directory of the backup's name that is none"
        assert ended != 0
        return False
    assert problems == []
    assert manifest.position > 0
    return ended == 0


def test_a_backup_killed_at_any_place_is_whole_or_none(fork_server, tmp_path, seed, fault_report, cycles):
    report = fault_report("F19 backup killed at each place", unit="backups")
    small_store(tmp_path, seed, runs=1)
    for place in PLACES:
        for count in range(1, cycles(4, 100)):
            report.cycles += 1
            target = tmp_path / f"{place}-{count}"
            if kill_while_backing_up(fork_server, tmp_path / "store", target, place, count):
                break
        assert count > 1, f"{place} was not reached"
    restore(tmp_path / f"{PLACES[0]}-2", tmp_path / "restored")
    assert verify(tmp_path / "restored", deep=True).damaged == []


def test_a_backup_made_under_its_own_name_is_found_to_be_taken_for_whole(fork_server, tmp_path, seed):
    small_store(tmp_path, seed, runs=1)
    with pytest.raises(AssertionError):
        kill_while_backing_up(
            fork_server, tmp_path / "store", tmp_path / "backup", "backup.before_file", 2, "backup-without-rename"
        )


# --- damaged after it was made ---------------------------------------------------------------------------------


HOW = ("flip", "cut", "remove", "add")


def spoil_a_file(rng, backup, how):
    """Flip a bit of a file of the backup, cut it, remove it, or add one; return a function that mends it."""
    path = rng.choice(sorted(path for path in backup.rglob("*") if path.is_file()))
    content = path.read_bytes()
    match rng.choice(how):
        case "flip":
            place = rng.randrange(8 * len(content))
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            path.write_bytes(changed)
        case "cut":
            path.write_bytes(content[: rng.randrange(len(content))])
        case "remove":
            path.unlink()
        case "add":
            extra = backup / "store" / "arrays" / "extra"
            extra.write_bytes(b"x")
            return extra.unlink
    return lambda: path.write_bytes(content)


def damage_backup(backup, scratch, report, rng, cycles, how=HOW):
    """Damage a backup in one place at a time: verify and restore refuse it, and nothing is restored."""
    for cycle in range(cycles):
        mend = spoil_a_file(rng, backup, how)
        target = scratch / f"restored-{cycle}"
        try:
            with pytest.raises((Damaged, Misconfigured)):
                restore(backup, target)
            assert not target.exists()
            assert not list(scratch.glob(".partial-*"))
            if (backup / MANIFEST).exists():
                assert verify(backup).damaged
        finally:
            mend()
        report.cycles += 1


@pytest.fixture
def backup(tmp_path, seed):
    small_store(tmp_path, seed)
    back_up(tmp_path / "store", tmp_path / "backup")
    return tmp_path / "backup"


def test_a_damaged_backup_is_never_restored(backup, tmp_path, fault_report, seed, cycles):
    report = fault_report("F19 backup damaged", unit="backups")
    damage_backup(backup, tmp_path, report, random.Random(seed), cycles(60, 2_000))
    assert verify(backup, deep=True).damaged == []


def test_without_checksums_a_damaged_backup_is_found_to_be_restored(backup, tmp_path, fault_report, seed, monkeypatch):
    from flystore.service import backup as made

    report = fault_report("F19 control: checksums of the backup not compared", unit="backups")
    monkeypatch.setattr(made, "verify_backup", lambda path: (made.read_manifest(path), []))
    monkeypatch.setattr(made.StoredFile, "__eq__", lambda self, other: True)
    monkeypatch.setattr(made.StoredFile, "__ne__", lambda self, other: False)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        damage_backup(backup, tmp_path, report, random.Random(seed), 40, ["flip"])


def test_findings_of_the_checker_are_not_empty_by_themselves(tmp_path, seed):
    """The oracle itself: a restored store that lacks a run is found to lack it."""
    load = small_store(tmp_path, seed)
    back_up(tmp_path / "store", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.begun(load.uid(7), 7, 20)
        ledger.sent(load.uid(7), 3)
        ledger.acknowledged(load.uid(7), 3)
        found: Findings = check_disk(Path(tmp_path / "restored"), ledger, load)
    assert found.lost == 3
