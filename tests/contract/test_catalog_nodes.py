"""Nodes are found where they were put, keep their identity, and go away whole.

If these fail, an address leads to the wrong data, or a deleted node leaves parts behind.
"""

import msgspec
import numpy as np
import pytest

from flystore.catalog import Observation, Run
from flystore.model import queries as q
from flystore.model.errors import Conflict, InvalidRequest, NotFound
from flystore.model.structures import BLUESKY_RUN, Asset, DataSource, Family, Management, Spec

BOX = Family.CONTAINER
STRUCTURE = {"shape": [2], "chunks": [[2]]}


def put(tx, *path, family=BOX, specs=(), metadata=None, **options):
    structure = None if family is BOX else STRUCTURE
    return tx.put_node(path, family, specs, metadata or {}, structure, **options)


def source(*assets, **changes):
    fields = {"family": Family.ARRAY, "mimetype": "application/x-hdf5", "structure": STRUCTURE, "assets": assets}
    return DataSource(**{**fields, **changes})


def test_a_node_comes_back_as_it_was_put(catalog, ticks):
    metadata = {"z": 1, "a": {"é\0": [1, 2.5, None, True]}, "long": "x" * 5_000}
    with catalog.write() as tx:
        put(tx, "box")
        made = tx.put_node(
            ("box", "arr"),
            Family.ARRAY,
            [Spec("A", "1"), Spec("B")],
            metadata,
            STRUCTURE,
            external=b"\0map",
            origin="documents",
            run_uid="u1",
            access_tags=["t"],
        )

    with catalog.read() as snapshot:
        found = snapshot.node(("box", "arr"))
        assert snapshot.node_by_id(made.id) == found

    assert found == made
    assert found.path == ("box", "arr")
    assert found.key == "arr"
    assert found.family is Family.ARRAY
    assert found.specs == (Spec("A", "1"), Spec("B"))
    assert found.metadata == metadata
    assert list(found.metadata) == ["z", "a", "long"]
    assert found.structure == STRUCTURE
    assert found.external == b"\0map"
    assert (found.origin, found.run_uid, found.access_tags) == ("documents", "u1", ("t",))
    assert found.time_created == found.time_updated == ticks.now


def test_metadata_of_devices_is_stored_as_json(catalog):
    odd = {"n": np.float32(1.5), "a": np.arange(3), "nan": float("nan"), "t": (1, 2), "s": "\ud800", 5: np.bool_(True)}
    with catalog.write() as tx:
        put(tx, "n", metadata=odd)

    with catalog.read() as snapshot:
        found = snapshot.node(("n",)).metadata
    assert found == {"n": 1.5, "a": [0, 1, 2], "nan": None, "t": [1, 2], "s": "\ud800", "5": True}


def test_the_root_is_a_node_of_its_own(catalog):
    with catalog.write() as tx:
        root = tx.put_node((), BOX, [Spec("CatalogOfBlueskyRuns", "3.0")], {"title": "beamline"}, None)
        with pytest.raises(InvalidRequest, match="root"):
            tx.delete_node((), recursive=True)

    with catalog.read() as snapshot:
        assert snapshot.node(()) == root
        assert (root.path, root.key, root.parent_id) == ((), "", None)
        assert snapshot.children(()).nodes == []


def test_putting_a_node_again_keeps_its_id_and_birth_and_moves_its_revision(catalog, ticks):
    with catalog.write() as tx:
        first = put(tx, "n", metadata={"v": 1}, access_tags=["t"])
    ticks.now += 5
    with catalog.write() as tx:
        same = put(tx, "n", metadata={"v": 1})
        changed = put(tx, "n", metadata={"v": 2})

    assert same == first
    assert (changed.id, changed.time_created) == (first.id, first.time_created)
    assert changed.time_updated == ticks.now
    assert changed.revision == first.revision + 1
    assert changed.access_tags == ("t",)
    with catalog.read() as snapshot:
        assert snapshot.node(("n",)) == changed
        assert snapshot.count((), q.Eq("v", 1)) == 0
        assert snapshot.count((), q.Eq("v", 2)) == 1


def test_a_collision_names_the_path(catalog):
    with catalog.write() as tx:
        put(tx, "a")
        put(tx, "a", "b")
        with pytest.raises(Conflict) as collision:
            put(tx, "a", "b", exist_ok=False)
        with pytest.raises(Conflict) as foreign:
            put(tx, "a", "b", origin="documents", run_uid="u")

    assert str(collision.value) == str(foreign.value) == "/a/b"


def test_a_node_needs_a_container_to_be_in(catalog):
    with catalog.write() as tx:
        put(tx, "array", family=Family.ARRAY)
        with pytest.raises(NotFound, match="nowhere"):
            put(tx, "nowhere", "n")
        with pytest.raises(Conflict, match="no children"):
            put(tx, "array", "n")


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "a\0b", "\ud800", "\U0010ffff", "k" * 3_000])
def test_a_key_that_cannot_be_addressed_is_refused(catalog, key):
    with catalog.write() as tx, pytest.raises(InvalidRequest):
        put(tx, key)


@pytest.mark.parametrize("key", ["a b", "ключ", "%2F", "a.b", "'", '"', "*", "_%", "..."])
def test_a_key_of_any_other_kind_is_found_again(catalog, key):
    with catalog.write() as tx:
        put(tx, key)
        put(tx, key, "child")

    with catalog.read() as snapshot:
        assert snapshot.node((key, "child")).path == (key, "child")
        assert snapshot.child_keys(()).keys == [key]
        assert [node.key for node in snapshot.children((), query=q.Lookup(key)).nodes] == [key]


def test_ids_are_never_used_again(catalog):
    with catalog.write() as tx:
        first = put(tx, "n")
    with catalog.write() as tx:
        tx.delete_node(("n",))
    with catalog.write() as tx:
        second = put(tx, "n")

    assert second.id > first.id


def test_several_nodes_are_read_at_once_in_the_order_asked_for(catalog):
    with catalog.write() as tx:
        ids = {key: put(tx, key).id for key in "abc"}

    with catalog.read() as snapshot:
        assert [node.key for node in snapshot.nodes([("c",), ("nope",), ("a",)])] == ["c", "a"]
        assert [node.key for node in snapshot.nodes_by_id([ids["b"], 0, ids["a"]])] == ["b", "a"]
        assert snapshot.nodes([]) == []


def test_a_changed_node_keeps_what_was_before_as_revisions(catalog, ticks):
    with catalog.write() as tx:
        put(tx, "n", metadata={"v": 1}, specs=[Spec("A")])
    for now, change in ((2_000.0, {"metadata": {"v": 2}}), (3_000.0, {"specs": []}), (4_000.0, {"access_tags": ["t"]})):
        ticks.now = now
        with catalog.write() as tx:
            tx.set_metadata(("n",), **change)
    with catalog.write() as tx:
        tx.set_metadata(("n",), metadata={"v": 3}, keep_revision=False)
        tx.delete_revision(("n",), 2)
        with pytest.raises(NotFound, match="revision 2"):
            tx.delete_revision(("n",), 2)

    with catalog.read() as snapshot:
        node = snapshot.node(("n",))
        kept = snapshot.revisions(("n",))
        assert snapshot.count_revisions(("n",)) == 2
        assert snapshot.revisions(("n",), offset=1, limit=1) == kept[1:]
    assert (node.metadata, node.specs, node.access_tags) == ({"v": 3}, (), ("t",))
    assert [(old.number, old.metadata, old.specs, old.time_updated) for old in kept] == [
        (1, {"v": 1}, (Spec("A"),), 1_000.0),
        (3, {"v": 2}, (), 3_000.0),
    ]


def test_changing_what_is_not_there_is_not_found(catalog):
    with catalog.write() as tx:
        for change in (tx.set_metadata, tx.delete_node):
            with pytest.raises(NotFound, match="nope"):
                change(("nope",))
        with pytest.raises(NotFound):
            tx.set_structure(("nope",), None)


def test_a_structure_can_grow(catalog):
    with catalog.write() as tx:
        before = put(tx, "n", family=Family.ARRAY)
        after = tx.set_structure(("n",), {"shape": [3]})

    assert after.structure == {"shape": [3]}
    assert after.revision > before.revision


def test_a_data_source_comes_back_with_ids_and_assets_in_order(catalog):
    files = [Asset("file:///b", num=1), Asset("file:///a", num=0, size=7), Asset("file:///d", True, "data_uri")]
    given = source(*files, parameters={"dataset": "/x"}, properties={"chunks": [[2]]})
    with catalog.write() as tx:
        node = put(tx, "n", family=Family.ARRAY)
        stored = tx.put_data_source(node.id, given)

    with catalog.read() as snapshot:
        found = snapshot.data_source(node.id)
        assert snapshot.data_source_by_id(found.id) == (("n",), found)
        assert snapshot.data_sources([node.id, 0]) == {node.id: found}
        assert snapshot.data_source(0) is None
        assert snapshot.data_source_by_id(0) is None
    assert found == stored
    assert (found.mimetype, found.parameters, found.properties) == (
        "application/x-hdf5",
        {"dataset": "/x"},
        {"chunks": [[2]]},
    )
    assert [(a.data_uri, a.num, a.size, a.is_directory) for a in found.assets] == [
        ("file:///d", None, None, True),
        ("file:///a", 0, 7, False),
        ("file:///b", 1, None, False),
    ]
    assert None not in {asset.id for asset in found.assets}


def test_assets_merge_by_parameter_and_number_and_the_first_stays(catalog):
    with catalog.write() as tx:
        node = put(tx, "n", family=Family.ARRAY)
        first = tx.put_data_source(node.id, source(Asset("file:///a", num=0)))
        again = tx.put_data_source(
            node.id, source(Asset("file:///other", num=0), Asset("file:///b", num=1), id=first.id, structure={"n": 2})
        )

    assert again.id == first.id
    assert again.structure == {"n": 2}
    assert again.assets[0] == first.assets[0]
    assert [asset.data_uri for asset in again.assets] == ["file:///a", "file:///b"]


def test_a_data_source_of_another_node_is_not_taken_over(catalog):
    with catalog.write() as tx:
        one, two = put(tx, "one", family=Family.ARRAY), put(tx, "two", family=Family.ARRAY)
        mine = tx.put_data_source(one.id, source())
        for node in (two, one):
            with pytest.raises(NotFound, match="does not belong"):
                tx.put_data_source(node.id, source(id=mine.id + (node is one)))


def test_how_a_tree_is_managed_is_told(catalog):
    with catalog.write() as tx:
        put(tx, "box")
        tx.put_data_source(put(tx, "box", "a", family=Family.ARRAY).id, source())
        tx.put_data_source(put(tx, "box", "b", family=Family.ARRAY).id, source(management=Management.WRITABLE))
        put(tx, "box0")

    with catalog.read() as snapshot:
        assert snapshot.managements(("box",)) == {Management.EXTERNAL, Management.WRITABLE}
        assert snapshot.managements(("box", "a")) == {Management.EXTERNAL}
        assert snapshot.managements(()) == {Management.EXTERNAL, Management.WRITABLE}
        assert snapshot.managements(("box0",)) == set()


def test_the_last_observation_is_kept_with_its_time(catalog):
    with catalog.write() as tx:
        node = put(tx, "n", family=Family.ARRAY)
        tx.save_observation(Observation(node.id, 1.0, "missing", detail="no such file"))
        last = Observation(node.id, 2.0, "readable", rows=7, fingerprint={"inode": 2**40, "size": 9})
        of_asset = Observation(node.id, 1.5, "readable", rows=3, num=0)
        tx.save_observation(last)
        tx.save_observation(of_asset)

    with catalog.read() as snapshot:
        assert snapshot.observation(node.id) == last
        assert snapshot.observation(node.id, 0) == of_asset
        assert snapshot.observation(node.id, 1) is None
        assert snapshot.observations(node.id) == [last, of_asset]


def test_a_node_with_children_goes_only_with_them(catalog):
    with catalog.write() as tx:
        for path in (("a",), ("a", "b"), ("a", "b", "c"), ("a0",), ("a-",)):
            put(tx, *path, metadata={"word": "walrus"})
        with pytest.raises(Conflict, match="recursive"):
            tx.delete_node(("a",))
        assert tx.delete_node(("a",), recursive=True) == 3

    with catalog.read() as snapshot:
        assert snapshot.child_keys(()).keys == ["a0", "a-"]
        assert snapshot.node(("a", "b", "c")) is None
        assert snapshot.count((), q.FullText("walrus")) == 2
        assert snapshot.count((), q.Eq("word", "walrus")) == 2


def test_what_belongs_to_a_deleted_node_is_gone(catalog):
    with catalog.write() as tx:
        put(tx, "u", specs=[BLUESKY_RUN], origin="documents", run_uid="u")
        arr = put(tx, "u", "arr", family=Family.ARRAY, origin="documents", run_uid="u")
        stored = tx.put_data_source(arr.id, source(Asset("file:///a", num=0)))
        tx.save_observation(Observation(arr.id, 1.0, "readable"))
        tx.append_segment("u/primary", 0, 2, b"rows")
        tx.append_segment("u0/primary", 0, 2, b"rows")
        tx.append_documents("u", 0, 1, 3, b"h" * 16, b"body", 1.0)
        tx.save_run(Run("u", "documents", 1, 1, 3, b"state", True, 1.0, verdict="running"))
    with catalog.write() as tx:
        tx.delete_node(("u",), recursive=True)

    with catalog.read() as snapshot:
        assert snapshot.data_source_by_id(stored.id) is None
        assert snapshot.observation(arr.id) is None
        assert snapshot.rows("u/primary") == 0
        assert snapshot.rows("u0/primary") == 2
        tombstone = snapshot.run("u")
        assert (tombstone.deleted, tombstone.open, tombstone.node_id) == (True, False, None)
        assert (tombstone.watermark, tombstone.epoch) == (1, 3)
        assert [record.body for record in snapshot.documents("u")] == [b"body"]


def test_an_exception_takes_everything_back(catalog):
    with catalog.write() as tx:
        put(tx, "kept")

    def fail(tx):
        put(tx, "lost", metadata={"v": 1})
        tx.append_operation(("lost",), "create", b"", 1.0)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), catalog.write() as tx:
        fail(tx)

    with catalog.read() as snapshot:
        assert snapshot.child_keys(()).keys == ["kept"]
        assert snapshot.count(()) == 1
        assert snapshot.last_position() == 1
        assert snapshot.count((), q.Eq("v", 1)) == 0


def test_a_savepoint_takes_back_its_part_and_the_rest_is_stored(catalog):
    def fail(tx):
        put(tx, "lost", metadata={"word": "walrus"}, run_uid="u")
        tx.append_documents("u", 1, 1, 0, b"h" * 16, b"lost", 1.0)
        tx.append_segment("lost", 0, 1, b"")
        raise RuntimeError("on purpose")

    with catalog.write() as tx:
        put(tx, "before")
        tx.append_documents("u", 0, 1, 0, b"h" * 16, b"kept", 1.0)
        with pytest.raises(RuntimeError, match="on purpose"), tx.savepoint():
            fail(tx)
        with tx.savepoint():
            put(tx, "within")
        put(tx, "after")

    with catalog.read() as snapshot:
        assert snapshot.child_keys(()).keys == ["before", "within", "after"]
        assert snapshot.count(()) == 3
        assert [record.body for record in snapshot.documents("u")] == [b"kept"]
        assert {change.path for change in snapshot.changes()} == {("before",), ("within",), ("after",)}
        assert snapshot.count((), q.FullText("walrus")) == 0
        assert snapshot.rows("lost") == 0


def test_a_failed_statement_within_a_savepoint_can_be_survived(catalog):
    with catalog.write() as tx:
        tx.append_segment("s", 0, 2, b"")
        with pytest.raises(Conflict), tx.savepoint():
            tx._store_segment("s", next(tx.segments("s")))
        put(tx, "after")

    with catalog.read() as snapshot:
        assert snapshot.child_keys(()).keys == ["after"]
        assert snapshot.rows("s") == 2


def test_a_transaction_within_a_transaction_is_refused_at_once(catalog):
    with catalog.write(), pytest.raises(RuntimeError, match="writing already"), catalog.write():
        pass
    with catalog.write() as tx:
        put(tx, "n")


def test_writing_to_the_data_of_a_node_shows_in_its_revision_and_nowhere_else(catalog, ticks):
    with catalog.write() as tx:
        put(tx, "box", family=Family.ARRAY)
        before = put(tx, "other", family=Family.ARRAY)
        made = tx.node(("box",))
    ticks.now += 5.0
    with catalog.write() as tx:
        tx.note_data(made.id)
        tx.note_data(made.id)
    with catalog.read() as snapshot:
        assert snapshot.node(("box",)) == msgspec.structs.replace(made, revision=made.revision + 2)
        assert snapshot.node(("other",)) == before
