"""Values as JSON: numbers stay numbers, NaN and the infinities are null, moments are ISO 8601 text.

Bytes are text where they are UTF-8, else their latin-1 characters; complex numbers are pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from flystore.model.errors import Unsupported
from flystore.model.late import pa, pc


def _hook(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return of_array(np.asarray(value))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, complex):
        return [value.real, value.imag]
    return str(value)


_ENCODER = msgspec.json.Encoder(enc_hook=_hook)


def encode(value: Any) -> bytes:
    """Return any value as JSON; what JSON has no word for is text."""
    try:
        return _ENCODER.encode(value)
    except (UnicodeEncodeError, TypeError, OverflowError, msgspec.MsgspecError):
        # Lone surrogates, keys that are no text, numbers beyond 64 bits: rare, and slow is good enough.
        return json.dumps(_plain(value), separators=(",", ":")).encode()


def encode_records(values: Sequence[Any]) -> bytes:
    """Return values as JSON, each a record of RFC 7464 and a line of its own."""
    try:
        lines = _ENCODER.encode_lines(values)
    except (UnicodeEncodeError, TypeError, OverflowError, msgspec.MsgspecError):
        return b"".join(b"\x1e" + encode(value) + b"\n" for value in values)
    # No text of JSON holds a line feed, so each one is the end of a record.
    return (b"\x1e" + lines.replace(b"\n", b"\n\x1e"))[:-1] if values else b""


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return {name: _plain(getattr(value, field)) for name, field in names}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(member) for member in value]
    if isinstance(value, (np.ndarray, np.generic, complex)):
        return _plain(_hook(value))
    return msgspec.to_builtins(value, enc_hook=_hook)


def text_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def of_array(array: np.ndarray) -> Any:
    """Return an array as nested lists, a scalar array as its value; records are lists of their fields.

    Raises
    ------
    Unsupported
        If its items are raw bytes without a meaning.
    """
    kind = array.dtype.kind
    if array.dtype.names:
        fields = [of_array(array[name]) for name in array.dtype.names]
        return _records(fields, array.shape)
    if kind == "M":
        return _nulled(np.datetime_as_string(array), np.isnat(array))
    if kind == "m":
        return _nulled(array.astype(np.int64), np.isnat(array))
    if kind == "c":
        return np.stack([array.real, array.imag], axis=-1).tolist()
    if kind == "S":
        return _mapped(array.tolist(), text_of_bytes)
    if kind == "V":
        raise Unsupported("items of raw bytes have no text form; ask for application/octet-stream")
    if array.dtype == np.float16 or array.dtype == np.float32:
        # Their shortest text is that of their own precision: 0.1 and not 0.10000000149011612.
        return array.astype(str).astype(np.float64).tolist()
    if array.dtype.itemsize > 8 and kind == "f":
        return array.astype(np.float64).tolist()
    return array.tolist()


def _records(fields: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return fields
    columns = [field if isinstance(field, list) else [field] for field in fields]
    return [_records(list(row), shape[1:]) for row in zip(*columns, strict=True)]


def _nulled(array: np.ndarray, missing: np.ndarray) -> Any:
    if not missing.any():
        return array.tolist()
    return np.where(missing, None, array.astype(object)).tolist()  # type: ignore[call-overload]


def _mapped(value: Any, function: Any) -> Any:
    return [_mapped(inner, function) for inner in value] if isinstance(value, list) else function(value)


def of_column(column: pa.Array) -> list[Any]:
    """Return a column's values, one a row, as what `encode` takes; null is None."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_timestamp(kind):
        return moments(column).to_pylist()
    if pa.types.is_duration(kind):
        return column.cast(pa.int64()).to_pylist()
    if pa.types.is_float32(kind):
        return column.cast(pa.string()).cast(pa.float64()).to_pylist()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return [None if value is None else text_of_bytes(value) for value in column.to_pylist()]
    return column.to_pylist()


def moments(column: pa.Array, between: str = "T") -> pa.Array:
    """Return timestamps as ISO 8601 text to their own precision, in UTC (``Z``) if they have a zone.

    `between`: what stands between day and time of day.
    """
    zone, unit = column.type.tz, column.type.unit
    unzoned = column.cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit)) if zone is not None else column
    text = pc.replace_substring(unzoned.cast(pa.string()), " ", between)
    if unit != "s":  # then there is a fraction
        text = pc.replace_substring_regex(text, r"\.?0+$", "")
    return text if zone is None else pc.binary_join_element_wise(text, "Z", "")
