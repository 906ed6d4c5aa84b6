"""Nodes made and changed by the Tiled protocol: what stock writers do, and people who edit metadata.

One module a topic; what they have in common is in `changing`. Structures and data of nodes that were worked out from
documents are not writable this way (kind ``made-from-documents``).
"""

from .editing import Editing
from .making import Making
from .registering import Registering
from .removing import Removing
from .writing_arrays import WritingArrays
from .writing_rows import WritingRows


class Nodes(Making, Registering, WritingRows, WritingArrays, Editing, Removing):
    """Creates, registers, appends, patches, edits and deletes, one transaction each."""
