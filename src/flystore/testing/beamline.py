"""A simulated beamline: the real RunEngine, devices that write real HDF5, and the truth about each frame.

`Panda` captures positions and sends pulses, `Camera` takes some frames a pulse; both write SWMR files and
announce them with StreamResource and StreamDatum. Everything they write follows from its index, so a
frame in the wrong place shows. `Defects` makes a camera misbehave in the ways real ones do, `lossy` loses
documents on their way.

    with run_engine() as RE:
        documents = Recorder()
        RE.subscribe(documents)
        panda, camera = Panda(tmp_path), Camera(tmp_path, frames_per_event=4)
        RE(flyscan(panda, [camera], events=6))
    assert documents.of("stream_datum")
    assert (h5py.File(camera.path)[camera.dataset][9] == camera.frame(9)).all()
"""

import asyncio
import contextlib
import dataclasses
import io
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
import h5py
import numpy as np
from bluesky import RunEngine
from bluesky.utils import MsgGenerator, RunEngineInterrupted
from event_model import ComposeStreamResource
from ophyd_async.core import AsyncStatus

__all__ = [
    "Camera",
    "Defects",
    "Panda",
    "Recorder",
    "flyscan",
    "lossy",
    "resume_until_done",
    "run_engine",
    "step_scan",
]

Callback = Callable[[str, dict[str, Any]], Any]


@contextlib.contextmanager
def run_engine(**metadata: Any) -> Iterator[RunEngine]:
    """Give a RunEngine that works in any thread, and end its loop and thread afterwards."""
    loop = asyncio.new_event_loop()
    engine = RunEngine(metadata, loop=loop, context_managers=[], call_returns_result=False)
    thread = asyncio.run_coroutine_threadsafe(_current_thread(), loop).result()
    try:
        yield engine
    finally:
        if engine.state != "idle":
            engine.abort()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _current_thread() -> threading.Thread:
    return threading.current_thread()


class Recorder:
    """Keeps every document, in order, as (name, document)."""

    def __init__(self) -> None:
        self.documents: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        self.documents.append((name, doc))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [doc for found, doc in self.documents if found == name]

    def ranges(self, data_key: str) -> list[tuple[range, range]]:
        """Return (seq_nums, indices) of each StreamDatum of a data key, in order of arrival."""
        resources = {doc["uid"] for doc in self.of("stream_resource") if doc["data_key"] == data_key}
        return [
            (range(*doc["seq_nums"].values()), range(*doc["indices"].values()))
            for doc in self.of("stream_datum")
            if doc["stream_resource"] in resources
        ]


def lossy(callback: Callback, data_key: str, seq_nums: Collection[int]) -> Callback:
    """Return a callback that passes documents on, but never the StreamDatum of these events of one data key.

    So that seq_nums have gaps, which the RunEngine itself never makes in a collected stream. The ranges
    must be of one event each.
    """
    resources: set[str] = set()

    def pass_on(name: str, doc: dict[str, Any]) -> None:
        if name == "stream_resource" and doc["data_key"] == data_key:
            resources.add(doc["uid"])
        lost = name == "stream_datum" and doc["stream_resource"] in resources and doc["seq_nums"]["start"] in seq_nums
        if not lost:
            callback(name, doc)

    return pass_on


@dataclasses.dataclass(frozen=True)
class Defects:
    """What is wrong with a camera. Events are counted from 0, in the order they are taken.

    Attributes
    ----------
    first_index : int
        Index that the first event is announced with; the file holds as many more in front.
    extra_before : set of int
        Before these events the camera saves one event's frames that it never announces: a gap in the
        indices, and none in the seq_nums.
    repeated : set of int
        These events are announced twice, with the same indices and seq_nums.
    unwritten : set of int
        These events are announced and the file is as long as that, but their chunks are never written.
    short_by : int
        So many events at the end are announced and the file ends before them. Needs to be known before
        the run: `Camera.expect` is given the number of events by the plan.
    """

    first_index: int = 0
    extra_before: Collection[int] = ()
    repeated: Collection[int] = ()
    unwritten: Collection[int] = ()
    short_by: int = 0


class _Hdf5Writer:
    """One SWMR file with growing datasets, as an area detector's file plugin writes it."""

    def __init__(self, path: Path, datasets: Mapping[str, tuple[tuple[int, ...], str]], **storage: Any) -> None:
        self._file = h5py.File(path, "w", libver="latest")
        self._datasets = {
            name: self._file.create_dataset(
                name, (0, *shape), dtype, maxshape=(None, *shape), chunks=_chunks(shape), **storage
            )
            for name, (shape, dtype) in datasets.items()
        }
        self._file.swmr_mode = True

    def write(self, first: int, blocks: Mapping[str, np.ndarray]) -> None:
        """Write rows from index `first` on, making the file longer where needed."""
        for name, rows in blocks.items():
            dataset = self._datasets[name]
            if len(dataset) < first + len(rows):
                dataset.resize(first + len(rows), axis=0)
            dataset[first : first + len(rows)] = rows
            dataset.flush()

    def stretch(self, length: int) -> None:
        """Make the datasets longer and write nothing there."""
        for dataset in self._datasets.values():
            dataset.resize(length, axis=0)
            dataset.flush()

    def close(self) -> None:
        self._file.close()


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape) if shape else (1024,)


class _Flying:
    """What `Panda` and `Camera` share: a file a stage, StreamResource once, StreamDatum as asked for."""

    parent = None

    def __init__(self, directory: Path, name: str, **storage: Any) -> None:
        self.name = name
        self.directory = Path(directory)
        self.path = self.directory / f"{name}.h5"
        self._storage = storage
        self._stages = 0
        self._writer: _Hdf5Writer | None = None
        self._bundles: list[Any] = []
        self._taken = 0
        self._emitted = 0
        self.announced: list[int] = []
        """Index of each event in the order taken; in units of events, as StreamDatum counts."""

    # What a subclass says of itself: data key -> (dataset, shape of one frame, dtype), and frames an event.
    _keys: Mapping[str, tuple[str, tuple[int, ...], str]] = {}
    frames_per_event = 1

    def stage(self) -> list[Any]:
        self._stages += 1
        if self._stages > 1:
            self.path = self.directory / f"{self.name}_{self._stages}.h5"
        self._writer = _Hdf5Writer(
            self.path,
            {dataset: (shape, dtype) for dataset, shape, dtype in self._keys.values()},
            **self._storage,
        )
        compose = ComposeStreamResource()
        self._bundles = [
            compose(
                mimetype="application/x-hdf5",
                uri=self.uri,
                data_key=key,
                parameters={"dataset": dataset, "chunk_shape": list(_chunks(shape))},
            )
            for key, (dataset, shape, _) in self._keys.items()
        ]
        self._taken = self._emitted = 0
        self.announced = []
        return [self]

    def unstage(self) -> list[Any]:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        return [self]

    @property
    def uri(self) -> str:
        return f"file://localhost{quote(str(self.path.resolve()))}"

    def describe(self) -> dict[str, Any]:
        return {
            key: {
                "source": self.uri,
                "shape": [self.frames_per_event, *shape],
                "dtype": "array" if shape or self.frames_per_event > 1 else "number",
                "dtype_numpy": dtype,
                "external": "STREAM:",
            }
            for key, (_, shape, dtype) in self._keys.items()
        }

    describe_collect = describe

    def read(self) -> dict[str, Any]:
        return {}

    def take(self, events: int) -> None:
        """Take so many events' frames and write them."""
        for _ in range(events):
            self._take_one()
            self._taken += 1

    def _take_one(self) -> None:
        raise NotImplementedError

    def get_index(self) -> int:
        return self._taken

    def collect_asset_docs(self, index: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        stop = self._taken if index is None else index
        if stop > self._emitted == 0:
            for bundle in self._bundles:
                yield "stream_resource", bundle.stream_resource_doc
        for first, last in self._ranges(self._emitted, stop):
            for bundle in self._bundles:
                yield "stream_datum", bundle.compose_stream_datum({"start": first, "stop": last})
        self._emitted = stop

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first index, one behind the last) of the events to announce, merged where they follow."""
        while start < stop:
            end = start + 1
            while end < stop and self.announced[end] == self.announced[end - 1] + 1:
                end += 1
            yield self.announced[start], self.announced[end - 1] + 1
            start = end


class Panda(_Flying):
    """A position capture box: sends the pulses of a flyscan and saves where the axis was at each.

    Parameters
    ----------
    directory : Path
        Where its file goes: ``NAME.h5``, ``NAME_2.h5`` when staged again …
    start, step : float
        Position at the first pulse and distance between pulses, degrees.

    Notes
    -----
    Data keys: ``Angle`` (degrees), ``I0`` (counts), ``Counter1`` (pulses, from 0); float64, one an event.
    """

    _keys = {key: (f"/{key}", (), "<f8") for key in ("Angle", "I0", "Counter1")}

    def __init__(self, directory: Path, name: str = "panda", *, start: float = -10.0, step: float = 0.25) -> None:
        super().__init__(directory, name)
        self.start, self.step = start, step
        self._cameras: Sequence[Camera] = ()
        self._left = 0
        self._period = 0.0

    def expect(self, events: int, cameras: Sequence["Camera"], period: float) -> None:
        """Prepare a flight: pulses to send in all, who takes frames at each, seconds between them."""
        self._left, self._cameras, self._period = events, cameras, period
        for camera in cameras:
            camera.expect(events)

    def value(self, data_key: str, event: int) -> float:
        """Return what is saved for an event, counted from 0 in the order taken."""
        return {
            "Angle": self.start + self.step * event,
            "I0": 1000.0 + event % 7,
            "Counter1": float(event),
        }[data_key]

    def values(self, data_key: str, events: int) -> np.ndarray:
        """Return what is saved for the first events: (events,) float64."""
        return np.array([self.value(data_key, event) for event in range(events)])

    def kickoff(self) -> AsyncStatus:
        return AsyncStatus(_nothing())

    def set(self, pulses: int) -> AsyncStatus:
        """Send so many pulses now."""
        self._pulse(pulses)
        return AsyncStatus(_nothing())

    def complete(self) -> AsyncStatus:
        """Send the pulses that are left, one each period."""
        return AsyncStatus(self._fly())

    async def _fly(self) -> None:
        while self._left > 0:
            await asyncio.sleep(self._period)
            self._pulse(1)

    def _pulse(self, count: int) -> None:
        self.take(count)
        for camera in self._cameras:
            camera.take(count)
        self._left -= count

    def _take_one(self) -> None:
        assert self._writer is not None, "stage it first"
        rows = {dataset: np.array([self.value(key, self._taken)]) for key, (dataset, _, _) in self._keys.items()}
        self._writer.write(self._taken, rows)
        self.announced.append(self._taken)


class Camera(_Flying):
    """An area detector that takes `frames_per_event` frames at each pulse, or one when triggered.

    Parameters
    ----------
    directory : Path
        Where its file goes: ``NAME.h5``, ``NAME_2.h5`` when staged again …
    frames_per_event : int
        Rate over the PandA's.
    shape : (int, int)
        Rows and columns of a frame, pixels.
    defects : Defects
    **storage
        Passed to `h5py.Group.create_dataset`: ``compression="gzip"``, ``fillvalue=…``.

    Notes
    -----
    Data keys: its name (frames, uint16, counts) and ``NAME-sum`` (sum of each frame, int64, counts).
    """

    def __init__(
        self,
        directory: Path,
        name: str = "camera",
        *,
        frames_per_event: int = 1,
        shape: tuple[int, int] = (12, 16),
        defects: Defects = Defects(),
        **storage: Any,
    ) -> None:
        super().__init__(directory, name, **storage)
        self.frames_per_event, self.shape, self.defects = frames_per_event, shape, defects
        self.dataset, self.sum_dataset = "/entry/data/data", "/entry/sum"
        self._keys = {name: (self.dataset, shape, "<u2"), f"{name}-sum": (self.sum_dataset, (), "<i8")}
        self._expected: int | None = None

    def frame(self, number: int) -> np.ndarray:
        """Return the frame of that number in the file: (rows, columns) uint16; no two of 65,521 are equal."""
        rows, columns = self.shape
        ramp = np.arange(rows * columns, dtype=np.int64).reshape(self.shape)
        return (((number + 1) * 37 + ramp) % 65521).astype(np.uint16)

    def frames(self, index: int) -> np.ndarray:
        """Return the frames of one index of StreamDatum: (frames_per_event, rows, columns) uint16."""
        first = index * self.frames_per_event
        return np.stack([self.frame(first + number) for number in range(self.frames_per_event)])

    def is_in_file(self, event: int) -> bool:
        """Return whether the frames of an event, counted from 0 in the order taken, were written."""
        short = self.defects.short_by
        kept = self._expected is None or not short or event < self._expected - short
        return kept and event not in self.defects.unwritten

    def expect(self, events: int) -> None:
        self._expected = events

    def kickoff(self) -> AsyncStatus:
        return AsyncStatus(_nothing())

    complete = kickoff

    def trigger(self) -> AsyncStatus:
        """Take one event's frames, in a step scan."""
        self.take(1)
        return AsyncStatus(_nothing())

    def _take_one(self) -> None:
        assert self._writer is not None, "stage it first"
        event, defects = self._taken, self.defects
        index = self.announced[-1] + 1 if self.announced else defects.first_index
        if event == 0:
            for spare in range(defects.first_index):
                self._write(spare)
        if event in defects.extra_before:
            self._write(index)
            index += 1
        if self.is_in_file(event):
            self._write(index)
        elif event in defects.unwritten:
            self._writer.stretch((index + 1) * self.frames_per_event)
        self.announced.append(index)

    def _write(self, index: int) -> None:
        assert self._writer is not None, "stage it first"
        frames = self.frames(index)
        sums = frames.sum(axis=(1, 2), dtype=np.int64)
        self._writer.write(index * self.frames_per_event, {self.dataset: frames, self.sum_dataset: sums})

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        yield from super()._ranges(start, stop)
        for event in range(start, stop):
            if event in self.defects.repeated:
                yield self.announced[event], self.announced[event] + 1


async def _nothing() -> None:
    return None


def flyscan(
    panda: Panda,
    cameras: Sequence[Camera],
    events: int,
    *,
    burst: int | None = None,
    period: float = 0.0,
    flush_period: float = 0.05,
    pause_after: int | None = None,
    stream: str = "primary",
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator:
    """Plan: stage, kick off, complete and collect a PandA and cameras in one stream.

    Parameters
    ----------
    events : int
        Pulses in all.
    burst : int, optional
        Send so many pulses, then collect, and so on: each StreamDatum covers so many events, whatever
        the speed of the machine. Cameras with defects need 1. None: the PandA sends a pulse each
        `period` seconds while the plan collects each `flush_period` seconds.
    pause_after : int, optional
        Pause once behind this burst (from 0). The RunEngine raises; when resumed it goes back to the
        checkpoint before that burst and takes it again: its seq_nums come twice, with new frames.
    stream : str
        Name of the stream.
    """
    devices = [panda, *cameras]
    metadata = {"plan_name": "flyscan", "num_points": events, "detectors": [each.name for each in devices]}

    @bpp.stage_decorator(devices)
    @bpp.run_decorator(md={**metadata, **(md or {})})
    def fly() -> MsgGenerator:
        panda.expect(events, cameras, period)
        yield from bps.declare_stream(*devices, name=stream, collect=True)
        yield from bps.kickoff_all(*devices, wait=True)
        for number in range(-(-events // burst) if burst else 0):
            yield from bps.checkpoint()
            yield from bps.abs_set(panda, min(burst or 0, events - number * (burst or 0)), wait=True)
            yield from bps.collect(*devices, name=stream)
            if number == pause_after:
                yield from bps.pause()
        yield from bps.checkpoint()
        yield from bps.collect_while_completing(devices, devices, flush_period, stream)

    return (yield from fly())


def step_scan(
    detectors: Sequence[Any],
    motor: Any,
    positions: Sequence[float],
    *,
    pause_after: int | None = None,
    missed: Collection[int] = (),
    md: Mapping[str, Any] | None = None,
) -> MsgGenerator:
    """Plan: move, trigger, read at each position.

    Parameters
    ----------
    detectors : sequence of Readable
        Devices of ophyd.sim, or a `Camera`.
    pause_after : int, optional
        Pause once behind this point (from 0), so that it is taken again when the RunEngine resumes.
    missed : set of int
        At these points (from 0) cameras are read but not triggered: events without a frame.
    """
    metadata = {"plan_name": "step_scan", "num_points": len(positions), "motors": [motor.name]}
    metadata["detectors"] = [each.name for each in detectors]

    @bpp.stage_decorator([*detectors, motor])
    @bpp.run_decorator(md={**metadata, **(md or {})})
    def scan() -> MsgGenerator:
        for number, position in enumerate(positions):
            yield from bps.checkpoint()
            yield from bps.mv(motor, position)
            for detector in detectors:
                if not (number in missed and isinstance(detector, Camera)):
                    yield from bps.trigger(detector, wait=True)
            yield from bps.create("primary")
            for device in (*detectors, motor):
                yield from bps.read(device)
            yield from bps.save()
            if number == pause_after:
                yield from bps.pause()

    return (yield from scan())


def resume_until_done(engine: RunEngine, plan: MsgGenerator) -> None:
    """Run a plan that pauses, and resume it each time, without what the RunEngine prints about it."""
    with contextlib.redirect_stdout(io.StringIO()):
        with contextlib.suppress(RunEngineInterrupted):
            engine(plan)
        while engine.state == "paused":
            with contextlib.suppress(RunEngineInterrupted):
                engine.resume()
