"""Followers of a run: what they are given beside the catalogue, and how many there may be.

If these fail, somebody is shown a document that a power cut takes back, or another one than is stored; or those who
follow leave no connection for those who write.
"""

import pytest

from flystore.catalog import Catalog
from flystore.model.errors import Unavailable
from flystore.model.frames import FrameEncoder, frame
from flystore.service import Limits, Service
from flystore.service.waking import Waking, topic_of_run

DOCUMENTS = [
    ("start", {"uid": "u", "time": 1.0}),
    ("descriptor", {"uid": "d", "run_start": "u", "name": "primary", "time": 1.0, "data_keys": {}}),
    *(
        ("event", {"uid": f"e{n}", "descriptor": "d", "seq_num": n, "time": 1.0, "data": {}, "timestamps": {}})
        for n in range(1, 6)
    ),
]


def batches():
    encoder = FrameEncoder()
    return [b"".join(map(frame, encoder.encode(name, doc))) for name, doc in DOCUMENTS]


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def reads(service, monkeypatch):
    """Count how often documents are read from the catalogue for followers."""
    found, real = [], service.following._frames
    monkeypatch.setattr(service.following, "_frames", lambda *arguments: found.append(1) or real(*arguments))
    return found


def test_what_is_followed_is_given_as_it_is_stored_without_being_read_again(service, reads):
    bodies = batches()
    with service.following.waking.follower(topic_of_run("u")):
        for first, body in enumerate(bodies):
            service.ingest.batch("u", first, 1, body)
        # A batch that overlaps: what is new of it is a record of its own.
        more = b"".join(bodies[-2:]) + frame(FrameEncoder().encode("stop", {"uid": "s", "run_start": "u"})[0])
        service.ingest.batch("u", len(bodies) - 2, 1, more)
    given = [service.following.frames_at_once("u", at, 0) for at in range(len(bodies) + 1)]
    assert not reads
    service.following._records.clear()
    assert given == [service.following.frames_at_once("u", at, 0) for at in range(len(bodies) + 1)]
    assert [part.next for part in given] == list(range(1, len(bodies) + 2))


def test_what_nobody_follows_is_not_kept_for_anybody(service, reads):
    service.ingest.batch("u", 0, 1, batches()[0])
    assert service.following.frames_at_once("u", 0, 0).next == 1
    assert reads


def test_nothing_is_given_before_it_is_stored(service, monkeypatch):
    """While the batch is being committed, whoever asks is told what there was before it; if it fails, also later."""
    seen = []

    def failing():
        seen.append(service.following.frames_at_once("u", 0, 0).pieces)
        raise Unavailable("the disk is full")

    monkeypatch.setattr("flystore.catalog._database.reach", lambda name: name == "catalog.before_commit" and failing())
    with service.following.waking.follower(topic_of_run("u")):
        with pytest.raises(Unavailable):
            service.ingest.batch("u", 0, 1, batches()[0])
        assert service.following.frames_at_once("u", 0, 0).pieces == []
    assert seen == [[]]


def test_there_is_room_for_so_many_and_again_once_one_has_gone(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}") as catalog:
        waking = Waking(catalog, look_seconds=10_000.0, most=2)
        waking.follower("path:a")
        second = waking.follower()
        with pytest.raises(Unavailable, match=r"2 follow already.*followers=N"):
            waking.require_room()
        second.close()
        waking.require_room()
        waking.end()


def test_followers_leave_connections_to_others():
    assert 2 * Limits().followers <= Limits().connections
