"""What lies in ``deploy/`` starts the service it describes.

If these fail, a facility's first contact with flystore is a unit that systemd refuses, or an option that is gone.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flystore.cli._notify import tell_systemd

DEPLOY = Path(__file__).parents[2] / "deploy"


def settings(name):
    """Return the settings of the unit, by name."""
    text = (DEPLOY / "flystore.service").read_text()
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def container(instruction):
    """Return what an instruction of the container file says, lines joined."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction}\s+(.*)$", text, re.MULTILINE)


@pytest.fixture
def started(tmp_path):
    """Return a function that runs a command of ``flystore`` and waits until systemd would be told that it is ready."""
    running = []

    def start(arguments, environment=None):
        place = tmp_path / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(place))
            told.settimeout(60)
            process = subprocess.Popen(
                [sys.executable, "-m", "flystore.cli", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={"PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": str(place), **(environment or {})},
            )
            running.append(process)
            heard = [told.recv(100)]
            url = process.stdout.readline().split()[-1]
            with urllib.request.urlopen(f"{url.partition('?')[0].rstrip('/')}/healthz", timeout=60) as answer:
                assert json.loads(answer.read()) == {"status": "ready"}
            process.send_signal(signal.SIGTERM)
            heard.append(told.recv(100))
            said = process.communicate(timeout=60)[1]
        return heard, process.returncode, said

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_the_command_of_the_unit_starts_and_tells_systemd(started, tmp_path):
    (command,) = settings("ExecStart")
    _, *arguments = shlex.split(command)
    places = {"/var/lib/flystore": tmp_path / "store", "/data/detectors": tmp_path, "8000": "0", "0.0.0.0": "127.0.0.1"}
    heard, status, said = started([str(places.get(each, each)) for each in arguments], {"FLYSTORE_API_KEY": "k" * 32})
    assert (heard, status, said) == ([b"READY=1", b"STOPPING=1"], 0, "")


def test_the_command_of_the_container_starts_and_its_look_at_the_health_is_right(started, tmp_path):
    (command,) = container("ENTRYPOINT")
    _, *arguments = json.loads(command)
    places = {"/store": tmp_path / "store", "8000": "0", "0.0.0.0": "127.0.0.1"}
    _, status, _ = started([str(places.get(each, each)) for each in arguments])
    assert status == 0
    (health,) = container("HEALTHCHECK")
    compile(json.loads(health.partition("CMD ")[2])[2], "health", "exec")
    assert "/healthz" in health


def test_the_container_names_only_what_is_here():
    (installed,) = [each for each in container("RUN") if "pip install" in each]
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    extras = re.search(r"/src\[(.*?)\]", installed).group(1).split(",")
    assert [extra for extra in extras if f"\n{extra} = [" not in project] == []
    kept = [line[1:] for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    assert [name for name in kept if not (DEPLOY.parent / name).exists()] == []
    variables = re.findall(r"FLYSTORE_[A-Z_]+", (DEPLOY / "Containerfile").read_text())
    variables += re.findall(r"FLYSTORE_[A-Z_]+", (DEPLOY / "flystore.env.example").read_text())
    source = (DEPLOY.parent / "src/flystore/cli/_app.py").read_text()
    assert [name for name in variables if f'"{name}"' not in source] == []
    assert container("USER") == ["flystore"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    text = (DEPLOY / "flystore.service").read_text()
    (tmp_path / "flystore.service").write_text(text.replace("/opt/flystore/bin/flystore", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "flystore.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "Failed to" in done.stderr and "bus" in done.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr.strip()}")
    assert [line for line in done.stderr.splitlines() if "flystore.service" in line] == []
    assert done.returncode == 0, done.stderr


def test_nobody_who_listens_is_no_reason_to_fail(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    tell_systemd("READY=1")
    name = f"@flystore-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"\0{name[1:]}")
        told.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        tell_systemd("READY=1")
        assert told.recv(100) == b"READY=1"
