"""Bodies in pieces: small ones joined, files made on disk, writers that want a file and get a drain."""

import errno
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TypeVar

from flystore.model.errors import DiskFull

PIECE_BYTES = 256 << 10
"""What is sent at a time."""

_AT_ONCE = 2
"""Threads of an export that work ahead: one more than the one that waits for the client, so memory stays small."""

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about `PIECE_BYTES`; what is larger passes as it is."""
    kept: list[bytes] = []
    size = 0
    for part in parts:
        kept.append(part)
        size += len(part)
        if size >= PIECE_BYTES:
            yield b"".join(kept)
            kept, size = [], 0
    if kept:
        yield b"".join(kept)


def ahead(make: Callable[[_Given], _Made], given: Iterable[_Given]) -> Iterator[_Made]:
    """Yield what `make` makes of each, in order, while the next few are being made in other threads.

    For work that lets other threads go on (Arrow's, numpy's). Nothing goes on once the iterator is closed.
    """
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="flystore-export") as pool:
        under_way: deque[Future[_Made]] = deque()
        try:
            for item in given:
                under_way.append(pool.submit(make, item))
                if len(under_way) > _AT_ONCE:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for waiting in under_way:
                waiting.cancel()


def through_a_file(write: Callable[[IO[bytes]], None]) -> Iterator[bytes]:
    """Let `write` make a file on disk, then yield its bytes; nothing of it is left, whatever happens.

    Raises
    ------
    DiskFull
        If there is no room for it where temporary files are made (``TMPDIR``).
    """
    with tempfile.TemporaryFile(prefix="flystore-export-") as file:
        try:
            write(file)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise DiskFull(
                f"there is no room for this export in {tempfile.gettempdir()} on the service's host; export less, or a "
                "format that needs no file there (arrow, csv, json)"
            ) from error
        file.seek(0)
        while piece := file.read(PIECE_BYTES):
            yield piece
