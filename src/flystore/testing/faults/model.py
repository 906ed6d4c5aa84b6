"""The model: what ingest must answer and hold, in memory and small enough to be read in a minute.

It knows runs as lists of documents and nothing of frames, files or transactions. What it says is compared with what
the service does, answer by answer and at the end as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flystore.model.encoding import encode
from flystore.model.errors import FlystoreError

from .load import Document


class Outcome(NamedTuple):
    """What a batch leads to.

    Attributes
    ----------
    kind : str
        ``stored``, or the kind of the error.
    number : int
        The watermark; of a gap the ordinal expected, of a clash the ordinal, of a stale epoch the newer one.
    """

    kind: str
    number: int


FACTS = {"sequence-gap": "expected", "content-clash": "ordinal", "stale-epoch": "epoch"}
"""The fact of each error that the model foretells."""


def outcome_of(error: FlystoreError) -> Outcome:
    """Return an error as an outcome, to be compared with the model's."""
    return Outcome(error.kind, int(error.facts.get(FACTS.get(error.kind, ""), -1)))


@dataclass
class ModelRun:
    """A run as it must be stored: documents in canonical encoding, and the highest epoch that stored or confirmed."""

    documents: list[bytes] = field(default_factory=list)
    epoch: int = 0


class Model:
    """Ingest as it should be, for runs by uid."""

    def __init__(self) -> None:
        self.runs: dict[str, ModelRun] = {}

    def watermark(self, uid: str) -> int:
        return len(self.runs[uid].documents) if uid in self.runs else 0

    def batch(self, uid: str, first: int, epoch: int, documents: Sequence[Document]) -> Outcome:
        """Take a batch and say what the service must answer."""
        run = self.runs.get(uid, ModelRun())
        known = len(run.documents)
        if epoch < run.epoch:
            return Outcome("stale-epoch", run.epoch)
        if first > known:
            return Outcome("sequence-gap", known)
        arrived = [canonical(document) for document in documents]
        for ordinal, (old, new) in enumerate(zip(run.documents[first:], arrived, strict=False), first):
            if old != new:
                return Outcome("content-clash", ordinal)
        run.documents += arrived[known - first :]
        run.epoch = epoch
        self.runs[uid] = run
        return Outcome("stored", len(run.documents))


def canonical(document: Document) -> bytes:
    """Return a document so that two are the same exactly if their bytes are."""
    return encode(list(document))
