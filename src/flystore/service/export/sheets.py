"""Tables as a workbook of one sheet, written row by row to a file on disk."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from typing import IO, Any

from flystore.model.errors import TooLarge, Unsupported
from flystore.model.late import pa

from . import plain
from .pieces import through_a_file
from .sources import TableSource

MOST_ROWS, MOST_COLUMNS, MOST_LETTERS = 1 << 20, 1 << 14, 32_767
"""What a sheet of the format holds, the header being one of the rows."""

_EXACT = 1 << 53
_FIRST_DAY = datetime.datetime(1900, 3, 1)  # before it the format counts a day that never was


def workbook(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an xlsx workbook; the index of a DataFrame is left out.

    Null and NaN are empty cells; integers beyond 2^53, moments with a zone and before 1900-03-01, lists and records
    are text.

    Raises
    ------
    TooLarge
        If a sheet cannot hold so many rows or columns.
    Unsupported
        If a text is longer than a cell holds.
    """
    source = source.without_index()
    if source.rows >= MOST_ROWS or len(source.schema.names) > MOST_COLUMNS:
        raise TooLarge(
            f"{source.name} has {source.rows} rows and {len(source.schema.names)} columns; a sheet of xlsx holds "
            f"{MOST_ROWS - 1} and {MOST_COLUMNS}. Export csv or parquet, or fewer columns.",
            limit=MOST_ROWS - 1,
        )
    return through_a_file(lambda file: _write(source, file))


def _write(source: TableSource, file: IO[bytes]) -> None:
    import xlsxwriter  # not before the first workbook: it takes a while

    book = xlsxwriter.Workbook(file, {"constant_memory": True})
    try:
        sheet = book.add_worksheet("Sheet1")
        moment = book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss.000"})
        for place, name in enumerate(source.schema.names):
            _write_text(sheet, 0, place, name, source.name)
        row = 1
        for batch in source.batches():
            columns = [_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                for place, value in enumerate(values):
                    _write_cell(sheet, row, place, value, moment, source.name)
                row += 1
    finally:
        book.close()


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is None:
        text = plain.moments(column).to_pylist()
        return [_moment(value) for value in text]
    return plain.of_column(column)


def _moment(text: str | None) -> Any:
    """Return a moment that a cell can hold, else its text."""
    if text is None:
        return None
    try:
        found = datetime.datetime.fromisoformat(text[:26])
    except ValueError:
        return text
    return found if found >= _FIRST_DAY else text


def _write_cell(sheet: Any, row: int, place: int, value: Any, moment: Any, name: str) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        sheet.write_boolean(row, place, value)
    elif isinstance(value, int):
        if abs(value) > _EXACT:
            sheet.write_string(row, place, str(value))
        else:
            sheet.write_number(row, place, value)
    elif isinstance(value, float):
        if math.isfinite(value):
            sheet.write_number(row, place, value)
        elif not math.isnan(value):
            sheet.write_string(row, place, str(value))
    elif isinstance(value, datetime.datetime):
        sheet.write_datetime(row, place, value, moment)
    else:
        text = value if isinstance(value, str) else plain.encode(value).decode()
        _write_text(sheet, row, place, text, name)


def _write_text(sheet: Any, row: int, place: int, text: str, name: str) -> None:
    if len(text) > MOST_LETTERS:
        raise Unsupported(
            f"a text of {name} in row {row} has {len(text)} letters; a cell of xlsx holds {MOST_LETTERS}. Export csv "
            "or parquet."
        )
    sheet.write_string(row, place, text)
