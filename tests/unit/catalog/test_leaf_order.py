"""Values in the search index order and equal as the values themselves do.

If these fail, a search for ``scan_id >= 100`` finds 20, or two different samples are taken for one.
"""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flystore.catalog import _leaves as lv
from flystore.model import queries as q
from flystore.model.structures import Family, Spec
from flystore.testing.searching import KEYS, NUMBERS, TEXTS, metadata

numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(NUMBERS))
texts = st.one_of(st.text(st.characters(), max_size=8), st.sampled_from(TEXTS))


@given(numbers, numbers)
@example(2**53, 2**53 + 1)
@example(2**53 + 1, float(2**53))
@example(-(2**64) - 1, -(2**64))
@example(10**400, 10**400 + 1)
@example(-(10**400), -1.7e308)
@example(0.0, -0.0)
@example(2**900 + 2**800, 2**900)
def test_numbers_order_by_size_whatever_their_type(a, b):
    x, y = lv.scalar_bytes(a), lv.scalar_bytes(b)

    assert (x < y, x == y) == (a < b, a == b)


@given(texts, texts)
def test_text_orders_by_code_point(a, b):
    x, y = lv.scalar_bytes(a), lv.scalar_bytes(b)

    assert (x == y) == (a == b)
    if max(len(lv.text_bytes(a)), len(lv.text_bytes(b))) <= lv.TEXT_LIMIT:
        assert (x < y) == (a < b)


def test_kinds_do_not_mix():
    values = [None, False, True, -1, 0.0, 1, "", "1", [1], {"a": 1}]
    raw = [lv.value_bytes(value) for value in values]

    assert raw == sorted(raw)
    assert len(set(raw)) == len(raw)
    assert all(found < lv.MEMBER for found in raw)
    assert all(lv.member_bytes(value) > lv.MEMBER for value in values[:8])


@given(st.one_of(st.none(), st.booleans(), numbers, texts))
def test_a_leaf_gives_its_value_back_or_says_that_it_cannot(value):
    found = lv.decode(lv.scalar_bytes(value))

    assert found is lv.UNKNOWN or (found == value and type(found) is type(value))


@given(st.binary(min_size=1).map(lambda raw: b"\x40" + raw))
def test_what_comes_after_a_prefix_is_above_all_that_begin_with_it(prefix):
    above = lv.after(prefix)

    assert prefix + b"\xff" * 600 < above
    assert prefix < above


@given(metadata(), st.sampled_from(KEYS))
def test_each_key_that_leads_somewhere_has_one_leaf_and_no_other_has_any(found, key):
    leaves = lv.leaves_of(found, Family.CONTAINER, (), ())
    value = q.value_at(found, key)

    own = [raw for name, raw in leaves if name == lv.key_text(key) and raw < lv.MEMBER]
    assert own == ([] if value is q.MISSING else [lv.value_bytes(value)])


def test_metadata_cannot_pass_for_what_is_not_metadata():
    leaves = lv.leaves_of({"@family": "x", "@spec": "S"}, Family.ARRAY, [Spec("A")], ["t"])

    assert {raw for name, raw in leaves if name == lv.FAMILY_KEY} == {lv.scalar_bytes("array")}
    assert {raw for name, raw in leaves if name == lv.SPEC_KEY} == {lv.scalar_bytes("A")}


@pytest.mark.parametrize("key", KEYS)
def test_listed_keys_fit_both_databases(key):
    listed = lv.key_text(key)

    assert len(listed.encode()) <= 200
    assert "\0" not in listed


@given(metadata())
def test_no_leaf_exceeds_what_an_index_takes(found):
    for name, raw in lv.leaves_of(found, Family.CONTAINER, (), ()):
        assert len(name.encode()) + len(raw) < 1_000
