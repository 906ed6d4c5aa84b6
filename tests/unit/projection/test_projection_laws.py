"""The tree of a run depends on its documents, and not on how they arrived.

If these fail, a run looks different after a slow network, a restart, a replay or a rebuild: columns change type, rows
move, frames belong to other events.
"""

import copy
import random

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.structures import TableStructure
from flystore.projection import AppendRows, PutNode, RunState, advance, cast_column, verdict
from flystore.testing.documents import batchings, numbered, reordered, runs


def tree_of(changes):
    """The last node of each path."""
    return {change.path: change for change in changes if isinstance(change, PutNode)}


def rows_of(changes):
    """All rows of each stream in the types of its nodes; what no table shows is compared as text."""
    tree = tree_of(changes)
    types = {}
    for path, node in tree.items():
        if node.family == "table":
            schema = TableStructure.from_wire(node.structure).schema
            types.setdefault(path[:2], {}).update({field.name: field.type for field in schema})
    columns, rows = {}, {}
    for change in changes:
        if not isinstance(change, AppendRows):
            continue
        assert change.first_row == rows.get(change.path, 0)
        for name in change.batch.schema.names:
            target = types[change.path].get(name, pa.string())
            here = columns.setdefault(change.path, {}).setdefault(name, [])
            here += [None] * (rows.get(change.path, 0) - len(here))
            here += cast_column(change.batch.column(name), target).to_pylist()
        rows[change.path] = change.first_row + change.batch.num_rows
    return {
        path: {name: tuple(map(repr, values + [None] * (rows[path] - len(values)))) for name, values in found.items()}
        for path, found in columns.items()
    }


def project(batches, uid="run"):
    state, changes = RunState.new(uid), []
    for batch in batches:
        state, new = advance(state, batch)
        changes += new
    return state, changes


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_batching_gives_the_same_tree(data):
    documents = data.draw(runs())
    whole, expected = project([numbered(documents)])
    state, changes = project(data.draw(batchings(documents)))

    assert tree_of(changes) == tree_of(expected)
    assert rows_of(changes) == rows_of(expected)
    assert verdict(state) == verdict(whole)


@settings(max_examples=100, deadline=None)
@given(documents=runs(), seed=st.integers(0, 2**32), frames_too=st.booleans())
def test_any_order_that_keeps_each_streams_own_gives_the_same_tree(documents, seed, frames_too):
    _, expected = project([numbered(documents)])
    body = [each for each in documents if each[0] not in ("start", "stop")]
    ends = [each for each in documents if each[0] == "stop"]
    others = reordered(body, random.Random(seed), shuffle_frames=frames_too)
    _, changes = project([numbered([documents[0], *others, *ends])])

    assert tree_of(changes) == tree_of(expected)
    assert rows_of(changes) == rows_of(expected)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_state_goes_on_the_same_after_it_was_stored(data):
    documents = data.draw(runs())
    state, expected = RunState.new("run"), []
    restored, changes = RunState.new("run"), []
    for batch in data.draw(batchings(documents)):
        state, new = advance(state, batch)
        expected += new
        restored, new = advance(RunState.from_bytes(restored.to_bytes()), batch)
        changes += new

    assert changes == expected
    assert restored.to_bytes() == state.to_bytes()


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_neither_the_state_nor_the_documents_are_changed(data):
    documents = data.draw(runs())
    batches = data.draw(batchings(documents))
    before = copy.deepcopy(batches)
    state = RunState.new("run")
    for batch in batches:
        kept = state.to_bytes()
        after, _ = advance(state, batch)
        assert state.to_bytes() == kept
        state = after
    assert batches == before


@settings(max_examples=100, deadline=None)
@given(documents=runs())
def test_parents_come_before_children_and_each_path_once(documents):
    _, changes = project([numbered(documents)])
    paths = [change.path for change in changes if isinstance(change, PutNode)]

    assert len(paths) == len(set(paths))
    for position, path in enumerate(paths):
        assert len(path) == 1 or path[:-1] in paths[:position]
    streams = [change.path for change in changes if isinstance(change, AppendRows)]
    assert len(streams) == len(set(streams))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "uid",
        "time",
        "data_keys",
        "name",
        "run_start",
        "descriptor",
        "seq_num",
        "data",
        "timestamps",
        "filled",
        "stream_resource",
        "indices",
        "seq_nums",
        "resource",
        "datum_id",
        "datum_kwargs",
        "mimetype",
        "uri",
        "parameters",
        "spec",
        "root",
        "resource_path",
        "resource_kwargs",
        "data_key",
        "configuration",
        "object_keys",
        "hints",
        "tiled_specs",
        "num_events",
        "exit_status",
    ]
)
kinds = st.sampled_from(
    [
        "start",
        "stop",
        "descriptor",
        "event",
        "event_page",
        "bulk_events",
        "resource",
        "datum",
        "datum_page",
        "bulk_datum",
        "stream_resource",
        "stream_datum",
        "nonsense",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    good=runs(), odd=st.lists(st.tuples(kinds, anything | st.dictionaries(fields, anything, max_size=6)), max_size=6)
)
def test_nothing_in_a_document_raises_and_the_rest_goes_on(good, odd):
    _, expected = project([numbered(good)])
    body = good[:-1] + odd + good[-1:]
    state, changes = project([numbered(body)])

    assert RunState.from_bytes(state.to_bytes()).to_bytes() == state.to_bytes()
    verdict(state).to_wire()
    assert set(tree_of(changes)) >= set(tree_of(expected))


@settings(max_examples=100, deadline=None)
@given(good=runs(), edits=st.lists(st.tuples(st.integers(0, 40), fields, anything), min_size=1, max_size=4))
def test_a_document_with_a_wrong_field_does_not_raise(good, edits):
    body = copy.deepcopy(good)
    for position, field, value in edits:
        body[position % len(body)][1][field] = value
    state, changes = project([numbered(body)])

    assert RunState.from_bytes(state.to_bytes()).to_bytes() == state.to_bytes()
    verdict(state).to_wire()
    for change in changes:
        if isinstance(change, AppendRows):
            assert change.batch.num_rows == len(change.batch.column("seq_num"))
            assert not np.isnan(change.first_row)
