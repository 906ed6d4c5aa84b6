"""Runs in a flystore service come back exactly, and what is missing in them is marked, never shifted.

If these fail, a frame is shown beside the position of another one, zeros are taken for data, or
documents come back other than they went in. Each test runs over a socket and inside the process.
"""

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from flystore.client import Documents, MissingRows, from_transport, from_uri
from flystore.http import Access, build_app
from flystore.model.errors import Damaged, NotFound
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.service import Service
from flystore.testing.documents import RunDocuments, external, internal
from flystore.testing.serving import serving
from flystore.testing.streams import put_in_place, recorded_cases
from flystore.wire import InProcessTransport, api_path

STREAMS = Path(__file__).parents[2] / "data" / "streams"
FRAMES = 100 + np.arange(12 * 2 * 3, dtype="<u2").reshape(12, 2, 3)


@pytest.fixture(params=["over HTTP", "in process"])
def catalog(request, tmp_path):
    """The root of a flystore service that may read files below `tmp_path`."""
    with Service.open(tmp_path / "store", read=[tmp_path]) as service:
        app = build_app(service, Access.of("secret"))
        if request.param == "over HTTP":
            with serving(app) as url, from_uri(url, api_key="secret") as root:
                yield root
        else:
            with from_transport(InProcessTransport(app, "secret")) as root:
                yield root


def send(catalog, documents, uid):
    """Send the documents of a run as RunWriter does, from the first; what is known already is passed over."""
    encoder = FrameEncoder()
    body = b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))
    headers = {"Content-Type": FRAMES_MIMETYPE}
    path = api_path("ingest", uid)
    catalog.transport.request("POST", path, params={"first": 0, "epoch": 1}, headers=headers, body=body)
    return catalog[uid]


@pytest.fixture
def camera(tmp_path):
    """Where a camera wrote its twelve frames, each different."""
    with h5py.File(tmp_path / "camera.h5", "w") as file:
        file["data"] = FRAMES
    return f"file://localhost{tmp_path}/camera.h5"


class Scan:
    """A run with positions in Events and frames in a file, ready to be sent."""

    def __init__(self, catalog, camera, *keys):
        self.catalog = catalog
        self.run = RunDocuments("a-run-of-ours", scan_id=7)
        keys = keys or ("img",)
        self.stream = self.run.stream(x=internal(), **{key: external([2, 3]) for key in keys})
        self.resources = {key: self.stream.resource(key, camera, dataset="data") for key in keys}

    def event(self, *seq_nums):
        for seq_num in seq_nums:
            self.stream.event(seq_num, x=10.0 * seq_num)

    def frames(self, seq, index, count=1, key="img"):
        """Say that frames from `index` on belong to events from `seq` on."""
        self.stream.frames(key, index, index + count, seq)

    def sent(self, *, stopped=True):
        if stopped:
            self.run.stop()
        return send(self.catalog, self.run.documents, "a-run-of-ours")["primary"]


@pytest.fixture
def scan(catalog, camera):
    return Scan(catalog, camera)


# --- documents --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", recorded_cases(STREAMS))
def test_documents_come_back_as_they_went_in(catalog, tmp_path, case):
    recorded = put_in_place(STREAMS, case, tmp_path)
    for uid, documents in recorded.runs.items():
        run = send(catalog, documents, uid)
        found = run.documents()
        assert not found.reconstructed
        found = list(found)
        assert found == documents
        assert [list(doc) for _, doc in found] == [list(doc) for _, doc in documents]
        assert not run.documents_are_reconstructed


@pytest.mark.parametrize("case", recorded_cases(STREAMS))
def test_arrays_come_back_as_documents_and_files_say(catalog, tmp_path, case):
    recorded = put_in_place(STREAMS, case, tmp_path)
    for uid, documents in recorded.runs.items():
        run = send(catalog, documents, uid)
        for name, content in recorded.expected[uid]["streams"].items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if case == "internal_odd_values" else "error")
                found = run[name].read(repeats="all")
            for key, expected in content["arrays"].items():
                assert list(found[key].shape) == expected["shape"]
                rows = found[key].values.reshape(len(found[key]), -1).astype(float).sum(axis=1)
                np.testing.assert_allclose(rows, expected["sums"])


def test_documents_of_numpy_values_keep_type_and_dtype(catalog):
    run = RunDocuments("a-run-of-ours", position=np.float32(1.5), trace=np.arange(3, dtype=">i2"), pair=(1, 2))
    run.stop()
    start = next(send(catalog, run.documents, "a-run-of-ours").documents())[1]
    assert type(start["position"]) is np.float32
    assert start["trace"].dtype == np.dtype(">i2")
    assert start["pair"] == (1, 2)


def test_documents_can_be_taken_up_from_the_middle_and_left_early(catalog, scan):
    scan.event(*range(1, 200))
    scan.sent()
    run = catalog["a-run-of-ours"]
    every = list(run.documents())
    assert list(run.documents(first=150)) == every[150:]
    with run.documents() as documents:
        assert next(documents) == every[0]
    assert len(list(run.documents())) == len(every)


def test_damage_on_the_way_is_an_error_and_not_the_end(catalog, scan, monkeypatch):
    scan.event(1, 2, 3)
    scan.sent()
    transport = catalog.transport
    stream = type(transport).stream

    from contextlib import contextmanager

    @contextmanager
    def cut(self, *args, **kwargs):
        with stream(self, *args, **kwargs) as answer:
            whole = b"".join(answer.chunks)
            yield answer._replace(chunks=iter([whole[:-3]]))

    monkeypatch.setattr(type(transport), "stream", cut)
    with pytest.raises(Damaged, match="end inside a frame"):
        list(Documents(transport, "a-run-of-ours"))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_documents_can_arrive_in_pieces_of_any_size(catalog, scan, monkeypatch, size):
    scan.event(*range(1, 30))
    scan.sent()
    transport = catalog.transport
    expected = list(catalog["a-run-of-ours"].documents())
    stream = type(transport).stream

    from contextlib import contextmanager

    @contextmanager
    def in_pieces(self, *args, **kwargs):
        with stream(self, *args, **kwargs) as answer:
            whole = b"".join(answer.chunks)
            pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
            yield answer._replace(chunks=iter(pieces))

    monkeypatch.setattr(type(transport), "stream", in_pieces)
    assert list(Documents(transport, "a-run-of-ours")) == expected


def test_a_run_that_is_not_there_has_no_documents(catalog):
    with pytest.raises(NotFound):
        Documents(catalog.transport, "no-such-run")


# --- alignment --------------------------------------------------------------------------------


def test_a_complete_run_has_nothing_marked(scan):
    scan.event(1, 2, 3)
    scan.frames(1, 0, 3)
    found = scan.sent().read()
    assert set(found.variables) == {"time", "x", "img"}
    assert found["img"].dims == ("time", "img_dim1", "img_dim2")
    assert found["img"].dtype == FRAMES.dtype
    np.testing.assert_array_equal(found["img"], FRAMES[:3])


def test_a_gap_is_marked_at_its_place_and_later_frames_stay_with_their_events(scan):
    scan.event(1, 2, 3, 4)
    scan.frames(1, 0)
    scan.frames(3, 2, 2)
    stream = scan.sent()
    with pytest.warns(MissingRows, match=r"img has 3 of 4 rows \(not seq_num 2\)"):
        found = stream.read()
    assert found["seq_num"].values.tolist() == [1, 2, 3, 4]
    assert found["img_present"].values.tolist() == [True, False, True, True]
    assert found["x"].values.tolist() == [10, 20, 30, 40]
    assert found["img"].dims == ("time", "img_dim1", "img_dim2")
    assert found["img"].dtype == np.float32
    assert np.isnan(found["img"].values[1]).all()
    np.testing.assert_array_equal(found["img"].values[[0, 2, 3]], FRAMES[[0, 2, 3]])


def test_inner_alignment_leaves_rows_out_and_keeps_dtypes(scan):
    scan.event(1, 2, 3, 4)
    scan.frames(1, 0)
    scan.frames(3, 2, 2)
    found = scan.sent().read(join="inner")
    assert found["seq_num"].values.tolist() == [1, 3, 4]
    assert found["x"].values.tolist() == [10, 30, 40]
    assert found["img"].dtype == FRAMES.dtype
    np.testing.assert_array_equal(found["img"], FRAMES[[0, 2, 3]])
    assert "img_present" not in found.coords


def test_a_lazy_read_marks_the_same(scan):
    scan.event(1, 2, 3, 4)
    scan.frames(1, 0)
    scan.frames(3, 2, 2)
    stream = scan.sent()
    for align in ("outer", "inner"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingRows)
            lazy, eager = stream.read(join=align, lazy=True), stream.read(join=align)
        assert lazy["img"].chunks is not None
        xarray.testing.assert_identical(lazy.compute(), eager)
        assert lazy["img"].dtype == eager["img"].dtype


def test_frames_that_begin_anywhere_in_the_file_are_found(scan):
    scan.event(1, 2, 3)
    scan.frames(1, 7, 3)
    np.testing.assert_array_equal(scan.sent().read()["img"], FRAMES[7:10])


def test_frames_announced_out_of_order_go_to_their_events(scan):
    scan.event(1, 2, 3, 4)
    scan.frames(3, 2, 2)
    scan.frames(1, 0, 2)
    np.testing.assert_array_equal(scan.sent().read()["img"], FRAMES[:4])


def test_events_and_frames_taken_again_after_a_pause_are_paired(scan):
    scan.event(1, 2, 3)
    scan.frames(1, 0, 3)
    scan.event(2, 3, 4)
    scan.frames(2, 5, 3)
    stream = scan.sent()
    last = stream.read()
    assert last["seq_num"].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(last["img"], FRAMES[[0, 5, 6, 7]])
    every = stream.read(repeats="all")
    assert every["seq_num"].values.tolist() == [1, 2, 2, 3, 3, 4]
    assert every["take"].values.tolist() == [0, 0, 1, 0, 1, 0]
    np.testing.assert_array_equal(every["img"], FRAMES[[0, 1, 5, 2, 6, 7]])


def test_a_retaken_event_without_a_frame_does_not_get_the_old_one(scan):
    scan.event(1, 2)
    scan.frames(1, 0, 2)
    scan.event(2, 3)
    stream = scan.sent()
    with pytest.warns(MissingRows):
        found = stream.read()
    assert found["seq_num"].values.tolist() == [1, 2, 3]
    assert found["img_present"].values.tolist() == [True, False, False]


def test_frames_without_events_are_rows_with_the_table_marked(scan):
    scan.event(1, 2)
    scan.frames(1, 0, 4)
    stream = scan.sent()
    with pytest.warns(MissingRows, match="the table has 2 of 4 rows"):
        found = stream.read()
    assert found["event_present"].values.tolist() == [True, True, False, False]
    assert np.isnan(found["x"].values[2:]).all()
    np.testing.assert_array_equal(found["img"], FRAMES[:4])


def test_detectors_with_different_gaps_are_each_aligned(catalog, camera):
    scan = Scan(catalog, camera, "left", "right")
    scan.event(1, 2, 3)
    scan.frames(1, 0, 2, key="left")
    scan.frames(2, 4, 2, key="right")
    stream = scan.sent()
    with pytest.warns(MissingRows):
        found = stream.read()
    assert found["left_present"].values.tolist() == [True, True, False]
    assert found["right_present"].values.tolist() == [False, True, True]
    np.testing.assert_array_equal(found["left"].values[:2], FRAMES[:2])
    np.testing.assert_array_equal(found["right"].values[1:], FRAMES[4:6])


def test_a_flyscan_without_events_is_aligned_by_its_ranges(catalog, camera):
    scan = Scan(catalog, camera, "left", "right")
    scan.frames(1, 0, 4, key="left")
    scan.frames(1, 4, 1, key="right")
    scan.frames(3, 6, 2, key="right")
    stream = scan.sent()
    with pytest.warns(MissingRows, match=r"right has 3 of 4 rows \(not seq_num 2\)"):
        found = stream.read()
    np.testing.assert_array_equal(found["left"], FRAMES[:4])
    np.testing.assert_array_equal(found["right"].values[[0, 2, 3]], FRAMES[[4, 6, 7]])


def test_a_flyscan_taken_again_without_events_is_told_apart(scan):
    scan.frames(1, 0, 3)
    scan.frames(2, 5, 2)
    stream = scan.sent()
    np.testing.assert_array_equal(stream.read()["img"], FRAMES[[0, 5, 6]])
    np.testing.assert_array_equal(stream.read(repeats="all")["img"], FRAMES[[0, 1, 5, 2, 6]])


def test_a_file_shorter_than_announced_is_marked_and_never_zeros(scan):
    scan.event(*range(1, 16))
    scan.frames(1, 0, 15)
    stream = scan.sent()
    stream.base.transport.request("GET", api_path("verdict", "a-run-of-ours"), params={"look": True})
    with pytest.warns(MissingRows, match=r"img has 12 of 15 rows \(not seq_num 13-15\)"):
        found = stream.read()
    np.testing.assert_array_equal(found["img"].values[:12], FRAMES)
    assert np.isnan(found["img"].values[12:]).all()


def test_an_array_tells_which_event_and_frame_each_row_is(scan):
    scan.event(1, 2, 3, 4)
    scan.frames(1, 5)
    scan.frames(3, 7, 2)
    image = scan.sent()["img"]
    assert image.shape == (3, 2, 3)
    assert image.seq_num.tolist() == [1, 3, 4]
    assert image.frame_index.tolist() == [5, 7, 8]
    assert image.present.tolist() == [True, False, True, True]
    frames = image.frames()
    assert frames.take.tolist() == [0, 0, 0]
    assert frames.resource.tolist() == [0, 0, 0]
    with pytest.warns(MissingRows, match="are not those of its stream"):
        found = image[1:]
    np.testing.assert_array_equal(found, FRAMES[7:9])


def test_a_run_that_grows_while_it_is_read_is_not_shifted(scan, monkeypatch):
    scan.event(1, 2)
    scan.frames(1, 0)
    stream = scan.sent(stopped=False)
    looked_at = stream.parts()
    scan.frames(2, 1, 3)
    scan.event(3, 4)
    scan.sent()
    monkeypatch.setattr(stream, "parts", lambda: looked_at)
    found = stream.read()
    assert found["x"].values.tolist() == [10, 20, 30, 40]
    np.testing.assert_array_equal(found["img"], FRAMES[:4])


def test_a_running_run_gives_what_is_there(scan):
    scan.event(1, 2)
    scan.frames(1, 0, 3)
    stream = scan.sent(stopped=False)
    with pytest.warns(MissingRows, match="the table has 2 of 3 rows"):
        assert stream.read().sizes["time"] == 3
    assert stream.read(join="inner")["x"].values.tolist() == [10, 20]
    empty = stream.read([])
    assert len(empty) == 0


# --- verdict ----------------------------------------------------------------------------------


def test_the_verdict_says_what_is_complete_and_what_is_missing(catalog, scan):
    scan.event(1, 2, 3)
    scan.frames(1, 0, 2)
    scan.sent()
    verdict = catalog["a-run-of-ours"].check()
    assert verdict.state == "gaps"
    assert not verdict.is_complete
    assert verdict.gaps == 1
    assert "2/3 frames" in verdict.line
    assert str(verdict) == verdict.line
    assert verdict.line in repr(verdict)
    assert "gaps" in verdict._repr_html_()
    with pytest.raises(AttributeError, match="no 'nonsense'"):
        _ = verdict.nonsense
    assert list(catalog.search(verdict="gaps")) == ["a-run-of-ours"]
    assert list(catalog.search(verdict="complete")) == []


def test_a_run_is_found_in_every_way(catalog, scan):
    scan.event(1)
    scan.frames(1, 0)
    scan.sent()
    run = catalog[7]
    assert run == catalog["a-run"] == catalog[-1] == catalog["a-run-of-ours"]
    for stream in (run["streams/primary"], catalog["a-run/streams/primary"]):
        xarray.testing.assert_identical(stream.read(), run["primary"].read())
    assert run["primary/x"].read().tolist() == [10.0]
    assert run["primary", "img"].shape == (1, 2, 3)


def test_who_asks_for_a_stream_that_there_is_not_is_told_which_there_are(catalog, scan):
    scan.event(1)
    scan.sent()
    with pytest.raises(NotFound, match="has no stream 'primry'; it has primary"):
        catalog[-1]["primry"]
    assert "primry" not in catalog[-1]


@pytest.mark.parametrize(
    ("announced", "names"),
    [(["y", "x"], ("time", "y", "x")), (["time", "y", "x"], None), (["x"], None), (["x"] * 2, None)],
)
def test_frames_are_read_whatever_their_device_calls_the_axes(catalog, camera, announced, names):
    run = RunDocuments("axes")
    stream = run.stream(img=external([2, 3], dims=announced))
    stream.resource("img", camera, dataset="data")
    stream.frames("img", 0, 2, 1)
    for number in (1, 2):
        stream.event(number)
    run.stop()
    found = send(catalog, run.documents, "axes")["primary"]
    np.testing.assert_array_equal(found["img"].read(), FRAMES[:2])
    assert found["img"].dims == names
    assert found.read()["img"].shape == (2, 2, 3)


def test_a_notebook_shows_the_latest_runs_of_a_catalogue(catalog, scan):
    assert "no runs yet" in catalog._repr_html_()
    scan.sent()
    shown = catalog._repr_html_()
    assert "1 run, the latest scan 7" in shown
    assert "a-run-of-ours" in shown


def test_a_variable_called_like_a_coordinate_keeps_its_name(catalog):
    run = RunDocuments("names")
    stream = run.stream(take=internal(), event_present=internal(), motor=internal())
    for number in (1, 2, 2):
        stream.event(number, take=10.0, event_present=20.0, motor=float(number))
    run.stop()
    found = send(catalog, run.documents, "names")["primary"].read(repeats="all")
    assert found["take"].values.tolist() == [10.0] * 3
    assert found["take_"].values.tolist() == [0, 0, 1]
    assert found["event_present"].values.tolist() == [20.0] * 3


def test_axes_of_one_name_and_different_lengths_are_told_apart(catalog, tmp_path):
    run = RunDocuments("cameras")
    stream = run.stream(
        small=external([2, 3], dims=["y", "x"]), large=external([4, 3], dims=["y", "x"]), motor=internal()
    )
    for key, shape in (("small", (2, 2, 3)), ("large", (2, 4, 3))):
        with h5py.File(tmp_path / f"{key}.h5", "w") as file:
            file["data"] = np.ones(shape, "<u2")
        stream.resource(key, f"file://localhost{tmp_path}/{key}.h5", dataset="data")
        stream.frames(key, 0, 2)
    for number in range(2):
        stream.event(motor=float(number))
    run.stop()
    found = send(catalog, run.documents, "cameras")["primary"].read()
    assert found["small"].dims == ("time", "small_y", "x")
    assert found["large"].dims == ("time", "large_y", "x")


def test_rows_that_are_not_those_of_all_events_are_named(catalog, camera):
    """The last Event is lost and its frame comes last of all; by place it would be that of another event."""
    run = RunDocuments("unnamed")
    stream = run.stream(img=external([2, 3]), motor=internal())
    stream.resource("img", camera, dataset="data")
    stream.frames("img", 0, 4)
    for number in (1, 3, 4):
        stream.event(number, motor=float(number))
    run.stop()
    found = send(catalog, run.documents, "unnamed")["primary"].read(["img"])
    assert found["seq_num"].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(found["img"].values, FRAMES[:4])


def test_events_of_which_nothing_is_there_are_warned_of(catalog, camera):
    run = RunDocuments("hole")
    stream = run.stream(img=external([2, 3]))
    stream.resource("img", camera, dataset="data")
    stream.frames("img", 0, 2)
    stream.frames("img", 4, 6)
    run.stop()
    with pytest.warns(MissingRows, match="seq_num 3-4"):
        found = send(catalog, run.documents, "hole")["primary"].read()
    assert found["seq_num"].values.tolist() == [1, 2, 5, 6]


def test_what_is_missing_of_an_array_is_told_under_its_own_name(catalog, camera):
    """Also where the array has exactly the events of the table, and another one has more."""
    run = RunDocuments("beside")
    stream = run.stream(img=external([2, 3]), more=external([2, 3]), motor=internal())
    for key, count in (("img", 2), ("more", 3)):
        stream.resource(key, camera, dataset="data")
        stream.frames(key, 0, count)
    for number in range(2):
        stream.event(motor=float(number))
    run.stop()
    with pytest.warns(MissingRows):
        found = send(catalog, run.documents, "beside")["primary"].read()
    assert found["img_present"].values.tolist() == [True, True, False]
    assert found["event_present"].values.tolist() == [True, True, False]
    assert "more_present" not in found.coords
