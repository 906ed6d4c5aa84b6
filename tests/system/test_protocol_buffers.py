"""Awkward, ragged and sparse data written and read by the unmodified Tiled client is what the client wrote.

If these fail, people who keep such data in Tiled cannot move, or a retry, a second writer or a broken body costs rows.
"""

import io
import json
import struct
import sys
import threading
import zipfile
from itertools import product

import awkward
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
import ragged
import sparse
import urllib3
from tiled.structures.array import BuiltinDtype
from tiled.structures.data_source import DataSource
from tiled.structures.sparse import COOStructure
from tiled.utils import Conflicts

from flystore.service import Service, backup
from flystore.service import ragged as ragged_service
from flystore.service.verifying import verify

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

ARROW = "application/vnd.apache.arrow.file"
AWKWARD = {
    "records": [{"x": [1, 2, 3], "y": "one", "z": None}, {"x": [], "y": "zwei", "z": 1.5}],
    "lists": [[[1.5], []], [], [[2.5, 3.5]]],
    "numbers": [1, 2, 3],
    "missing": [1, None, 3],
}
RAGGED = {
    "two axes": [[1, 2, 3], [], [4, 5]],
    "three axes": [[[1.0, 2.0], [3.0]], [], [[4.0, 5.0, 6.0]]],
    "no rows": np.zeros((0, 3)),
    "a grid": np.arange(6).reshape(2, 3),
    "grids within lists": awkward.from_regular(np.arange(12).reshape(2, 2, 3), axis=1),
}


@pytest.fixture
def home(server):
    with server.tiled() as client:
        yield client.create_container("basement")


@pytest.fixture
def homes(server, stock, request):
    """The same place in flystore and in stock Tiled."""
    key = f"basement-{abs(hash(request.node.name))}"
    with server.tiled() as ours, stock.tiled() as theirs:
        yield ours.create_container(key), theirs.create_container(key)


class Raw:
    """Requests that no client sends."""

    def __init__(self, server):
        self._url = f"{server.url}/api/v1"
        self._headers = {"Authorization": f"Apikey {server.key}"}
        self._pool = urllib3.PoolManager(retries=False)

    def __call__(self, method, path, body=None, content_type=None, accept=None, **query):
        headers = dict(self._headers)
        headers |= {"Content-Type": content_type} if content_type else {}
        headers |= {"Accept": accept} if accept else {}
        return (
            self._pool.request(method, f"{self._url}{path}", body=body, headers=headers, fields=query or None)
            if (method == "GET" or not query)
            else self._pool.request(
                method,
                f"{self._url}{path}?" + "&".join(f"{k}={v}" for k, v in query.items()),
                body=body,
                headers=headers,
            )
        )


@pytest.fixture
def raw(server):
    made = Raw(server)
    yield made
    made._pool.clear()


def exported(node, format_):
    sink = io.BytesIO()
    node.export(sink, format=format_)
    return sink.getvalue()


# --------------------------------------------------------------------------- awkward


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_arrays_read_and_export_as_from_stock(homes, name):
    array = awkward.Array(AWKWARD[name])
    ours, theirs = (home.write_awkward(array, key="k") for home in homes)
    assert ours.read().to_list() == theirs.read().to_list() == array.to_list()
    assert ours[1:].to_list() == array[1:].to_list()
    assert json.loads(exported(ours, "json")) == json.loads(exported(theirs, "json"))
    for format_, read in (("arrow", pa.feather.read_table), ("parquet", pa.parquet.read_table)):
        tables = [read(io.BytesIO(exported(node, format_))) for node in (ours, theirs)]
        assert tables[0].to_pydict() == tables[1].to_pydict()
    assert set(ours.formats) == set(theirs.formats)


def test_a_field_of_records_is_read_by_its_own_buffers(home, server, raw):
    node = home.write_awkward(awkward.Array(AWKWARD["records"]), key="k")
    assert node["x"].to_list() == [[1, 2, 3], []]
    answer = raw("POST", "/awkward/buffers/basement/k", b'["node1"]', "application/json")
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        assert archive.namelist() == ["node1-offsets"]
    assert answer.headers["content-type"] == "application/zip"
    one = raw("GET", "/awkward/buffers/basement/k", form_key="node1")
    assert one.data == answer.data


def test_awkward_data_can_be_replaced_and_survives_a_restart(home, server):
    node = home.write_awkward(awkward.Array([[1, 2], [3]]), key="k")
    other = awkward.to_packed(awkward.Array([[7], [8, 9, 10]]))
    node.write(awkward.to_buffers(other)[2])
    assert home["k"].read().to_list() == [[7], [8, 9, 10]]
    server.service.close()
    with Service.open(server.directory) as again:
        assert again.awkward.read(("basement", "k")).buffers["node1-data"] == np.array([7, 8, 9, 10]).tobytes()


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/awkward/full/basement/k", b"no zip", "application/zip", 422),
        ("/awkward/full/basement/k", b"", "application/zip", 422),
        ("/awkward/full/basement/k", b"x", "text/plain", 415),
        ("/awkward/full/basement", b"x", "application/zip", 404),
        ("/awkward/full/nowhere", b"x", "application/zip", 404),
        ("/ragged/full/basement/k", b"x", "application/zip", 404),
    ],
)
def test_what_is_not_awkward_data_is_refused(home, raw, path, body, content_type, status):
    node = home.write_awkward(awkward.Array([[1, 2], [3]]), key="k")
    assert raw("PUT", path, body, content_type).status == status
    assert node.read().to_list() == [[1, 2], [3]]


def zip_of(**buffers):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in buffers.items():
            archive.writestr(name.replace("_", "-"), data)
    return sink.getvalue()


def int64(*values):
    return np.array(values, "<i8").tobytes()


@pytest.mark.parametrize(
    "body",
    [
        zip_of(node0_offsets=int64(0, 2, 3)),
        zip_of(node0_offsets=int64(0, 2, 3), node1_data=int64(1, 2)),
        zip_of(node0_offsets=int64(0, 2, 2**60), node1_data=int64(1, 2, 3)),
        zip_of(node0_offsets=int64(0, 3, 2), node1_data=int64(1, 2, 3)),
        zip_of(node0_offsets=int64(0, 2, 3), node1_data=int64(1, 2, 3), node2_data=b""),
    ],
)
def test_buffers_that_do_not_make_the_data_are_refused(home, raw, body):
    node = home.write_awkward(awkward.Array([[1, 2], [3]]), key="k")
    answer = raw("PUT", "/awkward/full/basement/k", body, "application/zip")
    assert answer.status == 422, answer.data
    assert node.read().to_list() == [[1, 2], [3]]


def test_a_bomb_is_refused(home, raw):
    home.write_awkward(awkward.Array([[1, 2], [3]]), key="k")
    bomb = zip_of(node0_offsets=int64(0, 2, 3), node1_data=bytes(520 << 20))
    answer = raw("PUT", "/awkward/full/basement/k", bomb, "application/zip")
    assert answer.status == 400
    assert answer.json()["error"]["kind"] == "too-large"


def test_form_keys_and_formats_that_there_are_not_are_refused(home, raw):
    home.write_awkward(awkward.Array([[1, 2], [3]]), key="k")
    assert raw("POST", "/awkward/buffers/basement/k", b'["node9"]', "application/json").status == 400
    assert raw("POST", "/awkward/buffers/basement/k", b'{"a": 1}', "application/json").status == 422
    assert raw("GET", "/awkward/full/basement/k", format="text/csv").status == 406


def test_data_that_was_announced_and_never_sent_is_no_data(home, raw):
    home.new("ragged", [ragged_source([[1, 2], [3]])], key="r")
    answer = raw("GET", "/ragged/full/basement/r")
    assert answer.status == 503
    assert answer.headers["retry-after"]
    assert "never written" in answer.json()["detail"]


@pytest.mark.parametrize("form", [{"class": "Nonsense"}, {}, None, "int64", {"class": "NumpyArray", "form_key": None}])
def test_a_structure_that_is_none_makes_no_node(home, raw, form):
    source = {"structure_family": "awkward", "structure": {"length": 1, "form": form}, "management": "writable"}
    body = {"id": "k", "structure_family": "awkward", "metadata": {}, "data_sources": [source], "specs": []}
    assert raw("POST", "/metadata/basement", json.dumps(body), "application/json").status == 422
    assert "k" not in home


# --------------------------------------------------------------------------- ragged


def ragged_source(rows):
    from tiled.structures.ragged import RaggedStructure

    return DataSource(
        structure=RaggedStructure.from_array(rows), structure_family="ragged", mimetype="application/x-ragged+sql"
    )


@pytest.mark.parametrize("name", RAGGED)
def test_ragged_arrays_read_as_from_stock(homes, name):
    ours, theirs = (home.write_ragged(RAGGED[name], key="r") for home in homes)
    assert ours.read().tolist() == theirs.read().tolist()
    assert ours.structure() == theirs.structure()
    assert [str(ours.read()._impl.type)] == [str(theirs.read()._impl.type)]


def test_slices_of_ragged_arrays_are_those_of_stock(homes):
    ours, theirs = (home.write_ragged(RAGGED["three axes"], key="r") for home in homes)
    for picked in (
        np.s_[0:2],
        np.s_[0],
        np.s_[2, 0],
        np.s_[1:],
        np.s_[:, 0:1],
        np.s_[0, 0, 1],
        np.s_[2, 0, 0:2],
        np.s_[-1],
    ):
        assert ours[picked].tolist() == theirs[picked].tolist()


def test_ragged_arrays_in_blocks_read_as_one(homes):
    rows = ragged.array([list(range(i % 7)) for i in range(100)])
    ours, theirs = (home.write_ragged(rows, key="r", max_partition_bytes=500) for home in homes)
    assert ours.chunks == theirs.chunks
    assert len(ours.chunks[0]) > 4
    assert ours.read().tolist() == theirs.read().tolist() == rows.tolist()
    for picked in (np.s_[13:77], np.s_[12:13], np.s_[99], np.s_[4:4], np.s_[50:60, 0:2]):
        assert ours[picked].tolist() == rows[picked].tolist()
    ours.write_block(ragged.array([[7]] * ours.chunks[0][1]), block=1)
    assert ours[ours.chunks[0][0]].tolist() == [7]


@pytest.mark.parametrize("name", RAGGED)
def test_ragged_arrays_export_as_from_stock(homes, name):
    ours, theirs = (home.write_ragged(ragged.array(RAGGED[name]), key="r") for home in homes)
    assert json.loads(exported(ours, "json")) == json.loads(exported(theirs, "json"))
    for format_, read in (("arrow", pa.feather.read_table), ("parquet", pa.parquet.read_table)):
        tables = [read(io.BytesIO(exported(node, format_))) for node in (ours, theirs)]
        assert tables[0].schema.equals(tables[1].schema, check_metadata=True)
        assert tables[0].to_pydict() == tables[1].to_pydict()
        assert awkward.from_arrow(tables[0]).to_list() == ours.read().tolist()


@pytest.mark.parametrize("picked", ["0", "::-1", "1:", "::1,0:1", "0,0", "0,0,0"])
def test_slices_of_ragged_arrays_are_tables_as_from_stock(homes, server, stock, picked):
    for home in homes:
        home.write_ragged(RAGGED["three axes"], key="r")
    answers = [
        httpx.get(
            f"{one.url}/api/v1/ragged/full/{home.path_parts[0]}/r",
            params={"slice": picked, "format": ARROW},
            headers={"Authorization": f"Apikey {one.key}"},
            timeout=100,
        )
        for one, home in zip((server, stock), homes, strict=True)
    ]
    assert answers[0].status_code == answers[1].status_code
    if answers[0].status_code == 200:
        tables = [pa.feather.read_table(io.BytesIO(answer.content)) for answer in answers]
        assert tables[0].schema.equals(tables[1].schema, check_metadata=True)
        assert tables[0].to_pydict() == tables[1].to_pydict()


def test_without_awkward_ragged_arrays_are_plain_lists_and_nested_data_of_other_kinds_is_refused(
    home, raw, monkeypatch
):
    home.write_ragged(RAGGED["three axes"], key="r")
    home.write_ragged(ragged.array([[1 + 2j], []]), key="c")
    home.write_awkward(awkward.Array(AWKWARD["records"]), key="k")
    monkeypatch.setitem(sys.modules, "awkward", None)
    for format_, read in (("arrow", pa.feather.read_table), ("parquet", pa.parquet.read_table)):
        answer = raw("GET", "/ragged/full/basement/r", format=format_)
        (column,) = read(io.BytesIO(answer.data)).columns
        assert not isinstance(column.type, pa.BaseExtensionType)
        assert column.to_pylist() == RAGGED["three axes"]
        for path in ("/ragged/full/basement/c", "/awkward/full/basement/k"):
            assert raw("GET", path, format=format_).status == 406
    assert raw("GET", "/awkward/full/basement/k", format="zip").status == 200


def test_rows_are_added_and_the_size_is_right(home):
    node = home.write_ragged(RAGGED["two axes"], key="r")
    node.patch([[7], [8, 9]], offset=3, extend=True)
    assert (node.shape, node.size) == ((5, None), 8)
    again = home["r"]
    assert (again.shape, again.size, again.chunks) == ((5, None), 8, ((3, 2), None))
    assert again.read().tolist() == [*RAGGED["two axes"], [7], [8, 9]]
    again.write([[1], [2], [3], [4], [5]])
    assert home["r"].size == 5


def test_very_many_patches_do_not_make_very_many_files(home, server, monkeypatch):
    monkeypatch.setattr(ragged_service, "MOST_BLOCKS", 4)
    node = home.write_ragged([[0]], key="r")
    for number in range(1, 20):
        node.patch([[number] * (number % 3 + 1)], offset=number, extend=True)
    assert node.read().tolist() == [[n] * (n % 3 + 1) for n in range(20)]
    assert len(node.chunks[0]) == 4
    assert home["r"].size == node.size == sum(n % 3 + 1 for n in range(20))


def test_rows_that_a_write_left_behind_when_it_was_cut_short_are_not_shown(home, server):
    node = home.write_ragged([[1], [2]], key="r")
    (part,) = server.directory.glob("arrays/*/block-0.zip")
    longer = ragged_service.zipped(ragged_service.Lists(np.arange(4), ragged_service.Values(np.array([1, 2, 3]))))
    part.write_bytes(longer)
    part.with_name("block-1.zip").write_bytes(longer)
    assert node.read().tolist() == [[1], [2]]
    node.patch([[9]], offset=2, extend=True)
    assert node.read().tolist() == [[1], [2], [9]]


def test_parallel_patches_lose_no_row(home, server):
    home.write_ragged([[0]], key="r")
    writers, rows = 6, 5
    errors = []

    def add(writer):
        try:
            with server.tiled("/api/v1/metadata/basement") as container:
                node = container["r"]
                for number in range(rows):
                    while not added(node, [[writer, number]]):
                        node = container["r"]
        except Exception as error:
            errors.append(error)

    def added(node, row):
        try:
            node.patch(row, offset=node.shape[0], extend=True)
        except Conflicts:
            return False
        return True

    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    found = home["r"].read().tolist()
    assert len(found) == 1 + writers * rows
    for writer in range(writers):
        assert [row for row in found[1:] if row[0] == writer] == [[writer, number] for number in range(rows)]
    assert home["r"].size == 1 + 2 * writers * rows


def ragged_zip(form, length, **buffers):
    return zip_of(length=struct.pack(">q", length), form=json.dumps(json.dumps(form)), **buffers)


LISTS = {
    "class": "ListOffsetArray",
    "offsets": "i64",
    "form_key": "node0",
    "content": {"class": "NumpyArray", "primitive": "int64", "inner_shape": [], "form_key": "node1"},
}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no zip", 422),
        (ragged_zip(LISTS, 2, node0_offsets=int64(0, 1, 2), node1_data=int64(8, 9)), 422),
        (ragged_zip(LISTS, 3, node0_offsets=int64(0, 1, 2), node1_data=int64(8, 9)), 422),
        (ragged_zip(LISTS, 3, node0_offsets=int64(0, 1, 2, 9), node1_data=int64(8, 9)), 422),
        (ragged_zip(LISTS, -1, node0_offsets=int64(0), node1_data=b""), 422),
        (ragged_zip(LISTS, 2**39, node0_offsets=int64(0), node1_data=b""), 422),
        (ragged_zip("nonsense", 3), 422),
        (ragged_zip({"class": "EmptyArray"}, 0), 422),
        (zip_of(length=b"\0", form=b'"{}"'), 422),
        (zip_of(form=b"[" * 100_000, length=bytes(8)), 422),
        (zip_of(), 422),
    ],
)
def test_bodies_that_are_not_such_rows_are_refused(home, raw, body, status):
    node = home.write_ragged(RAGGED["two axes"], key="r")
    for method, what, query in (
        ("PUT", "full", {}),
        ("PUT", "block", {"block": "0"}),
        ("PATCH", "full", {"offset": 3, "shape": 3, "extend": "true"}),
    ):
        answer = raw(method, f"/ragged/{what}/basement/r", body, "application/zip", **query)
        assert answer.status == status, answer.data
    assert node.read().tolist() == RAGGED["two axes"]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"offset": 1, "shape": 1, "extend": "true"}, 409, "at offset 3"),
        ({"offset": 4, "shape": 1, "extend": "true"}, 409, "at offset 3"),
        ({"offset": 3, "shape": 1}, 409, "Use ?extend=true"),
        ({"offset": 3, "shape": 2, "extend": "true"}, 422, "2 rows"),
        ({"offset": 3, "shape": 1, "extend": "true", "persist": "false"}, 400, "persist"),
        ({"offset": "x", "shape": 1, "extend": "true"}, 422, "offset"),
    ],
)
def test_patches_that_do_not_add_at_the_end_are_refused(home, raw, query, status, words):
    node = home.write_ragged(RAGGED["two axes"], key="r")
    body = ragged_zip(LISTS, 1, node0_offsets=int64(0, 1), node1_data=int64(8))
    answer = raw("PATCH", "/ragged/full/basement/r", body, "application/zip", **query)
    assert answer.status == status
    assert words in answer.json()["detail"]
    assert node.read().tolist() == RAGGED["two axes"]


def test_slices_that_do_not_fit_are_refused(home, raw):
    home.write_ragged(RAGGED["two axes"], key="r")
    for picked in ("5", "0,9", "0,0,0", "::0", "x"):
        assert raw("GET", "/ragged/full/basement/r", slice=picked).status == 422
    assert raw("GET", "/ragged/full/basement/r", slice="0,0").status == 406
    assert raw("GET", "/ragged/full/basement/r", slice="0,0", format="json").json() == 1


def test_a_block_that_there_is_not_is_refused(home, raw):
    home.write_ragged(RAGGED["two axes"], key="r")
    for block in ("1", "0,1", ""):
        answer = raw("PUT", "/ragged/block/basement/r", b"", "application/zip", block=block)
        assert answer.status == 422


# --------------------------------------------------------------------------- sparse


@pytest.fixture
def coo():
    return sparse.random((10, 12), density=0.2, random_state=7)


def test_sparse_arrays_and_their_slices_read_as_from_stock(homes, coo):
    nodes = [home.write_sparse(coords=coo.coords, data=coo.data, shape=coo.shape, key="s") for home in homes]
    for node in nodes:
        assert (node.read().todense() == coo.todense()).all()
        for picked in (np.s_[:], np.s_[0], np.s_[2:8, 3], np.s_[:, 5:], np.s_[9, 0:12], np.s_[4:4]):
            assert (node[picked].todense() == coo.todense()[picked]).all()
    ours, theirs = nodes
    assert ours.structure() == theirs.structure()
    assert (ours.read_block((0, 0)).todense() == coo.todense()).all()


def test_types_of_values_and_coordinates_are_kept(home, coo):
    for number, (dtype, coordinates) in enumerate(product(["f4", "f8", "i2", "u8", "?"], ["i4", "i8", "u8"])):
        data, coords = (coo.data * 100).astype(dtype), coo.coords.astype(coordinates)
        node = home.write_sparse(coords=coords, data=data, shape=coo.shape, key=f"s{number}")
        table = pa.feather.read_table(io.BytesIO(exported(node, "arrow")))
        assert table.schema.names == ["dim0", "dim1", "data"]
        assert table["data"].to_numpy().dtype == np.dtype(dtype)
        assert table["dim0"].to_numpy().dtype == np.dtype(coordinates)
        assert (table["data"].to_numpy() == data).all()


def test_sparse_arrays_export_as_json_as_from_stock(homes, coo):
    nodes = [home.write_sparse(coords=coo.coords, data=coo.data, shape=coo.shape, key="s") for home in homes]
    ours, theirs = (json.loads(exported(node, "json")) for node in nodes)
    assert ours == theirs


def test_sparse_arrays_export_where_stock_fails(home, coo):
    node = home.write_sparse(coords=coo.coords, data=coo.data, shape=coo.shape, key="s")
    table = pa.parquet.read_table(io.BytesIO(exported(node, "parquet")))
    assert table["data"].to_pylist() == coo.data.tolist()
    lines = exported(node, "csv").decode().splitlines()
    assert lines[0] == "dim0,dim1,data"
    assert [float(line.split(",")[2]) for line in lines[1:]] == coo.data.tolist()


def in_blocks(home, shape, chunks, key="b"):
    structure = COOStructure(shape=shape, chunks=chunks, data_type=BuiltinDtype.from_numpy_dtype(np.dtype("f8")))
    return home.new("sparse", [DataSource(structure=structure, structure_family="sparse")], key=key)


def test_blocks_are_written_and_read_one_by_one_and_together(homes):
    for home in homes:
        node = in_blocks(home, (10,), ((5, 5),))
        node.write_block(coords=np.array([[2, 4]]), data=np.array([3.1, 2.8]), block=(0,))
        node.write_block(coords=np.array([[0, 1]]), data=np.array([6.7, 1.2]), block=(1,))
        assert node.read().todense().tolist() == [0, 0, 3.1, 0, 2.8, 6.7, 1.2, 0, 0, 0]
        assert node[3:7].todense().tolist() == [0, 2.8, 6.7, 1.2]


def test_a_whole_array_is_put_into_its_blocks(home, raw, coo):
    node = in_blocks(home, (10, 12), ((4, 4, 2), (7, 5)))
    assert node.read().nnz == 0
    node.write(coo.coords, coo.data)
    assert (node.read().todense() == coo.todense()).all()
    for picked in (np.s_[3:9, 6:8], np.s_[4, :], np.s_[:, 7], np.s_[8:, 7:]):
        assert (node[picked].todense() == coo.todense()[picked]).all()
    answer = raw("GET", "/array/block/basement/b", block="1,1", accept=ARROW)
    table = pa.feather.read_table(io.BytesIO(answer.data))
    block = sparse.COO(np.stack([table["dim0"], table["dim1"]]), table["data"].to_numpy(), shape=(4, 5))
    assert (block.todense() == coo.todense()[4:8, 7:]).all()
    node.write(np.array([[0], [0]]), np.array([5.0]))
    assert node.read().nnz == 1


@pytest.mark.parametrize(
    ("columns", "status"),
    [
        ({"dim0": [0], "dim1": [12], "data": [1.0]}, 422),
        ({"dim0": [-1], "dim1": [0], "data": [1.0]}, 422),
        ({"dim0": [0.5], "dim1": [0], "data": [1.0]}, 422),
        ({"dim0": [None], "dim1": [0], "data": [1.0]}, 422),
        ({"dim0": [0], "dim1": [0], "data": ["x"]}, 422),
        ({"dim0": [0], "data": [1.0]}, 422),
        ({"dim0": [0], "dim1": [0], "dim2": [0], "data": [1.0]}, 422),
        ({"dim0": [0], "dim1": [0], "data": [1.0]}, 200),
        ({"dim0": [], "dim1": [], "data": []}, 200),
    ],
)
def test_columns_that_are_no_such_array_are_refused(home, raw, coo, columns, status):
    sink = io.BytesIO()
    pa.feather.write_feather(pa.table(columns), sink, compression="uncompressed")
    for route, query in (("full", {}), ("block", {"block": "0,0"})):
        node = home.write_sparse(coords=coo.coords, data=coo.data, shape=coo.shape, key=route)
        answer = raw("PUT", f"/array/{route}/basement/{route}", sink.getvalue(), ARROW, **query)
        assert answer.status == status, answer.data
        assert node.read().nnz == (len(columns["data"]) if status == 200 else coo.nnz)


def test_routes_of_arrays_tell_sparse_from_dense(home, raw, coo):
    home.write_sparse(coords=coo.coords, data=coo.data, shape=coo.shape, key="s")
    home.write_array(np.arange(4), key="a")
    assert raw("GET", "/array/full/basement/s", accept="application/octet-stream").status == 406
    assert raw("GET", "/array/full/basement/s").headers["content-type"] == ARROW
    assert raw("GET", "/array/full/basement/a").data == np.arange(4).tobytes()
    assert raw("GET", "/array/full/basement/a", accept=ARROW).status == 406
    assert raw("PUT", "/array/full/basement/s", bytes(80), "application/octet-stream").status == 404
    assert raw("PUT", "/array/full/basement/a", b"ARROW1", ARROW).status in (404, 422)
    assert raw("GET", "/array/full/basement/nothing").status == 404
    for query in ({"block": "0,1"}, {"block": "0"}, {}):
        assert raw("GET", "/array/block/basement/s", **query).status == 422
    assert raw("GET", "/array/full/basement/s", expected_shape="3,3").status == 422
    assert raw("GET", "/array/full/basement/s", slice="10").status == 422


# --------------------------------------------------------------------------- kept


def written(home, coo):
    home.write_awkward(awkward.Array(AWKWARD["records"]), key="k")
    home.write_ragged(RAGGED["two axes"], key="r")
    home.write_sparse(coords=coo.coords, data=coo.data, shape=coo.shape, key="s")


def test_verify_finds_damage_in_each_of_them(home, server, coo):
    written(home, coo)
    damaged = 0
    for part in sorted(server.directory.glob("arrays/*/b*.*")):
        good = part.read_bytes()
        part.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
        found = [problem for check in verify(server.directory).checks for problem in check.damaged]
        assert len(found) == 1
        part.write_bytes(good)
        damaged += 1
    assert damaged == 3
    assert not any(check.damaged for check in verify(server.directory).checks)


def test_a_damaged_part_is_an_error_and_never_other_values(home, server, raw, coo):
    written(home, coo)
    for part in server.directory.glob("arrays/*/b*.*"):
        good = part.read_bytes()
        part.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    for path in ("/awkward/full/basement/k", "/ragged/full/basement/r", "/array/full/basement/s"):
        answer = raw("GET", path)
        assert answer.status == 500
        assert answer.json()["error"]["kind"] == "damaged"


def test_a_backup_holds_them(home, server, tmp_path, coo):
    written(home, coo)
    backup.back_up(server.directory, tmp_path / "backup")
    backup.restore(tmp_path / "backup", tmp_path / "restored")
    with Service.open(tmp_path / "restored") as again:
        assert again.ragged.scalar(("basement", "r"), ()) == RAGGED["two axes"]
        assert again.sparse.read(("basement", "s")).rows == coo.nnz
        assert again.awkward.read(("basement", "k")).length == 2


def test_a_rebuild_changes_nothing(home, server, coo):
    written(home, coo)
    home["r"].patch([[7]], offset=3, extend=True)
    assert server.service.rebuild().changed == []
    assert home["r"].read().tolist() == [*RAGGED["two axes"], [7]]


def test_deleted_data_is_gone_from_disk(home, server, coo):
    written(home, coo)
    home.delete_contents(["k", "r", "s"], external_only=False)
    assert list(home) == []
    assert list(server.directory.glob("arrays/[0-9]*")) == []
