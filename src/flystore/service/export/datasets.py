"""xarray datasets: containers of arrays with named axes, as tables and as netCDF.

A table of a dataset has a row for each combination of its axes' positions, as xarray's own data frames have: the
coordinates along the axes first (positions, where an axis has none), then the other variables in their order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgspec
import numpy as np

from flystore.model.errors import Unsupported
from flystore.model.late import pa

from .hdf5 import as_stored, attribute, container, stored_type
from .pieces import through_a_file
from .registry import Encoder
from .sources import BATCH_ROWS, ArraySource, ContainerSource, TableSource

SPEC, COORDINATE = "xarray_dataset", "xarray_coord"


def over_table(encode: Encoder, *, together: bool = False) -> Encoder:
    """Return the encoder of datasets that sends them as a table through `encode`.

    `together`: variables of one axis each and of one length are put side by side whatever their axes are called;
    stock clients ask for them so.
    """

    def encoded(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
        return encode(as_table(source, together=together), parameters)

    return encoded


def _variables(source: ContainerSource) -> dict[str, ArraySource]:
    found: dict[str, ArraySource] = {}
    for key, child in source.children():
        if not isinstance(child, ArraySource):
            raise Unsupported(f"{child.name} is no array; only arrays are variables of a dataset", path=child.name)
        found[key] = child
    return found


def _axes(source: ContainerSource, variables: Mapping[str, ArraySource]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for variable in variables.values():
        for axis, length in zip(variable.dims, variable.shape, strict=True):
            if sizes.setdefault(axis, length) != length:
                raise Unsupported(
                    f"the axis {axis} of {source.name} has {sizes[axis]} positions in one variable and {length} in "
                    f"{variable.name}"
                )
    return sizes


def as_table(source: ContainerSource, *, together: bool = False) -> TableSource:
    """Return a dataset as a table.

    Raises
    ------
    Unsupported
        If its variables do not fit together, or their items have no place in a table.
    """
    variables = _variables(source)
    shapes = {variable.shape for variable in variables.values()}
    axes = {variable.dims for variable in variables.values()}
    if together and len(axes) > 1 and len(shapes) == 1 and len(next(iter(shapes))) == 1:
        variables = {name: _along(variable, "") for name, variable in variables.items()}
    sizes = _axes(source, variables)
    named = [axis for axis in sizes if axis]
    others = [name for name in variables if name not in named or variables[name].dims != (name,)]
    names = [*named, *others]
    if len(set(names)) != len(names):
        raise Unsupported(f"a variable of {source.name} has the name of an axis and is not its coordinate")
    types = [_arrow_type(variables[name].dtype, name) if name in variables else pa.int64() for name in names]
    schema = pa.schema(list(zip(names, types, strict=True)))
    schema = schema.with_metadata({b"pandas": json.dumps(_pandas(schema, named)).encode()})
    rows = math.prod(sizes.values())

    def read() -> Iterator[pa.RecordBatch]:
        return _batches(variables, sizes, schema)

    # As people see it, the coordinates are columns like all others: nothing of the dataset is left out.
    return TableSource(source.name, schema, (), rows, read, source.metadata)


def _along(variable: ArraySource, axis: str) -> ArraySource:
    return msgspec.structs.replace(variable, dims=(axis,))


def _arrow_type(dtype: np.dtype, name: str) -> pa.DataType:
    try:
        if dtype.kind == "S":
            return pa.binary()
        return pa.string() if dtype.kind == "U" else pa.from_numpy_dtype(_native(dtype))
    except (pa.ArrowNotImplementedError, TypeError) as error:
        raise Unsupported(f"the variable {name} has the type {dtype}, which has no place in a table") from error


def _native(dtype: np.dtype) -> np.dtype:
    if dtype.kind in "mM" and (
        np.datetime_data(dtype)[0] not in ("s", "ms", "us", "ns") or np.datetime_data(dtype)[1] > 1
    ):
        return np.dtype(f"{dtype.kind}8[ns]")
    return dtype.newbyteorder("=")


def _batches(
    variables: Mapping[str, ArraySource], sizes: dict[str, int], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the rows, some positions of the first axis at a time."""
    axes = list(sizes)
    if 0 in sizes.values():
        return
    first = sizes[axes[0]] if axes else 1
    inner = math.prod(sizes[axis] for axis in axes[1:])
    step = max(1, BATCH_ROWS // inner)
    cursors = {
        name: _Cursor(variable) if axes and variable.dims[:1] == (axes[0],) else variable.whole()
        for name, variable in variables.items()
    }
    for at in range(0, first, step):
        count = min(step, first - at)
        shape = (count, *(sizes[axis] for axis in axes[1:])) if axes else ()
        columns = []
        for name, field in zip(schema.names, schema, strict=True):
            if name not in variables:
                values = np.arange(at, at + count) if name == axes[0] else np.arange(sizes[name])
                dims: tuple[str, ...] = (name,)
            else:
                found = cursors[name]
                values = found.take(count) if isinstance(found, _Cursor) else found
                dims = variables[name].dims
                if axes and axes[0] in dims and not isinstance(found, _Cursor):
                    values = values.take(np.arange(at, at + count), axis=dims.index(axes[0]))
            columns.append(_as_column(_spread(values, dims, axes, shape), field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _spread(values: np.ndarray, dims: tuple[str, ...], axes: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """Return values along all axes, one a row."""
    ordered = sorted(range(len(dims)), key=lambda place: axes.index(dims[place]))
    values = values.transpose(ordered)
    present = {dims[place] for place in ordered}
    lengths = iter(values.shape)
    values = values.reshape([next(lengths) if axis in present else 1 for axis in axes])
    return np.broadcast_to(values, shape).reshape(-1)


def _as_column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype.kind in "US":
        return pa.array(values.tolist(), kind)
    return pa.array(np.ascontiguousarray(values.astype(_native(values.dtype), copy=False)), kind)


class _Cursor:
    """Takes the next positions of an array's first axis, whatever pieces it comes in."""

    def __init__(self, variable: ArraySource) -> None:
        self._pieces = variable.read()
        self._kept: list[np.ndarray] = []
        self._empty = np.zeros((0, *variable.shape[1:]), variable.dtype)

    def take(self, count: int) -> np.ndarray:
        while sum(map(len, self._kept)) < count:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._kept.append(piece)
        found = np.concatenate(self._kept) if len(self._kept) > 1 else self._kept[0] if self._kept else self._empty
        self._kept = [found[count:]]
        return found[:count]


def _pandas(schema: pa.Schema, index: list[str]) -> dict[str, Any]:
    """Return what pandas wants to know to make a data frame with this index again."""
    columns = []
    for field in schema:
        numpy_type = "object"
        pandas_type = "unicode" if pa.types.is_string(field.type) else "bytes"
        if not (pa.types.is_string(field.type) or pa.types.is_binary(field.type)):
            dtype = np.dtype(field.type.to_pandas_dtype())
            numpy_type = str(dtype)
            pandas_type = "datetime" if dtype.kind == "M" else "timedelta" if dtype.kind == "m" else str(dtype)
        columns.append(
            {
                "name": field.name,
                "field_name": field.name,
                "pandas_type": pandas_type,
                "numpy_type": numpy_type,
                "metadata": None,
            }
        )
    return {
        "index_columns": index,
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }


# --------------------------------------------------------------------------- netCDF


def netcdf(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield a netCDF-4 file, written piece by piece to disk and then sent.

    Raises
    ------
    Unsupported
        If a variable's items have no form in netCDF.
    """
    variables = _variables(source)
    sizes = _axes(source, variables)
    for variable in variables.values():
        if variable.dtype.kind not in "biufUmM" or (variable.dtype.itemsize > 8 and variable.dtype.kind == "f"):
            raise Unsupported(f"{variable.name} has the type {variable.dtype}, which netCDF cannot hold")
    return through_a_file(lambda file: _write_netcdf(source, variables, sizes, file))


def _write_netcdf(
    source: ContainerSource, variables: Mapping[str, ArraySource], sizes: dict[str, int], file: IO[bytes]
) -> None:
    import h5netcdf  # not before the first file: it takes a while

    with h5netcdf.File(file, "w") as root:
        root.dimensions = sizes
        for key, value in attributes_of(source.metadata).items():
            root.attrs[key] = _storable_attribute(value)
        beside = [name for name, variable in variables.items() if COORDINATE in variable.specs and name not in sizes]
        if beside:
            root.attrs["coordinates"] = " ".join(beside)
        for name, variable in variables.items():
            dtype, told = _netcdf_type(variable.dtype)
            made = root.create_variable(name, variable.dims, dtype=dtype, fillvalue=told.pop("_FillValue", None))
            at = 0
            for piece in variable.read():
                stored = as_stored(piece)
                stored = stored.astype(dtype) if stored.dtype != object else stored
                if not variable.shape:
                    made[...] = stored
                elif len(piece):
                    made[at : at + len(piece)] = stored
                    at += len(piece)
            for key, value in {**attributes_of(variable.metadata), **told}.items():
                made.attrs[key] = _storable_attribute(value)


def _netcdf_type(dtype: np.dtype) -> tuple[Any, dict[str, Any]]:
    """Return the type in the file, and attributes by which xarray finds the type that it was."""
    if dtype.kind == "b":
        return np.dtype(np.int8), {"dtype": "bool"}
    if dtype == np.float16:
        return np.dtype(np.float32), {}
    stored, told = stored_type(dtype)
    if dtype.kind == "m":
        told["dtype"] = "timedelta64[ns]"
    return stored.newbyteorder("=") if isinstance(stored, np.dtype) and stored.kind != "O" else stored, told


def _storable_attribute(value: Any) -> Any:
    found = attribute(value)
    return json.dumps(found) if isinstance(found, bool) else found


# --------------------------------------------------------------------------- HDF5


def attributes_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what xarray calls attributes: the clients that write datasets keep them one level down."""
    found = metadata.get("attrs")
    return dict(found) if isinstance(found, Mapping) else {}


def hdf5(source: ContainerSource, parameters: Mapping[str, str]) -> Iterator[bytes]:
    """Yield an HDF5 file with a dataset a variable, attributes being those of xarray."""

    def children() -> Iterator[tuple[str, Any]]:
        for key, child in source.children():
            yield key, msgspec.structs.replace(child, metadata=attributes_of(child.metadata))

    return container(
        msgspec.structs.replace(source, metadata=attributes_of(source.metadata), children=children), parameters
    )
