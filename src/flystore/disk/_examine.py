"""What a directory is good for, found out by using it as a store or a journal would."""

import errno
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from ._mounts import file_system_of

LEAST_FREE_BYTES = 200 << 20
"""Less is a problem."""

LOW_FREE_BYTES = 5 << 30
"""Less is worth a remark, and so is less than a twentieth of the disk."""

SLOW_SYNC_S = 0.03
_SYNCS = 9
_PROBE = ".doctor-"
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})

State = Literal["ok", "warning", "problem"]


class Remark(NamedTuple):
    """What one check found.

    Attributes
    ----------
    check : str
        What was looked at, in a word or two.
    state : str
        ``ok``; ``warning``: it works, but; ``problem``: it does not work, or will not for long.
    text : str
        A sentence; of what is not ok with what to do.
    """

    check: str
    state: State
    text: str


def examine_directory(directory: Path, what: str, option: str) -> list[Remark]:
    """Write, sync, rename and delete a small file in a directory, as all durable writes do; measure the sync.

    A directory that does not exist yet is judged by the nearest one above it; nothing is made.

    Parameters
    ----------
    what : str
        What it is for: ``store``, ``journal``.
    option : str
        How another one is named: "name another directory".
    """
    directory = Path(os.path.abspath(directory))  # "." says nothing to whoever reads it elsewhere
    place, remarks = directory, []
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        named = f"{directory} cannot be made: {place}" if place != directory else str(place)
        return [Remark(what, "problem", f"{named} is a file and no directory; {option}.")]
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        named = f"{directory} cannot be made: {place}" if place != directory else str(place)
        return [Remark(what, "problem", f"{named} is not writable for this user; change its owner, or {option}.")]
    try:
        seconds = _used(place)
    except OSError as error:
        return [Remark(what, "problem", _refused(error, place, option)), *_free(place, what)]
    there = "is writable" if place == directory else f"will be made in {place}"
    remarks.append(Remark(what, "ok", f"{directory} {there}: a file was written, synced, renamed and removed."))
    said = f"a sync takes {seconds * 1e3:.1f} ms in {place}"
    if seconds > SLOW_SYNC_S:
        fix = "every batch waits for one: choose a faster disk, best an SSD with power-loss protection"
        remarks.append(Remark(f"{what} speed", "warning", f"{said}, and {fix}."))
    else:
        remarks.append(Remark(f"{what} speed", "ok", f"{said}."))
    return [*remarks, *_kind(place, what, option), *_free(place, what)]


def _used(place: Path) -> float:
    """Do what durable writes do; return the median seconds of a sync."""
    name = place / f"{_PROBE}{secrets.token_hex(6)}"
    other = place / f"{name.name}-renamed"
    content = secrets.token_bytes(4096)
    took = []
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for number in range(_SYNCS):
                if os.pwrite(descriptor, content, number * len(content)) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                began = time.perf_counter()
                os.fsync(descriptor)
                took.append(time.perf_counter() - began)
        finally:
            os.close(descriptor)
        name.rename(other)
        above = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)
        if other.read_bytes() != content * _SYNCS:
            raise OSError(errno.EIO, "what was read is not what was written")
    finally:
        for each in (name, other):
            with suppress(OSError):
                each.unlink(missing_ok=True)
    return median(took)


def _refused(error: OSError, place: Path, option: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {place} is full; free space, or {option}."
    if error.errno == errno.EFBIG:
        return f"files in {place} may not grow to 36 kB (a file size limit); raise it: ulimit -f unlimited."
    if error.errno == errno.EROFS:
        return f"{place} is mounted read-only; mount it for writing, or {option}."
    return f"{place} cannot be written ({error.strerror or error}); look at the disk, or {option}."


def _kind(place: Path, what: str, option: str) -> list[Remark]:
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
    except OSError:
        return []
    kind = file_system_of(os.path.realpath(place), mounts)
    if kind in _IN_MEMORY:
        text = f"{place} is in memory ({kind}) and gone after a restart of the machine; {option}."
        return [Remark(f"{what} disk", "warning", text)]
    return []


def _free(place: Path, what: str) -> list[Remark]:
    found = os.statvfs(place)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    unit, name = (1e9, "GB") if size >= 1e10 else (1e6, "MB")
    said = f"{free / unit:,.1f} of {size / unit:,.1f} {name} are free at {place}"
    if free < LEAST_FREE_BYTES:
        return [Remark(f"{what} space", "problem", f"{said}; free space before anything is written there.")]
    if free < LOW_FREE_BYTES or free < size / 20:
        return [Remark(f"{what} space", "warning", f"{said}; plan for more.")]
    if found.f_files and found.f_favail < 10_000:
        return [Remark(f"{what} space", "problem", f"only {found.f_favail} more files fit into {place}; free inodes.")]
    return [Remark(f"{what} space", "ok", f"{said}.")]
