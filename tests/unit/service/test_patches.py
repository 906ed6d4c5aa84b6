"""Metadata patches do what their RFCs say, and a bad one changes nothing.

If these fail, `update_metadata` of a stock client loses or mangles keys.
"""

import pytest

from flystore.model.errors import Conflict, InvalidRequest
from flystore.service.patches import apply_patch


def test_operations_of_a_json_patch_apply_in_order():
    patch = [{"op": "add", "path": "/stop", "value": {"a": 1}}, {"op": "replace", "path": "/stop/a", "value": 2}]
    assert apply_patch({"start": 1}, patch, merge=False) == {"start": 1, "stop": {"a": 2}}


def test_the_value_patched_stays_as_it_was():
    value = {"a": {"b": 1}}
    apply_patch(value, [{"op": "remove", "path": "/a/b"}], merge=False)
    apply_patch(value, {"a": {"b": None}}, merge=True)
    assert value == {"a": {"b": 1}}


@pytest.mark.parametrize(
    "patch",
    [{"op": "add"}, "text", [{"op": "fly", "path": "/a", "value": 1}], [{"path": "/a"}], [1]],
)
def test_a_malformed_patch_is_the_callers_fault(patch):
    with pytest.raises(InvalidRequest):
        apply_patch({}, patch, merge=False)


@pytest.mark.parametrize(
    "operation",
    [{"op": "remove", "path": "/missing"}, {"op": "test", "path": "/a", "value": 2}],
)
def test_a_patch_that_does_not_fit_is_a_conflict(operation):
    with pytest.raises(Conflict):
        apply_patch({"a": 1}, [operation], merge=False)


def test_a_merge_patch_removes_on_null_and_merges_below():
    assert apply_patch({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None}, "e": 4}, merge=True) == {
        "a": {"c": 2},
        "d": 3,
        "e": 4,
    }
