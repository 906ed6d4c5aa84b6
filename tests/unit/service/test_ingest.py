"""Batches are stored whole, once and in order, whatever is in them.

If these fail, documents are lost, doubled, or one bad document hides all that follow.
"""

import pytest

from flystore.model.errors import Conflict, InvalidRequest, NotFound, SequenceGap
from flystore.model.frames import FrameDecoder, FrameEncoder, frame, split_frames
from flystore.service import Service, ingest
from flystore.testing.documents import RunDocuments, internal


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


def body_of(documents, encoder=None):
    encoder = encoder or FrameEncoder()
    return b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))


@pytest.fixture
def documents():
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal())
    for value in range(6):
        stream.event(x=float(value))
    run.stop()
    return run.documents


def decoded(service, uid="run"):
    decoder = FrameDecoder()
    pieces = b"".join(service.documents.frames((uid,)).pieces)
    found = (decoder.decode(payload) for _, payload in split_frames(pieces))
    return [document for document in found if document is not None]


def test_any_batching_and_any_overlap_store_each_document_once(service, documents):
    encoder = FrameEncoder()
    bodies = [body_of([document], encoder) for document in documents]
    for first in range(len(documents)):
        for again in range(max(0, first - 2), first + 1):
            ack = service.ingest.batch("run", again, 0, b"".join(bodies[again : first + 1]))
            assert ack.watermark == first + 1
    assert decoded(service) == documents
    assert service.tables.read(("run", "primary", "internal"))["x"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_defect_of_the_projection_keeps_the_documents_and_heals(service, documents, monkeypatch, caplog):
    encoder = FrameEncoder()
    service.ingest.batch("run", 0, 0, body_of(documents[:3], encoder))

    def broken(state, some):
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "advance", broken)
        ack = service.ingest.batch("run", 3, 0, body_of(documents[3:5], encoder))
    assert ack.watermark == 5
    assert "are stored but not shown" in caplog.text
    assert decoded(service) == documents[:5]
    assert service.tables.read(("run", "primary", "internal")).num_rows == 1
    assert "stored but not yet shown" in " ".join(service.verdicts.of(("run",)).notes)
    service.ingest.batch("run", 5, 0, body_of(documents[5:], encoder))
    assert service.tables.read(("run", "primary", "internal")).num_rows == 6
    assert service.verdicts.of(("run",)).state == "complete"


def test_a_restarted_service_goes_on_where_it_was(tmp_path, documents):
    encoder = FrameEncoder()
    for at in range(0, len(documents), 2):
        with Service.open(tmp_path / "store") as service:
            service.ingest.batch("run", at, 0, body_of(documents[at : at + 2], encoder))
    with Service.open(tmp_path / "store") as service:
        assert decoded(service) == documents
        assert service.verdicts.of(("run",)).state == "complete"


def test_documents_of_no_run_are_kept_and_are_no_run(service):
    event = ("event", {"uid": "e", "descriptor": "nobody", "seq_num": 1, "time": 1.0, "data": {}, "timestamps": {}})
    assert service.ingest.orphans("a-journal", 0, body_of([event])) == 1
    assert service.ingest.orphans("a-journal", 0, body_of([event])) == 1
    with pytest.raises(SequenceGap):
        service.ingest.orphans("a-journal", 5, body_of([event]))
    with pytest.raises(NotFound):
        service.documents.frames(("orphans:a-journal",))


@pytest.mark.parametrize("uid", ["with/slash", "..", "streams", "ü ☃", "100%", "a~2Fb"])
def test_a_run_with_any_uid_is_stored_and_found(service, uid):
    run = RunDocuments(uid)
    run.stream("primary", x=internal()).event(x=1.0)
    run.stop()
    documents = run.documents
    service.ingest.batch(uid, 0, 0, body_of(documents))
    (entry,) = service.browse.children(service.browse.entry(()), (), (), limit=10).entries
    assert entry.metadata["start"]["uid"] == uid
    assert service.verdicts.of(entry.path).uid == uid
    assert service.tables.read((*entry.path, "primary", "internal"))["x"].to_pylist() == [1.0]


@pytest.mark.parametrize("uid", ["", "x" * 256])
def test_a_uid_that_names_nothing_is_refused(service, uid):
    with pytest.raises(InvalidRequest, match="cannot name a run"):
        service.ingest.batch(uid, 0, 0, body_of([("start", {"uid": uid, "time": 0.0})]))


def test_late_batches_of_a_deleted_run_are_refused(service, documents):
    service.ingest.batch("run", 0, 0, body_of(documents))
    service.nodes.delete(("run",), recursive=True, external_only=False)
    with pytest.raises(Conflict, match="was deleted"):
        service.ingest.batch("run", 0, 0, body_of(documents))
    with pytest.raises(NotFound):
        service.browse.entry(("run",))


def test_documents_with_odd_content_are_stored_and_noted(service):
    documents = [
        ("start", {"uid": "run", "time": "late"}),
        ("event", {"nonsense": True}),
        ("stream_datum", {"stream_resource": "nobody", "descriptor": "nobody", "indices": 3, "seq_nums": None}),
        ("surprise", {"a": 1}),
        ("stop", {"uid": "z", "run_start": "run", "time": 1.0, "exit_status": "success"}),
    ]
    service.ingest.batch("run", 0, 0, body_of(documents))
    assert decoded(service) == documents
    notes = service.verdicts.of(("run",)).notes
    assert any("surprise" in note for note in notes)
    assert len(notes) >= 3
