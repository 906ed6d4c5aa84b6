"""Encoders keep every value that their format can hold, refuse the others, and hold little of a table at a time.

If these fail, an export is wrong where nobody looks: nulls, lists, categories, odd names, long tables.
"""

import csv
import io
import json
import math
import tracemalloc

import h5py
import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model.errors import TooLarge, Unsupported
from flystore.service.export import (
    ARROW,
    CSV,
    HDF5,
    HTML,
    JSON,
    JSON_SEQ,
    PARQUET,
    REGISTRY,
    TABLE_ENCODERS,
    XLSX,
    ArraySource,
    ContainerSource,
    OtherSource,
    RaggedSource,
    Registry,
    TableSource,
)


def source_of(table, pieces=1, index=()):
    batches = table.to_batches(max_chunksize=max(1, math.ceil(table.num_rows / pieces)))
    return TableSource("/table", table.schema, index, table.num_rows, lambda: iter(batches))


def encoded(media_type, source, **parameters):
    return b"".join(TABLE_ENCODERS[media_type](source, parameters))


def array_source(array):
    return ArraySource("/array", array.dtype, array.shape, lambda: iter([array]), {"unit": "mm"})


ODD = pa.table(
    {
        "whole": pa.array([1, None, 2**53 + 1], pa.int64()),
        "truth": pa.array([True, None, False]),
        "real": pa.array([0.1, None, math.inf], pa.float32()),
        "text": pa.array(["", None, "x\0y"]),
        "pairs": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32())),
        "ragged": pa.array([[1.5], None, []], pa.list_(pa.float64())),
        "words": pa.array([["a", "b"], [], None], pa.list_(pa.string())),
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        "bytes": pa.array([b"ab", None, b"\xff"]),
        "when": pa.array([0, None, 1_500_000_000], pa.timestamp("ns")),
        "there": pa.array([0, None, 1_500], pa.timestamp("ms", "Europe/Berlin")),
        "long": pa.array([1, None, 3], pa.duration("ms")),
        "record": pa.array([{"a": 1}, None, {"a": 2}]),
    }
)


def test_odd_columns_come_back_from_arrow_and_parquet():
    for pieces in (1, 3):
        found = pyarrow.feather.read_table(io.BytesIO(encoded(ARROW, source_of(ODD, pieces))))
        assert found.cast(ODD.schema).equals(ODD)
        found = pyarrow.parquet.read_table(io.BytesIO(encoded(PARQUET, source_of(ODD, pieces))))
        assert found.to_pylist() == ODD.to_pylist()


def test_categories_that_differ_from_batch_to_batch_are_one_dictionary():
    parts = [pa.table({"kind": pa.array(values).dictionary_encode()}) for values in (["a", "b"], ["c", None, "a"])]
    table = pa.concat_tables(parts)
    found = pyarrow.feather.read_table(io.BytesIO(encoded(ARROW, source_of(table))))
    assert found["kind"].to_pylist() == ["a", "b", "c", None, "a"]
    assert pa.types.is_dictionary(found.schema.field("kind").type)


def test_odd_columns_in_hdf5_say_what_they_were():
    with h5py.File(io.BytesIO(encoded(HDF5, source_of(ODD, 3)))) as file:
        np.testing.assert_array_equal(file["whole"][:], [1, math.nan, float(2**53 + 1)])
        np.testing.assert_array_equal(file["truth"][:], [1, math.nan, 0])
        np.testing.assert_array_equal(file["real"][:], np.array([0.1, math.nan, math.inf], "f4"))
        assert file["text"].asstr()[:].tolist() == ["", "<NA>", "x\N{REPLACEMENT CHARACTER}y"]
        np.testing.assert_array_equal(file["pairs"][:], [[1, 2], [3, 4], [5, 6]])
        assert [row.tolist() for row in file["ragged"][:]] == [[1.5], [], []]
        assert [json.loads(row) for row in file["words"].asstr()[:2]] == [["a", "b"], []]
        assert file["kind"].asstr()[:].tolist() == ["a", "b", "a"]
        assert file["when"][:].tolist() == [0, np.iinfo(np.int64).min, 1_500_000_000]
        assert file["when"].attrs["_FillValue"] == np.iinfo(np.int64).min
        assert file["long"].attrs["units"] == "milliseconds"


def test_odd_columns_as_text_and_json():
    rows = list(csv.reader(io.StringIO(encoded(CSV, source_of(ODD)).decode())))
    assert rows[0] == ODD.schema.names
    assert rows[1][:6] == ["1", "True", "0.1", "", "[1,2]", "[1.5]"]
    assert rows[2][:4] == ["", "", "", ""]
    assert rows[3][9:11] == ["1970-01-01 00:00:01.5", "1970-01-01 00:00:01.5Z"]
    found = json.loads(encoded(JSON, source_of(ODD, 3)))
    assert found["whole"] == [1, None, 2**53 + 1]
    assert found["real"] == [0.1, None, None]
    assert found["there"] == ["1970-01-01T00:00:00Z", None, "1970-01-01T00:00:01.5Z"]
    assert found["bytes"] == ["ab", None, "ÿ"]
    assert found["record"] == [{"a": 1}, None, {"a": 2}]
    lines = [json.loads(line[1:]) for line in encoded(JSON_SEQ, source_of(ODD)).splitlines()]
    assert lines == [{name: found[name][row] for name in found} for row in range(3)]


def test_odd_columns_in_a_workbook():
    sheet = openpyxl.load_workbook(io.BytesIO(encoded(XLSX, source_of(ODD)))).active
    cells = [[cell.value for cell in row] for row in sheet.iter_rows()]
    assert cells[0] == ODD.schema.names
    assert cells[3][:3] == [str(2**53 + 1), False, "inf"]
    assert [cell for cell in cells[2] if cell is not None] == ["[3,4]", "[]", "b"]


def test_a_column_of_empty_texts_is_not_without_rows():
    table = pa.table({"only": ["", None, "x"]})
    assert encoded(CSV, source_of(table)) == b'only\n""\n""\nx\n'


def test_a_table_without_rows_is_a_file_of_its_format():
    empty = ODD.slice(0, 0)
    assert pyarrow.feather.read_table(io.BytesIO(encoded(ARROW, source_of(empty)))).schema.names == ODD.schema.names
    assert pyarrow.parquet.read_table(io.BytesIO(encoded(PARQUET, source_of(empty)))).num_rows == 0
    assert json.loads(encoded(JSON, source_of(empty))) == {name: [] for name in ODD.schema.names}
    assert encoded(CSV, source_of(empty)).decode().strip().split(",") == ODD.schema.names
    assert encoded(JSON_SEQ, source_of(empty)) == b""
    with h5py.File(io.BytesIO(encoded(HDF5, source_of(empty)))) as file:
        assert file["whole"].shape == (0,)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        ),
        max_size=20,
    ),
    st.integers(1, 5),
)
def test_any_values_survive_text_and_json(rows, pieces):
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    table = pa.table(
        [pa.array(columns[0], pa.int64()), pa.array(columns[1], pa.float64()), pa.array(columns[2], pa.string())],
        names=["i", "f", 's,"'],
    )
    source = source_of(table, pieces)
    assert json.loads(encoded(JSON, source)) == table.to_pydict()
    read = list(csv.reader(io.StringIO(encoded(CSV, source).decode(), newline="")))
    assert read[0] == table.schema.names
    expected = [["" if i is None else str(i), f, s or ""] for i, f, s in rows]
    assert [[i, None if f == "" else float(f), s] for i, f, s in read[1:]] == expected


class Rows:
    """A table of any length that is made as it is read."""

    batch = pa.record_batch({"n": np.arange(5_000), "x": np.arange(5_000) / 7, "s": [f"row {i}" for i in range(5_000)]})

    def __init__(self, batches):
        self.batches = batches

    @property
    def source(self):
        rows = self.batches * self.batch.num_rows
        return TableSource("/rows", self.batch.schema, (), rows, lambda: (self.batch for _ in range(self.batches)))

    def peak(self, encode):
        """Return the most bytes that an export of it held, Python's and Arrow's."""
        arrow = 0
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            for piece in encode(self.source, {}):
                arrow = max(arrow, pa.total_allocated_bytes() - before)
                del piece
            return tracemalloc.get_traced_memory()[1] + arrow
        finally:
            tracemalloc.stop()


SLOW = {HTML: 12, JSON_SEQ: 12, XLSX: 10}


def more_rows_take_more(encode, batches):
    Rows(1).peak(encode)
    short, long = Rows(batches // 5).peak(encode), Rows(batches).peak(encode)
    return long > 1.6 * short + (1 << 20)


@pytest.mark.parametrize("media_type", [ARROW, PARQUET, CSV, JSON, JSON_SEQ, HDF5, HTML, XLSX])
def test_more_rows_take_no_more_memory(media_type):
    assert not more_rows_take_more(TABLE_ENCODERS[media_type], SLOW.get(media_type, 80))


def test_an_encoder_that_hoards_would_be_noticed():
    assert more_rows_take_more(lambda source, parameters: iter([b"".join(TABLE_ENCODERS[CSV](source, {}))]), 80)


def test_a_text_longer_than_a_cell_is_refused():
    with pytest.raises(Unsupported, match="32767"):
        encoded(XLSX, source_of(pa.table({"x": ["y" * 40_000]})))


def test_a_sheet_of_too_many_columns_is_refused():
    with pytest.raises(TooLarge, match="16384"):
        encoded(XLSX, source_of(pa.table({f"c{i}": [1] for i in range(16_385)})))


# --------------------------------------------------------------------------- arrays and containers


def test_records_bytes_and_complex_numbers_have_a_text_form():
    records = np.array([(1, 2.5), (2, 3.5)], dtype=[("a", "i4"), ("b", "f8")])
    encode = REGISTRY.choose(("array",), ["json"]).encode
    assert json.loads(b"".join(encode(array_source(records)))) == [[1, 2.5], [2, 3.5]]
    assert json.loads(b"".join(encode(array_source(np.array([1 + 2j]))))) == [[1.0, 2.0]]
    assert json.loads(b"".join(encode(array_source(np.array([b"ab", b"\xff"]))))) == ["ab", "ÿ"]
    assert json.loads(b"".join(encode(array_source(np.array([0.1, np.nan], "f4"))))) == [0.1, None]
    assert json.loads(b"".join(encode(array_source(np.array(7))))) == 7
    assert json.loads(b"".join(encode(array_source(np.zeros((0, 3)))))) == []
    text = REGISTRY.choose(("array",), ["csv"]).encode
    assert b"".join(text(array_source(records))) == b"1,2.5\n2,3.5\n"


def test_raw_bytes_have_no_text_form():
    with pytest.raises(Unsupported, match="octet-stream"):
        b"".join(REGISTRY.choose(("array",), ["json"]).encode(array_source(np.zeros(2, "V3"))))


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_a_picture_without_contrast_is_black(value):
    from PIL import Image

    body = b"".join(REGISTRY.choose(("array",), ["png"]).encode(array_source(np.full((3, 4), value))))
    assert not np.asarray(Image.open(io.BytesIO(body))).any()


def test_frames_of_one_event_are_pictures():
    body = b"".join(REGISTRY.choose(("array",), ["png"]).encode(array_source(np.eye(5)[None])))
    from PIL import Image

    assert Image.open(io.BytesIO(body)).size == (5, 5)


def hdf5_of(children, metadata=None):
    source = ContainerSource("/c", metadata or {}, lambda: iter(children.items()))
    return h5py.File(io.BytesIO(b"".join(REGISTRY.choose(("container",), ["h5"]).encode(source))))


def test_rows_of_unequal_length_are_rows_of_unequal_length():
    ragged = RaggedSource("/c/r", np.dtype("f8"), lambda: [[1.0], [], [2.0, 3.0]], {"unit": "mm"})
    with hdf5_of({"r": ragged}) as file:
        assert [row.tolist() for row in file["r"][:]] == [[1.0], [], [2.0, 3.0]]
        assert file["r"].attrs["unit"] == "mm"


@pytest.mark.parametrize(
    "child",
    [
        OtherSource("/c/x", "awkward"),
        RaggedSource("/c/x", np.dtype("f8"), lambda: [[[1.0], [2.0, 3.0]]]),
    ],
)
def test_what_hdf5_has_no_form_for_is_refused_by_name(child):
    with pytest.raises(Unsupported, match="/c/x"):
        hdf5_of({"x": child})


def test_any_metadata_becomes_attributes():
    metadata = {
        "text": "é\0",
        "big": 2**70,
        "mixed": [1, "a", None],
        "truths": [True, False],
        "numbers": [1, 2.5],
        "rows": [[1], [2, 3]],
        "texts": ["a", "b"],
        "long": "x" * 100_000,
        "": 1,
    }
    with hdf5_of({}, metadata) as file:
        attributes = file.attrs
        assert attributes["text"] == "é\N{REPLACEMENT CHARACTER}"
        assert json.loads(attributes["big"]) == 2**70
        assert json.loads(attributes["mixed"]) == [1, "a", None]
        assert attributes["truths"].tolist() == [True, False]
        assert attributes["numbers"].tolist() == [1, 2.5]
        assert json.loads(attributes["rows"]) == [[1], [2, 3]]
        assert attributes["texts"].tolist() == ["a", "b"]
        assert len(attributes["long"]) == 100_000
        assert attributes["_"] == 1


# --------------------------------------------------------------------------- the registry


def test_what_a_spec_adds_is_for_who_asks_for_it():
    registry = Registry()
    registry.add("table", CSV, lambda source, parameters: iter([b"family"]))
    registry.add("special", JSON, lambda source, parameters: iter([b"spec"]))
    registry.add("special", CSV, lambda source, parameters: iter([parameters.get("header", "").encode()]))
    names = ("special", "table")
    assert registry.choose(names, ["*/*"]).format.encode(None, {}) is not None
    assert b"".join(registry.choose(names, ["*/*"]).encode(None)) == b"family"
    assert b"".join(registry.choose(names, ["json"]).encode(None)) == b"spec"
    chosen = registry.choose(names, ["nope", "text/csv; header=absent; q=0.5"])
    assert b"".join(chosen.encode(None)) == b"absent"
    assert chosen.media_type == "text/csv;header=absent"
    with pytest.raises(Unsupported, match=r"Supported: application/json, text/csv\. Requested: png"):
        registry.choose(names, ["png"])
