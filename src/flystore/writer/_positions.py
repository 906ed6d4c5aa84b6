"""Where the rows of a stream are among a run's documents: sequence number → ordinal.

Kept as runs of constant step, so a scan of any length costs a few numbers; when the steps are so
irregular that many runs pile up, old ones are merged into one that answers with a later ordinal,
which is only ever too careful.
"""

from typing import Any

MAX_RUNS = 1024
"""Runs kept for one source of one stream before the older half is merged."""


class SeqNums:
    """Ordinal of the last document that carries a sequence number, for one source of rows."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[list[int]] = []  # first sequence number, count, first ordinal, step

    def add(self, seq_num: int, ordinal: int) -> None:
        """Note one row. Ordinals only grow; sequence numbers may repeat."""
        runs = self._runs
        if runs:
            first, count, start, step = last = runs[-1]
            if seq_num == first + count:
                if count == 1:
                    last[3] = ordinal - start
                    last[1] = 2
                    return
                if ordinal == start + count * step:
                    last[1] = count + 1
                    return
        self._append([seq_num, 1, ordinal, 0])

    def add_range(self, first: int, stop: int, ordinal: int) -> None:
        """Note that one document carries the rows `first` to ``stop - 1``."""
        if stop == first + 1:
            self.add(first, ordinal)  # a thousand of them, as far apart as each other, are one run
        elif stop > first:
            self._append([first, stop - first, ordinal, 0])

    def _append(self, run: list[int]) -> None:
        self._runs.append(run)
        if len(self._runs) > MAX_RUNS:
            half = self._runs[: MAX_RUNS // 2]
            first = min(run[0] for run in half)
            stop = max(run[0] + run[1] for run in half)
            last = half[-1]
            # One assignment: `last_with` reads from another thread.
            self._runs = [
                [first, stop - first, last[2] + (last[1] - 1) * last[3], 0],
                *self._runs[MAX_RUNS // 2 :],
            ]

    def last_with(self, seq_num: int) -> int | None:
        """Return the ordinal of the last document that carries `seq_num`; None if none does yet."""
        for first, count, start, step in reversed(self._runs):
            if first <= seq_num < first + count:
                return start + (seq_num - first) * step
        return None


class StreamPositions:
    """The rows of one stream: from its events, and from the stream data of each resource."""

    def __init__(self) -> None:
        self.events = SeqNums()
        self._others: dict[Any, SeqNums] = {}

    def note_page(self, seq_nums: Any, ordinal: int) -> None:
        """Note the rows of an event page, if its sequence numbers are numbers."""
        numbers = [number for number in seq_nums if type(number) is int]
        if numbers:
            self.events.add_range(min(numbers), max(numbers) + 1, ordinal)

    def note_stream_datum(self, doc: Any, ordinal: int) -> None:
        """Note the rows that a stream datum announces."""
        first, stop = doc["seq_nums"]["start"], doc["seq_nums"]["stop"]
        if type(first) is int and type(stop) is int:
            source = doc.get("stream_resource")
            rows = self._others.get(source)
            if rows is None:
                rows = self._others[source] = SeqNums()
            rows.add_range(first, stop, ordinal)

    def last_with(self, seq_num: int) -> int | None:
        """Return the ordinal of the last document so far that carries `seq_num`; None if none does."""
        sources = (self.events, *tuple(self._others.values()))
        found = [ordinal for source in sources if (ordinal := source.last_with(seq_num)) is not None]
        return max(found, default=None)
