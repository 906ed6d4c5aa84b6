"""What lies in journals, for people who look: nothing is held, changed or sent by it.

The journals of living writers may be looked at too. What is said of one is true of a moment.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from flystore.model import frames
from flystore.model.encoding import decode
from flystore.model.errors import Damaged, FlystoreError, InvalidRequest

from ._journal import identity, missing_before, segment_files
from ._lock import is_locked
from ._log import read_acked
from ._segment import Segment, SegmentHeader, last_begun, open_segment

_HOLDER = re.compile(r"held by process (\d+) on (\S*)")
_ATTEMPTS = 5
_ROW_FIELDS = ("uid", "seq_num", "time", "data", "timestamps", "filled")


class Holder(NamedTuple):
    """The process that holds a journal, or held it last."""

    pid: int
    host: str


class Torn(NamedTuple):
    """A torn last frame: normal after a power cut or a full disk, and never counted as a document.

    Attributes
    ----------
    path : Path
    segment : int
    offset : int
        Where the frame begins, bytes; the rest of the file is it.
    """

    path: Path
    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class JournaledRun:
    """The log of one run in a journal.

    Attributes
    ----------
    uid : str
        Empty for documents that belong to no run, and where no header could be read.
    name : str
        What its files are called.
    number : int
        Of the log in its journal, in the order of opening; -1 where no header could be read.
    scan_id : int, str or None
        From its start, if that is still here.
    first, acked, end : int
        Ordinals: of the first document that is still here, of the first that is not acknowledged, and of the
        one after the last.
    waiting : int
        Documents that are here, readable and not acknowledged.
    nbytes : int
        Bytes of these in files.
    since : float or None
        Time of the oldest waiting document that carries one, Unix seconds.
    parked : str or None
        Why its last writer did not send it, as ``kind: sentence``.
    files : tuple of Path
        Its segments, in order.
    damage : tuple of Damaged
        The first bad place of each file, and gaps between files. What precedes the first is sent.
    torn : tuple of Torn
        Of the last file, and of files begun after it; empty while a writer lives, who may be in the middle of a
        write.
    """

    uid: str
    name: str
    number: int
    scan_id: int | str | None
    first: int
    acked: int
    end: int
    waiting: int
    nbytes: int
    since: float | None
    parked: str | None
    files: tuple[Path, ...]
    damage: tuple[Damaged, ...]
    torn: tuple[Torn, ...]
    segments: tuple[Segment, ...]

    @property
    def label(self) -> str:
        """What people call it."""
        if self.scan_id is not None:
            return f"scan {self.scan_id}"
        if self.uid:
            return f"run {self.uid[:8]}"
        return "documents of no run" if self.number >= 0 else self.name


@dataclass(frozen=True, slots=True)
class JournalLook:
    """A journal at one moment.

    Attributes
    ----------
    target : str or None
        Where it is to be shipped to; None if nothing in it says so.
    epoch : int
        0 where `target` is None.
    held : bool
        True while a living process has it; otherwise it is an orphan.
    holder : Holder or None
        Who has it, or had it last.
    problem : str or None
        Why nobody can take it over.
    runs : tuple of JournaledRun
        In the order of opening.
    """

    path: Path
    target: str | None
    epoch: int
    held: bool
    holder: Holder | None
    problem: str | None
    runs: tuple[JournaledRun, ...]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def waiting(self) -> int:
        """Documents that are not acknowledged."""
        return sum(run.waiting for run in self.runs)

    @property
    def nbytes(self) -> int:
        """Bytes of these in files."""
        return sum(run.nbytes for run in self.runs)

    @property
    def since(self) -> float | None:
        """Time of the oldest of these, Unix seconds."""
        return min((run.since for run in self.runs if run.since is not None), default=None)


def look_at(path: Path) -> JournalLook | None:
    """Read every frame of a journal and return what is there; None if it is gone.

    Holds the lock of an orphan for a moment only, and changes nothing.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _look_at(path)
        except FileNotFoundError:  # its writer deleted what was acknowledged just now
            if not path.is_dir():
                return None
            if attempt == _ATTEMPTS - 1:
                raise
    return None


def _look_at(path: Path) -> JournalLook:
    held = is_locked(path)
    target, epoch, problem = None, 0, None
    try:
        target, epoch = identity(path)
    except FlystoreError as error:
        problem = str(error)
    runs = [_read_run(path, name, files, held) for name, files in sorted(segment_files(path).items())]
    runs.sort(key=lambda run: (run.number < 0, run.number))
    return JournalLook(path, target, epoch, held, last_holder(path), problem, tuple(runs))


def last_holder(path: Path) -> Holder | None:
    """Return who holds a journal or held it last; None if nobody noted it.

    Raises
    ------
    OSError
        If the journal is gone or may not be read.
    """
    found = _HOLDER.match((path / "lock").read_text(errors="replace"))
    return Holder(int(found[1]), found[2]) if found else None


def _read_run(path: Path, name: str, files: list[tuple[int, Path]], held: bool) -> JournaledRun:
    segments: list[Segment] = []
    damage: list[Damaged] = []
    torn: list[Torn] = []
    header: SegmentHeader | None = None
    whole = True  # up to here, so that the next segment must follow
    last = last_begun(files)
    for number, file in files:
        opened = open_segment(file, number, last=number >= last)
        if opened.torn_at is not None and not held:
            torn.append(Torn(file, number, opened.torn_at))
        if opened.damage is not None:
            damage.append(opened.damage)
        if opened.segment is not None and opened.header is not None:
            missing = missing_before(opened.segment, segments) if whole else None
            if missing is not None:
                damage.append(missing)
            segments.append(opened.segment)
            header = opened.header
        whole = opened.damage is None
    acked = read_acked(path, name).ordinal
    first = segments[0].first if segments else 0
    acked = max(acked, first)
    left = [segment for segment in segments if segment.end > acked]
    return JournaledRun(
        uid=header.run if header else "",
        name=name,
        number=header.log if header else -1,
        scan_id=_scan_id(segments),
        first=first,
        acked=acked,
        end=segments[-1].end if segments else 0,
        waiting=sum(segment.end - max(acked, segment.first) for segment in left),
        nbytes=sum(segment.size - _offset_of(segment, acked) for segment in left),
        since=_oldest(left, acked),
        parked=_parked(path, name),
        files=tuple(file for _, file in files),
        damage=tuple(damage),
        torn=tuple(torn),
        segments=tuple(segments),
    )


def _parked(path: Path, name: str) -> str | None:
    try:
        return (path / f"{name}.parked").read_text(encoding="utf-8", errors="replace").strip() or None
    except FileNotFoundError:
        return None


class _Frame(NamedTuple):
    ordinal: int  # a template has that of the document after it
    offset: int
    payload: bytes


def _frames(segment: Segment) -> Iterator[_Frame]:
    with open(segment.path, "rb") as file:
        data = file.read(segment.size)
    ordinal = segment.first
    for start, stop in frames.scan(data).spans[1:]:
        payload = data[start:stop]
        yield _Frame(ordinal, start - frames.HEADER.size, payload)
        ordinal += frames.is_document(payload)


def _offset_of(segment: Segment, ordinal: int) -> int:
    """Return where the document begins, templates before it included."""
    if ordinal <= segment.first:
        return segment.marks[0][1]
    return next((frame.offset for frame in _frames(segment) if frame.ordinal == ordinal), segment.size)


def _oldest(segments: list[Segment], acked: int) -> float | None:
    for segment in segments:
        for frame in _frames(segment):
            if frame.ordinal >= acked and frames.is_document(frame.payload):
                time = _time_of(frame.payload)
                if time is not None:
                    return time
    return None


def _time_of(payload: bytes) -> float | None:
    doc = _plain_document(payload)[1]
    time = doc.get("time")
    return float(time) if isinstance(time, (int, float)) else None


def _scan_id(segments: list[Segment]) -> int | str | None:
    if not segments or segments[0].first > 0:
        return None
    frame = next(_frames(segments[0]), None)
    found = None if frame is None else _plain_document(frame.payload)[1].get("scan_id")
    return found if isinstance(found, (int, str)) else None


def _plain_document(payload: bytes) -> tuple[str, dict[str, Any]]:
    """Return name and document of a payload alone: of a row without the names of its values."""
    try:
        fields = decode(payload)
        if fields[0] == 0 and isinstance(fields[2], dict):
            return str(fields[1]), fields[2]
        return "event", dict(zip(_ROW_FIELDS, fields[2:], strict=False))
    except (FlystoreError, msgspec.DecodeError, ValueError, TypeError, IndexError):
        return "unreadable", {}


class JournaledDocument(NamedTuple):
    """A document in a journal.

    Attributes
    ----------
    ordinal : int
        Its index in its run.
    name : str
    doc : dict
    named : bool
        False for an event whose keys were sent, acknowledged and deleted with an earlier file: then `data`,
        `timestamps` and `filled` are lists of values. The service has the keys.
    """

    ordinal: int
    name: str
    doc: dict[str, Any]
    named: bool


def documents(run: JournaledRun) -> Iterator[JournaledDocument]:
    """Yield the documents of a run that are still here and readable, in order.

    Raises
    ------
    Damaged
        Where the log is damaged, after everything that is readable.
    """
    decoder = frames.FrameDecoder()
    for segment in run.segments:
        for frame in _frames(segment):
            try:
                document = decoder.decode(frame.payload)
            except InvalidRequest:
                yield JournaledDocument(frame.ordinal, *_plain_document(frame.payload), named=False)
            else:
                if document is not None:
                    yield JournaledDocument(frame.ordinal, *document, named=True)
    if run.damage:
        raise run.damage[0]
