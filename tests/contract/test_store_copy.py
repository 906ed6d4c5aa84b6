"""A store copied into another database is the same store, or the copy says that it is not; killed anywhere, it goes on.

If these fail, a facility that moves to PostgreSQL loses data on the way and learns of it years later.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog, _copying
from flystore.disk import failpoints
from flystore.model import queries as q
from flystore.model.errors import Conflict, Damaged, DiskFull, Misconfigured
from flystore.model.frames import FrameEncoder, frame
from flystore.model.structures import ArrayStructure
from flystore.service import NewNode, Service
from flystore.service.backup import back_up
from flystore.service.copying import Place, copy_store
from flystore.storage import ArrayStore, Roots
from flystore.testing.documents import RunDocuments, external, internal
from flystore.testing.faults.disks import NoDisk, small_disk

STRUCTURE = ArrayStructure.of(np.dtype("<i8"), (8, 5), ((2, 2, 2, 2), (5,)))


def trees(catalog):
    place = Path(__file__).parents[1] / "golden" / "make_store.py"
    spec = importlib.util.spec_from_file_location("make_store", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.trees(catalog)


def opened(place):
    """Return a service over a store wherever its catalogue is."""
    arrays = ArrayStore(place.directory / "arrays")
    return Service(Catalog.open(place.url), arrays, Roots([]))


def fill(service):
    """Store runs, arrays, a table that grows, edits, and things that were deleted again."""
    for number in range(4):
        run = RunDocuments(f"run-{number}", plan_name="count", note=f"word{number} é \ud800")
        stream = run.stream("primary", x=internal(), img=external((4, 5)))
        for value in range(5):
            stream.event(x=float(value))
        run.stop()
        encoder = FrameEncoder()
        body = b"".join(frame(payload) for name, doc in run.documents for payload in encoder.encode(name, doc))
        service.ingest.batch(f"run-{number}", 0, 0, body)
    service.nodes.delete(("run-2",), recursive=True, external_only=False)
    for key in ("gone", "box"):
        make(service, (), key, "container", {"colour": "blue", "n": 1})
    service.nodes.delete(("gone",), recursive=True, external_only=False)
    for key in ("one", "two"):
        make(service, ("box",), key, "array", {}, STRUCTURE)
        service.nodes.write_array(("box", key), (np.arange(40) + len(key)).tobytes())


def make(service, parent, key, family, metadata, structure=None):
    sources = []
    if structure is not None:
        sources = [{"structure_family": family, "structure": structure.to_wire(), "management": "writable"}]
    wire = {"id": key, "structure_family": family, "metadata": metadata, "data_sources": sources}
    return service.nodes.create(parent, NewNode.from_wire(wire))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("filled") / "store")
    with opened(place) as service:
        fill(service)
    return place.directory


@pytest.fixture
def source(filled, tmp_path):
    shutil.copytree(filled, tmp_path / "source")
    return Place(tmp_path / "source")


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request, tmp_path):
    url = None if request.param == "sqlite" else request.getfixturevalue("fresh_postgres")
    return Place(tmp_path / "target", url)


def documents(service, uid):
    return list(service.documents.frames((uid,), 0).pieces)


def test_a_copy_is_the_same_store(source, target):
    report = copy_store(source, target)
    assert (report.again, report.files > 4) == (False, True)
    assert {table.table: table.rows for table in report.tables}["runs"] == 4
    with opened(source) as one, opened(target) as other:
        assert trees(other._catalog) == trees(one._catalog)
        assert documents(other, "run-1") == documents(one, "run-1")
        for key in ("one", "two"):
            assert bytes(other.arrays.read(("box", key))) == bytes(one.arrays.read(("box", key)))
        assert other.tables.read(("run-3", "primary", "internal")).equals(
            one.tables.read(("run-3", "primary", "internal"))
        )
        names = set()
        for service in (one, other):
            with service._catalog.read() as snapshot:
                assert snapshot.child_keys((), query=q.FullText("word1")).keys == ["run-1"]
                assert snapshot.child_keys((), query=q.Eq("colour", "blue")).keys == ["box"]
                names.add(snapshot.store())
        assert len(names) == 1, "a follower's token would be refused"
        # Ids go on where those of the source ended, deleted ones included.
        made = [make(service, (), "new", "container", {}) and service._catalog for service in (one, other)]
        ids = []
        for catalog in made:
            with catalog.read() as snapshot:
                ids.append(snapshot.node(("new",)).id)
        assert ids[0] == ids[1]


@pytest.mark.parametrize("target", ["postgresql"], indirect=True)
def test_there_and_back_again(source, target, tmp_path):
    copy_store(source, target)
    back = Place(tmp_path / "back")
    one, other = copy_store(source, back), copy_store(back, Place(tmp_path / "third"))
    assert one.tables == other.tables
    through = copy_store(target, Place(tmp_path / "fourth"))
    assert through.tables == one.tables


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_done_again_it_only_compares(source, target):
    first = copy_store(source, target)
    again = copy_store(source, target)
    assert again.again
    assert again.tables == first.tables


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_a_backup_can_be_copied_while_its_store_is_in_use(source, target, tmp_path):
    with opened(source) as service:
        with pytest.raises(Misconfigured, match="in use"):
            copy_store(source, target)
        back_up(source.directory, tmp_path / "backup")
        before = {path.name: path.read_bytes() for path in (tmp_path / "backup" / "store").glob("catalog*")}
        copy_store(Place(tmp_path / "backup"), target)
        assert {
            path.name: path.read_bytes() for path in (tmp_path / "backup" / "store").glob("catalog.sqlite")
        } == before
        with opened(target) as other:
            assert trees(other._catalog) == trees(service._catalog)


def test_a_backup_that_may_only_be_read_can_be_copied(source, tmp_path):
    back_up(source.directory, tmp_path / "backup")
    for path in [*(tmp_path / "backup").rglob("*"), tmp_path / "backup"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    tmp_path.chmod(0o777)
    for above in tmp_path.parents:
        if above.stat().st_uid == os.getuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert copy_store(Place(tmp_path / "backup"), Place(tmp_path / "target")).files > 4
    finally:
        os.seteuid(user)
        for path in (tmp_path / "backup").rglob("*"):
            path.chmod(0o755)
        (tmp_path / "backup").chmod(0o755)


# --- killed


KILLER = """
import os, signal, sys
from pathlib import Path
from flystore.catalog import _copying
from flystore.disk import failpoints
from flystore.service.copying import Place, copy_store

source, target, url, first, spread, place, broken = sys.argv[1:]
_copying.BATCH_ROWS = 7

def careless():
    real = _copying.Target._add
    def add(self, table, batch):
        self.copied.last[str(table.name)] = [batch[-1][column.name] for column in table.primary_key.columns]
        with self._database.writing() as session:
            self._note(session)
        real(self, table, batch)
    _copying.Target._add = add

def dies(at):
    child = os.fork()
    if child == 0:
        left = [at]
        def handler(name):
            left[0] -= name.startswith(place)
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        failpoints.install(handler)
        if broken == "careless":
            careless()
        try:
            copy_store(Place(Path(source)), Place(Path(target), url or None))
        except BaseException as error:
            os.write(2, f"{error!r}\\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False

kills = 0
while dies(int(first) + kills % max(1, int(spread))):
    kills += 1
    assert kills < 500
    if spread == "0":
        break
print(kills)
"""
"""Copies in children that are killed at one of the failpoints; by its own process, in which no other thread runs."""


def kill(source, target, first, spread=0, place="copy.", broken=""):
    """Copy, killed at this one of the failpoints at `place`, and with a `spread` until it is done; return how often."""
    arguments = [source.directory, target.directory, target.catalog or "", first, spread, place, broken]
    command = [sys.executable, "-c", KILLER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_again_and_again_it_comes_to_the_same_end(source, target, tmp_path):
    assert kill(source, target, first=9, spread=8) > 5
    assert not (target.directory / ".copying").exists()
    assert copy_store(source, target).tables == copy_store(source, Place(tmp_path / "other")).tables
    with opened(source) as one, opened(target) as other:
        assert trees(other._catalog) == trees(one._catalog)


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_a_copy_that_was_ended_before_it_began_is_begun_again(source, target):
    target.directory.mkdir()
    (target.directory / ".copying").touch()
    assert not copy_store(source, target).again
    assert {path.name for path in target.directory.iterdir()} >= {"catalog.sqlite"}
    assert not (target.directory / ".copying").exists()


def test_half_a_copy_is_served_by_nobody(source, target):
    assert kill(source, target, first=30) == 1
    with pytest.raises(Misconfigured, match="not finished"):
        opened(target)
    if target.catalog is None:
        with pytest.raises(Misconfigured, match="not finished"):
            Service.open(target.directory)


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_a_copy_that_forgets_rows_when_it_is_killed_is_found_out(source, target):
    """Negative control: how far it came is noted before the rows are there."""
    assert kill(source, target, first=20, place="copy.before_batch", broken="careless") == 1
    with pytest.raises(Damaged, match="is not what is in the source"):
        copy_store(source, target)
    with pytest.raises(Misconfigured, match="not finished"):
        opened(target)


# --- what it refuses, and what it finds


def test_a_target_with_other_content_is_refused_and_left_alone(source, target, tmp_path):
    with opened(target) as service:
        make(service, (), "mine", "container", {})
    with pytest.raises(Conflict):
        copy_store(source, target)
    with opened(target) as service, service._catalog.read() as snapshot:
        assert snapshot.child_keys(()).keys == ["mine"]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.tex").touch()
    with pytest.raises(Conflict, match="not empty"):
        copy_store(source, Place(tmp_path / "files"))
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("target", ["postgresql"], indirect=True)
def test_a_source_that_was_written_to_between_two_attempts_is_told(source, target):
    assert kill(source, target, first=40) == 1
    with opened(source) as service:
        make(service, (), "late", "container", {})
    with pytest.raises(Conflict, match="written to since"):
        copy_store(source, target)


@pytest.mark.parametrize("target", ["sqlite"], indirect=True)
def test_a_source_that_is_written_to_during_the_copy_is_told(source, target, monkeypatch):
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    change = "UPDATE nodes SET metadata = '{}' WHERE path = 'box'"

    def handler(name):
        if name == "copy.before_compare":
            subprocess.run([sys.executable, "-c", code, source.directory / "catalog.sqlite", change], check=True)

    failpoints.install(handler)
    try:
        with pytest.raises(Damaged, match="the table nodes"):
            copy_store(source, target)
    finally:
        failpoints.install(None)


@pytest.mark.parametrize(
    ("target", "what"),
    [("sqlite", "a row"), ("postgresql", "a row"), ("sqlite", "a file"), ("sqlite", "a file more")]
    + [("sqlite", "a file less")],
    indirect=["target"],
)
def test_a_copy_that_differs_in_anything_is_found_out(source, target, what):
    def spoil(name):
        if name != "copy.before_compare":
            return
        chunk = next(path for path in sorted((target.directory / "arrays").rglob("c/*/*")) if path.is_file())
        if what == "a row":
            url = sa.make_url(target.url)
            engine = sa.create_engine(url.set(drivername="postgresql+psycopg") if target.catalog else url)
            with engine.begin() as connection:
                connection.exec_driver_sql("UPDATE runs SET watermark = watermark + 1 WHERE uid = 'run-1'")
            engine.dispose()
        elif what == "a file":
            content = bytearray(chunk.read_bytes())
            content[-1] ^= 1
            chunk.write_bytes(content)
        elif what == "a file more":
            (chunk.parent / "99").touch()
        else:
            chunk.unlink()

    failpoints.install(spoil)
    try:
        with pytest.raises(Damaged):
            copy_store(source, target)
    finally:
        failpoints.install(None)
    with pytest.raises(Misconfigured, match="not finished"):
        opened(target)


def test_a_full_disk_leaves_what_can_be_gone_on_with(source, tmp_path):
    try:
        with small_disk(tmp_path / "disk", 4) as disk:
            disk.fill(200_000)
            target = Place(disk.path / "target")
            with pytest.raises(DiskFull):
                copy_store(source, target)
            disk.empty()
            assert copy_store(source, target).files > 4
    except NoDisk as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("where", ["the same", "inside", "around", "no store"])
def test_places_that_cannot_be_right_are_refused(source, tmp_path, where):
    given, wanted = {
        "the same": (source, Place(source.directory)),
        "inside": (source, Place(source.directory / "copy")),
        "around": (source, Place(source.directory.parent)),
        "no store": (Place(tmp_path / "nothing"), Place(tmp_path / "copy")),
    }[where]
    with pytest.raises(Misconfigured):
        copy_store(given, wanted)


def test_tables_with_ids_keep_them():
    assert {table.name for table in _copying.TABLES if _copying._gives_ids(table)} == {
        "nodes",
        "data_sources",
        "assets",
        "segments",
    }
