"""F07, F08: the link between acquisition and service is cut, goes silent, or loses an answer.

If these fail, a loose cable costs data: documents that were on their way are gone, come twice because their answer was
lost, or the plan stands still until the network is back.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from flystore.testing.faults import (
    KEY,
    Acquisition,
    FaultFound,
    FaultReport,
    FaultyService,
    ForkServer,
    Proxy,
    broken,
    check_api,
    check_disk,
)
from flystore.wire import HttpTransport

ANSWER_BYTES = 420
"""More than an answer to a batch has, head and all."""

RUN_CYCLES = 50
"""Lost answers in one run."""


@contextmanager
def linked(
    fork_server: ForkServer, scratch: Path, seed: int, broken_service: tuple[str, ...] = (), **options
) -> Iterator[tuple[FaultyService, Proxy, Acquisition]]:
    with (
        FaultyService(fork_server, scratch / "store", broken=broken_service) as service,
        Proxy(service.start().port) as proxy,
        Acquisition(proxy.url, scratch, seed, **options) as acquisition,
    ):
        yield service, proxy, acquisition


def compare(service: FaultyService, acquisition: Acquisition, report: FaultReport, uids: list[str]) -> None:
    """Compare by a way that does not lead over the broken link."""
    report.count(on_disk := check_disk(service.directory, acquisition.ledger, acquisition.load, uids))
    found = check_api(HttpTransport(service.url, KEY), acquisition.ledger, acquisition.load, uids)
    report.count(found, acknowledged=False)
    on_disk.require_none()
    found.require_none()
    for uid in uids:
        known, whole = acquisition.ledger.runs[uid], acquisition.load.documents(acquisition.load.number(uid), 0)
        assert known.acknowledged == known.sent > len(whole), f"{uid}: {known}"


def cut_while_writing(
    link: tuple[FaultyService, Proxy, Acquisition],
    report: FaultReport,
    rng: random.Random,
    down: float,
    *,
    ends: bool = False,
) -> None:
    """Take the link away for `down` seconds in the middle of two runs, in one of four manners.

    In half of the times, and where `ends` says so, the runs end before it is back: no call waits for it.
    """
    service, proxy, acquisition = link
    pause = max(0.003, down / 20)
    uids = acquisition.begin(2, rng.randint(20, 60), pause=pause)
    time.sleep(rng.uniform(0.0, 0.05))
    forgetting = partial(proxy.silence, forgetting=True)
    how = rng.choice([proxy.cut, proxy.silence, forgetting, lambda: proxy.flap(up=0.02, down=0.05)])
    how()
    time.sleep(down)
    if ends or rng.random() < 0.5:
        acquisition.join()
    proxy.restore()
    began = time.monotonic()
    acquisition.finish()
    report.recovery.append(time.monotonic() - began)
    report.cycles += 1
    compare(service, acquisition, report, uids)


@pytest.mark.timeout(3000)
def test_a_link_that_goes_away_loses_nothing_and_stops_no_plan(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F07 link cut, silent or flapping")
    rng = random.Random(seed)
    with linked(fork_server, tmp_path, seed, request_timeout=0.25) as link:
        for _ in range(cycles(12, 200)):
            cut_while_writing(link, report, rng, rng.uniform(0.02, 0.4))
        cut_while_writing(link, report, rng, 1.5, ends=True)
        acquisition = link[2]
        report.notes["slowest callback"] = f"{acquisition.longest_call * 1e3:.1f} ms"
        report.notes["requests without an answer"] = sum(known.unknown for known in acquisition.ledger.runs.values())


@pytest.mark.faults_long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("manner", ["cut", "silence"])
def test_a_link_that_is_away_for_minutes_loses_nothing(fork_server, tmp_path, seed, cycles, fault_report, manner):
    report = fault_report(f"F07 link away for minutes ({manner})")
    with linked(fork_server, tmp_path, seed, request_timeout=5.0, longest_pause=1.0) as (service, proxy, acquisition):
        uids = acquisition.begin(2, 300, pause=0.01)
        getattr(proxy, manner)()
        time.sleep(cycles(15, 120))
        uids += acquisition_goes_on(acquisition)
        acquisition.join()  # no call waits for the link
        proxy.restore()
        began = time.monotonic()
        acquisition.finish()
        report.recovery.append(time.monotonic() - began)
        report.cycles += 1
        compare(service, acquisition, report, uids)
        report.notes["slowest callback"] = f"{acquisition.longest_call * 1e3:.1f} ms"


def acquisition_goes_on(acquisition: Acquisition) -> list[str]:
    acquisition.join()
    return acquisition.begin(1, 200, pause=0.0)


def lose_answers(link: tuple[FaultyService, Proxy, Acquisition], report: FaultReport, lost: list[int]) -> None:
    """In one run, lose an answer after each number of bytes in `lost`, a batch of one to three events each."""
    service, proxy, acquisition = link
    rng = random.Random(f"{report.seed}/{report.cycles}")
    uid, documents = acquisition.announce(3 * len(lost))
    rest = iter(documents)
    for after in lost:
        before = proxy.lost_replies
        proxy.lose_reply(after, reset=rng.random() < 0.5)
        for _ in range(rng.randint(1, 3)):
            acquisition.writer(*next(rest))
        acquisition.finish()
        report.cycles += proxy.lost_replies - before
    for document in rest:
        acquisition.writer(*document)
    acquisition.finish()
    compare(service, acquisition, report, [uid])


@pytest.mark.timeout(3000)
def test_a_batch_whose_answer_is_lost_is_stored_once(fork_server, tmp_path, seed, cycles, fault_report):
    report = fault_report("F08 answer lost")
    wanted = cycles(100, 2000)
    with linked(fork_server, tmp_path, seed, request_timeout=2.0) as link:
        _, _, acquisition = link
        acquisition.finish()  # the writer has knocked, so that what is lost are answers to batches
        while report.cycles < wanted:
            lose_answers(link, report, [(report.cycles + i) * 7 % ANSWER_BYTES for i in range(RUN_CYCLES)])


def test_a_service_that_stores_what_it_has_is_found(fork_server, tmp_path, seed):
    report = FaultReport("control", seed)
    with linked(fork_server, tmp_path, seed, broken_service=("no-dedupe",)) as link:
        link[2].finish()
        with pytest.raises(FaultFound) as found:
            lose_answers(link, report, list(range(0, ANSWER_BYTES, 10)))
    assert found.value.findings.doubled


@pytest.mark.parametrize("manner", ["cut", "silence"])
def test_a_writer_that_gives_up_is_found(fork_server, tmp_path, seed, manner):
    report = FaultReport("control", seed)
    with broken("forget-on-failure"), linked(fork_server, tmp_path, seed, request_timeout=0.1) as link:
        service, proxy, acquisition = link
        acquisition.finish()  # the writer has knocked, so that what gets lost are batches
        fails = {"cut": proxy.cut, "silence": partial(proxy.silence, forgetting=True)}[manner]
        for _ in range(50):  # what had gone into the link before it failed may still arrive
            fails()
            uids = acquisition.begin(2, 40)
            acquisition.join()
            runs = acquisition.ledger.runs
            assert acquisition.ledger.reload_until(lambda: any(runs[uid].unknown for uid in uids))  # noqa: B023
            proxy.restore()
            acquisition.finish()
            try:
                compare(service, acquisition, report, uids)
            except AssertionError:
                return
        pytest.fail("batches were given up, and nobody noticed")
