"""A short part of an array is answered on the event loop, in all that callers see as a thread would answer it.

If these fail, single frames cost a hand-over to a thread again, or an answer depends on how it came about.
"""

import asyncio
import os
import time

import anyio.to_thread
import h5py
import msgspec
import numpy as np
import pytest
from blockbuster import blockbuster_ctx

import flystore
from flystore.catalog import NotAtOnce
from flystore.http import Access, build_app
from flystore.service import Service
from flystore.service.short_reads import ShortReads
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of

FRAMES = (np.arange(6 * 40 * 50) % 65_000).reshape(6, 40, 50).astype("<u2")
FULL, BLOCK = "/api/v1/array/full/run/primary/img", "/api/v1/array/block/run/primary/img"
BYTES = "application/octet-stream"
TRIES = 50


def can_tell(file):
    with open(file, "rb") as opened:
        try:
            return os.preadv(opened.fileno(), [bytearray(10)], 0, os.RWF_NOWAIT) == 10
        except (OSError, AttributeError):
            return False


@pytest.fixture
def file(tmp_path):
    place = tmp_path / "files" / "a.h5"
    place.parent.mkdir()
    with h5py.File(place, "w") as opened:
        opened.create_dataset("d", data=FRAMES, chunks=(1, 40, 50))
    if not can_tell(place):
        pytest.skip("this file system cannot tell which bytes are in memory; nothing is read at once")
    return place


@pytest.fixture
def app(file, tmp_path):
    run = RunDocuments("run", plan_name="count")
    stream = run.stream("primary", img=external((40, 50)))
    stream.resource("img", file.as_uri(), dataset="d", chunk_shape=[1, 40, 50])
    stream.frames("img", 0, 6)
    run.stop()
    with Service.open(tmp_path / "store", read=[file.parent]) as service:
        for part in (service._prober, service.versions):
            part._clock = lambda: time.time() + 3600  # the run ended long ago
        service.ingest.batch("run", 0, 1, frames_of(run.documents))
        yield build_app(service, Access.of("secret"))


async def answered(app, path, query="", **headers):
    """Return status, headers and body of the application's answer, and how many threads it took."""
    named = {"host": "here:8000", "authorization": "Apikey secret", "accept": BYTES, **headers}
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()],
    }
    sent, threads, run = [], [], anyio.to_thread.run_sync

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def hop(*args, **more):
        threads.append(args)
        return await run(*args, **more)

    anyio.to_thread.run_sync = hop
    try:
        await app(scope, receive, send)
    finally:
        anyio.to_thread.run_sync = run
    changing = ("x-tiled-request-id", "server-timing", "set-cookie")
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"] if name.decode() not in changing}
    return sent[0]["status"], found, b"".join(bytes(message.get("body", b"")) for message in sent[1:]), len(threads)


def asked(app, *args, **more):
    return asyncio.run(answered(app, *args, **more))


def without_thread(app, *args, **more):
    """Return an answer that took no thread: the machine may have needed the memory before, but not each time."""
    for _ in range(TRIES):
        found = asked(app, *args, **more)
        if found[3] == 0:
            break
    return found


def refuse(self, *args, **more):
    raise NotAtOnce


QUESTIONS = [
    (FULL, "slice=2", {}),
    (FULL, "slice=2,0:10", {}),
    (FULL, "slice=2,0:10&format=application/octet-stream", {"accept": "*/*"}),
    (FULL, "slice=1:3,:,4&expected_shape=2,40", {}),
    (FULL, "slice=1&filename=a.bin", {}),
    (FULL, "slice=1&expected_shape=1,40,50", {}),
    (FULL, "slice=7", {}),
    (FULL, "slice=3:3", {}),
    (FULL, "slice=nothing", {}),
    (FULL, "slice=2", {"authorization": "Apikey wrong"}),
    (FULL, "slice=2", {"authorization": ""}),
    (FULL, "slice=2", {"accept_encoding": "gzip"}),
    (FULL, "slice=2&format=text/csv", {}),
    (BLOCK, "block=1,0,0", {}),
    (BLOCK, "block=1,0,0&slice=0,0:3", {}),
    (BLOCK, "block=9,0,0", {}),
]


@pytest.mark.parametrize(("path", "query", "headers"), QUESTIONS)
def test_an_answer_is_the_same_read_on_the_loop_or_in_a_thread(app, monkeypatch, path, query, headers):
    asked(app, FULL, "slice=0")
    quick = without_thread(app, path, query, **headers)[:3]
    monkeypatch.setattr(ShortReads, "read", refuse)
    assert asked(app, path, query, **headers)[:3] == quick


@pytest.mark.parametrize(("path", "query", "headers"), [*QUESTIONS[:5], *QUESTIONS[13:15]])
def test_a_short_part_of_what_is_in_memory_takes_no_thread(app, path, query, headers):
    asked(app, FULL, "slice=0")
    status, _, body, threads = without_thread(app, path, query, **headers)
    assert (status, threads) == (200, 0)
    assert len(body) > 0


def test_it_is_what_is_in_the_file_and_has_a_validator_that_holds(app):
    asked(app, FULL, "slice=0")
    for _ in range(2):
        status, headers, body, _ = without_thread(app, FULL, "slice=3,5:9")
        assert (status, body) == (200, FRAMES[3, 5:9].tobytes())
    again = asked(app, FULL, "slice=3,5:9", if_none_match=headers["etag"])
    assert (again[0], again[2]) == (304, b"")


def test_a_file_that_was_replaced_is_refused_at_once_as_later(app, file):
    assert without_thread(app, FULL, "slice=3")[2] == FRAMES[3].tobytes()
    other = file.with_name("b.h5")
    with h5py.File(other, "w") as opened:
        opened.create_dataset("d", data=FRAMES[::-1], chunks=(1, 40, 50))
    os.utime(other, (1, 1))
    os.replace(other, file)
    for _ in range(3):
        status, _, body, _ = asked(app, FULL, "slice=3")
        assert (status, msgspec.json.decode(body)["error"]["kind"]) == (422, "changed")


def test_only_what_is_said_to_be_quick_is_done_on_the_loop(app):
    """The one function in which bytes of files are read there is `ShortReads.read`."""
    asked(app, FULL, "slice=0")

    async def watched(allowed):
        with blockbuster_ctx(scanned_modules=flystore) as watching:
            for function in watching.functions.values():
                function.can_block_in("service/versions.py", {"at_once"})
                if allowed:
                    function.can_block_in("service/short_reads.py", {"read"})
            return [(await answered(app, FULL, f"slice={n}"))[0] for n in range(6)]

    assert asyncio.run(watched(True)) == [200] * 6
    without_thread(app, FULL, "slice=0")
    assert 500 in asyncio.run(watched(False))
