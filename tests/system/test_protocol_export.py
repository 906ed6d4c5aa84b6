"""Whatever a node can be exported as, the format's own library reads the same values back.

If these fail, people carry wrong numbers into spreadsheets and papers, or their scripts that export from Tiled stop.
All goes through the unmodified client over a real socket; where stock Tiled can do the same it is asked as well.
"""

import io
import json
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import bluesky.plans as bp
import h5py
import httpx
import numpy as np
import openpyxl
import pandas as pd
import pyarrow.feather
import pyarrow.parquet
import pytest
import tifffile
import xarray as xr
from bluesky_tiled_plugins import TiledWriter
from ophyd.sim import det
from PIL import Image
from tiled.client import from_uri
from tiled.client.xarray import write_xarray_dataset

from flystore.http import Access, build_app
from flystore.model.frames import FrameEncoder, frame
from flystore.service import Service
from flystore.testing.serving import serving
from flystore.testing.stock_server import API_KEY as KEY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

HOME = "a-home-of-exports"
RANDOM = np.random.default_rng(5)
ARRAYS = {
    "floats": np.arange(12.0).reshape(3, 4) / 7,
    "single": (np.arange(6) / 7).astype("f4"),
    "one": np.arange(5),
    "big_endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "truths": np.array([[True, False], [False, True]]),
    "texts": np.array(["a", 'b,"c', "é"]),
    "moments": np.array(["2026-01-01T00:00:00", "2026-01-01T00:00:01.5"], "M8[ns]"),
    "image": RANDOM.integers(0, 60_000, (20, 30)).astype("u2"),
    "colours": RANDOM.integers(0, 255, (20, 30, 3)).astype("u1"),
    "stack": RANDOM.integers(0, 60_000, (4, 20, 30)).astype("u2"),
    "four": RANDOM.integers(0, 99, (2, 2, 6, 5)).astype("u2"),
}
FRAME = pd.DataFrame(
    {
        "i": [1, 2, 3],
        "f": [0.5, np.nan, 2.0],
        "s": ["a", 'b,"c', "line\nfeed"],
        "b": [True, False, True],
        "t": pd.date_range("2026-01-01", periods=3, freq="s"),
    }
)
DATASETS = {
    "in_time": xr.Dataset(
        {"x": ("time", np.arange(4.0)), "n": ("time", np.arange(4) * 2)},
        coords={"time": np.arange(4) * 0.1, "lab": ("time", np.arange(4) + 5)},
        attrs={"title": "a scan"},
    ),
    "on_a_grid": xr.Dataset(
        {"x": (("row", "col"), np.arange(6.0).reshape(2, 3)), "y": ("row", np.array([True, False]))},
        coords={"row": [10, 20], "col": [1.0, 2.0, 3.0]},
        attrs={"title": "a map"},
    ),
}


class Peer(NamedTuple):
    url: str
    client: object

    def get(self, path, method="GET", headers=None, json=None, **query):
        return httpx.request(
            method,
            f"{self.url}/api/v1/{path}",
            params=query,
            headers={"Authorization": f"Apikey {KEY}", **(headers or {})},
            json=json,
            timeout=60,
        )


def export(peer, path, format, **more):
    """Return what the unmodified client's export writes."""
    found = io.BytesIO()
    peer.client[path].export(found, format=format, **more)
    return found.getvalue()


def fill(url):
    root = from_uri(url, api_key=KEY)
    home = root.create_container(HOME, metadata={"sample": "LaB6", "nested": {"a": [1, 2]}, "none": None})
    for key, array in ARRAYS.items():
        home.write_array(array, key=key, metadata={"unit": "mm"})
    home.write_table(FRAME, key="table", metadata={"kind": "slow"})
    home.write_table(FRAME.set_index("i"), key="indexed")
    for key, dataset in DATASETS.items():
        write_xarray_dataset(home, dataset, key=key)
    inner = home.create_container("inner", metadata={"depth": 2})
    inner.write_array(np.arange(3), key="deep")
    root.context.http_client.close()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    with (
        Service.open(tmp_path_factory.mktemp("exports")) as service,
        serving(build_app(service, Access.of(KEY))) as url,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        fill(url)
        client = from_uri(f"{url}/api/v1/metadata/{HOME}", api_key=KEY)
        yield Peer(url, client)
        client.context.http_client.close()


@pytest.fixture(scope="module")
def theirs(stock):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fill(stock.url)
        client = from_uri(f"{stock.url}/api/v1/metadata/{HOME}", api_key=KEY)
        yield Peer(stock.url, client)
        client.context.http_client.close()


class Cells(HTMLParser):
    """The cells of the tables of a page, row by row."""

    def __init__(self, page):
        super().__init__()
        self.rows, self._open = [], False
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._open = tag in ("td", "th")

    def handle_endtag(self, tag):
        self._open = False

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


# --------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("key", ["floats", "single", "one", "truths", "stack", "texts", "moments", "big_endian"])
def test_an_array_as_json_is_nested_lists(ours, theirs, key):
    found = json.loads(export(ours, key, "json"))
    expected = ARRAYS[key]
    if key == "moments":
        assert found == ["2026-01-01T00:00:00.000000000", "2026-01-01T00:00:01.500000000"]
    else:
        np.testing.assert_array_equal(np.array(found, dtype=expected.dtype), expected)
    if key not in ("moments", "big_endian"):
        assert found == json.loads(export(theirs, key, "json"))


@pytest.mark.parametrize("key", ["floats", "single", "one", "truths", "big_endian"])
@pytest.mark.parametrize("format", ["csv", "text/plain", "application/vnd.ms-excel", "text/x-comma-separated-values"])
def test_an_array_as_text_is_what_stock_writes(ours, theirs, key, format):
    assert export(ours, key, format) == export(theirs, key, format)


def test_texts_with_commas_survive_text_with_commas(ours):
    found = pd.read_csv(io.BytesIO(export(ours, "texts", "csv")), header=None)[0].tolist()
    assert found == ARRAYS["texts"].tolist()


def test_a_slice_of_an_array_is_exported(ours, theirs):
    for peer in (ours, theirs):
        found = json.loads(export(peer, "floats", "json", slice=(slice(1, 3), 2)))
        assert found == ARRAYS["floats"][1:3, 2].tolist()


def test_a_block_is_exported_too(ours):
    answer = ours.get(f"array/block/{HOME}/floats", block="0,0", format="csv", slice="1:2")
    assert answer.text == ",".join(map(str, ARRAYS["floats"][1])) + "\n"


@pytest.mark.parametrize("key", ["floats", "one", "image"])
def test_a_grey_picture_has_the_pixels_of_stocks(ours, theirs, key):
    found, expected = (
        np.asarray(Image.open(io.BytesIO(export(peer, key, "png")))).astype(int) for peer in (ours, theirs)
    )
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


def test_a_coloured_picture_keeps_its_colours(ours):
    found = np.asarray(Image.open(io.BytesIO(export(ours, "colours", "png"))))
    np.testing.assert_array_equal(found, ARRAYS["colours"])


@pytest.mark.parametrize("key", ["floats", "one", "image", "colours", "stack", "four", "big_endian"])
def test_a_tiff_holds_the_values(ours, theirs, key):
    found = tifffile.imread(io.BytesIO(export(ours, key, "tiff")))
    np.testing.assert_array_equal(np.squeeze(found), ARRAYS[key])
    assert found.dtype == ARRAYS[key].dtype.newbyteorder("=")
    stocks = tifffile.imread(io.BytesIO(export(theirs, key, "tiff")))
    np.testing.assert_array_equal(np.squeeze(found), np.squeeze(stocks))


def test_an_array_as_a_page_is_a_picture_or_a_table(ours):
    assert b"data:image/png;base64," in export(ours, "image", "html")
    assert [row[0] for row in Cells(export(ours, "texts", "html")).rows] == ARRAYS["texts"].tolist()


@pytest.mark.parametrize(("key", "format"), [("four", "png"), ("stack", "csv"), ("texts", "tiff"), ("moments", "png")])
def test_what_a_format_cannot_hold_is_refused_in_words(ours, key, format):
    answer = ours.get(f"array/full/{HOME}/{key}", format=format)
    assert answer.status_code == 406
    assert "incompatible with the requested format" in answer.json()["detail"]


# --------------------------------------------------------------------------- tables


def same_frame(found, expected=FRAME):
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_table_as_arrow_and_parquet_is_the_frame(ours, theirs):
    for peer in (ours, theirs):
        same_frame(pyarrow.feather.read_feather(io.BytesIO(export(peer, "table", "arrow"))))
        same_frame(pyarrow.parquet.read_table(io.BytesIO(export(peer, "table", "parquet"))).to_pandas())


def test_the_index_of_a_frame_survives_where_the_format_has_one(ours):
    indexed = FRAME.set_index("i")
    same_frame(pyarrow.feather.read_feather(io.BytesIO(export(ours, "indexed", "arrow"))), indexed)
    same_frame(pyarrow.parquet.read_table(io.BytesIO(export(ours, "indexed", "parquet"))).to_pandas(), indexed)


@pytest.mark.parametrize(
    "format",
    ["csv", "text/plain", "text/x-comma-separated-values", "application/vnd.ms-excel", "text/csv;header=absent"],
)
@pytest.mark.parametrize("key", ["table", "indexed"])
def test_a_table_as_text_is_what_stock_writes(ours, theirs, key, format):
    assert export(ours, key, format) == export(theirs, key, format)


@pytest.mark.parametrize("key", ["table", "indexed"])
@pytest.mark.parametrize("format", ["json", "application/json-seq"])
def test_a_table_as_json_is_what_stock_writes(ours, theirs, key, format):
    assert export(ours, key, format) == export(theirs, key, format)


def test_columns_are_chosen_and_come_in_the_order_asked_for(ours):
    assert export(ours, "table", "csv", columns=["f", "i"]).splitlines()[:2] == [b"f,i", b"0.5,1"]
    answer = ours.get(f"table/full/{HOME}/table", method="POST", json=["f", "i"], format="csv")
    assert answer.text.splitlines()[:2] == ["f,i", "0.5,1"]
    assert ours.get(f"table/full/{HOME}/table", format="csv", column="no").status_code == 400


def test_a_workbook_holds_the_frame(ours, theirs):
    for peer in (ours, theirs):
        same_frame(pd.read_excel(io.BytesIO(export(peer, "table", "xlsx"))))


def test_a_workbook_is_one_sheet_of_typed_cells(ours):
    sheet = openpyxl.load_workbook(io.BytesIO(export(ours, "table", "xlsx"))).active
    assert [[cell.value for cell in row][:4] for row in sheet.iter_rows(max_row=3)] == [
        ["i", "f", "s", "b"],
        [1, 0.5, "a", True],
        [2, None, 'b,"c', False],
    ]


def test_a_table_as_hdf5_is_a_dataset_a_column(ours):
    with h5py.File(io.BytesIO(export(ours, "table", "h5"))) as file:
        np.testing.assert_array_equal(file["i"][:], FRAME["i"])
        np.testing.assert_array_equal(file["f"][:], FRAME["f"])
        assert file["s"].asstr()[:].tolist() == FRAME["s"].tolist()
        np.testing.assert_array_equal(file["b"][:], FRAME["b"])
        assert file["t"].attrs["units"] == "nanoseconds since 1970-01-01"
        np.testing.assert_array_equal(file["t"][:].astype("M8[ns]"), FRAME["t"].to_numpy("M8[ns]"))
        assert file.attrs["kind"] == "slow"


def test_a_table_as_a_page_has_its_cells(ours):
    rows = Cells(export(ours, "table", "html")).rows
    assert rows[0] == list(FRAME)
    assert rows[2][:4] == ["2", "", 'b,"c', "False"]


# --------------------------------------------------------------------------- datasets


@pytest.mark.parametrize("key", DATASETS)
def test_a_dataset_reads_as_it_was_written(ours, theirs, key):
    for peer in (ours, theirs):
        xr.testing.assert_identical(peer.client[key].read(), DATASETS[key])


@pytest.mark.parametrize("key", DATASETS)
def test_a_dataset_as_a_frame_has_xarrays_rows(ours, theirs, key):
    expected = DATASETS[key].to_dataframe()
    same = pd.testing.assert_frame_equal
    same(pyarrow.parquet.read_table(io.BytesIO(export(ours, key, "parquet"))).to_pandas(), expected, check_like=True)
    same(pyarrow.feather.read_feather(io.BytesIO(export(ours, key, "arrow"))), expected, check_like=True)
    flat = expected.reset_index()
    same(pd.read_csv(io.BytesIO(export(ours, key, "csv"))), flat, check_like=True)
    same(pd.read_excel(io.BytesIO(export(ours, key, "xlsx"))), flat, check_like=True, check_dtype=False)
    same(pd.DataFrame(json.loads(export(ours, key, "json"))), flat, check_like=True)
    stocks = pyarrow.feather.read_feather(io.BytesIO(export(theirs, key, "arrow")))
    same(stocks, expected, check_like=True)


@pytest.mark.parametrize("key", DATASETS)
def test_a_dataset_as_netcdf_is_the_dataset(ours, tmp_path, key):
    path = tmp_path / "export.nc"
    ours.client[key].export(path)
    with xr.open_dataset(path, engine="h5netcdf") as found:
        xr.testing.assert_identical(found.load(), DATASETS[key])


@pytest.mark.parametrize("key", DATASETS)
def test_a_dataset_as_hdf5_has_its_variables_and_attributes(ours, key):
    with h5py.File(io.BytesIO(export(ours, key, "h5"))) as file:
        assert file.attrs["title"] == DATASETS[key].attrs["title"]
        for name, variable in DATASETS[key].variables.items():
            np.testing.assert_array_equal(file[name][()], variable.values)


def test_some_variables_of_a_dataset_are_exported(ours):
    found = pd.read_csv(io.BytesIO(export(ours, "in_time", "csv", fields=["n", "time"])))
    assert sorted(found) == ["n", "time"]


# --------------------------------------------------------------------------- containers


def test_a_container_as_hdf5_is_its_tree(ours):
    with h5py.File(io.BytesIO(export(ours, "inner", "h5"))) as file:
        assert file.attrs["depth"] == 2
        np.testing.assert_array_equal(file["deep"][:], np.arange(3))
    body = ours.get(f"container/full/{HOME}", format="h5").content
    with h5py.File(io.BytesIO(body)) as file:
        assert file.attrs["sample"] == "LaB6"
        assert json.loads(file.attrs["nested"]) == {"a": [1, 2]}
        assert file.attrs["none"] == "null"
        for key, array in ARRAYS.items():
            if array.dtype.kind in "biuf":
                np.testing.assert_array_equal(file[key][:], array)
                assert file[key].attrs["unit"] == "mm"
        assert file["texts"].asstr()[:].tolist() == ARRAYS["texts"].tolist()
        assert file["table"]["s"].asstr()[0] == "a"
        assert file["inner"].attrs["depth"] == 2
        assert file["inner/deep"].shape == (3,)


def test_a_container_as_json_is_the_metadata_of_its_tree(ours, theirs):
    for path in ("inner", None):
        where = HOME if path is None else f"{HOME}/{path}"
        found, expected = (peer.get(f"container/full/{where}", format="json").json() for peer in (ours, theirs))
        assert found == expected


def test_fields_of_a_container_are_named_in_the_query_or_a_body(ours):
    answers = [
        ours.get(f"container/full/{HOME}", field=["one", "inner"], format="h5"),
        ours.get(f"container/full/{HOME}", method="POST", json=["one", "inner"], format="h5"),
    ]
    for answer in answers:
        with h5py.File(io.BytesIO(answer.content)) as file:
            assert sorted(file) == ["inner", "one"]
    assert ours.get(f"container/full/{HOME}", field="no", format="h5").status_code == 400


def test_the_older_route_answers_for_tables_and_containers(ours):
    assert ours.get(f"node/full/{HOME}/table", format="csv").text.startswith("i,f,s,b,t\n")
    assert ours.get(f"node/full/{HOME}/inner", format="json").json()["metadata"] == {"depth": 2}
    assert ours.get(f"node/full/{HOME}/one").status_code == 404


# --------------------------------------------------------------------------- documents


def lines(body):
    return [json.loads(line.removeprefix("\x1e")) for line in body.split("\n") if line]


def test_a_run_that_came_as_documents_is_exported_as_they_were(ours, recorded):
    documents = recorded(bp.count([det], 3))
    uid, encoder = documents[0][1]["uid"], FrameEncoder()
    body = b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))
    sent = httpx.post(
        f"{ours.url}/api/v1/ingest/{uid}?first=0&epoch=1",
        content=body,
        headers={"Authorization": f"Apikey {KEY}", "content-type": "application/x-flystore-frames"},
        timeout=100,
    )
    assert sent.status_code == 200, sent.text
    expected = json.loads(json.dumps([{"name": name, "doc": doc} for name, doc in documents]))
    root = from_uri(ours.url, api_key=KEY)
    try:
        found = [{"name": name, "doc": doc} for name, doc in root[uid].documents()]
    finally:
        root.context.http_client.close()
    assert found == expected
    answer = ours.get(f"documents/{uid}", headers={"Accept": "application/json-seq"}, fill="false")
    assert answer.headers["content-type"] == "application/json-seq"
    assert lines(answer.text) == expected
    assert ours.get(f"documents/{uid}", headers={"Accept": "application/json-seq"}, fill="true").status_code == 422
    assert ours.get(f"container/full/{uid}", format="application/json-seq", field="primary").status_code == 406


def test_a_run_of_a_stock_writer_is_exported_as_from_stock(ours, theirs, recorded):
    documents = recorded(bp.count([det], 3))
    uid, found = documents[0][1]["uid"], []
    for peer in (ours, theirs):
        root = from_uri(peer.url, api_key=KEY)
        try:
            writer = TiledWriter(root)
            for name, doc in documents:
                writer(name, doc)
            found.append(list(root[uid].documents()))
        finally:
            root.context.http_client.close()
    ours_, theirs_ = found
    assert [name for name, _ in ours_] == [name for name, _ in theirs_]
    for (name, mine), (_, stocks) in zip(ours_, theirs_, strict=True):
        if name == "event":
            assert {**mine, "uid": ""} == {**stocks, "uid": ""}
        else:
            assert {key: mine[key] for key in stocks if key in mine} == stocks


# --------------------------------------------------------------------------- asking


def test_about_says_what_there_is(ours, theirs):
    about, stocks = (peer.get("").json() for peer in (ours, theirs))
    for family in ("array", "table", "container"):
        assert set(stocks["formats"][family]) <= set(about["formats"][family])
    assert "application/json-seq" in about["formats"]["BlueskyRun"]
    assert about["aliases"]["table"]["text/csv"] == ["csv"]
    assert set(about["aliases"]) == set(about["formats"]) or "ragged" in about["formats"]


def test_the_first_format_that_there_is_is_taken(ours):
    path = f"array/full/{HOME}/image"

    def kind(**query):
        headers = {"Accept": query.pop("accept")} if "accept" in query else None
        return ours.get(path, headers=headers, **query).headers["content-type"].removesuffix("; charset=utf-8")

    assert kind(format="no/such,csv,json") == "text/csv"
    assert kind(format="csv", accept="application/json") == "text/csv"
    assert kind(accept="text/html,application/xhtml+xml,*/*;q=0.8") == "text/html"
    assert kind(accept="image/*") == "image/png"
    assert kind(accept="*/*") == "application/octet-stream"
    assert kind(format="text/csv;header=absent") == "text/csv;header=absent"


def test_a_download_has_the_name_that_was_asked_for(ours):
    for path in (f"array/full/{HOME}/one", f"table/full/{HOME}/table", f"container/full/{HOME}/inner"):
        answer = ours.get(path, format="json", filename="x.json")
        assert answer.headers["content-disposition"] == 'attachment; filename="x.json"'


@pytest.mark.parametrize("path", ["array/full/{}/one", "table/full/{}/table", "container/full/{}/inner"])
def test_an_unknown_format_is_refused_with_those_that_there_are(ours, theirs, path):
    for peer in (ours, theirs):
        answer = peer.get(path.format(HOME), format="no-such")
        assert answer.status_code == 406
        assert answer.json()["detail"].startswith(
            "None of the media types requested by the client are supported. Supported: "
        )
        assert answer.json()["detail"].endswith("Requested: no-such.")


def test_a_node_of_another_family_is_no_matter_of_formats(ours):
    for path in (f"array/full/{HOME}/inner", f"table/full/{HOME}/one", f"container/full/{HOME}/table"):
        for format in ("csv", "h5", "no-such"):
            assert ours.get(path, format=format).status_code == 404


def test_a_table_too_long_for_a_sheet_is_refused_before_it_is_written(ours):
    root = from_uri(ours.url, api_key=KEY)
    try:
        root.write_table(pd.DataFrame({"x": np.zeros(1 << 20, np.int8)}), key="too-long-for-a-sheet")
    finally:
        root.context.http_client.close()
    answer = ours.get("table/full/too-long-for-a-sheet", format="xlsx")
    assert answer.status_code == 400
    assert "1048575" in answer.json()["detail"]


def test_who_leaves_in_the_middle_leaves_nothing_open(ours):
    root = from_uri(ours.url, api_key=KEY)
    try:
        # More than the sockets between hold.
        root.write_table(pd.DataFrame({"x": np.arange(1_200_000) / 7}), key="left-in-the-middle")
    finally:
        root.context.http_client.close()

    def open_files():
        return [name for name in map(target, Path("/proc/self/fd").iterdir()) if name.endswith("(deleted)")]

    def target(link):
        try:
            return str(link.readlink())
        except OSError:
            return ""

    before = open_files()  # temporary files have no name, or none any more; the test runner has some too
    url = f"{ours.url}/api/v1/table/full/left-in-the-middle"
    headers = {"Authorization": f"Apikey {KEY}"}
    with httpx.stream("GET", url, params={"format": "json"}, headers=headers, timeout=100) as answer:
        next(answer.iter_raw(1 << 16))
        assert not set(open_files()) <= set(before)
    deadline = time.monotonic() + 100
    while not set(open_files()) <= set(before) and time.monotonic() < deadline:
        assert ours.get("").status_code == 200
    assert set(open_files()) <= set(before)
    assert ours.get("table/full/left-in-the-middle", format="csv").text.count("\n") == 1_200_001
