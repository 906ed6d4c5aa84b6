"""What is journaled reaches the service in the end, once and in order, whatever the service does.

If these fail, an outage loses or doubles documents, a refused run blocks the others, or the plan waits.
"""

import logging
import time
from itertools import pairwise

import pytest

from flystore.model.errors import (
    Conflict,
    ContentClash,
    Damaged,
    FlystoreError,
    InvalidRequest,
    NotPermitted,
    StaleEpoch,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from flystore.testing.ingest_server import IngestServer, IngestStore
from flystore.testing.journals import event

START = ("start", {"uid": "run-1", "time": 1.0, "scan_id": 7})
DESCRIPTOR = ("descriptor", {"uid": "d-1", "run_start": "run-1", "name": "primary", "data_keys": {}})
STOP = ("stop", {"uid": "s-1", "run_start": "run-1", "exit_status": "success"})


def scan(writer, events=20):
    documents = [START, DESCRIPTOR, *(("event", event(n)) for n in range(1, events + 1)), STOP]
    for name, doc in documents:
        writer(name, doc)
    return documents


def wait_until(condition, seconds=60.0):
    """Wait for a condition that no one signals, with a deadline."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def test_a_service_that_is_down_at_the_start_gets_everything_when_it_comes(make_writer, unused_port):
    port = unused_port()
    writer = make_writer(f"http://127.0.0.1:{port}")
    documents = scan(writer)
    wait_until(lambda: writer.status().connected is False)
    assert writer.status().runs[0].stored == 0
    with IngestServer(port=port) as server:
        writer.flush(60)
        assert server.store.documents("run-1") == documents
    assert writer.status().connected


def test_a_service_that_comes_and_goes_gets_everything_once(make_writer, unused_port):
    store, port = IngestStore(), unused_port()
    writer = make_writer(f"http://127.0.0.1:{port}", max_batch_bytes=300)
    writer(*START)
    writer(*DESCRIPTOR)
    for number in range(1, 101):
        if number % 20 == 1:
            server = IngestServer(store, port=port)
            server.__enter__()
            server.lose_next_reply()
        writer("event", event(number))
        if number % 20 == 10:
            wait_until(lambda: len(store.documents("run-1")) > 2)
            server.stop()
    with IngestServer(store, port=port):
        writer(*STOP)
        writer.flush(60)
    arrived = store.documents("run-1")
    assert [doc["seq_num"] for name, doc in arrived if name == "event"] == list(range(1, 101))


def test_a_lost_reply_stores_nothing_twice(make_writer, server):
    writer = make_writer(server.url)
    server.lose_next_reply(3)
    documents = scan(writer)
    writer.flush(60)
    assert server.store.documents("run-1") == documents
    assert any(count for _, count in server.store.runs["run-1"].batches[1:])


@pytest.mark.parametrize(
    "error",
    [Unavailable("starting"), FlystoreError("something new"), Damaged("broken on the way")],
    ids=lambda error: error.kind,
)
def test_what_may_pass_is_tried_again(make_writer, server, error):
    writer = make_writer(server.url)
    server.fail_next(error, 3)
    documents = scan(writer)
    writer.flush(60)
    assert server.store.documents("run-1") == documents
    assert writer.status().parked == ()


@pytest.mark.parametrize(
    "error",
    [
        Unauthenticated("no such key"),
        NotPermitted("not yours"),
        Conflict("the run was deleted"),
        ContentClash("another document", ordinal=0),
        StaleEpoch("taken over", epoch=9),
        InvalidRequest("makes no sense"),
    ],
    ids=lambda error: error.kind,
)
def test_what_cannot_pass_parks_the_run_and_keeps_it(make_writer, server, caplog, error):
    writer = make_writer(server.url)
    server.fail_next(error, 1)
    with caplog.at_level(logging.ERROR):
        documents = scan(writer)
        with pytest.raises(type(error), match=str(error)):
            writer.flush(60)
    (parked,) = writer.status().parked
    assert parked.uid == "run-1"
    assert str(error) in parked.parked
    assert "parked: " in repr(writer.status())
    assert [str(error) in record.getMessage() for record in caplog.records].count(True) == 1
    (note,) = writer.status().journal.glob("*.parked")
    assert note.read_text() == f"{error.kind}: {error}\n"
    assert server.store.documents("run-1") == []

    assert writer.retry_parked() == 1
    writer.flush(60)
    assert server.store.documents("run-1") == documents
    assert writer.status().parked == ()
    assert not note.exists()


def test_a_parked_run_does_not_stop_another(make_writer, server):
    writer = make_writer(server.url)
    server.fail_next(ContentClash("another document", ordinal=0))
    writer(*START)
    wait_until(lambda: writer.status().parked)
    writer("start", {"uid": "run-2"})
    writer("stop", {"uid": "s", "run_start": "run-2"})
    wait_until(lambda: len(server.store.documents("run-2")) == 2)
    assert server.store.documents("run-1") == []


def test_a_run_that_keeps_failing_does_not_stop_another(make_writer, server):
    writer = make_writer(server.url, first_pause=30.0, longest_pause=30.0)
    server.fail_next(FlystoreError("something new"))
    writer(*START)
    wait_until(lambda: writer.status().last_error == "something new")
    writer("start", {"uid": "run-2"})
    wait_until(lambda: len(server.store.documents("run-2")) == 1)


def test_a_real_clash_parks_and_stores_nothing_of_the_batch(make_writer, server):
    first = make_writer(server.url)
    scan(first)
    first.flush(60)
    first.close()
    second = make_writer(server.url)
    second("start", {**START[1], "sample": "another"})
    with pytest.raises(ContentClash):
        second.flush(60)
    assert server.store.documents("run-1")[0] == START


def test_after_a_gap_it_goes_on_where_the_service_is(make_writer, server):
    writer = make_writer(server.url)
    documents = [START, DESCRIPTOR, *(("event", event(n)) for n in range(1, 6))]
    for name, doc in documents:
        writer(name, doc)
    writer.flush(60)
    # The service was set back to an older state, from before the last three.
    run = server.store.runs["run-1"]
    for kept in (run.documents, run.digests):
        del kept[5:]
    writer("event", event(6, descriptor="d-1"))
    writer.flush(60)
    assert server.store.documents("run-1") == [*documents, ("event", event(6))]


def test_a_service_that_forgot_what_is_reclaimed_parks_the_run_in_words(make_writer, server):
    writer = make_writer(server.url, segment_bytes=1000, max_batch_bytes=1000)
    writer(*START)
    writer(*DESCRIPTOR)
    for number in range(1, 51):
        writer("event", event(number))
    writer.flush(60)
    del server.store.runs["run-1"]
    writer("event", event(51))
    with pytest.raises(Conflict, match="set back to an older state"):
        writer.flush(60)


def test_a_batch_that_is_too_large_is_sent_in_smaller_ones(make_writer, home):
    with IngestServer(max_body_bytes=700) as server:
        writer = make_writer(server.url)
        documents = scan(writer, events=100)
        writer.flush(60)
        assert server.store.documents("run-1") == documents


def test_a_single_document_that_is_too_large_parks(make_writer):
    with IngestServer(max_body_bytes=700) as server:
        writer = make_writer(server.url)
        writer("start", {**START[1], "note": "x" * 1000})
        with pytest.raises(TooLarge):
            writer.flush(60)


def test_a_wrong_key_is_seen_before_the_first_scan(make_writer, caplog):
    with IngestServer(api_key="secret") as server:
        writer = make_writer(server.url, api_key="another-key")
        wait_until(lambda: "does not accept this writer" in caplog.text)
        assert "no such key" in repr(writer.status())
        assert "another-key" not in repr(writer.status()) + repr(writer) + caplog.text


def test_a_key_in_the_url_works_and_is_written_nowhere(make_writer, home):
    with IngestServer(api_key="secret-123") as server:
        writer = make_writer(f"{server.url}/api/v1?api_key=secret-123")
        scan(writer)
        writer.wait("run-1", 20)
        contents = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert b"secret-123" not in contents
        assert "secret-123" not in repr(writer.status()) + repr(writer)
        writer.flush(60)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://somewhere",
        "http://",
        "http://host:port",
        "http://[::1",
        "http://u:secret@host:x/?api_key=secret",
    ],
)
def test_a_url_that_is_none_keeps_documents_and_says_so(make_writer, home, caplog, url):
    writer = make_writer(url)
    scan(writer)
    status = writer.status()
    assert status.runs[0].journaled == 23
    assert status.last_error is not None
    assert "nothing can be sent" in caplog.text
    writer.close()
    (path,) = home.iterdir()
    assert b"secret" not in b"".join(file.read_bytes() for file in path.iterdir())
    assert "api_key=secret" not in repr(status)


@pytest.mark.parametrize("where", [5, None, object()])
def test_something_that_is_no_service_is_refused(make_writer, where):
    with pytest.raises(InvalidRequest, match="RunWriter takes"):
        make_writer(where)


def test_a_client_brings_its_own_transport(make_writer, server):
    from flystore.wire import HttpTransport

    class Client:
        transport = HttpTransport(server.url)

    writer = make_writer(Client())
    documents = scan(writer)
    writer.flush(60)
    assert server.store.documents("run-1") == documents
    with pytest.raises(InvalidRequest, match="api_key"):
        make_writer(Client(), api_key="x")
    Client.transport.close()


def test_a_service_that_hangs_never_blocks_the_plan(make_writer, server):
    server.hold.set()
    writer = make_writer(server.url, request_timeout=60.0)
    writer(*START)
    writer(*DESCRIPTOR)
    for number in range(1, 5001):
        writer("event", event(number))
    status = writer.status()
    assert (status.runs[0].journaled, status.runs[0].stored) == (5002, 0)
    writer.close(0.1)
    assert server.hold.is_set()  # all that while nothing was answered
    server.release()


def test_a_writer_closed_while_a_request_hung_leaves_all_to_the_next(make_writer, server):
    server.hold.set()
    first = make_writer(server.url)
    documents = scan(first)
    first.close(0.05)
    server.release()
    second = make_writer(server.url)
    second.flush(60)
    assert server.store.documents("run-1") == documents


def test_a_request_that_is_never_answered_is_tried_again(make_writer, server):
    server.hold.set()
    writer = make_writer(server.url, request_timeout=0.2)
    documents = scan(writer)
    wait_until(lambda: sum(request.startswith("POST") for request in server.requests) >= 2)
    server.release()
    writer.flush(60)
    assert server.store.documents("run-1") == documents


def test_closing_while_the_service_is_away_does_not_wait_for_it(make_writer, caplog, unused_port):
    writer = make_writer(f"http://127.0.0.1:{unused_port()}", longest_pause=1e6, first_pause=1e6)
    scan(writer)
    with caplog.at_level(logging.WARNING):
        writer.close(1e6)  # more than any test may take
    assert "23 documents of 1 runs are journaled, not yet stored" in caplog.text


def test_closing_sends_what_is_left(make_writer, server, home):
    writer = make_writer(server.url, linger=60.0)
    documents = scan(writer)
    writer.close()
    assert server.store.documents("run-1") == documents
    assert list(home.iterdir()) == []
    writer.close()


def test_the_context_manager_closes(make_writer, server):
    with make_writer(server.url, linger=60.0) as writer:
        documents = scan(writer)
    assert writer.status().closed
    assert server.store.documents("run-1") == documents


def test_documents_are_collected_into_batches_unless_someone_waits(make_writer, server):
    writer = make_writer(server.url, linger=1e6)
    writer(*START)
    writer(*DESCRIPTOR)
    for number in range(1, 101):
        writer("event", event(number))
    assert server.store.documents("run-1") == []
    writer.wait("run-1", 100, timeout=60)
    assert len(server.store.runs["run-1"].batches) == 1


def test_a_backlog_goes_in_bounded_batches_that_follow_each_other(make_writer, home, unused_port):
    first = make_writer(f"http://127.0.0.1:{unused_port()}")
    documents = scan(first, events=1000)
    port = int(first.status().url.rpartition(":")[2])
    with IngestServer(port=port) as server:
        sizes = []
        real = server.store.ingest
        server.store.ingest = lambda *args: sizes.append(len(args[-1])) or real(*args)
        first.close(0)
        writer = make_writer(server.url, max_batch_bytes=2000)
        writer.flush(60)
        assert server.store.documents("run-1") == documents
        batches = server.store.runs["run-1"].batches
        assert all(later[0] == sum(earlier) for earlier, later in pairwise(batches))
        assert max(sizes) <= 2000
        assert len(batches) > 20


def test_a_transport_that_breaks_its_promise_is_survived(make_writer, server, caplog):
    from flystore.wire import HttpTransport

    class Breaking(HttpTransport):
        broken = 5

        def request(self, *args, **options):
            if self.broken:
                self.broken -= 1
                raise RuntimeError("not in the contract")
            return super().request(*args, **options)

    transport = Breaking(server.url)
    writer = make_writer(transport)
    documents = scan(writer)
    writer.flush(60)
    assert server.store.documents("run-1") == documents
    assert "not in the contract" in caplog.text
    writer.close()
    transport.close()


def test_the_verdict_of_the_service_is_logged_when_the_run_is_stored(make_writer, server, caplog):
    with caplog.at_level(logging.INFO, "flystore.writer"):
        writer = make_writer(server.url)
        scan(writer)
        writer.flush(60)
    assert "run run-1: 23 documents, stored [run-1]" in [record.getMessage() for record in caplog.records]
    (run,) = writer.status().runs
    assert run.verdict == "run run-1: 23 documents, stored"
    assert str(run) == "scan 7: 23/23 documents stored, stored"


def test_a_run_that_ends_while_the_service_is_away_is_said_to_wait(make_writer, caplog, unused_port):
    with caplog.at_level(logging.INFO, "flystore.writer"):
        writer = make_writer(f"http://127.0.0.1:{unused_port()}")
        scan(writer)
        wait_until(lambda: "journaled, not yet stored" in caplog.text)
    assert "scan 7: 23 documents, journaled, not yet stored" in caplog.text
    assert "journaled, not yet stored" in repr(writer.status())


def test_an_outage_is_logged_once_and_its_end_once(make_writer, caplog, unused_port):
    port = unused_port()
    with caplog.at_level(logging.INFO, "flystore.writer"):
        writer = make_writer(f"http://127.0.0.1:{port}")
        writer(*START)
        wait_until(lambda: writer._shipper._failures > 4)
        with IngestServer(port=port):
            writer.flush(60)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("cannot be reached" in message for message in messages) == 1
    assert sum("answers again" in message for message in messages) == 1


def test_something_that_is_no_flystore_service_is_not_taken_for_one(make_writer):
    from flystore.testing.serving import serving

    async def other(scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<html>log in</html>"})

    with serving(other, lifespan="off") as url:
        writer = make_writer(url)
        scan(writer)
        wait_until(lambda: writer.status().last_error is not None)
        status = writer.status()
        assert (status.runs[0].stored, status.parked, status.connected) == (0, (), False)
        assert "web page" in status.last_error
        writer.close(0)
