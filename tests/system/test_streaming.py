"""Tiled's live streams, read by the unmodified client from flystore and from stock Tiled side by side.

If these fail, a live plot at the beamline stands still or shows something else than with stock Tiled: a message is
missing, comes twice after a dropped connection, or cannot be read by the client.
"""

import json
import socket as sockets
import threading

import bluesky.plans as bp
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from ophyd.sim import det, motor
from tiled.client import from_uri
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flystore import RunWriter
from flystore.http import build_app, server_settings
from flystore.http.access import Access
from flystore.service import Limits, Service
from flystore.testing.serving import serving
from flystore.testing.stock_server import write_with_stock

pytestmark = pytest.mark.filterwarnings("ignore")  # the stock client's own
GENEROUS = 60.0
KEY = "secret"


@pytest.fixture
def stocks(server, stock):
    """Stock clients of flystore and of stock Tiled."""
    found = [from_uri(each.url, api_key=each.key) for each in (server, stock)]
    yield found
    for each in found:
        each.context.http_client.close()


class Heard:
    """What one subscription was told, until it has as many updates as wanted."""

    def __init__(self, node, start=None):
        self.updates = []
        self.closed = threading.Event()
        self._more = threading.Condition()
        self.subscription = node.subscribe()
        for name in ("child_created", "child_metadata_updated", "new_data"):
            registry = getattr(self.subscription, name, None)
            if registry is not None:
                registry.add_callback(self._take)
        self.subscription.stream_closed.add_callback(self._close)
        self.subscription.start_in_thread(start)

    def _take(self, update):
        with self._more:
            self.updates.append(update)
            self._more.notify_all()

    def _close(self, _):
        self.closed.set()

    def wait(self, count):
        with self._more:
            assert self._more.wait_for(lambda: len(self.updates) >= count, GENEROUS), self.updates
        return self.updates

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.subscription.disconnect()


def told(update):
    """What a message says, without ids, times, numbers and addresses."""
    body = update.model_dump(exclude={"subscription", "sequence", "timestamp", "uri", "payload", "data_sources"})
    body.pop("data_source", None)
    if hasattr(update, "data"):
        data = update.data()
        body["data"] = np.asarray(data).tolist()
        body.pop("arrow_schema", None)
    if hasattr(update, "data_sources"):
        body["sources"] = [
            (source.structure_family, source.management)  # stock leaves the assets out, ours has them
            for source in update.data_sources
            if source.structure_family != "table"
        ]
    return body


def rising(updates):
    numbers = [update.sequence for update in updates]
    return numbers == sorted(set(numbers))


def test_an_array_is_told_of_as_stock_does(stocks):
    found = []
    for client in stocks:
        array = client.create_container("live-array").write_array(np.arange(4).reshape(2, 2), key="a")
        with Heard(array, 0) as heard:
            heard.wait(1)
            array.patch(np.array([[7, 8]]), offset=(2, 0), extend=True)
            array.patch(np.array([[5]]), offset=(0, 1))
            updates = heard.wait(3)
            assert rising(updates)
            found.append([told(update) for update in updates])
    ours, theirs = found
    assert ours == theirs


def test_a_table_is_told_of_as_stock_does(stocks):
    found = []
    for client in stocks:
        parent = client.create_container("live-table")
        table = parent.create_appendable_table(pa.schema([("x", pa.int64())]), key="t")
        with Heard(table) as heard:
            table.append_partition(0, pa.table({"x": [1, 2, 3]}))
            table.append_partition(0, pa.table({"x": [4]}))
            updates = heard.wait(2)
            assert rising(updates)
            found.append([told(update) for update in updates])
    ours, theirs = found
    assert ours == theirs


def test_a_container_is_told_of_as_stock_does_and_its_child_is_a_client(stocks):
    found = []
    for client in stocks:
        parent = client.create_container("live-parent")
        with Heard(parent) as heard:
            parent.create_container("c", metadata={"m": 1})
            parent["c"].update_metadata({"k": 2})
            array = parent.write_array(np.arange(3), key="b", metadata={"n": 3})
            updates = heard.wait(3)
            assert rising(updates)
            assert updates[2].child().read().tolist() == array.read().tolist()
            found.append([told(update) for update in updates])
    ours, theirs = found
    assert ours == theirs


def test_a_stream_that_is_closed_ends_for_who_is_there_and_for_who_comes_later(stocks):
    for client in stocks:
        parent = client.create_container("live-closed")
        with Heard(parent) as heard:
            parent.create_container("c")
            parent.close_stream()
            assert heard.closed.wait(GENEROUS)
            assert len(heard.updates) == 1
        with Heard(parent, 0) as heard:
            assert heard.closed.wait(GENEROUS)
            assert len(heard.updates) == 1


def test_a_run_of_the_stock_writer_is_followed_from_the_top(server, stock, stocks, recorded):
    documents = recorded(bp.scan([det], motor, 0, 1, 3))
    uid = documents[0][1]["uid"]
    found = []
    for each, client in zip((server, stock), stocks, strict=True):
        write_with_stock(each.url, documents, batch_size=1)
        per_node = []
        for path, start in (((uid,), 0), ((uid, "primary"), 0), ((uid, "primary", "internal"), 0)):
            node = client
            for key in path:
                node = node.base[key] if hasattr(node, "base") else node[key]
            with Heard(node, start) as heard:
                assert heard.closed.wait(GENEROUS)
                per_node.append([(type(update).__name__, getattr(update, "key", None)) for update in heard.updates])
        found.append(per_node)
    ours, theirs = found
    assert ours == theirs


def test_rows_of_a_run_of_ours_come_whole_and_the_stream_ends_with_the_run(server, stocks, recorded, tmp_path):
    documents = recorded(bp.scan([det], motor, 0, 1, 5))
    uid = documents[0][1]["uid"]
    client = stocks[0]
    with Heard(client) as top:
        with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
            for name, doc in documents:
                writer(name, doc)
        assert top.wait(1)[0].key == uid
    with Heard(client[uid]["primary"].base["internal"], 0) as heard:
        assert heard.closed.wait(GENEROUS)
        values = [value for update in heard.updates for value in update.data()["motor"]]
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0]


def address(server, path, query=""):
    return f"ws{server.url.removeprefix('http')}/api/v1/stream/single/{path}?{query}"


def header(server):
    return {"Authorization": f"Apikey {server.key}"}


def test_replay_goes_on_behind_any_number(server, stocks):
    parent = stocks[0].create_container("numbers")
    for number in range(4):
        parent.create_container(f"c{number}")

    def keys(start):
        with connect(address(server, "/numbers", f"start={start}"), additional_headers=header(server)) as socket:
            assert json.loads(socket.recv(GENEROUS)) == {"type": "container-schema", "version": 1}
            found = []
            while not found or found[-1]["key"] != "c3":
                found.append(json.loads(socket.recv(GENEROUS)))
        return found

    whole = keys(0)
    assert [each["key"] for each in whole] == ["c0", "c1", "c2", "c3"]
    assert keys(1) == whole
    for at, each in enumerate(whole[:-1]):
        assert keys(each["sequence"]) == whole[at:]
        assert keys(each["sequence"] + 1) == whole[at + 1 :]


@pytest.mark.parametrize("query", ["start=-1", "start=x", f"start={2**60}", "envelope_format=xml"])
def test_a_number_that_cannot_be_is_refused_before_the_socket_opens(server, query):
    with pytest.raises(InvalidStatus) as refused:
        connect(address(server, "", query), additional_headers=header(server))
    assert refused.value.response.status_code in (400, 422)


def test_what_is_not_there_is_not_found_and_a_wrong_key_is_refused(server):
    with pytest.raises(InvalidStatus) as refused:
        connect(address(server, "nowhere"), additional_headers=header(server))
    assert refused.value.response.status_code == 404
    with pytest.raises(InvalidStatus) as refused:
        connect(address(server, ""), additional_headers={"Authorization": "Apikey wrong"})
    assert refused.value.response.status_code == 401


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"type": "auth", "api_key": "wrong"}', 4003),
        ("hello", 4001),
        ("[]", 4001),
        ('{"type": "auth", "api_key": 1}', 4001),
        ('{"type": ["auth"], "api_key": "wrong"}', 4001),
        (b"\xff", 4001),
        ('{"type": "auth", "more": ' + 30_000 * "[", 4001),  # deeper than this machine's stack may go
    ],
)
def test_a_first_message_without_the_key_closes_the_socket(server, first, code):
    with connect(address(server, "")) as socket:
        socket.send(first)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(GENEROUS)
    assert closed.value.rcvd.code == code


def test_the_key_may_come_as_the_first_message(server):
    with connect(address(server, "")) as socket:
        socket.send(json.dumps({"type": "auth", "api_key": server.key}))
        assert json.loads(socket.recv(GENEROUS))["type"] == "container-schema"


@pytest.mark.parametrize("path", ["/api/v1/stream/single/", "/api/v1/feed/"])
def test_pages_of_other_origins_open_no_socket_unless_they_are_allowed(tmp_path, path):
    ours = "https://viewer.example.org"
    with (
        Service.open(tmp_path / "store") as service,
        serving(
            build_app(service, Access.of(KEY), allow_origins=[ours]), settings=server_settings(service.limits)
        ) as url,
    ):
        cookie = {"Cookie": f"tiled_api_key={KEY}"}
        for origin in ("https://evil.example.org", "null", "http://127.0.0.1:1", f"{ours}.evil.example"):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws{url[4:]}{path}", origin=origin, additional_headers=cookie)
            assert refused.value.response.status_code == 403
            assert b"--allow-origin" in refused.value.response.body
        for origin in (ours, url, None):
            with connect(f"ws{url[4:]}{path}", origin=origin, additional_headers=cookie) as socket:
                assert json.loads(socket.recv(GENEROUS))


def test_json_tells_data_as_lists(server, stocks):
    stocks[0].create_container("lists").write_array(np.arange(4).reshape(2, 2), key="a")
    with connect(address(server, "lists/a", "start=0"), additional_headers=header(server)) as socket:
        assert json.loads(socket.recv(GENEROUS))["data_type"]["kind"] == "i"
        message = json.loads(socket.recv(GENEROUS))
    assert message["payload"] == [[0, 1], [2, 3]]
    assert message["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([1 + 2j, 3]), [[1.0, 2.0], [3.0, 0.0]]),
        (np.array([1.5], "g"), [1.5]),
        (np.array([np.nan, 1.0]), [None, 1.0]),
        (np.array(["2020-01-01T00:00:00.000000001", "NaT"], "M8[ns]"), ["2020-01-01T00:00:00.000000001", None]),
        (np.array([b"ab"]), ["ab"]),
        (np.array(7), 7),
        (np.zeros((0, 3)), []),
        (np.zeros(1, "V3"), ["AAAA"]),
    ],
)
def test_json_tells_whatever_an_array_holds_as_an_export_does(server, stocks, values, told):
    stocks[0].create_container("kinds").write_array(values, key="a")
    with connect(address(server, "kinds/a", "start=0"), additional_headers=header(server)) as socket:
        assert json.loads(socket.recv(GENEROUS))["type"] == "array-schema"
        assert json.loads(socket.recv(GENEROUS))["payload"] == told


def test_json_tells_whatever_a_table_holds_as_an_export_does(server, stocks):
    columns = {
        "raw": pa.array([b"ab", None]),
        "when": pa.array([1, None], pa.timestamp("ns", tz="UTC")),
        "much": pa.array([2**64 - 1, 0], pa.uint64()),
        "text": pa.array(["x", "x"]).dictionary_encode(),
    }
    node = (
        stocks[0]
        .create_container("kinds")
        .create_appendable_table(pa.schema([pa.field(name, values.type) for name, values in columns.items()]), key="t")
    )
    node.append_partition(0, pa.table(columns))
    with connect(address(server, "kinds/t", "start=0"), additional_headers=header(server)) as socket:
        assert json.loads(socket.recv(GENEROUS))["type"] == "table-schema"
        assert json.loads(socket.recv(GENEROUS))["payload"] == {
            "raw": ["ab", None],
            "when": ["1970-01-01T00:00:00.000000001Z", None],
            "much": [2**64 - 1, 0],
            "text": ["x", "x"],
        }


def test_what_is_too_long_for_the_client_comes_as_a_reference(stocks):
    wanted = np.arange(200_000)
    array = stocks[0].create_container("long").write_array(wanted, key="a")
    with Heard(array, 0) as heard:
        (update,) = heard.wait(1)
        assert type(update).__name__ == "LiveArrayRef"
        assert np.array_equal(update.data(), wanted)


def test_numbers_are_the_same_after_a_restart_and_the_client_goes_on_there(tmp_path):
    def messages(start):
        with (
            Service.open(tmp_path / "store") as service,
            serving(build_app(service, Access.of(KEY)), settings=server_settings(service.limits)) as url,
        ):
            client = from_uri(url, api_key=KEY)
            try:
                name = f"c{len(client)}"
                client.create_container(name)
                with Heard(client, start) as heard:
                    heard.wait(1)
                    while heard.updates[-1].key != name:
                        heard.wait(len(heard.updates) + 1)
                    return [(update.sequence, update.key) for update in heard.updates]
            finally:
                client.context.http_client.close()

    first = messages(0)
    second = messages(0)
    assert second[: len(first)] == first
    assert [key for _, key in messages(second[-1][0] + 1)] == ["c2"]


def test_who_never_reads_is_closed_with_the_number_to_go_on_from(tmp_path):
    limits = Limits(patience_seconds=0.5)
    with (
        Service.open(tmp_path / "store", limits=limits) as service,
        serving(build_app(service, Access.of(KEY)), settings=server_settings(limits)) as url,
    ):
        client = from_uri(url, api_key=KEY)
        array = client.create_container("slow").write_array(np.zeros(50_000), key="a")
        for _ in range(60):
            array.patch(np.ones(50_000), offset=(0,))
        client.context.http_client.close()
        where = f"ws{url.removeprefix('http')}/api/v1/stream/single/slow/a?envelope_format=msgpack&start=0"
        port = int(url.rsplit(":", 1)[1])
        with (
            sockets.create_connection(("127.0.0.1", port)) as narrow,
            connect(where, sock=narrow, additional_headers={"Authorization": f"Apikey {KEY}"}, max_queue=1) as slow,
        ):
            assert msgspec.msgpack.decode(slow.recv(GENEROUS))["type"] == "array-schema"  # it follows by now
            while len(service.following.waking):  # until it is given up
                threading.Event().wait(0.01)
            numbers, closed = everything(slow)
        assert closed.code == 4008
        assert len(numbers) < 61
        assert int(closed.reason.rpartition("start=")[2]) > numbers[-1]


def everything(socket):
    """Return the numbers of all messages, and how the connection was closed."""
    numbers = []
    try:
        while True:
            numbers.append(msgspec.msgpack.decode(socket.recv(GENEROUS))["sequence"])
    except ConnectionClosed as closed:
        return numbers, closed.rcvd
