"""A bucket for tests: a real S3 API over HTTP, in this process, with nothing on the disk."""

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any
from unittest.mock import patch

VARIABLES = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}


class S3:
    """A server that speaks S3, stopped and started at will; what it holds outlives a stop.

    Attributes
    ----------
    url : str
        Where it listens.
    refuses : bool
        Whether it says that the key may do nothing.
    requests : list of (str, str)
        Method and path of each request, in order.
    refused : str
        Requests whose path contains it are answered with 403; nothing for an empty one.
    """

    def __init__(self) -> None:
        self.refuses = False
        self.requests: list[tuple[str, str]] = []
        self.refused = ""
        self._is_away = False
        self._listen()

    def _listen(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        inner, turn = DomainDispatcherApplication(create_backend_app), Lock()

        def one_at_a_time(environ: Any, start_response: Any) -> list[bytes]:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            if self.refuses or (self.refused and self.refused in environ["PATH_INFO"]):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
            with turn:  # moto looks at a condition and puts the object in two steps; a bucket does in one
                return list(inner(environ, start_response))

        server: Any = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
        server.verify_request = lambda *_: not self._is_away
        self._server = server
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="s3", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Answer again."""
        self._is_away = False

    def stop(self) -> None:
        """Close each connection without a word. The port stays taken, so that nobody else gets it meanwhile."""
        self._is_away = True

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request):
            pass

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {**VARIABLES, "AWS_ENDPOINT_URL": self.url}


@contextmanager
def s3_server() -> Iterator[S3]:
    """Run a server for the block, which this process reaches by its environment."""
    server = S3()
    try:
        with patch.dict(os.environ, server.environment):
            yield server
    finally:
        server.close()
