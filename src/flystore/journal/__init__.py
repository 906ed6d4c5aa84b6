"""Journal: the durable, append-only log of run documents on the acquisition host.

What is promised:

- When `RunLog.append` returns, the document survives the death of the process; after the next group
  sync (default 50 ms, plus one sync), or at once with ``durability="each"``, also a power cut.
- A torn last frame is dropped and reported. A bad frame anywhere else is `Damaged` and names the
  place; what precedes it stays readable and the file is kept.
- What is not acknowledged is never deleted; what is, goes oldest first.
- A full disk is `JournalFull`, never a document dropped; room for stop documents is held in reserve.
- What shall never be sent is moved aside, and only when somebody asks and says why.
- One holder a journal, by a lock that dies with its process; one taker of an orphan, with a higher epoch.

The room knows bytes, and no network; documents only where somebody looks at what lies there.
"""

from ._discard import DISCARDED, discard
from ._home import default_home, network_filesystem
from ._journal import (
    RESERVE_BYTES,
    SEGMENT_BYTES,
    SYNC_INTERVAL_S,
    Durability,
    Journal,
    JournalState,
    has_unacknowledged,
    identity,
    journals,
    orphans,
    remove_spent,
)
from ._lock import is_locked
from ._log import Batch, RunLog
from ._look import Holder, JournaledDocument, JournaledRun, JournalLook, Torn, documents, last_holder, look_at
from ._segment import SegmentHeader, safe_name

__all__ = [
    "DISCARDED",
    "RESERVE_BYTES",
    "SEGMENT_BYTES",
    "SYNC_INTERVAL_S",
    "Batch",
    "Durability",
    "Holder",
    "Journal",
    "JournalLook",
    "JournalState",
    "JournaledDocument",
    "JournaledRun",
    "RunLog",
    "SegmentHeader",
    "Torn",
    "default_home",
    "discard",
    "documents",
    "has_unacknowledged",
    "identity",
    "is_locked",
    "journals",
    "last_holder",
    "look_at",
    "network_filesystem",
    "orphans",
    "remove_spent",
    "safe_name",
]
