"""``flystore check``: is a run whole, and what is odd about a stream of documents?"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flystore.model.errors import InvalidRequest, Misconfigured
from flystore.model.structures import Family
from flystore.projection import PutNode, RunState, advance, line, verdict

from ._advice import ADVICE

INCOMPLETE = 3
"""Exit status when something is missing, odd or unreadable."""

NO_STOP = "There is no Stop document. Close the run; for one that lost its writer there is `flystore close`."

_REFERENCES = ("run_start", "descriptor", "stream_resource", "resource")


class Report(NamedTuple):
    """What there is to say about one run.

    Attributes
    ----------
    line : str
        The verdict for people.
    remarks : list of str
        Each oddity in words, with what to do.
    record : dict
        The same for programs.
    good : bool
    """

    line: str
    remarks: list[str]
    record: dict[str, Any]
    good: bool


def run_check(targets: list[str], at: str, api_key: str | None, as_json: bool) -> int:
    """Check files of documents here, and runs at a service; return the exit status."""
    good = True
    for target in targets:
        is_file = target == "-" or Path(target).suffix in (".jsonl", ".json") or Path(target).is_file()
        for report in check_file(target) if is_file else check_run(target, at, api_key):
            good &= report.good
            _show(report, as_json)
    return 0 if good else INCOMPLETE


def check_run(uid: str, at: str, api_key: str | None) -> Iterator[Report]:
    """Have the service look at the files of a run."""
    with opened(at, api_key) as client:
        found = run_named(client, uid).check()
        remarks = [f"{file['path']}: {file['why']}" for file in found.files if file["why"]]
        yield Report(found.line, [*remarks, *found.notes], found.record, found.is_complete)


def run_named(client: Any, name: str) -> Any:
    """Return the run with a uid, part of it, a scan id, or a place from the end."""
    return client[int(name)] if name.lstrip("-").isdigit() else client[name]


def opened(at: str, api_key: str | None) -> Any:
    """Return a client of the service at a URL, or of the store in a directory."""
    if "://" in at:
        from flystore.client import from_uri

        return from_uri(at, api_key=api_key)
    from flystore.embedded import open_store

    return open_store(at, create=False)


def check_file(target: str) -> Iterator[Report]:
    """Say what is odd about documents in a file of JSON lines, one ``{"name", "doc"}`` or ``[name, doc]`` a line."""
    text = sys.stdin.read() if target == "-" else _text(target)
    runs = by_run(_documents(text, target))
    if not runs:
        raise InvalidRequest(f"{target} holds no documents")
    for uid, documents in runs.items():
        yield check_documents(uid, documents)


def check_documents(uid: str, documents: list[tuple[str, dict[str, Any]]]) -> Report:
    """Say what is odd about the documents of one run."""
    state, changes = advance(RunState.new(uid), [(n, name, doc) for n, (name, doc) in enumerate(documents)])
    found = verdict(state)
    start = next((doc for name, doc in documents if name == "start"), {})
    remarks = [f"{note.text} {ADVICE.get(note.kind, '')}".strip() for note in found.notes]
    remarks += _schema_violations(documents)
    shown = [
        {"path": "/".join(change.path[1:]), "family": change.family, "structure": change.structure}
        for change in changes
        if isinstance(change, PutNode) and change.family is not Family.CONTAINER
    ]
    told = line(found, start.get("scan_id"), uid)
    if found.state == "complete":
        told += ", complete"
    elif found.state == "running":
        remarks.append(NO_STOP)
    record = {"uid": uid, "line": told, **found.to_wire(), "remarks": remarks, "nodes": shown}
    return Report(told, remarks, record, found.state == "complete" and not remarks)


def _schema_violations(documents: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return what event-model's own schemas say, each complaint once; nothing where it is not installed."""
    try:
        from event_model import DocumentNames, schema_validators
    except ModuleNotFoundError:
        return []
    complaints: dict[str, int] = {}
    for name, doc in documents:
        if name not in DocumentNames.__members__:
            continue
        for error in schema_validators[DocumentNames[name]].iter_errors(doc):
            where = ".".join(str(part) for part in error.absolute_path) or "the document"
            said = f"{name}: {where}: {error.message[:200]}. Compare it with event-model's schema."
            complaints[said] = complaints.get(said, 0) + 1
    return [said if count == 1 else f"{said} ({count} times)" for said, count in complaints.items()]


def by_run(documents: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return documents by the run they belong to; one that refers to nothing known goes to the run before it."""
    owner: dict[str, str] = {}
    runs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    latest = ""
    for name, doc in documents:
        run = str(doc.get("uid", "")) if name == "start" else _owner(doc, owner) or latest
        if isinstance(doc.get("uid"), str):
            owner[doc["uid"]] = run
        latest = run
        runs.setdefault(run, []).append((name, doc))
    return runs


def _owner(doc: dict[str, Any], owner: dict[str, str]) -> str | None:
    referred = [doc[key] for key in _REFERENCES if isinstance(doc.get(key), str) and doc[key]]
    return next((owner[uid] for uid in referred if uid in owner), None)


def _text(target: str) -> str:
    try:
        return Path(target).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{target} cannot be read: {error}") from error


def _documents(text: str, target: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            read = json.loads(content)
            name, doc = (read["name"], read["doc"]) if isinstance(read, dict) else read
            if not isinstance(name, str) or not isinstance(doc, dict):
                raise ValueError("not a name and a mapping")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f'{target}, line {number}: a line must be {{"name": …, "doc": …}} or [name, doc] ({error})'
            ) from error
        yield name, doc


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.record, default=str))
        return
    print(report.line)
    for remark in report.remarks:
        print(f"  {remark}")
