"""Files whose documents are all stored are deleted; if that fails, nothing else does.

If these fail, a directory entry that the system does not let go ends the shipping of every run of the process.
"""

import errno
from collections.abc import Iterator

import pytest

from flystore.disk import failpoints
from flystore.journal import Journal, RunLog
from flystore.testing.journals import document_payloads, segment_files


@pytest.fixture
def failing() -> Iterator[set[str]]:
    """Places at which the disk fails, for as long as they are in the set."""
    places: set[str] = set()

    def fail(name: str) -> None:
        if name in places:
            raise OSError(errno.EIO, "input/output error")

    failpoints.install(fail)
    yield places
    failpoints.install(None)


@pytest.fixture
def journal(tmp_path) -> Iterator[Journal]:
    with Journal.create(tmp_path, target="http://127.0.0.1:8000", segment_bytes=600, reserve_bytes=0) as made:
        yield made


def filled(journal: Journal) -> RunLog:
    log = journal.open_run("run-1")
    for payloads in document_payloads(20):
        log.append(payloads)
    return log


def test_a_segment_that_cannot_be_deleted_goes_with_the_next_acknowledgement(journal, failing, caplog):
    log = filled(journal)
    files = segment_files(journal.path)
    failing.add("journal.before_reclaim")
    log.acknowledge(10)
    assert log.acked == 10
    assert segment_files(journal.path) == files
    assert "cannot be deleted" in caplog.text
    failing.clear()
    log.acknowledge(11)
    assert set(segment_files(journal.path)) < set(files)


@pytest.mark.parametrize("place", ["journal.before_reclaim", "journal.before_remove", "journal.after_remove"])
def test_a_log_that_cannot_be_deleted_is_deleted_when_asked_again(journal, failing, place):
    log = filled(journal)
    log.end_run()
    log.acknowledge(log.end)
    failing.add(place)
    assert not log.remove_if_done()
    assert not log.removed
    failing.clear()
    assert log.remove_if_done()
    assert not segment_files(journal.path)


def test_a_position_that_cannot_be_kept_is_only_sent_again(tmp_path, journal, failing):
    log = filled(journal)
    failing.add("journal.before_position")
    log.acknowledge(1)
    journal.close()
    with Journal.take_over(journal.path) as taken:
        assert taken.logs[0].acked == 0
        assert taken.logs[0].end == 20
