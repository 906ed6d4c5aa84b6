"""Metadata patches do what their RFCs say, and a bad one changes nothing.

If these fail, `update_metadata` of a stock client loses or mangles keys.
"""

import pytest

from flystore.model.errors import Conflict, InvalidRequest, TooLarge
from flystore.service import patches
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


def test_a_patch_that_doubles_what_it_copied_again_and_again_is_refused_before_memory_is_gone():
    doubling = [{"op": "copy", "from": "", "path": f"/k{i}"} for i in range(200)]

    with pytest.raises(TooLarge, match="may copy"):
        apply_patch({"a": "x" * 100}, doubling, merge=False)


def test_copies_within_reason_are_made():
    patch = [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "replace", "path": "/b/0", "value": 2}]

    assert apply_patch({"a": [1]}, patch, merge=False) == {"a": [1], "b": [2]}


def test_a_patch_of_more_operations_than_anybody_needs_is_refused():
    patch = [{"op": "add", "path": "/a", "value": 1}] * (patches.MOST_OPERATIONS + 1)

    with pytest.raises(TooLarge, match="operations"):
        apply_patch({}, patch, merge=False)
    assert apply_patch({}, patch[:-1], merge=False) == {"a": 1}


def nested(levels):
    value = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(("more", "fits"), [(40, True), (60, False)])
def test_metadata_cannot_be_nested_without_end_patch_by_patch(more, fits):
    patch = [{"op": "add", "path": "/a" * 150, "value": nested(more)}]

    if fits:
        assert apply_patch(nested(150), patch, merge=False) == nested(190)
    else:
        with pytest.raises(InvalidRequest, match="nest deeper than 200"):
            apply_patch(nested(150), patch, merge=False)


def test_deep_merges_are_refused_in_words():
    with pytest.raises(InvalidRequest, match="nest deeper"):
        apply_patch({}, nested(5_000), merge=True)
