"""Search among the children of one container, from indexes.

Which of the `Term` s leads is chosen by looking, and by the numbers that are kept (`_kept`), since a plan that only
names indexes can still be linear:

* a list of at most `SMALL` nodes: take them all, probe the rest of the terms;
* in order of insertion: walk the shortest list that is in this order, probe the rest; where there is none, walk the
  children, but not further than `WALK`, then take the shortest list whole;
* in order of a key without a list: walk the leaves of that key. Ranges of the key itself bound the walk;
* in order of a zoned key, with a list in order of ids: read the list zone by zone, those with the greatest (least)
  values first, until no other zone can have any that come earlier;
* in order of another key, or with no such list: whichever costs less of the walk along the key and the list whole.

So the first page costs about the page. Where little matches of what many match alone, work grows with the shortest
list.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import sqlalchemy as sa

from flystore.model import queries as q

from . import _leaves as lv
from ._database import Fixed, Session
from ._kept import ZONE_BITS, ZONED, count_of
from ._schema import child_counts, leaf_zones, leaves, nodes
from ._terms import NOT_NULL, Column, Condition, Term

SMALL = 500
"""Nodes that are taken whole rather than walked to."""

WALK = 4_000
"""Children that are walked before a list is taken whole."""

LOOK = 20_000
"""How far the length of a list without order is looked at."""

_ZONES_AT_ONCE = 64
_CHILDREN = Fixed(sa.select(child_counts.c.count).where(child_counts.c.node_id == sa.bindparam("of")))


class _Sorting(msgspec.Struct, frozen=True):
    """One key to sort by, and what of the terms bounds its values.

    Attributes
    ----------
    key : str
        As listed.
    bounded : bool
        Terms say between which bounds the values are; then nodes without the key do not fit.
    """

    key: str
    descending: bool
    low: bytes
    high: bytes
    bounded: bool
    terms: tuple[Term, ...]

    @classmethod
    def of(cls, sort: q.SortKey, terms: Sequence[Term]) -> "_Sorting":
        key = lv.key_text(sort.metadata_key)
        own = tuple(term for term in terms if term.within is not None and term.within[0] == key)
        bounds = [term.within[1:] for term in own if term.within is not None]
        low = max([lv.after(lv.NULL), *(low for low, _ in bounds)])
        high = min([lv.MEMBER, *(high for _, high in bounds)])
        return cls(key, sort.descending, low, high, bool(own), own)

    def fits(self, value: Column) -> Condition:
        return sa.and_(value >= self.low, value < self.high)


class Search:
    """Ids of the children of one container that fit some terms, in order.

    Parameters
    ----------
    kept
        What is kept about the leaves may be used: nothing of this transaction is missing in it.
    """

    def __init__(self, session: Session, parent_id: int, terms: Sequence[Term], *, kept: bool = True) -> None:
        self._session = session
        self._parent = parent_id
        self._terms = list(terms)
        self._kept = kept
        self._sizes: dict[int, tuple[int, bool]] = {}
        self.exact = all(term.exact for term in terms)

    # --- what there is ---

    def batch(self, n: int, *, after: int | None, descending: bool, skip: int = 0) -> list[int]:
        """Return `n` ids in order of insertion, beyond the id `after`, the first `skip` left out."""

        def page(select: sa.Select, ids: Column) -> list[int]:
            beyond = [] if after is None else [ids < after if descending else ids > after]
            ordered = select.where(*beyond).order_by(ids.desc() if descending else ids.asc())
            return self._ids(ordered.limit(n).offset(skip))

        listed = self._listed()
        if not listed:
            return page(*self._all())
        leader = self._shortest(listed)
        if not leader.ordered and self._size(leader) > SMALL:
            ordered = [term for term in listed if term.ordered]
            if not ordered:
                walked = self._walk(n + skip, after, descending)
                return walked[skip:] if len(walked) == n + skip else page(*self._led(leader))
            leader = self._shortest(ordered)
        return page(*self._led(leader))

    def sorted(self, sort: Sequence[q.SortKey], n: int | None, skip: int) -> list[int]:
        """Return `n` ids (None: all) in the order of `sort`, the first `skip` left out."""
        keys = list(sort)
        if keys[-1].key == "" and not keys[-1].descending:
            keys.pop()  # ties are in this order anyway
        if n is None or len(keys) > 1 or keys[0].key == "id":
            return self._sorted_whole(keys, n, skip)
        sorting = _Sorting.of(keys[0], self._terms)
        listed = [term for term in self._listed() if not any(term is own for own in sorting.terms)]
        if not listed:
            return self._along(sorting, n, skip)
        leader = self._shortest(listed)
        if self._size(leader) <= SMALL:
            return self._sorted_whole(keys, n, skip)
        ordered = [term for term in listed if term.ordered]
        if ordered and sorting.key in ZONED and self._kept and not self._is_scattered(leader):
            return self._by_zones(sorting, self._shortest(ordered), n, skip)
        if len(listed) > 1 and self._size(leader, WALK) <= WALK:
            return self._sorted_whole(keys, n, skip)
        need, size, among = n + skip, self._size(leader, LOOK), self._children()
        if size * size > need * among:  # the walk is shorter, if what matches lies anywhere
            found = self._walked_along(sorting, need, steps=4 * need * among // size + 100)
            if len(found) == need:
                return found[skip:]
        return self._sorted_whole(keys, n, skip)

    def count(self) -> int:
        """Return how many ids fit the terms."""
        kept = self._kept_count()
        if kept is not None:
            return kept
        counted = sa.select(sa.func.count()).select_from(self.selected().subquery())
        return int(self._session.compose(counted)[0][0])

    def count_at_once(self, enough: int) -> tuple[int, bool]:
        """Return how many ids fit the terms, and true; if that takes long, a number that is less, and false."""
        kept = self._kept_count()
        if kept is not None:
            return kept, True
        listed = self._listed()
        if len(self._terms) == 1 and listed and listed[0].exact:
            some = _union(listed[0].lists).limit(enough + 1).subquery()
            if listed[0].ordered or len(listed[0].lists) == 1:
                n = int(self._session.compose(sa.select(sa.func.count()).select_from(some))[0][0])
                return min(n, enough), n <= enough
        if listed and self._size(self._shortest(listed)) <= SMALL:
            return self.count(), True
        return 0, False

    def selected(self) -> sa.Select:
        """Return the select of all ids that fit, in no order."""
        listed = self._listed()
        return (self._led(self._shortest(listed)) if listed else self._all())[0]

    # --- who leads ---

    def _listed(self) -> list[Term]:
        return [term for term in self._terms if term.lists]

    def _shortest(self, terms: Sequence[Term]) -> Term:
        return terms[0] if len(terms) == 1 else min(terms, key=self._size)

    def _size(self, term: Term, enough: int | None = None) -> int:
        """Return how long the list of a term is, looked at as far as `enough` (None: `SMALL`) and one beyond."""
        enough = SMALL if enough is None else enough
        known, settled = self._sizes.get(id(term), (0, False))
        if settled or known > enough:
            return known
        known, settled = self._sizes[id(term)] = self._looked_at(term, enough)
        return known

    def _is_scattered(self, term: Term) -> bool:
        """Return whether a list is short and its nodes may lie in any zone, so that it is better taken whole."""
        if term.ordered or (term.within is not None and term.within[0] in ZONED):
            return False
        return self._size(term, WALK) <= WALK

    def _looked_at(self, term: Term, enough: int) -> tuple[int, bool]:
        if term.leaf is not None and self._kept:
            kept = count_of(self._session, self._parent, *term.leaf)
            if kept is not None:
                return kept, True
        if term.slow:
            return enough + 1, False
        some = _union(term.lists).limit(enough + 1).subquery()
        n = int(self._session.compose(sa.select(sa.func.count()).select_from(some))[0][0])
        return n, n <= enough

    def _kept_count(self) -> int | None:
        if len(self._terms) != 1 or self._terms[0].leaf is None or not self._kept:
            return None
        return count_of(self._session, self._parent, *self._terms[0].leaf)

    def _children(self) -> int:
        row = self._session.one(_CHILDREN, {"of": self._parent})
        return 0 if row is None else int(row[0])

    # --- in order of insertion ---

    def _probes(self, ids: Column, without: Sequence[Term] = ()) -> list[Condition]:
        return [term.probe(ids) for term in self._terms if not any(term is other for other in without)]

    def _all(self) -> tuple[sa.Select, Column]:
        ids = nodes.c.id
        return sa.select(ids).where(nodes.c.parent_id == self._parent, *self._probes(ids)), ids

    def _led(self, leader: Term, without: Sequence[Term] = ()) -> tuple[sa.Select, Column]:
        if leader.ordered:
            (select,) = leader.lists
            ids = select.selected_columns[0]
            ids = ids.element if isinstance(ids, sa.sql.elements.Label) else ids
            return select.where(*self._probes(ids, [leader, *without])), ids
        listed = _union(leader.lists).subquery()
        ids = listed.c.id
        return sa.select(ids).where(*self._probes(ids, [leader, *without])).distinct(), ids

    def _walk(self, n: int, after: int | None, descending: bool) -> list[int]:
        """Return up to `n` ids found by looking at the next `WALK` children, and no more."""
        ids = nodes.c.id
        order = ids.desc() if descending else ids.asc()
        beyond = [nodes.c.parent_id == self._parent]
        if after is not None:
            beyond.append(ids < after if descending else ids > after)
        end = self._ids(sa.select(ids).where(*beyond).order_by(order).limit(1).offset(WALK))
        if end:
            beyond.append(ids > end[0] if descending else ids < end[0])
        return self._ids(sa.select(ids).where(*beyond, *self._probes(ids)).order_by(order).limit(n))

    # --- in order of leaves ---

    def _sorted_whole(self, sort: Sequence[q.SortKey], n: int | None, skip: int) -> list[int]:
        """Return ids in any order, having looked at all that fit."""
        listed = self._listed()
        select, ids = self._led(self._shortest(listed)) if listed else self._all()
        if listed and not self._shortest(listed).ordered:  # made distinct before it is joined
            among = select.subquery()
            select, ids = sa.select(among.c.id), among.c.id
        order: list[Column] = []
        for key in sort:
            if key.key == "":
                continue
            if key.key == "id":
                node = nodes.alias()
                select = select.join(node, node.c.id == ids)
                order.append(node.c.key.desc() if key.descending else node.c.key.asc())
            else:
                leaf = leaves.alias()
                on = sa.and_(
                    leaf.c.node_id == ids,
                    leaf.c.key == lv.key_text(key.metadata_key),
                    NOT_NULL(leaf.c.value),
                )
                select = select.outerjoin(leaf, on)
                order += [
                    leaf.c.value.is_(None),
                    leaf.c.value.desc() if key.descending else leaf.c.value.asc(),
                ]
        backwards = bool(sort) and sort[-1].key == "" and sort[-1].descending
        order.append(ids.desc() if backwards else ids.asc())
        select = select.order_by(*order)
        return self._ids(select if n is None else select.limit(n).offset(skip))

    def _along(self, sorting: _Sorting, n: int, skip: int) -> list[int]:
        """Return ids in the order of one leaf, read from its index; those without it come after."""
        found = self._walked_along(sorting, n + skip)
        return found[skip:] + self._without_key(sorting, n + skip - len(found), max(0, skip - len(found)))

    def _walked_along(self, sorting: _Sorting, need: int, steps: int | None = None) -> list[int]:
        """Return up to `need` ids that have the key, found by looking at `steps` of its leaves, or at all."""
        value, ids = leaves.c.value, leaves.c.node_id
        here = [leaves.c.parent_id == self._parent, leaves.c.key == sorting.key, sorting.fits(value)]
        order = [value.desc(), ids.desc()] if sorting.descending else [value.asc(), ids.asc()]
        reach = here
        if steps is not None:
            last = self._session.compose(sa.select(value, ids).where(*here).order_by(*order).limit(1).offset(steps))
            for end_value, end_id in last:
                end, at = sa.tuple_(sa.literal(end_value), sa.literal(end_id)), sa.tuple_(value, ids)
                reach = [*here, at > end if sorting.descending else at < end]
        probes = self._probes(ids, sorting.terms)
        rows = self._session.compose(sa.select(value, ids).where(*reach, *probes).order_by(*order).limit(need + 1))
        if not sorting.descending:
            return [row[1] for row in rows[:need]]
        # The index read backwards has those of one value backwards, too; of the last one there may be more.
        found = sorted(((bytes(row[0]), row[1]) for row in rows[:need]), key=lambda row: row[1])
        found.sort(key=lambda row: row[0], reverse=True)
        if len(rows) > need > 0 and bytes(rows[need][0]) == found[-1][0]:
            cut = found[-1][0]
            found = [row for row in found if row[0] != cut]
            same = sa.select(ids).where(*here[:2], value == cut, *probes).order_by(ids)
            return [row[1] for row in found] + self._ids(same.limit(need - len(found)))
        return [row[1] for row in found]

    def _without_key(self, sorting: _Sorting, n: int, skip: int) -> list[int]:
        """Return `n` ids of nodes that fit and have no value of the key, in order of insertion."""
        if n <= skip or sorting.bounded:
            return []
        leaf = leaves.alias()
        has: sa.Select = sa.select(sa.literal_column("1")).where(leaf.c.key == sorting.key, NOT_NULL(leaf.c.value))
        listed = self._listed()
        leader = self._shortest(listed) if listed else None
        select, ids = self._all() if leader is None else self._led(leader)
        rest = select.where(~sa.exists(has.where(leaf.c.node_id == ids))).order_by(ids)
        return self._ids(rest.limit(n - skip).offset(skip))

    def _by_zones(self, sorting: _Sorting, leader: Term, n: int, skip: int) -> list[int]:
        """Return ids in the order of one leaf, from a list that is in order of ids."""
        need = n + skip
        select, ids = self._led(leader, sorting.terms)
        leaf = leaves.alias()
        on = sa.and_(leaf.c.node_id == ids, leaf.c.key == sorting.key, sorting.fits(leaf.c.value))
        within = (ids >= sa.bindparam("first_id", 0), ids < sa.bindparam("end_id", 0))
        read = self._session.prepared(select.add_columns(leaf.c.value).join(leaf, on).where(*within))
        found: list[tuple[bytes, int]] = []
        zones, at_once = self._zones(sorting), 1
        while some := list(islice(zones, at_once)):
            if len(found) == need and _comes_after(some[0][1], found[-1][0], sorting.descending):
                break
            for first, end in _ranges(zone for zone, _ in some):
                rows = read({"first_id": first << ZONE_BITS, "end_id": end << ZONE_BITS})
                found += [(bytes(row[1]), row[0]) for row in rows]
            found.sort(key=lambda row: row[1])
            found.sort(key=lambda row: row[0], reverse=sorting.descending)
            del found[need:]
            at_once = min(2 * at_once, _ZONES_AT_ONCE)  # where little fits, a zone costs more than what is in it
        chosen = [row[1] for row in found]
        return chosen[skip:] + self._without_key(sorting, need - len(chosen), max(0, skip - len(chosen)))

    def _zones(self, sorting: _Sorting) -> Iterator[tuple[int, bytes]]:
        """Yield (zone, its greatest or least value) of the zones that may hold what fits, in order of these values."""
        zone = leaf_zones.alias()
        bound = zone.c.high if sorting.descending else zone.c.low
        here = [zone.c.parent_id == self._parent, zone.c.key == sorting.key]
        if sorting.bounded:
            here += [zone.c.high >= sorting.low, zone.c.low < sorting.high]
        for term in self._terms:
            if term.within is not None and term.within[0] in ZONED and term.within[0] != sorting.key:
                here.append(_overlaps(zone, term.within))
        order = [bound.desc(), zone.c.zone.desc()] if sorting.descending else [bound.asc(), zone.c.zone.asc()]
        beyond: list[Condition] = []
        while True:
            select = sa.select(zone.c.zone, bound).where(*here, *beyond).order_by(*order).limit(_ZONES_AT_ONCE)
            rows = self._session.compose(select)
            yield from ((row[0], bytes(row[1])) for row in rows)
            if len(rows) < _ZONES_AT_ONCE:
                return
            at, end = sa.tuple_(bound, zone.c.zone), sa.tuple_(sa.literal(rows[-1][1]), sa.literal(rows[-1][0]))
            beyond = [at < end if sorting.descending else at > end]

    def _ids(self, select: sa.Select) -> list[int]:
        return [row[0] for row in self._session.compose(select)]


def _comes_after(bound: bytes, last: bytes, descending: bool) -> bool:
    return bound < last if descending else bound > last


def _ranges(zones: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the zones that follow each other."""
    first = end = None
    for zone in sorted(zones):
        if zone != end:
            if first is not None and end is not None:
                yield first, end
            first = zone
        end = zone + 1
    if first is not None and end is not None:
        yield first, end


def _overlaps(zone: sa.FromClause, within: tuple[str, bytes, bytes]) -> Condition:
    """Return whether some values of another zoned key in the same zone may lie within bounds."""
    key, low, high = within
    other = leaf_zones.alias()
    same = (other.c.parent_id == zone.c.parent_id, other.c.key == key, other.c.zone == zone.c.zone)
    return sa.exists(sa.select(sa.literal_column("1")).where(*same, other.c.high >= low, other.c.low < high))


def _union(lists: Sequence[sa.Select]) -> Any:
    return lists[0] if len(lists) == 1 else sa.union_all(*lists)


def chunks(
    search: Search, *, descending: bool = False, after: int | None = None, size: int = 500
) -> Iterator[list[int]]:
    """Yield all ids of a search beyond `after` in order of insertion: `size`, then up to 500 at a time."""
    while True:
        found = search.batch(size, after=after, descending=descending)
        if found:
            yield found
        if len(found) < size:
            return
        after = found[-1]
        size = min(2 * size, 500)
