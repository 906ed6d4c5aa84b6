"""Benchmarks: children that start, answer and end; documents that are what rows say they are; one row from end to end.

If these fail, a benchmark measures the wrong thing, hangs, or leaves processes behind.
"""

import json
import os
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
from benchmarks import __main__ as program
from benchmarks.peers.bare import app
from benchmarks.peers.documents import column_names, frames_run, long_run, renamed
from benchmarks.peers.machine_side import Tasks as Machine
from benchmarks.peers.tasks import expect_frames
from benchmarks.peers.user_side import Tasks as User
from benchmarks.peers.user_side import _Answer
from benchmarks.processes import Broken, Watch, child, cpu_seconds
from benchmarks.rows import ABOUT, ROWS
from benchmarks.suite import QUICK, Sizes, Suite
from benchmarks.workers import worker
from event_model import DocumentNames, schema_validators
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.testing.serving import serving
from flystore.testing.streams import by_run

WHOLE = [[None, None, None]] * 3


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- workers --------------------------------------------------------------------------------------


@pytest.fixture
def a_user(tmp_path):
    with worker(sys.executable, "user_side", tmp_path / "log") as found:
        yield found


def test_a_task_that_fails_says_so_and_the_worker_goes_on(a_user):
    with pytest.raises(Broken, match="burn of user_side failed: TypeError"):
        a_user.call("burn", nonsense=1)
    assert a_user.call("burn", share=0.5, seconds=0.05)["share"] > 0


def test_a_worker_that_died_is_told_from_one_that_is_slow(a_user):
    a_user.begin("burn", share=1.0, seconds=60)
    os.kill(a_user.pid, 9)
    with pytest.raises(Broken, match="ended during burn"):
        a_user.result("burn")


def test_no_child_is_left_behind(tmp_path):
    with worker(sys.executable, "user_side", tmp_path / "log") as found:
        found.begin("burn", share=1.0, seconds=60)
    assert gone(found.pid)


def test_a_watch_sees_the_most_memory_and_the_processor_time(tmp_path):
    work = "import sys; b = bytearray(200_000_000); sum(range(10**7)); print(len(b), flush=True); sys.stdin.read()"
    with child([sys.executable, "-c", work], tmp_path / "log", stdin=-1, stdout=-1) as process:
        with Watch(process.pid) as watch:
            process.stdout.readline()
            while watch.most[1] < 190_000_000:
                threading.Event().wait(0.01)
        process.stdin.close()
        assert watch.most[0] >= watch.most[1] > watch.before[1]
        assert 0 < watch.cpu <= cpu_seconds(process.pid)


# --- users ----------------------------------------------------------------------------------------


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
]


@settings(deadline=None)
@given(st.sampled_from(ANSWERS), st.lists(st.integers(1, 60), max_size=6))
def test_an_answer_is_whole_once_and_at_its_last_byte_however_it_comes_in(answer, cuts):
    reading = _Answer()
    for _ in range(2):  # the next answer on the same connection
        places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
        whole = [reading.add(answer[a:b]) for a, b in pairwise(places)]
        assert whole == [False] * (len(whole) - 1) + [True]


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"])
def test_an_answer_that_is_none_is_not_counted(said):
    with pytest.raises(RuntimeError):
        _Answer().add(said)


def test_users_count_answers_and_time_them():
    with serving(app, lifespan="off") as url:
        user, where = User(), {"url": url, "key": "key"}
        assert user.load(**where, paths=["/"], connections=3, seconds=0.2)["rate"] > 0
        assert len(user.latencies(**where, paths=["/a", "/b"], rounds=3)["took"]) == 6
        assert len(user.ask_now_and_then(**where, path="/", every=0.01, seconds=0.1)["took"]) == 10
        found = user.download(**where, path="/")
        assert found["bytes"] == 1012
        assert 0 < found["first"] <= found["seconds"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"data": {"id": "a"}}, "a"),
        ({"data": [{"id": "b"}, {"id": "a"}], "meta": {"count": 7}}, ["b", "a"]),
        ({"data": [], "meta": {"count": 7}}, 7),
        ({"metadata": {"k": [{"value": "y", "count": 1}, {"value": "x", "count": 2}]}}, [("x", 2), ("y", 1)]),
    ],
)
def test_what_two_services_found_can_be_compared(answer, found):
    async def answers(scope, receive, send):
        body = json.dumps(answer).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with serving(answers, lifespan="off") as url:
        assert User().found(url, "key", "/") == found


# --- documents and files --------------------------------------------------------------------------


def validate(documents):
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)


def test_the_long_run_is_valid_and_has_the_values_that_readers_expect():
    documents = list(long_run("run", 5, 3))
    validate(documents)
    events = [doc for name, doc in documents if name == "event"]
    for number, name in enumerate(column_names(3)):
        assert [event["data"][name] for event in events] == [n + 0.25 * number for n in range(1, 6)]
    assert set(by_run(documents)) == {"run"}


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12))
def test_the_frames_of_a_flyscan_are_announced_once_and_in_order(frames, each):
    documents = list(frames_run("run", "/data/file.h5", {"a": (2, 3), "b": (4,)}, frames, each))
    validate(documents)
    resources = [doc["uid"] for name, doc in documents if name == "stream_resource"]
    assert len(resources) == 2
    for resource in resources:
        ranges = [
            range(doc["indices"]["start"], doc["indices"]["stop"])
            for name, doc in documents
            if name == "stream_datum" and doc["stream_resource"] == resource
        ]
        assert [index for one in ranges for index in one] == list(range(frames))


def test_a_recording_that_is_sent_again_has_other_uids_and_the_same_references():
    documents = [list(pair) for pair in long_run("a-run", 2, 1)]
    once, again, other = (renamed(documents, json.dumps, json.loads, salt) for salt in ("1", "1", "2"))
    assert once == again
    uids = {doc["uid"] for _, doc in once}
    assert uids.isdisjoint(doc["uid"] for _, doc in other)
    assert uids.isdisjoint(doc["uid"] for _, doc in documents)
    assert [len(found) for found in by_run(once).values()] == [len(documents)]


@pytest.mark.parametrize("compressed", [False, True])
def test_the_floors_read_what_was_written(tmp_path, compressed):
    file, machine = str(tmp_path / "frames.h5"), Machine()
    size = machine.make_frames(file, "detector", 40, [128, 112], compressed)
    assert (size < 40 * 128 * 112 * 2) == compressed
    assert machine.read_file(file, "detector", WHOLE)["bytes"] == 40 * 128 * 112 * 2
    assert machine.read_file(file, "detector", [[None, None, 3], [100, 110, None], [100, 110, None]])["bytes"] == 2800
    assert len(machine.read_file_frames(file, "detector", [0, 39, 7])["took"]) == 3
    assert machine.send_file(file)["bytes"] == size


def test_wrong_frames_are_not_timed():
    frames = np.zeros((3, 2, 2), np.uint16)
    with pytest.raises(RuntimeError, match="the frames did not come back"):
        expect_frames(frames, 3, (slice(None),) * 3)


# --- from end to end ------------------------------------------------------------------------------


def test_every_row_says_what_it_is_about():
    assert list(ABOUT) == list(ROWS)
    assert all(about.endswith(".") for about in ABOUT.values())


def test_quick_is_never_more_than_full():
    full = Sizes()
    for name in Sizes.__dataclass_fields__:
        little, much = getattr(QUICK, name), getattr(full, name)
        assert (max(little), len(little)) <= (max(much), len(much)) if name == "catalogue" else little <= much


def test_a_row_is_measured_against_a_real_service_and_comes_out_as_json(tmp_path, capsys):
    out = tmp_path / "figures.json"
    command = ["--quick", "--without-stock", "--rows", "engine", "start", "--repeats", "2"]
    assert program.main([*command, "--directory", str(tmp_path), "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    lines = {measure["work"]: measure for measure in record["measures"]}
    assert {measure["row"] for measure in record["measures"]} == {"engine", "start"}
    assert all(len(measure["flystore"]) == 2 and min(measure["flystore"]) > 0 for measure in lines.values())
    assert all(measure["stock"] == [] for measure in lines.values())
    assert len(lines["RE(count([det], 10)), wall time"]["floors"]["no writer"]) == 2
    assert record["machine"]["cores"] >= 1
    assert "RunEngine blocked by a run of 10 events" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_a_row_that_breaks_does_not_keep_others_from_being_measured(tmp_path, monkeypatch, capsys):
    def breaks(suite):
        yield from ()
        raise Broken("the writer ended")

    def works(suite):
        assert isinstance(suite, Suite)
        yield program.Measure("fly", "some work", "ms", "less", flystore=[1.0])

    monkeypatch.setitem(program.ROWS, "long", breaks)
    monkeypatch.setitem(program.ROWS, "fly", works)
    out = tmp_path / "figures.json"
    assert program.main(["--without-stock", "--rows", "long", "fly", "--json", str(out)]) == program.EXIT_BROKEN
    record = json.loads(out.read_text())
    assert record["broken"] == {"long": "the writer ended"}
    assert [measure["work"] for measure in record["measures"]] == ["some work"]
    assert "some work" in capsys.readouterr().out


def test_the_documentation_is_written_from_figures_that_were_kept(tmp_path, monkeypatch, capsys):
    page, out = tmp_path / "performance.md", tmp_path / "figures.json"
    page.write_text("above\n<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\nbelow\n")
    monkeypatch.setattr(program, "PAGE", page)
    monkeypatch.setitem(
        program.ROWS, "fly", lambda suite: iter([program.Measure("fly", "some work", "ms", "less", flystore=[1.5])])
    )
    assert program.main(["--without-stock", "--rows", "fly", "--json", str(out)]) == 0
    assert "some work" not in page.read_text()
    assert program.main(["--from-json", str(out), "--write-docs"]) == 0
    assert "some work" in page.read_text()
    assert str(tmp_path) not in page.read_text()
    capsys.readouterr()


def test_without_the_environment_of_stock_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "STOCK_PYTHON", tmp_path / "none")
    assert program.main(["--rows", "start"]) == program.EXIT_BROKEN
    assert "make bench" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--rows", "nonsense"], ["--repeats", "0"]])
def test_a_wrong_command_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        program.main(command)
    assert "error" in capsys.readouterr().err
