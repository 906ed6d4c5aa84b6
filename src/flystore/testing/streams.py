"""Recorded document streams: read, put in place, told apart by run."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Document = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Recorded:
    """One recorded case with its files in place.

    Attributes
    ----------
    name : str
    directory : Path
        Where the files are that the documents name.
    documents : list of (name, document)
        In the order in which they were emitted.
    expected : dict
        Per run uid what a reader must be given, see the README of the streams.
    """

    name: str
    directory: Path
    documents: list[Document]
    expected: dict[str, Any]

    @property
    def runs(self) -> dict[str, list[Document]]:
        """Documents by run uid, in order."""
        return by_run(self.documents)


def recorded_cases(root: Path) -> list[str]:
    """Return the names of the cases below the folder of recorded streams."""
    return sorted(path.parent.name for path in root.glob("*/documents.jsonl"))


def put_in_place(root: Path, case: str, directory: Path) -> Recorded:
    """Copy a case's files to ``directory / case`` and return its documents with their paths filled in."""
    home = directory / case
    if (root / case / "data").is_dir():
        shutil.copytree(root / case / "data", home)
    else:
        home.mkdir(parents=True)
    text = (root / case / "documents.jsonl").read_text().replace("{{root}}", str(home).lstrip("/"))
    documents = [(line["name"], line["doc"]) for line in map(json.loads, text.splitlines())]
    expected = json.loads((root / case / "expected.json").read_text())["runs"]
    return Recorded(case, home, documents, expected)


def by_run(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Document]]:
    """Return documents by the run they belong to, following their references."""
    owner: dict[str, str] = {}
    runs: dict[str, list[Document]] = {}
    for name, doc in documents:
        run = doc["uid"] if name == "start" else doc.get("run_start") or owner[_reference(doc)]
        for key in ("uid", "datum_id"):
            uids = doc.get(key, [])
            owner.update(dict.fromkeys(uids if isinstance(uids, list) else [uids], run))
        runs.setdefault(run, []).append((name, dict(doc)))
    return runs


def _reference(doc: Mapping[str, Any]) -> str:
    return next(doc[key] for key in ("descriptor", "stream_resource", "resource") if doc.get(key))
