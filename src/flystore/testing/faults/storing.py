"""Storing without a socket: frames of documents, and a run with an array stored by one thread."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flystore.model.errors import Conflict
from flystore.model.frames import FrameEncoder, frame

from .ledger import ARRAY, Ledger
from .load import Document, Load

if TYPE_CHECKING:
    from flystore.service import Service
    from flystore.service.requests import NewNode

ARRAY_ITEMS = 64
"""Items of each block of the array that `store_run` writes."""


def frames_of(documents: Sequence[Document], encoder: FrameEncoder | None = None) -> bytes:
    """Return the body of a batch; templates that `encoder` made before are not in it."""
    return b"".join(frames_each(documents, encoder))


def frames_each(documents: Iterable[Document], encoder: FrameEncoder | None = None) -> list[bytes]:
    """Return the frames of each document of a run; those of a template come with the first document that needs it.

    Any slice of these, joined, is a batch as a journal would send it.
    """
    encoder = encoder or FrameEncoder()
    return [b"".join(frame(payload) for payload in encoder.encode(name, doc)) for name, doc in documents]


def bodies_of(documents: Sequence[Document], cuts: Sequence[int]) -> list[tuple[int, bytes]]:
    """Return (first ordinal, body) of the batches of a run, which end before each ordinal in `cuts`."""
    each = frames_each(documents)
    edges = [0, *cuts, len(documents)]
    return [(a, b"".join(each[a:b])) for a, b in pairwise(edges) if b > a]


def array_key(load: Load, run: int) -> str:
    return ARRAY + load.uid(run)


def new_array(key: str, blocks: int) -> dict[str, Any]:
    """Return the body that makes an array of so many blocks below the root."""
    structure = {
        "data_type": {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None},
        "chunks": [[ARRAY_ITEMS] * blocks],
        "shape": [ARRAY_ITEMS * blocks],
        "dims": None,
        "resizable": False,
    }
    source = {"structure_family": "array", "structure": structure, "management": "writable"}
    return {"id": key, "structure_family": "array", "metadata": {}, "specs": [], "data_sources": [source]}


def store_run(directory: Path, ledger: Ledger, load: Load, run: int, events: int, batch: int) -> None:
    """Open the store, store a run in batches with a block of an array after each, and close it.

    What was stored before is found stored, so a second call after a crash goes on.
    """
    documents = load.documents(run, events)
    bodies = bodies_of(documents, range(batch, len(documents), batch))
    with _opened(directory) as service:
        ledger.begun(load.uid(run), run, events)
        _make_array(service, ledger, array_key(load, run), run, len(bodies))
        for block, (first, body) in enumerate(bodies):
            _store_batch(service, ledger, load.uid(run), first, body, min(first + batch, len(documents)))
            _store_block(service, ledger, load, run, block)


def store_documents(directory: Path, ledger: Ledger, load: Load, run: int, events: int, batch: int) -> None:
    """Do the same with the run alone: all in this thread."""
    documents = load.documents(run, events)
    with _opened(directory) as service:
        ledger.begun(load.uid(run), run, events)
        for first, body in bodies_of(documents, range(batch, len(documents), batch)):
            _store_batch(service, ledger, load.uid(run), first, body, min(first + batch, len(documents)))


def store_array(directory: Path, ledger: Ledger, load: Load, run: int, blocks: int) -> None:
    """Do the same with the array alone; another one is made and deleted. Zarr works in a thread of its own."""
    key = array_key(load, run)
    with _opened(directory) as service:
        _make_array(service, ledger, key, run, blocks)
        with suppress(Conflict):
            service.nodes.create((), _new_node(f"{key}-deleted", blocks))
        for block in range(blocks):
            _store_block(service, ledger, load, run, block)
        service.nodes.delete((f"{key}-deleted",), recursive=True, external_only=False)


def _opened(directory: Path) -> "Service":
    from flystore.service import Service

    return Service.open(directory)


def _new_node(key: str, blocks: int) -> "NewNode":
    from flystore.service.requests import NewNode

    return NewNode.from_wire(new_array(key, blocks))


def _make_array(service: "Service", ledger: Ledger, key: str, run: int, blocks: int) -> None:
    ledger.begun(key, run, blocks)
    with suppress(Conflict):
        service.nodes.create((), _new_node(key, blocks))


def _store_batch(service: "Service", ledger: Ledger, uid: str, first: int, body: bytes, stop: int) -> None:
    ledger.sent(uid, stop)
    ledger.acknowledged(uid, service.ingest.batch(uid, first, 1, body).watermark)


def _store_block(service: "Service", ledger: Ledger, load: Load, run: int, block: int) -> None:
    key = array_key(load, run)
    ledger.sent(key, block + 1)
    service.nodes.write_block((key,), (block,), load.array(run, block, ARRAY_ITEMS).tobytes())
    ledger.acknowledged(key, block + 1)
