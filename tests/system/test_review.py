"""Odd requests, odd documents and things that happen at once leave the service whole.

If these fail, one request of one client makes a container unlistable, stops arrays from being made, resets
connections that clients have in their pool, or loses documents.
"""

import http.client
import json
import threading

import h5py
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from flystore.model.frames import FRAMES_MIMETYPE, FrameDecoder, FrameEncoder, frame, split_frames
from flystore.model.structures import ArrayStructure, TableStructure
from flystore.service import Service
from flystore.service.operations import MetadataSet
from flystore.service.probing import Prober

OCTETS = {"Content-Type": "application/octet-stream"}
ARRAY = ArrayStructure.of("<f8", (4, 6)).to_wire()
RUN_SPEC = [{"name": "BlueskyRun", "version": "3.0"}]
STREAM_SPEC = [{"name": "BlueskyEventStream", "version": "3.0"}]
BEYOND_64_BITS = 2**70


def refused(answer, kind="invalid-request"):
    content = json.loads(answer.data)
    assert 400 <= answer.status < 500, content
    assert content["error"]["kind"] == kind, content


def made(answer):
    assert answer.status == 200, answer.data


def container(key, metadata=None, specs=()):
    return {"id": key, "structure_family": "container", "metadata": metadata or {}, "specs": list(specs)}


def node(key, family, structure, metadata=None, **source):
    source = {"structure_family": family, "structure": structure, "management": "writable", **source}
    return {"id": key, "structure_family": family, "metadata": metadata or {}, "data_sources": [source]}


def registered(key, uri, structure=ARRAY, family="array", **asset):
    assets = [{"data_uri": uri, "num": 0, **asset}]
    parameters = {"dataset": "x"}
    return node(
        key, family, structure, mimetype="application/x-hdf5", management="external", assets=assets,
        parameters=parameters,
    )  # fmt: skip


def table(key, schema, **changes):
    return node(
        key, "table", {**TableStructure.of(schema).to_wire(), **changes}, mimetype="application/x-tiled-sql-table"
    )


def arrow(rows):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def frames(*documents):
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))


def documents_of(body):
    decoder = FrameDecoder()
    decoded = (decoder.decode(bytes(payload)) for _, payload in split_frames(body))
    return [document for document in decoded if document is not None]


def ingest(send, uid, *documents, first=0):
    path = f"/ingest/{uid}?first={first}&epoch=0"
    return send("POST", path, frames(*documents), {"Content-Type": FRAMES_MIMETYPE})


# --- nothing that a client sends is a defect of ours ---------------------------------------------------


def test_an_integer_beyond_64_bits_in_metadata_is_refused_in_words(send):
    refused(send("POST", "/metadata/", container("a", {"n": BEYOND_64_BITS})))
    made(send("POST", "/metadata/", container("a")))
    patch = [{"op": "add", "path": "/n", "value": BEYOND_64_BITS}]
    body = {"content-type": "application/json-patch+json", "metadata": patch, "specs": None}
    refused(send("PATCH", "/metadata/a", body))
    with pytest.raises(ValueError, match="stored"):
        MetadataSet({"n": BEYOND_64_BITS}, ()).to_bytes()


def test_an_array_that_could_not_be_made_does_not_stop_the_next(send):
    refused(send("POST", "/metadata/", node("a", "array", ARRAY, {"n": BEYOND_64_BITS})))
    made(send("POST", "/metadata/", node("a", "array", ARRAY)))
    assert send("GET", "/array/full/a").data == bytes(4 * 6 * 8)


@pytest.mark.parametrize("change", [{"num": BEYOND_64_BITS}, {"size": BEYOND_64_BITS}, {"id": BEYOND_64_BITS}])
def test_numbers_of_an_asset_beyond_64_bits_are_refused(send, change):
    refused(send("POST", "/register/", registered("a", "file://localhost/x.h5", **change)))


def test_a_shape_that_nothing_can_hold_is_refused(send):
    huge = {**ARRAY, "shape": [10**30, 6], "chunks": [[10**30], [6]]}
    refused(send("POST", "/register/", registered("a", "file://localhost/x.h5", huge)))


@pytest.mark.parametrize("family", ["sparse", "awkward", "composite"])
def test_a_structure_that_is_none_of_its_family_is_refused_and_its_container_still_lists(send, family):
    refused(send("POST", "/register/", registered("a", "file://localhost/x.h5", {"a": 1}, family)))
    made(send("GET", "/search/"))


def test_another_family_in_a_data_source_is_refused_and_the_node_stays_readable(send):
    made(send("POST", "/register/", registered("a", "file://localhost/x.h5")))
    source = {"structure_family": "container", "structure": {"a": 1}, "management": "external"}
    refused(send("PUT", "/data_source/a", {"data_source": source}))
    made(send("GET", "/search/"))


@pytest.mark.parametrize("mimetype", ["application/x-zarr", "application/x-flystore-segments", "x/y"])
def test_a_data_source_cannot_claim_to_be_kept_by_the_service(send, mimetype):
    made(send("POST", "/register/", registered("a", "file://localhost/x.h5")))
    source = {"structure_family": "array", "structure": ARRAY, "management": "external", "mimetype": mimetype}
    refused(send("PUT", "/data_source/a", {"data_source": source}), "unsupported")


def test_the_structure_of_data_that_the_service_keeps_follows_from_what_was_written(send):
    made(send("POST", "/metadata/", node("a", "array", ARRAY)))
    larger = ArrayStructure.of("<f8", (9, 9)).to_wire()
    refused(send("PUT", "/data_source/a", {"data_source": {"structure_family": "array", "structure": larger}}))
    assert len(send("GET", "/array/full/a").data) == 4 * 6 * 8


@pytest.mark.parametrize(
    "changed",
    [
        table("t", pa.schema([("a", "int64")]), columns=["a", "b"]),
        table("t", pa.schema([("a", "int64"), ("a", "int32")])),
        table("t", pa.schema([("a", "int64")]), npartitions=2),
        table("t", pa.schema([("a", "int64")]), npartitions=0),
    ],
)
def test_a_table_whose_columns_could_not_be_read_is_refused(send, changed):
    refused(send("POST", "/metadata/", changed))


def test_rows_with_two_columns_of_one_name_are_refused(send):
    made(send("POST", "/metadata/", table("t", pa.schema([("a", "int64")]))))
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    refused(send("PATCH", "/table/partition/t?partition=0", arrow(twice)))


def test_no_rows_are_rows_too(send):
    made(send("POST", "/metadata/", table("t", pa.schema([("a", "int64")]))))
    made(send("PATCH", "/table/partition/t?partition=0", arrow(pa.table({"a": [1]}))))
    none = arrow(pa.table({"a": pa.array([], pa.int64())}))
    made(send("PATCH", "/table/partition/t?partition=0", none))
    assert send("GET", "/array/full/t/a").data == np.array([1]).tobytes()
    made(send("PUT", "/table/full/t", none))
    assert send("GET", "/array/full/t/a").data == b""


def test_the_root_cannot_be_changed_and_says_so(send):
    patch = {"content-type": "application/merge-patch+json", "metadata": {"a": 1}, "specs": None}
    assert send("PATCH", "/metadata/", patch).status == 405
    assert send("PUT", "/metadata/", {"metadata": {"a": 1}}).status == 405


@pytest.mark.parametrize(
    "expression",
    ["abs('a')", "nope(@)", "%26a", "sum(@)", "n[::0]", "%60%22%5Cud800%22%60", "(" * 3000 + "a" + ")" * 3000],
)
def test_a_selection_that_cannot_be_applied_is_refused(send, expression):
    made(send("POST", "/metadata/", container("a", {"a": "b", "n": [1]})))
    refused(send("GET", f"/metadata/a?select_metadata={expression}"))
    refused(send("GET", f"/search/?select_metadata={expression}"))


@pytest.mark.parametrize("offset", [9999999999999999999, 40_000_000])
def test_a_patch_so_far_out_that_its_chunks_could_not_be_listed_is_refused(send, offset):
    made(send("POST", "/metadata/", node("a", "array", ArrayStructure.of("<f8", (4,)).to_wire())))
    refused(send("PATCH", f"/array/full/a?offset={offset}&shape=1&extend=true", bytes(8), OCTETS), "too-large")
    refused(send("PATCH", f"/array/full/a?offset={offset}&shape=0&extend=true", b"", OCTETS), "too-large")


def test_an_empty_array_grows_by_many_rows_at_once(send):
    made(send("POST", "/metadata/", node("a", "array", ArrayStructure.of("|u1", (0,)).to_wire())))
    n = 3_000_000
    made(send("PATCH", f"/array/full/a?offset=0&shape={n}&extend=true", bytes(n), OCTETS))


def test_many_segments_called_streams_are_not_found(send):
    made(send("POST", "/metadata/", container("run", {"start": {"uid": "run"}}, RUN_SPEC)))
    made(send("GET", "/metadata/run/streams"))
    refused(send("GET", "/metadata/run/" + "streams/" * 3000), "not-found")
    refused(send("GET", "/verdict/run?look=perhaps"))


def test_the_next_page_is_linked_whatever_the_container_is_called(send):
    made(send("POST", "/metadata/", container("a?b #%25")))
    for key in ("x", "y"):
        made(send("POST", "/metadata/a%3Fb%20%23%2525", container(key)))
    found, at = [], "/search/a%3Fb%20%23%2525?page[limit]=1"
    while at is not None:
        answer = send("GET", at)
        made(answer)
        content = json.loads(answer.data)
        found += [item["id"] for item in content["data"]]
        following = content["links"]["next"]
        at = None if following is None else following.partition("/api/v1")[2]
    assert found == ["x", "y"]


def test_a_defect_of_ours_leaves_the_connection_open_and_names_the_request(server, monkeypatch):
    def defect(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(server.service.browse, "_entry", defect)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    try:
        for _ in range(2):
            connection.request("GET", "/api/v1/metadata/a", headers={"Authorization": f"Apikey {server.key}"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            assert (answer.status, content["error"]["kind"]) == (500, "defect")
            assert content["error"]["facts"]["request_id"] == answer.headers["x-tiled-request-id"]
            assert connection.sock is not None
    finally:
        connection.close()


# --- tables of the stock client ------------------------------------------------------------------------


def test_a_dataframe_goes_in_and_comes_back_with_its_index(server):
    counted = pd.DataFrame({"a": [1, 2, 3]})
    labelled = pd.DataFrame({"a": [1, 2, 3]}, index=[5, 6, 7])
    named = labelled.rename_axis("position")
    with server.tiled() as client:
        box = client.create_container("box")
        for key, frame_ in {"counted": counted, "labelled": labelled, "named": named}.items():
            node_ = box.write_table(frame_, key=key)
            pd.testing.assert_frame_equal(node_.read(), frame_)
            pd.testing.assert_frame_equal(node_.read(["a"]), frame_)
            np.testing.assert_array_equal(box[key]["a"].read(), [1, 2, 3])


def test_rows_of_a_dataframe_are_appended(server):
    with server.tiled() as client:
        rows = client.create_container("box").create_appendable_table(pa.schema([("a", "int64")]), key="t")
        rows.append_partition(0, pd.DataFrame({"a": [1]}))
        rows.append_partition(0, {"a": [2]})
        assert rows.read()["a"].tolist() == [1, 2]


# --- documents -----------------------------------------------------------------------------------------

START = {"uid": "r", "time": 1.0}
STOP = {"uid": "s", "run_start": "r", "time": 2.0, "exit_status": "success"}


@pytest.mark.parametrize("time", [10**400, float("nan"), None, "now", True])
def test_a_start_with_any_time_is_kept(send, time):
    made(ingest(send, "r", ("start", {**START, "time": time}), ("stop", STOP)))
    made(send("GET", "/metadata/r"))


@pytest.mark.parametrize("field", ["stream_resource", "descriptor"])
@pytest.mark.parametrize("value", [5, None, [1], BEYOND_64_BITS, 1j, b"x"])
def test_a_stream_datum_that_refers_to_nonsense_is_kept_and_the_run_goes_on(server, send, field, value):
    datum = {
        "uid": "sr/0",
        "stream_resource": "sr",
        "descriptor": "d",
        "indices": {"start": 0, "stop": 3},
        "seq_nums": {"start": 1, "stop": 4},
        field: value,
    }
    made(ingest(send, "r", ("start", START), ("stream_datum", datum)))
    server.service.ingest.forget()  # as after a restart: the state comes from the catalogue
    made(ingest(send, "r", ("stop", STOP), first=2))
    verdict = json.loads(send("GET", "/verdict/r").data)
    assert any("make no sense" in note for note in verdict["notes"])
    assert [name for name, _ in documents_of(send("GET", "/documents/r").data)] == ["start", "stream_datum", "stop"]


def test_frames_announced_without_end_are_read_one_by_one(server, send):
    with h5py.File(server.data / "a.h5", "w") as file:
        file["x"] = np.arange(24, dtype="<u2").reshape(6, 4)
    made(ingest(send, "r", *external_run(server, "a.h5", [4], rows=10**12)))
    at_rest = send("GET", "/array/full/r/primary/x?slice=5")
    assert at_rest.data == np.arange(20, 24, dtype="<u2").tobytes()
    (server.data / "a.h5").unlink()
    server.service.arrays._prober.wait_idle(100)
    refused(send("GET", "/array/full/r/primary/x?slice=5"), "missing-asset")


def external_run(server, name, shape, *, rows, **parameters):
    data_key = {"dtype": "array", "shape": shape, "dtype_numpy": "<u2", "source": "s", "external": "STREAM:"}
    descriptor = {
        "uid": "d", "run_start": "r", "name": "primary", "time": 1.0, "data_keys": {"x": data_key},
        "configuration": {}, "hints": {}, "object_keys": {},
    }  # fmt: skip
    resource = {
        "uid": "sr", "run_start": "r", "data_key": "x", "mimetype": "application/x-hdf5",
        "uri": f"file://localhost{server.data}/{name}", "parameters": {"dataset": "x", **parameters},
    }  # fmt: skip
    datum = {
        "uid": "sr/0", "stream_resource": "sr", "descriptor": "d",
        "indices": {"start": 0, "stop": rows}, "seq_nums": {"start": 1, "stop": rows + 1},
    }  # fmt: skip
    named = (("start", START), ("descriptor", descriptor), ("stream_resource", resource), ("stream_datum", datum))
    return (*named, ("stop", STOP))


@pytest.mark.parametrize("shape", [[1, 4, 5], [2, 4, 5], [3, 4, 5]])
@pytest.mark.parametrize("text", ["", "::-1", "1:4:2,0", "3", "-1,1:3", "::-2,::-1", ":,1", ":,:,::2", "4:1:-1,2,1:4"])
def test_slices_of_an_array_joined_along_its_first_axis_are_those_of_numpy(server, send, shape, text):
    whole = np.arange(6 * 4 * 5, dtype="<u2").reshape(6, 4, 5)
    with h5py.File(server.data / "a.h5", "w") as file:
        file["x"] = whole
    made(ingest(send, "r", *external_run(server, "a.h5", shape, rows=6 // shape[0], join_method="concat")))
    items = [
        slice(*(int(n) if n else None for n in part.split(":"))) if ":" in part else int(part)
        for part in text.split(",")
        if part
    ]
    answer = send("GET", f"/array/full/r/primary/x?slice={text}")
    made(answer)
    assert answer.data == np.ascontiguousarray(whole[tuple(items)]).tobytes()
    answer = send("GET", f"/array/block/r/primary/x?block=0,0,0&slice={text}")
    assert answer.data == np.ascontiguousarray(whole[tuple(items)]).tobytes()


# --- runs of stock writers -----------------------------------------------------------------------------


def test_a_late_stop_wins_over_closing_a_run_of_a_stock_writer(send):
    made(send("POST", "/metadata/", container("r", {"start": START}, RUN_SPEC)))
    made(send("POST", "/close/r", {"reason": "the host is gone"}))
    assert json.loads(send("GET", "/verdict/r").data)["state"] == "interrupted"
    patch = [{"op": "add", "path": "/stop", "value": STOP}]
    body = {"content-type": "application/json-patch+json", "metadata": patch, "specs": None}
    made(send("PATCH", "/metadata/r", body))
    assert json.loads(send("GET", "/verdict/r").data)["state"] == "complete"


@pytest.mark.parametrize("field", ["uid", "time", "data_keys", "_config_updates"])
@pytest.mark.parametrize("value", [None, 5, "x", [1], {"a": 1}, True])
def test_documents_are_rebuilt_whatever_the_metadata_of_a_stream_is(send, field, value):
    made(send("POST", "/metadata/", container("r", {"start": START, "stop": STOP}, RUN_SPEC)))
    made(send("POST", "/metadata/r", container("primary", {"uid": "d", field: value}, STREAM_SPEC)))
    schema = pa.schema([("seq_num", "int64"), ("time", "float64"), ("x", "float64")])
    made(send("POST", "/metadata/r/primary", table("internal", schema)))
    rows = pa.table({"seq_num": [1, 2], "time": [1.0, 2.0], "x": [1.0, 2.0]}, schema=schema)
    made(send("PATCH", "/table/partition/r/primary/internal?partition=0", arrow(rows)))
    answer = send("GET", "/documents/r")
    made(answer)
    names = [name for name, _ in documents_of(answer.data)]
    assert (names[0], names.count("event"), names[-1]) == ("start", 2, "stop")


# --- at the same time ----------------------------------------------------------------------------------


class Looking:
    """A prober's clock: stops the look of one thread after it began, until it is let go on."""

    def __init__(self):
        self.began, self.go_on = threading.Event(), threading.Event()
        self.first = True

    def __call__(self):
        if not self.first:
            return 200.0
        self.first = False
        self.began.set()
        assert self.go_on.wait(100)
        return 100.0


@pytest.fixture
def looked_at(tmp_path):
    """A service whose one registered array two may look at; its own prober is at rest."""
    data = tmp_path / "data"
    data.mkdir()
    with h5py.File(data / "a.h5", "w") as file:
        file["x"] = np.zeros((4, 6))
    from flystore.service import NewNode

    with Service.open(tmp_path / "store", read=[data]) as service:
        service.nodes.create((), NewNode.from_wire(registered("a", f"file://localhost{data}/a.h5")))
        assert service.arrays._prober.wait_idle(100)
        yield service


def test_of_two_that_look_at_a_file_the_later_one_counts(looked_at):
    catalog, clock = looked_at.arrays._catalog, Looking()
    prober = Prober(catalog, looked_at.arrays._roots, clock)
    node_ = looked_at.browse.entry(("a",)).node
    with catalog.write() as tx:
        tx.save_observation(msgspec.structs.replace(tx.observation(node_.id), time=1.0))
    found = []
    earlier = threading.Thread(target=lambda: found.append(prober.look(node_)))
    earlier.start()
    assert clock.began.wait(100)
    prober.look(node_)
    clock.go_on.set()
    earlier.join(100)
    with catalog.read() as snapshot:
        assert snapshot.observation(node_.id).time == 200.0
    assert found[0].time == 200.0
    prober.close()


def test_a_node_deleted_while_its_files_are_looked_at_is_not_found(looked_at):
    from flystore.model.errors import NotFound

    catalog, clock = looked_at.arrays._catalog, Looking()
    prober = Prober(catalog, looked_at.arrays._roots, clock)
    node_ = looked_at.browse.entry(("a",)).node
    raised = []

    def look():
        try:
            prober.look(node_)
        except NotFound as error:
            raised.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    assert clock.began.wait(100)
    looked_at.nodes.delete(("a",), recursive=False, external_only=True)
    clock.go_on.set()
    looking.join(100)
    assert len(raised) == 1
    with pytest.raises(NotFound):
        prober.look(node_)
    prober.close()


def test_batches_that_come_while_the_store_is_rebuilt_are_all_there_and_read(server, send):
    made(ingest(send, "r", *external_run(server, "none.h5", [4], rows=3)[:2]))
    stop = threading.Event()
    failed = []

    def rebuild():
        while not stop.is_set():
            try:
                server.service.rebuild()
            except Exception as error:
                failed.append(error)

    rebuilding = threading.Thread(target=rebuild)
    rebuilding.start()
    try:
        for i in range(40):
            resource = {
                "uid": f"sr{i}", "run_start": "r", "data_key": "x", "mimetype": "application/x-hdf5",
                "uri": f"file://localhost{server.data}/{i}.h5", "parameters": {"dataset": "x"},
            }  # fmt: skip
            datum = {
                "uid": f"sr{i}/0", "stream_resource": f"sr{i}", "descriptor": "d",
                "indices": {"start": i, "stop": i + 1}, "seq_nums": {"start": i + 1, "stop": i + 2},
            }  # fmt: skip
            made(ingest(send, "r", ("stream_resource", resource), ("stream_datum", datum), first=2 + 2 * i))
        made(ingest(send, "r", ("stop", STOP), first=82))  # until then the files, which never come, are awaited
    finally:
        stop.set()
        rebuilding.join(100)
    assert failed == []
    assert server.service._prober.wait_idle(100)
    structure = json.loads(send("GET", "/metadata/r/primary/x").data)["data"]["attributes"]["structure"]
    assert structure["shape"] == [40, 4]
    assert len(documents_of(send("GET", "/documents/r").data)) == 83
