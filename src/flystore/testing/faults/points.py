"""What happens at failpoints, as the entry point of the test processes reads it from the environment.

``FLYSTORE_FAILPOINTS="journal.after_append=die@3,catalog.before_commit=error"``: the third time the first place is
reached the process dies as by ``kill -9``; at the second an `OSError` is raised, each time. ``delay:0.5@2`` sleeps.
"""

import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from flystore.disk import failpoints

VARIABLE = "FLYSTORE_FAILPOINTS"
SEEN_VARIABLE = "FLYSTORE_FAILPOINTS_SEEN"
"""Name of a file to which each place is written when it is reached for the first time."""

_CALL = re.compile(r"\breach\(\s*\"([^\"]+)\"\s*\)")


def parse(text: str) -> dict[str, str]:
    """Return actions by place from the text of the variable."""
    pairs = (part.strip().partition("=") for part in text.split(",") if part.strip())
    return {name: action for name, _, action in pairs}


def written(actions: Mapping[str, str]) -> str:
    """Return the text of the variable; what `parse` reads."""
    return ",".join(f"{name}={action}" for name, action in actions.items())


class Handler:
    """Does what is asked for at each place.

    Parameters
    ----------
    actions : mapping of str to str
        By place: ``die``, ``error`` or ``delay:SECONDS``, each with ``@N`` for the N-th time only.
    first_time : callable
        Told of each place the first time it is reached.
    """

    def __init__(self, actions: Mapping[str, str], first_time: Callable[[str], None] = lambda name: None) -> None:
        self._actions = {name: _parsed(action) for name, action in actions.items()}
        self._first_time = first_time
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            count = self._counts[name]
            if count == 1:
                self._first_time(name)
        found = self._actions.get(name)
        if found is None or found[2] not in (0, count):
            return
        what, seconds, _ = found
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "error":
            raise OSError(errno.EIO, f"failpoint {name}: input/output error")
        else:
            time.sleep(seconds)


def _parsed(action: str) -> tuple[str, float, int]:
    what, _, number = action.partition("@")
    what, _, seconds = what.partition(":")
    if what not in ("die", "error", "delay"):
        raise ValueError(f"a failpoint can die, error or delay, not {what!r}")
    return what, float(seconds or 0), int(number or 0)


def install_from_environment() -> None:
    """Install what the environment asks for, if anything; for the test processes only."""
    actions, seen = parse(os.environ.get(VARIABLE, "")), os.environ.get(SEEN_VARIABLE)
    if not actions and seen is None:
        return
    failpoints.install(Handler(actions, _noting(Path(seen)) if seen else lambda name: None))


def _noting(path: Path) -> Callable[[str], None]:
    def note(name: str) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(name + "\n")

    return note


def names_in_source(package: Path | None = None) -> list[str]:
    """Return the name of every place in the source that calls `reach`, sorted; each must be a plain string."""
    root = Path(failpoints.__file__).parents[1] if package is None else package
    found: set[str] = set()
    for path in root.rglob("*.py"):
        if "testing" not in path.relative_to(root).parts[:1]:
            found.update(_CALL.findall(path.read_text(encoding="utf-8")))
    return sorted(found)
