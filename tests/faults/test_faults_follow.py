"""F35: subscribers join, drop and resume while documents come in and the service is killed.

If these fail, people who follow a run or a catalogue see a gap or a repeat after a restart of the service, or wait for
what is stored already.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from flystore.client import FollowedDocuments, from_transport
from flystore.testing.faults import KEY, Acquisition, FaultReport, FaultyService
from flystore.wire import HttpTransport

GENEROUS = 120.0


class Subscribers:
    """Several that come and go, and one that stays; what each was told is kept."""

    def __init__(self, url, report, seed):
        self.report = report
        self.transport = HttpTransport(url, KEY)
        self.root = from_transport(self.transport)
        self.told = []
        self.told_documents = []
        self.tokens = [None]
        self.runs = []
        self.over = threading.Event()
        self._seed = seed
        self._lock = threading.Lock()
        self._staying = []
        self._all_there = threading.Event()
        self._wanted = None
        self.stays = self.root.follow(self._keep, after=None)

    def _keep(self, change):
        self._staying.append(change)
        self.tokens.append(change.token)
        if change.what == "created" and len(change.path) == 1:
            self.runs.append(change.run)
        if change.token == self._wanted:
            self._all_there.set()

    def come_and_go(self, number, turns):
        """Subscribe so often: to the feed from some token that anybody saw, or to documents of some run."""
        rng = random.Random(f"{self._seed}/{number}")
        for _ in range(turns):
            if self.runs and rng.random() < 0.3:
                uid, first = rng.choice(self.runs), rng.randrange(3)
                with FollowedDocuments(self.transport, uid, first) as documents:
                    found = list(islice(documents, rng.randint(1, 30)))
                with self._lock:
                    self.told_documents.append((uid, first, found))
            else:
                token = rng.choice(self.tokens[-50:])
                with self.root.follow(after=token, timeout=2.0) as changes:
                    found = list(islice(changes, rng.randint(1, 40)))
                with self._lock:
                    self.told.append((token, found))
            self.report.cycles += 1

    def check(self, seconds):
        """Compare what each was told with what the service says now."""
        with self.root.follow(after=None, timeout=2.0) as changes:
            every = list(changes)
        self._wanted = every[-1].token
        if self._staying and self._staying[-1].token == self._wanted:
            self._all_there.set()
        assert self._all_there.wait(seconds), "the one who stays was not told of the last change"
        assert self._staying == every
        places = {change.token: number for number, change in enumerate(every, start=1)}
        for token, found in self.told:
            begin = 0 if token is None else places[token]
            assert found == every[begin : begin + len(found)]
        for uid, first, found in self.told_documents:
            with self.root[uid].documents() as documents:
                assert found == list(documents)[first : first + len(found)]
        self.report.acknowledged += len(every)

    def close(self):
        self.stays.close()
        self.transport.close()


def follow_through(service, acquisition, subscribers, turns, kills, rng):
    """Have subscribers come and go while runs are written and the service is killed so often."""
    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(subscribers.come_and_go, number, -(-turns // 4)) for number in range(4)]
        for _ in range(kills):
            acquisition.begin(2, rng.randint(10, 40))
            threading.Event().wait(rng.uniform(0.01, 0.2))
            service.kill()
            service.start()
            acquisition.finish()
        while not all(each.done() for each in busy):  # so that there is something to be told
            acquisition.begin(1, 20)
            acquisition.finish()
        for each in busy:
            each.result()


@pytest.mark.timeout(3000)
def test_subscribers_see_no_gap_and_no_repeat_however_the_service_is_killed(
    fork_server, tmp_path, seed, cycles, fault_report
):
    report = fault_report("F35 subscribers", unit="changes")
    turns, kills = cycles(40, 2000), cycles(5, 150)
    with FaultyService(fork_server, tmp_path / "store") as service:
        service.start()
        with Acquisition(service.url, tmp_path, seed) as acquisition:
            subscribers = Subscribers(service.url, report, seed)
            try:
                follow_through(service, acquisition, subscribers, turns, kills, random.Random(seed))
                subscribers.check(GENEROUS)
            finally:
                subscribers.close()
    assert report.cycles >= turns


@pytest.mark.parametrize("broken", ["told-before-commit", "feed-token-ahead"])
def test_a_feed_that_is_broken_is_found(fork_server, tmp_path, seed, broken):
    def follow_often() -> None:
        with FaultyService(fork_server, tmp_path / "store", broken=(broken,)) as service:
            service.start()
            with Acquisition(service.url, tmp_path, seed) as acquisition:
                for _ in range(20):
                    subscribers = Subscribers(service.url, FaultReport("control", seed), seed)
                    try:
                        acquisition.begin(2, 20)
                        acquisition.finish()
                        subscribers.check(1.0)
                    finally:
                        subscribers.close()

    with pytest.raises(AssertionError, match=r"last change|assert"):
        follow_often()
