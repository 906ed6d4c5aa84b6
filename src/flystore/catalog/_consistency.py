"""Whether what the catalogue keeps twice agrees: what a damaged page of an index or a count would change."""

import sqlalchemy as sa

from . import _kept, _leaves
from ._database import Fixed, Session
from ._nodes import NodeReads
from ._rows import Node
from ._schema import child_counts, leaves, nodes, segments
from ._slow import COLUMN_MARK

_OF: sa.BindParameter[int] = sa.bindparam("of")
_LEAVES = Fixed(sa.select(leaves.c.parent_id, leaves.c.key, leaves.c.value).where(leaves.c.node_id == _OF))
_CHILDREN = Fixed(sa.select(sa.func.count()).select_from(nodes).where(nodes.c.parent_id == _OF))
_COUNTED = Fixed(sa.select(child_counts.c.count).where(child_counts.c.node_id == _OF))
_BROKEN_SERIES = (
    sa.select(segments.c.series)
    .where(sa.not_(segments.c.series.contains(COLUMN_MARK)))
    .group_by(segments.c.series)
    .having(
        sa.or_(
            sa.func.min(segments.c.first_row) != 0,
            sa.func.min(segments.c.rows) < 1,
            sa.func.sum(segments.c.rows) != sa.func.max(segments.c.first_row + segments.c.rows),
        )
    )
    .order_by(segments.c.series)
)
_NO_NODE = sa.select(leaves.c.node_id).where(~sa.exists().where(nodes.c.id == leaves.c.node_id)).distinct().limit(100)


class ConsistencyReads(NodeReads):
    """What can be worked out again from the rest of the catalogue."""

    _session: Session

    def problems_of(self, node: Node) -> list[str]:
        """Return what disagrees about a node, in words: its place, its count of children, its index entries."""
        found = []
        if node.parent_id is not None:
            parent = self.node(node.path[:-1])
            if parent is None or parent.id != node.parent_id:
                found.append("its parent is another node than its path says")
        counted = self._session.one(_COUNTED, {"of": node.id})
        (children,) = self._session.one(_CHILDREN, {"of": node.id}) or (0,)
        if (0 if counted is None else counted[0]) != children:
            found.append(f"{counted and counted[0]} children are counted, {children} are there")
        wanted = set()
        if node.indexed and node.parent_id is not None:
            entries = _leaves.leaves_of(node.metadata, node.family, node.specs, node.access_tags)
            wanted = {(node.parent_id, key, value) for key, value in entries}
        if {(row[0], row[1], row[2]) for row in self._session.all(_LEAVES, {"of": node.id})} != wanted:
            found.append("the search index does not have its metadata")
        if children and node.children_indexed and not _kept.is_right(self._session, node.id):
            found.append("what is kept about the index entries of its children is wrong")
        return found

    def broken_series(self) -> list[str]:
        """Return the series whose segments do not follow each other from row 0 on without a break."""
        return [row[0] for row in self._session.compose(_BROKEN_SERIES)]

    def indexed_without_node(self) -> list[int]:
        """Return ids, up to 100, that the search index knows and that no node has."""
        return [row[0] for row in self._session.compose(_NO_NODE)]
