"""Waking followers.

If these fail, people who follow a run sit before a picture that stands still although the data is stored, or a service
with many idle followers is busy with nothing.
"""

import asyncio
import threading

import pytest

from flystore.catalog import Catalog, Committed
from flystore.service.waking import EVERYTHING, Waking, topic_of_path, topic_of_run

GENEROUS = 60.0
NEVER = 10_000.0


@pytest.fixture
def catalog(tmp_path):
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}") as made:
        yield made


@pytest.fixture
def waking(catalog):
    made = Waking(catalog, look_seconds=NEVER)
    yield made
    made.end()


def commit(catalog, *path, uid=None):
    with catalog.write() as tx:
        tx.note_change(path, "updated", {}, run_uid=uid)


def another(tmp_path):
    """Open the catalogue once more, as another process does."""
    return Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")


def settled(waking, catalog):
    """Wait until the first look of `waking` is over."""
    with waking.follower() as first:
        first.wait_here(0, GENEROUS)


def test_a_commit_ends_the_wait_of_those_whose_topic_it_touches(catalog, waking):
    settled(waking, catalog)
    topics = [EVERYTHING, topic_of_path(()), topic_of_path(("a",)), topic_of_path(("a", "b")), topic_of_run("u")]
    others = [topic_of_path(("a", "b", "c")), topic_of_path(("ab",)), topic_of_run("other")]
    with Followers(waking, topics) as told, Followers(waking, others) as not_told:
        marks = [follower.mark for follower in told + not_told]
        commit(catalog, "a", "b", uid="u")
        assert all(follower.wait_here(mark, GENEROUS) for follower, mark in zip(told, marks[: len(told)], strict=True))
        assert [follower.mark for follower in not_told] == marks[len(told) :]


class Followers:
    def __init__(self, waking, topics):
        self._made = [waking.follower(topic) for topic in topics]

    def __enter__(self):
        return self._made

    def __exit__(self, *_):
        for follower in self._made:
            follower.close()


def test_what_is_committed_between_the_reading_and_the_wait_is_not_waited_for(catalog, waking):
    with waking.follower() as follower:
        mark = follower.mark
        commit(catalog, "a")
        assert follower.wait_here(mark, NEVER)
        assert asyncio.run(follower.wait(mark, NEVER))


def test_a_commit_in_a_thread_ends_waits_on_an_event_loop(catalog, waking):
    settled(waking, catalog)

    async def wait():
        with waking.follower(topic_of_path(("a",))) as one, waking.follower() as other:
            waits = [asyncio.ensure_future(follower.wait(follower.mark)) for follower in (one, other)]
            await asyncio.sleep(0)
            await asyncio.to_thread(commit, catalog, "a")
            return await asyncio.wait_for(asyncio.gather(*waits), GENEROUS)

    assert asyncio.run(wait()) == [True, True]


def test_a_wait_without_news_ends_at_its_time(catalog, waking):
    settled(waking, catalog)
    with waking.follower() as follower:
        assert not follower.wait_here(follower.mark, 0.001)
        assert not asyncio.run(follower.wait(follower.mark, 0.001))


def test_a_follower_is_told_when_all_can_read_what_was_committed_and_not_before(catalog, waking):
    seen = []
    with waking.follower() as follower:
        follower.wait_here(0, GENEROUS)

        def look():
            mark = follower.mark
            ready.set()
            follower.wait_here(mark, GENEROUS)
            with catalog.read() as snapshot:
                seen.append(snapshot.last_position())

        ready = threading.Event()
        thread = threading.Thread(target=look)
        thread.start()
        assert ready.wait(GENEROUS)
        commit(catalog, "a")
        thread.join(GENEROUS)
    assert seen == [1]


def test_commits_of_another_process_are_found_by_looking(catalog, tmp_path):
    waking = Waking(catalog, look_seconds=0.01)
    try:
        with another(tmp_path) as other, waking.follower(topic_of_run("u")) as follower:
            follower.wait_here(0, GENEROUS)  # the first look
            for _ in range(3):
                mark = follower.mark
                commit(other, "a", uid="u")
                assert follower.wait_here(mark, GENEROUS)
    finally:
        waking.end()


@pytest.mark.parametrize("what", ["listen", "changes", "read"])
def test_who_cannot_look_for_want_of_files_or_threads_looks_again(catalog, tmp_path, monkeypatch, what):
    waking = Waking(catalog, look_seconds=0.01)
    real, failures = getattr(catalog, what), [OSError("too many open files"), RuntimeError("can't start new thread")]

    def failing(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(catalog, what, failing)
    try:
        with waking.follower() as follower, another(tmp_path) as other:
            assert follower.wait_here(0, GENEROUS)  # the first look that succeeds wakes all
            assert not failures
            mark = follower.mark
            commit(other, "a")
            assert follower.wait_here(mark, GENEROUS)
    finally:
        waking.end()


def test_commits_of_another_process_are_found_at_once_by_who_hears_of_them(catalog, waking, tmp_path):
    settled(waking, catalog)
    topics = topic_of_path(("a",)), topic_of_path(("b",))
    with another(tmp_path) as other, Followers(waking, topics) as (told, not_told):
        commit(other, "a", "x")
        waking.heard()
        assert (told.mark, not_told.mark) == (1, 0)
        waking.heard()
        assert told.mark == 1


def test_more_than_can_be_told_apart_wakes_everybody(catalog, waking, tmp_path):
    settled(waking, catalog)
    with another(tmp_path) as other, waking.follower(topic_of_path(("b",))) as one:
        with other.write() as tx:
            for number in range(2_000):
                tx.note_change((f"n{number}",), "updated", {})
        waking.heard()
        assert one.mark == 1


def test_a_commit_before_the_first_look_is_not_lost(catalog, waking, tmp_path):
    with another(tmp_path) as other, waking.follower(topic_of_path(("a",))) as follower:
        mark = follower.mark
        commit(other, "a")
        waking.heard()
        assert follower.wait_here(mark, GENEROUS)


def test_positions_may_be_announced_in_any_order(catalog, waking):
    waking.heard()
    none = frozenset()
    with waking.follower() as follower:
        for position in (3, 1, 2, 5):
            waking.announce(Committed(position, position, none, none))
        assert follower.mark >= 4
        assert waking._known == 3
        waking.announce(Committed(4, 4, none, none))
        assert (waking._known, waking._ahead) == (5, {})


def test_the_end_of_the_service_ends_all_waits_and_later_ones(catalog):
    waking = Waking(catalog, look_seconds=NEVER)
    ended = []
    followers = [waking.follower(), waking.follower(topic_of_run("u"))]
    for follower in followers:
        follower.wait_here(0, GENEROUS)
    threads = [
        threading.Thread(target=lambda each=each: ended.append(each.wait_here(each.mark, NEVER))) for each in followers
    ]
    for thread in threads:
        thread.start()
    waking.end()
    for thread in threads:
        thread.join(GENEROUS)
    late = waking.follower()
    assert ended == [True, True]
    assert late.wait_here(late.mark, NEVER)
    assert late.ended
    assert not [thread for thread in threading.enumerate() if thread.name == "flystore-waking"]


def test_nothing_is_looked_at_while_nobody_follows(catalog):
    waking = Waking(catalog, look_seconds=0.001)
    with waking.follower() as follower:
        looker = waking._looker
        assert len(waking) == 1
        follower.wait_here(0, GENEROUS)
    looker.join(GENEROUS)
    assert not looker.is_alive()
    assert len(waking) == 0
    with waking.follower() as follower:
        assert follower.wait_here(0, GENEROUS)  # somebody looks again
    waking.end()


def test_no_wake_up_is_lost_between_threads_that_write_and_threads_that_follow(catalog, waking):
    """Each follower stops only when it has seen the last commit, and waits for nothing but to be told."""
    count, writers, followers = 40, 2, 4
    seen = []

    def follow():
        with waking.follower(topic_of_run("u")) as follower:
            at = 0
            while at < count * writers:
                mark = follower.mark
                with catalog.read() as snapshot:
                    found = snapshot.last_position()
                if found == at:
                    assert follower.wait_here(mark, GENEROUS)
                at = found
            seen.append(at)

    def write():
        for _ in range(count):
            commit(catalog, "a", uid="u")

    threads = [threading.Thread(target=follow) for _ in range(followers)]
    threads += [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GENEROUS)
    assert seen == [count * writers] * followers
