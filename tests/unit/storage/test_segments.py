"""Slow data keeps its values through storage, widening schemas, and hostile bodies.

If these fail, columns change silently when a run's schema grows, or one request takes all memory.
"""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.errors import Damaged, InvalidRequest, TooLarge
from flystore.storage import concatenate, decode_segment, decode_untrusted, encode_segment, unify

MIB = 2**20


def batch(**columns):
    return pa.record_batch(columns)


def as_stream(table, compression=None):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()


def as_file(table, compression=None):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write(table)
    return sink.getvalue().to_pybytes()


TABLE = pa.table(
    {
        "x": pa.array([1.0, None, math.inf]),
        "name": ["a", "", None],
        "spectrum": pa.array([[1, 2], [], None], pa.list_(pa.int32())),
        "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
    }
).replace_schema_metadata({"pandas": "{}"})


def test_a_segment_comes_back_as_it_was():
    original = batch(x=[1.5, math.inf], y=["µ", None], z=[[1], None])
    assert decode_segment(encode_segment(original)).equals(original)
    assert decode_segment(encode_segment(original.slice(1))).to_pylist()[0]["y"] is None


@pytest.mark.parametrize("data", [b"", b"nonsense", encode_segment(batch(x=[1]))[:40]])
def test_bytes_that_are_no_segment_are_damaged(data):
    with pytest.raises(Damaged):
        decode_segment(data)


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("encode", [as_stream, as_file])
def test_arrow_from_outside_is_read_in_every_form(encode, compression):
    found = decode_untrusted(encode(TABLE, compression), MIB)
    assert found.equals(TABLE)
    assert found.schema.metadata == {b"pandas": b"{}"}


@pytest.mark.parametrize("encode", [as_stream, as_file])
def test_a_table_of_no_rows_keeps_its_schema(encode):
    assert decode_untrusted(encode(TABLE.slice(0, 0)), MIB).schema == TABLE.schema


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("encode", [as_stream, as_file])
def test_an_inflating_body_is_refused_before_it_is_inflated(encode, compression):
    bomb = encode(pa.table({"x": np.zeros(50 * MIB // 8)}), compression)
    assert len(bomb) < MIB
    before = pa.total_allocated_bytes()
    with pytest.raises(TooLarge) as caught:
        decode_untrusted(bomb, 10 * MIB)
    assert caught.value.wanted > 50 * MIB - 1
    assert pa.total_allocated_bytes() - before < MIB


def test_rows_that_take_no_bytes_are_counted_too():
    for column in (pa.nulls(10**9), pa.FixedSizeListArray.from_arrays(pa.nulls(10**9), 1000)):
        with pytest.raises(TooLarge):
            decode_untrusted(as_stream(pa.table({"x": column})), 10**6)


@pytest.mark.parametrize("data", [b"", b"x", b"ARROW1\0\0", b"ARROW1\0\0nonsense", b"\xff" * 64, b'{"x": 1}'])
def test_what_is_not_arrow_is_an_invalid_request(data):
    with pytest.raises(InvalidRequest):
        decode_untrusted(data, MIB)


def test_wrong_string_offsets_are_refused():
    strings = pa.table({"x": ["abc", "def"]})
    data = bytearray(as_stream(strings))
    at = bytes(data).rindex(np.array([0, 3, 6], "<i4").tobytes())
    data[at + 4 : at + 8] = (10**6).to_bytes(4, "little")
    with pytest.raises(InvalidRequest):
        decode_untrusted(bytes(data), MIB)


@settings(deadline=None)
@given(
    st.sampled_from([None, "zstd", "lz4"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
)
def test_changed_bytes_are_valid_or_an_invalid_request(compression, changes, cut):
    data = bytearray(as_stream(TABLE, compression))
    for where, value in changes:
        data[int(where * len(data))] = value
    if cut:
        del data[int(changes[0][0] * len(data)) :]
    try:
        table = decode_untrusted(bytes(data), MIB)
    except InvalidRequest:
        return
    table.validate(full=True)
    table.to_pylist()


def test_batches_of_a_widening_series_are_one_table():
    first = batch(x=[1, 2], flag=[True, None], text=[1.5, 2.0], gone=[1, 2])
    second = batch(x=[0.5], flag=[2.5], text=["new"], added=[[1.0, 2.0]])
    schema = pa.schema(
        [
            ("x", pa.float64()),
            ("flag", pa.float64()),
            ("text", pa.string()),
            ("added", pa.list_(pa.float64())),
        ]
    )
    assert unify([first, second], schema).to_pydict() == {
        "x": [1.0, 2.0, 0.5],
        "flag": [1.0, None, 2.5],
        "text": ["1.5", "2.0", "new"],
        "added": [None, None, [1.0, 2.0]],
    }


@pytest.mark.parametrize(
    ("values", "source", "target", "result"),
    [
        ([None, None], pa.null(), pa.list_(pa.int8()), [None, None]),
        ([[1, 2], None, []], pa.list_(pa.int64()), pa.list_(pa.float64()), [[1.0, 2.0], None, []]),
        ([[True]], pa.list_(pa.bool_()), pa.list_(pa.float64()), [[1.0]]),
        (
            [[[1], [2, 3]]],
            pa.list_(pa.list_(pa.int8())),
            pa.list_(pa.list_(pa.float64())),
            [[[1.0], [2.0, 3.0]]],
        ),
        ([[1, None]], pa.list_(pa.int8()), pa.list_(pa.string()), [["1", None]]),
        ([[]], pa.list_(pa.null()), pa.list_(pa.float64()), [[]]),
        ([[1, 2], None], pa.list_(pa.int64(), 2), pa.list_(pa.float64()), [[1.0, 2.0], None]),
        ([[1, 2]], pa.list_(pa.int64()), pa.list_(pa.float64(), 2), [[1.0, 2.0]]),
        ([[1, 2]], pa.list_(pa.int64()), pa.large_list(pa.int64()), [[1, 2]]),
        ([[1, 2], None], pa.list_(pa.int64()), pa.string(), ["[1, 2]", None]),
        ([True, None], pa.bool_(), pa.string(), ["true", None]),
        (["é"], pa.string(), pa.string(), ["é"]),
        ([2**53 + 1], pa.int64(), pa.float64(), [float(2**53)]),
        ([7], pa.int8(), pa.int64(), [7]),
    ],
)
def test_widening_keeps_values(values, source, target, result):
    table = unify([batch(x=pa.array(values, source))], pa.schema([("x", target)]))
    assert table["x"].to_pylist() == result
    table.validate(full=True)


@given(
    st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-9, 9)), max_size=3)), max_size=9
    ),
    st.data(),
)
def test_lists_convert_wherever_a_batch_is_cut(rows, data):
    array = pa.array(rows, pa.list_(pa.int64()))
    start = data.draw(st.integers(0, len(rows)))
    piece = pa.RecordBatch.from_arrays([array], ["x"]).slice(start)
    table = unify([piece], pa.schema([("x", pa.list_(pa.float64()))]))
    assert table["x"].to_pylist() == rows[start:]


def test_narrowing_is_damage_and_names_the_column():
    with pytest.raises(Damaged, match="'x' was stored as string"):
        unify([batch(x=["abc"])], pa.schema([("x", pa.float64())]))


def test_concatenated_batches_are_one_batch():
    schema = pa.schema([("x", pa.float64())])
    whole = concatenate([batch(x=[1, 2]), batch(x=[0.5])], schema)
    assert whole.to_pydict() == {"x": [1.0, 2.0, 0.5]}
    assert concatenate([], schema).num_rows == 0
    assert concatenate([batch(x=[1]).slice(1)], schema).num_rows == 0
