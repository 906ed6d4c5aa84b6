"""``flystore serve`` starts, says so, explains mistakes and ends cleanly.

If these fail, a person at the beamline sits before a traceback, or before a service that is not there.
"""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.testing.documents import RunDocuments, internal

READY = re.compile(r"flystore is ready at (http://\S+)\n")
SECONDS = 100


class Running:
    """A started command; its standard output line by line."""

    def __init__(self, *arguments, environment=None):
        inherited = {name: value for name, value in os.environ.items() if "API_KEY" not in name}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flystore.cli", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited, **(environment or {})},
        )
        self._lines = queue.SimpleQueue()
        self._errors = []
        self._readers = [
            threading.Thread(target=self._read_lines),
            threading.Thread(target=lambda: self._errors.append(self.process.stderr.read())),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def line(self):
        """Return the next line, None at the end."""
        return self._lines.get(timeout=SECONDS)

    def ready(self):
        """Return the URL of the ready line, the first line there is."""
        line = self.line()
        assert line is not None, self.end()
        return READY.fullmatch(line).group(1)

    def end(self, number=None):
        """Send a signal, if any; return (exit status, rest of standard output, standard error)."""
        if number is not None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(SECONDS)
        finally:
            self.process.kill()
            for reader in self._readers:
                reader.join()
            self.process.stdout.close()
            self.process.stderr.close()
        rest = []
        while not self._lines.empty():
            line = self._lines.get()
            rest += [] if line is None else [line]
        return status, "".join(rest), self._errors[0]


@pytest.fixture
def serve():
    started = []

    def start(*arguments, **more):
        started.append(Running(*arguments, **more))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def get(url, path="/api/v1/", key=None, method="GET", body=None):
    """Return (status, decoded body)."""
    address = url.partition("/?")[0] + path
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Apikey {key}"
    request = urllib.request.Request(
        address, method=method, headers=headers, data=None if body is None else json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def key_in(url):
    return url.partition("?api_key=")[2]


# --- it starts ------------------------------------------------------------------------------------


def test_it_answers_as_soon_as_it_says_that_it_is_ready(serve):
    url = serve("--temp", "--port", 0).ready()
    status, about = get(url, key=key_in(url))
    assert status == 200
    assert about["library_version"].startswith("0.2.20+flystore")


def loaded(running):
    """Return the names of the shared libraries that a process has loaded."""
    with open(f"/proc/{running.process.pid}/maps") as maps:
        return " ".join({line.split()[-1] for line in maps if ".so" in line})


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux tells what a process has loaded")
def test_what_nobody_has_asked_for_takes_no_memory_and_pandas_none_at_all(serve):
    running = serve("--temp", "--port", 0, "--api-key", "secret")
    url = running.ready()
    assert not re.search("pandas|arrow|h5py|hdf5|blosc", loaded(running))
    encoder = FrameEncoder()
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal())
    for value in range(5):
        stream.event(x=float(value))
    run.stop()
    body = b"".join(frame(payload) for name, doc in run.documents for payload in encoder.encode(name, doc))
    headers = {"Authorization": "Apikey secret", "Content-Type": FRAMES_MIMETYPE}
    address = f"{url}/api/v1/ingest/run?first=0&epoch=0"
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=SECONDS) as answer:
        assert answer.status == 200
    status, rows = get(url, "/api/v1/table/full/run/primary/internal?format=application/json", key="secret")
    assert (status, rows["x"]) == (200, [0.0, 1.0, 2.0, 3.0, 4.0])
    assert "arrow" in loaded(running)
    assert "pandas" not in loaded(running)


def test_without_a_key_it_makes_one_and_prints_it(serve):
    url = serve("--temp", "--port", 0).ready()
    assert len(key_in(url)) >= 32
    assert get(url, "/api/v1/metadata/", key=key_in(url))[0] == 200
    assert get(url, "/api/v1/metadata/", key="another")[0] == 401
    assert get(url, "/api/v1/metadata/")[0] == 401


def test_the_key_is_another_one_at_each_start(serve):
    assert key_in(serve("--temp", "--port", 0).ready()) != key_in(serve("--temp", "--port", 0).ready())


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_key_that_was_given_is_taken_and_not_printed(serve, how):
    if how == "option":
        running = serve("--temp", "--port", 0, "--api-key", "s3cret+")
    else:
        running = serve("--temp", "--port", 0, environment={"FLYSTORE_API_KEY": "s3cret+"})
    url = running.ready()
    assert "api_key" not in url
    assert get(url, "/api/v1/metadata/", key="s3cret+")[0] == 200
    _, out, errors = running.end(signal.SIGTERM)
    assert "s3cret" not in out + errors


def test_public_lets_anyone_read_and_nobody_write(serve):
    url = serve("--temp", "--port", 0, "--public").ready()
    body = {"structure_family": "container", "metadata": {}, "data_sources": [], "specs": []}
    assert get(url, "/api/v1/metadata/")[0] == 200
    assert get(url, "/api/v1/metadata/", method="POST", body=body)[0] == 401


def test_it_listens_at_the_port_it_was_given(serve):
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    assert serve("--temp", "--port", port).ready().startswith(f"http://127.0.0.1:{port}/")


def test_every_network_is_shown_as_an_address_one_can_go_to(serve):
    url = serve("--temp", "--port", 0, "--host", "0.0.0.0").ready()
    assert url.startswith("http://127.0.0.1:")
    assert get(url, key=key_in(url))[0] == 200


def test_the_directory_is_made_and_keeps_what_was_stored(serve, tmp_path):
    directory = tmp_path / "new" / "store"
    body = {"id": "kept", "structure_family": "container", "metadata": {"a": 1}, "data_sources": [], "specs": []}
    first = serve(directory, "--port", 0, "--api-key", "k")
    assert get(first.ready(), "/api/v1/metadata/", key="k", method="POST", body=body)[0] == 200
    assert first.end(signal.SIGTERM)[0] == 0
    again = serve(directory, "--port", 0, "--api-key", "k").ready()
    status, found = get(again, "/api/v1/metadata/kept", key="k")
    assert status == 200
    assert found["data"]["attributes"]["metadata"] == {"a": 1}


# --- it ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(serve, number):
    running = serve("--temp", "--port", 0)
    running.ready()
    assert running.end(number) == (0, "", "")


def test_the_temporary_directory_is_gone_afterwards(serve, tmp_path):
    running = serve("--temp", "--port", 0, environment={"TMPDIR": str(tmp_path)})
    running.ready()
    assert list(tmp_path.iterdir())
    running.end(signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_the_catalogue_is_closed_at_the_end(serve, tmp_path):
    running = serve(tmp_path, "--port", 0)
    running.ready()
    running.end(signal.SIGTERM)
    assert not list(tmp_path.glob("*-wal"))


# --- mistakes -------------------------------------------------------------------------------------


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def a_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    return path


MISTAKES = {
    "no directory": ([], r"no directory was named.*--temp"),
    "directory and --temp": (["{tmp}", "--temp"], r"leave one of them out"),
    "directory is a file": (["{file}"], r"file cannot be written"),
    "directory below a file": (["{file}/store"], r"cannot be written|cannot make"),
    "port taken": (["--temp", "--port", "{taken}"], r"port {taken} .* is taken .*--port"),
    "host of another machine": (["--temp", "--host", "192.0.2.1"], r"no address of this machine.*127\.0\.0\.1"),
    "host that is no host": (["--temp", "--host", "no.such.host.invalid"], r"no address of this machine"),
    "root that does not exist": (["--temp", "--read", "{tmp}/missing"], r"root .*missing is not a directory"),
    "root that is a file": (["--temp", "-r", "{file}"], r"root .*file is not a directory"),
    "map without a target": (["--temp", "--map", "/data"], r"--map '/data' is not FROM=TO"),
    "map with a relative target": (["--temp", "--map", "/data=here"], r"is not FROM=TO"),
    "empty key": (["--temp", "--api-key", ""], r"API key is empty"),
    "key no client can send": (["--temp", "--api-key", "a b"], r"API key .* spaces"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_it_at_once_with_one_sentence(serve, mistake, tmp_path, taken_port, a_file):
    arguments, sentence = MISTAKES[mistake]
    values = {"tmp": tmp_path, "file": a_file, "taken": taken_port}
    arguments = [argument.format(**values) for argument in arguments]
    if "--port" not in arguments:
        arguments += ["--port", "0"]
    status, out, errors = serve(*arguments).end()
    assert status == 2
    assert out == ""
    assert errors.startswith("flystore: ")
    assert errors.count("\n") == 1
    assert re.search(sentence.replace("{taken}", str(taken_port)), errors), errors


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "x"], ["--nonsense"], ["a", "b"]])
def test_an_option_that_does_not_exist_is_explained(serve, arguments):
    status, _, errors = serve("--temp", *arguments).end()
    assert status == 2
    assert "Usage" in errors
    assert "Traceback" not in errors


def test_a_mistake_leaves_no_temporary_directory(serve, tmp_path):
    running = serve("--temp", "--port", 0, "--map", "x", environment={"TMPDIR": str(tmp_path)})
    assert running.end()[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_second_service_at_the_same_port_is_told_and_the_first_goes_on(serve):
    url = serve("--temp", "--port", 0).ready()
    port = re.search(r":(\d+)", url).group(1)
    status, _, errors = serve("--temp", "--port", port).end()
    assert status == 2
    assert "is taken" in errors
    assert get(url, key=key_in(url))[0] == 200


# --- what it logs ---------------------------------------------------------------------------------


def test_verbose_logs_requests_without_the_key(serve):
    running = serve("--temp", "--port", 0, "--verbose")
    url = running.ready()
    get(url, f"/api/v1/metadata/?api_key={key_in(url)}")
    status, out, errors = running.end(signal.SIGTERM)
    assert (status, out) == (0, "")
    assert "GET /api/v1/metadata/?api_key=… " in errors
    assert key_in(url) not in errors
