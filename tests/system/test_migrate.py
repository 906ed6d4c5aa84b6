"""``flystore migrate`` brings stores of every earlier schema up to date, and one that was cut short goes on.

If these fail, an upgrade of a large store ends half-way, or an operator cannot tell what it will do.
"""

import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flystore.catalog import SCHEMA, UNFINISHED, Catalog, others_at, steps_from, version_of
from flystore.catalog import _migrations as migrations
from flystore.cli._migrate import run_migrate
from flystore.model.errors import Misconfigured
from flystore.service import Service

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(path.name for path in GOLDEN.glob("store-*"))


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    """A copy of a store of an earlier schema."""
    directory = tmp_path / "store"
    directory.mkdir()
    shutil.copy(GOLDEN / request.param / "catalog.sqlite", directory)
    return directory


def version(store):
    return version_of(store / "catalog.sqlite")


def content(store):
    """Return all rows of all tables but the store's random name, by table."""
    connection = sqlite3.connect(store / "catalog.sqlite")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    left_out = {"feed", *(name for name in tables if name.startswith("words"))}  # FTS5's own, which cannot be listed
    found = {name: sorted(map(repr, connection.execute(f"SELECT * FROM {name}"))) for name in {*tables} - left_out}
    connection.close()
    return found


def test_a_dry_run_says_each_step_and_changes_nothing(store, capsys):
    before = (store / "catalog.sqlite").read_bytes()
    old = version(store)
    run_migrate(store, None, dry_run=True, in_use=False)
    said = capsys.readouterr().out
    assert f"from schema {old} to {SCHEMA}" in said
    for step in steps_from(old):
        assert f"  {step.version}: {step.what}\n" in said
    assert (store / "catalog.sqlite").read_bytes() == before
    assert {path.name.partition("-")[0] for path in store.iterdir()} == {"catalog.sqlite"}


def test_it_leads_to_what_a_start_leads_to_and_is_done_once(store, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(store, other)
    Catalog.open(f"sqlite:///{other}/catalog.sqlite").close()
    run_migrate(store, None, dry_run=False, in_use=False)
    assert version(store) == SCHEMA
    assert content(store) == content(other)
    run_migrate(store, None, dry_run=False, in_use=False)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("store", STORES[:1], indirect=True)
def test_killed_at_any_step_it_goes_on_from_there(store, tmp_path):
    """A child is killed in the middle of each step in turn; what is left has the version before, whole."""
    whole = tmp_path / "whole"
    shutil.copytree(store, whole)
    run_migrate(whole, None, dry_run=False, in_use=False)
    code = (
        "import os, signal, sys\n"
        "from flystore.catalog import _migrations as migrations\n"
        "from flystore.cli._migrate import run_migrate\n"
        "from pathlib import Path\n"
        "at = int(sys.argv[2])\n"
        "real = migrations.MIGRATIONS[at - 1]\n"
        "def dying(connection):\n"
        "    real(connection)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "steps = list(migrations.MIGRATIONS); steps[at - 1] = dying\n"
        "migrations.migrate.__defaults__ = (tuple(steps),)\n"
        "run_migrate(Path(sys.argv[1]), None, dry_run=False, in_use=False)\n"
    )
    for at in range(version(store) + 1, SCHEMA + 1):
        done = subprocess.run([sys.executable, "-c", code, store, str(at)], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert version(store) == at - 1
    run_migrate(store, None, dry_run=False, in_use=False)
    assert content(store) == content(whole)


def test_a_store_that_somebody_has_open_is_left_alone(store):
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('PRAGMA journal_mode=WAL')\n"
        "connection.execute('SELECT 1 FROM nodes').fetchone()\n"
        "print('open', flush=True); sys.stdin.readline()\n"
    )
    old = version(store)
    command = [sys.executable, "-c", code, str(store / "catalog.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        assert others_at(f"sqlite:///{store}/catalog.sqlite")
        with pytest.raises(Misconfigured, match="an earlier flystore would go on"):
            run_migrate(store, None, dry_run=False, in_use=False)
        assert version(store) == old
        other.communicate("\n")
    assert not others_at(f"sqlite:///{store}/catalog.sqlite")
    run_migrate(store, None, dry_run=False, in_use=False)
    assert version(store) == SCHEMA


def test_what_is_no_store_or_a_newer_one_is_refused_in_words(tmp_path):
    with pytest.raises(Misconfigured, match="no store"):
        run_migrate(tmp_path, None, dry_run=False, in_use=False)
    with pytest.raises(Misconfigured, match="name the directory"):
        run_migrate(None, None, dry_run=False, in_use=False)
    Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite").close()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        connection.execute(f"UPDATE flystore_schema SET version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(Misconfigured, match="newer flystore"):
        run_migrate(tmp_path, None, dry_run=True, in_use=False)


def test_half_a_copy_is_refused_with_what_finishes_it(tmp_path):
    Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite").close()
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        connection.execute(f"UPDATE flystore_schema SET version = {UNFINISHED}")
    connection.close()
    for dry_run in (True, False):
        with pytest.raises(Misconfigured, match="flystore copy"):
            run_migrate(tmp_path, None, dry_run=dry_run, in_use=False)


def test_every_migration_says_what_it_does():
    assert [step.__name__ for step in migrations.MIGRATIONS if not (step.__doc__ or "").strip()] == []
    assert steps_from(0) == []


def test_a_directory_whose_catalogue_is_elsewhere_says_where(tmp_path, fresh_postgres):
    Service.open(tmp_path, catalog=fresh_postgres).close()
    with pytest.raises(Misconfigured, match="--catalog"):
        run_migrate(tmp_path, None, dry_run=False, in_use=False)
    run_migrate(tmp_path, fresh_postgres, dry_run=False, in_use=False)
