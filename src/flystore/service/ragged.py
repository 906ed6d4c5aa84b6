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

from flystore.catalog import Catalog
from flystore.model.errors import InvalidRequest, OutOfBounds, TooLarge, Unsupported
from flystore.model.structures import SEGMENT_ARRAY_MIMETYPE, Family, RaggedStructure
from flystore.projection import ragged_of_column
from flystore.storage import reserve

from .browse import Browse, require_family
from .columns import series_of_table, stored_pieces
from .limits import Limits

Index = slice | int


class Ragged:
    """Reads rows of the array-valued columns of slow data whose length varies."""

    def __init__(self, catalog: Catalog, browse: Browse, limits: Limits) -> None:
        self._catalog = catalog
        self._browse = browse
        self._limits = limits

    def _stored(self, path: tuple[str, ...]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Return all values and the offsets of each level of lists."""
        with self._catalog.read() as snapshot:
            entry = require_family(self._browse.entry(path, snapshot), Family.RAGGED)
            node = entry.node
            assert node is not None
            source = snapshot.data_source(node.id)
            if source is None or source.mimetype != SEGMENT_ARRAY_MIMETYPE:
                raise Unsupported(f"/{'/'.join(path)} holds no ragged rows that this service knows how to read")
            (pieces,) = stored_pieces(snapshot, series_of_table(node), [source.parameters["column"]])
        size = sum(piece.nbytes for piece in pieces)
        if size > self._limits.response_bytes:
            raise TooLarge(
                f"/{'/'.join(path)} holds {size} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once",
                limit=self._limits.response_bytes,
            )
        reserve(4 * size, f"/{'/'.join(path)}")
        return ragged_of_column(pieces, RaggedStructure.from_wire(entry.structure))

    def _rows(self, path: tuple[str, ...]) -> list[np.ndarray]:
        values, offsets = self._stored(path)
        if len(offsets) != 1:
            raise Unsupported(
                f"the rows of /{'/'.join(path)} have {len(offsets)} axes of their own; they can only be read whole"
            )
        return np.split(values, offsets[0][1:-1]) if len(offsets[0]) > 1 else []

    def buffers(self, path: tuple[str, ...], wanted: tuple[Index, ...]) -> bytes:
        """Return the zipped buffers of a slice.

        Raises
        ------
        Unsupported
            If the slice is one value; ask for JSON.
        """
        if not wanted:
            return _nested(*self._stored(path))
        found = _sliced(self._rows(path), wanted)
        if isinstance(found, list):
            lengths = np.cumsum([0, *(len(row) for row in found)], dtype=np.int64)
            return _nested(np.concatenate(found) if found else np.zeros(0), (lengths,))
        if found.ndim == 0:
            raise Unsupported("a single value cannot be sent as zipped buffers; ask for application/json")
        return _zipped({"node0-data": found.tobytes()}, len(found), _values_form("node0", found.dtype))

    def scalar(self, path: tuple[str, ...], wanted: tuple[Index, ...]) -> Any:
        """Return a slice as nested lists or a number, for JSON."""
        found = _sliced(self._rows(path), wanted)
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


def _nested(values: np.ndarray, offsets: tuple[np.ndarray, ...]) -> bytes:
    """Return the zip of lists in lists: one form and one buffer a level, the values innermost."""
    innermost = f"node{len(offsets)}"
    form = _values_form(innermost, values.dtype)
    parts = {f"{innermost}-data": values.tobytes()}
    for level in reversed(range(len(offsets))):
        key = f"node{level}"
        parts[f"{key}-offsets"] = offsets[level].astype("<i8").tobytes()
        form = {"class": "ListOffsetArray", "offsets": "i64", "content": form, "parameters": {}, "form_key": key}
    return _zipped(parts, len(offsets[0]) - 1, form)


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
