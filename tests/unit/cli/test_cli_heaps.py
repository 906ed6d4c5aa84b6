"""A service with many threads keeps to its memory: what one of them gave back is there for the others.

If these fail, requests that were refused one by one end a service in a small container after some hundreds of them.
"""

import ctypes
import os
import re
import subprocess
import sys

import pytest

from flystore.cli._heaps import HEAPS

PROGRAM = """
import ctypes, sys, threading
from flystore.cli._heaps import keep_few_heaps
if sys.argv[1] == "few":
    assert keep_few_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
everyone = threading.Barrier(12)
def work():
    everyone.wait()
    libc.malloc(ctypes.c_size_t(50_000))
    everyone.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
[each.start() for each in threads]
[each.join() for each in threads]
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/proc/self/fd/1", b"w")))
libc.fflush(None)
"""


WITHOUT_SETTINGS = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}


def heaps(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, env=WITHOUT_SETTINGS
    )
    return len(re.findall("<heap nr=", done.stdout))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no heaps to limit")
def test_threads_share_few_heaps():
    assert 1 <= heaps("few") <= HEAPS
    assert heaps("many") > HEAPS, "without the limit each thread has its own"
