"""Reading the log and the change feed.

The log is the truth: batches of documents and operations, in the order of their commits. The feed
says what each did to the tree.
"""

import hashlib
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from ._database import Fixed, Row, Session
from ._json import from_json
from ._nodes import below
from ._rows import Committed, FeedEntry, LogRecord, path_of, path_text
from ._schema import EDITED, ORPHANS, changes, feed, log

_RECORD = (
    log.c.position,
    log.c.kind,
    log.c.run_uid,
    log.c.first_ordinal,
    log.c.count,
    log.c.epoch,
    log.c.hashes,
    log.c.path,
    log.c.action,
    log.c.received,
    log.c.body,
)
_BY_POSITION = Fixed(sa.select(*_RECORD).where(log.c.position == sa.bindparam("position")))
_POSITIONS = Fixed(
    sa.select(log.c.position)
    .where(log.c.position > sa.bindparam("after"))
    .order_by(log.c.position)
    .limit(sa.bindparam("limit"))
)
_POSITIONS_OF_KIND = Fixed(
    sa.select(log.c.position)
    .where(log.c.kind == sa.bindparam("kind"), log.c.position > sa.bindparam("after"))
    .order_by(log.c.position)
    .limit(sa.bindparam("limit"))
)
# Written out, not bound: only then do the databases see that the index of edits is enough.
_EDITS = Fixed(
    sa.select(log.c.position)
    .where(
        log.c.action == sa.literal_column(f"'{EDITED}'"),
        sa.or_(
            log.c.path == sa.bindparam("path"),
            sa.and_(log.c.path >= sa.bindparam("low"), log.c.path < sa.bindparam("high")),
        ),
    )
    .order_by(log.c.position)
)
_OF_RUN = log.c.run_uid == sa.bindparam("uid")
_FIRST = Fixed(sa.select(sa.func.max(log.c.first_ordinal)).where(_OF_RUN, log.c.first_ordinal <= sa.bindparam("first")))
_LAST = Fixed(sa.select(log.c.first_ordinal + log.c.count).where(_OF_RUN).order_by(log.c.first_ordinal.desc()).limit(1))
_OF_RUN_FROM = Fixed(
    sa.select(log.c.position, log.c.first_ordinal, log.c.count)
    .where(_OF_RUN, log.c.first_ordinal >= sa.bindparam("first"), log.c.first_ordinal < sa.bindparam("stop"))
    .order_by(log.c.first_ordinal)
    .limit(sa.bindparam("limit"))
)
_HASHES = Fixed(
    sa.select(log.c.first_ordinal, log.c.hashes)
    .where(_OF_RUN, log.c.first_ordinal >= sa.bindparam("first"), log.c.first_ordinal < sa.bindparam("stop"))
    .order_by(log.c.first_ordinal)
)
_COUNT = Fixed(
    sa.select(sa.func.count()).where(log.c.kind == sa.bindparam("kind"), log.c.position <= sa.bindparam("stop"))
)
_LAST_POSITION = Fixed(sa.select(feed.c.position))
_STORE = Fixed(sa.select(feed.c.store))
_MARK = Fixed(
    sa.select(
        log.c.kind, log.c.run_uid, log.c.first_ordinal, log.c.count, log.c.path, log.c.action, log.c.received
    ).where(log.c.position == sa.bindparam("position"))
)
_LOGGED_SINCE = Fixed(
    sa.select(log.c.run_uid, log.c.path)
    .where(log.c.position > sa.bindparam("position"))
    .order_by(log.c.position)
    .limit(sa.bindparam("limit"))
)
_CHANGED_SINCE = Fixed(
    sa.select(changes.c.run_uid, changes.c.path)
    .where(changes.c.position > sa.bindparam("position"))
    .order_by(changes.c.position)
    .limit(sa.bindparam("limit"))
)
_CHANGE = (
    changes.c.position,
    changes.c.seq,
    changes.c.path,
    changes.c.run_uid,
    changes.c.what,
    changes.c.detail,
)
_LATER = sa.or_(
    changes.c.position > sa.bindparam("position"),
    sa.and_(changes.c.position == sa.bindparam("position"), changes.c.seq > sa.bindparam("seq")),
)
_NOT_EARLIER = changes.c.position >= sa.bindparam("position")  # what the index is entered with

HASH_BYTES = 16
_FOREVER = 1 << 62
_PAGE = 64


def operation_hash(path: str, action: str, body: bytes) -> bytes:
    """Return 16 bytes that an operation is known by."""
    return hashlib.blake2b(b"\0".join((path.encode(), action.encode(), body)), digest_size=HASH_BYTES).digest()


def is_as_stored(record: LogRecord) -> bool | None:
    """Return whether an operation fits its hash; None if it was stored before there were hashes."""
    if not record.hashes:
        return None
    return record.hashes == operation_hash(path_text(record.path or ()), record.action or "", record.body)


class LogReads:
    """The log, in order."""

    _session: Session

    def last_position(self) -> int:
        """Return the position of the last commit that this snapshot sees; 0 before the first."""
        row = self._session.one(_LAST_POSITION)
        return 0 if row is None else int(row[0])

    def store(self) -> str:
        """Return the name that tells this store's log from every other."""
        row = self._session.one(_STORE)
        assert row is not None  # made with the store
        return str(row[0])

    def mark(self, position: int) -> str:
        """Return 8 characters that tell what is at `position` of the log from what another history has there.

        A store that was set back to a backup and went on from there gives its positions a second time. Where no
        record is, as at 0 and behind the end, they are zeros.
        """
        row = self._session.one(_MARK, {"position": position})
        if row is None:
            return "0" * 8
        return hashlib.blake2b(repr(tuple(row)).encode(), digest_size=4).hexdigest()

    def touched_since(self, position: int, limit: int = 1_000) -> Committed | None:
        """Return what commits beyond `position` touched, as far as this snapshot sees; None if they are too many."""
        params = {"position": position, "limit": limit}
        rows = [*self._session.all(_LOGGED_SINCE, params), *self._session.all(_CHANGED_SINCE, params)]
        if len(rows) >= limit:
            return None
        return Committed(
            position + 1,
            self.last_position(),
            frozenset(uid for uid, _ in rows if uid),
            frozenset(path for _, path in rows if path is not None),
        )

    def count_records(self, kind: str, last: int) -> int:
        """Return how many records of a kind have positions up to `last`."""
        return int(self._session.one(_COUNT, {"kind": kind, "stop": last})[0])  # type: ignore[index]

    def log_end(self, uid: str | None) -> int:
        """Return the ordinal after the last document in the log of a run, or of no run (None)."""
        row = self._session.one(_LAST, {"uid": _run_key(uid)})
        return 0 if row is None else int(row[0])

    def hashes(self, uid: str | None, first: int, stop: int) -> list[bytes]:
        """Return the hashes, 16 bytes each, of the documents ``first <= ordinal < stop`` that are stored."""
        start = self._start(uid, first)
        if start is None:
            return []
        found: list[bytes] = []
        for begin, raw in self._session.all(_HASHES, {"uid": _run_key(uid), "first": start, "stop": stop}):
            low, high = max(first - begin, 0), min(stop - begin, len(raw) // HASH_BYTES)
            found += [raw[HASH_BYTES * i : HASH_BYTES * (i + 1)] for i in range(low, high)]
        return found

    def documents(self, uid: str | None, first: int = 0, stop: int | None = None) -> Iterator[LogRecord]:
        """Yield the records that hold the documents ``first <= ordinal < stop`` of a run, in order.

        The first record may begin before `first` and the last end after `stop`. One record is in
        memory at a time. `uid` None: the documents of no run.
        """
        at = self._start(uid, first) if stop is None or stop > first else None
        while at is not None:
            params = {"uid": _run_key(uid), "first": at, "limit": _PAGE}
            page = self._session.all(_OF_RUN_FROM, {**params, "stop": _FOREVER if stop is None else stop})
            for position, begin, n in page:
                if begin + n > first:
                    yield self._record(position)
            at = page[-1][1] + 1 if len(page) == _PAGE else None

    def operations(self, after: int = 0, *, limit: int = 1_000) -> Iterator[LogRecord]:
        """Yield up to `limit` operations beyond the position `after`."""
        params = {"kind": "operation", "after": after, "limit": limit}
        for (position,) in self._session.all(_POSITIONS_OF_KIND, params):
            yield self._record(position)

    def edits(self, path: Sequence[str]) -> Iterator[LogRecord]:
        """Yield the edits of the node at `path` and of all below it, oldest first; found by index in any log."""
        low, high = below(path)
        for (position,) in self._session.all(_EDITS, {"path": path_text(path), "low": low, "high": high}):
            yield self._record(position)

    def log(self, after: int = 0, *, limit: int = 1_000) -> Iterator[LogRecord]:
        """Yield up to `limit` records of either kind beyond the position `after`: what a rebuild replays."""
        for (position,) in self._session.all(_POSITIONS, {"after": after, "limit": limit}):
            yield self._record(position)

    def changes(
        self,
        after: int | tuple[int, int] = 0,
        *,
        under: Sequence[str] | None = None,
        run_uid: str | None = None,
        stop: int | None = None,
        limit: int = 1_000,
    ) -> list[FeedEntry]:
        """Return up to `limit` changes beyond `after`, in the order of commits.

        Parameters
        ----------
        after
            A position whose changes are all known, or (position, seq) of the last change known.
        under
            Only changes at this path and below it; ``()`` or None: everywhere.
        run_uid
            Only changes of this run's nodes; found by index, however long the feed.
        stop
            The last position to look at; None: to the end.
        """
        position, seq = (after, _FOREVER) if isinstance(after, int) else after
        wanted = sa.select(*_CHANGE).where(_NOT_EARLIER, _LATER)
        if stop is not None:
            wanted = wanted.where(changes.c.position <= stop)
        if run_uid is not None:
            wanted = wanted.where(changes.c.run_uid == run_uid)
        if under:
            low, high = below(under)
            inside = sa.and_(changes.c.path >= low, changes.c.path < high)
            wanted = wanted.where(sa.or_(changes.c.path == path_text(under), inside))
        ordered = wanted.order_by(changes.c.position, changes.c.seq).limit(limit)
        rows = self._session.compose(ordered, {"position": position, "seq": seq})
        return [FeedEntry(r[0], r[1], path_of(r[2]), r[3], r[4], from_json(r[5])) for r in rows]

    def _start(self, uid: str | None, first: int) -> int | None:
        """Return where the record that holds document `first` begins."""
        row = self._session.one(_FIRST, {"uid": _run_key(uid), "first": first})
        return None if row is None else row[0]

    def _record(self, position: int) -> LogRecord:
        row = self._session.one(_BY_POSITION, {"position": position})
        assert row is not None  # the log is only appended to
        return record_of(row)


def _run_key(uid: str | None) -> str:
    return ORPHANS if uid is None else uid


def record_of(row: Row) -> LogRecord:
    return LogRecord(
        position=row[0],
        kind=row[1],
        run_uid=row[2] or None,
        first_ordinal=row[3],
        count=row[4],
        epoch=row[5],
        hashes=row[6],
        path=None if row[7] is None else path_of(row[7]),
        action=row[8],
        received=row[9],
        body=row[10],
    )
