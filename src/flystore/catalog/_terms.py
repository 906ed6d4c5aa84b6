"""From queries to terms: conditions that indexes answer.

Each query becomes a `Term`: a condition that can be asked about one node, mostly a probe of its
leaves, and where possible a list that the nodes can be taken from. `_search` chooses which leads.

A term may be inexact (text beyond what the index keeps, patterns with wildcards): it lets through
all that match and perhaps more, and the nodes are then held to `queries.matches`.
"""

from collections.abc import Callable, Sequence
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
from ._rows import Path, path_text
from ._schema import leaves, nodes, runs

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
    slow : bool
        The first of the list comes only when all have been found.
    exact : bool
        What fits matches; otherwise it has to be looked at.
    leaf : (str, bytes) or None
        The term is: the node has this leaf. How many have it may be kept.
    within : (str, bytes, bytes) or None
        The term is: the node has a leaf of this key with ``low <= value < high``; none of these is null.
    """

    probe: Callable[[Column], Condition]
    lists: tuple[sa.Select, ...] = ()
    ordered: bool = False
    slow: bool = False
    exact: bool = True
    leaf: tuple[str, bytes] | None = None
    within: tuple[str, bytes, bytes] | None = None


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
    return Term(probe, lists, ordered, exact=exact)


def _has_leaf(parent_id: int, key: str, wanted: bytes) -> Term:
    term = _leaf_term(parent_id, key, lambda value: value == wanted, ordered=True)

    def probe(node_id: Column) -> Condition:
        # By parent, not by node: the leaves of one value lie together, those of a million nodes all over the disk.
        leaf = leaves.alias()
        same = (leaf.c.parent_id == parent_id, leaf.c.key == key, leaf.c.value == wanted)
        return sa.exists(_ONE.where(*same, leaf.c.node_id == node_id))

    return msgspec.structs.replace(term, probe=probe, leaf=(key, wanted))


def _range_term(parent_id: int, key: str, low: bytes, high: bytes, exact: bool) -> Term:
    term = _leaf_term(parent_id, key, _between(low, high), exact=exact)
    return msgspec.structs.replace(term, within=(key, low, high))


def _between(low: bytes, high: bytes) -> Span:
    return lambda value: sa.and_(value >= low, value < high)


_PRESENT = _between(b"", lv.MEMBER)
NOT_NULL = _between(lv.after(lv.NULL), lv.MEMBER)
NEVER = Term(lambda node_id: sa.false(), (sa.select(nodes.c.id).where(sa.false()),), ordered=True)
ALWAYS = Term(lambda node_id: sa.true())


def _eq(query: q.Eq, parent_id: int) -> Term:
    wanted = lv.scalar_bytes(query.value)
    return _has_leaf(parent_id, lv.key_text(query.key), wanted)


def _not_eq(query: q.NotEq, parent_id: int) -> Term:
    other = lv.scalar_bytes(query.value)
    return _leaf_term(
        parent_id,
        lv.key_text(query.key),
        lambda value: sa.and_(NOT_NULL(value), value != other),
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
        lambda value: sa.and_(NOT_NULL(value), value.not_in(others)),
        listed=False,
    )


def _key_present(query: q.KeyPresent, parent_id: int) -> Term:
    term = _leaf_term(parent_id, lv.key_text(query.key), _PRESENT)
    return term if query.exists else Term(lambda node_id: sa.not_(term.probe(node_id)))


def _structure_family(query: q.StructureFamily, parent_id: int) -> Term:
    return _has_leaf(parent_id, lv.FAMILY_KEY, lv.scalar_bytes(str(query.value)))


def _access_tags(query: q.AccessTags, parent_id: int) -> Term:
    if not query.tags:
        return NEVER
    wanted = sorted({lv.scalar_bytes(tag) for tag in query.tags})
    return _leaf_term(parent_id, lv.TAG_KEY, lambda value: value.in_(wanted))


def _specs(query: q.Specs, parent_id: int) -> list[Term]:
    def carries(name: str) -> Term:
        return _has_leaf(parent_id, lv.SPEC_KEY, lv.scalar_bytes(name))

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
        return _range_term(parent_id, key, start, lv.after(start), exact=True)
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
    return _range_term(parent_id, lv.key_text(key), low, high, exact)


def _full_text(query: q.FullText, parent_id: int, database: str) -> Term:
    table, ids, condition = _words.having(database, query.words, parent_id)

    def probe(node_id: Column) -> Condition:
        words, column, having = _words.having(database, query.words, parent_id)
        return sa.exists(_ONE.select_from(words).where(column == node_id, having))

    listing = sa.select(ids.label("id")).select_from(table).where(condition)
    in_order = database == "sqlite"  # a GIN index gives a bitmap, not an order
    return Term(probe, (listing,), ordered=in_order, slow=not in_order)


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
