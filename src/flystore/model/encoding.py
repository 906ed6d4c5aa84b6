"""Canonical encoding: what goes in comes out, with type, dtype, value and key order.

Documents carry whatever devices put into them: numpy scalars and arrays, tuples, sets, integers
beyond 64 bits. JSON and plain msgpack lose that. Here plain values are plain msgpack and everything
else is one msgpack extension type each; the numbers below are stored data and never change meaning.

====  =================  ====================================================================
code  value              payload
====  =================  ====================================================================
1     numpy scalar       ``dtype.str``, a zero byte, the item's bytes (a record: as an array of no axes)
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
16    object array       msgpack ``[shape, order, members]``; arrays of variable-width text too
17    masked array       msgpack ``[values, mask]``, two arrays
====  =================  ====================================================================

Equal values give equal bytes, so a hash of the encoding is a hash of the value. Subclasses of the
built-in containers, strings and numbers (immutable documents, enum members) come back as the
built-in. A value that no rule covers is kept as its type's name and repr, never refused: an odd
value must not stop an acquisition.
"""

from __future__ import annotations

import datetime
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np

from .errors import InvalidRequest

MAX_DEPTH = 64
"""Containers nested deeper than this are kept as `Opaque`."""

_MAX_DECODED_DEPTH = 2 * MAX_DEPTH
"""Deeper input is refused; twice, because frames and extension types add levels of their own."""

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_TEXT = frozenset({str})
_SCALAR, _NDARRAY, _TUPLE, _BIG_INT, _MAPPING, _ODD_TEXT = 1, 2, 3, 11, 13, 14
_OPAQUE, _OBJECTS, _MASKED = 15, 16, 17
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


def is_plain(value: dict[Any, Any]) -> bool:
    """Return whether msgpack as it is keeps a dictionary: text to plain values, or to dictionaries of such."""
    if not _TEXT.issuperset(map(type, value)):
        return False
    for item in value.values():
        kind = type(item)
        if kind not in _PLAIN and not (
            kind is dict and _TEXT.issuperset(map(type, item)) and _PLAIN.issuperset(map(type, item.values()))
        ):
            return False
    return True


def decode(data: bytes | bytearray | memoryview) -> Any:
    """Return the value of a canonical encoding.

    Raises
    ------
    InvalidRequest
        If `data` is not one; truncated, nested deeper than allowed, or an unknown extension.
    """
    try:
        value = _UNPACKERS[0](data)
        _require_shallow(value, data)
    except (
        msgspec.DecodeError,
        RecursionError,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        struct.error,
    ) as error:
        raise InvalidRequest(f"these bytes are not in the canonical encoding: {error}") from error
    return value


def _require_shallow(value: Any, data: bytes | bytearray | memoryview) -> None:
    # Each container costs one byte that can begin one, and counting bytes is cheaper than walking.
    if len(data) - len(bytes(data).translate(None, _CONTAINER_HEADS)) <= _MAX_DECODED_DEPTH:
        return
    require_shallow(value, _MAX_DECODED_DEPTH)


def require_shallow(value: Any, most: int = MAX_DEPTH) -> None:
    """Raise ValueError if containers nest deeper than `most`."""
    level = [[value]]
    for _ in range(most):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    raise ValueError(f"containers nest deeper than {most}")


def decoded_size(parts: Sequence[bytes | bytearray | memoryview], enough: int, most: int) -> int:
    """Return about how many bytes of memory msgpack encodings take decoded, or more than that.

    One byte of encoding can become 64 bytes of memory, while the bytes of an image stay as many as they are.

    Parameters
    ----------
    parts : sequence of bytes-like
    enough : int
        If it cannot be more than this, the values are not counted, which takes time.
    most : int
        Beyond this, counting ends.
    """
    length = sum(map(len, parts))
    if length * _PER_CONTAINER <= enough:
        return length * _PER_CONTAINER
    size = length
    for part in parts:
        if size > most:
            break
        size += _counted(memoryview(part), most)
    return size


def _counted(view: memoryview, most: int) -> int:
    """Walk over the values; strings and binary are stepped over. What is cut or nonsense ends the walk."""
    at, size, end = 0, 0, len(view)
    while at < end and size <= most:
        head = view[at]
        at += 1
        size += _PER_VALUE
        if head in _CONTAINER_HEADS:
            size += _PER_CONTAINER - _PER_VALUE
        if 0xA0 <= head < 0xC0:
            at += head & 0x1F
        elif head in _EIGHT_BYTES:
            # Usually one of many floats: the others are stepped over with it.
            run = _RUN_OF_EIGHT.match(view, at - 1)
            many = 1 if run is None else (run.end() - run.start()) // 9
            size += (many - 1) * _PER_VALUE
            at += 9 * many - 1
        elif head in _LENGTHS:
            width, extra, skips = _LENGTHS[head]
            if skips:
                length = int.from_bytes(view[at : at + width], "big")
                code = view[at + width] if extra and at + width < end else 0
                # Within an extension type there may be values again.
                at += width + extra + (0 if code in _NESTING else length)
            else:
                at += width
        elif head in _FIXED_EXTENSIONS:
            at += 1 if at < end and view[at] in _NESTING else 1 + _FIXED_EXTENSIONS[head]
    return size


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
    if _TEXT.issuperset(map(type, value)):
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
        return _wrap_scalar(value)
    if isinstance(value, np.ma.MaskedArray):
        parts = np.asarray(value.data), np.ma.getmaskarray(value)
        return _Ext(_MASKED, _PACK([_wrap_array(part, careful, depth) for part in parts]))
    if isinstance(value, np.ndarray):
        return _wrap_array(np.asarray(value), careful, depth)
    if isinstance(value, Mapping):
        return _prepare_mapping(dict(value), careful, depth)
    for base, plain in _TO_BUILTIN.items():
        if isinstance(value, base):
            return prepare(plain(value), careful, depth)
    if isinstance(value, memoryview):
        return bytes(value)
    for moment in (datetime.datetime, datetime.date, datetime.time):
        if isinstance(value, moment):
            return _wrap_moment(moment, value)
    if isinstance(value, datetime.timedelta):
        return _WRAPPERS[datetime.timedelta](value, careful, depth)
    return _opaque(value)


# The type's own conversion: an enum member's str() is its name, not its value.
_TO_BUILTIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes,
    tuple: tuple,
    list: list,
    frozenset: frozenset,
    set: set,
    bytearray: bytearray,
}


def _wrap_moment(kind: Any, value: Any) -> Any:
    """Keep a subclass as its built-in, if its text is one; pandas' NaT says it is a datetime."""
    try:
        return _WRAPPERS[kind](kind.fromisoformat(value.isoformat()), False, 0)
    except (ValueError, TypeError):
        return _opaque(value)


def _wrap_scalar(value: np.generic) -> Any:
    if value.dtype.hasobject:
        return _opaque(value)
    if value.dtype.fields is not None:
        return _Ext(_SCALAR, _PACK(_wrap_array(np.asarray(value), False, 0)))
    name, raw = value.dtype.str, value.tobytes()
    if isinstance(value, np.str_):  # numpy pads an empty text to one character
        name, raw = f"<U{len(value)}", value.encode("utf-32-le", "surrogatepass")
    elif isinstance(value, np.bytes_):
        name, raw = f"|S{len(value)}", bytes(value)
    return _Ext(_SCALAR, name.encode() + b"\0" + raw)


def _opaque(value: Any) -> Any:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a device's own __repr__ may raise anything
        text = f"<repr raised {type(error).__name__}>"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return _Ext(_OPAQUE, _PACK([name, text.encode("utf-8", "replace").decode()]))


def _wrap_array(value: np.ndarray, careful: bool, depth: int) -> Any:
    order: Any = "F" if value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    if value.dtype.hasobject:
        if value.dtype.fields is not None:
            return _opaque(value)
        members = [prepare(item, careful, depth + 1) for item in value.ravel(order).tolist()]
        return _Ext(_OBJECTS, _PACK([list(value.shape), order, members]))
    if value.dtype.itemsize == 0 and value.size:
        return _opaque(value)  # no bytes, any shape: nothing would bound what decoding makes of it
    if value.dtype.fields is None:
        described: Any = value.dtype.str
    else:
        described, value = _describe(value.dtype), _zero_padding(value, order)
    return _Ext(_NDARRAY, _PACK([described, list(value.shape), order, value.tobytes(order)]))


def _zero_padding(records: np.ndarray, order: Any = "C") -> np.ndarray:
    """Return the same records; between their fields lies what was in memory, and that is nobody's data."""
    clean = np.zeros(records.shape, records.dtype, order)
    for name in records.dtype.names or ():
        field = records[name]
        clean[name] = field if field.dtype.fields is None else _zero_padding(field)
    return clean


def _describe(dtype: np.dtype) -> Any:
    """Names, formats and offsets of a structured dtype: what `numpy.dtype` needs; titles are not kept."""
    fields: Mapping[str, Any] = dtype.fields or {}
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


_SIMPLE_DTYPE = re.compile(r"[<>|]([biufcSUV]\d{1,10}|[mM]8(\[\d{0,10}[a-zA-Z]{1,7}\])?)")


def _undescribe(described: Any) -> np.dtype:
    if isinstance(described, str):
        # numpy.dtype takes a small language; only what dtype.str writes may reach it.
        if not _SIMPLE_DTYPE.fullmatch(described):
            raise ValueError(f"{described[:40]!r} is no dtype")
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


def _wrap_number(kind: type[np.generic]) -> Callable[[Any, bool, int], Any]:
    head = np.dtype(kind).str.encode() + b"\0"
    # Nine times as fast as its `tobytes`, which makes an array of it first.
    return lambda value, careful, depth: _Ext(1, head + bytes(value.data))


_NUMBERS: tuple[type[np.generic], ...] = (
    np.bool_,
    *(np.dtype(name).type for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")),
)

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
    # Looked up by type, since detectors give numpy numbers far more often than anything else that is not plain.
    **{kind: _wrap_number(kind) for kind in _NUMBERS},
}


Unpack = Callable[[bytes | bytearray | memoryview], Any]


def _unwrap_scalar(data: memoryview, unpack: Unpack) -> Any:
    if data[:1] not in (b"<", b">", b"|"):
        record = unpack(data)
        if type(record) is not np.ndarray or record.shape != () or record.dtype.fields is None:
            raise ValueError("a numpy scalar is no record")
        return record[()]
    name, _, raw = bytes(data).partition(b"\0")
    dtype = _undescribe(name.decode())
    if len(raw) != dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for a numpy scalar of {dtype.itemsize}")
    if dtype.kind in "SUV":  # taken from an array, text would lose the zeros at its end
        return _FROM_BYTES[dtype.kind](raw)
    return np.frombuffer(raw, dtype)[0]


_FROM_BYTES: dict[str, Callable[[bytes], np.generic]] = {
    "S": np.bytes_,
    "U": lambda raw: np.str_(raw.decode("utf-32-le", "surrogatepass")),
    "V": np.void,
}


def _unwrap_array(data: memoryview, unpack: Unpack) -> np.ndarray:
    described, shape, order, raw = unpack(data)
    dtype, shape = _undescribe(described), _shape(shape)
    size = math.prod(shape)
    if type(raw) is not bytes or len(raw) != size * dtype.itemsize or (size and not raw):
        raise ValueError(f"{len(raw)} bytes for an array of {size} items of {dtype.itemsize} bytes")
    # A copy: arrays of documents are writable, and must not keep a whole batch alive.
    return np.ndarray(shape, dtype, raw, order=_order(order)).copy(order)


def _unwrap_objects(data: memoryview, unpack: Unpack) -> np.ndarray:
    shape, order, members = unpack(data)
    if type(members) is not list or len(members) != math.prod(_shape(shape)):
        raise ValueError(f"{len(members)} members for an array of shape {shape}")
    flat = np.empty(len(members), object)
    for index, member in enumerate(members):  # one by one: numpy would take members that are lists apart
        flat[index] = member
    return flat.reshape(shape, order=_order(order))


def _unwrap_masked(data: memoryview, unpack: Unpack) -> np.ma.MaskedArray:
    values, mask = unpack(data)
    if type(values) is not np.ndarray or type(mask) is not np.ndarray or values.shape != mask.shape:
        raise ValueError("a masked array is no pair of arrays")
    return np.ma.MaskedArray(values, mask)


def _shape(lengths: Any) -> tuple[int, ...]:
    if type(lengths) is not list or not all(type(n) is int and n >= 0 for n in lengths):
        raise ValueError(f"{lengths!r:.40} is no shape")
    return tuple(lengths)


def _order(order: Any) -> Any:
    if order not in ("C", "F"):
        raise ValueError(f"{order!r:.40} is no order of an array")
    return order


def _members(data: memoryview, unpack: Unpack) -> list[Any]:
    members = unpack(data)
    if type(members) is not list:
        raise TypeError("an extension type holds no array of members")
    return members


def _unwrap_mapping(data: memoryview, unpack: Unpack) -> dict[Any, Any]:
    flat = _members(data, unpack)
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _unwrap_opaque(data: memoryview, unpack: Unpack) -> Opaque:
    type_name, text = _members(data, unpack)
    if type(type_name) is not str or type(text) is not str:
        raise TypeError("an opaque value is no pair of texts")
    return Opaque(type_name, text)


def _unwrap_text(parse: Callable[[str], Any]) -> Callable[[memoryview, Unpack], Any]:
    return lambda data, unpack: parse(str(data, "ascii"))


_UNWRAPPERS: dict[int, Callable[[memoryview, Unpack], Any]] = {
    _SCALAR: _unwrap_scalar,
    _NDARRAY: _unwrap_array,
    _TUPLE: lambda data, unpack: tuple(_members(data, unpack)),
    4: lambda data, unpack: set(_members(data, unpack)),
    5: lambda data, unpack: frozenset(_members(data, unpack)),
    6: lambda data, unpack: complex(*_COMPLEX.unpack(data)),
    7: _unwrap_text(datetime.datetime.fromisoformat),
    8: _unwrap_text(datetime.date.fromisoformat),
    9: _unwrap_text(datetime.time.fromisoformat),
    10: lambda data, unpack: datetime.timedelta(*_members(data, unpack)),
    _BIG_INT: lambda data, unpack: int.from_bytes(data, "big", signed=True),
    12: lambda data, unpack: bytearray(data),
    _MAPPING: _unwrap_mapping,
    _ODD_TEXT: lambda data, unpack: str(data, "utf-8", "surrogatepass"),
    _OPAQUE: _unwrap_opaque,
    _OBJECTS: _unwrap_objects,
    _MASKED: _unwrap_masked,
}


def _unwrap(depth: int, code: int, data: memoryview) -> Any:
    unwrap = _UNWRAPPERS.get(code)
    if unwrap is None:
        raise ValueError(f"unknown extension type {code}")
    if depth >= _MAX_DECODED_DEPTH:
        raise ValueError(f"extension types nest deeper than {_MAX_DECODED_DEPTH}")
    return unwrap(data, _UNPACKERS[depth + 1])


_UNPACKERS: list[Unpack] = [
    msgspec.msgpack.Decoder(ext_hook=partial(_unwrap, depth)).decode for depth in range(_MAX_DECODED_DEPTH + 1)
]
_CONTAINERS = frozenset({list, dict, tuple, set, frozenset})
_CONTAINER_HEADS = bytes([*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)])

_PER_VALUE, _PER_CONTAINER = 40, 72

# Head byte -> bytes of its number, bytes after that before the content, and whether that many bytes of content follow.
_LENGTHS = {
    0xC4: (1, 0, True), 0xC5: (2, 0, True), 0xC6: (4, 0, True),
    0xC7: (1, 1, True), 0xC8: (2, 1, True), 0xC9: (4, 1, True),
    0xCA: (4, 0, False), 0xCB: (8, 0, False),
    0xCC: (1, 0, False), 0xCD: (2, 0, False), 0xCE: (4, 0, False), 0xCF: (8, 0, False),
    0xD0: (1, 0, False), 0xD1: (2, 0, False), 0xD2: (4, 0, False), 0xD3: (8, 0, False),
    0xD9: (1, 0, True), 0xDA: (2, 0, True), 0xDB: (4, 0, True),
    0xDC: (2, 0, False), 0xDD: (4, 0, False), 0xDE: (2, 0, False), 0xDF: (4, 0, False),
}  # fmt: skip
_EIGHT_BYTES = frozenset({0xCB, 0xCF, 0xD3})  # a float, or an integer of 64 bits
_RUN_OF_EIGHT = re.compile(rb"(?:[\xcb\xcf\xd3].{8})+", re.DOTALL)
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_NESTING = frozenset({_NDARRAY, _TUPLE, 4, 5, _MAPPING, _OPAQUE, _OBJECTS, _MASKED})
