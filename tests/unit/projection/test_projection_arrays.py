"""Arrays in Events come out as the arrays they were, row beside row.

If these fail, waveforms and images taken with each point are cut, shifted against the other columns, or padded with
zeros that look like data.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.structures import ArrayStructure, RaggedStructure
from flystore.projection import (
    AppendRows,
    PutNode,
    RunState,
    advance,
    array_of_column,
    ragged_of_column,
    verdict,
)
from flystore.testing.documents import RunDocuments, array_values, batchings, internal, numbered


def project(batches):
    state, changes = RunState.new("run"), []
    for batch in batches:
        state, new = advance(state, batch)
        changes += new
    nodes = {change.path[1:]: change for change in changes if isinstance(change, PutNode)}
    pieces = [change.batch for change in changes if isinstance(change, AppendRows)]
    return state, nodes, pieces


def column_of(pieces, name):
    import pyarrow as pa

    return [piece.column(name) if name in piece.schema.names else pa.nulls(piece.num_rows) for piece in pieces]


def array_run(values, data_key):
    run = RunDocuments()
    stream = run.stream(wave=data_key)
    for value in values:
        stream.event(**({} if value is ... else {"wave": value}))
    return run.documents


def shown(values, data_key, batches=None):
    documents = array_run(values, data_key)
    state, nodes, pieces = project(batches or [numbered(documents)])
    node = nodes[("primary", "wave")]
    structure = ArrayStructure.from_wire(node.structure)
    return state, node, structure, array_of_column(column_of(pieces, "wave"), structure)


def kinds(state):
    return {note.kind for note in verdict(state).notes}


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i4", "|u1", ">i2", "|b1"])
def test_rows_that_agree_come_out_in_the_declared_type(dtype):
    values = np.arange(60).reshape(3, 4, 5).astype(dtype)
    key = internal("array", [4, 5], dtype_numpy=dtype)
    for rows in (list(values), [row.tolist() for row in values]):
        state, node, structure, array = shown(rows, key)
        assert array.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(array, values)
        assert structure.shape == (3, 4, 5)
        assert structure.dims == ("time", "dim_int_1", "dim_int_2")
        assert node.metadata["dtype_numpy"] == str(np.dtype(dtype))
        assert kinds(state) == {"stored-apart"}


def test_shorter_rows_are_padded_with_nan_and_noted():
    state, _, structure, array = shown([[1, 2, 3], [4], []], internal("array", [20], dtype_numpy="<i8"))
    nan = np.nan
    np.testing.assert_array_equal(array, [[1, 2, 3], [4, nan, nan], [nan, nan, nan]])
    assert structure.numpy_dtype == "<f8"
    assert {"padded"} <= kinds(state)


def test_an_event_without_a_value_keeps_its_row():
    state, _, _, array = shown([[1, 2], ..., None, [3, 4]], internal("array", [20], dtype_numpy="<i8"))
    nan = np.nan
    np.testing.assert_array_equal(array, [[1, 2], [nan, nan], [nan, nan], [3, 4]])
    assert {"row-missing"} <= kinds(state)


def test_values_that_do_not_fit_the_declared_type_are_not_cut():
    state, _, _, array = shown([[1, 300]] * 2, internal("array", [17], dtype_numpy="|u1"))
    assert array.tolist() == [[1, 300]] * 2
    assert "declared-otherwise" in kinds(state)
    _, _, _, array = shown([[1.5, 2]] * 2, internal("array", [17], dtype_numpy="<i4"))
    assert array.tolist() == [[1.5, 2.0]] * 2


def test_text_longer_than_declared_is_not_cut():
    key = internal("array", [2], dtype_numpy="<U3")
    state, _, structure, array = shown([["a", "bcde"], ["", "ü"]], key)
    assert array.tolist() == [["a", "bcde"], ["", "ü"]]
    assert structure.numpy_dtype == "<U4"
    assert "declared-otherwise" in kinds(state)


def test_bytes_text_stays_bytes():
    _, _, _, array = shown([["a", "bc"], ["d", "e"]], internal("array", [2], dtype_numpy="|S4"))
    assert array.dtype == "S4"
    assert array.tolist() == [[b"a", b"bc"], [b"d", b"e"]]


def test_rows_of_lower_rank_get_axes_of_length_one():
    _, _, _, array = shown([[[1.0, 2.0], [3.0, 4.0]], [5.0], 6.0], internal("array", [20]))
    nan = np.nan
    np.testing.assert_array_equal(array, [[[1, 2], [3, 4]], [[5, nan], [nan, nan]], [[6, nan], [nan, nan]]])


def test_booleans_among_integers_count_as_numbers():
    _, _, _, array = shown([[True, 2], [3, False]], internal("array", [20], dtype_numpy="<i8"))
    assert array.tolist() == [[1, 2], [3, 0]]


def test_values_that_are_all_empty_stay_in_the_table_until_one_is_not():
    documents = array_run([[], []], internal("array", [20]))
    _, nodes, _ = project([numbered(documents)])
    assert ("primary", "wave") not in nodes
    assert "wave" in nodes[("primary", "internal")].structure["columns"]

    documents = array_run([[], [1.0]], internal("array", [20]))
    ordinals = numbered(documents)
    _, nodes, pieces = project([ordinals[:3], ordinals[3:]])
    assert "wave" not in nodes[("primary", "internal")].structure["columns"]
    structure = ArrayStructure.from_wire(nodes[("primary", "wave")].structure)
    np.testing.assert_array_equal(array_of_column(column_of(pieces, "wave"), structure), [[np.nan], [1.0]])


def test_ragged_rows_come_out_as_values_and_offsets():
    documents = array_run([[], [1], None, [2, 3]], internal("array", [None]))
    _, nodes, pieces = project([numbered(documents)])
    structure = RaggedStructure.from_wire(nodes[("primary", "wave")].structure)
    values, (offsets,) = ragged_of_column(column_of(pieces, "wave"), structure)

    assert structure == RaggedStructure("<i8", (4, None), 3, ("time", "dim_rgd_1"))
    assert values.tolist() == [1, 2, 3]
    assert offsets.tolist() == [0, 0, 1, 1, 3]


def test_a_ragged_axis_beside_a_fixed_one():
    documents = array_run([[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]], internal("array", [None, 2]))
    _, nodes, pieces = project([numbered(documents)])
    structure = RaggedStructure.from_wire(nodes[("primary", "wave")].structure)
    values, (rows, inner) = ragged_of_column(column_of(pieces, "wave"), structure)

    assert structure.shape == (2, None, 2)
    assert structure.dims == ("time", "dim_rgd_1", "dim_int_1")
    assert values.tolist() == [1, 2, 3, 4, 5, 6]
    assert rows.tolist() == [0, 1, 3]
    assert inner.tolist() == [0, 2, 4, 6]


def test_axes_of_equal_length_share_their_name():
    run = RunDocuments()
    stream = run.stream(a=internal("array", [5, 5]), b=internal("array", [20]), c=internal("array", [5, 20]))
    stream.event(a=np.zeros((5, 5)), b=np.zeros(20), c=np.zeros((5, 20)))
    _, nodes, _ = project([numbered(run.documents)])
    assert nodes[("primary", "a")].structure["dims"] == ["time", "dim_int_1", "dim_int_1"]
    assert nodes[("primary", "b")].structure["dims"] == ["time", "dim_int_2"]
    assert nodes[("primary", "c")].structure["dims"] == ["time", "dim_int_1", "dim_int_2"]


def test_large_rows_are_announced_in_chunks_of_whole_rows():
    run = RunDocuments()
    stream = run.stream(a=internal("array", [4000, 4000], dtype_numpy="<u2"))
    stream.event(a=np.zeros((4000, 4000), "u2"))
    for _ in range(6):
        stream.event(a=np.zeros((4000, 4000), "u2"))
    _, nodes, _ = project([numbered(run.documents)])
    assert nodes[("primary", "a")].structure["chunks"] == [[3, 3, 1], [4000], [4000]]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), declared=st.sampled_from([None, "<f8", "<i8", "<u2", "<f4"]))
def test_any_batching_gives_the_same_array(data, declared):
    values = data.draw(st.lists(st.one_of(array_values, st.just(...)), max_size=6))
    key = internal("array", [20], **({"dtype_numpy": declared} if declared else {}))
    documents = array_run(values, key)
    _, expected, pieces = project([numbered(documents)])
    _, nodes, parts = project(data.draw(batchings(documents)))

    assert nodes == expected
    if ("primary", "wave") in nodes:
        structure = ArrayStructure.from_wire(nodes[("primary", "wave")].structure)
        whole = array_of_column(column_of(pieces, "wave"), structure)
        np.testing.assert_array_equal(array_of_column(column_of(parts, "wave"), structure), whole)
        assert len(whole) == len(values)
        for row, value in zip(whole, values, strict=True):
            if isinstance(value, list) and value and not any(isinstance(item, list) for item in value):
                found = row.reshape(len(row), -1)[: len(value), 0] if row.ndim else row
                np.testing.assert_array_equal(found, np.array(value, whole.dtype))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_batching_gives_the_same_ragged_rows(data):
    values = data.draw(st.lists(array_values, max_size=6))
    documents = array_run(values, internal("array", [None]))
    _, expected, pieces = project([numbered(documents)])
    _, nodes, parts = project(data.draw(batchings(documents)))

    assert nodes == expected
    if ("primary", "wave") in nodes:
        structure = RaggedStructure.from_wire(nodes[("primary", "wave")].structure)
        whole, offsets = ragged_of_column(column_of(pieces, "wave"), structure)
        found, found_offsets = ragged_of_column(column_of(parts, "wave"), structure)
        np.testing.assert_array_equal(found, whole)
        assert [each.tolist() for each in found_offsets] == [each.tolist() for each in offsets]
        assert len(whole) == structure.size
