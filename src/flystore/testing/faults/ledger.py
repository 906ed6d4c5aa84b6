"""The ledger: what was sent, journaled and acknowledged, written down outside of what is tested.

One line of JSON an entry, each one `write` to a file opened for appending: an entry survives the death of the
process that wrote it. Where the power of the tested disk is cut, the ledger lies on another disk; ``fsync=True``
is for a ledger that has to outlive this machine.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Self

ARRAY = "array-"
"""Begins the key of an array."""


@dataclass
class Known:
    """What is known of one run: each number an ordinal before which it holds.

    Attributes
    ----------
    run, events : int
        Its number in the load, and how many events it has in all.
    sent : int
        Documents that were given to whatever is tested: no more than these may be stored.
    journaled : int
        Documents for which the writer returned.
    acknowledged : int
        Documents that the service acknowledged: these must be stored, whatever happened.
    unknown : int
        Requests that were sent and never answered.
    """

    run: int
    events: int
    sent: int = 0
    journaled: int = 0
    acknowledged: int = 0
    unknown: int = 0


class Ledger:
    """Entries of runs by uid; several processes may write to one file. Safe between threads.

    Parameters
    ----------
    path : Path
        Made if it is not there; what is in it counts.
    fsync : bool
        Sync each entry before it counts.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self.path = path
        self._fsync = fsync
        self._lock = Lock()
        self._runs: dict[str, Known] = {}
        self._arrays: dict[str, Known] = {}
        self._read = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.reload()

    @property
    def runs(self) -> Mapping[str, Known]:
        return MappingProxyType(self._runs)

    @property
    def arrays(self) -> Mapping[str, Known]:
        """Arrays by key; their blocks count as documents do."""
        return MappingProxyType(self._arrays)

    def begun(self, uid: str, run: int, events: int) -> None:
        """Note a run; a `uid` that begins with ``array-`` is an array, and `events` its blocks."""
        self._note(["begun", uid, run, events])

    def sent(self, uid: str, upto: int) -> None:
        """Note that the documents before ordinal `upto` are given away now; call it before."""
        self._note(["sent", uid, upto])

    def journaled(self, uid: str, upto: int) -> None:
        self._note(["journaled", uid, upto])

    def acknowledged(self, uid: str, upto: int) -> None:
        self._note(["acknowledged", uid, upto])

    def unknown(self, uid: str) -> None:
        """Note that a request got no answer: what it held may be stored or not."""
        self._note(["unknown", uid, self._of(uid)[uid].unknown + 1])

    def reload(self) -> None:
        """Read what other processes wrote meanwhile; a torn last line is left for the next time."""
        with self._lock, open(self.path, "rb") as file:
            file.seek(self._read)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                self._apply(json.loads(line))

    def reload_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Read on until `condition` holds, or is not going to within `seconds`; return whether it does."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
            self.reload()
        return True

    def _note(self, entry: list[str | int]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            os.writev(self._descriptor, [line])  # a call that nothing else makes, so that none is taken for another
            if self._fsync:
                os.fsync(self._descriptor)
            self._apply(entry)

    def _apply(self, entry: list) -> None:
        # Entries are maxima, so one that is read back after it was noted changes nothing.
        what, uid = entry[0], entry[1]
        if what == "begun":
            self._of(uid).setdefault(uid, Known(entry[2], entry[3]))
            return
        known = self._of(uid)[uid]
        setattr(known, what, max(getattr(known, what), entry[2]))

    def _of(self, uid: str) -> dict[str, Known]:
        return self._arrays if uid.startswith(ARRAY) else self._runs

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
