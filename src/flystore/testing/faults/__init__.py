"""Fault harness: processes that are killed, links that are cut, and a ledger and a model to compare with.

A test gives documents (`load`) to real processes (`process`), breaks something while it writes down in a ledger
what was sent and acknowledged, and then has the checker compare ledger and store, on disk and through the API.
Each test must fail with a broken variant (`broken`). Nothing here is imported at run time.
"""

from .acquisition import Acquisition
from .broken import broken
from .checker import (
    FaultFound,
    Findings,
    check_api,
    check_disk,
    check_documents,
    content_of,
    stored_documents,
    stored_upto,
)
from .forkserver import Child, ForkServer
from .ledger import Known, Ledger
from .load import Load
from .points import names_in_source
from .process import KEY, QUICK_WRITER, FaultyService, FaultyWriter
from .proxy import Proxy
from .recording import RecordingTransport
from .report import FaultReport

__all__ = [
    "KEY",
    "QUICK_WRITER",
    "Acquisition",
    "Child",
    "FaultFound",
    "FaultReport",
    "FaultyService",
    "FaultyWriter",
    "Findings",
    "ForkServer",
    "Known",
    "Ledger",
    "Load",
    "Proxy",
    "RecordingTransport",
    "broken",
    "check_api",
    "check_disk",
    "check_documents",
    "content_of",
    "names_in_source",
    "stored_documents",
    "stored_upto",
]
