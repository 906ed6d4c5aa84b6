"""What lies in a journal can be looked at without touching it, also while it is written and when it is damaged.

If these fail, nobody can tell what waits on a host, or looking at it loses or delays documents.
"""

import os
import threading

import pytest

from flystore.journal import Journal, documents, journals, look_at, orphans
from flystore.model.errors import Damaged
from flystore.testing.journals import TARGET, abandoned, document_payloads, event, frame_offsets, segment_files


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_an_orphan_is_described_and_left_as_it_was(tmp_path):
    path = abandoned(tmp_path, 20)
    before = contents(path)
    look = look_at(path)
    assert (look.target, look.epoch, look.held, look.problem) == (TARGET, 1, False, None)
    assert look.holder.pid == os.getpid()
    (run,) = look.runs
    assert (run.uid, run.scan_id, run.label, run.number) == ("run-1", 1, "scan 1", 0)
    assert (run.first, run.acked, run.end, run.waiting) == (0, 0, 20, 20)
    (file,) = segment_files(path)
    assert run.nbytes == file.stat().st_size - frame_offsets(file)[1]
    assert run.since == 1000.0
    assert (run.parked, run.damage, run.torn) == (None, (), ())
    assert contents(path) == before
    assert orphans(tmp_path) == [path]


def test_a_journal_that_is_held_is_said_to_be_and_goes_on(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        log = journal.open_run("run-1")
        written = document_payloads(3000)
        ended = threading.Event()

        def write():
            for payloads in written:
                log.append(payloads)
            ended.set()

        thread = threading.Thread(target=write)
        thread.start()
        counts = []
        while not ended.is_set():
            look = look_at(journal.path)
            assert look.held
            assert [(run.damage, run.torn) for run in look.runs] in ([], [((), ())])
            counts.append(look.waiting)
        thread.join()
        assert counts == sorted(counts)
        assert look_at(journal.path).waiting == 3000


def test_what_is_acknowledged_does_not_wait(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, segment_bytes=1500, reserve_bytes=0)
    log = journal.open_run("run-1")
    for payloads in document_payloads(60):
        log.append(payloads)
    log.acknowledge(31)
    journal.close()
    (run,) = look_at(journal.path).runs
    assert (run.acked, run.end, run.waiting) == (31, 60, 29)
    assert 0 < run.first <= 31
    assert run.scan_id is None
    assert run.since == 1000.0 + 30  # document 31 is event 30
    sizes = [file.stat().st_size for file in segment_files(journal.path)]
    assert 0 < run.nbytes < sum(sizes)


def test_the_documents_of_a_run_can_be_read(tmp_path):
    path = abandoned(tmp_path, 20)
    read = list(documents(look_at(path).runs[0]))
    assert [document.ordinal for document in read] == list(range(20))
    assert read[0].doc["uid"] == "run-1"
    assert read[5][1:] == ("event", event(4), True)


def test_events_whose_keys_went_with_an_earlier_file_are_shown_without_names(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, segment_bytes=1500, reserve_bytes=0)
    log = journal.open_run("run-1")
    for payloads in document_payloads(60):
        log.append(payloads)
    log.acknowledge(50)
    journal.close()
    last = list(documents(look_at(journal.path).runs[0]))[-1]
    assert (last.ordinal, last.name, last.named) == (59, "event", False)
    assert last.doc["seq_num"] == 58
    assert last.doc["data"] == list(event(58)["data"].values())


def test_a_torn_end_is_told_and_is_no_damage(tmp_path):
    path = abandoned(tmp_path, 20)
    (file,) = segment_files(path)
    offsets = frame_offsets(file)
    with open(file, "r+b") as cut:
        cut.truncate(offsets[-1] + 11)
    (run,) = look_at(path).runs
    assert run.damage == ()
    assert [(torn.path, torn.segment, torn.offset) for torn in run.torn] == [(file, 0, offsets[-1])]
    assert run.waiting == 19


def test_what_a_power_cut_leaves_of_several_files_is_torn_and_no_damage(tmp_path):
    path = abandoned(tmp_path, 60, segment_bytes=1500)
    files = segment_files(path)
    with open(files[-3], "r+b") as cut:
        cut.truncate(700)
    files[-2].write_bytes(b"")
    files[-1].write_bytes(bytes(200))
    (run,) = look_at(path).runs
    assert run.damage == ()
    assert [torn.path for torn in run.torn] == files[-3:]
    with Journal.take_over(path) as journal:
        assert [log.end for log in journal.logs] == [run.end]


def test_every_damaged_file_is_named_with_segment_and_offset(tmp_path):
    path = abandoned(tmp_path, 60, segment_bytes=1000)
    files = segment_files(path)
    assert len(files) > 4
    places = {}
    for number in (1, 3):
        offset = frame_offsets(files[number])[2]
        content = bytearray(files[number].read_bytes())
        content[offset + 12] ^= 1
        files[number].write_bytes(content)
        places[number] = (str(files[number]), number, offset)
    (run,) = look_at(path).runs
    assert [(d.path, d.segment, d.offset) for d in run.damage] == [places[1], places[3]]
    read = documents(run)
    with pytest.raises(Damaged, match="checksum"):
        list(read)


def test_a_missing_file_is_named(tmp_path):
    path = abandoned(tmp_path, 60, segment_bytes=1000)
    segment_files(path)[2].unlink()
    (run,) = look_at(path).runs
    assert "are in no file" in str(run.damage[0])


def test_a_journal_that_says_nothing_of_its_target_is_shown_with_why(tmp_path):
    path = abandoned(tmp_path, 5)
    (path / "journal").unlink()
    (file,) = segment_files(path)
    file.write_bytes(b"\xff" * file.stat().st_size)
    look = look_at(path)
    assert look.target is None
    assert "does not say where" in look.problem
    assert look.runs[0].damage
    assert look.runs[0].label == "run-1"


def test_a_journal_that_is_gone_is_none(tmp_path):
    assert look_at(tmp_path / "nothing") is None


def test_a_note_of_parking_is_shown(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        log = journal.open_run("run-1")
        log.append(document_payloads(1)[0])
        log.park("conflict: the run was deleted")
        assert look_at(journal.path).runs[0].parked == "conflict: the run was deleted"
        log.unpark()
        assert look_at(journal.path).runs[0].parked is None


def test_only_journals_are_listed(tmp_path):
    path = abandoned(tmp_path, 1)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert journals(tmp_path) == [path]
