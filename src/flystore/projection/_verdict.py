"""The verdict of the documents: what a run announced, what is complete and what is missing.

The counters add up. For every key of a stream

    stream.rows       == key.present + key.missing
    key.announced     == key.present + key.extra + key.duplicate

and ``retaken`` counts those rows of ``present + extra`` whose seq_num had a frame before. A stream's
``points`` are its different seq_nums: ``rows == points + retaken``; ``holes`` are seq_nums that no row has, those
that only the Stop document counts among them.

Files are not looked at: a frame that is present here has been announced.
"""

from typing import Any

import msgspec

from ._frames import StreamFrames, stream_frames
from ._names import segment
from ._nodes import all_notes, external_notes
from ._notes import Note, add_note, note_id, read_notes
from ._state import RunState, StreamState


class KeyVerdict(msgspec.Struct, frozen=True):
    """One externally stored key; numbers of rows (one row is the frames of one event).

    Attributes
    ----------
    announced : int
        By StreamDatums and Datums, as they came.
    present : int
        Rows of the stream that have a frame.
    missing : int
        Rows of the stream that have none.
    extra : int
        Announced rows that belong to no Event of a stream that has Events.
    duplicate : int
        Rows announced again with the same frame.
    retaken : int
        Rows announced again with another frame.
    gaps : int
        Seq_nums from 1 to the key's own last one without a frame; what is missing while the run goes on.
    """

    announced: int
    present: int
    missing: int
    extra: int
    duplicate: int
    retaken: int
    gaps: int


class StreamVerdict(msgspec.Struct, frozen=True):
    """One stream.

    Attributes
    ----------
    events : int
        Event rows.
    rows : int
        Events if there are any, else the rows that any key has.
    retaken, holes, points : int
        See the module.
    expected : int or None
        Number of Events by the Stop document; None before it, or if it does not say.
    keys : dict of str to KeyVerdict
        External keys by stored name.
    """

    events: int
    rows: int
    points: int
    retaken: int
    holes: int
    expected: int | None
    keys: dict[str, KeyVerdict]


class Verdict(msgspec.Struct, frozen=True):
    """A run.

    Attributes
    ----------
    state : str
        ``running`` without a Stop document; else the first that applies of ``gaps``, ``extra``, ``retaken``;
        else ``complete``.
    exit_status : str or None
        Of the Stop document.
    gaps, extra : int
        Over all streams and keys. Gaps of a running run are those before the last frame of each key; gaps of one that
        has ended are at least as many as the frames that still wait for what they refer to.
    retaken : int
        Over all streams: of the rows, or of the key with most.
    points, expected_points : int
        Of the main stream: ``primary``, or else the one with most rows. Expected is ``num_points`` of the Start
        document if it says so, else what the documents themselves lead to.
    frames, expected_frames : int
        Rows of external keys: present, and present or missing.
    streams : dict of str to StreamVerdict
        By name in the documents, in alphabetical order.
    notes : tuple of Note
        In alphabetical order.
    """

    state: str
    exit_status: str | None
    gaps: int
    extra: int
    retaken: int
    points: int
    expected_points: int
    frames: int
    expected_frames: int
    streams: dict[str, StreamVerdict]
    notes: tuple[Note, ...]

    def to_wire(self) -> dict[str, Any]:
        """Return a JSON-able object; notes have their sentence as ``text``."""
        wire = msgspec.to_builtins(self)
        wire["notes"] = [{**msgspec.to_builtins(note), "text": note.text} for note in self.notes]
        return wire

    @classmethod
    def from_wire(cls, wire: Any) -> "Verdict":
        return msgspec.convert(wire, cls)


def verdict(state: RunState) -> Verdict:
    """Return the verdict of the documents that came so far."""
    stopped = state.stop is not None
    notes = all_notes(state)
    streams, waiting = {}, 0
    for name in sorted({*state.streams, *_counted_by_stop(state)}):
        stream = state.streams.get(name) or StreamState(name, segment(name), {})
        frames = stream_frames(stream, state.resources)
        streams[name] = _stream_verdict(state, stream, frames)
        waiting += sum(found.lost for found in frames.keys.values())
        for note, count in external_notes(stream, frames, state.resources):
            add_note(notes, note, count)
        never_came = streams[name].holes - frames.holes
        if never_came:
            add_note(notes, note_id("never-came", name), never_came)
    keys = [key for stream in streams.values() for key in stream.keys.values()]
    gaps = _gaps(streams, stopped)
    if stopped:
        waiting += _note_waiting(state, notes)
        gaps = max(gaps, waiting)
    extra = sum(key.extra for key in keys)
    retaken = sum(max([stream.retaken, *(key.retaken for key in stream.keys.values())]) for stream in streams.values())
    points, expected = _points(state, streams)
    return Verdict(
        _state(stopped, gaps, extra, retaken),
        _exit_status(state),
        gaps,
        extra,
        retaken,
        points,
        expected,
        sum(key.present for key in keys),
        sum(key.present + key.missing for key in keys),
        streams,
        tuple(read_notes(notes)),
    )


def _state(stopped: bool, gaps: int, extra: int, retaken: int) -> str:
    if not stopped:
        return "running"
    return "gaps" if gaps else "extra" if extra else "retaken" if retaken else "complete"


def _exit_status(state: RunState) -> str | None:
    status = (state.stop or {}).get("exit_status")
    return status if isinstance(status, str) else None


def _gaps(streams: dict[str, StreamVerdict], stopped: bool) -> int:
    total = 0
    for stream in streams.values():
        missing = sum(key.missing if stopped else key.gaps for key in stream.keys.values())
        # Seq_nums that no row has are a gap of every key, but one gap of the stream; while running the keys'
        # own gaps have them already.
        total += missing + (stream.holes if stopped or not stream.keys else 0)
    return total


def _stream_verdict(state: RunState, stream: StreamState, frames: StreamFrames) -> StreamVerdict:
    keys = {}
    for name, key in stream.keys.items():
        found = frames.keys.get(name)
        if found is None:
            external = key.data_key is not None and "external" in key.data_key
            if external and name not in stream.filled:
                keys[key.name] = KeyVerdict(0, 0, frames.rows, 0, 0, 0, 0)
            continue
        rows = len(found.placed.frame_map)
        present = rows - found.placed.extra
        keys[key.name] = KeyVerdict(
            found.placed.announced,
            present,
            frames.rows - present,
            found.placed.extra,
            found.placed.duplicate,
            found.placed.frame_map.retaken,
            found.gaps,
        )
    expected = _counted_by_stop(state).get(stream.name)
    points = frames.rows - frames.retaken
    return StreamVerdict(
        stream.rows,
        frames.rows,
        points,
        frames.retaken,
        max(frames.holes, (expected or 0) - points),
        expected,
        keys,
    )


def _counted_by_stop(state: RunState) -> dict[str, int]:
    """Return how many Events of each stream the Stop document counts, streams without any left out."""
    number = (state.stop or {}).get("num_events")
    if not isinstance(number, dict):
        return {}
    return {
        name: count for name, count in number.items() if type(count) is int and (count > 0 or name in state.streams)
    }


def _note_waiting(state: RunState, notes: dict[str, int]) -> int:
    """Note what refers to documents that never came; return how many frames wait for them."""
    parked = [found for ranges in state.parked.values() for found in ranges]
    if parked:
        add_note(notes, note_id("unknown-resource"), len(parked))
    references = [reference for waiting in state.waiting.values() for reference in waiting]
    for reference in references:
        add_note(notes, note_id("unknown-datum", reference.stream, reference.key))
    return sum(found.count for found in parked) + len(references)


def _points(state: RunState, streams: dict[str, StreamVerdict]) -> tuple[int, int]:
    if not streams:
        return 0, _num_points(state) or 0
    main = "primary" if "primary" in streams else max(streams, key=lambda name: streams[name].rows)
    stream = streams[main]
    implied = stream.points + stream.holes
    asked = _num_points(state) if main == "primary" else None
    return stream.points, implied if asked is None else asked


def _num_points(state: RunState) -> int | None:
    number = (state.start or {}).get("num_points")
    return number if type(number) is int and number >= 0 else None


def line(found: Verdict, scan_id: Any = None, run_uid: str = "") -> str:
    """Return a verdict as one line for people.

    Parameters
    ----------
    found
        Frames are those of the key that lacks most.
    scan_id
        Of the Start document; without it the beginning of the uid names the run.
    run_uid : str

    Examples
    --------
    ``scan 42860: 1200/1200 points, 1200/1200 frames, 0 gaps``
    """
    name = f"scan {scan_id}" if scan_id is not None else f"run {run_uid[:8]}"
    parts = [f"{found.points}/{found.expected_points} points"]
    keys = [key for stream in found.streams.values() for key in stream.keys.values()]
    if keys:
        # The frames of several keys are not added up: people count the frames of a detector, and look at the worst.
        worst = max(keys, key=lambda key: (key.missing, key.present))
        parts.append(f"{worst.present}/{worst.present + worst.missing} frames")
    parts.append(_number(found.gaps, "gap"))
    if found.retaken:
        parts.append(f"{found.retaken} retaken")
    if found.extra:
        parts.append(f"{found.extra} extra")
    if found.state == "running":
        parts.insert(0, "running")
    elif found.exit_status not in (None, "success"):
        parts.insert(0, str(found.exit_status))
    return f"{name}: {', '.join(parts)}"


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
