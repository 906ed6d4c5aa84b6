"""What a client sends is taken as it is meant, or refused in words; oddities that once led to a 500 stay mended.

If these fail, one odd request costs a stock client 45 seconds of retries, or a run is stored and never shown.
"""

import gzip
import json

import msgspec
import pytest

from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.testing.faults.hostile import MSGPACK, OCTETS, node, of, registered


def kind_of(answer):
    assert 400 <= answer.status < 500, answer.data
    return json.loads(answer.data)["error"]["kind"]


@pytest.mark.parametrize("kind", ["<U0", "S0", "V0"])
@pytest.mark.parametrize("length", [4, 10**12])
def test_arrays_of_items_without_bytes_are_written_and_read(send, kind, length):
    assert send("POST", "/metadata/", node("a", of(kind, (length,)))).status == 200
    assert send("PUT", "/array/full/a", b"", OCTETS).status == 200
    for path in ("full/a", "full/a?slice=0:2", "full/a?slice=::-1", "block/a?block=0"):
        answer = send("GET", f"/array/{path}")
        assert (answer.status, answer.data) == (200, b"")
    answer = send("PATCH", f"/array/full/a?offset={length}&shape=2&extend=true", b"", OCTETS)
    assert json.loads(answer.data)["shape"] == [length + 2]
    assert kind_of(send("PUT", "/array/full/a", b"x", OCTETS)) == "invalid-request"


def test_a_run_whose_uid_sorts_last_is_shown(send):
    encoder = FrameEncoder()
    body = b"".join(map(frame, encoder.encode("start", {"uid": "\U0010ffffx", "time": 1.0})))
    path = "/ingest/%F4%8F%BF%BFx?first=0&epoch=0"
    assert send("POST", path, body, {"Content-Type": FRAMES_MIMETYPE}).status == 200
    listed = json.loads(send("GET", "/search/").data)["data"]
    assert [item["id"] for item in listed] == ["~F4~8F~BF~BFx"]
    assert listed[0]["attributes"]["metadata"]["start"]["uid"] == "\U0010ffffx"


def test_a_compressed_body_is_refused(send):
    body = gzip.compress(b'{"id":"a","structure_family":"container","metadata":{}}')
    answer = send("POST", "/metadata/", body, {"Content-Encoding": "gzip"})
    assert (answer.status, kind_of(answer)) == (415, "unsupported")


def test_metadata_nest_64_deep_and_no_deeper(send):
    def nested(depth):
        inner = b"[" * depth + b"]" * depth
        return b'{"id":"a%d","structure_family":"container","metadata":{"a":%s}}' % (depth, inner)

    assert send("POST", "/metadata/", nested(62)).status == 200
    for depth in (63, 500, 5000):
        assert kind_of(send("POST", "/metadata/", nested(depth))) == "invalid-request"


@pytest.mark.parametrize("value", [msgspec.msgpack.Ext(5, b"x"), {(1, 2): 3}])
def test_msgpack_of_what_json_has_not_is_refused(send, value):
    body = msgspec.msgpack.encode({"id": "a", "structure_family": "container", "metadata": {"a": value}})
    assert kind_of(send("POST", "/metadata/", body, MSGPACK)) == "invalid-request"


def test_msgpack_of_plain_values_is_taken(send):
    made = {"id": "a", "structure_family": "container", "metadata": {"a": [1, 2.5, None, "text", {"b": True}]}}
    assert send("POST", "/metadata/", msgspec.msgpack.encode(made), MSGPACK).status == 200
    assert json.loads(send("GET", "/metadata/a").data)["data"]["attributes"]["metadata"] == made["metadata"]


@pytest.mark.parametrize(
    "uri", ["http://localhost/x.h5", "gs://bucket/x.h5", "s3:///x.h5", "x.h5", "file://localhost/a%00b"]
)
def test_what_is_no_file_is_refused_when_it_is_registered(send, uri):
    body = registered("a", uri, of("<f8", (2,)), "application/x-hdf5", dataset="x")
    assert kind_of(send("POST", "/register/", body)) in ("unsupported", "invalid-request")
    good = registered("b", "file://localhost/x.h5", of("<f8", (2,)), "application/x-hdf5", dataset="x")
    assert send("POST", "/register/", good).status == 200
    source = {**good["data_sources"][0], "assets": [{"data_uri": uri, "num": 1}]}
    assert kind_of(send("PUT", "/data_source/b", {"data_source": source})) in ("unsupported", "invalid-request")


def test_after_all_requests_no_memory_is_reserved(server, send):
    assert send("POST", "/metadata/", node("a", of("<f8", (100,)))).status == 200
    assert send("GET", "/array/full/a").status == 200
    assert kind_of(send("POST", "/metadata/", b"{")) == "invalid-request"
    budget = server.service.budget
    with budget._changed:  # an answer is there a moment before its request has ended
        assert budget._changed.wait_for(lambda: budget.held_bytes == 0, timeout=100)
