"""Reading tables as Arrow: slow data and appendable tables, which have one partition, and those kept in files."""

import pyarrow as pa

from flystore.catalog import Catalog
from flystore.model.errors import InvalidRequest, TooLarge
from flystore.model.structures import Family
from flystore.storage import reserve

from .browse import Browse, require_family
from .columns import read_table
from .limits import Limits


class Tables:
    """Rows in the order in which they came, partition by partition."""

    def __init__(self, catalog: Catalog, browse: Browse, limits: Limits) -> None:
        self._catalog = catalog
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
                return read_table(snapshot, entry.node, columns)
        return self._browse.table_files.open(entry.node, source, columns, partition).table()

    def arrow_file(
        self, path: tuple[str, ...], columns: list[str] | None = None, *, partition: int | None = None
    ) -> pa.Buffer:
        """Return rows as one Arrow IPC file.

        Raises
        ------
        InvalidRequest
            If the table has no such partition.
        TooLarge
            If the rows exceed what one answer may hold.
        """
        table = self.read(path, columns, partition=partition)
        if table.nbytes > self._limits.response_bytes:
            raise TooLarge(
                f"these columns of {'/'.join(path)} hold {table.nbytes} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once. Ask for fewer columns.",
                limit=self._limits.response_bytes,
            )
        reserve(2 * table.nbytes, f"these columns of {'/'.join(path)}")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()


def require_only_partition(partition: int | None) -> None:
    """Refuse a partition that a table without files does not have.

    Raises
    ------
    InvalidRequest
    """
    if partition not in (None, 0):
        raise InvalidRequest("Partition out of range: this table has one partition, 0", status=400)
