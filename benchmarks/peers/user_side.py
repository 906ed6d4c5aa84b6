"""Users over bare HTTP, the same for both services, and a program that only uses the processor."""

import http.client
import json
import random
import selectors
import socket
import time
from typing import Any
from urllib.parse import urlsplit

RECEIVE_BYTES = 1 << 20


class Tasks:
    """What another user does meanwhile."""

    def download(self, url: str, key: str, path: str, seconds: float = 0.0) -> dict[str, float]:
        """Get something, and again until so many seconds have passed; figures are of the last one."""
        began = time.perf_counter()
        while True:
            found = _download(url, key, path)
            if time.perf_counter() - began >= seconds:
                return found

    def latencies(self, url: str, key: str, paths: list[str], rounds: int) -> dict[str, list[float]]:
        """Ask for each path in turn over one connection; `rounds` times, how long each took."""
        connection = _connect(url)
        took = []
        for path in paths * rounds:
            began = time.perf_counter()
            _ask(connection, key, path)
            took.append(time.perf_counter() - began)
        connection.close()
        return {"took": took}

    def found(self, url: str, key: str, path: str) -> Any:
        """Ask once; return the keys of what was found, their number if that was asked, or values with theirs."""
        connection = _connect(url)
        answer = json.loads(_ask(connection, key, path))
        connection.close()
        if "data" not in answer:
            return sorted(
                (entry["value"], entry["count"]) for entries in answer["metadata"].values() for entry in entries
            )
        if isinstance(answer["data"], dict):
            return answer["data"]["id"]
        # How many there are in all, stock only estimates where somebody asked for a page.
        return [entry["id"] for entry in answer["data"]] or answer["meta"]["count"]

    def ask_now_and_then(self, url: str, key: str, path: str, every: float, seconds: float) -> dict[str, list[float]]:
        """Ask at fixed moments; a wait counts from the moment, also where the answer before came after it."""
        connection = _connect(url)
        waits = []
        first = time.perf_counter()
        for number in range(int(seconds / every)):
            due = first + number * every
            left = due - time.perf_counter()
            if left > 0:
                time.sleep(left)
            elif -left > seconds:
                break
            _ask(connection, key, path)
            waits.append(time.perf_counter() - due)
        connection.close()
        return {"took": waits}

    def load(self, url: str, key: str, paths: list[str], connections: int, seconds: float) -> dict[str, float]:
        """Ask over several connections at once, each as soon as it has its answer; return answers a second."""
        requests = [_request(url, key, path) for path in paths]
        drawn = random.Random(1)
        selector = selectors.DefaultSelector()
        parts = urlsplit(url)
        open_ones = [socket.create_connection((parts.hostname, parts.port)) for _ in range(connections)]
        for connection in open_ones:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ, _Answer())
            connection.sendall(drawn.choice(requests))
        began = time.perf_counter()
        answered = 0
        while (now := time.perf_counter()) - began < seconds:
            for selected, _ in selector.select(seconds):
                answering: Any = selected.fileobj
                if selected.data.add(answering.recv(RECEIVE_BYTES)):
                    answered += 1
                    answering.sendall(drawn.choice(requests))
        for connection in open_ones:
            connection.close()
        return {"rate": answered / (now - began)}

    def burn(self, share: float, seconds: float) -> dict[str, float]:
        """Use a share of one processor for so long; return what it got."""
        cpu, began = time.process_time(), time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            if time.process_time() - cpu < share * passed:
                sum(range(2000))
            else:
                time.sleep(0.001)
        return {"share": (time.process_time() - cpu) / passed}


class _Answer:
    """Puts an answer together from what was received."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._head = b""
        self._left: int | None = None
        self._chunked = False

    def add(self, data: bytes) -> bool:
        """Take more; return whether the answer is whole."""
        if not data:
            raise RuntimeError("the service closed a connection")
        if self._left is None and not self._chunked:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return False
            self._read_head(head)
        if self._chunked:
            self._head = (self._head + data)[-5:]
            whole = self._head == b"0\r\n\r\n"
        else:
            assert self._left is not None
            self._left -= len(data)
            whole = self._left == 0
        if whole:
            self._begin()
        return whole

    def _read_head(self, head: bytes) -> None:
        status, *lines = head.split(b"\r\n")
        if status.split()[1] != b"200":
            raise RuntimeError(f"the service answered {status.decode()}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._head = b""
        if b"content-length" in headers:
            self._left = int(headers[b"content-length"])
        else:
            self._chunked = True


def _request(url: str, key: str, path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Apikey {key}\r\nAccept: */*\r\n\r\n"
    ).encode()


def _connect(url: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _ask(connection: http.client.HTTPConnection, key: str, path: str) -> bytes:
    connection.request("GET", path, headers={"Authorization": f"Apikey {key}"})
    answer = connection.getresponse()
    body = answer.read()
    _require_ok(answer, path, body)
    return body


def _download(url: str, key: str, path: str) -> dict[str, float]:
    connection = _connect(url)
    began = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Apikey {key}"})
    answer = connection.getresponse()
    piece = answer.read(1)
    first, size = time.perf_counter() - began, len(piece)
    _require_ok(answer, path, piece)
    while piece := answer.read1(RECEIVE_BYTES):
        size += len(piece)
    seconds = time.perf_counter() - began
    connection.close()
    return {"seconds": seconds, "first": first, "bytes": size}


def _require_ok(answer: Any, path: str, body: bytes) -> None:
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered {answer.status}: {(body + answer.read())[:300]!r}")
