"""Adding to the log and the change feed.

Positions are commit order. A transaction collects its log records and changes, and gets their
positions from the feed's one row as the last thing it does; that row stays locked until the commit,
so a later position is never visible before an earlier one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from flystore.model.errors import InvalidRequest

from ._database import Fixed, Session, insert_of
from ._json import storable, to_json
from ._log import HASH_BYTES, operation_hash
from ._rows import Committed, What, path_text
from ._schema import ORPHANS, changes, feed, log

_NEXT_POSITION = Fixed(sa.update(feed).values(position=feed.c.position + sa.bindparam("n")).returning(feed.c.position))
_LOG_VALUES = (
    "kind",
    "run_uid",
    "first_ordinal",
    "count",
    "epoch",
    "path",
    "action",
    "received",
    "hashes",
    "body",
)
_NEW_RECORD = Fixed(insert_of(log, "position", *_LOG_VALUES))
_NEW_CHANGE = Fixed(insert_of(changes, "position", "seq", "path", "run_uid", "what", "detail"))


class WriteLog:
    """The log as a transaction adds to it."""

    _session: Session
    _records: list[dict[str, Any]]
    _changes: list[tuple[int, dict[str, Any]]]
    """Changes, each with the index of the record that brought it about."""

    def append_documents(
        self,
        uid: str | None,
        first_ordinal: int,
        count: int,
        epoch: int,
        hashes: bytes,
        body: bytes,
        received: float,
    ) -> None:
        """Add a batch of documents to the log.

        Parameters
        ----------
        uid
            The run; None for documents of no run.
        first_ordinal
            Where `log_end` is; what fits elsewhere is refused at the latest by the database.
        hashes
            16 bytes a document.
        received
            Unix seconds.

        Raises
        ------
        InvalidRequest
            If the numbers do not belong together.
        Conflict
            If a record that begins there is stored already (raised at the commit).
        """
        if count < 1 or first_ordinal < 0 or len(hashes) != HASH_BYTES * count:
            raise InvalidRequest(
                f"{count} documents from ordinal {first_ordinal} on with {len(hashes)} bytes of hashes "
                f"make no batch; there are {HASH_BYTES} bytes a document"
            )
        self._add_record(
            kind="documents",
            run_uid=ORPHANS if uid is None else uid,
            first_ordinal=first_ordinal,
            count=count,
            epoch=epoch,
            hashes=hashes,
            body=body,
            received=received,
        )

    def append_operation(self, path: Sequence[str], action: str, body: bytes, received: float) -> None:
        """Add an operation of the Tiled protocol on the node at `path` to the log, with a hash of it."""
        where, what = path_text(path), storable(action)
        self._add_record(
            kind="operation",
            path=where,
            action=what,
            body=body,
            received=received,
            hashes=operation_hash(where, what, body),
        )

    def note_change(
        self, path: Sequence[str], what: What, detail: Mapping[str, Any], *, run_uid: str | None = None
    ) -> None:
        """Tell followers of a change that no other method tells of."""
        change = {"path": path_text(path), "run_uid": run_uid, "what": what, "detail": to_json(detail)}
        self._changes.append((max(0, len(self._records) - 1), change))

    def _give_positions(self) -> Committed | None:
        """Store records and changes; return where they are and what they touch, None if there are none."""
        n = max(len(self._records), 1 if self._changes else 0)
        if n == 0:
            return None
        row = self._session.one(_NEXT_POSITION, {"n": n})
        assert row is not None
        last = int(row[0])
        first = last - n + 1
        self._session.many(_NEW_RECORD, [{**record, "position": first + i} for i, record in enumerate(self._records)])
        seqs: Counter[int] = Counter()
        told = []
        for index, change in self._changes:
            told.append({**change, "position": first + index, "seq": seqs[index]})
            seqs[index] += 1
        self._session.many(_NEW_CHANGE, told)
        touched = [*self._records, *told]
        return Committed(
            first,
            last,
            frozenset(each["run_uid"] for each in touched if each["run_uid"]),
            frozenset(each["path"] for each in touched if each["path"] is not None),
        )

    def _add_record(self, **values: Any) -> None:
        self._records.append({**dict.fromkeys(_LOG_VALUES), **values})
