"""``flystore serve`` in a box of memory: a process that is killed if it takes more than it was given.

The box is a control group where this process may make one (version 1 or 2); elsewhere only the most memory that the
process ever had is known, and a test looks at that.
"""

import contextlib
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from .broken import _Patch, apply, variant

KEY = "box-key"
START_S = 60.0

_GROUPS = Path("/sys/fs/cgroup")
_READY = re.compile(r"flystore is ready at (http://\S+)")


class BoxedService:
    """The service in a process of its own, with at most `memory_bytes` of memory.

    Parameters
    ----------
    directory : Path
        Of the store; made if it does not exist.
    read : sequence of Path
        Read roots.
    memory_bytes : int
        Of the box.
    limits : sequence of str
        As ``--limit`` takes them.
    variants : sequence of str
        Names of broken variants.

    Attributes
    ----------
    url, key
    """

    def __init__(
        self,
        directory: Path,
        read: Sequence[Path] = (),
        *,
        memory_bytes: int = 512 << 20,
        limits: Sequence[str] = (),
        variants: Sequence[str] = (),
    ) -> None:
        self.key = KEY
        self.url = ""
        self._log = directory.with_suffix(".log")
        self._group = _control_group(memory_bytes)
        options = [f"--read={root}" for root in read] + [f"--limit={limit}" for limit in limits]
        self._command = [sys.executable, "-W", "ignore", "-m", __name__, str(self._group or "-"), "serve"]
        self._command += [str(directory), "--port=0", f"--api-key={KEY}", *options]
        self._variants = variants
        self._process: Any = None

    @property
    def boxed(self) -> bool:
        """Whether there is a box, and not only a look at what was taken."""
        return self._group is not None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process ever had."""
        return _status(self.pid, "VmHWM") << 10

    @property
    def sockets(self) -> int:
        """How many sockets the process has open; its files are its own affair."""
        found = 0
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found += os.readlink(descriptor).startswith("socket:")
        return found

    @property
    def bytes_read(self) -> int:
        """What the process has read from files so far."""
        text = Path(f"/proc/{self.pid}/io").read_text()
        return int(text.split("rchar:")[1].split()[0])

    @property
    def log(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLYSTORE_")}
        environment["FLYSTORE_BROKEN"] = ",".join(self._variants)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        line = self._process.stdout.readline()
        ready = _READY.match(line)
        if ready is None:
            self.__exit__()
            raise RuntimeError(f"the service did not start: {line!r}\n{self.log[-2000:]}")
        self.url = ready[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.rmdir()


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0])


def _control_group(memory_bytes: int) -> Path | None:
    """Make a control group with that limit; None where that cannot be done."""
    name = f"flystore-box-{os.getpid()}-{secrets.token_hex(4)}"
    for parent, limit in ((_GROUPS / "memory", "memory.limit_in_bytes"), (_GROUPS, "memory.max")):
        place = parent / name
        try:
            place.mkdir()
        except OSError:
            continue
        try:
            (place / limit).write_text(str(memory_bytes))
            return place
        except OSError:
            place.rmdir()
    return None


# --- what the tests must be able to find ---------------------------------------------------------------


@variant("no-budget")
def _no_budget() -> list[_Patch]:
    """Nothing counts memory, and no request is too large."""
    from flystore.http import negotiation
    from flystore.readers import _hdf5, _images, _npy, _registered, _text
    from flystore.service import arrays, chunks, columns, ingest
    from flystore.storage import _arrays, _segments

    @contextlib.contextmanager
    def held(nbytes: int, what: str) -> Iterator[None]:
        yield

    def nothing(*_: object) -> None:
        return None

    patches = [_Patch(room, "reserve", nothing) for room in (negotiation, arrays, chunks, columns, ingest, _segments)]
    patches += [_Patch(room, "held", held) for room in (_hdf5, _images, _npy, _text)]
    patches += [
        _Patch(room, "require_below", nothing)
        for room in (_hdf5, _images, _npy, _text, _registered, _arrays, _segments)
    ]
    return [*patches, _Patch(arrays.Arrays, "_require_small", nothing)]


@variant("no-containment")
def _no_containment() -> list[_Patch]:
    """Every file is inside the read roots."""
    from flystore.storage import Roots

    return [_Patch(Roots, "_contains", lambda self, real: True)]


@variant("check-then-open")
def _check_then_open() -> list[_Patch]:
    """The name is checked, and whatever it then leads to is read."""
    from flystore.storage import Roots

    return [_Patch(Roots, "_checked", lambda self, fd, real, status, uri: real)]


@variant("no-patience")
def _no_patience() -> list[_Patch]:
    """Connections may take as long as they like."""
    from flystore.http import connections

    return [_Patch(connections._Limited, "_begin_head", lambda self: None)]


def main() -> None:
    """Go into the control group, break what is to be broken, and be the command."""
    group, *arguments = sys.argv[1:]
    if group != "-":
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    apply(*filter(None, os.environ.get("FLYSTORE_BROKEN", "").split(",")))
    os.environ.pop("FLYSTORE_BROKEN", None)
    sys.argv[1:] = arguments
    from flystore.cli import main as command

    command()


if __name__ == "__main__":
    # As the module that the variants are registered from, not a second time as __main__.
    from flystore.testing.faults.box import main as box_main

    box_main()
