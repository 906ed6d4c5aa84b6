"""The change feed as programs without our client use it: pages, waits, and WebSockets.

If these fail, programs of a facility miss runs or see them twice, wait for what has happened, or one of them that hangs
takes the memory of the service.
"""

import contextlib
import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flystore.catalog import Catalog
from flystore.http import Access, build_app, server_settings
from flystore.model.errors import Unavailable
from flystore.service import Limits, Service
from flystore.service.following import Following, Place, Subject
from flystore.service.waking import Waking
from flystore.testing.serving import serving

KEY = "secret"
GENEROUS = 60


class Feed:
    """A service with WebSockets, and a way to change something in it."""

    def __init__(self, service, url):
        self.service, self.url = service, url
        self.pool = urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}"}, maxsize=20)

    def change(self, *path, count=1, run=None, detail=None):
        with self.service.following._catalog.write() as tx:
            for _ in range(count):
                tx.note_change(path or ("n",), "updated", detail or {}, run_uid=run)

    def operate(self, action):
        with self.service.following._catalog.write() as tx:
            tx.append_operation(("n",), action, b"", 0.0)
            tx.note_change(("n",), "updated", {})

    def get(self, path="", **params):
        answer = self.pool.request("GET", f"{self.url}/api/v1/feed/{path}", fields=params, retries=False)
        return answer.status, json.loads(answer.data)

    def page(self, path="", **params):
        status, page = self.get(path, **params)
        assert status == 200, page
        return page

    def socket(self, path="", query="", **more):
        where = self.url.replace("http", "ws")
        return connect(f"{where}/api/v1/feed/{path}?api_key={KEY}&{query}", open_timeout=GENEROUS, **more)


def read_all(told, found):
    while True:
        found += json.loads(told.recv(GENEROUS))["entries"]


@contextlib.contextmanager
def served(directory, limits=None, **more):
    with Service.open(directory, limits=limits) as service:
        app = build_app(service, Access.of(KEY), **more)
        with serving(app, settings=server_settings(service.limits)) as url:
            feed = Feed(service, url)
            yield feed
            feed.pool.clear()
            service.following.waking.end()


@pytest.fixture
def feed(tmp_path):
    with served(tmp_path / "store") as made:
        yield made


def test_pages_follow_each_other_without_a_gap_or_a_repeat(feed):
    for number in range(5):
        feed.change("n", count=3, detail={"number": number})
    found, token = [], None
    while True:
        page = feed.page(limit=4, **({} if token is None else {"after": token}))
        assert len(page["entries"]) <= 4
        found += page["entries"]
        token = page["next"]
        if not page["more"]:
            break
    assert [entry["detail"]["number"] for entry in found] == [n for n in range(5) for _ in range(3)]
    assert len({entry["token"] for entry in found}) == 15
    assert feed.page(after=token) == {**page, "entries": [], "next": token}
    for at, entry in enumerate(found):
        assert feed.page(after=entry["token"])["entries"] == found[at + 1 :]


def test_msgpack_is_the_same(feed):
    import msgspec

    feed.change()
    answer = feed.pool.request(
        "GET", f"{feed.url}/api/v1/feed/", headers={**feed.pool.headers, "Accept": "application/x-msgpack"}
    )
    assert msgspec.msgpack.decode(answer.data) == feed.page()


def test_a_wait_ends_with_the_first_change_and_else_with_its_time(feed):
    token = feed.page()["next"]
    assert feed.page(after=token, wait=1)["entries"] == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(feed.page, after=token, wait=GENEROUS)
        feed.change("a")
        assert [entry["path"] for entry in waiting.result(GENEROUS)["entries"]] == [["a"]]
    assert [entry["path"] for entry in feed.page(after=token, wait=GENEROUS)["entries"]] == [["a"]]


def test_nothing_waits_for_who_has_gone(feed):
    host, port = feed.url.removeprefix("http://").split(":")
    waking = feed.service.following.waking
    with socket.create_connection((host, int(port)), timeout=GENEROUS) as client:
        head = f"GET /api/v1/feed?after=now&wait={GENEROUS} HTTP/1.1\r\nhost: x\r\nauthorization: Apikey {KEY}\r\n\r\n"
        client.sendall(head.encode())
        while not len(waking):
            time.sleep(0.01)
    began = time.monotonic()
    while len(waking):
        assert time.monotonic() - began < GENEROUS / 2, "it waits to the end of the time that was asked for"
        time.sleep(0.01)


def test_only_what_is_below_the_path_is_told(feed):
    with feed.service.following._catalog.write() as tx:
        for key in ("a", "ab"):
            tx.put_node((key,), "container", [], {}, None)
    token = feed.page()["next"]
    for path in (("a",), ("a", "b"), ("ab",), ("c",)):
        feed.change(*path)
    assert [entry["path"] for entry in feed.page("a", after=token)["entries"]] == [["a"], ["a", "b"]]
    assert feed.page("a", after=token)["next"] == feed.page(after=token)["next"]


@pytest.mark.parametrize(
    ("query", "status", "kind"),
    [
        ({"after": "nonsense"}, 422, "invalid-request"),
        ({"after": "fs1.0123456789abcdef.0.00000000"}, 409, "wrong-token"),
        ({"limit": "0"}, 422, "invalid-request"),
        ({"limit": "1000000"}, 422, "invalid-request"),
        ({"wait": "3600"}, 422, "invalid-request"),
        ({"wait": "soon"}, 422, "invalid-request"),
        ({"lag": "-1"}, 422, "invalid-request"),
        ({"follow": "maybe"}, 422, "invalid-request"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(feed, query, status, kind):
    found, answer = feed.get(**query)
    assert (found, answer["error"]["kind"]) == (status, kind)


def test_a_store_that_was_set_back_knows_that_a_token_is_of_its_other_history(tmp_path):
    store, backup = tmp_path / "store", tmp_path / "backup"
    with served(store) as feed:
        feed.operate("before")
        shared = feed.page()["next"]
    shutil.copytree(store, backup)
    with served(store) as feed:
        feed.operate("in one history")
        token = feed.page()["next"]
    with served(backup) as feed:
        status, answer = feed.get(after=token)
        assert (status, answer["error"]["kind"], answer["error"]["facts"]["last"]) == (409, "wrong-token", 1)
        feed.operate("in another history")
        status, answer = feed.get(after=token)
        assert (status, answer["error"]["kind"]) == (409, "wrong-token")
        assert len(feed.page(after=shared)["entries"]) == 1


def test_whoever_may_not_read_is_not_told(feed):
    answer = urllib3.request("GET", f"{feed.url}/api/v1/feed/", retries=False)
    assert answer.status == 401
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{feed.url.replace('http', 'ws')}/api/v1/feed/")
    assert refused.value.response.status_code == 401


def test_a_socket_tells_each_change_as_it_comes(feed):
    with feed.socket() as told:
        first = json.loads(told.recv(GENEROUS))
        assert first["entries"] == []
        for key in "abc":
            feed.change(key)
            page = json.loads(told.recv(GENEROUS))
            assert [entry["path"] for entry in page["entries"]] == [[key]]
    assert feed.page(after=page["next"])["entries"] == []


def test_a_socket_goes_on_from_a_token_and_refuses_another_stores(feed):
    feed.change("a")
    token = feed.page()["next"]
    feed.change("b")
    with feed.socket(query=f"after={token}") as told:
        assert [entry["path"] for entry in json.loads(told.recv(GENEROUS))["entries"]] == [["b"]]
    with pytest.raises(InvalidStatus) as refused:
        feed.socket(query="after=fs1.0123456789abcdef.0.00000000")
    assert json.loads(refused.value.response.body)["error"]["kind"] == "wrong-token"


def test_a_subscriber_that_never_reads_costs_one_buffer_and_is_told_where_to_go_on(tmp_path):
    limits = Limits(patience_seconds=0.5)
    with served(tmp_path / "store", limits) as feed:
        started = feed.page()["next"]
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(feed.url.rpartition(":")[2])))
        with connect(
            f"{feed.url.replace('http', 'ws')}/api/v1/feed/?api_key={KEY}&after={started}", sock=slow, max_queue=1
        ) as told:
            assert json.loads(told.recv(GENEROUS))["entries"] == []
            waking = feed.service.following.waking
            while len(waking):  # until the service has given it up
                feed.change("n", count=500, detail={"text": "x" * 1000})
            found = []
            with pytest.raises(ConnectionClosed) as closed:
                read_all(told, found)
        # What it was sent it may have read, and what comes then has no gap and no repeat.
        reason = closed.value.rcvd.reason if closed.value.rcvd else None
        token = found[-1]["token"] if found else started
        if reason is not None:
            assert closed.value.rcvd.code == 4008
            assert reason.startswith("lagged; go on after fs1.")
        rest = []
        while page := feed.page(after=token):
            rest += page["entries"]
            token = page["next"]
            if not page["more"]:
                break
        every, token = [], started
        while page := feed.page(after=token):
            every += page["entries"]
            token = page["next"]
            if not page["more"]:
                break
        assert found + rest == every


@pytest.mark.parametrize("route", ["feed/?follow=true", "feed/?wait=30", "documents/nobody?follow=true"])
def test_more_than_may_follow_are_refused_and_all_else_is_answered(tmp_path, route):
    with served(tmp_path / "store", Limits(followers=1)) as feed:
        with feed.socket() as told:
            told.recv(GENEROUS)
            answer = feed.pool.request("GET", f"{feed.url}/api/v1/{route}", retries=False)
            assert (answer.status, json.loads(answer.data)["error"]["facts"]["limit"]) == (503, 1)
            for where in ("feed/", "stream/single/"):
                with pytest.raises(InvalidStatus) as refused:
                    connect(f"{feed.url.replace('http', 'ws')}/api/v1/{where}?api_key={KEY}", open_timeout=GENEROUS)
                assert refused.value.response.status_code == 503
            feed.change("a")
            assert feed.page()["entries"]
        while len(feed.service.following.waking):  # until the service has seen that it went
            time.sleep(0.01)
        with feed.socket() as told:
            told.recv(GENEROUS)


def test_a_database_that_does_not_answer_closes_a_socket_with_where_to_go_on(feed, monkeypatch):
    def unavailable(*args, **more):
        raise Unavailable("the database does not answer")

    with feed.socket() as told:
        token = json.loads(told.recv(GENEROUS))["next"]
        monkeypatch.setattr(feed.service.following, "page_at_once", lambda *args, **more: None)
        monkeypatch.setattr(feed.service.following, "page", unavailable)
        feed.change("a")
        with pytest.raises(ConnectionClosed) as closed:
            told.recv(GENEROUS)
    assert closed.value.rcvd.code == 1011
    assert closed.value.rcvd.reason == f"unavailable; go on after {token}"
    monkeypatch.undo()
    assert [entry["path"] for entry in feed.page(after=token)["entries"]] == [["a"]]


def test_sockets_and_streams_end_with_the_service(tmp_path):
    with served(tmp_path / "store") as feed:
        answer = feed.pool.request("GET", f"{feed.url}/api/v1/feed/", fields={"follow": "true"}, preload_content=False)
        with feed.socket() as told:
            told.recv(GENEROUS)
            feed.service.following.waking.end()
            with pytest.raises(ConnectionClosed):
                told.recv(GENEROUS)
        assert b"entries" in b"".join(answer.stream())


def test_nothing_is_skipped_or_doubled_for_any_subscriber_while_many_write(feed):
    """Streams, sockets and long polls, begun at once with four writers; each must see exactly the log."""
    count, writers = 40, 4
    total = count * writers

    def by_stream():
        answer = feed.pool.request("GET", f"{feed.url}/api/v1/feed/", fields={"follow": "true"}, preload_content=False)
        found, rest = [], b""
        for chunk in answer.stream():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                found += json.loads(line)["entries"]
            if len(found) >= total:
                break
        answer.close()
        return found

    def by_socket():
        found = []
        with feed.socket() as told:
            while len(found) < total:
                found += json.loads(told.recv(GENEROUS))["entries"]
        return found

    def by_poll():
        found, token = [], None
        while len(found) < total:
            page = feed.page(wait=GENEROUS, limit=7, **({} if token is None else {"after": token}))
            found, token = found + page["entries"], page["next"]
        return found

    def write(number):
        for turn in range(count):
            feed.change("n", detail={"writer": number, "turn": turn})

    with ThreadPoolExecutor(16) as pool:
        readers = [pool.submit(way) for way in (by_stream, by_socket, by_poll) for _ in range(3)]
        for written in [pool.submit(write, number) for number in range(writers)]:
            written.result(GENEROUS)
        seen = [reader.result(GENEROUS) for reader in readers]
    every = feed.page(limit=1000)["entries"]
    assert len(every) == total
    assert all(one == every for one in seen)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    with Catalog.open(f"sqlite:///{tmp_path_factory.mktemp('feed') / 'catalog.db'}") as made:
        yield made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    commits=st.lists(st.lists(st.sampled_from(["a", "a/b", "c"]), min_size=1, max_size=5), max_size=8),
    limit=st.integers(1, 7),
    lag=st.none() | st.integers(1, 10),
    joins=st.integers(0, 40),
)
def test_pages_of_any_size_from_any_place_tell_every_change_once_or_say_that_they_do_not(
    catalogue, commits, limit, lag, joins
):
    waking = Waking(catalogue)
    following = Following(catalogue, waking)
    begin = following.place("now")
    for paths in commits:
        with catalogue.write() as tx:
            for path in paths:
                tx.note_change(path.split("/"), "updated", {})
    for subject in (Subject((), None), Subject(("a",), None)):
        inside = [p for paths in commits for p in paths if not subject.path or p.split("/")[0] == "a"]
        place, found, skipped = begin, [], 0
        while True:
            page, place = following.page(subject, place, limit, lag=lag)
            found += ["/".join(entry["path"]) for entry in page.entries]
            if page.lagged:
                missed = following.place(page.lagged["after"])
                skipped += len(following.page(subject, missed)[0].entries)
            assert following.place(page.next) == place
            if not page.more:
                break
        if lag is None:
            assert found == inside
        assert len(found) + skipped == len(inside)
        # From any change on, the rest.
        every, _ = following.page(subject, begin)
        for at, entry in list(enumerate(every.entries))[joins:][:1]:
            after, _ = following.page(subject, following.place(entry["token"]))
            assert after.entries == every.entries[at + 1 :]
    waking.end()
    assert isinstance(begin, Place)
