"""Frames carry a run's documents whole and in order, or say where they are bad.

If these fail, a journal or a batch on the wire gives back other documents than went in, or damage passes
unseen.
"""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.model.encoding import encode
from flystore.model.errors import Damaged, InvalidRequest
from flystore.model.frames import (
    DIGEST_BYTES,
    HEADER,
    MAX_PAYLOAD_BYTES,
    MAX_TEMPLATES,
    FrameDecoder,
    FrameEncoder,
    frame,
    framed,
    is_document,
    kind_of,
    scan,
    split_frames,
)
from flystore.testing.values import run_documents, same

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "encoding.json").read_text())


def an_event(seq_num=1, descriptor="d", **data):
    data = data or {"det": 0.5}
    return {
        "descriptor": descriptor,
        "uid": f"e{seq_num}",
        "data": data,
        "timestamps": dict.fromkeys(data, 1.0),
        "seq_num": seq_num,
        "filled": {},
        "time": 2.0,
    }


DOCUMENTS = [
    ("start", {"uid": "r", "time": 1.0, "plan_args": {"detectors": ("det",)}}),
    ("event", an_event(1, det=0.5, img="datum/0")),
    ("event", an_event(2, det=1.5, img="datum/1")),
    ("event", {**an_event(3), "odd": 1}),
    ("stop", {"uid": "s", "run_start": "r", "exit_status": "success", "time": 3.0}),
]


def payloads_of(documents):
    encoder = FrameEncoder()
    return [payload for name, doc in documents for payload in encoder.encode(name, doc)]


def decoded(payloads, templates=None):
    decoder = FrameDecoder(templates)
    return [found for found in map(decoder.decode, payloads) if found is not None]


def test_stored_frames_are_the_same_bytes_for_ever():
    assert [frame(payload).hex() for payload in payloads_of(DOCUMENTS)] == GOLDEN["frames"]


def test_frames_written_by_an_earlier_release_are_still_read():
    buffer = bytes.fromhex("".join(GOLDEN["frames"]))
    found = decoded([payload for _, payload in split_frames(buffer)])
    assert same(found, DOCUMENTS)


def test_the_golden_frames_hold_every_kind():
    kinds = [kind_of(payload) for _, payload in split_frames(bytes.fromhex("".join(GOLDEN["frames"])))]
    assert kinds == [0, 1, 2, 2, 0, 0]


# --- documents in, documents out ------------------------------------------------------------------


@given(run_documents())
def test_any_documents_come_back_the_same_and_in_order(documents):
    assert same(decoded(payloads_of(documents)), documents)


@given(run_documents(), st.integers(0, 30))
def test_decoding_goes_on_from_the_templates_met_before(documents, stop):
    payloads = payloads_of(documents)
    first, rest = FrameDecoder(), payloads[stop:]
    found = [first.decode(payload) for payload in payloads[:stop]]
    found += decoded(rest, first.templates)
    assert same([document for document in found if document is not None], documents)


def test_the_names_of_an_events_keys_are_sent_once():
    encoder = FrameEncoder()
    first, second = encoder.encode("event", an_event(1)), encoder.encode("event", an_event(2))
    assert [kind_of(payload) for payload in first + second] == [1, 2, 2]
    assert b"timestamps" not in second[0]


def test_events_that_take_turns_between_two_shapes_use_two_templates():
    encoder = FrameEncoder()
    kinds = [
        kind_of(payload)
        for seq_num in range(1, 7)
        for payload in encoder.encode("event", an_event(seq_num, **({"a": 1} if seq_num % 2 else {"b": 2})))
    ]
    assert kinds == [1, 2, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "odd",
    [
        {"data": {"det": 1 << 70}},
        {"data": {"det": "\ud800"}},
        {"data": ["det"]},
        {"data": None},
        {"timestamps": None},
        {"filled": None},
        {"filled": ["det"]},
        {"descriptor": None},
        {"descriptor": ["d"]},
        {"data": {1: 2}},
        {"data": {"\udcff": 2}},
        {"seq_num": 1 << 70},
        {"extra": 1},
    ],
)
def test_an_odd_event_comes_back_and_does_not_spoil_the_next(odd):
    documents = [("event", {**an_event(1), **odd}), ("event", an_event(2)), ("event", an_event(3))]
    assert same(decoded(payloads_of(documents)), documents)


@pytest.mark.parametrize("name", ["uid", "descriptor", "data", "timestamps", "seq_num", "time", "filled"])
def test_an_event_that_lacks_a_field_comes_back_without_it(name):
    odd = an_event(1)
    del odd[name]
    documents = [("event", odd), ("event", an_event(2))]
    assert same(decoded(payloads_of(documents)), documents)


def test_a_run_whose_events_all_differ_goes_on_verbatim():
    documents = [("event", an_event(n, **{f"key{n}": n})) for n in range(MAX_TEMPLATES + 10)]
    payloads = payloads_of(documents)
    assert sum(not is_document(payload) for payload in payloads) == MAX_TEMPLATES
    assert same(decoded(payloads), documents)


# --- digests --------------------------------------------------------------------------------------


def digests_of(documents):
    decoder, found = FrameDecoder(), []
    for payload in payloads_of(documents):
        if decoder.decode(payload) is not None:
            found.append(decoder.digest(payload))
    return found


@given(run_documents())
def test_encoding_again_gives_the_same_digests(documents):
    assert digests_of(documents) == digests_of(documents)


def test_a_digest_tells_events_of_different_keys_apart_though_their_rows_are_equal():
    one, other = digests_of([("event", an_event(a=1))]), digests_of([("event", an_event(b=1))])
    assert payloads_of([("event", an_event(a=1))])[1] == payloads_of([("event", an_event(b=1))])[1]
    assert one != other
    assert len(one[0]) == DIGEST_BYTES


def test_digests_work_for_every_template_a_run_may_have():
    documents = [("event", an_event(n, **{f"key{n}": n})) for n in range(MAX_TEMPLATES)]
    assert len(set(digests_of(documents))) == MAX_TEMPLATES


# --- bad payloads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x93",
        b"\x80\x00",
        b"\x93\x03\x00\x00",
        b"\x98\x02",
        b"\x98\x02\xcc",
        encode([0, "start"]),
        encode([0, 1, {}]),
        encode([0, "start", []]),
        encode([1, 0]),
        encode([1, MAX_TEMPLATES, ["uid"], "d", [], [], None]),
        encode([1, -1, ["uid"], "d", [], [], None]),
        encode([1, 0, "uid", "d", [], [], None]),
        encode([2, 0, "uid", 1, 0.0, [1], [1.0], None]),
    ],
)
def test_a_payload_that_makes_no_sense_is_refused(payload):
    decoder = FrameDecoder()
    with pytest.raises(InvalidRequest):
        decoder.decode(payload)
    assert decoder.templates == {}


@pytest.mark.parametrize(
    "row", [["uid", 1, 0.0, [], [1.0], {}], ["uid", 1, 0.0, None, [1.0], []], ["uid", 1, 0.0, [1], [1.0]]]
)
def test_a_row_that_does_not_fit_its_template_is_refused(row):
    template, _ = FrameEncoder().encode("event", an_event())
    with pytest.raises(InvalidRequest, match="does not fit"):
        decoded([template, encode([2, 0, *row])])


@given(st.binary(max_size=40), st.booleans())
def test_random_payloads_are_refused_or_decoded(noise, row):
    template, _ = FrameEncoder().encode("event", an_event())
    decoder = FrameDecoder({0: template})
    payload = (b"\x98\x02" if row else b"") + noise
    for work in (decoder.decode, decoder.digest):
        try:
            work(payload)
        except InvalidRequest:
            continue


# --- walking frames -------------------------------------------------------------------------------

some_payloads = st.lists(st.binary(min_size=1, max_size=30), max_size=8)


@given(some_payloads)
def test_what_is_framed_is_split_again(payloads):
    buffer = b"".join(map(frame, payloads))
    found = list(split_frames(buffer))
    assert [bytes(payload) for _, payload in found] == payloads
    starts = [0]
    for payload in payloads:
        starts.append(starts[-1] + HEADER.size + len(payload))
    assert [offset for offset, _ in found] == starts[:-1]
    assert scan(buffer).valid == len(buffer)
    assert scan(buffer).problem is None


@given(some_payloads.filter(bool), st.data())
def test_every_cut_leaves_a_prefix(payloads, data):
    buffer = b"".join(map(frame, payloads))
    cut = data.draw(st.integers(0, len(buffer)))
    found = scan(buffer[:cut])
    kept = [buffer[start:stop] for start, stop in found.spans]
    assert kept == payloads[: len(kept)]
    assert found.valid == len(b"".join(map(frame, kept)))
    at_an_edge = found.valid == cut
    assert found.torn is not at_an_edge
    assert (found.problem is None) is at_an_edge


@given(some_payloads.filter(bool), st.data())
def test_a_flipped_bit_is_found_in_its_frame(payloads, data):
    buffer = bytearray(b"".join(map(frame, payloads)))
    bit = data.draw(st.integers(0, 8 * len(buffer) - 1))
    buffer[bit // 8] ^= 1 << bit % 8
    found = scan(buffer)
    assert found.problem is not None
    kept = [bytes(buffer[start:stop]) for start, stop in found.spans]
    assert kept == payloads[: len(kept)]
    assert found.valid <= bit // 8


def test_damage_before_the_last_frame_is_not_taken_for_a_power_cut():
    buffer = bytearray(b"".join(map(frame, payloads_of(DOCUMENTS))))
    buffer[HEADER.size + 3] ^= 1
    found = scan(buffer)
    assert not found.torn
    assert "frame 0 at offset 0" in found.problem


def test_a_length_beyond_reason_is_damage_and_not_read():
    found = scan(HEADER.pack(MAX_PAYLOAD_BYTES + 1, 0) + b"rest")
    assert (found.torn, found.valid) == (False, 0)


def test_zeros_at_the_end_are_what_a_power_cut_leaves_and_no_frames():
    whole = b"".join(map(frame, payloads_of(DOCUMENTS)))
    found = scan(whole + bytes(4096))
    assert found.valid == len(whole)
    assert found.torn
    assert len(found.spans) == len(payloads_of(DOCUMENTS))


def test_zeros_before_other_bytes_are_damage():
    one = frame(payloads_of(DOCUMENTS)[0])
    found = scan(one + bytes(64) + one)
    assert (found.torn, found.valid) == (False, len(one))


def test_splitting_names_the_place_and_gives_what_came_before():
    one = frame(payloads_of(DOCUMENTS)[0])
    walk = split_frames(one + one[:-1], where="segment 7")
    assert next(walk)[0] == 0
    with pytest.raises(Damaged, match=rf"segment 7: frame 1 at offset {len(one)} lacks its last 1 bytes") as caught:
        next(walk)
    assert caught.value.offset == len(one)


def test_no_frames_at_all_are_no_error():
    assert list(split_frames(b"")) == []


@given(run_documents())
def test_the_frames_of_several_payloads_are_their_frames_joined_and_templates_do_not_count(documents):
    payloads = payloads_of(documents)
    data, count = framed(payloads)
    assert data == b"".join(frame(payload) for payload in payloads)
    assert count == len(documents)


@pytest.mark.parametrize("payload", [b"", b"\x93", b"\xc0\xc0", b"\x93\x03x"])
def test_what_begins_like_no_payload_is_not_framed(payload):
    with pytest.raises(InvalidRequest):
        framed([encode([0, "start", {}]), payload])


@pytest.mark.parametrize(
    "kind", [np.bool_, np.int8, np.uint32, np.int64, np.float16, np.float32, np.float64, np.complex128]
)
def test_numbers_of_numpy_in_a_row_are_what_they_are_in_a_document(kind):
    events = [an_event(seq_num, plain=0.5, odd=kind(seq_num)) for seq_num in (1, 2)]
    for event, (_, found) in zip(events, decoded(payloads_of([("event", event) for event in events])), strict=True):
        assert type(found["data"]["odd"]) is kind
        assert same(found, event)


def test_an_event_whose_number_is_odd_is_a_row_all_the_same():
    encoder = FrameEncoder()
    encoder.encode("event", an_event(1))
    (payload,) = encoder.encode("event", {**an_event(2), "seq_num": np.int64(2)})
    assert kind_of(payload) == 2
