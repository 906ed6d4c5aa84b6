"""Several processes that share one socket: who starts them, starts a dead one again, and ends them.

This process answers nothing and keeps no data, so it has little that could fail. The processes know of each other only
by the catalogue. A socket between it and each of them carries the options there and a word back when it answers; its
end tells either side that the other is gone, however it went.
"""

import dataclasses
import logging
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from flystore.model.errors import FlystoreError

from ._logging import log_to_stderr
from ._notify import tell_systemd

if TYPE_CHECKING:
    from ._serve import Ending, ServeOptions

MOST_WORKERS = 64

END_SECONDS = 30
"""How long a worker that was asked to end may take, before it is killed."""

LONGEST_PAUSE = 10.0
"""Before a worker is started again that died each time before it answered; seconds."""

_FIRST_PAUSE = 0.5
_READY = b"r"
_MISTAKE = 2

log = logging.getLogger("flystore.workers")


def supervise(
    options: "ServeOptions", directory: Path, listener: socket.socket, ending: "Ending", ready: Callable[[], None]
) -> None:
    """Run workers until asked to end.

    The first one starts alone: it brings the store up to date, and says what is wrong with the command.

    Raises
    ------
    SystemExit
        If the first one does not start; it has said why.
    """
    log_to_stderr(options.verbose, style=options.log_format, secrets=(str(options.api_key),))
    with _Workers(options, directory, listener) as workers:
        ending.hand_over_to(workers)
        workers.start(1)
        if not workers.answers(1):
            return
        for number in range(2, options.workers + 1):
            workers.start(number)
        for number in range(2, options.workers + 1):
            if not workers.answers(number):
                return
        ready()
        workers.watch()
        tell_systemd("STOPPING=1")


@dataclasses.dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    line: socket.socket
    answers: bool = False
    pause: float = _FIRST_PAUSE


class _Workers:
    def __init__(self, options: "ServeOptions", directory: Path, listener: socket.socket) -> None:
        self._said = pickle.dumps((options, directory))
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._again: dict[int, tuple[float, float]] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ, 0)
        self._ending = False
        self._watching = False

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for worker in self._workers.values():
            worker.process.terminate()
        until = time.monotonic() + END_SECONDS
        for worker in self._workers.values():
            try:
                worker.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.line.close()
        self._selector.close()
        self._bell.close()
        self._rope.close()

    @property
    def should_exit(self) -> bool:
        return self._ending

    @should_exit.setter
    def should_exit(self, asked: bool) -> None:
        """Set by whoever handles the signals."""
        self._ending = asked
        with suppress(OSError):  # it is ended already
            self._rope.send(b".")

    def start(self, number: int, pause: float = _FIRST_PAUSE) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", "from flystore.cli._workers import work; work()"]
                + [str(number), str(theirs.fileno()), str(self._listener.fileno())],
                pass_fds=[theirs.fileno(), self._listener.fileno()],
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
            )
        self._workers[number] = _Worker(process, ours, pause=pause)
        self._selector.register(ours, selectors.EVENT_READ, number)
        try:
            ours.sendall(len(self._said).to_bytes(8, "big") + self._said)
        except OSError:
            log.debug("worker %d ended at once", number)  # its line says so, too

    def answers(self, number: int) -> bool:
        """Return whether a worker answers, once it does; False if the service is to end before."""
        while not self._ending:
            if self._workers[number].answers:
                return True
            self._look(None)
            if number not in self._workers:
                raise SystemExit(_MISTAKE)
        return False

    def watch(self) -> None:
        """Start again who died, until asked to end."""
        self._watching = True
        while not self._ending:
            due = min((when for when, _ in self._again.values()), default=None)
            self._look(None if due is None else max(0.0, due - time.monotonic()))
            for number, (when, pause) in list(self._again.items()):
                if when <= time.monotonic() and not self._ending:
                    del self._again[number]
                    self.start(number, pause)

    def _look(self, seconds: float | None) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data == 0:
                self._bell.recv(64)
            else:
                self._hear(key.data)

    def _hear(self, number: int) -> None:
        worker = self._workers[number]
        try:
            word = worker.line.recv(1)
        except OSError:
            word = b""
        if word:
            worker.answers = True
            return
        self._selector.unregister(worker.line)
        worker.line.close()
        status = worker.process.wait()
        del self._workers[number]
        if self._ending or not self._watching:
            return
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if worker.answers:
            log.error("worker %d (process %d) ended with %s; it is started again", number, worker.process.pid, how)
            self._again[number] = time.monotonic(), _FIRST_PAUSE
        else:
            log.error("worker %d ended with %s before it answered", number, how)
            self._again[number] = time.monotonic() + worker.pause, min(2 * worker.pause, LONGEST_PAUSE)


def work() -> None:
    """Be a worker: the entry of the processes that `supervise` starts."""
    number, line_number, listener_number = map(int, sys.argv[1:4])
    line = socket.socket(fileno=line_number)
    listener = socket.socket(fileno=listener_number)
    size = int.from_bytes(_exactly(line, 8), "big")
    options, directory = pickle.loads(_exactly(line, size))  # of the process that started this one
    Thread(target=_end_with, args=(line,), name="flystore-supervised", daemon=True).start()
    from ._serve import run_worker

    try:
        run_worker(options, directory, listener, number, lambda: line.sendall(_READY))
    except FlystoreError as error:
        print(f"flystore: {error}", file=sys.stderr)
        raise SystemExit(_MISTAKE) from None


def _exactly(line: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        piece = line.recv(size - len(found))
        if not piece:
            raise SystemExit(0)  # who started this one has ended
        found += piece
    return bytes(found)


def _end_with(line: socket.socket) -> None:
    """End this process in its orderly way when the one that started it is gone."""
    try:
        while line.recv(1):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
