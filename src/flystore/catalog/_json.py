"""Metadata and structures as JSON text.

A view of documents, not the documents: numpy values become lists and numbers, NaN and the
infinities null (as stock Tiled has them), what JSON has no word for becomes text. The log keeps
documents exactly.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from flystore.model.errors import Damaged, InvalidRequest


def to_json(value: Any) -> str:
    """Return `value` as JSON text that both databases can store.

    Raises
    ------
    InvalidRequest
        If it is nested too deep.
    """
    try:
        try:
            return _ENCODER.encode(value).decode()
        except (UnicodeEncodeError, TypeError, OverflowError):
            # Lone surrogates, keys that are no text: rare, and slow is good enough.
            return json.dumps(_plain(value), separators=(",", ":"))
    except RecursionError as error:
        raise InvalidRequest("metadata is nested too deep to be stored; flatten it") from error


def from_json(text: str) -> Any:
    """Return what `to_json` wrote.

    Raises
    ------
    Damaged
        If the text is not JSON.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:  # lone surrogates
        try:
            return json.loads(text)
        except ValueError as error:
            raise Damaged(f"stored JSON cannot be read ({error}): {text[:80]!r}") from error


def _hook(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


_ENCODER = msgspec.json.Encoder(enc_hook=_hook)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(member) for member in value]
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.to_builtins(value))
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(_hook(value))
    return msgspec.to_builtins(value, enc_hook=_hook)


def storable(text: str) -> str:
    """Return `text` without the characters that PostgreSQL cannot hold: zero and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
