"""Batches as no well-behaved writer sends them: again, late, too early, overlapping, altered, of another epoch."""

import copy
import random
from collections.abc import Iterator
from typing import NamedTuple

from flystore.testing.documents import RunDocuments, external, internal, reordered

from .load import Document
from .model import Model
from .storing import frames_each


class SentBatch(NamedTuple):
    """A batch as documents, for the model, and as a body, for the service."""

    uid: str
    first: int
    epoch: int
    documents: list[Document]
    body: bytes


def odd_run(rng: random.Random, uid: str) -> list[Document]:
    """Return a run of two interleaved streams with what was seen in practice.

    Repeated seq_nums, frames announced before they are due or twice, a descriptor in the middle, a stop that comes
    before the last events, or none.
    """
    run = RunDocuments(uid, num_points=rng.choice([4, None]), scan_id=rng.randint(1, 999))
    for name in ("primary", "side"):
        stream = run.stream(name, a=internal(), wave=internal("array", [3]), image=external([2, 3]))
        frames = 0
        for _ in range(rng.randint(1, 5)):
            again = stream.seq_num if stream.seq_num and rng.random() < 0.15 else None
            stream.event(again, a=rng.random(), wave=[rng.random() for _ in range(3)])
            if rng.random() < 0.6:
                width = rng.randint(1, 2)
                stream.frames("image", frames, frames + width)
                frames += 0 if rng.random() < 0.1 else width
            if rng.random() < 0.1:
                stream.describe(a=internal(), wave=internal("array", [3]), image=external([2, 3]))
    start, *rest = run.documents
    rest = reordered(rest, rng, shuffle_frames=rng.random() < 0.3)
    if rng.random() < 0.8:
        run.documents = []
        run.stop()
        rest.insert(len(rest) if rng.random() < 0.7 else rng.randint(1, len(rest)), run.documents[0])
    return [start, *rest]


def altered(document: Document) -> Document:
    """Return the document with one value that is another."""
    name, doc = copy.deepcopy(document)
    if name == "event":
        doc["data"]["a"] = -1.0
    else:
        doc["time"] = -1.0
    return name, doc


def unruly(rng: random.Random, documents: list[Document], model: Model) -> Iterator[SentBatch]:
    """Yield batches of one run until all of it is stored, most of them not the one that is due.

    The model must be told of each before the next is asked for.
    """
    uid = documents[0][1]["uid"]
    each = frames_each(documents)
    total = len(documents)
    while (at := model.watermark(uid)) < total or rng.random() < 0.5:
        epoch = max(1, (model.runs[uid].epoch if uid in model.runs else 0) + rng.choice([0] * 8 + [-1, 1]))
        how = rng.choice(["due", "again", "overlapping", "early", "altered", "whole"])
        first, stop = at, min(total, at + rng.randint(1, 6))
        if how == "again":
            first = rng.randint(0, at)
            stop = rng.randint(first, at)
        elif how == "overlapping":
            first = rng.randint(0, at)
        elif how == "early":
            first = min(total, at + rng.randint(1, 3))
            stop = min(total, first + 4)
        elif how == "whole":
            first, stop = 0, rng.randint(at, total)
        elif how == "altered" and at > 0:
            first = rng.randint(0, at - 1)
            yield _with_one_altered(rng, documents, first, stop, at, epoch)
            continue
        if stop > first:
            yield SentBatch(uid, first, epoch, documents[first:stop], b"".join(each[first:stop]))


def _with_one_altered(
    rng: random.Random, documents: list[Document], first: int, stop: int, at: int, epoch: int
) -> SentBatch:
    """Return a batch in which one document that is stored already has other content."""
    place = rng.randint(first, at - 1)
    others = [altered(document) if i == place else document for i, document in enumerate(documents)]
    return SentBatch(
        documents[0][1]["uid"], first, epoch, others[first:stop], b"".join(frames_each(others)[first:stop])
    )
