"""The figures as a page shows them, and as a terminal does."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .figures import Figure, Measure
from .machine import in_words
from .processes import Broken

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEAD = ("work", "unit", "stock", "flystore", "better by", "beside it", "to reach")
LEFT_OUT = "–"


def report(record: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Return everything as Markdown: when, on what, a table a row, and what could not be measured.

    Parameters
    ----------
    record : mapping
        As ``--json`` writes it.
    about : mapping
        What each row is about, by its name.
    """
    lines = [
        f"Measured {record['date']} on {in_words(record['machine'])}; {record['how']}. "
        f"stock: {record['versions']['stock']}; flystore {record['versions']['flystore']}.",
        "",
        "Each cell is the median of its rounds, and their least and most. *better by* is the median of the rounds' "
        "ratios; *beside it* is what the machine or another program takes for the same, and flystore as a multiple of "
        "it.",
    ]
    measures = [Measure.of_record(one) for one in record["measures"]]
    for row in dict.fromkeys(measure.row for measure in measures):
        lines += ["", f"### {about.get(row, row).rstrip('.')}", ""]
        lines += table([measure for measure in measures if measure.row == row])
    if record["broken"]:
        lines += ["", "Could not be measured:", ""]
        lines += [f"* {row}: {reason.splitlines()[0]}" for row, reason in record["broken"].items()]
    return "\n".join(lines) + "\n"


def table(measures: Iterable[Measure]) -> list[str]:
    """Return the lines of a Markdown table."""
    rows = [HEAD, *(cells(measure) for measure in measures)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEAD))]

    def line(row: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    marks = ["-" * (width - 1) + ":" if 2 <= place <= 4 else "-" * width for place, width in enumerate(widths)]
    return [line(HEAD), line(tuple(marks)), *(line(row) for row in rows[1:])]


def cells(measure: Measure) -> tuple[str, ...]:
    """Return the cells of a line."""
    work = measure.work + (f" ({measure.note})" if measure.note else "")
    gain = measure.gain()
    floors = "; ".join(
        f"{name} {in_short(Figure.of(samples).median)}, {in_short(measure.against(name).median)} ×"
        if measure.flystore
        else f"{name} {in_short(Figure.of(samples).median)}"
        for name, samples in measure.floors.items()
        if samples
    )
    return (
        work,
        measure.unit,
        _spread(measure.stock),
        _spread(measure.flystore),
        f"{in_short(gain.median)} ×" if gain.samples else LEFT_OUT,
        floors or LEFT_OUT,
        measure.reach or LEFT_OUT,
    )


def in_short(value: float) -> str:
    """Return a number with three digits that mean something."""
    if math.isnan(value):
        return LEFT_OUT
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, 2 - math.floor(math.log10(abs(value)))):,.{digits}f}"


def _spread(samples: list[float]) -> str:
    figure = Figure.of(samples)
    if figure.samples <= 1:
        return in_short(figure.median)
    return f"{in_short(figure.median)} ({in_short(figure.least)}–{in_short(figure.most)})"


def write_between_marks(page: Path, text: str) -> None:
    """Replace what a page has between the two marks.

    Raises
    ------
    Broken
        If the marks are not there, or not in order.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Broken(f"{page.name} has no {BEGIN} with {END} after it; the figures go between them")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
