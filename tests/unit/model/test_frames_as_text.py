"""Frames are read in bulk, and documents that are only encoded again are not made into dictionaries first.

If these fail, an export of a run differs from its documents, or a damaged frame passes for a good one.
"""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.errors import InvalidRequest
from flystore.model.frames import FrameDecoder, FrameEncoder, frame, payloads_in, scan
from flystore.testing.documents import runs


def as_json(value):
    return msgspec.json.encode(value, enc_hook=lambda odd: odd.tolist() if hasattr(odd, "tolist") else repr(odd))


def decoded(payloads, **options):
    decoder = FrameDecoder(**options)
    return [found for payload in payloads if (found := decoder.decode(payload)) is not None]


def encoded(documents):
    encoder = FrameEncoder()
    return [payload for name, doc in documents for payload in encoder.encode(name, doc)]


@given(runs())
def test_documents_read_as_text_give_the_text_of_documents(documents):
    payloads = encoded(documents)

    assert [as_json(one) for one in decoded(payloads, as_text=True)] == [as_json(one) for one in decoded(payloads)]


EVENT = {
    "seq_num": 1,
    "time": 1.5,
    "uid": "e",
    "data": {"x": np.arange(3), "y": float("nan"), "z": (1, 2), "w": None},
    "timestamps": {"x": 1.0, "y": 2.0, "z": 3.0, "w": 4.0},
    "filled": {"x": True},
    "descriptor": "d",
}


@pytest.mark.parametrize(
    "event",
    [
        EVENT,
        {key: EVENT[key] for key in EVENT if key != "filled"},
        {**EVENT, "data": {}, "timestamps": {}},
        {**EVENT, "data": {'a"b': 1, "c\\d": 2, "e\nf": 3, "é": 4, "": 5}},
        {**EVENT, "data": {f"key_{number}": number for number in range(300)}},
        {**EVENT, "data": {"key_1": 1, "key_0": 0}},
    ],
)
def test_an_event_as_text_has_the_keys_and_values_of_the_event_in_their_order(event):
    payloads = encoded([("event", event), ("event", event)])
    text = decoded(payloads, as_text=True)

    assert [as_json(one) for one in text] == [as_json(one) for one in decoded(payloads)]
    assert list(msgspec.json.decode(as_json(text[0][1]))) == list(event)


@pytest.mark.parametrize("spoil", [lambda row: row[:-1], lambda row: [*row, 1], lambda row: [*row[:5], [1], *row[6:]]])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_row_that_does_not_fit_its_template_is_refused_either_way(as_text, spoil):
    template, row = encoded([("event", EVENT)])
    decoder = FrameDecoder(as_text=as_text)
    decoder.decode(template)
    spoilt = msgspec.msgpack.encode(spoil(msgspec.msgpack.decode(row)))

    with pytest.raises(InvalidRequest):
        decoder.decode(spoilt)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_payloads_read_in_bulk_are_those_that_a_scan_finds(payloads, data):
    buffer = b"".join(map(frame, payloads))
    if buffer and data.draw(st.booleans(), label="damage it"):
        at = data.draw(st.integers(0, len(buffer) - 1))
        buffer = buffer[:at] + bytes([buffer[at] ^ 1 << data.draw(st.integers(0, 7))]) + buffer[at + 1 :]
    buffer = buffer[: data.draw(st.integers(0, len(buffer)), label="cut")]
    found = scan(buffer)

    assert payloads_in(buffer) == ([buffer[start:stop] for start, stop in found.spans], found.valid)
