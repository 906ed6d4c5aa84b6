"""A flyscan: a position capture box and cameras at other rates, read by event, equal to their files.

If these fail, frames are shown with the wrong position, which is what people fear most.
"""

import warnings

import h5py
import numpy as np
import pytest
import xarray
from bluesky.callbacks.tiled_writer import TiledWriter as ClassicWriter
from bluesky_tiled_plugins import TiledWriter as PluginWriter

from flystore import MissingRows, RunWriter, from_uri, open_store
from flystore.testing.beamline import (
    Camera,
    Defects,
    Panda,
    Recorder,
    flyscan,
    lossy,
    resume_until_done,
    run_engine,
)

stock_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

EVENTS = 12


class Flight:
    """A finished flyscan: its devices, and the client's stream."""

    def __init__(self, panda, camera, stream, run):
        self.panda, self.camera, self.stream, self.run = panda, camera, stream, run

    def expected(self, event):
        """Frames of an event, counted from 0, as they were put into the file."""
        return self.camera.frames(self.camera.announced[event])


@pytest.fixture(params=["a service", "in process"])
def fly(request, tmp_path, data):
    """A function that flies with given defects and gives the flight back, read through our client."""
    closing = []

    def go(defects=None, *, lost=(), pause_after=None, **options):
        if request.param == "in process":
            client = open_store(tmp_path / "store", read=[data])
            where, key = client, None
        else:
            server = request.getfixturevalue("server")
            client = from_uri(server.url, api_key=server.key)
            where, key = server.url, server.key
        closing.append(client)
        panda = Panda(data)
        camera = Camera(data, frames_per_event=4, defects=defects or Defects(), **options)
        with run_engine() as engine, RunWriter(where, api_key=key, journal=tmp_path / "journal") as writer:
            engine.subscribe(lossy(writer, camera.name, lost))
            resume_until_done(engine, flyscan(panda, [camera], EVENTS, burst=1, pause_after=pause_after))
            writer.flush(timeout=100)
        run = client[-1]
        return Flight(panda, camera, run["primary"], run)

    yield go
    for client in closing:
        client.close()


def present(flight, dataset):
    """Return {seq_num: frames} of the rows that are not marked missing."""
    seq_nums = dataset["seq_num"].values if "seq_num" in dataset.coords else np.arange(1, dataset.sizes["time"] + 1)
    mask = dataset[f"{flight.camera.name}_present"].values
    return {int(s): v for s, v, there in zip(seq_nums, dataset[flight.camera.name].values, mask, strict=True) if there}


def test_positions_and_frames_come_back_aligned(fly):
    flight = fly()
    dataset = flight.stream.read()
    assert dataset["camera"].shape == (EVENTS, 4, 12, 16)
    np.testing.assert_array_equal(dataset["Angle"], flight.panda.values("Angle", EVENTS))
    for event in range(EVENTS):
        np.testing.assert_array_equal(dataset["camera"][event], flight.expected(event))
    assert str(flight.run.verdict).endswith("12/12 points, 12/12 frames, 0 gaps, stored")


def test_slices_are_lazy_and_equal_to_h5py(fly):
    flight = fly()
    with h5py.File(flight.camera.path) as file:
        truth = file[flight.camera.dataset][()].reshape(EVENTS, 4, 12, 16)
    array = flight.stream["camera"]
    for wanted in [np.s_[3], np.s_[2:9:3], np.s_[:, 1], np.s_[::-1, :, 2:4, -1], np.s_[5, 2, 3, 4], np.s_[..., 7]]:
        np.testing.assert_array_equal(array[wanted], truth[wanted])
    np.testing.assert_array_equal(array.dask[4:6, 0].compute(), truth[4:6, 0])


def test_a_gap_in_the_ranges_is_marked_and_nothing_shifts(fly):
    flight = fly(lost={4, 5})
    with pytest.warns(MissingRows, match="camera"):
        dataset = flight.stream.read()
    found = present(flight, dataset)
    assert sorted(found) == [1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    for seq_num, frames in found.items():
        np.testing.assert_array_equal(frames, flight.expected(seq_num - 1))
    assert flight.run.verdict.state == "gaps"
    np.testing.assert_array_equal(flight.stream["camera"].seq_num, sorted(found))


@pytest.mark.parametrize(
    "defects",
    [Defects(extra_before={3, 7}), Defects(first_index=5), Defects(repeated={2, 3})],
    ids=["skipped indices", "offset", "repeated"],
)
def test_odd_indices_lead_to_the_right_frames(fly, defects):
    flight = fly(defects)
    dataset = flight.stream.read()
    assert dataset["camera"].shape[0] == EVENTS
    for event in range(EVENTS):
        np.testing.assert_array_equal(dataset["camera"][event], flight.expected(event))


def test_points_taken_again_after_a_pause_give_the_last(fly):
    flight = fly(pause_after=5)
    dataset = flight.stream.read()
    angles = flight.panda.values("Angle", EVENTS + 1)
    assert flight.run.verdict.state == "retaken"
    last = [0, 1, 2, 3, 4, *range(6, EVENTS + 1)]
    np.testing.assert_array_equal(dataset["Angle"], angles[last][: dataset.sizes["time"]])
    for row, event in enumerate(last[: dataset.sizes["time"]]):
        np.testing.assert_array_equal(dataset["camera"][row], flight.expected(event))
    every = flight.stream.read(repeats="all")
    assert every.sizes["time"] == dataset.sizes["time"] + 1


def test_a_file_shorter_than_announced_gives_what_is_there(fly):
    flight = fly(Defects(short_by=3))
    with pytest.warns(MissingRows, match="camera"):
        dataset = flight.stream.read()
    found = present(flight, dataset)
    assert sorted(found) == list(range(1, EVENTS - 2))
    for seq_num, frames in found.items():
        np.testing.assert_array_equal(frames, flight.expected(seq_num - 1))
    verdict = flight.run.check()
    assert verdict.state == "gaps"


def test_a_chunk_never_written_is_missing_and_not_zero(fly):
    flight = fly(Defects(unwritten={2, 6}))
    with pytest.warns(MissingRows, match="camera"):
        dataset = flight.stream.read()
    found = present(flight, dataset)
    assert sorted(found) == [1, 2, 4, 5, 6, 8, 9, 10, 11, 12]
    for seq_num, frames in found.items():
        np.testing.assert_array_equal(frames, flight.expected(seq_num - 1))


@stock_warnings
def test_the_stock_client_neither_raises_nor_misaligns_on_a_gap(server, data, tmp_path):
    panda, camera = Panda(data), Camera(data, frames_per_event=4)
    with run_engine() as engine, RunWriter(server.url, api_key=server.key, journal=tmp_path / "j") as writer:
        engine.subscribe(lossy(writer, camera.name, {4, 5}))
        engine(flyscan(panda, [camera], EVENTS, burst=1))
        writer.flush(timeout=100)
    with server.tiled() as client:
        dataset = client[-1]["primary"].read()
    assert dataset["camera"].dims[0] == "camera_event"
    assert dataset["camera"].shape[0] == EVENTS - 2
    assert "camera_event" not in dataset["Angle"].dims
    np.testing.assert_array_equal(dataset["camera"][3], camera.frames(camera.announced[5]))


@stock_warnings
@pytest.mark.parametrize("writer_class", [ClassicWriter, PluginWriter], ids=["classic", "plugin"])
def test_through_stock_writers_a_flyscan_reads_as_from_stock(server, stock, data, writer_class):
    documents = Recorder()
    panda, camera = Panda(data), Camera(data, frames_per_event=4)
    with run_engine() as engine:
        engine.subscribe(documents)
        engine(flyscan(panda, [camera], EVENTS, burst=3))
    found = []
    for service in (server, stock):
        with service.tiled() as client, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            writer = writer_class(client)
            for name, doc in documents.documents:
                writer(name, doc)
            stream = client[documents.documents[0][1]["uid"]]["primary"]
            found.append({key: np.asarray(stream[key].read()) for key in ("Angle", "camera", "camera-sum")})
            if writer_class is PluginWriter:
                found[-1]["dataset"] = stream.read()
    ours, theirs = found
    for key in ("Angle", "camera", "camera-sum"):
        np.testing.assert_array_equal(ours[key], theirs[key])
    if writer_class is PluginWriter:
        xarray.testing.assert_identical(ours["dataset"], theirs["dataset"])
    with from_uri(server.url, api_key=server.key) as client:
        assert "frame map not announced" in str(client[-1].verdict)
