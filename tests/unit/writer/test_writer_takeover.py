"""What a writer leaves, however it ended, the next one on the host sends: once, by one taker.

If these fail, the last minutes before a crash are lost, or stored twice.
"""

import signal
import subprocess
import sys
import threading

import pytest

from flystore.journal import Journal, orphans
from flystore.testing.ingest_server import IngestServer
from flystore.testing.journals import abandoned, document_payloads, event, frame_offsets, segment_files
from flystore.writer import RunWriter

WRITE = """
import sys, itertools
from flystore.writer import RunWriter
from flystore.testing.journals import event
url, home, uid = sys.argv[1:4]
writer = RunWriter(url, journal=home, linger=0.0, first_pause=0.01, longest_pause=0.05, reserve_bytes=0)
writer("start", {"uid": uid, "scan_id": 1})
writer("descriptor", {"uid": "d-" + uid, "run_start": uid, "name": "primary", "data_keys": {}})
for number in itertools.count(1):
    writer("event", event(number, descriptor="d-" + uid))
    print(number, flush=True)
"""


def write_until_killed(url, home, uid, events):
    """Run a writer in a process of its own and kill it after so many events; return the last it had taken."""
    child = subprocess.Popen([sys.executable, "-c", WRITE, url, str(home), uid], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= events:
                break
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")[:-1]
        child.wait(100)
    return max([int(line), *map(int, rest)])


def event_numbers(server, uid):
    return [doc["seq_num"] for name, doc in server.store.documents(uid) if name == "event"]


@pytest.mark.parametrize("events", [1, 50, 1500])
def test_a_writer_that_was_killed_loses_nothing_and_doubles_nothing(make_writer, server, home, events):
    taken = write_until_killed(server.url, home, "run-k", events)
    writer = make_writer(server.url)
    writer.flush(60)
    numbers = event_numbers(server, "run-k")
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) in (taken, taken + 1)  # it may have died between taking an event and saying so
    assert orphans(home) == []


def test_a_writer_killed_while_the_service_was_away_loses_nothing(make_writer, home, unused_port):
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    taken = write_until_killed(url, home, "run-k", 300)
    with IngestServer(port=port) as server:
        writer = make_writer(url)
        writer.flush(60)
        assert event_numbers(server, "run-k")[:taken] == list(range(1, taken + 1))


def test_the_next_process_sends_what_is_left_and_the_status_says_so(make_writer, server, home, unused_port):
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    taken = write_until_killed(url, home, "run-k", 10)
    writer = make_writer(url)
    until = threading.Event()
    for _ in range(6000):
        runs = writer.status().runs
        if runs:
            break
        until.wait(0.01)
    assert runs[0].adopted
    assert "left by an earlier writer" in repr(writer.status())
    with IngestServer(port=port) as back:
        writer.flush(60)
        assert len(event_numbers(back, "run-k")) >= taken


def test_of_writers_that_start_together_one_sends_an_orphan(server, home):
    from flystore.testing import journals as builders

    builders.abandoned(home, 200, uid="run-o")
    path = orphans(home)[0]
    # The orphan is meant for this service.
    retarget(path, server.url)
    writers = [RunWriter(server.url, journal=home, linger=0.0, reserve_bytes=0) for _ in range(5)]
    for writer in writers:
        writer.flush(60)
    for writer in writers:
        writer.close()
    run = server.store.runs["run-o"]
    assert len(run.documents) == 200
    assert run.epoch == 2
    assert sum(count for _, count in run.batches) == 200
    assert list(home.iterdir()) == []


def retarget(path, url):
    """Say that a journal is meant for another service."""
    from flystore.journal._journal import Identity, _write_identity

    _write_identity(path, Identity(url, 1))


def test_documents_for_another_service_are_left_alone_and_mentioned(make_writer, server, home):
    path = abandoned(home, 10)
    retarget(path, "http://elsewhere:8000")
    writer = make_writer(server.url)
    writer.flush(60)
    assert server.store.runs == {}
    assert any("http://elsewhere:8000" in warning for warning in writer.status().warnings)
    writer.close()
    assert orphans(home) == [path]


def test_damage_is_kept_and_what_precedes_it_is_sent(make_writer, server, home):
    path = abandoned(home, 50)
    retarget(path, server.url)
    (file,) = segment_files(path)
    content = bytearray(file.read_bytes())
    content[frame_offsets(file)[30] + 12] ^= 1
    file.write_bytes(bytes(content))
    writer = make_writer(server.url)
    writer.flush(60)
    (parked,) = writer.status().parked
    assert "frame 29" in parked.parked
    assert len(server.store.documents("run-1")) == 28  # the template is no document
    writer.close()
    assert file.exists()


def test_a_stale_writer_is_refused_after_its_journal_was_taken_over(make_writer, server, home, monkeypatch):
    """A stopped process that wakes up after a taker finished must not add to the run."""
    old = Journal.create(home, target=server.url, reserve_bytes=0)
    log = old.open_run("run-1")
    for payloads in document_payloads(10):
        log.append(payloads)
    old._lock.release()  # as if the lock had been lost with the file server
    taker = make_writer(server.url)
    taker.flush(60)
    assert server.store.runs["run-1"].epoch == 2
    from flystore.wire import HttpTransport
    from flystore.writer._options import ShippingOptions
    from flystore.writer._shipper import Shipper

    transport = HttpTransport(server.url)
    shipper = Shipper(transport, old, options=ShippingOptions(linger=0.0))
    log = old.open_run("run-1")
    shipper.take(log, "run-1")
    shipper.start()
    with pytest.raises(Exception, match=r"older than 2|cannot be read"):
        shipper.wait_for(shipper.all_stored, 60, lambda: "sending")
    shipper.stop(5)
    transport.close()
    old._sync.close()
    for one in old.logs:
        one.close()
    assert len(server.store.documents("run-1")) == 10


def test_a_process_that_ends_without_closing_has_sent_everything(server, home):
    script = WRITE.replace("itertools.count(1)", "range(1, 51)").replace("linger=0.0", "linger=5.0")
    script += 'writer("stop", {"uid": "s", "run_start": uid})\n'
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, str(home), "run-e"], capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert event_numbers(server, "run-e") == list(range(1, 51))
    assert list(home.iterdir()) == []


def test_a_process_that_ends_while_the_service_hangs_ends_all_the_same(server, home):
    server.hold.set()
    script = WRITE.replace("itertools.count(1)", "range(1, 51)")
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, str(home), "run-e"], capture_output=True, timeout=100
    )
    server.release()
    assert done.returncode == 0, done.stderr
    assert len(orphans(home)) == 1
    assert event(1)["seq_num"] == 1
