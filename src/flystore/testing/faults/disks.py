"""Disks that fail as they really do: one whose power is cut, one that is small, one that lies about its syncs.

The power is cut by copying the file behind a loop device while the process that writes is stopped: the copy has what
the kernel had sent to the disk by then, and nothing of what it only held in memory. A copy made without stopping the
process would be of no moment at all. Everything here needs root and tools of Linux; `missing` says which are not there.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STOP_S = 60.0
"""Seconds a process may take until all its threads stand still."""

_MEMORY = Path("/dev/shm")
_LIES = """
#define _GNU_SOURCE
#include <sys/types.h>

int fsync(int descriptor) { (void)descriptor; return 0; }
int fdatasync(int descriptor) { (void)descriptor; return 0; }
int syncfs(int descriptor) { (void)descriptor; return 0; }
void sync(void) {}
int sync_file_range(int descriptor, off_t offset, off_t nbytes, unsigned int flags) {
    (void)descriptor; (void)offset; (void)nbytes; (void)flags;
    return 0;
}
"""


class NoDisk(Exception):
    """The machine does not let us make the disk; says why."""


def missing(*tools: str) -> str | None:
    """Return why disks of ours cannot be made, or which tool is not there; None if nothing is missing."""
    if os.geteuid() != 0:
        return "mounting a disk needs root"
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise NoDisk(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


# --- a disk whose power is cut ---------------------------------------------------------------------------------


class LoopDisk:
    """An ext4 file system in a file; made by `loop_disk`.

    Attributes
    ----------
    path : Path
        Where it is mounted.
    """

    def __init__(self, image: Path, path: Path) -> None:
        self.path = path
        self._image = image

    @contextmanager
    def after_power_cut(self, scratch: Path) -> Iterator["LoopDisk"]:
        """Give the disk as it would come back now; what was not synced is mostly gone.

        Whoever writes to it must be stopped, see `standing_still`.
        """
        image = _fresh(scratch, "cut")
        before = -1
        while before != (before := self._written()):  # the kernel's own write-back would make it a mix of two moments
            _copy(self._image, image)
        with _mounted(image, scratch / image.stem) as disk:
            yield disk

    def _written(self) -> int:
        """Return how much was written to the device, in sectors."""
        for device in Path("/sys/block").glob("loop*"):
            with suppress(OSError):  # no file behind it, or not any more
                if (device / "loop" / "backing_file").read_text().strip() == str(self._image):
                    return int((device / "stat").read_text().split()[6])
        raise NoDisk(f"there is no loop device of {self._image}")


@contextmanager
def loop_disk(scratch: Path, megabytes: int = 64) -> Iterator[LoopDisk]:
    """Make a disk that keeps what is not synced in memory for five minutes.

    Raises
    ------
    NoDisk
        If this machine mounts nothing for us.
    """
    image = _fresh(scratch, "disk")
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    try:
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", str(image))
        with _mounted(image, scratch / image.stem) as disk:
            yield disk
    finally:
        image.unlink(missing_ok=True)


def _fresh(scratch: Path, name: str) -> Path:
    """Return a path for an image that is not there; in memory, since it is copied with each cut."""
    place = _MEMORY if _MEMORY.is_dir() else scratch
    number = 0
    while (image := place / f"flystore-{os.getpid()}-{name}{number}.ext4").exists():
        number += 1
    return image


@contextmanager
def _mounted(image: Path, path: Path) -> Iterator[LoopDisk]:
    path.mkdir(exist_ok=True)
    try:
        _run("mount", "-o", "loop,commit=300,noatime", str(image), str(path))
        try:
            yield LoopDisk(image, path)
        finally:
            _unmount(path)
    finally:
        image.unlink(missing_ok=True)
        path.rmdir()


def _unmount(path: Path) -> None:
    until = time.monotonic() + STOP_S
    while True:
        try:
            _run("umount", str(path))
            return
        except NoDisk:  # somebody still looks: a process that is about to end, or one that goes through all disks
            if time.monotonic() > until:
                _run("umount", "--lazy", str(path))
                raise
            time.sleep(0.05)


def _copy(source: Path, target: Path) -> None:
    """Copy a file with its holes: most of a disk is empty."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        end, at = os.fstat(reading.fileno()).st_size, 0
        writing.truncate(end)
        while at < end:
            try:
                start = os.lseek(reading.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            at = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
            os.lseek(writing.fileno(), start, os.SEEK_SET)
            while start < at:
                start += os.sendfile(writing.fileno(), reading.fileno(), start, at - start)


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Stop all threads of a process for as long as the block lasts.

    A thread that waits for the disk comes to its stop when the disk has answered.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + STOP_S
        while not _all_stopped(pid):
            if time.monotonic() > until:
                raise TimeoutError(f"process {pid} does not stop")
            time.sleep(0.0002)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _all_stopped(pid: int) -> bool:
    """Return whether every thread of a process stands still."""
    try:
        stats = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # a thread that was about to end has ended
        return False
    # The name in brackets may hold anything; the state follows the last bracket.
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


# --- a small disk ----------------------------------------------------------------------------------------------


class SmallDisk:
    """A file system of a few megabytes in memory; made by `small_disk`.

    Attributes
    ----------
    path : Path
        Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / ".ballast"

    def free(self) -> int:
        """Return how much room is left, bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int) -> None:
        """Leave only so many bytes free."""
        wanted = self.free() - leave
        if wanted > 0:
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, wanted)
            finally:
                os.close(descriptor)

    def empty(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a small file system at `path`, which is made.

    Raises
    ------
    NoDisk
        If this machine mounts nothing for us.
    """
    path.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "flystore-faults", str(path))
    try:
        yield SmallDisk(path)
    finally:
        _unmount(path)


# --- a disk that lies ------------------------------------------------------------------------------------------


def lying_library(scratch: Path) -> Path:
    """Return a library that makes syncs do nothing and call it a success; for ``LD_PRELOAD``.

    Raises
    ------
    NoDisk
        If there is no compiler.
    """
    source, library = scratch / "lying_sync.c", scratch / "lying_sync.so"
    source.write_text(_LIES, encoding="ascii")
    _run("gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source))
    return library
