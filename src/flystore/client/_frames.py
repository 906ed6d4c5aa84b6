"""Chunks that come as they are stored, as Blosc frames one after the other: decoded in threads, straight to their place.

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
_WAITING = 8
"""Pieces of a body that wait for a thread to decode them; then no more are taken."""

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
        self._begun = bytearray()
        self._waiting: deque[Future[None]] = deque()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="flystore-decode")

    def __enter__(self) -> "BloscFrames":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whatever happens, no thread writes into the buffer afterwards.
        self._threads.shutdown(cancel_futures=True)

    def add(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises
        ------
        BadFrames
        """
        at = self._end_begun(piece) if self._begun else 0
        whole: list[tuple[memoryview, memoryview]] = []
        view = memoryview(piece)
        while len(view) - at >= _HEAD_BYTES:
            length, nbytes = self._lengths(view[at : at + _HEAD_BYTES])
            if len(view) - at < length:
                break
            whole.append(self._place(view[at : at + length], nbytes))
            at += length
        self._begun += view[at:]
        self._decode(whole)

    def filled(self) -> int:
        """Wait until all frames that came whole are decoded; return how many bytes of the buffer they fill.

        Raises
        ------
        BadFrames
        """
        while self._waiting:
            self._waiting.popleft().result()
        return self._at

    def _end_begun(self, piece: bytes) -> int:
        """Complete the frame of which a part came before; return how many bytes of the piece are of it."""
        begun, at = self._begun, 0
        if len(begun) < _HEAD_BYTES:
            at = min(_HEAD_BYTES - len(begun), len(piece))
            begun += memoryview(piece)[:at]
            if len(begun) < _HEAD_BYTES:
                return at
        length, nbytes = self._lengths(memoryview(begun)[:_HEAD_BYTES])
        more = min(length - len(begun), len(piece) - at)
        begun += memoryview(piece)[at : at + more]
        if len(begun) == length:
            self._begun = bytearray()
            self._decode([self._place(memoryview(begun), nbytes)])
        return at + more

    def _lengths(self, head: memoryview) -> tuple[int, int]:
        """Return the bytes of a frame and of what it holds."""
        nbytes, _, length = struct.unpack_from("<III", head, 4)
        if not 0 < nbytes <= len(self._into) - self._at or not _HEAD_BYTES <= length <= nbytes + _MOST_MORE:
            raise BadFrames(f"a frame of {length} bytes announces {nbytes} where {len(self._into) - self._at} are left")
        return length, nbytes

    def _place(self, frame: memoryview, nbytes: int) -> tuple[memoryview, memoryview]:
        place = self._into[self._at : self._at + nbytes]
        self._at += nbytes
        return frame, place

    def _decode(self, frames: list[tuple[memoryview, memoryview]]) -> None:
        if not frames:
            return
        while len(self._waiting) >= _WAITING or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._threads.submit(_decode, frames))


def _decode(frames: list[tuple[memoryview, memoryview]]) -> None:
    for frame, place in frames:
        try:
            blosc.decompress(frame, place)
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadFrames(str(error)) from error
