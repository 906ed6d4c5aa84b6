"""What people read: sizes, lists of numbers, and a progress bar only where someone looks on.

If these fail, a log file fills with progress bars, or a person is told a size in the wrong unit.
"""

import io
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flystore.client import _progress
from flystore.client._progress import Progress, someone_is_watching
from flystore.client._words import (
    html_rows,
    human_bytes,
    human_dtype,
    human_duration,
    human_shape,
    human_time,
    listed,
    ranges,
)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 << 20, "150 MiB"),
        (3 << 30, "3.0 GiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_sizes_have_units(size, words):
    assert human_bytes(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.351, "0.35 s"), (42, "42 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_have_units(seconds, words):
    assert human_duration(seconds) == words


def test_shapes_and_dtypes_are_written_as_people_say_them():
    assert human_shape((10, None, 3)) == "10 × var × 3"
    assert human_shape(()) == "scalar"
    assert human_dtype(np.dtype("<U8")) == "text of at most 8"
    assert human_dtype(np.dtype([("a", "i4"), ("b", "f8")])) == "{a, b}"


@pytest.mark.parametrize("nonsense", [None, "yesterday", float("nan"), 1e300])
def test_a_time_that_is_none_is_a_question_mark(nonsense):
    assert human_time(nonsense) == "?"


def test_long_lists_say_how_many_more_there_are():
    assert listed("abc") == "a, b, c"
    assert listed(range(12), 3) == "0, 1, 2, … (9 more)"


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_exactly_the_numbers(numbers):
    text = ranges(sorted(numbers), most=100)
    named = set()
    for part in filter(None, text.split(", ")):
        first, _, last = part.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == numbers


def test_html_shows_markup_as_text():
    assert "&lt;b&gt;" in html_rows([("<b>", "<i>")])
    assert "<i>" not in html_rows([("<b>", "<i>")])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_only_for_terminals_and_notebooks(monkeypatch):
    monkeypatch.delenv("FLYSTORE_PROGRESS", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not someone_is_watching()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert someone_is_watching()
    monkeypatch.setenv("FLYSTORE_PROGRESS", "0")
    assert not someone_is_watching()


def test_a_large_read_shows_a_bar_that_reaches_the_end(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    total = _progress.SHOW_ABOVE_BYTES + 1
    with Progress("reading img", total, watched=True) as progress:
        assert progress.shown
        progress.advance(total)
    assert "reading img" in screen.getvalue()


def test_a_short_read_shows_nothing(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("reading x", 1000, watched=True) as progress:
        progress.advance(1000)
    assert not progress.shown
    assert screen.getvalue() == ""


def test_a_small_read_that_takes_long_shows_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(_progress, "SHOW_AFTER_SECONDS", -1.0)
    with Progress("reading x", 1000, watched=True) as progress:
        progress.advance(10)
        assert progress.shown


def test_nobody_looking_on_sees_nothing(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress("reading img", 1 << 40, watched=False) as progress:
        progress.advance(1 << 39)
    assert screen.getvalue() == ""


def test_reads_in_several_threads_share_the_screen(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown = []

    def read():
        with Progress("second", 1 << 40, watched=True) as second:
            second.advance(1)
            shown.append(second.shown)

    with Progress("first", 1 << 40, watched=True) as first:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert first.shown
    assert shown == [False]
    with Progress("third", 1 << 40, watched=True) as third:
        assert third.shown
