"""What people edit of a run that documents made stays, in each database, whatever documents come later.

If these fail, a remark written during a scan is gone when the scan ends, two people lose each other's words, or what is
written into a run is not found.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog, _migrations
from flystore.catalog._database import connect
from flystore.catalog._schema import log, log_edits, nodes
from flystore.model import queries as q
from flystore.model.errors import Conflict, InvalidRequest, MadeFromDocuments, NotFound, Unsupported
from flystore.model.frames import FrameEncoder, frame
from flystore.model.overlay import Overlay, Put, Within, difference
from flystore.model.structures import BLUESKY_RUN, Family, Spec
from flystore.projection import segment
from flystore.service import MetadataPatch, NewNode, Service
from flystore.service.comparing import compare_trees
from flystore.service.findings import Check
from flystore.storage import ArrayStore, Roots

START = ("start", {"uid": "r", "time": 1.0, "plan_name": "scan", "sample": {"name": "glass", "mass": 3}})
DESCRIPTOR = (
    "descriptor",
    {
        "uid": "d",
        "run_start": "r",
        "time": 2.0,
        "name": "primary",
        "data_keys": {"x": {"dtype": "number", "shape": [], "source": "sim"}},
        "configuration": {},
        "hints": {},
        "object_keys": {"x": ["x"]},
    },
)
STOP = ("stop", {"uid": "s", "run_start": "r", "time": 9.0, "exit_status": "success", "num_events": {"primary": 4}})


def event(seq):
    return (
        "event",
        {
            "uid": f"e{seq}",
            "descriptor": "d",
            "seq_num": seq,
            "time": 2.0 + seq,
            "data": {"x": float(seq)},
            "timestamps": {"x": 2.0 + seq},
        },
    )


DOCUMENTS = [START, DESCRIPTOR, *(event(seq) for seq in range(1, 5)), STOP]


class Run:
    """A run of which documents come when a test wants them to."""

    def __init__(self, service):
        self.service = service
        self.encoder = FrameEncoder()
        self.sent = 0

    def send(self, upto):
        """Send the documents that are not sent, up to ordinal `upto`."""
        some = DOCUMENTS[self.sent : upto]
        body = b"".join(frame(payload) for name, doc in some for payload in self.encoder.encode(name, doc))
        self.service.ingest.batch("r", self.sent, 0, body)
        self.sent += len(some)

    def merge(self, metadata, path=("r",), **more):
        patch = MetadataPatch(merge=True, metadata=metadata, **more)
        self.service.nodes.patch_metadata(path, patch, keep_revision=True)

    def patch(self, *operations, path=("r",), **more):
        patch = MetadataPatch(merge=False, metadata=list(operations) or None, **more)
        self.service.nodes.patch_metadata(path, patch, keep_revision=True)

    def node(self, path=("r",)):
        with self.service._catalog.read() as snapshot:
            return snapshot.node(path)

    @property
    def metadata(self):
        return self.node().metadata

    def damaged(self):
        check = Check("trees")
        compare_trees(self.service._catalog, check)
        return [f"{found.where}: {found.why}" for found in check.damaged]


@pytest.fixture
def service(catalog_url, tmp_path):
    with Catalog.open(catalog_url) as catalog:
        arrays = tmp_path / "arrays"
        arrays.mkdir()
        with Service(catalog, ArrayStore(arrays), Roots([], [])) as service:
            yield service


@pytest.fixture
def run(service):
    return Run(service)


def found(run, query):
    with run.service._catalog.read() as snapshot:
        return snapshot.child_keys((), query=query).keys


# --- what later documents do ---------------------------------------------------------------------


def test_what_people_wrote_in_the_middle_of_a_run_stays_when_it_ends(run):
    run.send(3)
    run.merge({"remark": "beam was low", "start": {"sample": {"name": "ruby"}}})
    run.send(7)

    assert run.metadata["remark"] == "beam was low"
    assert run.metadata["start"]["sample"] == {"name": "ruby", "mass": 3}
    assert run.metadata["stop"]["exit_status"] == "success"
    assert run.metadata["stop"]["num_events"] == {"primary": 4}


def test_a_key_that_both_wrote_has_the_value_of_people_and_its_neighbours_those_of_documents(run):
    run.send(3)
    run.merge({"stop": {"exit_status": "abort", "why": "shutter"}})
    run.send(7)

    assert run.metadata["stop"] == {**STOP[1], "exit_status": "abort", "why": "shutter"}


def test_a_key_that_people_removed_stays_away(run):
    run.send(3)
    run.merge({"start": {"sample": None}})
    run.patch({"op": "remove", "path": "/data_keys"}, path=("r", "primary"))
    run.send(7)

    assert "sample" not in run.metadata["start"]
    assert "data_keys" not in run.node(("r", "primary")).metadata
    assert "time" in run.metadata["start"]


def test_every_node_of_a_run_can_be_edited(run):
    run.send(7)
    paths = [("r",), ("r", "primary"), ("r", "primary", "internal")]
    for path in paths:
        run.merge({"seen": True}, path=path)
    run.service.rebuild()

    assert [run.node(path).metadata["seen"] for path in paths] == [True] * 3
    assert run.damaged() == []


def test_a_stream_is_edited_by_its_older_name_too(run):
    run.send(7)
    run.merge({"seen": True}, path=("r", "streams", "primary"))

    assert run.node(("r", "primary")).metadata["seen"] is True
    with pytest.raises(Unsupported, match="stands for the streams"):
        run.merge({"seen": True}, path=("r", "streams"))
    with pytest.raises(NotFound):
        run.merge({"seen": True}, path=("r", "streams", "other"))


def test_a_run_whose_uid_is_no_path_is_edited_like_any_other(service):
    uid, where = "2026/7", (segment("2026/7"),)
    body = b"".join(frame(payload) for payload in FrameEncoder().encode("start", {"uid": uid, "time": 1.0}))
    service.ingest.batch(uid, 0, 0, body)
    service.nodes.patch_metadata(where, MetadataPatch(True, {"remark": "good"}), keep_revision=True)
    assert service.rebuild().changed == []

    run = Run(service)
    assert run.node(where).metadata["remark"] == "good"
    assert run.damaged() == []
    service.nodes.delete(where, recursive=True, external_only=False)
    with pytest.raises(Conflict, match="was deleted"):
        service.ingest.batch(uid, 0, 0, body)


def test_specs_and_access_tags_stay_when_the_run_ends_and_when_it_is_rebuilt(run):
    run.send(3)
    specs = (Spec("Demo", "1.0"), BLUESKY_RUN)
    run.service.nodes.replace_metadata(("r",), None, specs, ("red",), keep_revision=False)
    run.send(7)
    run.service.rebuild()

    node = run.node()
    assert (node.specs, node.access_tags) == (specs, ("red",))
    assert node.metadata["stop"]["exit_status"] == "success"
    assert run.damaged() == []


# --- replacing -----------------------------------------------------------------------------------


def test_replaced_metadata_are_what_was_sent(run):
    run.send(7)
    changed = run.service.nodes.replace_metadata(("r",), {"only": {"this": 1}}, None, keep_revision=True)

    assert changed is None
    assert run.metadata == {"only": {"this": 1}}
    run.service.rebuild()
    assert run.metadata == {"only": {"this": 1}}


def test_a_replacement_read_before_the_run_ended_does_not_take_its_stop_document_away(run):
    run.send(6)
    read = {**run.metadata, "remark": "good"}
    run.send(7)
    changed = run.service.nodes.replace_metadata(("r",), read, None, keep_revision=True)

    assert changed == run.metadata == {"start": read["start"], "stop": STOP[1], "remark": "good"}


def test_a_patch_takes_the_stop_document_out_of_what_is_shown_and_nothing_else(run):
    run.send(7)
    before = run.service.verdicts.of(("r",), look=False)
    run.merge({"stop": None})

    assert "stop" not in run.metadata
    assert run.service.verdicts.of(("r",), look=False) == before
    assert before.state == "complete"
    assert list(run.service.documents.read(("r",)).documents)[-1][0] == "stop"


# --- the same, worked out again ------------------------------------------------------------------


def test_a_rebuild_changes_nothing_of_what_was_edited(run):
    run.send(3)
    run.merge({"remark": "one", "start": {"sample": {"name": "ruby", "mass": None}, "n": {}}})
    run.send(5)
    run.patch({"op": "replace", "path": "/remark", "value": None}, {"op": "add", "path": "/start/n/k", "value": [1]})
    run.send(7)
    run.patch({"op": "remove", "path": "/start/n/k"})
    shown = run.node()

    assert run.damaged() == []
    done = run.service.rebuild()
    assert (done.changed, done.failed) == ([], [])
    again = run.node()
    assert (again.metadata, again.overlay, again.id) == (shown.metadata, shown.overlay, shown.id)
    assert again.metadata["remark"] is None
    assert again.metadata["start"] == {**START[1], "sample": {"name": "ruby"}, "n": {}}


@pytest.mark.parametrize("lost", ["overlay", "metadata", "specs", "access_tags", "all"])
def test_an_edit_that_the_tree_lost_is_noticed_and_worked_out_again_from_the_log(run, lost):
    run.send(7)
    specs = [{"op": "add", "path": "/0", "value": {"name": "Demo", "version": None}}]
    run.patch({"op": "add", "path": "/remark", "value": "good"}, specs=specs)
    run.patch(access_tags=[{"op": "add", "path": "/-", "value": "red"}])
    shown = run.node()
    with run.service._catalog.write() as tx:
        if lost == "overlay":
            tx._session.connection.execute(sa.update(nodes).where(nodes.c.path == "r").values(overlay=None))
        elif lost == "all":
            tx.put_node(("r",), Family.CONTAINER, [], {}, None, origin="documents", run_uid="r", overlay=None)
        else:
            tx.set_metadata(("r",), **{lost: {} if lost == "metadata" else ()}, keep_revision=False)

    assert any(told.startswith("/r: its ") and "do not follow from the log" in told for told in run.damaged())
    assert run.service.rebuild().changed == ["r"]
    assert run.damaged() == []
    again = run.node()
    assert (again.metadata, again.specs, again.access_tags, again.overlay) == (
        shown.metadata,
        shown.specs,
        shown.access_tags,
        shown.overlay,
    )


def test_a_node_that_was_lost_comes_back_with_what_was_edited(run):
    run.send(7)
    run.merge({"remark": "good"}, path=("r", "primary"))
    with run.service._catalog.write() as tx:
        tx.delete_node(("r", "primary"), recursive=True)
    run.service.rebuild()

    assert run.node(("r", "primary")).metadata["remark"] == "good"


def test_edits_of_a_run_are_found_by_index(run):
    run.send(7)
    for i in range(50):
        run.merge({"remark": i})
    with run.service._catalog.read() as snapshot:
        records = list(snapshot.edits(("r",)))
        assert [record.action for record in records] == ["edit-metadata"] * 50
        assert [record.position for record in records] == sorted(record.position for record in records)
        assert list(snapshot.edits(("r", "primary"))) == list(snapshot.edits(("q",))) == []
        names = {index["name"] for index in sa.inspect(snapshot._session.connection).get_indexes(log.name)}
        assert log_edits.name in names


# --- revisions, search, refusals -------------------------------------------------------------------


def test_revisions_show_what_was_shown_before_each_edit(run):
    run.send(3)
    run.merge({"remark": "one"})
    run.send(7)
    run.merge({"remark": "two"})
    run.service.nodes.patch_metadata(("r",), MetadataPatch(True, {"remark": "three"}), keep_revision=False)
    run.service.rebuild()

    revisions, count = run.service.browse.revisions(("r",), offset=0, limit=10)
    assert count == 2
    assert [revision.metadata for revision in revisions] == [
        {"start": START[1]},
        {"start": START[1], "remark": "one", "stop": STOP[1]},
    ]
    run.service.nodes.delete_revision(("r",), 1)
    assert run.service.browse.revisions(("r",), offset=0, limit=10)[1] == 1


def test_search_sees_what_was_edited_and_not_what_it_replaced(run):
    run.send(3)
    run.merge({"remark": "walrus", "start": {"sample": {"name": "ruby"}}})
    run.send(7)

    assert found(run, q.Eq("start.sample.name", "ruby")) == ["r"]
    assert found(run, q.Eq("start.sample.name", "glass")) == []
    assert found(run, q.FullText("walrus")) == ["r"]
    assert found(run, q.FullText("glass")) == []
    assert found(run, q.Eq("stop.exit_status", "success")) == ["r"]


def test_an_edit_is_told_to_those_who_follow_and_changes_the_etag(run):
    run.send(7)
    with run.service._catalog.read() as snapshot:
        before, revision = snapshot.last_position(), snapshot.node(("r",)).revision
    run.merge({"remark": "good"})

    with run.service._catalog.read() as snapshot:
        assert [(told.what, told.path) for told in snapshot.changes(before)] == [("updated", ("r",))]
        assert snapshot.node(("r",)).revision == revision + 1


def test_an_edit_that_changes_nothing_is_not_logged(run):
    run.send(7)
    with run.service._catalog.read() as snapshot:
        before = snapshot.last_position()
    run.merge({"start": {"plan_name": "scan"}})

    with run.service._catalog.read() as snapshot:
        assert snapshot.last_position() == before
        assert snapshot.node(("r",)).overlay is None


def test_an_edit_does_not_make_a_silent_run_look_alive(run):
    run.send(3)
    with run.service._catalog.read() as snapshot:
        before = snapshot.run("r")
    run.merge({"remark": "good", "stop": {"exit_status": "success"}})

    with run.service._catalog.read() as snapshot:
        assert snapshot.run("r") == before


def test_structures_and_rows_of_a_run_are_not_written_to(run):
    run.send(7)
    with pytest.raises(MadeFromDocuments, match="can be edited, its structure and data cannot"):
        run.service.nodes.append_rows(("r", "primary", "internal"), 0, table_body())
    with pytest.raises(MadeFromDocuments):
        run.service.nodes.create(("r",), NewNode("more", Family.CONTAINER, {}, (), ()))
    with pytest.raises(MadeFromDocuments):
        run.service.nodes.delete(("r", "primary"), recursive=True, external_only=False)


def table_body():
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = pa.table({"seq_num": [9], "time": [1.0], "x": [1.0], "ts_x": [1.0]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("patch", "refusal"),
    [
        (MetadataPatch(False, [{"op": "remove", "path": "/nothing"}]), Conflict),
        (MetadataPatch(False, [{"op": "replace", "path": "", "value": 3}]), InvalidRequest),
        (MetadataPatch(True, [1]), InvalidRequest),
        (MetadataPatch(True, {"big": 2**70}), InvalidRequest),
        (MetadataPatch(True, None, specs=[{"name": "A"}, {"name": "A"}]), InvalidRequest),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(run, patch, refusal):
    run.send(7)
    before = run.node()
    with pytest.raises(refusal):
        run.service.nodes.patch_metadata(("r",), patch, keep_revision=True)
    assert run.node() == before
    assert run.service.browse.revisions(("r",), offset=0, limit=10)[1] == 0


def test_a_deleted_run_stays_deleted_with_all_that_was_written_into_it(run):
    run.send(7)
    run.merge({"remark": "good"})
    run.service.nodes.delete(("r",), recursive=True, external_only=False)
    run.service.rebuild()

    assert run.node() is None
    assert run.damaged() == []
    assert found(run, q.KeyPresent("remark")) == []


# --- at once ---------------------------------------------------------------------------------------


def test_edits_at_once_lose_no_key_while_documents_come(run):
    run.send(1)
    together = threading.Barrier(5)

    def edit(worker):
        together.wait()
        for i in range(6):
            run.merge({f"k{worker}-{i}": worker, "start": {f"k{worker}": i}})

    with ThreadPoolExecutor(4) as pool:
        edits = [pool.submit(edit, worker) for worker in range(4)]
        together.wait()
        for upto in range(2, 8):
            run.send(upto)
        for each in edits:
            each.result()

    assert {f"k{worker}-{i}" for worker in range(4) for i in range(6)} < set(run.metadata)
    assert {f"k{worker}": 5 for worker in range(4)}.items() <= run.metadata["start"].items()
    assert run.metadata["stop"] == STOP[1]
    assert run.damaged() == []


def test_patches_at_once_of_a_node_of_the_protocol_lose_no_key(service):
    service.nodes.create((), NewNode("box", Family.CONTAINER, {}, (), ()))
    together = threading.Barrier(4)

    def patch(worker):
        together.wait()
        for i in range(6):
            change = MetadataPatch(True, {f"k{worker}-{i}": worker})
            service.nodes.patch_metadata(("box",), change, keep_revision=True)

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(patch, worker) for worker in range(4)]:
            each.result()

    with service._catalog.read() as snapshot:
        assert len(snapshot.node(("box",)).metadata) == 24
        assert snapshot.count_revisions(("box",)) == 24


# --- the catalogue alone ---------------------------------------------------------------------------


def test_a_node_put_again_keeps_its_edits_unless_others_are_given(catalog):
    def put(metadata, **more):
        with catalog.write() as tx:
            return tx.put_node(("n",), Family.CONTAINER, [], metadata, None, origin="documents", **more)

    put({"a": 1})
    edit = Overlay(difference({"a": 1}, {"a": 1, "b": 2}), access_tags=("red",))
    with catalog.write() as tx:
        assert tx.edit_node(("n",), edit).metadata == {"a": 1, "b": 2}

    assert put({"a": 3}).metadata == {"a": 3, "b": 2}
    other = Overlay(Within({"c": Put(3)}))
    assert put({"a": 3}, overlay=other, access_tags=()).metadata == {"a": 3, "c": 3}
    with catalog.read() as snapshot:
        assert snapshot.node(("n",)).overlay == other
        assert snapshot.node(("n",)).access_tags == ()
    assert put({"a": 3}, overlay=None).metadata == {"a": 3}


def test_a_catalogue_without_edits_is_given_a_place_for_them(catalog_url):
    with Catalog.open(catalog_url) as catalog, catalog.write() as tx:
        tx.put_node(("n",), Family.CONTAINER, [], {"a": 1}, None, origin="documents")
    database = connect(catalog_url, create=False)
    with database.writing() as session:
        session.connection.exec_driver_sql("DROP INDEX log_edits")
        session.connection.exec_driver_sql("ALTER TABLE nodes DROP COLUMN overlay")
        session.connection.exec_driver_sql("UPDATE flystore_schema SET version = 2")
    _migrations.migrate(database, create=False)
    database.close()

    with Catalog.open(catalog_url) as catalog:
        with catalog.write() as tx:
            tx.edit_node(("n",), Overlay(difference({"a": 1}, {"b": 2})))
        with catalog.read() as snapshot:
            assert snapshot.node(("n",)).metadata == {"b": 2}
            names = {index["name"] for index in sa.inspect(snapshot._session.connection).get_indexes(log.name)}
    assert log_edits.name in names
