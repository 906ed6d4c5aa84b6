"""``flystore copy``: a store, to another place or another database."""

import sys
import time
from pathlib import Path

from flystore.embedded import needing_server_parts

_EVERY_S = 2.0


def run_copy(
    source: Path, target: Path, from_catalog: str | None, to_catalog: str | None, to_storage: str | None = None
) -> None:
    """Copy a store, or go on with it, compare, and say what the copy holds."""
    with needing_server_parts("flystore copy"):
        from flystore.service.copying import Place, copy_store
    told: dict[str, int] = {}
    last = [time.monotonic()]

    def tell(what: str, amount: int) -> None:
        told[what] = told.get(what, 0) + amount
        if time.monotonic() - last[0] >= _EVERY_S:
            last[0] = time.monotonic()
            unit = "bytes" if what == "files" else "rows"
            print(f"{what}: {told[what]:,} {unit} …", file=sys.stderr, flush=True)

    made = Place(target, to_catalog, to_storage)
    report = copy_store(Place(source, from_catalog), made, tell=tell)
    rows = sum(table.rows for table in report.tables)
    runs = next(table.rows for table in report.tables if table.table == "runs")
    records = next(table.rows for table in report.tables if table.table == "log")
    done = "was whole before, and is the same" if report.again else "is whole and the same"
    print(
        f"{target}: the copy {done}: {runs} runs, {records} records of the log, {rows} rows in {len(report.tables)} "
        f"tables, {report.files} files of {report.nbytes / 1e6:,.1f} MB, all compared"
    )
