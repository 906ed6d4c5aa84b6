"""A file that is only written to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flystore.model.late import pa


class Sink:
    """A file, as `pyarrow.PythonFile` takes one, that keeps what is written to it, without a copy.

    Attributes
    ----------
    parts : list of bytes or pyarrow.Buffer
        What was written and not taken yet, in order.
    """

    closed = False

    def __init__(self) -> None:
        self.parts: list[bytes | pa.Buffer] = []
        self._position = 0

    def write(self, data: bytes | pa.Buffer) -> int:
        self.parts.append(data)
        self._position += len(data)
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        found = b"".join(self.parts)
        self.parts.clear()
        return found

    def tell(self) -> int:
        return self._position

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
