"""Listing and searching the children of a container.

Children are in order of insertion unless asked otherwise; ids grow with it, so a page goes on from
the last id however many were added since. Children of a run and below are few and not indexed: they
are looked at one by one, with the same outcome.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from flystore.model import queries as q
from flystore.model.errors import InvalidRequest, NotFound

from . import _leaves as lv
from ._database import Fixed
from ._json import from_json
from ._kept import counts_of
from ._nodes import NodeReads, below, specs_text
from ._rows import KeysPage, Node, Page, path_text
from ._schema import leaves, nodes, runs
from ._search import Search, chunks
from ._terms import terms_of

Wanted = q.Query | Iterable[q.Query]
"""One query, or several that must all match; ``()`` wants everything."""

_FIND = Fixed(sa.select(nodes.c.id, nodes.c.children_indexed).where(nodes.c.path == sa.bindparam("path")))
_NEXT_LEAF = Fixed(
    sa.select(leaves.c.value, leaves.c.node_id)
    .where(
        leaves.c.parent_id == sa.bindparam("parent"),
        leaves.c.key == sa.bindparam("key"),
        leaves.c.value > sa.bindparam("last"),
        leaves.c.value < sa.bindparam("end"),
    )
    .order_by(leaves.c.value, leaves.c.node_id)
    .limit(1)
)
_ONE_LEAF = Fixed(
    sa.select(leaves.c.node_id)
    .where(
        leaves.c.parent_id == sa.bindparam("parent"),
        leaves.c.key == sa.bindparam("key"),
        leaves.c.value == sa.bindparam("value"),
    )
    .order_by(leaves.c.node_id)
    .limit(1)
)
_COUNTED = 1_000
"""Matches that a page counts; above it says that there are more."""
_SKIPS = 200
"""Distinct values looked up one by one before all leaves of the key are read instead."""


class BrowseReads(NodeReads):
    """Children, filtered, sorted and paged."""

    def _knows_all(self) -> bool:
        """Return whether what is kept about the leaves is up to date."""
        return True

    def children(
        self,
        path: Sequence[str],
        *,
        query: Wanted = (),
        sort: Sequence[q.SortKey] = (),
        limit: int = 100,
        offset: int = 0,
        after: int | None = None,
        counted: bool = False,
    ) -> Page:
        """Return a page of the children of a container.

        Parameters
        ----------
        sort
            Most important key first. Empty: in order of insertion. Ties are in order of insertion.
        limit
            Largest number of children; 0 gives none, and where to begin.
        offset
            Children to leave out at the beginning.
        after
            `next_cursor` of the page before; only in order of insertion, and not with `offset`.
        counted
            Say in `Page.count` how many match.

        Raises
        ------
        NotFound
            If nothing is at `path`.
        InvalidRequest
            If `after` comes with `offset` or with another order.
        Unsupported
            If a query is not offered.
        """
        wanted = q.flatten(query)
        ids_or_nodes, more = self._select(path, wanted, sort, limit, offset, after, nodes_too=True)
        found: list[Node] = ids_or_nodes
        cursor, next_offset = _onward([node.id for node in found], more, sort, offset, after)
        page = Page(found, cursor, next_offset)
        return (
            msgspec.structs.replace(page, count=self._count_of(page, path, wanted, offset, after)) if counted else page
        )

    def _count_of(
        self, page: Page, path: Sequence[str], wanted: Sequence[q.Query], offset: int, after: int | None
    ) -> int:
        """Return how many children match; of more than `_COUNTED`, where that is not kept, a number that is less."""
        if not wanted:
            return self.count(path)
        more = page.next_cursor is not None or page.next_offset is not None
        whole = after is None and (bool(page.nodes) or not offset)
        if whole and not more:
            return offset + len(page.nodes)
        parent, indexed = self._container(path)
        if not indexed:
            return self.count(path, wanted)
        search = self._search(parent, path, wanted)
        n, settled = search.count_at_once(_COUNTED if search.exact else 0)
        if settled and search.exact:
            return n
        if settled:
            return self.count(path, wanted)
        if not page.nodes and not more:
            return self.count(path, wanted)  # the page lies beyond the end
        return max(n, (offset if after is None else 0) + len(page.nodes) + more)

    def child_keys(
        self,
        path: Sequence[str],
        *,
        query: Wanted = (),
        sort: Sequence[q.SortKey] = (),
        limit: int = 100,
        offset: int = 0,
        after: int | None = None,
    ) -> KeysPage:
        """Return a page of the children's keys, without reading their metadata where it is not needed."""
        ids, more = self._select(path, q.flatten(query), sort, limit, offset, after, nodes_too=False)
        rows = self._session.compose(sa.select(nodes.c.id, nodes.c.key).where(nodes.c.id.in_(ids))) if ids else []
        keys = {row[0]: row[1] for row in rows}
        cursor, next_offset = _onward(ids, more, sort, offset, after)
        return KeysPage([keys[node_id] for node_id in ids], cursor, next_offset)

    def count(self, path: Sequence[str], query: Wanted = ()) -> int:
        """Return how many children match; without a query the number is kept, not counted.

        Raises
        ------
        NotFound
            If nothing is at `path`.
        Unsupported
            If a query is not offered.
        """
        parent, indexed = self._container(path)
        wanted = q.flatten(query)
        if not wanted:
            return self.count_children(parent)
        if not indexed:
            return len(self._looked_at(parent, wanted))
        search = self._search(parent, path, wanted)
        if search.exact:
            return search.count()
        return sum(len(self._kept(self.nodes_by_id(ids), wanted)) for ids in chunks(search))

    def distinct(
        self,
        path: Sequence[str],
        *,
        query: Wanted = (),
        keys: Iterable[str] = (),
        families: bool = False,
        specs: bool = False,
        counts: bool = False,
    ) -> dict[str, Any]:
        """Return the different values that the matching children have.

        Returns
        -------
        dict
            ``metadata`` (by key), ``structure_families`` and ``specs``, each a list of
            ``{"value": …, "count": …}``, None if not asked for; counts are None without `counts`.
            Children without a key or with null are one group of value None, the last.

        Raises
        ------
        NotFound
            If nothing is at `path`.
        """
        parent, indexed = self._container(path)
        wanted = q.flatten(query)
        groups = _Indexed(self, parent, path, wanted, counts) if indexed else _LookedAt(self, parent, wanted)
        found = {
            "metadata": {key: groups.values(key) for key in keys} or None,
            "structure_families": groups.of(lv.FAMILY_KEY, _family_of) if families else None,
            "specs": [_spec_group(group) for group in groups.of(lv.SPECS_KEY, _specs_of)] if specs else None,
        }
        if not counts:
            for group in _groups(found):
                group["count"] = None
        return found

    def descendants(
        self,
        path: Sequence[str],
        *,
        query: Wanted = (),
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
        after: int | None = None,
    ) -> Page:
        """Return a page of the nodes at any depth below `path` that match, in order of insertion.

        Every node below is looked at, up to the end of the page.

        Parameters
        ----------
        max_depth
            1: children only; None: no limit.

        Raises
        ------
        NotFound
            If nothing is at `path`.
        """
        self._container(path)
        found: list[Node] = []
        for node in self._below(path, q.flatten(query), max_depth, after):
            if offset:
                offset -= 1
                continue
            found.append(node)
            if len(found) > limit:
                break
        more = len(found) > limit
        found = found[:limit]
        cursor = (found[-1].id if found else after or 0) if more else None
        return Page(found, cursor, None)

    def count_descendants(
        self,
        path: Sequence[str],
        *,
        query: Wanted = (),
        max_depth: int | None = None,
        limit: int | None = None,
    ) -> int:
        """Return how many nodes below `path` match; stops at `limit`."""
        self._container(path)
        n = 0
        for _ in self._below(path, q.flatten(query), max_depth, None):
            n += 1
            if n == limit:
                break
        return n

    def _container(self, path: Sequence[str]) -> tuple[int, bool]:
        row = self._session.one(_FIND, {"path": path_text(path)})
        if row is None:
            raise NotFound(f"there is no node at {'/'.join(path)!r}", path=list(path))
        return row[0], bool(row[1])

    def _search(self, parent: int, path: Sequence[str], wanted: Sequence[q.Query]) -> Search:
        terms = terms_of(wanted, parent, tuple(path), self._session.database)
        return Search(self._session, parent, terms, kept=self._knows_all())

    def _select(
        self,
        path: Sequence[str],
        wanted: list[q.Query],
        sort: Sequence[q.SortKey],
        limit: int,
        offset: int,
        after: int | None,
        *,
        nodes_too: bool,
    ) -> tuple[list[Any], bool]:
        """Return a page as nodes or ids, and whether more follow."""
        parent, indexed = self._container(path)
        custom = _is_custom(sort)
        if after is not None and (custom or offset):
            raise InvalidRequest("a cursor goes on in order of insertion, without an offset; use an offset alone")
        n = limit + 1
        if not indexed and (wanted or custom):
            looked = _sorted(self._looked_at(parent, wanted), sort)
            if after is not None:
                looked = [node for node in looked if (node.id < after) == _backwards(sort) and node.id != after]
            page: list[Any] = looked[offset : offset + n]
        else:
            search = self._search(parent, path, wanted)
            if search.exact:
                page = self._exact(search, sort, n, offset, after)
                page = self.nodes_by_id(page[:limit]) + page[limit:] if nodes_too else page
                return page[:limit], len(page) > limit
            page = self._inexact(search, wanted, sort, n, offset, after)
        more = len(page) > limit
        return ([node if nodes_too else node.id for node in page[:limit]]), more

    def _exact(self, search: Search, sort: Sequence[q.SortKey], n: int, offset: int, after: int | None) -> list[int]:
        if _is_custom(sort):
            return search.sorted(sort, n, offset)
        return search.batch(n, after=after, descending=_backwards(sort), skip=offset)

    def _inexact(
        self,
        search: Search,
        wanted: Sequence[q.Query],
        sort: Sequence[q.SortKey],
        n: int,
        offset: int,
        after: int | None,
    ) -> list[Node]:
        if _is_custom(sort):
            batches = _sorted_chunks(search, sort, offset + n)
        else:
            size = min(offset + n, 500)
            batches = chunks(search, descending=_backwards(sort), after=after, size=size)
        found: list[Node] = []
        for batch in batches:
            found += self._kept(self.nodes_by_id(batch), wanted)
            if len(found) >= offset + n:
                break
        return found[offset : offset + n]

    def _kept(self, candidates: list[Node], wanted: Sequence[q.Query]) -> list[Node]:
        """Return the nodes that match; the index has answered for verdicts."""
        asked = q.And(tuple(query for query in wanted if not isinstance(query, q.Verdict)))
        return [node for node in candidates if q.matches(asked, node)]

    def _looked_at(self, parent: int, wanted: Sequence[q.Query]) -> list[Node]:
        found: list[Node] = []
        for ids in chunks(Search(self._session, parent, [])):
            found += self._matching(self.nodes_by_id(ids), wanted)
        return found

    def _matching(self, candidates: list[Node], wanted: Sequence[q.Query]) -> list[Node]:
        verdicts: dict[int, str] = {}
        for query in wanted:
            if isinstance(query, q.Verdict):
                verdicts = self._states(candidates, query.silent_since)
        asked = q.And(tuple(wanted))
        return [node for node in candidates if q.matches(asked, node, verdict=verdicts.get(node.id))]

    def _states(self, candidates: list[Node], silent_since: float) -> dict[int, str]:
        ids = [node.id for node in candidates]
        rows = self._session.compose(
            sa.select(runs.c.node_id, runs.c.verdict, runs.c.open, runs.c.last_received).where(runs.c.node_id.in_(ids))
        )
        return {
            row[0]: q.INTERRUPTED if row[2] and row[3] < silent_since else row[1]
            for row in rows
            if row[1] is not None or (row[2] and row[3] < silent_since)
        }

    def _below(
        self, path: Sequence[str], wanted: Sequence[q.Query], max_depth: int | None, after: int | None
    ) -> Iterator[Node]:
        low, high = below(path)
        last = after or 0
        while True:
            rows = self._session.compose(
                sa.select(nodes.c.id)
                .where(nodes.c.path >= low, nodes.c.path < high, nodes.c.id > last)
                .order_by(nodes.c.id)
                .limit(500)
            )
            ids = [row[0] for row in rows]
            for node in self._matching(self.nodes_by_id(ids), wanted):
                if max_depth is None or len(node.path) - len(path) <= max_depth:
                    yield node
            if len(ids) < 500:
                return
            last = ids[-1]


# --- order ------------------------------------------------------------------------------------


def _sorted_chunks(search: Search, sort: Sequence[q.SortKey], size: int) -> Iterator[list[int]]:
    """Yield all ids of a search in an order: `size`, then ever more at once, since each time begins anew."""
    skip = 0
    while True:
        found = search.sorted(sort, size, skip)
        yield from (found[i : i + 500] for i in range(0, len(found), 500))
        if len(found) < size:
            return
        skip, size = skip + size, max(500, 4 * (skip + size))


def _is_custom(sort: Sequence[q.SortKey]) -> bool:
    for place, key in enumerate(sort):
        if key.key == "" and place != len(sort) - 1:
            raise InvalidRequest("order of insertion can only be the last sorting key")
    if len({key.key for key in sort}) != len(sort):
        raise InvalidRequest("a sorting key is given twice")
    return any(key.key for key in sort)


def _backwards(sort: Sequence[q.SortKey]) -> bool:
    return bool(sort) and sort[-1].key == "" and sort[-1].descending


def _onward(
    ids: Sequence[int], more: bool, sort: Sequence[q.SortKey], offset: int, after: int | None
) -> tuple[int | None, int | None]:
    """Return where the next page begins, as a cursor (in order of insertion) and as an offset."""
    if not more:
        return None, None
    next_offset = None if after is not None else offset + len(ids)
    if _is_custom(sort):
        return None, next_offset
    if ids:
        return ids[-1], next_offset
    start = (1 << 62) if _backwards(sort) else 0
    return (start if after is None else after), next_offset


def _sorted(found: list[Node], sort: Sequence[q.SortKey]) -> list[Node]:
    """Sort as the index does: the least important key first, stable, missing last."""
    ordered = sorted(found, key=lambda node: node.id, reverse=_backwards(sort))
    for key in reversed([key for key in sort if key.key]):
        if key.key == "id":
            ordered.sort(key=lambda node: node.key, reverse=key.descending)
            continue
        ranked = [(_rank(node, key.metadata_key), node) for node in ordered]
        present = [(rank, node) for rank, node in ranked if rank is not None]
        present.sort(key=lambda pair: pair[0], reverse=key.descending)
        ordered = [node for _, node in present] + [node for rank, node in ranked if rank is None]
    return ordered


def _rank(node: Node, key: str) -> bytes | None:
    value = q.value_at(node.metadata, key)
    return None if value is q.MISSING or value is None else lv.value_bytes(value)


# --- distinct ---------------------------------------------------------------------------------

Group = dict[str, Any]
_Found = tuple[bytes, int, int | None]
"""A value as listed, how many have it, and the id of one that has; None: to be looked up."""


def _groups(found: dict[str, Any]) -> Iterator[Group]:
    for groups in (found["metadata"] or {}).values():
        yield from groups
    yield from found["structure_families"] or ()
    yield from found["specs"] or ()


def _family_of(node: Node) -> str:
    return str(node.family)


def _specs_of(node: Node) -> str:
    return specs_text(node.specs)


def _spec_group(group: Group) -> Group:
    value = [{"name": name, "version": version} for name, version in from_json(group["value"])]
    return {"value": value, "count": group["count"]}


class _LookedAt:
    """Groups of children that are not indexed."""

    def __init__(self, reads: BrowseReads, parent: int, wanted: Sequence[q.Query]) -> None:
        self._nodes = reads._looked_at(parent, wanted)

    def values(self, key: str) -> list[Group]:
        return self._grouped([q.value_at(node.metadata, key) for node in self._nodes])

    def of(self, key: str, read: Callable[[Node], str]) -> list[Group]:
        return self._grouped([read(node) for node in self._nodes])

    def _grouped(self, values: list[Any]) -> list[Group]:
        groups: dict[bytes, Group] = {}
        for value in values:
            shown = None if value is q.MISSING else value
            group = groups.setdefault(lv.value_bytes(shown), {"value": shown, "count": 0})
            group["count"] += 1
        null = groups.pop(lv.NULL, None)
        return [groups[raw] for raw in sorted(groups)] + ([null] if null else [])


class _Indexed:
    """Groups of indexed children."""

    def __init__(
        self, reads: BrowseReads, parent: int, path: Sequence[str], wanted: Sequence[q.Query], counts: bool
    ) -> None:
        self._reads = reads
        self._session = reads._session
        self._parent = parent
        self._counts = counts
        self._total = reads.count(path, wanted)
        self._among: sa.Select | None = None
        self._ids: list[int] | None = None
        if wanted:
            search = reads._search(parent, path, wanted)
            if search.exact:
                self._among = search.selected()
            else:
                self._ids = [node.id for ids in chunks(search) for node in reads._kept(reads.nodes_by_id(ids), wanted)]

    def values(self, key: str) -> list[Group]:
        name = lv.key_text(key)
        found = [row for row in self._rows(name) if row[0] != lv.NULL]

        def read(node: Node) -> Any:
            return q.value_at(node.metadata, key)

        groups = [
            {"value": value, "count": row[1]} for row, value in zip(found, self._shown(name, read, found), strict=True)
        ]
        counted = sum(row[1] for row in found) if self._knows_counts else self._count_present(name)
        missing = self._total - counted
        return groups + ([{"value": None, "count": missing}] if missing else [])

    def of(self, key: str, read: Callable[[Node], str]) -> list[Group]:
        found = self._rows(key)
        return [
            {"value": value, "count": row[1]} for row, value in zip(found, self._shown(key, read, found), strict=True)
        ]

    def _rows(self, key: str) -> list[_Found]:
        """Return (value, count, id of one child) of each distinct leaf of a key, in order."""
        self._knows_counts = True
        everything = self._among is None and self._ids is None
        if everything and self._reads._knows_all():
            kept = counts_of(self._session, self._parent, key)
            if kept is not None:
                return [(value, n, None) for value, n in kept]
        if everything and not self._counts:
            found = self._skipping(key)
            if found is not None:
                self._knows_counts = False
                return found
        grouped = sa.select(leaves.c.value, sa.func.count(), sa.func.min(leaves.c.node_id)).where(
            leaves.c.parent_id == self._parent, leaves.c.key == key, leaves.c.value < lv.MEMBER
        )
        if self._among is not None:
            grouped = grouped.where(leaves.c.node_id.in_(self._among))
        if self._ids is not None:
            return self._merged(grouped, self._ids)
        rows = self._session.compose(grouped.group_by(leaves.c.value).order_by(leaves.c.value))
        return [(bytes(row[0]), row[1], row[2]) for row in rows]

    def _merged(self, grouped: sa.Select, ids: list[int]) -> list[_Found]:
        found: dict[bytes, tuple[bytes, int, int]] = {}
        for start in range(0, len(ids), 10_000):
            some = grouped.where(leaves.c.node_id.in_(ids[start : start + 10_000])).group_by(leaves.c.value)
            for value, n, sample in self._session.compose(some):
                _, before, known = found.get(bytes(value), (b"", 0, sample))
                found[bytes(value)] = (bytes(value), before + n, min(known, sample))
        return [found[raw] for raw in sorted(found)]

    def _skipping(self, key: str) -> list[_Found] | None:
        """Go from value to value through the index; None if there are too many for that."""
        found: list[_Found] = []
        last = b""
        while len(found) <= _SKIPS:
            params = {"parent": self._parent, "key": key, "last": last, "end": lv.MEMBER}
            row = self._session.one(_NEXT_LEAF, params)
            if row is None:
                return found
            last = bytes(row[0])
            found.append((last, 0, row[1]))
        return None

    def _count_present(self, key: str) -> int:
        counted = sa.select(sa.func.count()).where(
            leaves.c.parent_id == self._parent,
            leaves.c.key == key,
            leaves.c.value > lv.NULL,
            leaves.c.value < lv.MEMBER,
        )
        return int(self._session.compose(counted)[0][0])

    def _sample(self, key: str, row: _Found) -> int:
        """Return the id of a child that has a value."""
        if row[2] is not None:
            return row[2]
        found = self._session.one(_ONE_LEAF, {"parent": self._parent, "key": key, "value": row[0]})
        assert found is not None  # what is counted is there
        return int(found[0])

    def _shown(self, key: str, read: Callable[[Node], Any], rows: list[_Found]) -> list[Any]:
        """Return the values themselves; those that the index has only in part are read from a child."""
        shown: list[Any] = [lv.decode(raw) for raw, _, _ in rows]
        unknown = [place for place, value in enumerate(shown) if value is lv.UNKNOWN]
        for start in range(0, len(unknown), 500):
            places = unknown[start : start + 500]
            ids = {place: self._sample(key, rows[place]) for place in places}
            samples = {node.id: node for node in self._reads.nodes_by_id(list(ids.values()))}
            for place in places:
                shown[place] = read(samples[ids[place]])
        return shown
