"""Lines of JSON over a pipe: what a test process tells the test."""

import json
import os
import select
import time
from typing import Any


class Inbox:
    """The reading end of a pipe; owns its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def next(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message; None if the process has ended.

        Lines that are no messages (a program's own output) come as ``{"text": line}``.

        Raises
        ------
        TimeoutError
            After `timeout` seconds without one.
        """
        until = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise TimeoutError(f"the process said nothing for {timeout:g} s")
            data = os.read(self._descriptor, 65536)
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        return message if isinstance(message, dict) else {"text": line.decode(errors="replace")}

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def say(**message: Any) -> None:
    """Tell the test; in the test process, whose standard output is the pipe."""
    os.write(1, json.dumps(message).encode() + b"\n")
