"""A run's documents as they come from the service, one at a time."""

from collections.abc import Iterator
from typing import Any, Self

from flystore.model.errors import Damaged
from flystore.model.frames import FRAMES_MIMETYPE, HEADER, FrameDecoder, scan
from flystore.wire import Transport, api_path

_RECONSTRUCTED = "x-flystore-reconstructed"


class Documents(Iterator[tuple[str, dict[str, Any]]]):
    """An iterator of (name, document), in the order they were emitted.

    Documents are decoded while they arrive, so a run of any length takes little memory. Left before
    its end, it is closed by `close`, at the end of a ``with`` block, or when it is thrown away.

    Attributes
    ----------
    reconstructed : bool
        False: exactly what the writer was given, in type, dtype, value and key order. True: the
        writer never sent the documents; these are worked out from what it stored.
    """

    def __init__(self, transport: Transport, uid: str, first: int = 0) -> None:
        self._documents = _received(transport, uid, first)
        self.reconstructed = bool(next(self._documents))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, dict[str, Any]]:
        return next(self._documents)

    def close(self) -> None:
        """Stop the transfer."""
        self._documents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<documents of a run, {'reconstructed' if self.reconstructed else 'as they were emitted'}>"


def _received(transport: Transport, uid: str, first: int) -> Any:
    """Yield whether the documents are reconstructed, then the documents."""
    params = {"first": first} if first else None
    headers = {"Accept": FRAMES_MIMETYPE}
    with transport.stream("GET", api_path("documents", uid), params=params, headers=headers) as answer:
        yield answer.headers.get(_RECONSTRUCTED, "") == "true"
        decoder = FrameDecoder()
        for payload in _payloads(answer.chunks, uid):
            document = decoder.decode(payload)
            if document is not None:
                yield document


def _payloads(chunks: Iterator[bytes], uid: str) -> Iterator[memoryview]:
    """Yield the payloads of frames that chunks cut anywhere."""
    waiting: list[bytes] = []
    size, needed = 0, 0
    for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        # A frame of many chunks is put together once, not at every chunk.
        if size < needed:
            continue
        buffer = b"".join(waiting)
        found = scan(buffer)
        view = memoryview(buffer)
        for start, stop in found.spans:
            yield view[start:stop]
        if found.problem is not None and not found.torn:
            raise Damaged(f"the documents of run {uid}: {found.problem}", run=uid)
        rest = bytes(view[found.valid :])
        waiting, size = [rest], len(rest)
        needed = HEADER.size + HEADER.unpack_from(rest)[0] if size >= HEADER.size else 0
    if size:
        raise Damaged(f"the documents of run {uid} end inside a frame; {size} bytes are left over", run=uid)
