"""Use cases: ingest, browse, read, write, documents, verdicts. No HTTP words in here."""

from .browse import EntryPage
from .entries import Entry
from .ingest import Ack
from .limits import Limits
from .requests import MetadataPatch, NewNode, data_source_from_wire, specs_from_wire
from .service import Service

__all__ = [
    "Ack",
    "Entry",
    "EntryPage",
    "Limits",
    "MetadataPatch",
    "NewNode",
    "Service",
    "data_source_from_wire",
    "specs_from_wire",
]
