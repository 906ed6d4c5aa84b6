"""Limits are settings with names, and a mistake in one is said before the service starts.

If these fail, an operator believes in a limit that is not there.
"""

import msgspec
import pytest

from flystore.model.errors import Misconfigured
from flystore.service import Limits


@pytest.mark.parametrize(
    ("text", "value"),
    [("32MiB", 32 << 20), ("1000", 1000), ("2k", 2000), ("1.5 GiB", 3 << 29), ("7M", 7 * 10**6)],
)
def test_sizes_are_read(text, value):
    assert Limits.parse([f"response_bytes={text}"]) == msgspec.structs.replace(Limits(), response_bytes=value)


def test_seconds_may_have_fractions_and_the_last_setting_counts():
    assert Limits.parse(["head_seconds=3", "head_seconds=0.5"]).head_seconds == 0.5


@pytest.mark.parametrize(
    "text",
    ["", "nonsense=1", "response_bytes", "response_bytes=", "response_bytes=-1", "response_bytes=1 apple",
     "response_bytes=0", "head_seconds=1MiB", "head_seconds=0", "connections=nan"],
)  # fmt: skip
def test_a_mistake_is_said(text):
    with pytest.raises(Misconfigured) as refused:
        Limits.parse([text])
    assert text in str(refused.value)


def test_the_budget_is_what_was_said_or_a_share_of_the_machine():
    assert Limits(memory_bytes=5).budget_bytes == 5
    assert 0 < Limits().budget_bytes <= 4 << 30
