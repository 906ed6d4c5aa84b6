"""A transport that writes each batch and its answer into the ledger."""

from typing import Any
from urllib.parse import unquote

from flystore.model.errors import FlystoreError, Unavailable
from flystore.model.frames import is_document, split_frames
from flystore.wire import Answer, HttpTransport

from .ledger import Ledger

_INGEST = "/api/v1/ingest/"


class RecordingTransport(HttpTransport):
    """An `HttpTransport` for a RunWriter of the test process; the ledger must know the runs.

    What a batch holds counts as sent before it goes, the watermark of the answer as acknowledged; a request without
    an answer is noted as unknown.
    """

    def __init__(self, url: str, key: str, ledger: Ledger) -> None:
        super().__init__(url, key)
        self._ledger = ledger

    def request(self, method: str, path: str, **more: Any) -> Answer:
        if method != "POST" or not path.startswith(_INGEST):
            return super().request(method, path, **more)
        uid = unquote(path.removeprefix(_INGEST))
        count = sum(is_document(payload) for _, payload in split_frames(more["body"]))
        self._ledger.sent(uid, more["params"]["first"] + count)
        try:
            answer = super().request(method, path, **more)
        except Unavailable:
            self._ledger.unknown(uid)
            raise
        except FlystoreError:
            raise
        self._ledger.acknowledged(uid, answer.decode()["watermark"])
        return answer
