"""The documents of a run as they come, each exactly once and in order, on any machine."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from typing import Any

from flystore.model.errors import Damaged, Unavailable
from flystore.model.frames import FRAMES_MIMETYPE, HEADER, FrameDecoder, scan
from flystore.wire import Transport, api_path

from ._follow import Calling, Followed, Line

_OPEN = "x-flystore-run-open"

Document = tuple[str, dict[str, Any]]


class FollowedDocuments(Followed[Document]):
    """An iterator of (name, document) that waits for more, and ends with the run.

    It goes on by itself after a connection broke or the service was started anew. Use it in a ``with`` block, or
    close it.

    Attributes
    ----------
    reconstructed : bool
        False: these are exactly what the writer was given.
    """

    reconstructed = False

    def __init__(self, transport: Transport, uid: str, first: int = 0) -> None:
        line = Line(transport, api_path("documents", uid), FRAMES_MIMETYPE)
        super().__init__(line, _documents(line, uid, first))

    def call(self, callback: Callable[[str, dict[str, Any]], Any]) -> Calling[Document]:
        """Call `callback` with the name and content of each document, in a thread of its own."""
        return Calling(self, callback, spread=True)

    def __repr__(self) -> str:
        return "<documents of a run, as they come>"


def _documents(line: Line, uid: str, first: int) -> Generator[Document, None, None]:
    place = {"first": first}
    for headers, chunks in line.answers(lambda: place):
        over = headers.get(_OPEN) == "false"
        decoder = FrameDecoder()  # templates come anew with each answer
        try:
            for payload in _payloads(chunks, uid):
                document = decoder.decode(payload)
                if document is None:
                    continue
                place["first"] += 1
                yield document
                if document[0] == "stop" or line.closed:
                    return
        except (Unavailable, CancelledError) as error:
            line._went(error)
            continue
        if over:  # without a stop document: it was declared interrupted
            return


def _payloads(chunks: Iterator[bytes], uid: str) -> Iterator[memoryview]:
    """Yield the payloads of frames that chunks cut anywhere; frames without content are signs of life."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        whole = _whole(buffer)
        if not whole:
            continue
        part = bytes(memoryview(buffer)[:whole])
        del buffer[:whole]
        yield from _checked(part, uid)


def _whole(buffer: bytearray) -> int:
    """Return how many bytes of whole frames `buffer` begins with."""
    at = 0
    while at + HEADER.size <= len(buffer):
        end = at + HEADER.size + HEADER.unpack_from(buffer, at)[0]
        if end > len(buffer):
            break
        at = end
    return at


def _checked(part: bytes, uid: str) -> Iterator[memoryview]:
    view, at = memoryview(part), 0
    while at < len(part):
        if HEADER.unpack_from(part, at) == (0, 0):
            at += HEADER.size
            continue
        end = at
        while end < len(part) and HEADER.unpack_from(part, end)[0]:
            end += HEADER.size + HEADER.unpack_from(part, end)[0]
        found = scan(view[at:end])
        if found.problem is not None:
            raise Damaged(f"the documents of run {uid}: {found.problem}", run=uid)
        for start, stop in found.spans:
            yield view[at + start : at + stop]
        at = end
