"""What was odd or was changed, counted by kind, so that it stays small however often it happens.

A note is (kind, stream, key, detail) with a count. Sentences are made when somebody reads them; their order
is alphabetical, because the order of arrival differs between batchings and reorderings of the same run.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

SEPARATOR = "\x1f"
LIMIT = 500
"""Distinct notes kept for a run; further ones are only counted, as kind ``more``."""


class _Kind(NamedTuple):
    sentence: str
    in_metadata: bool = False


# `in_metadata` marks changes made to what is shown, which TiledWriter lists in the run's metadata too;
# oddities of the documents are the verdict's business and stay out of it.
KINDS: dict[str, _Kind] = {
    "renamed": _Kind("In stream {stream!r} the data key {key!r} is stored under the name {detail!r}.", True),
    "renamed-stream": _Kind("The stream {stream!r} is stored under the name {detail!r}.", True),
    "stored-apart": _Kind("In stream {stream!r} the values of {key!r} are an array beside the table.", True),
    "stored-ragged": _Kind("In stream {stream!r} the values of {key!r} are a ragged array.", True),
    "padded": _Kind("In stream {stream!r} rows of {key!r} have unequal lengths; the shorter are padded.", True),
    "row-missing": _Kind("In stream {stream!r} some Events have no value for the array {key!r}.", True),
    "declared-otherwise": _Kind(
        "In stream {stream!r} the values of {key!r} are not as declared; shape and type are those found.",
        True,
    ),
    "made-text": _Kind("In stream {stream!r} the values of {key!r} have no common type and are text.", True),
    "inexact": _Kind("In stream {stream!r} some integers of {key!r} fit no integer type and are floats.", True),
    "no-start": _Kind("Documents came before the Start document."),
    "second-start": _Kind("{count} further Start documents were ignored."),
    "second-stop": _Kind("{count} further Stop documents were ignored."),
    "after-stop": _Kind("{count} documents came after the Stop document."),
    "bad-spec": _Kind("{count} entries of tiled_specs are neither a name nor name and version."),
    "unknown-document": _Kind("{count} documents of the unknown kind {detail!r}."),
    "malformed": _Kind("{count} documents {key!r} make no sense ({detail})."),
    "second-descriptor": _Kind("{count} descriptors repeat a uid and were ignored."),
    "no-stream-name": _Kind("{count} descriptors name no stream; 'primary' was taken."),
    "other-run": _Kind("{count} documents name another run."),
    "unknown-descriptor": _Kind("{count} Events belong to no known descriptor."),
    "undeclared": _Kind("In stream {stream!r} the data key {key!r} is in Events but not in the descriptor."),
    "filled-false": _Kind("In stream {stream!r} {count} values of {key!r} are marked unfilled but not external."),
    "filled-value": _Kind("In stream {stream!r} {count} values of the external key {key!r} are in the Event."),
    "bad-seq-num": _Kind("In stream {stream!r} {count} Events have no usable seq_num; counted on."),
    "bad-time": _Kind("In stream {stream!r} {count} Events have no usable time."),
    "unequal-page": _Kind("In stream {stream!r} {count} Event pages have columns of unequal length."),
    "changed-key": _Kind("In stream {stream!r} a later descriptor declares {key!r} differently."),
    "second-resource": _Kind("{count} resources repeat a uid and were ignored."),
    "relative-path": _Kind("The path {detail!r} of a resource is relative; it was taken from the root."),
    "bad-range": _Kind("{count} StreamDatums of {key!r} have ranges that are empty or make no sense."),
    "uneven-range": _Kind("{count} StreamDatums of {key!r} have indices and seq_nums of unequal number."),
    "derived-seq-nums": _Kind("{count} StreamDatums of {key!r} have no seq_nums; taken from their indices."),
    "undeclared-external": _Kind("In stream {stream!r} frames of {key!r} came, which no descriptor declares."),
    "variable-shape": _Kind("In stream {stream!r} the external key {key!r} declares a variable shape."),
    "bad-dtype": _Kind("In stream {stream!r} the external key {key!r} declares no usable dtype."),
    "bad-chunk-shape": _Kind("In stream {stream!r} the chunk_shape of {key!r} does not fit its shape."),
    "bad-dims": _Kind("In stream {stream!r} the dims of {key!r} do not fit its shape."),
    "mixed-resources": _Kind("In stream {stream!r} the resources of {key!r} differ in kind or dataset."),
    "unknown-datum": _Kind("{count} values of {key!r} in stream {stream!r} name a Datum that never came."),
    "unknown-resource": _Kind("{count} StreamDatums name a resource or descriptor that never came."),
    "never-came": _Kind("The Stop document counts {count} Events of stream {stream!r} that never came."),
    "lost-frames": _Kind("{count} frames were announced for a resource that never came."),
    "parked-full": _Kind("{count} documents waited for another one in vain; too many wait already."),
    "several-rows": _Kind("In stream {stream!r} {count} Datums of {key!r} hold several rows for one Event."),
    "more": _Kind("{count} further notes."),
}


class Note(msgspec.Struct, frozen=True):
    """One kind of oddity.

    Attributes
    ----------
    kind : str
        A key of `KINDS`; never renamed.
    stream, key, detail : str
        What it is about; empty where that does not apply.
    count : int
        How often it was seen.
    """

    kind: str
    stream: str
    key: str
    detail: str
    count: int

    @property
    def text(self) -> str:
        known = KINDS.get(self.kind)
        sentence = known.sentence if known else "{kind} {stream} {key} {detail}"
        return sentence.format(kind=self.kind, stream=self.stream, key=self.key, detail=self.detail, count=self.count)


def note_id(kind: str, stream: str = "", key: str = "", detail: str = "") -> str:
    return SEPARATOR.join((kind, stream, key, detail))


def add_note(notes: dict[str, int], note: str, count: int = 1) -> None:
    """Count a note, in place; above `LIMIT` different ones only their number is kept."""
    if note not in notes and len(notes) >= LIMIT:
        note = note_id("more")
    notes[note] = notes.get(note, 0) + count


def read_notes(notes: Mapping[str, int]) -> Iterator[Note]:
    """Yield the notes in alphabetical order."""
    for note in sorted(notes):
        kind, stream, key, detail = note.split(SEPARATOR, 3)
        yield Note(kind, stream, key, detail, notes[note])


def metadata_notes(notes: Mapping[str, int]) -> list[str]:
    """Return the sentences that belong into the run's metadata."""
    return [note.text for note in read_notes(notes) if note.kind in KINDS and KINDS[note.kind].in_metadata]
