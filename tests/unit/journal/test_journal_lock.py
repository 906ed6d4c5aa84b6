"""One holder a journal: the lock dies with its process, and an orphan has one taker.

If these fail, two processes send one run under two epochs, or nobody ever sends it.
"""

import os
import signal
import subprocess
import sys
import threading

import pytest

from flystore.journal import Journal, is_locked, journals, orphans
from flystore.model.errors import Conflict, Misconfigured
from flystore.testing.journals import TARGET, abandoned, document_payloads, read_documents

HOLD = """
import sys
from flystore.journal import Journal
from flystore.testing.journals import document_payloads
journal = Journal.create(sys.argv[1], target="http://127.0.0.1:8000", reserve_bytes=0, sync_interval=3600.0)
log = journal.open_run("run-1")
for payloads in document_payloads(100):
    log.append(payloads)
print(journal.path, flush=True)
sys.stdin.read()
"""


def test_a_journal_that_is_held_is_nobody_elses(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        journal.open_run("run-1").append(document_payloads(1)[0])
        assert is_locked(journal.path)
        assert orphans(tmp_path) == []
        with pytest.raises(Conflict, match="held by another"):
            Journal.take_over(journal.path)


def test_a_killed_writer_leaves_its_documents_to_the_next(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        path = child.stdout.readline().strip()
        assert is_locked(journals(tmp_path)[0])
        assert orphans(tmp_path) == []
        child.send_signal(signal.SIGKILL)
        child.wait(100)
    assert [str(found) for found in orphans(tmp_path)] == [path]
    with Journal.take_over(path) as taken:
        assert len(read_documents(taken.logs[0])) == 100


def test_of_many_takers_one_gets_an_orphan(tmp_path):
    path = abandoned(tmp_path, 10)
    taken, refused = [], []
    barrier = threading.Barrier(8)

    def take():
        barrier.wait()
        try:
            taken.append(Journal.take_over(path))
        except Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 7)
    assert taken[0].epoch == 2
    taken[0].close()


def test_a_forked_child_neither_keeps_the_lock_nor_writes(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0)
    log = journal.open_run("run-1")
    log.append(document_payloads(1)[0])
    log.sync()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"wrote"
        try:
            log.append(document_payloads(1)[0])
        except Misconfigured:
            answer = b"refused"
        os.write(write_end, answer)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == b"refused"
    os.waitpid(child, 0)
    assert is_locked(journal.path)
    assert log.append(document_payloads(1)[0]) == 1
    journal.close()
    assert not is_locked(journal.path)


def test_the_lock_outlives_no_parent_through_a_forked_child(tmp_path):
    script = HOLD.replace(
        "sys.stdin.read()",
        "import os, signal\nif os.fork() == 0:\n"
        "    print('forked', flush=True)\n    sys.stdin.read()\n    os._exit(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        path = child.stdout.readline().strip()
        assert child.stdout.readline() == "forked\n"
        child.wait(100)  # the parent; its child still waits for our end of the pipe
        assert [str(found) for found in orphans(tmp_path)] == [path]


def test_the_lock_file_says_who_holds_it(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        assert f"process {os.getpid()} on " in (journal.path / "lock").read_text()


def test_a_journal_that_nothing_was_written_to_leaves_nothing_behind(tmp_path):
    Journal.create(tmp_path, target=TARGET).close()
    assert os.listdir(tmp_path) == []
