"""Zarr's words for arrays: documents of both formats, the grid of chunks, and chunks encoded.

Format 2 takes any codec of numcodecs; of format 3 only codecs that its specification or its register names are
used, so that not only zarr-python reads them. Nothing here reads a catalogue or a file.
"""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Self

import google_crc32c
import msgspec
import numpy as np

from flystore.model.errors import Unsupported
from flystore.model.late import late
from flystore.model.structures import ArrayStructure

numcodecs = late("numcodecs")

V2, V3 = 2, 3

_BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}

_AIMED_BYTES, _AIMED_BYTES_OF_ROWS = 2**20, 2**23
"""Of a chunk of an array that grows, with one axis and with more: it is sent filled up, and reading it reads all."""

_MOST_BYTES = 2**26
_BLOSC_SHUFFLE = ("noshuffle", "shuffle", "bitshuffle")
_INTEGERS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_WIDTHS = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}


class Form(msgspec.Struct, frozen=True):
    """How the chunks of an array are laid out and encoded.

    Attributes
    ----------
    chunks : tuple of int
        Shape of a chunk, the same for all; those at the end are filled up.
    dtype : str or list
        What `numpy.dtype` takes: whose bytes, in C order, a decoded chunk is. Its byte order may be another than that
        of the structure.
    codecs : tuple of dict
        Configurations of numcodecs, in the order in which they are applied on writing; none: the bytes as they are.
    """

    chunks: tuple[int, ...]
    dtype: Any
    codecs: tuple[dict[str, Any], ...]

    @classmethod
    def plain(cls, chunks: tuple[int, ...], dtype: np.dtype) -> Self:
        """Return the form of what is not stored in a form that Zarr knows: what Blosc makes says itself what it is."""
        return cls(chunks, ArrayStructure.of(dtype, ()).dtype, ({**_BLOSC, "typesize": min(dtype.itemsize, 255)},))

    @property
    def numpy_dtype(self) -> np.dtype:
        return ArrayStructure(self.dtype, (), ()).numpy_dtype


# --- dtypes ------------------------------------------------------------------------------------


def shown_dtype(dtype: np.dtype, version: int) -> np.dtype:
    """Return the dtype in which Zarr shows values of `dtype`.

    Text of no characters has one there. Format 3 has one byte order for all fields of a structured dtype.

    Raises
    ------
    Unsupported
        If Zarr has none for it: extended precision, fields that are arrays, items of no bytes; in format 2, fields
        that have fields.
    """
    if dtype.kind in "US" and dtype.itemsize == 0:
        return np.dtype(f"{dtype.str[0]}{dtype.kind}1")
    if not _is_known(dtype) or (version == V2 and _is_nested(dtype)):
        raise Unsupported(f"Zarr has no data type for {dtype}; read this array through another route")
    return dtype.newbyteorder("<") if version == V3 and dtype.fields is not None else dtype


def _fields(dtype: np.dtype) -> list[np.dtype]:
    return [dtype.fields[name][0] for name in dtype.names or ()] if dtype.fields is not None else []


def _is_known(dtype: np.dtype) -> bool:
    if dtype.subdtype is not None or dtype.itemsize == 0:
        return False
    if dtype.fields is not None:
        return all(map(_is_known, _fields(dtype)))
    return dtype.kind in "mMSUV" or dtype.itemsize in _WIDTHS.get(dtype.kind, ())


def _is_nested(dtype: np.dtype) -> bool:
    """Return whether fields have fields: format 2 has words for it, which zarr-python does not read."""
    return any(field.fields is not None for field in _fields(dtype))


def _name_v2(dtype: np.dtype) -> Any:
    if dtype.fields is None:
        return dtype.str
    return [[name, _name_v2(dtype.fields[name][0])] for name in dtype.names or ()]


def _name_v3(dtype: np.dtype) -> Any:
    if dtype.fields is not None:
        fields = [[name, _name_v3(dtype.fields[name][0])] for name in dtype.names or ()]
        return {"name": "structured", "configuration": {"fields": fields}}
    match dtype.kind:
        case "b":
            return "bool"
        case "m" | "M":
            unit, count = np.datetime_data(dtype)
            name = "numpy.timedelta64" if dtype.kind == "m" else "numpy.datetime64"
            return {"name": name, "configuration": {"unit": unit, "scale_factor": count}}
        case "U":
            return {"name": "fixed_length_utf32", "configuration": {"length_bytes": dtype.itemsize}}
        case "S":
            return {"name": "null_terminated_bytes", "configuration": {"length_bytes": dtype.itemsize}}
        case "V":
            return {"name": "raw_bytes", "configuration": {"length_bytes": dtype.itemsize}}
        case kind:
            return f"{_INTEGERS[kind]}{8 * dtype.itemsize}"


def _fill_v3(dtype: np.dtype) -> Any:
    """Return what stands where no chunk is. There always is one; if ever not, it should not look like a value."""
    if dtype.fields is not None or dtype.kind == "V":
        return _base64_of_zeros(dtype.itemsize)
    match dtype.kind:
        case "b":
            return False
        case "f":
            return "NaN"
        case "c":
            return ["NaN", "NaN"]
        case "m" | "M":
            return "NaT"
        case "U" | "S":
            return ""
        case _:
            return 0


def _base64_of_zeros(nbytes: int) -> str:
    return base64.b64encode(bytes(nbytes)).decode()


# --- the grid ----------------------------------------------------------------------------------


def grid_of(shape: Sequence[int], chunks: Sequence[int], dtype: np.dtype, *, growing: bool = False) -> tuple[int, ...]:
    """Return the shape of the chunks in which an array is shown.

    Whoever opened an array that has grown since asks for chunks of the grid as it was: so it must not follow from
    the number of rows.

    Parameters
    ----------
    chunks : sequence of int
        Longest chunk along each axis; 0 where there is none.
    growing : bool
        True where the first of `chunks` says nothing, since the array grows along its first axis.
    """
    sizes = [min(max(size, 1), max(length, 1)) for size, length in zip(chunks, shape, strict=True)]
    if sizes:
        sizes[0] = max(chunks[0], 1)
    if growing and sizes:
        aimed = _AIMED_BYTES if len(sizes) == 1 else _AIMED_BYTES_OF_ROWS
        sizes[0] = max(1, aimed // max(1, dtype.itemsize * math.prod(sizes[1:])))
    for axis in range(len(sizes)):
        rest = dtype.itemsize * math.prod(sizes[axis + 1 :])
        if rest * sizes[axis] > _MOST_BYTES:
            sizes[axis] = max(1, _MOST_BYTES // max(rest, 1))
    return tuple(sizes)


def region_of(shape: Sequence[int], chunks: Sequence[int], index: Sequence[int]) -> tuple[slice, ...] | None:
    """Return the part of the array that a chunk holds; None if there is no such chunk."""
    if not all(0 <= i < max(-(-n // c), 0 if n == 0 else 1) for i, n, c in zip(index, shape, chunks, strict=True)):
        return None
    return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, shape, strict=True))


# --- documents ---------------------------------------------------------------------------------


def group_v3(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": V3, "node_type": "group", "attributes": dict(attributes)}


def array_v2(form: Form, shape: Sequence[int]) -> dict[str, Any]:
    """Return the content of ``.zarray``. No fill value: xarray would take values that equal it for missing."""
    codecs = [_numcodecs(codec) for codec in form.codecs]
    return {
        "zarr_format": V2,
        "shape": list(shape),
        "chunks": list(form.chunks),
        "dtype": _name_v2(form.numpy_dtype),
        "compressor": codecs[-1] if codecs else None,
        "filters": codecs[:-1] or None,
        "fill_value": None,
        "order": "C",
        "dimension_separator": ".",
    }


def array_v3(form: Form, shape: Sequence[int], dims: Sequence[str], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of an array's ``zarr.json``."""
    dtype = form.numpy_dtype
    return {
        "zarr_format": V3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": _name_v3(dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(form.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill_v3(dtype),
        "codecs": [_bytes_v3(dtype), *(_codec_v3(codec, dtype) for codec in form.codecs)],
        "dimension_names": list(dims),
        "attributes": dict(attributes),
        "storage_transformers": [],
    }


def _bytes_v3(dtype: np.dtype) -> dict[str, Any]:
    if dtype.str[0] == "|":
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "big" if dtype.str[0] == ">" else "little"}}


_NAMED_V3 = frozenset({"zstd", "blosc", "crc32c"})


def is_possible(form: Form, version: int) -> bool:
    """Return whether chunks of `form` can be described in a format.

    Format 3 has no zlib and no shuffling by itself; in format 2 the checksum CRC-32C is not built into every reader.
    """
    names = {codec["id"] for codec in form.codecs}
    if version == V2:
        return "crc32c" not in names
    dtype = form.numpy_dtype
    return names <= _NAMED_V3 and (dtype.fields is None or dtype == dtype.newbyteorder("<"))


def _codec_v3(codec: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    match codec["id"]:
        case "zstd":
            return {"name": "zstd", "configuration": {"level": codec["level"], "checksum": False}}
        case "blosc":
            return {
                "name": "blosc",
                "configuration": {
                    "cname": codec["cname"],
                    "clevel": codec["clevel"],
                    "shuffle": _BLOSC_SHUFFLE[codec["shuffle"]],
                    "typesize": codec.get("typesize") or dtype.itemsize,
                    "blocksize": 0,
                },
            }
        case _:
            return {"name": "crc32c"}


# --- chunks ------------------------------------------------------------------------------------


def encoded(values: np.ndarray, form: Form) -> bytes:
    """Return a chunk that holds `values` in its first corner, and zeros in what is left of it."""
    dtype = form.numpy_dtype
    if values.shape == form.chunks:
        whole = np.ascontiguousarray(values, dtype)
    else:
        whole = np.zeros(form.chunks, dtype)
        whole[tuple(slice(0, n) for n in values.shape)] = values
    body: Any = whole.reshape(-1).view("u1")
    for codec in form.codecs:
        body = _encoded_by(codec, body)
    return bytes(body)


def _encoded_by(codec: Mapping[str, Any], body: Any) -> Any:
    if codec["id"] == "crc32c":
        content = bytes(body)
        return content + struct.pack("<I", google_crc32c.value(content))
    items = np.frombuffer(body, "u1")
    size = codec.get("typesize")
    # Blosc puts bytes of equal weight together, and learns from the array how many an item has.
    return numcodecs.get_codec(_numcodecs(codec)).encode(items.view(f"u{size}") if size in (2, 4, 8) else items)


def _numcodecs(codec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as numcodecs knows it: there, the array that is encoded says how long an item is."""
    return {name: value for name, value in codec.items() if name != "typesize"}
