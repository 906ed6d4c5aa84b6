"""Documents as JSON can say them, for people and for ``flystore check``."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

_ITSELF = (str, int, bool, type(None))


def plain(value: Any) -> Any:
    """Return `value` of lists, dicts with text keys, text, numbers and None only.

    Arrays become lists, bytes base64, and what JSON has no word for its text.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if type(value) in _ITSELF or type(value) is float:
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(member) for member in value]
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)
