"""A running writer sees to what other processes of its host left since, and knows its service by any name.

If these fail, the documents of a process that died wait until somebody happens to start another one.
"""

import logging

import pytest
from test_writer_shipping import DESCRIPTOR, START, scan, wait_until

from flystore.journal import Journal, journals, orphans
from flystore.testing.ingest_server import IngestServer
from flystore.testing.journals import abandoned, document_payloads
from flystore.writer import RunWriter, same_target
from flystore.writer import _adoption as adoption_module
from flystore.writer import _shipper as shipper_module

QUICK = {"linger": 0.0, "first_pause": 0.01, "longest_pause": 0.05, "reserve_bytes": 0}


def stored(server, uid="run-o"):
    return len(server.store.documents(uid))


@pytest.fixture
def looking(monkeypatch):
    monkeypatch.setattr(shipper_module, "LOOK_S", 0.02)


@pytest.mark.usefixtures("looking")
def test_an_idle_writer_sends_what_another_leaves_later(make_writer, server, home):
    writer = make_writer(server.url)
    writer.flush(60)
    path = abandoned(home, 50, uid="run-o", target=server.url)
    wait_until(lambda: stored(server) == 50)
    wait_until(lambda: not path.exists())
    assert any(run.adopted for run in writer.status().runs)


@pytest.mark.usefixtures("looking")
def test_a_busy_writer_sends_what_another_leaves_later(make_writer, server, home):
    writer = make_writer(server.url)
    writer(*START)
    writer(*DESCRIPTOR)
    abandoned(home, 50, uid="run-o", target=server.url)
    number = 0

    def goes_on():
        nonlocal number
        number += 1
        writer("event", {"descriptor": "d-1", "seq_num": number})
        return stored(server) == 50

    wait_until(goes_on)


@pytest.mark.usefixtures("looking")
def test_a_writer_still_collects_documents_between_two_looks(make_writer, server):
    writer = make_writer(server.url, linger=60.0)
    writer(*START)
    writer(*DESCRIPTOR)
    looks = []
    real = writer._shipper._adopt
    writer._shipper._adopt = lambda home: looks.append(real(home))
    wait_until(lambda: len(looks) > 10)
    assert stored(server, "run-1") == 0


@pytest.mark.usefixtures("looking")
def test_of_running_writers_one_takes_an_orphan(server, home):
    writers = [RunWriter(server.url, journal=home, **QUICK) for _ in range(4)]
    for number in range(5):
        abandoned(home, 40, uid=f"run-{number}", target=server.url)
    wait_until(lambda: all(stored(server, f"run-{number}") == 40 for number in range(5)))
    wait_until(lambda: len(journals(home)) == len(writers))
    for writer in writers:
        writer.close()
    for number in range(5):
        run = server.store.runs[f"run-{number}"]
        assert (run.epoch, sum(count for _, count in run.batches)) == (2, 40)
    assert list(home.iterdir()) == []


def test_what_lives_is_left_alone(make_writer, server, home, looking):
    with Journal.create(home, target=server.url, reserve_bytes=0) as other:
        log = other.open_run("run-o")
        for payloads in document_payloads(10, "run-o"):
            log.append(payloads)
        writer = make_writer(server.url)
        looks = []
        real = writer._shipper._adopt
        writer._shipper._adopt = lambda home: looks.append(real(home))
        wait_until(lambda: len(looks) > 10)
        assert stored(server) == 0
    wait_until(lambda: stored(server) == 10)


def test_when_the_service_comes_back_it_is_looked_again(make_writer, home, unused_port):
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    writer = make_writer(url)
    scan(writer)
    wait_until(lambda: writer.status().connected is False)
    abandoned(home, 50, uid="run-o", target=url)
    with IngestServer(port=port) as server:
        wait_until(lambda: stored(server) == 50)
        writer.flush(60)
        assert stored(server, "run-1") == 23


@pytest.mark.usefixtures("looking")
def test_what_is_meant_for_others_is_said_once_and_as_long_as_it_is_true(make_writer, server, home, caplog):
    path = abandoned(home, 10, target="http://elsewhere:8000")
    with caplog.at_level(logging.WARNING):
        writer = make_writer(server.url)
        looks = []
        real = writer._shipper._adopt
        writer._shipper._adopt = lambda home: looks.append(real(home))
        wait_until(lambda: len(looks) > 10)
    assert sum("http://elsewhere:8000" in record.getMessage() for record in caplog.records) == 1
    assert any("http://elsewhere:8000" in warning for warning in writer.status().warnings)
    assert orphans(home) == [path]
    for file in sorted(path.iterdir()):
        file.unlink()
    wait_until(lambda: writer.status().warnings == ())


SAME = [
    ("http://localhost:8000", "http://127.0.0.1:8000"),
    ("http://localhost:8000", "http://[::1]:8000"),
    ("http://localhost:8000/", "http://127.0.0.1:8000/api/v1"),
    ("http://localhost:8000", "http://LOCALHOST:8000/api/v1/"),
    ("http://host", "http://host:80/"),
    ("https://host/data/", "https://host:443/data/api/v1"),
    ("http://host.:8000", "http://host:8000"),
    ("/srv/store", "/srv/other/../store"),
]
OTHERS = [
    ("http://localhost:8000", "http://localhost:8001"),
    ("http://localhost:8000", "https://localhost:8000"),
    ("http://localhost:8000", "http://127.0.0.2:8000"),
    ("http://host:8000", "http://host:8000/data"),
    ("http://host:8000", "http://other:8000"),
    ("/srv/store", "/srv/other"),
    ("srv/store", "/srv/store"),
    ("http://host:port", "http://host:other"),
    ("", "http://localhost"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_service_written_in_two_ways_is_one_target(one, other):
    assert same_target(one, other)
    assert same_target(other, one)


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_two_services_are_two_targets(one, other):
    assert not same_target(one, other)
    assert not same_target(other, one)


def test_a_store_reached_over_a_link_is_the_same(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert same_target(str(tmp_path / "store"), str(tmp_path / "link"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_what_was_left_for_this_host_by_one_name_is_sent_by_a_writer_with_another(make_writer, server, home, host):
    other = {"localhost": "127.0.0.1", "127.0.0.1": "localhost"}[host]
    abandoned(home, 20, uid="run-o", target=f"http://{other}:{server.port}")
    writer = make_writer(f"http://{host}:{server.port}/api/v1/")
    writer.flush(60)
    assert stored(server) == 20
    assert writer.status().warnings == ()


@pytest.mark.parametrize(("filesystem", "sent"), [("nfs4", False), (None, True)])
def test_what_another_host_left_for_its_own_service_is_not_given_to_ours(
    make_writer, server, home, monkeypatch, filesystem, sent
):
    path = abandoned(home, 20, uid="run-o", target=server.url)
    (path / "lock").write_text("held by process 5 on another-host\n")
    monkeypatch.setattr(adoption_module, "network_filesystem", lambda path: filesystem)
    writer = make_writer(server.url)
    writer.flush(60)
    assert stored(server) == (20 if sent else 0)
    assert any("on another-host" in warning for warning in writer.status().warnings) is not sent
