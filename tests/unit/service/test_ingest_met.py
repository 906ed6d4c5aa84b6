"""A batch whose transaction the database undid, because two writers met, is tried again here.

If these fail, writers of one beamline see refusals whenever two of them are quick at the same time.
"""

from contextlib import contextmanager

import pytest

from flystore.model.errors import Unavailable
from flystore.model.frames import FrameEncoder, frame
from flystore.service import Service
from flystore.service.ingest import TRIES
from flystore.testing.documents import RunDocuments


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as made:
        yield made


@pytest.fixture
def meeting(service, monkeypatch):
    """Return a function that has the next few transactions undone at their end; it returns how many were begun."""

    def arrange(times, **facts):
        begun = []
        original = service._catalog.write

        @contextmanager
        def write():
            begun.append(None)
            with original() as tx:
                yield tx
                if len(begun) <= times:
                    raise Unavailable("undone", **facts)

        monkeypatch.setattr(service._catalog, "write", write)
        return begun

    return arrange


def batch():
    run = RunDocuments("u")
    run.stop()
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in run.documents for payload in encoder.encode(name, doc))


def test_a_batch_that_met_another_is_stored_once_at_a_later_try(service, meeting):
    begun = meeting(TRIES - 1, met=True)
    assert service.ingest.batch("u", 0, 0, batch()).watermark == 2
    assert len(begun) == TRIES
    assert service.ingest.batch("u", 0, 0, batch()).watermark == 2  # known


def test_a_batch_that_always_meets_others_is_refused_after_a_few_tries(service, meeting):
    begun = meeting(100, met=True)
    with pytest.raises(Unavailable):
        service.ingest.batch("u", 0, 0, batch())
    assert len(begun) == TRIES


def test_a_batch_that_cannot_be_stored_for_another_reason_is_not_tried_again(service, meeting):
    begun = meeting(100)
    with pytest.raises(Unavailable):
        service.ingest.batch("u", 0, 0, batch())
    assert len(begun) == 1
