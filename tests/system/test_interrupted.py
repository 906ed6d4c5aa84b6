"""Runs that lost their writer are listed, readable, marked, and can be closed; a late stop wins.

If these fail, a crash in the night looks like a scan that still runs, or hides what was measured.
"""

import json

import bluesky.plans as bp
import pytest
from ophyd.sim import det
from typer.testing import CliRunner

from flystore import RunWriter, from_uri
from flystore.cli._app import _app
from flystore.http import Access, build_app
from flystore.model.errors import Conflict
from flystore.service import Limits, Service
from flystore.testing.serving import serving


@pytest.fixture
def documents(recorded):
    return recorded(bp.count([det], 5))


@pytest.fixture
def client(server):
    with from_uri(server.url, api_key=server.key) as found:
        yield found


def write(server, tmp_path, documents):
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        for name, doc in documents:
            writer(name, doc)
        writer.flush(timeout=100)


def test_a_run_without_a_stop_is_listed_readable_and_running(server, client, tmp_path, documents):
    write(server, tmp_path, documents[:-2])
    run = client[-1]
    assert run.verdict.state == "running"
    assert run["primary"].read()["det"].shape == (4,)
    assert len(client.search(verdict="running")) == 1
    assert len(client.search(verdict="complete")) == 0


def test_silence_marks_it_interrupted(tmp_path, data, documents):
    with (
        Service.open(tmp_path / "store", read=[data], limits=Limits(silence_seconds=0.0)) as service,
        serving(build_app(service, Access.of("secret"))) as url,
        from_uri(url, api_key="secret") as client,
    ):
        with RunWriter(url, api_key="secret", journal=tmp_path / "journal") as writer:
            for name, doc in documents[:-2]:
                writer(name, doc)
            writer.flush(timeout=100)
        verdict = client[-1].verdict
        assert verdict.state == "interrupted"
        assert "no document for" in verdict.line
        assert len(client.search(verdict="interrupted")) == 1
        assert len(client.search(verdict="running")) == 0


def test_closing_gives_the_reason_and_a_late_stop_wins(server, client, tmp_path, documents):
    write(server, tmp_path, documents[:-1])
    runner = CliRunner()
    command = ["close", "-1", "--reason", "the IOC crashed", "--at", server.url, "--api-key", server.key]
    result = runner.invoke(_app, ["close", "--reason", *command[3:], "--", "-1"])
    assert result.exit_code == 0, result.output
    assert "interrupted" in result.output
    assert "the IOC crashed" in result.output
    assert client[-1].verdict.state == "interrupted"
    assert len(client.search(verdict="interrupted")) == 1
    with pytest.raises(Conflict, match="the IOC crashed"):
        client[-1].declare_interrupted("again")
    write(server, tmp_path, documents)
    assert client[-1].verdict.state == "complete"
    assert client[-1].stop["exit_status"] == "success"
    assert len(client.search(verdict="interrupted")) == 0


def test_check_tells_of_a_run_at_a_service(server, client, tmp_path, documents):
    write(server, tmp_path, documents)
    runner = CliRunner()
    where = ["--at", server.url, "--api-key", server.key]
    good = runner.invoke(_app, ["check", *where, "--", "-1"])
    assert (good.exit_code, good.output) == (0, "scan 1: 5/5 points, 0 gaps, stored\n")
    told = runner.invoke(_app, ["check", "--json", *where, documents[0][1]["uid"]])
    assert json.loads(told.output)["state"] == "complete"
