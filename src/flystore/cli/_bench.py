"""``flystore bench writer``: what keeping documents costs the plan on this host."""

import json
import logging
import platform
import signal
import sys
import time
from typing import Any

from flystore.writer.bench import SCENARIOS, BenchOptions, Figures, Row, measure

HEAD = (
    f"{'scenario':<10}{'asked':>8}{'events/s':>10}{'p50':>8}{'p99':>8}{'p99.9':>9}{'max':>9}{'own max':>9}"
    f"{'write p50':>11}{'p99':>7}{'max':>8}{'stored/s':>10}{'waiting':>10}{'drained':>9}{'memory':>9}"
)
_LEGEND = """
p50 to max: microseconds of a call of RunWriter with an event of 20 columns; readable: until it can be read back.
own max: without what the call waited for a processor, which other programs had. What a hypervisor takes is in it:
machine: calls of 15 µs that only compute. A worst call that is no longer than theirs is the machine's.
write: a plain write of the same bytes, made between the events.{nothing}
stored/s and waiting: documents acknowledged by the service, and those that were not at the end.
drained: documents acknowledged for each that was made meanwhile. memory: growth of this process."""


def run_bench(options: BenchOptions, as_json: bool) -> None:
    """Measure and print, a row as soon as it is known."""
    # So that an end from outside, too, takes the service and the journals away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # That a service cannot be reached is no news here.
    logging.getLogger("flystore").setLevel(logging.CRITICAL)
    rows = []
    if not as_json:
        print(_machine_in_words(), flush=True)
        for name in options.scenarios:
            print(f"  {name}: {SCENARIOS.get(name, '')}")
        print(HEAD, flush=True)
    for row in measure(options):
        rows.append(row)
        print(json.dumps(_record(row)) if as_json else _line(row), flush=True)
    if not as_json and rows:
        print(_LEGEND.format(nothing=_nothing(rows)))


def _machine_in_words() -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.platform(terse=True)}, Python {platform.python_version()}"


def _line(row: Row) -> str:
    figures, write = row.callback, row.write
    asked = f"{row.rate:.0f}/s" if row.rate else "full"
    drained = "" if row.drained is None else f"{row.drained:.1f} ×"
    return (
        f"{row.scenario:<10}{asked:>8}{row.reached:>10.0f}{figures.p50:>8.1f}{figures.p99:>8.0f}{figures.p999:>9.0f}"
        f"{figures.worst:>9.0f}{figures.worst_own:>9.0f}{_or_none(write.p50, 11, 1)}{_or_none(write.p99, 7)}"
        f"{_or_none(write.worst, 8)}{row.stored:>10.0f}{row.backlog:>10}{drained:>9}{row.grown_bytes / 2**20:>6.1f} MB"
    )


def _nothing(rows: list[Row]) -> str:
    """Return a sentence on the fastest call there can be; none where it was not measured."""
    found = [row.nothing.p50 for row in rows if row.nothing.calls]
    return f" A call that does nothing took {min(found):.2f} µs (p50)." if found else ""


def _or_none(value: float, width: int, digits: int = 0) -> str:
    return f"{value:>{width}.{digits}f}" if value == value else " " * (width - 1) + "–"


def _record(row: Row) -> dict[str, Any]:
    record = row._asdict()
    for name, value in row._asdict().items():
        if isinstance(value, Figures):
            record[name] = {key: number if number == number else None for key, number in value._asdict().items()}
    return record


__all__ = ["run_bench"]
