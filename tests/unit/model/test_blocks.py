"""Documents decoded together are the documents decoded one by one.

If these fail, what is stored of a fast scan differs from what was sent: values move between events or change their
type, or a damaged batch that would have been refused is taken.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model import blocks
from flystore.model.blocks import DatumBlock, EventBlock, decode_batch
from flystore.model.encoding import encode
from flystore.model.errors import InvalidRequest
from flystore.model.frames import FrameDecoder, FrameEncoder, is_document
from flystore.testing.values import run_documents, same


@pytest.fixture(autouse=True)
def blocks_of_any_size(monkeypatch):
    monkeypatch.setattr(blocks, "_FEWEST", 1)


def payloads_of(documents):
    encoder = FrameEncoder()
    return [payload for name, doc in documents for payload in encoder.encode(name, doc)]


def one_by_one(payloads):
    decoder, found, digests = FrameDecoder(), [], []
    for payload in payloads:
        if is_document(payload):
            digests.append(decoder.digest(payload))
        document = decoder.decode(payload)
        if document is not None:
            found.append((len(found), *document))
    return found, digests


def taken_apart(items):
    found = []
    for item in items:
        found += item.documents() if isinstance(item, (EventBlock, DatumBlock)) else [item]
    return found


def rows_of(names, columns):
    lists = [column.tolist() if isinstance(column, np.ndarray) else list(column) for column in columns]
    assert len(lists) == len(names)
    return lists


def plain(value):
    """A number of numpy as the number of Python that it is."""
    return value.item() if isinstance(value, np.generic) and value.dtype.kind in "iuf" else value


def assert_columns_are_those_of(block, documents):
    events = [doc for _, _, doc in documents]
    assert [doc["descriptor"] for doc in events] == [block.descriptor] * len(block)
    assert same(block.seq_nums.tolist(), [doc["seq_num"] for doc in events])
    assert same(block.times.tolist(), [doc["time"] for doc in events])
    for field, names, columns in (
        ("data", block.data_keys, block.data),
        ("timestamps", block.timestamp_keys, block.timestamps),
        ("filled", block.filled_keys, block.filled),
    ):
        for name, column in zip(names, columns, strict=True):
            values = [doc[field][name] for doc in events]
            if isinstance(column, np.ndarray):
                assert column.dtype in (np.float64, np.int64, np.bool_)
                assert same(column.tolist(), [plain(value) for value in values])
            else:
                assert same(list(column), values)


@given(run_documents())
def test_any_documents_are_the_same_together_and_one_by_one(documents):
    payloads = payloads_of(documents)
    expected, digests = one_by_one(payloads)
    found = decode_batch(FrameDecoder(), payloads)

    assert same(taken_apart(found.items), expected)
    assert found.digests == digests
    for item in found.items:
        if isinstance(item, EventBlock):
            assert_columns_are_those_of(item, expected[item.first : item.first + len(item)])


integers = st.sampled_from([0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]) | (
    st.sampled_from([-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)])
)
small = st.integers(-40, 300)
floats = st.floats(allow_nan=True)
of_numpy = st.sampled_from([np.float64, np.float32, np.int16, np.uint8, np.int64, np.uint64, np.bool_])
columns = st.one_of(
    st.just(floats),
    st.just(small),
    st.just(integers),
    st.just(st.booleans()),
    st.just(small | floats),
    st.just(st.none() | floats),
    st.just(st.sampled_from(["", "on", "äöü"])),
    of_numpy.map(lambda kind: st.integers(0, 100).map(kind)),
    st.just(st.lists(st.integers(0, 3), max_size=2)),
)


@st.composite
def scans(draw):
    """Events of one descriptor, their values of a kind for each key, and sometimes of another."""
    keys = draw(st.dictionaries(st.sampled_from("abcdefghijklmnopqrs"), columns, max_size=18))
    filled = draw(st.sampled_from([None, {}, {"a": True}, {"a": False, "b": True}]))
    events = []
    for number in range(draw(st.integers(1, 40))):
        event = {
            "uid": draw(st.sampled_from(["u", "ü", "x" * 40])),
            "descriptor": "d",
            "seq_num": draw(st.sampled_from([number + 1, 10 * number, -1, 2**53, 1 << 40])),
            "time": draw(floats),
            "data": {key: draw(values) for key, values in keys.items()},
            "timestamps": dict.fromkeys(keys, draw(floats)),
        }
        if filled is not None:
            event["filled"] = filled
        events.append(("event", event))
    return events


@settings(max_examples=200, deadline=None)
@given(scans())
def test_columns_hold_each_events_own_values(documents):
    payloads = payloads_of(documents)
    expected, digests = one_by_one(payloads)
    found = decode_batch(FrameDecoder(), payloads)

    assert same(taken_apart(found.items), expected)
    assert found.digests == digests
    for item in found.items:
        if isinstance(item, EventBlock):
            assert_columns_are_those_of(item, expected[item.first : item.first + len(item)])


def event(number, **data):
    return (
        "event",
        {
            "uid": f"{number:036d}",
            "descriptor": "d",
            "seq_num": number,
            "time": number / 7,
            "data": data,
            "timestamps": dict.fromkeys(data, number / 3),
            "filled": {},
        },
    )


@pytest.mark.parametrize("kind", [float, int, bool, np.float64, np.int32])
def test_a_scan_of_numbers_is_one_block_without_an_object_for_each_value(kind):
    documents = [event(number, x=kind(number), y=0.5) for number in range(1, 3000)]
    (block,) = decode_batch(FrameDecoder(), payloads_of(documents)).items
    assert all(isinstance(column, np.ndarray) for column in (*block.data, *block.timestamps))
    assert block.data[0].tolist() == [kind(number) for number in range(1, 3000)]
    assert block.seq_nums.tolist() == list(range(1, 3000))


def test_layouts_that_are_rare_do_not_cost_a_scan_its_columns():
    values = [(number * 7919) % 70000 for number in range(2000)]
    documents = [event(number, a=value, b=70000 - value, c=value // 300) for number, value in enumerate(values)]
    (block,) = decode_batch(FrameDecoder(), payloads_of(documents)).items
    assert isinstance(block.data[0], np.ndarray)
    assert [column.tolist() for column in block.data] == [
        values,
        [70000 - value for value in values],
        [value // 300 for value in values],
    ]


def test_what_is_no_number_comes_in_blocks_of_bounded_size():
    documents = [event(number, x="text") for number in range(2500)]
    found = decode_batch(FrameDecoder(), payloads_of(documents)).items
    assert [len(block) for block in found] == [1024, 1024, 452]
    assert [block.first for block in found] == [0, 1024, 2048]


def test_a_template_that_takes_anothers_number_does_not_change_the_events_before_it():
    one, other = payloads_of([event(1, a=1.0)]), payloads_of([event(2, b=2.0)])
    found = decode_batch(FrameDecoder(), [*one, *other])
    assert [list(doc["data"]) for _, _, doc in taken_apart(found.items)] == [["a"], ["b"]]


# --- what does not make sense ----------------------------------------------------------------------


def outcome(work):
    try:
        return work()
    except InvalidRequest:
        return "refused"


def datum(number):
    return (
        "stream_datum",
        {
            "uid": f"r/{number}",
            "stream_resource": "r",
            "descriptor": "d",
            "indices": {"start": number, "stop": number + 1},
            "seq_nums": {"start": number + 1, "stop": number + 2},
        },
    )


FAST = {
    "numbers": [event(number, x=number / 3, n=number, on=True, y=np.float64(1)) for number in range(1, 9)],
    "texts": [event(number, x="äö", wave=[1, 2]) for number in range(1, 9)],
    "datums": [datum(number) for number in range(8)],
}


@pytest.mark.parametrize("kind", FAST)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_payload_is_refused_together_if_it_is_alone(kind, data):
    payloads = payloads_of(FAST[kind])
    number = data.draw(st.integers(len(payloads) - 8, len(payloads) - 1))
    at = data.draw(st.integers(2, len(payloads[number]) - 1))
    cut = data.draw(st.integers(0, 2))
    put = data.draw(st.binary(max_size=3) | st.sampled_from([b"\xc0", b"\xcb", b"\xff", b"\x80", b"\x01"]))
    payloads[number] = payloads[number][:at] + put + payloads[number][at + cut :]

    expected = outcome(lambda: one_by_one(payloads))
    found = outcome(lambda: decode_batch(FrameDecoder(), payloads))
    if expected == "refused" or found == "refused":
        assert found == expected
        return
    assert same(taken_apart(found.items), expected[0])
    assert found.digests == expected[1]


@pytest.mark.parametrize(
    "template",
    [
        [1, 0, ["uid", "descriptor", "seq_num", "time", "data", "timestamps"], "d", ["a", "a"], [], None],
        [1, 0, ["uid", "descriptor", "seq_num", "time", "timestamps"], "d", ["a", "b"], [], None],
        [1, 0, ["uid", "descriptor", "seq_num", "time", "data", "timestamps", "filled"], "d", ["a", "b"], [], None],
    ],
)
def test_odd_templates_give_what_they_give_one_by_one(template):
    payloads = [encode(template), *(encode([2, 0, "u", n, 0.5, [1.0, 2.0], [], None]) for n in range(5))]
    expected = outcome(lambda: one_by_one(payloads)[0])
    found = outcome(lambda: taken_apart(decode_batch(FrameDecoder(), payloads).items))
    assert found == expected


def test_stream_datums_come_as_structs_that_say_the_same():
    documents = [datum(number) for number in range(5)]
    (block,) = decode_batch(FrameDecoder(), payloads_of(documents)).items
    assert [(each.indices.start, each.seq_nums.stop) for each in block.datums] == [(n, n + 2) for n in range(5)]
    assert [doc for _, _, doc in block.documents()] == [doc for _, doc in documents]


@pytest.mark.parametrize(
    "odd", [{"indices": {"start": 1.0, "stop": 2}}, {"extra": 1}, {"seq_nums": None}, {"uid": 3}, {"descriptor": None}]
)
def test_a_stream_datum_that_is_odd_keeps_what_it_says(odd):
    documents = [datum(0), ("stream_datum", {**datum(1)[1], **odd}), datum(2)]
    found = decode_batch(FrameDecoder(), payloads_of(documents)).items
    assert not any(isinstance(item, DatumBlock) for item in found)
    assert [(name, doc) for _, name, doc in found] == documents
