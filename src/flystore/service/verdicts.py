"""Verdicts: what the documents say, met with what was found in the files, and when."""

from typing import Any

import msgspec

from flystore.catalog import Catalog, Node, Observation, Run
from flystore.model.structures import Family
from flystore.projection import ExternalArray, RunState, line, segment, verdict

from .browse import everything_below, run_at
from .observed import OK, present_map, readable_structure
from .probing import Prober

LOOK_SECONDS = 5.0
"""How long the answer to a stop document waits for the files to be looked at."""

NOT_ANNOUNCED = "frame map not announced: the writer sent row counts only, so gaps cannot be known"


class FileVerdict(msgspec.Struct, frozen=True):
    """What is known of the files of one external array.

    Attributes
    ----------
    path : str
        Of the node, below the run.
    status : str
        ``ok``, ``not-checked``, or why nothing could be said: ``missing``, ``unreadable`` …
    announced, readable : int
        Rows; `readable` is 0 where nothing was checked.
    unverified : bool
        Whether the format cannot tell written rows from others.
    checked : float or None
        When, in Unix seconds; None if never.
    why : str
        One sentence; ``""`` if all is well.
    """

    path: str
    status: str
    announced: int
    readable: int
    unverified: bool
    checked: float | None
    why: str


class RunVerdict(msgspec.Struct, frozen=True):
    """The whole verdict of a run.

    Attributes
    ----------
    state : str
        ``running``, ``unreadable``, ``gaps``, ``extra``, ``retaken`` or ``complete``: the first that applies.
    line : str
        The same for people, in one line.
    writer : str
        ``documents`` or ``protocol``.
    documents : dict or None
        Wire form of the projection's verdict; None where no documents were sent.
    files : list of FileVerdict
    notes : list of str
        What was odd, in sentences.
    """

    uid: str
    state: str
    line: str
    writer: str
    documents: dict[str, Any] | None
    files: list[FileVerdict]
    notes: list[str]


class Verdicts:
    """Works verdicts out when somebody asks."""

    def __init__(self, catalog: Catalog, prober: Prober) -> None:
        self._catalog = catalog
        self._prober = prober

    def of(self, path: tuple[str, ...], *, look: bool = False) -> RunVerdict:
        """Return the verdict of the run at `path`; with `look` its files are looked at first.

        Raises
        ------
        NotFound
            If there is no such run.
        """
        with self._catalog.read() as snapshot:
            run = run_at(snapshot, path)
            root = snapshot.node(path)
            external = [node for node in everything_below(snapshot, path) if _has_files(node, run)] if root else []
            if run.writer == "protocol":
                sources = snapshot.data_sources([node.id for node in external])
                external = [node for node in external if sources[node.id].management == "external"]
        if look:
            for node in external:
                self._prober.look(node)
        with self._catalog.read() as snapshot:
            files = [_file_verdict(node, snapshot.observation(node.id)) for node in external]
        return _combined(run.uid, run, root, files)

    def line_after_stop(self, uid: str) -> str | None:
        """Return the line for people once a run has ended, after its files were looked at or 5 s."""
        self._prober.wait_idle(LOOK_SECONDS)
        return self.of((segment(uid),)).line


def _has_files(node: Node, run: Run) -> bool:
    return node.external is not None if run.writer == "documents" else node.family is Family.ARRAY


def _file_verdict(node: Node, observation: Observation | None) -> FileVerdict:
    path = "/".join(node.path[1:])
    if node.external is not None:
        external = ExternalArray.from_bytes(node.external)
        announced, readable = len(external.frame_map), len(present_map(external, observation))
    else:
        shape = (node.structure or {}).get("shape") or [0]
        found = (readable_structure(node, observation) or {}).get("shape") or [0]
        announced, readable = shape[0], found[0]
    if observation is None:
        return FileVerdict(path, "not-checked", announced, 0, False, None, "")
    if observation.status != OK:
        return FileVerdict(path, observation.status, announced, 0, False, observation.time, observation.detail)
    unverified = any(item.get("unverified") for item in observation.fingerprint.get("found", []))
    why = "" if readable == announced else f"{announced} rows were announced, {readable} are in the files"
    return FileVerdict(path, OK, announced, readable, unverified, observation.time, why)


def _combined(uid: str, run: Run, root: Node | None, files: list[FileVerdict]) -> RunVerdict:
    start = (root.metadata.get("start") if root is not None else None) or {}
    scan_id = start.get("scan_id") if isinstance(start, dict) else None
    documents: dict[str, Any] | None = None
    notes: list[str] = []
    if run.writer == "documents":
        said = verdict(RunState.from_bytes(run.state))
        documents, state = said.to_wire(), said.state
        notes = [note["text"] for note in documents["notes"]]
        told = line(said, scan_id, uid)
        if run.projected < run.watermark:
            notes.append(f"documents from {run.projected} on are stored but not yet shown: a defect of flystore")
    else:
        state = "running" if run.open else "complete"
        name = f"scan {scan_id}" if scan_id is not None else f"run {uid[:8]}"
        told = f"{name}: {state}"
        if files:
            notes.append(NOT_ANNOUNCED)
    if state != "running":
        state = _worst(state, files)
    return RunVerdict(uid, state, f"{told}, stored{_about_files(files, run)}", run.writer, documents, files, notes)


def _worst(state: str, files: list[FileVerdict]) -> str:
    if any(file.status not in (OK, "not-checked") for file in files):
        return "unreadable"
    if any(file.status == OK and file.readable < file.announced for file in files):
        return "gaps"
    return state


def _about_files(files: list[FileVerdict], run: Run) -> str:
    """Return what the line says of the files: worst first, nothing if there are none or all is well."""
    parts = []
    bad = [file for file in files if file.status not in (OK, "not-checked")]
    short = [file for file in files if file.status == OK and file.readable < file.announced]
    if bad:
        parts.append(f"{bad[0].path} {bad[0].status}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else ""))
    if short:
        lost = sum(file.announced - file.readable for file in short)
        parts.append(f"{lost} announced frames not in the files")
    if any(file.status == "not-checked" for file in files):
        parts.append("frames announced, not checked")
    if run.writer == "protocol" and files:
        parts.append("frame map not announced")
    return "".join(f", {part}" for part in parts)
