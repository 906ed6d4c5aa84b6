"""Real runs of two instruments of the APS come back as they were: 65 runs of 2019 to 2025, baselines of 268 signals.

If these fail, what real devices say is refused or changed. The data lie beside the checkout and are not part of it;
where they are not, these tests skip and say so.
"""

import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from flystore import MissingRows
from flystore.client import from_transport
from flystore.http import Access, build_app
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.projection import segment
from flystore.service import Limits, Service
from flystore.testing.streams import by_run
from flystore.testing.values import same
from flystore.wire import InProcessTransport, api_path

DATA = Path(__file__).parents[3] / "shared/data" / "apstools"
FILES = {"usaxs.json.gz": 10, "apstools.json.gz": 53, "uid-3ab777ae.json": 1, "hklpy-7ab721bd.json": 1}
NEVER_ENDED = "49dce8d9"
LACKS_ITS_EVENT = "3e89a55c"
"""Its stop document counts one event; neither the event nor its descriptor is in the recording."""

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the recorded APS runs, in shared/data/apstools beside the checkout"
)


def runs_of(name):
    opened = gzip.open if name.endswith(".gz") else open
    with opened(DATA / name, "rt", encoding="utf-8") as file:
        return by_run(tuple(pair) for pair in json.load(file))


def open_client(directory, **limits):
    service = Service.open(directory, limits=Limits(**limits))
    return service, from_transport(InProcessTransport(build_app(service, Access.of("key")), "key"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with all runs in it; its directory and its client."""
    directory = tmp_path_factory.mktemp("aps")
    service, client = open_client(directory)
    for name in FILES:
        for uid, documents in runs_of(name).items():
            send(client, uid, documents)
    yield directory, client
    client.close()
    service.close()


def send(client, uid, documents, batch=13):
    encoder = FrameEncoder()
    for first in range(0, len(documents), batch):
        body = b"".join(frame(p) for name, doc in documents[first : first + batch] for p in encoder.encode(name, doc))
        client.transport.request(
            "POST",
            api_path("ingest", uid),
            params={"first": first, "epoch": 0},
            headers={"Content-Type": FRAMES_MIMETYPE},
            body=body,
        )


@pytest.fixture(params=FILES)
def recorded(request, store):
    """The runs of one file, by uid, and the client of a store that has them."""
    runs = runs_of(request.param)
    assert len(runs) == FILES[request.param]
    return runs, store[1]


def test_every_run_is_listed(store):
    _, client = store
    assert set(client) == {uid for name in FILES for uid in runs_of(name)}
    assert len(client) == sum(FILES.values())


def test_documents_come_back_exactly(recorded):
    runs, client = recorded
    for uid, documents in runs.items():
        with client[uid].documents() as found:
            assert same(list(found), documents), uid


def test_every_value_of_every_event_is_read(recorded):
    runs, client = recorded
    for uid, documents in runs.items():
        run = client[uid]
        descriptors = {doc["uid"]: doc for name, doc in documents if name == "descriptor"}
        assert set(run) == {segment(doc["name"]) for doc in descriptors.values()}
        assert run.start == documents[0][1] or uid in str(run.start)
        for descriptor, facts in descriptors.items():
            events = [doc for name, doc in documents if name == "event" and doc["descriptor"] == descriptor]
            stream = run[segment(facts["name"])]
            assert set(stream.data_keys) == {segment(key) for key in facts["data_keys"]}
            assert set(stream) == ({"time", *(segment(key) for key in facts["data_keys"])} if events else set())
            if events:
                assert_events(stream, events)


def assert_events(stream, events):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingRows)  # rows of unequal length are padded
        dataset = stream.read([*stream, "seq_num", "time"])
    assert dataset["seq_num"].values.tolist() == [event["seq_num"] for event in events]
    assert dataset["time"].values.tolist() == [event["time"] for event in events]
    for key in events[0]["data"]:
        for event, found in zip(events, dataset[segment(key)].values, strict=True):
            assert_same_value(found, event["data"][key], key)
    stamps = stream.timestamps([segment(key) for key in events[0]["timestamps"]])
    for key in events[0]["timestamps"]:
        assert stamps[segment(key)].values.tolist() == [event["timestamps"][key] for event in events]


def assert_same_value(found, wanted, key):
    if isinstance(wanted, str):
        assert str(found) == wanted, key
    elif wanted is None:
        assert found is None or np.isnan(found), key
    else:
        np.testing.assert_array_equal(np.asarray(found, float), np.asarray(wanted, float), err_msg=key)


def test_verdicts_count_what_the_documents_say(recorded):
    runs, client = recorded
    for uid, documents in runs.items():
        verdict = client[uid].check()
        stop = documents[-1][1] if documents[-1][0] == "stop" else None
        if stop is None:
            assert uid.startswith(NEVER_ENDED)
            assert verdict.state == "running"
            continue
        if uid.startswith(LACKS_ITS_EVENT):
            assert (verdict.state, verdict.gaps, verdict.points, verdict.expected_points) == ("gaps", 1, 0, 1)
            continue
        assert verdict.state == "complete", verdict.line
        assert verdict.gaps == verdict.extra == verdict.retaken == 0
        counted = {name: stream["rows"] for name, stream in verdict.streams.items() if stream["rows"]}
        events = [doc["descriptor"] for name, doc in documents if name == "event"]
        names = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
        assert counted == {names[uid]: events.count(uid) for uid in dict.fromkeys(events)}
        said = stop["num_events"]
        assert {name: number for name, number in said.items() if number} == counted
        assert {name: stream["expected"] for name, stream in verdict.streams.items()} == {
            name: said.get(name) for name in verdict.streams
        }


def test_the_run_that_never_ended_is_interrupted_once_it_was_silent_for_long(store):
    directory, _ = store
    service, client = open_client(directory, silence_seconds=0.0)
    try:
        states = {uid: run.verdict.state for uid, run in client.items()}
        odd = {uid[:8]: state for uid, state in states.items() if state != "complete"}
        assert odd == {NEVER_ENDED: "interrupted", LACKS_ITS_EVENT: "gaps"}
    finally:
        client.close()
        service.close()
