"""Frames that arrive in pieces of any length fill a buffer with what they hold, or nothing is said to be filled.

If these fail, a compressed read has values of one frame in the place of another, or a body that broke off counts as
more than came of it.
"""

import itertools
import socket
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from flystore.client._frames import BadFrames, BloscFrames
from flystore.model.errors import Unavailable
from flystore.wire import HttpTransport

CODECS = (b"lz4", b"zstd", b"blosclz")


def give(unpacked, piece):
    while piece:
        room = unpacked.room()
        count = min(len(room), len(piece))
        room[:count] = piece[:count]
        unpacked.add(count)
        piece = piece[count:]


@st.composite
def bodies(draw):
    """Return values, their frames, and where the frames are cut."""
    lengths = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=8))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    parts = [random.integers(0, draw(st.sampled_from((2, 256))), n, np.uint8).tobytes() for n in lengths]
    codec, shuffle = draw(st.sampled_from(CODECS)), draw(st.integers(0, 2))
    frames = [blosc.compress(part, codec, 5, shuffle) for part in parts]
    total = sum(map(len, frames))
    cuts = sorted(draw(st.sets(st.integers(0, total), max_size=12)))
    return parts, frames, cuts


@settings(max_examples=60, deadline=None)
@given(bodies(), st.integers(0, 1 << 20))
def test_any_pieces_of_a_body_fill_as_much_as_whole_frames_came(made, end):
    parts, frames, cuts = made
    whole, body = b"".join(parts), b"".join(frames)
    end = min(end, len(body))
    into = bytearray(len(whole))
    with BloscFrames(memoryview(into)) as unpacked:
        edges = [0, *(cut for cut in cuts if cut < end), end]
        for start, stop in itertools.pairwise(edges):
            give(unpacked, body[start:stop])
        filled = unpacked.filled()
    come = np.cumsum([0, *map(len, frames)])
    held = np.cumsum([0, *map(len, parts)])
    assert filled == held[np.flatnonzero(come <= end)[-1]]
    assert into[:filled] == whole[:filled]


@pytest.mark.parametrize(
    ("at", "value"),
    [(4, 0), (4, 2**31), (12, 0), (12, 15), (12, 2**31)],
    ids=["holds nothing", "holds more than there is room for", "no length", "shorter than its head", "too long"],
)
def test_a_head_that_makes_no_sense_is_refused_before_it_is_believed(at, value):
    frame = bytearray(blosc.compress(b"a" * 1000, b"lz4", 5, 1))
    struct.pack_into("<I", frame, at, value)
    with BloscFrames(memoryview(bytearray(1000))) as unpacked, pytest.raises(BadFrames):
        give(unpacked, bytes(frame))


def test_a_frame_that_does_not_decode_is_told():
    frame = bytearray(blosc.compress(np.arange(5000).tobytes(), b"lz4", 5, 1))
    frame[16:] = b"\xff" * (len(frame) - 16)
    with BloscFrames(memoryview(bytearray(40_000))) as unpacked:
        give(unpacked, bytes(frame))
        with pytest.raises(BadFrames):
            unpacked.filled()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_frames_longer_than_a_buffer_are_put_together_and_short_ones_after_them_too(count):
    random = np.random.default_rng(count)
    lengths = [3 << 20, 100, *random.integers(1, 5 << 20, count), 2 << 20, 7]
    parts = [random.integers(0, 256, n, np.uint8).tobytes() for n in lengths]
    into = bytearray(sum(lengths))
    with BloscFrames(memoryview(into)) as unpacked:
        for part in parts:
            give(unpacked, blosc.compress(part, b"lz4", 1, 1))
        assert unpacked.filled() == len(into)
    assert into == b"".join(parts)


def answering(listener, head, body):
    """Answer every request on new connections with a head and a body, and close them."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += connection.recv(1 << 16)
            connection.sendall(head + body)


@pytest.fixture
def answers():
    """Makes a service that gives the same answer to everything."""
    listeners, threads = [], []

    def make(coding, length, body):
        listener = socket.create_server(("127.0.0.1", 0))
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {length}\r\ncontent-encoding: {coding}\r\n\r\n".encode()
        thread = threading.Thread(target=answering, args=(listener, head, body))
        thread.start()
        listeners.append(listener)
        threads.append(thread)
        return HttpTransport(f"http://127.0.0.1:{listener.getsockname()[1]}", "key", sleep=lambda seconds: None)

    yield make
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def test_a_body_of_frames_that_breaks_off_tells_how_much_of_it_is_there(answers):
    values = np.random.default_rng(1).integers(0, 2**16, (6, 1 << 19), np.uint16)
    frames = [blosc.compress(part, b"lz4", 5, 1) for part in values]
    body = b"".join(frames)
    transport = answers("blosc2", len(body), body[: -len(frames[-1]) - 100])
    into = np.zeros(values.size, np.uint16)
    try:
        with pytest.raises(Unavailable) as caught:
            transport.readinto("GET", "/x", memoryview(into).cast("B"), unpacking=BloscFrames)
    finally:
        transport.close()
    filled = caught.value.facts["filled"]
    assert filled == 4 * values[0].nbytes
    np.testing.assert_array_equal(into[: filled // 2], values[:4].ravel())


def test_a_coding_that_was_not_asked_for_is_no_answer(answers):
    transport = answers("br", 4, b"abcd")
    try:
        with pytest.raises(Unavailable, match="'br'"):
            transport.readinto("GET", "/x", memoryview(bytearray(4)), unpacking=BloscFrames)
    finally:
        transport.close()
