"""The tree of a run does not depend on whether its documents were taken in one by one or in blocks.

If these fail, a run that came fast looks different from the same run that came slowly, and a rebuild changes it.
"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.model import blocks
from flystore.model.blocks import DatumBlock, EventBlock, decode_batch
from flystore.model.frames import FrameDecoder, FrameEncoder
from flystore.projection import RunState, advance
from flystore.projection._state import EXACT_RANGES
from flystore.testing.documents import RunDocuments, batchings, external, internal, reordered, runs


@pytest.fixture(autouse=True)
def blocks_of_any_size(monkeypatch):
    monkeypatch.setattr(blocks, "_FEWEST", 1)


def in_blocks(batches):
    """The same batches, each decoded from its frames together."""
    encoder, decoder = FrameEncoder(), FrameDecoder()
    for batch in batches:
        payloads = [payload for _, name, doc in batch for payload in encoder.encode(name, doc)]
        yield decode_batch(decoder, payloads, batch[0][0]).items if batch else []


def assert_the_same(batches):
    """Compare state and changes after each batch; return the kinds of items there were."""
    plain = bulk = RunState.new("run")
    kinds = set()
    for batch, items in zip(batches, in_blocks(batches), strict=True):
        kinds |= set(map(type, items))
        plain, expected = advance(plain, batch)
        bulk, changes = advance(bulk, items)
        assert changes == expected
        assert bulk.to_bytes() == plain.to_bytes()
    return kinds


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_blocks_of_any_run_give_the_tree_of_its_documents(data):
    documents = data.draw(runs())
    if data.draw(st.booleans()):
        body = [each for each in documents if each[0] not in ("start", "stop")]
        ends = [each for each in documents if each[0] == "stop"]
        seed = data.draw(st.integers(0, 2**32))
        documents = [documents[0], *reordered(body, random.Random(seed), shuffle_frames=True), *ends]
    assert_the_same(data.draw(batchings(documents)))


some_values = st.sampled_from(
    [
        st.floats(),
        st.integers(-300, 300),
        st.integers(),
        st.booleans(),
        st.integers(-3, 3) | st.floats(-2, 2),
        st.sampled_from([np.float64(0.5), np.int16(-7), np.uint64(2**64 - 1)]),
        st.none() | st.text(max_size=2),
        st.lists(st.integers(0, 9), max_size=2),
    ]
)


@st.composite
def long_scans(draw):
    """Many Events and frames of two streams: marks, repeats, what nobody described, what comes before its time."""
    run = RunDocuments("run")
    streams = []
    for name in ("one", "two"):
        keys = {key: draw(some_values) for key in draw(st.lists(st.sampled_from("abcd"), unique=True, min_size=1))}
        streams.append((run.stream(name, a=internal(), b=internal("array", [3]), x=external([2])), keys))
    for stream, keys in streams:
        filled = draw(st.sampled_from([{}, {"a": True}, {"a": False}, {"x": True}]))
        for _ in range(draw(st.integers(0, 30))):
            seq = draw(st.sampled_from([None, None, None, None, 1, 2**53]))
            event = stream.event(seq if seq != 2**53 else None, filled, **{k: draw(v) for k, v in keys.items()})
            if seq == 2**53:
                event["seq_num"] = seq
            if draw(st.integers(0, 20)) == 0:
                event["descriptor"] = "nobody"
    for stream, _ in streams:
        stream.resource("x", "file://localhost/data/0.h5")
        index = 0
        for _ in range(draw(st.integers(0, 30))):
            index += draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1]))
            width = draw(st.sampled_from([1, 1, 1, 2, 0]))
            if draw(st.integers(0, 12)) == 0:
                stream.resource("x", f"file://localhost/data/{index}.h5")
            frames = stream.frames("x", index, index + width)
            index += width
            if draw(st.integers(0, 12)) == 0:
                frames["seq_nums"] = draw(st.sampled_from([{"start": 0, "stop": 0}, {"start": 5, "stop": 7}]))
    documents = run.documents[1:]
    if draw(st.booleans()):
        random.Random(draw(st.integers(0, 99))).shuffle(documents)
    if draw(st.booleans()):
        documents.insert(
            draw(st.integers(0, len(documents))),
            ("stop", {"uid": "s", "run_start": "run", "time": 1.0, "exit_status": "success"}),
        )
    return [run.documents[0], *documents] if draw(st.integers(0, 9)) else documents


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_blocks_of_long_and_odd_scans_give_the_tree_of_their_documents(data):
    # Compared by repr where NaN is: it is not equal to itself.
    documents = data.draw(long_scans())
    plain = bulk = RunState.new("run")
    batches = data.draw(batchings(documents))
    for batch, items in zip(batches, in_blocks(batches), strict=True):
        plain, expected = advance(plain, batch)
        bulk, changes = advance(bulk, items)
        assert bulk.to_bytes() == plain.to_bytes()
        assert [type(change) for change in changes] == [type(change) for change in expected]
        for change, wanted in zip(changes, expected, strict=True):
            if hasattr(change, "batch"):
                assert change.first_row == wanted.first_row
                assert change.batch.schema == wanted.batch.schema
                assert repr(change.batch.to_pydict()) == repr(wanted.batch.to_pydict())
            else:
                assert change == wanted


def a_scan(events):
    run = RunDocuments("run")
    stream = run.stream("primary", a=internal(), x=external([2]))
    for number in range(events):
        stream.event(a=float(number), b=number)
    return run, stream


def test_events_of_numbers_and_stream_datums_do_come_in_blocks():
    run, stream = a_scan(50)
    stream.resource("x", "file://localhost/data/0.h5")
    for number in range(50):
        stream.frames("x", number, number + 1)
    run.stop()
    documents = [(n, name, doc) for n, (name, doc) in enumerate(run.documents)]
    assert assert_the_same([documents]) == {tuple, EventBlock, DatumBlock}


@pytest.mark.parametrize("count", [EXACT_RANGES - 2, EXACT_RANGES + 5])
def test_ranges_with_gaps_are_kept_as_they_came_up_to_where_they_no_longer_are(count):
    run, stream = a_scan(0)
    stream.resource("x", "file://localhost/data/0.h5")
    for number in range(count):
        stream.frames("x", 2 * number, 2 * number + 1)
    stream.frames("x", 2 * count, 2 * count + 3)
    stream.frames("x", 2 * count + 3, 2 * count + 4)
    documents = [(n, name, doc) for n, (name, doc) in enumerate(run.documents)]
    for size in (1, 7, len(documents)):
        assert_the_same([documents[at : at + size] for at in range(0, len(documents), size)])


def test_a_batch_of_numbers_makes_no_object_for_each_value(monkeypatch):
    run, _ = a_scan(2000)
    documents = [(n, name, doc) for n, (name, doc) in enumerate(run.documents)]
    (items,) = in_blocks([documents])
    assert [type(item) for item in items] == [tuple, tuple, EventBlock]
    monkeypatch.setattr(EventBlock, "documents", None)
    _, changes = advance(RunState.new("run"), items)
    assert changes[-1].batch.num_rows == 2000
    assert changes[-1].batch.column("b").to_pylist() == list(range(2000))
