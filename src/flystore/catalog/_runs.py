"""Reading runs: watermark, state, verdict."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from ._database import Fixed, Row, Session
from ._nodes import LAST_CHARACTER
from ._rows import Run, RunHeard
from ._schema import runs

FIELDS = Run.__struct_fields__
_COLUMNS = [runs.c[name] for name in FIELDS]
_BY_UID = Fixed(sa.select(*_COLUMNS).where(runs.c.uid == sa.bindparam("at")))
_HEARD = Fixed(sa.select(runs.c.open, runs.c.last_received).where(runs.c.uid == sa.bindparam("at")))
_BY_NODE = Fixed(sa.select(*_COLUMNS).where(runs.c.node_id == sa.bindparam("at")))
_OPEN = Fixed(
    sa.select(runs.c.uid, runs.c.last_received)
    .where(
        runs.c.open == sa.bindparam("is_open"),
        sa.tuple_(runs.c.last_received, runs.c.uid) > sa.tuple_(sa.bindparam("time"), sa.bindparam("uid")),
        runs.c.last_received < sa.bindparam("silent_since"),
    )
    .order_by(runs.c.last_received, runs.c.uid)
    .limit(sa.bindparam("limit"))
)
_BY_PREFIX = Fixed(
    sa.select(runs.c.uid)
    .where(runs.c.uid >= sa.bindparam("low"), runs.c.uid < sa.bindparam("high"))
    .order_by(runs.c.uid)
    .limit(sa.bindparam("limit"))
)
_AFTER = Fixed(
    sa.select(runs.c.uid).where(runs.c.uid > sa.bindparam("after")).order_by(runs.c.uid).limit(sa.bindparam("limit"))
)
_COUNT = Fixed(sa.select(sa.func.count()).select_from(runs))
_PAGE = 256


class RunReads:
    """Runs, with or without a tree."""

    _session: Session

    def run(self, uid: str) -> Run | None:
        """Return what is kept of a run, tombstones too; None if the uid was never heard of."""
        row = self._session.one(_BY_UID, {"at": uid})
        return None if row is None else run_of(row)

    def run_heard(self, uid: str) -> RunHeard | None:
        """Return what of a run tells whether more may come; None if the uid was never heard of."""
        row = self._session.one(_HEARD, {"at": uid})
        return None if row is None else RunHeard(bool(row[0]), row[1])

    def run_of_node(self, node_id: int) -> Run | None:
        """Return the run whose top node is `node_id`, or None."""
        row = self._session.one(_BY_NODE, {"at": node_id})
        return None if row is None else run_of(row)

    def count_runs(self) -> int:
        """Return how many runs were ever heard of, tombstones too."""
        return int(self._session.one(_COUNT)[0])  # type: ignore[index]

    def open_runs(self, silent_since: float | None = None) -> Iterator[str]:
        """Yield the uids of runs without a stop document, longest silence first.

        Parameters
        ----------
        silent_since
            Only those last heard of before this, Unix seconds; None: all.
        """
        params: dict[str, Any] = {"is_open": True, "time": -1e308, "uid": "", "limit": _PAGE}
        params["silent_since"] = 1e308 if silent_since is None else silent_since
        while True:
            page = self._session.all(_OPEN, params)
            yield from (row[0] for row in page)
            if len(page) < _PAGE:
                return
            params["uid"], params["time"] = page[-1]

    def run_uids_by_prefix(self, prefix: str, limit: int = 2) -> list[str]:
        """Return up to `limit` uids that begin with `prefix`, in order."""
        params = {"low": prefix, "high": prefix + LAST_CHARACTER, "limit": limit}
        return [row[0] for row in self._session.all(_BY_PREFIX, params)]

    def run_uids(self, after: str = "", limit: int = 1_000) -> list[str]:
        """Return up to `limit` uids beyond `after` in order, of all writers, tombstones too."""
        return [row[0] for row in self._session.all(_AFTER, {"after": after, "limit": limit})]


def run_of(row: Row) -> Run:
    values = dict(zip(FIELDS, row, strict=True))
    values["open"], values["deleted"] = bool(values["open"]), bool(values["deleted"])
    return Run(**values)
