"""Which module reads which mimetype."""

from collections.abc import Callable
from typing import Any

import numpy as np

from flystore.model.errors import Unsupported
from flystore.storage import OpenedFile, Roots

from ._h5file import dataset_path
from ._hdf5 import open_hdf5
from ._images import JpegRows, TiffRows
from ._npy import NpyRows
from ._source import RowSource
from ._text import CsvRows

_SEQUENCE = "multipart/related;type="

Opener = Callable[[Roots, OpenedFile, dict[str, Any], np.dtype], RowSource]


def _hdf5(roots: Roots, file: OpenedFile, parameters: dict[str, Any], _: np.dtype) -> RowSource:
    return open_hdf5(roots, file, dataset_path(parameters.get("dataset"), file.uri))


OPENERS: dict[str, Opener] = {
    "application/x-hdf5": _hdf5,
    "image/tiff": lambda _, file, __, ___: TiffRows(file),
    "image/jpeg": lambda _, file, __, ___: JpegRows(file),
    "application/x-npy": lambda _, file, __, ___: NpyRows(file),
    "text/csv;header=absent": lambda _, file, parameters, dtype: CsvRows(file, dtype, parameters),
}
"""Mimetype of one file -> what opens it. A further format is one module and one line here."""


def is_sequence(mimetype: str) -> bool:
    """Return whether a mimetype means one file for each index."""
    return mimetype.replace(" ", "").startswith(_SEQUENCE)


def opener_of(mimetype: str) -> Opener:
    """Return what opens one file of a mimetype.

    Raises
    ------
    Unsupported
        If no reader knows it.
    """
    single = mimetype.replace(" ", "").removeprefix(_SEQUENCE)
    if single not in OPENERS:
        raise Unsupported(f"files of type {mimetype!r} have no array form here", mimetype=mimetype)
    return OPENERS[single]


def is_readable(mimetype: str) -> bool:
    """Return whether a reader knows a mimetype, of one file or of a sequence."""
    return mimetype.replace(" ", "").removeprefix(_SEQUENCE) in OPENERS


def open_rows(roots: Roots, uri: str, mimetype: str, parameters: dict[str, Any], dtype: np.dtype) -> RowSource:
    """Open one file by its URI.

    Raises
    ------
    OutsideRoots, MissingAsset, Unreadable, Unsupported, InvalidRequest
    """
    open_file = opener_of(mimetype)
    file = roots.open(uri)
    try:
        return open_file(roots, file, parameters, dtype)
    except BaseException:
        file.close()
        raise
