"""Where bytes are kept and how files are reached.

Segments of slow data (Arrow), internal arrays (Zarr v3), and read access to the files that detectors
wrote: by URI, through path maps, only inside the roots that the operator named, checked on the open
descriptor. Nothing here writes to a file that it did not make.
"""

from ._arrays import ArrayStore, block_region
from ._budget import Account, Budget, held, memory_of_this_machine, released, reserve
from ._buffers import (
    MOST_ENTRIES,
    PartStore,
    check_rows,
    names_in,
    opened_rows,
    pack,
    pack_rows,
    pack_table,
    read_parquet,
    read_zip,
    rows_of,
    unpack_untrusted,
)
from ._columns import (
    decode_column,
    decode_header,
    encode_columns,
    file_of_columns,
    is_plain,
    parts_of_file,
    plain_bytes,
    together,
)
from ._file_runs import FileRuns
from ._keep import DirectoryKeep, Keep, Locks
from ._keep_bucket import BucketKeep, BucketPart
from ._limits import human_bytes, require_below
from ._locks import LOCKS_DIRECTORY, FileLocks
from ._near import NearFile, NearNames, NearRoots, WouldWait, reserved_at_once
from ._objects import Bucket
from ._opened_object import OpenedObject, without_waiting
from ._passing import StoredArray, without_sum
from ._roots import FileStream, OpenedFile, PathMap, Roots, read_root, require_root
from ._segments import (
    decode_segment,
    decode_untrusted,
    encode_segment,
    encode_segments,
)
from ._sink import Sink
from ._sums import ArrayCheck
from ._uris import candidate_paths, is_object, is_windows, uri_of_path

__all__ = [
    "LOCKS_DIRECTORY",
    "MOST_ENTRIES",
    "Account",
    "ArrayCheck",
    "ArrayStore",
    "Bucket",
    "BucketKeep",
    "BucketPart",
    "Budget",
    "DirectoryKeep",
    "FileLocks",
    "FileRuns",
    "FileStream",
    "Keep",
    "Locks",
    "NearFile",
    "NearNames",
    "NearRoots",
    "OpenedFile",
    "OpenedObject",
    "PartStore",
    "PathMap",
    "Roots",
    "Sink",
    "StoredArray",
    "WouldWait",
    "block_region",
    "candidate_paths",
    "check_rows",
    "decode_column",
    "decode_header",
    "decode_segment",
    "decode_untrusted",
    "encode_columns",
    "encode_segment",
    "encode_segments",
    "file_of_columns",
    "held",
    "human_bytes",
    "is_object",
    "is_plain",
    "is_windows",
    "memory_of_this_machine",
    "names_in",
    "opened_rows",
    "pack",
    "pack_rows",
    "pack_table",
    "parts_of_file",
    "plain_bytes",
    "read_parquet",
    "read_root",
    "read_zip",
    "released",
    "require_below",
    "require_root",
    "reserve",
    "reserved_at_once",
    "rows_of",
    "together",
    "unpack_untrusted",
    "uri_of_path",
    "without_sum",
    "without_waiting",
]
