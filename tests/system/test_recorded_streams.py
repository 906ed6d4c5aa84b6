"""Every recorded stream goes in as documents and comes back: as documents exactly, as values by every client.

If these fail, a device that worked at a beamline yesterday does not work today.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import urllib3

from flystore.model.frames import FRAMES_MIMETYPE, FrameDecoder, FrameEncoder, frame, split_frames
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[1] / "data" / "streams"
CASES = recorded_cases(STREAMS)


@pytest.fixture(params=CASES)
def case(request, data):
    return put_in_place(STREAMS, request.param, data)


@pytest.fixture
def post(server):
    with urllib3.PoolManager(headers={"Authorization": f"Apikey {server.key}"}) as pool:

        def send(uid, documents, first=0, encoder=None):
            encoder = encoder or FrameEncoder()
            body = b"".join(frame(p) for name, doc in documents for p in encoder.encode(name, doc))
            url = f"{server.url}/api/v1/ingest/{uid}?first={first}&epoch=0"
            answer = pool.request("POST", url, body=body, headers={**pool.headers, "Content-Type": FRAMES_MIMETYPE})
            assert answer.status == 200, answer.data
            return answer.json()

        send.get = lambda path: pool.request("GET", f"{server.url}/api/v1{path}")
        yield send


def returned(post, uid):
    answer = post.get(f"/documents/{uid}")
    assert answer.headers["x-flystore-reconstructed"] == "false"
    decoder = FrameDecoder()
    found = (decoder.decode(payload) for _, payload in split_frames(answer.data))
    return [document for document in found if document is not None]


@pytest.mark.parametrize("batch", [1, 7, 10_000])
def test_documents_come_back_exactly(case, post, batch):
    for uid, documents in case.runs.items():
        encoder = FrameEncoder()
        for at in range(0, len(documents), batch):
            post(uid, documents[at : at + batch], first=at, encoder=encoder)
        found = returned(post, uid)
        assert found == documents
        assert [list(doc) for _, doc in found] == [list(doc) for _, doc in documents]


def test_the_verdict_of_each_stream_finds_nothing_wanting(case, post):
    for uid, documents in case.runs.items():
        post(uid, documents)
        verdict = post.get(f"/verdict/{uid}?look=true").json()
        assert verdict["state"] == case.expected[uid].get("verdict", {"state": "complete"})["state"], verdict
        assert ", stored" in verdict["line"]


def test_external_values_read_through_the_stock_client_are_those_of_the_files(case, post, server):
    for uid, documents in case.runs.items():
        post(uid, documents)
        with server.tiled() as client:
            for name, expected in case.expected[uid]["streams"].items():
                for key, array in expected["arrays"].items():
                    values = client[uid][name][key].read()
                    assert list(values.shape) == array["shape"]
                    assert values.dtype == np.dtype(array["dtype"])
                    assert hashlib.sha256(values.tobytes()).hexdigest() == array["sha256"], (name, key)
