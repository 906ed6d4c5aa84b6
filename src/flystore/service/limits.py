"""What one request may cost."""

import msgspec

MIB = 1 << 20


class Limits(msgspec.Struct, frozen=True):
    """Exceeding any of these is a 4xx with kind ``too-large``.

    Attributes
    ----------
    response_bytes : int
        Decoded size of an array or table in one answer. Stock clients stay below 100 MiB.
    body_bytes : int
        Size of a posted body of data or documents.
    json_bytes : int
        Size of a posted body of metadata.
    inflated_bytes : int
        Size of a posted Arrow body after decompression.
    batch_documents : int
        Documents in one ingest batch.
    silence_seconds : float
        An open run not heard of for so long is shown as interrupted.
    """

    response_bytes: int = 300 * MIB
    body_bytes: int = 256 * MIB
    json_bytes: int = 64 * MIB
    inflated_bytes: int = 512 * MIB
    batch_documents: int = 100_000
    silence_seconds: float = 600.0
