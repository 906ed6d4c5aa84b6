"""What a killed process left on a host is listed, checked, and sent by the command, as far as the key allows.

If these fail, the last minutes before a crash wait on the host, and the command that should help does not.
"""

import os
import subprocess
import sys

import pytest

from flystore import from_uri

WRITE = """
import os, signal, sys
from flystore import RunWriter
url, home = sys.argv[1:]
writer = RunWriter(url, api_key="a key that was revoked", journal=home)
keys = {"x": {"source": "sim", "dtype": "number", "shape": []}}
writer("start", {"uid": "run-1", "time": 1000.0, "scan_id": 7})
writer("descriptor", {"uid": "d", "run_start": "run-1", "name": "primary", "time": 1000.0, "data_keys": keys})
for number in range(1, 101):
    row = {"uid": f"e-{number}", "descriptor": "d", "seq_num": number, "time": 1000.0 + number}
    writer("event", {**row, "data": {"x": 0.5 * number}, "timestamps": {"x": 1000.0}})
try:
    writer.flush(30)
except Exception as error:
    print(error.kind, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def flystore(tmp_path):
    def run(*arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLYSTORE_")}
        return subprocess.run(
            [sys.executable, "-m", "flystore.cli", "journal", *arguments, "--journal", str(tmp_path / "journal")],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=environment,
        )

    return run


def test_a_run_that_was_refused_for_its_key_is_sent_with_a_good_one(server, tmp_path, flystore):
    died = subprocess.run(
        [sys.executable, "-c", WRITE, server.url, str(tmp_path / "journal")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert died.returncode == -9, died.stderr
    assert died.stdout == "unauthenticated\n"

    listed = flystore("ls")
    assert "orphan left by process" in listed.stdout
    assert "102 documents waiting" in listed.stdout
    assert "scan 7 [run-1]: parked: unauthenticated: " in listed.stdout
    assert flystore("verify").returncode == 0

    refused = flystore("ship", "--api-key", "another")
    assert refused.returncode == 3
    assert "run run-1 is parked: unauthenticated: " in refused.stderr

    sent = flystore("ship", "--api-key", server.key)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout.endswith("102 documents stored, nothing is left\n")
    with from_uri(server.url, api_key=server.key) as client:
        assert list(client["run-1"]["primary"]["x"].read()) == [0.5 * number for number in range(1, 101)]
    assert "nothing waits" in flystore("ls").stdout
