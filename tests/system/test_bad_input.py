"""A caller's fault is a 4xx with a kind and a sentence, and nothing stored is lost.

If these fail, a mistyped slice costs the stock client 45 seconds of retries, or a wrong request damages data.
"""

import json

import pytest
import urllib3

from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.model.structures import ArrayStructure

START = {"uid": "run-1", "time": 1.0, "scan_id": 1}
STOP = {"uid": "stop-1", "run_start": "run-1", "time": 2.0, "exit_status": "success"}


@pytest.fixture
def http(server):
    with urllib3.PoolManager(headers={"Authorization": f"Apikey {server.key}"}) as pool:

        def send(method, path, body=None, headers=None, key=True, **query):
            merged = {**(pool.headers if key else {}), **(headers or {})}
            return pool.request(
                method, f"{server.url}/api/v1{path}", body=body, headers=merged, fields=None, retries=False
            )

        yield send


def frames(*documents):
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))


def ingest(http, body, first=0, epoch=0, uid="run-1", mimetype=FRAMES_MIMETYPE):
    return http("POST", f"/ingest/{uid}?first={first}&epoch={epoch}", body, {"Content-Type": mimetype})


def refused(answer, status, kind):
    content = json.loads(answer.data)
    assert (answer.status, content["error"]["kind"]) == (status, kind), content
    assert content["error"]["message"].startswith(content["detail"])
    assert content["detail"]
    assert answer.headers["content-type"] == "application/json"
    return content


def test_a_wrong_key_and_no_key_are_refused(http):
    refused(http("GET", "/metadata/", headers={"Authorization": "Apikey nonsense"}), 401, "unauthenticated")
    refused(http("GET", "/metadata/", key=False), 401, "unauthenticated")
    refused(http("GET", "/metadata/", headers={"Authorization": "nonsense"}), 400, "invalid-request")


def test_what_is_not_there_is_not_found(http):
    refused(http("GET", "/metadata/nothing"), 404, "not-found")
    refused(http("GET", "/array/full/nothing"), 404, "not-found")
    refused(http("GET", "/documents/nothing"), 404, "not-found")
    refused(http("GET", "/nonsense"), 404, "not-found")


@pytest.mark.parametrize(
    "path",
    [
        "/search/?page[limit]=301",
        "/search/?page[limit]=x",
        "/search/?sort=a;b",
        "/search/?filter[eq][condition][key]=a",
        "/search/?filter[eq][condition][key]=a&filter[eq][condition][value]=nonsense",
        "/metadata/?fields=nonsense",
        "/metadata/?select_metadata=[",
        "/metadata/?max_depth=6",
    ],
)
def test_a_malformed_question_is_refused(http, path):
    answer = http("GET", path)
    assert answer.status in (400, 422)
    assert json.loads(answer.data)["error"]["kind"] == "invalid-request"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"id": "a"}', b"[" * 100_000])
def test_a_body_that_is_no_node_is_refused(http, body):
    refused(http("POST", "/metadata/", body), 422, "invalid-request")


def test_frames_that_are_damaged_are_refused_and_nothing_is_stored(http):
    good = frames(("start", START))
    refused(ingest(http, good[:-1]), 422, "invalid-request")
    refused(ingest(http, good[:-1] + b"\x00"), 422, "invalid-request")
    refused(ingest(http, b""), 422, "invalid-request")
    refused(ingest(http, good, mimetype="application/json"), 415, "invalid-request")
    refused(http("GET", "/metadata/run-1"), 404, "not-found")


def test_a_gap_names_the_ordinal_expected(http):
    content = refused(ingest(http, frames(("stop", STOP)), first=1), 409, "sequence-gap")
    assert content["error"]["facts"] == {"expected": 0}


def test_a_batch_sent_twice_is_stored_once(http):
    body = frames(("start", START), ("stop", STOP))
    first, second = ingest(http, body), ingest(http, body)
    assert json.loads(first.data)["watermark"] == json.loads(second.data)["watermark"] == 2
    documents = http("GET", "/documents/run-1")
    assert documents.data == body


def test_an_overlapping_batch_is_compared_and_its_rest_stored(http):
    ingest(http, frames(("start", START)))
    answer = ingest(http, frames(("start", START), ("stop", STOP)))
    assert json.loads(answer.data)["watermark"] == 2


def test_another_document_at_a_known_ordinal_is_a_clash(http):
    ingest(http, frames(("start", START)))
    content = refused(ingest(http, frames(("start", {**START, "time": 9.0}))), 409, "content-clash")
    assert content["error"]["facts"] == {"ordinal": 0}


def test_an_older_epoch_is_refused(http):
    ingest(http, frames(("start", START)), epoch=2)
    content = refused(ingest(http, frames(("start", START)), epoch=1), 409, "stale-epoch")
    assert content["error"]["facts"] == {"epoch": 2}


def test_a_run_of_documents_takes_no_nodes_by_protocol(http):
    ingest(http, frames(("start", START)))
    node = json.dumps({"id": "extra", "structure_family": "container", "metadata": {}})
    refused(http("POST", "/metadata/run-1", node), 409, "made-from-documents")
    taken = json.dumps({"id": "run-1", "structure_family": "container", "metadata": {}})
    assert refused(http("POST", "/metadata/", taken), 409, "conflict")["detail"] == "/run-1"


def test_a_run_made_by_protocol_takes_no_documents(http):
    specs = [{"name": "BlueskyRun", "version": "3.0"}]
    node = {"id": "run-1", "structure_family": "container", "metadata": {"start": START}, "specs": specs}
    assert http("POST", "/metadata/", json.dumps(node)).status == 200
    refused(ingest(http, frames(("start", START))), 409, "conflict")


def make_array(http, key="a", shape=(4, 6)):
    source = {
        "structure_family": "array",
        "structure": ArrayStructure.of("<f8", shape).to_wire(),
        "management": "writable",
    }
    node = {"id": key, "structure_family": "array", "metadata": {}, "data_sources": [source]}
    assert http("POST", "/metadata/", json.dumps(node)).status == 200


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("slice=9", "out-of-bounds"),
        ("slice=::0", "invalid-request"),
        ("slice=0,0,0", "invalid-request"),
        ("slice=nonsense", "invalid-request"),
        ("expected_shape=5,5", "invalid-request"),
        ("expected_shape=-1", "invalid-request"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused(http, query, kind):
    make_array(http)
    refused(http("GET", f"/array/full/a?{query}"), 422, kind)


def test_a_body_of_the_wrong_length_is_refused(http):
    make_array(http)
    octets = {"Content-Type": "application/octet-stream"}
    refused(http("PUT", "/array/full/a", b"short", octets), 422, "invalid-request")
    refused(http("PUT", "/array/block/a?block=7,7", b"", octets), 422, "out-of-bounds")
    refused(http("PATCH", "/array/full/a?offset=0,0&shape=1,6", b"short", octets), 422, "invalid-request")
    refused(http("PUT", "/array/full/a", b"", {"Content-Type": "text/csv"}), 415, "unsupported")


def test_a_file_outside_the_read_roots_is_never_served(http, tmp_path):
    secret = tmp_path / "secret.h5"
    import h5py

    with h5py.File(secret, "w") as file:
        file["x"] = [1.0, 2.0]
    source = {
        "structure_family": "array",
        "structure": ArrayStructure.of("<f8", (2,)).to_wire(),
        "mimetype": "application/x-hdf5",
        "parameters": {"dataset": "x"},
        "management": "external",
        "assets": [
            {"data_uri": f"file://localhost{secret}", "is_directory": False, "parameter": "data_uris", "num": 0}
        ],
    }
    node = {"id": "a", "structure_family": "array", "metadata": {}, "data_sources": [source]}
    http("POST", "/register/", json.dumps(node))
    refused(http("GET", "/array/full/a"), 403, "outside-roots")


def test_a_missing_file_says_which(http, server):
    source = {
        "structure_family": "array",
        "structure": ArrayStructure.of("<f8", (2,)).to_wire(),
        "mimetype": "application/x-hdf5",
        "parameters": {"dataset": "x"},
        "management": "external",
        "assets": [
            {
                "data_uri": f"file://localhost{server.data}/gone.h5",
                "is_directory": False,
                "parameter": "data_uris",
                "num": 0,
            }
        ],
    }
    node = {"id": "a", "structure_family": "array", "metadata": {}, "data_sources": [source]}
    assert http("POST", "/register/", json.dumps(node)).status == 200
    assert "gone.h5" in refused(http("GET", "/array/full/a"), 422, "missing-asset")["detail"]
