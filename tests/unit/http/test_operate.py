"""A service says how it is, what it counted and whose request it answers, and tells strangers nothing else.

If these fail, a dead service is taken for a living one, dashboards show nonsense, or a key stands in a log.
"""

import asyncio
import json
import logging
import os
import sqlite3
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flystore.catalog import _database, slow_queries
from flystore.http import Access, Watching, build_app
from flystore.http.measuring import Measuring
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.service import Service
from flystore.service import health as health_of
from flystore.service.metrics import Backlogs, Counter, Histogram, Metrics, Read
from flystore.testing.documents import RunDocuments, internal

KEY = "a-secret-key"
WITH_KEY = {"authorization": f"Apikey {KEY}"}


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def ask(service):
    """Return a function that sends a request and returns status, headers and body."""

    def make(**watching):
        app = build_app(service, Access.of(KEY), watching=Watching(**watching))

        def asked(path, headers=None, *, query="", method="GET", body=b""):
            return asyncio.run(answered(app, path, headers or {}, query, method, body))

        asked.app = app
        return asked

    return make


async def answered(app, path, headers, query, method, body):
    sent = {}

    async def send(message):
        if message["type"] == "http.response.start":
            sent["status"] = message["status"]
            sent["headers"] = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            sent["body"] = sent.get("body", b"") + bytes(message.get("body", b""))

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    named = [(b"host", b"here"), *((name.encode(), value.encode()) for name, value in headers.items())]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": named}
    await app({**scope, "scheme": "http", "client": ("10.0.0.9", 1), "server": ("here", 80)}, receive, send)
    return sent["status"], sent["headers"], sent["body"]


def samples(text):
    """Return what Prometheus' own parser makes of a text: value by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k != "process"))
            assert key not in found, "a sample comes twice"
            found[key] = sample.value
    return found


def scraped(asked):
    status, headers, body = asked("/metrics", WITH_KEY)
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(body)


def batch_of(run):
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in run.documents for payload in encoder.encode(name, doc))


# --- health


def test_a_service_that_works_says_what_tiled_says_and_wants_no_key(ask):
    status, _, body = ask()("/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ready"})
    assert json.loads(ask()("/healthz/live")[2]) == {"status": "alive"}


def test_a_storage_that_cannot_be_written_is_not_ready_and_no_place_is_named(ask, service, tmp_path):
    (tmp_path / "store" / "arrays").rename(tmp_path / "elsewhere")
    try:
        status, _, body = ask()("/healthz")
    finally:
        (tmp_path / "elsewhere").rename(tmp_path / "store" / "arrays")
    assert (status, json.loads(body)["status"]) == (503, "not-ready")
    assert "storage" in json.loads(body)["reason"]
    assert str(tmp_path) not in body.decode()


def test_a_catalogue_that_does_not_answer_is_not_ready(ask, service):
    service._catalog._database._idle.clear()
    real = service._catalog._database._connect
    database = service._catalog._database

    def refused(*args):
        raise sqlite3.OperationalError("unable to open database file /srv/secret/catalog.sqlite")

    database._engine = _database.sa.create_engine("sqlite://", creator=refused, poolclass=_database.sa.pool.NullPool)
    try:
        status, _, body = ask()("/healthz")
    finally:
        database._engine = _database.sa.create_engine("sqlite://", creator=real, poolclass=_database.sa.pool.NullPool)
    assert (status, json.loads(body)) == (503, {"status": "not-ready", "reason": "the catalogue does not answer"})


def test_many_who_ask_cost_one_look(ask, service, monkeypatch):
    looked = []
    real = service.readiness._look
    monkeypatch.setattr(service.readiness, "_look", lambda: looked.append(1) or real())
    service.readiness._clock = lambda: 100.0
    asked = ask()
    assert {asked("/healthz")[0] for _ in range(5)} == {200}
    assert len(looked) == 1
    service.readiness._clock = lambda: 100.0 + health_of.FRESH_S
    asked("/healthz")
    assert len(looked) == 2


def test_a_disk_that_hangs_is_told_and_the_process_still_answers(ask, service, monkeypatch):
    let_go = threading.Event()
    monkeypatch.setattr(service.readiness, "_look", lambda: let_go.wait(60) and None)
    monkeypatch.setattr("flystore.http.routes_operate.PATIENCE_S", 0.05)
    asked = ask()

    async def both():
        first = await answered(asked.app, "/healthz", {}, "", "GET", b"")
        alive = await answered(asked.app, "/healthz/live", {}, "", "GET", b"")
        let_go.set()
        return first, alive

    first, alive = asyncio.run(both())
    assert (first[0], json.loads(first[2])["status"]) == (503, "not-ready")
    assert alive[0] == 200


# --- metrics


def test_metrics_want_the_key_unless_they_are_public(ask):
    assert ask()("/metrics")[0] == 401
    assert ask()("/metrics", {"authorization": "Apikey wrong"})[0] == 401
    assert ask()("/metrics", WITH_KEY)[0] == 200
    assert ask()("/api/v1/metrics", WITH_KEY)[0] == 200
    assert ask(metrics_public=True)("/metrics")[0] == 200


def test_requests_are_counted_by_family_method_and_status(ask):
    asked = ask()
    for _ in range(3):
        asked("/api/v1/metadata/", WITH_KEY)
    asked("/api/v1/metadata/nobody", WITH_KEY)
    body = asked("/api/v1/", WITH_KEY)[2]
    found = scraped(asked)
    counted = [
        found["flystore_requests_total", ("family", family), ("method", "GET"), ("status", status)]
        for family, status in (("metadata", "200"), ("metadata", "404"), ("about", "200"))
    ]
    assert counted == [3, 1, 1]
    assert found["flystore_request_seconds_count", ("family", "metadata")] == 4
    assert found["flystore_request_seconds_bucket", ("family", "metadata"), ("le", "+Inf")] == 4
    assert found["flystore_sent_bytes_total", ("family", "about")] == len(body)
    assert found["flystore_requests_under_way",] == 1, "the one that asks"


def test_paths_and_methods_that_nobody_knows_make_no_new_labels(ask):
    asked = ask()
    for n in range(20):
        asked(f"/wild-{n}/x", WITH_KEY)
        asked(f"/api/v1/wild-{n}/x", WITH_KEY, method=f"WILD{n}")
    families = {key[1:] for key in scraped(asked) if key[0] == "flystore_requests_total"}
    assert len(families) == 2
    assert {dict(labels)["family"] for labels in families} == {"other"}


def test_ingest_is_counted_with_its_lag_and_what_came_again(ask, service):
    asked = ask()
    run = RunDocuments("run")
    run.stream("primary", x=internal()).event(x=1.0)
    run.stop()
    body = batch_of(run)
    headers = {**WITH_KEY, "content-type": FRAMES_MIMETYPE, "x-flystore-backlog": "host-1;250;98765"}
    for _ in range(2):
        status, _, said = asked("/api/v1/ingest/run", headers, query="first=0&epoch=0", method="POST", body=body)
        assert status == 200, said
    found = scraped(asked)
    count = len(run.documents)
    assert found["flystore_ingest_documents_total",] == count
    assert found["flystore_ingest_repeated_documents_total",] == count
    assert found["flystore_ingest_batches_total",] == 1
    assert found["flystore_ingest_lag_seconds_count",] == 1
    stopped = run.documents[-1][1]["time"]
    assert found["flystore_ingest_lag_seconds_sum",] <= max(0.0, time.time() - stopped)
    assert found["flystore_received_bytes_total", ("family", "ingest")] == 2 * len(body)
    assert found["flystore_journal_backlog_documents",] == 250
    assert found["flystore_journal_backlog_bytes",] == 98765
    assert found["flystore_memory_held_bytes",] == 0
    assert found["flystore_memory_budget_bytes",] == service.budget.total_bytes
    assert found["flystore_probing_queue",] == 0
    assert found["flystore_storage_free_bytes",] > 0


def test_followers_are_counted_while_they_follow(ask, service):
    asked = ask()
    with service.following.waking.follower(), service.following.waking.follower():
        assert scraped(asked)["flystore_feed_subscribers",] == 2
    assert scraped(asked)["flystore_feed_subscribers",] == 0


def test_what_writers_said_is_added_up_and_forgotten():
    now = [1000.0]
    backlogs = Backlogs(lambda: now[0])
    backlogs.note("a", 10, 100)
    backlogs.note("a", 7, 70)
    now[0] += 200
    backlogs.note("b", 1, 5)
    values = lambda: [next(iter(read.samples()))[2] for read in backlogs.measures()]  # noqa: E731
    assert values() == [8, 75, 2]
    now[0] += 101
    assert values() == [1, 5, 1]


def test_a_slow_statement_is_counted_under_the_name_of_what_asked_for_it(ask, service, monkeypatch):
    before = {name: found.times for name, found in slow_queries().items()}
    monkeypatch.setattr(_database, "SLOW_S", 0.0)
    with service._catalog.read() as snapshot:
        snapshot.node(())
        snapshot.last_position()
    monkeypatch.undo()
    after = {name: found.times - before.get(name, 0) for name, found in slow_queries().items()}
    assert after["node"] >= 1
    assert after["last_position"] == 1
    assert scraped(ask())["flystore_slow_queries_total", ("query", "last_position")] >= 1


def test_the_text_survives_any_label_and_a_number_that_cannot_be_had():
    metrics = Metrics('worker "2"\n\\')
    counter = Counter("wild_total", "A \\ and a\nline.", "text")
    counter.add(2, ('say "no"\n\\',))
    metrics.keep(counter)
    histogram = Histogram("took_seconds", "Time.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.add(value)
    metrics.keep(histogram)

    def fails():
        raise OSError("no such file")

    metrics.keep(Read("gone", "Gone.", fails))
    found = samples(metrics.text())
    assert found["wild_total", ("text", 'say "no"\n\\')] == 2
    assert [found["took_seconds_bucket", ("le", le)] for le in ("0.1", "1", "+Inf")] == [2, 3, 4]
    assert found["took_seconds_sum",] == pytest.approx(7.65)
    assert not any(key[0] == "gone" for key in found)
    assert found["process_resident_memory_bytes",] > 1e6
    assert found["process_open_fds",] <= found["process_max_fds",]


def test_every_sample_says_which_process_it_is_of(ask):
    text = ask(process="3")("/metrics", WITH_KEY)[2].decode()
    for family in text_string_to_metric_families(text):
        assert {sample.labels["process"] for sample in family.samples} <= {"3"}


def test_counting_from_many_threads_loses_nothing():
    counter, histogram = Counter("n_total", "N.", "who"), Histogram("s", "S.", (1.0,), "who")

    def work():
        for _ in range(2000):
            counter.add(1, ("a",))
            histogram.add(0.5, ("a",))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next(iter(counter.samples()))[2] == 8000
    assert [value for suffix, _, value in histogram.samples() if suffix == "_count"] == [8000]


# --- request ids and the log


def test_a_request_keeps_the_id_that_its_caller_gave(ask):
    asked = ask()
    for name in ("x-request-id", "x-tiled-request-id"):
        _, headers, _ = asked("/api/v1/", {**WITH_KEY, name: "scan-17/step.3"})
        assert headers["x-tiled-request-id"] == headers["x-request-id"] == "scan-17/step.3"
    made = {asked("/api/v1/", WITH_KEY)[1]["x-tiled-request-id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("told", ["", "a b", "x" * 129, "a\tb", 'a"b', "é"])
def test_an_id_that_would_spoil_a_log_is_not_taken(ask, told):
    _, headers, _ = ask()("/api/v1/", {**WITH_KEY, "x-request-id": told})
    assert headers["x-tiled-request-id"] != told
    assert "x-request-id" not in headers


def test_a_line_of_the_access_log_names_the_request_and_no_key(ask, caplog):
    asked = ask(access_log=True)
    with caplog.at_level(logging.INFO, "flystore.requests"):
        asked("/api/v1/metadata/", query=f"api_key={KEY}&fields=count")
        asked("/api/v1/metadata/", query=f"api%5Fkey={KEY}&fields=count")
        asked("/api/v1/metadata/nobody\nat all", WITH_KEY)
    first, second, third = (record.flystore for record in caplog.records)
    assert (first["path"], first["status"], first["family"]) == ("/api/v1/metadata/", 200, "metadata")
    assert "fields=count" in first["query"]
    assert "fields=count" in second["query"]
    assert (third["status"], third["error"]) == (404, "not-found")
    assert KEY not in caplog.text
    assert not any(KEY in json.dumps(record.flystore) for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_without_an_access_log_only_what_is_slow_or_failed_is_said(ask, service, caplog, monkeypatch):
    asked = ask(slow_seconds=1000.0)
    with caplog.at_level(logging.INFO, "flystore.requests"):
        asked("/api/v1/metadata/", WITH_KEY)
        asked("/api/v1/metadata/nobody", WITH_KEY)
        assert not caplog.records
        ask(slow_seconds=1e-9)("/api/v1/metadata/", WITH_KEY)
        (slow,) = caplog.records
        assert (slow.levelname, slow.flystore["slow"]) == ("WARNING", True)
        caplog.clear()

        def broken(*args, **more):
            raise RuntimeError("a defect")

        monkeypatch.setattr(service.browse, "entry", broken)
        monkeypatch.setattr(service.versions, "at_once", broken)
        assert asked("/api/v1/array/full/x", WITH_KEY)[0] == 500
    (said,) = (record for record in caplog.records if record.name == "flystore.requests")
    assert (said.levelname, said.flystore["error"]) == ("ERROR", "defect")


def test_what_a_request_counts_costs_little(service, ask):
    """No look at a clock here: the number of steps is bounded, whatever was counted before."""
    measuring = Measuring(service, ask().app.routes, Watching())
    scope = {"path": "/api/v1/array/full/run/primary/x", "method": "GET", "query_string": b"", "headers": []}
    for path in ("/api/v1/metadata/", "/zarr/v3/x", "/nothing"):
        measuring.finished({**scope, "path": path}, 200, 0.01, 10, 0)
    sizes = [len(measuring._count.values), len(measuring._seconds.values), len(measuring._sent.values)]
    for _ in range(1000):
        measuring.finished(scope, 200, 0.001, 100, 0)
        measuring.finished({**scope, "path": f"/nothing/{os.urandom(2).hex()}"}, 404, 0.001, 100, 0)
    after = [len(measuring._count.values), len(measuring._seconds.values), len(measuring._sent.values)]
    assert [new - old for new, old in zip(after, sizes, strict=True)] == [2, 1, 1]
