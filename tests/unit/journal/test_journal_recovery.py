"""A journal survives the death of its writer, power cuts and bad disks, and says what is wrong.

If these fail, a beamline loses the last seconds of a scan after a crash, or sends damaged documents.
"""

import contextlib
import json
import logging
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.journal import Journal, identity, journals, orphans, remove_spent
from flystore.model import frames
from flystore.model.errors import Conflict, Damaged, Misconfigured
from flystore.testing.journals import (
    TARGET,
    abandoned,
    document_payloads,
    frame_offsets,
    segment_files,
)


def reopened(path):
    """Return the documents that can be read, and the damage, if any."""
    with Journal.take_over(path) as journal:
        if not journal.logs:
            return [], (journal.unreadable or [None])[0]
        (log,) = journal.logs
        decoder, documents = frames.FrameDecoder(), []
        with pytest.raises(Damaged) if log.damage else contextlib.nullcontext() as caught:
            documents.extend(d for p in log.payloads() if (d := decoder.decode(p)) is not None)
        assert caught is None or caught.value is log.damage
        assert len(documents) == log.end
        return documents, log.damage


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A journal of 60 documents in one segment, and the documents."""
    path = abandoned(tmp_path_factory.mktemp("home"), 60)
    copy = tmp_path_factory.mktemp("copy") / "journal"
    shutil.copytree(path, copy)
    return copy, reopened(path)[0]


@pytest.fixture(scope="module")
def in_segments(tmp_path_factory):
    """The same in several segments."""
    path = abandoned(tmp_path_factory.mktemp("home"), 60, segment_bytes=1500)
    copy = tmp_path_factory.mktemp("copy") / "journal"
    shutil.copytree(path, copy)
    return copy, reopened(path)[0]


def a_copy(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("work") / "journal"
    shutil.copytree(source, path)
    return path


def test_all_is_there_after_the_writer_is_gone(original):
    assert len(original[1]) == 60
    assert [name for name, _ in original[1][:3]] == ["start", "descriptor", "event"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_cut_leaves_a_prefix_and_is_no_damage(original, tmp_path_factory, data):
    source, documents = original
    path = a_copy(source, tmp_path_factory)
    (file,) = segment_files(path)
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    file.write_bytes(content[:cut])
    kept, damage = reopened(path)
    assert damage is None
    assert kept == documents[: len(kept)]
    whole = [offset for offset in frame_offsets_of(content) if offset <= cut]
    assert len(kept) >= len(whole) - 3  # the header, one template, and the frame that was cut


def frame_offsets_of(content):
    return [start - frames.HEADER.size for start, _ in frames.scan(content).spans]


def test_a_torn_last_frame_is_dropped_and_reported(original, tmp_path_factory, caplog):
    path = a_copy(original[0], tmp_path_factory)
    (file,) = segment_files(path)
    last = frame_offsets(file)[-1]
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size - 3)
    with caplog.at_level(logging.WARNING):
        kept, damage = reopened(path)
    assert len(kept) == 59
    assert damage is None
    assert f"{file}, segment 0, offset {last}" in caplog.text


@pytest.mark.parametrize("zeros", [1, 7, 8, 9, 4096])
def test_zeros_that_a_power_cut_left_at_the_end_are_no_documents(original, tmp_path_factory, zeros):
    path = a_copy(original[0], tmp_path_factory)
    (file,) = segment_files(path)
    with file.open("ab") as opened:
        opened.write(bytes(zeros))
    assert reopened(path) == (original[1], None)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_named_and_what_precedes_it_is_readable(original, tmp_path_factory, data):
    source, documents = original
    path = a_copy(source, tmp_path_factory)
    (file,) = segment_files(path)
    content = bytearray(file.read_bytes())
    offsets = frame_offsets_of(bytes(content))
    # The very last frame is not told from a torn one; that is the next test's.
    bit = data.draw(st.integers(0, 8 * offsets[-1] - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(content))
    hit = max(number for number, offset in enumerate(offsets) if offset <= bit // 8)

    kept, damage = reopened(path)

    assert isinstance(damage, Damaged)
    assert damage.path == str(file)
    assert damage.offset == offsets[hit]
    assert damage.frame == hit - 1  # the header is not counted
    place = "its header" if hit == 0 else f"frame {hit - 1}"
    assert f"segment 0, {place} at offset {offsets[hit]}" in str(damage)
    assert kept == documents[: len(kept)]
    assert len(kept) == max(0, hit - 1 if hit <= 3 else hit - 2)  # frame 2 is the template
    assert file.exists()


def test_a_bad_last_frame_is_dropped_and_reported_like_a_torn_one(original, tmp_path_factory, caplog):
    path = a_copy(original[0], tmp_path_factory)
    (file,) = segment_files(path)
    content = bytearray(file.read_bytes())
    content[-2] ^= 4
    file.write_bytes(bytes(content))
    kept, damage = reopened(path)
    assert (len(kept), damage) == (59, None)
    assert "torn last frame" in caplog.text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_cut_of_a_segment_that_others_follow_is_damage(in_segments, tmp_path_factory, data):
    source, documents = in_segments
    path = a_copy(source, tmp_path_factory)
    files = segment_files(path)
    number = data.draw(st.integers(0, len(files) - 2))
    size = files[number].stat().st_size
    with files[number].open("rb+") as opened:
        opened.truncate(data.draw(st.integers(0, size - 1)))
    kept, damage = reopened(path)
    assert isinstance(damage, Damaged)
    assert damage.path in (str(files[number]), str(files[number + 1]))
    assert kept == documents[: len(kept)]
    assert all(file.exists() for file in files)


def test_a_segment_missing_in_the_middle_is_damage_that_counts_the_documents(in_segments, tmp_path_factory):
    path = a_copy(in_segments[0], tmp_path_factory)
    files = segment_files(path)
    files[1].unlink()
    kept, damage = reopened(path)
    assert isinstance(damage, Damaged)
    assert f"documents {len(kept)} to" in str(damage)
    assert kept == in_segments[1][: len(kept)]


def test_damage_in_one_run_leaves_the_others_readable(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0)
    for uid in ("run-1", "run-2"):
        log = journal.open_run(uid)
        for payloads in document_payloads(10, uid):
            log.append(payloads)
    journal.close()
    (file,) = journal.path.glob("run-1.*.frames")
    content = bytearray(file.read_bytes())
    content[frame_offsets(file)[3] + 10] ^= 1
    file.write_bytes(bytes(content))
    with Journal.take_over(journal.path) as taken:
        first, second = taken.logs
        assert (first.uid, first.end) == ("run-1", 2)  # start, descriptor; the template is the bad frame
        assert first.damage is not None
        assert (second.uid, second.end, second.damage) == ("run-2", 10, None)


def test_an_unreadable_header_is_reported_and_the_file_kept(original, tmp_path_factory, caplog):
    path = a_copy(original[0], tmp_path_factory)
    (file,) = segment_files(path)
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(bytes(content))
    with Journal.take_over(path) as journal:
        assert journal.logs == ()
        (damage,) = journal.unreadable
        assert any(str(damage) == warning for warning in journal.state().warnings)
    assert file.exists()


def test_acknowledged_documents_are_not_sent_again_by_who_takes_over(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0)
    log = journal.open_run("run-1")
    for payloads in document_payloads(10):
        log.append(payloads)
    log.acknowledge(7)
    journal.close()
    with Journal.take_over(journal.path) as taken:
        assert (taken.logs[0].acked, taken.logs[0].end) == (7, 10)


@pytest.mark.parametrize("content", [b"", b"\0" * 24, b"x" * 24, b"short"])
def test_a_lost_acknowledgement_only_sends_again(tmp_path, content):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0, segment_bytes=1500)
    log = journal.open_run("run-1")
    for payloads in document_payloads(60):
        log.append(payloads)
    log.acknowledge(40)
    journal.close()
    (journal.path / "run-1.acked").write_bytes(content)
    with Journal.take_over(journal.path) as taken:
        (log,) = taken.logs
        assert log.damage is None
        assert 0 < log.acked <= 40  # what lies before the first file was acknowledged
        assert sum(frames.is_document(payload) for payload in log.payloads()) == log.end - log.acked


def test_an_orphan_is_found_only_while_it_holds_something_unacknowledged(tmp_path):
    path = abandoned(tmp_path, 10)
    assert orphans(tmp_path) == [path]
    with Journal.take_over(path) as taken:
        assert orphans(tmp_path) == []  # it is held
        taken.logs[0].acknowledge(10)
    assert journals(tmp_path) == []


def test_a_journal_of_which_all_was_acknowledged_is_no_orphan_even_if_its_writer_was_killed(tmp_path):
    journal = Journal.create(tmp_path, target=TARGET, reserve_bytes=0)
    log = journal.open_run("run-1")
    for payloads in document_payloads(10):
        log.append(payloads)
    log.acknowledge(10)
    log.sync()
    kept = tmp_path / "killed"
    shutil.copytree(journal.path, kept)
    journal.close()
    assert orphans(tmp_path) == []
    assert remove_spent(tmp_path) == [kept]
    assert journals(tmp_path) == []


def test_a_takeover_raises_the_epoch_durably(tmp_path):
    path = abandoned(tmp_path, 10)
    for epoch in (2, 3, 4):
        with Journal.take_over(path) as journal:
            assert journal.epoch == epoch
            assert identity(path) == (TARGET, epoch)


def test_a_damaged_journal_file_is_replaced_by_what_the_segments_say(tmp_path):
    path = abandoned(tmp_path, 10)
    (path / "journal").write_bytes(b"")
    assert identity(path) == (TARGET, 1)
    with Journal.take_over(path) as journal:
        assert journal.epoch == 2
        assert json.loads((path / "journal").read_text())["target"] == TARGET


def test_a_journal_that_says_nothing_of_itself_is_left_alone(tmp_path):
    path = abandoned(tmp_path, 10)
    (path / "journal").write_bytes(b"")
    segment_files(path)[0].write_bytes(b"rubbish")
    with pytest.raises(Damaged, match="kept as it is"):
        Journal.take_over(path)
    assert segment_files(path)[0].read_bytes() == b"rubbish"


def test_a_journal_of_a_newer_format_is_refused_in_words(tmp_path):
    path = abandoned(tmp_path, 10)
    (path / "journal").write_text(json.dumps({"format": 99, "target": TARGET, "epoch": 1}))
    with pytest.raises(Misconfigured, match="format 99"):
        Journal.take_over(path)


def test_a_journal_that_is_gone_is_a_conflict(tmp_path):
    with pytest.raises(Conflict, match="gone"):
        Journal.take_over(tmp_path / "nothing")


def test_after_a_power_cut_segments_that_are_only_names_are_no_damage(tmp_path):
    path = abandoned(tmp_path, 60, segment_bytes=1500)
    files = segment_files(path)
    assert len(files) == 4
    with open(files[-3], "r+b") as file:  # nothing of these was synced: half of one, and of two their names alone
        file.truncate(700)
    files[-2].write_bytes(b"")
    files[-1].write_bytes(bytes(200))
    documents, damage = reopened(path)
    assert damage is None
    assert 0 < len(documents) < 60


def test_a_torn_segment_with_a_good_one_behind_it_is_damage(tmp_path):
    path = abandoned(tmp_path, 60, segment_bytes=1500)
    files = segment_files(path)
    with open(files[-2], "r+b") as file:
        file.truncate(700)
    documents, damage = reopened(path)
    assert "others follow" in str(damage)
    assert 0 < len(documents) < 60
