"""Recorded runs come out as the documents and files say, value by value.

If these fail, readers of real runs get other numbers or frames than were taken. What is expected was worked out from
the documents and files alone.
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from flystore.model.structures import ArrayStructure, RaggedStructure, TableStructure
from flystore.projection import (
    AppendRows,
    ExternalArray,
    PutNode,
    RunState,
    advance,
    announced_structure,
    array_of_column,
    cast_column,
    ragged_of_column,
    verdict,
)
from flystore.testing.documents import numbered
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[2] / "data" / "streams"
CASES = recorded_cases(STREAMS)


def read_through_the_map(array: ExternalArray, stream_rows: int) -> np.ndarray:
    """Read all rows from the files, one by one, by the frame map alone."""
    structure = announced_structure(array, stream_rows)
    resources, rows = array.locate(np.arange(len(array.frame_map)))
    frames = [read_row(array, int(n), int(row)) for n, row in zip(resources, rows, strict=True)]
    return np.concatenate(frames).reshape(structure.shape)


def read_row(array: ExternalArray, resource: int, row: int) -> np.ndarray:
    found = array.resources[resource]
    size = int(np.prod(array.item_shape))
    if found.mimetype == "application/x-hdf5":
        with h5py.File(found.uri.removeprefix("file://localhost"), "r") as file:
            dataset = file[found.parameters["dataset"]]
            per_row = size // int(np.prod(dataset.shape[1:]))
            values = dataset[row * per_row : (row + 1) * per_row]
    else:
        read = np.load if found.mimetype.endswith("npy") else tifffile.imread
        files = array.files_of(resource, row)
        values = np.stack([read(uri.removeprefix("file://localhost")) for uri in files])
    assert values.dtype == array.numpy_dtype
    return values.reshape(1, *array.item_shape)


def column_values(name, nodes, stream, rows):
    """The values of one key as plain lists, from the table or from its own node."""
    for stored in (name, f"{name}_"):
        node = nodes.get((stream, stored))
        if node is not None and node.family == "array":
            return array_of_column([rows.column(stored)], ArrayStructure.from_wire(node.structure)).tolist()
        if node is not None and node.family == "ragged":
            values, (offsets,) = ragged_of_column([rows.column(stored)], RaggedStructure.from_wire(node.structure))
            return [values[a:b].tolist() for a, b in pairwise(offsets)]
        schema = TableStructure.from_wire(nodes[(stream, "internal")].structure).schema
        if node is None and stored in schema.names and stored not in ("time", "seq_num"):
            return cast_column(rows.column(stored), schema.field(stored).type).to_pylist()
    raise AssertionError(f"no column {name}")


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_run_comes_out_as_expected(case, tmp_path):
    recorded = put_in_place(STREAMS, case, tmp_path)
    assert set(recorded.runs) == set(recorded.expected)
    for uid, expected in recorded.expected.items():
        state, changes = advance(RunState.new(uid), numbered(recorded.runs[uid]))
        nodes = {change.path[1:]: change for change in changes if isinstance(change, PutNode)}
        rows = {change.path[1]: change.batch for change in changes if isinstance(change, AppendRows)}

        assert {path[0] for path in nodes if path} == set(expected["streams"])
        for stream, wanted in expected["streams"].items():
            assert_columns(wanted, stream, nodes, rows)
            assert_arrays(wanted, stream, nodes, state)


def assert_columns(wanted, stream, nodes, rows):
    if not wanted["seq_num"]:
        assert stream not in rows
        return
    assert rows[stream].column("seq_num").to_pylist() == wanted["seq_num"]
    assert rows[stream].column("time").to_pylist() == wanted["time"]
    for name, values in wanted["columns"].items():
        assert column_values(name, nodes, stream, rows[stream]) == values, name


def assert_arrays(wanted, stream, nodes, state):
    external = {path[1] for path, node in nodes.items() if path[:1] == (stream,) and node.external is not None}
    assert external == set(wanted["arrays"])
    for name, facts in wanted["arrays"].items():
        array = ExternalArray.from_bytes(nodes[(stream, name)].external)
        values = read_through_the_map(array, verdict(state).streams[stream].rows)
        assert list(values.shape) == facts["shape"], name
        assert values.dtype.str == facts["dtype"], name
        assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == facts["sha256"], name


@pytest.mark.parametrize("case", CASES)
def test_no_recorded_run_is_found_wanting(case, tmp_path):
    recorded = put_in_place(STREAMS, case, tmp_path)
    for uid, documents in recorded.runs.items():
        found = verdict(advance(RunState.new(uid), numbered(documents))[0])
        wanted = recorded.expected[uid].get("verdict", {"state": "complete", "retaken": 0})
        assert found.state == wanted["state"]
        assert (found.gaps, found.extra, found.retaken) == (0, 0, wanted["retaken"])
        assert found.frames == found.expected_frames
        assert {note.kind for note in found.notes} <= {"renamed", "stored-apart", "stored-ragged"}
        for name, number in recorded.expected[uid]["num_events"].items():
            assert found.streams[name].points == found.streams[name].expected == number


@pytest.mark.parametrize("case", CASES)
def test_the_state_of_a_recorded_run_is_small(case, tmp_path):
    recorded = put_in_place(STREAMS, case, tmp_path)
    for uid, documents in recorded.runs.items():
        state, _ = advance(RunState.new(uid), numbered(documents))
        assert len(state.to_bytes()) < 10_000
