"""A process with everything imported, from which test processes are forked: a tenth of a second instead of a whole.

It has one thread and no state. It is asked over a socket to fork a process of a role (`roles`), and to
collect one that has ended. When the test goes away, it ends, and its processes with it.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from ._messages import Inbox

_PR_SET_PDEATHSIG = 1
_ASK_BYTES = 1 << 16

PATIENCE_S = 100.0
"""Seconds until a process that says nothing or does not end is taken for one that hangs."""


class Child:
    """A process that was forked for a test.

    Attributes
    ----------
    pid : int
    status : int or None
        As `subprocess.Popen.returncode`, once it was collected: negative is the signal that killed it.
    """

    def __init__(self, server: "ForkServer", pid: int, inbox: Inbox, log: Path) -> None:
        self.pid = pid
        self.status: int | None = None
        self.log = log
        self._server = server
        self._inbox = inbox
        self._handle = os.pidfd_open(pid)

    def message(self, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Return what the process says next.

        Raises
        ------
        EOFError
            If it has ended; with the end of its log.
        TimeoutError
        """
        found = self._inbox.next(timeout)
        if found is None:
            raise EOFError(f"process {self.pid} has ended; it last said:\n{self.log_tail()}")
        return found

    def until(self, key: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Return the next message that has `key`, passing over others."""
        while True:
            found = self.message(timeout)
            if key in found:
                return found

    @property
    def alive(self) -> bool:
        return self.status is None and not _ended(self._handle, 0)

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended already gets none."""
        if self.status is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> int:
        """Kill it and wait for its end."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Return its status once it has ended.

        Raises
        ------
        TimeoutError
            If it has not within `timeout` seconds; it is killed then.
        """
        if self.status is None:
            late = not _ended(self._handle, timeout)
            if late:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            self.status = self._server.collect(self.pid)
            os.close(self._handle)
            self._inbox.close()
            if late:
                raise TimeoutError(f"process {self.pid} did not end in {timeout:g} s:\n{self.log_tail()}")
        return self.status

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


def _ended(handle: int, timeout: float) -> bool:
    return bool(select.select([handle], [], [], timeout)[0])


class ForkServer:
    """Starts test processes. Use it as a context manager; none of them outlives it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def spawn(self, role: str, options: dict[str, Any], *, log: Path, environment: dict[str, str]) -> Child:
        """Fork a process that plays `role`, a function of `roles`, and writes its errors to `log`."""
        reading, writing = os.pipe()
        try:
            ask = {"role": role, "options": options, "log": str(log), "environment": environment}
            socket.send_fds(self._socket, [json.dumps(ask).encode()], [writing])
        finally:
            os.close(writing)
        return Child(self, int(self._answer()), Inbox(reading), log)

    def collect(self, pid: int) -> int:
        self._socket.send(json.dumps({"collect": pid}).encode())
        return int(self._answer())

    def _answer(self) -> bytes:
        answer = self._socket.recv(64)
        if not answer:
            raise EOFError("the fork server has ended")
        return answer

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- in the fork server -----------------------------------------------------------------------------------


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(asked: socket.socket) -> None:
    from . import roles

    roles.import_everything()
    # What is there by now stays: a full collection in a child would look at all of it, a tenth of a second at a moment
    # that a test has other plans for.
    gc.collect()
    gc.freeze()
    while True:
        data, descriptors, _, _ = socket.recv_fds(asked, _ASK_BYTES, 1)
        if not data:
            return
        ask = json.loads(data)
        if "collect" in ask:
            _, status = os.waitpid(ask["collect"], 0)
            asked.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            asked.close()
            _play(ask, descriptors[0])
        os.close(descriptors[0])
        asked.send(str(pid).encode())


def _play(ask: dict[str, Any], output: int) -> None:
    """Be a test process; never returns."""
    from . import roles

    status = 1
    try:
        die_with_parent()
        log = os.open(ask["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(log, 2)
        os.close(output)
        os.close(log)
        os.environ.update(ask["environment"])
        status = roles.play(ask["role"], ask["options"])
    except BaseException:  # noqa: BLE001 - written down; there is nobody above to catch it
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def main(descriptor: int) -> None:
    """Be the fork server, asked over the socket with this number."""
    die_with_parent()
    with socket.socket(fileno=descriptor) as asked:
        _serve(asked)
