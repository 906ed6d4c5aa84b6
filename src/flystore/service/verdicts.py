"""Verdicts: what the documents say, met with what was found in the files, and when."""

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from flystore.catalog import Catalog, Node, Observation, Run
from flystore.model.errors import Conflict, NotFound, Unavailable
from flystore.model.queries import INTERRUPTED
from flystore.model.structures import Family
from flystore.projection import ExternalArray, RunState, line, segment, verdict

from .browse import everything_below, run_at
from .limits import Limits
from .observed import OK, present_map, readable_structure
from .probing import Prober
from .protocol_runs import ProtocolState

log = logging.getLogger("flystore.service")

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
        ``interrupted``, ``running``, ``unreadable``, ``gaps``, ``extra``, ``retaken`` or ``complete``: the first
        that applies.
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

    def __init__(
        self, catalog: Catalog, prober: Prober, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._catalog = catalog
        self._prober = prober
        self._limits = limits
        self._clock = clock

    def look_at(self, path: tuple[str, ...]) -> None:
        """Have the files of the array at `path` looked at now.

        Raises
        ------
        NotFound
            If there is no such node.
        """
        with self._catalog.read() as snapshot:
            node = snapshot.node(path)
        if node is None:
            raise NotFound(f"No such entry: {list(path)}", path=list(path))
        self._prober.look(node)

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
        found = _combined(run, root, files, self._interruption(run))
        self._keep(run, found.state)
        return found

    def close(self, path: tuple[str, ...], reason: str) -> RunVerdict:
        """Declare an open run interrupted; documents that still come are stored, and a late stop wins.

        Raises
        ------
        NotFound
            If there is no such run.
        Conflict
            If it has its stop document, or was closed before.
        """
        with self._catalog.write() as tx:
            run = run_at(tx, path)
            run = tx.run(run.uid) or run
            if not run.open:
                why = f"was closed before: {run.closed}" if run.closed is not None else "has its stop document"
                raise Conflict(f"run {run.uid} {why}; there is nothing to close")
            tx.save_run(msgspec.structs.replace(run, open=False, closed=reason, verdict=INTERRUPTED))
            tx.append_operation(path, "close-run", reason.encode(), self._clock())
            tx.note_change(path, "updated", {"family": str(Family.CONTAINER)}, run_uid=run.uid)
        return self.of(path)

    def _interruption(self, run: Run) -> str | None:
        """Return in words why a run counts as interrupted; None if it does not."""
        if run.closed is not None:
            return f"closed: {run.closed}"
        silence = self._clock() - run.last_received
        if run.open and silence > self._limits.silence_seconds:
            return f"no document for {silence / 60:.0f} min"
        return None

    def _keep(self, run: Run, state: str) -> None:
        """Let searches find an ended run by what its files are like, too."""
        if run.open or run.closed is not None or run.verdict == state:
            return
        try:
            with self._catalog.write() as tx:
                current = tx.run(run.uid)
                if current is not None and current.watermark == run.watermark and not current.deleted:
                    tx.save_run(msgspec.structs.replace(current, verdict=state))
        except Unavailable as error:  # a full disk must not keep people from reading
            log.warning("the verdict of run %s is not kept for searches: %s", run.uid, error)

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


def _combined(run: Run, root: Node | None, files: list[FileVerdict], interruption: str | None) -> RunVerdict:
    uid = run.uid
    documents: dict[str, Any] | None = None
    notes: list[str] = []
    if run.writer == "documents":
        kept = RunState.from_bytes(run.state)
        said = verdict(kept)
        documents, state = said.to_wire(), said.state
        notes = [note["text"] for note in documents["notes"]]
        if interruption is not None:
            state = INTERRUPTED
            said = msgspec.structs.replace(said, state=state, exit_status=state)
        # Of the documents, whatever people wrote into the run's metadata.
        told = line(said, _scan_id(kept.start), uid)
        if run.projected < run.watermark:
            notes.append(f"documents from {run.projected} on are stored but not yet shown: a defect of flystore")
    else:
        state = INTERRUPTED if interruption is not None else "running" if run.open else "complete"
        scan_id = _scan_id(root.metadata.get("start") if root is not None else None)
        name = f"scan {scan_id}" if scan_id is not None else f"run {uid[:8]}"
        told = f"{name}: {state}"
        if files:
            notes.append(NOT_ANNOUNCED)
        if run.writer == "protocol":
            notes += ProtocolState.of(run).notes
    if interruption is not None:
        notes.insert(0, f"interrupted: {interruption}")
        told = f"{told}, {interruption}"
    if state not in ("running", INTERRUPTED):
        state = _worst(state, files)
        if state == "unreadable":
            told = told.replace(": ", ": files unreadable, ", 1)  # what a tired person must not miss
    return RunVerdict(uid, state, f"{told}, stored{_about_files(files, run)}", run.writer, documents, files, notes)


def _scan_id(start: Any) -> Any:
    return start.get("scan_id") if isinstance(start, dict) else None


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
