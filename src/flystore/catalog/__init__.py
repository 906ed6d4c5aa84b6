"""The catalogue: nodes, runs, the log and the change feed, in SQLite or PostgreSQL.

Promises: a transaction is stored whole, durably, or not at all; a snapshot is one moment; log
positions are the order of commits; a node is found by its path in one index probe; listing,
newest-first, and search by any scalar metadata key use an index at any size, and answer exactly what
`flystore.model.queries.matches` says. Both databases behave the same: one contract suite says so.
"""

from flystore.model.queries import SortKey

from ._catalog import Catalog
from ._copying import Compared, Source, Target, digest_of_source, opened_source
from ._database import NotAtOnce, shown_address
from ._examine import examine_file, examine_server, others_at, version_at
from ._file import copy_catalog, has_node, make_one_file, problems_in_file, version_of
from ._log import is_as_stored
from ._migrations import SCHEMA, UNFINISHED, Step, steps_from
from ._rows import (
    BY_COLUMNS,
    Committed,
    FeedEntry,
    KeysPage,
    LogRecord,
    Node,
    Observation,
    Page,
    Path,
    Revision,
    Run,
    RunHeard,
    Segment,
)
from ._schema import EDITED
from ._slow import Choose, is_column, problem_of
from ._slowness import Slow, slow_queries
from ._snapshot import Snapshot
from ._transaction import Transaction

__all__ = [
    "BY_COLUMNS",
    "EDITED",
    "SCHEMA",
    "UNFINISHED",
    "Catalog",
    "Choose",
    "Committed",
    "Compared",
    "FeedEntry",
    "KeysPage",
    "LogRecord",
    "Node",
    "NotAtOnce",
    "Observation",
    "Page",
    "Path",
    "Revision",
    "Run",
    "RunHeard",
    "Segment",
    "Slow",
    "Snapshot",
    "SortKey",
    "Source",
    "Step",
    "Target",
    "Transaction",
    "copy_catalog",
    "digest_of_source",
    "examine_file",
    "examine_server",
    "has_node",
    "is_as_stored",
    "is_column",
    "make_one_file",
    "opened_source",
    "others_at",
    "problem_of",
    "problems_in_file",
    "shown_address",
    "slow_queries",
    "steps_from",
    "version_at",
    "version_of",
]
