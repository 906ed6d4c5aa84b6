"""A file is the old one or the new one, whole, whatever happens while it is written.

If these fail, a power cut leaves half a chunk that reads as an array.
"""

import os

import pytest

from flystore.disk import make_directory, replace_file


def test_a_file_is_replaced_whole(tmp_path):
    replace_file(tmp_path / "x", b"old")
    replace_file(tmp_path / "x", memoryview(b"new"))
    assert (tmp_path / "x").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    replace_file(tmp_path / "x", b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_content_is_synced_before_the_name_changes_and_the_name_before_returning(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append(os.path.isdir(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *a, **k: (steps.append("replace"), replace(*a, **k)))
    replace_file(tmp_path / "x", b"new")
    assert steps == [False, "replace", True]


def test_directories_are_made_with_those_above(tmp_path):
    make_directory(tmp_path / "a/b/c")
    make_directory(tmp_path / "a/b/c")
    assert (tmp_path / "a/b/c").is_dir()
