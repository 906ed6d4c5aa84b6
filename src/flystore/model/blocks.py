"""Blocks: successive documents of one kind taken out of their frames together.

A document at a time costs a dictionary for each of its mappings; at tens of thousands a second that, and the garbage
collector walking them, is most of the work. Here Events of one template become columns, and StreamDatums small
structs. A block is only made of what fits it exactly; everything else comes out of `decode_batch` one by one, as
`FrameDecoder.decode` gives it, and what that refuses is refused here too.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .encoding import decode
from .frames import _FIELDS, _NEEDED, FrameDecoder, _Template, is_document
from .row_layouts import Irregular, Layout

Column = NDArray[Any] | Sequence[Any]
"""Values of one key: an array of float64, int64 or bool, or a sequence of what documents hold."""

MOST_ROWS = 1024
"""Rows of a block that are no numbers: turning rows into columns is several times slower for many at a time."""

_FEWEST = 16  # of fewer payloads of a kind no block is made: it would not pay
_LARGEST = 2**53  # of a seq_num; also the largest index, see the projection
_STREAM_DATUM = b"\x93\x00\xacstream_datum"  # how the payload of one begins


class EventBlock:
    """Successive Events of one template, column by column.

    Attributes
    ----------
    first : int
        Ordinal of the first.
    descriptor : str
        Uid of their descriptor.
    data_keys, timestamp_keys, filled_keys : tuple of str
        Names of the columns; each name once within each.
    seq_nums : (n,) int64
        Each below 2**53 in magnitude.
    times : (n,) float64
    data, timestamps, filled : sequence of Column
        One a key, each of length n.
    """

    __slots__ = ("_made", "_payloads", "_template", "data", "filled", "first", "seq_nums", "times", "timestamps")

    def __init__(
        self, first: int, payloads: Sequence[bytes], template: _Template, made: bytes, columns: "_Columns"
    ) -> None:
        self.first = first
        self._payloads = payloads
        self._template = template
        self._made = made
        self.seq_nums, self.times, self.data, self.timestamps, self.filled = columns

    def __len__(self) -> int:
        return len(self._payloads)

    @property
    def descriptor(self) -> str:
        return self._template.descriptor

    @property
    def data_keys(self) -> tuple[str, ...]:
        return self._template.data

    @property
    def timestamp_keys(self) -> tuple[str, ...]:
        return self._template.timestamps

    @property
    def filled_keys(self) -> tuple[str, ...]:
        return self._template.filled or ()

    def documents(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield the same as (ordinal, name, document), decoded one by one."""
        # The template of then: a later one may have taken its number.
        yield from _singly(FrameDecoder({0: self._made}), self._payloads, self.first)


class Bounds(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A half-open range of a StreamDatum."""

    start: int
    stop: int


class StreamDatum(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A StreamDatum that has the fields it should have, and no other."""

    uid: str
    stream_resource: str
    descriptor: str
    indices: Bounds
    seq_nums: Bounds


class DatumBlock:
    """Successive StreamDatums.

    Attributes
    ----------
    first : int
        Ordinal of the first.
    datums : list of StreamDatum
    """

    __slots__ = ("_payloads", "datums", "first")

    def __init__(self, first: int, payloads: Sequence[bytes], datums: list[StreamDatum]) -> None:
        self.first = first
        self._payloads = payloads
        self.datums = datums

    def __len__(self) -> int:
        return len(self.datums)

    def document(self, number: int) -> dict[str, Any]:
        """Return one of them as it came."""
        found: dict[str, Any] = decode(self._payloads[number])[2]
        return found

    def documents(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield the same as (ordinal, name, document), decoded one by one."""
        for number in range(len(self._payloads)):
            yield self.first + number, "stream_datum", self.document(number)


Item = tuple[int, str, dict[str, Any]] | EventBlock | DatumBlock
"""(ordinal, name, document), or several of one kind."""


class Decoded(NamedTuple):
    """What `decode_batch` found.

    Attributes
    ----------
    items : list of Item
        All documents in their order.
    digests : list of bytes
        `FrameDecoder.digest` of each document.
    """

    items: list[Item]
    digests: list[bytes]


def decode_batch(decoder: FrameDecoder, payloads: Sequence[bytes], first: int = 0) -> Decoded:
    """Return the documents of successive payloads; `decoder` learns the templates among them.

    Parameters
    ----------
    first : int
        Ordinal of the first document.

    Raises
    ------
    InvalidRequest
        If `decoder.decode` refuses one of them.
    """
    items: list[Item] = []
    digests: list[bytes] = []
    for alike in _alike(payloads):
        if not is_document(alike[0]):
            for template in alike:
                decoder.decode(template)
            continue
        ordinal = first + len(digests)
        digests += decoder.digests(alike)
        items += _block_of(decoder, alike, ordinal) if len(alike) >= _FEWEST else _singly(decoder, alike, ordinal)
    return Decoded(items, digests)


def _alike(payloads: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yield successive payloads of one kind and, if they are rows, of one template."""
    # Three bytes tell kind and template of a row, four if that is a number of two bytes; the third tells how long
    # the name of a document is.
    for head, group in groupby(payloads, itemgetter(slice(3))):
        if head[2:] == b"\xcc":
            yield from (list(some) for _, some in groupby(group, itemgetter(slice(4))))
        else:
            yield list(group)


def _block_of(decoder: FrameDecoder, payloads: list[bytes], first: int) -> list[Item]:
    blocks: list[Item] | None = None
    if (template := decoder.template_of(payloads[0])) is not None:
        blocks = _event_blocks(payloads, *template, first)
    elif payloads[0].startswith(_STREAM_DATUM):
        blocks = _datum_block(payloads, first)
    return [*_singly(decoder, payloads, first)] if blocks is None else blocks


def _singly(decoder: FrameDecoder, payloads: Sequence[bytes], first: int) -> list[tuple[int, str, dict[str, Any]]]:
    items = []
    for ordinal, payload in enumerate(payloads, first):
        decoded = decoder.decode(payload)
        assert decoded is not None  # templates are taken out before
        items.append((ordinal, *decoded))
    return items


# --- StreamDatums ----------------------------------------------------------------------------------------

_DATUM = msgspec.msgpack.Decoder(tuple[Literal[0], Literal["stream_datum"], StreamDatum]).decode


def _datum_block(payloads: list[bytes], first: int) -> list[Item] | None:
    try:
        datums = [_DATUM(payload)[2] for payload in payloads]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return [DatumBlock(first, payloads, datums)]


# --- Events ----------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    seq_nums: NDArray[np.int64]
    times: NDArray[np.float64]
    data: Sequence[Column]
    timestamps: Sequence[Column]
    filled: Sequence[Column]


def _event_blocks(payloads: list[bytes], template: _Template, made: bytes, first: int) -> list[Item] | None:
    if not _is_regular(template):
        return None
    columns = _numbers(payloads, template)
    if columns is not None:
        return [EventBlock(first, payloads, template, made, columns)]
    blocks: list[Item] = []
    for start in range(0, len(payloads), MOST_ROWS):
        part = payloads[start : start + MOST_ROWS]
        columns = _anything(part, template)
        if columns is None:
            return None
        blocks.append(EventBlock(first + start, part, template, made, columns))
    return blocks


def _is_regular(template: _Template) -> bool:
    """Return whether Events of it have all fields, and no key twice."""
    keys = frozenset(template.keys)
    has_filled = template.filled is not None
    names = (template.data, template.timestamps, template.filled or ())
    return (
        _NEEDED <= keys <= _FIELDS
        and ("filled" in keys) == has_filled
        and all(len(set(some)) == len(some) for some in names)
    )


def _anything(payloads: list[bytes], template: _Template) -> _Columns | None:
    """Return columns of whatever the Events hold; None if one of them is not as it should be."""
    rows = [decode(payload) for payload in payloads]
    if set(map(len, rows)) != {8}:
        return None
    _, _, _, seq_nums, times, data, stamps, filled = zip(*rows, strict=True)
    if set(map(type, seq_nums)) != {int} or set(map(type, times)) != {float}:
        return None
    if min(seq_nums) <= -_LARGEST or max(seq_nums) >= _LARGEST:
        return None
    marks: Any = filled if template.filled is not None else [[]] * len(rows)
    for names, lists in ((template.data, data), (template.timestamps, stamps), (template.filled or (), marks)):
        if set(map(type, lists)) != {list} or set(map(len, lists)) != {len(names)}:
            return None
    parts = [list(zip(*lists, strict=True)) for lists in (data, stamps, marks)]
    return _Columns(np.array(seq_nums, np.int64), np.array(times, np.float64), *parts)


# --- Events that hold only numbers -----------------------------------------------------------------------

_TYPES = {"f": float, "i": int, "b": bool}


def _numbers(payloads: list[bytes], template: _Template) -> _Columns | None:
    """Return columns of Events that hold nothing but numbers, without an object for each; None for other Events."""
    try:
        found = _by_layout(payloads, template)
    except (Irregular, IndexError):
        return None
    seq_nums, times = found[0], found[1]
    if len(seq_nums) and (seq_nums.min() <= -_LARGEST or seq_nums.max() >= _LARGEST):
        return None
    data = 2 + len(template.data)
    stamps = data + len(template.timestamps)
    return _Columns(seq_nums, times, found[2:data], found[data:stamps], found[stamps:])


def _by_layout(payloads: list[bytes], template: _Template) -> list[NDArray[Any]]:
    """Return the columns put together from payloads of each layout: integers take one to nine bytes.

    Rows of layouts that are rare are decoded one by one.
    """
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(map(len, payloads)):
        by_length.setdefault(length, []).append(row)
    allowed = 4 + len(payloads) // 64
    kinds = ""
    out: list[NDArray[Any]] = []
    rest: list[int] = []
    for length, numbers in sorted(by_length.items(), key=lambda item: -len(item[1])):
        lines = np.frombuffer(b"".join([payloads[row] for row in numbers]), np.uint8).reshape(-1, length)
        rows = np.array(numbers)
        while len(rows):
            if out and (not allowed or len(rows) < _FEWEST):
                rest += rows.tolist()
                break
            layout = Layout(lines[0].tobytes(), template)
            allowed -= 1
            fits = layout.fits(lines)
            all_fit = bool(fits.all())
            columns = layout.columns(lines if all_fit else lines[fits])
            if not out:
                if all_fit and len(rows) == len(payloads):
                    return columns
                kinds = layout.kinds
                out = [np.empty(len(payloads), column.dtype) for column in columns]
            elif layout.kinds != kinds:
                raise Irregular
            for whole, column in zip(out, columns, strict=True):
                whole[rows[fits]] = column
            lines, rows = lines[~fits], rows[~fits]
    if rest:
        _fill_in(out, kinds, rest, _anything([payloads[row] for row in rest], template))
    return out


def _fill_in(out: list[NDArray[Any]], kinds: str, rows: list[int], found: _Columns | None) -> None:
    """Put into the columns `out` what was decoded one by one, if it is of the same kinds."""
    if found is None:
        raise Irregular
    out[0][rows], out[1][rows] = found.seq_nums, found.times
    for whole, kind, values in zip(out[2:], kinds[2:], [*found.data, *found.timestamps, *found.filled], strict=True):
        if set(map(type, values)) != {_TYPES[kind]} or (kind == "i" and max(map(abs, values)) >= 2**63):
            raise Irregular
        whole[rows] = values
