"""A long body is read as it is taken, and never far ahead.

If these fail, one person with a slow network makes the service hold whole scans in memory, or files stay open after
somebody went away.
"""

import asyncio

import pytest

from flystore.http.negotiation import OCTETS, PIECE_BYTES
from flystore.http.sending import PiecesResponse, _begun
from flystore.service import ArrayBody

LENGTH = PIECE_BYTES + 1000


class Source:
    """Pieces that count how far they were read."""

    def __init__(self, count, fails_at=None):
        self.taken = 0
        self.closed = False
        self.count, self.fails_at = count, fails_at

    def pieces(self):
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise OSError("the disk is gone")
                self.taken += 1
                yield memoryview(bytes([number]) * LENGTH)
        finally:
            self.closed = True


def response_of(source):
    nbytes, first, rest, _ = _begun(lambda: ArrayBody(source.count * LENGTH, source.pieces()))
    assert rest is not None
    return PiecesResponse(nbytes, first, rest, OCTETS)


async def answered(response, send, disconnected=None):
    async def receive():
        await (disconnected.wait() if disconnected is not None else asyncio.Event().wait())
        return {"type": "http.disconnect"}

    await response({"type": "http"}, receive, send)


def test_the_pieces_arrive_whole_and_in_order():
    source, sent = Source(4), []

    async def send(message):
        sent.append(message)

    asyncio.run(answered(response_of(source), send))
    head, *bodies = sent
    assert dict(head["headers"])[b"content-length"] == str(4 * LENGTH).encode()
    assert b"".join(body["body"] for body in bodies) == b"".join(bytes([n]) * LENGTH for n in range(4))
    assert [body["more_body"] for body in bodies] == [True] * (len(bodies) - 1) + [False]
    assert max(len(body["body"]) for body in bodies) <= PIECE_BYTES
    assert source.closed


def test_one_piece_is_read_ahead_of_a_client_that_takes_none():
    source = Source(50)

    async def run():
        stuck, gone = asyncio.Event(), asyncio.Event()

        async def send(message):
            if message["type"] == "http.response.body":
                stuck.set()
                await gone.wait()

        task = asyncio.ensure_future(answered(response_of(source), send, gone))
        await stuck.wait()
        while source.taken < 2:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        ahead = source.taken
        gone.set()
        await task
        return ahead

    assert asyncio.run(run()) == 2
    assert source.taken <= 3
    assert source.closed


def test_a_piece_that_cannot_be_read_ends_the_body_early():
    source, sent = Source(4, fails_at=2), []

    async def send(message):
        sent.append(message)

    with pytest.raises(OSError, match="gone"):
        asyncio.run(answered(response_of(source), send))
    assert sum(len(message.get("body", b"")) for message in sent) == 2 * LENGTH
    assert sent[-1]["more_body"]
    assert source.closed


def test_what_is_wrong_with_the_first_piece_is_raised_before_anything_is_sent():
    source = Source(4, fails_at=0)
    with pytest.raises(OSError, match="gone"):
        _begun(lambda: ArrayBody(4 * LENGTH, source.pieces()))
    assert source.closed


def test_a_body_of_one_piece_is_sent_as_one():
    source = Source(1)
    nbytes, first, rest, _ = _begun(lambda: ArrayBody(LENGTH, source.pieces()))
    assert (nbytes, len(first), rest) == (LENGTH, LENGTH, None)
    assert source.closed


def test_a_request_that_is_cancelled_closes_the_files():
    source = Source(50)

    async def run():
        stuck = asyncio.Event()

        async def send(message):
            if message["type"] == "http.response.body":
                stuck.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(answered(response_of(source), send))
        await stuck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert source.closed
