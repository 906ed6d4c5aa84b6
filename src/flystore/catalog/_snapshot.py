"""A consistent view of the catalogue."""

from ._browse import BrowseReads
from ._consistency import ConsistencyReads
from ._database import Session
from ._log import LogReads
from ._runs import RunReads
from ._slow import SegmentReads


class Snapshot(ConsistencyReads, BrowseReads, LogReads, RunReads, SegmentReads):
    """Everything that can be read, as of one moment; valid within ``with catalog.read()``.

    Reads of one snapshot never contradict each other, whatever is written meanwhile. Keep it short:
    do not send bytes to a client or open files while it lasts.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
