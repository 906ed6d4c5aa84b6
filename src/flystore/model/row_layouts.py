"""Layouts: where the numbers of an Event are in its payload.

Successive Events of a template hold the same kinds of numbers, so their payloads are alike but for the bytes of the
numbers and of the uid. One of them is read byte by byte; where the others are alike is then compared, and their
numbers taken out, with numpy, without an object for each. What is compared is every byte that says what follows it,
so a payload that fits is one that a decoder takes, and holds what that would give.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .frames import _Template


class _Field(NamedTuple):
    """Where a number is in a payload, as numpy reads it, and of which kind: ``f``, ``i`` or ``b``."""

    offset: int
    dtype: str
    kind: str


_TARGETS: dict[str, type[np.generic]] = {"f": np.float64, "i": np.int64, "b": np.bool_}
_EXACT = 0xFF

# Head byte -> dtype of what follows it, and kind.
_NUMBERS = {
    0xCB: (">f8", "f"),
    0xCC: (">u1", "i"), 0xCD: (">u2", "i"), 0xCE: (">u4", "i"), 0xCF: (">u8", "i"),
    0xD0: (">i1", "i"), 0xD1: (">i2", "i"), 0xD2: (">i4", "i"), 0xD3: (">i8", "i"),
}  # fmt: skip

# The same for numbers of numpy, see `encoding`: a dtype of three characters and a zero byte precede the item.
_OF_NUMPY = {
    head + name.encode() + b"\0": (name, "f" if name[1] == "f" else "i")
    for name in ("|i1", "|u1", "<i2", "<u2", "<f2", "<i4", "<u4", "<f4", "<i8", "<u8", "<f8")
    for head in [b"\xd7\x01" if name[2] == "4" else bytes((0xC7, 4 + int(name[2]), 1))]
}


class Irregular(Exception):
    """A payload holds something else than numbers."""


class Layout:
    """Where the numbers are in payloads that differ only in their numbers and their uid.

    Raises
    ------
    Irregular, IndexError
        If there is anything else in the payload, or it is cut.
    """

    def __init__(self, payload: bytes, template: _Template) -> None:
        self._payload = payload
        self._at = 0
        self._heads: list[tuple[int, int, int]] = []
        self.fields: list[_Field] = []
        self._exactly(b"\x98\x02")
        self._fixed(2 if payload[self._at] == 0xCC else 1)  # the template's id
        self.uid = self._text()
        self._number("i")
        self._number("f")
        for names in (template.data, template.timestamps):
            self._array(len(names))
            for _ in names:
                self._number()
        if template.filled is None:
            self._exactly(b"\xc0")
        else:
            self._array(len(template.filled))
            for _ in template.filled:
                self._number("b")
        if self._at != len(payload):
            raise Irregular
        positions, masks, expected = zip(*self._heads, strict=True)
        self._positions = np.array(positions)
        self._masks = np.array(masks, np.uint8)
        self._expected = np.array(expected, np.uint8)
        self.kinds = "".join(field.kind for field in self.fields)

    def _fixed(self, count: int, mask: int = _EXACT) -> None:
        for at in range(self._at, self._at + count):
            self._heads.append((at, mask, self._payload[at] & mask))
        self._at += count

    def _exactly(self, expected: bytes) -> None:
        if not self._payload.startswith(expected, self._at):
            raise Irregular
        self._fixed(len(expected))

    def _text(self) -> slice:
        head = self._payload[self._at]
        if 0xA0 <= head < 0xC0:
            length = head & 0x1F
            self._fixed(1)
        elif head == 0xD9:
            length = self._payload[self._at + 1]
            self._fixed(2)
        else:
            raise Irregular
        found = slice(self._at, self._at + length)
        self._at += length
        return found

    def _array(self, length: int) -> None:
        if length >= 1 << 16:
            raise Irregular
        self._exactly(bytes((0x90 | length,)) if length < 16 else b"\xdc" + length.to_bytes(2, "big"))

    def _number(self, kinds: str = "fib") -> None:
        at = self._at
        head = self._payload[at]
        if head in _NUMBERS:
            dtype, kind = _NUMBERS[head]
            self._fixed(1)
            self._add(dtype, kind, int(dtype[2]))
        elif head < 0x80:
            kind = "i"
            self._fixed(1, 0x80)
            self.fields.append(_Field(at, "|u1", kind))
        elif head >= 0xE0:
            kind = "i"
            self._fixed(1, 0xE0)
            self.fields.append(_Field(at, "|i1", kind))
        elif head in (0xC2, 0xC3):
            kind = "b"
            self._fixed(1, 0xFE)
            self.fields.append(_Field(at, "|u1", kind))
        else:
            width = 6 if head == 0xD7 else 7
            dtype, kind = _OF_NUMPY.get(self._payload[at : at + width], ("", ""))
            if not kind or len(kinds) < len("fib"):  # a seq_num, a time or a mark of numpy is looked at one by one
                raise Irregular
            self._fixed(width)
            self._add(dtype, kind, int(dtype[2]))
        if kind not in kinds:
            raise Irregular

    def _add(self, dtype: str, kind: str, size: int) -> None:
        self.fields.append(_Field(self._at, dtype, kind))
        self._at += size

    def fits(self, lines: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which lines, (n, bytes), hold their numbers where this payload does."""
        return np.asarray(((lines[:, self._positions] & self._masks) == self._expected).all(axis=1))

    def columns(self, lines: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Return the numbers of contiguous lines that fit, a column a field.

        Raises
        ------
        Irregular
            If an integer is beyond 63 bits, or a uid not ASCII.
        """
        if (lines[:, self.uid] >= 0x80).any():
            raise Irregular
        form = np.dtype(
            {
                "names": [f"f{n}" for n in range(len(self.fields))],
                "formats": [field.dtype for field in self.fields],
                "offsets": [field.offset for field in self.fields],
                "itemsize": lines.shape[1],
            }
        )
        records = lines.view(form).reshape(len(lines))
        return [self._column(records[f"f{n}"], field) for n, field in enumerate(self.fields)]

    @staticmethod
    def _column(raw: NDArray[Any], field: _Field) -> NDArray[Any]:
        if field.kind == "b":  # the lowest bit of the head
            return (raw & 1).astype(np.bool_)
        if field.dtype in (">u8", "<u8") and (raw >= 2**63).any():
            raise Irregular
        return raw.astype(_TARGETS[field.kind])
