"""From samples to figures: medians, ranges, and ratios of samples that were taken beside each other."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

Better = Literal["less", "more"]


class Figure(NamedTuple):
    """What some samples say.

    Attributes
    ----------
    median, least, most : float
        In the samples' unit; NaN if there are none.
    samples : int
    """

    median: float
    least: float
    most: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        if not samples:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(samples), min(samples), max(samples), len(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least `percent` of a hundred do not exceed; NaN if there are none."""
    if not samples:
        return math.nan
    rank = math.ceil(len(samples) * percent / 100)
    return sorted(samples)[max(rank, 1) - 1]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratios of samples of the same round; a party with fewer rounds has its ratios in those."""
    return [a / b for a, b in zip(over, under, strict=False) if b]


@dataclass
class Measure:
    """One quantity of all parties: one line of the table.

    Attributes
    ----------
    row : str
        Name of the module that measured it.
    work : str
        What was done, and what of it is given.
    unit : str
        Of all samples.
    better : {"less", "more"}
    stock, flystore : list of float
        One sample a round; empty where the party was not measured.
    floors : dict
        By name: samples of what the machine or another program does with the same.
    reach : str
        The figure to reach, in words; empty if none was set.
    note : str
        What a reader has to know about the line; empty if nothing.
    """

    row: str
    work: str
    unit: str
    better: Better
    stock: list[float] = field(default_factory=list)
    flystore: list[float] = field(default_factory=list)
    floors: dict[str, list[float]] = field(default_factory=dict)
    reach: str = ""
    note: str = ""

    def gain(self) -> Figure:
        """Return how many times better than stock flystore is."""
        pair = (self.stock, self.flystore)
        return Figure.of(ratios(*pair) if self.better == "less" else ratios(*reversed(pair)))

    def against(self, floor: str) -> Figure:
        """Return flystore as a multiple of a floor: of a duration 1 is as fast and 2 takes twice as long."""
        return Figure.of(ratios(self.flystore, self.floors[floor]))

    def record(self) -> dict[str, Any]:
        """Return it as JSON has it, with the figures beside the samples."""
        return {
            "row": self.row,
            "work": self.work,
            "unit": self.unit,
            "better": self.better,
            "stock": self.stock,
            "flystore": self.flystore,
            "floors": self.floors,
            "reach": self.reach,
            "note": self.note,
            "medians": {
                name: Figure.of(samples).median
                for name, samples in {"stock": self.stock, "flystore": self.flystore, **self.floors}.items()
                if samples
            },
        }

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """Return what `record` was made of."""
        return cls(**{name: value for name, value in record.items() if name != "medians"})
