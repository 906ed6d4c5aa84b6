"""Text of tables and documents is made in blocks and ahead of the client, and is what a line at a time would give.

If these fail, exported numbers are not those that are stored, lines are lost between blocks, or threads stay behind.
"""

import csv
import io
import json
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.service.export import ContainerSource, TableSource, documents, plain, tables
from flystore.service.export.pieces import ahead

FLOATS = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -0.0, 1.0, 1e16, 1e22, 0.1, 1e-7, float("inf")]))
TEXTS = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5))


@st.composite
def tables_of_all_sorts(draw):
    rows = draw(st.integers(0, 12))
    kinds = {
        pa.float64(): FLOATS,
        pa.float32(): st.one_of(st.none(), st.floats(width=32)),
        pa.int64(): st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        pa.uint8(): st.integers(0, 255),
        pa.bool_(): st.one_of(st.none(), st.booleans()),
        pa.string(): TEXTS,
        pa.list_(pa.int64()): st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=2)),
    }
    chosen = draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=5))
    columns = [pa.array(draw(st.lists(kinds[kind], min_size=rows, max_size=rows)), kind) for kind in chosen]
    return pa.table(columns, names=[f"c{number}" for number in range(len(columns))])


def source_of(table, step):
    return TableSource("/t", table.schema, (), table.num_rows, lambda: iter(table.to_batches(max_chunksize=step)))


def cell(value):
    """Return what stands in a cell for a value, worked out one value at a time."""
    if value is None:
        return ""
    if isinstance(value, float):
        return str(value)
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, separators=(",", ":"))
        if isinstance(value, list)
        else str(value)
    )


@settings(max_examples=80, deadline=None)
@given(tables_of_all_sorts(), st.integers(1, 5))
def test_text_with_commas_has_a_line_a_row_and_every_value(table, step):
    text = b"".join(tables.text(source_of(table, step), {})).decode()
    header, *lines = csv.reader(io.StringIO(text, newline=""))

    assert header == table.column_names
    assert len(lines) == table.num_rows
    for place, column in enumerate(table.columns):
        for line, value in zip(lines, column.to_pylist(), strict=True):
            if isinstance(value, float):
                kind = np.float32 if pa.types.is_float32(column.type) else np.float64
                assert kind(line[place]) == kind(value) or (np.isnan(value) and line[place] == "nan")
                assert any(letter in line[place] for letter in ".en")  # it looks like a float
            else:
                assert line[place] == cell(value)


WHOLE = st.one_of(
    st.integers(-(10**12), 10**12).map(float), st.sampled_from([0.0, -0.0, 999_999_999.0, 1e9, -1e9, 1e10, 1e22, 5.0])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WHOLE, min_size=1, max_size=6), st.sampled_from([pa.float64(), pa.float32()]))
def test_floats_that_are_integers_look_as_one_by_one(values, kind):
    column = pa.array(values, kind)
    printed = [text if any(c in text for c in ".en") else f"{text}.0" for text in column.cast(pa.string()).to_pylist()]

    assert tables._as_text(column).to_pylist() == printed


SIMILAR = st.lists(st.sampled_from([0.0, -0.0, 1.0, 0.5, float("nan"), 1.7e9 + 0.123456]), min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(SIMILAR, st.sampled_from([pa.float64(), pa.float32()])), min_size=1, max_size=8))
def test_columns_printed_once_are_those_printed_each(columns):
    arrays = [pa.array(values, kind) for values, kind in columns]
    arrays += [pa.array([None, *values], kind).slice(number % 2) for number, (values, kind) in enumerate(columns)]

    found = tables._texts_of(arrays)

    assert [text.to_pylist() for text in found] == [tables._as_text(array).to_pylist() for array in arrays]


def test_the_same_floats_are_printed_once_and_zeros_of_either_sign_are_not_the_same():
    first, again = pa.array([1.5, 0.0, 2.5]), pa.array([9.0, 1.5, 0.0, 2.5]).slice(1)
    other, wider = pa.array([1.5, -0.0, 2.5]), pa.array([1.5, 0.0, 2.5], pa.float32())

    found = tables._texts_of([first, again, other, wider])

    assert found[1] is found[0]
    assert found[2].to_pylist() == ["1.5", "-0.0", "2.5"]
    assert found[3] is not found[0]


@settings(max_examples=40, deadline=None)
@given(tables_of_all_sorts(), st.integers(1, 5))
def test_lines_of_json_made_in_blocks_are_those_made_one_by_one(table, step):
    columns = [plain.of_column(chunk) for chunk in table.combine_chunks().columns] if table.num_rows else []
    rows = [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]

    assert b"".join(tables.json_lines(source_of(table, step), {})) == b"".join(
        b"\x1e" + plain.encode(row) + b"\n" for row in rows
    )


ODD = [{"a": 1}, {"lone": "\ud800"}, {"huge": 2**70}, {3: 4}, {"line": "a\nb\x1e"}, {"nan": float("nan")}]


@given(st.lists(st.sampled_from(ODD), max_size=9))
def test_records_with_odd_values_among_them_are_each_what_they_are_alone(values):
    assert plain.encode_records(values) == b"".join(b"\x1e" + plain.encode(value) + b"\n" for value in values)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_no_document_is_lost_between_blocks(count):
    source = ContainerSource("/r", {}, lambda: iter(()), lambda: iter([("event", {"n": n}) for n in range(count)]))
    records = b"".join(documents.json_lines(source, {})).split(b"\x1e")[1:]

    assert [json.loads(record)["doc"]["n"] for record in records] == [*range(count)]


def test_what_is_made_ahead_comes_in_order_and_not_far_ahead():
    given_out = []

    def numbers():
        for number in range(20):
            given_out.append(number)
            yield number

    made = ahead(lambda number: number * 2, numbers())
    assert next(made) == 0
    assert len(given_out) <= 3
    assert list(made) == [*range(2, 40, 2)]


def test_an_export_that_is_left_leaves_no_thread():
    before = set(threading.enumerate())
    made = ahead(lambda number: number, iter(range(100)))
    next(made)
    made.close()

    assert set(threading.enumerate()) <= before


def test_what_fails_while_it_is_made_ahead_is_told_in_its_place():
    made = ahead(lambda number: 1 // (3 - number), iter(range(10)))

    assert [next(made) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
