"""Following a run from another machine, over real sockets.

If these fail, people who watch a scan see gaps or repeats, a live table that stands still, or a client that hangs when
it is closed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.callbacks import LiveTable
from ophyd.sim import SynAxis, SynGauss

from flystore import RunWriter, from_uri, open_store
from flystore.model.errors import InvalidRequest, NotFound, WrongToken
from flystore.testing.beamline import Camera, Panda, flyscan, run_engine
from flystore.testing.faults import Proxy

GENEROUS = 60.0


@pytest.fixture
def client(server):
    with from_uri(server.url, server.key) as found:
        yield found


@pytest.fixture
def writer(server, tmp_path):
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as made:
        yield made


@pytest.fixture
def engine():
    return RunEngine({}, context_managers=[])


@pytest.fixture
def devices():
    motor = SynAxis(name="motor", egu="mm")
    return motor, SynGauss("det", motor, "motor", center=0, Imax=10, noise=None, sigma=1)


class Stepping:
    """A scan whose points a test lets happen one by one."""

    def __init__(self, engine, writer, devices):
        self.motor, self.det = devices
        self.documents = []
        self.started = threading.Event()
        self._turns = threading.Semaphore(0)
        # What the service has may be told at once; it must have been kept here by then.
        engine.subscribe(self._keep)
        engine.subscribe(writer)
        self._thread = threading.Thread(target=engine, args=(self._plan(),))

    def _keep(self, name, doc):
        self.documents.append((name, doc))
        if name == "start":
            self.started.set()

    def _plan(self):
        @bpp.run_decorator(
            md={"detectors": ["det"], "motors": ["motor"], "hints": {"dimensions": [(["motor"], "primary")]}}
        )
        def points():
            for number in range(5):
                while not self._turns.acquire(blocking=False):
                    yield from bps.sleep(0.001)
                yield from bps.mv(self.motor, number)
                yield from bps.trigger_and_read([self.det, self.motor])

        return (yield from points())

    @property
    def uid(self):
        return self.documents[0][1]["uid"]

    def step(self, count=1):
        self._turns.release(count)

    def __enter__(self):
        self._thread.start()
        assert self.started.wait(GENEROUS)
        return self

    def __exit__(self, *_):
        self.step(5)
        self._thread.join(GENEROUS)


@pytest.fixture
def scan(engine, writer, devices):
    with Stepping(engine, writer, devices) as made:
        yield made


def run_of(client, uid):
    """Return a run as soon as the service knows it."""
    with client.follow(after=None, timeout=GENEROUS) as changes:
        for change in changes:
            if change.path == (uid,):
                return client[uid]
    raise AssertionError("the run never came")


def test_documents_come_one_by_one_while_the_run_goes_on_and_end_with_it(client, scan):
    run = run_of(client, scan.uid)
    with run.documents(follow=True) as documents:
        got = [next(documents)]
        scan.step()
        got += [next(documents), next(documents)]
        assert [name for name, _ in got] == ["start", "descriptor", "event"]
        assert scan.documents[-1][0] == "event"  # the others are still to come
        scan.step(4)
        got += list(documents)
    assert got == scan.documents
    assert got[-1][0] == "stop"


def test_documents_are_followed_from_any_of_them(client, scan):
    run = run_of(client, scan.uid)
    scan.step(5)
    with run.documents(2, follow=True) as documents:
        assert list(documents) == scan.documents[2:]


def test_a_live_table_of_bluesky_runs_on_another_machine(client, scan):
    run = run_of(client, scan.uid)
    shown = []
    table = LiveTable(["motor", "det"], out=shown.append)
    with run.documents(follow=True).call(table) as calling:
        scan.step(5)
        assert calling.wait(GENEROUS)
    text = "\n".join(shown)
    assert [f"|         {number} |" in text for number in range(1, 6)] == [True] * 5
    assert "generator" in text or "scan num" in text


def test_the_best_effort_callback_of_bluesky_runs_on_another_machine(client, scan, capsys):
    matplotlib = pytest.importorskip("matplotlib", reason="the best effort callback imports it")
    matplotlib.use("Agg")
    from bluesky.callbacks.best_effort import BestEffortCallback

    best = BestEffortCallback()
    best.disable_plots()
    with run_of(client, scan.uid).documents(follow=True).call(best) as calling:
        scan.step(5)
        assert calling.wait(GENEROUS)
    shown = capsys.readouterr().out
    assert f"Run started: {scan.uid}"[:20] in shown or scan.uid in shown
    assert "motor" in shown


def test_what_the_callback_raises_ends_the_following_and_is_told(client, scan):
    def fail(name, doc):
        raise ZeroDivisionError("on purpose")

    with run_of(client, scan.uid).documents(follow=True).call(fail) as calling:
        with pytest.raises(ZeroDivisionError, match="on purpose"):
            calling.wait(GENEROUS)
        assert not calling.running


def test_a_wait_for_more_ends_when_it_is_closed_from_another_thread(client, scan):
    documents = run_of(client, scan.uid).documents(follow=True)
    got = [next(documents)]
    waiting = threading.Thread(target=lambda: got.extend(documents))
    waiting.start()
    documents.close()
    waiting.join(GENEROUS)
    assert not waiting.is_alive()
    assert got == scan.documents[:1]


def test_a_run_that_is_declared_interrupted_ends_for_those_who_follow(client, scan):
    run = run_of(client, scan.uid)
    with run.documents(follow=True) as documents, run.follow() as changes:
        assert next(documents)[0] == "start"
        assert next(changes).what == "created"
        run.declare_interrupted("the beam is gone")
        assert [name for name, _ in documents] == []
        assert [change.what for change in changes if change.what != "updated"] == []


def test_changes_of_a_run_are_told_from_its_beginning_to_its_end(client, scan):
    run = run_of(client, scan.uid)
    with run.follow() as changes:
        got = [next(changes)]
        scan.step(5)
        got += list(changes)
    assert got[0].what == "created"
    assert sum(change.detail["rows"] for change in got if change.what == "rows") == 5
    assert [(change.position, change.token) for change in got] == sorted(
        {(change.position, change.token) for change in got}, key=lambda each: [each[0], int(each[1].split(".")[3])]
    )
    assert {change.run for change in got} == {scan.uid}


def test_a_token_leads_on_behind_its_change_and_no_other(client, scan):
    scan.step(5)
    run = run_of(client, scan.uid)
    with run.follow() as changes:
        every = list(changes)
    for number, change in enumerate(every):
        with run.follow(after=change.token) as changes:
            assert list(changes) == every[number + 1 :]


def test_who_waits_for_few_changes_is_told_that_it_lagged_and_where_to_read_what_it_missed(client, scan):
    scan.step(5)
    run = run_of(client, scan.uid)
    with run.follow() as changes:
        every = list(changes)
    with run.follow(lag=1) as changes:
        (lagged,) = changes
    assert lagged.what == "lagged"
    with run.follow(after=lagged.token) as changes:
        assert list(changes) == []
    with client.follow(after=lagged.detail["after"], timeout=0.1) as changes:
        assert [change for change in changes if change.run == scan.uid] == every


def test_rows_of_a_stream_come_as_they_can_be_read_with_their_events(client, scan):
    run = run_of(client, scan.uid)
    scan.step()
    with run.documents(follow=True) as documents:
        while next(documents)[0] != "event":
            pass
    with run["primary"].follow() as new:
        rows = [next(new)]
        assert len(rows[0]) == 1
        scan.step(4)
        rows += list(new)
    assert np.concatenate([each.seq_num for each in rows]).tolist() == [1, 2, 3, 4, 5]
    assert np.concatenate([each.data["motor"] for each in rows]).tolist() == [0, 1, 2, 3, 4]
    assert [each.first for each in rows] == np.cumsum([0, *map(len, rows)])[:-1].tolist()
    assert rows[0].to_xarray()["det"].dtype == float
    read = run["primary"].read()
    np.testing.assert_array_equal(np.concatenate([each.data["det"] for each in rows]), read["det"])
    np.testing.assert_array_equal(np.concatenate([each.data["time"] for each in rows]), read["time"])


def test_one_variable_is_followed_with_the_numbers_of_its_events(client, scan):
    scan.step(5)
    stream = run_of(client, scan.uid)
    with stream.documents(follow=True) as documents:
        list(documents)
    with stream["primary"].follow("det") as new:
        found = list(new)
    assert [list(each.data) for each in found] == [["det"]] * len(found)
    assert np.concatenate([each.seq_num for each in found]).tolist() == [1, 2, 3, 4, 5]


def test_rows_that_are_too_many_are_left_out_and_counted(client, scan):
    scan.step(5)
    run = run_of(client, scan.uid)
    with run.documents(follow=True) as documents:
        list(documents)
    with run["primary"].follow(lag=2) as new:
        (found,) = new
    assert (found.first, found.skipped, found.seq_num.tolist()) == (3, 3, [4, 5])


def test_what_cannot_be_followed_is_said(client, server, scan):
    run = run_of(client, scan.uid)
    with pytest.raises(WrongToken, match="another store"):
        next(client.follow(after="fs1.0123456789abcdef.0.00000000"))
    with pytest.raises(InvalidRequest, match="no token"):
        next(client.follow(after="yesterday"))
    with run.follow() as changes:
        token = next(changes).token
    store, position, mark = token.split(".")[1], int(token.split(".")[2]), token.split(".")[-1]
    with pytest.raises(WrongToken, match="set back") as future:
        next(client.follow(after=f"fs1.{store}.{position + 10**6}.{mark}"))
    assert future.value.last < position + 10**6
    with pytest.raises(WrongToken, match="went on from there"):
        next(client.follow(after=f"fs1.{store}.{position}.{'0' * 8}"))
    nothing = type(run)(run._session, run._item)
    nothing._item = type(run._item)(("nobody",), run._item.family, run._item.specs, {}, None)
    with pytest.raises(NotFound):
        next(nothing.follow())


def test_a_run_of_a_store_in_this_process_is_followed_likewise(tmp_path, devices):
    motor, det = devices
    with open_store(tmp_path / "store") as store:
        kept = []
        with store.follow(kept.append) as following:
            engine = RunEngine({}, context_managers=[])
            with RunWriter(store, journal=tmp_path / "journal") as writer:
                engine.subscribe(writer)
                (uid,) = engine(bp.scan([det], motor, 0, 1, 3))
                writer.flush()
            with store[uid].documents(follow=True) as documents:
                assert [name for name, _ in documents][-1] == "stop"
            with store[uid].follow() as changes:
                every = list(changes)
            assert following.running
        assert kept == every[: len(kept)]
    with pytest.raises(Exception, match="closed"):
        next(store.follow())


@contextlib.contextmanager
def follow_in_a_terminal(server, *arguments):
    command = [sys.executable, "-u", "-m", "flystore.cli", "follow", *arguments, "--at", server.url]
    environment = {**os.environ, "FLYSTORE_API_KEY": server.key}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_terminal_shows_a_run_event_by_event_and_ends_with_it(server, client, scan):
    run_of(client, scan.uid)
    with follow_in_a_terminal(server, scan.uid) as process:
        shown = [process.stdout.readline()]
        scan.step(5)
        rest, errors = process.communicate(timeout=GENEROUS)
    assert (process.returncode, errors) == (0, "")
    lines = [*shown, *rest.splitlines()]
    assert "begins" in lines[0]
    assert lines[1].split() == ["primary:", "seq_num", "time", "det", "motor", "motor_setpoint"]
    assert [line.split()[0] for line in lines[2:7]] == ["1", "2", "3", "4", "5"]
    assert [line.split()[-1] for line in lines[2:7]] == ["0", "1", "2", "3", "4"]
    assert "5/5 points" in lines[-1]


def test_a_terminal_names_the_detectors_whose_frames_come(server, client, writer, tmp_path):
    panda, camera = Panda(tmp_path, start=0, step=1), Camera(tmp_path, frames_per_event=2)
    with run_engine() as engine:
        engine.subscribe(writer)
        (uid,) = engine(flyscan(panda, [camera], events=4, period=0.01))
    writer.flush(timeout=GENEROUS)
    with follow_in_a_terminal(server, uid) as process:
        shown, errors = process.communicate(timeout=GENEROUS)
    assert (process.returncode, errors) == (0, "")
    told = [line.split() for line in shown.splitlines()[:-1] if line.endswith(" more")]
    counts = {name: sum(int(line[-2]) for line in told if line[-3] == f"{name}:") for name in ("camera", "Angle")}
    assert counts == {"camera": 4, "Angle": 4}
    assert told[-1][0] == "4"


def test_a_terminal_says_once_that_the_service_is_away_and_goes_on_when_it_is_back(server, client, scan):
    run_of(client, scan.uid)
    through = Proxy(urlsplit(server.url).port)
    with through as link, follow_in_a_terminal(server._replace(url=link.url), scan.uid) as process:
        assert "begins" in process.stdout.readline()
        link.cut()
        assert "goes on by itself" in process.stderr.readline()
        link.restore()
        scan.step(5)
        rest, errors = process.communicate(timeout=GENEROUS)
    assert (process.returncode, errors) == (0, "")
    assert "5/5 points" in rest.splitlines()[-1]


def test_a_terminal_shows_which_runs_begin_and_end_until_it_is_interrupted(server, engine, writer, devices):
    with follow_in_a_terminal(server) as process:
        assert "Ctrl-C" in process.stdout.readline()
        with Stepping(engine, writer, devices) as scan:
            assert "begins" in process.stdout.readline()
            scan.step(5)
        shown = ""
        while "5/5 points" not in shown:
            shown = process.stdout.readline()
            assert shown, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=GENEROUS)
    assert (process.returncode, errors) == (0, "")


def test_documents_are_printed_as_json_for_other_programs(server, client, scan):
    scan.step(5)
    run_of(client, scan.uid)
    with follow_in_a_terminal(server, scan.uid, "--json") as process:
        shown, errors = process.communicate(timeout=GENEROUS)
    assert (process.returncode, errors) == (0, "")
    assert [json.loads(line)["name"] for line in shown.splitlines()] == [name for name, _ in scan.documents]
