"""Writer: the callback that a RunEngine is given, and the thread that ships what it took.

What is promised:

- `RunWriter` keeps each document in a journal on local disk before it returns; it waits for no
  network, and only a full disk makes it raise.
- Nothing about a document's content is refused here.
- The shipper sends the journal's frames as they are, in order, for ever, with pauses while the
  service is away; memory does not grow with the backlog.
- What another writer left on this host, however it ended, is taken over once and sent: at the start, and
  now and then.
"""

from ._delivery import PATIENCE_S, Delivery, deliver
from ._options import ShippingOptions
from ._status import RunStatus, WriterStatus
from ._target import same_target
from ._writer import CLOSE_TIMEOUT_S, EXIT_TIMEOUT_S, RunWriter

__all__ = [
    "CLOSE_TIMEOUT_S",
    "EXIT_TIMEOUT_S",
    "PATIENCE_S",
    "Delivery",
    "RunStatus",
    "RunWriter",
    "ShippingOptions",
    "WriterStatus",
    "deliver",
    "same_target",
]
