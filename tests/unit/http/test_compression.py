"""A body that is compressed decodes to what it was, in as few bytes, and only for callers who said they take it.

If these fail, clients get bytes they cannot read, or a stream holds the whole of an answer in memory.
"""

import asyncio
import threading
import zlib

import blosc2
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled.client.decoders import Blosc2Decoder, ZStandardDecoder

from flystore.http import compression
from flystore.http.compression import accepted, choose_coding, compressed
from flystore.http.middleware import Outgoing

OCTETS = "application/octet-stream"
JSON = "application/json"


def answered(pieces, accept, media_type=OCTETS, *, status=200, headers=(), scope=None, length=True, least=1000):
    """Return status, headers and the sent parts of an answer whose body is `pieces`."""
    own = [(b"content-type", media_type.encode()), *headers]
    if length:
        own.append((b"content-length", str(sum(map(len, pieces))).encode()))
    sent = []

    async def send(message):
        sent.append(message)

    async def answer():
        start = {"type": "http.response.start", "status": status, "headers": own}
        encoded = compressed(request, (accept or "").encode(), least, start, send)
        if encoded is None:
            await send(start)
        for number, piece in enumerate(pieces):
            more = number < len(pieces) - 1
            if encoded is None:
                await send({"type": "http.response.body", "body": piece, "more_body": more})
            else:
                await encoded.body(piece, more)

    request = {"type": "http", "method": "GET", **(scope or {})}
    asyncio.run(answer())
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return found, [bytes(message["body"]) for message in sent[1:]]


def decoded(coding, parts):
    """Return a body as the decoder of the stock client, or of httpx, gives it."""
    if coding == "gzip":
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
        found = b"".join(decoder.decompress(part) for part in parts)
        assert decoder.eof
        return found
    if coding is None:
        return b"".join(parts)
    decoder = {"blosc2": Blosc2Decoder, "zstd": ZStandardDecoder}[coding]()
    return b"".join(decoder.decode(part) for part in parts) + decoder.flush()


@pytest.mark.parametrize("coding", ["gzip", "zstd", "blosc2"])
@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 999, 1000, 70_000, (1 << 20) + 3, 3 << 20]), min_size=1, max_size=5),
    itemsize=st.sampled_from([0, 1, 2, 8, 12, 300]),
)
def test_however_a_body_comes_in_pieces_it_is_what_it_was(coding, sizes, itemsize):
    whole = (np.arange(sum(sizes)) // 50 % 251).astype("u1").tobytes()
    ends = np.cumsum(sizes)
    pieces = [memoryview(whole)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    headers, parts = answered(pieces, coding, scope={compression.ITEMSIZE: itemsize})
    assert decoded(headers.get("content-encoding"), parts) == whole
    if "content-length" in headers:
        assert int(headers["content-length"]) == len(b"".join(parts))
    if len(whole) > 70_000:
        assert headers["content-encoding"] == coding
        assert len(b"".join(parts)) < 0.5 * len(whole)


def test_what_is_sent_as_blosc2_is_what_blosc2_itself_decodes():
    body = np.arange(50_000, dtype="<u2").tobytes()
    headers, (part,) = answered([body], "blosc2", scope={compression.ITEMSIZE: 2})
    assert headers["content-encoding"] == "blosc2"
    assert blosc2.decompress(part) == body


def test_a_body_of_zstd_is_one_frame():
    _, parts = answered([b"a" * 300_000] * 3, "zstd")
    assert len(parts) > 1
    assert zstandard.ZstdDecompressor().decompressobj().decompress(b"".join(parts)) == b"a" * 900_000


def test_the_bytes_of_an_item_are_shuffled_together():
    body = (1000 + np.random.default_rng(0).integers(0, 16, 200_000)).astype("<u4").tobytes()
    size = {n: len(b"".join(answered([body], "blosc2", scope={compression.ITEMSIZE: n})[1])) for n in (1, 4)}
    assert size[4] < 0.7 * size[1]


@pytest.mark.parametrize(
    ("header", "media_type", "coding"),
    [
        ("gzip, deflate, zstd, blosc2", JSON, "zstd"),
        ("gzip, deflate, zstd, blosc2", OCTETS, "blosc2"),
        ("gzip, deflate, zstd, blosc2", "application/vnd.apache.arrow.file", "blosc2"),
        ("gzip, deflate", OCTETS, "gzip"),
        ("GZIP", JSON, "gzip"),
        ("x-gzip", JSON, "gzip"),
        ("blosc2", JSON, None),
        ("*", JSON, "zstd"),
        ("*;q=0.5, zstd;q=0", JSON, "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", JSON, "gzip"),
        ("gzip; q=0, identity", JSON, None),
        ("gzip;q=0.5, identity;q=0.8", JSON, None),
        ("gzip;q=much", JSON, None),
        ("zstd;q=2", JSON, None),
        ("", JSON, None),
        (",;=,", JSON, None),
        ("br", JSON, None),
        ("identity;q=0", JSON, None),
        ("gzip, zstd", "image/png", None),
        ("gzip, zstd", "application/x-parquet", None),
        ("gzip, zstd", "application/zip", None),
        ("gzip, zstd", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", None),
        ("gzip, zstd", "", None),
    ],
)
def test_the_coding_is_the_best_of_those_that_the_caller_likes_best(header, media_type, coding):
    assert choose_coding(header, media_type).name == coding


@given(st.text(max_size=60))
def test_no_header_is_too_odd_to_be_read(header):
    assert all(0 <= weight <= 1 for weight in accepted(header).values())
    choose_coding(header, JSON)


def test_what_hardly_shrinks_goes_as_it_is():
    noise = np.random.default_rng(0).bytes(3_000_000)
    for pieces in ([noise], [noise[:1_000_000], noise[1_000_000:]]):
        headers, parts = answered(pieces, "zstd, gzip, blosc2")
        assert "content-encoding" not in headers
        assert headers["content-length"] == str(len(noise))
        assert b"".join(parts) == noise


def test_short_answers_go_as_they_are():
    assert "content-encoding" not in answered([b"a" * 999], "gzip")[0]
    assert answered([b"a" * 1000], "gzip")[0]["content-encoding"] == "gzip"
    assert "content-encoding" not in answered([b"a" * 500, b"a" * 499], "gzip", length=False)[0]
    assert answered([b"a" * 500, b"a" * 500], "gzip", length=False)[0]["content-encoding"] == "gzip"


def test_a_caller_who_takes_nothing_plain_gets_even_a_short_answer_encoded():
    headers, parts = answered([b"a"], "gzip, identity;q=0", "image/png")
    assert headers["content-encoding"] == "gzip"
    assert decoded("gzip", parts) == b"a"


def test_what_is_made_of_compressed_parts_is_left_alone():
    headers, (part,) = answered([b"a" * 5000], "gzip", scope={compression.AS_IT_IS: True})
    assert part == b"a" * 5000
    assert "vary" not in headers


@pytest.mark.parametrize("name", ["accept-ranges", "content-range", "content-encoding"])
def test_bodies_whose_bytes_are_counted_or_encoded_are_left_alone(name):
    headers, parts = answered([b"a" * 5000], "gzip, identity;q=0", headers=[(name.encode(), b"bytes")])
    assert b"".join(parts) == b"a" * 5000
    assert headers["content-length"] == "5000"


def test_caches_are_told_that_the_answer_depends_on_what_is_taken():
    for accept in (None, "gzip"):
        assert answered([b"a" * 5000], accept)[0]["vary"] == "Accept-Encoding"
    assert answered([b""], None, status=304)[0]["vary"] == "Accept-Encoding"
    assert "vary" not in answered([b"a" * 5000], None, "image/png")[0]


def test_with_nothing_to_compress_from_nothing_is_compressed():
    assert "content-encoding" not in answered([b"a" * 5000], "gzip", least=0)[0]


def test_the_event_loop_never_compresses(monkeypatch):
    threads = []
    encode = compression._encoded

    def noted(*args):
        threads.append(threading.current_thread())
        return encode(*args)

    monkeypatch.setattr(compression, "_encoded", noted)
    answered([b"a" * (3 << 20)], "zstd")
    answered([b"a" * 2000], "gzip", JSON)
    assert len(threads) >= 4
    assert threading.main_thread() not in threads


def test_an_answer_that_fails_before_its_body_has_sent_nothing():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", JSON.encode())]})
        raise RuntimeError("broken")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [(b"accept-encoding", b"zstd")]}
    answer = Outgoing(scope, send, 1000)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(app(scope, None, answer.take))
    assert sent == []
    assert not answer.begun
