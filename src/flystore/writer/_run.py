"""One run as the callback sees it: its log, its encoder, and where its rows are."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

from flystore.journal import RunLog
from flystore.model import frames
from flystore.model.encoding import encode

from ._positions import StreamPositions

logger = logging.getLogger("flystore.writer")


class Run:
    """Takes the documents of one run, one at a time, in the order in which they come.

    Attributes
    ----------
    label : str
        What people call it: ``scan 42860``, or ``run 7f3c9a12``.
    streams : dict of str to StreamPositions
        By name.
    keys : list of str
        Uids of its descriptors and resources, by which later documents find it.
    untracked : bool
        True until the shipper was told of it.
    """

    def __init__(self, log: RunLog, label: str) -> None:
        self.log = log
        self.label = label
        self.ended = False
        self.untracked = True
        self.streams: dict[str, StreamPositions] = {}
        self.keys: list[str] = []
        self._lock = threading.Lock()
        self._encoder = frames.FrameEncoder() if log.uid else None
        self._unwritten: list[bytes] = []

    def append(self, name: str, doc: Any, stream: StreamPositions | None = None) -> None:
        """Journal a document.

        Raises
        ------
        JournalFull
            If the disk is full.
        Unavailable
            If the disk refuses to write.
        """
        with self._lock:
            payloads = self._encode(name, doc)
            if self._unwritten:
                payloads = [*self._unwritten, *payloads]
            try:
                ordinal = self.log.append(payloads, last=name == "stop")
            except BaseException:
                # The encoder will not send these templates again, and later events need them.
                self._unwritten = [payload for payload in payloads if not frames.is_document(payload)]
                raise
            if self._unwritten:
                self._unwritten.clear()
            if stream is not None:
                if name == "event" and type(doc) is dict and type(seq_num := doc.get("seq_num")) is int:
                    stream.events.add(seq_num, ordinal)
                else:
                    _note(stream, name, doc, ordinal)

    def _encode(self, name: str, doc: Any) -> list[bytes]:
        if type(doc) is not dict and not isinstance(doc, Mapping):
            doc = {"not_a_document": doc}
        try:
            if self._encoder is not None:
                return self._encoder.encode(name, doc)
            return [encode([0, name, doc])]
        except Exception as error:  # noqa: BLE001 - a device's class may raise anything when looked at
            logger.warning("a %s document cannot be encoded (%r); its repr is kept instead", name, error)
            return [encode([0, name, {"unencodable": _repr(doc)}])]


def _note(stream: StreamPositions, name: str, doc: Any, ordinal: int) -> None:
    try:
        if name == "event":
            seq_num = doc["seq_num"]
            if type(seq_num) is int:
                stream.events.add(seq_num, ordinal)
        elif name == "event_page":
            stream.note_page(doc["seq_num"], ordinal)
        elif name == "stream_datum":
            stream.note_stream_datum(doc, ordinal)
    except (KeyError, TypeError, AttributeError):
        return  # an odd document is kept all the same; nobody can wait for its row


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - see above
        return f"<repr raised {type(error).__name__}>"
