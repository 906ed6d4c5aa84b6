"""Connections that fail: what is repeated, what is not, and what people are told.

If these fail, a hiccup of the network ends a long read, a request that changes something is sent
twice, or someone sees a stack of socket errors in place of a sentence.
"""

import http.client
import socket
import threading

import pytest

from flystore.model.errors import InvalidRequest, Unavailable
from flystore.wire import HttpTransport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok"


class Scripted:
    """A listener that answers each connection's first request with the next of its answers."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        for answer in self.answers:
            connection, _ = self.listener.accept()
            with connection:
                self.requests.append(connection.recv(65536))
                if callable(answer):
                    answer = answer(self)
                connection.sendall(answer)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.listener.close()
        self.thread.join(60)
        assert not self.thread.is_alive()


def transport_to(url, pauses=None):
    return HttpTransport(url, sleep=(pauses if pauses is not None else []).append)


def test_a_get_is_repeated_when_its_connection_breaks():
    pauses = []
    with Scripted(b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", OK) as server:
        transport = transport_to(server.url, pauses)
        assert transport.request("GET", "/").body == b"ok"
        transport.close()
    assert len(server.requests) == 3
    assert pauses == sorted(pauses)


def test_a_get_is_not_repeated_for_ever():
    with Scripted(b"", b"", b"") as server:
        transport = transport_to(server.url)
        with pytest.raises(Unavailable, match="try again") as caught:
            transport.request("GET", "/api/v1/")
        transport.close()
    assert server.url in str(caught.value)
    assert caught.value.url == server.url


def test_a_post_is_sent_once():
    with Scripted(b"") as server:
        transport = transport_to(server.url)
        with pytest.raises(Unavailable):
            transport.request("POST", "/", body=b"x")
        transport.close()
    assert len(server.requests) == 1


def test_a_read_that_broke_off_starts_again_from_the_first_byte():
    part = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nXX"
    with Scripted(part, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd") as server:
        transport = transport_to(server.url)
        into = bytearray(4)
        transport.readinto("GET", "/", memoryview(into))
        transport.close()
    assert into == b"abcd"


def test_nobody_listening_is_said_in_words():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transport = transport_to(f"http://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match=f"Is the service running and reachable at http://127.0.0.1:{port}"):
        transport.request("GET", "/api/v1/")
    transport.close()


def test_a_move_on_the_same_host_is_followed_and_remembered():
    def moved(server):
        return f"HTTP/1.1 307 Moved\r\nlocation: {server.url}/data/api/v1/\r\ncontent-length: 0\r\n\r\n".encode()

    with Scripted(moved, OK, OK) as server:
        transport = transport_to(server.url)
        assert transport.request("GET", "/api/v1/").body == b"ok"
        assert transport.base_url == f"{server.url}/data"
        assert transport.request("GET", "/api/v1/").body == b"ok"
        transport.close()
    assert server.requests[2].startswith(b"GET /data/api/v1/ ")


def test_the_key_is_not_taken_to_another_host():
    moved = b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/api/v1/\r\ncontent-length: 0\r\n\r\n"
    with Scripted(moved) as server:
        transport = transport_to(server.url)
        with pytest.raises(InvalidRequest, match="elsewhere"):
            transport.request("GET", "/api/v1/")
        transport.close()


def test_the_key_comes_from_the_argument_then_the_url_then_the_environment(monkeypatch):
    monkeypatch.setenv("FLYSTORE_API_KEY", "from-flystore")
    monkeypatch.setenv("TILED_API_KEY", "from-tiled")

    def key_sent(url_query="", **arguments):
        with Scripted(OK) as server:
            transport = HttpTransport(server.url + url_query, **arguments)
            transport.request("GET", "/")
            transport.close()
        (line,) = [line for line in server.requests[0].split(b"\r\n") if line.startswith(b"Authorization")]
        return line.removeprefix(b"Authorization: Apikey ")

    assert key_sent("/?api_key=typed", api_key="given") == b"given"
    assert key_sent("/?api_key=typed") == b"typed"
    assert key_sent() == b"from-flystore"
    monkeypatch.delenv("FLYSTORE_API_KEY")
    assert key_sent() == b"from-tiled"


@pytest.mark.parametrize("size", [0, 1, 16 << 10, (16 << 10) + 1, 300_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_of_any_size_arrives_whole_and_once(kind, size):
    body, taken = bytes(n % 251 for n in range(size)), []

    def answer(connection):
        with connection, connection.makefile("rb") as received:
            length = 0
            while (line := received.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            taken.append(received.read(length))
            connection.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: answer(listener.accept()[0]))
        thread.start()
        transport = transport_to(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert transport.request("POST", "/", body=kind(body)).body == b"ok"
        transport.close()
        thread.join()
    assert taken == [body]


def test_a_short_body_goes_out_together_with_its_head(monkeypatch):
    sent = []

    def noting(self, data, real=http.client.HTTPConnection.send):
        sent.append(bytes(data))
        real(self, data)

    monkeypatch.setattr(http.client.HTTPConnection, "send", noting)
    last = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")  # or the next request may meet the end
    with Scripted(last, OK) as server:
        transport = transport_to(server.url)
        transport.request("POST", "/", body=b"a document")
        transport.request("GET", "/")
        transport.close()
    post, get = sent
    assert post.startswith(b"POST / HTTP/1.1\r\n")
    assert post.endswith(b"\r\n\r\na document")
    assert get.endswith(b"\r\n\r\n")


def test_requests_go_below_the_path_of_the_address_and_are_encoded_as_ever():
    with Scripted(OK) as server:
        transport = transport_to(server.url)
        transport.request("GET", "/api/v1/metadata/ä b", params={"q": "1&2"})
        transport.close()
    (request,) = server.requests
    assert request.startswith(b"GET /api/v1/metadata/%C3%A4%20b?q=1%262 HTTP/1.1\r\n")
