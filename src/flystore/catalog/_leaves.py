"""The search index: every leaf of an indexed node's metadata as (key, value), values as bytes.

Values are written so that bytes compare as the values do, the same in both databases: numbers by
size, integers of any length exactly; text by code point. A tag comes first, so kinds never mix:

====  ======================================================================================
tag   value
====  ======================================================================================
10    null
20    false; 21: true
30    a number: eight bytes that order as float64, then what the float64 rounded off
40    text in UTF-8; beyond 512 bytes its beginning and a hash
50    a list: a hash; 51: a list too long for its members to be listed
60    a mapping: a hash
+80   the same as a member of the list at that key (null, truth, number, text)
====  ======================================================================================

(tags in hexadecimal). Keys are the dotted paths; what is no metadata has keys with ``@`` before
them: the family, the spec names (one by one, and all as JSON) and the access tags of the node. Odd
keys (very long, with a zero byte, a lone surrogate, or a leading ``@`` or ``#``) are listed under
``#`` and their hash.
"""

import hashlib
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from flystore.model.structures import Family, Spec

from ._json import to_json

NULL, FALSE, TRUE, NUMBER, TEXT, LIST, LONG_LIST, MAPPING = (
    bytes([tag]) for tag in (0x10, 0x20, 0x21, 0x30, 0x40, 0x50, 0x51, 0x60)
)
MEMBER = b"\x80"
"""All tags below this are of the value at the key itself; each node has at most one a key."""

TEXT_LIMIT = 512
"""Bytes of a text that are kept in order; an index entry must stay below 2,704 in PostgreSQL."""

UNKNOWN: Final = object()
"""What `decode` returns where the node itself has to be asked."""

_ALL = 0xFFFF_FFFF_FFFF_FFFF
_MEMBERS_LIMIT = 256
_KEY_LIMIT = 200

FAMILY_KEY, SPEC_KEY, SPECS_KEY, TAG_KEY = "@family", "@spec", "@specs", "@tag"

Leaf = tuple[str, bytes]


def leaves_of(
    metadata: Mapping[str, Any], family: Family, specs: Iterable[Spec], access_tags: Iterable[str]
) -> set[Leaf]:
    """Return the index entries of a node."""
    found: set[Leaf] = {(FAMILY_KEY, scalar_bytes(str(family)))}
    listed = list(specs)
    found.add((SPECS_KEY, scalar_bytes(to_json([[spec.name, spec.version] for spec in listed]))))
    found.update((SPEC_KEY, scalar_bytes(spec.name)) for spec in listed)
    found.update((TAG_KEY, scalar_bytes(tag)) for tag in access_tags)
    todo: list[tuple[str, Mapping[str, Any]]] = [("", metadata)]
    while todo:
        prefix, mapping = todo.pop()
        for name, value in mapping.items():
            if "." in name:
                continue  # cannot be addressed, and must not answer for the path it looks like
            path = prefix + name
            key = key_text(path)
            found.add((key, value_bytes(value)))
            if isinstance(value, Mapping):
                todo.append((f"{path}.", value))
            elif isinstance(value, (list, tuple)) and len(value) <= _MEMBERS_LIMIT:
                found.update((key, member_bytes(member)) for member in value if _is_scalar(member))
    return found


def key_text(path: str) -> str:
    """Return a dotted key as listed."""
    if path.isascii() and len(path) <= _KEY_LIMIT and path[:1] not in ("@", "#") and "\0" not in path:
        return path
    raw = path.encode("utf-8", "surrogatepass")
    try:
        path.encode()
        plain = len(raw) <= _KEY_LIMIT and path[:1] not in ("@", "#") and "\0" not in path
    except UnicodeEncodeError:
        plain = False
    return path if plain else f"#{hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def value_bytes(value: Any) -> bytes:
    """Return a metadata value of any kind as listed under its own key."""
    if _is_scalar(value):
        return scalar_bytes(value)
    if isinstance(value, Mapping):
        return MAPPING + _hash(to_json(value).encode())
    tag = LONG_LIST if len(value) > _MEMBERS_LIMIT else LIST
    return tag + _hash(to_json(value).encode())


def member_bytes(value: Any) -> bytes:
    """Return a scalar as listed under the key of the list that it is a member of."""
    raw = scalar_bytes(value)
    return bytes([raw[0] | MEMBER[0]]) + raw[1:]


def scalar_bytes(value: Any) -> bytes:
    """Return null, a truth value, a number (not NaN) or text, ordered as the values are."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return TRUE if value else FALSE
    if isinstance(value, str):
        return TEXT + _bounded(text_bytes(value))
    return NUMBER + _bounded(_number_bytes(value))


def text_bytes(text: str) -> bytes:
    """Return UTF-8 that also takes lone surrogates; its order is that of the code points."""
    return text.encode("utf-8", "surrogatepass")


def decode(raw: bytes) -> Any:
    """Return the value of a leaf, or `UNKNOWN` where it does not say all: hashes, and 1 or 1.0."""
    if raw in (NULL, FALSE, TRUE):
        return {NULL: None, FALSE: False, TRUE: True}[raw]
    if raw[:1] == TEXT and len(raw) <= TEXT_LIMIT + 1:
        return raw[1:].decode("utf-8", "surrogatepass")
    if raw[:1] == NUMBER and len(raw) == 10:
        (bits,) = struct.unpack(">Q", raw[1:9])
        (value,) = struct.unpack(">d", struct.pack(">Q", bits ^ 1 << 63 if bits >> 63 else bits ^ _ALL))
        return UNKNOWN if value.is_integer() else value
    return UNKNOWN


def after(prefix: bytes) -> bytes:
    """Return the least bytes above all that begin with `prefix`; a tag comes first, so there are some."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _hash(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _bounded(raw: bytes) -> bytes:
    return raw if len(raw) <= TEXT_LIMIT else raw[:TEXT_LIMIT] + _hash(raw)


_LARGEST = int(sys.float_info.max)


def _number_bytes(value: int | float) -> bytes:
    if isinstance(value, float):
        return _float_bytes(value) + b"\x80"
    try:
        rounded = float(value)
    except OverflowError:
        rounded = sys.float_info.max if value > 0 else -sys.float_info.max
    return _float_bytes(rounded) + _rest_bytes(value - int(rounded))


def _float_bytes(value: float) -> bytes:
    (bits,) = struct.unpack(">Q", struct.pack(">d", value + 0.0))  # + 0.0: there is one zero
    flipped = bits ^ _ALL if bits >> 63 else bits | 1 << 63
    return struct.pack(">Q", flipped)


def _rest_bytes(rest: int) -> bytes:
    """Return a signed integer of any length, ordered: its length first, complemented below zero."""
    size = (abs(rest).bit_length() + 7) // 8
    digits = abs(rest).to_bytes(size, "big")
    if size < 0x70:
        raw = bytes([0x80 + size]) + digits
    else:
        raw = b"\xff" + size.to_bytes(4, "big") + digits
    return raw if rest >= 0 else bytes(byte ^ 0xFF for byte in raw)
