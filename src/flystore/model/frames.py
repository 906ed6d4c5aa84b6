"""Frames: documents as the journal, the wire and the log carry them, byte for byte the same.

A frame is

    length  u32 little-endian   bytes of payload
    crc     u32 little-endian   CRC-32C of payload
    payload msgpack array       its first element is the kind

=====  ======================================================================================
kind   payload
=====  ======================================================================================
0      ``[0, name, document]``                a document as it is
1      ``[1, id, keys, descriptor, data keys, timestamp keys, filled keys]``   a template
2      ``[2, id, uid, seq_num, time, data, timestamps, filled]``   an event against a template
=====  ======================================================================================

Events of one descriptor repeat their key names; a template holds them once and the event is a row
of values. An event that does not fit (an extra field, keys that are no strings) goes verbatim. The
*ordinal* of a document is its index in its run, from 0 (the start); templates have none.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import google_crc32c
import msgspec
import numpy as np

from .encoding import _PACK, _PLAIN, _WRAPPERS, decode, encode, is_plain, prepare
from .errors import Damaged, InvalidRequest

HEADER = struct.Struct("<II")
DIGEST_BYTES = 16
MAX_PAYLOAD_BYTES = 1 << 30
"""A longer frame is taken for a bad length, not read."""

MAX_TEMPLATES = 256
"""Per run; a run whose events differ more than that goes on verbatim, so state stays small."""

_DOCUMENT, _TEMPLATE, _ROW = 0, 1, 2
_COUNTS = {bytes((0x90 + members, kind)): int(kind != _TEMPLATE) for members in range(16) for kind in range(_ROW + 1)}
_FIELDS = frozenset({"uid", "descriptor", "seq_num", "time", "data", "timestamps", "filled"})
_NEEDED = _FIELDS - {"filled"}

FRAMES_MIMETYPE = "application/x-flystore-frames"


def frame(payload: bytes) -> bytes:
    """Return `payload`, which must not be empty, with its length and checksum in front."""
    return HEADER.pack(len(payload), google_crc32c.value(payload)) + payload


def framed(payloads: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the frames of payloads one after another, and how many of them are documents.

    Raises
    ------
    InvalidRequest
        If one of them begins like no payload.
    """
    if len(payloads) == 1 and (known := _COUNTS.get(payloads[0][:2])) is not None:
        # The usual case, at each event of a scan.
        (payload,) = payloads
        return HEADER.pack(len(payload), google_crc32c.value(payload)) + payload, known
    pieces: list[bytes] = []
    documents = 0
    for payload in payloads:
        count = _COUNTS.get(payload[:2])
        documents += is_document(payload) if count is None else count
        pieces += (HEADER.pack(len(payload), google_crc32c.value(payload)), payload)
    return b"".join(pieces), documents


class Scan(NamedTuple):
    """What `scan` found.

    Attributes
    ----------
    spans : list of (int, int)
        Start and stop offset of each good payload.
    valid : int
        Length in bytes of the prefix that is whole and good.
    problem : str or None
        Why it ends there; None if the buffer ends with a whole frame.
    torn : bool
        True if the buffer just ends inside a frame or in zeros, as after a power cut; False for damage.
    """

    spans: list[tuple[int, int]]
    valid: int
    problem: str | None
    torn: bool


def scan(buffer: bytes | bytearray | memoryview) -> Scan:
    """Walk the frames of `buffer` until it ends or one is bad; never raises."""
    view = memoryview(buffer)
    spans: list[tuple[int, int]] = []
    at, end = 0, len(view)
    while at < end:
        if end - at < HEADER.size:
            return Scan(spans, at, f"frame {len(spans)} at offset {at} ends inside its header", True)
        length, crc = HEADER.unpack_from(view, at)
        start = at + HEADER.size
        if length == 0:
            # Nothing but zeros is what a power cut leaves where a file grew and its data was not written.
            zeros = not np.frombuffer(view[at:], np.uint8).any()
            return Scan(spans, at, f"frame {len(spans)} at offset {at} is empty", zeros)
        if length > MAX_PAYLOAD_BYTES:
            return Scan(spans, at, f"frame {len(spans)} at offset {at} claims {length} bytes", False)
        if start + length > end:
            missing = start + length - end
            return Scan(spans, at, f"frame {len(spans)} at offset {at} lacks its last {missing} bytes", True)
        if google_crc32c.value(bytes(view[start : start + length])) != crc:
            # A wrong checksum on the very last frame is what a cut inside its pages looks like.
            last = start + length == end
            return Scan(spans, at, f"frame {len(spans)} at offset {at} fails its checksum", last)
        spans.append((start, start + length))
        at = start + length
    return Scan(spans, at, None, False)


def split_frames(buffer: bytes | bytearray | memoryview, *, where: str = "") -> Iterator[tuple[int, memoryview]]:
    """Yield (offset of the frame, payload) for each frame.

    Raises
    ------
    Damaged
        At the first frame that is cut or fails its checksum; names `where`, frame and offset.
    """
    view = memoryview(buffer)
    found = scan(view)
    for start, stop in found.spans:
        yield start - HEADER.size, view[start:stop]
    if found.problem is not None:
        raise Damaged(f"{where}: {found.problem}" if where else found.problem, where=where, offset=found.valid)


def payloads_in(buffer: bytes) -> tuple[list[bytes], int]:
    """Return the payloads of the good frames that `buffer` begins with, and where these end: if all are, its length.

    What `scan` finds, for whoever wants the payloads and not their places: half the time.
    """
    payloads: list[bytes] = []
    unpack, crc_of, skipped = HEADER.unpack_from, google_crc32c.value, HEADER.size
    at, end = 0, len(buffer)
    while at + skipped < end:
        length, crc = unpack(buffer, at)
        stop = at + skipped + length
        if not 0 < length <= MAX_PAYLOAD_BYTES or stop > end:
            break
        payload = buffer[at + skipped : stop]
        if crc_of(payload) != crc:
            break
        payloads.append(payload)
        at = stop
    return payloads, at


def kind_of(payload: bytes | memoryview) -> int:
    """Return the kind of a payload without decoding it.

    Raises
    ------
    InvalidRequest
        If it does not begin like a payload.
    """
    if len(payload) < 2 or payload[0] & 0xF0 != 0x90 or payload[1] > _ROW:
        raise InvalidRequest("a frame's payload begins like no document and no template")
    return payload[1]


def is_document(payload: bytes | memoryview) -> bool:
    """Return whether a payload has an ordinal; looks at two bytes."""
    return kind_of(payload) != _TEMPLATE


_PLACES = {"uid": 2, "descriptor": 1, "seq_num": 3, "time": 4, "data": 5, "timestamps": 6, "filled": 7}
"""Where in a row the value of each key of an event is; the template's number makes room for the descriptor."""

_ROW_FIELDS = 8
_SMALL, _ONE_BYTE = 0x80, 0xCC  # numbers below are their own msgpack, those above follow this byte


class _Template(NamedTuple):
    id: int
    keys: tuple[str, ...]
    descriptor: str
    data: tuple[str, ...]
    timestamps: tuple[str, ...]
    filled: tuple[str, ...] | None


_Shape = tuple[int, list[str], list[str], list[str], list[str] | None]
"""Id and names of a template, as lists: what a document's keys are compared with at each event."""


class FrameEncoder:
    """Turns the documents of one run into payloads; remembers the templates it made."""

    def __init__(self) -> None:
        self._shapes: dict[str, _Shape] = {}
        self._made: dict[_Template, _Template] = {}

    def encode(self, name: str, doc: Mapping[str, Any]) -> list[bytes]:
        """Return the payloads of one document: itself, or a new template and itself. Never refuses."""
        if name == "event":
            encoded = self._encode_like_the_last(doc) or self._encode_event(doc)
            if encoded is not None:
                return encoded
        elif name == "stream_datum" and type(doc) is dict and is_plain(doc):
            # Thousands a second may come, and nearly all are so.
            try:
                return [_PACK((_DOCUMENT, name, doc))]
            except (OverflowError, UnicodeEncodeError):
                pass
        return [encode([_DOCUMENT, name, doc])]

    def _encode_like_the_last(self, doc: Mapping[str, Any]) -> list[bytes] | None:
        """Return the event as a row if its shape is that of the last of its descriptor; else None.

        A plan waits for this at each event, so the usual case is one function without calls.
        """
        try:
            number, keys, columns, stamped, marked = self._shapes[doc["descriptor"]]
            data, timestamps, filled = doc["data"], doc["timestamps"], doc.get("filled")
            uid, seq_num, time = doc["uid"], doc["seq_num"], doc["time"]
            if (
                [*doc] != keys
                or [*data] != columns
                or [*timestamps] != stamped
                or (None if filled is None else [*filled]) != marked
                or type(uid) is not str
                or type(seq_num) is not int
                or type(time) is not float
            ):
                return None
            row = [
                _ROW,
                number,
                uid,
                seq_num,
                time,
                [*data.values()] if _PLAIN.issuperset(map(type, data.values())) else _values(data),
                [*timestamps.values()] if _PLAIN.issuperset(map(type, timestamps.values())) else _values(timestamps),
                None if filled is None else [] if not filled else _values(filled),
            ]
            return [_PACK(row)]
        except (KeyError, AttributeError, TypeError, OverflowError, UnicodeEncodeError):
            return None

    def _encode_event(self, doc: Mapping[str, Any]) -> list[bytes] | None:
        """Return the event as a row, with its template if that is new, or None if it does not fit one."""
        try:
            data, timestamps, filled = doc["data"], doc["timestamps"], doc.get("filled")
            template, new = self._template_for(doc)
            if template is None:
                return None
            row = [
                _ROW,
                template.id,
                doc["uid"],
                doc["seq_num"],
                doc["time"],
                _values(data),
                _values(timestamps),
                None if filled is None else _values(filled),
            ]
            if not _PLAIN.issuperset(map(type, row[2:5])):
                row[2:5] = [prepare(value) for value in row[2:5]]
            payload = _PACK(row)
        except (KeyError, AttributeError, TypeError, OverflowError, UnicodeEncodeError):
            # Whatever is odd about it, verbatim holds it; the projection says what is odd.
            return None
        self._shapes[template.descriptor] = (
            template.id,
            list(template.keys),
            list(template.data),
            list(template.timestamps),
            None if template.filled is None else list(template.filled),
        )
        if new is None:
            return [payload]
        # Only now: a template that is not sent must not be referred to later.
        self._made[template._replace(id=0)] = template
        return [new, payload]

    def _template_for(self, doc: Mapping[str, Any]) -> tuple[_Template | None, bytes | None]:
        """Return a template that fits, and its payload if it is new; (None, None) if none can."""
        keys = tuple(doc)
        data, timestamps, filled = doc["data"], doc["timestamps"], doc.get("filled")
        if not (_NEEDED <= set(keys) <= _FIELDS) or ("filled" in doc and filled is None):
            return None, None
        names = (*data, *timestamps, *(filled or ()), doc["descriptor"])
        if not all(type(name) is str for name in names):
            return None, None
        wanted = _Template(
            0,
            keys,
            doc["descriptor"],
            tuple(data),
            tuple(timestamps),
            None if filled is None else tuple(filled),
        )
        known = self._made.get(wanted)
        if known is not None:
            return known, None
        if len(self._made) >= MAX_TEMPLATES:
            return None, None
        made = wanted._replace(id=len(self._made))
        return made, _PACK([_TEMPLATE, *made])


def _values(mapping: Mapping[str, Any]) -> list[Any]:
    values = list(mapping.values())
    if _PLAIN.issuperset(map(type, values)):
        return values
    # What `prepare` does, with one call less for each value that a detector gives as a number of numpy.
    wrapper_of = _WRAPPERS.get
    return [
        value
        if (kind := type(value)) in _PLAIN
        else prepare(value)
        if (wrap := wrapper_of(kind)) is None
        else wrap(value, False, 0)
        for value in values
    ]


class FrameDecoder:
    """Turns the payloads of one run back into documents.

    Parameters
    ----------
    templates : dict of int to bytes, optional
        Payloads of templates met before, by id: what `templates` was when decoding stopped.
    as_text : bool
        For documents that are only encoded again, with msgspec: events may then be structs instead of dictionaries,
        which are made in half the time and give the same text.
    """

    def __init__(self, templates: Mapping[int, bytes] | None = None, *, as_text: bool = False) -> None:
        self.templates: dict[int, bytes] = {}
        self._makers: dict[int, _Maker] = {}
        self._maker_of = _text_maker_of if as_text else _maker_of
        self._keys: dict[int, bytes] = {}
        for payload in (templates or {}).values():
            self._learn(payload)

    def decode(self, payload: bytes | memoryview) -> tuple[str, dict[str, Any]] | None:
        """Return (name, document), or None if the payload is a template, which is kept.

        Raises
        ------
        InvalidRequest
            If the payload is none of the kinds, or its template was never seen.
        """
        kind = kind_of(payload)
        if kind == _TEMPLATE:
            self._learn(payload)
            return None
        fields = decode(payload)
        if kind == _DOCUMENT:
            if len(fields) != 3 or not isinstance(fields[1], str) or not isinstance(fields[2], dict):
                raise InvalidRequest("a document frame holds no name and mapping")
            return fields[1], fields[2]
        return "event", self._event(fields)

    def digest(self, payload: bytes | memoryview) -> bytes:
        """Return 16 bytes that tell this document from another; a row's template counts as part of it."""
        if kind_of(payload) != _ROW:
            return hashlib.blake2b(payload, digest_size=DIGEST_BYTES).digest()
        return hashlib.blake2b(payload, digest_size=DIGEST_BYTES, key=self._key(payload)).digest()

    def digests(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Return the digest of each of several documents of one kind; if they are rows, of one template.

        Raises
        ------
        InvalidRequest
            If they are rows of a template that was never seen.
        """
        if kind_of(payloads[0]) == _ROW:
            start = hashlib.blake2b(digest_size=DIGEST_BYTES, key=self._key(payloads[0]))
        else:
            start = hashlib.blake2b(digest_size=DIGEST_BYTES)
        found = []
        for payload in payloads:
            state = start.copy()
            state.update(payload)
            found.append(state.digest())
        return found

    def template_of(self, payload: bytes) -> "tuple[_Template, bytes] | None":
        """Return the template of a row, and the template's own payload; None if it is no row or names none plainly."""
        if kind_of(payload) != _ROW or len(payload) <= _ROW_FIELDS:
            return None
        number = payload[3] if payload[2] == _ONE_BYTE else payload[2]
        if number not in self.templates or (number >= _SMALL) != (payload[2] == _ONE_BYTE):
            return None
        return msgspec.convert(decode(self.templates[number])[1:], _Template), self.templates[number]

    def _key(self, payload: bytes | memoryview) -> bytes:
        number = -1
        if len(payload) > 3:
            number = payload[3] if payload[2] == 0xCC else payload[2]
        try:
            return self._keys[number]
        except KeyError:
            raise InvalidRequest(
                f"an event refers to template {number}, which was never sent", template=number
            ) from None

    def _learn(self, payload: bytes | memoryview) -> None:
        raw = bytes(payload)
        try:
            fields = msgspec.convert(decode(raw)[1:], _Template)
        except (msgspec.ValidationError, TypeError) as error:
            raise InvalidRequest(f"a template frame is malformed: {error}") from error
        if not 0 <= fields.id < MAX_TEMPLATES:
            raise InvalidRequest(f"template {fields.id} is beyond the {MAX_TEMPLATES} a run may have")
        self.templates[fields.id] = raw
        self._makers[fields.id] = self._maker_of(fields)
        self._keys[fields.id] = hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()

    def _event(self, fields: list[Any]) -> Any:
        try:
            if len(fields) != _ROW_FIELDS:
                raise ValueError(f"{len(fields)} fields")
            return self._makers[fields[1]](fields)
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidRequest(f"an event does not fit its template: {error!r}") from error


_Maker = Callable[[list[Any]], Any]
"""Makes an event of a row; raises ValueError or TypeError for one that does not fit."""


def _maker_of(template: _Template) -> _Maker:
    """Return what makes events of a template's rows as dictionaries."""
    in_order = _in_order_of(template)

    def make(fields: list[Any]) -> dict[str, Any]:
        fields[1] = template.descriptor
        fields[5] = dict(zip(template.data, fields[5], strict=True))
        fields[6] = dict(zip(template.timestamps, fields[6], strict=True))
        if template.filled is not None:
            fields[7] = dict(zip(template.filled, fields[7], strict=True))
        return dict(zip(template.keys, in_order(fields), strict=True))

    return make


def _text_maker_of(template: _Template) -> _Maker:
    """Return what makes events that can be encoded: structs, or dictionaries where a key cannot be a struct's."""
    in_order = _in_order_of(template)
    try:
        whole, data, timestamps = (_struct_of(keys) for keys in (template.keys, template.data, template.timestamps))
        filled = None if template.filled is None else _struct_of(template.filled)
    except ValueError:
        return _maker_of(template)

    def make(fields: list[Any]) -> Any:
        fields[1] = template.descriptor
        fields[5] = data(*fields[5])
        fields[6] = timestamps(*fields[6])
        if filled is not None:
            fields[7] = filled(*fields[7])
        return whole(*in_order(fields))

    return make


def _struct_of(keys: tuple[str, ...]) -> type[msgspec.Struct]:
    names = [f"key_{number}" for number in range(len(keys))]
    return msgspec.defstruct(
        "Part", [(name, Any) for name in names], rename=dict(zip(names, keys, strict=True)), frozen=True, gc=False
    )


def _in_order_of(template: _Template) -> Callable[[list[Any]], Sequence[Any]]:
    """Return what takes the values of an event's keys out of a row, in their order."""
    known = _FIELDS if template.filled is not None else _FIELDS - {"filled"}
    if len(template.keys) > 1 and known.issuperset(template.keys):
        return itemgetter(*(_PLACES[key] for key in template.keys))

    def refuse(fields: list[Any]) -> Sequence[Any]:
        raise ValueError(f"no event has the keys {template.keys}")

    return refuse
