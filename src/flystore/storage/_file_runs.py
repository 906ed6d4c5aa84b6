"""Stretches of a file that leave as they lie there, without a copy of them in this process."""

from collections.abc import Iterator
from typing import NamedTuple

from flystore.model.errors import NotReady

from ._roots import OpenedFile

_READ_BYTES = 1 << 20


class FileRuns(NamedTuple):
    """Bytes of an opened file, in the order in which they are wanted.

    Attributes
    ----------
    file : OpenedFile
        Stays open as long as these are used; not this one's to close.
    runs : tuple of (int, int)
        Where each stretch begins and how long it is, bytes; none is empty.
    """

    file: OpenedFile
    runs: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Of all stretches together."""
        return sum(length for _, length in self.runs)

    def part(self, start: int, stop: int) -> "FileRuns":
        """Return the bytes from `start` to `stop` of all, counted from the first."""
        found = []
        for offset, length in self.runs:
            low, high = max(start, 0), min(stop, length)
            if low < high:
                found.append((offset + low, high - low))
            start, stop = start - length, stop - length
        return FileRuns(self.file, tuple(found))

    def read(self) -> Iterator[bytes]:
        """Yield the bytes, a megabyte at a time.

        Raises
        ------
        Truncated, Unreadable
            As `OpenedFile.read`.
        """
        for offset, length in self.runs:
            for at in range(0, length, _READ_BYTES):
                yield self.file.read(offset + at, min(_READ_BYTES, length - at))

    def require_unchanged(self) -> None:
        """Refuse what was sent of a file that was written to since it was opened.

        Raises
        ------
        NotReady
        """
        if self.file.current_state() != (self.file.size, self.file.modified_ns):
            raise NotReady(
                f"{self.file.uri} was written to while it was sent; what was sent of it may be neither the old nor the "
                "new content. Read again.",
                uri=self.file.uri,
            )
