"""Starting: the service until its first answer, its memory at rest, the client's import and first connection."""

import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, column, interleaved
from benchmarks.processes import compiling_once, memory
from benchmarks.suite import FLYSTORE, STOCK, Suite

REST_SECONDS = 1.0
MB = 1e-6
_IMPORTS = {STOCK: "from tiled.client import from_uri", FLYSTORE: "from flystore import from_uri"}
_CONNECT = """
import json, sys, time
began = time.perf_counter()
{imports}
imported = time.perf_counter()
from_uri(sys.argv[1], api_key=sys.argv[2])
connected = time.perf_counter()
print(json.dumps({{"import": imported - began, "from_uri": connected - imported, "both": connected - began}}))
"""


def measure(suite: Suite) -> Iterator[Measure]:
    """Start services on directories that are there already, and clients in new processes."""
    for side in suite.sides:  # makes the directory, and compiles what was never imported
        _start(suite, side)
    samples = interleaved({side: partial(_start, suite, side) for side in suite.sides}, suite.sizes.starts)
    for what, quantity, unit, scale, reach in (
        ("service, command to first answer", "ready", "s", 1.0, "≤ 0.5 s"),
        ("service at rest, RSS", "rss", "MB", MB, "≤ 80 MB"),
        ("import of the client", "import", "s", 1.0, "≤ 0.25 s"),
        ("from_uri, first in a process", "from_uri", "ms", 1e3, "≤ 10 ms"),
        ("import and from_uri", "both", "s", 1.0, ""),
    ):
        yield Measure(
            "start",
            what,
            unit,
            "less",
            column(samples, STOCK, quantity, scale),
            column(samples, FLYSTORE, quantity, scale),
            reach=reach,
            note="stock imports most of it in from_uri" if quantity == "import" else "",
        )


def _start(suite: Suite, side: str) -> Sample:
    with suite.a_service(side, suite.directory / f"start-{side}") as service:
        time.sleep(REST_SECONDS)
        resident = memory(service.pid)[0]
        program = _CONNECT.format(imports=_IMPORTS[side])
        command = [suite.python_of(side), "-W", "ignore", "-c", program, service.url, service.key]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=compiling_once()).stdout
    return {"ready": service.start_seconds, "rss": resident, **json.loads(said.splitlines()[-1])}
