"""What an answer to a batch means for the run it is of."""

from enum import Enum, auto
from typing import Any, NamedTuple

from flystore.model.errors import (
    Conflict,
    FlystoreError,
    InvalidRequest,
    NotFound,
    NotPermitted,
    SequenceGap,
    TooLarge,
    Unavailable,
    Unreadable,
)
from flystore.wire import Answer


class Stored(NamedTuple):
    """A batch was stored.

    Attributes
    ----------
    watermark : int
        Ordinal that the service expects next of this run.
    verdict : str or None
        The run in one line for people, when the service had one to give.
    followed : bool
        Whether somebody waits for the run's next documents.
    """

    watermark: int
    verdict: str | None
    followed: bool = False


class Step(Enum):
    """What to do after a batch that was not stored."""

    RESUME = auto()
    """Go on from the ordinal that the service expects."""
    LATER = auto()
    """Wait; the service cannot be reached, so other runs wait too."""
    LATER_THIS_RUN = auto()
    """Wait with this run only; something failed that may be about this batch."""
    SMALLER = auto()
    """Send fewer documents at once."""
    PARK = auto()
    """No repetition can help; keep the run and say why."""


def read_answer(answer: Answer) -> Stored:
    """Return what a success says.

    Raises
    ------
    Unavailable
        If it is not the answer of an ingest route: something else lives at this address.
    """
    content: Any = answer.decode()
    watermark = content.get("watermark") if isinstance(content, dict) else None
    if type(watermark) is not int or watermark < 0:
        raise Unavailable(
            "the answer to a batch says nothing of what was stored; is this the URL of a flystore service?"
        )
    verdict = content.get("verdict")
    named = verdict if isinstance(verdict, str) and verdict else None
    return Stored(watermark, named, content.get("followed") is True)


def next_step(error: FlystoreError) -> Step:
    """Return what to do after a batch failed with `error`."""
    if isinstance(error, SequenceGap):
        return Step.RESUME
    if isinstance(error, TooLarge):
        return Step.SMALLER
    if isinstance(error, Unavailable) or _wrong_place(error):
        return Step.LATER
    if isinstance(error, (Conflict, NotPermitted, InvalidRequest)):
        return Step.PARK
    if isinstance(error, Unreadable):
        return Step.LATER
    return Step.LATER_THIS_RUN


def _wrong_place(error: FlystoreError) -> bool:
    """Return whether no ingest route lives here: a proxy alone, another service; ours may come back."""
    return isinstance(error, NotFound) or "location" in error.facts or error.facts.get("status") == 405
