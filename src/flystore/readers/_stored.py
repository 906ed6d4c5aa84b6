"""Chunks of a dataset as they lie in its file, for callers who decode them themselves.

That only works where the array that is shown and the dataset agree item by item: the same axes but for those of
length 1, and rows of the array that follow each other in the dataset from the beginning of a chunk on.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ._source import RowSource


class StoredForm(NamedTuple):
    """How the chunks of a dataset are stored.

    Attributes
    ----------
    shape, chunks : tuple of int
        Of the dataset and of one chunk.
    dtype : numpy.dtype
        Whose bytes a decoded chunk is.
    filters : tuple of (int, tuple of int)
        HDF5's numbers and client data, in the order in which they were applied on writing.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    filters: tuple[tuple[int, tuple[int, ...]], ...]


class StoredRows(RowSource, Protocol):
    """A `RowSource` that has chunks to give away."""

    def stored(self) -> StoredForm | None:
        """Return how its chunks are stored; None if it has none, or HDF5 converts their values."""
        ...

    def stored_chunk(self, box: tuple[int, ...]) -> bytes | None:
        """Return a chunk as it is in the file; None if it is not there whole, or a filter was skipped for it.

        Parameters
        ----------
        box : tuple of int
            Which chunk, one index an axis.
        """
        ...


class Chunked(NamedTuple):
    """A dataset's chunks in the terms of an array whose rows are rows of the dataset.

    Attributes
    ----------
    chunks : tuple of int
        Shape of a chunk along the array's axes.
    form : StoredForm
    axes : tuple of int
        For each axis of the dataset but the first, the array's axis that it is; -1 for one of length 1.
    """

    chunks: tuple[int, ...]
    form: StoredForm
    axes: tuple[int, ...]

    def box(self, first_row: int, index: Sequence[int]) -> tuple[int, ...] | None:
        """Return which chunk of the dataset begins with one of its rows; None if none does.

        Parameters
        ----------
        first_row : int
            In the dataset.
        index : sequence of int
            Which chunk of the array.
        """
        if first_row % self.form.chunks[0]:
            return None
        return (first_row // self.form.chunks[0], *(0 if axis < 0 else index[axis] for axis in self.axes))


def as_stored(source: RowSource, item_shape: Sequence[int]) -> Chunked | None:
    """Return a dataset's chunks as those of an array of its rows, each of `item_shape`; None if they are not."""
    stored = getattr(source, "stored", None)
    form: StoredForm | None = stored() if stored is not None else None
    if form is None:
        return None
    mine = [axis for axis, n in enumerate(form.shape) if axis and n != 1]
    its = [axis for axis, n in enumerate(item_shape, 1) if n != 1]
    if [form.shape[axis] for axis in mine] != [item_shape[axis - 1] for axis in its]:
        return None
    if any(form.chunks[axis] != 1 for axis, n in enumerate(form.shape) if axis and n == 1):
        return None
    pairs = dict(zip(mine, its, strict=True))
    chunks = [form.chunks[0], *(1 for _ in item_shape)]
    for axis, place in pairs.items():
        chunks[place] = form.chunks[axis]
    return Chunked(tuple(chunks), form, tuple(pairs.get(axis, -1) for axis in range(1, len(form.shape))))
