"""`flystore check` says in words what is odd about a stream of documents, and what to do.

If these fail, somebody who writes a device learns of a mistake from lost data.
"""

import json
from pathlib import Path

import pytest

from flystore.cli._advice import ADVICE
from flystore.cli._check import INCOMPLETE, check_documents, run_check
from flystore.model.errors import InvalidRequest, Misconfigured
from flystore.projection._notes import KINDS
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[2] / "data" / "streams"


def test_every_oddity_has_advice():
    assert set(ADVICE) == set(KINDS)


@pytest.mark.parametrize("case", [name for name in recorded_cases(STREAMS) if name != "internal_odd_values"])
def test_a_recorded_stream_is_found_good(case, tmp_path, capsys):
    recorded = put_in_place(STREAMS, case, tmp_path)
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in recorded.documents))
    run_check([str(file)], "", None, as_json=True)
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {report["uid"] for report in reports} == set(recorded.runs)


def lines(tmp_path, documents):
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps([name, doc]) + "\n" for name, doc in documents))
    return str(file)


GOOD = [
    ("start", {"uid": "run", "time": 1.0, "scan_id": 7}),
    (
        "descriptor",
        {
            "uid": "d",
            "run_start": "run",
            "time": 1.0,
            "name": "primary",
            "data_keys": {"x": {"source": "s", "dtype": "number", "shape": []}},
        },
    ),
    (
        "event",
        {"uid": "e", "descriptor": "d", "seq_num": 1, "time": 2.0, "data": {"x": 1.0}, "timestamps": {"x": 2.0}},
    ),
    ("stop", {"uid": "z", "run_start": "run", "time": 3.0, "exit_status": "success"}),
]


def test_good_documents_need_no_words(tmp_path, capsys):
    assert run_check([lines(tmp_path, GOOD)], "", None, as_json=False) == 0
    assert capsys.readouterr().out == "scan 7: 1/1 points, 0 gaps, complete\n"


def test_an_undeclared_key_is_named_with_what_to_do(tmp_path, capsys):
    documents = json.loads(json.dumps(GOOD))
    documents[2][1]["data"]["y"] = 1.0
    assert run_check([lines(tmp_path, documents)], "", None, as_json=False) == INCOMPLETE
    said = capsys.readouterr().out
    assert "'y' is in Events but not in the descriptor" in said
    assert ADVICE["undeclared"] in said


def test_a_violation_of_the_schema_is_said(tmp_path, capsys):
    documents = json.loads(json.dumps(GOOD))
    del documents[1][1]["data_keys"]["x"]["source"]
    assert run_check([lines(tmp_path, documents)], "", None, as_json=False) == INCOMPLETE
    assert "'source' is a required property" in capsys.readouterr().out


def test_a_missing_stop_and_a_frame_that_never_came_are_said(tmp_path):
    report = check_documents("run", GOOD[:-1])
    assert "running" in report.line
    assert not report.good


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"name": "start"}', '["start", []]'])
def test_a_line_that_is_no_document_is_named_by_its_number(tmp_path, content):
    file = tmp_path / "documents.jsonl"
    file.write_text(json.dumps(GOOD[0]) + "\n" + content + "\n")
    with pytest.raises(InvalidRequest, match="line 2"):
        run_check([str(file)], "", None, as_json=False)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(Misconfigured, match="cannot be read"):
        run_check([str(tmp_path / "nothing.jsonl")], "", None, as_json=False)
