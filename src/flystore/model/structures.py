"""Structures: what a node's data looks like, in the form Tiled's protocol sends it.

A structure says family, shape, dtype and chunking; it never says where bytes are (that is a
`DataSource`). All classes are frozen values; `to_wire` gives plain JSON-able objects with exactly
the keys of protocol section 2.3, `from_wire` reads them and raises `InvalidRequest` on nonsense.
"""

from __future__ import annotations

import base64
import math
import operator
import re
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Self

import msgspec
import numpy as np

from .errors import InvalidRequest
from .late import pa


class Family(StrEnum):
    """Structure families of the protocol; there are no others."""

    ARRAY = "array"
    AWKWARD = "awkward"
    BYTES = "bytes"
    CONTAINER = "container"
    RAGGED = "ragged"
    SPARSE = "sparse"
    TABLE = "table"


class Spec(msgspec.Struct, frozen=True):
    """A name that tells a client what a node is; order among a node's specs is significant."""

    name: str
    version: str | None = None

    def to_wire(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}


BLUESKY_RUN = Spec("BlueskyRun", "3.0")
BLUESKY_STREAM = Spec("BlueskyEventStream", "3.0")
COMPOSITE = Spec("composite", None)
CATALOG_OF_RUNS = Spec("CatalogOfBlueskyRuns", "3.0")


def dtype_to_wire(dtype: np.dtype) -> dict[str, Any]:
    """Return the protocol's BuiltinDtype or StructDtype of a numpy dtype."""
    if dtype.fields is not None:
        fields = []
        for name in dtype.names or ():
            inner = dtype.fields[name][0]
            base, shape = inner.subdtype or (inner, ())
            fields.append({"name": name, "dtype": dtype_to_wire(base), "shape": list(shape) or None})
        return {"itemsize": dtype.itemsize, "fields": fields}
    units = None
    if dtype.kind in "mM":
        unit, count = np.datetime_data(dtype)
        units = None if unit == "generic" else f"[{unit}]" if count == 1 else f"[{count}{unit}]"
    endianness = {"<": "little", ">": "big", "|": "not_applicable"}[_byte_order(dtype)]
    return {"endianness": endianness, "kind": dtype.kind, "itemsize": dtype.itemsize, "dt_units": units}


def _byte_order(dtype: np.dtype) -> str:
    return dtype.str[0]


_UNITS = re.compile(r"\[\d{0,9}[a-zA-Z]{1,7}\]")
_MAX_ITEM_BYTES = (1 << 31) - 1  # numpy's own limit


def _length(number: Any) -> int:
    """Return a whole number of zero or more; 2.5 and "3" are none."""
    length = operator.index(number)
    if length < 0:
        raise ValueError(f"{length} is negative")
    return length


_Lengths = tuple[Annotated[int, msgspec.Meta(ge=0)], ...]


def _lengths(numbers: Any) -> tuple[int, ...]:
    """Return many lengths, each as `_length` takes it; a frame a chunk makes thousands."""
    try:
        return msgspec.convert(numbers, _Lengths)
    except msgspec.ValidationError:
        return tuple(_length(number) for number in numbers)


def dtype_from_wire(wire: Any) -> np.dtype:
    """Return the numpy dtype of a wire dtype; fields are packed in order.

    Raises
    ------
    InvalidRequest
        If it is none.
    """
    try:
        if "fields" in wire:
            return np.dtype(
                [
                    (field["name"], dtype_from_wire(field["dtype"]), tuple(field.get("shape") or ()))
                    for field in wire["fields"]
                ]
            )
        kind, size = wire["kind"], _length(wire["itemsize"])
        order = {"little": "<", "big": ">", "not_applicable": "|"}[wire["endianness"]]
        units = wire.get("dt_units") or ""
        if kind not in tuple("tbiufcmMSUV") or (kind == "U" and size % 4) or size > _MAX_ITEM_BYTES:
            raise ValueError(f"kind {kind!r} with itemsize {size}")
        if units and not (kind in "mM" and _UNITS.fullmatch(units)):
            raise ValueError(f"units {units!r} for kind {kind!r}")
        return np.dtype(f"{order}{kind}{size // 4 if kind == 'U' else size}{units}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"this is not a dtype of the protocol: {wire!r} ({error})") from error


class ArrayStructure(msgspec.Struct, frozen=True):
    """Shape, dtype and chunking of an array.

    Attributes
    ----------
    dtype : str or list
        What `numpy.dtype` takes: ``"<f8"``, or a list of fields (a list, because msgspec keeps no dtype).
    shape : tuple of int
        ``()`` is a scalar; a zero length is legal.
    chunks : tuple of tuple of int
        Every chunk length per axis; each sums to the axis' length. A zero-length axis is ``(0,)``.
    dims : tuple of str or None
        Names of the axes as they were announced; None when nobody named them. Writers announce files with too many
        or too few names: `axis_names` says which can be used.
    """

    dtype: Any
    shape: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]
    dims: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        dtype: Any,
        shape: tuple[int, ...],
        chunks: tuple[tuple[int, ...], ...] | None = None,
        dims: tuple[str, ...] | None = None,
    ) -> Self:
        """Return a structure; without `chunks` each axis is one chunk."""
        npdtype = np.dtype(dtype)
        described = npdtype.str if npdtype.fields is None else npdtype.descr
        if chunks is None:
            chunks = tuple((n,) for n in shape)
        return cls(described, tuple(shape), chunks, dims)

    @property
    def numpy_dtype(self) -> np.dtype:
        if isinstance(self.dtype, str):
            return np.dtype(self.dtype)
        return np.dtype([_as_field(field) for field in self.dtype])

    @property
    def nbytes(self) -> int:
        """Size of the whole array in bytes, decoded."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def axis_names(self) -> tuple[str, ...] | None:
        """One name per axis; None when nobody named them, or with more or fewer names than there are axes."""
        return self.dims if self.dims is not None and len(self.dims) == len(self.shape) else None

    def to_wire(self) -> dict[str, Any]:
        return {
            "data_type": dtype_to_wire(self.numpy_dtype),
            "chunks": [list(axis) for axis in self.chunks],
            "shape": list(self.shape),
            "dims": None if self.dims is None else list(self.dims),
            "resizable": False,
        }

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        try:
            shape = _lengths(wire["shape"])
            chunks = tuple(_lengths(axis) for axis in wire["chunks"])
            dims = None if wire.get("dims") is None else _names(wire["dims"])
            dtype = dtype_from_wire(wire["data_type"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"this is not an array structure: {error!r}") from error
        if tuple(sum(axis) for axis in chunks) != shape:
            raise InvalidRequest(f"chunks {chunks} do not add up to the shape {shape}")
        return cls.of(dtype, shape, chunks, dims)


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{names!r} is no list of names")
    return tuple(names)


def _as_field(field: Any) -> Any:
    name, dtype, *shape = field
    inner = np.dtype([_as_field(f) for f in dtype]) if isinstance(dtype, (list, tuple)) else dtype
    return (name, inner, tuple(shape[0])) if shape else (name, inner)


ARROW_SCHEMA_PREFIX = "data:application/vnd.apache.arrow.file;base64,"


_KEPT_SCHEMA_BYTES = 64 << 10


def _read_schema(message: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(message))


_kept_schema = lru_cache(64)(_read_schema)
"""The same, of those seen lately: whoever reads a column asks for the schema of its table several times."""


class TableStructure(msgspec.Struct, frozen=True):
    """Columns of a table.

    Attributes
    ----------
    arrow_schema : bytes
        The Arrow IPC schema message, as `pyarrow.Schema.serialize` gives it, pandas metadata kept.
    columns : tuple of str
    npartitions : int
    """

    arrow_schema: bytes
    columns: tuple[str, ...]
    npartitions: int = 1

    @classmethod
    def of(cls, schema: pa.Schema, npartitions: int = 1) -> Self:
        return cls(schema.serialize().to_pybytes(), tuple(schema.names), npartitions)

    @property
    def schema(self) -> pa.Schema:
        read = _read_schema if len(self.arrow_schema) > _KEPT_SCHEMA_BYTES else _kept_schema
        return read(self.arrow_schema)

    def to_wire(self) -> dict[str, Any]:
        return {
            "arrow_schema": ARROW_SCHEMA_PREFIX + base64.b64encode(self.arrow_schema).decode(),
            "npartitions": self.npartitions,
            "columns": list(self.columns),
            "resizable": False,
        }

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        try:
            text = wire["arrow_schema"]
            if not text.startswith(ARROW_SCHEMA_PREFIX):
                raise ValueError("arrow_schema lacks its data: prefix")
            raw = base64.b64decode(text[len(ARROW_SCHEMA_PREFIX) :], validate=True)
            (_read_schema if len(raw) > _KEPT_SCHEMA_BYTES else _kept_schema)(raw)
            return cls(raw, _names(wire["columns"]), _length(wire["npartitions"]))
        except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException, OSError) as error:
            raise InvalidRequest(f"this is not a table structure: {error!r}") from error


class RaggedStructure(msgspec.Struct, frozen=True):
    """Rows of unequal length.

    Attributes
    ----------
    dtype : str
    shape : tuple of (int or None)
        None marks a ragged axis.
    size : int
        Number of values in all rows together.
    dims : tuple of str or None
    blocks : tuple of int or None
        Rows of each block that the array is stored in; None: one block.
    """

    dtype: str
    shape: tuple[int | None, ...]
    size: int
    dims: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None

    def to_wire(self) -> dict[str, Any]:
        chunks = [None if n is None else [n] for n in self.shape]
        if self.blocks is not None:
            chunks[0] = list(self.blocks)
        return {
            "data_type": dtype_to_wire(np.dtype(self.dtype)),
            "shape": list(self.shape),
            "size": self.size,
            "chunks": chunks,
            "dims": None if self.dims is None else list(self.dims),
            "resizable": False,
        }

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        try:
            return cls(
                dtype_from_wire(wire["data_type"]).str,
                tuple(None if n is None else _length(n) for n in wire["shape"]),
                _length(wire["size"]),
                None if wire.get("dims") is None else _names(wire["dims"]),
                _several(wire.get("chunks"), wire["shape"][0]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"this is not a ragged structure: {error!r}") from error


def _several(chunks: Any, rows: Any) -> tuple[int, ...] | None:
    """Return the blocks along the first axis; one that has all rows is none."""
    blocks = tuple(_length(n) for n in chunks[0]) if chunks else ()
    return None if blocks in ((), (rows,)) else blocks


class AwkwardStructure(msgspec.Struct, frozen=True):
    """Nested data of any shape, kept as flat buffers.

    Attributes
    ----------
    length : int
        Of the outermost list.
    form : dict
        How the buffers make values, as the Awkward Array library describes it (``Form.to_dict``).
    """

    length: int
    form: dict[str, Any]

    def to_wire(self) -> dict[str, Any]:
        return {"length": self.length, "form": self.form}

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        try:
            length, form = _length(wire["length"]), wire["form"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"this is not an awkward structure: {error!r}") from error
        if not isinstance(form, dict):
            raise InvalidRequest(f"this is not an awkward structure: its form is {type(form).__name__}, not an object")
        return cls(length, form)


class SparseStructure(msgspec.Struct, frozen=True):
    """An array most of whose values are zero: coordinates and values of those that are not.

    Attributes
    ----------
    dtype, coord_dtype : str
        What `numpy.dtype` takes, of the values and of the coordinates.
    shape, chunks, dims
        As those of `ArrayStructure`.
    """

    dtype: str
    coord_dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]
    dims: tuple[str, ...] | None = None

    def to_wire(self) -> dict[str, Any]:
        return {
            "data_type": dtype_to_wire(np.dtype(self.dtype)),
            "coord_data_type": dtype_to_wire(np.dtype(self.coord_dtype)),
            "chunks": [list(axis) for axis in self.chunks],
            "shape": list(self.shape),
            "dims": None if self.dims is None else list(self.dims),
            "resizable": False,
            "layout": "COO",
        }

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        """Read a structure; coordinates of no declared type are unsigned 64-bit integers.

        Raises
        ------
        InvalidRequest
            Also if the values have fields, or the coordinates are no integers.
        """
        dense = ArrayStructure.from_wire(wire)
        told = wire.get("coord_data_type")
        coordinates = np.dtype("<u8") if told is None else dtype_from_wire(told)
        if coordinates.kind not in "iu":
            raise InvalidRequest(f"coordinates of a sparse array are integers, not {coordinates}")
        if not isinstance(dense.dtype, str) or dense.numpy_dtype.kind not in "biuf":
            raise InvalidRequest(f"values of a sparse array are real numbers, not {dense.numpy_dtype}")
        if wire.get("layout", "COO") != "COO":
            raise InvalidRequest(f"the layout of a sparse array is COO, not {wire['layout']!r:.40}")
        return cls(dense.dtype, coordinates.str, dense.shape, dense.chunks, dense.dims)


class Asset(msgspec.Struct, frozen=True):
    """One file or directory of a data source.

    Attributes
    ----------
    data_uri : str
        As the writer called it; path maps are applied when it is read, never here.
    parameter : str
        The reader's argument it fills: ``data_uri`` (single) or ``data_uris`` (list).
    num : int or None
        Ordering key among the assets of a list, not an index.
    size : int or None
        Bytes, if known.
    """

    data_uri: str
    is_directory: bool = False
    parameter: str = "data_uris"
    num: int | None = None
    size: int | None = None
    id: int | None = None


class Management(StrEnum):
    """Who may change or delete the bytes of a data source."""

    EXTERNAL = "external"
    IMMUTABLE = "immutable"
    LOCKED = "locked"
    WRITABLE = "writable"


class DataSource(msgspec.Struct, frozen=True):
    """How a node's data is stored and in which files.

    `structure` is the wire form (a plain dict) as registered or announced; what is readable now is
    the node's, worked out from this and the last observation.
    """

    family: Family
    mimetype: str
    structure: dict[str, Any]
    parameters: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    assets: tuple[Asset, ...] = ()
    management: Management = Management.EXTERNAL
    id: int | None = None


SEGMENTS_MIMETYPE = "application/x-tiled-sql-table"
"""Slow data kept in segments, shown as the appendable table that clients of the protocol know."""

SEGMENT_ARRAY_MIMETYPE = "application/x-flystore-segments"
"""One array-valued column of slow data, kept in the segments of its stream."""

ZARR_MIMETYPE = "application/x-zarr"
"""An array that this service keeps as Zarr, readable with zarr-python alone."""

AWKWARD_MIMETYPE = "application/x-awkward-buffers"
RAGGED_MIMETYPE = "application/x-ragged+sql"
SPARSE_MIMETYPE = "application/x-parquet;structure=sparse"
PARQUET_MIMETYPE = "application/x-parquet"
"""A table that this service keeps, one Parquet file a partition; or files of others, one a partition as well."""

KEPT_IN_FILES = frozenset({ZARR_MIMETYPE, AWKWARD_MIMETYPE, RAGGED_MIMETYPE, SPARSE_MIMETYPE, PARQUET_MIMETYPE})
"""Data that this service keeps in a directory for each node."""
