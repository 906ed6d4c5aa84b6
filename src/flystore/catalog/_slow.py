"""Reading slow data: series of segments, rows in arrival order."""

from collections.abc import Iterator

import sqlalchemy as sa

from ._database import Fixed, Session
from ._rows import Segment
from ._schema import segments

_OF = segments.c.series == sa.bindparam("of")
_ROWS = Fixed(
    sa.select(segments.c.first_row + segments.c.rows).where(_OF).order_by(segments.c.first_row.desc()).limit(1)
)
_FIRST = Fixed(sa.select(sa.func.max(segments.c.first_row)).where(_OF, segments.c.first_row <= sa.bindparam("first")))
_FROM = Fixed(
    sa.select(segments.c.id, segments.c.first_row)
    .where(_OF, segments.c.first_row >= sa.bindparam("first"), segments.c.first_row < sa.bindparam("stop"))
    .order_by(segments.c.first_row)
    .limit(sa.bindparam("limit"))
)
_ONE = Fixed(
    sa.select(segments.c.first_row, segments.c.rows, segments.c.body, segments.c.received, segments.c.uri).where(
        segments.c.id == sa.bindparam("id")
    )
)
_FOREVER = 1 << 62
_PAGE = 256


class SegmentReads:
    """Rows of streams and tables, as they were appended."""

    _session: Session

    def rows(self, series: str) -> int:
        """Return how many rows a series has; 0 if there is none of that name."""
        row = self._session.one(_ROWS, {"of": series})
        return 0 if row is None else int(row[0])

    def segments(self, series: str, first: int = 0, stop: int | None = None) -> Iterator[Segment]:
        """Yield the segments that hold the rows ``first <= row < stop``, in order.

        The first may begin before `first` and the last end after `stop`. One is in memory at a time.
        """
        if stop is not None and stop <= first:
            return
        row = self._session.one(_FIRST, {"of": series, "first": first})
        at: int | None = None if row is None else row[0]
        while at is not None:
            bounds = {"first": at, "stop": _FOREVER if stop is None else stop}
            page = self._session.all(_FROM, {"of": series, "limit": _PAGE, **bounds})
            for segment_id, _ in page:
                found = self._session.one(_ONE, {"id": segment_id})
                assert found is not None  # the snapshot does not change
                segment = Segment(*found)
                if segment.first_row + segment.rows > first:
                    yield segment
            at = page[-1][1] + 1 if len(page) == _PAGE else None
