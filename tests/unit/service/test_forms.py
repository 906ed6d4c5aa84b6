"""Buffers of nested data are taken if the library that made them can read them, and refused if they lead astray.

If these fail, a broken upload is stored, and a reader crashes on it months later.
"""

import awkward
import numpy as np
import pytest

from flystore.model.errors import InvalidRequest, TooLarge
from flystore.service.forms import MOST_DEPTH, buffer_names, check_buffers

ARRAYS = {
    "numbers": [1, 2, 3],
    "lists": [[1.5, 2], [], [3]],
    "text": ["one", "", "drei"],
    "bytes": [b"x", b"yz"],
    "missing": [1, None, 3],
    "missing lists": [[1], None, [2, 3]],
    "records": [{"x": 1, "y": [1, 2]}, {"x": 2, "y": []}],
    "unions": [1, "two", [3.0], {"four": 4}],
    "tuples": [(1, "a"), (2, "b")],
    "moments": np.array(["2026-01-01", "2026-01-02"], "M8[ns]"),
    "truth": [True, False],
    "nothing": [],
    "empty lists": [[], []],
    "masked": awkward.mask(awkward.Array([1, 2, 3]), [True, False, True]),
    "bits": awkward.Array(
        awkward.contents.ByteMaskedArray(
            awkward.index.Index8(np.array([1, 0, 1], np.int8)), awkward.contents.NumpyArray(np.arange(3)), True
        ).to_BitMaskedArray(True, True)
    ),
    "regular": np.arange(6).reshape(2, 3),
    "regular of lists": awkward.to_regular(awkward.Array([[[1], []], [[2, 3], [4]]]), axis=1),
    "starts and stops": awkward.Array([[1], [2, 3], []])[[2, 0, 1]],
    "categories": awkward.str.to_categorical(awkward.Array(["a", "b", "a"])),
}


def buffers_of(array):
    form, length, container = awkward.to_buffers(awkward.Array(array))
    return form.to_dict(), length, {name: np.asarray(data).tobytes() for name, data in container.items()}


@pytest.mark.parametrize("name", ARRAYS)
def test_whatever_the_library_makes_is_taken(name):
    form, length, buffers = buffers_of(ARRAYS[name])
    names = buffer_names(form)
    assert {found for key in names.values() for found in key} == set(buffers)
    check_buffers(form, length, buffers)


@pytest.mark.parametrize("name", [name for name in ARRAYS if name not in ("nothing", "empty lists")])
def test_a_buffer_that_is_missing_or_short_is_refused(name):
    form, length, buffers = buffers_of(ARRAYS[name])
    for cut in buffers:
        if not buffers[cut]:
            continue
        with pytest.raises(InvalidRequest, match="missing"):
            check_buffers(form, length, {name: data for name, data in buffers.items() if name != cut})
        with pytest.raises(InvalidRequest, match="needed"):
            check_buffers(form, length + 10**6, buffers)
        with pytest.raises(InvalidRequest, match="needed"):
            check_buffers(form, length, {**buffers, cut: b""})


@pytest.mark.parametrize("name", ["missing lists", "unions", "categories", "starts and stops", "text"])
def test_indices_that_point_far_away_are_refused(name):
    form, length, buffers = buffers_of(ARRAYS[name])
    for key in buffers:
        if key.endswith(("-index", "-offsets", "-stops", "-tags")):
            wrong = np.full(len(buffers[key]) // 8 or 1, 2**40, "<i8").tobytes()[: len(buffers[key])]
            wrong = b"\x7f" * len(wrong) if key.endswith("-tags") else wrong
            with pytest.raises(InvalidRequest):
                check_buffers(form, length, {**buffers, key: wrong})


@pytest.mark.parametrize(
    "form",
    [
        "int64",
        None,
        [],
        {},
        {"class": "NumpyArray"},
        {"class": "NumpyArray", "primitive": "int64", "form_key": None},
        {"class": "Anything", "form_key": "a"},
        {"class": "ListOffsetArray", "form_key": "a", "content": None},
        {"class": "RecordArray", "contents": {"x": 1}},
        {"class": "UnmaskedArray", "content": "int64"},
    ],
)
def test_what_is_no_form_is_refused(form):
    with pytest.raises(InvalidRequest):
        buffer_names(form)


@pytest.mark.parametrize("primitive", ["object", "O", "S5", "int65", "f8,f8", "datetime64[parsec]", None, 3])
def test_values_of_another_kind_than_numbers_are_refused(primitive):
    form = {"class": "NumpyArray", "primitive": primitive, "form_key": "a"}
    with pytest.raises(InvalidRequest):
        check_buffers(form, 0, {"a-data": b""})


def test_two_parts_of_one_key_are_refused():
    part = {"class": "NumpyArray", "primitive": "int64", "form_key": "a"}
    with pytest.raises(InvalidRequest, match="of its own"):
        buffer_names({"class": "RecordArray", "fields": ["x", "y"], "contents": [part, part]})


def test_a_form_that_nests_deep_is_refused():
    form = {"class": "NumpyArray", "primitive": "int64", "form_key": "n"}
    for level in range(MOST_DEPTH + 1):
        form = {"class": "RegularArray", "size": 1, "content": form, "form_key": f"k{level}"}
    with pytest.raises(TooLarge):
        buffer_names(form)


def test_records_without_fields_are_bounded_for_nothing_else_bounds_them():
    with pytest.raises(TooLarge):
        check_buffers({"class": "RecordArray", "fields": [], "contents": []}, 10**15, {})
