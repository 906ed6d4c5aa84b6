"""Client: runs, streams, arrays and tables of a service, as xarray, numpy, pandas and dask.

What the room promises: looking something up costs one request and no data; reading costs what is
read; rows are put beside each other by event and never by luck; what is missing is marked; and every
failure is a class of `flystore.model.errors`. xarray, pandas and dask are imported where they are
used, not before.
"""

from flystore.model.queries import (
    AccessTags,
    And,
    Comparison,
    Contains,
    Eq,
    FullText,
    In,
    KeyPresent,
    KeysFilter,
    Like,
    Lookup,
    NotEq,
    NotIn,
    Query,
    Specs,
    StructureFamily,
)

from ._array import Array, Frames
from ._catalog import CatalogOfRuns
from ._connect import from_transport, from_uri
from ._container import Container
from ._documents import Documents
from ._follow import Calling, Change, Followed
from ._follow_documents import FollowedDocuments
from ._follow_rows import NewRows
from ._missing import MissingRows
from ._node import Node
from ._other import Other
from ._panda import DoubtfulTimes, PandaCapture
from ._queries import Key
from ._ragged import Ragged
from ._run import Run
from ._stream import Stream
from ._table import Table
from ._verdict import Verdict

__all__ = [
    "AccessTags",
    "And",
    "Array",
    "Calling",
    "CatalogOfRuns",
    "Change",
    "Comparison",
    "Container",
    "Contains",
    "Documents",
    "DoubtfulTimes",
    "Eq",
    "Followed",
    "FollowedDocuments",
    "Frames",
    "FullText",
    "In",
    "Key",
    "KeyPresent",
    "KeysFilter",
    "Like",
    "Lookup",
    "MissingRows",
    "NewRows",
    "Node",
    "NotEq",
    "NotIn",
    "Other",
    "PandaCapture",
    "Query",
    "Ragged",
    "Run",
    "Specs",
    "Stream",
    "StructureFamily",
    "Table",
    "Verdict",
    "from_transport",
    "from_uri",
]
