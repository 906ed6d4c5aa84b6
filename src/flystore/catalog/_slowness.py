"""Statements that took long, counted by the read or write that they are part of.

Names are those of the catalogue's own methods, found from the stack only where a statement was slow: what is quick
pays for two looks at the clock.
"""

import logging
import sys
import threading
from typing import NamedTuple

log = logging.getLogger("flystore.catalog")

SLOW_S = 0.1
"""Seconds from which a statement counts as slow."""

_ROOM = __name__.rpartition(".")[0]
_MACHINERY = frozenset({f"{_ROOM}._database", __name__, f"{_ROOM}._catalog"})


class Slow(NamedTuple):
    """How often something was slow, and how many seconds that took."""

    times: int
    seconds: float


_found: dict[str, Slow] = {}
_lock = threading.Lock()


def slow_queries() -> dict[str, Slow]:
    """Return what was slow in this process so far, by name."""
    with _lock:
        return dict(_found)


def note_slow(seconds: float) -> None:
    """Count a statement of the caller that took so long."""
    name = _name()
    with _lock:
        count, total = _found.get(name, Slow(0, 0.0))
        _found[name] = Slow(count + 1, total + seconds)
    log.info("the query %s took %.3f s", name, seconds)


def _name() -> str:
    """Return the name of the outermost function of the catalogue that is running here, connections left out."""
    frame, name = sys._getframe(2), "other"
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(f"{_ROOM}.") and module not in _MACHINERY:
            name = frame.f_code.co_qualname.partition(".<")[0].rpartition(".")[2]
        elif name != "other":
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return name
