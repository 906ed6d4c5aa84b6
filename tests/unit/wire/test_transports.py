"""Both ways of reaching a service behave alike: same answers, same errors, same bytes.

If these fail, code that works against a server breaks in an opened directory or the other way round,
an error reaches people as the wrong kind, or half an array is taken for a whole one.
"""

import asyncio
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from urllib.parse import parse_qsl

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.model.errors import (
    Conflict,
    DeadlineExceeded,
    FlystoreError,
    InvalidRequest,
    NotFound,
    NotPermitted,
    SequenceGap,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from flystore.testing.serving import serving
from flystore.wire import HttpTransport, InProcessTransport, api_path


class App:
    """A small service: it echoes, sends bytes, fails on demand, and knows whether it was started."""

    def __init__(self):
        self.started = self.ended = False
        self.not_ready_answers = 0
        self.gate = threading.Event()
        self.stream_pieces = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.lifespan(scope, receive, send)
            return
        query = dict(parse_qsl(scope["query_string"].decode()))
        route = scope["path"].removeprefix("/api/v1/").split("/")[0]
        await getattr(self, route)(scope, receive, send, query)

    async def lifespan(self, scope, receive, send):
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["greeting"] = "hello"
        self.started = True
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        self.ended = True
        await send({"type": "lifespan.shutdown.complete"})

    async def echo(self, scope, receive, send, query):
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        said = {
            "method": scope["method"],
            "path": scope["path"],
            "query": parse_qsl(scope["query_string"].decode(), keep_blank_values=True),
            "headers": {k.decode(): v.decode() for k, v in scope["headers"]},
            "body": body,
            "greeting": scope["state"]["greeting"],
            "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        }
        await answer(send, 200, msgspec.msgpack.encode(said), "application/x-msgpack")

    async def bytes(self, scope, receive, send, query):
        size, piece = int(query["n"]), int(query.get("piece", 1 << 16))
        content = pattern(size)
        headers = [] if "chunked" in query else [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at in range(0, size, piece):
            part = memoryview(content)[at : at + piece]
            await send({"type": "http.response.body", "body": part, "more_body": at + piece < size})
        if size == 0:
            await send({"type": "http.response.body", "body": b""})

    async def fail(self, scope, receive, send, query):
        content = json.loads(query["content"])
        await answer(send, int(query["status"]), json.dumps(content).encode(), "application/json")

    async def page(self, scope, receive, send, query):
        await answer(send, 200, b"<html>log in</html>", "text/html")

    async def soon(self, scope, receive, send, query):
        if self.not_ready_answers > 0:
            self.not_ready_answers -= 1
            headers = [(b"retry-after", b"1"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"detail": "not on disk yet"}'})
        else:
            await answer(send, 200, b"12345678", "application/octet-stream")

    async def stall(self, scope, receive, send, query):
        await asyncio.get_running_loop().run_in_executor(None, self.gate.wait, 100)
        await answer(send, 200, b"late", "application/octet-stream")

    async def endless(self, scope, receive, send, query):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        left = asyncio.ensure_future(until_disconnected(receive))
        while not left.done():
            await asyncio.sleep(0)
            self.stream_pieces += 1
            await send({"type": "http.response.body", "body": pattern(1 << 16), "more_body": True})

    async def breaks(self, scope, receive, send, query):
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": pattern(100), "more_body": True})
        raise ConnectionResetError("the file went away")


async def until_disconnected(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(send, status, body, content_type):
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def pattern(size):
    return (np.arange(size, dtype=np.uint32) % 251).astype(np.uint8).tobytes()


def failure(kind, message, status=400, facts=None):
    content = {"detail": message, "error": {"kind": kind, "message": message, "facts": facts or {}}}
    return {"status": status, "content": json.dumps(content)}


class TransportContract:
    """Subclasses give `app` and `transport`, a transport to it made with the key `secret`."""

    def test_a_request_arrives_as_it_was_made(self, transport):
        said = transport.request(
            "POST",
            api_path("echo", "a b", "c/d", "é"),
            params=[("page[limit]", 3), ("column", ["x", "y"]), ("unset", None), ("flag", True)],
            headers={"X-Thing": "1"},
            body=b"\x00body",
        ).decode()

        assert said["method"] == "POST"
        assert said["path"] == "/api/v1/echo/a b/c/d/é"
        assert said["query"] == [["page[limit]", "3"], ["column", "x"], ["column", "y"], ["flag", "true"]]
        assert said["headers"]["x-thing"] == "1"
        assert said["headers"]["authorization"] == "Apikey secret"
        assert said["body"] == b"\x00body"

    def test_a_view_can_be_a_body(self, transport):
        assert transport.request("POST", api_path("echo"), body=memoryview(b"abc")).decode()["body"] == b"abc"

    def test_the_lifespan_of_the_service_surrounds_its_requests(self, transport, app):
        assert transport.request("GET", api_path("echo")).decode()["greeting"] == "hello"
        assert app.started

    def test_times_travel_as_times(self, transport):
        when = transport.request("GET", api_path("echo")).decode()["when"]
        assert when == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    @pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
    def test_bodies_of_any_size_come_whole(self, transport, size):
        answer = transport.request("GET", api_path("bytes"), params={"n": size})
        assert answer.body == pattern(size)

    # Two executors on purpose: one law, run for each transport.
    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        size=st.integers(1, 300_000),
        piece=st.integers(1_000, 400_000),
        chunked=st.sampled_from([{}, {"chunked": 1}]),
    )
    def test_readinto_fills_the_buffer_however_the_body_is_cut(self, transport, size, piece, chunked):
        into = np.zeros(size, np.uint8)
        params = {"n": size, "piece": piece, **chunked}
        transport.readinto("GET", api_path("bytes"), memoryview(into), params=params)
        assert into.tobytes() == pattern(size)

    @pytest.mark.parametrize("chunked", [{}, {"chunked": 1}])
    @pytest.mark.parametrize(("room", "size"), [(10, 11), (10, 9), (10, 0)])
    def test_a_body_of_another_size_is_a_conflict(self, transport, room, size, chunked):
        into = memoryview(bytearray(room))
        with pytest.raises(Conflict, match="has changed") as caught:
            transport.readinto("GET", api_path("bytes"), into, params={"n": size, **chunked})
        assert (caught.value.expected, caught.value.found) == (room, size)

    def test_a_body_that_breaks_off_is_never_whole(self, transport):
        with pytest.raises(Unavailable):
            transport.request("GET", api_path("breaks"))
        with pytest.raises(Unavailable):
            transport.readinto("GET", api_path("breaks"), memoryview(bytearray(1000)))

    def test_an_error_comes_back_as_the_class_it_was_raised_with(self, transport):
        params = failure("sequence-gap", "send from 7", 409, {"expected": 7})
        with pytest.raises(SequenceGap, match=r"^send from 7$") as caught:
            transport.request("POST", api_path("fail"), params=params)
        assert caught.value.expected == 7

    def test_readinto_reports_the_errors_of_the_service(self, transport):
        with pytest.raises(TooLarge, match="too much"):
            transport.readinto(
                "GET", api_path("fail"), memoryview(bytearray(4)), params=failure("too-large", "too much")
            )

    def test_facts_with_odd_names_do_not_hide_the_error(self, transport):
        odd = {"message": 1, "self": 2, "path": "a"}
        with pytest.raises(NotFound, match="gone"):
            transport.request("GET", api_path("fail"), params=failure("not-found", "gone", 404, odd))

    def test_a_kind_of_a_newer_service_is_a_plain_error(self, transport):
        with pytest.raises(FlystoreError, match="purple"):
            transport.request("GET", api_path("fail"), params=failure("from-the-future", "purple"))

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (400, InvalidRequest),
            (401, Unauthenticated),
            (403, NotPermitted),
            (404, NotFound),
            (409, Conflict),
            (413, TooLarge),
            (418, InvalidRequest),
            (422, InvalidRequest),
            (429, Unavailable),
            (500, Unavailable),
            (503, Unavailable),
        ],
    )
    def test_without_a_kind_the_status_decides_and_the_detail_is_shown(self, transport, status, expected):
        params = {"status": status, "content": '{"detail": "because of the walrus"}'}
        with pytest.raises(expected, match="because of the walrus") as caught:
            transport.request("GET", api_path("fail"), params=params)
        assert type(caught.value) is expected
        assert caught.value.status == status

    def test_a_list_of_validation_failures_is_one_sentence(self, transport):
        detail = [{"loc": ["query", "page[limit]"], "msg": "should be at most 300"}]
        params = {"status": 422, "content": json.dumps({"detail": detail})}
        with pytest.raises(InvalidRequest, match=r"query\.page\[limit\]: should be at most 300"):
            transport.request("GET", api_path("fail"), params=params)

    def test_a_web_page_in_place_of_a_record_is_explained(self, transport):
        with pytest.raises(Unavailable, match="web page"):
            transport.request("GET", api_path("page")).decode()

    def test_data_that_is_not_there_yet_is_asked_for_again(self, transport, app):
        app.not_ready_answers = 1
        into = bytearray(8)
        transport.readinto("GET", api_path("soon"), memoryview(into))
        assert into == b"12345678"

    def test_what_may_change_something_is_sent_once(self, transport, app):
        app.not_ready_answers = 2
        with pytest.raises(FlystoreError, match="not on disk yet"):
            transport.request("POST", api_path("soon"))
        assert app.not_ready_answers == 1

    def test_a_service_that_does_not_answer_in_time_is_a_deadline_exceeded(self, transport, app):
        try:
            with pytest.raises(DeadlineExceeded):
                transport.request("GET", api_path("stall"), timeout=0.05)
        finally:
            app.gate.set()

    def test_a_stream_can_be_read_to_its_end(self, transport):
        with transport.stream("GET", api_path("bytes"), params={"n": 500_000, "piece": 7_000}) as answer:
            assert answer.status == 200
            assert b"".join(answer.chunks) == pattern(500_000)

    def test_a_stream_can_be_left_early_and_does_not_run_ahead(self, transport, app):
        with transport.stream("GET", api_path("endless")) as answer:
            assert next(answer.chunks)
        assert transport.request("GET", api_path("bytes"), params={"n": 4}).body == pattern(4)
        # Socket buffers and a few waiting pieces, of 64 KiB each.
        assert app.stream_pieces < 1000

    def test_a_stream_reports_errors_before_its_first_piece(self, transport):
        with (
            pytest.raises(NotFound, match="no such run"),
            transport.stream("GET", api_path("fail"), params=failure("not-found", "no such run", 404)),
        ):
            pass

    def test_a_stream_that_breaks_off_says_so(self, transport):
        with pytest.raises(Unavailable), transport.stream("GET", api_path("breaks")) as answer:
            list(answer.chunks)

    def test_many_threads_can_use_it_at_once(self, transport):
        def read(size):
            into = np.zeros(size, np.uint8)
            transport.readinto("GET", api_path("bytes"), memoryview(into), params={"n": size})
            return into.tobytes() == pattern(size)

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(read, range(10_000, 30_000, 500)))

    def test_closing_twice_is_harmless(self, transport):
        transport.request("GET", api_path("echo"))
        transport.close()
        transport.close()


class TestHttpTransport(TransportContract):
    @pytest.fixture
    def app(self):
        return App()

    @pytest.fixture
    def url(self, app):
        with serving(app, lifespan="on") as url:
            yield url

    @pytest.fixture
    def transport(self, url):
        transport = HttpTransport(url, "secret")
        yield transport
        transport.close()

    def test_it_can_be_handed_to_another_process(self, transport):
        copy = pickle.loads(pickle.dumps(transport))
        assert copy.request("GET", api_path("echo")).decode()["headers"]["authorization"] == "Apikey secret"
        copy.close()

    def test_it_names_the_service(self, transport, url):
        assert transport.where == transport.base_url == url


class TestInProcessTransport(TransportContract):
    @pytest.fixture
    def app(self):
        return App()

    @pytest.fixture
    def transport(self, app):
        transport = InProcessTransport(app, "secret", where="the store in /data")
        yield transport
        transport.close()

    def test_closing_ends_the_service_and_its_thread(self, transport, app):
        (its_own,) = (thread for thread in threading.enumerate() if thread.name == "flystore-in-process")
        transport.close()
        assert app.ended
        assert its_own not in threading.enumerate()

    def test_after_closing_requests_are_refused_in_words(self, transport):
        transport.close()
        with pytest.raises(Unavailable, match="the store in /data is closed"):
            transport.request("GET", api_path("echo"))

    def test_a_service_that_cannot_start_raises_its_own_error(self):
        class Broken(App):
            async def lifespan(self, scope, receive, send):
                await receive()
                raise NotPermitted("the directory is not writable")

        threads = set(threading.enumerate())
        with pytest.raises(NotPermitted, match="not writable"):
            InProcessTransport(Broken())
        assert set(threading.enumerate()) <= threads

    def test_a_service_without_lifespan_is_served_too(self):
        async def bare(scope, receive, send):
            assert scope["type"] == "http"
            await answer(send, 200, b"ok", "text/plain")

        transport = InProcessTransport(bare)
        assert transport.request("GET", "/").body == b"ok"
        transport.close()

    def test_a_defect_of_the_service_is_told_with_its_cause(self):
        async def broken(scope, receive, send):
            raise ZeroDivisionError("oops")

        transport = InProcessTransport(broken)
        with pytest.raises(Unavailable, match="ZeroDivisionError") as caught:
            transport.request("GET", "/")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        transport.close()

    def test_it_refuses_to_be_called_from_inside_itself(self):
        async def recursive(scope, receive, send):
            transport.request("GET", "/")

        transport = InProcessTransport(recursive)
        with pytest.raises(InvalidRequest, match="from inside itself"):
            transport.request("GET", "/")
        transport.close()

    def test_it_refuses_to_be_handed_to_another_process(self, transport):
        with pytest.raises(TypeError, match="flystore serve"):
            pickle.dumps(transport)
