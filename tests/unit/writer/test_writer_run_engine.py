"""A RunEngine with a RunWriter runs its plans, and what it emitted is stored.

If these fail, the first thing a beamline does with flystore fails.
"""

import pytest

from flystore.model.errors import JournalFull


@pytest.fixture
def run_engine():
    from bluesky import RunEngine

    engine = RunEngine({}, call_returns_result=False)
    yield engine
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()


@pytest.fixture
def det():
    from ophyd.sim import SynAxis, SynGauss

    motor = SynAxis(name="motor")
    return SynGauss("det", motor, "motor", center=0, Imax=1)


def test_a_count_is_stored_document_by_document(make_writer, server, run_engine, det):
    import bluesky.plans as bp

    emitted = []
    writer = make_writer(server.url)
    run_engine.subscribe(writer)
    run_engine.subscribe(lambda name, doc: emitted.append((name, doc)))
    (uid,) = run_engine(bp.count([det], 10))
    writer.flush(60)
    assert len(emitted) == 13
    assert server.store.documents(uid) == emitted
    assert type(server.store.documents(uid)[2][1]["data"]["det"]) is type(emitted[2][1]["data"]["det"])


def test_a_plan_runs_to_its_end_while_the_service_hangs(make_writer, server, run_engine, det):
    import bluesky.plans as bp

    server.hold.set()
    writer = make_writer(server.url)
    run_engine.subscribe(writer)
    (uid,) = run_engine(bp.count([det], 10))
    (run,) = writer.status().runs
    assert (run.uid, run.journaled, run.stored, run.ended) == (uid, 13, 0, True)
    server.release()
    writer.flush(60)
    assert len(server.store.documents(uid)) == 13


def test_a_full_disk_stops_the_plan_and_the_run_still_ends(make_writer, server, run_engine, det, monkeypatch):
    import errno

    import bluesky.plans as bp

    from flystore.journal import _log as log_module

    real, written = log_module.write_all, []

    def write_all(descriptor, data):
        if b"exit_status" not in data:
            written.append(len(data))
            if len(written) > 8:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, data)

    monkeypatch.setattr(log_module, "write_all", write_all)
    writer = make_writer(server.url)
    run_engine.subscribe(writer)
    with pytest.raises(JournalFull, match="disk is full"):
        run_engine(bp.count([det], 100))
    writer.flush(60)
    (uid,) = server.store.runs
    assert server.store.documents(uid)[-1][0] == "stop"
    assert server.store.documents(uid)[-1][1]["exit_status"] == "fail"
