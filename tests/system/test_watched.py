"""A running ``flystore serve`` can be watched: its log, its metrics, its health.

If these fail, an operator learns of trouble from users, or a key is in the log.
"""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

KEY = "the-key-of-this-service"


@pytest.fixture
def serve(tmp_path):
    """Return a function that starts a service; it returns the address, and a function that ends it."""
    running = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "flystore.cli", "serve", tmp_path / "store", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "FLYSTORE_API_KEY": KEY},
        )
        running.append(process)
        line = process.stdout.readline()
        assert "ready at" in line, process.communicate()[1]

        def end():
            process.send_signal(signal.SIGTERM)
            return process.communicate(timeout=60)[1]

        return line.split()[-1], end

    yield start
    for process in running:
        process.kill()
        process.communicate()


def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_lines_of_json_tell_of_each_request_and_never_the_key(serve):
    url, end = serve("--log-format", "json", "--access-log", "--slow", "0.000001", "--metrics-public")
    assert get(f"{url}/healthz") == (200, b'{"status":"ready"}')
    assert get(f"{url}/api/v1/metadata/?api_key={KEY}")[0] == 200
    assert (
        get(f"{url}/api/v1/metadata/nobody", **{"Authorization": f"Apikey {KEY}", "X-Request-ID": "mine-1"})[0] == 404
    )
    status, text = get(f"{url}/metrics")
    assert status == 200
    counted = {
        sample.labels["family"]: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == "flystore_requests_total"
    }
    assert counted.keys() == {"healthz", "metadata"}
    said = end()
    assert KEY not in said
    found = [json.loads(line) for line in said.splitlines()]
    requests = [line for line in found if line["logger"] == "flystore.requests"]
    assert [line["status"] for line in requests] == [200, 200, 404, 200]
    assert (requests[2]["request"], requests[2]["error"], requests[2]["slow"]) == ("mine-1", "not-found", True)


def test_by_itself_a_service_says_nothing_of_requests_and_wants_the_key_for_metrics(serve):
    url, end = serve()
    assert get(f"{url}/metrics")[0] == 401
    assert get(f"{url}/metrics", Authorization=f"Apikey {KEY}")[0] == 200
    assert end() == ""
