"""What `Run.align` can be asked for, and mistakes in it."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np

from flystore.model.errors import InvalidRequest, NotFound

from ._stream import Stream
from ._words import listed

RATIO = "ratio"
BY_TIME = ("nearest", "previous", "linear")
IN_WINDOWS = ("mean", "count", "last")
WINDOWS = ("before", "after")

Word = str | int | Fraction
How = Word | Sequence[Word]


class RunLike(Protocol):
    """What aligning needs to know of a run."""

    @property
    def start(self) -> dict[str, Any]: ...
    @property
    def stop(self) -> dict[str, Any] | None: ...
    def __getitem__(self, key: str) -> Any: ...


class Request(NamedTuple):
    """What `Run.align` was asked for; the members are its parameters."""

    reference: str
    others: Mapping[str, How | Mapping[str, How]]
    tolerance: float | Mapping[str, float | None] | None = None
    offset: Mapping[str, float] | None = None
    times: Mapping[str, Any] | None = None
    window: Any = None
    variables: Sequence[str] | None = None
    lazy: bool = False

    def offset_of(self, stream: str) -> float:
        """Return the seconds to be added to a stream's times."""
        return _seconds(f"the offset of {stream}", (self.offset or {}).get(stream, 0.0))

    def times_of(self, stream: str) -> Any:
        """Return what was given as a stream's times, None if nothing was."""
        return (self.times or {}).get(stream)

    def tolerance_of(self, stream: str) -> float | None:
        return self.tolerance.get(stream) if isinstance(self.tolerance, Mapping) else self.tolerance


class Job(NamedTuple):
    """One variable of another stream to be put on the events."""

    stream: str
    variable: str
    word: Word
    name: str
    """What it is to be called, if nothing else is."""

    @property
    def by_count(self) -> bool:
        return not isinstance(self.word, str) or self.word == RATIO


def stream_of(run: RunLike, name: str) -> Stream:
    found = run[name]
    if not isinstance(found, Stream):
        raise InvalidRequest(f"{name} is no stream of this run but a {type(found).__name__.lower()}")
    return found


def require_known(request: Request, streams: Iterable[str]) -> None:
    """Raise if something is given for a stream that is not aligned."""
    known = set(streams)
    if request.reference in request.others:
        raise InvalidRequest(f"{request.reference} is what the others are put on; it cannot be one of them")
    for what in ("offset", "times", "tolerance"):
        given = getattr(request, what)
        unknown = [name for name in given if name not in known] if isinstance(given, Mapping) else []
        if unknown:
            raise InvalidRequest(f"{what} is given for {listed(unknown)}, but aligned are {listed(streams)}")


def jobs_of(name: str, how: How | Mapping[str, How], readable: Sequence[str], request: Request) -> list[Job]:
    """Return what is to be done with each variable of a stream."""
    if isinstance(how, Mapping):
        require_variables(name, how, readable)
        wanted = dict(how)
    else:
        given = request.times_of(name)
        times = given if isinstance(given, str) else None
        wanted = {variable: how for variable in readable if variable != times}
    jobs = []
    for variable, one in wanted.items():
        words = _words(name, one)
        suffixes = [f"_{word}" for word in words] if len(words) > 1 else [""]
        jobs += [Job(name, variable, word, variable + end) for word, end in zip(words, suffixes, strict=True)]
    return jobs


def require_variables(stream: str, wanted: Iterable[str], known: Sequence[str]) -> None:
    unknown = [variable for variable in wanted if variable not in known]
    if unknown:
        raise NotFound(f"{stream} has no {listed(unknown)}; it has {listed(known, 30)}", keys=unknown)


def _words(stream: str, how: Any) -> list[Word]:
    words: list[Word] = list(how) if isinstance(how, (list, tuple)) else [how]
    known = (RATIO, *BY_TIME, *IN_WINDOWS)
    for word in words or [how]:
        is_number = isinstance(word, (int, Fraction)) and not isinstance(word, bool)
        if not (is_number or (isinstance(word, str) and word in known)):
            raise InvalidRequest(
                f"how to put {stream} on the events is one of {listed(known)}, or how many of its rows belong to each "
                f"event (4, Fraction(1, 4)), not {word!r}"
            )
    return words


def _seconds(what: str, given: Any) -> float:
    try:
        found = float(given)
    except (TypeError, ValueError):
        found = np.nan
    if not np.isfinite(found):
        raise InvalidRequest(f"{what} is a number of seconds, not {given!r}")
    return found
