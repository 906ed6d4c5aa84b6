"""Processes that write to a disk that fails: a journal alone, and a service that does not take no for an answer."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from ._messages import say
from .ledger import Ledger
from .load import Load
from .storing import ARRAY_ITEMS, array_key, bodies_of, new_array


def journal(home: str, ledger: str, seed: int, first: int, events: int, durability: str, sync_interval: float) -> int:
    """Be the acquisition side without a shipper: journal one run after the other until killed.

    The ledger has as acknowledged what the journal calls durable.
    """
    from flystore.journal import Journal
    from flystore.model.frames import FrameEncoder

    load = Load(seed)
    with (
        Ledger(Path(ledger)) as book,
        Journal.create(
            Path(home),
            target="http://127.0.0.1:1",
            durability="each" if durability == "each" else "group",
            sync_interval=sync_interval,
            segment_bytes=6000,
            reserve_bytes=0,
        ) as writing,
    ):
        say(event="ready")
        number = first
        while True:
            uid, encoder = load.uid(number), FrameEncoder()
            book.begun(uid, number, events)
            log = writing.open_run(uid)
            for ordinal, (name, doc) in enumerate(load.documents(number, events)):
                book.sent(uid, ordinal + 1)
                log.append(encoder.encode(name, doc), last=name == "stop")
                book.journaled(uid, ordinal + 1)
                book.acknowledged(uid, log.durable)
            log.end_run()
            number += 1


def stubborn(directory: str, ledger: str, seed: int, run: int, events: int, batch: int, checkpoint_bytes: int) -> int:
    """Be a service without a socket that is asked again whatever it answers; stopped before the first call.

    Parameters
    ----------
    checkpoint_bytes : int
        How long the catalogue's write-ahead log may be; 0 has each commit followed by a checkpoint.
    """
    from flystore.catalog import _database
    from flystore.model.errors import Conflict, FlystoreError
    from flystore.service import Service
    from flystore.service.requests import NewNode

    _database.CHECKPOINT_BYTES = checkpoint_bytes
    say(event="waiting")
    os.kill(os.getpid(), signal.SIGSTOP)
    load = Load(seed)
    uid, key = load.uid(run), array_key(load, run)
    documents = load.documents(run, events)
    bodies = bodies_of(documents, range(batch, len(documents), batch))
    refused: list[str] = []
    with Ledger(Path(ledger)) as book, Service.open(Path(directory)) as service:
        book.begun(uid, run, events)
        book.begun(key, run, len(bodies))
        for _ in range(3):
            for block, (first, body) in enumerate(bodies):
                try:
                    book.sent(uid, min(first + batch, len(documents)))
                    book.acknowledged(uid, service.ingest.batch(uid, first, 1, body).watermark)
                except FlystoreError as error:
                    refused.append(error.kind)
                try:
                    with suppress(Conflict):
                        service.nodes.create((), NewNode.from_wire(new_array(key, len(bodies))))
                    book.sent(key, block + 1)
                    service.nodes.write_block((key,), (block,), load.array(run, block, ARRAY_ITEMS).tobytes())
                    book.acknowledged(key, block + 1)
                except FlystoreError as error:
                    refused.append(error.kind)
        # Whatever was refused, all that is stored can be read.
        if book.runs[uid].acknowledged:
            b"".join(service.documents.frames((uid,)).pieces)
        say(event="asked", refused=sorted(set(refused)), lost=service.stores_nothing)
    return 0
