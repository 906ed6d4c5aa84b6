"""The kind of file system under a path is told from the mounts.

If these fail, SQLite runs on a network disk and loses data, or a good disk is refused.
"""

import pytest

from flystore.catalog._place import NETWORK_FILE_SYSTEMS, file_system_of

MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /data nfs4 rw,hard 0 0
/dev/vdb /data/local xfs rw 0 0
/dev/vdc /data/with\\040space ext4 rw 0 0
//nas/share /data/with\\040space/nas cifs rw 0 0
tmpfs /over tmpfs rw 0 0
server:/over /over nfs rw 0 0
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/", "ext4"),
        ("/data", "nfs4"),
        ("/data/run", "nfs4"),
        ("/data/local", "xfs"),
        ("/data/locally", "nfs4"),
        ("/database", "ext4"),
        ("/data/with space", "ext4"),
        ("/data/with space/nas/x", "cifs"),
        ("/over/x", "nfs"),
    ],
)
def test_the_innermost_and_last_mount_counts(path, kind):
    assert file_system_of(path, MOUNTS) == kind


def test_no_mounts_say_nothing():
    assert file_system_of("/home", "") is None


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "lustre", "gpfs"])
def test_the_network_file_systems_of_facilities_are_known(kind):
    assert kind in NETWORK_FILE_SYSTEMS
