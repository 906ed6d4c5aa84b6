"""A full disk is said aloud before a document is lost, and a run that it ends still ends.

If these fail, a plan goes on without its documents, or a stopped run stays open for ever.
"""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest

from flystore.journal import Journal
from flystore.journal import _log as log_module
from flystore.model.errors import JournalFull, Unavailable
from flystore.testing.journals import TARGET, abandoned, document_payloads, read_documents, segment_files

FILL = """
import json, os, sys
from pathlib import Path
from flystore.journal import Journal
from flystore.model.errors import JournalFull
from flystore.testing.journals import document_payloads, event, read_documents
from flystore.model import frames

home = Path(sys.argv[1])
journal = Journal.create(home, target="http://127.0.0.1:8000", reserve_bytes=64 * 1024)
log = journal.open_run("run-1")
other = journal.open_run("run-2")
other.append(document_payloads(1, "run-2")[0])
taken = 0
try:
    for payloads in document_payloads(100_000):
        log.append(payloads)
        taken += 1
except JournalFull as error:
    refusal = str(error)
said = {"taken": taken, "refusal": refusal, "oserror": isinstance(JournalFull("x"), OSError)}
stop = frames.FrameEncoder().encode("stop", {"uid": "s", "run_start": "run-1", "exit_status": "fail"})
said["stop"] = log.append(stop, last=True)
try:
    log.append(document_payloads(1)[0])
    said["after"] = "taken"
except JournalFull as error:
    said["after"] = str(error)
said["other_stop"] = other.append(stop, last=True)
said["warnings"] = journal.state().warnings
said["names"] = [name for name, _ in read_documents(log)][-2:]
said["count"] = len(read_documents(log))
log.end_run()
log.acknowledge(log.end)
said["removed"] = log.remove_if_done()
said["again"] = other.append(document_payloads(1, "run-2")[0])
said["warnings_after"] = journal.state().warnings
journal.close()
print(json.dumps(said))
"""


def run_on_a_small_disk(tmp_path, size="1m"):
    if shutil.which("unshare") is None:
        pytest.skip("a small disk needs `unshare`")
    mount = f'mount -t tmpfs -o size={size} none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, FILL],
        capture_output=True,
        text=True,
        timeout=100,
    )
    if "unshare failed" in result.stderr or "permission denied" in result.stderr.lower():
        pytest.skip(f"this machine mounts nothing for us: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_full_disk_raises_keeps_room_for_the_stops_and_recovers(tmp_path):
    said = run_on_a_small_disk(tmp_path)
    assert 1000 < said["taken"] < 100_000
    assert "disk is full" in said["refusal"]
    assert "Free some space" in said["refusal"]
    assert said["oserror"]
    assert said["stop"] == said["taken"]
    assert "reserve is used up" in said["after"]
    assert said["other_stop"] == 1
    assert any("only stop documents are taken" in warning for warning in said["warnings"])
    # Nothing torn lies between the last event that fitted and the stop.
    assert said["names"] == ["event", "stop"]
    assert said["count"] == said["taken"] + 1
    # Acknowledged files made room again.
    assert said["removed"]
    assert said["again"] == 2
    assert not any("only stop documents" in warning for warning in said["warnings_after"])


def test_a_file_size_limit_counts_as_full(tmp_path):
    script = FILL.split("said = ")[0] + "print(taken, len(read_documents(log)), refusal)\njournal.close()\n"
    result = subprocess.run(
        ["sh", "-c", f'ulimit -f 512; exec {sys.executable} -c "$0" {tmp_path}', script],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    taken, kept, refusal = result.stdout.split(" ", 2)
    assert int(taken) == int(kept) > 100
    assert "full" in refusal


class FailingWrites:
    """Lets `os.write` of the journal's files fail, after writing some of the bytes."""

    def __init__(self, monkeypatch, code, keep=0):
        self.code, self.keep, self.active = code, keep, False
        self.real = log_module.write_all
        monkeypatch.setattr(log_module, "write_all", self)

    def __call__(self, descriptor, data):
        if self.active:
            os.write(descriptor, data[: self.keep])
            raise OSError(self.code, os.strerror(self.code))
        self.real(descriptor, data)


@pytest.mark.parametrize("keep", [0, 3, 11])
def test_what_a_failed_write_left_is_taken_back(tmp_path, monkeypatch, keep):
    failing = FailingWrites(monkeypatch, errno.ENOSPC, keep)
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        log = journal.open_run("run-1")
        written = document_payloads(5)
        log.append(written[0])
        failing.active = True
        with pytest.raises(JournalFull):
            log.append(written[1])
        failing.active = False
        assert log.append(written[1]) == 1
        assert [name for name, _ in read_documents(log)] == ["start", "descriptor"]


def test_a_disk_that_fails_is_not_called_full(tmp_path, monkeypatch):
    failing = FailingWrites(monkeypatch, errno.EIO)
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        log = journal.open_run("run-1")
        log.append(document_payloads(1)[0])
        failing.active = True
        with pytest.raises(Unavailable, match="Input/output error"):
            log.append(document_payloads(2)[1])


def test_a_failed_sync_is_said_aloud_and_never_tried_again(tmp_path, monkeypatch, caplog):
    calls = []

    def fail(descriptor):
        calls.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(log_module, "datasync", fail)
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=3600.0) as journal:
        log = journal.open_run("run-1")
        log.append(document_payloads(1)[0])
        with caplog.at_level(logging.CRITICAL):
            assert log.sync() == 0
            assert log.sync() == 0
        log.append(document_payloads(2)[1])  # documents still go to the operating system
        assert (log.end, log.durable) == (2, 0)
        assert journal.state().durability == "lost: Input/output error"
        assert any("lost" in warning for warning in journal.state().warnings)
    assert len(calls) == 1
    assert len([record for record in caplog.records if record.levelno == logging.CRITICAL]) == 1


def test_what_a_killed_writer_left_is_synced_before_it_is_called_durable(tmp_path, monkeypatch, caplog):
    path = abandoned(tmp_path / "one", 3)
    synced = []

    def noting(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))

    with monkeypatch.context() as patched:
        patched.setattr(log_module, "datasync", noting)
        with Journal.take_over(path) as journal:
            assert synced == [str(file) for file in segment_files(path)]
            assert journal.logs[0].durable == journal.logs[0].end == 3

    def failing(number):
        raise OSError(errno.EIO, "Input/output error")

    path = abandoned(tmp_path / "two", 3)
    monkeypatch.setattr(log_module, "datasync", failing)
    with Journal.take_over(path) as journal:
        assert (journal.logs[0].durable, journal.logs[0].end) == (0, 3)
        assert journal.state().durability == "lost: Input/output error"
    assert "a sync of the journal" in caplog.text


def test_less_than_a_tenth_free_is_warned_about_once(tmp_path, monkeypatch, caplog):
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = real.f_blocks // 20  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        journal.space.check()
        assert any("less than a tenth" in warning for warning in journal.state().warnings)
    assert len([record for record in caplog.records if "is free" in record.getMessage()]) == 1


def test_the_reserve_holds_its_blocks_and_goes_with_the_journal(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=2**20) as journal:
        assert (journal.path / "reserve").stat().st_blocks * 512 >= 2**20
    assert os.listdir(tmp_path) == []
