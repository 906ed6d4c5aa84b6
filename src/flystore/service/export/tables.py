"""Tables as Arrow, Parquet, text with commas, JSON, lines of JSON, and pages."""

from __future__ import annotations

import csv
import html
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from flystore.model.errors import Unsupported
from flystore.model.late import pa, pc, pq
from flystore.storage import Sink

from . import plain
from .pieces import ahead, joined
from .sources import TableSource

_GROUP_ROWS, _GROUP_BYTES = 1 << 16, 8 << 20  # of Parquet's row groups and Arrow's batches; small ones cost readers
_TEXT_ROWS, _TEXT_BYTES = 1 << 11, 512 << 10  # of what is text at once: the first of it is there soon
_SHORT = {8: 1e9, 4: 1 << 24}  # by bytes of a float: beyond, it is printed with an exponent, or with fewer digits
_BLOCK = 128  # rows that are JSON at once, while no other thread goes on


def arrow(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an Arrow IPC file, index and schema metadata included."""
    source = _with_one_dictionary(source)
    return _written(source, lambda sink: pa.ipc.new_file(sink, source.schema))


def parquet(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a Parquet file, index and schema metadata included."""
    return _written(source, lambda sink: pq.ParquetWriter(sink, source.schema))


def _written(source: TableSource, open_writer: Callable[[pa.PythonFile], Any]) -> Iterator[bytes]:
    drain = Sink()
    sink = pa.PythonFile(drain, mode="w")
    try:
        with open_writer(sink) as writer:
            for batch in source.batches(_GROUP_ROWS, _GROUP_BYTES):
                writer.write_batch(batch)
                if piece := drain.take():
                    yield piece
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise Unsupported(f"a column of {source.name} has a type that this format does not know: {error}") from error
    yield drain.take()


def _with_one_dictionary(source: TableSource) -> TableSource:
    """Return the table with one dictionary a column, which a file must have; segments have each their own."""
    places = [place for place, field in enumerate(source.schema) if pa.types.is_dictionary(field.type)]
    if not places:
        return source
    values: dict[int, pa.Array] = {}
    for batch in source.read():
        for place in places:
            met = batch.column(place).dictionary
            if place in values:
                met = pa.concat_arrays([values[place], met])
            values[place] = met.unique()

    def read() -> Iterator[pa.RecordBatch]:
        for batch in source.read():
            columns = list(batch.columns)
            for place in places:
                kind = source.schema.field(place).type
                indices = pc.index_in(columns[place].cast(kind.value_type), value_set=values[place])
                columns[place] = pa.DictionaryArray.from_arrays(
                    indices.cast(kind.index_type), values[place], ordered=kind.ordered
                )
            yield pa.RecordBatch.from_arrays(columns, schema=source.schema)

    return TableSource(source.name, source.schema, source.index, source.rows, read, source.metadata)


# --------------------------------------------------------------------------- text


def text(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a header (not with ``header=absent``) and a line a row; quoted where needed, null is empty.

    Lists and records are JSON; the index of a DataFrame is left out.
    """
    return joined(_lines(source.without_index(), parameters.get("header", "present") != "absent"))


def _lines(source: TableSource, header: bool) -> Iterator[bytes]:
    names = source.schema.names
    if not names:
        return
    if header:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(names)
        yield line.getvalue().encode("utf-8", "replace")
    yield from ahead(_text_of, source.batches(_TEXT_ROWS, _TEXT_BYTES))


def _text_of(batch: pa.RecordBatch) -> bytes:
    columns = _texts_of(batch.columns)
    if len(columns) == 1:  # an empty line would be no row
        filled = pc.fill_null(columns[0], "")
        columns = [pc.if_else(pc.equal(filled, ""), '""', filled)]
    *others, last = columns
    ended = pc.binary_join_element_wise(last, "", "\n", null_handling="replace", null_replacement="")
    return _characters(
        pc.binary_join_element_wise(*others, ended, ",", null_handling="replace", null_replacement="")
        if others
        else ended
    )


def _characters(texts: pa.Array) -> bytes:
    """Return all texts of a column without nulls, one behind the other."""
    _, offsets, characters = texts.buffers()
    if characters is None:
        return b""
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return characters.slice(int(bounds[0]), int(bounds[-1] - bounds[0])).to_pybytes()


def _texts_of(columns: list[pa.Array]) -> list[pa.Array]:
    """Return columns as text; floats that are the same to the bit are printed once.

    Keys that are read together have one timestamp each event, and its seventeen digits are most of the work.
    """
    printed: dict[Any, tuple[np.ndarray, pa.Array]] = {}
    found = []
    for column in columns:
        if not pa.types.is_floating(column.type) or column.null_count or not len(column):
            found.append(_as_text(column))
            continue
        bits = column.to_numpy().view(f"u{column.type.byte_width}")
        alike = (column.type, bits[0], bits[-1])
        known = printed.get(alike)
        if known is not None and np.array_equal(bits, known[0]):
            found.append(known[1])
            continue
        found.append(_as_text(column))
        printed[alike] = bits, found[-1]
    return found


def _as_text(column: pa.Array) -> pa.Array:
    """Return a column as a text with commas has it, quoted where needed; floats always look like floats."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "True", "False")
    if pa.types.is_integer(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind):
        column = column.cast(pa.float32()) if pa.types.is_float16(kind) else column
        whole = pc.equal(pc.trunc(column), column)
        if _are_short_integers(column, whole):
            return pc.binary_join_element_wise(column.cast(pa.int64()).cast(pa.string()), ".0", "")
        text = column.cast(pa.string())
        if not pc.any(whole).as_py():  # only these look like integers
            return text
        return pc.if_else(pc.match_substring_regex(text, "[.en]"), text, pc.binary_join_element_wise(text, ".0", ""))
    if pa.types.is_timestamp(kind):
        return plain.moments(column, " ")
    if not pa.types.is_string(kind):
        column = pa.array([_cell(value) for value in plain.of_column(column)], pa.string())
    doubled = pc.replace_substring(column, '"', '""')
    return pc.if_else(
        pc.match_substring_regex(column, '[",\r\n]'), pc.binary_join_element_wise('"', doubled, '"', ""), column
    )


def _are_short_integers(column: pa.Array, whole: pa.Array) -> bool:
    """Return whether all values can be printed as integers, which is faster: no nulls, none of many digits, no -0."""
    if column.null_count or not pc.all(whole).as_py():
        return False
    values = column.to_numpy()
    return bool((np.abs(values) < _SHORT[column.type.byte_width]).all()) and not np.signbit(values[values == 0]).any()


def _cell(value: Any) -> str | None:
    """Return a value as a person would read it in a cell; None for null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, dict)):
        return plain.encode(value).decode()
    return str(value)


# --------------------------------------------------------------------------- JSON


def json_lines(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an object a row, each a record of RFC 7464 and a line of its own."""
    return joined(_records(source.without_index()))


def _records(source: TableSource) -> Iterator[bytes]:
    names = source.schema.names
    for batch in source.batches():
        columns = [plain.of_column(column) for column in batch.columns]
        rows = zip(*columns, strict=True)
        while block := [dict(zip(names, row, strict=True)) for row in islice(rows, _BLOCK)]:
            yield plain.encode_records(block)


def json(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield ``{column: [values]}``; the index of a DataFrame is left out."""
    return joined(_by_column(source.without_index()))


def _by_column(source: TableSource) -> Iterator[bytes]:
    """Write rows' columns to a file as they come, then send it column by column: one reading, whatever the width."""
    names = source.schema.names
    places: list[list[tuple[int, int]]] = [[] for _ in names]
    with tempfile.SpooledTemporaryFile(max_size=4 << 20, prefix="flystore-export-") as file:
        at = 0
        for batch in source.batches():
            for place, column in enumerate(batch.columns):
                values = plain.encode(plain.of_column(column))[1:-1]
                places[place].append((at, len(values)))
                at += file.write(values)
        yield b"{"
        for number, name in enumerate(names):
            yield b"," if number else b""
            yield plain.encode(name) + b":["
            for part, (begin, length) in enumerate(places[number]):
                file.seek(begin)
                yield b"," if part else b""
                yield file.read(length)
            yield b"]"
        yield b"}"


# --------------------------------------------------------------------------- pages


def page(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a page with a table, for people."""
    return joined(_page(source.without_index()))


def _page(source: TableSource) -> Iterator[bytes]:
    title = html.escape(source.name)
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in source.schema.names)
    yield f'<html><head><meta charset="utf-8"><title>{title}</title></head><body>\n'.encode("utf-8", "replace")
    yield f'<table border="1" class="dataframe">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n'.encode("utf-8", "replace")
    for batch in source.batches():
        columns = [[_cell(value) for value in plain.of_column(column)] for column in batch.columns]
        for row in zip(*columns, strict=True):
            cells = "".join(f"<td>{'' if value is None else html.escape(value)}</td>" for value in row)
            yield f"<tr>{cells}</tr>\n".encode("utf-8", "replace")
    yield b"</tbody>\n</table>\n</body></html>\n"
