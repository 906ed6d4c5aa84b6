"""Canonical encoding: what goes in comes out, with type, dtype, value and key order.

Documents carry whatever devices put into them: numpy scalars and arrays, tuples, sets, integers
beyond 64 bits. JSON and plain msgpack lose that. Here plain values are plain msgpack and everything
else is one msgpack extension type each; the numbers below are stored data and never change meaning.

====  =================  ====================================================================
code  value              payload
====  =================  ====================================================================
1     numpy scalar       ``dtype.str``, a zero byte, the item's bytes
2     numpy array        msgpack ``[dtype, shape, order, bytes]``; order ``"C"`` or ``"F"``
3     tuple              msgpack array
4     set                msgpack array, sorted by the encoding of its members
5     frozenset          the same
6     complex            real, imaginary: two little-endian float64
7     datetime           ISO 8601 text, with offset if aware
8     date               ISO 8601 text
9     time of day        ISO 8601 text
10    timedelta          msgpack ``[days, seconds, microseconds]``
11    big integer        two's complement, big-endian (only outside -2⁶³ … 2⁶⁴-1)
12    bytearray          the bytes
13    mapping            msgpack array of key, value, key, value … (a key is not a str)
14    odd text           UTF-8 with lone surrogates passed through
15    opaque             msgpack ``[type name, repr]``; comes back as `Opaque`
16    object array       msgpack ``[shape, order, members]``
====  =================  ====================================================================

Equal values give equal bytes, so a hash of the encoding is a hash of the value. Subclasses of the
built-in containers, strings and numbers (immutable documents, enum members) come back as the
built-in. A value that no rule covers is kept as its type's name and repr, never refused: an odd
value must not stop an acquisition.
"""

import datetime
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from .errors import InvalidRequest

MAX_DEPTH = 64
"""Containers nested deeper than this are kept as `Opaque`; decoding deeper input is refused."""

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_NDARRAY, _TUPLE, _BIG_INT, _MAPPING, _ODD_TEXT, _OPAQUE, _OBJECTS = 2, 3, 11, 13, 14, 15, 16
_PACK = msgspec.msgpack.Encoder().encode
_COMPLEX = struct.Struct("<dd")
_Ext = msgspec.msgpack.Ext


class Opaque(msgspec.Struct, frozen=True):
    """A value that could not be kept as itself: its type's name and its repr."""

    type_name: str
    text: str


def encode(value: Any) -> bytes:
    """Return the canonical encoding of any value; never refuses one."""
    try:
        return _PACK(prepare(value))
    except (OverflowError, UnicodeEncodeError):
        # Rare enough to be found by failing: an integer beyond 64 bits, or a lone surrogate.
        return _PACK(prepare(value, careful=True))


def decode(data: bytes | bytearray | memoryview) -> Any:
    """Return the value of a canonical encoding.

    Raises
    ------
    InvalidRequest
        If `data` is not one; truncated, nested deeper than allowed, or an unknown extension.
    """
    try:
        return _UNPACK(data)
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise InvalidRequest(f"these bytes are not in the canonical encoding: {error}") from error


def prepare(value: Any, careful: bool = False, depth: int = 0) -> Any:
    """Return `value` with all that plain msgpack would lose wrapped in extension types.

    `careful` also looks at the size of each integer and the letters of each string.
    """
    kind = type(value)
    if kind in _PLAIN:
        return _careful_scalar(value) if careful else value
    if depth >= MAX_DEPTH:
        return _opaque(value)
    if kind is list:
        if not careful and _PLAIN.issuperset(map(type, value)):
            return value
        return [prepare(item, careful, depth + 1) for item in value]
    if kind is dict:
        return _prepare_mapping(value, careful, depth)
    wrap = _WRAPPERS.get(kind)
    if wrap is not None:
        return wrap(value, careful, depth)
    return _prepare_other(value, careful, depth)


def _careful_scalar(value: Any) -> Any:
    if type(value) is int and not -(1 << 63) <= value < (1 << 64):
        return _Ext(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if type(value) is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return _Ext(_ODD_TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _prepare_mapping(value: Mapping[Any, Any], careful: bool, depth: int) -> Any:
    if all(type(key) is str for key in value):
        if careful and not all(key.isascii() or _encodes(key) for key in value):
            return _pairs(value, careful, depth)
        if not careful and _PLAIN.issuperset(map(type, value.values())):
            return value if type(value) is dict else dict(value)
        return {key: prepare(item, careful, depth + 1) for key, item in value.items()}
    return _pairs(value, careful, depth)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pairs(value: Mapping[Any, Any], careful: bool, depth: int) -> Any:
    flat: list[Any] = []
    for key, item in value.items():
        flat += (prepare(key, careful, depth + 1), prepare(item, careful, depth + 1))
    return _Ext(_MAPPING, _PACK(flat))


def _prepare_other(value: Any, careful: bool, depth: int) -> Any:
    """Subclasses, numpy scalars, and what nobody thought of."""
    if isinstance(value, np.generic) and value.dtype.kind != "O":
        return _Ext(1, value.dtype.str.encode() + b"\0" + value.tobytes())
    if isinstance(value, np.ndarray):
        return _wrap_array(np.asarray(value), careful, depth)
    if isinstance(value, Mapping):
        return _prepare_mapping(dict(value), careful, depth)
    for base in (str, int, float, bytes, tuple, list, frozenset, set, bytearray):
        if isinstance(value, base):
            return prepare(base(value), careful, depth)
    if isinstance(value, memoryview):
        return bytes(value)
    for moment in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta):
        if isinstance(value, moment):
            return _WRAPPERS[moment](value, careful, depth)
    return _opaque(value)


def _opaque(value: Any) -> Any:
    try:
        text = repr(value)
    except Exception as error:  # a device's own __repr__ may raise anything; the document must still be kept
        text = f"<repr raised {type(error).__name__}>"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return _Ext(_OPAQUE, _PACK([name, text.encode("utf-8", "replace").decode()]))


def _wrap_array(value: np.ndarray, careful: bool, depth: int) -> Any:
    order = "F" if value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    if value.dtype.hasobject:
        if value.dtype.fields is not None:
            return _opaque(value)
        members = [prepare(item, careful, depth + 1) for item in value.ravel(order).tolist()]
        return _Ext(_OBJECTS, _PACK([list(value.shape), order, members]))
    described = value.dtype.str if value.dtype.fields is None else _describe(value.dtype)
    return _Ext(_NDARRAY, _PACK([described, list(value.shape), order, value.tobytes(order)]))


def _describe(dtype: np.dtype) -> Any:
    """Names, formats and offsets of a structured dtype: all that `numpy.dtype` needs to make it again."""
    fields = dtype.fields or {}
    names = list(dtype.names or ())
    formats = []
    for name in names:
        inner = fields[name][0]
        base, shape = inner.subdtype or (inner, ())
        formats.append([base.str if base.fields is None else _describe(base), list(shape)])
    return {
        "names": names,
        "formats": formats,
        "offsets": [fields[name][1] for name in names],
        "itemsize": dtype.itemsize,
    }


def _undescribe(described: Any) -> np.dtype:
    if isinstance(described, str):
        return np.dtype(described)
    return np.dtype(
        {
            "names": described["names"],
            "formats": [(_undescribe(base), tuple(shape)) for base, shape in described["formats"]],
            "offsets": described["offsets"],
            "itemsize": described["itemsize"],
        }
    )


def _wrap_members(code: int, ordered: bool) -> Callable[[Any, bool, int], Any]:
    def wrap(value: Any, careful: bool, depth: int) -> Any:
        members = [prepare(item, careful, depth + 1) for item in value]
        if not ordered:
            members.sort(key=_sort_key)
        return _Ext(code, _PACK(members))

    return wrap


def _sort_key(prepared: Any) -> bytes:
    try:
        return _PACK(prepared)
    except (OverflowError, UnicodeEncodeError):
        return b""  # the encoding of the whole fails next and is done again with care


def _wrap_text(code: int) -> Callable[[Any, bool, int], Any]:
    return lambda value, careful, depth: _Ext(code, value.isoformat().encode())


_WRAPPERS: dict[type, Callable[[Any, bool, int], Any]] = {
    np.ndarray: _wrap_array,
    tuple: _wrap_members(_TUPLE, ordered=True),
    set: _wrap_members(4, ordered=False),
    frozenset: _wrap_members(5, ordered=False),
    complex: lambda value, careful, depth: _Ext(6, _COMPLEX.pack(value.real, value.imag)),
    datetime.datetime: _wrap_text(7),
    datetime.date: _wrap_text(8),
    datetime.time: _wrap_text(9),
    datetime.timedelta: lambda v, careful, depth: _Ext(10, _PACK([v.days, v.seconds, v.microseconds])),
    bytearray: lambda value, careful, depth: _Ext(12, bytes(value)),
    Opaque: lambda value, careful, depth: _Ext(_OPAQUE, _PACK([value.type_name, value.text])),
}


def _unwrap_scalar(data: bytes) -> Any:
    name, _, raw = data.partition(b"\0")
    dtype = np.dtype(name.decode())
    return np.frombuffer(raw, dtype, 1)[0]


def _unwrap_array(data: bytes) -> np.ndarray:
    described, shape, order, raw = _UNPACK(data)
    dtype = _undescribe(described)
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype, order)
    # A copy: arrays of documents are writable, and must not keep a whole batch alive.
    return np.frombuffer(raw, dtype).reshape(shape, order=order).copy(order)


def _unwrap_objects(data: bytes) -> np.ndarray:
    shape, order, members = _UNPACK(data)
    flat = np.empty(len(members), object)
    flat[:] = members
    return flat.reshape(shape, order=order)


def _unwrap_mapping(data: bytes) -> dict[Any, Any]:
    flat = _UNPACK(data)
    return dict(zip(flat[::2], flat[1::2], strict=True))


_UNWRAPPERS: dict[int, Callable[[bytes], Any]] = {
    1: _unwrap_scalar,
    _NDARRAY: _unwrap_array,
    _TUPLE: lambda data: tuple(_UNPACK(data)),
    4: lambda data: set(_UNPACK(data)),
    5: lambda data: frozenset(_UNPACK(data)),
    6: lambda data: complex(*_COMPLEX.unpack(data)),
    7: lambda data: datetime.datetime.fromisoformat(data.decode()),
    8: lambda data: datetime.date.fromisoformat(data.decode()),
    9: lambda data: datetime.time.fromisoformat(data.decode()),
    10: lambda data: datetime.timedelta(*_UNPACK(data)),
    _BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    12: bytearray,
    _MAPPING: _unwrap_mapping,
    _ODD_TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
    _OPAQUE: lambda data: Opaque(*_UNPACK(data)),
    _OBJECTS: _unwrap_objects,
}


def _ext_hook(code: int, data: memoryview) -> Any:
    unwrap = _UNWRAPPERS.get(code)
    if unwrap is None:
        raise ValueError(f"unknown extension type {code}")
    return unwrap(bytes(data))


_UNPACK = msgspec.msgpack.Decoder(ext_hook=_ext_hook).decode
