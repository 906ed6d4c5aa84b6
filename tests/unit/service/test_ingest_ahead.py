"""What a batch comes to is worked out before its transaction, and only counts if the run is still where it was.

If these fail, a large batch keeps every other writer waiting, or one that was overtaken by another is stored over it.
"""

from itertools import pairwise

import msgspec
import pytest

from flystore.model.frames import FrameEncoder, frame
from flystore.projection import RunState
from flystore.projection._notes import note_id
from flystore.service import Service, ingest
from flystore.service.ingest import Ingest
from flystore.testing.documents import RunDocuments, internal

NOTES = {note_id("no-start"): 7}


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def bodies():
    """Start and descriptor, then three batches of fifty events, then the stop."""
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal())
    for value in range(150):
        stream.event(x=float(value))
    run.stop()
    encoder = FrameEncoder()
    encoded = [b"".join(map(frame, encoder.encode(name, doc))) for name, doc in run.documents]
    cuts = [0, 2, 52, 102, 152, 153]
    return [(a, b"".join(encoded[a:b])) for a, b in pairwise(cuts)]


def values(service):
    return service.tables.read(("run", "primary", "internal"))["x"].to_pylist()


@pytest.fixture
def worked_out(monkeypatch):
    """For each time that a batch is worked out, whether its transaction was open."""
    found, real = [], ingest.advance

    def advance(state, documents):
        found.append(getattr(catalog._mine, "writing", False))
        return real(state, documents)

    def watch(service):
        nonlocal catalog
        catalog = service._catalog
        return found

    catalog = None
    monkeypatch.setattr(ingest, "advance", advance)
    return watch


def test_batches_are_worked_out_once_and_not_within_a_transaction(service, bodies, worked_out):
    seen = worked_out(service)
    for first, body in bodies:
        service.ingest.batch("run", first, 0, body)
    assert seen == [False] * len(bodies)
    assert values(service) == [float(value) for value in range(150)]


def test_so_is_the_first_batch_after_a_restart(tmp_path, bodies, worked_out):
    for first, body in bodies:
        with Service.open(tmp_path / "store") as service:
            seen = worked_out(service)
            service.ingest.batch("run", first, 0, body)
    assert seen == [False] * len(bodies)


@pytest.mark.parametrize("overtaken", range(5))
def test_a_batch_that_was_overtaken_by_itself_is_stored_once(service, bodies, monkeypatch, overtaken):
    real = Ingest._prepared

    def prepared(self, batch, body, payloads):
        work = real(self, batch, body, payloads)
        monkeypatch.setattr(Ingest, "_prepared", real)
        self.batch(batch.uid, batch.first, batch.epoch, body)
        return work

    for number, (first, body) in enumerate(bodies):
        if number == overtaken:
            monkeypatch.setattr(Ingest, "_prepared", prepared)
        ack = service.ingest.batch("run", first, 0, body)
    assert ack.watermark == 153
    assert values(service) == [float(value) for value in range(150)]
    assert service.verdicts.of(("run",)).state == "complete"


@pytest.mark.parametrize("part", [10, 30])
def test_a_batch_of_which_a_part_was_stored_meanwhile_adds_only_the_rest(service, bodies, monkeypatch, part):
    real = Ingest._prepared
    (_, head), (first, body) = bodies[:2]
    events = ingest.split(body)
    some = b"".join(map(frame, events[: part + 1]))  # the template and so many events

    def prepared(self, batch, body, payloads):
        work = real(self, batch, body, payloads)
        monkeypatch.setattr(Ingest, "_prepared", real)
        self.batch("run", first, 0, some)
        return work

    service.ingest.batch("run", 0, 0, head)
    monkeypatch.setattr(Ingest, "_prepared", prepared)
    assert service.ingest.batch("run", first, 0, body).watermark == 52
    assert values(service) == [float(value) for value in range(50)]


def test_what_was_worked_out_on_another_state_does_not_count(service, bodies, monkeypatch):
    real = Ingest._prepared

    def prepared(self, batch, body, payloads):
        work = real(self, batch, body, payloads)
        with service._catalog.write() as tx:  # as a rebuild would, after an upgrade of the projection
            run = tx.run("run")
            state = RunState.from_bytes(run.state)
            other = msgspec.structs.replace(state, notes=NOTES)
            tx.save_run(msgspec.structs.replace(run, state=other.to_bytes()))
        self.forget()
        return work

    service.ingest.batch("run", bodies[0][0], 0, bodies[0][1])
    monkeypatch.setattr(Ingest, "_prepared", prepared)
    service.ingest.batch("run", bodies[1][0], 0, bodies[1][1])
    with service._catalog.read() as snapshot:
        assert RunState.from_bytes(snapshot.run("run").state).notes == NOTES
    assert len(values(service)) == 50
