"""`flystore journal` shows what waits on a host, checks it, sends it, and sets aside what shall not be sent.

If these fail, people dig in journal files by hand, or documents stay on a host for ever and nobody knows.
"""

import json
import subprocess
import sys

import pytest

from flystore.cli import main
from flystore.journal import DISCARDED, Journal, journals, look_at
from flystore.model.errors import Conflict
from flystore.testing.ingest_server import IngestServer
from flystore.testing.journals import TARGET, abandoned, document_payloads, event, frame_offsets, segment_files


@pytest.fixture
def home(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def server():
    with IngestServer() as server:
        yield server


@pytest.fixture
def flystore(home, capsys, monkeypatch):
    """Return a function that runs ``flystore journal`` and gives (exit status, standard output, standard error)."""
    monkeypatch.delenv("FLYSTORE_API_KEY", raising=False)

    def run(*arguments, place=home):
        where = [] if place is None else ["--journal", str(place)]
        monkeypatch.setattr(sys, "argv", ["flystore", "journal", *map(str, arguments), *where])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def damage(path, frame=10):
    """Flip a bit in a frame of the only segment; return the file and the frame's offset."""
    (file,) = segment_files(path)
    offset = frame_offsets(file)[frame]
    content = bytearray(file.read_bytes())
    content[offset + 12] ^= 1
    file.write_bytes(content)
    return file, offset


# -- ls ---------------------------------------------------------------------------------------------


def test_journals_are_listed_with_whose_they_are_and_what_waits(flystore, home):
    orphan = abandoned(home, 20)
    with Journal.create(home, target="http://other:8000", reserve_bytes=0) as journal:
        log = journal.open_run("6ac5ad6f-run")
        for payloads in document_payloads(5, "6ac5ad6f-run"):
            log.append(payloads)
        log.park("unauthenticated: no such key")
        status, out, err = flystore("ls")
        assert (status, err) == (0, "")
        trouble = out.splitlines()[1 + [line.startswith(journal.name) for line in out.splitlines()].index(True)]
        first = next(line for line in out.splitlines() if line.startswith(orphan.name))
        second = next(line for line in out.splitlines() if line.startswith(journal.name))
        assert first.startswith(f"{orphan.name} for {TARGET}: orphan left by process ")
        assert "1 run, 20 documents waiting, " in first
        assert ", since 1970-01-01" in first
        assert second.startswith(f"{journal.name} for http://other:8000: held by process ")
        assert trouble == "  scan 1 [6ac5ad6f-run]: parked: unauthenticated: no such key"
        records = map(json.loads, flystore("ls", "--json")[1].splitlines())
        record = next(record for record in records if record["name"] == journal.name)
    assert record["held"] is True
    assert record["runs"][0]["parked"] == "unauthenticated: no such key"
    assert (record["waiting"], record["runs"][0]["end"]) == (5, 5)


def test_a_host_without_journals_is_said_to_have_none(flystore, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    status, out, _ = flystore("ls", place=None)
    assert status == 0
    assert out == f"no journals under {tmp_path}/state/flystore/journal: nothing waits\n"


def test_a_directory_that_is_not_there_is_a_mistake(flystore, tmp_path):
    status, out, err = flystore("ls", place=tmp_path / "nothing")
    assert (status, out) == (2, "")
    assert err.startswith("flystore: ")


# -- show -------------------------------------------------------------------------------------------


def test_a_journal_is_shown_by_its_runs_and_a_run_by_its_documents(flystore, home):
    path = abandoned(home, 4)
    status, out, _ = flystore("show", path.name[:10])
    assert status == 0
    assert "scan 1 [run-1]: documents 0 to 3 are here, 4 wait" in out
    for name in ("run-1", "run", "1"):
        status, out, _ = flystore("show", name)
        assert status == 0
        _, start, descriptor, first, _ = out.splitlines()
        assert start.split()[:3] == ["0", "start", "waits"]
        assert "scan_id 1" in start
        assert "name primary" in descriptor
        assert "seq_num 1" in first


def test_documents_are_printed_as_flystore_check_reads_them(flystore, home, tmp_path):
    from flystore.cli._check import check_file

    abandoned(home, 6)
    status, out, _ = flystore("show", "run-1", "--documents")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[2] == {"name": "event", "doc": event(1)}
    file = tmp_path / "documents.jsonl"
    file.write_text(out)
    (report,) = check_file(str(file))
    assert report.record["uid"] == "run-1"


def test_odd_values_are_printed_as_json(flystore, home):
    import numpy as np

    from flystore.model import frames

    with Journal.create(home, target=TARGET, reserve_bytes=0) as journal:
        doc = {"uid": "run-1", "a": np.arange(4).reshape(2, 2), "b": b"\x00", "c": {1: (2, {3})}, "d": np.float32(0.5)}
        journal.open_run("run-1").append(frames.FrameEncoder().encode("start", doc))
        _, out, _ = flystore("show", "run-1", "--documents")
    shown = json.loads(out)["doc"]
    assert shown == {"uid": "run-1", "a": [[0, 1], [2, 3]], "b": "AA==", "c": {"1": [2, [3]]}, "d": 0.5}


def test_damage_ends_the_showing_after_what_precedes_it(flystore, home):
    file, offset = damage(abandoned(home, 20))
    status, out, err = flystore("show", "run-1", "--documents")
    assert status == 3
    assert len(out.splitlines()) == 8  # ten frames: the header and a template are no documents
    assert f"{file}, segment 0, frame 9 at offset {offset}" in err


def test_a_name_that_means_nothing_or_too_much_is_a_mistake(flystore, home):
    first, second = abandoned(home, 2, uid="run-1"), abandoned(home, 2, uid="run-2")
    status, _, err = flystore("show", "nobody")
    assert status == 2
    assert first.name in err
    assert second.name in err
    status, _, err = flystore("show", "run-")
    assert status == 2
    assert "run-1" in err
    assert "run-2" in err
    assert flystore("show", "run-2")[0] == 0


def test_two_logs_of_one_run_are_told_apart(flystore, home):
    first, second = abandoned(home, 2, uid="run-1"), abandoned(home, 3, uid="run-1")
    status, _, err = flystore("show", "run-1")
    assert status == 2
    assert f"{first.name}/run-1" in err
    status, out, _ = flystore("show", f"{second.name}/run-1")
    assert status == 0
    assert "documents 0 to 2 are here" in out
    assert flystore("show", f"{second.name}/run-9")[0] == 2


# -- ship -------------------------------------------------------------------------------------------


def test_what_was_left_behind_is_sent_where_it_was_meant_to_go(flystore, home, server):
    with IngestServer() as other:
        abandoned(home, 20, uid="run-1", target=server.url)
        abandoned(home, 30, uid="run-2", target=other.url)
        abandoned(home, 10, uid="run-3", target=f"http://localhost:{server.port}")
        status, out, err = flystore("ship")
        assert len(other.store.documents("run-2")) == 30
    assert (status, err) == (0, "")
    assert out.endswith("60 documents stored, nothing is left\n")
    assert [len(server.store.documents(uid)) for uid in ("run-1", "run-3")] == [20, 10]
    assert journals(home) == []
    assert flystore("ship")[:2] == (0, "0 documents stored, nothing is left\n")


def test_only_the_named_journals_are_sent(flystore, home, server):
    first = abandoned(home, 20, uid="run-1", target=server.url)
    second = abandoned(home, 20, uid="run-2", target=server.url)
    assert flystore("ship", second.name)[0] == 0
    assert journals(home) == [first]


def test_what_cannot_be_sent_is_named_and_stays(flystore, home, server):
    abandoned(home, 20, target=server.url)
    server.fail_next(Conflict("the run was deleted"))
    status, out, err = flystore("ship")
    assert status == 3
    assert out.endswith("0 documents stored\n")
    assert err == "left: run run-1 is parked: conflict: the run was deleted\n"
    assert "parked: conflict: the run was deleted" in flystore("ls")[1]
    assert flystore("ship")[0] == 0


def test_a_key_may_be_given(flystore, home):
    with IngestServer(api_key="secret-key") as server:
        abandoned(home, 20, target=server.url)
        status, _, err = flystore("ship", "--api-key", "another")
        assert status == 3
        assert "no such key" in err
        status, out, err = flystore("ship", "--api-key", "secret-key")
        assert status == 0
        assert "secret-key" not in out + err


def test_a_key_is_shown_to_one_service_only(flystore, home, server):
    with IngestServer() as other:
        abandoned(home, 20, uid="run-1", target=server.url)
        abandoned(home, 20, uid="run-2", target=other.url)
        status, _, err = flystore("ship", "--api-key", "secret-key")
        assert status == 2
        assert server.url in err
        assert other.url in err
        assert server.requests == other.requests == []


def test_the_key_of_the_environment_is_used(flystore, home, monkeypatch):
    with IngestServer(api_key="secret-key") as server:
        abandoned(home, 20, target=server.url)
        monkeypatch.setenv("FLYSTORE_API_KEY", "secret-key")
        assert flystore("ship")[0] == 0


def test_a_service_that_is_away_is_given_up_after_some_patience(flystore, home):
    with IngestServer() as gone:
        pass
    abandoned(home, 20, target=gone.url)
    status, _, err = flystore("ship", "--patience", "0")
    assert status == 3
    assert "left: run run-1: 20 documents not stored: " in err
    assert "20 documents waiting" in flystore("ls")[1]


def test_a_journal_is_redirected_by_name_only(flystore, home, server):
    path = abandoned(home, 20, target="http://gone:8000")
    status, _, err = flystore("ship", "--to", server.url)
    assert status == 2
    assert "flystore journal ship NAME --to URL" in err
    server.fail_next(Conflict("later"))
    assert flystore("ship", path.name, "--to", server.url)[0] == 3
    assert look_at(path).target == server.url
    assert flystore("ship")[0] == 0
    assert len(server.store.documents("run-1")) == 20


def test_a_journal_of_a_living_writer_is_left_to_it(flystore, home, server):
    with Journal.create(home, target=server.url, reserve_bytes=0) as journal:
        journal.open_run("run-1").append(document_payloads(1)[0])
        assert flystore("ship")[0] == 0
        status, _, err = flystore("ship", journal.name)
        assert status == 3
        assert "is held by process" in err
        assert server.store.runs == {}


def test_a_journal_for_a_store_is_sent_into_it(flystore, home, tmp_path):
    from flystore import open_store

    place = tmp_path / "store"
    with open_store(place):
        pass
    abandoned(home, 20, uid="run-1", target=str(place))
    assert flystore("ship")[0] == 0
    with open_store(place) as store:
        assert store["run-1"].metadata["start"]["uid"] == "run-1"


# -- verify -----------------------------------------------------------------------------------------


def test_whole_journals_are_said_to_be_whole(flystore, home):
    path = abandoned(home, 20)
    status, out, _ = flystore("verify")
    assert (status, out) == (0, f"{path.name}: 1 file, 20 documents, every frame is whole\n")


def test_damage_is_named_by_file_segment_and_offset(flystore, home):
    abandoned(home, 20, uid="run-1")
    path = abandoned(home, 20, uid="run-2")
    file, offset = damage(path)
    status, out, _ = flystore("verify")
    assert status == 3
    assert f"{path.name}: 1 file, 8 documents, DAMAGED" in out
    assert f"journal file {file}, segment 0, frame 9 at offset {offset}: " in out
    records = [json.loads(line) for line in flystore("verify", "--json")[1].splitlines()]
    (found,) = [damage for record in records for damage in record["runs"][0]["damage"]]
    assert (found["path"], found["segment"], found["offset"]) == (str(file), 0, offset)
    assert flystore("verify", path.name)[0] == 3


def test_every_flipped_byte_is_found(flystore, home, tmp_path):
    path = abandoned(home, 6)
    (file,) = segment_files(path)
    whole = file.read_bytes()
    last = frame_offsets(file)[-1]
    for place in range(0, last, 3):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        file.write_bytes(flipped)
        assert flystore("verify")[0] == 3, place
    file.write_bytes(whole)
    assert flystore("verify")[0] == 0


def test_a_torn_tail_is_reported_and_no_damage(flystore, home):
    path = abandoned(home, 20)
    (file,) = segment_files(path)
    offset = frame_offsets(file)[-1]
    file.write_bytes(file.read_bytes()[: offset + 20])
    status, out, _ = flystore("verify")
    assert status == 0
    assert f"{file}, segment 0, offset {offset}: a torn last frame" in out


# -- discard ----------------------------------------------------------------------------------------


def test_a_run_that_is_set_aside_is_never_sent_by_itself_and_can_be_had_back(flystore, home, server):
    path = abandoned(home, 20, target=server.url)
    status, out, _ = flystore("discard", "run-1", "--reason", "a test")
    assert status == 0
    assert "scan 1 [run-1]: set aside, 20 documents of it never stored" in out
    assert flystore("ship")[1].endswith("0 documents stored, nothing is left\n")
    aside = home / DISCARDED
    assert f"flystore journal ship {path.name} --journal {aside}" in out
    assert "20 documents waiting" in flystore("ls", place=aside)[1]
    assert flystore("ship", place=aside)[0] == 0
    assert len(server.store.documents("run-1")) == 20


def test_a_reason_is_needed(flystore, home):
    path = abandoned(home, 20)
    for arguments in ((), ("--reason", " ")):
        status, _, err = flystore("discard", path.name, *arguments)
        assert status == 2
        assert "reason" in err
    assert look_at(path).waiting == 20


def test_a_run_of_a_living_writer_is_not_set_aside(flystore, home):
    with Journal.create(home, target=TARGET, reserve_bytes=0) as journal:
        journal.open_run("run-1").append(document_payloads(1)[0])
        status, _, err = flystore("discard", "run-1", "--reason", "a test")
        assert status == 2
        assert "end that process first" in err
        assert look_at(journal.path).waiting == 1


@pytest.mark.parametrize("command", ["ls", "show", "ship", "verify", "discard"])
def test_each_command_explains_itself(flystore, command):
    status, out, _ = flystore(command, "--help", place=None)
    assert status == 0
    assert "Exit status: 0" in out


@pytest.mark.parametrize("command", ["ls", "ship", "verify"])
def test_a_base_install_has_all_of_it(home, server, command):
    abandoned(home, 5, target=server.url)
    hidden = "".join(
        f"sys.modules[{name!r}] = None;" for name in ("starlette", "uvicorn", "sqlalchemy", "h5py", "zarr")
    )
    arguments = ["flystore", "journal", command, "--journal", str(home)]
    code = f"import sys; {hidden} sys.argv = {arguments!r}; from flystore.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 documents" in done.stdout
