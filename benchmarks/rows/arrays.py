"""A gigabyte of detector frames in HDF5, read whole: with both clients, and with what the machine can do."""

from collections.abc import Iterator
from functools import partial

from benchmarks.figures import Measure
from benchmarks.interleave import Sample, Samples, column, interleaved
from benchmarks.processes import Watch
from benchmarks.runs import DATASET, KINDS, WHOLE, bring_in, frames_file, frames_run_of, warm_up
from benchmarks.suite import FLYSTORE, STOCK, Suite
from benchmarks.workers import Worker

MB = 1e-6
STOCK_CLIENT = "stock client"
_COPIES = 3
"""Of what it reads, that Tiled's client has in memory at once."""


def measure(suite: Suite) -> Iterator[Measure]:
    """Read all frames; the services are new, so that their memory is of these reads."""
    suite.fresh()
    sizes = suite.sizes
    for kind in KINDS:
        file = frames_file(suite, kind)
        path = str(file.path)
        parties = {side: partial(_read, suite, side, side, kind) for side in suite.sides}
        if STOCK in suite.sides:
            parties[STOCK_CLIENT] = partial(_read, suite, STOCK, FLYSTORE, kind)
        floors = {"h5py": partial(_timed, suite, "read_file", kind, file=path, name=DATASET, cut=WHOLE)}
        if kind == "raw":
            floors["TCP sendfile"] = partial(_timed, suite, "send_file", kind, file=path)
        # The file comes into the page cache, and each client imports what it needs and is known to its service.
        interleaved(floors, 1)
        for client, side in {(side, side) for side in suite.sides} | {(suite.sides[0], FLYSTORE)}:
            warm_up(suite, client, side, kind)
        samples = interleaved({**parties, **floors}, sizes.rounds, {STOCK: sizes.stock_rounds})
        yield from _lines(kind, f"{file.nbytes / 1e9:.2f} GB HDF5, {kind}", samples)


def _lines(kind: str, work: str, samples: Samples) -> Iterator[Measure]:
    floors = [name for name in ("TCP sendfile", "h5py") if name in samples]
    stock = column(samples, STOCK, "rate", MB)
    yield Measure(
        "arrays",
        f"{work}: own client",
        "MB/s",
        "more",
        stock,
        column(samples, FLYSTORE, "rate", MB),
        {name: column(samples, name, "rate", MB) for name in floors},
        "≥ 0.7 × TCP sendfile" if kind == "raw" else "≥ 1.0 × h5py",
    )
    if STOCK_CLIENT in samples:
        yield Measure(
            "arrays",
            f"{work}: tiled.client, unmodified, of both",
            "MB/s",
            "more",
            stock,
            column(samples, STOCK_CLIENT, "rate", MB),
            {name: column(samples, name, "rate", MB) for name in floors},
            "≥ 450 MB/s",
        )
    for what, quantity, reach in (("anonymous memory", "anonymous", "≤ 150 MB"), ("CPU", "cpu", "")):
        yield Measure(
            "arrays",
            f"{work}: the server's {what} meanwhile",
            "MB" if quantity == "anonymous" else "s",
            "less",
            column(samples, STOCK, quantity, MB if quantity == "anonymous" else 1.0),
            column(samples, FLYSTORE, quantity, MB if quantity == "anonymous" else 1.0),
            reach=reach,
        )


def _read(suite: Suite, client: str, side: str, kind: str) -> Sample:
    uid, service = frames_run_of(suite, side, kind), suite.service(side)
    _prepare(suite, suite.worker(client), kind)
    with Watch(service.pid) as server:
        found = suite.worker(client).call("read_array", **service.where, uid=uid, name=DATASET, cut=WHOLE)
    return {**_rate(found), "anonymous": server.most[1], "cpu": server.cpu}


def _timed(suite: Suite, task: str, kind: str, **arguments: object) -> Sample:
    _prepare(suite, suite.machine(), kind)
    return _rate(suite.machine().call(task, **arguments))


def _prepare(suite: Suite, reader: Worker, kind: str) -> None:
    """Have the file, and the memory that any of the parties needs, at hand when the clock starts."""
    bring_in(suite, kind)
    reader.call("touch", nbytes=_COPIES * frames_file(suite, kind).nbytes)


def _rate(found: dict[str, float]) -> Sample:
    return {"rate": found["bytes"] / found["seconds"]}
