"""Documents are numbered, kept in order, and given out as the byte ranges that were written.

If these fail, documents are sent under wrong numbers: the service stores them twice, or never.
"""

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.journal import Journal
from flystore.model import frames
from flystore.model.errors import InvalidRequest, Misconfigured, OutOfBounds
from flystore.testing.journals import TARGET, document_payloads, event, read_documents, segment_files


@pytest.fixture
def journal(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0, segment_bytes=4096) as journal:
        yield journal


def test_documents_are_numbered_from_zero_and_templates_are_not_counted(journal):
    log = journal.open_run("run-1")
    ordinals = [log.append(payloads) for payloads in document_payloads(5)]
    assert ordinals == [0, 1, 2, 3, 4]
    assert log.end == 5
    assert sum(1 for _ in log.payloads()) == 6  # one template among them


def test_a_document_is_in_the_file_when_append_returns(journal):
    log = journal.open_run("run-1")
    payload = frames.FrameEncoder().encode("start", {"uid": "run-1"})
    log.append(payload)
    assert segment_files(journal.path)[0].read_bytes().endswith(frames.frame(payload[0]))


def test_what_is_read_back_is_what_was_appended_over_many_segments(journal):
    log = journal.open_run("run-1")
    for payloads in document_payloads(500):
        log.append(payloads)
    assert len(segment_files(journal.path)) > 5
    documents = read_documents(log)
    assert [name for name, _ in documents[:3]] == ["start", "descriptor", "event"]
    assert documents[2:] == [("event", event(number)) for number in range(1, 499)]


def test_a_document_larger_than_a_segment_gets_one_of_its_own(journal):
    log = journal.open_run("run-1")
    large = frames.FrameEncoder().encode("start", {"uid": "run-1", "note": "x" * 10_000})
    small = frames.FrameEncoder().encode("stop", {"uid": "s"})
    log.append(small)
    log.append(large)
    log.append(small)
    assert [ordinal for ordinal in range(3) if log.batch(ordinal, 1).count == 1] == [0, 1, 2]
    assert [file.stat().st_size > 10_000 for file in segment_files(journal.path)] == [False, True, False]


def test_several_documents_in_one_append_get_consecutive_ordinals(journal):
    log = journal.open_run("run-1")
    payloads = [payload for group in document_payloads(4) for payload in group]
    assert log.append(payloads) == 0
    assert log.append(document_payloads(1)[0]) == 4
    assert log.end == 5


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 200),
    max_bytes=st.integers(1, 10_000),
    segment_bytes=st.sampled_from([512, 4096, 2**20]),
)
def test_batches_of_any_size_put_together_are_the_documents_in_order(tmp_path_factory, count, max_bytes, segment_bytes):
    written = document_payloads(count)
    with Journal.create(
        tmp_path_factory.mktemp("home"), target=TARGET, reserve_bytes=0, segment_bytes=segment_bytes
    ) as journal:
        log = journal.open_run("run-1")
        for payloads in written:
            log.append(payloads)
        at, sent = 0, b""
        while (batch := log.batch(at, max_bytes)).count:
            documents = [p for _, p in frames.split_frames(batch.data) if frames.is_document(p)]
            assert batch.first_ordinal == at
            assert len(documents) == batch.count
            assert len(batch.data) <= max_bytes or batch.count == 1
            at, sent = batch.end, sent + batch.data
    assert at == count
    assert sent == b"".join(frames.frame(payload) for payloads in written for payload in payloads)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_batch_may_begin_at_any_document_and_holds_the_templates_in_between(tmp_path_factory, data):
    written = document_payloads(60)
    first = data.draw(st.integers(0, 59))
    with Journal.create(tmp_path_factory.mktemp("home"), target=TARGET, reserve_bytes=0) as journal:
        log = journal.open_run("run-1")
        for payloads in written:
            log.append(payloads)
        batch = log.batch(first, 2**20)
    assert batch.first_ordinal == first
    assert batch.data == b"".join(frames.frame(p) for payloads in written[first:] for p in payloads)


def test_a_batch_of_durable_documents_leaves_out_what_is_not_synced(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=3600.0) as journal:
        log = journal.open_run("run-1")
        for payloads in document_payloads(10):
            log.append(payloads)
        assert log.batch(0, 2**20, durable_only=True).count == 0
        log.sync()
        log.append(document_payloads(1)[0])
        assert log.batch(0, 2**20, durable_only=True).end == 10
        assert log.batch(0, 2**20).end == 11


def test_acknowledged_segments_are_deleted_oldest_first_and_unacknowledged_ones_never(journal):
    log = journal.open_run("run-1")
    for payloads in document_payloads(300):
        log.append(payloads)
    before = segment_files(journal.path)
    log.acknowledge(150)
    kept = segment_files(journal.path)
    assert 0 < len(kept) < len(before)
    assert kept == before[-len(kept) :]
    assert log.batch(150, 2**20).first_ordinal == 150
    log.acknowledge(300)
    assert len(segment_files(journal.path)) == 1  # the run may go on


def test_asking_for_what_was_reclaimed_says_what_is_left(journal):
    log = journal.open_run("run-1")
    for payloads in document_payloads(300):
        log.append(payloads)
    log.acknowledge(300)
    with pytest.raises(OutOfBounds, match="was acknowledged") as caught:
        log.batch(0, 1000)
    assert caught.value.end == 300
    with pytest.raises(OutOfBounds, match="not written yet"):
        log.batch(301, 1000)


def test_a_run_that_ended_and_is_acknowledged_leaves_no_file(journal):
    log = journal.open_run("run-1")
    for payloads in document_payloads(100):
        log.append(payloads)
    log.end_run()
    log.acknowledge(99)
    assert not log.remove_if_done()
    log.acknowledge(100)
    assert log.remove_if_done()
    assert [name for name in os.listdir(journal.path) if name.startswith("run-1")] == []
    assert journal.logs == ()


def test_a_document_after_everything_was_removed_goes_on_with_the_numbers(journal):
    log = journal.open_run("run-1")
    log.append(document_payloads(1)[0])
    log.end_run()
    log.acknowledge(1)
    assert log.remove_if_done()
    assert log.append(document_payloads(2)[1]) == 1
    assert log.removed
    journal.readmit(log)
    assert journal.logs == (log,)
    assert log.batch(1, 1000).count == 1


def test_a_run_that_begins_again_after_its_end_gets_a_log_of_its_own(journal):
    first = journal.open_run("run-1")
    first.append(document_payloads(1)[0])
    assert journal.open_run("run-1") is first
    first.end_run()
    again = journal.open_run("run-1")
    assert again is not first
    assert again.append(document_payloads(1)[0]) == 0
    assert again.uid == "run-1"
    assert len(segment_files(journal.path)) == 2


@pytest.mark.parametrize("uid", ["../../etc/passwd", "a/b", "x" * 300, "ä ö", "~no-run", ".", "a\nb"])
def test_any_uid_gives_a_file_inside_the_journal(journal, uid):
    log = journal.open_run(uid)
    log.append(document_payloads(1)[0])
    (file,) = segment_files(journal.path)
    assert file.parent == journal.path
    assert log.uid == uid


def test_each_durability_has_everything_on_disk_when_append_returns(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0, durability="each") as journal:
        log = journal.open_run("run-1")
        for payloads in document_payloads(5):
            log.append(payloads)
            assert log.durable == log.end


def test_a_sync_interval_of_zero_is_each(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=0) as journal:
        assert journal.state().durability == "each"


def test_closing_makes_everything_durable(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=3600.0)
    log = journal.open_run("run-1")
    log.append(document_payloads(1)[0])
    assert log.durable == 0
    journal.close()
    assert log.durable == 1
    journal.close()  # twice is harmless


def test_a_document_for_a_closed_journal_is_refused_in_words(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0)
    log = journal.open_run("run-1")
    log.append(document_payloads(1)[0])
    journal.close()
    with pytest.raises(Misconfigured, match="closed"):
        log.append(document_payloads(1)[0])
    with pytest.raises(Misconfigured, match="closed"):
        journal.open_run("run-2")


def test_a_payload_that_is_no_document_and_no_template_is_refused_before_it_is_written(journal):
    log = journal.open_run("run-1")
    with pytest.raises(InvalidRequest):
        log.append([b"\xc0\xc0"])
    assert log.end == 0
    assert segment_files(journal.path) == []


def test_a_batch_of_a_log_that_grows_is_whole_and_counted_right(journal):
    log = journal.open_run("run-1")
    written = document_payloads(3000)

    def work():
        for payloads in written:
            log.append(payloads)

    writer = threading.Thread(target=work)
    writer.start()
    at, sent = 0, []
    while at < len(written):
        batch = log.batch(at, 100_000)
        documents = [bytes(p) for _, p in frames.split_frames(batch.data) if frames.is_document(p)]
        assert len(documents) == batch.count
        sent += documents
        at = batch.end
    writer.join()
    assert sent == [payloads[-1] for payloads in written]


def test_closing_always_ends_the_syncing_thread(tmp_path):
    for number in range(200):
        with Journal.create(tmp_path, target=TARGET, reserve_bytes=0, sync_interval=1e-4) as journal:
            log = journal.open_run(f"run-{number}")
            for payloads in document_payloads(number % 5 + 1):
                log.append(payloads)
    assert not any(thread.name == "flystore-journal-sync" for thread in threading.enumerate())


def test_several_threads_may_append_to_one_log(journal):
    log = journal.open_run("run-1")
    payload = document_payloads(1)[0]
    ordinals = []

    def work():
        for _ in range(200):
            ordinals.append(log.append(payload))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ordinals) == list(range(800))
    assert len(read_documents(log)) == 800
