"""Ragged nodes: rows of unequal length, as a list of numpy arrays."""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from flystore.model.errors import InvalidRequest, OutOfBounds, Unavailable, Unsupported
from flystore.model.slices import Item as SliceItem
from flystore.model.slices import format_slice
from flystore.model.structures import RaggedStructure
from flystore.wire import api_path

from ._node import Node
from ._session import Item, Session
from ._words import human_dtype, human_shape


class Ragged(Node):
    """Rows of unequal length."""

    def __init__(self, session: Session, item: Item) -> None:
        super().__init__(session, item)
        self._structure = RaggedStructure.from_wire(item.structure)

    def refresh(self) -> "Ragged":
        """Ask the service for the present number of rows, and return the node."""
        super().refresh()
        self._structure = RaggedStructure.from_wire(self._item.structure)
        return self

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Lengths of the axes; None where they differ from row to row."""
        return self._structure.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return np.dtype(self._structure.dtype)

    @property
    def dims(self) -> tuple[str, ...] | None:
        """Names of the axes, None where nobody named them."""
        return self._structure.dims

    def __len__(self) -> int:
        return self.shape[0] or 0

    def read(self, rows: slice | int | None = None) -> Any:
        """Return rows.

        Parameters
        ----------
        rows : slice or int, optional
            Which of them; None means all.

        Returns
        -------
        list of numpy.ndarray
            One a row; a row of more axes that are ragged themselves is a list again. For an int, that row.

        Raises
        ------
        OutOfBounds
            If there is no such row.
        """
        if rows is None:
            return self._rows(slice(None))
        if isinstance(rows, slice):
            if rows.step is not None and rows.step != 1:
                return self._rows(slice(None))[rows]
            start, stop, _ = rows.indices(len(self))
            return self._rows(slice(start, stop)) if stop > start else []
        if isinstance(rows, bool) or not hasattr(rows, "__index__"):
            raise InvalidRequest(f"rows are selected by a slice or a whole number, not by {rows!r}")
        number = rows.__index__()
        if not -len(self) <= number < len(self):
            raise OutOfBounds(f"row {number} is outside {self._shown_path}, which has {len(self)}", index=number)
        number %= len(self)
        return self._rows(slice(number, number + 1))[0]

    def __getitem__(self, rows: slice | int) -> Any:
        return self.read(rows)

    def _rows(self, wanted: slice) -> list[Any]:
        selection: list[SliceItem] = [] if wanted == slice(None) else [wanted]
        params = {"slice": format_slice(selection)} if selection else None
        answer = self.transport.request(
            "GET",
            api_path("ragged", "full", *self.path),
            params=params,
            headers={"Accept": "application/zip"},
        )
        rows = rows_of_zip(answer.body, self._shown_path)
        return [rows[i] for i in range(len(rows))]

    def __repr__(self) -> str:
        return f"<Ragged {self._shown_path}: {human_shape(self.shape)} {human_dtype(self.dtype)}>"


def rows_of_zip(body: bytes | bytearray, where: str) -> Any:
    """Return the rows in zipped buffers: a numpy array, or a list of rows.

    Raises
    ------
    Unavailable
        If the body is not what the protocol describes.
    Unsupported
        If the rows hold something other than numbers, such as missing values.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        (length,) = struct.unpack(">q", parts["length"])
        form = msgspec.json.decode(parts["form"])
        if isinstance(form, str):
            form = msgspec.json.decode(form)
        return _decode(form, length, parts)
    except (zipfile.BadZipFile, KeyError, ValueError, struct.error, TypeError, IndexError) as error:
        if isinstance(error, Unsupported):
            raise
        raise Unavailable(f"the rows of {where} came in a form this client cannot take apart: {error!r}") from error


Parts = dict[str, bytes]


def _numbers(form: dict[str, Any], length: int, parts: Parts) -> np.ndarray:
    inner = tuple(form.get("inner_shape") or ())
    values = np.frombuffer(parts[f"{form['form_key']}-data"], np.dtype(form["primitive"]))
    count = length * int(np.prod(inner, dtype=np.int64))
    return values[:count].reshape(length, *inner)


def _offset_list(form: dict[str, Any], length: int, parts: Parts) -> Any:
    offsets = _index(form, "offsets", parts)[: length + 1]
    content = _decode(form["content"], int(offsets[-1]) if len(offsets) else 0, parts)
    return [content[offsets[i] : offsets[i + 1]] for i in range(length)]


def _start_stop_list(form: dict[str, Any], length: int, parts: Parts) -> Any:
    starts, stops = (_index(form, name, parts)[:length] for name in ("starts", "stops"))
    content = _decode(form["content"], int(stops.max(initial=0)), parts)
    return [content[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _regular_list(form: dict[str, Any], length: int, parts: Parts) -> Any:
    size = int(form["size"])
    content = _decode(form["content"], size * length, parts)
    if isinstance(content, np.ndarray):
        return content.reshape(length, size, *content.shape[1:])
    return [content[i * size : (i + 1) * size] for i in range(length)]


def _picked(form: dict[str, Any], length: int, parts: Parts) -> Any:
    index = _index(form, "index", parts)[:length]
    content = _decode(form["content"], int(index.max(initial=-1)) + 1, parts)
    return content[index] if isinstance(content, np.ndarray) else [content[i] for i in index]


def _nothing(form: dict[str, Any], length: int, parts: Parts) -> np.ndarray:
    return np.zeros(0)


def _index(form: dict[str, Any], name: str, parts: Parts) -> np.ndarray:
    dtype = {"i64": "<i8", "i32": "<i4", "u32": "<u4"}[form[name]]
    return np.frombuffer(parts[f"{form['form_key']}-{name}"], dtype)


_FORMS: dict[str, Callable[[dict[str, Any], int, Parts], Any]] = {
    "NumpyArray": _numbers,
    "ListOffsetArray": _offset_list,
    "ListArray": _start_stop_list,
    "RegularArray": _regular_list,
    "IndexedArray": _picked,
    "EmptyArray": _nothing,
}


def _decode(form: dict[str, Any], length: int, parts: Parts) -> Any:
    decoder = _FORMS.get(form["class"])
    if decoder is None:
        raise Unsupported(f"ragged rows of the form {form['class']} are not read by this client")
    return decoder(form, length, parts)


def dense(rows: list[Any]) -> tuple[np.ndarray, bool]:
    """Return rows as one array, and whether they had to be padded.

    Rows of one shape keep their dtype. Others are padded with NaN at the end of each axis, as float64.
    """
    arrays = [np.asarray(row) if not isinstance(row, list) else dense(row)[0] for row in rows]
    if not arrays:
        return np.zeros((0, 0)), False
    if len({row.shape for row in arrays}) == 1:
        return np.stack(arrays), False
    ndim = max(row.ndim for row in arrays)
    shape = tuple(max(row.shape[axis] if axis < row.ndim else 0 for row in arrays) for axis in range(ndim))
    found = np.full((len(arrays), *shape), np.nan)
    for place, row in enumerate(arrays):
        if row.size:
            corner: tuple[int | slice, ...] = (place, *(slice(n) for n in row.shape))
            found[corner] = row
    return found, True
