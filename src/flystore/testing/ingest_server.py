"""An ingest service over real sockets, small enough to read, for tests of the writer.

It keeps the promises of the ingest route and nothing else: batches are stored whole or not at all,
deduplicated per ordinal, refused on a gap, a clash or a stale epoch. What is stored stays in memory,
in an `IngestStore` that outlives the server, so that a test can stop a server and start another one
on the same port. Faults (errors, lost replies, hanging) are asked for by the test.
"""

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from flystore.model import frames
from flystore.model.errors import (
    ContentClash,
    FlystoreError,
    InvalidRequest,
    SequenceGap,
    StaleEpoch,
    TooLarge,
    Unauthenticated,
)

_STATUS = {
    "sequence-gap": 409,
    "content-clash": 409,
    "stale-epoch": 409,
    "conflict": 409,
    "damaged": 422,
    "unauthenticated": 401,
    "not-permitted": 403,
    "too-large": 413,
    "unavailable": 503,
}


@dataclass
class StoredRun:
    """What an `IngestStore` holds of one run.

    Attributes
    ----------
    documents : list of (str, dict)
        In order; the index is the ordinal.
    epoch : int
        Highest seen.
    batches : list of (int, int)
        (first ordinal, count) of every batch that was accepted, repeated ones included.
    """

    documents: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    templates: dict[int, bytes] = field(default_factory=dict)
    epoch: int = 0
    batches: list[tuple[int, int]] = field(default_factory=list)


class IngestStore:
    """Keeps the documents of runs by uid, and those of no run by the name of their journal."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.orphans: dict[str, StoredRun] = {}
        self._lock = threading.Lock()

    def documents(self, uid: str) -> list[tuple[str, dict[str, Any]]]:
        """Return what is stored of a run, in order; empty if nothing is."""
        with self._lock:
            return list(self.runs[uid].documents) if uid in self.runs else []

    def ingest(self, runs: dict[str, StoredRun], key: str, first: int, epoch: int, body: bytes) -> dict[str, Any]:
        """Store a batch whole or not at all; return the answer of the route."""
        with self._lock:
            run = runs.get(key) or StoredRun()
            if epoch < run.epoch:
                raise StaleEpoch(f"epoch {epoch} is older than {run.epoch}", epoch=run.epoch)
            if first > len(run.documents):
                raise SequenceGap(f"expected document {len(run.documents)}", expected=len(run.documents))
            decoder = frames.FrameDecoder(run.templates)
            documents, digests = [], []
            for _, payload in frames.split_frames(body, where="batch"):
                document = decoder.decode(payload)
                if document is not None:
                    documents.append(document)
                    digests.append(decoder.digest(payload))
            known = run.digests[first : first + len(digests)]
            for offset, (old, new) in enumerate(zip(known, digests, strict=False)):
                if old != new:
                    raise ContentClash(f"document {first + offset} is another one", ordinal=first + offset)
            run.documents += documents[len(known) :]
            run.digests += digests[len(known) :]
            run.templates, run.epoch = decoder.templates, epoch
            run.batches.append((first, len(documents)))
            runs[key] = run
            ended = bool(run.documents) and run.documents[-1][0] == "stop"
            verdict = f"run {key}: {len(run.documents)} documents, stored" if ended else None
            return {"watermark": len(run.documents), "epoch": epoch, "verdict": verdict}


class IngestServer:
    """An HTTP server on 127.0.0.1 in front of an `IngestStore`; a context manager.

    Parameters
    ----------
    store : IngestStore, optional
        Where batches go; None makes a new one.
    port : int
        0 lets the system choose.
    api_key : str, optional
        Asked of each request; None asks for none.
    max_body_bytes : int
        Larger batches are answered with 413.

    Attributes
    ----------
    hold : threading.Event
        While it is set, requests are taken but not answered.
    """

    def __init__(
        self,
        store: IngestStore | None = None,
        *,
        port: int = 0,
        api_key: str | None = None,
        max_body_bytes: int = 2**30,
    ) -> None:
        self.store = store or IngestStore()
        self.api_key = api_key
        self.max_body_bytes = max_body_bytes
        self.hold = threading.Event()
        self.requests: list[str] = []
        self._released = threading.Condition()
        self._faults: deque[Callable[[], FlystoreError | None]] = deque()
        self._connections: set[Any] = set()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.outer = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="ingest-server")

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail_next(self, error: FlystoreError, times: int = 1) -> None:
        """Answer the next batches with this error, and store nothing."""

        def fail() -> FlystoreError:
            return error

        self._faults.extend([fail] * times)

    def lose_next_reply(self, times: int = 1) -> None:
        """Store the next batches, but cut the connection instead of answering."""
        self._faults.extend([lambda: None] * times)

    def release(self) -> None:
        """Answer what is held, and what comes."""
        self.hold.clear()
        with self._released:
            self._released.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections and cut those that are open. Stopping twice is harmless."""
        self.release()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        for connection in tuple(self._connections):
            _cut(connection)
        self._server.server_close()  # waits for the threads of requests

    # -- called by the threads of requests ------------------------------------------------------

    def answer(self, method: str, target: str, key: str | None, body: bytes) -> tuple[int, dict[str, Any]] | None:
        """Return status and content; None to cut the connection."""
        self.requests.append(f"{method} {target}")
        with self._released:
            self._released.wait_for(lambda: not self.hold.is_set())
        try:
            if self.api_key is not None and key != f"Apikey {self.api_key}":
                raise Unauthenticated("no such key")
            if method == "GET":
                return 200, {"library_version": "test"}
            fault = self._faults.popleft() if self._faults else None
            error = fault() if fault is not None else None
            if error is not None:
                raise error
            if len(body) > self.max_body_bytes:
                raise TooLarge(f"{len(body)} bytes are more than {self.max_body_bytes}")
            content = self._ingest(target, body)
            return None if fault is not None else (200, content)
        except FlystoreError as failed:
            reported = {"kind": failed.kind, "message": str(failed), "facts": failed.facts}
            return _STATUS.get(failed.kind, 400), {"detail": str(failed), "error": reported}

    def _ingest(self, target: str, body: bytes) -> dict[str, Any]:
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            first, epoch = int(query["first"]), int(query["epoch"])
        except (KeyError, ValueError) as error:
            raise InvalidRequest(f"first and epoch are numbers: {parts.query}") from error
        if parts.path == "/api/v1/ingest-orphans":
            return self.store.ingest(self.store.orphans, query["journal"], first, epoch, body)
        uid = unquote(parts.path.removeprefix("/api/v1/ingest/"))
        return self.store.ingest(self.store.runs, uid, first, epoch, body)


class _Server(ThreadingHTTPServer):
    outer: IngestServer
    daemon_threads = False
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.outer._connections.add(self.connection)

    def finish(self) -> None:
        self.server.outer._connections.discard(self.connection)
        super().finish()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.outer.answer(self.command, self.path, self.headers.get("Authorization"), body)
        if answer is None:
            self.close_connection = True
            _cut(self.connection)
            return
        status, content = answer
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = _handle  # noqa: N815 - the names are http.server's

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _cut(connection: Any) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


__all__ = ["IngestServer", "IngestStore", "StoredRun"]
