"""Arrays as bytes, JSON, text with commas, and pages."""

import base64
import csv
import html
import io
from collections.abc import Iterator, Mapping

import numpy as np

from flystore.model.errors import Unsupported

from . import plain
from .pictures import is_picture, png
from .pieces import joined
from .sources import ArraySource

_LINES = 4096


def octets(source: ArraySource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the values in C order in the array's own dtype."""
    for piece in source.read():
        yield piece.tobytes()


def json(source: ArraySource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield nested lists; a scalar is its value."""
    if not source.shape:
        yield plain.encode(plain.of_array(source.whole()))
        return
    yield from joined(_lists(source))


def _lists(source: ArraySource) -> Iterator[bytes]:
    mark = b"["
    for piece in source.read():
        if not len(piece):
            continue
        step = max(1, _LINES * len(piece) // max(piece.size, 1))
        for at in range(0, len(piece), step):
            yield mark
            yield plain.encode(plain.of_array(piece[at : at + step]))[1:-1]
            mark = b","
    yield b"]" if mark == b"," else b"[]"


def text(source: ArraySource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield one line a row, values with commas between; one value a line if there is one axis. No header.

    Raises
    ------
    Unsupported
        With more than two axes, or records in more than one.
    """
    _require_rows(source, "text with commas")
    return joined(_lines(source))


def _require_rows(source: ArraySource, format_: str) -> None:
    most = 1 if source.dtype.names else 2
    if len(source.shape) > most:
        raise Unsupported(
            f"The shape of this data {source.shape} is incompatible with the requested format ({format_}). "
            "Slice it or choose a different format.",
            shape=list(source.shape),
        )


def _rows(source: ArraySource) -> Iterator[list[list[str]]]:
    """Yield some rows at a time, each a list of texts."""
    for piece in source.read():
        table = _texts(piece)
        step = max(1, _LINES * len(table) // max(table.size, 1))
        for at in range(0, len(table), step):
            yield table[at : at + step].tolist()


def _texts(piece: np.ndarray) -> np.ndarray:
    """Return an array of two axes as text; floats as short as their precision allows."""
    if piece.dtype.names:
        fields = [_texts(piece[name]) for name in piece.dtype.names]
        return np.concatenate([np.asarray(field, dtype=object) for field in fields], axis=1)
    if piece.dtype.kind == "S":
        flat = [plain.text_of_bytes(value) for value in piece.reshape(-1).tolist()]
        found = np.array(flat, dtype=object).reshape(piece.shape)
    elif piece.dtype.kind == "V":
        raise Unsupported("items of raw bytes have no text form; ask for application/octet-stream")
    else:
        found = piece if piece.dtype.kind == "U" else piece.astype(str)
    return found.reshape(-1, 1) if found.ndim < 2 else found.reshape(len(found), -1)


def _lines(source: ArraySource) -> Iterator[bytes]:
    careful = source.dtype.kind in "SU" or source.dtype.names is not None
    for rows in _rows(source):
        if careful:
            sheet = io.StringIO()
            csv.writer(sheet, lineterminator="\n").writerows(rows)
            yield sheet.getvalue().encode("utf-8", "replace")
        else:
            yield ("\n".join([",".join(row) for row in rows]) + "\n").encode()


def page(source: ArraySource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a page for people: a picture where the array is one, else a table.

    Raises
    ------
    Unsupported
        As `text`, if it is no picture.
    """
    if is_picture(source) and len(source.shape) > 1:
        return _with_picture(source)
    _require_rows(source, "text/html")
    return joined(_page(source))


def _with_picture(source: ArraySource) -> Iterator[bytes]:
    yield _head(source.name)
    data = base64.b64encode(b"".join(png(source, {}))).decode()
    yield f'<img alt="{html.escape(source.name)}" src="data:image/png;base64,{data}"/>'.encode()
    yield b"</body></html>\n"


def _head(name: str) -> bytes:
    return f'<html><head><meta charset="utf-8"><title>{html.escape(name)}</title></head><body>\n'.encode()


def _page(source: ArraySource) -> Iterator[bytes]:
    yield _head(source.name) + b'<table border="1" class="dataframe">\n'
    for rows in _rows(source):
        for row in rows:
            yield f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>\n".encode("utf-8", "replace")
    yield b"</table>\n</body></html>\n"
