"""Short parts of one HDF5 dataset on an event loop: the bounds that make that bearable, and no other difference."""

from typing import Any

import numpy as np

from flystore.storage import Roots, WouldWait

from ._events import same_but_for_byte_order
from ._hdf5 import Hdf5Rows
from ._registry import open_rows
from ._source import EventFiles
from ._tree import HDF5


def read_short(
    files: EventFiles, number: int, rows: range, rest: tuple[range, ...], item_shape: tuple[int, ...], roots: Roots
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return rows of the file of a resource, and what the file was like when it was opened.

    Parameters
    ----------
    files : EventFiles
    number : int
        Of the resource.
    rows : range
        Rows of the dataset, not empty, positive step.
    rest : tuple of range
        One for each axis of `item_shape`: in range, not empty, positive step.
    item_shape : tuple of int
        What a row has to be, but for axes of length 1.
    roots : Roots
        Which give `NearFile`.

    Returns
    -------
    ndarray
        The lengths of `rows` and of all of `rest` but axes of length 1, in the announced dtype.
    tuple of int
        The fingerprint, as in `ResourceProbe`.

    Raises
    ------
    WouldWait
        If that is not done at once, or not in this plain way.
    FlystoreError
        As `EventReader.read`: what is wrong.
    """
    resource, dtype = files.resources[number], files.numpy_dtype
    if resource.template is not None or files.mimetype != HDF5:
        raise WouldWait("it is a sequence of files, or a library reads it")
    parameters = {**files.parameters, **resource.parameters} if resource.parameters else files.parameters
    source: Any = open_rows(roots, resource.uri, HDF5, parameters, dtype)
    try:
        if not isinstance(source, Hdf5Rows) or rows[-1] >= source.shape[0] or rows[0] < 0:
            raise WouldWait("the rows are not all in this dataset")
        pairs = [pair for pair in zip(item_shape, rest, strict=True) if pair[0] != 1]
        inner = iter(pairs)
        selection = [rows]
        for n in source.shape[1:]:
            length, wanted = (1, _ONE) if n == 1 else next(inner, (-1, _ONE))
            if length != n:
                raise WouldWait("a row of the dataset is another part of a value")
            selection.append(wanted)
        if next(inner, None) is not None or not same_but_for_byte_order(source.dtype, dtype):
            raise WouldWait("a value is something else")
        return source.read_short(tuple(selection)).astype(dtype, copy=False), source.fingerprint
    finally:
        source.close()


_ONE = range(1)
