"""If these fail, looking at files takes time from the batches that follow, or files of a long run are not looked at."""

import threading

import pytest

from flystore.service import probing
from flystore.service.probing import Prober

LONG = 1000.0


@pytest.fixture
def prober(monkeypatch):
    """A prober of no catalogue, whose looks are only counted."""
    made = Prober(None, None)
    looked = []
    happened = threading.Event()

    class Nothing:
        def read(self):
            raise AssertionError("looked")

    def take(*given, **named):
        looked.append(given)
        happened.set()

    made._catalog = Nothing()
    monkeypatch.setattr(probing.log, "exception", take)
    made.looked, made.happened = looked, happened
    yield made
    made.close()


def test_files_wait_while_batches_come_and_are_then_looked_at_once_each(prober, monkeypatch):
    monkeypatch.setattr(probing, "CALM_S", LONG)
    monkeypatch.setattr(probing, "PATIENCE_S", LONG)
    for _ in range(5):
        prober.enqueue([1, 2])
    assert prober.waiting == 2
    assert not prober.looked
    assert prober.wait_idle(100)  # who waits needs no calm
    assert [node for _, node in prober.looked] == [1, 2]


def test_files_are_looked_at_in_the_end_though_batches_go_on(prober, monkeypatch):
    monkeypatch.setattr(probing, "CALM_S", LONG)
    monkeypatch.setattr(probing, "PATIENCE_S", 0.01)
    prober.enqueue([1])
    assert prober.happened.wait(100)


def test_files_are_looked_at_once_it_is_calm(prober, monkeypatch):
    monkeypatch.setattr(probing, "PATIENCE_S", LONG)
    prober.enqueue([1])
    assert prober.happened.wait(100)


def test_a_prober_that_waits_for_calm_ends_at_once(prober, monkeypatch):
    monkeypatch.setattr(probing, "CALM_S", LONG)
    monkeypatch.setattr(probing, "PATIENCE_S", LONG)
    prober.enqueue([1])
    prober.close()
    assert not prober.looked
