"""``flystore doctor`` finds each thing that keeps a service or a writer from working, and says what to do.

If these fail, somebody learns at the first scan, from a traceback, what could have been said before it. Every problem
here is made for real.
"""

import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flystore.catalog import SCHEMA, UNFINISHED, _examine
from flystore.cli._doctor import DoctorOptions, examine_port, examine_writer, run_doctor
from flystore.disk import _examine as disk_examine
from flystore.disk import examine_directory
from flystore.http import Access, build_app
from flystore.service import Service, doctoring
from flystore.testing.faults.disks import NoDisk, small_disk
from flystore.testing.journals import abandoned
from flystore.testing.serving import serving

KEY = "k3y-of-the-tests-0123456789"
NOBODY = 65534


def found(remarks, check):
    """Return states and texts of a check."""
    return [(remark.state, remark.text) for remark in remarks if remark.check == check]


def the(remarks, check):
    (one,) = found(remarks, check)
    return one


def problems(remarks):
    return [f"{remark.check}: {remark.text}" for remark in remarks if remark.state == "problem"]


@pytest.fixture
def nobody(tmp_path):
    """Be an ordinary user for the test."""
    if os.geteuid() != 0:
        yield
        return
    for above in [tmp_path, *tmp_path.parents]:
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# --- storage


def test_a_directory_that_is_fine_or_can_be_made_is_ok_and_nothing_stays_in_it(tmp_path):
    for directory in (tmp_path, tmp_path / "new" / "store"):
        remarks = examine_directory(directory, "store", "name another")
        assert not problems(remarks)
        assert the(remarks, "store")[0] == "ok"
        assert "ms" in the(remarks, "store speed")[1]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_directory_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    state, text = the(examine_directory(tmp_path / "file" / "store", "store", "name another"), "store")
    assert state == "problem"
    assert "is a file" in text


def test_a_store_that_this_user_may_not_even_look_into_is_a_problem_and_no_traceback(tmp_path, nobody, capsys):
    os.seteuid(os.getuid())
    with Service.open(tmp_path / "store"):
        pass
    (tmp_path / "file").touch()
    (tmp_path / "store").chmod(0o700 if os.getuid() == 0 else 0o000)
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    for place in ("store", "file"):
        roots = (tmp_path / place / "x",)
        options = DoctorOptions(tmp_path / place, None, None, roots, "127.0.0.1", None, KEY, None, (), None, None, True)
        assert run_doctor(options) == 1
        (store,) = [check for check in json.loads(capsys.readouterr().out)["checks"] if check["check"] == "store"]
        assert store["state"] == "problem"
    os.seteuid(os.getuid())
    (tmp_path / "store").chmod(0o700)


def test_places_are_named_in_full_however_they_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (Path("store"), Path()):
        texts = [remark.text for remark in examine_directory(given, "store", "name another")]
        assert all(str(tmp_path) in text for text in texts)


@pytest.mark.parametrize("address", ["mysql://user:hidden@db/flystore", "user:hidden@db/flystore"])
def test_a_catalogue_that_is_in_no_postgresql_is_a_problem_and_its_password_is_not_shown(address):
    ((state, text),) = found(doctoring.examine_store(None, address), "database")
    assert state == "problem"
    assert "postgresql://USER@HOST/NAME" in text
    assert "hidden" not in text


def test_the_catalogue_is_taken_from_the_variable_that_the_service_takes_it_from(tmp_path):
    command = [sys.executable, "-m", "flystore.cli", "doctor", str(tmp_path / "store"), "--json"]
    environment = {**os.environ, "FLYSTORE_CATALOG": "mysql://db/flystore"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    (database,) = [check for check in json.loads(ended.stdout)["checks"] if check["check"] == "database"]
    assert ended.returncode == 1
    assert "not in PostgreSQL" in database["text"]


def test_a_directory_that_this_user_may_not_write_is_a_problem(tmp_path, nobody):
    if os.geteuid() == NOBODY:
        os.seteuid(0)
    (tmp_path / "theirs").mkdir(mode=0o555)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    for directory in (tmp_path / "theirs", tmp_path / "theirs" / "new"):
        state, text = the(examine_directory(directory, "store", "name another"), "store")
        assert state == "problem"
        assert "not writable" in text


def test_a_full_disk_is_a_problem_with_its_fix(tmp_path):
    try:
        with small_disk(tmp_path / "disk", 1) as disk:
            disk.fill(0)
            remarks = examine_directory(disk.path, "store", "name another")
            assert "is full; free space" in the(remarks, "store")[1]
            assert the(remarks, "store space")[0] == "problem"
            assert [path.name for path in disk.path.iterdir()] == [".ballast"]
            disk.empty()
            remarks = examine_directory(disk.path, "store", "name another")
            assert the(remarks, "store")[0] == "ok"
            assert the(remarks, "store disk")[0] == "warning", "it is in memory"
            assert the(remarks, "store space")[0] == "problem", "1 MB is little"
    except NoDisk as error:
        pytest.skip(str(error))


def test_a_slow_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_examine, "SLOW_SYNC_S", 0.0)
    assert the(examine_directory(tmp_path, "store", "name another"), "store speed")[0] == "warning"


def test_a_file_size_limit_is_a_problem(tmp_path):
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = subprocess.run(
        [sys.executable, "-m", "flystore.cli", "doctor", tmp_path / "store", "--json"],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1, done.stderr
    said = [check["text"] for check in json.loads(done.stdout)["checks"] if check["state"] == "problem"]
    assert any("ulimit -f unlimited" in text for text in said)


def test_a_network_file_system_is_a_problem_with_sqlite_and_a_warning_without(tmp_path, monkeypatch):
    monkeypatch.setattr(doctoring, "network_filesystem", lambda path: "nfs4")
    assert any("nfs4" in text for text in problems(doctoring.examine_store(tmp_path)))
    remarks = doctoring.examine_store(tmp_path, "postgresql://nobody@127.0.0.1:1/x")
    assert any(state == "warning" and "nfs4" in text for state, text in found(remarks, "store disk"))


# --- roots


def test_roots_that_are_missing_files_or_closed_are_problems(tmp_path, nobody):
    os.seteuid(os.getuid())
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o700)
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    else:
        (tmp_path / "closed").chmod(0)
    remarks = list(doctoring.examine_roots([tmp_path / "gone", tmp_path / "file", tmp_path / "closed"]))
    assert [state for state, _ in found(remarks, "roots")] == ["problem"] * 3
    for (_, text), words in zip(
        found(remarks, "roots"), ("does not exist", "no directory", "cannot be read"), strict=True
    ):
        assert words in text
    if os.getuid():
        (tmp_path / "closed").chmod(0o700)


def test_links_that_lead_out_of_all_roots_are_named(tmp_path):
    inside, other, outside = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for place in (inside, other, outside):
        place.mkdir()
        (place / "data.h5").touch()
    (inside / "fine").symlink_to(other / "data.h5")
    (inside / "own").symlink_to(inside / "data.h5")
    assert {state for state, _ in found(doctoring.examine_roots([inside, other]), "roots")} == {"ok"}
    (inside / "leading-out").symlink_to(outside / "data.h5")
    (inside / "directory-out").symlink_to(outside)
    state, text = found(doctoring.examine_roots([inside, other]), "roots")[0]
    assert state == "warning"
    assert text.startswith("2 symbolic links")


def test_a_root_that_holds_the_store_or_everything_is_warned_of(tmp_path):
    (tmp_path / "store").mkdir()
    states = [state for state, text in found(doctoring.examine_roots([tmp_path], tmp_path / "store"), "roots")]
    assert states[0] == "warning"
    assert the(doctoring.examine_roots([type(tmp_path)("/")]), "roots")[0] == "warning"
    assert the(doctoring.examine_roots([]), "roots")[0] == "warning"


# --- codecs


def test_every_filter_is_tried_and_one_that_is_broken_is_named(monkeypatch):
    remarks = list(doctoring.examine_codecs())
    assert not problems(remarks)
    assert "bitshuffle" in the(remarks, "codecs")[1]

    def broken(*_):
        raise RuntimeError("blosc was built without lz4")

    from flystore.readers import _codecs, _filters

    monkeypatch.setitem(_filters._DECODERS, _filters.BLOSC, broken)
    assert _codecs.decodable_filters()["blosc"] == "blosc was built without lz4"
    assert any("compressed with blosc" in text for text in problems(doctoring.examine_codecs()))


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(doctoring, "_SHIPPED", ("h5py", "flystore-nonesuch"))
    assert "flystore-nonesuch is not installed" in problems(doctoring.examine_codecs())[0]


# --- clock, key, limits, port


def test_a_clock_of_another_century_and_a_zone_that_is_none_are_said(monkeypatch):
    assert the(doctoring.examine_clock(), "clock")[0] == "ok"
    with monkeypatch.context() as patched:
        patched.setattr(doctoring, "_FIRST_YEAR_S", time.time() + 1e6)
        assert "set its clock" in problems(doctoring.examine_clock())[0]
    monkeypatch.setenv("TZ", "Mars/Olympus")
    assert the(doctoring.examine_clock(), "clock")[0] == "warning"


@pytest.mark.parametrize(
    ("key", "state"),
    [(None, "warning"), ("secret", "problem"), ("Tiled", "problem"), ("short-7h3", "problem"), ("a" * 40, "problem")]
    + [("with space in it 0123456789", "problem"), ("", "problem"), ("ключ-ключ-ключ-ключ", "problem"), (KEY, "ok")],
)
def test_a_key_that_somebody_guesses_or_nobody_can_send_is_a_problem(key, state):
    found_state, text = the(doctoring.examine_key(key), "key")
    assert found_state == state
    assert not key or key not in text.replace(doctoring.MAKE, ""), "the key is shown"


def test_who_may_not_read_the_key_file_is_told_to_look_as_its_owner(tmp_path, nobody):
    if os.geteuid() != NOBODY:
        pytest.skip("needs root: a file of another user")
    os.seteuid(0)
    (tmp_path / "key").write_text(f"FLYSTORE_API_KEY={KEY}\n")
    (tmp_path / "key").chmod(0o600)
    os.seteuid(NOBODY)
    assert "run this as its owner" in problems(doctoring.examine_key(None, tmp_path / "key"))[0]


def test_a_key_file_must_be_there_be_closed_and_set_the_key(tmp_path):
    file = tmp_path / "key"
    assert "cannot be read" in problems(doctoring.examine_key(None, file))[0]
    file.write_text(f'# comment\nFLYSTORE_API_KEY="{KEY}"\n')
    file.chmod(0o640)
    assert "chmod 600" in problems(doctoring.examine_key(None, file))[0]
    file.chmod(0o600)
    assert not problems(doctoring.examine_key(None, file))
    file.write_text("OTHER=1\n")
    assert "sets no FLYSTORE_API_KEY" in problems(doctoring.examine_key(None, file))[0]
    file.write_text("FLYSTORE_API_KEY=secret\n")
    assert "everybody tries" in problems(doctoring.examine_key(None, file))[0]


@pytest.mark.parametrize(("files", "state"), [(200, "problem"), (300, "warning"), (600, "ok")])
def test_few_open_files_are_said(files, state):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))\n"
        "from flystore.service import Limits, doctoring\n"
        "print([remark.state for remark in doctoring.examine_process(Limits(connections=10))][0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == state


@pytest.mark.parametrize(("soft", "hard", "got"), [(100, 300, 300), (100, 900, 500), (700, 900, 700)])
def test_a_service_allows_itself_the_files_that_its_connections_need(soft, hard, got):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from flystore.cli._serve import _allow_open_files\n"
        "_allow_open_files(500)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"({got}, {hard})"


def test_a_limit_that_is_none_is_said():
    assert "problem" in [remark.state for remark in doctoring.examine_limits(["nonsense=1"])[1]]


def test_a_port_is_free_ours_or_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        closing = Thread(target=lambda: taken.accept()[0].close())
        closing.start()
        remark = examine_port("127.0.0.1", port)
        closing.join()
    assert (remark.state, "--port" in remark.text) == ("problem", True)
    assert examine_port("127.0.0.1", port).state == "ok"
    with Service.open(tmp_path / "store") as service, serving(build_app(service, Access.of(KEY))) as url:
        remark = examine_port("127.0.0.1", int(url.rpartition(":")[2]))
        assert (remark.state, "answers" in remark.text) == ("ok", True)


# --- the database


def test_a_catalogue_that_is_new_old_newer_damaged_or_of_the_future(tmp_path):
    store = tmp_path / "store"
    with Service.open(store):
        file = store / "catalog.sqlite"
        assert the(_examine.examine_file(file), "schema")[0] == "ok", "a store that is in use"

    def run(text):
        connection = sqlite3.connect(file)
        connection.execute(text)
        connection.commit()
        connection.close()

    run(f"UPDATE flystore_schema SET version = {SCHEMA - 1}")
    assert "flystore migrate" in the(_examine.examine_file(file), "schema")[1]
    run(f"UPDATE flystore_schema SET version = {SCHEMA + 1}")
    assert "newer flystore" in problems(_examine.examine_file(file))[0]
    run(f"UPDATE flystore_schema SET version = {UNFINISHED}")
    assert "flystore copy" in problems(_examine.examine_file(file))[0]
    run(f"UPDATE flystore_schema SET version = {SCHEMA}")
    run(f"INSERT INTO log (position, kind, received, body) VALUES (1, 'operation', {time.time() + 7200}, x'00')")
    assert "set back" in the(_examine.examine_file(file), "clock")[1]
    file.write_bytes(b"not a database at all" * 100)
    assert "restore a backup" in problems(_examine.examine_file(file))[0]


def test_a_running_store_is_examined_without_a_trace(tmp_path, capsys):
    with Service.open(tmp_path / "store") as service:
        before = sorted(path.name for path in (tmp_path / "store").iterdir())
        options = DoctorOptions(
            tmp_path / "store", None, None, (tmp_path,), "127.0.0.1", None, KEY, None, (), None, None, True
        )
        assert run_doctor(options) == 0
        assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
        assert service.readiness.look().status == "ready"
    said = capsys.readouterr().out
    assert json.loads(said)["problems"] == 0
    assert KEY not in said


# --- the writer's side


class _Wrong(BaseHTTPRequestHandler):
    """A service whose clock is wrong."""

    ahead = 0.0

    def do_GET(self):
        body = b'{"status":"ready"}'
        self.send_response_only(200)
        self.send_header("Date", formatdate(time.time() + self.ahead, usegmt=True))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("ahead", "state"), [(0.0, "ok"), (20.0, "warning"), (-20.0, "warning"), (3600.0, "problem")])
def test_the_clock_of_the_service_is_compared_with_this_hosts(tmp_path, ahead, state):
    handler = type("Handler", (_Wrong,), {"ahead": ahead})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert the(examine_writer(url, KEY, tmp_path / "journal"), "clock")[0] == state
        finally:
            server.shutdown()
            thread.join()


def test_a_writer_learns_that_service_key_and_clock_are_right_or_which_is_not(tmp_path):
    with Service.open(tmp_path / "store") as service, serving(build_app(service, Access.of(KEY, public=True))) as url:
        remarks = list(examine_writer(url, KEY, tmp_path / "journal"))
        assert not problems(remarks)
        assert {check: the(remarks, check)[0] for check in ("service", "clock", "key")} == {
            "service": "ok",
            "clock": "ok",
            "key": "ok",
        }
        assert "FLYSTORE_API_KEY" in the(examine_writer(url, "wrong", tmp_path / "journal"), "key")[1]
        assert the(examine_writer(url, None, tmp_path / "journal"), "key")[0] == "problem", "it may read, not write"
        service._trust.lose("x")
        assert "not ready" in the(examine_writer(url, KEY, tmp_path / "journal"), "service")[1]
    assert "start it" in the(examine_writer(url, KEY, tmp_path / "journal"), "service")[1]
    assert the(examine_writer("ftp://x", KEY, tmp_path / "journal"), "service")[0] == "problem"


def test_journals_that_were_left_behind_are_counted(tmp_path):
    abandoned(tmp_path, 5)
    remarks = list(examine_writer("http://127.0.0.1:1", KEY, tmp_path))
    assert "1 of 1 journals" in found(remarks, "journal")[1][1]
