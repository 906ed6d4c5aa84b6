"""Each kind of document makes the nodes, names and columns that readers look for.

If these fail, a value that arrived cannot be found, or the whole run breaks on one odd document.
"""

import math

import numpy as np
import pyarrow as pa
import pytest

from flystore.model.errors import Damaged
from flystore.model.structures import SEGMENT_ARRAY_MIMETYPE, SEGMENTS_MIMETYPE, Spec, TableStructure
from flystore.projection import AppendRows, PutNode, RunState, advance, verdict
from flystore.testing.documents import RunDocuments, external, internal, numbered


def project(run):
    state, changes = advance(RunState.new(run.uid), numbered(run.documents))
    nodes = {change.path[1:]: change for change in changes if isinstance(change, PutNode)}
    rows = {change.path[1]: change.batch for change in changes if isinstance(change, AppendRows)}
    return state, nodes, rows


def kinds(state):
    return [note.kind for note in verdict(state).notes]


def schema_of(node):
    return TableStructure.from_wire(node.structure).schema


def test_specs_of_the_start_document_come_before_the_runs_own():
    run = RunDocuments(tiled_specs=["mine", {"name": "other", "version": 2}, 7], tiled_access_tags=["x"])
    state, nodes, _ = project(run)
    assert nodes[()].specs == (Spec("mine"), Spec("other", "2"), Spec("BlueskyRun", "3.0"))
    assert nodes[()].metadata == {"start": {"uid": "run", "time": 1000.0}}
    assert kinds(state) == ["bad-spec"]


def test_metadata_is_a_view_that_fits_json():
    run = RunDocuments(
        nan=math.nan, inf=-math.inf, big=2**60, whole=-1e300, array=np.arange(2), tags={"b", "a"}, raw=b"ab",
        deep={1: (np.float32(0.5), np.int64(2**60), np.bool_(True))},
    )  # fmt: skip
    _, nodes, _ = project(run)
    start = nodes[()].metadata["start"]
    assert start["nan"] is None
    assert start["inf"] == -1.7976e308
    assert start["big"] == 2**53 - 1
    assert start["whole"] == -(2**53 - 1)
    assert (start["array"], start["tags"], start["raw"]) == ([0, 1], ["a", "b"], [97, 98])
    assert start["deep"] == {"1": [0.5, 2**53 - 1, True]}


def test_a_stream_shows_its_first_descriptor_and_later_configuration():
    run = RunDocuments()
    stream = run.stream(m=internal(units="mm"))
    run.documents[-1][1]["object_keys"] = {"motor": ["m"]}
    stream.describe(m=internal(units="mm", object_name="motor"), extra=internal("integer"))
    run.documents[-1][1]["configuration"] = {"motor": {"data": {"v": 2}, "data_keys": {"v": {"dtype": "integer"}}}}
    _, nodes, _ = project(run)
    metadata = nodes[("primary",)].metadata

    assert nodes[("primary",)].specs == (Spec("BlueskyEventStream", "3.0"), Spec("composite"))
    assert set(metadata) == {"uid", "time", "data_keys", "configuration", "hints", "_config_updates"}
    assert metadata["data_keys"]["m"] == {
        "source": "test", "dtype": "number", "shape": [], "units": "mm", "dtype_numpy": "<f8", "object_name": "motor",
    }  # fmt: skip
    assert metadata["data_keys"]["extra"]["dtype_numpy"] == "<i8"
    (update,) = metadata["_config_updates"]
    assert update["uid"] == stream.descriptor
    assert update["configuration"]["motor"]["data_keys"]["v"]["dtype_numpy"] == "<i8"
    assert "data_keys" not in update


def test_a_data_key_declared_differently_is_kept_in_the_update():
    run = RunDocuments()
    stream = run.stream(m=internal())
    stream.describe(m=internal("string"))
    state, nodes, _ = project(run)
    (update,) = nodes[("primary",)].metadata["_config_updates"]
    assert update["data_keys"]["m"]["dtype"] == "string"
    assert kinds(state) == ["changed-key"]


def test_the_table_comes_with_the_first_event_and_lists_columns_in_order():
    run = RunDocuments()
    stream = run.stream(b=internal(), a=internal("string"))
    _, nodes, _ = project(run)
    assert ("primary", "internal") not in nodes

    stream.event(b=1.5, a="x")
    _, nodes, rows = project(run)
    node = nodes[("primary", "internal")]
    assert schema_of(node).names == ["seq_num", "time", "b", "a", "ts_b", "ts_a"]
    assert list(node.metadata) == ["b", "a"]
    assert node.data_source.mimetype == SEGMENTS_MIMETYPE
    assert node.data_source.parameters == {"table_name": "run/primary", "dataset_id": 0}
    assert rows["primary"].schema.names == ["seq_num", "time", "b", "a", "ts_b", "ts_a"]


def test_a_key_missing_at_first_or_later_is_null_in_those_rows():
    run = RunDocuments()
    stream = run.stream(a=internal(), b=internal())
    stream.event(a=1)
    stream.event(a=2.5, b=1)
    stream.event(b=2)
    _, nodes, rows = project(run)
    assert rows["primary"].column("a").to_pylist() == [1.0, 2.5, None]
    assert rows["primary"].column("b").to_pylist() == [None, 1, 2]
    assert schema_of(nodes[("primary", "internal")]).field("a").type == pa.float64()


def test_a_key_that_a_later_descriptor_adds_or_none_declares_is_kept():
    run = RunDocuments()
    stream = run.stream(a=internal())
    stream.event(a=1)
    stream.describe(a=internal(), b=internal("string"))
    stream.event(a=2, b="x", c=3)
    state, nodes, rows = project(run)
    assert rows["primary"].column("b").to_pylist() == [None, "x"]
    assert rows["primary"].column("c").to_pylist() == [None, 3]
    assert set(nodes[("primary", "internal")].metadata) == {"a", "b"}
    assert "undeclared" in kinds(state)


def test_rows_go_on_from_batch_to_batch_and_the_table_is_put_again_only_if_it_changed():
    run = RunDocuments()
    stream = run.stream(a=internal())
    for value in (1, 2, 2.5, 3):
        stream.event(a=value)
    ordinals = numbered(run.documents)
    state, _ = advance(RunState.new("run"), ordinals[:3])
    state, changes = advance(state, ordinals[3:4])
    assert [(change.path, change.first_row) for change in changes] == [(("run", "primary"), 1)]
    state, (table, rows) = advance(state, ordinals[4:5])
    assert schema_of(table).field("a").type == pa.float64()
    assert (rows.first_row, rows.batch.num_rows) == (2, 1)
    _, changes = advance(state, ordinals[5:])
    assert [type(change) for change in changes] == [AppendRows]


def test_reserved_and_unsafe_names_are_mapped_and_noted():
    run = RunDocuments()
    keys = ["time", "x", "ts_x", "a/b", "Det", "det", "internal"]
    stream = run.stream("str/eam", **{key: internal() for key in keys})
    stream.event(**{key: float(n) for n, key in enumerate(keys)})
    state, nodes, rows = project(run)
    batch = rows["str~2Feam"]
    stored = ["x", "ts_x~~2", "a~2Fb", "Det", "det~~2", "internal~~2", "time_"]
    assert batch.schema.names == ["seq_num", "time", *stored, *(f"ts_{name}" for name in stored)]
    assert batch.column("time_").to_pylist() == [0.0]
    assert set(nodes[("str~2Feam",)].metadata["data_keys"]) == set(stored)
    assert sorted(kinds(state)) == ["renamed"] * 5 + ["renamed-stream"]
    assert len(nodes[()].metadata["notes"]) == 6


def test_an_external_key_called_internal_leaves_the_table_alone():
    run = RunDocuments()
    stream = run.stream(m=internal(), internal=external())
    stream.event(m=1.0)
    stream.frames("internal", 0, 1)
    _, nodes, _ = project(run)
    assert nodes[("primary", "internal")].family == "table"
    assert nodes[("primary", "internal~~2")].family == "array"


def test_a_table_with_too_many_columns_is_cut_by_the_alphabet():
    run = RunDocuments()
    keys = [f"k{n:04d}" for n in range(600)]
    stream = run.stream(**{key: internal() for key in keys})
    stream.event(**dict.fromkeys(keys, 1.0))
    stream.event(**dict.fromkeys([*keys, "later"], 1.0))
    _, nodes, rows = project(run)
    tables = {path[1]: schema_of(node).names for path, node in nodes.items() if node.family == "table"}
    columns = ["seq_num", "time", *keys, "later", *(f"ts_{key}" for key in [*keys, "later"])]
    assert list(tables) == ["internal_0", "internal_1"]
    assert tables["internal_0"] + tables["internal_1"] == sorted(columns)
    assert len(tables["internal_0"]) == 602
    assert nodes[("primary", "internal_1")].data_source.parameters["table_name"] == "run/primary"
    assert rows["primary"].num_columns == len(columns)


def test_an_array_valued_key_is_a_node_on_its_column():
    run = RunDocuments()
    stream = run.stream(small=internal("array", [16]), large=internal("array", [17]))
    stream.event(small=[0.0] * 16, large=[0.0] * 17)
    _, nodes, _ = project(run)
    node = nodes[("primary", "large")]
    assert ("primary", "small") not in nodes
    assert node.data_source.mimetype == SEGMENT_ARRAY_MIMETYPE
    assert node.data_source.parameters == {"column": "large"}
    names = schema_of(nodes[("primary", "internal")]).names
    assert "small" in names
    assert "large" not in names
    assert "ts_large" in names


def test_external_values_that_are_in_the_event_go_to_the_table():
    run = RunDocuments()
    stream = run.stream(img=external([2, 2]))
    stream.event(img=[[1, 2], [3, 4]], filled={"img": True})
    stream.event(img=[[5, 6], [7, 8]], filled={"img": "moved-id"})
    state, nodes, rows = project(run)
    assert rows["primary"].column("img").to_pylist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert ("primary", "img") not in nodes
    run.stop()
    assert verdict(project(run)[0]).state == "complete"
    assert kinds(state) == []


def test_timestamps_of_external_keys_are_kept():
    run = RunDocuments()
    stream = run.stream(img=external([2, 2]))
    stream.event(img="datum", filled={"img": False})
    _, _, rows = project(run)
    assert rows["primary"].schema.names == ["seq_num", "time", "ts_img"]


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        ({"seq_num": None}, "bad-seq-num"),
        ({"seq_num": "3"}, "bad-seq-num"),
        ({"time": None}, "bad-time"),
        ({"descriptor": "nowhere"}, "unknown-descriptor"),
    ],
)
def test_an_event_with_a_wrong_field_is_noted(edit, note):
    run = RunDocuments()
    stream = run.stream(a=internal())
    stream.event(a=1)
    stream.event(a=2).update(edit)
    stream.event(a=3)
    state, _, rows = project(run)
    assert kinds(state) == [note]
    assert rows["primary"].column("a").to_pylist() == [1, 3] if note == "unknown-descriptor" else [1, 2, 3]


def test_an_event_without_a_seq_num_counts_on():
    run = RunDocuments()
    stream = run.stream(a=internal())
    stream.event(5, a=1)
    del stream.event(a=2)["seq_num"]
    _, _, rows = project(run)
    assert rows["primary"].column("seq_num").to_pylist() == [5, 6]


def test_documents_after_the_stop_and_a_second_one_are_noted():
    run = RunDocuments()
    stream = run.stream(a=internal())
    run.stop("abort")
    run.stop("success")
    stream.event(a=1)
    run.add("start", {"uid": "run", "time": 1.0})
    run.add("telegram", {})
    state, nodes, rows = project(run)
    assert nodes[()].metadata["stop"]["exit_status"] == "abort"
    assert rows["primary"].num_rows == 1
    assert kinds(state) == ["after-stop", "second-start", "second-stop", "unknown-document"]


def test_a_run_that_begins_in_the_middle_has_its_nodes():
    run = RunDocuments()
    run.stream(a=internal()).event(a=1)
    del run.documents[0]
    state, nodes, _ = project(run)
    assert nodes[()].metadata == {}
    assert ("primary", "internal") in nodes
    assert kinds(state) == ["no-start"]


def test_notes_stay_few_however_odd_a_run_is():
    run = RunDocuments()
    stream = run.stream(a=internal())
    for n in range(1000):
        stream.event(**{f"undeclared{n}": n})
    for _ in range(5000):
        stream.event(a=1)["descriptor"] = "nowhere"
    state, _, _ = project(run)
    assert len(verdict(state).notes) <= 501
    assert {note.kind: note.count for note in verdict(state).notes}["more"] >= 500


def test_the_state_does_not_grow_with_events_and_frames():
    def size(events):
        run = RunDocuments()
        stream = run.stream(a=internal(), img=external())
        for n in range(events):
            stream.event(a=float(n))
            stream.frames("img", n, n + 1)
        return len(project(run)[0].to_bytes())

    assert size(2000) <= size(200) + 20


def test_templates_of_the_frame_decoder_are_kept():
    state = RunState.new("run").with_templates({1: b"x"})
    state, _ = advance(state, numbered(RunDocuments().documents))
    assert RunState.from_bytes(state.to_bytes()).templates == {1: b"x"}


def test_a_state_of_another_version_or_damaged_is_told():
    with pytest.raises(Damaged, match="rebuild"):
        RunState.from_bytes(b"nonsense")
    import msgspec

    newer = msgspec.structs.replace(RunState.new("run"), version=99)
    with pytest.raises(Damaged, match="version 99"):
        RunState.from_bytes(newer.to_bytes())


def test_a_uid_that_is_no_path_segment_is_escaped():
    run = RunDocuments("a/b")
    _, changes = advance(RunState.new("a/b"), numbered(run.documents))
    assert changes[0].path == ("a~2Fb",)
