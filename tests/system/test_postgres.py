"""Services on PostgreSQL: two on one catalogue, and a database that goes away for a while.

If these fail, who watches a scan through another service sees it half a second late, or a database that is restarted
in the night costs documents that were acknowledged.
"""

import collections
import contextlib
import itertools
import json
import socket
import threading

import bluesky.plans as bp
import pytest
import sqlalchemy as sa
import urllib3
from bluesky import RunEngine
from ophyd.sim import hw

from flystore import RunWriter, from_uri
from flystore.http import Access, build_app
from flystore.service import Service
from flystore.service.waking import Waking
from flystore.testing.serving import serving
from flystore.testing.stock_server import API_KEY as KEY

GENEROUS = 100.0
NEVER = 1e6


class Relay:
    """A way to a PostgreSQL server that can be cut and mended; a context manager.

    Attributes
    ----------
    url : str
        Of the same database, by this way.
    """

    def __init__(self, url: str) -> None:
        named = sa.make_url(url)
        self._target = named
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_cut = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        query = {name: value for name, value in named.query.items() if name not in ("host", "port")}
        self.url = named.set(host="127.0.0.1", port=self._listener.getsockname()[1], query=query).render_as_string(
            hide_password=False
        )

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_):
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(GENEROUS)

    def cut(self):
        with self._lock:
            self._is_cut = True
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def restore(self):
        with self._lock:
            self._is_cut = False

    def _start(self, work, *arguments):
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_cut:
                    near.close()
                    continue
                far = self._connected()
                self._open |= {near, far}
            one = threading.Thread(target=self._forward, args=(near, far))
            one.start()
            self._start(self._back, near, far, one)

    def _connected(self):
        host, port = self._target.query.get("host", self._target.host), self._target.port or 5432
        if str(host).startswith("/"):
            far = socket.socket(socket.AF_UNIX)
            far.connect(f"{host}/.s.PGSQL.{port}")
            return far
        return socket.create_connection((host, port))

    def _forward(self, source, sink):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _back(self, near, far, other):
        self._forward(far, near)
        other.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()


@pytest.fixture
def relay(fresh_postgres):
    with Relay(fresh_postgres) as made:
        yield made


@pytest.fixture
def serve(tmp_path, data):
    """Serve a catalogue from this machine's directory; return (URL, service)."""
    with contextlib.ExitStack() as stack:

        def start(catalog):
            service = stack.enter_context(Service.open(tmp_path / "store", read=[data], catalog=catalog))
            return stack.enter_context(serving(build_app(service, Access.of(KEY)))), service

        yield start


class Balancer:
    """Gives each connection to the next service, or to one after it if that does not answer; a context manager."""

    def __init__(self, urls):
        self._ports = itertools.cycle([int(url.rpartition(":")[2]) for url in urls])
        self._many = len(urls)
        self._relay = Relay("postgresql://nobody@127.0.0.1/nothing")
        self._relay._connected = self._next
        self.asked = collections.Counter()
        self.url = f"http://127.0.0.1:{self._relay._listener.getsockname()[1]}"

    def _next(self):
        for _ in range(self._many):
            port = next(self._ports)
            with contextlib.suppress(ConnectionRefusedError):
                found = socket.create_connection(("127.0.0.1", port))
                self.asked[port] += 1
                return found
        raise ConnectionRefusedError

    def __enter__(self):
        self._relay.__enter__()
        return self

    def __exit__(self, *_):
        self._relay.__exit__()


def scan(writer, points=5):
    engine = RunEngine({}, context_managers=[])
    engine.subscribe(writer)
    documents = []
    engine.subscribe(lambda name, doc: documents.append((name, doc)))
    (uid,) = engine(bp.count([hw().det], points))
    return uid, documents


def get(url, path):
    with urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}"}) as pool:
        answer = pool.request("GET", f"{url}/api/v1{path}", retries=False, timeout=GENEROUS)
        return answer.status, answer.headers, json.loads(answer.data)


def test_a_database_that_goes_away_for_a_while_costs_a_wait_and_nothing_else(relay, serve, tmp_path):
    url, _ = serve(relay.url)
    with RunWriter(url, api_key=KEY, journal=tmp_path / "journal", first_pause=0.01, longest_pause=0.1) as writer:
        first, _ = scan(writer)
        writer.flush(GENEROUS)
        relay.cut()

        for path in (f"/metadata/{first}", "/search/"):
            status, headers, body = get(url, path)
            assert (status, body["error"]["kind"]) == (503, "unavailable")
            assert headers["Retry-After"]
        second, documents = scan(writer)  # the plan does not wait
        relay.restore()
        writer.flush(GENEROUS)

    with from_uri(url, KEY) as client:
        assert [client[uid].metadata["start"]["uid"] for uid in (first, second)] == [first, second]
        kept = list(client[second].documents())
    assert [(name, doc["uid"]) for name, doc in kept if "uid" in doc] == [
        (name, doc["uid"]) for name, doc in documents if "uid" in doc
    ]


@pytest.fixture
def looked(monkeypatch):
    """A semaphore that is released after each look for commits of others; there are no looks but at the beginning."""
    monkeypatch.setattr("flystore.service.waking.LOOK_SECONDS", NEVER)
    original, done = Waking.heard, threading.Semaphore(0)

    def heard(self):
        original(self)
        done.release()

    monkeypatch.setattr(Waking, "heard", heard)
    return done


@contextlib.contextmanager
def following(service, looked):
    """Yield a follower after the looks of the beginning: its own, and the listener's."""
    with service.following.waking.follower() as follower:
        for _ in range(2):
            assert looked.acquire(timeout=GENEROUS)
        yield follower


def test_services_behind_a_balancer_are_one_and_a_shipper_goes_on_with_those_that_are_left(
    fresh_postgres, serve, tmp_path
):
    stays, _ = serve(fresh_postgres)
    with contextlib.ExitStack() as leaves:
        service = leaves.enter_context(Service.open(tmp_path / "store", catalog=fresh_postgres))
        ends = leaves.enter_context(serving(build_app(service, Access.of(KEY))))
        with (
            Balancer([ends, stays]) as balancer,
            RunWriter(balancer.url, api_key=KEY, journal=tmp_path / "j", first_pause=0.01, longest_pause=0.1) as writer,
        ):
            before = [scan(writer)[0] for _ in range(2)]
            writer.flush(GENEROUS)
            for _ in range(4):
                assert get(balancer.url, f"/metadata/{before[0]}")[0] == 200
            assert len(balancer.asked) == 2
            leaves.close()
            after = [scan(writer)[0] for _ in range(2)]
            writer.flush(GENEROUS)
            assert get(balancer.url, f"/metadata/{after[0]}")[0] == 200
    with from_uri(stays, KEY) as client:
        assert set(client) == {*before, *after}
        assert all(len(list(client[uid].documents())) == 8 for uid in client)


def test_a_follower_on_one_service_hears_at_once_of_what_another_one_stored(fresh_postgres, serve, looked, tmp_path):
    _, here = serve(fresh_postgres)
    there, _ = serve(fresh_postgres)
    with following(here, looked) as follower, RunWriter(there, api_key=KEY, journal=tmp_path / "j") as writer:
        mark = follower.mark
        scan(writer)
        assert follower.wait_here(mark, GENEROUS)


def test_without_what_the_database_tells_it_hears_of_nothing(fresh_postgres, serve, looked, tmp_path, monkeypatch):
    monkeypatch.setattr("flystore.catalog._postgres.PostgresDatabase.notify", lambda *_: None)
    _, here = serve(fresh_postgres)
    there, _ = serve(fresh_postgres)
    with following(here, looked) as follower, RunWriter(there, api_key=KEY, journal=tmp_path / "j") as writer:
        mark = follower.mark
        scan(writer)
        writer.flush(GENEROUS)
        assert not follower.wait_here(mark, 0.2)
