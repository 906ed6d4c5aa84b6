"""Parties take turns, so that what the machine does meanwhile falls on all of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Sample = dict[str, Any]
Samples = dict[str, list[Sample]]


def turns(parties: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield round and party; each round begins with the party that was second in the one before."""
    for number in range(rounds):
        first = number % len(parties) if parties else 0
        for party in parties[first:] + parties[:first]:
            yield number, party


def interleaved(
    parties: Mapping[str, Callable[[], Sample]], rounds: int, fewer: Mapping[str, int] | None = None
) -> Samples:
    """Measure all parties in turns.

    Parameters
    ----------
    parties : mapping
        By name: measures once and returns its quantities.
    rounds : int
    fewer : mapping, optional
        Rounds of parties that take part in the first ones only, because they take long.

    Returns
    -------
    dict
        By party, a sample a round.
    """
    most = fewer or {}
    found: Samples = {party: [] for party in parties}
    for number, party in turns(list(parties), rounds):
        if number < most.get(party, rounds):
            found[party].append(parties[party]())
    return found


def column(samples: Samples, party: str, quantity: str, scale: float = 1.0) -> list[float]:
    """Return one quantity of a party, times `scale`; empty if the party did not take part or has no such quantity."""
    return [sample[quantity] * scale for sample in samples.get(party, []) if quantity in sample]
