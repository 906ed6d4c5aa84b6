"""What is kept about the leaves of a container, so that large catalogues need not be counted.

*Counts*: how many children have each value of a key, for keys of at most `VALUES` different values: plans, samples,
detectors, operators. A key that gets more (uid, time, scan id) is noted as one of *many values*, once and for good,
and its counts are dropped; its lists are short as a rule. Members of lists are not counted.

*Zones*: for `ZONED` keys the least and the greatest value among the children of 1,024 consecutive ids. Ids grow with
time, so the newest of a plan are found in a few zones, however many there are in all. Bounds only widen: a child that
is changed or deleted leaves them as they are, which costs a look and no answer.

Both are written by the transaction that writes the leaves, as the last thing before the feed, in the order of their
keys: transactions wait for each other there for the time of one commit, and never in a circle.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from . import _leaves as lv
from ._database import Fixed, Session, upsert
from ._schema import leaf_zones, leaves, many_valued, value_counts

VALUES = 1_000
"""Different values of a key that are counted."""

ZONE_BITS = 10
"""A zone is 1,024 ids: some hundreds of runs, with what is below them."""

ZONED = ("start.time", "start.scan_id")

Group = tuple[int, str, bytes]
"""Parent id, key and value of leaves."""

_GROUP, _ZONE = ("parent_id", "key", "value"), ("parent_id", "key", "zone")


def _adding(insert: Callable[..., Any]) -> Any:
    statement = insert(value_counts).values({name: sa.bindparam(name) for name in (*_GROUP, "count")})
    return statement.on_conflict_do_update(
        index_elements=_GROUP, set_={"count": value_counts.c.count + statement.excluded["count"]}
    )


def _widening(insert: Callable[..., Any]) -> Any:
    statement = insert(leaf_zones).values({name: sa.bindparam(name) for name in (*_ZONE, "low", "high")})
    new = statement.excluded
    low, high = leaf_zones.c.low, leaf_zones.c.high
    return statement.on_conflict_do_update(
        index_elements=_ZONE,
        set_={
            "low": sa.case((new["low"] < low, new["low"]), else_=low),
            "high": sa.case((new["high"] > high, new["high"]), else_=high),
        },
        where=sa.or_(new["low"] < low, new["high"] > high),
    )


def _of(table: sa.Table, *columns: str) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == sa.bindparam(name) for name in columns]


_ADD = Fixed(_adding)
_WIDEN = Fixed(_widening)
_NO_ZERO = Fixed(
    sa.delete(value_counts).where(*_of(value_counts, *_GROUP), value_counts.c.count < sa.literal_column("1"))
)
_COUNT = Fixed(sa.select(value_counts.c.count).where(*_of(value_counts, *_GROUP)))
_COUNTS = Fixed(
    sa.select(value_counts.c.value, value_counts.c.count)
    .where(*_of(value_counts, "parent_id", "key"))
    .order_by(value_counts.c.value)
)
_IS_MANY = Fixed(sa.select(many_valued.c.key).where(*_of(many_valued, "parent_id", "key")))
_NOW_MANY = upsert(many_valued, ("parent_id", "key"), (), update=False)
_NO_COUNTS = Fixed(sa.delete(value_counts).where(*_of(value_counts, "parent_id", "key")))
_HOW_MANY = Fixed(
    sa.select(sa.func.count()).select_from(
        sa.select(value_counts.c.value).where(*_of(value_counts, "parent_id", "key")).limit(VALUES + 1).subquery()
    )
)


class LeafChanges(msgspec.Struct):
    """What a transaction adds to and takes from the leaves, until it is written to what is kept."""

    counts: Counter[Group] = msgspec.field(default_factory=Counter)
    zones: dict[tuple[int, str, int], tuple[bytes, bytes]] = msgspec.field(default_factory=dict)

    def add(self, parent_id: int, node_id: int, entries: Iterable[lv.Leaf]) -> None:
        for key, value in entries:
            if value < lv.MEMBER:
                self.counts[parent_id, key, value] += 1
                if key in ZONED and value != lv.NULL:
                    zone = (parent_id, key, node_id >> ZONE_BITS)
                    low, high = self.zones.get(zone, (value, value))
                    self.zones[zone] = (min(low, value), max(high, value))

    def remove(self, parent_id: int, entries: Iterable[lv.Leaf], times: int = 1) -> None:
        for key, value in entries:
            if value < lv.MEMBER:
                self.counts[parent_id, key, value] -= times

    @property
    def parents(self) -> set[int]:
        return {group[0] for group in self.counts}

    def drop(self, parent_id: int) -> None:
        """Forget what was changed below a parent."""
        self.counts = Counter({group: n for group, n in self.counts.items() if group[0] != parent_id})
        self.zones = {zone: bounds for zone, bounds in self.zones.items() if zone[0] != parent_id}

    def copy(self) -> "LeafChanges":
        return LeafChanges(Counter(self.counts), dict(self.zones))


class Known:
    """What a process has seen of the keys, so that it need not look again; used by one writer at a time or by several.

    That a key has many values is never undone. That a group was seen is a hint: that its key need not be looked at
    for having too many now.
    """

    _MOST = 20_000

    def __init__(self) -> None:
        self._many: set[tuple[int, str]] = set()
        self._seen: set[Group] = set()

    def is_many(self, session: Session, parent_id: int, key: str) -> bool:
        """Return whether a key has many values; what is once true stays so."""
        if (parent_id, key) in self._many:
            return True
        if session.one(_IS_MANY, {"parent_id": parent_id, "key": key}) is None:
            return False
        if len(self._many) < self._MOST:
            self._many.add((parent_id, key))
        return True

    def unseen(self, groups: Iterable[Group]) -> set[Group]:
        return set(groups) - self._seen

    def see(self, groups: set[Group]) -> None:
        if len(self._seen) > self._MOST:
            self._seen = set()
        self._seen |= groups

    def forget(self, parent_id: int, key: str) -> None:
        self._seen = {group for group in self._seen if group[:2] != (parent_id, key)}


def apply(session: Session, changes: LeafChanges, known: Known) -> None:
    """Write what a transaction changed to what is kept."""
    changed = sorted((group, n) for group, n in changes.counts.items() if n)
    unseen = known.unseen(group for group, _ in changed)
    counted = [
        (group, n) for group, n in changed if group not in unseen or not known.is_many(session, group[0], group[1])
    ]
    session.many(_ADD, [{**_params(group), "count": n} for group, n in counted])
    session.many(_NO_ZERO, [_params(group) for group, n in counted if n < 0])
    new = {group for group, n in counted if n > 0 and group in unseen}
    known.see(new)
    for parent_id, key in sorted({group[:2] for group in new}):
        where = {"parent_id": parent_id, "key": key}
        row = session.one(_HOW_MANY, where)
        if row is not None and row[0] > VALUES:
            session.execute(_NOW_MANY, where)
            session.execute(_NO_COUNTS, where)
            known.forget(parent_id, key)
    session.many(
        _WIDEN,
        [
            {"parent_id": parent_id, "key": key, "zone": zone, "low": low, "high": high}
            for (parent_id, key, zone), (low, high) in sorted(changes.zones.items())
        ],
    )


def _params(group: Group) -> dict[str, Any]:
    return {"parent_id": group[0], "key": group[1], "value": group[2]}


def count_of(session: Session, parent_id: int, key: str, value: bytes) -> int | None:
    """Return how many children have a value; None if that is not kept."""
    if session.one(_IS_MANY, {"parent_id": parent_id, "key": key}) is not None:
        return None
    row = session.one(_COUNT, _params((parent_id, key, value)))
    return 0 if row is None else int(row[0])


def counts_of(session: Session, parent_id: int, key: str) -> list[tuple[bytes, int]] | None:
    """Return the values of a key in order, each with its number of children; None if that is not kept."""
    where = {"parent_id": parent_id, "key": key}
    if session.one(_IS_MANY, where) is not None:
        return None
    return [(bytes(row[0]), int(row[1])) for row in session.all(_COUNTS, where)]


def forget_parents(session: Session, ids: Any) -> None:
    """Drop what is kept about the children of nodes that go; `ids` selects them."""
    for table in (value_counts, many_valued, leaf_zones):
        session.connection.execute(sa.delete(table).where(table.c.parent_id.in_(ids)))


def is_right(session: Session, parent_id: int) -> bool:
    """Return whether what is kept about the children of a node agrees with their leaves."""
    here = (leaves.c.parent_id == parent_id, leaves.c.value < lv.MEMBER)
    many = sa.select(many_valued.c.key).where(many_valued.c.parent_id == parent_id)
    counted = sa.select(leaves.c.key, leaves.c.value, sa.func.count().label("count")).where(*here)
    counted = counted.where(leaves.c.key.not_in(many)).group_by(leaves.c.key, leaves.c.value)
    kept = sa.select(value_counts.c.key, value_counts.c.value, value_counts.c.count)
    kept = kept.where(value_counts.c.parent_id == parent_id, value_counts.c.key.not_in(many))
    if session.compose(sa.except_(counted, kept).limit(1)) or session.compose(sa.except_(kept, counted).limit(1)):
        return False
    zones = {(row[0], row[1]): (bytes(row[2]), bytes(row[3])) for row in session.compose(_zones_of(parent_id))}
    none = (lv.MEMBER, lv.NULL)
    for key in ZONED:
        for zone, (low, high) in _bounds_of(session.compose(_placed(parent_id, key))).items():
            least, greatest = zones.get((key, zone), none)
            if low < least or high > greatest:
                return False
    return True


def _zones_of(parent_id: int) -> sa.Select:
    columns = (leaf_zones.c.key, leaf_zones.c.zone, leaf_zones.c.low, leaf_zones.c.high)
    return sa.select(*columns).where(leaf_zones.c.parent_id == parent_id)


# --- made anew --------------------------------------------------------------------------------


def recount(connection: sa.Connection) -> None:
    """Work out from the leaves all that is kept; scans the leaves of the keys that are counted."""
    for table in (value_counts, many_valued, leaf_zones):
        connection.execute(sa.delete(table))
    last = (0, "")
    while (found := _next_key(connection, *last)) is not None:
        _recount_key(connection, *found)
        last = found


def _next_key(connection: sa.Connection, parent_id: int, key: str) -> tuple[int, str] | None:
    beyond = sa.tuple_(leaves.c.parent_id, leaves.c.key) > sa.tuple_(sa.literal(parent_id), sa.literal(key))
    select = sa.select(leaves.c.parent_id, leaves.c.key).where(beyond)
    row = connection.execute(select.order_by(leaves.c.parent_id, leaves.c.key).limit(1)).first()
    return None if row is None else (row[0], row[1])


def _recount_key(connection: sa.Connection, parent_id: int, key: str) -> None:
    here = (leaves.c.parent_id == parent_id, leaves.c.key == key, leaves.c.value < lv.MEMBER)
    if _has_many(connection, here):
        connection.execute(many_valued.insert().values(parent_id=parent_id, key=key))
    else:
        groups = sa.select(leaves.c.parent_id, leaves.c.key, leaves.c.value, sa.func.count()).where(*here)
        grouped = groups.group_by(leaves.c.parent_id, leaves.c.key, leaves.c.value)
        connection.execute(value_counts.insert().from_select(value_counts.c.keys(), grouped))
    if key in ZONED:
        zones = _bounds_of(connection.execute(_placed(parent_id, key)))
        rows = [
            {"parent_id": parent_id, "key": key, "zone": zone, "low": low, "high": high}
            for zone, (low, high) in zones.items()
        ]
        if rows:
            connection.execute(leaf_zones.insert(), rows)


def _placed(parent_id: int, key: str) -> sa.Select:
    within = (leaves.c.value > lv.NULL, leaves.c.value < lv.MEMBER)
    return sa.select(leaves.c.node_id, leaves.c.value).where(
        leaves.c.parent_id == parent_id, leaves.c.key == key, *within
    )


def _bounds_of(rows: Iterable[Any]) -> dict[int, tuple[bytes, bytes]]:
    """Return the least and the greatest value of each zone; here, since PostgreSQL has no minimum of bytes."""
    found: dict[int, tuple[bytes, bytes]] = {}
    for node_id, raw in rows:
        zone, value = node_id >> ZONE_BITS, bytes(raw)
        low, high = found.get(zone, (value, value))
        found[zone] = (min(low, value), max(high, value))
    return found


def _has_many(connection: sa.Connection, here: tuple[sa.ColumnElement[bool], ...]) -> bool:
    """Go from value to value, not through all leaves."""
    last = b""
    for _ in range(VALUES + 1):
        select = sa.select(leaves.c.value).where(*here, leaves.c.value > last).order_by(leaves.c.value).limit(1)
        row = connection.execute(select).first()
        if row is None:
            return False
        last = row[0]
    return True
