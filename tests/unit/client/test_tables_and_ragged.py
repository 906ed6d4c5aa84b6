"""Tables and ragged rows of a service of the protocol (stock Tiled, on a socket) come back as written.

If these fail, columns are mixed up, rows are lost between partitions, or a name that does not exist
gives something else than an error that names those that do.
"""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from flystore.client import Ragged, Table
from flystore.client._ragged import dense, rows_of_zip
from flystore.model.errors import InvalidRequest, NotFound, OutOfBounds, Unavailable

FRAME = pd.DataFrame({"x": [1.0, 2.0, 3.0], "n": [1, 2, 3], "label": ["a", "b", "c"]}, index=[5, 6, 7])
ROWS = [[1, 2, 3], [], [4], [5, 6]]


@pytest.fixture(scope="module")
def written(stock_client):
    import awkward
    import dask.dataframe

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        home = stock_client.create_container("tables")
        home.write_table(FRAME, key="frame")
        home.write_table(dask.dataframe.from_pandas(FRAME, npartitions=3), key="parts")
        home.write_table({f"column_{i:04d}": [i] for i in range(400)}, key="wide")
        live = home.create_appendable_table(pa.schema([("a", pa.int64()), ("b", pa.string())]), key="live")
        for i in range(3):
            live.append_partition(0, {"a": [i], "b": [str(i)]})
        home.create_appendable_table(pa.schema([("a", pa.int64())]), key="bare")
        home.write_ragged(awkward.Array(ROWS), key="ragged")


@pytest.fixture
def tables(catalog, written):
    return catalog["tables"]


def test_a_table_comes_back_as_it_was_with_its_index(tables):
    table = tables["frame"]
    assert isinstance(table, Table)
    assert table.columns == ("x", "n", "label")
    # Texts come as the dtype that stock Tiled stored them with.
    pd.testing.assert_frame_equal(table.read(), FRAME, check_dtype=False)


def test_partitions_are_put_together_in_order(tables):
    pd.testing.assert_frame_equal(tables["parts"].read(), FRAME, check_dtype=False)
    assert tables["parts"].arrow(["n"])["n"].to_pylist() == [1, 2, 3]


def test_columns_come_in_the_order_asked_for(tables):
    assert tables["live"].arrow(["b", "a"]).column_names == ["b", "a"]
    assert list(tables["frame"].read(["label", "x"]).columns) == ["label", "x"]
    assert tables["live"].arrow("b").to_pydict() == {"b": ["0", "1", "2"]}


def test_no_columns_are_no_columns(tables):
    assert tables["live"].arrow([]).num_columns == 0


def test_rows_keep_the_order_they_were_appended_in(tables):
    assert tables["live"].arrow().to_pydict() == {"a": [0, 1, 2], "b": ["0", "1", "2"]}


def test_hundreds_of_columns_can_be_named(tables):
    names = [f"column_{i:04d}" for i in range(399, -1, -1)]
    assert tables["wide"].arrow(names).column_names == names


def test_a_column_is_an_array(tables):
    column = tables["frame"]["n"]
    assert column.shape == (3,)
    assert column[1:].tolist() == [2, 3]
    assert "n" in tables["frame"]


def test_an_unknown_column_is_refused_with_those_that_are_there(tables):
    with pytest.raises(NotFound, match="no column y; it has x, n, label") as caught:
        tables["frame"].read(["x", "y"])
    assert caught.value.columns == ["y"]
    with pytest.raises(KeyError):
        tables["frame"]["y"]


def test_its_repr_tells_a_person_what_they_have(tables):
    assert repr(tables["frame"]) == "<Table /tables/frame: 3 columns: x, n, label>"


def test_ragged_rows_come_back_each_with_its_length(tables):
    ragged = tables["ragged"]
    assert isinstance(ragged, Ragged)
    assert (len(ragged), ragged.shape) == (4, (4, None))
    assert [row.tolist() for row in ragged.read()] == ROWS
    assert all(row.dtype == ragged.dtype for row in ragged.read())


@pytest.mark.parametrize("rows", [slice(1, 3), slice(None, -1), slice(None, None, -1), slice(3, 1), slice(0, 9)])
def test_some_ragged_rows_can_be_asked_for(tables, rows):
    assert [row.tolist() for row in tables["ragged"][rows]] == ROWS[rows]


@pytest.mark.parametrize("number", [0, 1, -1])
def test_one_ragged_row_can_be_asked_for(tables, number):
    assert tables["ragged"][number].tolist() == ROWS[number]


def test_ragged_rows_outside_are_refused(tables):
    with pytest.raises(OutOfBounds, match="row 4"):
        tables["ragged"][4]
    with pytest.raises(InvalidRequest, match="slice or a whole number"):
        tables["ragged"]["x"]


def test_the_repr_of_ragged_rows_says_which_axis_varies(tables):
    assert repr(tables["ragged"]) == "<Ragged /tables/ragged: 4 × var int64>"


def test_a_body_that_is_no_ragged_rows_is_an_error_and_not_rows():
    with pytest.raises(Unavailable, match="/x"):
        rows_of_zip(b"not a zip", "/x")


def test_rows_are_padded_at_the_end_only():
    values, padded = dense([np.array([1, 2]), np.array([3])])
    assert padded
    np.testing.assert_array_equal(values, [[1, 2], [3, np.nan]])
    values, padded = dense([np.array([1, 2]), np.array([3, 4])])
    assert not padded
    assert values.dtype == int
