"""Children: started, watched and ended; nothing is left behind."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

END_SECONDS = 30.0
LOOK_SECONDS = 0.05
ROOT = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


class Broken(Exception):
    """A row could not be measured; the message says why."""


def compiling_once() -> dict[str, str]:
    """Return this environment, in which Python keeps what it compiled: what pip installs is compiled already."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@contextlib.contextmanager
def child(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as long as the ``with`` block lasts; what it complains of goes to `log`."""
    environment = {**compiling_once(), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **options.pop("env", {})}
    with (
        log.open("ab") as said,
        subprocess.Popen(command, stderr=said, env=environment, cwd=ROOT, **options) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def tail(log: Path, lines: int = 12) -> str:
    """Return the end of what a child said."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, all threads, in seconds."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def memory(pid: int) -> tuple[int, int]:
    """Return resident and anonymous bytes of a process: anonymous is what no file backs."""
    found = {"Rss": 0, "Anonymous": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found["Rss"], found["Anonymous"]


class Watch:
    """Looks at a process twenty times a second, for the most memory that it had.

    Attributes
    ----------
    before, most : (int, int)
        Resident and anonymous bytes at the begin, and the most of each.
    cpu : float
        Processor seconds that it used meanwhile.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.before = self.most = (0, 0)
        self.cpu = 0.0

    def __enter__(self) -> Self:
        self.before = self.most = memory(self._pid)
        self._cpu_before = cpu_seconds(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = cpu_seconds(self._pid) - self._cpu_before
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                resident, anonymous = memory(self._pid)
            except OSError:
                return  # it ended; whoever waits for it will say so
            self.most = max(self.most[0], resident), max(self.most[1], anonymous)
