"""F11, F14: batches that come again, late, too early, altered, or from several writers at once.

If these fail, a retry, a delayed packet or a second writer doubles events, leaves holes between them, or mixes two
writers' documents in one run.
"""

import random
import signal
import sqlite3
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from flystore.model.errors import ContentClash, FlystoreError, SequenceGap, StaleEpoch
from flystore.model.frames import FRAMES_MIMETYPE
from flystore.projection import RunState, verdict
from flystore.service import Service
from flystore.storage import decode_segment
from flystore.testing.faults import (
    KEY,
    FaultFound,
    FaultReport,
    FaultyService,
    FaultyWriter,
    ForkServer,
    Ledger,
    Load,
    broken,
    check_api,
    check_disk,
    stored_upto,
)
from flystore.testing.faults.batches import odd_run, unruly
from flystore.testing.faults.model import Model, Outcome, outcome_of
from flystore.testing.faults.storing import frames_each
from flystore.wire import HttpTransport, api_path

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def quick_disk(tmp_path):
    """Return a directory in memory where there is one: nothing here is about the disk."""
    if not SHARED_MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="flystore-") as made:
        yield Path(made)


def answer(service: Service, batch) -> Outcome:
    try:
        return Outcome("stored", service.ingest.batch(batch.uid, batch.first, batch.epoch, batch.body).watermark)
    except FlystoreError as error:
        return outcome_of(error)


def send_unruly_batches(service: Service, model: Model, rng: random.Random, report: FaultReport, least: int):
    """Send batches of odd runs and compare each answer with the model's; return the runs."""
    runs = []
    while report.cycles < least:
        documents = odd_run(rng, f"odd-{report.seed:x}-{len(runs):06d}")
        runs.append(documents)
        for batch in unruly(rng, documents, model):
            expected = model.batch(batch.uid, batch.first, batch.epoch, batch.documents)
            found = answer(service, batch)
            report.cycles += 1
            assert found == expected, f"batch {batch.first} + {len(batch.documents)} of {batch.uid}, {batch.epoch}"
        report.acknowledged += len(documents)
    return runs


def tree_of(directory: Path, uid: str) -> dict[str, list]:
    """Return everything that was worked out from a run's documents, without ids and times of storing."""
    with closing(sqlite3.connect(f"file:{directory / 'catalog.sqlite'}?mode=ro", uri=True)) as database:
        below = (f"{uid}/", f"{uid}0", uid)  # as a range, which an index serves; "0" comes after "/"
        found = {
            "run": database.execute(
                "SELECT watermark, projected, open, start_time FROM runs WHERE uid = ?", (uid,)
            ).fetchall(),
            "verdict": [
                verdict(RunState.from_bytes(state))
                for (state,) in database.execute("SELECT state FROM runs WHERE uid = ?", (uid,))
            ],
            "nodes": database.execute(
                "SELECT path, family, origin, specs, structure, metadata, external FROM nodes "
                "WHERE path >= ? AND path < ? OR path = ? ORDER BY path",
                below,
            ).fetchall(),
            "sources": database.execute(
                "SELECT path, mimetype, data_sources.structure, parameters, properties FROM data_sources "
                "JOIN nodes ON nodes.id = node_id WHERE path >= ? AND path < ? OR path = ? ORDER BY path",
                below,
            ).fetchall(),
            "assets": database.execute(
                "SELECT path, parameter, num, data_uri FROM assets JOIN data_sources ON data_sources.id = "
                "data_source_id JOIN nodes ON nodes.id = node_id WHERE path >= ? AND path < ? OR path = ? "
                "ORDER BY 1, 2, 3",
                below,
            ).fetchall(),
        }
        series = sorted(
            {
                row[0]
                for row in database.execute("SELECT series FROM segments WHERE series >= ? AND series < ?", below[:2])
            }
        )
        for name in series:
            bodies = database.execute("SELECT body FROM segments WHERE series = ? ORDER BY first_row", (name,))
            batches = [decode_segment(body) for (body,) in bodies]
            found[name] = pa.Table.from_batches(batches).to_pylist() if batches else []
    return found


@pytest.mark.timeout(3000)
def test_unruly_batches_lead_to_what_batches_in_order_lead_to(quick_disk, seed, cycles, fault_report):
    report = fault_report("F11 batches again, late, early, altered")
    rng, model = random.Random(seed), Model()
    with Service.open(quick_disk / "unruly") as service:
        runs = send_unruly_batches(service, model, rng, report, cycles(1000, 20000))
    with Service.open(quick_disk / "in-order") as service:
        for documents in runs:
            service.ingest.batch(documents[0][1]["uid"], 0, 1, b"".join(frames_each(documents)))
    for documents in runs:
        uid = documents[0][1]["uid"]
        assert tree_of(quick_disk / "unruly", uid) == tree_of(quick_disk / "in-order", uid), uid
    report.notes["runs"] = len(runs)


@pytest.mark.parametrize("variant", ["no-dedupe", "no-compare", "no-epoch", "gaps-accepted"])
def test_a_service_that_takes_unruly_batches_otherwise_is_found(quick_disk, seed, variant):
    report = FaultReport("control", seed)
    with broken(variant), Service.open(quick_disk / "store") as service, pytest.raises(AssertionError):
        send_unruly_batches(service, Model(), random.Random(seed), report, 2000)


# --- several writers at once -----------------------------------------------------------------------------


class Variants(Load):
    """A load of which each run exists in several variants that share a uid; `winner` says which is expected."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.winner: dict[int, int] = {}

    def documents(self, run, events):
        return self.variant(run, events, self.winner.get(run, 0))

    def variant(self, run, events, variant):
        found = super().documents(run, events)
        return [(name, {**doc, "time": doc["time"] + variant} if "time" in doc else doc) for name, doc in found]


class Racer(threading.Thread):
    """A writer that sends a run from the start and knows nothing of the others."""

    def __init__(self, url: str, uid: str, epoch: int, documents, size: int, barrier: threading.Barrier) -> None:
        super().__init__()
        self.epoch, self.uid = epoch, uid
        self.acknowledged = 0
        self.refused: FlystoreError | None = None
        self._barrier, self._each, self._size = barrier, frames_each(documents), size
        self._transport = HttpTransport(url, KEY)

    def run(self) -> None:
        at = 0
        self._barrier.wait(60)
        while at < len(self._each):
            try:
                at = self.acknowledged = self.send(at)
            except SequenceGap as gap:
                at = gap.facts["expected"]
            except FlystoreError as error:
                self.refused = error
                break
        self._transport.close()

    def refusal(self) -> FlystoreError | None:
        """Send the first documents again; return what that is refused with."""
        try:
            self.send(0)
        except FlystoreError as error:
            return error
        return None

    def send(self, at: int) -> int:
        reply = self._transport.request(
            "POST",
            api_path("ingest", self.uid),
            params={"first": at, "epoch": self.epoch},
            headers={"Content-Type": FRAMES_MIMETYPE, "Accept": "application/json"},
            body=b"".join(self._each[at : at + self._size]),
        )
        return reply.decode()["watermark"]


def race(service: FaultyService, ledger: Ledger, load: Variants, report: FaultReport, rng: random.Random, run: int):
    """Let two to eight writers race for one run, and find out whether one of them won."""
    uid, events = load.uid(run), rng.randint(5, 20)
    same = rng.random() < 0.5
    barrier = threading.Barrier(count := rng.randint(2, 8))
    variants = [0 if same else rng.randint(0, 2) for _ in range(count)]
    racers = [
        Racer(service.url, uid, rng.randint(1, 3), load.variant(run, events, v), rng.randint(2, 9), barrier)
        for v in variants
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(100)
    watermark, epoch = stored_upto(service.directory, uid)
    served = [i for i, racer in enumerate(racers) if racer.acknowledged]
    assert len({variants[i] for i in served}) == 1, "two writers with different documents were both acknowledged"
    assert epoch == max(racers[i].epoch for i in served), "the newest writer did not win"
    load.winner[run] = variants[served[0]]
    ledger.begun(uid, run, events)
    ledger.sent(uid, len(load.documents(run, events)))
    ledger.acknowledged(uid, max(racers[i].acknowledged for i in served))
    for i, racer in enumerate(racers):
        finished = racer.acknowledged == len(load.documents(run, events))
        if not finished:
            wrong = variants[i] != load.winner[run]
            assert isinstance(
                racer.refused, ContentClash if wrong and racer.epoch >= epoch else (StaleEpoch, ContentClash)
            )
        if racer.epoch < epoch:
            assert isinstance(racer.refusal(), StaleEpoch), "a writer that was taken over may write again"
    assert watermark == max(racers[i].acknowledged for i in served)
    on_disk = check_disk(service.directory, ledger, load, [uid])
    report.count(on_disk)
    report.cycles += 1
    on_disk.require_none()
    if run % 10 == 0:
        check_api(HttpTransport(service.url, KEY), ledger, load, [uid]).require_none()


@contextmanager
def racing(fork_server, scratch: Path, variants: tuple[str, ...] = ()):
    with (
        FaultyService(fork_server, scratch / "store", broken=variants) as service,
        Ledger(scratch / "ledger") as ledger,
    ):
        yield service.start(), ledger


@pytest.mark.timeout(3000)
def test_of_several_writers_of_one_run_one_wins(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F14 writers racing for one run")
    rng, load = random.Random(seed), Variants(seed)
    with racing(fork_server, tmp_path) as (service, ledger):
        for run in range(cycles(50, 1000)):
            race(service, ledger, load, report, rng, run)


@pytest.mark.parametrize("variant", ["no-epoch", "no-dedupe", "no-compare"])
def test_a_service_where_two_writers_win_is_found(fork_server, tmp_path, seed, variant):
    report = FaultReport("control", seed)
    rng, load = random.Random(seed), Variants(seed)

    def race_often() -> None:
        with racing(fork_server, tmp_path, (variant,)) as (service, ledger):
            for run in range(100):
                race(service, ledger, load, report, rng, run)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        race_often()


def adopt_at_once(
    fork_server: ForkServer,
    service: FaultyService,
    ledger: Ledger,
    scratch: Path,
    report: FaultReport,
    run: int,
    failpoints: dict[str, str] | None = None,
) -> None:
    """Kill an acquisition, or let it die, and have four processes at once find what it left."""
    load, home = Load(report.seed), scratch / "journal"
    wanted = random.Random(f"{report.seed}/{run}").randint(1, 150)
    writer = FaultyWriter(fork_server, journal=home, ledger=ledger.path, seed=report.seed, log=scratch / "writer.log")
    left = writer.start(service.url, [(run, 200)], pause=0.0002, linger=0.02, flush=60.0, failpoints=failpoints)
    if failpoints is None:
        uid = load.uid(run)
        ledger.reload_until(lambda: uid in ledger.runs and ledger.runs[uid].journaled >= wanted)
        left.kill()
    else:
        assert left.wait() == -signal.SIGKILL, left.log_tail()
    takers = [writer.start(service.url, [], flush=90.0) for _ in range(4)]
    assert [taker.wait() for taker in takers] == [0] * 4, takers[0].log_tail()
    ledger.reload()
    uid = load.uid(run)
    ledger.acknowledged(uid, ledger.runs[uid].journaled)
    found = check_disk(service.directory, ledger, load, [uid])
    report.count(found)
    report.cycles += 1
    found.require_none()
    assert not list(home.iterdir()), "a journal was left behind"


@pytest.mark.timeout(3000)
def test_of_several_processes_one_takes_over_what_was_left(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F14 processes racing for an orphan")
    with racing(fork_server, tmp_path) as (service, ledger):
        for run in range(cycles(6, 100)):
            adopt_at_once(fork_server, service, ledger, tmp_path, report, run)
    assert report.acknowledged > 0


def test_a_service_that_stores_twice_what_is_left_is_found(fork_server, tmp_path, seed):
    report = FaultReport("control", seed)

    # It dies with a batch stored that it does not know to be.
    dying = {"writer.after_send": "die@1"}
    with (
        racing(fork_server, tmp_path, ("no-dedupe",)) as (service, ledger),
        pytest.raises(FaultFound),
    ):
        adopt_at_once(fork_server, service, ledger, tmp_path, report, 0, dying)
    assert report.doubled
