"""A catalogue of very many runs, made by bulk inserts: what a year or ten of a beamline leave behind.

Every run is real: its documents are projected and logged as those of a run that was ingested, so searching, reading,
`flystore verify` and `flystore rebuild` find what they expect. Only the way into the tables is shorter. The same seed
gives the same runs, whatever the count.

    directory = Path("store")
    fill(directory, 100_000, seed=1)          # then: flystore serve store
    start_of(4_711, seed=1)["uid"]            # what to look for

Scan ids count up; times do too, but for some runs that came in late. One run in three is a ``count``; of samples there
are some hundreds, of proposals some dozens; uid, scan id and time are each run's own.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flystore.catalog import Catalog, Transaction, _leaves, _words
from flystore.catalog._database import Fixed, insert_of
from flystore.catalog._json import to_json
from flystore.catalog._nodes import specs_text
from flystore.catalog._rows import Run, path_text
from flystore.catalog._schema import child_counts, leaves, nodes
from flystore.disk import make_directory
from flystore.model.frames import FrameDecoder, FrameEncoder, frame
from flystore.model.queries import words_of
from flystore.projection import PutNode, RunState, advance, verdict
from flystore.service.backup import CATALOG_FILE
from flystore.service.log_bodies import pack

Document = tuple[str, dict[str, Any]]

FIRST_TIME = 1_500_000_000.0
"""Unix seconds of the first run."""

SECONDS_APART = 60.0
LATE = 0.02
"""Part of the runs that began up to a day before they were stored."""

PLANS = ("count", "scan", "rel_scan", "grid_scan", "fly_tomography", "align_sample")
COMMON_WORD, RARE_WORD = "calibration", "zirconolite"
"""Words for full text: in a third of all runs, and in one of 5,000."""

_AT_ONCE = 5_000
_CACHE_KIB = 1 << 20
_MAX_ID = Fixed(sa.select(sa.func.coalesce(sa.func.max(nodes.c.id), 0)))
_NODE = Fixed(
    insert_of(
        nodes,
        *("id", "parent_id", "key", "path", "family", "origin", "run_uid", "indexed", "children_indexed"),
        *("time_created", "time_updated", "revision", "access_tags", "specs", "structure", "metadata", "external"),
    )
)
_LEAF = Fixed(insert_of(leaves, "parent_id", "key", "value", "node_id"))
_COUNT = Fixed(insert_of(child_counts, "node_id", "count"))


def uid_of(i: int, seed: int = 0) -> str:
    """Return the uid of run `i`, 36 characters."""
    text = hashlib.blake2b(f"{seed}/{i}".encode(), digest_size=16).hexdigest()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def start_of(i: int, seed: int = 0) -> dict[str, Any]:
    """Return the start document of run `i`."""
    rng = random.Random(f"{seed}/{i}")
    late = rng.random() < LATE
    plan = "count" if i % 3 == 0 else PLANS[1 + rng.randrange(len(PLANS) - 1)]
    motors = [] if plan == "count" else [f"stage_{axis}" for axis in ("xy" if plan == "grid_scan" else "x")]
    points = rng.choice((1, 11, 21, 51, 101, 401))
    detector = rng.choice(("pilatus", "eiger", "fluorescence", "diode"))
    sample = int(rng.paretovariate(0.7)) % 700
    purpose = rng.choice((COMMON_WORD, "data taking", "test of the shutter"))
    return {
        "uid": uid_of(i, seed),
        "time": FIRST_TIME + SECONDS_APART * i + 30.0 * rng.random() - (86_400.0 * rng.random() if late else 0.0),
        "scan_id": i + 1,
        "plan_type": "generator",
        "plan_name": plan,
        "detectors": [detector],
        "motors": motors,
        "num_points": points,
        "num_intervals": points - 1,
        "plan_args": {
            "detectors": [f"EpicsDetector(prefix='XF:{detector}:', name='{detector}')"],
            "num": points,
            "args": [value for motor in motors for value in (motor, round(-rng.random(), 3), round(rng.random(), 3))],
            "per_step": "None",
        },
        "hints": {"dimensions": [[motors or ["time"], "primary"]]},
        "versions": {"bluesky": "1.15.1", "ophyd": "1.11.2", "event_model": "1.24.0"},
        "beamline_id": f"XF{1 + seed % 9:02d}",
        "proposal": {"id": f"pass-{300_000 + i // 20_000}", "type": rng.choice(("general user", "commissioning"))},
        "operator": rng.choice(("ada", "grace", "emmy", "lise", "marie", "rosalind", "chien-shiung")),
        "sample": {
            "name": f"sample_{sample:03d}",
            "formula": rng.choice(("LaB6", "CeO2", "SrTiO3", "Ni", "Fe2O3")),
            "temperature": {"value": round(295 + 5 * rng.gauss(0, 1), 2), "unit": "K"},
        },
        "purpose": f"{purpose} {RARE_WORD}" if i % 5_000 == 77 else purpose,
        "reduced": False,
    }


def documents_of(i: int, seed: int = 0) -> list[Document]:
    """Return the documents of run `i`: its start, one descriptor, no events, its stop."""
    start = start_of(i, seed)
    names = [*start["motors"], f"{start['detectors'][0]}_total"]
    descriptor = {
        "uid": uid_of(i, seed + 1_000_003),
        "run_start": start["uid"],
        "time": start["time"] + 0.5,
        "name": "primary",
        "data_keys": {
            name: {"source": f"PV:{name}", "dtype": "number", "shape": [], "precision": 3, "object_name": name}
            for name in names
        },
        "object_keys": {name: [name] for name in names},
        "configuration": {},
        "hints": {name: {"fields": [name]} for name in names},
    }
    stop = {
        "uid": uid_of(i, seed + 2_000_003),
        "run_start": start["uid"],
        "time": start["time"] + 40.0,
        "exit_status": "success" if i % 17 else "abort",
        "reason": "" if i % 17 else "stopped by the operator",
        "num_events": {"primary": 0},
    }
    return [("start", start), ("descriptor", descriptor), ("stop", stop)]


def fill(target: Path | Catalog, count: int, seed: int = 0) -> None:
    """Put the runs ``0 … count - 1`` of `seed` below the root.

    Takes half a millisecond a run, and 10 kB of disk.

    Parameters
    ----------
    target : Path or Catalog
        A directory that `flystore serve` can be given (made if need be), or an open catalogue. Without these runs.
    """
    if isinstance(target, Catalog):
        _fill(target, count, seed)
        return
    make_directory(target)
    with Catalog.open(f"sqlite:///{target.resolve() / CATALOG_FILE}") as catalog:
        _fill(catalog, count, seed)


def _fill(catalog: Catalog, count: int, seed: int) -> None:
    numbers = iter(range(count))
    while some := list(islice(numbers, _AT_ONCE)):
        with catalog.write() as tx:
            if tx._session.database == "sqlite":
                tx._session.sql(f"PRAGMA cache_size=-{_CACHE_KIB}")
            _store(tx, some, seed)
    with catalog.write() as tx:
        if tx._session.database == "sqlite":
            tx._session.sql("PRAGMA cache_size=-16000")
        else:
            last = tx._session.one(_MAX_ID)
            tx._session.connection.exec_driver_sql(
                f"SELECT setval(pg_get_serial_sequence('nodes', 'id'), {last[0] if last else 1})"
            )


class _Rows:
    """Rows of the tables, for many runs."""

    def __init__(self, root: int, first: int) -> None:
        self.root = root
        self.next = first
        self.nodes: list[dict[str, Any]] = []
        self.leaves: list[dict[str, Any]] = []
        self.counts: list[dict[str, Any]] = []
        self.words: list[tuple[int, dict[str, Any]]] = []

    def add(self, puts: Iterable[PutNode], uid: str, received: float) -> int:
        """Take the nodes of one run; return the id of the topmost."""
        latest = {put.path: put for put in puts}
        ids = {path: self.next + place for place, path in enumerate(latest)}
        self.next += len(latest)
        for path, put in latest.items():
            top = len(path) == 1
            self.nodes.append(
                {
                    "id": ids[path],
                    "parent_id": self.root if top else ids[path[:-1]],
                    "key": path[-1],
                    "path": path_text(path),
                    "family": str(put.family),
                    "origin": "documents",
                    "run_uid": uid,
                    "indexed": top,
                    "children_indexed": False,
                    "time_created": received,
                    "time_updated": received,
                    "revision": 1,
                    "access_tags": "[]",
                    "specs": specs_text(put.specs),
                    "structure": None if put.structure is None else to_json(put.structure),
                    "metadata": to_json(put.metadata),
                    "external": put.external,
                }
            )
            if put.structure is None:
                below = sum(other[:-1] == path for other in latest)
                self.counts.append({"node_id": ids[path], "count": below})
            if top:
                entries = _leaves.leaves_of(put.metadata, put.family, put.specs, ())
                where = {"parent_id": self.root, "node_id": ids[path]}
                self.leaves += [{**where, "key": key, "value": value} for key, value in entries]
                self.words.append((ids[path], put.metadata))
        return ids[next(iter(latest))]


def _store(tx: Transaction, numbers: list[int], seed: int) -> None:
    session = tx._session
    root = tx.node(())
    last = session.one(_MAX_ID)
    assert root is not None
    assert last is not None
    rows = _Rows(root.id, last[0] + 1)
    saved: list[Run] = []
    for i in numbers:
        saved.append(_run(tx, rows, i, seed))
    session.many(_NODE, rows.nodes)
    session.many(_COUNT, rows.counts)
    for leaf in rows.leaves:
        tx._leaf_changes.add(root.id, leaf["node_id"], [(leaf["key"], leaf["value"])])
    rows.leaves.sort(key=lambda leaf: (leaf["key"], leaf["value"], leaf["node_id"]))
    session.many(_LEAF, rows.leaves)
    session.many(_words._ADD[session.database], list(_entries(tx, rows)))
    for run in saved:
        tx.save_run(run)
    tx._more_children[root.id] += len(numbers)


def _entries(tx: Transaction, rows: _Rows) -> Iterator[dict[str, Any]]:
    for node_id, metadata in rows.words:
        yield {"node_id": node_id, "words": _words._stored(tx._session, words_of(metadata), rows.root)}


def _run(tx: Transaction, rows: _Rows, i: int, seed: int) -> Run:
    documents = documents_of(i, seed)
    uid = documents[0][1]["uid"]
    received = FIRST_TIME + SECONDS_APART * i + 100.0
    encoder, decoder = FrameEncoder(), FrameDecoder()
    payloads = [payload for name, doc in documents for payload in encoder.encode(name, doc)]
    hashes = b"".join(decoder.digest(payload) for payload in payloads)
    tx.append_documents(uid, 0, len(documents), 1, hashes, pack(b"".join(frame(p) for p in payloads)), received)
    state, changes = advance(RunState.new(uid), [(n, name, doc) for n, (name, doc) in enumerate(documents)])
    top = rows.add((change for change in changes if isinstance(change, PutNode)), uid, received)
    tx.note_change((uid,), "created", {"family": "container"}, run_uid=uid)
    return Run(
        uid=uid,
        writer="documents",
        watermark=len(documents),
        projected=len(documents),
        epoch=1,
        state=state.to_bytes(),
        open=False,
        last_received=received,
        start_time=documents[0][1]["time"],
        verdict=verdict(state).state,
        node_id=top,
    )
