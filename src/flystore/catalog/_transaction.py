"""One transaction that writes."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa

from flystore.model.errors import InvalidRequest

from ._database import Database, Fixed, Session, plain_errors, upsert
from ._kept import Known, LeafChanges, apply
from ._rows import Committed, Run
from ._runs import FIELDS as RUN_FIELDS
from ._schema import child_counts, runs
from ._snapshot import Snapshot
from ._write_data import WriteData
from ._write_nodes import WriteNodes

_COUNT_CHILDREN = Fixed(
    sa.update(child_counts)
    .where(child_counts.c.node_id == sa.bindparam("of"))
    .values(count=child_counts.c.count + sa.bindparam("more"))
)
_LOCK_RUN_ROW = Fixed(sa.select(runs.c.uid).where(runs.c.uid == sa.bindparam("of")).with_for_update())
_PUT_RUN = upsert(runs, ("uid",), [name for name in RUN_FIELDS if name != "uid"])


class Transaction(WriteNodes, WriteData, Snapshot):
    """Reads and writes that become visible together, or not at all; valid within ``with catalog.write()``.

    What is written can be read back at once, except log records and changes: they have no position
    before the commit.
    """

    def __init__(
        self, database: Database, session: Session, clock: Callable[[], float], known: Known | None = None
    ) -> None:
        super().__init__(session)
        self._known = known or Known()
        self._database = database
        self._clock = clock
        self._records: list[dict[str, Any]] = []
        self._changes: list[tuple[int, dict[str, Any]]] = []
        self._more_children: Counter[int] = Counter()
        self._leaf_changes = LeafChanges()
        self._run_nodes: dict[str, int] = {}
        self._finished = False
        self._stored: Callable[[], None] | None = None

    def once_stored(self, call: Callable[[], None]) -> None:
        """Have `call` made right after the commit, before anybody is told of it; the last one given counts."""
        self._stored = call

    def run(self, uid: str) -> Run | None:
        """Return what is kept of a run, and keep other writers from it until this transaction ends."""
        self._database.lock_run(self._session, uid)
        self._session.execute(_LOCK_RUN_ROW, {"of": uid})
        return super().run(uid)

    def save_run(self, run: Run) -> None:
        """Store what is to be kept of a run."""
        if run.node_id is None and not run.deleted:
            known = super().run(run.uid)
            found = self._run_nodes.get(run.uid, known.node_id if known is not None else None)
            run = msgspec.structs.replace(run, node_id=found)
        self._session.execute(_PUT_RUN, {name: getattr(run, name) for name in RUN_FIELDS})

    def _knows_all(self) -> bool:
        return not self._leaf_changes.counts

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is done within, and only that, if it raises; the exception goes on.

        After a failed statement PostgreSQL takes nothing more within a transaction, so what may
        fail and be survived has to be done in one of these.
        """
        kept = (
            len(self._records),
            len(self._changes),
            Counter(self._more_children),
            dict(self._run_nodes),
            self._leaf_changes.copy(),
        )
        self._session.sql("SAVEPOINT flystore")
        try:
            with plain_errors():
                yield
        except BaseException:
            if self._session.is_over:
                raise
            self._session.sql("ROLLBACK TO SAVEPOINT flystore")
            self._session.sql("RELEASE SAVEPOINT flystore")
            del self._records[kept[0] :]
            del self._changes[kept[1] :]
            self._more_children, self._run_nodes, self._leaf_changes = kept[2:]
            raise
        self._session.sql("RELEASE SAVEPOINT flystore")

    def stored(self) -> None:
        """Called by `Catalog.write` right after the commit."""
        if self._stored is not None:
            self._stored()

    def finish(self) -> Committed | None:
        """Give records and changes their positions; return which, None if there are none.

        Called by `Catalog.write` just before the commit.
        """
        if self._finished:
            raise InvalidRequest("this transaction has ended")
        self._finished = True
        # In order of ids, and the feed last: two transactions never wait for each other in a circle.
        more = {node_id: n for node_id, n in self._more_children.items() if n}
        for parent_id in self._leaf_changes.parents:
            more.setdefault(parent_id, 0)  # whoever writes what is kept about its leaves holds its row
        for node_id, n in sorted(more.items()):
            self._session.execute(_COUNT_CHILDREN, {"of": node_id, "more": n})
        apply(self._session, self._leaf_changes, self._known)
        committed = self._give_positions()
        if committed is not None:
            self._database.notify(self._session, committed.last)
        return committed
