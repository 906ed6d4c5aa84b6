"""``python -m benchmarks``: measure rows, print them, and keep them as JSON or in the documentation."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .figures import Measure
from .machine import machine
from .processes import ROOT, Broken
from .rows import ABOUT, ROWS
from .suite import QUICK, Sizes, Suite
from .table import report, table, write_between_marks

STOCK_PYTHON = ROOT / "benchmarks" / ".venv" / "bin" / "python"
RECORDED = ROOT.parent / "shared" / "data" / "apstools" / "usaxs.json.gz"
PAGE = ROOT / "docs" / "explanations" / "performance.md"
STOCK = "tiled 0.2.20 and bluesky-tiled-plugins 2.0.12"
EXIT_BROKEN = 1


def arguments_of(command: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    listed = "\n".join(f"  {name:<10} {about}" for name, about in ABOUT.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure flystore beside stock Tiled and beside what the machine can do.",
        epilog=f"rows:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: under two minutes")
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=list(ROWS), help="only these")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds of each party")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--write-docs", action="store_true", help=f"write the tables to docs/explanations/{PAGE.name}")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing; take what --json wrote")
    parser.add_argument("--without-stock", action="store_true", help="leave stock out")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="on the disk to measure; else the temporary one")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep filled catalogues there for the next time")
    parser.add_argument(
        "--recorded",
        type=Path,
        metavar="FILE",
        default=Path(os.environ.get("FLYSTORE_RECORDED", RECORDED)),
        help="recording of real runs; else FLYSTORE_RECORDED, else beside the checkout",
    )
    options = parser.parse_args(command)
    if options.repeats is not None and options.repeats < 1:
        parser.error("--repeats is at least 1")
    return options


def main(command: list[str] | None = None) -> int:
    """Do what the options say; return the exit status."""
    options = arguments_of(command)
    try:
        record = json.loads(options.from_json.read_text()) if options.from_json else measured(options)
        text = report(record, ABOUT)
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n")
        if options.write_docs:
            write_between_marks(PAGE, text)
    except Broken as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return EXIT_BROKEN
    if options.from_json:
        sys.stdout.write(text)
    return EXIT_BROKEN if record["broken"] else 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, telling each row when it is known.

    Raises
    ------
    Broken
        If stock is to be measured and its environment is not there.
    """
    if not options.without_stock and not STOCK_PYTHON.exists():
        raise Broken("stock has no environment yet: make bench makes it. Or leave it out with --without-stock")
    sizes = dataclasses.replace(QUICK if options.quick else Sizes(), **rounds_of(options))
    measures: list[Measure] = []
    broken: dict[str, str] = {}
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="flystore-benchmarks-", dir=options.directory) as directory,
        Suite(
            Path(directory),
            sizes,
            None if options.without_stock else str(STOCK_PYTHON),
            options.recorded if options.recorded.exists() else None,
            options.keep,
        ) as suite,
    ):
        for name in options.rows or ROWS:
            suite.say(f"{name}: {ABOUT[name]}")
            found: list[Measure] = []
            try:
                for measure in ROWS[name](suite):
                    found.append(measure)
            except Broken as error:
                broken[name] = str(error)
                suite.say(f"{name}: could not be measured: {error}")
            measures += found
            if found:
                sys.stdout.write("\n".join(["", *table(found), "", ""]))
                sys.stdout.flush()
        suite.say(f"done, {len(broken)} rows could not be measured: {', '.join(broken) or 'none'}")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "how": f"rounds: {sizes.rounds}, {'quick' if options.quick else 'full'} sizes",
        "seconds": round(time.perf_counter() - began),
        "versions": {"stock": STOCK, "flystore": importlib.metadata.version("flystore")},
        "sizes": dataclasses.asdict(sizes),
        "measures": [measure.record() for measure in measures],
        "broken": broken,
    }


def rounds_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what ``--repeats`` changes of the sizes."""
    if options.repeats is None:
        return {}
    return {
        "rounds": options.repeats,
        "wait_rounds": options.repeats,
        "stock_rounds": min(options.repeats, Sizes.stock_rounds),
        "starts": options.repeats,
    }


if __name__ == "__main__":
    # So that an end from outside takes the children with it, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
