"""What cannot be understood of a request sent ahead is not answered within the answer before it.

If this fails, a client takes the words of a refusal for bytes of its array.
"""

import socket

from flystore.http import server_settings
from flystore.service import Limits
from flystore.testing.serving import serving

_FIRST, _REST = b"a" * 100, b"b" * 900


def sent_after(app, first, then):
    """Return all that a client gets that sends `then` once it has `first`."""
    with (
        serving(app, lifespan="off", settings=server_settings(Limits())) as url,
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        found = b""
        while not found.endswith(first):
            found += client.recv(1 << 16)
        client.sendall(then)
        while more := client.recv(1 << 16):
            found += more
    return found


def test_an_answer_under_way_ends_early_where_the_next_request_is_none():
    async def app(scope, receive, send):
        length = (b"content-length", b"%d" % len(_FIRST + _REST))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": _FIRST, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    found = sent_after(app, _FIRST, b"\0 no request\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200")
    assert found.partition(b"\r\n\r\n")[2] == _FIRST


def test_between_two_answers_it_is_told():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": _FIRST})

    assert sent_after(app, _FIRST, b"\0 no request\r\n\r\n").count(b"HTTP/1.1 400") == 1
