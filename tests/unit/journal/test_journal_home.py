"""The journal lies on a local disk of this user, or people are told that it does not.

If these fail, documents land where nobody looks for them, or an outage of a file server stops plans.
"""

import logging
import os
from pathlib import Path

import pytest

from flystore.journal import Journal, default_home, network_filesystem
from flystore.journal import _journal as journal_module
from flystore.model.errors import Misconfigured
from flystore.testing.journals import TARGET

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local xfs rw 0 0
//nas/data /mnt/with\\040space cifs rw 0 0
user@host:/x /mnt/ssh fuse.sshfs rw 0 0
/dev/fuse /mnt/portal fuse.portal rw 0 0
"""


def test_the_default_home_follows_the_state_directory_of_the_user(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/me")
    assert default_home() == Path("/var/lib/me/flystore/journal")
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_home() == Path("/home/me/.local/state/flystore/journal")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_home() == Path("/home/me/.local/state/flystore/journal")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/journal", "nfs4"),
        ("/home", "nfs4"),
        ("/homes/journal", None),
        ("/home/local/journal", None),
        ("/mnt/with space/journal", "cifs"),
        ("/mnt/ssh/journal", "fuse.sshfs"),
        ("/mnt/portal/journal", None),
        ("/var", None),
    ],
)
def test_network_file_systems_are_recognised(tmp_path, path, kind):
    table = tmp_path / "mounts"
    table.write_text(MOUNTS)
    assert network_filesystem(Path(path), str(table)) == kind


def test_without_a_table_of_mounts_nothing_is_claimed(tmp_path):
    assert network_filesystem(tmp_path, str(tmp_path / "none")) is None


def test_a_journal_on_a_network_file_system_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "network_filesystem", lambda path: "nfs4")
    with (
        caplog.at_level(logging.WARNING),
        Journal.create(tmp_path, target=TARGET, reserve_bytes=0) as journal,
    ):
        assert any("network file system (nfs4)" in warning for warning in journal.state().warnings)
    assert "network file system (nfs4)" in caplog.text


def test_a_home_that_cannot_be_made_is_refused_with_advice(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="journal=DIR"):
        Journal.create(tmp_path / "file" / "journal", target=TARGET)


def test_only_the_user_may_read_what_is_journaled(tmp_path):
    with Journal.create(tmp_path / "home", target=TARGET) as journal:
        assert journal.path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "home").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("name", "value"), [("durability", "sometimes"), ("sync_interval", -1)])
def test_a_setting_that_cannot_work_is_refused_in_words(tmp_path, name, value):
    with pytest.raises(Misconfigured, match=name):
        Journal.create(tmp_path, target=TARGET, **{name: value})
    assert os.listdir(tmp_path) == []
