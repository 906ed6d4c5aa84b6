"""Reading slow data: series of segments, rows in arrival order."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import google_crc32c
import msgspec
import sqlalchemy as sa

from flystore.model.errors import Damaged

from ._database import Fixed, Session
from ._rows import Segment
from ._schema import segments

_OF = segments.c.series == sa.bindparam("of")
_ROWS = Fixed(
    sa.select(segments.c.first_row + segments.c.rows).where(_OF).order_by(segments.c.first_row.desc()).limit(1)
)
_BEGAN = Fixed(sa.select(segments.c.id).where(_OF).order_by(segments.c.first_row).limit(1))
_FIRST = Fixed(sa.select(sa.func.max(segments.c.first_row)).where(_OF, segments.c.first_row <= sa.bindparam("first")))
_LAST = Fixed(
    sa.select(segments.c.rows, segments.c.crc, segments.c.id).where(_OF).order_by(segments.c.first_row.desc()).limit(1)
)
_FROM = Fixed(
    sa.select(segments.c.id, segments.c.first_row)
    .where(_OF, segments.c.first_row >= sa.bindparam("first"), segments.c.first_row < sa.bindparam("stop"))
    .order_by(segments.c.first_row)
    .limit(sa.bindparam("limit"))
)
_ONE = Fixed(
    sa.select(
        segments.c.first_row,
        segments.c.rows,
        segments.c.body,
        segments.c.received,
        segments.c.uri,
        segments.c.crc,
    ).where(segments.c.id == sa.bindparam("id"))
)
_IDS = Fixed(
    sa.select(segments.c.id, segments.c.series)
    .where(segments.c.id > sa.bindparam("after"))
    .order_by(segments.c.id)
    .limit(sa.bindparam("limit"))
)
_NTH = Fixed(
    sa.select(segments.c.id)
    .where(_OF)
    .order_by(segments.c.first_row)
    .limit(1)
    .offset(sa.bindparam("before", type_=sa.Integer))
)
_COLUMN = Fixed(
    sa.select(segments.c.rows, segments.c.crc, segments.c.id).where(
        _OF, segments.c.first_row == sa.bindparam("first"), segments.c.body.is_not(None)
    )
)
_BODY = Fixed(sa.select(segments.c.body).where(segments.c.id == sa.bindparam("id")))
_ALL_SERIES = Fixed(
    sa.select(segments.c.series)
    .where(segments.c.series >= sa.bindparam("low"), segments.c.series < sa.bindparam("high"))
    .distinct()
    .order_by(segments.c.series)
)
COLUMN_MARK = "\x1f"
"""Between a series and the number of its column; keys of nodes hold no such characters."""

_FOREVER = 1 << 62
_PAGE = 256


Choose = Callable[[bytes], Iterable[int]]
"""Gets the header of rows stored by columns; returns the numbers of those to be read."""


def column_series(series: str, number: int) -> str:
    """Return the name under which a column of rows stored by columns lies."""
    return f"{series}{COLUMN_MARK}{number}"


def bounds_of_columns(series: str) -> tuple[str, str]:
    """Return (low, high): a column of the series is called so that ``low <= it < high``."""
    return f"{series}{COLUMN_MARK}", f"{series}{chr(ord(COLUMN_MARK) + 1)}"


def is_column(series: str) -> bool:
    return COLUMN_MARK in series


def problem_of(segment: Segment) -> str | None:
    """Return what is wrong with a segment's bytes; None if nothing is, or they carry no checksum."""
    if segment.body is None:
        return None if segment.uri is not None else "holds no rows"
    if segment.crc is not None and google_crc32c.value(segment.body) != segment.crc:
        return "fails its checksum"
    return None


class SegmentReads:
    """Rows of streams and tables, as they were appended."""

    _session: Session

    def rows(self, series: str) -> int:
        """Return how many rows a series has; 0 if there is none of that name."""
        row = self._session.one(_ROWS, {"of": series})
        return 0 if row is None else int(row[0])

    def ends_with(self, series: str, pieces: Sequence[tuple[int, bytes]]) -> bool:
        """Return whether the last segments of a series are these (rows, body), byte for byte.

        They are only read if the last one has the checksum of the last of these.
        """
        last = self._session.one(_LAST, {"of": series})
        if last is None or last[0] != pieces[-1][0] or last[1] != google_crc32c.value(pieces[-1][1]):
            return False
        end = self.rows(series)
        for rows, body in reversed(pieces):
            bounds = {"of": series, "first": end - rows, "stop": end, "limit": 2}
            here = self._session.all(_FROM, bounds)
            found = self._session.one(_ONE, {"id": here[0][0]}) if len(here) == 1 else None
            if found is None or (found[0], found[1], found[2]) != (end - rows, rows, body):
                return False
            end -= rows
        return True

    def began(self, series: str) -> int | None:
        """Return a number that is another one once rows of a series were replaced; None if it has none."""
        row = self._session.one(_BEGAN, {"of": series})
        return None if row is None else int(row[0])

    def has_segments(self, series: str, number: int) -> bool:
        """Return whether a series has so many segments or more; looks at no more of them."""
        return self._session.one(_NTH, {"of": series, "before": number - 1}) is not None

    def series_below(self, path: str) -> list[str]:
        """Return the names of all series at a path of nodes, joined by ``/``, and below it; without columns."""
        found = self._session.all(_ALL_SERIES, {"low": path, "high": f"{path}0"})
        return [row[0] for row in found if (row[0] == path or row[0].startswith(f"{path}/")) and not is_column(row[0])]

    def column(self, series: str, segment: Segment, number: int) -> bytes:
        """Return one column of a segment that is stored by columns.

        Raises
        ------
        Damaged
            If it is not there or fails its checksum.
        """
        row = self._session.one(_COLUMN, {"of": column_series(series, number), "first": segment.first_row})
        body = None
        if row is not None and row[0] == segment.rows:
            body = self._session.large(segments.c.body, _BODY, row[2])
        if row is None or body is None:
            raise _damaged(series, segment, f"lost its column {number}, which is not there")
        if google_crc32c.value(body) != row[1]:
            raise _damaged(series, segment, f"lost its column {number}, which fails its checksum")
        return body

    def segments(
        self, series: str, first: int = 0, stop: int | None = None, *, choose: Choose | None = None
    ) -> Iterator[Segment]:
        """Yield the segments that hold the rows ``first <= row < stop``, in order.

        The first may begin before `first` and the last end after `stop`. One is in memory at a time.

        Parameters
        ----------
        choose
            Which columns are read of segments that are stored by columns; None: none.

        Raises
        ------
        Damaged
            If a segment fails its checksum, or rows between two segments are not there.
        """
        if stop is not None and stop <= first:
            return
        row = self._session.one(_FIRST, {"of": series, "first": first})
        at: int | None = None if row is None else row[0]
        expected = at
        while at is not None:
            bounds = {"first": at, "stop": _FOREVER if stop is None else stop}
            page = self._session.all(_FROM, {"of": series, "limit": _PAGE, **bounds})
            for segment_id, _ in page:
                found = self._session.one(_ONE, {"id": segment_id})
                assert found is not None  # the snapshot does not change
                segment = Segment(*found)
                problem = problem_of(segment)
                if segment.first_row != expected:
                    problem = f"should begin at row {expected}"
                if problem is not None:
                    raise _damaged(series, segment, problem)
                expected = segment.first_row + segment.rows
                if segment.first_row + segment.rows > first:
                    if choose is not None and segment.by_columns:
                        chosen = {n: self.column(series, segment, n) for n in choose(segment.body or b"")}
                        segment = msgspec.structs.replace(segment, columns=chosen)
                    yield segment
            at = page[-1][1] + 1 if len(page) == _PAGE else None

    def stored_segments(self, after: int = 0, *, limit: int = 256) -> list[tuple[int, str, Segment]]:
        """Return up to `limit` segments of all series with ids beyond `after`, as they lie there, unchecked.

        Returns
        -------
        list of (id, series, Segment)
            For going through all that is stored: ids ascend.
        """
        found = self._session.all(_IDS, {"after": after, "limit": limit})
        rows = [(row[0], row[1], self._session.one(_ONE, {"id": row[0]})) for row in found]
        return [(number, series, Segment(*row)) for number, series, row in rows if row is not None]


def _damaged(series: str, segment: Segment, problem: str) -> Damaged:
    return Damaged(
        f"the segment of {series} at row {segment.first_row} {problem}; the other rows of it and all "
        "other nodes stay readable. Restore it from a backup, or rebuild it from the log.",
        series=series,
        first_row=segment.first_row,
    )
