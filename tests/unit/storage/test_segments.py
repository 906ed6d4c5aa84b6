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
from flystore.storage import decode_segment, decode_untrusted, encode_segment, encode_segments

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


@pytest.mark.parametrize(("rows", "most"), [(1, 1), (10, 1), (1000, 10_000), (1000, 1 << 20), (0, 100)])
def test_rows_are_split_into_segments_that_hold_them_all_in_order(rows, most):
    batch = pa.record_batch({"x": pa.array(range(rows), pa.int64()), "y": pa.array(["text"] * rows)})
    pieces = encode_segments(batch, most)
    parts = [decode_segment(body) for _, body in pieces]
    assert [n for n, _ in pieces] == [part.num_rows for part in parts]
    assert pa.Table.from_batches(parts, batch.schema).equals(pa.Table.from_batches([batch]))
    if rows * 20 < most:
        assert len(pieces) == (rows > 0)
    assert all(n == 1 or len(body) <= most + 2000 for n, body in pieces)


KINDS = [
    pa.array([1.5, None, 2.0]),
    pa.array([True, False, None]),
    pa.array(["a", None, "ääh"]),
    pa.nulls(3),
    pa.array([[1], None, []]),
    pa.array(["x", "y", "x"]).dictionary_encode(),
    pa.array([["x"], [], ["y"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    pa.array([{"a": 1}, {"a": None}, None]),
]


@given(st.lists(st.sampled_from(KINDS), max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_a_segment_is_byte_for_byte_what_arrow_itself_writes(columns, first, rows):
    original = pa.RecordBatch.from_arrays(columns, [f"c{n}" for n in range(len(columns))]).slice(first, rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, original.schema) as writer:
        writer.write_batch(original)
    assert encode_segment(original) == sink.getvalue().to_pybytes()
