"""After the first failed sync nothing is stored; a full disk is only full.

If these fail, a service goes on acknowledging what its disk has dropped, or a full disk costs a restart.
"""

import errno
import os

import pytest

from flystore.disk import FailedSync, Trust, replace_file, sync_directory
from flystore.model.errors import Conflict, DiskFull, SyncFailed, Unavailable


@pytest.fixture
def failing_sync(monkeypatch):
    def fail(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_sync_that_fails_is_told_from_a_write_that_does(tmp_path, failing_sync):
    with pytest.raises(FailedSync):
        sync_directory(tmp_path)
    with pytest.raises(FailedSync):
        replace_file(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "absent")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_trust_is_lost_for_good_with_the_first_failed_sync_whatever_the_reason(number, caplog):
    trust = Trust()
    with pytest.raises(SyncFailed, match="restarted") as caught, trust.writing("the file"):
        raise FailedSync(number, os.strerror(number), "file")
    assert trust.lost == f"the file: {os.strerror(number)}"
    assert caught.value.reason == trust.lost
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    with pytest.raises(SyncFailed):
        trust.require()
    with pytest.raises(SyncFailed), trust.writing("another"):
        pytest.fail("nothing is written any more")


def test_a_disk_with_errors_is_not_trusted_either():
    trust = Trust()
    with pytest.raises(SyncFailed), trust.writing("the file"):
        raise OSError(errno.EIO, "Input/output error")
    assert trust.lost is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_passes(number):
    trust = Trust()
    with pytest.raises(DiskFull, match="full"), trust.writing("the file"):
        raise OSError(number, os.strerror(number))
    trust.require()


def test_another_refusal_of_the_system_leaves_trust_alone():
    trust = Trust()
    with pytest.raises(Unavailable, match="Permission denied") as caught, trust.writing("the file"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert not isinstance(caught.value, SyncFailed)
    with pytest.raises(Conflict), trust.writing("the file"):
        raise Conflict("ours already")
    trust.require()
