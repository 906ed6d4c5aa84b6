"""Journals for tests: documents as payloads, a journal left by a writer that died, and damage done to it."""

from pathlib import Path
from typing import Any

from flystore.journal import Journal, RunLog
from flystore.model import frames

__all__ = ["abandoned", "document_payloads", "event", "frame_offsets", "read_documents", "segment_files"]

TARGET = "http://127.0.0.1:8000"


def event(number: int, *, descriptor: str = "d-1", keys: int = 3) -> dict[str, Any]:
    """Return an event with `keys` data keys whose values follow from its sequence number."""
    names = [f"det{index}" for index in range(keys)]
    return {
        "uid": f"event-{number}",
        "descriptor": descriptor,
        "seq_num": number,
        "time": 1000.0 + number,
        "data": {name: number + 0.25 * index for index, name in enumerate(names)},
        "timestamps": dict.fromkeys(names, 1000.0 + number),
        "filled": {},
    }


def document_payloads(count: int, uid: str = "run-1") -> list[list[bytes]]:
    """Return the payloads of the first `count` documents of a run: start, descriptor, then events."""
    encoder = frames.FrameEncoder()
    documents: list[tuple[str, dict[str, Any]]] = [
        ("start", {"uid": uid, "time": 1000.0, "scan_id": 1}),
        ("descriptor", {"uid": "d-1", "run_start": uid, "name": "primary", "data_keys": {}}),
    ]
    documents += [("event", event(number)) for number in range(1, max(0, count - 2) + 1)]
    return [encoder.encode(name, doc) for name, doc in documents[:count]]


def abandoned(home: Path, count: int, *, uid: str = "run-1", segment_bytes: int = 2**20, target: str = TARGET) -> Path:
    """Return the directory of a journal with `count` documents of one run, whose writer is gone."""
    journal = Journal.create(home, target=target, segment_bytes=segment_bytes, reserve_bytes=0)
    log = journal.open_run(uid)
    for payloads in document_payloads(count, uid):
        log.append(payloads)
    journal.close()
    return journal.path


def segment_files(path: Path) -> list[Path]:
    """Return the segment files of a journal in order of name."""
    return sorted(path.glob("*.frames"))


def frame_offsets(file: Path) -> list[int]:
    """Return the offset of each frame of a segment file that is whole; the first is the header's."""
    return [start - frames.HEADER.size for start, _ in frames.scan(file.read_bytes()).spans]


def read_documents(log: RunLog) -> list[tuple[str, dict[str, Any]]]:
    """Return the documents of a log, decoded."""
    decoder = frames.FrameDecoder()
    decoded = [decoder.decode(payload) for payload in log.payloads()]
    return [document for document in decoded if document is not None]
