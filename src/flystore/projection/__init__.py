"""The projection: from the documents of a run to its tree, as a pure reducer.

``advance(state, documents)`` gives the next state and the changes: nodes to put, rows to append. It never raises on
the content of a document and never looks at a file or a clock. The result does not depend on how the documents were
cut into batches. The tree is that of TiledWriter 2.0.12; rows are placed by the frame map.
"""

from ._advance import advance
from ._arrays import array_of_column, ragged_of_column
from ._changes import AppendRows, Change, PutNode
from ._columns import cast_column
from ._external import ExternalArray, Resource, announced_structure, assets, data_source, is_aligned
from ._frame_map import FrameMap, RowRun, Rows
from ._frames import stream_rows
from ._names import segment, unescape
from ._notes import Note
from ._state import RunState
from ._verdict import KeyVerdict, StreamVerdict, Verdict, line, verdict

__all__ = [
    "AppendRows",
    "Change",
    "ExternalArray",
    "FrameMap",
    "KeyVerdict",
    "Note",
    "PutNode",
    "Resource",
    "RowRun",
    "Rows",
    "RunState",
    "StreamVerdict",
    "Verdict",
    "advance",
    "announced_structure",
    "array_of_column",
    "assets",
    "cast_column",
    "data_source",
    "is_aligned",
    "line",
    "ragged_of_column",
    "segment",
    "stream_rows",
    "unescape",
    "verdict",
]
