"""One line for each fault: how often it was done, what was promised, and what was found."""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checker import Findings

VARIABLE = "FLYSTORE_FAULTS_REPORT"
"""Names a file to which each line is also written, as JSON."""


@dataclass
class FaultReport:
    """What came of one fault.

    Attributes
    ----------
    fault : str
        Its id in the plan and its name: ``F01 server killed``.
    seed : int
        With which it can be repeated.
    cycles : int
        How often it was done.
    acknowledged : int
        Documents (or what `unit` says) that had to be there.
    recovery : list of float
        Seconds from the fault to the first answer after it, one a cycle; empty where that means nothing.
    notes : dict
        Anything else worth a word, by name.
    """

    fault: str
    seed: int
    unit: str = "documents"
    cycles: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    phantom: int = 0
    half: int = 0
    recovery: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def count(self, findings: Findings, *, acknowledged: bool = True) -> None:
        """Add what a check found."""
        if acknowledged:
            self.acknowledged += findings.acknowledged
        self.lost += findings.lost
        self.doubled += findings.doubled
        self.phantom += findings.phantom
        self.half += findings.half

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("fault", "seed", "unit", "cycles", "acknowledged", "lost", "doubled", "phantom", "half")
        }
        if self.recovery:
            found["recovery_median_s"] = round(statistics.median(self.recovery), 4)
            found["recovery_max_s"] = round(max(self.recovery), 4)
        found["seconds"] = round(time.monotonic() - self.began, 1)
        return {**found, "notes": self.notes, "machine": machine()}

    def line(self) -> str:
        return line_of(self.as_dict())


def line_of(found: dict[str, Any]) -> str:
    """Return the line for people of what `FaultReport.as_dict` gave."""
    wrong = [f"{found[name]} {name}" for name in ("lost", "doubled", "phantom")] + [f"{found['half']} half states"]
    parts = [f"{found['cycles']} cycles", f"{found['acknowledged']} {found['unit']} acknowledged", *wrong]
    if found["cycles"] and not any(found[name] for name in ("lost", "doubled", "phantom", "half")):
        parts.append(f"< {bound(found['cycles']):.2g} % a cycle at 95 %")
    if "recovery_median_s" in found:
        parts.append(f"recovery {found['recovery_median_s']:.3g} s, at most {found['recovery_max_s']:.3g} s")
    parts += [f"{name} {value}" for name, value in found["notes"].items()]
    return f"{found['fault']}: {', '.join(parts)}; seed {found['seed']}, {found['seconds']:.0f} s"


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of what `FaultReport.as_dict` gave, one row each."""
    heads = ("fault", "times", "acknowledged", "lost / doubled / phantom / half", "at 95 %, a time", "recovery", "seed")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for each in found:
        wrong = " / ".join(str(each[name]) for name in ("lost", "doubled", "phantom", "half"))
        none = not any(each[name] for name in ("lost", "doubled", "phantom", "half"))
        chance = f"< {bound(each['cycles']):.2g} %" if none and each["cycles"] else ""
        recovery = ""
        if "recovery_median_s" in each:
            recovery = f"{each['recovery_median_s'] * 1e3:.0f} ms, at most {each['recovery_max_s'] * 1e3:,.0f} ms"
        cells = (
            each["fault"],
            f"{each['cycles']:,}",
            f"{each['acknowledged']:,} {each['unit']}" if each["acknowledged"] else "",
            wrong,
            chance,
            recovery,
        )
        rows.append(f"| {' | '.join(cells)} | {each['seed']} |")
    return "\n".join(rows)


def bound(cycles: int) -> float:
    """Return the chance of a failure a cycle, in per cent, that none in so many cycles rules out at 95 %."""
    return 300.0 / cycles


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def write(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Append what `FaultReport.as_dict` gave to a file, one line of JSON each."""
    with open(path, "a", encoding="utf-8") as file:
        for report in reports:
            file.write(json.dumps(report) + "\n")
