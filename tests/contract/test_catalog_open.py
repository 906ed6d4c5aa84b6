"""A catalogue opens where it can work, brings itself up to date, and otherwise says what is wrong.

If these fail, an upgrade or a wrong directory costs data, or ends in a traceback at three in the morning.
"""

import os
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa

from flystore.catalog import Catalog, _migrations, _place
from flystore.catalog._database import connect
from flystore.catalog._schema import metadata
from flystore.model import queries as q
from flystore.model.errors import Damaged, Misconfigured, Unavailable
from flystore.model.structures import Family


def put(catalog, key):
    with catalog.write() as tx:
        tx.put_node((key,), Family.CONTAINER, [], {"v": 1}, None)


def test_what_was_stored_is_there_after_opening_again(catalog_url):
    with Catalog.open(catalog_url) as catalog:
        put(catalog, "n")
    with Catalog.open(catalog_url, create=False) as catalog, catalog.read() as snapshot:
        assert snapshot.child_keys((), query=q.Eq("v", 1)).keys == ["n"]
        assert snapshot.last_position() == 1


def test_what_is_not_there_is_not_made_unasked(catalog_url, tmp_path):
    with pytest.raises(Misconfigured, match="no catalogue"):
        Catalog.open(catalog_url, create=False)
    assert not (tmp_path / "catalog.db").exists()


def test_two_processes_may_open_one_catalogue(catalog_url):
    with Catalog.open(catalog_url) as one, Catalog.open(catalog_url) as two:
        put(one, "one")
        put(two, "two")
        with one.read() as snapshot:
            assert snapshot.child_keys(()).keys == ["one", "two"]


def test_a_newer_catalogue_is_refused_in_words_and_left_alone(catalog_url):
    known = len(_migrations.MIGRATIONS)
    database = connect(catalog_url, create=True)
    _migrations.migrate(database, (*_migrations.MIGRATIONS, lambda connection: None), create=True)
    database.close()

    told = rf"newer flystore \(schema {known + 1}; this program knows {known}\)"
    with pytest.raises(Misconfigured, match=told) as refused:
        Catalog.open(catalog_url)

    assert refused.value.facts == {"stored": known + 1, "known": known}


def test_an_older_catalogue_is_brought_up_to_date_once(catalog_url):
    with Catalog.open(catalog_url) as catalog:
        put(catalog, "n")
    ran = []

    def second(connection):
        ran.append(2)
        connection.exec_driver_sql("ALTER TABLE nodes ADD COLUMN colour TEXT")

    def third(connection):
        ran.append(3)
        connection.exec_driver_sql("UPDATE nodes SET colour = 'blue'")

    steps = (*_migrations.MIGRATIONS, second, third)
    for _ in range(2):
        database = connect(catalog_url, create=False)
        _migrations.migrate(database, steps, create=False)
        with database.reading() as session:
            colours = session.compose(sa.text("SELECT DISTINCT colour FROM nodes"))
        database.close()

    assert ran == [2, 3]
    assert [tuple(row) for row in colours] == [("blue",)]


def test_a_migration_that_fails_changes_nothing(catalog_url):
    with Catalog.open(catalog_url) as catalog:
        put(catalog, "n")

    def half(connection):
        connection.exec_driver_sql("ALTER TABLE nodes ADD COLUMN colour TEXT")
        raise RuntimeError("power cut")

    database = connect(catalog_url, create=False)
    with pytest.raises(RuntimeError, match="power cut"):
        _migrations.migrate(database, (*_migrations.MIGRATIONS, half), create=False)
    database.close()

    with Catalog.open(catalog_url) as catalog, catalog.read() as snapshot:
        assert "colour" not in [c["name"] for c in sa.inspect(snapshot._session.connection).get_columns("nodes")]
        assert snapshot.child_keys(()).keys == ["n"]


def test_the_tables_are_those_of_the_schema(catalog_url):
    with Catalog.open(catalog_url) as catalog, catalog.read() as snapshot:
        found = set(sa.inspect(snapshot._session.connection).get_table_names())

    assert {table.name for table in metadata.sorted_tables} <= found


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("no url at all", "not the address"),
        ("mysql://host/name", "not in mysql"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_an_address_that_cannot_work_is_refused_in_words(url, why):
    with pytest.raises(Misconfigured, match=why):
        Catalog.open(url)


def test_a_server_that_does_not_answer_is_unavailable_and_its_password_not_shown(tmp_path):
    url = f"postgresql://me:secret@/db?host={tmp_path}&connect_timeout=2"

    with pytest.raises(Unavailable, match="does not answer") as refused:
        Catalog.open(url)

    assert "secret" not in str(refused.value)


def test_the_directory_of_a_file_is_made(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path}/a/b/c.db") as catalog:
        put(catalog, "n")

    assert (tmp_path / "a" / "b" / "c.db").is_file()


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match="file"):
        Catalog.open(f"sqlite:///{tmp_path}/file/c.db")


def test_a_file_that_is_no_catalogue_is_left_alone(tmp_path):
    path = tmp_path / "c.db"
    path.write_bytes(b"this is not a database, but a text somebody needs " * 100)

    with pytest.raises(Damaged, match="damaged"):
        Catalog.open(f"sqlite:///{path}")

    assert path.read_bytes().startswith(b"this is not")


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/net nfs4 rw 0 0\n")
    monkeypatch.setattr(_place, "_MOUNTS", mounts)

    with pytest.raises(Misconfigured, match="network file system \\(nfs4\\)"):
        Catalog.open(f"sqlite:///{tmp_path}/net/c.db")
    Catalog.open(f"sqlite:///{tmp_path}/local/c.db").close()

    assert not (tmp_path / "net" / "c.db").exists()


def test_sqlite_is_set_to_survive_a_power_cut(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path}/c.db") as catalog, catalog.write() as tx:
        driver = tx._session.driver
        found = {
            name: driver.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_another_process_that_holds_the_file_too_long_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("flystore.catalog._database.BUSY_S", 0.05)
    with Catalog.open(f"sqlite:///{tmp_path}/c.db") as catalog:
        put(catalog, "before")
        other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another process"):
            put(catalog, "blocked")
        with catalog.read() as snapshot:
            assert snapshot.child_keys(()).keys == ["before"]
        other.execute("ROLLBACK")
        other.close()
        put(catalog, "after")


def test_a_process_that_is_killed_leaves_whole_transactions(tmp_path):
    """Each transaction stores a node and its rows; after the kill there are as many of one as of the other."""
    url = f"sqlite:///{tmp_path}/c.db"
    code = f"""
import os
from flystore.catalog import Catalog
from flystore.model.structures import Family
catalog = Catalog.open({url!r})
for i in range(10_000):
    with catalog.write() as tx:
        tx.put_node((f"n{{i}}",), Family.CONTAINER, [], {{"v": i}}, None)
        tx.append_segment("s", i, 1, b"x" * 1000)
        if i == 40:
            print("enough", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout.readline() == b"enough\n"
    process.kill()
    process.wait()
    process.stdout.close()

    with Catalog.open(url) as catalog, catalog.read() as snapshot:
        n = snapshot.rows("s")
        assert n >= 40
        assert snapshot.count(()) == n == len(snapshot.child_keys((), limit=20_000).keys)
        assert snapshot.last_position() == n
        assert snapshot.count((), q.KeyPresent("v")) == n
