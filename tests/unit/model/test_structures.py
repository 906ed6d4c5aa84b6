"""Structures go over the wire and come back the same, and nonsense is refused in words.

If these fail, clients see other shapes or dtypes than are stored, or a bad body becomes a server error.
"""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flystore.model.errors import InvalidRequest
from flystore.model.structures import (
    ARROW_SCHEMA_PREFIX,
    ArrayStructure,
    RaggedStructure,
    TableStructure,
    dtype_from_wire,
    dtype_to_wire,
)

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    st.sampled_from(
        [
            np.dtype("<M8[25s]"),
            np.dtype("|V3"),
            np.dtype([("a", "<i4"), ("b", ">f8", (2, 3))]),
            np.dtype([("x", [("y", "|u1"), ("z", "<U5")]), ("w", "|S2")]),
        ]
    ),
)


@given(DTYPES)
def test_a_dtype_comes_back_the_same(dtype):
    assert dtype_from_wire(dtype_to_wire(dtype)) == dtype


def test_dtypes_are_written_as_the_protocol_has_them():
    assert dtype_to_wire(np.dtype("<u2")) == {
        "endianness": "little",
        "kind": "u",
        "itemsize": 2,
        "dt_units": None,
    }
    assert dtype_to_wire(np.dtype("|b1"))["endianness"] == "not_applicable"
    assert dtype_to_wire(np.dtype(">U3"))["itemsize"] == 12
    assert dtype_to_wire(np.dtype("<M8[ns]"))["dt_units"] == "[ns]"
    assert dtype_to_wire(np.dtype("<m8[25s]"))["dt_units"] == "[25s]"
    assert dtype_to_wire(np.dtype("<m8"))["dt_units"] is None
    assert dtype_to_wire(np.dtype([("a", "<f4", (2,)), ("b", "|i1")])) == {
        "itemsize": 9,
        "fields": [
            {"name": "a", "dtype": dtype_to_wire(np.dtype("<f4")), "shape": [2]},
            {"name": "b", "dtype": dtype_to_wire(np.dtype("|i1")), "shape": None},
        ],
    }


PLAIN = {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None}


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        "<f8",
        {},
        {**PLAIN, "kind": "O"},
        {**PLAIN, "kind": ""},
        {**PLAIN, "kind": "iu"},
        {**PLAIN, "kind": ["f"]},
        {**PLAIN, "endianness": "middle"},
        {**PLAIN, "itemsize": 3},
        {**PLAIN, "itemsize": -8},
        {**PLAIN, "itemsize": 8.5},
        {**PLAIN, "itemsize": math.inf},
        {**PLAIN, "itemsize": "8"},
        {**PLAIN, "kind": "S", "itemsize": 1 << 40},
        {**PLAIN, "kind": "U", "itemsize": 7},
        {**PLAIN, "kind": "M", "dt_units": "[ns], O"},
        {**PLAIN, "kind": "M", "dt_units": "[parsec]"},
        {**PLAIN, "kind": "M", "dt_units": 3},
        {**PLAIN, "dt_units": "[ns]"},
        {"itemsize": 8, "fields": None},
        {"itemsize": 8, "fields": [None]},
        {"itemsize": 8, "fields": [{"name": "a", "dtype": PLAIN}, {"name": "a", "dtype": PLAIN}]},
        {"itemsize": 8, "fields": [{"name": 1, "dtype": PLAIN}]},
        {"itemsize": 8, "fields": [{"name": "a", "dtype": PLAIN, "shape": [1 << 40]}]},
        {"itemsize": 8, "fields": [{"name": "a", "dtype": PLAIN, "shape": [-1]}]},
    ],
)
def test_a_dtype_that_makes_no_sense_is_refused(wire):
    with pytest.raises(InvalidRequest, match="not a dtype"):
        dtype_from_wire(wire)


# Anything JSON can say, with the words of the protocol likely.
_WORDS = ["kind", "itemsize", "endianness", "dt_units", "fields", "name", "dtype", "shape", "chunks", "dims"]
_WORDS += ["data_type", "arrow_schema", "columns", "npartitions", "size", "little", "f", "U", "[ns]"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_WORDS) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=6),
    max_leaves=15,
)


@given(JSON)
def test_any_json_is_a_structure_or_refused(wire):
    for parse in (
        dtype_from_wire,
        ArrayStructure.from_wire,
        TableStructure.from_wire,
        RaggedStructure.from_wire,
    ):
        try:
            parse(wire)
        except InvalidRequest:
            continue


@st.composite
def array_structures(draw):
    shape, chunks = [], []
    for _ in range(draw(st.integers(0, 4))):
        axis = draw(st.lists(st.integers(1, 50), min_size=1, max_size=3)) if draw(st.booleans()) else [0]
        chunks.append(tuple(axis))
        shape.append(sum(axis))
    dims = tuple(f"dim{n}" for n in range(len(shape))) if draw(st.booleans()) else None
    return ArrayStructure.of(draw(DTYPES), tuple(shape), tuple(chunks), dims)


@given(array_structures())
def test_an_array_structure_comes_back_the_same(structure):
    again = ArrayStructure.from_wire(structure.to_wire())
    assert again == structure
    assert again.numpy_dtype == structure.numpy_dtype
    assert again.nbytes == math.prod(structure.shape) * structure.numpy_dtype.itemsize


def test_an_array_structure_without_chunks_is_one_chunk():
    assert ArrayStructure.of("<f8", (3, 0)).chunks == ((3,), (0,))
    assert ArrayStructure.of("<f8", ()).nbytes == 8


ARRAY = ArrayStructure.of("<f8", (4, 2), dims=("time", "x")).to_wire()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": None},
        {"shape": [4]},
        {"shape": [4, -2], "chunks": [[4], [-2]]},
        {"chunks": [[5, -1], [2]]},
        {"chunks": [[3], [2]]},
        {"chunks": [4, 2]},
        {"shape": [4.5, 2], "chunks": [[4.5], [2]]},
        {"shape": [math.inf, 2], "chunks": [[math.inf], [2]]},
        {"shape": ["4", 2], "chunks": [["4"], [2]]},
        {"dims": "ab"},
        {"dims": [1, 2]},
        {"data_type": None},
    ],
)
def test_an_array_structure_that_makes_no_sense_is_refused(change):
    with pytest.raises(InvalidRequest):
        ArrayStructure.from_wire({**ARRAY, **change})


@pytest.mark.parametrize(
    ("dims", "names"), [(["time"], None), (["time", "x", "y"], None), (["time", "x"], ("time", "x"))]
)
def test_names_that_do_not_fit_the_axes_are_kept_and_name_nothing(dims, names):
    structure = ArrayStructure.from_wire({**ARRAY, "dims": dims})
    assert (structure.to_wire()["dims"], structure.axis_names) == (dims, names)


SCHEMA = pa.schema([pa.field("seq_num", pa.int64()), pa.field("spectrum", pa.list_(pa.float32(), 3))])


def test_a_table_structure_keeps_the_arrow_schema_and_its_metadata():
    schema = SCHEMA.with_metadata({"pandas": "{}"})
    again = TableStructure.from_wire(TableStructure.of(schema, 3).to_wire())
    assert again.schema.equals(schema, check_metadata=True)
    assert (again.columns, again.npartitions) == (("seq_num", "spectrum"), 3)


TABLE = TableStructure.of(SCHEMA).to_wire()


@pytest.mark.parametrize(
    "change",
    [
        {"arrow_schema": None},
        {"arrow_schema": TABLE["arrow_schema"].removeprefix("data:")},
        {"arrow_schema": ARROW_SCHEMA_PREFIX + "!"},
        {"arrow_schema": ARROW_SCHEMA_PREFIX},
        {"arrow_schema": TABLE["arrow_schema"][:-40]},
        {"columns": None},
        {"columns": "ab"},
        {"columns": [1]},
        {"npartitions": -1},
        {"npartitions": 1.5},
        {"npartitions": None},
    ],
)
def test_a_table_structure_that_makes_no_sense_is_refused(change):
    with pytest.raises(InvalidRequest):
        TableStructure.from_wire({**TABLE, **change})


@given(st.data())
def test_a_mutated_arrow_schema_is_refused_or_read(data):
    raw = bytearray(TableStructure.of(SCHEMA).arrow_schema)
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    wire = TableStructure(bytes(raw), ("a",)).to_wire()
    try:
        TableStructure.from_wire(wire)
    except InvalidRequest as error:
        assert "not a table structure" in error.message  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize("dims", [None, ("time", "dim_1")])
def test_a_ragged_structure_comes_back_the_same(dims):
    structure = RaggedStructure("<f8", (5, None), 12, dims)
    assert RaggedStructure.from_wire(structure.to_wire()) == structure
    assert structure.to_wire()["chunks"] == [[5], None]


RAGGED = RaggedStructure("<f8", (5, None), 12).to_wire()


@pytest.mark.parametrize(
    "change", [{"shape": [-1, None]}, {"shape": None}, {"size": 1.5}, {"size": -2}, {"dims": [3, 4]}]
)
def test_a_ragged_structure_that_makes_no_sense_is_refused(change):
    with pytest.raises(InvalidRequest):
        RaggedStructure.from_wire({**RAGGED, **change})
