"""Following: what changed since a place in the feed, and a run's documents as they come.

Every place is a position in the log, which is the order of commits, so whoever asks again from the place
reached misses nothing and gets nothing twice, whichever process answers and whatever was killed in between. Nothing
is kept for a follower but its place: what it has not taken yet lies in the catalogue.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from flystore.catalog import Catalog, FeedEntry, LogRecord, NotAtOnce, Snapshot
from flystore.model.errors import InvalidRequest, NotFound, WrongToken
from flystore.projection import unescape

from .browse import run_at
from .documents import frames_from
from .recent import Recent
from .waking import Waking, topic_of_path, topic_of_run

NOW = "now"
"""In place of a token: from now on."""

MOST_ENTRIES = 1_000
"""Changes in one page, at most."""

_TOKEN = re.compile(r"fs1\.([0-9a-f]{16})\.(\d{1,18})(?:\.(\d{1,18}))?\.([0-9a-f]{8})")
_AT_ONCE = 64
_WINDOW = 100_000
"""Positions that one page looks at: a page about one node costs no more however long the feed."""

_KEPT_BYTES = 64 << 10
_T = TypeVar("_T")


class Place(NamedTuple):
    """How far somebody has followed the feed.

    Attributes
    ----------
    position : int
    seq : int or None
        Of the last change known at `position`; None: all of them are.
    """

    position: int
    seq: int | None = None


class Page(msgspec.Struct, frozen=True):
    """Some changes.

    Attributes
    ----------
    entries : list of dict
        ``path``, ``what``, ``detail``, ``run``, ``position`` and ``token``: where to go on after this very change.
    next : str
        The token to go on from.
    more : bool
        Whether there is more already.
    lagged : dict or None
        Where more was waiting than the caller wants to be told one by one: ``{"after": token}`` from which all of it
        can be read. `entries` is empty then and `next` lies behind it.
    run_open : bool or None
        Whether more documents are expected of the run that is followed; None where no run is.
    """

    entries: list[dict[str, Any]]
    next: str
    more: bool = False
    lagged: dict[str, Any] | None = None
    run_open: bool | None = None


class Subject(NamedTuple):
    """What is followed.

    Attributes
    ----------
    path : tuple of str
        Of the node; empty: everything.
    run_uid : str or None
        The run that the node is or belongs to, by which its changes are found.
    """

    path: tuple[str, ...]
    run_uid: str | None

    @property
    def topic(self) -> str:
        return topic_of_path(self.path)


class Frames(NamedTuple):
    """Documents of a run that follow each other.

    Attributes
    ----------
    pieces : list of bytes
        Whole frames, templates among them.
    next : int
        Ordinal of the document after them.
    ended : bool
        Whether no more are expected.
    """

    pieces: list[bytes]
    next: int
    ended: bool


class _Tokens:
    """Writes tokens, as one snapshot sees the log."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._store = snapshot.store()
        self._marks: dict[int, str] = {}

    def __call__(self, place: Place) -> str:
        mark = self._marks.get(place.position)
        if mark is None:
            mark = self._marks[place.position] = self._snapshot.mark(place.position)
        at = f"{place.position}" if place.seq is None else f"{place.position}.{place.seq}"
        return f"fs1.{self._store}.{at}.{mark}"


def _told(entry: FeedEntry, write: Callable[[Place], str]) -> dict[str, Any]:
    return {
        "path": list(entry.path),
        "what": entry.what,
        "detail": entry.detail,
        "run": entry.run_uid,
        "position": entry.position,
        "token": write(Place(entry.position, entry.seq)),
    }


class Following:
    """Reads the feed and the tails of runs, for any number of followers."""

    def __init__(self, catalog: Catalog, waking: Waking) -> None:
        self.waking = waking
        self._catalog = catalog
        self._pages: Recent[tuple[Any, ...], tuple[Page, Place]] = Recent(256)
        self._records: Recent[tuple[str, int], tuple[bytes, int]] = Recent(256)

    # --- the feed -------------------------------------------------------------------------------

    def subject(self, path: tuple[str, ...]) -> Subject:
        """Return what there is to follow at `path`: a node, or a run that has none yet.

        Raises
        ------
        NotFound
        """
        if not path:
            return Subject((), None)
        with self._catalog.read() as snapshot:
            node = snapshot.node(path)
            if node is not None:
                return Subject(path, node.run_uid)
            run = snapshot.run(unescape(path[0]))
        if run is None or run.writer == "orphans":
            raise NotFound(f"No such entry: {list(path)}", path=list(path))
        return Subject(path, run.uid)

    def place(self, token: str | None) -> Place:
        """Return the place that a token names; None is the beginning, `NOW` the end.

        Raises
        ------
        WrongToken
            If it is none, or names a place that this store does not have.
        """
        if token is None:
            return Place(0)
        named = None if token == NOW else _parsed(token)
        with self._catalog.read() as snapshot:
            last = snapshot.last_position()
            if named is None:
                return Place(last)
            store, place, mark = named
            if store != snapshot.store():
                raise WrongToken(
                    "this token is of another store; follow from the beginning, or from 'now'", token=token
                )
            if place.position > last:
                raise WrongToken(
                    f"this token names position {place.position} and the store has {last}: it was set back to an older "
                    "state. Follow from the beginning, or from 'now'.",
                    token=token,
                    last=last,
                )
            if mark != snapshot.mark(place.position):
                raise WrongToken(
                    f"this token names a position {place.position} that this store does not have: it was set back to "
                    "an older state and went on from there. Follow from the beginning, or from 'now'.",
                    token=token,
                )
        return place

    def page(
        self, subject: Subject, after: Place, limit: int = MOST_ENTRIES, *, lag: int | None = None
    ) -> tuple[Page, Place]:
        """Return changes beyond `after` in the order of their commits, and the place behind them.

        Parameters
        ----------
        limit : int
            Entries, at most.
        lag : int, optional
            More entries than that are skipped, and said to be.
        """
        with self._catalog.read() as snapshot:
            return self._page(snapshot, subject, after, limit, lag)

    def page_at_once(
        self, subject: Subject, after: Place, limit: int, *, lag: int | None = None
    ) -> tuple[Page, Place] | None:
        """Return what `page` does, on an event loop; None if it would take long there: ask `page` in a thread."""
        if lag is not None and lag < _AT_ONCE:
            return None
        found = self._at_once(lambda snapshot: self._page(snapshot, subject, after, min(limit, _AT_ONCE), None))
        return None if found is None or found[0].more else found

    def _page(
        self, snapshot: Snapshot, subject: Subject, after: Place, limit: int, lag: int | None
    ) -> tuple[Page, Place]:
        last = snapshot.last_position()
        # The page between two places of the log is always the same, so it is worked out once for all who wait there.
        key = (subject, after, last, limit, lag)
        known = self._pages.get(key)
        if known is None:
            known = self._read_page(snapshot, subject, after, last, limit, lag)
            if len(known[0].entries) <= _AT_ONCE:
                self._pages[key] = known
        return known

    def _read_page(
        self, snapshot: Snapshot, subject: Subject, after: Place, last: int, limit: int, lag: int | None
    ) -> tuple[Page, Place]:
        write = _Tokens(snapshot)
        stop = last if subject.run_uid is not None else min(last, after.position + _WINDOW)
        most = limit if lag is None else max(limit, lag)
        found = snapshot.changes(
            after.position if after.seq is None else (after.position, after.seq),
            under=subject.path,
            run_uid=subject.run_uid,
            stop=stop,
            limit=most + 1,
        )
        run_open = None
        if subject.run_uid is not None:
            heard = snapshot.run_heard(subject.run_uid)
            run_open = heard is not None and heard.open
        if lag is not None and len(found) > lag:
            behind = Place(last)
            return Page([], write(behind), False, {"after": write(after)}, run_open), behind
        more = len(found) > limit
        entries = [_told(entry, write) for entry in found[:limit]]
        place = Place(found[limit - 1].position, found[limit - 1].seq) if more else Place(stop)
        return Page(entries, write(place), more or stop < last, None, run_open), place

    # --- documents ------------------------------------------------------------------------------

    def run(self, path: tuple[str, ...]) -> tuple[str, bool]:
        """Return the uid of the run at `path`, whose documents can be followed, and whether more are expected.

        Raises
        ------
        NotFound
            If there is no such run.
        InvalidRequest
            If its writer does not send documents.
        """
        with self._catalog.read() as snapshot:
            run = run_at(snapshot, path)
        if run.writer != "documents":
            raise InvalidRequest(
                f"the documents of run {run.uid} are worked out from what its writer stored, and cannot be followed; "
                "follow what changes in it",
                uid=run.uid,
            )
        return run.uid, run.open

    def topic_of_documents(self, uid: str) -> str:
        return topic_of_run(uid)

    def keep_frames(self, uid: str, at: int, frames: bytes, end: int) -> None:
        """Keep the frames of a batch that was stored just now, if somebody waits for them: to read them takes longer.

        Parameters
        ----------
        at, end : int
            Ordinals of its first document, and of the one after its last.
        """
        if len(frames) <= _KEPT_BYTES and self.waking.has(topic_of_run(uid)):
            self._records[(uid, at)] = frames, end

    def frames_at_once(self, uid: str, at: int, first: int) -> Frames | None:
        """Return what `frames` does, on an event loop; None if that would take long there."""
        known = self._records.get((uid, at)) if first <= at else None
        if known is not None:
            return Frames([known[0]], known[1], False)
        return self._at_once(lambda snapshot: self._frames(snapshot, uid, at, first, 1))

    def frames(self, uid: str, at: int, first: int) -> Frames:
        """Return frames of the batches from document `at` on, some at a time.

        Parameters
        ----------
        at : int
            Where a batch begins, as it does behind another one.
        first : int
            Documents before it are left out.
        """
        with self._catalog.read() as snapshot:
            return self._frames(snapshot, uid, at, first, 16)

    def _frames(self, snapshot: Snapshot, uid: str, at: int, first: int, most: int) -> Frames:
        pieces: list[bytes] = []
        size = 0
        for record in snapshot.documents(uid, at):
            body, end = self._body(uid, record, first)
            pieces.append(body)
            at, size = end, size + len(body)
            if len(pieces) >= most or size >= 1 << 20:
                break
        if pieces:
            return Frames(pieces, at, False)
        heard = snapshot.run_heard(uid)
        return Frames([], at, heard is None or not heard.open)

    def _body(self, uid: str, record: LogRecord, first: int) -> tuple[bytes, int]:
        begin = record.first_ordinal or 0
        found = frames_from(record, first), begin + (record.count or 0)
        # A record never changes, so it is read once for all who follow the run.
        if first <= begin and len(found[0]) <= _KEPT_BYTES:
            self._records[(uid, begin)] = found
        return found

    def _at_once(self, read: Callable[[Snapshot], _T]) -> _T | None:
        try:
            with self._catalog.glance() as snapshot:
                return read(snapshot)
        except NotAtOnce:
            return None


def _parsed(token: str) -> tuple[str, Place, str]:
    """Return the store, the place and the mark that a token names."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise InvalidRequest(
            f"{token[:80]!r} is no token of a feed; give the `next` of an earlier answer, {NOW!r}, or none at all"
        )
    store, position, seq, mark = found.groups()
    return store, Place(int(position), None if seq is None else int(seq)), mark
