"""Batches are large where that is quick, and small where a large one would not arrive.

If these fail, a backlog is sent in many small requests and never drained while a scan goes on, or in requests so large
that a slow or flapping link loses each of them.
"""

import math
from types import SimpleNamespace

import pytest

from flystore.writer._options import MAX_BATCH_BYTES, MODEST_BATCH_BYTES
from flystore.writer._shipment import QUICK_S, Shipment


def shipment(most_bytes=MAX_BATCH_BYTES):
    return Shipment(None, SimpleNamespace(acked=0), "run", most_bytes=most_bytes, backoff=None, adopted=False)


def test_batches_grow_while_they_are_stored_quickly_up_to_the_most():
    found = shipment()
    sizes = [found.max_bytes]
    for _ in range(5):
        found.fit_batches(found.max_bytes, QUICK_S / 10)
        sizes.append(found.max_bytes)
    assert sizes[0] == MODEST_BATCH_BYTES
    assert sizes == sorted(sizes)
    assert sizes[-1] == MAX_BATCH_BYTES


@pytest.mark.parametrize("seconds", [2 * QUICK_S, math.inf])
def test_batches_are_modest_again_after_a_slow_or_lost_one(seconds):
    found = shipment()
    for _ in range(5):
        found.fit_batches(found.max_bytes, 0.0)
    found.fit_batches(found.max_bytes, seconds)
    assert found.max_bytes == MODEST_BATCH_BYTES


def test_small_batches_say_nothing_about_large_ones():
    found = shipment()
    for _ in range(100):
        found.fit_batches(500, 0.0)
    assert found.max_bytes == MODEST_BATCH_BYTES


def test_a_size_that_was_refused_is_not_tried_again():
    found = shipment()
    found.refuse_size(found.max_bytes)
    refused = found.max_bytes
    for _ in range(5):
        found.fit_batches(found.max_bytes, 0.0)
    assert found.max_bytes == refused == MODEST_BATCH_BYTES // 2


def test_a_most_below_a_modest_batch_holds():
    found = shipment(300)
    found.fit_batches(300, 0.0)
    assert found.max_bytes == 300
