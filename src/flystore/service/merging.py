"""Merging: the rows of a run that has ended, put together from as many pieces as they came in.

A run that came event by event has a segment an event, and to read it would cost a query each. Once the run has ended
its segments are put together, some MB at a time and column by column, so that reading costs what is read. Each part is
one transaction, in which the rows stay the same rows: whoever reads meanwhile sees no difference, and after a cut at
any moment every part is either as it was or merged. What could not be put together without loss, because a column
changed its type in between, stays as it was.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from flystore.catalog import BY_COLUMNS, Catalog, Segment
from flystore.disk.failpoints import reach
from flystore.model.errors import FlystoreError
from flystore.model.late import pa
from flystore.storage import decode_segment, encode_columns, encode_segment, together

log = logging.getLogger("flystore.service")

PART_ROWS, PART_BYTES = 1 << 17, 16 << 20
"""Of what is merged into one: as much as a reader of the rows may well hold at once."""

LEAST_SEGMENTS = 8
"""Fewer than this many are quickly read, and stay."""

_WHOLE_BYTES = 256 << 10
"""What is no larger stays one piece with all its columns: to take two out of it costs nothing."""

_COMPACT = 256
"""Segments are joined that many at a time, so that small ones do not stay in memory with all that surrounds them."""


class Merger:
    """Merges the rows of runs, in a thread of its own that lives while there is something to do."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._waiting: deque[str] = deque()
        self._noticed: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, uid: str) -> None:
        """Merge the rows of run `uid` soon, if it has ended; returns at once."""
        with self._lock:
            if self._closed or uid in self._waiting:
                return
            self._waiting.append(uid)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="flystore-merge", daemon=True)
                self._thread.start()

    def notice(self, uid: str) -> None:
        """Merge the rows of a run that was found to have many segments, unless this process tried that before."""
        if uid not in self._noticed:
            self._noticed.add(uid)
            self.ask(uid)

    def close(self) -> None:
        """Let the part under way be finished, and do no more."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            thread = self._thread
        if thread is not None:
            thread.join()

    def wait(self) -> None:
        """Return once nothing is left to do."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                uid = self._waiting.popleft()
            try:
                self.merge(uid)
            except FlystoreError as error:  # the rows stay as they are, and readable
                log.warning("the rows of run %s were not merged: %s", uid, error.message)
            except Exception:
                log.exception("the rows of run %s were not merged", uid)

    def merge(self, uid: str) -> int:
        """Merge the rows of a run that has ended and came as documents; return how many parts were made."""
        with self._catalog.read() as snapshot:
            run = snapshot.run(uid)
            if run is None or run.open or run.deleted or run.writer != "documents" or run.node_id is None:
                return 0
            node = snapshot.node_by_id(run.node_id)
            names = [] if node is None else snapshot.series_below("/".join(node.path))
        return sum(map(self.merge_series, names))

    def merge_series(self, series: str) -> int:
        """Merge the rows of one series; return how many parts were made."""
        return sum(self._merge_part(series, part) for part in self._parts(series))

    def _parts(self, series: str) -> Iterator[_Part]:
        at = 0
        while not self._closed:
            with self._catalog.read() as snapshot:
                part = _next_part(snapshot.segments(series, at))
            if part is None:
                return
            at = part.stop
            yield part

    def _merge_part(self, series: str, part: _Part) -> bool:
        if part.batch is None or len(part.read) < LEAST_SEGMENTS:
            return False
        if part.batch.nbytes > _WHOLE_BYTES:
            uri: str | None = BY_COLUMNS
            body, columns = encode_columns(part.batch)
        else:
            uri, body, columns = None, encode_segment(part.batch), []
        first, last = part.read[0], part.read[-1]
        merged = Segment(first.first_row, part.stop - first.first_row, body, last.received, uri)
        reach("merge.before_part")
        with self._catalog.write() as tx:
            done = tx.merge_segments(series, part.read, merged, columns)
            reach("merge.before_commit")
        reach("merge.after_part")
        return done


class _Part(NamedTuple):
    """Segments that follow each other, without their bodies, and their rows; None: they stay as they are.

    `stop` is the row behind the last.
    """

    read: list[Segment]
    batch: pa.RecordBatch | None
    stop: int


def _next_part(segments: Iterable[Segment]) -> _Part | None:
    """Return the first segments that fit together, read no further than needed; None if there are none."""
    read: list[Segment] = []
    joined = _Joined()
    stop = 0
    for segment in segments:
        stays = segment.by_columns or segment.body is None
        if read and (stays or segment.first_row - read[0].first_row >= PART_ROWS or joined.nbytes >= PART_BYTES):
            break
        if stays:
            return _Part([], None, segment.first_row + segment.rows)
        if not joined.add(decode_segment(segment.body or b"")):
            break
        read.append(msgspec.structs.replace(segment, body=None))
        stop = segment.first_row + segment.rows
    return _Part(read, joined.whole(), stop) if read else None


class _Joined:
    """Batches one behind the other, as long as each column has one type or is null."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._kinds: dict[str, pa.DataType] = {}
        self._last: pa.Schema | None = None
        self._small: list[pa.RecordBatch] = []
        self._large: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> bool:
        """Take a batch; False if it does not fit to those before it."""
        if self._last is None or not batch.schema.equals(self._last):
            kinds = self._kinds | {
                name: kind
                for name, kind in zip(batch.schema.names, batch.schema.types, strict=True)
                if not pa.types.is_null(kind)
            }
            if any(kinds[name] != kind for name, kind in self._kinds.items()):
                return False
            self._kinds, self._last = kinds, batch.schema
        self.nbytes += batch.nbytes
        self._small.append(batch)
        if len(self._small) >= _COMPACT:
            self._large.append(together(self._small))
            self._small = []
        return True

    def whole(self) -> pa.RecordBatch:
        return together([*self._large, *self._small])
