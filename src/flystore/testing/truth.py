"""Runs with known truth: what detectors took, which documents tell of it, and what a reader must be given.

A `Case` says what happened, step by step: which points of which streams were taken in which order, which frame of which
file each camera took for it, what was announced, and what got lost. From it follow the documents, the files
(`truth_files`), and, by rules written down here a row at a time and shared with nobody, every value that reading may
give. Each value follows from run, key, file and row, and none is zero, so that a frame in the wrong place, a frame
shown twice and a fill value all show.

The rules:

* a frame announced again for the same seq_num counts once;
* the k-th frame announced for a seq_num is that of the k-th Event with it;
* rows come in the order of the Events, then those without an Event by (seq_num, take); without Events by
  (seq_num, take);
* what is not in the file is not a row.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

Document = tuple[str, dict[str, Any]]

HDF5, TIFF, NPY = (
    "application/x-hdf5",
    "multipart/related;type=image/tiff",
    "multipart/related;type=application/x-npy",
)
DATASET = "/entry/data/data"
MISSING = object()
"""In place of a value that an Event does not have."""

Row = tuple[int, int]
"""(seq_num, take)"""


# --- values ----------------------------------------------------------------------------------------------


def values(number: int, key: str, file: int, row: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return what a camera writes at one row of a file: `shape` of `dtype`, no value zero.

    Parameters
    ----------
    number : int
        Tells the runs of one test from each other.
    file, row : int
        Number of the file among those of the key, and row in it, counted in events.
    """
    mark = blake2b(f"{number}/{key}/{file}/{row}".encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        mixed = np.arange(math.prod(shape), dtype=np.uint64) + np.frombuffer(mark, "<u8")
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    kind = np.dtype(dtype)
    most = 2 ** {"u": 8 * kind.itemsize, "i": 8 * kind.itemsize - 1, "f": 20}[kind.kind] - 1
    found = (mixed % np.uint64(min(most, 2**50)) + np.uint64(1)).astype(kind)
    return (found + kind.type(0.5) if kind.kind == "f" else found).reshape(shape)


# --- what happened ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Announced:
    """One frame as announced: number of the resource among the camera's, and index in it."""

    resource: int
    index: int


@dataclass(frozen=True)
class File:
    """One HDF5 file, or one sequence of files.

    Attributes
    ----------
    name : str
        Below the directory of the run; of a sequence, its directory.
    rows : int
        What the camera took, in events.
    length : int
        How many of these the file has in the end; less if it was closed early.
    unwritten : set of int
        Rows that were never written, or whose files are not there.
    there : bool
        Whether the file is where the documents say.
    part_of_next : int
        Frames of a row begun and not finished, behind `length`; less than an event has.
    """

    name: str
    rows: int
    length: int
    unwritten: frozenset[int] = frozenset()
    there: bool = True
    part_of_next: int = 0

    def has(self, row: int) -> bool:
        return row < self.length and row not in self.unwritten


@dataclass(frozen=True)
class Resource:
    """One StreamResource: the number of its file, and the index with which the file's first row is announced."""

    file: int
    base: int = 0


@dataclass(frozen=True)
class Camera:
    """One externally stored key.

    Attributes
    ----------
    name : str
        Data key.
    mimetype : str
    dtype : str
    frames : int
        Frames of an event; 1 may or may not be an axis of its own, see `form`.
    inner : tuple of int
        Shape of one frame; ``()`` for a number.
    form : str
        How documents say that an event has several frames: ``shape``, ``flat`` (one frame, no axis for it),
        ``concat``, or a parameter: ``multiplier``, ``frames_per_event``, ``frame_per_point``. Of a TIFF
        sequence also ``pages``.
    storage : dict
        Of the HDF5 dataset: ``chunk`` (rows a chunk), ``compression``, ``contiguous``.
    dims : bool
        Whether the data key names the axes.
    taken : dict of (seq_num, Announced) to int
        The point for which each frame was taken.
    """

    name: str
    mimetype: str
    dtype: str
    frames: int
    inner: tuple[int, ...]
    form: str
    files: tuple[File, ...]
    resources: tuple[Resource, ...]
    storage: Mapping[str, Any] = field(default_factory=dict)
    dims: bool = False
    taken: Mapping[tuple[int, "Announced"], int] = field(default_factory=dict)

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of what one event reads as."""
        if self.form == "flat":
            return self.inner
        return (self.frames, *self.inner)

    @property
    def is_concat(self) -> bool:
        return self.form == "concat"

    def data_key(self) -> dict[str, Any]:
        shape = list(self.inner if self.form in _BY_PARAMETER else self.item_shape)
        key: dict[str, Any] = {"source": f"truth:{self.name}", "dtype": "array", "external": "STREAM:"}
        if self.dtype != "<f8" or self.dims:
            key["dtype_numpy"] = self.dtype
        if self.dims and not self.is_concat:
            key["dims"] = [f"axis{n}" for n in range(len(self.item_shape))]
        return {**key, "shape": shape or ([1] if self.storage.get("shape_of_one") else [])}

    def resource_doc(self, uid: str, run_uid: str, root: str, resource: Resource) -> dict[str, Any]:
        uri = f"file://localhost{root}/{self.files[resource.file].name}"
        parameters: dict[str, Any] = {}
        if self.form in _BY_PARAMETER:
            parameters[self.form] = self.frames
        if self.mimetype == HDF5:
            parameters |= {"dataset": DATASET, "chunk_shape": list(self.chunk_shape)}
            if self.is_concat:
                parameters["join_method"] = "concat"
        elif self.mimetype == TIFF:
            uri += "/"
            chunk = [1] if self.form == "pages" else [1, *self.inner]
            parameters |= {"template": "%s%s_%5.5d.tiff", "filename": "shot", "chunk_shape": chunk}
        else:
            uri += "/shot"
        return {
            "uid": uid,
            "run_start": run_uid,
            "data_key": self.name,
            "mimetype": self.mimetype,
            "uri": uri,
            "parameters": parameters,
        }

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (int(self.storage.get("chunk", 1)), *self.inner)

    def value(self, number: int, file: int, row: int) -> np.ndarray:
        """Return what the camera took for one event: `item_shape` of `dtype`."""
        return values(number, self.name, file, row, (self.frames, *self.inner), self.dtype).reshape(self.item_shape)


_BY_PARAMETER = ("multiplier", "frames_per_event", "frame_per_point")


@dataclass(frozen=True)
class Stream:
    """One stream: its points as they were taken, and what was read at each.

    Attributes
    ----------
    columns : dict of str to dict
        Internal data keys.
    points : tuple of int
        The seq_num of each point taken, in order; it falls back where the plan went back.
    data : tuple of dict
        What the Event of each point holds; keys may be absent.
    """

    name: str
    columns: Mapping[str, Mapping[str, Any]]
    cameras: Mapping[str, Camera]
    points: tuple[int, ...]
    data: tuple[Mapping[str, Any], ...]
    descriptors: int = 1

    def event(self, point: int) -> dict[str, Any]:
        data, time = dict(self.data[point]), 1002.0 + point
        stamps = dict.fromkeys(data, time)
        return {"seq_num": self.points[point], "time": time, "data": data, "timestamps": stamps, "filled": {}}


@dataclass(frozen=True)
class Step:
    """One document, in symbols.

    Attributes
    ----------
    kind : str
        ``descriptor``, ``resource``, ``datum``, ``event``, ``page``, ``stop`` or ``odd``.
    stream, key : str
    number : int
        Of the descriptor, resource, or point.
    numbers : tuple of int
        Of the points of an EventPage.
    index, seq, count : int
        Of a StreamDatum.
    descriptor : int
        Which of the stream's descriptors an Event or StreamDatum names.
    doc : (str, dict) or None
        Of an odd document: itself.
    plain : bool
        Of a StreamDatum: without seq_nums of its own.
    """

    kind: str
    stream: str = ""
    key: str = ""
    number: int = 0
    index: int = 0
    seq: int = 0
    count: int = 0
    descriptor: int = 0
    doc: Document | None = None
    plain: bool = False
    numbers: tuple[int, ...] = ()

    @property
    def points(self) -> tuple[int, ...]:
        """Points whose Events the document holds."""
        return (self.number,) if self.kind == "event" else self.numbers


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes
    ----------
    streams : dict of str to Stream
    steps : tuple of Step
        The documents after the Start, in the order in which they come.
    cuts : tuple of int
        Where the documents are cut into batches.
    repeated : tuple of int
        Numbers of the batches that are sent twice.
    look_after : int or None
        After this batch the run is read while it goes on.
    growing : bool
        Whether the files then have only half of their rows.
    choices : int
        Seed of which slices are read.
    """

    streams: Mapping[str, Stream]
    steps: tuple[Step, ...]
    cuts: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    look_after: int | None = None
    growing: bool = False
    choices: int = 0

    @property
    def has_stop(self) -> bool:
        return any(step.kind == "stop" for step in self.steps)

    def documents(self, uid: str, root: str) -> list[Document]:
        """Return the run's documents.

        Parameters
        ----------
        uid : str
        root : str
            Absolute path of the directory of its files.
        """
        start = {"uid": uid, "time": 1000.0, "scan_id": 7, "plan_name": "truth"}
        return [("start", start), *(self._document(uid, root, n, step) for n, step in enumerate(self.steps))]

    def _document(self, uid: str, root: str, place: int, step: Step) -> Document:
        if step.doc is not None:
            return step.doc
        if step.kind == "stop":
            return "stop", {"uid": f"{uid}-stop", "run_start": uid, "time": 2000.0, "exit_status": "success"}
        stream = self.streams[step.stream]
        descriptor = f"{uid}-d-{step.stream}-{step.descriptor}"
        match step.kind:
            case "descriptor":
                return "descriptor", {
                    "uid": descriptor,
                    "run_start": uid,
                    "time": 1001.0,
                    "name": step.stream,
                    "data_keys": {
                        **stream.columns,
                        **{name: camera.data_key() for name, camera in stream.cameras.items()},
                    },
                    "configuration": {},
                    "object_keys": {},
                    "hints": {},
                }
            case "resource":
                camera = stream.cameras[step.key]
                name = resource_uid(uid, step)
                return "stream_resource", camera.resource_doc(name, uid, root, camera.resources[step.number])
            case "datum":
                seq_nums = (0, 0) if step.plain else (step.seq, step.seq + step.count)
                return "stream_datum", {
                    "uid": f"{uid}-datum-{place}",
                    "stream_resource": resource_uid(uid, step),
                    "descriptor": descriptor,
                    "indices": {"start": step.index, "stop": step.index + step.count},
                    "seq_nums": dict(zip(("start", "stop"), seq_nums, strict=True)),
                }
            case "event":
                event = stream.event(step.number)
                return "event", {"uid": f"{uid}-event-{place}", "descriptor": descriptor, **event}
            case _:
                uids = [f"{uid}-event-{place}-{number}" for number in step.numbers]
                events = [stream.event(number) for number in step.numbers]
                return "event_page", {"uid": uids, "descriptor": descriptor, **_page(events)}

    def waiting(self, steps: Iterable[Step]) -> int:
        """Return the frames announced for a resource or descriptor that none of these steps brings."""
        steps = list(steps)
        known = {(step.kind, step.stream, step.key, step.number) for step in steps}
        return sum(
            step.count
            for step in steps
            if step.kind == "datum"
            and not known
            >= {
                ("resource", step.stream, step.key, step.number),
                ("descriptor", step.stream, "", step.descriptor),
            }
        )

    def told(self, steps: Iterable[Step]) -> dict[str, "Told"]:
        """Return what is known of each stream of which anything is known, after the Start and these steps."""
        steps = list(steps)
        names = dict.fromkeys(step.stream for step in steps if step.kind == "descriptor")
        return {name: Told(self.streams[name], [step for step in steps if step.stream == name]) for name in names}


def _page(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return Events as columns; what an Event does not have is null."""
    page: dict[str, Any] = {name: [event[name] for event in events] for name in ("seq_num", "time")}
    for name in ("data", "timestamps"):
        keys = dict.fromkeys(key for event in events for key in event[name])
        page[name] = {key: [event[name].get(key) for event in events] for key in keys}
    return {**page, "filled": {}}


def resource_uid(uid: str, step: Step) -> str:
    return f"{uid}-r-{step.stream}-{step.key}-{step.number}"


# --- what a reader must be given -------------------------------------------------------------------------


class KeyTold:
    """What was told of one camera.

    Attributes
    ----------
    rows : list of (seq_num, take)
        In the order in which they are served.
    frames : dict of (seq_num, take) to Announced
    announced, duplicate, extra : int
        Rows; see `flystore.projection.KeyVerdict`.
    positions : dict of int to int
        Number of a resource -> place in the order of announcement, of those that are known and used.
    """

    def __init__(self, camera: Camera, steps: Sequence[Step], events: Sequence[int]) -> None:
        self.camera = camera
        known = {step.number: place for place, step in enumerate(steps) if _is(step, "resource", camera)}
        self.frames: dict[Row, Announced] = {}
        self.announced = self.duplicate = 0
        described = {step.descriptor for step in steps if step.kind == "descriptor"}
        seen: set[tuple[int, Announced]] = set()
        takes: Counter[int] = Counter()
        for step in steps:
            if not _is(step, "datum", camera) or step.number not in known or step.descriptor not in described:
                continue
            for offset in range(step.count):
                seq, frame = step.seq + offset, Announced(step.number, step.index + offset)
                self.announced += 1
                if (seq, frame) in seen:
                    self.duplicate += 1
                    continue
                seen.add((seq, frame))
                self.frames[(seq, takes[seq])] = frame
                takes[seq] += 1
        used = {frame.resource for frame in self.frames.values()}
        order = sorted(used, key=lambda resource: known[resource])
        self.positions = {resource: place for place, resource in enumerate(order)}
        with_event = [row for row in numbered(events) if row in self.frames]
        without = sorted(self.frames.keys() - set(with_event))
        self.rows: list[Row] = [*with_event, *without]
        self.extra = len(without) if events else 0

    def is_settled(self, rows_of: Mapping[int, int] | None = None) -> bool:
        """Return whether what was told so far, and the lengths of the files, tell in which row each frame is.

        They do not while the last ranges of a file that others go on from are still to come, and neither does it have
        all its rows.
        """
        reached, ended, bases = 0, 0, dict[int, int]()
        for resource in self.positions:
            indices = [frame.index for frame in self.frames.values() if frame.resource == resource]
            number = self.camera.resources[resource].file
            start = ended if reached < ended <= min(indices) else reached
            base = bases.setdefault(number, start if 0 < start <= min(indices) else 0)
            if base != self.camera.resources[resource].base:
                return False
            reached = max(reached, max(indices) + 1)
            file = self.camera.files[number]
            now = min(file.length, (rows_of or {}).get(number, file.length)) if file.there else 0
            ended = max(ended, base + max((row + 1 for row in range(now) if file.has(row)), default=0))
        return True

    @property
    def present(self) -> int:
        return len(self.rows) - self.extra

    @property
    def retaken(self) -> int:
        return sum(take > 0 for _, take in self.rows)

    @property
    def gaps(self) -> int:
        seqs = {seq for seq, _ in self.rows}
        return max(seqs, default=0) - len(seqs)

    def place(self, row: Row) -> tuple[int, int]:
        """Return (number of the file, row in it) of a row's frame."""
        frame = self.frames[row]
        resource = self.camera.resources[frame.resource]
        return resource.file, frame.index - resource.base

    def is_lost(self, row: Row) -> bool:
        """Whether the whole file is not there, so that nobody can know about the row."""
        return not self.camera.files[self.place(row)[0]].there

    def readable(self, rows_of: Mapping[int, int] | None = None, *, going_on: bool = False) -> list[Row]:
        """Return the rows that are served: those in the files, and those of files that cannot be reached.

        Parameters
        ----------
        rows_of : dict of int to int, optional
            How many rows each file has now, where that is less than in the end.
        going_on : bool
            Whether the run is not over: then a file that is not there is awaited, with all that comes after it.
        """
        rows = list(itertools.takewhile(lambda row: not self.is_lost(row), self.rows)) if going_on else self.rows
        return [row for row in rows if self.is_lost(row) or self._is_there(row, rows_of or {})]

    def _is_there(self, row: Row, rows_of: Mapping[int, int]) -> bool:
        file, at = self.place(row)
        return self.camera.files[file].has(at) and at < rows_of.get(file, at + 1)

    def value(self, number: int, row: Row) -> np.ndarray:
        return self.camera.value(number, *self.place(row))

    def point(self, row: Row) -> int:
        """Return the point for which the frame of a row was taken."""
        return self.camera.taken[(row[0], self.frames[row])]


def _is(step: Step, kind: str, camera: Camera) -> bool:
    return step.kind == kind and step.key == camera.name


def numbered(seq_nums: Iterable[int]) -> list[Row]:
    """Return each seq_num with how often it came before."""
    seen: Counter[int] = Counter()
    rows = []
    for seq in seq_nums:
        rows.append((seq, seen[seq]))
        seen[seq] += 1
    return rows


class Told:
    """What was told of one stream.

    Attributes
    ----------
    points : list of int
        Number of the point of each Event, in order of arrival.
    events : list of (seq_num, take)
    stream_rows : list of (seq_num, take)
        Of the Events, or else of the cameras; in the stream's order.
    keys : dict of str to KeyTold
        Cameras of which a frame is known.
    rows, retaken, holes : int
        See `flystore.projection.StreamVerdict`.
    """

    def __init__(self, stream: Stream, steps: Sequence[Step]) -> None:
        self.stream = stream
        self.points = [number for step in steps for number in step.points]
        self.events = numbered(stream.points[number] for number in self.points)
        seq_nums = [seq for seq, _ in self.events]
        told = {name: KeyTold(camera, steps, seq_nums) for name, camera in stream.cameras.items()}
        self.keys = {name: key for name, key in told.items() if key.announced}
        self.stream_rows = self.events or all_rows(key.rows for key in self.keys.values())
        seqs = {seq for seq, _ in self.stream_rows}
        self.rows = len(self.stream_rows)
        self.retaken = self.rows - len(seqs)
        self.holes = max(seqs, default=0) - len(seqs)

    @property
    def columns(self) -> list[str]:
        """Internal keys that any Event has."""
        return list(dict.fromkeys(key for number in self.points for key in self.stream.data[number]))

    def column(self, key: str) -> list[Any]:
        """Return the value of each Event, `MISSING` where it has none or null."""
        found = (self.stream.data[number].get(key) for number in self.points)
        return [MISSING if value is None else value for value in found]

    def missing(self, key: str) -> int:
        """Return the rows of the stream for which a camera announced no frame."""
        return self.rows - (self.keys[key].present if key in self.keys else 0)


def last_rows(sources: Iterable[Sequence[Row]]) -> list[Row]:
    """Return, for each seq_num of any source, its row with the highest take."""
    takes: dict[int, int] = {}
    for seq, take in (row for source in sources for row in source):
        takes[seq] = max(take, takes.get(seq, 0))
    return sorted(takes.items())


def all_rows(sources: Iterable[Sequence[Row]]) -> list[Row]:
    """Return every row of any source, in order."""
    return sorted({row for source in sources for row in source})
