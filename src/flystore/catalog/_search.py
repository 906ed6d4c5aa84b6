"""Search among the children of one container, from indexes.

Each query becomes a `Term`: a condition that can be asked about one node, mostly a probe of its
leaves, and where possible a list that the nodes can be taken from. Which of them leads is chosen by
looking, since a plan that only names indexes can still be linear:

* a list of at most `SMALL` nodes: take them all, probe the rest of the terms;
* otherwise an equality, whose list is in order of insertion: walk it, probe the rest;
* otherwise walk the children in order, but not further than `WALK`: a range that holds for many of
  the newest ends here at once;
* otherwise the shortest list whole, so that work grows with what matches and not with the catalogue.

A term may be inexact (text beyond what the index keeps, patterns with wildcards): it lets through
all that match and perhaps more, and the nodes are then held to `queries.matches`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from flystore.model import queries as q
from flystore.model.errors import Unsupported

from . import _leaves as lv
from . import _words
from ._database import Session
from ._rows import Path, path_text
from ._schema import leaves, nodes, runs

SMALL = 1_000
WALK = 4_000

Column = sa.ColumnElement[Any]
Condition = sa.ColumnElement[bool]


class Term(msgspec.Struct, frozen=True):
    """One condition on a node.

    Attributes
    ----------
    probe : function of a column of node ids
        The condition, asked about that node.
    lists : tuple of select
        Together they list the ids of all children that fit (some twice, perhaps); none: no such list.
    ordered : bool
        There is one list, without repeats, and an index gives it in order of ids.
    exact : bool
        What fits matches; otherwise it has to be looked at.
    """

    probe: Callable[[Column], Condition]
    lists: tuple[sa.Select, ...] = ()
    ordered: bool = False
    exact: bool = True


class bytes_in(GenericFunction[int]):  # noqa: N801  (SQLAlchemy registers functions by class name)
    """Place of some bytes within others, from 1; 0 if they are not there."""

    type = sa.Integer()
    inherit_cache = True


@compiles(bytes_in, "sqlite")
def _bytes_in_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)})"


@compiles(bytes_in, "postgresql")
def _bytes_in_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    whole, part = element.clauses
    return f"position({compiler.process(part, **kw)} in {compiler.process(whole, **kw)})"


# --- from queries to terms ----------------------------------------------------------------------

Span = Callable[[Column], Condition]
_ONE: sa.Select = sa.select(sa.literal_column("1"))


def terms_of(wanted: Sequence[q.Query], parent_id: int, path: Path, database: str) -> list[Term]:
    """Return the terms of queries about the children of a container.

    Raises
    ------
    Unsupported
        If a query cannot be answered from indexes.
    """
    ranges: dict[str, list[q.Comparison]] = {}
    found: list[Term] = []
    for query in wanted:
        if isinstance(query, q.Comparison):
            ranges.setdefault(query.key, []).append(query)  # two ends of a range make one list
        elif isinstance(query, q.FullText):
            found.append(_full_text(query, parent_id, database))
        elif isinstance(query, q.Verdict):
            found.append(_verdict(query, parent_id))
        elif isinstance(query, (q.KeysFilter, q.Lookup)):
            found.append(_keys(query, path))
        elif isinstance(query, q.Specs):
            found += _specs(query, parent_id)
        elif type(query) in _TERMS:
            found.append(_TERMS[type(query)](query, parent_id))
        else:
            name = type(query).__name__.lower()
            raise Unsupported(f"search by {name} is not offered; use like or fulltext")
    return found + [_comparisons(key, ends, parent_id) for key, ends in ranges.items()]


def _leaf_term(
    parent_id: int, key: str, *spans: Span, ordered: bool = False, exact: bool = True, listed: bool = True
) -> Term:
    """Return a term that fits if one of the node's leaves of `key` lies in one of `spans`."""

    def probe(node_id: Column) -> Condition:
        leaf = leaves.alias()
        inside = sa.or_(*(span(leaf.c.value) for span in spans))
        return sa.exists(_ONE.where(leaf.c.node_id == node_id, leaf.c.key == key, inside))

    def listing(span: Span) -> sa.Select:
        leaf = leaves.alias()
        return sa.select(leaf.c.node_id.label("id")).where(
            leaf.c.parent_id == parent_id, leaf.c.key == key, span(leaf.c.value)
        )

    lists = tuple(listing(span) for span in spans) if listed else ()
    return Term(probe, lists, ordered, exact)


def _between(low: bytes, high: bytes) -> Span:
    return lambda value: sa.and_(value >= low, value < high)


_PRESENT = _between(b"", lv.MEMBER)
_NOT_NULL = _between(lv.after(lv.NULL), lv.MEMBER)
NEVER = Term(lambda node_id: sa.false(), (sa.select(nodes.c.id).where(sa.false()),), ordered=True)
ALWAYS = Term(lambda node_id: sa.true())


def _eq(query: q.Eq, parent_id: int) -> Term:
    wanted = lv.scalar_bytes(query.value)
    return _leaf_term(parent_id, lv.key_text(query.key), lambda value: value == wanted, ordered=True)


def _not_eq(query: q.NotEq, parent_id: int) -> Term:
    other = lv.scalar_bytes(query.value)
    return _leaf_term(
        parent_id,
        lv.key_text(query.key),
        lambda value: sa.and_(_NOT_NULL(value), value != other),
        listed=False,
    )


def _in(query: q.In, parent_id: int) -> Term:
    if not query.value:
        return NEVER
    wanted = {lv.scalar_bytes(value) for value in query.value}
    return _leaf_term(parent_id, lv.key_text(query.key), lambda value: value.in_(sorted(wanted)))


def _not_in(query: q.NotIn, parent_id: int) -> Term:
    if not query.value:
        return ALWAYS
    others = sorted({lv.scalar_bytes(value) for value in query.value})
    return _leaf_term(
        parent_id,
        lv.key_text(query.key),
        lambda value: sa.and_(_NOT_NULL(value), value.not_in(others)),
        listed=False,
    )


def _key_present(query: q.KeyPresent, parent_id: int) -> Term:
    term = _leaf_term(parent_id, lv.key_text(query.key), _PRESENT)
    return term if query.exists else Term(lambda node_id: sa.not_(term.probe(node_id)))


def _structure_family(query: q.StructureFamily, parent_id: int) -> Term:
    wanted = lv.scalar_bytes(str(query.value))
    return _leaf_term(parent_id, lv.FAMILY_KEY, lambda value: value == wanted, ordered=True)


def _access_tags(query: q.AccessTags, parent_id: int) -> Term:
    if not query.tags:
        return NEVER
    wanted = sorted({lv.scalar_bytes(tag) for tag in query.tags})
    return _leaf_term(parent_id, lv.TAG_KEY, lambda value: value.in_(wanted))


def _specs(query: q.Specs, parent_id: int) -> list[Term]:
    def carries(name: str) -> Term:
        wanted = lv.scalar_bytes(name)
        return _leaf_term(parent_id, lv.SPEC_KEY, lambda value: value == wanted, ordered=True)

    def lacks(name: str) -> Term:
        term = carries(name)
        return Term(lambda node_id: sa.not_(term.probe(node_id)))

    return [carries(name) for name in query.include] + [lacks(name) for name in query.exclude]


def _contains(query: q.Contains, parent_id: int) -> Term:
    member = lv.member_bytes(query.value)
    spans: list[Span] = [
        lambda value: value == member,
        _between(lv.LONG_LIST, lv.after(lv.LONG_LIST)),  # whose members are not listed
    ]
    if isinstance(query.value, str):
        part = lv.text_bytes(query.value)
        spans.append(lambda value: sa.and_(_between(lv.TEXT, lv.after(lv.TEXT))(value), _has(value, part)))
    return _leaf_term(parent_id, lv.key_text(query.key), *spans, exact=False)


def _has(value: Column, part: bytes) -> Condition:
    """Return whether listed text has a part; text that is cut short may."""
    return sa.or_(bytes_in(value, part) > 0, sa.func.length(value) > lv.TEXT_LIMIT)


def _like(query: q.Like, parent_id: int) -> Term:
    pieces = query.pieces
    key = lv.key_text(query.key)
    if len(pieces) == 1 and None not in pieces[0]:
        return _eq(q.Eq(query.key, "".join(c or "" for c in pieces[0])), parent_id)
    prefix = lv.text_bytes(_literal_start(pieces[0]))
    start = lv.TEXT + prefix[: lv.TEXT_LIMIT]
    within = _between(start, lv.after(start))
    parts = [lv.text_bytes(run) for piece in pieces for run in _literal_runs(piece)]
    exact = len(pieces) == 2 and None not in pieces[0] and pieces[1] == () and len(prefix) <= lv.TEXT_LIMIT
    if exact:
        return _leaf_term(parent_id, key, within)
    return _leaf_term(
        parent_id,
        key,
        lambda value: sa.and_(within(value), *(_has(value, part) for part in parts)),
        exact=False,
    )


def _literal_start(piece: q.Piece) -> str:
    start = ""
    for character in piece:
        if character is None:
            break
        start += character
    return start


def _literal_runs(piece: q.Piece) -> list[str]:
    stretches = groupby(piece, key=lambda character: character is None)
    return ["".join(c or "" for c in stretch) for wild, stretch in stretches if not wild]


def _comparisons(key: str, ends: Sequence[q.Comparison], parent_id: int) -> Term:
    tag = lv.TEXT if isinstance(ends[0].value, str) else lv.NUMBER
    low, high, exact = tag, lv.after(tag), True
    for end in ends:
        if (lv.TEXT if isinstance(end.value, str) else lv.NUMBER) != tag:
            return NEVER  # nothing is both a number and a text
        at = lv.scalar_bytes(end.value)
        if len(at) > lv.TEXT_LIMIT + 1:
            at, exact = at[: lv.TEXT_LIMIT + 1], False
            if end.operator in (q.Operator.LT, q.Operator.LE):
                high = min(high, lv.after(at))
            else:
                low = max(low, at)
            continue
        match end.operator:
            case q.Operator.LT:
                high = min(high, at)
            case q.Operator.LE:
                high = min(high, at + b"\0")
            case q.Operator.GT:
                low = max(low, at + b"\0")
            case q.Operator.GE:
                low = max(low, at)
    return _leaf_term(parent_id, lv.key_text(key), _between(low, high), exact=exact)


def _full_text(query: q.FullText, parent_id: int, database: str) -> Term:
    table, ids, condition = _words.having(database, query.words, parent_id)

    def probe(node_id: Column) -> Condition:
        words, column, having = _words.having(database, query.words, parent_id)
        return sa.exists(_ONE.select_from(words).where(column == node_id, having))

    listing = sa.select(ids.label("id")).select_from(table).where(condition)
    return Term(probe, (listing,), ordered=database == "sqlite")


def _verdict(query: q.Verdict, parent_id: int) -> Term:
    silent = sa.and_(runs.c.open.is_(sa.true()), runs.c.last_received < query.silent_since)

    def probe(node_id: Column) -> Condition:
        run: sa.Select = _ONE.where(runs.c.node_id == node_id)
        stated = run.where(runs.c.verdict == query.state)
        if query.state == q.INTERRUPTED:
            return sa.or_(sa.exists(stated), sa.exists(run.where(silent)))
        return sa.exists(stated.where(sa.not_(silent)))

    node = sa.select(nodes.c.id).select_from(runs.join(nodes, nodes.c.id == runs.c.node_id))
    among = node.where(nodes.c.parent_id == parent_id)
    stated = among.where(runs.c.verdict == query.state)
    if query.state == q.INTERRUPTED:
        return Term(probe, (stated, among.where(silent)))
    return Term(probe, (stated.where(sa.not_(silent)),))


def _keys(query: q.KeysFilter | q.Lookup, path: Path) -> Term:
    keys = query.keys if isinstance(query, q.KeysFilter) else (query.key,)
    wanted = sorted({path_text((*path, key)) for key in keys if key and "/" not in key})

    def probe(node_id: Column) -> Condition:
        node = nodes.alias()
        return sa.exists(_ONE.where(node.c.id == node_id, node.c.path.in_(wanted)))

    return Term(probe, (sa.select(nodes.c.id).where(nodes.c.path.in_(wanted)),)) if wanted else NEVER


_TERMS: dict[type[q.Query], Callable[[Any, int], Term]] = {
    q.Eq: _eq,
    q.NotEq: _not_eq,
    q.In: _in,
    q.NotIn: _not_in,
    q.KeyPresent: _key_present,
    q.Contains: _contains,
    q.Like: _like,
    q.StructureFamily: _structure_family,
    q.AccessTags: _access_tags,
}


# --- from terms to nodes ------------------------------------------------------------------------


class Search:
    """Ids of the children of one container that fit some terms, in order."""

    def __init__(self, session: Session, parent_id: int, terms: Sequence[Term]) -> None:
        self._session = session
        self._parent = parent_id
        self._terms = list(terms)
        self.exact = all(term.exact for term in terms)
        self._few: list[int] | None = None
        self._leader: Term | None = None
        self._choose()

    def _choose(self) -> None:
        """Settle on who leads: a few ids, an ordered list, the shortest list, or nobody."""
        listed = [term for term in self._terms if term.lists]
        if len(listed) == 1 and listed[0].ordered:
            self._leader = listed[0]
            return
        for term in listed:
            start = self._session.compose(_union(term.lists).limit(SMALL + 1))
            if len(start) <= SMALL:
                ids = {row[0] for row in start}
                self._few = sorted(ids if self._few is None else ids.intersection(self._few))
        if self._few is not None:
            return
        ordered = [term for term in listed if term.ordered]
        self._leader = ordered[0] if ordered else (listed[0] if listed else None)

    def batch(self, n: int, *, after: int | None, descending: bool, skip: int = 0) -> list[int]:
        """Return `n` ids in order of insertion, beyond the id `after`, the first `skip` left out."""

        def page(select: sa.Select, ids: Column) -> list[int]:
            beyond = [] if after is None else [ids < after if descending else ids > after]
            ordered = select.where(*beyond).order_by(ids.desc() if descending else ids.asc())
            return self._ids(ordered.limit(n).offset(skip))

        leader = self._leader
        if self._few is not None:
            return page(*self._among_few())
        if leader is not None and leader.ordered:
            return page(*self._led(leader))
        if leader is None:
            return page(*self._all())
        walked = self._walk(n + skip, after, descending)
        if len(walked) == n + skip:
            return walked[skip:]
        return page(*self._led(leader))

    def sorted(self, sort: Sequence[q.SortKey], n: int | None, skip: int) -> list[int]:
        """Return `n` ids (None: all) in the order of `sort`, the first `skip` left out."""
        if self._few is None and self.exact and n is not None and len(sort) == 1 and sort[0].key != "id":
            return self._by_leaf(sort[0], n, skip)
        select, ids = self._all() if self._few is None else self._among_few()
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
                    _NOT_NULL(leaf.c.value),
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

    def count(self) -> int:
        """Return how many ids fit the terms."""
        if self._few is not None:
            select, _ = self._among_few()
        elif self._leader is not None:
            select, _ = self._led(self._leader)
        else:
            select, _ = self._all()
        counted = sa.select(sa.func.count()).select_from(select.subquery())
        return int(self._session.compose(counted)[0][0])

    def selected(self) -> sa.Select:
        """Return the select of all ids that fit, in no order."""
        return (self._among_few() if self._few is not None else self._all())[0]

    def _probes(self, ids: Column, leader: Term | None = None) -> list[Condition]:
        return [term.probe(ids) for term in self._terms if term is not leader]

    def _all(self) -> tuple[sa.Select, Column]:
        ids = nodes.c.id
        return sa.select(ids).where(nodes.c.parent_id == self._parent, *self._probes(ids)), ids

    def _among_few(self) -> tuple[sa.Select, Column]:
        ids = nodes.c.id
        few = ids.in_(self._few or [])
        return sa.select(ids).where(few, nodes.c.parent_id == self._parent, *self._probes(ids)), ids

    def _led(self, leader: Term) -> tuple[sa.Select, Column]:
        if leader.ordered:
            (select,) = leader.lists
            ids = select.selected_columns[0]
            ids = ids.element if isinstance(ids, sa.sql.elements.Label) else ids
            return select.where(*self._probes(ids, leader)), ids
        listed = _union(leader.lists).subquery()
        ids = listed.c.id
        return sa.select(ids).where(*self._probes(ids, leader)).distinct(), ids

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

    def _by_leaf(self, key: q.SortKey, n: int, skip: int) -> list[int]:
        """Return ids in the order of one leaf, read from its index; those without it come after."""
        if key.key == "":
            return self.batch(n, after=None, descending=key.descending, skip=skip)
        name = lv.key_text(key.metadata_key)
        has = sa.select(leaves.c.node_id).where(
            leaves.c.parent_id == self._parent,
            leaves.c.key == name,
            _NOT_NULL(leaves.c.value),
            *self._probes(leaves.c.node_id),
        )
        value = leaves.c.value.desc() if key.descending else leaves.c.value.asc()
        found = self._ids(has.order_by(value, leaves.c.node_id).limit(n).offset(skip))
        if len(found) == n:
            return found
        if found:
            skip_rest = 0
        else:
            total = self._session.compose(sa.select(sa.func.count()).select_from(has.subquery()))[0][0]
            skip_rest = max(0, skip - total)
        present = _leaf_term(self._parent, name, _NOT_NULL)
        select, ids = self._all()
        rest = select.where(sa.not_(present.probe(ids))).order_by(ids)
        return found + self._ids(rest.limit(n - len(found)).offset(skip_rest))

    def _ids(self, select: sa.Select) -> list[int]:
        return [row[0] for row in self._session.compose(select)]


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
