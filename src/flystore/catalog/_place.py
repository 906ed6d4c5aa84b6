"""Where a SQLite file may lie: a directory that is made to last, on a disk of this machine."""

import os
from pathlib import Path

from flystore.disk import file_system_of, make_directory
from flystore.model.errors import Misconfigured

# SQLite's write-ahead log is shared memory between processes; over a network it corrupts
# (sqlite.org/wal.html, section 1; sqlite.org/howtocorrupt.html, section 2.1).
# fmt: off
NETWORK_FILE_SYSTEMS = frozenset({
    "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "davfs", "fuse.ceph", "fuse.davfs",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.rclone", "fuse.s3fs",
    "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs",
    "panfs", "pvfs2", "smb3", "smbfs", "wekafs",
})
# fmt: on

_MOUNTS = Path("/proc/self/mounts")


def prepare(path: Path) -> None:
    """Make the directory of a database file.

    Raises
    ------
    Misconfigured
        If it cannot be made or written, or lies on a network file system.
    """
    try:
        make_directory(path.parent)
    except OSError as error:
        raise Misconfigured(
            f"cannot make the directory {path.parent} for the catalogue ({error.strerror}); "
            "choose one that this user may write",
            path=str(path.parent),
        ) from error
    refuse_network(path.parent)
    if not os.access(path.parent, os.W_OK):
        raise Misconfigured(
            f"the directory {path.parent} of the catalogue is not writable for this user",
            path=str(path.parent),
        )


def refuse_network(directory: Path) -> None:
    """Raise `Misconfigured` if `directory` lies on a network file system, where that can be told."""
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return
    kind = file_system_of(os.path.realpath(directory), mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise Misconfigured(
            f"the catalogue would lie in {directory}, which is on a network file system ({kind}); SQLite "
            "loses data there. Choose a directory on a local disk, or use PostgreSQL.",
            path=str(directory),
            file_system=kind,
        )
