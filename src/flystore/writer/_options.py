"""How documents are sent: the knobs of the shipper, with their defaults."""

from dataclasses import dataclass

MAX_BATCH_BYTES = 3 * 2**20
MODEST_BATCH_BYTES = 2**20
"""Size of a batch towards a service that has not shown yet how quickly it stores one."""
LINGER_S = 0.05
REQUEST_TIMEOUT_S = 30.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True, slots=True)
class ShippingOptions:
    """How documents are sent.

    Attributes
    ----------
    max_batch_bytes : int
        Size of a batch, bytes; a single larger document goes alone. Above `MODEST_BATCH_BYTES` only while batches of
        that size are stored quickly: on a slow link a large one would be lost with a connection again and again.
    linger : float
        Seconds to collect documents before sending, unless someone waits for them. 0 sends at once.
    request_timeout : float
        Seconds without a byte from the service before a request is taken for lost.
    first_pause, longest_pause : float
        Seconds to wait after the first failure, and at most; doubled in between.
    """

    max_batch_bytes: int = MAX_BATCH_BYTES
    linger: float = LINGER_S
    request_timeout: float = REQUEST_TIMEOUT_S
    first_pause: float = FIRST_PAUSE_S
    longest_pause: float = LONGEST_PAUSE_S
