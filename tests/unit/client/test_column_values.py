"""Columns of tables become arrays of what they hold: numbers stay numbers, null stays null.

If these fail, people plot text, or a value that is missing looks like one that was measured.
"""

import numpy as np
import pyarrow as pa
import pytest

from flystore.client._columns import column_values


def column(values, kind=None):
    array = pa.array(values, kind)
    # In two pieces, as growing tables come.
    half = len(array) // 2
    return pa.chunked_array([array[:half], array[half:]], array.type)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float32(), pa.float64()])
def test_numbers_keep_their_type(kind):
    found = column_values(column([1, 2, 3], kind))
    assert found.tolist() == [1, 2, 3]
    assert found.dtype == np.dtype(kind.to_pandas_dtype())


def test_truth_values_stay_truth_values():
    assert column_values(column([True, False, True])).dtype == bool


def test_null_among_numbers_is_nan():
    found = column_values(column([1, None, 3]))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [1, np.nan, 3])


def test_null_among_truth_values_is_none():
    assert column_values(column([True, None, False])).tolist() == [True, None, False]


def test_text_is_text_and_null_is_marked():
    found = column_values(column(["a", None, "längst"]))
    assert found.dtype == np.dtype("<U6")
    assert found.tolist() == ["a", "<NA>", "längst"]


def test_nothing_but_null_is_all_nan():
    assert np.isnan(column_values(column([None, None]))).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int32()), pa.list_(pa.int32(), 2)])
def test_lists_of_one_length_are_a_further_axis(kind):
    found = column_values(column([[1, 2], [3, 4], [5, 6]], kind))
    assert found.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert found.dtype == np.int32


def test_lists_of_lists_are_two_further_axes():
    rows = [[[1, 2, 3], [4, 5, 6]]] * 4
    assert column_values(column(rows)).shape == (4, 2, 3)


def test_a_slice_of_a_column_of_lists_is_that_slice():
    whole = pa.chunked_array([pa.array([[1, 2], [3, 4], [5, 6]])])
    assert column_values(whole.slice(1)).tolist() == [[3, 4], [5, 6]]


def test_lists_of_unequal_length_are_padded_with_nan():
    np.testing.assert_array_equal(column_values(column([[1], [2, 3], []])), [[1, np.nan], [2, 3], [np.nan, np.nan]])


def test_a_null_list_is_all_nan():
    np.testing.assert_array_equal(column_values(column([[1, 2], None])), [[1, 2], [np.nan, np.nan]])


def test_null_inside_a_list_is_nan():
    np.testing.assert_array_equal(column_values(column([[1, None], [3, 4]])), [[1, np.nan], [3, 4]])


def test_lists_of_texts_of_one_length_stay_texts():
    assert column_values(column([["a", "bc"], ["d", "e"]])).tolist() == [["a", "bc"], ["d", "e"]]


def test_no_rows_have_the_shape_that_was_announced():
    assert column_values(column([], pa.list_(pa.float64())), (3, 2)).shape == (0, 3, 2)
    assert column_values(column([], pa.string())).dtype == np.dtype("<U1")


def test_lists_without_members_have_no_members():
    assert column_values(column([[], []], pa.list_(pa.float64()))).shape == (2, 0)
