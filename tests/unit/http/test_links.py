"""Arrays are compressed for those whom that helps.

If these fail, reading on the same host or in the same room is several times slower than it need be, or people far away
wait for bytes that could have been a third.
"""

import asyncio

import pytest

from flystore.http import links as module
from flystore.http.compression import compressed
from flystore.http.links import FAST_BYTES_PER_S, Links

MIB = 1 << 20


def scope(client="10.0.0.1", **headers):
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "client": (client, 5000), "headers": given}


def sent(links, asked, sizes, seconds, monkeypatch):
    """Send parts of `sizes` bytes, each of which takes `seconds` to leave."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    async def send(message):
        now[0] += seconds

    async def run():
        timed = links.timed(asked, send)
        for size in sizes:
            await timed({"type": "http.response.body", "body": memoryview(bytes(size)), "more_body": True})

    asyncio.run(run())


@pytest.mark.parametrize(("seconds", "fast"), [(1e-3, True), (1e-2, False)])
def test_the_rate_of_a_long_body_tells_the_link(monkeypatch, seconds, fast):
    links = Links()
    assert not links.is_fast(scope())
    sent(links, scope(), [MIB] * 20, seconds, monkeypatch)
    assert links.is_fast(scope()) is fast
    assert not links.is_fast(scope("10.0.0.2"))


def test_what_the_sockets_take_in_at_once_tells_nothing(monkeypatch):
    links = Links()
    sent(links, scope(), [MIB] * 8, 1e-6, monkeypatch)
    sent(links, scope(), [1000] * 100_000, 1e-6, monkeypatch)
    assert not links.is_fast(scope())


def test_a_link_that_became_slow_is_slow(monkeypatch):
    links = Links()
    sent(links, scope(), [MIB] * 20, 1e-3, monkeypatch)
    sent(links, scope(), [MIB] * 20, 1e-1, monkeypatch)
    assert not links.is_fast(scope())


def test_a_slow_client_on_this_host_is_not_helped_by_decoding(monkeypatch):
    links = Links()
    assert not links.is_fast(scope("127.0.0.1"))
    for client in ("127.0.0.1", "::1", "10.0.0.7"):
        asked = {**scope(client), "server": ("10.0.0.7", 8000)}
        sent(links, asked, [MIB] * 20, 5e-2, monkeypatch)
        assert links.is_fast(asked)
    assert not links.is_fast({**scope("10.0.0.8"), "server": ("10.0.0.7", 8000)})


def test_people_behind_a_proxy_are_told_apart(monkeypatch):
    links = Links()
    sent(links, scope("127.0.0.1", x_forwarded_for="10.9.9.9"), [MIB] * 20, 1e-3, monkeypatch)
    assert links.is_fast(scope("127.0.0.1", x_forwarded_for="10.9.9.9"))
    assert not links.is_fast(scope("127.0.0.1"))
    assert not links.is_fast(scope("127.0.0.1", x_forwarded_for="10.8.8.8"))


def test_only_so_many_clients_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "_MOST_CLIENTS", 3)
    links = Links()
    for number in range(10):
        links.note(scope(f"10.0.0.{number}"), 2 * FAST_BYTES_PER_S)
    assert [links.is_fast(scope(f"10.0.0.{number}")) for number in range(10)] == [False] * 7 + [True] * 3


@pytest.mark.parametrize(
    ("media_type", "asked", "near", "expected"),
    [
        ("application/octet-stream", b"gzip, blosc2", True, False),
        ("application/octet-stream", b"gzip, blosc2", False, True),
        ("application/octet-stream", b"gzip, identity;q=0", True, True),
        ("application/json", b"gzip", True, True),
    ],
)
def test_arrays_go_to_a_near_client_as_they_are_unless_it_refuses_that(media_type, asked, near, expected):
    start = {"status": 200, "headers": [(b"content-type", media_type.encode())]}
    found = compressed(scope(), asked, 1000, start, None, near=near)
    assert (found is not None) is expected
    assert (b"vary", b"Accept-Encoding") in start["headers"]
