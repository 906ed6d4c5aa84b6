"""The JSON view of a document: what metadata shows. The documents themselves come back exactly from the log.

Numbers are made to fit JSON as TiledWriter does it: integers, and floats without a fraction, are clipped to
±(2^53 - 1), infinities to ±1.7976e308. NaN is null. numpy arrays, tuples and sets are lists, bytes are lists of
integers, datetimes are ISO 8601 text, other objects are their text.
"""

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np

LARGEST_INTEGER = 2**53 - 1
LARGEST_FLOAT = 1.7976e308
DEPTH = 100
"""Levels of nesting shown; what is deeper is text."""


def json_view(value: Any, depth: int = DEPTH) -> Any:
    """Return `value` as plain JSON-able objects; a new object, never a part of the old one."""
    kind = type(value)
    if kind is str:
        return clean_text(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return max(-LARGEST_INTEGER, min(LARGEST_INTEGER, value))
    if kind is float:
        return _float_view(value)
    if depth <= 0:
        return printed(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): json_view(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_view(inner, depth - 1) for inner in value]
    return _rare_view(value, depth)


def _float_view(value: float) -> Any:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return math.copysign(LARGEST_FLOAT, value)
    if abs(value) > LARGEST_INTEGER and value.is_integer():
        return LARGEST_INTEGER if value > 0 else -LARGEST_INTEGER
    return value


def _rare_view(value: Any, depth: int) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return _numpy_view(value, depth)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return list(bytes(value))
    if isinstance(value, (set, frozenset)):
        # The order of a set differs from process to process; a tree worked out twice must be the same.
        return sorted(
            (json_view(inner, depth - 1) for inner in value), key=lambda inner: (str(type(inner)), str(inner))
        )
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        return json_view(int(value), depth)
    if isinstance(value, float):
        return json_view(float(value), depth)
    if isinstance(value, str):
        return clean_text(str.__str__(value))
    if isinstance(value, date):
        return value.isoformat()
    return printed(value)


def _numpy_view(value: Any, depth: int) -> Any:
    if value.dtype.kind in "mM":
        return json_view(value.astype(str).tolist(), depth - 1)
    return json_view(value.tolist(), depth - 1)


def printed(value: Any) -> str:
    """Return the text of any object, also of one that cannot be printed."""
    try:
        return clean_text(str(value))
    except Exception:  # noqa: BLE001
        # Objects in documents may come from anywhere, and lists may be nested deeper than Python prints.
        return f"<{type(value).__name__} that cannot be printed>"


def clean_text(text: str) -> str:
    """Return `text` with lone surrogates written out: they exist in Python but not in UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()
