"""Tables written, appended to and read by the unmodified Tiled client are what the client wrote.

If these fail, rows or the index of a DataFrame are lost between writing and reading, or a writer retries for 45 s
what can never succeed.
"""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import dask.config
import dask.dataframe
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import urllib3
from tiled.client.utils import ClientError
from tiled.structures.core import Spec, StructureFamily
from tiled.structures.data_source import Asset, DataSource, Management
from tiled.structures.table import TableStructure

from flystore.service import Service
from flystore.service.verifying import verify

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

ARROW = "application/vnd.apache.arrow.file"
REPEAT = "X-Flystore-Possible-Repeat"
FRAME = pd.DataFrame({"x": [1.5, 2.5, np.nan, 4.0], "n": [1, 2, 3, 4], "name": ["a", "b", None, "d"]})
FRAMES = {
    "counted rows": FRAME,
    "anonymous index": FRAME.set_index(pd.Index([10, 20, 30, 40])),
    "named index": FRAME.set_index(pd.Index(list("wxyz"), name="letter")),
    "two indices": FRAME.set_index([pd.Index([1, 1, 2, 2], name="a"), pd.Index(list("abab"), name="b")]),
    "times": pd.DataFrame({"t": pd.to_datetime(["2026-01-01", "2026-01-02"]), "c": pd.Categorical(["u", "v"])}),
    "no rows": FRAME.iloc[:0],
}


@pytest.fixture(autouse=True)
def strings_as_they_are():
    """Keep Dask, which the client reads with, from turning strings into a type of its own."""
    with dask.config.set({"dataframe.convert-string": False}):
        yield


@pytest.fixture
def home(server):
    with server.tiled() as client:
        yield client.create_container("box")


@pytest.fixture
def raw(server):
    pool = urllib3.PoolManager(retries=False)

    def send(method, path, body=None, content_type=ARROW, **fields):
        headers = {"Authorization": f"Apikey {server.key}", "Content-Type": content_type}
        return pool.request(method, f"{server.url}/api/v1{path}", body=body, headers=headers, **fields)

    yield send
    pool.clear()


def arrow(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


# --------------------------------------------------------------------------- written whole


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_comes_back_with_its_index_and_types(home, name):
    frame = FRAMES[name]
    home.write_table(frame, key="t")
    pd.testing.assert_frame_equal(home["t"].read(), frame, check_index_type=False)


ODD = {
    "lists": (pa.list_(pa.int64()), [[1, 2], [3]]),
    "lists of lists": (pa.list_(pa.list_(pa.string())), [[["a"], []], [["b", "c"]]]),
    "lists of one length": (pa.list_(pa.float32(), 2), [[1, 2], [3, 4]]),
    "records": (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        [{"a": 1, "b": ["x"]}, {"a": 2, "b": []}],
    ),
    "maps": (pa.map_(pa.string(), pa.int64()), [[("k", 1)], []]),
    "whole seconds": (pa.timestamp("s"), [1, None]),
    "days in milliseconds": (pa.date64(), [86_400_000, None]),
    "times of day": (pa.time32("s"), [1, None]),
    "numbered numbers": (pa.dictionary(pa.int8(), pa.int64()), [7, 8]),
}


@pytest.mark.parametrize("name", ODD)
def test_columns_of_types_that_files_hold_otherwise_come_back(home, raw, name):
    kind, values = ODD[name]
    written = pa.table({"c": pa.array(values, kind), "n": [1, 2]})
    source = DataSource(structure_family=StructureFamily.table, structure=TableStructure.from_arrow_table(written))
    home.new("table", [source], key="t")
    assert raw("PUT", "/table/full/box/t", arrow(written)).status == 200
    answer = raw("GET", f"/table/full/box/t?format={ARROW}")
    assert answer.status == 200, answer.data
    found = pa.ipc.open_file(answer.data).read_all()
    assert found.column("c").type == kind
    assert found.column("c").to_pylist() == written.column("c").to_pylist()


def test_a_column_of_lists_that_differ_in_length_is_ragged_as_for_stock(home, stock):
    rows = {"one": [[1.0], [2.0, 3.0], []], "two": [[[1]], [[2, 3], []], []], "same": [[1, 2], [3, 4], [5, 6]]}
    kinds = {"one": pa.list_(pa.float64()), "two": pa.list_(pa.list_(pa.int64())), "same": pa.list_(pa.int64())}

    def made(box):
        table = box.create_appendable_table(pa.schema(kinds), key="grows")
        table.append_partition(0, pa.table(rows, schema=pa.schema(kinds)))
        return table

    ours = made(home)
    assert ours["one"].structure_family == StructureFamily.ragged
    assert ours["one"].shape == (3, None)
    assert ours["one"].read().tolist() == rows["one"]
    assert ours["one"][1].tolist() == [2.0, 3.0]
    assert ours["two"].read().tolist() == rows["two"]
    assert ours["same"].read().tolist() == rows["same"]
    with stock.tiled() as client:
        theirs = made(client.create_container("lists-that-differ"))
        for name in ("one", "same"):
            assert ours[name].structure() == theirs[name].structure()
            assert ours[name].read().tolist() == theirs[name].read().tolist()


@pytest.mark.parametrize("name", ["anonymous index", "named index", "two indices"])
def test_the_index_comes_along_when_columns_are_asked_for(home, name):
    frame = FRAMES[name]
    home.write_table(frame, key="t")
    pd.testing.assert_frame_equal(home["t"].read(["n", "x"]), frame[["n", "x"]])
    assert list(home["t"]) == list(frame.columns)
    np.testing.assert_array_equal(home["t"]["n"].read(), [1, 2, 3, 4])


def test_the_files_are_parquet_that_others_read(home, server):
    home.write_table(FRAMES["named index"], key="t")
    source = home["t"].include_data_sources().data_sources()[0]
    assert source.mimetype == "application/x-parquet"
    (file,) = (server.directory / "arrays").glob("*/partition-0.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(file), FRAMES["named index"])
    assert not any(check.damaged for check in verify(server.directory, deep=True).checks)


def test_every_partition_of_a_dask_frame_is_kept_and_read_by_itself(home, raw):
    frame = pd.DataFrame({"i": np.arange(1000), "s": [f"row {i}" for i in range(1000)]})
    parts = dask.dataframe.from_pandas(frame, npartitions=4)
    node = home.write_table(parts, key="t")
    assert node.structure().npartitions == 4
    pd.testing.assert_frame_equal(home["t"].read(), frame)
    pd.testing.assert_frame_equal(home["t"].read_partition(2), parts.get_partition(2).compute())
    full = raw("GET", "/table/full/box/t", fields={"column": "i"})
    assert pa.ipc.open_file(full.data).read_all().column("i").to_pylist() == list(range(1000))
    np.testing.assert_array_equal(home["t"]["i"].read(), frame["i"])
    assert raw("GET", "/table/partition/box/t?partition=4").status == 400
    assert raw("GET", "/table/partition/box/t?partition=-1").status in (400, 422)
    assert raw("PUT", "/table/partition/box/t?partition=4", arrow(pa.table({"i": [1]}))).status == 400
    assert raw("PUT", "/table/full/box/t", arrow(pa.table({"i": [1]}))).status == 422
    sink = io.BytesIO()
    home["t"].export(sink, format="csv")
    assert len(sink.getvalue().splitlines()) == 1001


def test_a_partition_that_is_sent_again_replaces_what_was_there(home, raw):
    home.write_table({"x": [1, 2, 3]}, key="t")
    for _ in range(2):
        assert raw("PUT", "/table/partition/box/t?partition=0", arrow(pa.table({"x": [7, 8]}))).status == 200
    assert list(home["t"].read()["x"]) == [7, 8]
    assert raw("PATCH", "/table/partition/box/t?partition=0", arrow(pa.table({"x": [9]}))).status == 405
    assert raw("PATCH", "/table/partition/box/t?partition=3", arrow(pa.table({"x": [9]}))).status == 405


def test_many_columns_are_asked_for_by_post(home, raw):
    wide = {f"a_rather_long_column_name_{i:04d}": [i, -i] for i in range(200)}
    home.write_table(wide, key="t")
    names = list(wide)[:150]
    assert list(home["t"].read(names).columns) == names
    for method, extra in (("GET", {}), ("POST", {"body": b'["nope"]', "content_type": "application/json"})):
        asked = "&column=nope" if method == "GET" else ""
        answer = raw(method, f"/table/partition/box/t?partition=0{asked}", **extra)
        assert answer.status == 400
        assert b"nope" in answer.data


def test_what_does_not_fit_a_table_is_the_callers_fault(home, raw):
    home.write_table({"x": [1, 2, 3]}, key="t")
    live = home.create_appendable_table(pa.schema([("x", pa.int64())]), key="live")
    assert live is not None
    for path, method in (("/table/full/box/t", "PUT"), ("/table/partition/box/live?partition=0", "PATCH")):
        for body in (arrow(pa.table({"y": [1]})), arrow(pa.table({"x": ["text"]})), b"no arrow", b""):
            assert raw(method, path, body).status == 422
        assert raw(method, path, arrow(pa.table({"x": [1]})), "text/csv").status == 415
    assert raw("PUT", "/table/full/box", b"").status == 404
    assert list(home["t"].read()["x"]) == [1, 2, 3]


def test_tables_survive_a_restart_a_rebuild_and_a_look_at_every_byte(home, server):
    home.write_table(FRAMES["anonymous index"], key="t")
    server.service.rebuild()
    pd.testing.assert_frame_equal(home["t"].read(), FRAMES["anonymous index"])
    server.service.close()
    with Service.open(server.directory) as again:
        assert again.tables.read(("box", "t")).num_rows == 4


def test_damage_to_a_kept_partition_is_an_error_and_never_other_rows(home, server, raw):
    home.write_table({"x": np.arange(1000)}, key="t")
    (file,) = (server.directory / "arrays").glob("*/partition-0.parquet")
    whole = file.read_bytes()
    for at in range(4, len(whole), 97):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        answer = raw("GET", "/table/partition/box/t?partition=0")
        if answer.status == 200:
            read = pa.ipc.open_file(answer.data).read_all().column("x").to_pylist()
            assert read == list(range(1000)), at
    file.unlink()
    assert raw("GET", "/table/partition/box/t?partition=0").status >= 400


# --------------------------------------------------------------------------- appended to


def test_rows_of_every_kind_of_body_are_appended_in_their_order(home):
    schema = pa.schema([("x", pa.int64()), ("s", pa.string())])
    node = home.create_appendable_table(schema, key="t", table_name="mine")
    assert node.data_sources()[0].parameters["table_name"] == "mine"
    node.append_partition(0, {"x": [1], "s": ["a"]})
    node.append_partition(0, pa.table({"x": [2], "s": ["b"]}))
    node.append_partition(0, pd.DataFrame({"x": [3], "s": ["c"]}, index=[99]))
    assert list(home["t"].read()["x"]) == [1, 2, 3]
    with pytest.raises(ClientError, match="Partition out of range"):
        node.append_partition(1, {"x": [1], "s": ["a"]})
    assert len(home["t"].read()) == 3


def test_a_partition_that_there_is_not_is_refused_alike_whatever_is_asked_of_it(home, raw):
    home.create_appendable_table(pa.schema([("x", pa.int64())]), key="t")
    body = arrow(pa.table({"x": [1]}))
    where = "/table/partition/box/t?partition=1"
    found = [raw("GET", where), raw("PUT", where, body), raw("PATCH", where, body)]
    assert [(answer.status, json.loads(answer.data)["detail"][:22]) for answer in found] == [
        (400, "Partition out of range")
    ] * 3


def test_a_body_sent_twice_is_kept_twice_and_said_to_be_a_possible_repeat(server, raw):
    with server.tiled() as client:
        run = client.create_container(
            "run-1234567", specs=[Spec("BlueskyRun", "3.0")], metadata={"start": {"uid": "run-1234567", "time": 1.0}}
        )
        run.create_appendable_table(pa.schema([("x", pa.int64())]), key="t")
        url = "/table/partition/run-1234567/t?partition=0"
        assert REPEAT not in raw("PATCH", url, arrow(pa.table({"x": [1, 2]}))).headers
        assert raw("PATCH", url, arrow(pa.table({"x": [1, 2]}))).headers[REPEAT] == "rows 0-1"
        assert REPEAT not in raw("PATCH", url, arrow(pa.table({"x": [3]}))).headers
        assert REPEAT not in raw("PATCH", url, arrow(pa.table({"x": [1, 2]}))).headers
        assert list(client["run-1234567"]["t"].read()["x"]) == [1, 2, 1, 2, 3, 1, 2]
    (note,) = [note for note in server.service.verdicts.of(("run-1234567",)).notes if "possible repeat" in note]
    assert "2 rows in 1 append" in note


def test_no_row_of_many_appenders_is_lost_or_doubled_while_others_read(server):
    schema = pa.schema([("who", pa.int64()), ("n", pa.int64())])
    with server.tiled() as client:
        client.create_container("box").create_appendable_table(schema, key="t")
    done = threading.Event()

    def append(who):
        with server.tiled("/api/v1/metadata/box/t") as node:
            for n in range(0, 36, 3):
                node.append_partition(0, {"who": [who] * 3, "n": [n, n + 1, n + 2]})

    def poll(node):
        seen = 0
        while not done.is_set():
            frame = node.read()
            assert len(frame) >= seen
            assert len(frame) % 3 == 0
            seen = len(frame)
        return seen

    with ExitStack() as clients, ThreadPoolExecutor(11) as pool:
        # All stay open until all are done: dask takes graphs of one name for one, whichever client made them.
        nodes = [clients.enter_context(server.tiled("/api/v1/metadata/box/t")) for _ in range(3)]
        pollers = [pool.submit(poll, node) for node in nodes]
        appenders = [pool.submit(append, i) for i in range(8)]
        try:
            for appender in appenders:
                appender.result()
        finally:
            done.set()
        for poller in pollers:
            poller.result()
    table = server.service.tables.read(("box", "t"))
    rows = list(zip(table["who"].to_pylist(), table["n"].to_pylist(), strict=True))
    assert sorted(rows) == [(who, n) for who in range(8) for n in range(36)]
    for who in range(8):
        assert [n for w, n in rows if w == who] == list(range(36))


# --------------------------------------------------------------------------- files of others


def registered(home, key, mimetype, files, table, parameters=None):
    structure = TableStructure.from_arrow_table(table, npartitions=len(files))
    source = DataSource(
        structure_family=StructureFamily.table,
        structure=structure,
        mimetype=mimetype,
        parameters=parameters or {},
        management=Management.external,
        assets=[
            Asset(data_uri=f"file://localhost{file}", is_directory=False, parameter="data_uris", num=i)
            for i, file in enumerate(files)
        ],
    )
    return home.new("table", [source], key=key)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
def test_tables_in_files_of_others_are_read_partition_by_partition(home, data, kind):
    tables = [pa.table({"x": [1.5, 2.5], "s": ["a", "b"]}), pa.table({"x": [3.5], "s": ["c"]})]
    files = []
    for number, table in enumerate(tables):
        file = data / f"part-{number}.{kind}"
        if kind == "parquet":
            pq.write_table(table, file)
        elif kind == "csv":
            pa.csv.write_csv(table, file)
        else:
            file.write_bytes(arrow(table))
        files.append(file)
    mimetype = {"parquet": "application/x-parquet", "arrow": ARROW, "csv": "text/csv"}[kind]
    node = registered(home, "t", mimetype, files, tables[0])
    assert list(node.read()["x"]) == [1.5, 2.5, 3.5]
    assert list(node.read(["s"])["s"]) == ["a", "b", "c"]
    assert list(node.read_partition(1)["s"]) == ["c"]
    np.testing.assert_array_equal(home["t"]["x"].read(), [1.5, 2.5, 3.5])
    files[1].unlink()
    with pytest.raises(ClientError):
        home["t"].read()
    assert list(home["t"].read_partition(0)["s"]) == ["a", "b"]


@pytest.mark.parametrize("mimetype", ["application/x-parquet", ARROW, "text/csv"])
def test_a_file_that_is_no_table_is_unreadable_and_never_empty(home, data, raw, mimetype):
    file = data / "broken"
    file.write_bytes(b'"\x00\xff' * 100)
    registered(home, "t", mimetype, [file], pa.table({"x": [1]}))
    answer = raw("GET", "/table/partition/box/t?partition=0")
    assert 400 <= answer.status < 500, answer.data
    assert raw("PUT", "/table/full/box/t", arrow(pa.table({"x": [1]}))).status == 405
