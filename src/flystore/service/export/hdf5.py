"""Tables and containers as HDF5: groups, a dataset a column or array, metadata as attributes.

The file is made on disk, piece by piece, and then sent. Any HDF5 library of 1.8 or later reads it.

* Numbers are themselves; truth values are HDF5's enumeration of FALSE and TRUE; text is UTF-8 of any length.
* Moments are int64 since 1970-01-01 with the attribute ``units`` as netCDF has it, missing ones are ``_FillValue``.
* Null is NaN where there is a NaN (then integers of that column become floats), ``<NA>`` in text.
* Rows of lists are a second axis where all have one length, else rows of any length; what nests deeper is JSON.
* Attributes that HDF5 has no type for (mappings, mixed lists, null) are JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from flystore.model.errors import TooLarge, Unsupported
from flystore.model.late import late, pa, pc

from . import plain
from .pieces import through_a_file
from .sources import ArraySource, ContainerSource, RaggedSource, TableSource

if TYPE_CHECKING:
    import h5py
else:
    h5py = late("h5py")

MISSING_TEXT = "<NA>"
_UNITS = {"ns": "nanoseconds", "us": "microseconds", "ms": "milliseconds", "s": "seconds"}
_NAT = np.iinfo(np.int64).min
_MOST_BYTES = 64 << 30


def table(source: TableSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an HDF5 file with a dataset a column; the index of a DataFrame is left out."""
    return through_a_file(lambda file: _write(file, lambda root: write_table(root, source.without_index())))


def container(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an HDF5 file with all that is below a container.

    Raises
    ------
    Unsupported
        If something below has no form in HDF5; names it.
    """
    return through_a_file(lambda file: _write(file, lambda root: write_container(root, source)))


def _write(file: IO[bytes], fill: Any) -> None:
    # Attributes of more than 64 KiB came with the format of 1.8.
    with h5py.File(file, "w", libver=("v108", "v108")) as root:
        fill(root)


def write_container(group: h5py.Group, source: ContainerSource) -> None:
    write_attributes(group, source.metadata)
    for key, child in source.children():
        match child:
            case ContainerSource():
                write_container(group.create_group(key), child)
            case TableSource():
                write_table(group.create_group(key), child.without_index())
            case ArraySource():
                write_array(group, key, child)
            case RaggedSource():
                _write_ragged(group, key, child)
            case _:
                raise Unsupported(
                    f"{child.name} is {child.family} data, which has no form in application/x-hdf5 here; name the "
                    "other children with field=, or export it by itself",
                    path=child.name,
                )


# --------------------------------------------------------------------------- attributes


def write_attributes(place: Any, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        try:
            place.attrs[key or "_"] = attribute(value)
        except (TypeError, ValueError, OverflowError):
            place.attrs[key or "_"] = _json(value)


def _json(value: Any) -> str:
    return plain.encode(value).decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def attribute(value: Any) -> Any:
    """Return a value as an attribute of HDF5: itself, where it has a type there, else JSON."""
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return np.array([_storable(item) for item in value], dtype=h5py.string_dtype())
        try:
            found = np.array(value)
        except ValueError:  # rows of unequal length
            return _json(value)
        # A list of different kinds must not become one of its texts, or truth values numbers.
        if found.dtype.kind in "iuf" and not _any_bool(value):
            return found
        if found.dtype.kind == "b":
            return found
    return _json(value)


def _any_bool(value: Any) -> bool:
    return any(_any_bool(item) for item in value) if isinstance(value, list) else isinstance(value, bool)


def _storable(text: str) -> str:
    """Return text without what HDF5 strings cannot hold: zero and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


# --------------------------------------------------------------------------- arrays


def write_array(group: h5py.Group, key: str, source: ArraySource) -> None:
    """Write an array as it comes."""
    try:
        stored, attributes = stored_type(source.dtype)
        dataset = _dataset(group, key, source.shape, stored)
    except (TypeError, ValueError) as error:
        raise Unsupported(
            f"{source.name} has the type {source.dtype}, which HDF5 cannot hold: {error}", path=source.name
        ) from error
    if not source.shape:
        dataset[()] = as_stored(source.whole())
    else:
        at = 0
        for piece in source.read():
            if len(piece):
                dataset[at : at + len(piece)] = as_stored(piece)
                at += len(piece)
    write_attributes(dataset, source.metadata)
    write_attributes(dataset, attributes)


def _dataset(group: h5py.Group, key: str, shape: tuple[int, ...], stored: Any) -> h5py.Dataset:
    size = int(np.prod(shape, dtype=object)) * np.dtype(stored).itemsize
    if size > _MOST_BYTES:
        raise TooLarge(f"{group.name}/{key} has {size} bytes; an export to HDF5 takes {_MOST_BYTES}", limit=_MOST_BYTES)
    return group.create_dataset(key, shape=shape, dtype=stored)


def stored_type(dtype: np.dtype) -> tuple[Any, dict[str, Any]]:
    """Return the type that values of `dtype` are stored as, and the attributes that say what they were."""
    kind = dtype.kind
    if kind == "U":
        return h5py.string_dtype(), {}
    if kind in "mM":
        unit, count = np.datetime_data(dtype)
        if unit not in _UNITS or count != 1:
            unit = "ns"
        units = _UNITS[unit] + (" since 1970-01-01" if kind == "M" else "")
        return np.dtype(np.int64), {"units": units, "_FillValue": _NAT}
    return dtype, {}


def as_stored(values: np.ndarray) -> np.ndarray:
    """Return values in the form that `stored_type` names."""
    kind = values.dtype.kind
    if kind == "U":
        flat = [_storable(text) for text in values.reshape(-1).tolist()]
        return np.array(flat, dtype=object).reshape(values.shape)
    if kind in "mM":
        unit, count = np.datetime_data(values.dtype)
        if unit not in _UNITS or count != 1:
            values = values.astype(f"{kind}8[ns]")
        return values.astype(np.int64)
    return values


def _write_ragged(group: h5py.Group, key: str, source: RaggedSource) -> None:
    rows = source.rows()
    try:
        found = [np.asarray(row, dtype=source.dtype) for row in rows]
    except (TypeError, ValueError) as error:
        raise Unsupported(
            f"the rows of {source.name} nest deeper than HDF5 can hold; name the other children with field=",
            path=source.name,
        ) from error
    if any(row.ndim != 1 for row in found):
        raise Unsupported(
            f"the rows of {source.name} have several axes, for which HDF5 has no form; name the other children with "
            "field=",
            path=source.name,
        )
    dataset = group.create_dataset(key, shape=(len(found),), dtype=h5py.vlen_dtype(source.dtype))
    for place, row in enumerate(found):
        dataset[place] = row
    write_attributes(dataset, source.metadata)


# --------------------------------------------------------------------------- tables


def write_table(group: h5py.Group, source: TableSource) -> None:
    """Write each column as a dataset, all of them in one pass over the rows."""
    lengths = _list_lengths(source)
    columns = [_Column(group, source, name, lengths.get(name)) for name in source.schema.names]
    at = 0
    for batch in source.batches():
        for column, values in zip(columns, batch.columns, strict=True):
            column.write(at, values)
        at += batch.num_rows
    for column in columns:
        column.finish(source.column_metadata.get(column.name))
    write_attributes(group, source.metadata)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _has_rows_of_numbers(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_number(kind.value_type) and not pa.types.is_boolean(kind.value_type)


def _list_lengths(source: TableSource) -> dict[str, int]:
    """Return the length of the lists of each column whose lists all have one and no null among them."""
    names = [field.name for field in source.schema if _is_list(field.type) and _is_number(field.type.value_type)]
    if not names:
        return {}
    bounds: dict[str, tuple[int, int]] = {}
    for batch in source.read():
        for name in names:
            column = batch.column(batch.schema.get_field_index(name))
            counted = pc.list_value_length(column)
            found = pc.min_max(counted).as_py()
            low, high = found["min"], found["max"]
            if column.null_count or (low is not None and pc.list_flatten(column).null_count):
                low, high = -1, -1
            if low is not None:
                before = bounds.get(name, (low, high))
                bounds[name] = (min(before[0], low), max(before[1], high))
    return {name: low for name, (low, high) in bounds.items() if low == high and low > 0}


class _Column:
    """One column on its way into a dataset."""

    def __init__(self, group: h5py.Group, source: TableSource, name: str, length: int | None) -> None:
        self.name = name
        self._group = group
        self._key = name.replace("/", "_") or "_"
        self._type = source.schema.field(name).type
        if pa.types.is_dictionary(self._type):
            self._type = self._type.value_type
        self._length = length
        stored, self._attributes = self._stored()
        shape = (source.rows,) if length is None else (source.rows, length)
        self._dataset = _dataset(group, self._key, shape, stored)

    def _stored(self) -> tuple[Any, dict[str, Any]]:
        kind = self._type
        if self._length is not None:
            return kind.value_type.to_pandas_dtype(), {}
        if _has_rows_of_numbers(kind):
            return h5py.vlen_dtype(np.dtype(kind.value_type.to_pandas_dtype())), {}
        if _is_number(kind):
            return np.dtype(kind.to_pandas_dtype()), {}
        if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
            letter = "M" if pa.types.is_timestamp(kind) else "m"
            return stored_type(np.dtype(f"{letter}8[{kind.unit}]"))
        return h5py.string_dtype(), {}

    def write(self, at: int, values: pa.Array) -> None:
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        kind, stop = self._type, at + len(values)
        if self._length is not None:
            flat = pc.list_flatten(values).to_numpy(zero_copy_only=False)
            self._dataset[at:stop] = flat.reshape(len(values), self._length)
        elif _has_rows_of_numbers(kind):
            self._write_lists(at, values)
        elif _is_number(kind):
            if values.null_count and self._dataset.dtype.kind != "f":
                self._widen(at)
            if self._dataset.dtype.kind == "f" and not pa.types.is_floating(kind):
                values = values.cast(pa.int64()) if pa.types.is_boolean(kind) else values
                values = pc.cast(values, pa.float64(), safe=False)
            self._dataset[at:stop] = values.to_numpy(zero_copy_only=False)
        elif pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
            self._dataset[at:stop] = values.cast(pa.int64()).fill_null(_NAT).to_numpy()
        else:
            texts = [MISSING_TEXT if value is None else _text(value) for value in plain.of_column(values)]
            self._dataset[at:stop] = np.array(texts, dtype=object)

    def _write_lists(self, at: int, values: pa.Array) -> None:
        dtype = h5py.check_vlen_dtype(self._dataset.dtype)
        for place, row in enumerate(values):
            if row.is_valid:
                found = row.values
                if found.null_count and dtype.kind != "f":
                    raise Unsupported(
                        f"the column {self.name} has lists of integers with nulls among them, for which HDF5 has no "
                        "form; choose other columns, or parquet"
                    )
                self._dataset[at + place] = found.to_numpy(zero_copy_only=False).astype(dtype)

    def _widen(self, rows: int) -> None:
        """Turn the dataset into one of floats, which have a NaN for null; `rows` are written."""
        before = self._dataset
        del self._group[self._key]
        self._dataset = self._group.create_dataset(self._key, shape=before.shape, dtype=np.float64)
        for at in range(0, rows, 1 << 20):
            stop = min(rows, at + (1 << 20))
            self._dataset[at:stop] = before[at:stop].astype(np.float64)

    def finish(self, metadata: Any) -> None:
        if isinstance(metadata, Mapping):
            write_attributes(self._dataset, metadata)
        write_attributes(self._dataset, self._attributes)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return _storable(value)
    return _json(value) if isinstance(value, (list, dict)) else str(value)
