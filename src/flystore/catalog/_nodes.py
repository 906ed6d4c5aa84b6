"""Reading nodes by path or id, and what belongs to one node."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa

from flystore.model.errors import Damaged
from flystore.model.overlay import Overlay
from flystore.model.structures import Asset, DataSource, Family, Management, Spec

from ._database import Among, Fixed, Row, Session
from ._json import from_json, to_json
from ._rows import Node, Observation, Path, Revision, path_of, path_text
from ._schema import NO_NUM, assets, child_counts, data_sources, extensions, nodes, observations, revisions

_NODE = (
    nodes.c.id,
    nodes.c.parent_id,
    nodes.c.path,
    nodes.c.family,
    nodes.c.specs,
    nodes.c.metadata,
    nodes.c.structure,
    nodes.c.external,
    nodes.c.access_tags,
    nodes.c.origin,
    nodes.c.run_uid,
    nodes.c.indexed,
    nodes.c.children_indexed,
    nodes.c.time_created,
    nodes.c.time_updated,
    nodes.c.revision,
    nodes.c.overlay,
)
_BY_PATH = Fixed(sa.select(*_NODE).where(nodes.c.path == sa.bindparam("path")))
_BY_ID = Fixed(sa.select(*_NODE).where(nodes.c.id == sa.bindparam("id")))
_AMONG = Among(sa.select(*_NODE), nodes.c.id)
_COUNT = Fixed(sa.select(child_counts.c.count).where(child_counts.c.node_id == sa.bindparam("id")))
_COUNTS = Among(sa.select(child_counts.c.node_id, child_counts.c.count), child_counts.c.node_id)

_EXTENSION = Fixed(
    sa.select(sa.literal(1)).where(
        extensions.c.node_id == sa.bindparam("node_id"), extensions.c.place == sa.bindparam("place")
    )
)

_SOURCE = (
    data_sources.c.id,
    data_sources.c.node_id,
    data_sources.c.family,
    data_sources.c.mimetype,
    data_sources.c.structure,
    data_sources.c.parameters,
    data_sources.c.properties,
    data_sources.c.management,
)
_SOURCE_OF = Fixed(sa.select(*_SOURCE).where(data_sources.c.node_id == sa.bindparam("node_id")))
_SOURCE_BY_ID = Fixed(
    sa.select(*_SOURCE, nodes.c.path)
    .join(nodes, nodes.c.id == data_sources.c.node_id)
    .where(data_sources.c.id == sa.bindparam("id"))
)
_ASSET = (
    assets.c.id,
    assets.c.parameter,
    assets.c.num,
    assets.c.data_uri,
    assets.c.is_directory,
    assets.c.size,
)
_ASSETS_OF = Fixed(
    sa.select(*_ASSET)
    .where(assets.c.data_source_id == sa.bindparam("source"))
    .order_by(assets.c.parameter, assets.c.num)
)
_OBSERVATION = (
    observations.c.node_id,
    observations.c.num,
    observations.c.time,
    observations.c.status,
    observations.c.rows,
    observations.c.fingerprint,
    observations.c.detail,
)
_OBSERVATION_OF = Fixed(
    sa.select(*_OBSERVATION).where(
        observations.c.node_id == sa.bindparam("node_id"), observations.c.num == sa.bindparam("num")
    )
)
_OBSERVED = Among(
    sa.select(*_OBSERVATION).where(observations.c.num == sa.bindparam("num", NO_NUM)), observations.c.node_id
)
_OBSERVATIONS = Fixed(
    sa.select(*_OBSERVATION).where(observations.c.node_id == sa.bindparam("node_id")).order_by(observations.c.num)
)
_REVISIONS = Fixed(
    sa.select(
        revisions.c.number,
        revisions.c.metadata,
        revisions.c.specs,
        revisions.c.access_tags,
        revisions.c.time_updated,
    )
    .join(nodes, nodes.c.id == revisions.c.node_id)
    .where(nodes.c.path == sa.bindparam("path"))
    .order_by(revisions.c.number)
    .limit(sa.bindparam("limit"))
    .offset(sa.bindparam("offset"))
)
_COUNT_REVISIONS = Fixed(
    sa.select(sa.func.count())
    .select_from(revisions.join(nodes, nodes.c.id == revisions.c.node_id))
    .where(nodes.c.path == sa.bindparam("path"))
)
_MANAGEMENTS = Fixed(
    sa.select(data_sources.c.management)
    .join(nodes, nodes.c.id == data_sources.c.node_id)
    .where(
        sa.or_(
            nodes.c.path == sa.bindparam("path"),
            sa.and_(nodes.c.path >= sa.bindparam("low"), nodes.c.path < sa.bindparam("high")),
        )
    )
    .distinct()
)

_KEPT_CHARACTERS = 1_000
"""Specs of at most so many characters are kept as they were read: nearly all nodes have one of a few."""

_NO_TAGS = "[]"

LAST_CHARACTER = "\U0010ffff"


def below(path: Sequence[str]) -> tuple[str, str]:
    """Return (low, high): a path is below `path` if ``low <= it < high``."""
    text = path_text(path)
    # "0" is the character after "/"; keys never begin with the zero or the last code point.
    return (f"{text}/", f"{text}0") if text else ("\x01", LAST_CHARACTER)


class NodeReads:
    """Nodes and what is kept about each."""

    _session: Session

    def node(self, path: Sequence[str]) -> Node | None:
        """Return the node at `path` (``()``: the root), or None; one index probe."""
        row = self._session.one(_BY_PATH, {"path": path_text(path)})
        return None if row is None else node_of(row)

    def node_by_id(self, node_id: int) -> Node | None:
        """Return the node of an id, or None."""
        row = self._session.one(_BY_ID, {"id": node_id})
        return None if row is None else node_of(row)

    def nodes(self, paths: Iterable[Sequence[str]]) -> list[Node]:
        """Return the nodes among `paths` that exist, in that order."""
        texts = [path_text(path) for path in paths]
        rows = self._session.compose(sa.select(*_NODE).where(nodes.c.path.in_(texts))) if texts else []
        found = {row[2]: row for row in rows}
        return [node_of(found[text]) for text in texts if text in found]

    def nodes_by_id(self, ids: Sequence[int]) -> list[Node]:
        """Return the nodes of `ids` that exist, in that order."""
        found = {row[0]: row for row in _AMONG.rows(self._session, ids)}
        return [node_of(found[node_id]) for node_id in ids if node_id in found]

    def node_ids(self, after: int = 0, limit: int = 1_000) -> list[int]:
        """Return up to `limit` ids of nodes beyond `after`, ascending; the root is one of them."""
        ids = sa.select(nodes.c.id).where(nodes.c.id > after).order_by(nodes.c.id).limit(limit)
        return [row[0] for row in self._session.compose(ids)]

    def was_extended(self, node_id: int, begin: Sequence[int]) -> bool:
        """Return whether a node's array was extended at a place; see `WriteData.note_extension`."""
        return self._session.one(_EXTENSION, {"node_id": node_id, "place": to_json(list(begin))}) is not None

    def data_source(self, node_id: int) -> DataSource | None:
        """Return how a node's data is stored, with all assets in order; None if nothing is stored."""
        row = self._session.one(_SOURCE_OF, {"node_id": node_id})
        return None if row is None else self._source(row)

    def data_source_head(self, node_id: int) -> DataSource | None:
        """Return how a node's data is stored as `data_source` does, without its assets, of which a scan has many."""
        row = self._session.one(_SOURCE_OF, {"node_id": node_id})
        return None if row is None else _source_of(row, ())

    def data_source_by_id(self, source_id: int) -> tuple[Path, DataSource] | None:
        """Return the node's path and the data source of an id, or None."""
        row = self._session.one(_SOURCE_BY_ID, {"id": source_id})
        return None if row is None else (path_of(row[8]), self._source(row))

    def data_sources(self, node_ids: Sequence[int]) -> dict[int, DataSource]:
        """Return the data sources of some nodes by node id; nodes without are left out."""
        if not node_ids:
            return {}
        rows = self._session.compose(sa.select(*_SOURCE).where(data_sources.c.node_id.in_(node_ids)))
        files: dict[int, list[Asset]] = {row[0]: [] for row in rows}
        for row in self._session.compose(
            sa.select(assets.c.data_source_id, *_ASSET)
            .where(assets.c.data_source_id.in_(list(files)))
            .order_by(assets.c.parameter, assets.c.num)
        ):
            files[row[0]].append(_asset_of(row[1:]))
        return {row[1]: _source_of(row, tuple(files[row[0]])) for row in rows}

    def managements(self, path: Sequence[str]) -> set[Management]:
        """Return how the data at and below `path` is managed; empty if there is none."""
        low, high = below(path)
        rows = self._session.all(_MANAGEMENTS, {"path": path_text(path), "low": low, "high": high})
        return {Management(row[0]) for row in rows}

    def observation(self, node_id: int, num: int | None = None) -> Observation | None:
        """Return the last observation of a node, or of its asset `num`; None if there is none."""
        params = {"node_id": node_id, "num": NO_NUM if num is None else num}
        row = self._session.one(_OBSERVATION_OF, params)
        return None if row is None else _observation_of(row)

    def last_observations(self, node_ids: Sequence[int]) -> dict[int, Observation]:
        """Return the last observation of each node as a whole, by node id; nodes without are left out."""
        return {row[0]: _observation_of(row) for row in _OBSERVED.rows(self._session, node_ids)}

    def observations(self, node_id: int) -> list[Observation]:
        """Return the last observation of the node as a whole and of each of its assets."""
        return [_observation_of(row) for row in self._session.all(_OBSERVATIONS, {"node_id": node_id})]

    def revisions(self, path: Sequence[str], *, offset: int = 0, limit: int = 1_000_000) -> list[Revision]:
        """Return what the node's metadata was before each recorded change, oldest first."""
        params = {"path": path_text(path), "limit": limit, "offset": offset}
        return [
            Revision(row[0], from_json(row[1]), specs_of(row[2]), tuple(from_json(row[3])), row[4])
            for row in self._session.all(_REVISIONS, params)
        ]

    def count_revisions(self, path: Sequence[str]) -> int:
        row = self._session.one(_COUNT_REVISIONS, {"path": path_text(path)})
        return int(row[0]) if row else 0

    def _source(self, row: Row) -> DataSource:
        files = self._session.all(_ASSETS_OF, {"source": row[0]})
        return _source_of(row, tuple(_asset_of(file) for file in files))

    def count_children(self, node_id: int) -> int:
        """Return how many children a node has; the number is kept, not counted."""
        row = self._session.one(_COUNT, {"id": node_id})
        return 0 if row is None else int(row[0])

    def counts_of_children(self, node_ids: Sequence[int]) -> list[int]:
        """Return for each node how many children it has, as `count_children` does."""
        found = dict(map(tuple, _COUNTS.rows(self._session, node_ids)))
        return [int(found.get(node_id, 0)) for node_id in node_ids]


def node_of(row: Row) -> Node:
    return Node(
        id=row[0],
        parent_id=row[1],
        path=path_of(row[2]),
        family=Family(row[3]),
        specs=specs_of(row[4]),
        metadata=from_json(row[5]),
        structure=None if row[6] is None else from_json(row[6]),
        external=row[7],
        access_tags=_tags_of(row[8]),
        origin=row[9],
        run_uid=row[10],
        indexed=bool(row[11]),
        children_indexed=bool(row[12]),
        time_created=row[13],
        time_updated=row[14],
        revision=row[15],
        overlay=None if row[16] is None else overlay_of(row[16]),
    )


def overlay_of(text: str) -> Overlay:
    """Return what `overlay_text` wrote.

    Raises
    ------
    Damaged
    """
    try:
        return msgspec.convert(from_json(text), Overlay)
    except msgspec.ValidationError as error:
        raise Damaged(f"the edits of a node cannot be read ({error}): {text[:80]!r}") from error


def overlay_text(overlay: Overlay | None) -> str | None:
    return None if overlay is None or overlay.is_empty else to_json(overlay)


def specs_of(text: str) -> tuple[Spec, ...]:
    return _specs_of(text) if len(text) <= _KEPT_CHARACTERS else _specs_of.__wrapped__(text)


@lru_cache(256)
def _specs_of(text: str) -> tuple[Spec, ...]:
    return tuple(Spec(name, version) for name, version in from_json(text))


def _tags_of(text: str) -> tuple[str, ...]:
    return () if text == _NO_TAGS else tuple(from_json(text))


def specs_text(specs: Iterable[Spec]) -> str:
    return to_json([[spec.name, spec.version] for spec in specs])


def _observation_of(row: Row) -> Observation:
    return Observation(
        node_id=row[0],
        num=None if row[1] == NO_NUM else row[1],
        time=row[2],
        status=row[3],
        rows=row[4],
        fingerprint=from_json(row[5]),
        detail=row[6],
    )


def _source_of(row: Row, files: tuple[Asset, ...]) -> DataSource:
    return DataSource(
        id=row[0],
        family=Family(row[2]),
        mimetype=row[3],
        structure=from_json(row[4]),
        parameters=from_json(row[5]),
        properties=from_json(row[6]),
        management=Management(row[7]),
        assets=files,
    )


def _asset_of(row: Any) -> Asset:
    return Asset(
        id=row[0],
        parameter=row[1],
        num=None if row[2] == NO_NUM else row[2],
        data_uri=row[3],
        is_directory=bool(row[4]),
        size=row[5],
    )
