"""How many heaps the C library keeps: few, so that what one thread gave back serves another.

glibc gives up to eight heaps a processor to threads, and keeps in each what was freed there. Forty worker threads that
each once held a large request keep so much of it that a service with a budget of a third of its memory outgrew the
whole: 500 MB with a budget of 170 MB, against 270 MB with two heaps, for 2,000 hostile requests, 2026-11-22.
"""

import ctypes

HEAPS = 2
"""For all threads together."""

_M_ARENA_MAX = -8  # of <malloc.h>


def keep_few_heaps() -> bool:
    """Limit the heaps of this process; return whether the C library knows how. Call it before threads start."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, which has no such heaps
        return False
    return bool(mallopt(_M_ARENA_MAX, HEAPS))
