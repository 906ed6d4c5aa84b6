"""Writing tables that this service keeps as Parquet: a file a partition, replaced whole.

What came is what is kept: also the index of a DataFrame, which clients of the protocol send along and announce only
if it has a name.
"""

import hashlib

from flystore.model.errors import InvalidRequest, Unsupported
from flystore.model.structures import PARQUET_MIMETYPE, Family, TableStructure
from flystore.storage import decode_untrusted, pack_rows

from .fitting import fit
from .kept import KeptNodes
from .limits import Limits
from .operations import RowsWritten
from .table_files import part_name


class WrittenTables:
    """Replaces partitions of tables."""

    def __init__(self, kept: KeptNodes, limits: Limits) -> None:
        self._kept = kept
        self._limits = limits

    def write(self, path: tuple[str, ...], partition: int | None, body: bytes) -> None:
        """Replace one partition of a table by the rows of an Arrow body; None: the whole table, which has one.

        Raises
        ------
        NotFound, MadeFromDocuments, Unsupported
            If there is no table here that can be written to so.
        InvalidRequest
            If there is no such partition, or the body's columns do not fit the table's.
        """
        arrived = decode_untrusted(body, self._limits.inflated_bytes)
        with self._kept.writing(path, Family.TABLE, PARQUET_MIMETYPE) as node:
            structure = TableStructure.from_wire(node.structure)
            number = _checked(partition, structure.npartitions, path)
            rows = fit(arrived, structure.schema, path, keep_index=True)
            self._kept.store.write(str(node.id), part_name(number), pack_rows(rows))
            digest = hashlib.blake2b(body, digest_size=16).digest()
            self._kept.log(node, RowsWritten(0, rows.num_rows, True, digest, number))


def _checked(partition: int | None, npartitions: int, path: tuple[str, ...]) -> int:
    where = "/" + "/".join(path)
    if partition is None:
        if npartitions != 1:
            raise InvalidRequest(f"{where} has {npartitions} partitions; send each with PUT /table/partition")
        return 0
    if not 0 <= partition < npartitions:
        raise InvalidRequest(
            f"Partition out of range: {where} has {npartitions} partitions, numbered from 0, not {partition}",
            status=400,
        )
    return partition


def not_appendable(path: tuple[str, ...]) -> Unsupported:
    return Unsupported(
        f"rows cannot be appended to /{'/'.join(path)}: it is kept as Parquet files. Make a table that grows with "
        "create_appendable_table.",
        status=405,
    )
