"""Rows of tables: appended, or all replaced."""

import hashlib
import logging

from flystore.model.errors import NotFound
from flystore.model.structures import Family, TableStructure
from flystore.storage import decode_untrusted, encode_segments

from .browse import require_family
from .changing import Changing, log_operation, touch
from .columns import series_of_table
from .fitting import fit, one_batch
from .operations import RowsWritten
from .table_files import in_files
from .tables import require_only_partition
from .written_tables import not_appendable

log = logging.getLogger("flystore.service")


class WritingRows(Changing):
    """Writes rows."""

    def append_rows(self, path: tuple[str, ...], partition: int, body: bytes) -> tuple[int, int] | None:
        """Append the rows of an Arrow body to a table.

        Returns
        -------
        tuple of int, or None
            (first row, rows) of the append before if it was the same, byte for byte: both are stored, and one of
            them may be a repeat of a client that did not hear of the first.

        Raises
        ------
        InvalidRequest
            If the body is not Arrow, the partition is not 0, or its columns do not fit the table's.
        Unsupported
            If the table is kept as files.
        """
        if partition != 0:
            with self._catalog.read() as snapshot:
                node = require_family(self._browse.entry(path, snapshot), Family.TABLE).node
                if node is not None and in_files(snapshot.data_source_head(node.id)):
                    raise not_appendable(path)
            require_only_partition(partition)
        return self._write_rows(path, body, append=True)

    def replace_rows(self, path: tuple[str, ...], body: bytes, partition: int | None = None) -> None:
        """Replace all rows of a table, or of one of its partitions, by those of an Arrow body.

        Raises
        ------
        InvalidRequest
            Also if the table has no such partition.
        """
        with self._catalog.read() as snapshot:
            node = require_family(self._browse.entry(path, snapshot), Family.TABLE).node
            assert node is not None
            kept_in_files = in_files(snapshot.data_source_head(node.id))
        if kept_in_files:
            self._tables.write(path, partition, body)
            return
        require_only_partition(partition)
        self._write_rows(path, body, append=False)

    def _write_rows(self, path: tuple[str, ...], body: bytes, *, append: bool) -> tuple[int, int] | None:
        arrived = decode_untrusted(body, self._limits.inflated_bytes)
        now = self._clock()
        with self._catalog.write() as tx:
            node = self._node(tx, path)
            if node.family is not Family.TABLE or node.structure is None:
                raise NotFound(
                    f"The node at {'/'.join(path)} has structure family {node.family} and this endpoint "
                    "is compatible with table."
                )
            source = tx.data_source_head(node.id)
            if in_files(source):
                raise not_appendable(path)
            batch = one_batch(fit(arrived, TableStructure.from_wire(node.structure).schema, path))
            series = series_of_table(node)
            if not append:
                tx.drop_series(series)
            first, pieces = tx.rows(series), encode_segments(batch)
            repeated = append and bool(pieces) and tx.ends_with(series, pieces)
            at = first
            for rows, segment in pieces:
                tx.append_segment(series, at, rows, segment, now)
                at += rows
            digest = hashlib.blake2b(body, digest_size=16).digest()
            log_operation(
                tx, path, RowsWritten(first, batch.num_rows, not append, digest, possible_repeat=repeated), now
            )
            touch(tx, node.run_uid, now, repeated=batch.num_rows if repeated else 0)
        if not repeated:
            return None
        log.warning(
            "/%s: rows %d to %d are those before them, byte for byte: a possible repeat",
            "/".join(path),
            first,
            first + batch.num_rows - 1,
        )
        return first - batch.num_rows, batch.num_rows
