"""Failing system calls from outside, by strace: die at the N-th write, or have the N-th sync fail.

The process is not changed and does not know. strace counts for each call and each thread by itself, so what is
swept has to do its work in one thread.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .forkserver import Child
from .process import FaultyService

WRITING = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "ftruncate")
"""Calls that change what is on disk. (The ledger uses another one.)"""

ATTACH_S = 60.0
_CALL = re.compile(r"^(?:[0-9]+ +)?([a-z0-9_]+)\(", re.MULTILINE)


def is_available() -> bool:
    """Return whether strace is installed and may attach to a process of this user."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", os.devnull, "-e", "trace=none", "true"], capture_output=True, check=False)
    return tried.returncode == 0


@contextmanager
def traced(
    child: Child | FaultyService, output: Path, inject: str | None = None, *, also: Sequence[str] = ()
) -> Iterator[None]:
    """Trace the writing calls of a process; a `Child` is one that stops itself (SIGSTOP), and is let go on.

    Parameters
    ----------
    also : sequence of str
        Further calls to trace.
    inject : str, optional
        As strace takes it: ``"fsync:error=EIO:when=3"``.
    """
    if isinstance(child, Child):
        _wait_stopped(child.pid)  # or it would be told to go on before it has stopped, and never again
    calls = ",".join((*WRITING, *also))
    command = ["strace", "-f", "-y", "-qq", "-o", str(output), "-p", str(child.pid), "-e", f"trace={calls}"]
    if inject is not None:
        command += ["-e", f"inject={inject}"]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait_attached(child.pid, tracer)
        os.kill(child.pid, signal.SIGCONT)
        yield
    finally:
        tracer.terminate()
        tracer.wait(ATTACH_S)


def _wait_stopped(pid: int) -> None:
    until = time.monotonic() + ATTACH_S
    while "State:\tT" not in Path(f"/proc/{pid}/status").read_text():
        if time.monotonic() > until:
            raise RuntimeError(f"process {pid} does not stop itself")
        time.sleep(0.001)


def _wait_attached(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    status = Path(f"/proc/{pid}/status")
    until = time.monotonic() + ATTACH_S
    while "TracerPid:\t0\n" in status.read_text():
        if tracer.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"strace could not attach to process {pid}")
        time.sleep(0.002)


def calls_in(output: Path) -> Counter[str]:
    """Return how often each call was made, from what strace wrote."""
    return Counter(name for name in _CALL.findall(output.read_text(errors="replace")) if name in WRITING)
