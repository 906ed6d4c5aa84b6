"""Which run a document belongs to.

Documents name their run directly (start, stop, descriptor, resources) or by the descriptor or
resource they refer to. One that refers to nothing known goes to the run that was opened last, if
one is open, and otherwise to the log of documents that belong to no run: the service notes it there;
nothing is ever refused here.
"""

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from flystore.journal import Journal

from ._positions import StreamPositions
from ._run import Run

KEPT_RUNS = 16
"""Runs that have ended and whose late documents still find them."""

MAX_UID_LETTERS = 255

_BY_DESCRIPTOR = frozenset({"event", "event_page"})
_BY_RESOURCE = frozenset({"datum", "datum_page", "bulk_datum"})
_BY_RUN = frozenset({"stop", "descriptor", "resource", "stream_resource"})


class Place(NamedTuple):
    """Where a document goes.

    Attributes
    ----------
    run : Run
    stream : StreamPositions or None
        The stream whose rows it carries, if any.
    ends : bool
        True for the stop that names this run.
    """

    run: Run
    stream: StreamPositions | None
    ends: bool = False


class Router:
    """Places documents; safe to call from several threads."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._open: dict[str, Run] = {}
        self._ended: deque[tuple[str, Run]] = deque()
        self._known: dict[str, Place] = {}
        self._no_run: Run | None = None

    def run(self, uid: str) -> Run | None:
        """Return the run with this uid, if it is open or ended not long ago."""
        return self._runs.get(uid)

    def place(self, name: str, doc: Any) -> Place:
        """Return where the document goes, opening a run for a start."""
        try:
            if name == "event" or name in _BY_DESCRIPTOR:
                return self._known[doc["descriptor"]]
            if name == "stream_datum":
                return self._known.get(doc.get("descriptor")) or self._known[doc["stream_resource"]]
            if name in _BY_RESOURCE:
                return self._known[doc["resource"]]
            if name == "start" and is_uid(doc["uid"]):
                return Place(self._started(doc["uid"], doc), None)
            if name in _BY_RUN:
                run = self._runs[doc["run_start"]]
                return self._refer(name, doc, run)
        except (KeyError, TypeError, AttributeError):
            pass  # it refers to nothing known, or is not even a mapping
        return self._most_likely(name, doc)

    def end(self, run: Run) -> None:
        """Note that a run's stop has been journaled."""
        with self._lock:
            run.ended = True
            if self._open.pop(run.log.uid, None) is not None:
                self._ended.append((run.log.uid, run))
            while len(self._ended) > KEPT_RUNS:
                self._forget(*self._ended.popleft())

    def _forget(self, uid: str, run: Run) -> None:
        if self._runs.get(uid) is run:
            del self._runs[uid]
        for key in run.keys:
            place = self._known.get(key)
            if place is not None and place.run is run:
                del self._known[key]

    def _started(self, uid: str, doc: Mapping[str, Any]) -> Run:
        with self._lock:
            run = self._open.get(uid)
            if run is None:
                run = Run(self._journal.open_run(uid), _label(uid, doc))
                self._runs[uid] = self._open[uid] = run
            return run

    def _refer(self, name: str, doc: Mapping[str, Any], run: Run) -> Place:
        """Remember the uid of a descriptor or resource, so that what refers to it finds the run."""
        if name == "stop":
            return Place(run, None, ends=True)
        uid, stream = doc.get("uid"), None
        if name == "descriptor":
            stream = run.streams.setdefault(str(doc.get("name", "")), StreamPositions())
        place = Place(run, stream)
        if isinstance(uid, str):
            known = self._known.get(uid)
            if known is None or known.run.ended:  # ended: this is a replay, what comes now is the new run's
                run.keys.append(uid)
                self._known[uid] = place
        return Place(run, None)

    def _most_likely(self, name: str, doc: Any) -> Place:
        with self._lock:
            run = next(reversed(self._open.values()), None)
            if run is None:
                if self._no_run is None:
                    self._no_run = Run(self._journal.open_orphans(), "documents of no run")
                return Place(self._no_run, None)
        if name in ("descriptor", "resource", "stream_resource") and isinstance(doc, Mapping):
            return self._refer(name, doc, run)
        return Place(run, None)


def is_uid(uid: Any) -> bool:
    """Return whether `uid` can name a run: text that a URL can carry as one segment."""
    if not isinstance(uid, str) or not 0 < len(uid) <= MAX_UID_LETTERS or uid in (".", ".."):
        return False
    try:
        uid.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(uid: str, doc: Mapping[str, Any]) -> str:
    scan_id = doc.get("scan_id")
    return f"scan {scan_id}" if isinstance(scan_id, (int, str)) else f"run {uid[:8]}"
