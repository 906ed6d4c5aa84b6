"""How long to wait before trying again."""

import random
from collections.abc import Callable


class Backoff:
    """Pauses that double up to a cap, each shortened by chance so that many writers do not return as one.

    Parameters
    ----------
    first, cap : float
        Shortest and longest pause before chance, seconds.
    chance : callable
        Gives numbers from 0 (included) to 1 (excluded).
    """

    def __init__(self, first: float, cap: float, chance: Callable[[], float] = random.random) -> None:
        self._first, self._cap, self._chance = first, cap, chance
        self.failures = 0

    def next(self) -> float:
        """Return the pause after one more failure, seconds: between half and all of the doubled one."""
        longest = min(self._cap, self._first * 2.0 ** min(self.failures, 60))
        self.failures += 1
        return longest * (0.5 + 0.5 * self._chance())

    def reset(self) -> None:
        """Begin anew after a success."""
        self.failures = 0
