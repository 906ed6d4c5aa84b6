"""``make demo`` runs the main job for somebody who sees flystore for the first time.

If these fail, the first thing a newcomer tries does not work.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

DEMO = pathlib.Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def environment(tmp_path):
    # The demo keeps what it makes in temporary directories, so that one can see whether they are left behind.
    inherited = {name: value for name, value in os.environ.items() if "API_KEY" not in name}
    return {
        **inherited,
        "TMPDIR": str(tmp_path),
        "COLUMNS": "100",
        "MPLCONFIGDIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def demo(environment):
    """Start the demo with some arguments; whatever it started ends with the test."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, DEMO, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            # Who runs the tests in the background ignores interrupts, and a child would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


def nothing_is_left(directory):
    return not [left for left in directory.iterdir() if left.name.startswith("flystore-")]


def test_the_demo_shows_what_came_out_and_ends(demo, tmp_path):
    process = demo()
    shown, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "scan 1: 10/10 points" in shown
    assert "scan 2: 29/29 points" in shown
    assert re.search(r"scan 3: 40/40 points, .* 0 gaps, stored", shown)
    assert "└── primary" in shown
    assert "<xarray.Dataset>" in shown
    assert "the same, says h5py" in shown
    assert "█" in shown
    assert 'client[-1]["primary"].read()' in shown
    assert nothing_is_left(tmp_path)


def test_a_kept_demo_can_be_gone_on_with_until_it_is_interrupted(demo, tmp_path):
    process = demo("--keep")
    shown = ""
    while "Ctrl-C ends it" not in shown:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        shown += line
    url, key = re.search(r'from_uri\("(http://[^"]+)", "(\w+)"\)', shown).groups()
    request = urllib.request.Request(f"{url}/api/v1/search/", headers={"Authorization": f"Apikey {key}"})
    with urllib.request.urlopen(request, timeout=100) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert nothing_is_left(tmp_path)
