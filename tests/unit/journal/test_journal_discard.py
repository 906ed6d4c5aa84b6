"""What shall never be sent is set aside, on request, with a reason, and can be had back.

If these fail, a run that is refused for ever is in everybody's way, or documents vanish by a slip.
"""

import json

import pytest

from flystore.journal import DISCARDED, Journal, discard, journals, look_at, orphans
from flystore.model.errors import Conflict, InvalidRequest, NotFound, Unavailable
from flystore.testing.journals import TARGET, abandoned, document_payloads, read_documents


def two_runs(home):
    journal = Journal.create(home, target=TARGET, segment_bytes=700, reserve_bytes=0)
    for uid in ("run-1", "run-2"):
        log = journal.open_run(uid)
        for payloads in document_payloads(30, uid):
            log.append(payloads)
    journal.close()
    return journal.path


def test_a_run_is_moved_whole_and_the_others_stay(tmp_path):
    path = two_runs(tmp_path)
    before = look_at(path).runs[0]
    place = discard(path, ["run-1"], "a test")
    assert place == tmp_path / DISCARDED / path.name
    assert [run.uid for run in look_at(path).runs] == ["run-2"]
    (moved,) = look_at(place).runs
    assert (moved.uid, moved.end, moved.waiting, moved.nbytes) == ("run-1", 30, 30, before.nbytes)
    (note,) = map(json.loads, (place / "discarded.jsonl").read_text().splitlines())
    assert (note["log"], note["reason"]) == ("run-1", "a test")
    assert orphans(tmp_path) == [path]


def test_what_was_set_aside_is_a_journal_that_can_be_taken_over(tmp_path):
    path = abandoned(tmp_path, 10)
    place = discard(path, ["run-1"], "a test")
    assert not path.exists()
    assert journals(tmp_path) == []
    assert orphans(place.parent) == [place]
    with Journal.take_over(place) as journal:
        assert journal.target == TARGET
        assert len(read_documents(journal.logs[0])) == 10


def test_setting_aside_twice_overwrites_nothing(tmp_path):
    path = two_runs(tmp_path)
    place = discard(path, ["run-1"], "a test")
    for file in place.glob("run-1.*"):
        (path / file.name).write_bytes(file.read_bytes())
    again = discard(path, ["run-1"], "the copy")
    assert again != place
    assert look_at(again).runs[0].end == look_at(place).runs[0].end == 30
    assert discard(path, ["run-2"], "too") == place
    assert len(look_at(place).runs) == 2


def test_a_living_writer_keeps_its_runs(tmp_path):
    with Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal:
        journal.open_run("run-1").append(document_payloads(1)[0])
        with pytest.raises(Conflict, match="end that process"):
            discard(journal.path, ["run-1"], "a test")
        assert look_at(journal.path).waiting == 1


def test_a_slip_moves_nothing(tmp_path):
    path = two_runs(tmp_path)
    with pytest.raises(NotFound, match=r"run-1, run-2"):
        discard(path, ["run-1", "run-3"], "a test")
    with pytest.raises(InvalidRequest, match="reason"):
        discard(path, ["run-1"], " ")
    assert look_at(path).waiting == 60
    assert not (tmp_path / DISCARDED).exists()


def test_a_disk_that_refuses_leaves_a_whole_log_behind(tmp_path, monkeypatch):
    path = two_runs(tmp_path)
    place = tmp_path / DISCARDED / path.name
    real, moved = type(path).rename, []

    def rename(self, target):
        if len(moved) == 1:
            raise OSError(5, "Input/output error")
        moved.append(self)
        return real(self, target)

    monkeypatch.setattr(type(path), "rename", rename)
    with pytest.raises(Unavailable, match="still there"):
        discard(path, ["run-1"], "a test")
    kept = look_at(path).runs[0]
    assert (kept.first, kept.damage) == (0, ())
    ordinals = [*range(kept.first, kept.end)]
    ordinals += [*range(look_at(place).runs[0].first, look_at(place).runs[0].end)]
    assert sorted(ordinals) == list(range(30))


def test_what_somebody_sends_at_the_moment_is_not_added_to(tmp_path):
    path = two_runs(tmp_path)
    place = discard(path, ["run-1"], "a test")
    with Journal.take_over(place), pytest.raises(Conflict, match="held by another process"):
        discard(path, ["run-2"], "a test")
    assert look_at(path).waiting == 30
