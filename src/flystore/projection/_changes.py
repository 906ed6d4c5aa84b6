"""What a batch of documents changes: nodes to put, rows to append."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flystore.model.late import pa
from flystore.model.structures import DataSource, Family, Spec

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutNode:
    """A node as it is after the batch; put over what was there.

    Attributes
    ----------
    path : tuple of str
        Segments, the run's first. Parents are put before their children.
    family : Family
    specs : tuple of Spec
    metadata : dict
        JSON-able.
    structure : dict or None
        Wire form, as announced; None for containers.
    data_source : DataSource or None
        None for containers. For external keys without assets: see `flystore.projection.assets`.
    external : bytes or None
        `ExternalArray.to_bytes` of an externally stored key; None for all other nodes.
    """

    path: Path
    family: Family
    specs: tuple[Spec, ...]
    metadata: dict[str, Any]
    structure: dict[str, Any] | None = None
    data_source: DataSource | None = None
    external: bytes | None = None


@dataclass(frozen=True, slots=True)
class AppendRows:
    """Rows of slow data, one an Event in order of arrival.

    Attributes
    ----------
    path : tuple of str
        Of the stream; all slow data of a stream is one series of segments.
    first_row : int
        Row of the stream that the batch begins with.
    batch : pyarrow.RecordBatch
        Columns ``seq_num`` (int64), ``time`` (float64, seconds), the data keys, ``ts_<key>``. A column holds the
        type of this batch; `cast_column` leads to the node's. A column that the batch lacks is null in its rows.
    """

    path: Path
    first_row: int
    batch: pa.RecordBatch


Change = PutNode | AppendRows
