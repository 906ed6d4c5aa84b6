"""Reading tables as Arrow: slow data and appendable tables, which have one partition, and those kept in files."""

from __future__ import annotations

from flystore.catalog import Catalog, Node, Snapshot
from flystore.model.errors import InvalidRequest, TooLarge
from flystore.model.late import pa
from flystore.model.structures import Family
from flystore.storage import reserve

from .browse import Browse, require_family
from .columns import read_table
from .limits import Limits
from .merging import Merger
from .table_bodies import MOST_SEGMENTS, TableBody, stored_body, written_body


class Tables:
    """Rows in the order in which they came, partition by partition."""

    def __init__(self, catalog: Catalog, browse: Browse, limits: Limits, merger: Merger) -> None:
        self._catalog = catalog
        self._merger = merger
        self._browse = browse
        self._limits = limits

    def read(
        self, path: tuple[str, ...], columns: list[str] | None = None, *, partition: int | None = None
    ) -> pa.Table:
        """Return a table's rows; `columns` None means all, `partition` None as well.

        Raises
        ------
        NotFound
            If there is no such table or column.
        InvalidRequest
            If the table has no such partition.
        """
        with self._catalog.read() as snapshot:
            entry = require_family(self._browse.entry(path, snapshot), Family.TABLE)
            assert entry.node is not None
            source = self._browse.table_files.source_of(entry.node, snapshot)
            if source is None:
                require_only_partition(partition)
                return self._rows(snapshot, entry.node, columns)
        return self._browse.table_files.open(entry.node, source, columns, partition).table()

    def _rows(self, snapshot: Snapshot, node: Node, columns: list[str] | None) -> pa.Table:
        """Return rows; many segments of a run that has ended are merged then, if nobody did when it ended."""
        found = read_table(snapshot, node, columns)
        if node.run_uid is not None and found.num_columns and found.column(0).num_chunks > MOST_SEGMENTS:
            run = snapshot.run(node.run_uid)
            if run is not None and not run.open:
                self._merger.notice(run.uid)
        return found

    def arrow(
        self, path: tuple[str, ...], columns: list[str] | None = None, *, partition: int | None = None
    ) -> TableBody:
        """Return rows as one Arrow IPC file.

        Raises
        ------
        InvalidRequest
            If the table has no such partition.
        TooLarge
            If the rows exceed what one answer may hold.
        """
        body = self._stored(path, columns, partition)
        if body is not None:
            self._require_below(body.nbytes, path)
            return body
        table = self.read(path, columns, partition=partition)
        self._require_below(table.nbytes, path)
        reserve(table.nbytes, f"these columns of {'/'.join(path)}")
        return written_body(table)

    def _stored(self, path: tuple[str, ...], columns: list[str] | None, partition: int | None) -> TableBody | None:
        with self._catalog.read() as snapshot:
            node = require_family(self._browse.entry(path, snapshot), Family.TABLE).node
            assert node is not None
            if self._browse.table_files.source_of(node, snapshot) is not None:
                return None
            require_only_partition(partition)
            return stored_body(self._catalog, snapshot, node, columns)

    def _require_below(self, nbytes: int, path: tuple[str, ...]) -> None:
        if nbytes > self._limits.response_bytes:
            raise TooLarge(
                f"these columns of {'/'.join(path)} hold {nbytes} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once. Ask for fewer columns.",
                limit=self._limits.response_bytes,
            )


def require_only_partition(partition: int | None) -> None:
    """Refuse a partition that a table without files does not have.

    Raises
    ------
    InvalidRequest
    """
    if partition not in (None, 0):
        raise InvalidRequest("Partition out of range: this table has one partition, 0", status=400)
