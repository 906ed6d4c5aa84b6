"""Every document that the callback is given is stored once, in its run, as it was.

If these fail, documents are lost, doubled or given to the wrong run, or an odd one stops a plan.
"""

import datetime
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from flystore.model.encoding import Opaque
from flystore.model.errors import JournalFull, Misconfigured
from flystore.testing.journals import event
from flystore.testing.values import documents as any_documents
from flystore.testing.values import same

CASES = sorted(path.name for path in (Path(__file__).parents[2] / "data" / "streams").iterdir() if path.is_dir())


def start(uid="run-1", **more):
    return "start", {"uid": uid, "time": 1.0, "scan_id": 7, **more}


def descriptor(uid="d-1", run="run-1", name="primary"):
    return "descriptor", {"uid": uid, "run_start": run, "name": name, "data_keys": {}, "time": 1.0}


def stop(run="run-1"):
    return "stop", {"uid": f"stop-{run}", "run_start": run, "exit_status": "success", "time": 2.0}


def stored(server, uid="run-1"):
    return server.store.documents(uid)


@pytest.mark.parametrize("case", CASES)
def test_recorded_streams_arrive_as_they_were(make_writer, server, recorded, case):
    documents = recorded(case)
    writer = make_writer(server.url)
    for name, doc in documents:
        writer(name, doc)
    writer.flush(60)
    uids = [doc["uid"] for name, doc in documents if name == "start"]
    assert sum(len(stored(server, uid)) for uid in uids) == len(documents)
    assert server.store.orphans == {}
    for uid in uids:
        arrived = iter(documents)
        for document in stored(server, uid):
            assert any(same(document, one) for one in arrived)  # in the order emitted


def test_interleaved_runs_are_told_apart(make_writer, server, recorded):
    documents = recorded("interleaved_runs")
    writer = make_writer(server.url)
    for name, doc in documents:
        writer(name, doc)
    writer.flush(60)
    runs = [doc["uid"] for name, doc in documents if name == "start"]
    assert len(runs) > 1
    for uid in runs:
        assert stored(server, uid)[0][1]["uid"] == uid
        assert stored(server, uid)[-1][0] == "stop"
        assert stored(server, uid)[-1][1]["run_start"] == uid


def test_values_that_json_would_lose_arrive_with_their_types(make_writer, server):
    doc = {
        **start()[1],
        "array": np.arange(6, dtype="<f4").reshape(2, 3),
        "scalar": np.uint16(7),
        "tuple": (1, 2),
        "set": {1, 2},
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "big": 2**70,
    }
    writer = make_writer(server.url)
    writer("start", doc)
    writer.flush(60)
    assert same(stored(server)[0][1], doc)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(doc=any_documents())
def test_any_document_of_plain_and_odd_values_arrives_as_it_was(make_writer, server, doc):
    writer, uid = make_writer(server.url), str(uuid.uuid4())
    writer(*start(uid))
    writer("event", doc)
    writer.close()
    assert same(stored(server, uid)[1:], [("event", doc)])


class Stubborn:
    def __repr__(self):
        raise RuntimeError("no")


class NoMapping(dict):
    def items(self):
        raise RuntimeError("no")

    keys = values = __iter__ = items


ODD = [
    ("event", {}),
    ("event", {"descriptor": "nobody", "seq_num": 1}),
    ("event", {"descriptor": ["not", "hashable"]}),
    ("event", None),
    ("event", 5),
    ("descriptor", {"uid": {}, "run_start": "run-1"}),
    ("descriptor", {}),
    ("stop", {}),
    ("stop", {"run_start": "another run"}),
    ("start", {}),
    ("start", {"uid": 5}),
    ("start", {"uid": ""}),
    ("start", {"uid": "\ud800"}),
    ("start", {"uid": ".."}),
    ("datum", {"resource": "unknown"}),
    ("stream_datum", {"stream_resource": "unknown", "descriptor": "unknown"}),
    ("stream_datum", {"descriptor": "d-1", "stream_resource": "s", "seq_nums": "many"}),
    ("event_page", {"descriptor": "d-1", "seq_num": 5}),
    ("event", {"descriptor": "d-1", "seq_num": "one", "data": Stubborn()}),
    ("event", NoMapping(descriptor="d-1")),
    ("a name nobody knows", {"x": 1}),
    (b"bytes", {"x": 1}),
    (None, {"x": 1}),
]


@pytest.mark.parametrize("document", ODD, ids=lambda one: repr(one[0]) if isinstance(one, tuple) else None)
def test_an_odd_document_goes_to_the_open_run_and_stops_nothing(make_writer, server, document):
    writer = make_writer(server.url)
    writer(*start())
    writer(*descriptor())
    writer(*document)
    writer("event", event(1))
    writer(*stop())
    writer.flush(60)
    arrived = stored(server)
    assert len(arrived) == 5
    assert arrived[3] == ("event", event(1))
    assert arrived[4] == stop()
    assert server.store.orphans == {}


def test_an_object_that_cannot_be_encoded_is_kept_as_its_name(make_writer, server):
    writer = make_writer(server.url)
    writer(*start(sample=Stubborn()))
    writer.flush(60)
    kept = stored(server)[0][1]["sample"]
    assert isinstance(kept, Opaque)
    assert kept.type_name.endswith("Stubborn")


def test_a_document_whose_encoding_fails_is_kept_as_its_repr(make_writer, server, caplog):
    writer = make_writer(server.url)
    writer(*start())
    writer("event", NoMapping(descriptor="d-1"))
    writer.flush(60)
    name, doc = stored(server)[1]
    assert name == "event"
    assert list(doc) == ["unencodable"]
    assert "cannot be encoded" in caplog.text
    assert writer.status().parked == ()


@pytest.mark.parametrize("value", [None, 5, "text", [1, 2]])
def test_a_document_that_is_no_mapping_is_kept_inside_one(make_writer, server, value):
    writer = make_writer(server.url)
    writer(*start())
    writer("event", value)
    writer.flush(60)
    assert stored(server)[1] == ("event", {"not_a_document": value})


def test_documents_of_no_run_go_to_the_orphans(make_writer, server):
    writer = make_writer(server.url)
    writer("event", event(1))
    writer(*descriptor(run="another run"))
    writer(*stop(run="another run"))
    writer.flush(60)
    (orphans,) = server.store.orphans.values()
    assert [name for name, _ in orphans.documents] == ["event", "descriptor", "stop"]
    assert server.store.runs == {}


def test_what_names_no_run_goes_to_the_one_opened_last(make_writer, server):
    writer = make_writer(server.url)
    for uid in ("run-1", "run-2"):
        writer(*start(uid))
    writer("resource", {"uid": "r-1", "spec": "AD_HDF5"})
    writer("datum", {"resource": "r-1", "datum_id": "r-1/0"})
    writer(*stop("run-2"))
    writer("event", event(1, descriptor="unknown"))
    writer.flush(60)
    assert [name for name, _ in stored(server, "run-2")] == ["start", "resource", "datum", "stop"]
    assert [name for name, _ in stored(server, "run-1")] == ["start", "event"]


def test_a_stop_that_names_another_run_ends_none(make_writer, server):
    writer = make_writer(server.url)
    writer(*start())
    writer(*stop("another run"))
    writer(*descriptor())
    writer("event", event(1))
    writer.flush(60)
    assert len(stored(server)) == 4
    assert not writer.status().runs[0].ended


def test_a_late_document_still_finds_its_run(make_writer, server):
    writer = make_writer(server.url)
    for document in (start(), descriptor(), ("event", event(1)), stop()):
        writer(*document)
    writer.flush(60)
    writer("event", event(2))
    writer("event", event(3))
    writer.flush(60)
    assert [name for name, _ in stored(server)] == ["start", "descriptor", "event", "stop", "event", "event"]
    assert stored(server)[4:] == [("event", event(2)), ("event", event(3))]


def test_a_run_that_is_replayed_is_stored_once(make_writer, server, recorded):
    documents = recorded("step_internal")
    uid = documents[0][1]["uid"]
    writer = make_writer(server.url)
    for _ in range(3):
        for name, doc in documents:
            writer(name, doc)
    writer.flush(60)
    assert len(stored(server, uid)) == len(documents)
    assert writer.status().parked == ()


def test_another_process_that_replays_a_run_stores_it_once(make_writer, server, recorded):
    documents = recorded("step_internal")
    for _ in range(2):
        writer = make_writer(server.url)
        for name, doc in documents:
            writer(name, doc)
        writer.flush(60)
        writer.close()
    assert len(stored(server, documents[0][1]["uid"])) == len(documents)


def test_memory_for_ended_runs_is_bounded(make_writer, server):
    writer = make_writer(server.url)
    for number in range(60):
        uid = f"run-{number}"
        for document in (start(uid), descriptor(f"d-{number}", uid), stop(uid)):
            writer(*document)
    writer.flush(60)
    assert len(writer.status().runs) <= 16
    assert writer._router.run("run-0") is None
    assert len(writer._router._known) <= 16
    assert writer._journal.logs == ()


def test_templates_that_did_not_fit_on_the_disk_are_written_with_the_next_event(make_writer, server, monkeypatch):
    import errno

    from flystore.journal import _log as log_module

    real = log_module.write_all
    full = []

    def write_all(descriptor, data):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(log_module, "write_all", write_all)
    writer = make_writer(server.url)
    writer(*start())
    writer(*descriptor())
    full.append(True)
    with pytest.raises(JournalFull):
        writer("event", event(1))
    with pytest.raises(JournalFull):
        writer("event", event(2))
    full.clear()
    writer("event", event(3))
    writer.flush(60)
    assert stored(server)[2:] == [("event", event(3))]


def test_a_document_after_closing_is_refused_and_not_lost_silently(make_writer, server):
    writer = make_writer(server.url)
    writer(*start())
    writer.close()
    with pytest.raises(Misconfigured, match="closed"):
        writer("event", event(1))
    with pytest.raises(Misconfigured, match="closed"):
        writer(*start("run-2"))


def test_several_threads_may_write_several_runs(make_writer, server):
    writer = make_writer(server.url)

    def scan(uid):
        writer(*start(uid))
        writer(*descriptor(f"d-{uid}", uid))
        for number in range(1, 101):
            writer("event", event(number, descriptor=f"d-{uid}"))
        writer(*stop(uid))

    threads = [threading.Thread(target=scan, args=(f"run-{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush(60)
    for number in range(5):
        arrived = stored(server, f"run-{number}")
        assert [doc["seq_num"] for name, doc in arrived if name == "event"] == list(range(1, 101))
