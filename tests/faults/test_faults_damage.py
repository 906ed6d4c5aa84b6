"""F22, F25: bits of what is stored flip, and files are cut short.

If these fail, a disk that ages gives people wrong values without a word, one bad sector makes a whole store unreadable,
or ``flystore verify`` calls a damaged store good.
"""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flystore.model.errors import Damaged, FlystoreError
from flystore.model.frames import split_frames
from flystore.service import Service
from flystore.service.backup import ARRAYS_DIRECTORY, CATALOG_FILE
from flystore.service.browse import everything_below
from flystore.service.checking import check_store
from flystore.service.rebuilding import as_shown
from flystore.service.verifying import verify
from flystore.testing.faults import Ledger, Load, broken
from flystore.testing.faults.storing import array_key, store_array, store_run

EVENTS, BATCH = 40, 10
RUN, OTHER = 1, 2


class Store:
    """A store with two runs and two arrays, open, and what it holds."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory / "store"
        self.load = Load(seed)
        with Ledger(directory / "ledger") as ledger:
            for run in (RUN, OTHER):
                store_run(self.directory, ledger, self.load, run, EVENTS, BATCH)
                store_array(self.directory, ledger, self.load, run, 5)
        self.service = Service.open(self.directory, create=False)
        self.catalog = self.service._catalog
        self.database = sqlite3.connect(self.directory / CATALOG_FILE, isolation_level=None)
        self.database.execute("PRAGMA synchronous=OFF")
        self.truth = {run: self.read(run) for run in (RUN, OTHER)}

    def documents(self, run):
        body = b"".join(self.service.documents.frames((self.load.uid(run),)).pieces)
        return [bytes(payload) for _, payload in split_frames(body)]

    def rows(self, run):
        return [self.service.tables.read((self.load.uid(run), stream, "internal")) for stream in ("primary", "monitor")]

    def array(self, run):
        return bytes(self.service.arrays.read((array_key(self.load, run),)))

    def read(self, run):
        return {"log": self.documents(run), "rows": self.rows(run), "array": self.array(run)}

    def damaged(self):
        """Return where `verify` finds damage; on the open store, which is what it does with its copy."""
        checks = check_store(self.catalog, self.service.arrays._store, self.service._prober)
        return [finding for check in checks for finding in check.damaged]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.database.close()
        self.service.close()


@pytest.fixture
def store(tmp_path, seed):
    with Store(tmp_path, seed) as made:
        yield made


def spoil(rng, content):
    """Return content with a bit flipped or its end cut off, and what was done."""
    if rng.random() < 0.25:
        length = rng.randrange(len(content))
        return content[:length], f"cut to {length} of {len(content)} bytes"
    place = rng.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed), f"bit {place % 8} of byte {place // 8} of {len(content)} flipped"


class Cell:
    """A blob in the catalogue that can be spoilt and mended."""

    def __init__(self, store, table, column, key, number, part):
        self.store, self.part = store, part
        self.table, self.column, self.key, self.number = table, column, key, number
        self.name = f"{table}.{column} of {number}"

    def get(self):
        query = f"SELECT {self.column} FROM {self.table} WHERE {self.key} = ?"
        return self.store.database.execute(query, (self.number,)).fetchone()[0]

    def put(self, content):
        query = f"UPDATE {self.table} SET {self.column} = ? WHERE {self.key} = ?"
        self.store.database.execute(query, (content, self.number))


class File:
    """A file of an array that can be spoilt and mended."""

    def __init__(self, path):
        self.path, self.part, self.name = path, "array", path.name

    def get(self):
        return self.path.read_bytes()

    def put(self, content):
        self.path.write_bytes(content)


def targets(store, kinds):
    """Return all places of one run that can be spoilt, by kind."""
    uid, key = store.load.uid(RUN), array_key(store.load, RUN)
    with store.catalog.read() as snapshot:
        number = snapshot.node((key,)).id
    found = {
        "log": [
            Cell(store, "log", "body", "position", row[0], "log")
            for row in store.database.execute("SELECT position FROM log WHERE run_uid = ?", (uid,))
        ],
        "operation": [
            Cell(store, "log", "body", "position", row[0], None)
            for row in store.database.execute("SELECT position FROM log WHERE kind = 'operation' AND path = ?", (key,))
        ],
        "hashes": [
            Cell(store, "log", "hashes", "position", row[0], None)
            for row in store.database.execute("SELECT position FROM log WHERE run_uid = ?", (uid,))
        ],
        "rows": [
            Cell(store, "segments", "body", "id", row[0], "rows")
            for row in store.database.execute("SELECT id FROM segments WHERE series LIKE ?", (f"{uid}/%",))
        ],
        "monitor rows": [
            Cell(store, "segments", "body", "id", row[0], "rows")
            for row in store.database.execute("SELECT id FROM segments WHERE series = ?", (f"{uid}/monitor",))
        ],
        "array": [
            File(path)
            for path in sorted((store.directory / ARRAYS_DIRECTORY / str(number)).rglob("*"))
            if path.is_file()
        ],
    }
    return [(kind, found[kind]) for kind in kinds]


ALL = ("log", "rows", "array", "operation", "hashes")


def damage_and_read(store, report, rng, cycles, kinds=ALL):
    """Spoil one place at a time; every read gives what was stored or says `Damaged`, and verify finds it."""
    places = targets(store, kinds)
    outcomes = {"damaged": 0, "right all the same": 0}
    for _ in range(cycles):
        kind, some = rng.choice(places)
        target = rng.choice(some)
        before = target.get()
        after, what = spoil(rng, before)
        where = f"{kind}, {target.name}: {what}"
        target.put(after)
        try:
            told = read_one(store, target, where, report, outcomes)
            found = store.damaged()
            if not found and told:
                raise AssertionError(f"{where}: reading says damaged, verify says nothing")
            if not found and target.part is None:
                report.half += 1
                raise AssertionError(f"{where}: verify says nothing")
            for part, truth in store.truth[OTHER].items():
                assert getattr(store, {"log": "documents"}.get(part, part))(OTHER) == truth, where
        finally:
            target.put(before)
        report.cycles += 1
    report.notes.update(outcomes)
    assert store.damaged() == []
    assert store.read(RUN) == store.truth[RUN]


def read_one(store, target, where, report, outcomes):
    """Read what the spoilt place is part of; return whether reading says that it is damaged."""
    if target.part is None:
        return False
    read = {"log": store.documents, "rows": store.rows, "array": store.array}[target.part]
    try:
        found = read(RUN)
    except Damaged:
        outcomes["damaged"] += 1
        return True
    if found != store.truth[RUN][target.part]:
        report.phantom += 1
        raise AssertionError(f"{where}: wrong values, silently")
    outcomes["right all the same"] += 1
    return False


def test_a_flipped_bit_or_a_cut_is_never_a_value(store, fault_report, seed, cycles):
    report = fault_report("F25 bits flipped in log, rows and arrays", unit="places")
    damage_and_read(store, report, random.Random(seed), cycles(300, 10_000))
    assert report.notes["damaged"] > report.notes["right all the same"]


@pytest.mark.parametrize("kind", ["log", "monitor rows", "array"])
def test_without_checksums_flipped_bits_are_found_to_be_read_silently(store, fault_report, seed, kind):
    report = fault_report(f"F25 control: no checksums, {kind}", unit="places")
    with broken("no-checksums"), pytest.raises(AssertionError, match="wrong values, silently"):
        spoil_silently(store, report, random.Random(seed), kind)


def spoil_silently(store, report, rng, kind):
    """Flip bits until one read gives a wrong value without an error."""
    ((_, some),) = targets(store, [kind])
    for _ in range(2_000):
        report.cycles += 1
        target = rng.choice(some)
        before = target.get()
        place = rng.randrange(8 * len(before))
        changed = bytearray(before)
        changed[place // 8] ^= 1 << place % 8
        target.put(bytes(changed))
        try:
            read = {"log": store.documents, "rows": store.rows, "array": store.array}[target.part]
            try:
                found = read(RUN)
            except Exception:  # said, so not silent
                continue
            if found != store.truth[RUN][target.part]:
                report.phantom += 1
                raise AssertionError(f"{target.name}: wrong values, silently")
        finally:
            target.put(before)


def test_a_chunk_that_is_gone_is_damage_and_not_zeros(store):
    ((_, files),) = targets(store, ["array"])
    chunk = next(file for file in files if file.path.parent.name == "c")
    content = chunk.get()
    chunk.path.unlink()
    with pytest.raises(Damaged, match=r"the chunk c/\d was written and is gone"):
        store.array(RUN)
    assert any("was written and is gone" in finding.why for finding in store.damaged())
    chunk.put(content)
    assert store.array(RUN) == store.truth[RUN]["array"]


def test_a_record_of_the_log_that_is_gone_is_damage_and_not_a_shorter_run(store):
    uid = store.load.uid(RUN)
    positions = [row[0] for row in store.database.execute("SELECT position FROM log WHERE run_uid = ?", (uid,))]
    for position in (positions[0], positions[2], positions[-1]):
        row = store.database.execute("SELECT * FROM log WHERE position = ?", (position,)).fetchone()
        store.database.execute("DELETE FROM log WHERE position = ?", (position,))
        with pytest.raises(Damaged):
            store.documents(RUN)
        assert store.damaged()
        store.database.execute(f"INSERT INTO log VALUES ({','.join('?' * len(row))})", row)
    assert store.documents(RUN) == store.truth[RUN]["log"]


# --- catalogue pages -------------------------------------------------------------------------------------------


def visible(directory):
    """Return all that readers of a store are shown."""
    with Service.open(directory, create=False) as service, service._catalog.read() as snapshot:
        shown = {}
        for node in everything_below(snapshot, ()):
            source = snapshot.data_source(node.id)
            shown[node.path] = (as_shown(node), node.access_tags, source)
            if node.family == "table":
                shown[(*node.path, "rows")] = service.tables.read(node.path)
            elif source is not None and node.external is None:
                shown[(*node.path, "values")] = bytes(service.arrays.read(node.path))
        for uid in snapshot.run_uids():
            run = snapshot.run(uid)
            shown[("run", uid)] = (run.writer, run.watermark, run.open, run.verdict, run.deleted)
            body = b"".join(service.documents.frames((uid,)).pieces)
            shown[("documents", uid)] = [bytes(payload) for _, payload in split_frames(body)]
        return shown


def damage_pages(directory, report, rng, cycles):
    """Flip one bit of the catalogue's file at a time: verify finds it, or readers are shown what they were shown."""
    catalogue = directory / CATALOG_FILE
    content = catalogue.read_bytes()
    truth = visible(directory)
    found = harmless = said = 0
    for _ in range(cycles):
        for path in directory.glob(f"{CATALOG_FILE}*"):
            path.unlink()
        changed = bytearray(content)
        place = rng.randrange(8 * len(content))
        changed[place // 8] ^= 1 << place % 8
        catalogue.write_bytes(changed)
        if verify(directory, deep=True).damaged:
            found += 1
        else:
            try:
                shown = visible(directory)
            except FlystoreError:
                said += 1
            else:
                if shown != truth:
                    report.phantom += 1
                    differing = [key for key in truth if shown.get(key) != truth[key]]
                    raise AssertionError(f"bit {place}: {differing[:3]} are shown otherwise, and verify finds nothing")
                harmless += 1
        report.cycles += 1
    report.notes.update({"found": found, "in space that holds nothing shown": harmless, "said when read": said})
    catalogue.write_bytes(content)


@pytest.fixture
def closed_store(tmp_path, seed):
    with Store(tmp_path, seed) as made:
        directory = made.directory
    with closing(sqlite3.connect(directory / CATALOG_FILE)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    return directory


def test_a_flipped_bit_in_a_catalogue_page_is_found_by_a_deep_look(closed_store, fault_report, seed, cycles):
    report = fault_report("F25 bits flipped in catalogue pages", unit="pages")
    damage_pages(closed_store, report, random.Random(seed), cycles(40, 2_000))
    assert report.notes["found"]


def test_without_the_comparison_a_changed_value_in_a_page_is_found_to_be_missed(closed_store, fault_report, seed):
    report = fault_report("F25 control: trees not compared", unit="pages")
    uid = Load(seed).uid(RUN)
    truth = visible(closed_store)
    with closing(sqlite3.connect(closed_store / CATALOG_FILE, isolation_level=None)) as database:
        database.execute("UPDATE nodes SET metadata = replace(metadata, 'load', 'lobd') WHERE path = ?", (uid,))
    assert visible(closed_store) != truth
    assert verify(closed_store, deep=True).damaged
    with broken("no-compare-trees"):
        assert not verify(closed_store, deep=True).damaged
    report.cycles += 1


def test_the_store_is_whole_after_all(closed_store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(closed_store, copy)
    found = verify(copy, deep=True)
    assert found.damaged == []
    assert {check.what for check in found.checks} == {"pages", "log", "rows", "arrays", "index", "files", "trees"}
    assert not any(check.unverified for check in found.checks if check.what != "files")
