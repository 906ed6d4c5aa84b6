"""Where journals live, and what kind of disk that is."""

import os
from pathlib import Path

from flystore.disk import make_directory
from flystore.model.errors import Misconfigured

_NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs"}
    | {"panfs", "orangefs", "pvfs2", "glusterfs", "9p", "virtiofs", "davfs"}
)
_NETWORK_FUSE = (
    "sshfs",
    "gluster",
    "ceph",
    "s3",
    "rclone",
    "gcs",
    "davfs",
    "cvmfs",
    "beegfs",
    "juice",
    "nfs",
)


def default_home() -> Path:
    """Return the directory in which this user's journals lie on this host.

    ``$XDG_STATE_HOME/flystore/journal`` if that variable holds an absolute path, otherwise
    ``~/.local/state/flystore/journal``. It should be on a local disk; give another directory if the
    home directory is on a network.

    Raises
    ------
    Misconfigured
        If there is no home directory to be found.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "flystore" / "journal"
    try:
        return Path.home() / ".local" / "state" / "flystore" / "journal"
    except RuntimeError as error:
        raise Misconfigured(
            "this user has no home directory to keep the journal in; name one: RunWriter(…, journal=DIR)"
        ) from error


def make_home(home: Path) -> None:
    """Make the journal home.

    Raises
    ------
    Misconfigured
        If it cannot be made or written to.
    """
    try:
        make_directory(home, 0o700)
    except OSError as error:
        raise Misconfigured(
            f"the journal directory {home} cannot be made ({error.strerror}); name another on a local disk: "
            f"RunWriter(…, journal=DIR)",
            path=str(home),
        ) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise Misconfigured(
            f"the journal directory {home} is not writable by this user; name another on a local disk: "
            f"RunWriter(…, journal=DIR)",
            path=str(home),
        )


def network_filesystem(path: Path, mounts: str = "/proc/self/mounts") -> str | None:
    """Return the type of the network file system that `path` is on, for example ``"nfs4"``.

    None if it is local, or where the system has no table of mounts to look in.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as table:
            lines = table.readlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    longest, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _unescape(fields[1])
        below = real == point or real.startswith(point.rstrip("/") + "/")
        if below and len(point) >= longest:  # of two mounts on one point the later one is seen
            longest, kind = len(point), fields[2]
    return kind if _is_network(kind) else None


def _is_network(kind: str) -> bool:
    if kind.startswith("fuse."):
        return any(word in kind[5:] for word in _NETWORK_FUSE)
    return kind in _NETWORK_TYPES


def _unescape(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text
