"""If these fail, `flystore serve` starts with other settings than were typed, or refuses in words of its own."""

import inspect

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flystore.cli import _app, _serve
from flystore.cli._quick import plain_arguments

_VALUES = [
    "/data",
    "x",
    "0",
    "8000",
    "65536",
    "1.5",
    "1e3",
    "+1",
    "a b",
    "",
    "-",
    "-x",
    "json",
    "٣",
    "../é",
    "1_0",
    "=",
    "a=b",
]
_WORDS = [
    "--temp", "--host", "--port", "--api-key", "-r", "--read", "--map", "--public", "--allow-origin", "--limit",
    "--verbose", "--log-format", "--access-log", "--slow", "--metrics-public", "--rea", "--port=0", "--map=a=b",
    "--temp=1", "--host=", "-r/data", "-rx", "--", "--help", *_VALUES,
]  # fmt: skip
_OPTIONS = _WORDS[:15]
_plain = st.tuples(st.sampled_from(_OPTIONS), st.sampled_from(_VALUES)).map(list) | st.sampled_from(_WORDS).map(
    lambda word: [word]
)
_variables = st.dictionaries(
    st.sampled_from(["FLYSTORE_API_KEY", "FLYSTORE_LIMITS", "FLYSTORE_LOG_FORMAT"]),
    st.sampled_from(["", "key", "a=1 b=2", " ", "json", "-", "a  b", " k "]),
)


@pytest.fixture
def seen(monkeypatch):
    """Have `serve` start nothing, but tell what it would start."""
    found = []
    monkeypatch.setattr(_serve, "run_service", found.append)
    return found


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("FLYSTORE_API_KEY", "FLYSTORE_LIMITS", "FLYSTORE_LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)


@given(st.lists(_plain, max_size=5), _variables)
@example([["/data"], ["-r", "/data"], ["--read", "x"], ["--port=0"]], {"FLYSTORE_LIMITS": "a=1 b=2"})
@example([["--slow", "1.5"], ["--map=a=b"], ["--temp"]], {"FLYSTORE_API_KEY": "key"})
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_quickly_is_what_typer_reads(seen, parts, variables):
    typed = [word for part in parts for word in part]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        quick = plain_arguments(_app.serve, typed)
        if quick is None:
            return
        seen.clear()
        _app._app(["serve", *typed], prog_name="flystore", standalone_mode=False)
        _app.serve(**quick)
    by_typer, by_us = seen
    assert by_us == by_typer
    assert [type(path) for path in by_us.read] == [type(path) for path in by_typer.read]


@pytest.mark.parametrize(
    "typed",
    [
        [],
        ["--temp"],
        ["/data", "--host", "0.0.0.0", "-r", "/frames", "--read", "/more", "--public", "--port", "0"],
        ["--log-format=json", "--slow", "2.5", "/data"],
        ["--limit", "response_bytes=100MiB"],
    ],
)
def test_plain_forms_are_read_quickly(typed):
    assert plain_arguments(_app.serve, typed) is not None


@pytest.mark.parametrize(
    "typed",
    [["--help"], ["--port"], ["--port", "x"], ["--port", "70000"], ["a", "b"], ["--tem"], ["--nothing"], ["--", "a"]],
)
def test_mistakes_and_help_are_left_to_typer(typed):
    assert plain_arguments(_app.serve, typed) is None


def test_what_the_shell_asks_for_completion_starts_no_service(monkeypatch):
    monkeypatch.setenv("_FLYSTORE_COMPLETE", "complete_bash")
    assert plain_arguments(_app.serve, ["--temp"]) is None


def test_every_parameter_of_serve_has_a_kind_that_is_read_alike():
    kinds = {str(parameter.annotation.__origin__) for parameter in inspect.signature(_app.serve).parameters.values()}
    assert kinds <= {
        "<class 'bool'>",
        "<class 'str'>",
        "<class 'int'>",
        "<class 'float'>",
        "bool | None",
        "str | None",
        "list[str] | None",
        "list[pathlib.Path] | None",
        "pathlib.Path | None",
    }
