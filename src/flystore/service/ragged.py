"""Ragged nodes: rows of unequal length, served as the zipped buffers that clients of the protocol read.

The zip (stored, not deflated) holds ``length`` (8 bytes, big-endian), ``form`` (a JSON string that
holds the form's JSON), and one entry a buffer: offsets and values of a list of rows, or the values
alone when an index picked one row.
"""

import io
import struct
import zipfile
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from flystore.catalog import Catalog
from flystore.model.errors import InvalidRequest, OutOfBounds, TooLarge, Unsupported
from flystore.model.structures import Family, RaggedStructure

from .browse import Browse, require_family
from .columns import read_columns, schema_of_column, series_of_table
from .limits import Limits

Index = slice | int


class Ragged:
    """Reads rows of the array-valued columns of slow data whose length varies."""

    def __init__(self, catalog: Catalog, browse: Browse, limits: Limits) -> None:
        self._catalog = catalog
        self._browse = browse
        self._limits = limits

    def rows(self, path: tuple[str, ...]) -> list[np.ndarray]:
        """Return each row as a 1-D array of the structure's dtype; a missing value is an empty row.

        Raises
        ------
        NotFound
            If there is no ragged node at `path`.
        Unsupported
            If its rows have more than one axis.
        """
        entry = require_family(self._browse.entry(path), Family.RAGGED)
        node = entry.node
        assert node is not None
        structure = RaggedStructure.from_wire(entry.structure)
        if len(structure.shape) != 2:
            raise Unsupported(f"/{'/'.join(path)} has rows of {len(structure.shape) - 1} axes; one can be served")
        with self._catalog.read() as snapshot:
            source = snapshot.data_source(node.id)
            assert source is not None
            column = source.parameters["column"]
            series = series_of_table(node)
            wanted = schema_of_column(pa.list_(pa.from_numpy_dtype(np.dtype(structure.dtype))), column)
            table = read_columns(snapshot, series, wanted)
        if table.nbytes > self._limits.response_bytes:
            raise TooLarge(
                f"/{'/'.join(path)} holds {table.nbytes} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once",
                limit=self._limits.response_bytes,
            )
        dtype = np.dtype(structure.dtype)
        return [np.asarray([] if row is None else row, dtype) for row in table.column(0).to_pylist()]

    def buffers(self, path: tuple[str, ...], wanted: tuple[Index, ...]) -> bytes:
        """Return the zipped buffers of a slice.

        Raises
        ------
        Unsupported
            If the slice is one value; ask for JSON.
        """
        found = _sliced(self.rows(path), wanted)
        if isinstance(found, np.ndarray):
            if found.ndim == 0:
                raise Unsupported("a single value cannot be sent as zipped buffers; ask for application/json")
            form: dict[str, Any] = _values_form("node0", found.dtype)
            return _zipped({"node0-data": found.tobytes()}, len(found), form)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in found])]).astype("<i8")
        values = np.concatenate(found) if found else np.zeros(0)
        form = {
            "class": "ListOffsetArray",
            "offsets": "i64",
            "content": _values_form("node1", values.dtype),
            "parameters": {},
            "form_key": "node0",
        }
        parts = {"node0-offsets": offsets.tobytes(), "node1-data": values.tobytes()}
        return _zipped(parts, len(found), form)

    def scalar(self, path: tuple[str, ...], wanted: tuple[Index, ...]) -> Any:
        """Return a slice as nested lists or a number, for JSON."""
        found = _sliced(self.rows(path), wanted)
        return found.tolist() if isinstance(found, np.ndarray) else [row.tolist() for row in found]


def _sliced(rows: list[np.ndarray], wanted: tuple[Index, ...]) -> list[np.ndarray] | np.ndarray:
    """Return a list of rows, one row, or one value (0-D)."""
    if len(wanted) > 2:
        raise InvalidRequest(f"{len(wanted)} slices for 2 axes")
    first, second = (*wanted, slice(None), slice(None))[:2]
    try:
        if isinstance(first, int):
            return np.asarray(rows[first][second])
        picked = rows[first]
        if isinstance(second, int):
            return np.asarray([row[second] for row in picked])
        return [row[second] for row in picked]
    except IndexError as error:
        raise OutOfBounds(f"no such row or value in {len(rows)} rows of unequal length") from error


def _values_form(key: str, dtype: np.dtype) -> dict[str, Any]:
    return {
        "class": "NumpyArray",
        "primitive": dtype.name,
        "inner_shape": [],
        "parameters": {},
        "form_key": key,
    }


def _zipped(parts: dict[str, bytes], length: int, form: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        archive.writestr("length", struct.pack(">q", length))
        archive.writestr("form", msgspec.json.encode(msgspec.json.encode(form).decode()))
    return sink.getvalue()
