"""When `wait` returns, whoever asks the service gets the row, and a restart of the service has it.

If these fail, an adaptive scan decides on rows that are not there yet.
"""

import threading

import pytest

from flystore import RunWriter, from_uri
from flystore.http import Access, build_app
from flystore.service import Service
from flystore.testing.serving import serving

KEYS = {"x": {"source": "sim", "dtype": "number", "shape": []}}


def event(number, uid="run-1"):
    return {
        "uid": f"{uid}-{number}",
        "descriptor": f"d-{uid}",
        "seq_num": number,
        "time": 1000.0 + number,
        "data": {"x": 0.5 * number},
        "timestamps": {"x": 1000.0 + number},
    }


@pytest.fixture
def writer(server, tmp_path):
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        writer("start", {"uid": "run-1", "time": 1000.0, "scan_id": 1})
        writer(
            "descriptor",
            {"uid": "d-run-1", "run_start": "run-1", "name": "primary", "time": 1000.0, "data_keys": KEYS},
        )
        yield writer


def rows(server):
    with from_uri(server.url, api_key=server.key) as client:
        return list(client["run-1"]["primary"]["x"].read())


@pytest.mark.parametrize("until", ["readable", "durable"])
def test_a_row_that_was_waited_for_is_what_a_reader_gets(writer, server, until):
    for number in range(1, 11):
        writer("event", event(number))
        writer.wait("run-1", number, until=until, timeout=100)
        assert rows(server) == [0.5 * n for n in range(1, number + 1)]


def test_a_row_that_was_waited_for_elsewhere_is_what_a_reader_gets(writer, server):
    seen, failed = {}, []

    def wait(number):
        try:
            writer.wait("run-1", number, until="readable", timeout=100)
            seen[number] = len(rows(server))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=wait, args=(number,)) for number in (2, 5, 9)]
    for thread in threads:
        thread.start()
    for number in range(1, 11):
        writer("event", event(number))
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(count >= number for number, count in seen.items())
    assert sorted(seen) == [2, 5, 9]


def test_a_durable_row_is_there_after_a_restart(writer, server, tmp_path):
    writer("event", event(1))
    writer.wait("run-1", 1, until="durable", timeout=100)
    server.service.close()
    with Service.open(server.directory) as service, serving(build_app(service, Access.of(server.key))) as url:
        assert rows(server._replace(url=url)) == [0.5]
