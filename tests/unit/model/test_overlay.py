"""What people edited is kept as a difference that can be laid over whatever documents lead to.

If these fail, a stop document wipes out what somebody wrote into a run, or an edit hides what documents say.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest
from flystore.model.overlay import Overlay, Put, Removed, Within, difference
from flystore.model.structures import Spec

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.sampled_from([None, True, 1, 1.0, 0, False, "x", [], [{"a": 1}], [1]])
VALUES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)


def exact(value):
    """Tell 1, 1.0 and true apart; the order of keys does not matter."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return (type(value), value)


def edit(before, after):
    return Overlay(difference(before, after))


@given(METADATA, METADATA)
def test_an_edit_leads_to_what_was_wanted(before, after):
    assert exact(edit(before, after).over(before)) == exact(after)


@given(METADATA, METADATA)
def test_an_edit_leaves_what_it_is_laid_over_as_it_was(before, after):
    kept = msgspec.json.encode(before)
    edit(before, after).over(before)["new"] = 1
    assert msgspec.json.encode(before) == kept


@given(METADATA)
def test_what_changes_nothing_is_no_edit(metadata):
    assert edit(metadata, metadata).is_empty


@given(METADATA, METADATA, METADATA, METADATA, METADATA)
def test_two_edits_together_are_one_after_the_other_over_whatever_documents_say(first, second, third, fourth, later):
    one, other = edit(first, second), edit(third, fourth)
    assert exact(one.then(other).over(later)) == exact(other.over(one.over(later)))


@given(METADATA, METADATA, METADATA, METADATA)
def test_edits_can_be_put_together_in_any_grouping(documents, one, two, later):
    first, second = edit(documents, one), edit(one, two)
    third = edit(two, documents)
    assert exact(first.then(second).then(third).over(later)) == exact(first.then(second.then(third)).over(later))


@given(METADATA, METADATA)
def test_an_edit_survives_being_stored(before, after):
    overlay = Overlay(difference(before, after), (Spec("A", "1"),), ("red",))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(overlay), type=Overlay) == overlay
    assert msgspec.json.decode(msgspec.json.encode(overlay), type=Overlay) == overlay


def test_keys_that_people_edited_keep_their_values_and_the_others_follow_the_documents():
    overlay = edit({"start": {"sample": "?", "n": 3}}, {"start": {"sample": "ruby", "n": 3}, "remark": "good"})

    assert overlay.over({"start": {"sample": "glass", "n": 5}, "stop": {"exit_status": "success"}}) == {
        "start": {"sample": "ruby", "n": 5},
        "stop": {"exit_status": "success"},
        "remark": "good",
    }


def test_a_key_that_people_removed_stays_away_whatever_documents_say_of_it_later():
    overlay = edit({"a": 1, "in": {"b": 2, "c": 3}}, {"in": {"c": 3}})

    assert overlay.over({"a": 7, "in": {"b": [8], "c": 9}}) == {"in": {"c": 9}}


def test_a_key_that_people_gave_back_its_old_value_is_still_theirs():
    overlay = edit({"a": 1}, {"a": 2}).then(edit({"a": 2}, {"a": 1}))

    assert overlay.over({"a": 5}) == {"a": 1}


def test_null_is_a_value_and_not_a_removal():
    overlay = edit({"a": 1}, {"a": None})

    assert overlay.over({"a": 5}) == {"a": None}


def test_an_object_that_both_made_has_the_keys_of_both():
    overlay = edit({}, {"stop": {"reason": "beam lost", "exit_status": "abort"}})

    assert overlay.over({"stop": {"exit_status": "success", "time": 1.0}}) == {
        "stop": {"exit_status": "abort", "time": 1.0, "reason": "beam lost"}
    }


def test_an_object_that_was_emptied_is_an_empty_object():
    overlay = edit({}, {"o": {"a": 1}}).then(edit({"o": {"a": 1}}, {"o": {}}))

    assert overlay.over({}) == {"o": {}}


def test_a_list_is_one_value():
    overlay = edit({"notes": ["a"]}, {"notes": ["a", "mine"]})

    assert overlay.over({"notes": ["a", "b"]}) == {"notes": ["a", "mine"]}


def test_specs_and_access_tags_are_those_of_the_last_edit_that_named_them():
    first = Overlay(specs=(Spec("A", None),), access_tags=("red",))

    assert first.then(Overlay(access_tags=())) == Overlay(specs=(Spec("A", None),), access_tags=())
    assert first.then(Overlay(specs=())) == Overlay(specs=(), access_tags=("red",))


def test_what_is_stored_of_an_edit_says_what_became_of_each_key():
    kept = edit({"a": 1, "b": {"c": 1}}, {"b": {"c": None}, "d": {}}).metadata

    assert kept == Within({"a": Removed(), "b": Within({"c": Put(None)}), "d": Within({}, made=True)})


def test_metadata_nested_without_end_is_refused_in_words():
    deep = {}
    for _ in range(5_000):
        deep = {"a": deep}

    with pytest.raises(InvalidRequest, match="nested too deep"):
        difference({}, deep)
