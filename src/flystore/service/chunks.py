"""What whole chunks of an array that the service keeps take, however small the part of them that is asked for."""

import math

from flystore.model.structures import ArrayStructure
from flystore.storage import reserve

_AT_ONCE = 10  # chunks that zarr works at concurrently


def reserve_chunks(structure: ArrayStructure, path: tuple[str, ...]) -> None:
    """Reserve the memory of the chunks that are in work at once, as stored and as decoded.

    Raises
    ------
    TooLarge, Unavailable
        If there is not so much.
    """
    chunk = structure.numpy_dtype.itemsize * math.prod(max(lengths, default=1) for lengths in structure.chunks)
    count = math.prod(len(lengths) for lengths in structure.chunks)
    reserve(2 * chunk * min(count, _AT_ONCE), f"the chunks of /{'/'.join(path)}")
