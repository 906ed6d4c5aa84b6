"""``make demo`` runs the main job for somebody who sees flystore for the first time.

If these fail, the first thing a newcomer tries does not work.
"""

import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest

DEMO = pathlib.Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def environment(tmp_path):
    # The demo keeps what it makes in temporary directories, so that one can see whether they are left behind.
    inherited = {name: value for name, value in os.environ.items() if "API_KEY" not in name}
    return {**inherited, "TMPDIR": str(tmp_path), "COLUMNS": "100", "MPLCONFIGDIR": str(tmp_path)}


def test_the_demo_shows_what_came_out_and_ends(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, DEMO], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "scan 1: 10/10 points" in shown
    assert "scan 2: 29/29 points" in shown
    assert re.search(r"scan 3: 40/40 points, .* 0 gaps, stored", shown)
    assert "└── primary" in shown
    assert "<xarray.Dataset>" in shown
    assert "the same, says h5py" in shown
    assert "█" in shown
    assert 'client[-1]["primary"].read()' in shown
    assert not [left for left in tmp_path.iterdir() if left.name.startswith("flystore-")]


def test_a_kept_demo_can_be_gone_on_with_until_it_is_interrupted(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, DEMO, "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONUNBUFFERED": "1"},
    )
    lines = queue.SimpleQueue()

    def read_lines():
        for line in process.stdout:
            lines.put(line)

    errors = []
    readers = [
        threading.Thread(target=read_lines),
        threading.Thread(target=lambda: errors.append(process.stderr.read())),
    ]
    for reader in readers:
        reader.start()
    try:
        shown = ""
        while "Ctrl-C ends it" not in shown:
            shown += lines.get(timeout=60)
        url, key = re.search(r'from_uri\("(http://[^"]+)", "(\w+)"\)', shown).groups()
        request = urllib.request.Request(f"{url}/api/v1/search/", headers={"Authorization": f"Apikey {key}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
    assert errors == [""]
    assert not [left for left in tmp_path.iterdir() if left.name.startswith("flystore-")]
