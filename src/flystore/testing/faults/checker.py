"""The check after a fault: what the ledger says must be there, looked for on disk and through the public API.

On disk means: the catalogue's file as it lies there, opened read-only, with no code of the service but the frame
decoder between. It can be done while the service is dead, and leaves the files as they are, so that the
service's own recovery is still to come.
"""

import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr

from flystore.model.encoding import encode
from flystore.model.errors import FlystoreError, NotFound
from flystore.model.frames import DIGEST_BYTES, FrameDecoder, is_document, split_frames
from flystore.service.backup import ARRAYS_DIRECTORY, CATALOG_FILE
from flystore.service.log_bodies import unpack
from flystore.wire import Transport, api_path

from .ledger import Known, Ledger
from .load import Document, Load, frames_announced, seq_nums
from .storing import ARRAY_ITEMS

OCTETS = "application/octet-stream"
STREAMS = ("primary", "monitor")


class FaultFound(AssertionError):
    """A promise was broken; carries the findings."""

    def __init__(self, findings: "Findings") -> None:
        super().__init__(str(findings))
        self.findings = findings


@dataclass
class Findings:
    """What is wrong, counted in documents, and said in words.

    Attributes
    ----------
    acknowledged : int
        Documents that had to be there; looked for and, if nothing is lost, found.
    lost, doubled, phantom : int
        Acknowledged and not stored; stored twice; stored but never sent, or with other content.
    half : int
        Places where node, rows, frame map and log do not agree.
    words : list of str
        One sentence each.
    """

    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    phantom: int = 0
    half: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.words

    def add(self, kind: str, count: int, sentence: str) -> None:
        setattr(self, kind, getattr(self, kind) + count)
        self.words.append(f"{kind}: {sentence}")

    def require_none(self) -> None:
        """Raise if anything is wrong.

        Raises
        ------
        FaultFound
        """
        if not self.clean:
            raise FaultFound(self)

    def __str__(self) -> str:
        counts = f"{self.lost} lost, {self.doubled} doubled, {self.phantom} phantom, {self.half} half states"
        return "\n".join([counts, *self.words[:20]])


def check_documents(findings: Findings, expected: list[Document], known: Known, found: list[Document]) -> None:
    """Compare the documents found of one run with the ledger's entry; `expected` is the whole run."""
    uid = expected[0][1]["uid"]
    findings.acknowledged += known.acknowledged
    if len(found) < known.acknowledged:
        lost = known.acknowledged - len(found)
        findings.add("lost", lost, f"{uid}: {known.acknowledged} acknowledged, {len(found)} stored")
    if len(found) > known.sent:
        findings.add("phantom", len(found) - known.sent, f"{uid}: {known.sent} sent, {len(found)} stored")
    canonical = [encode(list(document)) for document in expected]
    places = {each: place for place, each in enumerate(canonical)}
    for ordinal, document in enumerate(found):
        place = places.get(encode(list(document)))
        if place is None:
            findings.add("phantom", 1, f"{uid}: document {ordinal} was never sent: {document!r:.200}")
        elif place < ordinal:
            findings.add("doubled", 1, f"{uid}: document {place} is stored again as {ordinal}")
        elif place > ordinal:
            findings.add("lost", 1, f"{uid}: at {ordinal} document {place} is stored")
            return


# --- straight from disk --------------------------------------------------------------------------------------


def check_disk(
    directory: Path, ledger: Ledger, load: Load, uids: Iterable[str] | None = None, *, deep: bool = False
) -> Findings:
    """Check the catalogue's file of a store, without and before the service.

    Parameters
    ----------
    uids : iterable of str, optional
        Runs to look at; None is all of the ledger, and then runs beyond it are phantoms.
    deep : bool
        Also have SQLite check its file as a whole.
    """
    findings = Findings()
    path = directory / CATALOG_FILE
    wanted = ledger.runs if uids is None else {uid: ledger.runs[uid] for uid in uids}
    if not path.exists():
        for uid, known in wanted.items():
            if known.acknowledged:
                findings.add("lost", known.acknowledged, f"{uid}: there is no catalogue at all")
        return findings
    with _opened(path) as database:
        database.execute("BEGIN")
        if not _has_tables(database):
            for uid, known in wanted.items():
                if known.acknowledged:
                    findings.add("lost", known.acknowledged, f"{uid}: the catalogue has no tables")
            return findings
        for uid, known in wanted.items():
            _check_run(findings, database, uid, known, load)
        for key, known in ledger.arrays.items():
            node = database.execute("SELECT id FROM nodes WHERE path = ?", (key,)).fetchone()
            stored = None if node is None else directory / ARRAYS_DIRECTORY / str(node[0])
            _check_array(findings, key, known, load, stored)
        _check_whole(findings, database, None if uids is not None else frozenset(wanted))
        if deep:
            _check_file(findings, database)
    return findings


def stored_upto(directory: Path, uid: str) -> tuple[int, int]:
    """Return (watermark, epoch) of a run as the catalogue's file has it; zeros if it has none."""
    path = directory / CATALOG_FILE
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
        found = database.execute("SELECT watermark, epoch FROM runs WHERE uid = ?", (uid,)).fetchone()
    return found or (0, 0)


def content_of(directory: Path) -> dict[str, int]:
    """Return a number for the content of each table of the catalogue; two that are the same held the same."""
    found = {}
    with closing(sqlite3.connect(f"file:{directory / CATALOG_FILE}?mode=ro", uri=True, timeout=30)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'")
        for (name,) in names.fetchall():
            found[name] = zlib.crc32(repr(database.execute(f"SELECT * FROM '{name}'").fetchall()).encode())
    return found


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the catalogue's file to read it, leaving it and its write-ahead log as the crash left them.

    What a crash left half done while the file was made can only be read after it was rolled back, which is writing:
    then a copy is opened.
    """
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
        try:
            _has_tables(database)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
        else:
            yield database
            return
    with tempfile.TemporaryDirectory() as scratch:
        for each in path.parent.glob(f"{path.name}*"):
            if not each.name.endswith("-shm"):  # SQLite's own notes on the write-ahead log, made anew
                shutil.copy2(each, scratch)
        with closing(sqlite3.connect(Path(scratch) / path.name)) as database:
            yield database


def _has_tables(database: sqlite3.Connection) -> bool:
    found = database.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('runs', 'log', 'feed')").fetchone()
    return bool(found[0] == 3)


def _check_run(findings: Findings, database: sqlite3.Connection, uid: str, known: Known, load: Load) -> None:
    row = database.execute(
        "SELECT watermark, projected, open, epoch, node_id FROM runs WHERE uid = ?", (uid,)
    ).fetchone()
    watermark, projected, is_open, epoch, node_id = row or (0, 0, 1, 0, None)
    stored = list(_logged(findings, database, uid, watermark, epoch))
    expected = load.documents(known.run, known.events)
    check_documents(findings, expected, known, stored)
    if projected != watermark:
        findings.add("half", 1, f"{uid}: {watermark} documents stored, {projected} shown")
    stopped = any(name == "stop" for name, _ in stored)
    if row is not None and stopped == bool(is_open):
        findings.add("half", 1, f"{uid}: its stop is {'' if stopped else 'not '}stored, open is {is_open}")
    node = database.execute("SELECT id, metadata FROM nodes WHERE path = ?", (uid,)).fetchone()
    if (node is not None) != bool(stored) or (node is not None and node[0] != node_id):
        findings.add("half", 1, f"{uid}: {len(stored)} documents, node {node and node[0]}, run's node {node_id}")
    if node is not None and ('"exit_status"' in node[1]) != stopped:
        findings.add("half", 1, f"{uid}: its stop is {'' if stopped else 'not '}stored, its node says otherwise")
    for stream in STREAMS:
        _check_rows(findings, database, f"{uid}/{stream}", len(seq_nums(stored, stream)))


def _logged(
    findings: Findings, database: sqlite3.Connection, uid: str, watermark: int, epoch: int
) -> Iterator[Document]:
    """Yield the documents in a run's log, and find holes, overlaps and hashes that do not belong to them."""
    decoder = FrameDecoder()
    at = before = 0
    records = database.execute(
        "SELECT first_ordinal, count, epoch, hashes, body FROM log WHERE run_uid = ? ORDER BY position", (uid,)
    )
    for first, count, of_epoch, hashes, body in records:
        if first > at:
            findings.add("lost", first - at, f"{uid}: the log goes from document {at} to {first}")
        elif first < at:
            findings.add("doubled", at - first, f"{uid}: the log has documents {first} to {at} twice")
        if of_epoch < before:
            findings.add("half", 1, f"{uid}: epoch {of_epoch} was stored after epoch {before}")
        at, before = first + count, of_epoch
        digests = []
        for _, payload in split_frames(unpack(body), where=uid):
            decoded = decoder.decode(payload)
            if decoded is not None:
                digests.append(decoder.digest(payload))
                yield decoded
        if b"".join(digests) != hashes or len(hashes) != DIGEST_BYTES * count:
            findings.add("half", 1, f"{uid}: the hashes of documents {first} to {at} are of others")
    if at != watermark:
        findings.add("half", 1, f"{uid}: the log ends at {at}, the run says {watermark}")
    if before > epoch:
        findings.add("half", 1, f"{uid}: epoch {before} in the log, {epoch} in the run")


def _check_rows(findings: Findings, database: sqlite3.Connection, series: str, expected: int) -> None:
    at = 0
    for first, rows in database.execute(
        "SELECT first_row, rows FROM segments WHERE series = ? ORDER BY first_row", (series,)
    ):
        if first != at:
            findings.add("half", 1, f"{series}: a segment begins at row {first}, the one before ends at {at}")
        at = first + rows
    if at != expected:
        kind = "doubled" if at > expected else "half"
        findings.add(kind, abs(at - expected), f"{series}: {at} rows for {expected} events")


def _check_array(findings: Findings, key: str, known: Known, load: Load, path: Path | None) -> None:
    """Read an array with Zarr alone: blocks that were acknowledged are there, others are there whole or not at all."""
    findings.acknowledged += known.acknowledged
    try:
        values = None if path is None else np.asarray(zarr.open_array(path, mode="r")[...])
    except (ValueError, RuntimeError, OSError) as error:
        findings.add("half", 1, f"{key}: its node is there, its files are not: {error}")
        return
    _compare_blocks(findings, key, known, load, values)


def _compare_blocks(findings: Findings, key: str, known: Known, load: Load, values: np.ndarray | None) -> None:
    if values is None:
        if known.acknowledged:
            findings.add("lost", known.acknowledged, f"{key}: {known.acknowledged} blocks acknowledged, no array")
        return
    for block in range(known.events):
        found = values[block * ARRAY_ITEMS : (block + 1) * ARRAY_ITEMS]
        if np.array_equal(found, load.array(known.run, block, ARRAY_ITEMS)):
            if block >= known.sent:
                findings.add("phantom", 1, f"{key}: block {block} was never sent")
        elif block < known.acknowledged:
            findings.add("lost", 1, f"{key}: block {block} was acknowledged and is not there")
        elif found.any():
            findings.add("half", 1, f"{key}: block {block} has other values than were sent")


def _check_whole(findings: Findings, database: sqlite3.Connection, uids: frozenset[str] | None) -> None:
    feed, last = database.execute(
        "SELECT (SELECT position FROM feed), max((SELECT coalesce(max(position), 0) FROM log), "
        "(SELECT coalesce(max(position), 0) FROM changes))"
    ).fetchone()
    if feed != last:
        findings.add("half", 1, f"the feed is at {feed}, the last record or change at {last}")
    if uids is not None:
        for (uid,) in database.execute("SELECT uid FROM runs WHERE writer = 'documents'"):
            if uid not in uids:
                findings.add("phantom", 1, f"run {uid} was never sent")


def _check_file(findings: Findings, database: sqlite3.Connection) -> None:
    for (line,) in database.execute("PRAGMA integrity_check(5)"):
        if line != "ok":
            findings.add("half", 1, f"SQLite: {line}")
    for found in database.execute("PRAGMA foreign_key_check"):
        findings.add("half", 1, f"SQLite: a row without its parent: {found}")


# --- through the API -----------------------------------------------------------------------------------------


def check_api(transport: Transport, ledger: Ledger, load: Load, uids: Iterable[str] | None = None) -> Findings:
    """Check what a reader of the service is given; runs as in `check_disk`."""
    findings = Findings()
    for uid in ledger.runs if uids is None else uids:
        known = ledger.runs[uid]
        try:
            stored = stored_documents(transport, uid)
            check_documents(findings, load.documents(known.run, known.events), known, stored)
            if stored:
                _check_shown(findings, transport, uid, known, stored)
        except FlystoreError as error:
            findings.add("half", 1, f"{uid}: {error.kind}: {error}")
    for key, known in ledger.arrays.items():
        findings.acknowledged += known.acknowledged
        try:
            answer = transport.request("GET", api_path("array", "full", key), headers={"Accept": OCTETS})
            _compare_blocks(findings, key, known, load, np.frombuffer(answer.body, "<f8"))
        except NotFound:
            _compare_blocks(findings, key, known, load, None)
        except FlystoreError as error:
            findings.add("half", 1, f"{key}: {error.kind}: {error}")
    return findings


def stored_documents(transport: Transport, uid: str) -> list[Document]:
    """Return the documents that the service gives of a run; empty if it knows none."""
    try:
        answer = transport.request("GET", api_path("documents", uid))
    except NotFound:
        return []
    decoder = FrameDecoder()
    found = []
    for _, payload in split_frames(answer.body, where=uid):
        decoded = decoder.decode(bytes(payload))
        if is_document(payload) and decoded is not None:
            found.append(decoded)
    return found


def _check_shown(findings: Findings, transport: Transport, uid: str, known: Known, stored: list[Document]) -> None:
    metadata = _json(transport, "metadata", uid)["data"]["attributes"]["metadata"]
    if ("stop" in metadata) != any(name == "stop" for name, _ in stored):
        findings.add("half", 1, f"{uid}: metadata and documents do not agree on its stop")
    for stream in STREAMS:
        expected = seq_nums(stored, stream)
        if expected:
            _check_table(findings, transport, (uid, stream), expected, stored)
    announced = frames_announced(stored)
    if announced:
        rows = _json(transport, "frames", uid, "primary", "image")["rows"]
        if rows != announced:
            findings.add("half", 1, f"{uid}: {rows} rows in the frame map, {announced} frames announced")


def _check_table(
    findings: Findings, transport: Transport, path: tuple[str, str], expected: list[int], stored: list[Document]
) -> None:
    answer = transport.request(
        "GET",
        api_path("table", "full", *path, "internal"),
        headers={"Accept": "application/vnd.apache.arrow.file"},
    )
    table = pa.ipc.open_file(pa.py_buffer(bytes(answer.body))).read_all()
    found = table.column("seq_num").to_pylist()
    if found != expected:
        kind = "doubled" if len(found) > len(expected) else "half"
        findings.add(kind, 1, f"{'/'.join(path)}: rows {found[:5]}…{found[-3:]}, {len(expected)} events stored")
        return
    key = "motor" if path[1] == "primary" else "current"
    values = [doc["data"][key] for name, doc in stored if name == "event" and doc["descriptor"].endswith(f"-{path[1]}")]
    if table.column(key).to_pylist() != values:
        findings.add("phantom", 1, f"{'/'.join(path)}: the values of {key} are not those of its events")


def _json(transport: Transport, *segments: str) -> Any:
    return transport.request("GET", api_path(*segments), headers={"Accept": "application/json"}).decode()
