"""The unmodified Tiled client writes into a run that RunWriter wrote; it stays, whatever comes later.

If these fail, people's programs that annotate runs get a 409, or what they wrote is gone after the next document or the
next upgrade.
"""

import json
import warnings
from collections.abc import Mapping

import pytest

from flystore import RunWriter
from flystore.http import Access, build_app
from flystore.service import Service
from flystore.service.backup import back_up, restore
from flystore.service.verifying import verify
from flystore.testing.serving import serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def documents_of(recorded):
    from bluesky.plans import count
    from ophyd.sim import det

    return recorded(count([det], 5, md={"sample": {"name": "glass", "mass": 3}, "color": "blue"}))


@pytest.fixture
def half(server, recorded, tmp_path):
    """A run of which the start, the descriptor and some events are stored, and what comes after."""
    documents = documents_of(recorded)
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        for name, doc in documents[:4]:
            writer(name, doc)
        writer.flush(timeout=100)

        def rest():
            for name, doc in documents[4:]:
                writer(name, doc)
            writer.flush(timeout=100)

        yield documents, rest


@pytest.fixture
def run(server, half):
    """The run that goes on, as the client sees it."""
    documents, _ = half
    with server.tiled() as client:
        yield client[documents[0][1]["uid"]]


def told(server, uid):
    with server.tiled() as client:
        return plain(client[uid].metadata)


def plain(value):
    """Return metadata as plain objects: the client wraps them, and JSON has no tuples."""
    return json.loads(json.dumps(value, default=lambda view: dict(view) if isinstance(view, Mapping) else list(view)))


def all_is_well(server):
    return verify(server.directory, deep=True, read=[server.data]).damaged == []


def test_what_the_client_wrote_into_a_run_that_goes_on_is_there_at_the_end_and_after_a_rebuild(server, half, run):
    from tiled.client.metadata_update import DELETE_KEY

    documents, rest = half
    start, stop = plain(documents[0][1]), plain(documents[-1][1])
    uid = start["uid"]
    run.update_metadata({"remark": {"by": "me", "n": 1}, "start": {"sample": {"name": "ruby"}, "color": DELETE_KEY}})
    run["primary"].update_metadata({"quality": "good"})
    rest()
    with server.tiled() as client:
        later = client[uid]
        later.update_metadata({"remark": {"n": 2, "none": None}, "stop": {"reason": "as planned"}})

    seen = told(server, uid)
    assert seen["remark"] == {"by": "me", "n": 2, "none": None}
    assert seen["start"] == {key: value for key, value in start.items() if key != "color"} | {
        "sample": {"name": "ruby", "mass": 3}
    }
    assert seen["stop"] == {**stop, "reason": "as planned"}
    assert all_is_well(server)
    assert server.service.rebuild().changed == []
    assert told(server, uid) == seen
    with server.tiled() as client:
        assert client[uid]["primary"].metadata["quality"] == "good"
        assert client[uid]["primary"].read()["det"].shape == (5,)
        from tiled.queries import FullText, Key

        assert list(client.search(Key("start.sample.name") == "ruby")) == [uid]
        assert list(client.search(Key("start.color") == "blue")) == []
        assert list(client.search(FullText("planned"))) == [uid]


def test_what_the_client_holds_after_an_edit_is_what_the_service_tells_the_next(server, half, run):
    _, rest = half
    rest()
    run.refresh()
    run.update_metadata({"remark": "one"}, specs=["Mine", "BlueskyRun"])
    assert plain(run.metadata) == told(server, run.item["id"])
    run.replace_metadata({**plain(run.metadata), "remark": "two"}, access_tags=["red"])
    assert plain(run.metadata) == told(server, run.item["id"])
    run.patch_metadata([{"op": "add", "path": "/start/sample/form", "value": "powder"}])
    run.patch_metadata({"remark": None}, content_type="application/merge-patch+json")
    assert plain(run.metadata) == told(server, run.item["id"])
    with server.tiled() as client:
        seen = client[run.item["id"]]
        assert seen.metadata["start"]["sample"] == {"name": "glass", "mass": 3, "form": "powder"}
        assert "remark" not in seen.metadata
        assert [spec.name for spec in seen.specs] == ["Mine", "BlueskyRun"]
        assert seen.item["attributes"]["access_tags"] == ["red"]
        revisions = [revision["attributes"]["metadata"].get("remark") for revision in seen.metadata_revisions[:]]
        assert revisions == [None, "one", "two", "two"]
        seen.metadata_revisions.delete_revision(2)
        assert len(seen.metadata_revisions[:]) == 3
    assert all_is_well(server)


def test_a_client_that_replaces_what_it_read_before_the_run_ended_is_told_of_the_stop_document(server, half, run):
    documents, rest = half
    rest()
    assert "stop" not in run.metadata  # read before
    run.replace_metadata({**plain(run.metadata), "remark": "good"})

    assert plain(run.metadata["stop"]) == plain(documents[-1][1])
    assert plain(run.metadata) == told(server, run.item["id"])


def test_documents_and_verdict_are_those_of_the_run_whatever_is_written_into_it(server, half, run, send):
    _, rest = half
    rest()
    uid = run.item["id"]
    before = [send("GET", f"/{route}/{uid}").data for route in ("documents", "verdict")]
    run.replace_metadata({"only": "this"})

    assert [send("GET", f"/{route}/{uid}").data for route in ("documents", "verdict")] == before
    assert told(server, uid) == {"only": "this"}


def test_notes_of_a_validation_are_written_into_the_run_by_the_client_of_bluesky(server, half, run):
    _, rest = half
    rest()
    with server.tiled() as client:
        found = client[run.item["id"]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert found.validate() is True
        found.update_metadata({"notes": [*found.metadata.get("notes", []), "checked by hand"]}, drop_revision=True)
        assert len(found.metadata_revisions[:]) == 0
    server.service.rebuild()
    assert told(server, run.item["id"])["notes"] == ["checked by hand"]


def test_data_and_structure_of_the_run_are_not_written_to(half, run, send):
    _, rest = half
    rest()
    uid = run.item["id"]
    node = {"structure_family": "container", "metadata": {}, "specs": [], "data_sources": [], "id": "more"}
    refused = send("POST", f"/metadata/{uid}", node)
    assert (refused.status, json.loads(refused.data)["error"]["kind"]) == (409, "made-from-documents")
    refused = send("DELETE", f"/metadata/{uid}/primary?recursive=true&external_only=false")
    assert (refused.status, json.loads(refused.data)["error"]["kind"]) == (409, "made-from-documents")


def test_a_backup_keeps_what_was_written_into_runs(server, half, run, tmp_path):
    documents, rest = half
    run.update_metadata({"remark": "good"})
    rest()
    back_up(server.directory, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")

    assert verify(tmp_path / "backup", deep=True).damaged == []
    with (
        Service.open(tmp_path / "restored") as service,
        serving(build_app(service, Access.of(server.key))) as url,
    ):
        restored = server._replace(url=url, directory=tmp_path / "restored", service=service)
        seen = told(restored, documents[0][1]["uid"])
        assert (seen["remark"], seen["stop"]) == ("good", plain(documents[-1][1]))
        assert service.rebuild().changed == []
