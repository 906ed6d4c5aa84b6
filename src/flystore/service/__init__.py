"""Use cases: ingest, browse, read, write, documents, verdicts. No HTTP words in here."""

from .arrays import ArrayBody
from .browse import EntryPage
from .changed import QUIET_S
from .entries import Entry, Place
from .ingest import Ack
from .inside import INLINED_DEPTH
from .limits import Limits
from .requests import MetadataPatch, NewNode, data_source_from_wire, specs_from_wire, tags_from_wire
from .service import Service
from .table_bodies import TableBody
from .validating import Ignored, Validation

__all__ = [
    "INLINED_DEPTH",
    "QUIET_S",
    "Ack",
    "ArrayBody",
    "Entry",
    "EntryPage",
    "Ignored",
    "Limits",
    "MetadataPatch",
    "NewNode",
    "Place",
    "Service",
    "TableBody",
    "Validation",
    "data_source_from_wire",
    "specs_from_wire",
    "tags_from_wire",
]
