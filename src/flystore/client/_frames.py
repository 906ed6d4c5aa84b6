"""Chunks that come as they are stored, as Blosc frames one after the other: decoded in threads, each to its place.

A compressed file then costs the service no more than sending it, and the link half or a tenth of the bytes.
"""

import os
import struct
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from types import TracebackType

from flystore.model.late import late

blosc = late("numcodecs.blosc")

_THREADS = max(1, min(4, os.cpu_count() or 1))
_BUFFER_BYTES = 1 << 20
"""Small enough to be in the cache still when it is decoded; used again, for new memory costs more than copying."""

_MOST_BUFFERS, _FEWEST_BUFFERS = 8, 3
_BUFFERS_BYTES = 24 << 20
"""Of all buffers together, where frames are long."""

_HEAD_BYTES = 16
_MOST_MORE = 16
"""Bytes that a frame of values that cannot be compressed is longer than these."""


class BadFrames(Exception):
    """A body's frames are not what they should be: ask for the values themselves, or why they cannot be had."""


@cache
def can_decode() -> bool:
    """Return whether the library is there that decodes them."""
    return find_spec("numcodecs") is not None


class BloscFrames:
    """Takes a body as it arrives and puts what its frames hold into a buffer; a `flystore.wire.Unpacking`.

    Parameters
    ----------
    into : memoryview
        Writable, of bytes. Frames fill it from the beginning; what they do not fill is left as it is.
    """

    coding = "blosc2"

    def __init__(self, into: memoryview) -> None:
        self._into = into
        self._at = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._have = 0
        self._free: list[memoryview] = []
        self._waiting: deque[tuple[Future[None], memoryview]] = deque()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="flystore-decode")

    def __enter__(self) -> "BloscFrames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whatever happens, no thread writes into the buffer afterwards.
        self._threads.shutdown(cancel_futures=True)

    def room(self) -> memoryview:
        """Return where the next bytes of the body are to be put, or some of them."""
        return self._buffer[self._have :]

    def add(self, count: int) -> None:
        """Take so many bytes that were put there.

        Raises
        ------
        BadFrames
        """
        buffer, end, at, needed = self._buffer, self._have + count, 0, 0
        whole: list[tuple[memoryview, memoryview]] = []
        while end - at >= _HEAD_BYTES:
            needed, nbytes = self._lengths(buffer[at : at + _HEAD_BYTES])
            if end - at < needed:
                break
            whole.append((buffer[at : at + needed], self._into[self._at : self._at + nbytes]))
            self._at += nbytes
            at, needed = at + needed, 0
        self._have = end
        if not whole and needed <= len(buffer):
            return
        # What is of the next frame goes to the next buffer, so that each frame is in one piece.
        self._buffer, self._have = self._another(needed), end - at
        self._buffer[: self._have] = buffer[at:end]
        if whole:
            self._waiting.append((self._threads.submit(_decode, whole), buffer))

    def filled(self) -> int:
        """Wait until all frames that came whole are decoded; return how many bytes of the buffer they fill.

        Raises
        ------
        BadFrames
        """
        while self._waiting:
            self._waiting.popleft()[0].result()
        return self._at

    def _another(self, needed: int) -> memoryview:
        """Return a buffer of at least so many bytes, whose frames, if it had any, are decoded."""
        size = max(needed, _BUFFER_BYTES)
        most = min(_MOST_BUFFERS, max(_FEWEST_BUFFERS, _BUFFERS_BYTES // size))
        while self._waiting and (len(self._waiting) + 1 >= most or self._waiting[0][0].done()):
            decoded, buffer = self._waiting.popleft()
            decoded.result()
            self._free.append(buffer)
        self._free = [buffer for buffer in self._free if len(buffer) >= size]
        return self._free.pop() if self._free else memoryview(bytearray(size))

    def _lengths(self, head: memoryview) -> tuple[int, int]:
        """Return the bytes of a frame and of what it holds."""
        nbytes, _, length = struct.unpack_from("<III", head, 4)
        if not 0 < nbytes <= len(self._into) - self._at or not _HEAD_BYTES <= length <= nbytes + _MOST_MORE:
            raise BadFrames(f"a frame of {length} bytes announces {nbytes} where {len(self._into) - self._at} are left")
        return length, nbytes


def _decode(frames: list[tuple[memoryview, memoryview]]) -> None:
    for frame, place in frames:
        try:
            blosc.decompress(frame, place)
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadFrames(str(error)) from error
