"""An export of any size takes little memory of the service.

If these fail, one person's export of a long run ends the service for everybody. Sizes: ``FLYSTORE_EXPORT_ROWS`` rows
and ``FLYSTORE_EXPORT_EVENTS`` events; the promise is for ten million rows and a million documents.
"""

import contextlib
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiled.structures.core import Spec

from flystore.model.frames import FrameEncoder, frame
from flystore.service import Service

ROWS = int(os.environ.get("FLYSTORE_EXPORT_ROWS", 300_000))
EVENTS = int(os.environ.get("FLYSTORE_EXPORT_EVENTS", 60_000))
MIB = 1 << 20
MOST_BYTES = 190 * MIB
"""Above rest. That memory does not grow with the rows is what the unit tests of the encoders show."""

KEY = "secret"
APPENDED = 100_000

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are measured on Linux"),
    pytest.mark.timeout(120 if ROWS < 1_000_000 else 3600),
]


def status(pid, name):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


class Measured:
    """A service in a process of its own."""

    def __init__(self, directory):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flystore.cli", "serve", str(directory), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "FLYSTORE_API_KEY": KEY},
        )
        line = self.process.stdout.readline()
        if " at " not in line:
            self.close()
            raise AssertionError(f"the service did not start: {line!r}")
        self.url = line.split(" at ")[1].strip()
        with urllib.request.urlopen(f"{self.url}/healthz") as answer:
            answer.read()
        self.fresh = self.rest = status(self.process.pid, "VmRSS")

    def get(self, path, **query):
        """Return (bytes, line feeds, peak of memory in bytes above that after the start, seconds) of a download."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        request = urllib.request.Request(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", headers={"Authorization": f"Apikey {KEY}"}
        )
        began, size, lines = time.perf_counter(), 0, 0
        with urllib.request.urlopen(request) as answer:
            while piece := answer.read(MIB):
                size += len(piece)
                lines += piece.count(b"\n")
        seconds = time.perf_counter() - began
        return size, lines, status(self.process.pid, "VmHWM") - self.rest, seconds

    def warm_up(self):
        """Let it load what it loads at the first export of each format; then it is at rest."""
        for name, path in FORMATS.items():
            self.get(path.replace("long", "short"), format=name.rpartition(" as ")[2])
        self.rest = status(self.process.pid, "VmRSS")

    def close(self):
        self.process.terminate()
        self.process.communicate(timeout=60)


def columns(first, rows):
    place = np.arange(first, first + rows)
    wave = place / 7
    return pa.table(
        {
            "seq_num": place,
            "time": wave,
            **{f"motor_{axis}": wave + axis for axis in range(3)},
            "count": place % 1000,
            "label": pa.array([f"point {number}" for number in place % 97]),
        }
    )


def write_table(url):
    from tiled.client import from_uri

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = from_uri(url, api_key=KEY)
        try:
            short = client.create_appendable_table(columns(0, 1).schema, key="a-short-table")
            short.append_partition(0, columns(0, 10))
            table = client.create_appendable_table(columns(0, 1).schema, key="a-long-table")
            for first in range(0, ROWS, APPENDED):
                table.append_partition(0, columns(first, min(APPENDED, ROWS - first)))
            write_as_stock(client, "stock-long-run", EVENTS)
            write_as_stock(client, "stock-short-run", 10)
        finally:
            client.context.http_client.close()


def write_as_stock(client, uid, events):
    """Write a run as the stock writers lay it out: its documents are worked out when they are asked for."""
    start = {"uid": uid, "time": 1.0, "scan_id": 2, "plan_name": "count"}
    specs = [Spec("BlueskyRun", "3.0")]
    run = client.create_container(uid, metadata={"start": start, "stop": {"uid": "s", "time": 9e9}}, specs=specs)
    described = {"uid": "d", "time": 1.0, "data_keys": {"x": {"source": "s", "dtype": "number", "shape": []}}}
    stream = run.create_container("primary", metadata=described, specs=[Spec("BlueskyEventStream", "3.0")])

    def rows(first, count):
        place = np.arange(first, first + count)
        return pa.table({"seq_num": place + 1, "time": place + 1.0, "x": place / 7, "ts_x": place + 1.0})

    internal = stream.create_appendable_table(rows(0, 1).schema, key="internal")
    for first in range(0, events, APPENDED):
        internal.append_partition(0, rows(first, min(APPENDED, events - first)))


def write_run(service, uid, events):
    start = {"uid": uid, "time": 1.0, "scan_id": 1, "plan_name": "count"}
    keys = {"x": {"source": "s", "dtype": "number", "shape": []}, "y": {"source": "s", "dtype": "number", "shape": []}}
    descriptor = {
        "uid": "d", "run_start": uid, "time": 1.0, "name": "primary", "data_keys": keys,
        "object_keys": {"det": ["x", "y"]}, "configuration": {}, "hints": {},
    }  # fmt: skip

    def event(number):
        return {
            "uid": f"e{number}", "descriptor": "d", "seq_num": number, "time": 1.0 + number,
            "data": {"x": number / 7, "y": number}, "timestamps": {"x": 1.0 + number, "y": 1.0 + number}, "filled": {},
        }  # fmt: skip

    encoder = FrameEncoder()
    ordinal = 0
    for first in range(1, events + 1, 10_000):
        documents = [("start", start), ("descriptor", descriptor)] if first == 1 else []
        documents += [("event", event(number)) for number in range(first, min(first + 10_000, events + 1))]
        body = b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))
        service.ingest.batch(uid, ordinal, 1, body)
        ordinal += len(documents)
    stop = {"uid": "stop", "run_start": uid, "time": 9e9, "exit_status": "success"}
    service.ingest.batch(uid, ordinal, 1, b"".join(frame(payload) for payload in encoder.encode("stop", stop)))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export-memory")
    with Service.open(directory) as service:
        write_run(service, "a-long-run", EVENTS)
        write_run(service, "a-short-run", 10)
    with contextlib.closing(Measured(directory)) as writing:
        write_table(writing.url)
    with contextlib.closing(Measured(directory)) as running:
        running.warm_up()
        yield running


FORMATS = {
    "arrow": "table/full/a-long-table",
    "parquet": "table/full/a-long-table",
    "csv": "table/full/a-long-table",
    "json": "table/full/a-long-table",
    "application/json-seq": "table/full/a-long-table",
    "html": "table/full/a-long-table",
    "h5": "table/full/a-long-table",
    "run as application/json-seq": "container/full/a-long-run",
    "run as h5": "container/full/a-long-run",
    "stock run as application/json-seq": "container/full/stock-long-run",
}


def test_exports_of_any_size_take_little_memory(served):
    peaks = {}
    for name, path in FORMATS.items():
        size, lines, peak, seconds = served.get(path, format=name.rpartition(" as ")[2])
        peaks[name] = peak
        sys.stdout.write(f"{name}: {size / 1e6:.0f} MB in {seconds:.1f} s, {peak / MIB:.0f} MiB above rest\n")
        if name in ("csv", "application/json-seq"):
            assert lines == ROWS + (name == "csv")
        if name.endswith("run as application/json-seq"):
            assert lines == EVENTS + 3
    sys.stdout.write(f"rest: {served.rest / MIB:.0f} MiB, {served.fresh / MIB:.0f} MiB before the first export\n")
    assert max(peaks.values()) < MOST_BYTES, peaks
