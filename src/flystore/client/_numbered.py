"""Datasets of a stream with the seq_num of each row."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from flystore.model.errors import InvalidRequest
from flystore.model.structures import Family

from ._array import Array
from ._dataset import SEQ_NUM, TIME
from ._stream import TIMESTAMP_PREFIX, Stream
from ._table import Table


class Layout(NamedTuple):
    """What a stream has, as of one look.

    Attributes
    ----------
    stream : Stream
    columns : tuple of str
        Of its tables, timestamps and seq_num among them.
    variables : tuple of str
        What can be read; timestamps, seq_num and time left out.
    smallest : str
        The array that costs least to read; empty if there is none.
    """

    stream: Stream
    columns: tuple[str, ...]
    variables: tuple[str, ...]
    smallest: str

    @classmethod
    def of(cls, stream: Stream) -> "Layout":
        parts = stream.parts()
        tables = [part for part in parts if isinstance(part, Table)]
        columns = dict.fromkeys(column for table in tables for column in table.columns)
        plain = [each for each in columns if each not in (TIME, SEQ_NUM) and not each.startswith(TIMESTAMP_PREFIX)]
        arrays = [part.key for part in parts if part.structure_family in (Family.ARRAY, Family.RAGGED)]
        sizes = {part.key: part.nbytes for part in parts if isinstance(part, Array) and part.shape}
        smallest = min(sizes, key=lambda key: sizes[key], default="")
        return cls(stream, tuple(columns), tuple(dict.fromkeys([*plain, *arrays])), smallest)

    def read(self, variables: Iterable[str], *, repeats: str = "last", lazy: bool = False) -> tuple[Any, np.ndarray]:
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
        numbers = [SEQ_NUM] if SEQ_NUM in self.columns else []
        dataset = self.stream.read([*wanted, *numbers], repeats=repeats, lazy=lazy)
        if TIME not in dataset.sizes:
            raise InvalidRequest(
                f"nobody announced which events of {'/'.join(self.stream.path)} the rows of "
                f"{', '.join(wanted) or 'it'} belong to, so nothing can be put beside them"
            )
        if SEQ_NUM in dataset.variables:
            return dataset, dataset[SEQ_NUM].values.astype(np.int64)
        # `Stream.read` names its rows wherever they are not these.
        return dataset, np.arange(1, dataset.sizes[TIME] + 1)
