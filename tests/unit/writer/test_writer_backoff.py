"""Pauses between attempts grow, have an end, and are not the same for everyone.

If these fail, a service that comes back is trampled by its writers, or waits long for them.
"""

from hypothesis import given
from hypothesis import strategies as st

from flystore.writer._backoff import Backoff

chances = st.floats(0, 1, exclude_max=True)


@given(chance=chances, failures=st.integers(1, 100))
def test_a_pause_is_between_half_and_all_of_the_doubled_one(chance, failures):
    backoff = Backoff(0.2, 15.0, lambda: chance)
    pauses = [backoff.next() for _ in range(failures)]
    for number, pause in enumerate(pauses):
        longest = min(15.0, 0.2 * 2**number)
        assert longest / 2 <= pause <= longest


def test_a_success_begins_anew():
    backoff = Backoff(0.2, 15.0, lambda: 0.0)
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.next() == 0.1


def test_a_very_long_outage_is_no_trouble():
    backoff = Backoff(0.2, 15.0, lambda: 0.0)
    backoff.failures = 10**6
    assert backoff.next() == 7.5
