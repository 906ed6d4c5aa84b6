"""Requests that would take much, files that lead elsewhere, clients that never end: refused, and nobody else notices.

If these fail, one person with a browser can end the service in the middle of somebody's experiment, or read its
machine's files through it.
"""

import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import h5py
import numpy as np
import pytest
import urllib3

from flystore.http import Access, build_app
from flystore.model.errors import FlystoreError
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.service import Service
from flystore.storage import Roots
from flystore.testing.faults import broken, hostile
from flystore.testing.faults.box import BoxedService
from flystore.testing.serving import serving

BOX = 512 << 20
CANARY = b"CANARY-5f2c91"


@pytest.fixture
def root(tmp_path):
    made = tmp_path / "data"
    made.mkdir()
    return made


@contextmanager
def client_of(url, key):
    with urllib3.PoolManager(maxsize=60, headers={"Authorization": f"Apikey {key}"}) as pool:

        def send(method, path, body=None, headers=None, timeout=100):
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            merged = {**pool.headers, **(headers or {})}
            return pool.request(
                method, f"{url}/api/v1{path}", body=body, headers=merged, retries=False, timeout=timeout
            )

        yield send


# --- memory --------------------------------------------------------------------------------------------


def answer_to(send, bomb):
    """Return (status, kind) of the answer."""
    answer = send(bomb.method, bomb.path, bomb.body, bomb.headers)
    assert answer.headers["content-type"] == "application/json", (bomb.name, answer.data[:100])
    content = json.loads(answer.data)
    return answer.status, content["error"]["kind"] if isinstance(content, dict) and "error" in content else None


def assert_refused(send, bomb):
    status, kind = answer_to(send, bomb)
    assert 400 <= status < 500, (bomb.name, status, kind)
    assert kind in bomb.kinds, (bomb.name, status, kind)


def storm(tmp_path, root, count, seed, variants=()):
    """Send bombs, fifty at once, to a service in a box; return what is worth saying."""
    nodes = hostile.write_files(root)
    bombs = hostile.request_bombs() + hostile.file_bombs()
    chosen = [bombs[i % len(bombs)] for i in range(count)]
    random.Random(seed).shuffle(chosen)
    slowest, waiting, ended = 0.0, [], []
    with (
        BoxedService(tmp_path / "store", [root], memory_bytes=BOX, variants=variants) as service,
        client_of(service.url, service.key) as send,
    ):
        for each in nodes:
            assert send("POST", "/register/", each).status == 200
        for each in hostile.prepare():
            assert send("POST", "/metadata/", each).status == 200
        before = service.bytes_read

        def one(bomb):
            try:
                status, kind = answer_to(send, bomb)
            except urllib3.exceptions.ProtocolError:  # its patience ended before the loop came to it; asked again alone
                ended.append(bomb)
                return
            if (status, kind) == (503, "unavailable"):  # asked to come again: others had the memory
                waiting.append(bomb)
                return
            assert 400 <= status < 500, (bomb.name, status, kind)
            assert kind in bomb.kinds, (bomb.name, status, kind)

        with ThreadPoolExecutor(50) as pool:
            sent = [pool.submit(one, bomb) for bomb in chosen]
            while not all(each.done() for each in sent):
                began = time.monotonic()
                assert send("GET", "/metadata/").status == 200
                slowest = max(slowest, time.monotonic() - began)
            for each in sent:
                each.result()
        assert service.alive
        for bomb in [*waiting, *ended]:
            assert_refused(send, bomb)
        assert service.alive
        bodies = sum(len(bomb.body or b"") for bomb in [*chosen, *waiting, *ended])
        peak, read = service.peak_bytes, service.bytes_read - before
        boxed = service.boxed
    assert peak < BOX, f"{peak >> 20} MiB"
    assert read < bodies + 64 * len(chosen) * 4096 + (64 << 20), "something was read before it was refused"
    return {
        "peak_mib": peak >> 20,
        "boxed": boxed,
        "waited": len(waiting),
        "ended": len(ended),
        "slowest_other_s": round(slowest, 2),
    }


def test_fifty_bombs_at_once_are_refused_and_others_are_served(tmp_path, root, cycles, seed, fault_report):
    report = fault_report("F28 memory bombs", unit="requests")
    report.cycles = cycles(56, 2000)
    report.notes = storm(tmp_path, root, report.cycles, seed)


@pytest.mark.faults_long
def test_without_a_budget_the_bombs_are_found_out(tmp_path, root, seed):
    with pytest.raises((AssertionError, urllib3.exceptions.HTTPError, RuntimeError)):
        storm(tmp_path, root, 64, seed, variants=("no-budget",))


# --- clients that never end ----------------------------------------------------------------------------


def slow_connections(url, key, count):
    """Open connections that stall: in their head, in their body, and in taking an answer."""
    host, port = url.removeprefix("http://").split(":")
    heads = {
        "head": b"GET /api/v1/metadata/ HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "body": f"POST /api/v1/metadata/ HTTP/1.1\r\nHost: x\r\nAuthorization: Apikey {key}\r\n"
        "Content-Length: 100000\r\n\r\n".encode(),
        "answer": f"GET /api/v1/array/full/a HTTP/1.1\r\nHost: x\r\nAuthorization: Apikey {key}\r\n\r\n".encode(),
    }
    made = []
    for i in range(count):
        kind = list(heads)[i % 3]
        connection = socket.socket()
        if kind == "answer":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(heads[kind])
        made.append((kind, connection))
    return made


def was_let_go(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def outlast(service, send, connections, before, seconds):
    """Go on slowly until the service has let all connections go; return the slowest answer to somebody else."""
    slowest, end = 0.0, time.monotonic() + 60
    while service.sockets - before < len(connections) // 2:  # until they are taken at all
        if any(was_let_go(connection) for _, connection in connections):
            break
        assert time.monotonic() < end, "the slow connections were not accepted"
        assert send("GET", "/metadata/a").status == 200
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as waiting:
        while (still := service.sockets - before) > 0:
            assert time.monotonic() < end, f"{still} slow connections are still open"
            began = time.monotonic()
            assert send("GET", "/metadata/a").status == 200
            slowest = max(slowest, time.monotonic() - began)
            for kind, connection in connections:
                connection.setblocking(False)
                with contextlib.suppress(OSError):  # let go already, or nothing to take just now
                    if kind == "answer":
                        connection.recv(1)
                    else:
                        connection.send(b" ")
            waiting.select(0.1)
    return slowest


def slow_clients(tmp_path, count, seconds=60, variants=()):
    limits = ["head_seconds=1.5", "patience_seconds=1.5", "slowest_rate=1000"]
    with (
        BoxedService(tmp_path / "store", limits=limits, variants=variants) as service,
        client_of(service.url, service.key) as send,
    ):
        size = 8 << 20
        assert send("POST", "/metadata/", hostile.node("a", hostile.of("|u1", (size,)))).status == 200
        content = random.Random(1).randbytes(size)
        assert send("PUT", "/array/full/a", content, hostile.OCTETS).status == 200
        before = service.sockets
        connections = slow_connections(service.url, service.key, count)
        try:
            slowest = outlast(service, send, connections, before, seconds)
        finally:
            for _, connection in connections:
                connection.close()
        # Somebody who is merely not fast gets everything.
        assert send("GET", "/array/full/a").data == content
        return slowest


def test_slow_clients_are_let_go_and_others_are_served(tmp_path, cycles, fault_report):
    report = fault_report("F34 slow clients", unit="connections")
    report.cycles = cycles(60, 300)
    slowest = slow_clients(tmp_path, report.cycles)
    report.notes = {"slowest_other_s": round(slowest, 2)}


def test_without_patience_limits_slow_heads_stay_for_ever(tmp_path):
    with pytest.raises(AssertionError, match="still open"):
        slow_clients(tmp_path, 30, seconds=5, variants=("no-patience",))


def test_a_head_without_end_is_refused(tmp_path):
    with BoxedService(tmp_path / "store") as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=100) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            answer = b""
            lines = (b"x-%d: %s\r\n" % (i, b"y" * 2000) for i in range(10_000))
            with pytest.raises(OSError):
                any(connection.sendall(line) for line in lines)
            with contextlib.suppress(OSError):  # the refusal may be lost with the connection
                answer = connection.recv(100)
            assert answer[:12] in (b"", b"HTTP/1.1 431")
        assert service.peak_bytes < BOX


# --- places outside the roots --------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, root):
    """A read root with honest files and ways out of it, beside files that nobody may see."""
    outside = tmp_path / "data-outside"
    outside.mkdir()
    secret = np.frombuffer(CANARY.ljust(16), "u1")
    for where, values in ((root, np.zeros(16, "u1")), (outside, secret)):
        np.save(where / "x.npy", values)
        (where / "x.csv").write_text("1\n")
        with h5py.File(where / "x.h5", "w") as file:
            file["x"] = values
    (root / "link.npy").symlink_to(outside / "x.npy")
    (root / "dir").symlink_to(outside)
    (root / "chain").symlink_to(root / "dir")
    with h5py.File(root / "links.h5", "w") as file:
        file["external"] = h5py.ExternalLink("../data-outside/x.h5", "/x")
        file["absolute"] = h5py.ExternalLink(str(outside / "x.h5"), "/x")
        file.create_dataset("raw", (16,), "u1", external=[(str(outside / "x.npy"), 128, 16)])
        layout = h5py.VirtualLayout((16,), "u1")
        layout[:] = h5py.VirtualSource(str(outside / "x.h5"), "x", (16,))
        file.create_virtual_dataset("virtual", layout)
    return tmp_path


def escapes(place):
    """Return names that lead, or are meant to lead, to files outside the root, in many spellings."""
    root, outside = place / "data", place / "data-outside"
    paths = [
        f"{outside}/x.npy", f"{root}/../data-outside/x.npy", f"{root}//..//data-outside//x.npy",
        f"{root}/./../data-outside/./x.npy", f"{root}/x/../../data-outside/x.npy", f"{root}-outside/x.npy",
        f"{root}/link.npy", f"{root}/dir/x.npy", f"{root}/chain/x.npy", f"{root}/dir/../data-outside/x.npy",
        f"{root}/" + "../" * 30 + f"{outside}/x.npy", f"/proc/self/root{outside}/x.npy",
        f"/proc/self/cwd/{outside}/x.npy", f"/dev/fd/../../..{outside}/x.npy", f"{root}/..\\data-outside\\x.npy",
        f"{root}\\..\\data-outside\\x.npy", f"{root}/\0/../../data-outside/x.npy", f"{root}/x.npy\0{outside}/x.npy",
        f"{root}/{'a/' * 500}{'../' * 501}data-outside/x.npy", f"{root}/{'a' * 5000}/../../data-outside/x.npy",
    ]  # fmt: skip
    encodings = [
        lambda text: text,
        lambda text: quote(text, safe="/"),
        lambda text: quote(text, safe=""),
        lambda text: text.replace("..", "%2e%2e"),
        lambda text: text.replace("..", "%2E."),
        lambda text: text.replace("/../", "/%2e%2e%2f"),
        lambda text: quote(quote(text)),
        lambda text: text.replace("..", "%252e%252e"),
        lambda text: text.replace("/", "//"),
        lambda text: text.replace("..", "..;"),
        lambda text: text.replace("..", "\uff0e\uff0e"),
        lambda text: text.replace("..", "%c0%ae%c0%ae"),
    ]
    prefixes = ["file://localhost", "file://", "file:", "", "FILE://LOCALHOST", "file://127.0.0.1", "file://localhost/"]
    return [prefix + encode(path) for path in paths for encode in encodings for prefix in prefixes]


def documents_of(uid, uri, parameters, mimetype):
    key = {"dtype": "array", "shape": [16], "dtype_numpy": "|u1", "source": "s", "external": "STREAM:"}
    descriptor = {
        "uid": "d", "run_start": uid, "name": "primary", "time": 1.0, "data_keys": {"x": key},
        "configuration": {}, "hints": {}, "object_keys": {},
    }  # fmt: skip
    resource = {
        "uid": "sr", "run_start": uid, "data_key": "x", "mimetype": mimetype, "uri": uri, "parameters": parameters,
    }  # fmt: skip
    datum = {
        "uid": "sr/0", "stream_resource": "sr", "descriptor": "d",
        "indices": {"start": 0, "stop": 1}, "seq_nums": {"start": 1, "stop": 2},
    }  # fmt: skip
    named = [("start", {"uid": uid, "time": 1.0}), ("descriptor", descriptor), ("stream_resource", resource)]
    named += [("stream_datum", datum), ("stop", {"uid": "s", "run_start": uid, "time": 2.0, "exit_status": "success"})]
    encoder = FrameEncoder()
    return b"".join(frame(payload) for name, doc in named for payload in encoder.encode(name, doc))


def try_to_escape(place, count, seed):
    """Try ways out at random, and those that HDF5 offers; return how many ended with values of the honest file."""
    chance = random.Random(seed)
    chosen = escapes(place)
    chance.shuffle(chosen)
    honest = 0

    def harmless(answer):
        nonlocal honest
        assert CANARY not in answer.data, "a file outside the roots was read"
        assert answer.status < 500, answer.data[:300]
        honest += answer.status == 200

    def registered(number, uri, mimetype, **parameters):
        body = hostile.registered(f"n{number}", uri, hostile.of("|u1", (16,)), mimetype, **parameters)
        harmless(send("POST", "/register/", body))
        harmless(send("GET", f"/array/full/n{number}"))

    with (
        Service.open(place / "store", read=[place / "data"]) as service,
        serving(build_app(service, Access.of("k"))) as url,
        client_of(url, "k") as send,
    ):
        for number, name in enumerate(("external", "absolute", "raw", "virtual")):
            registered(f"h{number}", f"file://localhost{place}/data/links.h5", "application/x-hdf5", dataset=name)
        for number in range(count):
            uri = chosen[number % len(chosen)]
            match number % 4:
                case 0 | 1:
                    registered(number, uri, "application/x-npy")
                case 2:
                    uid = f"run{number}"
                    body = documents_of(uid, uri, {}, "application/x-npy")
                    kind = {"Content-Type": FRAMES_MIMETYPE}
                    harmless(send("POST", f"/ingest/{uid}?first=0&epoch=0", body, kind))
                    harmless(send("GET", f"/array/full/{uid}/primary/x"))
                case 3:  # as a path of the service, and as a key
                    harmless(send("GET", f"/metadata/{quote(uri.removeprefix('file:'), safe='/%')[:4000]}"))
                    body = {"id": uri[:200], "structure_family": "container", "metadata": {}, "specs": []}
                    harmless(send("POST", "/metadata/", body))
        for path in (place / "store").rglob("*"):
            assert not path.is_file() or CANARY not in path.read_bytes(), path
    assert CANARY in (place / "data-outside/x.npy").read_bytes()
    return honest


def test_no_name_leads_out_of_the_read_roots(place, cycles, seed, fault_report):
    report = fault_report("F31 path escapes", unit="requests")
    report.cycles = cycles(400, 20_000)
    try_to_escape(place, report.cycles, seed)


def test_without_containment_the_canary_is_found(place, seed):
    with broken("no-containment"), pytest.raises(AssertionError, match="outside the roots"):
        try_to_escape(place, 100, seed)


def race(place, tries):
    """Read a file while a directory on its way is swapped for a link to another place; return how often it was read."""
    root, outside = place / "data", place / "data-outside"
    (root / "swap").mkdir()
    np.save(root / "swap/x.npy", np.zeros(16, "u1"))
    (root / "swapped").symlink_to(outside)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(root / "swap", root / "kept")
            os.rename(root / "swapped", root / "swap")
            os.rename(root / "swap", root / "swapped")
            os.rename(root / "kept", root / "swap")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        return sum(read_inside(root, Roots([root])) for _ in range(tries))
    finally:
        stop.set()
        swapping.join()


def read_inside(root, roots):
    """Read the file if that is allowed; return whether it was."""
    try:
        with roots.open(f"file://localhost{root}/swap/x.npy") as file:
            assert CANARY not in file.read(0, file.size), "a file outside the roots was read"
    except FlystoreError:
        return False
    return True


class SwappedAfterCheck(Roots):
    """Roots whose directory becomes a link to another place right after the first check of a name."""

    def _contains(self, real):
        found = super()._contains(real)
        root = Path(self.read[0])
        if not (root / "swap").is_symlink():
            (root / "swap").rename(root / "kept")
            (root / "swap").symlink_to(root.with_name("data-outside"))
        return found


def read_when_swapped(place):
    """Read a file whose directory is swapped for a link when its name was checked; return whether it was read."""
    root = place / "data"
    (root / "swap").mkdir()
    np.save(root / "swap/x.npy", np.zeros(16, "u1"))
    return read_inside(root, SwappedAfterCheck([root]))


def test_a_link_swapped_in_between_check_and_use_is_not_followed(place, cycles, fault_report):
    report = fault_report("F31 symlink race", unit="reads")
    report.cycles = cycles(10_000, 1_000_000)
    report.notes = {"read": race(place, report.cycles)}


def test_a_link_swapped_in_right_after_the_check_is_not_followed(place):
    assert not read_when_swapped(place)
    assert (place / "data/swap").is_symlink()


def test_a_check_by_name_alone_loses_the_race(place):
    with broken("check-then-open"), pytest.raises(AssertionError, match="outside the roots"):
        read_when_swapped(place)


# --- other machines ------------------------------------------------------------------------------------


@pytest.fixture
def canary():
    """An HTTP server that counts who asks it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815 - named by http.server

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_address_is_ever_asked_for_anything(tmp_path, root, canary, cycles, seed, fault_report):
    report = fault_report("F32 requests to elsewhere", unit="requests")
    where, asked = canary
    with h5py.File(root / "links.h5", "w") as file:
        file["far"] = h5py.ExternalLink(f"http://{where}/x.h5", "/x")
        layout = h5py.VirtualLayout((16,), "u1")
        layout[:] = h5py.VirtualSource(f"http://{where}/x.h5", "x", (16,))
        file.create_virtual_dataset("virtual", layout)
    schemes = [
        "http",
        "https",
        "HTTP",
        "s3",
        "gs",
        "ftp",
        "gopher",
        "dict",
        "ws",
        "blob",
        "zip+http",
        "file+http",
        "jar",
    ]
    uris = [f"{scheme}://{where}/x.{end}" for scheme in schemes for end in ("npy", "h5", "zarr")]
    buckets = [uri for uri in uris if uri.startswith("s3:")]  # are known, and read where the service is told to
    uris += [f"url:http://{where}/x", f"//{where}/x", f"http:{where}", f"data:text/plain,{where}"]
    files = [f"file://{where}/x.npy", f"\\\\{where}\\share\\x", f"file://user@{where}/x", f"file://localhost@{where}/x"]
    chance = random.Random(seed)
    report.cycles = cycles(200, 5000)
    with (
        Service.open(tmp_path / "store", read=[root]) as service,
        serving(build_app(service, Access.of("k"))) as url,
        client_of(url, "k") as send,
    ):
        for number in range(report.cycles):
            uri = chance.choice([*uris, *files])
            body = hostile.registered(f"n{number}", uri, hostile.of("|u1", (16,)), "application/x-npy")
            answer = send("POST", "/register/", body)
            if uri in uris[:-3] and uri not in buckets:
                assert answer.status in (406, 422), (uri, answer.data[:200])
            assert 400 <= send("GET", f"/array/full/n{number}").status < 500
        for name in ("far", "virtual"):
            uri = f"file://localhost{root}/links.h5"
            body = hostile.registered(name, uri, hostile.of("|u1", (16,)), "application/x-hdf5", dataset=name)
            assert send("POST", "/register/", body).status == 200
            answer = send("GET", f"/array/full/{name}")
            assert 400 <= answer.status < 500 or answer.data == b"", "rows of another machine"
    assert asked == []
    urllib.request.urlopen(f"http://{where}/control").close()
    assert asked == ["/control"]


# --- parsers -------------------------------------------------------------------------------------------

_BUSY_SECONDS, _STILL_SECONDS = 10.0, 60.0
"""How long a process works, or does nothing at all, without a line until it is taken for one that hangs."""


def cpu_seconds(process):
    times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def lines_of(process):
    """Yield the lines a process writes, and None if it stands still too long; at its start it may take its time."""
    rest, output = b"", process.stdout.fileno()
    last, worked = time.monotonic(), float("inf")
    with selectors.DefaultSelector() as waiting:
        waiting.register(output, selectors.EVENT_READ)
        while time.monotonic() - last < _STILL_SECONDS and cpu_seconds(process) - worked < _BUSY_SECONDS:
            if not waiting.select(0.5):
                continue
            read = os.read(output, 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from (line.decode() for line in lines)
            last, worked = time.monotonic(), cpu_seconds(process)
    yield None


def damaged_cases(directory: Path, seed: int, count: int):
    """Let a process read damaged files; start another where it left off, if a library crashed or hung it."""
    first, hung, crashed, wrong, said = 0, [], [], [], {}
    while first < count:
        command = [sys.executable, "-W", "ignore", "-m", "flystore.testing.faults.damage", directory, seed, first]
        command = [str(part) for part in (*command, count - first)]
        last, ended = "", False
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            for line in lines_of(process):
                if line is None:
                    process.kill()
                    hung.append(last)
                    ended = True
                elif line.startswith("!"):
                    wrong.append(line)
                elif line.startswith("done"):
                    said, ended, first = json.loads(line[5:]), True, count
                else:
                    last = line
        assert last, "the process ended before its first case"
        if not ended:
            crashed.append(f"{last}: status {process.returncode}")
        if first < count:
            first = int(last.split()[0]) + 1
    return hung, crashed, wrong, said


def test_damaged_files_and_bodies_are_read_or_refused_in_words(tmp_path, cycles, seed, fault_report):
    """What a library does with them in C, crash or hang, is counted and said; ours must be an error with a kind."""
    report = fault_report("F26 hostile parsers", unit="cases")
    report.cycles = cycles(600, 10_000)
    hung, crashed, wrong, said = damaged_cases(tmp_path, seed, report.cycles)
    report.notes = {"hung": hung, "crashed": crashed, **said}
    assert wrong == []
    in_hdf5 = ("contiguous", "gzip", "lzf", "latest", "scaled", "virtual")
    assert [case for case in (*hung, *crashed) if case.split()[1].rstrip(":") not in in_hdf5] == []
