"""Datasets of a stream with the seq_num of each row."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from flystore.model.errors import InvalidRequest

from ._dataset import SEQ_NUM, TIME
from ._stream import Stream
from ._table import Table


def table_columns(stream: Stream) -> list[str]:
    """Return the columns of a stream's tables, timestamps and seq_num among them."""
    tables = [part for part in stream.parts() if isinstance(part, Table)]
    return list(dict.fromkeys(column for table in tables for column in table.columns))


def read_numbered(
    stream: Stream, variables: Iterable[str], *, repeats: str = "last", lazy: bool = False
) -> tuple[Any, np.ndarray]:
    """Return what `Stream.read` gives of some variables, and which event each row is.

    Returns
    -------
    Dataset
        ``seq_num`` may be among its variables.
    (rows,) int64
        Where nobody announced them, the rows are counted from 1, as `Stream.read` puts them beside each other.

    Raises
    ------
    InvalidRequest
        If none of the variables has rows of the stream.
    """
    wanted = list(dict.fromkeys(variables))
    numbers = [SEQ_NUM] if SEQ_NUM in table_columns(stream) else []
    dataset = stream.read([*wanted, *numbers], repeats=repeats, lazy=lazy)
    if TIME not in dataset.sizes:
        raise InvalidRequest(
            f"nobody announced which events of {'/'.join(stream.path)} the rows of {', '.join(wanted) or 'it'} belong "
            "to, so nothing can be put beside them"
        )
    if SEQ_NUM in dataset.variables:
        return dataset, dataset[SEQ_NUM].values.astype(np.int64)
    # `Stream.read` names its rows wherever they are not these.
    return dataset, np.arange(1, dataset.sizes[TIME] + 1)
