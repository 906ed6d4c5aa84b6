"""Hypothesis strategies for `truth.Case`: runs in which anything may have gone wrong that goes wrong at beamlines.

`cases()` draws runs with every defect there is a rule for. What the documents alone cannot tell is left out; these are
the limits of what can be known, and the laws under which a case is drawn:

* Where indices go on from file to file and the last frames of a file were not announced, that file is whole: its
  length is all that tells with which index the next one begins. A file whose indices start again has been announced
  from its index 0 on.
* Of the points that were taken again, at most one source of a stream (its Events, or one camera) lost any. Frames are
  paired with Events by arrival, so with two such sources nobody could tell which belong together.
* Ranges that arrive out of order keep the order of those that hold the same seq_num.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from .truth import HDF5, NPY, TIFF, Announced, Camera, Case, Document, File, KeyTold, Resource, Step, Stream, Told

STREAM_NAMES = ["primary", "slow", "a/b", "..", "", "streams", "internal", "größe", "x y", "X", "x"]
COLUMN_NAMES = [
    "motor", "time", "time_", "seq_num", "a/b", "a%b", "x", "X", "ts_x", "internal", "internal_0", "größe", "", "take",
    "cam0_dim1",
]  # fmt: skip
CAMERA_NAMES = ["cam0", "cam1", "cam/2", "internal", "time", "..", "q?#", "x", "x y"]

_SEVERAL = ("shape", "multiplier", "frames_per_event", "frame_per_point", "concat")
_TAIL = 1000


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a run of one or two streams."""
    names = draw(st.lists(st.sampled_from(STREAM_NAMES), min_size=1, max_size=2, unique=True))
    if draw(st.integers(0, 2)):
        names = ["primary", "slow"][: len(names)]
    drawn = {name: _Drawn(draw, name, n) for n, name in enumerate(names)}
    steps = _interleaved(draw, [each.steps() for each in drawn.values()])
    steps += [_odd(draw, steps) for _ in range(draw(_rarely(1, 2)))]
    if draw(st.integers(0, 9)):
        late = draw(_rarely(1, 3))
        steps.insert(max(0, len(steps) - late), Step("stop"))
    streams = {name: each.stream() for name, each in drawn.items()}
    cuts = sorted(draw(st.sets(st.integers(1, len(steps)), max_size=4)))
    batches = len(cuts) + 1
    files_grow = all(_can_grow(camera) for stream in streams.values() for camera in stream.cameras.values())
    return Case(
        streams,
        tuple(steps),
        tuple(cuts),
        tuple(sorted(draw(st.sets(st.integers(0, batches - 1), max_size=2)))) if draw(st.booleans()) else (),
        draw(st.integers(0, batches - 1)) if draw(st.integers(0, 2)) == 0 else None,
        files_grow and draw(st.booleans()),
        draw(st.integers(0, 2**20)),
    )


def _rarely(low: int, high: int) -> st.SearchStrategy[int]:
    """Mostly 0, sometimes low … high."""
    return st.one_of(st.just(0), st.just(0), st.just(0), st.integers(low, high))


def _can_grow(camera: Camera) -> bool:
    whole = all(file.there for file in camera.files)
    return whole and camera.mimetype == HDF5 and not camera.storage.get("contiguous")


def _interleaved(draw: st.DrawFn, queues: Sequence[list[Step]]) -> list[Step]:
    """Return the steps of several streams in one order that keeps each stream's own."""
    rng = draw(st.randoms(use_true_random=False)) if len(queues) > 1 else None
    queues = [list(queue) for queue in queues]
    out = []
    while waiting := [queue for queue in queues if queue]:
        out.append((waiting[0] if rng is None else rng.choice(waiting)).pop(0))
    return out


def _odd(draw: st.DrawFn, steps: Sequence[Step]) -> Step:
    """Return a document that makes no sense, and by which nothing changes."""
    nonsense: list[Document] = [
        ("event", {"uid": "e", "descriptor": "nobody", "seq_num": 1, "time": 0.0, "data": {}, "timestamps": {}}),
        ("weather", {"temperature": 21.5}),
        ("stream_datum", {"uid": "d", "stream_resource": "nobody", "descriptor": "nobody", "indices": None}),
        ("stream_datum", {"uid": "d", "stream_resource": "r", "descriptor": "d", "indices": {"start": 3, "stop": 3}}),
        ("stream_datum", {"uid": "d", "stream_resource": "r", "descriptor": "d", "indices": {"start": -2, "stop": 1}}),
        ("event_page", {"descriptor": "nobody", "seq_num": [1], "time": [0.0], "data": {}, "timestamps": {}}),
    ]
    return Step("odd", doc=draw(st.sampled_from(nonsense)))


# --- one stream ------------------------------------------------------------------------------------------


class _Drawn:
    """What is drawn of one stream, point by point."""

    def __init__(self, draw: st.DrawFn, name: str, number: int) -> None:
        self.draw, self.name = draw, name
        self.points = _points(draw)
        self.descriptors = draw(st.sampled_from([1, 1, 1, 2]))
        self.second_from = draw(st.integers(0, len(self.points))) if self.descriptors > 1 else _TAIL
        seen: set[int] = set()
        again = {seq for seq in self.points if seq in seen or seen.add(seq)}  # type: ignore[func-returns-value]
        self.taken_again = {n for n, seq in enumerate(self.points) if seq in again}
        kinds = draw(st.sampled_from(["both", "both", "frames", "events"]))
        names = draw(st.lists(st.sampled_from(CAMERA_NAMES), min_size=1, max_size=3, unique=True))
        if draw(st.booleans()):
            names = [f"cam{n}" for n in range(len(names))]
        names = [] if kinds == "events" else names
        loser = draw(st.sampled_from(["", "events", *names])) if self.taken_again else None
        self.columns: dict[str, dict[str, Any]] = {}
        self.data: list[dict[str, Any]] = [{} for _ in self.points]
        self.with_event: list[int] = []
        if kinds != "frames":
            lost = self._lost(loser in (None, "events"))
            self.with_event = [n for n in range(len(self.points)) if n not in lost]
            self._draw_columns(names)
        self.cameras = [
            _DrawnCamera(draw, name, f"{number}-{n}", self, self._lost(loser in (None, name)))
            for n, name in enumerate(names)
        ]

    def _lost(self, may_lose_retaken: bool) -> set[int]:
        """Return points of which a source has nothing: some in the middle, or all from one on."""
        draw = self.draw
        if not self.points or draw(st.integers(0, 2)):
            return set()
        last = len(self.points)
        if draw(st.booleans()):
            lost = set(range(draw(st.integers(0, last)), last))
        else:
            lost = draw(st.sets(st.integers(0, last - 1), max_size=3))
        return lost if may_lose_retaken else lost - self.taken_again

    def _draw_columns(self, cameras: Sequence[str]) -> None:
        draw = self.draw
        free = [name for name in COLUMN_NAMES if name not in cameras]
        for name in draw(st.lists(st.sampled_from(free), max_size=4, unique=True)):
            declared, value = draw(st.sampled_from(_COLUMNS))
            self.columns[name] = {"source": f"truth:{name}", **declared}
            for n in self.with_event:
                kept = draw(st.integers(0, 7))
                if kept:
                    self.data[n][name] = None if kept == 1 else value(draw, n)

    def stream(self) -> Stream:
        return Stream(
            self.name,
            self.columns,
            {each.name: each.camera() for each in self.cameras},
            tuple(self.points),
            tuple(self.data),
            self.descriptors,
        )

    def descriptor_at(self, point: int) -> int:
        return int(point >= self.second_from)

    def steps(self) -> list[Step]:
        """Return the stream's documents in order of arrival."""
        placed: list[tuple[float, Step]] = [(-2.0, Step("descriptor", self.name))]
        if self.descriptors > 1:
            placed.append((self.second_from - 0.9, Step("descriptor", self.name, number=1, descriptor=1)))
        placed += [
            (float(n), Step("event", self.name, number=n, descriptor=self.descriptor_at(n))) for n in self.with_event
        ]
        for camera in self.cameras:
            placed += camera.steps()
        steps = [step for _, step in sorted(placed, key=lambda each: each[0])]
        return _paged(steps) if self.draw(_rarely(1, 1)) else steps


def _paged(steps: Sequence[Step]) -> list[Step]:
    """Return steps with Events that follow each other put into one EventPage."""
    out: list[Step] = []
    for step in steps:
        last = out[-1] if out else None
        if step.kind != "event":
            out.append(step)
        elif last is not None and last.kind == "page" and last.descriptor == step.descriptor:
            out[-1] = replace(last, numbers=(*last.numbers, step.number))
        else:
            out.append(replace(step, kind="page", number=0, numbers=(step.number,)))
    return out


def _points(draw: st.DrawFn) -> list[int]:
    """Return the seq_nums of the points in the order in which they were taken."""
    number = draw(st.sampled_from(range(9)))
    returns = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), max_size=2)
    back = dict(draw(returns)) if draw(st.booleans()) else {}
    points, seq = [], 1
    while seq <= number:
        points.append(seq)
        seq = max(1, seq + 1 - back.pop(seq)) if seq in back else seq + 1
    return points


# --- one camera ------------------------------------------------------------------------------------------


class _Shot:
    """A frame that is announced: of which point, and where it is."""

    def __init__(self, point: int, seq: int, resource: int, index: int) -> None:
        self.point, self.seq, self.resource, self.index = point, seq, resource, index


class _DrawnCamera:
    """What is drawn of one camera: it takes the stream's points one after the other."""

    def __init__(self, draw: st.DrawFn, name: str, place: str, stream: _Drawn, lost: set[int]) -> None:
        self.draw, self.name, self.place, self.stream = draw, name, place, stream
        self.mimetype = draw(st.sampled_from([HDF5] * 6 + [TIFF, NPY]))
        self.layout = draw(
            st.sampled_from(["one", "one", "goes on", "goes on", "starts again", "same file", "round robin"])
        )
        self.bases: list[int] = []
        self.file_of: list[int] = []
        self.reached: list[int] = []
        self.next: list[int] = []
        self.shots: list[_Shot] = []
        self.whole: set[int] = set()
        self._take(lost)
        self.files = self._files()

    # --- taking ------------------------------------------------------------------------------------------

    def _take(self, lost: set[int]) -> None:
        draw, points = self.draw, self.stream.points
        first = draw(_rarely(1, 4))
        robin = draw(st.integers(2, 3)) if self.layout == "round robin" else 1
        for number in range(robin):
            self._open(number, 0, first if number == 0 else 0)
        changes = draw(st.sets(st.integers(1, 12), max_size=2)) if self.layout not in ("one", "round robin") else set()
        spare = draw(st.dictionaries(st.integers(0, 12), st.integers(1, 3), max_size=2)) if draw(_rarely(1, 1)) else {}
        held = draw(st.sets(st.integers(1, 12), max_size=3)) if draw(_rarely(1, 1)) else set()
        for point, seq in enumerate(points):
            resource = point % robin if robin > 1 else len(self.bases) - 1
            if point in changes and self.reached[-1]:
                resource = self._change()
            starts_again = self.layout in ("starts again", "round robin")
            is_first = resource > 0 and starts_again and self.reached[resource] == 0
            if point in lost:
                # Not taken at all, or taken and not announced.
                if not is_first and draw(st.booleans()):
                    self.next[resource] += 1
                continue
            if point in spare and not is_first:
                self.next[resource] += spare[point]
            before = self.shots[-1] if self.shots else None
            if point in held and before is not None and before.resource == resource and before.seq < seq:
                index = before.index
            else:
                index = self.next[resource]
                self.next[resource] += 1
            self.shots.append(_Shot(point, seq, resource, index))
            self.reached[resource] = max(self.reached[resource], index + 1)

    def _open(self, file: int, base: int, next_index: int) -> None:
        self.file_of.append(file)
        self.bases.append(base)
        self.next.append(next_index)
        self.reached.append(0)

    def _change(self) -> int:
        """Open the next resource; return its number."""
        if self.layout == "same file":
            self._open(self.file_of[-1], self.bases[-1], self.next[-1])
        elif self.layout == "goes on":
            self.next[-1] += self.draw(st.integers(0, 2))
            if self.next[-1] > max(self.reached):
                self.whole.add(self.file_of[-1])
            self._open(self.file_of[-1] + 1, self.next[-1], self.next[-1])
        else:
            self._open(self.file_of[-1] + 1, 0, 0)
        return len(self.bases) - 1

    def _files(self) -> list[File]:
        draw = self.draw
        rows = [0] * (max(self.file_of) + 1)
        for resource, place in enumerate(self.file_of):
            rows[place] = max(rows[place], self.next[resource] - self.bases[resource])
        spoilt = draw(st.sampled_from(["", "", "", "short", "unwritten", "missing"]))
        which = draw(st.integers(0, len(rows) - 1))
        files = []
        for number, taken in enumerate(rows):
            file = File(f"{self.place}/f{number}" + (".h5" if self.mimetype == HDF5 else ""), taken, taken)
            if number == which and spoilt and taken and number not in self.whole:
                file = self._spoilt(file, spoilt)
            if self.mimetype != HDF5 and not any(file.has(row) for row in range(taken)):
                file = File(file.name, taken, taken, there=False)
            files.append(file)
        return files

    def _spoilt(self, file: File, how: str) -> File:
        draw = self.draw
        if how == "missing":
            return File(file.name, file.rows, file.rows, there=False)
        if how == "short":
            return File(file.name, file.rows, draw(st.integers(0, file.rows - 1)))
        gone = draw(st.sets(st.integers(0, file.rows - 1), min_size=1, max_size=3))
        return File(file.name, file.rows, file.rows, frozenset(gone))

    # --- how it is stored --------------------------------------------------------------------------------

    def camera(self) -> Camera:
        draw = self.draw
        frames = draw(st.sampled_from([1, 1, 2, 3]))
        if self.mimetype == HDF5:
            inner = draw(st.sampled_from([(), (), (5, 3), (5, 3), (4,), (1, 2)]))
            # A parameter that says "several frames" replaces a leading 1, as it always did; so does one equal to the
            # first length. Neither is drawn.
            forms = _SEVERAL if inner and inner[0] > 1 else ("shape",) if inner else _SEVERAL[:-1]
            form = draw(st.sampled_from(forms)) if frames > 1 else "flat"
            if frames == 1 and inner and draw(st.booleans()):
                form = "shape"
        elif self.mimetype == TIFF:
            inner, form = (5, 3), draw(st.sampled_from(["shape", "pages"])) if frames > 1 else "flat"
        else:
            inner, frames, form = draw(st.sampled_from([(5, 3), (4,)])), 1, "flat"
        files = list(self.files)
        storage: dict[str, Any] = {"shape_of_one": draw(st.booleans())}
        holes = any(file.unwritten for file in files)
        if self.mimetype == HDF5 and not holes:
            storage |= draw(st.sampled_from([{}, {"chunk": 4}, {"compression": "gzip"}, {"contiguous": True}]))
        if frames > 1 and self.mimetype == HDF5 and not storage.get("contiguous") and draw(st.booleans()):
            files = [File(f.name, f.rows, f.length, f.unwritten, f.there, 1) if f.length < f.rows else f for f in files]
        resources = tuple(Resource(*each) for each in zip(self.file_of, self.bases, strict=True))
        dtype = draw(st.sampled_from(["<u2", "<u2", "<f8", "<i4", "|u1", "<u4", ">i2", "<f4"]))
        if self.mimetype == TIFF and dtype == ">i2":
            dtype = "<i2"
        taken = {(shot.seq, Announced(shot.resource, shot.index)): shot.point for shot in self.shots}
        return Camera(
            self.name, self.mimetype, dtype, frames, inner, form, tuple(files), resources, storage,
            draw(st.booleans()), taken,
        )  # fmt: skip

    # --- what is announced -------------------------------------------------------------------------------

    def steps(self) -> list[tuple[float, Step]]:
        """Return resources and ranges, each with its place among the points."""
        draw = self.draw
        ranges = self._ranges()
        places = self._places(ranges)
        placed = [(place, self._datum(each)) for place, each in zip(places, ranges, strict=True)]
        placed += self._again(placed)
        never = self._never()
        at = -1.5
        for number in range(len(self.bases)):
            used = [place for place, step in placed if step.number == number]
            normal = min(used, default=-1.5) - 0.2 if self.layout != "round robin" else -1.5
            at = max(at, normal + (draw(st.integers(1, 9)) if draw(_rarely(1, 1)) else 0))
            if number not in never:
                placed.append((at, Step("resource", self.stream.name, self.name, number)))
        return placed

    def _never(self) -> set[int]:
        """Return resources whose document is lost; one that others go on from is not."""
        draw, last = self.draw, len(self.bases) - 1
        if not draw(_rarely(1, 1)) or draw(st.booleans()):
            return set()
        return {last if self.layout == "goes on" else draw(st.integers(0, last))}

    def _ranges(self) -> list[list[_Shot]]:
        """Return shots that follow each other in every respect, cut into pieces of at most some width."""
        widest = self.draw(st.sampled_from([1, 2, 3, 99]))
        out: list[list[_Shot]] = []
        for shot in self.shots:
            last = out[-1][-1] if out else None
            follows = last is not None and (
                (last.resource, last.index + 1, last.seq + 1) == (shot.resource, shot.index, shot.seq)
            )
            if follows and len(out[-1]) < widest:
                out[-1].append(shot)
            else:
                out.append([shot])
        return out

    def _places(self, ranges: Sequence[Sequence[_Shot]]) -> list[float]:
        """Return where each range arrives: after its last point, or early, or late."""
        draw = self.draw
        moved = draw(st.sampled_from(["no", "no", "ahead", "behind", "some"]))
        shift = draw(st.integers(1, 5)) * {"ahead": -1, "behind": 1}.get(moved, 0)
        places: list[float] = []
        for number, each in enumerate(ranges):
            by = draw(st.integers(-6, 6)) if moved == "some" and draw(st.booleans()) else shift
            place = each[-1].point - 0.5 + by
            for earlier, other in zip(places, ranges[:number], strict=True):
                if _overlap(other, each):
                    place = max(place, earlier)
            places.append(place)
        return places

    def _datum(self, shots: Sequence[_Shot]) -> Step:
        first = shots[0]
        as_index = all(shot.seq == shot.index + 1 for shot in shots)
        return Step(
            "datum", self.stream.name, self.name, first.resource, first.index, first.seq, len(shots),
            self.stream.descriptor_at(shots[-1].point), plain=as_index and self.draw(st.integers(0, 3)) == 0,
        )  # fmt: skip

    def _again(self, placed: Sequence[tuple[float, Step]]) -> list[tuple[float, Step]]:
        """Return ranges announced again, some of them together with the one before."""
        draw = self.draw
        out = []
        for number in draw(st.sets(st.integers(0, 9), max_size=2)) if draw(_rarely(1, 1)) else set():
            if number >= len(placed):
                continue
            place, step = placed[number]
            before = placed[number - 1][1] if number else None
            if before is not None and _goes_on(before, step) and not (before.plain or step.plain):
                step = replace(step, index=before.index, seq=before.seq, count=before.count + step.count)
            # Not before any of what it repeats: a repeat that comes first is the announcement.
            place = max(place, placed[number - 1][0] if number else place)
            out.append((place + 0.1 + draw(st.integers(0, 5)), step))
        return out


def _overlap(one: Sequence[_Shot], other: Sequence[_Shot]) -> bool:
    return one[0].seq <= other[-1].seq and other[0].seq <= one[-1].seq


def _goes_on(before: Step, step: Step) -> bool:
    follows = (before.index + before.count, before.seq + before.count) == (step.index, step.seq)
    return follows and (before.number, before.descriptor) == (step.number, step.descriptor)


# --- values in events ------------------------------------------------------------------------------------


def _scalar(*choices: Any) -> Any:
    return lambda draw, n: draw(st.sampled_from(choices))


def _listed(*shape: int) -> Any:
    def value(draw: st.DrawFn, n: int) -> Any:
        found = (np.arange(int(np.prod(shape)), dtype=float) + 100 * n + 0.25).reshape(shape)
        return found if draw(st.booleans()) else found.tolist()

    return value


def _ragged(draw: st.DrawFn, n: int) -> list[float]:
    return [100.0 * n + place for place in range(draw(st.integers(0, 4)))]


def _int_then_float(draw: st.DrawFn, n: int) -> float:
    return n if n < 2 else n + 0.5


def _declared(dtype: str, *shape: int | None) -> Mapping[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}


_COLUMNS = [
    (_declared("number"), _scalar(0.5, -1.25, float("nan"), float("inf"), 1e300, -0.0, np.float64(0.75))),
    (_declared("number"), _int_then_float),
    (_declared("integer"), _scalar(0, -3, 17, 2**53 + 1, -(2**62), np.int64(9))),
    (_declared("string"), _scalar("", "in", "größe", "<NA>", "nan")),
    (_declared("boolean"), _scalar(True, False)),
    (_declared("array", 3), _listed(3)),
    (_declared("array", 20), _listed(20)),
    (_declared("array", 4, 5), _listed(4, 5)),
    (_declared("array", None), _ragged),
]


# --- what was drawn --------------------------------------------------------------------------------------


def features(case: Case) -> set[str]:
    """Return words for what goes wrong in a case, so that a test can see that everything is drawn."""
    found = {f"stream name {name!r}" for name in case.streams if name not in ("primary", "slow")}
    kinds = [step.kind for step in case.steps]
    found |= {"no stop"} if not case.has_stop else {"documents after the stop"} if kinds[-1] != "stop" else set()
    found |= {"nonsense"} if "odd" in kinds else set()
    found |= {"batches sent twice"} if case.repeated else set()
    found |= {"read while it grows"} if case.growing and case.look_after is not None else set()
    told = case.told(case.steps)
    if len({len(each.stream_rows) for each in told.values()} - {0}) > 1:
        found.add("two rates")
    for each in told.values():
        found |= set(_of_stream(each))
        for name, key in each.keys.items():
            found |= set(_of_camera(key))
            found |= set(_of_order([step for step in case.steps if step.key == name]))
            found |= {"frames behind the Events"} if each.events and each.rows > key.present else set()
    return found


def _of_stream(told: Told) -> Iterator[str]:
    kinds = {"events" if told.events else "", "frames" if told.keys else ""} - {""}
    yield " and ".join(sorted(kinds)) or "empty stream"
    if told.retaken:
        points = told.stream.points
        falls = [before - after for before, after in itertools.pairwise(points) if after <= before]
        yield "rewound" if any(falls) else "retaken after a pause"
    if told.holes:
        yield "holes"
    if told.stream.descriptors > 1:
        yield "two descriptors"
    for name in told.columns:
        values = [told.stream.data[number].get(name, "absent") for number in told.points]
        yield from (f"column {word}" for word, test in _ODD_VALUES.items() if any(map(test, values)))
        yield f"column {told.stream.columns[name]['dtype']} {len(told.stream.columns[name]['shape'])}"
        if name not in ("motor", "x"):
            yield f"column name {name!r}"


_ODD_VALUES: dict[str, Callable[[Any], bool]] = {
    "None": lambda value: value is None,
    "NaN": lambda value: isinstance(value, float) and math.isnan(value),
    "absent": lambda value: isinstance(value, str) and value == "absent",
    "ndarray": lambda value: isinstance(value, np.ndarray),
    "beyond 2^53": lambda value: isinstance(value, int) and abs(value) > 2**53,
}


def _of_camera(key: KeyTold) -> Iterator[str]:
    camera = key.camera
    yield camera.form if camera.frames > 1 else "one frame"
    yield camera.mimetype
    yield from (f"stored {word}" for word in camera.storage if word != "shape_of_one")
    facts = {
        "gap": key.gaps,
        "duplicate": key.duplicate,
        "retaken frames": key.retaken,
        "extra frames": key.extra,
        "first index": min((frame.index for frame in key.frames.values()), default=0),
        "several resources": len(key.positions) > 1,
        "gap between files": any(
            camera.resources[resource].base > max(frame.index + 1 for frame in before)
            for resource in key.positions
            if resource > 0
            and (before := [frame for frame in key.frames.values() if frame.resource < resource])
            and camera.resources[resource].base
        ),
        "indices go on": any(resource.base for resource in camera.resources),
        "one file, two resources": len(camera.resources) > len(camera.files),
        "one frame for two events": len({(seq, frame) for (seq, _), frame in key.frames.items()})
        > len(set(key.frames.values())),
        "file too short": any(file.length < file.rows for file in camera.files),
        "row begun": any(file.part_of_next for file in camera.files),
        "row never written": any(file.unwritten for file in camera.files),
        "file missing": not all(file.there for file in camera.files),
        "resource never came": len({frame.resource for _, frame in camera.taken}) > len(key.positions),
        "unsafe camera name": not camera.name.startswith("cam") or "/" in camera.name,
    }
    yield from (word for word, holds in facts.items() if holds)


def _of_order(steps: Sequence[Step]) -> Iterator[str]:
    """Yield what is odd in the order of one camera's documents."""
    known: set[int] = set()
    seqs: list[int] = []
    for step in steps:
        if step.kind == "resource":
            known.add(step.number)
        elif step.kind == "datum":
            if step.number not in known:
                yield "range before its resource"
            if seqs and step.seq < max(seqs) and step.seq not in seqs:
                yield "range out of order"
            if step.plain:
                yield "range without seq_nums"
            seqs += range(step.seq, step.seq + step.count)
    numbers = [step.number for step in steps if step.kind == "datum"]
    if any(after < before for before, after in itertools.pairwise(numbers)):
        yield "round robin"
