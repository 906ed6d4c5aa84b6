"""What a command logs can be read by people or machines, names its request, and shows no key.

If these fail, a key stands in a log that many may read, or a log collector drops the lines that matter.
"""

import io
import json
import logging
import sys

import pytest

from flystore.cli._logging import log_to_stderr


@pytest.fixture
def lines(monkeypatch):
    """Return a function that sets logging up and returns where the lines go."""
    root, requests = logging.getLogger(), logging.getLogger("flystore.requests")
    before = root.handlers[:], root.level, requests.level

    def begin(*, verbose=True, **options):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        log_to_stderr(verbose, **options)
        return stream

    yield begin
    root.handlers[:], root.level = before[0], before[1]
    requests.setLevel(before[2])


def test_a_line_of_json_has_all_that_is_known(lines):
    stream = lines(style="json", request_id=lambda: "id-1")
    logging.getLogger("flystore.x").warning("two\nlines %s", "é", extra={"flystore": {"path": "/a", "status": 503}})
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "flystore.x",
        "message": "two\nlines é",
        "request": "id-1",
        "path": "/a",
        "status": 503,
    }


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    "said",
    [
        "GET /api/v1/?api_key=S3CRET&x=1",
        "api%5Fkey: see header Authorization: Apikey S3CRET",
        "apikey S3CRET",
        "a database at postgresql://me:S3CRET@db.example.org/flystore",
        "the key itself, S3CRET, in a sentence",
        '{"api_key": "S3CRET"}',
    ],
)
def test_no_key_is_in_a_line(lines, style, said):
    stream = lines(style=style, secrets=("S3CRET",) if "itself" in said else ())
    log = logging.getLogger("flystore.x")
    log.warning("%s", said, extra={"flystore": {"query": said}})
    try:
        raise ValueError(said)
    except ValueError:
        log.exception("it failed")
    assert "S3CRET" not in stream.getvalue()
    assert "it failed" in stream.getvalue()


def test_an_error_has_its_traceback_in_the_same_line(lines):
    stream = lines(style="json")
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("flystore.x").exception("it failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"] == "KeyError"
    assert "Traceback" in json.loads(line)["traceback"]


@pytest.mark.parametrize(
    ("verbose", "access", "shown"), [(True, None, True), (True, False, False), (False, True, True)]
)
def test_the_access_log_goes_on_and_off_by_itself(lines, verbose, access, shown):
    stream = lines(verbose=verbose, access=access)
    logging.getLogger("flystore.requests").info("GET / -> 200")
    assert ("GET /" in stream.getvalue()) is shown
