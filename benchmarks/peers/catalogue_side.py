"""Catalogues of very many runs: the same runs for both services, put in by bulk."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flystore.testing.many_runs import documents_of, fill, start_of

SEED = 1
_AT_ONCE = 2000
_INSERT = "INSERT INTO nodes (id, parent, key, structure_family, metadata, specs) VALUES (?, ?, ?, 'container', ?, ?)"


class Tasks:
    """Fills catalogues, and says what is in them."""

    def fill_flystore(self, directory: str, runs: int) -> None:
        """Make a directory that ``flystore serve`` can be given."""
        shutil.rmtree(directory, ignore_errors=True)
        fill(Path(directory), runs, seed=SEED)

    def fill_stock(self, database: str, runs: int) -> None:
        """Put runs into a catalogue that Tiled has made: nodes as TiledWriter makes them, through Tiled's triggers."""
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA synchronous = off")
            for first in range(0, runs, _AT_ONCE):
                numbers = range(first, min(first + _AT_ONCE, runs))
                connection.executemany(_INSERT, (row for number in numbers for row in _nodes(number)))
                connection.commit()
        connection.close()

    def starts(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return start documents of some of the runs."""
        return [start_of(number, seed=SEED) for number in numbers]


def _nodes(number: int) -> Iterator[tuple[Any, ...]]:
    (_, start), (_, descriptor), (_, stop) = documents_of(number, seed=SEED)
    run = 1 + 2 * number
    specs = json.dumps([{"name": "BlueskyRun", "version": "3.0"}])
    yield run, 0, start["uid"], json.dumps({"start": start, "stop": stop}), specs
    stream = {key: value for key, value in descriptor.items() if key not in ("run_start", "name")}
    specs = json.dumps([{"name": "BlueskyEventStream", "version": "3.0"}])
    yield run + 1, run, descriptor["name"], json.dumps(stream), specs
