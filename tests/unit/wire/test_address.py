"""What people type as a service's address is understood, or refused in words.

If these fail, a URL copied from a browser or from a colleague leads nowhere.
"""

import pytest

from flystore.model.errors import InvalidRequest
from flystore.wire import parse_address


@pytest.mark.parametrize(
    ("typed", "base", "path", "key"),
    [
        ("http://h:8000", "http://h:8000", (), None),
        ("http://h:8000/", "http://h:8000", (), None),
        (" localhost:8000 ", "http://localhost:8000", (), None),
        ("http://h/api/v1", "http://h", (), None),
        ("http://h/api/v1/", "http://h", (), None),
        ("http://h/api/v1/metadata//run/a%20b", "http://h", ("run", "a b"), None),
        ("https://h/data/api/v1/metadata/x?api_key=s", "https://h/data", ("x",), "s"),
        ("http://h?api_key=s", "http://h", (), "s"),
        ("http://[::1]:80/", "http://[::1]:80", (), None),
        ("http://h/behind/proxy/", "http://h/behind/proxy", (), None),
    ],
)
def test_the_base_the_node_and_the_key_are_found(typed, base, path, key):
    assert parse_address(typed) == (base, path, key)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("ftp://h", "http:// or https://"),
        ("file:///data", "open_store"),
        ("http://", "names no host"),
        ("http://h:port", "not the URL"),
        ("http://h/api/v1x", "slash or nothing"),
        ("http://h/api/v1/array/full/x", "another route"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(typed, words):
    with pytest.raises(InvalidRequest, match=words):
        parse_address(typed)


def test_loopback_is_recognized():
    assert parse_address("localhost:8000").is_loopback
    assert parse_address("http://127.0.0.1").is_loopback
    assert parse_address("http://[::1]:1").is_loopback
    assert not parse_address("http://beamline.example").is_loopback
