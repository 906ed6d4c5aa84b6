"""Programs of one side that do what they are told: writers, readers, other users, what loads the machine.

Each is a process of its own, with the Python of its side: what stock brings is not in the way of flystore, and what a
process has imported and compiled stays from round to round.
"""

import contextlib
import json
import select
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from .processes import Broken, child, tail

ANSWER_SECONDS = 900.0


class Worker:
    """One such program; see `benchmarks.peers.worker` for the other end."""

    def __init__(self, process: Popen[bytes], name: str, log: Path) -> None:
        self._process = process
        self._name = name
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, task: str, **arguments: Any) -> Any:
        """Do a task and return what came out.

        Raises
        ------
        Broken
            If the task failed, or the worker ended.
        """
        self.begin(task, **arguments)
        return self.result(task)

    def begin(self, task: str, **arguments: Any) -> None:
        """Begin a task; `result` waits for it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"task": task, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Broken(f"the worker of {self._name} ended:\n{tail(self._log)}") from error

    def result(self, task: str, within: float = ANSWER_SECONDS) -> Any:
        """Return what came out of the task that was begun, at most `within` seconds from now."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], within)[0]:
            raise Broken(f"{task} of {self._name} took longer than {within:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Broken(f"the worker of {self._name} ended during {task}:\n{tail(self._log)}")
        answer = json.loads(line)
        if "error" in answer:
            raise Broken(f"{task} of {self._name} failed: {answer['error']}")
        return answer["result"]


@contextlib.contextmanager
def worker(python: str, side: str, log: Path) -> Iterator[Worker]:
    """Run a worker as long as the ``with`` block lasts.

    Parameters
    ----------
    python : str
        The interpreter of its environment.
    side : str
        A module of `benchmarks.peers` that has ``Tasks``.
    log : Path
        File to which its warnings go.
    """
    command = [python, "-m", "benchmarks.peers.worker", side]
    with child(command, log, stdin=PIPE, stdout=PIPE) as process:
        yield Worker(process, side, log)
        assert process.stdin is not None
        process.stdin.close()
