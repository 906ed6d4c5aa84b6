"""The verdict says what is complete and what is missing, and its numbers add up.

If these fail, a scientist is told that a scan worked when frames are missing, or the other way round.
"""

import msgspec
import pytest
from hypothesis import given, settings

from flystore.projection import RunState, Verdict, advance, line, verdict
from flystore.testing.documents import RunDocuments, external, internal, numbered, runs


def of(run):
    state, _ = advance(RunState.new(run.uid), numbered(run.documents))
    return verdict(state)


def scan(events=4, frames=((0, 4),), stop=True, **start):
    run = RunDocuments(**start)
    stream = run.stream(m=internal(), img=external())
    for n in range(events):
        stream.event(m=float(n))
    for each in frames:
        stream.frames("img", *each)
    if stop:
        run.stop()
    return run


@settings(max_examples=200, deadline=None)
@given(documents=runs())
def test_the_counters_add_up(documents):
    state, _ = advance(RunState.new("run"), numbered(documents))
    found = verdict(state)
    for stream in found.streams.values():
        assert stream.rows == stream.points + stream.retaken
        assert stream.rows == stream.events or not stream.events
        for key in stream.keys.values():
            assert stream.rows == key.present + key.missing
            assert key.announced == key.present + key.extra + key.duplicate
            assert key.retaken <= key.present + key.extra
            assert min(msgspec.structs.astuple(key)) >= 0
    announced = {}
    for name, doc in documents:
        if name == "stream_datum":
            width = doc["indices"]["stop"] - doc["indices"]["start"]
            announced[doc["descriptor"]] = announced.get(doc["descriptor"], 0) + width
    total = sum(key.announced for stream in found.streams.values() for key in stream.keys.values())
    assert total == sum(announced.values())
    assert (found.state == "running") == (documents[-1][0] != "stop")
    assert Verdict.from_wire(found.to_wire()) == found


@pytest.mark.parametrize(
    ("run", "state", "text"),
    [
        (scan(num_points=4), "complete", "scan 7: 4/4 points, 4/4 frames, 0 gaps"),
        (scan(), "complete", "scan 7: 4/4 points, 4/4 frames, 0 gaps"),
        (scan(2, [(0, 2)], num_points=4), "complete", "scan 7: 2/4 points, 2/2 frames, 0 gaps"),
        (scan(frames=[(0, 2), (3, 4)]), "gaps", "scan 7: 4/4 points, 3/4 frames, 1 gap"),
        (scan(frames=[(0, 2), (0, 2), (2, 4)]), "complete", "scan 7: 4/4 points, 4/4 frames, 0 gaps"),
        (scan(frames=[(0, 6)]), "extra", "scan 7: 4/4 points, 4/4 frames, 0 gaps, 2 extra"),
        (scan(frames=[(0, 4), (4, 5, 2)]), "extra", "scan 7: 4/4 points, 4/4 frames, 0 gaps, 1 retaken, 1 extra"),
        (scan(0, [(0, 2), (3, 5)]), "gaps", "scan 7: 4/5 points, 4/4 frames, 1 gap"),
        (scan(0, [(0, 2), (2, 3, 2)]), "retaken", "scan 7: 2/2 points, 3/3 frames, 0 gaps, 1 retaken"),
        (scan(frames=[(0, 3)], stop=False), "running", "scan 7: running, 4/4 points, 3/4 frames, 0 gaps"),
        (scan(frames=[(1, 3)], stop=False), "running", "scan 7: running, 4/4 points, 2/4 frames, 1 gap"),
        (scan(frames=[]), "gaps", "scan 7: 4/4 points, 0/4 frames, 4 gaps"),
    ],
)
def test_a_run_is_told_in_one_line(run, state, text):
    found = of(run)
    assert found.state == state
    assert line(found, 7) == text


def test_a_run_that_failed_says_so():
    run = scan(stop=False, num_points=9)
    run.stop("abort")
    assert line(of(run), None, "0123456789") == "run 01234567: abort, 4/9 points, 4/4 frames, 0 gaps"


def test_a_run_without_frames_does_not_speak_of_them():
    run = RunDocuments()
    run.stream(m=internal()).event(m=1.0)
    run.stop()
    assert line(of(run), 1) == "scan 1: 1/1 points, 0 gaps"


def test_an_empty_run_is_complete():
    run = RunDocuments()
    run.stop()
    assert of(run).state == "complete"
    assert line(of(run), 1) == "scan 1: 0/0 points, 0 gaps"


def test_a_pause_that_repeats_a_point_is_counted_as_retaken():
    run = RunDocuments()
    stream = run.stream(m=internal(), img=external())
    for index, seq in enumerate([1, 2, 2, 3]):
        stream.frames("img", index, index + 1, seq)
        stream.event(seq, m=1.0)
    run.stop(num_events={"primary": 3})
    found = of(run)
    stream_verdict = found.streams["primary"]
    assert (found.state, found.points, stream_verdict.rows, stream_verdict.retaken) == ("retaken", 3, 4, 1)
    assert (stream_verdict.keys["img"].present, stream_verdict.keys["img"].retaken) == (4, 1)
    assert stream_verdict.expected == 3


def test_events_that_never_came_are_holes():
    run = RunDocuments()
    stream = run.stream(m=internal())
    for seq in (1, 2, 5):
        stream.event(seq, m=1.0)
    run.stop()
    assert of(run).streams["primary"].holes == 2
    assert of(run).state == "gaps"


def test_a_key_that_lags_behind_another_has_gaps_only_when_the_run_ended():
    run = RunDocuments()
    stream = run.stream(a=external(), b=external())
    stream.frames("a", 0, 5)
    stream.frames("b", 0, 3)
    assert of(run).gaps == 0
    run.stop()
    assert of(run).gaps == 2


@pytest.mark.parametrize(
    ("indices", "seq_nums", "note", "announced"),
    [
        ({"start": 0, "stop": 0}, {"start": 1, "stop": 1}, "bad-range", 0),
        ({"start": 3, "stop": 1}, {"start": 1, "stop": 3}, "bad-range", 0),
        ({"start": -1, "stop": 1}, {"start": 1, "stop": 3}, "bad-range", 0),
        ({"start": "0", "stop": 1}, {"start": 1, "stop": 3}, "bad-range", 0),
        ({"start": 0, "stop": 2}, {"start": 5, "stop": 5}, "bad-range", 0),
        (None, None, "bad-range", 0),
        ({"start": 0, "stop": 3}, {"start": 1, "stop": 3}, "uneven-range", 2),
        ({"start": 0, "stop": 2}, {"start": 1, "stop": 9}, "uneven-range", 2),
        ({"start": 0, "stop": 2}, {"start": 0, "stop": 0}, "derived-seq-nums", 2),
        ({"start": 0, "stop": 2}, None, "derived-seq-nums", 2),
    ],
)
def test_odd_ranges_are_noted(indices, seq_nums, note, announced):
    run = RunDocuments()
    stream = run.stream(img=external())
    doc = stream.frames("img", 0, 1)
    doc["indices"], doc["seq_nums"] = indices, seq_nums
    found = of(run)
    assert [each.kind for each in found.notes] == [note]
    assert found.streams["primary"].keys["img"].announced == announced
    assert note in KINDS_WITH_SENTENCES


KINDS_WITH_SENTENCES = {"bad-range", "uneven-range", "derived-seq-nums"}


def test_a_frame_of_a_resource_that_never_comes_is_noted_at_the_end():
    run = RunDocuments()
    stream = run.stream(img=external())
    stream.resources["img"] = "nowhere"
    stream.frames("img", 0, 1)
    assert of(run).notes == ()
    run.stop()
    assert [note.kind for note in of(run).notes] == ["unknown-resource"]


def test_every_kind_of_note_has_a_sentence_that_can_be_filled_in():
    from flystore.projection import Note
    from flystore.projection._notes import KINDS

    for kind in KINDS:
        text = Note(kind, "primary", "img", "why", 3).text
        assert text.endswith(".")
        assert "{" not in text


def test_frames_of_a_resource_that_never_comes_are_gaps_once_the_run_has_ended():
    run = RunDocuments()
    stream = run.stream(img=external())
    stream.resources["img"] = "nowhere"
    stream.frames("img", 0, 3)
    assert of(run).gaps == 0
    run.stop()
    found = of(run)
    assert (found.state, found.gaps) == ("gaps", 3)


@pytest.mark.parametrize("come", [0, 2])
def test_events_that_only_the_stop_document_counts_are_gaps(come):
    run = scan(events=come, frames=[(0, come)] if come else [], stop=False)
    run.stop(num_events={"primary": 4})
    found = of(run)
    assert (found.state, found.gaps) == ("gaps", 4 - come)
    assert (found.points, found.expected_points) == (come, 4)
    assert found.streams["primary"].holes == 4 - come
    assert [(note.kind, note.stream, note.count) for note in found.notes] == [("never-came", "primary", 4 - come)]


def test_a_stream_of_which_only_the_stop_document_knows_is_a_gap():
    run = RunDocuments()
    run.stop(num_events={"primary": 1, "baseline": 0})
    found = of(run)
    assert (found.state, found.gaps) == ("gaps", 1)
    assert list(found.streams) == ["primary"]
    assert "0/1 points" in line(found)


def test_points_taken_again_are_counted_once_by_the_stop_document():
    run = scan(events=3, frames=[(0, 3)], stop=False)
    run.stop(num_events={"primary": 3})
    assert of(run).state == "complete"
