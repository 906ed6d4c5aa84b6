"""Downloads in ranges give the bytes that were asked for, and a range of an older file is never put to a newer one.

If these fail, a resumed download is silently wrong.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from flystore.http.ranges import MOST_RANGES, http_date, is_known, wanted_ranges

ETAG, TIME = '"abc"', 1_790_000_000.75


def ranges(text, size=100, **conditions):
    return wanted_ranges(Headers({"range": text, **conditions}), size, ETAG, TIME)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes=0-0", [range(1)]),
        ("bytes=0-", [range(100)]),
        ("bytes=10-19", [range(10, 20)]),
        ("bytes=90-1000", [range(90, 100)]),
        ("bytes=-10", [range(90, 100)]),
        ("bytes=-1000", [range(100)]),
        ("BYTES = 5-6", [range(5, 7)]),
        ("bytes=0-1, 5-6", [range(2), range(5, 7)]),
        ("bytes=5-6,0-1", [range(2), range(5, 7)]),
        ("bytes=0-10,5-20,21-30", [range(31)]),
        ("bytes=0-1,500-", [range(2)]),
        ("bytes=100-", []),
        ("bytes=-0", []),
    ],
)
def test_ranges_are_what_http_says(text, found):
    assert ranges(text) == found


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "rows=0-1", "bytes=1-2-3", "bytes=0x1-2", "bytes=٣-٤"],
)
def test_a_header_that_makes_no_sense_counts_as_not_sent(text):
    if text == "bytes=٣-٤":
        text = text.encode().decode("latin-1")
    assert ranges(text) is None


def test_many_ranges_are_answered_by_the_whole_file():
    assert ranges("bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(MOST_RANGES))) is not None
    assert ranges("bytes=" + ",".join(f"{2 * i}-{2 * i}" for i in range(MOST_RANGES + 1))) is None
    assert ranges("bytes=" + "0-," * 100_000) is None


def test_nothing_of_an_empty_file_can_be_had():
    assert ranges("bytes=0-", size=0) == []


@given(st.text(max_size=40), st.integers(0, 10**6))
def test_whatever_is_asked_for_lies_in_the_file(text, size):
    found = wanted_ranges(Headers({"range": "bytes=" + text.encode().decode("latin-1")}), size, ETAG, TIME)
    assert found is None or all(0 <= part.start < part.stop <= size for part in found)


@pytest.mark.parametrize("condition", [ETAG, http_date(TIME)])
def test_a_range_of_the_same_file_is_sent(condition):
    assert ranges("bytes=0-0", **{"if-range": condition}) == [range(1)]


@pytest.mark.parametrize("condition", ['"other"', f"W/{ETAG}", http_date(TIME - 60), http_date(TIME + 60), "nonsense"])
def test_of_another_file_everything_is_sent(condition):
    assert ranges("bytes=0-0", **{"if-range": condition}) is None


def test_a_date_says_nothing_of_a_file_that_may_have_changed_since():
    headers = Headers({"range": "bytes=0-0", "if-range": http_date(TIME)})
    assert wanted_ranges(headers, 100, ETAG, None) is None


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({}, False),
        ({"if-none-match": ETAG}, True),
        ({"if-none-match": f'"x", W/{ETAG}'}, True),
        ({"if-none-match": "*"}, True),
        ({"if-none-match": '"x"'}, False),
        ({"if-none-match": '"x"', "if-modified-since": http_date(TIME)}, False),
        ({"if-modified-since": http_date(TIME)}, True),
        ({"if-modified-since": http_date(TIME - 1)}, False),
        ({"if-modified-since": "nonsense"}, False),
        ({"if-modified-since": "Mon, 99 Xxx 99999 99:99:99 GMT"}, False),
    ],
)
def test_who_has_the_file_is_not_sent_it_again(headers, known):
    assert is_known(Headers(headers), ETAG, TIME) is known
