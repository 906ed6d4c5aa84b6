"""All requests together hold no more memory than they were given.

If these fail, fifty requests that are each within their limits end the service.
"""

import threading
from contextvars import copy_context

import pytest

from flystore.model.errors import TooLarge, Unavailable
from flystore.storage import Budget, held, memory_of_this_machine, reserve


def test_what_is_reserved_is_held_until_the_account_closes():
    budget = Budget(100)
    with budget.account():
        reserve(60, "this")
        with held(30, "that"):
            assert budget.held_bytes == 90
        assert budget.held_bytes == 60
    assert budget.held_bytes == 0


def test_what_could_never_fit_is_too_large_and_takes_nothing():
    budget = Budget(100)
    with budget.account():
        reserve(60, "this")
        with pytest.raises(TooLarge) as refused:
            reserve(41, "that")
        assert refused.value.facts == {"wanted": 101, "limit": 100}
        assert budget.held_bytes == 60


def test_what_others_hold_is_waited_for():
    budget, holding, go_on = Budget(100, wait_seconds=100), threading.Event(), threading.Event()

    def hold():
        with budget.account():
            reserve(80, "this")
            holding.set()
            assert go_on.wait(100)

    other = threading.Thread(target=hold)
    other.start()
    assert holding.wait(100)
    with budget.account() as account:
        assert not account.try_take(50, "that")
        threading.Timer(0.05, go_on.set).start()
        reserve(50, "that")
        assert budget.held_bytes == 50
    other.join()
    assert budget.held_bytes == 0


def test_what_others_go_on_holding_is_unavailable():
    budget = Budget(100, wait_seconds=0.01)
    with budget.account() as first:
        context = copy_context()
        with budget.account():
            context.run(first.take, 80, "this")
            with pytest.raises(Unavailable):
                reserve(50, "that")
    assert budget.held_bytes == 0


def test_outside_an_account_nothing_is_counted():
    reserve(1 << 60, "this")
    with held(1 << 60, "that"):
        pass


def test_a_thread_started_with_the_context_has_the_account():
    budget = Budget(100)
    with budget.account():
        thread = threading.Thread(target=copy_context().run, args=(reserve, 70, "this"))
        thread.start()
        thread.join()
        assert budget.held_bytes == 70


def test_an_error_gives_back_what_was_held():
    budget = Budget(100)
    with budget.account():
        reserve(50, "this")
        with pytest.raises(ZeroDivisionError), held(20, "that"):
            raise ZeroDivisionError
        assert budget.held_bytes == 50
    assert budget.held_bytes == 0


def test_this_machine_has_memory():
    assert 1 << 20 < memory_of_this_machine() < 1 << 50
