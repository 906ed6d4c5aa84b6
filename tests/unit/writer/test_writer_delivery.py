"""What is parked or left behind can be sent at somebody's command, and nothing is lost where it cannot.

If these fail, a run that was refused once, or meant for a service that moved, is never stored.
"""

import threading

import pytest
from test_writer_shipping import DESCRIPTOR, START, scan, wait_until

from flystore.journal import Journal, identity, journals, look_at, orphans
from flystore.journal import _log as log_module
from flystore.model.errors import Conflict, Unauthenticated, Unavailable
from flystore.testing.ingest_server import IngestServer
from flystore.testing.journals import abandoned, event, frame_offsets, segment_files
from flystore.writer import deliver


def test_orphans_are_sent_and_gone(server, home):
    paths = [abandoned(home, 30, uid=f"run-{number}", target=server.url) for number in range(3)]
    seen = []
    done = deliver(paths, server.url, tell=lambda delivery: seen.append((delivery.stored, delivery.total)))
    assert (done.stored, done.total, done.left) == (90, 90, [])
    assert seen[-1] == (90, 90)
    assert [len(server.store.documents(f"run-{number}")) for number in range(3)] == [30, 30, 30]
    assert list(home.iterdir()) == []


def test_a_service_that_is_away_leaves_all_in_place(home, unused_port):
    url = f"http://127.0.0.1:{unused_port()}"
    path = abandoned(home, 30, target=url)
    done = deliver([path], url, patience=0.0)
    assert (done.stored, done.total) == (0, 30)
    assert "30 documents not stored" in done.left[0]
    assert orphans(home) == [path]


def test_a_service_that_comes_in_time_gets_it(home, unused_port):
    port = unused_port()
    path = abandoned(home, 30, target=f"http://127.0.0.1:{port}")
    with IngestServer(port=port) as server:
        server.hold.set()
        threading.Timer(0.8, server.release).start()
        assert deliver([path], server.url, patience=60.0).left == []


def test_a_refused_run_is_named_with_the_reason_and_the_others_are_stored(server, home):
    paths = [abandoned(home, 30, uid=f"run-{number}", target=server.url) for number in range(2)]
    server.fail_next(Conflict("the run was deleted"))
    done = deliver(paths, server.url)
    assert done.stored == 30
    (sentence,) = done.left
    assert "run-0 is parked: conflict: the run was deleted" in sentence
    (path,) = orphans(home)
    assert look_at(path).runs[0].parked == "conflict: the run was deleted"
    assert deliver([path], server.url).left == []  # tried again
    assert journals(home) == []


def test_damage_is_named_and_what_precedes_it_is_stored(server, home):
    path = abandoned(home, 30, target=server.url)
    (file,) = segment_files(path)
    content = bytearray(file.read_bytes())
    content[frame_offsets(file)[20] + 12] ^= 1
    file.write_bytes(content)
    done = deliver([path], server.url)
    assert done.stored == len(server.store.documents("run-1")) == 18
    assert f"{file}, segment 0, frame 19" in done.left[0]
    assert orphans(home) == [path]


def test_a_journal_that_is_held_is_left_to_its_writer(server, home):
    with Journal.create(home, target=server.url, reserve_bytes=0) as journal:
        assert "held by a living process" in deliver([journal.path], server.url).left[0]


def test_a_journal_can_be_sent_elsewhere_and_stays_redirected(server, home):
    path = abandoned(home, 30, target="http://gone:8000")
    server.fail_next(Conflict("not yet"))
    assert deliver([path], server.url, redirect=True).left != []
    assert identity(path).target == server.url
    assert deliver([path], server.url).left == []
    assert len(server.store.documents("run-1")) == 30


def test_a_wrong_address_redirects_nothing(home, unused_port):
    path = abandoned(home, 30, target="http://gone:8000")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for url in (f"http://127.0.0.1:{unused_port()}", "ftp://nowhere"):
        with pytest.raises(Unavailable):
            deliver([path], url, redirect=True)
    with IngestServer(api_key="secret") as server, pytest.raises(Unauthenticated):
        deliver([path], server.url, api_key="wrong", redirect=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_what_the_old_service_has_and_the_journal_has_not_is_said(server, home):
    journal = Journal.create(home, target="http://gone:8000", segment_bytes=700, reserve_bytes=0)
    from flystore.testing.journals import document_payloads

    log = journal.open_run("run-1")
    for payloads in document_payloads(60):
        log.append(payloads)
    log.acknowledge(40)
    journal.close()
    (sentence,) = deliver([journal.path], server.url, redirect=True).left
    assert "had acknowledged" in sentence
    assert look_at(journal.path).waiting == 20


def test_a_url_that_is_none_is_said(home):
    path = abandoned(home, 3, target="ftp://nowhere")
    assert "ftp" in deliver([path], "ftp://nowhere").left[0]
    assert orphans(home) == [path]


# -- a key that is revoked --------------------------------------------------------------------------


@pytest.fixture
def revoked(make_writer, home):
    """A service whose key was changed in the middle of a scan, and the writer, which has gone on."""
    with IngestServer(api_key="old") as server:
        writer = make_writer(server.url, api_key="old")
        writer(*START)
        writer(*DESCRIPTOR)
        writer("event", event(1))
        writer.wait("run-1", 1)
        server.api_key = "new"
        writer("event", event(2))
        wait_until(lambda: writer.status().parked)
        for number in range(3, 21):
            writer("event", event(number))
        yield server, writer


def numbers(server):
    return [doc["seq_num"] for name, doc in server.store.documents("run-1") if name == "event"]


def test_a_revoked_key_parks_and_the_plan_goes_on(revoked, caplog):
    server, writer = revoked
    (run,) = writer.status().parked
    assert run.parked == "no such key"
    assert run.journaled == 22
    assert look_at(writer.status().journal).runs[0].parked == "unauthenticated: no such key"
    said = [record.getMessage() for record in caplog.get_records("setup")]
    assert any("is not sent any more, and stays in the journal" in message for message in said)
    with pytest.raises(Unauthenticated):
        writer.wait("run-1", 20, timeout=60)
    assert numbers(server) == [1]


def test_when_the_key_is_good_again_parked_runs_are_sent(revoked):
    server, writer = revoked
    server.api_key = "old"
    assert writer.retry_parked() == 1
    writer.flush(60)
    assert numbers(server) == list(range(1, 21))
    assert look_at(writer.status().journal).runs[0].parked is None


def test_a_new_writer_with_the_new_key_sends_what_the_old_one_could_not(revoked, make_writer):
    server, writer = revoked
    writer.close()
    make_writer(server.url, api_key="new").flush(60)
    assert numbers(server) == list(range(1, 21))


def test_a_command_with_the_new_key_sends_what_the_writer_could_not(revoked, home):
    server, writer = revoked
    writer.close()
    assert "unauthenticated" in deliver(orphans(home), server.url, api_key="old").left[0]
    assert deliver(orphans(home), server.url, api_key="new").left == []
    assert numbers(server) == list(range(1, 21))
    assert journals(home) == []


def test_the_note_goes_when_the_run_goes_on(revoked, home, make_writer):
    server, writer = revoked
    writer.close()
    (path,) = orphans(home)
    assert look_at(path).runs[0].parked
    with Journal.take_over(path):
        assert look_at(path).runs[0].parked  # nothing was tried yet
    server.api_key = "new"
    server.max_body_bytes = 600
    other = make_writer(server.url, api_key="new", max_batch_bytes=300)
    wait_until(lambda: len(numbers(server)) > 1)
    wait_until(lambda: not list(path.glob("*.parked")))
    other.flush(60)
    assert numbers(server) == list(range(1, 21))


# -- ending while the disk hangs --------------------------------------------------------------------


def test_a_disk_that_hangs_in_a_sync_holds_up_neither_shipping_nor_closing(make_writer, server, monkeypatch):
    monkeypatch.setattr(log_module, "SYNC_PATIENCE_S", 0.05)
    begun, release = threading.Event(), threading.Event()
    real = log_module.datasync

    def datasync(descriptor):
        begun.set()
        release.wait()
        real(descriptor)

    monkeypatch.setattr(log_module, "datasync", datasync)
    try:
        writer = make_writer(server.url, sync_interval=1e-3)
        writer(*START)
        begun.wait()
        documents = scan(writer)[1:]
        for uid in ("run-2", "run-3"):
            writer("start", {"uid": uid})
            writer("stop", {"uid": f"stop-{uid}", "run_start": uid})
        writer.flush(60)
        assert server.store.documents("run-1")[1:] == [START, *documents]
        assert len(server.store.documents("run-3")) == 2
        writer.close(0.5)
        assert not release.is_set()  # it did not wait for the disk
    finally:
        release.set()
