"""A plan that must wait for a row waits for that row, and not longer.

If these fail, an adaptive scan decides on data that is not there yet, or hangs.
"""

import threading
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import Conflict, DeadlineExceeded, InvalidRequest, NotFound
from flystore.testing.ingest_server import IngestServer
from flystore.testing.journals import event
from flystore.writer._positions import MAX_RUNS, SeqNums, StreamPositions

START = ("start", {"uid": "run-1", "time": 1.0, "scan_id": 7})
DESCRIPTOR = ("descriptor", {"uid": "d-1", "run_start": "run-1", "name": "primary", "data_keys": {}})


@pytest.fixture
def writer(make_writer, server):
    writer = make_writer(server.url, linger=1e6)
    writer(*START)
    writer(*DESCRIPTOR)
    return writer


@pytest.mark.parametrize("until", ["durable", "readable"])
def test_a_row_is_stored_when_wait_returns(writer, server, until):
    for number in range(1, 6):
        writer("event", event(number))
        writer.wait("run-1", number, until=until, timeout=60)
        assert server.store.documents("run-1")[-1] == ("event", event(number))


def test_waiting_for_an_earlier_row_does_not_need_the_later_ones(make_writer):
    with IngestServer(max_body_bytes=2000) as server:
        writer = make_writer(server.url)
        writer(*START)
        writer(*DESCRIPTOR)
        writer("event", event(1))
        writer("event", {**event(2), "note": "x" * 5000})
        writer.wait("run-1", 1, timeout=60)
        with pytest.raises(Exception, match="are more than 2000"):
            writer.wait("run-1", 2, timeout=60)


def test_waiting_for_a_row_that_is_not_there_yet_ends_when_it_comes(writer):
    waiting = threading.Event()
    failed = []

    def wait():
        waiting.set()
        try:
            writer.wait("run-1", 1, timeout=60)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    writer("event", event(1))
    thread.join(60)
    assert not thread.is_alive()
    assert failed == []


def test_waiting_for_a_stream_of_files_waits_for_every_detector(writer, server):
    for number, source in enumerate(("file-a", "file-b")):
        writer("stream_resource", {"uid": source, "run_start": "run-1"})
        writer(
            "stream_datum",
            {
                "uid": f"{source}/0",
                "stream_resource": source,
                "descriptor": "d-1",
                "seq_nums": {"start": 1, "stop": 11},
                "indices": {"start": 0, "stop": 10},
            },
        )
        writer.wait("run-1", 5, timeout=60)
        assert len(server.store.documents("run-1")) == 4 + 2 * number


def test_a_retaken_row_is_waited_for_as_it_was_taken_last(writer, server):
    for number in (1, 2, 3):
        writer("event", event(number))
    writer.wait("run-1", 3, timeout=60)
    writer("event", {**event(2), "uid": "again"})
    writer.wait("run-1", 2, timeout=60)
    assert server.store.documents("run-1")[-1][1]["uid"] == "again"


def test_the_deadline_is_kept_and_says_what_was_waited_for(make_writer, server):
    server.hold.set()
    writer = make_writer(server.url)
    writer(*START)
    writer(*DESCRIPTOR)
    writer("event", event(1))
    with pytest.raises(DeadlineExceeded, match=r"row 1 of scan 7, primary: not within 0\.05 s"):
        writer.wait("run-1", 1, timeout=0.05)
    with pytest.raises(TimeoutError):
        writer.flush(0.05)
    server.release()


def test_no_time_at_all_and_all_the_time_in_the_world_are_times(make_writer, server):
    server.hold.set()
    writer = make_writer(server.url)
    writer(*START)
    writer(*DESCRIPTOR)
    writer("event", event(1))
    with pytest.raises(DeadlineExceeded):
        writer.wait("run-1", 1, timeout=0)
    threading.Timer(0.05, server.release).start()
    writer.wait("run-1", 1, timeout=float("inf"))
    writer.wait("run-1", 1, timeout=0)  # it is there
    writer.wait("run-1", 1, timeout=None)
    writer.close(float("inf"))


def test_waiting_for_a_run_that_is_parked_raises_why(writer, server):
    server.fail_next(Conflict("the run was deleted"))
    writer("event", event(1))
    with pytest.raises(Conflict, match="deleted"):
        writer.wait("run-1", 1, timeout=60)


def test_flush_returns_as_soon_as_nothing_is_left(make_writer, server):
    for _ in range(5):
        writer = make_writer(server.url)
        writer.flush()  # for ever, if something were left
        writer.close()


def test_an_unknown_run_or_promise_is_refused(writer):
    with pytest.raises(NotFound, match="run-9"):
        writer.wait("run-9", 1)
    with pytest.raises(InvalidRequest, match="until"):
        writer.wait("run-1", 1, until="perhaps")


def test_a_stream_that_is_not_there_is_waited_for_until_the_deadline(writer):
    with pytest.raises(DeadlineExceeded, match="baseline"):
        writer.wait("run-1", 1, stream="baseline", timeout=0.05)


rows = st.lists(st.tuples(st.sampled_from(["next", "next", "next", "again", "page"]), st.integers(1, 4)), max_size=120)


@given(rows)
def test_positions_are_those_of_the_last_document_with_the_row(steps):
    positions, truth, ordinal, seq_num = StreamPositions(), {}, 2, 0
    for what, step in steps:
        ordinal += step
        if what == "page":
            numbers = list(range(seq_num + 1, seq_num + 1 + step))
            positions.note_page(numbers, ordinal)
            seq_num += step
        else:
            seq_num = max(1, seq_num - step) if what == "again" else seq_num + 1
            numbers = [seq_num]
            positions.events.add(seq_num, ordinal)
        truth.update(dict.fromkeys(numbers, ordinal))
    for number in range(1, seq_num + 10):
        assert positions.last_with(number) == truth.get(number)


def test_a_long_scan_costs_no_memory():
    positions = SeqNums()
    for number in range(1, 100_001):
        positions.add(number, 2 + 3 * number)
    assert len(positions._runs) == 1
    assert positions.last_with(77_777) == 2 + 3 * 77_777


@pytest.mark.parametrize("seed", range(10))
def test_irregular_steps_stay_bounded_and_are_only_ever_too_careful(seed):
    random, positions, truth, ordinal = Random(seed), SeqNums(), {}, 0
    for number in range(1, 5 * MAX_RUNS):
        ordinal += random.randint(1, 9)
        positions.add(number, ordinal)
        truth[number] = ordinal
    assert len(positions._runs) <= MAX_RUNS
    assert all(positions.last_with(number) >= truth[number] for number in truth)
    assert positions.last_with(number) == ordinal
