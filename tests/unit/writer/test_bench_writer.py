"""The command that measures the writer runs, and says what it measured.

If these fail, nobody can tell on his own host whether keeping documents slows his plans.
"""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flystore.cli._bench import HEAD
from flystore.model.errors import InvalidRequest, Misconfigured
from flystore.writer.bench import SCENARIOS, BenchOptions, measure
from flystore.writer.bench._events import COLUMNS, RunOfEvents
from flystore.writer.bench._timing import ProcessorClock, Timer

pytestmark = pytest.mark.timeout(600)


def bench(*arguments, without=()):
    hidden = "".join(f"sys.modules[{name!r}] = None;" for name in without)
    command = ["flystore", "bench", "writer", *arguments]
    code = f"import sys; {hidden} sys.argv = {command!r}; from flystore.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False)


def rows_of(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_order(figures):
    return figures["p50"] <= figures["p99"] <= figures["p999"] <= figures["worst"]


def test_every_scenario_is_measured_and_every_figure_is_there(tmp_path):
    done = bench("--seconds", "1", "--rate", "500", "--backlog", "4000", "--journal", str(tmp_path), "--json")
    rows = {row["scenario"]: row for row in rows_of(done)}
    assert list(rows) == list(SCENARIOS)
    assert done.stderr == ""
    for name, row in rows.items():
        assert row["callback"]["calls"] > 0
        assert in_order(row["callback"])
        assert 0 <= row["callback"]["worst_own"] <= row["callback"]["worst"]
        assert row["reached"] > 0
        if name not in ("machine", "readable"):
            assert row["nothing"]["calls"] > 0
            assert in_order(row["write"])
    assert rows["machine"]["callback"]["p50"] >= 15, "microseconds, computed"
    assert rows["absent"]["stored"] == 0
    assert rows["absent"]["backlog"] == rows["absent"]["callback"]["calls"] + 2
    assert rows["up"]["stored"] > 0 or rows["up"]["backlog"] >= rows["up"]["callback"]["calls"], "stored, or waiting"
    assert rows["backlog"]["drained"] > 0, "how fast is for the reader to judge: the machine may be busy"
    assert rows["readable"]["backlog"] == 0, "what was waited for is stored"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_without_a_service_the_table_is_there_all_the_same_also_in_a_base_install(tmp_path):
    parts = ["starlette", "uvicorn", "sqlalchemy", "h5py", "zarr"]
    done = bench("-s", "absent", "--seconds", "0.2", "--rate", "0", "--journal", str(tmp_path), without=parts)
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    (head,) = [line for line in lines if line.startswith("scenario")]
    (row,) = [line for line in lines if line.startswith("absent")]
    for title in ("p50", "p99", "p99.9", "max", "write p50", "waiting", "memory"):
        assert title in head
    assert row.split()[1] == "full"
    assert len(row) == len(head)
    assert "microseconds" in done.stdout


def test_a_service_that_runs_already_is_measured_and_keeps_the_runs(tmp_path):
    from flystore.client import from_uri
    from flystore.writer.bench._service import service

    with service() as ours:
        options = BenchOptions(("up",), (400.0,), 1.0, to=ours.url, api_key=ours.api_key, directory=tmp_path)
        (row,) = measure(options)
        with from_uri(ours.url, api_key=ours.api_key) as client:
            (uid,) = client
            start, stop = client[uid].metadata["start"], client[uid].metadata["stop"]
            assert start["purpose"] == "flystore bench"
            assert stop["num_events"]["primary"] == row.callback.calls + 10, "all of it is there"
    assert row.stored > 0 or row.backlog >= row.callback.calls


def test_the_page_names_every_column_and_no_option_that_is_none():
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "measure-the-writer.md").read_text()
    shown = bench("--help").stdout
    used = set(re.findall(r" (--?[a-z]+)", " ".join(re.findall(r"^flystore bench writer.*$", page, re.M))))
    assert used == {"--to", "--rate", "-s", "--seconds"}
    assert [option for option in used | {"--json", "--backlog"} if option not in shown] == []
    titles = set(HEAD.split()) - {"scenario", "asked", "events/s"}
    assert [title for title in titles if title not in page] == []


def test_what_is_asked_to_end_tidies_up(tmp_path):
    arguments = [
        "bench",
        "writer",
        "-s",
        "up",
        "--seconds",
        "0.5",
        *["--rate", "50"] * 60,
        "--journal",
        tmp_path,
        "--json",
    ]
    with subprocess.Popen([sys.executable, "-m", "flystore.cli", *arguments], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (directory,) = tmp_path.iterdir()
        process.terminate()
        assert process.wait(100) == 128 + signal.SIGTERM
    assert directory.name.startswith("bench-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        BenchOptions(("sideways",)),
        BenchOptions(("slow",), to="http://127.0.0.1:1"),
        BenchOptions(seconds=0),
        BenchOptions(rates=(-1.0,)),
    ],
    ids=["no scenario", "a link to a foreign service", "no time", "no rate"],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_started(options):
    with pytest.raises(InvalidRequest):
        next(measure(options))


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(Misconfigured, match="--journal"):
        next(measure(BenchOptions(("absent",), directory=file / "below")))


def test_events_have_twenty_columns_and_count_up():
    run = RunOfEvents()
    first, second = run.event(), run.event()
    assert (first["seq_num"], second["seq_num"]) == (1, 2)
    assert first["uid"] != second["uid"]
    assert list(first["data"]) == list(first["timestamps"]) == list(COLUMNS)
    assert len(COLUMNS) == 20


def test_percentiles_are_those_of_the_calls_in_microseconds():
    timer = Timer()
    with ProcessorClock() as clock:
        for microseconds in range(1, 101):
            timer.note(microseconds * 1000, clock, clock.waited())
    figures = timer.figures()
    assert figures.calls == 100
    assert figures.p50 == pytest.approx(50.5)
    assert figures.worst == figures.worst_own == 100
    assert math.isnan(Timer().figures().p50)


def test_what_a_call_waited_for_a_processor_is_taken_off():
    class Clock:
        def waited(self):
            return 900_000

    timer = Timer()
    timer.note(1_000_000, Clock(), 200_000)
    assert timer.figures().worst == 1000
    assert timer.figures().worst_own == 300
