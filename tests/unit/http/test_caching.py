"""What a caller has already is not sent again, and what could not be checked later must not be kept.

If these fail, a client with a cache shows data that are no longer so, or fetches everything each time.
"""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from flystore.http.caching import knows, validate

JSON = "application/json"


def answered(body, media_type=JSON, *, status=200, asked=None, method="GET", pieces=None, **headers):
    """Return status, headers and body of an answer that was validated."""
    parts = pieces or [body]
    own = {"content-type": media_type, "content-length": str(sum(map(len, parts))), **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in own.items()]
    start = {"type": "http.response.start", "status": status, "headers": raw}
    scope = {"type": "http", "method": method}
    known = asyncio.run(validate(scope, (asked or "").encode(), start, parts[0], len(parts) > 1))
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, b"" if known else b"".join(parts)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_record_that_is_the_same_is_not_sent_again(size):
    body = b"a" * size
    _, headers, sent = answered(body)
    assert sent == body
    status, known, nothing = answered(body, asked=headers["etag"], cache_control="must-revalidate")
    assert (status, nothing) == (304, b"")
    assert known == {"etag": headers["etag"], "cache-control": "must-revalidate"}
    assert answered(body + b"b", asked=headers["etag"])[0] == 200


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_records_have_the_same_tag_only_if_they_are_the_same(one, other):
    tags = [answered(body)[1]["etag"] for body in (one, other)]
    assert (tags[0] == tags[1]) == (one == other)


def test_the_same_record_in_another_encoding_is_another_one():
    assert answered(b"1")[1]["etag"] != answered(b"1", "application/x-msgpack")[1]["etag"]


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("abc", True),
        ('"abc"', True),
        ('W/"abc"', True),
        ('"x", "abc"', True),
        ("x,abc", True),
        ('"abcd"', False),
        ("*", False),
        ("", False),
    ],
)
def test_a_tag_is_known_with_or_without_quotes_and_among_others(header, known):
    assert knows(Headers({"if-none-match": header}), "abc") is known


def test_what_has_no_validator_must_not_be_kept():
    for answer in (
        answered(b"x", "text/csv"),
        answered(b"", pieces=[b"{", b"}"]),
        answered(b"{}", status=404),
        answered(b"{}", method="HEAD", media_type="text/plain"),
    ):
        assert answer[1]["cache-control"] == "no-store"
        assert "etag" not in answer[1]


def test_what_a_route_said_about_keeping_stays():
    assert answered(b"{}", cache_control="no-store")[1]["cache-control"] == "no-store"
    assert "etag" not in answered(b"{}", cache_control="no-store")[1]
    assert answered(b"{}", etag='"own"', asked='"own"')[0] == 200
    assert "cache-control" not in answered(b"x", "text/csv", etag='"own"')[1]
    assert "cache-control" not in answered(b"x", "text/html", expires="Thu, 01 Jan 2026 00:00:00 GMT")[1]


def test_answers_to_what_changes_something_are_left_alone():
    assert set(answered(b"{}", method="POST")[1]) == {"content-type", "content-length"}
