"""Verdicts: what the documents say, met with what was found in the files."""

from typing import Any

from flystore.catalog import Catalog, Run, Snapshot
from flystore.model.errors import NotFound
from flystore.projection import RunState, verdict

from .probing import Prober

LOOK_SECONDS = 5.0
"""How long the answer to a stop document waits for the files to be looked at."""


class Verdicts:
    pass
