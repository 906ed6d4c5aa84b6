"""Runs written by the stock TiledWriter to stock Tiled are found and read as its own client reads them.

If these fail, people who change the client see other variables, other numbers or other axes than
before, or do not find their run by the number they wrote down.
"""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray

from flystore.client import CatalogOfRuns, Container, FullText, Key, MissingRows, Run, Stream
from flystore.model.errors import InvalidRequest, NotFound
from flystore.testing.stock_server import read_with_stock, write_with_stock
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[2] / "data" / "streams"

LISTS_IN_TABLES = {"step_internal": {"wave"}, "internal_odd_values": {"small", "img", "empty"}}
"""Variables that the stock client gives as text; ours gives their numbers."""


def simple_run(number, points=3, plan="count", **start):
    """Return the documents of a small run whose uid begins with its number."""
    uid = f"{number:05d}aaa-0000-4000-8000-{number:012d}"
    key = {"source": "sim", "dtype": "number", "shape": [], "dtype_numpy": "<f8", "object_name": "det"}
    descriptor = {"uid": f"d-{uid}", "run_start": uid, "time": 1.0, "name": "primary", "data_keys": {"det": key}}
    descriptor |= {"object_keys": {"det": ["det"]}, "hints": {"det": {"fields": ["det"]}}}
    descriptor |= {"configuration": {"det": {"data": {"gain": 2}, "timestamps": {"gain": 0.5}, "data_keys": {}}}}
    events = [
        {
            "uid": f"e{i}-{uid}",
            "descriptor": descriptor["uid"],
            "seq_num": i + 1,
            "time": 10.0 + i,
            "data": {"det": i / 2},
            "timestamps": {"det": 9.5 + i},
        }
        for i in range(points)
    ]
    stop = {"uid": f"s-{uid}", "run_start": uid, "time": 20.0, "exit_status": "success"}
    return [
        ("start", {"uid": uid, "time": float(number), "scan_id": number, "plan_name": plan, **start}),
        ("descriptor", descriptor),
        *(("event", event) for event in events),
        ("stop", {**stop, "num_events": {"primary": points}}),
    ]


RUNS = [(1001, "count"), (1002, "scan"), (1003, "count"), (1004, "count")]


@pytest.fixture(scope="module")
def simple(stock_url):
    for number, plan in RUNS:
        write_with_stock(stock_url, simple_run(number, plan=plan, sample={"name": f"gold {number}"}))
    again = simple_run(1003, plan="again")
    for _, doc in again:
        for field in ("uid", "run_start", "descriptor"):
            if field in doc:
                doc[field] = doc[field].replace("01003aaa", "01003bbb")
    write_with_stock(stock_url, again)


@pytest.fixture
def runs(catalog, simple):
    return catalog


@pytest.fixture
def run(runs):
    return runs["01001"]


# --- finding ----------------------------------------------------------------------------------


def test_the_root_is_a_catalogue_of_runs(runs):
    assert isinstance(runs, CatalogOfRuns)


def test_a_run_is_found_by_its_uid_or_the_beginning_of_it(runs):
    uid = "01002aaa-0000-4000-8000-000000001002"
    for key in (uid, "01002", "01002aaa-0"):
        assert isinstance(runs[key], Run)
        assert runs[key].uid == uid
        assert key in runs
    assert runs["01002/primary/det"].read().tolist() == [0, 0.5, 1]
    assert runs[uid, "primary", "det"] == runs["01002"]["primary"]["det"]


def test_a_run_is_found_by_its_scan_id_the_latest_of_several(runs):
    assert runs[1002].scan_id == 1002
    assert runs[1003].uid.startswith("01003bbb")
    assert runs[np.int64(1002)] == runs[1002]
    assert 1002 in runs
    assert 999999 not in runs


def test_runs_are_found_from_the_latest(runs):
    ours = runs.search(Key("scan_id") > 1000, Key("scan_id") < 2000)
    assert ours[-1].uid.startswith("01003bbb")
    assert [run.scan_id for run in ours[-3:]] == [1003, 1004, 1003]
    assert [run.scan_id for run in ours[-3:-1]] == [1003, 1004]
    assert ours[0].scan_id == 1001


def test_a_beginning_that_fits_several_runs_names_them(runs):
    with pytest.raises(InvalidRequest, match="2 runs begin with '01003'") as caught:
        runs["01003"]
    assert len(caught.value.uids) == 2


@pytest.mark.parametrize("key", ["zzzzzzzz", "010", 999999, "01002/nope", -1000000])
def test_a_run_that_is_not_there_is_a_key_error(runs, key):
    with pytest.raises(NotFound):
        runs[key]
    assert key not in runs


def test_too_short_a_beginning_says_how_many_characters_are_needed(runs):
    with pytest.raises(NotFound, match="at least 5 characters"):
        runs["010"]


def test_wildcards_in_a_uid_are_not_wildcards(runs):
    with pytest.raises(NotFound):
        runs["0100_aaa"]
    with pytest.raises(NotFound):
        runs["%%%%%%"]


def test_slices_by_scan_id_are_refused_in_words(runs):
    with pytest.raises(InvalidRequest, match="count from the end"):
        runs[1001:1003]


def test_search_means_the_start_document_unless_told_otherwise(runs):
    found = runs.search(plan_name="count").search(FullText("gold"))
    assert [run.scan_id for run in found.values()] == [1001, 1003, 1004]
    assert len(runs.search(Key("start.scan_id") == 1002)) == 1
    assert len(runs.search(Key("sample.name") == "gold 1002")) == 1
    assert len(runs.search(Key("stop.exit_status") == "success", plan_name="again")) == 1
    assert found["01003"].uid.startswith("01003aaa")
    with pytest.raises(NotFound):
        found["01002"]


def test_runs_are_sorted_and_told_apart_by_the_start_document(runs):
    ours = runs.search(FullText("gold"))
    assert [run.scan_id for run in ours.sort("-scan_id").values()] == [1004, 1003, 1002, 1001]
    plans = ours.distinct("plan_name", counts=True)["metadata"]["plan_name"]
    assert {entry["value"]: entry["count"] for entry in plans} == {"count": 3, "scan": 1}


# --- runs and streams -------------------------------------------------------------------------


def test_a_run_gives_its_start_and_stop(run):
    assert run.start["scan_id"] == run.scan_id == 1001
    assert run.stop["exit_status"] == "success"
    assert list(run) == ["primary"]
    assert len(run) == 1
    assert run.keys().last() == "primary"


def test_a_stream_is_found_with_and_without_the_level_above_it(run):
    for key in ("primary", "streams/primary", ("streams", "primary")):
        assert isinstance(run[key], Stream)
        assert run[key] == run["primary"]
    assert isinstance(run["streams"], Container)
    assert list(run["streams"]) == ["primary"]
    assert "nope" not in run
    with pytest.raises(NotFound, match="nope"):
        run["streams/nope"]


def test_a_run_without_stop_has_none(stock_url, catalog):
    write_with_stock(stock_url, simple_run(1100)[:-1], batch_size=1)
    run = catalog["01100"]
    assert run.stop is None
    assert "no stop document yet" in repr(run)
    assert run["primary"].read()["det"].values.tolist() == [0, 0.5, 1]


def test_the_repr_of_a_run_tells_a_person_what_they_have(run):
    shown = repr(run)
    assert shown.startswith("<Run 01001aaa: scan 1001, count, ")
    assert shown.endswith("success after 5 min 0 s, streams primary (3 events)>") or "primary (3 events)" in shown
    assert "<th" in run._repr_html_()
    assert "count" in run._repr_html_()


def test_metadata_that_holds_markup_is_shown_as_text(stock_url, catalog):
    write_with_stock(stock_url, simple_run(1101, plan="<script>alert(1)</script>"))
    assert "<script>" not in catalog["01101"]._repr_html_()


def test_a_stream_is_a_mapping_of_variables(run):
    stream = run["primary"]
    assert set(stream) == {"time", "det"}
    assert len(stream) == 2
    assert "det" in stream
    assert stream["det"].read().tolist() == [0, 0.5, 1]
    assert stream["ts_det"].read().tolist() == [9.5, 10.5, 11.5]
    assert stream["seq_num"][:].tolist() == [1, 2, 3]
    assert stream["internal"]["det"] == stream["det"] == stream["internal/det"]
    assert dict(stream.items()).keys() == {"time", "det"}
    with pytest.raises(NotFound, match="has no 'nope'; it has time, det"):
        stream["nope"]


def test_a_stream_tells_what_the_devices_said(run):
    stream = run["primary"]
    assert stream.data_keys["det"]["object_name"] == "det"
    assert stream.configuration["det"]["data"] == {"gain": 2}
    assert stream.hints == {"det": {"fields": ["det"]}}
    (descriptor,) = stream.descriptors
    assert descriptor["name"] == "primary"
    assert descriptor["run_start"] == run.uid
    assert descriptor["object_keys"] == {"det": ["det"]}
    assert run.descriptors == [descriptor]


def test_the_repr_of_a_stream_lists_its_variables(run):
    assert "det: number for each event" in repr(run["primary"])
    assert "number for each event" in run["primary"]._repr_html_()


def test_stock_tiled_has_no_documents_or_verdicts_of_ours(run):
    with pytest.raises(NotFound):
        run.documents()
    with pytest.raises(NotFound):
        _ = run.verdict


# --- reading ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(stock_url, stock_directory):
    """Every recorded stream, written by the stock writer; uids by case."""
    found = {}
    for case in recorded_cases(STREAMS):
        recorded = put_in_place(STREAMS, case, stock_directory)
        write_with_stock(stock_url, recorded.documents)
        found[case] = recorded
    return found


# Where points were taken again ours gives the last of each, and the stock client all of them, unnamed.
@pytest.mark.parametrize("case", [case for case in recorded_cases(STREAMS) if case != "paused_retake"])
def test_read_gives_the_dataset_of_the_stock_client(case, replayed, catalog, stock_url):
    lists = LISTS_IN_TABLES.get(case, set())
    for uid in replayed[case].runs:
        for name, stream in catalog[uid].items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if case == "internal_odd_values" else "error")
                ours = stream.read()
            theirs = read_with_stock(stock_url, uid, name)
            assert set(ours.variables) == set(theirs.variables)
            assert set(ours.coords) == set(theirs.coords)
            xarray.testing.assert_identical(ours.drop_vars(lists), theirs.drop_vars(lists))
            for variable in set(ours.variables) - lists:
                assert ours[variable].dtype == theirs[variable].dtype


@pytest.mark.parametrize("case", recorded_cases(STREAMS))
def test_read_gives_what_the_documents_and_files_say(case, replayed, catalog):
    for uid, expected in replayed[case].expected.items():
        for name, content in expected["streams"].items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if case == "internal_odd_values" else "error")
                found = catalog[uid][name].read(repeats="all")
            for key, values in content["columns"].items():
                if key == "rag":
                    continue  # padded; compared below by the rows themselves
                _assert_values(found[{"time": "time_"}.get(key, key)].values, values)


def _assert_values(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert np.isnan(one)
        else:
            np.testing.assert_array_equal(one, np.asarray(other))


def test_lists_in_tables_are_numbers(replayed, catalog):
    (uid,) = replayed["step_internal"].runs
    wave = catalog[uid]["primary"].read("wave")["wave"]
    assert wave.dims == ("time", "wave_dim1")
    assert wave.dtype == float


def test_ragged_rows_are_padded_and_the_warning_says_so(replayed, catalog):
    (uid,) = replayed["internal_odd_values"].runs
    stream = catalog[uid]["primary"]
    with pytest.warns(MissingRows, match="rag have unequal lengths"):
        padded = stream.read(["rag"])["rag"].values
    for row, values in zip(stream["rag"].read(), padded, strict=True):
        np.testing.assert_array_equal(values[: len(row)], row)
        assert np.isnan(values[len(row) :]).all()


def test_variables_can_be_chosen(replayed, catalog):
    (uid,) = replayed["legacy_resource"].runs
    stream = catalog[uid]["primary"]
    assert set(stream.read(["det", "img"]).variables) == {"det", "img"}
    assert set(stream.read("motor").variables) == {"motor"}
    assert stream.read(["seq_num", "det"])["seq_num"].values.tolist() == [1, 2, 3, 4]
    assert len(stream.read([]).variables) == 0
    with pytest.raises(NotFound, match="has no nope, nada"):
        stream.read(["det", "nope", "nada"])


def test_timestamps_come_by_the_names_of_their_variables(replayed, catalog):
    (uid,) = replayed["legacy_resource"].runs
    stream = catalog[uid]["primary"]
    found = stream.timestamps()
    assert set(found.data_vars) == {"det", "motor", "motor_setpoint"}
    assert (found["det"].values == stream["ts_det"].read()).all()
    assert set(stream.timestamps("det").data_vars) == {"det"}
    with pytest.raises(NotFound):
        stream.timestamps("img")


def test_arrays_can_be_left_with_the_service(replayed, catalog):
    (uid,) = replayed["flyscan_panda"].runs
    stream = catalog[uid]["primary"]
    lazy, eager = stream.read(lazy=True), stream.read()
    assert lazy["det_fast"].chunks is not None
    xarray.testing.assert_identical(lazy.compute(), eager)


def test_wrong_ways_of_aligning_are_refused_before_anything_is_read(run):
    with pytest.raises(InvalidRequest, match="join must be one of outer, inner"):
        run["primary"].read(join="sideways")
    with pytest.raises(InvalidRequest, match="repeats must be one of last, all"):
        run["primary"].read(repeats="first")


def test_retaken_events_are_read_once_or_all_of_them(stock_url, catalog):
    documents = simple_run(1102, points=5)
    retaken = copy.deepcopy(documents)
    for i, seq_num in zip((5, 6), (2, 3), strict=True):
        retaken[i][1]["seq_num"] = seq_num
    write_with_stock(stock_url, retaken)
    stream = catalog["01102"]["primary"]
    last = stream.read()
    assert last["seq_num"].values.tolist() == [1, 2, 3]
    assert last["det"].values.tolist() == [0.0, 1.5, 2.0]
    every = stream.read(repeats="all")
    assert every["seq_num"].values.tolist() == [1, 2, 2, 3, 3]
    assert every["take"].values.tolist() == [0, 0, 1, 0, 1]
    assert every["det"].values.tolist() == [0.0, 0.5, 1.5, 1.0, 2.0]


def test_an_array_of_another_length_is_never_aligned_by_guess(stock_url, catalog, replayed):
    """Stock writers send a number of rows only: which event has no frame cannot be known."""
    recorded = replayed["legacy_resource"]
    documents = copy.deepcopy(recorded.documents)
    lost = [i for i, (name, doc) in enumerate(documents) if name == "event" and doc["seq_num"] == 2]
    (old,) = recorded.runs
    new = "0110300000000"
    kept = [(name, doc) for i, (name, doc) in enumerate(documents) if i not in lost]
    extra = copy.deepcopy(documents[lost[0]][1])
    text = [(name, _renamed(doc, old, new)) for name, doc in kept]
    extra = _renamed(extra, old, new)
    image = next(key for key in extra["data"] if extra.get("filled", {}).get(key) is False)
    del extra["data"][image], extra["timestamps"][image], extra["filled"][image]
    text.insert(lost[0], ("event", extra))
    write_with_stock(stock_url, text)
    stream = catalog["01103"]["primary"]
    with pytest.warns(MissingRows, match=r"nobody announced which events the rows of img \(3 rows\) belong to"):
        found = stream.read()
    assert found["img"].dims[0] == "img_event"
    assert found.sizes["time"] == 4
    assert found["det"].dims == ("time",)


def _renamed(doc, old, new):
    import json

    return json.loads(json.dumps(doc).replace(old, new))
