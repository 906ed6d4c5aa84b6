"""Readers: what the files of detectors hold, by event, straight from the files.

A reader answers how far its files can be read (`probe`), which events were written (`present`), and gives
any part of any events (`read`). Files are opened read-only and inside the read roots only, links in HDF5
files included; they are never mapped into memory and never changed. What was not written, or cannot be
read, is an error in words and never fill values.
"""

from ._codecs import decodable_filters
from ._h5file import without_plugins
from ._hdf5 import SHORT_BYTES
from ._reader import EventReader, open_reader
from ._registered import ArrayProbe, ArrayReader, open_registered
from ._registry import OPENERS, is_readable
from ._short import read_short
from ._source import EventFiles, Probe, Resource, ResourceProbe, RowSource
from ._stored import Chunked
from ._template import FileTemplate
from ._tree import HDF5, FileNode, describe, read_text

__all__ = [
    "HDF5",
    "OPENERS",
    "SHORT_BYTES",
    "ArrayProbe",
    "ArrayReader",
    "Chunked",
    "EventFiles",
    "EventReader",
    "FileNode",
    "FileTemplate",
    "Probe",
    "Resource",
    "ResourceProbe",
    "RowSource",
    "decodable_filters",
    "describe",
    "is_readable",
    "open_reader",
    "open_registered",
    "read_short",
    "read_text",
    "without_plugins",
]
