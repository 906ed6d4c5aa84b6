"""Storing what belongs to nodes: data sources, observations, and rows of slow data."""

from collections.abc import Callable, Container, Sequence

import google_crc32c
import msgspec
import sqlalchemy as sa

from flystore.model.errors import Conflict, NotFound
from flystore.model.structures import Asset, DataSource

from ._database import Fixed, insert_of, upsert
from ._json import storable, to_json
from ._nodes import NodeReads
from ._rows import Observation, Segment
from ._schema import NO_NUM, assets, data_sources, extensions, observations, segments
from ._slow import SegmentReads, bounds_of_columns, column_series
from ._write_log import WriteLog

_SOURCE_VALUES = ("family", "mimetype", "management", "structure", "parameters", "properties")
_PUT_SOURCE = upsert(data_sources, ("node_id",), _SOURCE_VALUES)
_NEW_ASSET = upsert(assets, ("data_source_id", "parameter", "num"), ("data_uri", "is_directory", "size"), update=False)
_NEW_EXTENSION = upsert(extensions, ("node_id", "place"), (), update=False)
_SOURCE_ID = Fixed(sa.select(data_sources.c.id).where(data_sources.c.node_id == sa.bindparam("of")))
_OF_PARAMETER = (assets.c.data_source_id == sa.bindparam("of"), assets.c.parameter == sa.bindparam("parameter"))
_ASSET_SPAN = Fixed(
    sa.select(sa.func.count(), sa.func.min(assets.c.num), sa.func.max(assets.c.num)).where(*_OF_PARAMETER)
)
_ASSET_NUMS = Fixed(sa.select(assets.c.num).where(*_OF_PARAMETER))
_PUT_OBSERVATION = upsert(observations, ("node_id", "num"), ("time", "status", "rows", "fingerprint", "detail"))
_NEW_SEGMENT = Fixed(insert_of(segments, "series", "first_row", "rows", "received", "uri", "body", "crc"))
_SEGMENTS_WITHIN = Fixed(
    sa.select(segments.c.first_row, segments.c.rows, segments.c.id, segments.c.crc)
    .where(
        segments.c.series == sa.bindparam("of"),
        segments.c.first_row >= sa.bindparam("low"),
        segments.c.first_row < sa.bindparam("high"),
    )
    .order_by(segments.c.first_row)
)
_NO_SEGMENTS = Fixed(
    sa.delete(segments).where(
        segments.c.series == sa.bindparam("of"),
        segments.c.first_row >= sa.bindparam("low"),
        segments.c.first_row < sa.bindparam("high"),
    )
)
_NO_COLUMNS = Fixed(
    sa.delete(segments).where(segments.c.series >= sa.bindparam("low"), segments.c.series < sa.bindparam("high"))
)
_MERGED_VALUES = ("rows", "received", "uri", "body", "crc")
_MERGED = Fixed(
    sa.update(segments)
    .where(segments.c.id == sa.bindparam("of"))
    .values({name: sa.bindparam(f"new_{name}") for name in _MERGED_VALUES})
)
_FOREVER = 1 << 62


class WriteData(NodeReads, SegmentReads, WriteLog):
    """Data sources, observations and series as a transaction changes them."""

    _clock: Callable[[], float]

    def put_data_source(self, node_id: int, source: DataSource) -> DataSource:
        """Store how a node's data is stored; return it with ids.

        A node has one data source: it keeps its id. Assets are added by (parameter, num); those
        that are there stay as they are.

        Raises
        ------
        NotFound
            If `source` has an id that is not the node's data source's.
        """
        self._put_source(node_id, source)
        stored = self.data_source(node_id)
        assert stored is not None
        return stored

    def note_extension(self, node_id: int, begin: Sequence[int]) -> None:
        """Note that a node's array was extended by what begins at a place."""
        self._session.execute(_NEW_EXTENSION, {"node_id": node_id, "place": to_json(list(begin))})

    def extend_data_source(self, node_id: int, source: DataSource) -> tuple[Asset, ...]:
        """Store as `put_data_source` does; return only the assets that were not there before.

        Those that were there are neither read nor written, however many a caller repeats.

        Raises
        ------
        NotFound
        """
        return self._put_source(node_id, source)

    def _put_source(self, node_id: int, source: DataSource) -> tuple[Asset, ...]:
        known = self._session.one(_SOURCE_ID, {"of": node_id})
        if source.id is not None and (known is None or known[0] != source.id):
            raise NotFound(f"data source {source.id} does not belong to this node", id=source.id)
        values = {
            "node_id": node_id,
            "family": str(source.family),
            "mimetype": storable(source.mimetype),
            "management": str(source.management),
            "structure": to_json(source.structure),
            "parameters": to_json(source.parameters),
            "properties": to_json(source.properties),
        }
        self._session.execute(_PUT_SOURCE, values)
        row = self._session.one(_SOURCE_ID, {"of": node_id})
        assert row is not None
        new = source.assets if known is None else self._unknown(row[0], source.assets)
        self._session.many(
            _NEW_ASSET,
            [
                {
                    "data_source_id": row[0],
                    "parameter": storable(asset.parameter),
                    "num": NO_NUM if asset.num is None else asset.num,
                    "data_uri": storable(asset.data_uri),
                    "is_directory": asset.is_directory,
                    "size": asset.size,
                }
                for asset in new
            ],
        )
        return new

    def _unknown(self, source_id: int, listed: tuple[Asset, ...]) -> tuple[Asset, ...]:
        """Return those of `listed` that have no row yet, each (parameter, num) once."""
        known: dict[str, Container[int]] = {}
        for parameter in {asset.parameter for asset in listed}:
            which = {"of": source_id, "parameter": storable(parameter)}
            row = self._session.one(_ASSET_SPAN, which)
            assert row is not None
            count, low, high = row
            if count and high - low + 1 == count:  # none is left out, as in every scan: no need to read them all
                known[parameter] = range(low, high + 1)
            else:
                known[parameter] = {row[0] for row in self._session.all(_ASSET_NUMS, which)}
        new: dict[tuple[str, int], Asset] = {}
        for asset in listed:
            num = NO_NUM if asset.num is None else asset.num
            if num not in known[asset.parameter]:
                new.setdefault((asset.parameter, num), asset)
        return tuple(new.values())

    def save_observation(self, observation: Observation) -> None:
        """Keep what was found, in place of what was found before."""
        self._session.execute(
            _PUT_OBSERVATION,
            {
                "node_id": observation.node_id,
                "num": NO_NUM if observation.num is None else observation.num,
                "time": observation.time,
                "status": observation.status,
                "rows": observation.rows,
                "fingerprint": to_json(observation.fingerprint),
                "detail": storable(observation.detail),
            },
        )

    def append_segment(
        self,
        series: str,
        first_row: int,
        rows: int,
        body: bytes,
        received: float | None = None,
        *,
        run_uid: str | None = None,
    ) -> None:
        """Append rows to a series.

        Parameters
        ----------
        series
            Path of the stream or table, segments joined by ``/``.
        first_row
            Where `rows` of the series is.
        body
            Arrow IPC.
        run_uid
            Of the node at `series`, for those who follow the run; None: what the node says, which has to be read.

        Raises
        ------
        Conflict
            If the series does not end at `first_row`; carries `expected`.
        """
        expected = self.rows(series)
        if first_row != expected or rows < 1:
            raise Conflict(
                f"{rows} rows from row {first_row} on do not continue {series}, which has {expected}",
                expected=expected,
            )
        now = self._clock() if received is None else received
        self._store_segment(series, Segment(first_row, rows, body, now))
        path = tuple(series.split("/"))
        if run_uid is None and (node := self.node(path)) is not None:
            run_uid = node.run_uid
        self.note_change(path, "rows", {"first_row": first_row, "rows": rows}, run_uid=run_uid)

    def replace_segments(self, series: str, merged: Sequence[Segment]) -> None:
        """Put fewer, larger segments in place of those that hold the same rows.

        Raises
        ------
        Conflict
            If the rows are not exactly those of some stored segments.
        """
        if not merged:
            return
        low, high = merged[0].first_row, merged[-1].first_row + merged[-1].rows
        bounds = {"of": series, "low": low, "high": high}
        stored = [(row[0], row[1]) for row in self._session.all(_SEGMENTS_WITHIN, bounds)]
        for spans in (stored, [(segment.first_row, segment.rows) for segment in merged]):
            if not _covers(spans, low, high):
                raise Conflict(f"rows {low} to {high} of {series} are not what is stored there; read again")
        self._session.execute(_NO_SEGMENTS, bounds)
        for segment in merged:
            self._store_segment(series, segment)

    def merge_segments(self, series: str, read: Sequence[Segment], merged: Segment, columns: Sequence[bytes]) -> bool:
        """Put one segment in place of `read`, which follow each other and hold the same rows; no reader sees a change.

        Parameters
        ----------
        columns
            All columns of `merged`, if it is stored by columns.

        Returns
        -------
        bool
            False if what is stored is not what was read; nothing is changed then.
        """
        low, high = merged.first_row, merged.first_row + merged.rows
        stored = self._session.all(_SEGMENTS_WITHIN, {"of": series, "low": low, "high": high})
        told = [(segment.first_row, segment.rows) for segment in read]
        same = [(row[0], row[1], row[3]) for row in stored] == [(one.first_row, one.rows, one.crc) for one in read]
        if not same or not _covers(told, low, high):
            return False
        # The first keeps its id, by which readers under way see that these are still the rows they began with.
        values = msgspec.structs.replace(merged, crc=None if merged.body is None else google_crc32c.value(merged.body))
        self._session.execute(_NO_SEGMENTS, {"of": series, "low": low + 1, "high": high})
        self._session.execute(
            _MERGED,
            {"of": stored[0][2], **{f"new_{name}": getattr(values, name) for name in _MERGED_VALUES}},
        )
        for number, body in enumerate(columns):
            column = Segment(low, merged.rows, body, merged.received)
            self._store_segment(column_series(series, number), column)
        return True

    def drop_series(self, series: str) -> None:
        """Remove all rows of a series; no error if there are none."""
        self._session.execute(_NO_SEGMENTS, {"of": series, "low": 0, "high": _FOREVER})
        low, high = bounds_of_columns(series)
        self._session.execute(_NO_COLUMNS, {"low": low, "high": high})

    def _store_segment(self, series: str, segment: Segment) -> None:
        crc = None if segment.body is None else google_crc32c.value(segment.body)
        values = {name: getattr(segment, name) for name in ("first_row", *_MERGED_VALUES)}
        self._session.execute(_NEW_SEGMENT, {"series": series, **values, "crc": crc})


def _covers(spans: Sequence[tuple[int, int]], low: int, high: int) -> bool:
    at = low
    for first, n in spans:
        if first != at:
            return False
        at += n
    return at == high
