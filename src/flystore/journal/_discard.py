"""Setting documents aside that shall never be sent: moved, never deleted."""

import json
import os
import time
from pathlib import Path

from flystore.disk import make_directory, replace_file, sync_directory, write_all
from flystore.model.errors import Conflict, InvalidRequest, NotFound, Unavailable

from ._journal import parse_segment_name, remove_directory, segment_files
from ._lock import DirectoryLock

DISCARDED = "discarded"
"""Directory beside the journals that takes what was set aside; a home of journals itself."""


def discard(path: Path, names: list[str], reason: str) -> Path:
    """Move the files of runs out of a journal into ``discarded/`` beside it; return the directory they are in.

    That directory is a journal too: it can be looked at, verified and sent like any other, but no RunWriter
    takes it, unless its journal directory is ``…/discarded``. A file ``discarded.jsonl`` in it says what was
    set aside, when and why. A journal that holds nothing more is deleted.

    Parameters
    ----------
    path : Path
        An orphaned journal.
    names : list of str
        Of logs, as in `JournaledRun.name`.
    reason : str
        For whoever finds it; not empty.

    Raises
    ------
    Conflict
        If a living writer holds the journal.
    NotFound
        If it has no such log.
    InvalidRequest
        If there is no reason.
    Unavailable
        If the disk refuses; what was not moved is still in the journal.
    """
    if not reason.strip():
        raise InvalidRequest("a reason is needed: whoever finds the documents wants to know why they were set aside")
    lock = DirectoryLock.take(path)
    if lock is None:
        raise Conflict(
            f"the journal {path} is held by a living writer, or gone; end that process first", path=str(path)
        )
    try:
        return _move(path, names, reason)
    except OSError as error:
        raise Unavailable(
            f"the documents in {path} cannot be set aside ({error.strerror}); what was not moved is still there",
            path=str(path),
        ) from error
    finally:
        lock.release()


def _move(path: Path, names: list[str], reason: str) -> Path:
    known = segment_files(path)
    missing = [name for name in names if name not in known]
    if missing:
        raise NotFound(f"the journal {path} has no log {missing[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
    found = {name: [entry for entry in path.iterdir() if _belongs_to(entry, name)] for name in names}
    place = _place_for(path, {entry.name for moved in found.values() for entry in moved})
    # Whoever sends what was set aside before deletes all he finds there when he is done.
    lock = DirectoryLock.take(place, create=True)
    if lock is None:
        raise Conflict(f"{place} is held by another process, which sends what was set aside before; try again later")
    try:
        _make_a_journal_of(place, path, lock)
        for name, moved in found.items():
            # The note first: files without a word why would be worse than a word without files.
            _note(place, {"log": name, "reason": reason, "time": time.time(), "files": sorted(e.name for e in moved)})
            # Segments go last to first: a crash in between leaves the beginning of the run, which is a whole log.
            for entry in sorted(moved, reverse=True):
                entry.rename(place / entry.name)
            sync_directory(place)
            sync_directory(path)
    finally:
        lock.release()
    if not segment_files(path):
        remove_directory(path)
        sync_directory(path.parent)
    return place


def _belongs_to(entry: Path, name: str) -> bool:
    parsed = parse_segment_name(entry.name)
    if parsed is not None:
        return parsed[0] == name
    return entry.name in (f"{name}.acked", f"{name}.parked")


def _place_for(path: Path, files: set[str]) -> Path:
    """Make the directory to move to: one in which nothing is overwritten."""
    place, number = path.parent / DISCARDED / path.name, 1
    while any((place / name).exists() for name in files):
        number += 1
        place = place.with_name(f"{path.name}~{number}")
    make_directory(place, 0o700)
    return place


def _make_a_journal_of(place: Path, source: Path, lock: DirectoryLock) -> None:
    lock.note((source / "lock").read_text(errors="replace"))
    if (source / "journal").exists() and not (place / "journal").exists():
        replace_file(place / "journal", (source / "journal").read_bytes())


def _note(place: Path, record: dict[str, object]) -> None:
    file = place / "discarded.jsonl"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        write_all(descriptor, json.dumps(record).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
