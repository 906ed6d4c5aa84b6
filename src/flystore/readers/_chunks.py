"""Which chunks a selection touches, and where the pieces go: arithmetic, and the loop that reads them.

`Blocks` stands for a dataset cut into equal boxes, stored chunks or equal parts of contiguous bytes.
Everything is looked up and checked before the result is allocated; then the boxes are read and decoded in
a few threads, each straight to its place.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread

import numpy as np

from ._gather import as_range, as_slice

THREADS = max(1, min(4, os.cpu_count() or 1))
"""Most jobs that `run_all` does at once."""

_WORTHTHREADS = 2**20
_WORTH_A_JOB = 2**15
"""Decoded bytes, of all jobs and of each, above which threads pay for being started and for taking turns."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a result that one box holds.

    Attributes
    ----------
    box : tuple of int
        Which box, one index an axis.
    rows : range or (m,) int64
        Rows within the box; a range where they are evenly spaced.
    rest : tuple of range
        Further axes, within the box.
    into_rows : slice or (m,) int64
        Where the rows belong in the result.
    into_rest : tuple of slice
    """

    box: tuple[int, ...]
    rows: "range | np.ndarray"
    rest: tuple[range, ...]
    into_rows: "slice | np.ndarray"
    into_rest: tuple[slice, ...]

    @property
    def target(self) -> tuple["slice | np.ndarray", ...]:
        """Index of the piece in the result."""
        return (self.into_rows, *self.into_rest)

    @property
    def source(self) -> tuple["slice | np.ndarray", ...]:
        """Index of the piece in the whole box."""
        rows = as_slice(self.rows) if isinstance(self.rows, range) else self.rows
        return (rows, *map(as_slice, self.rest))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *map(len, self.rest))


def pieces(rows: "np.ndarray | range", rest: Sequence[range], box: Sequence[int]) -> Iterator[Piece]:
    """Yield the pieces of a selection, box by box.

    Parameters
    ----------
    rows : (n,) int64 or range
        Any order, repeats allowed; a range is like the rest.
    rest : sequence of range
        Further axes; not empty, positive step.
    box : sequence of int
        Shape of a box; positive.
    """
    axes = [list(_cut_axis(r, n)) for r, n in zip(rest, box[1:], strict=True)]
    even = rows if isinstance(rows, range) else as_range(rows)
    cut: Iterator[tuple[int, range | np.ndarray, slice | np.ndarray]]
    cut = _cut_rows(np.asarray(rows), box[0]) if even is None else _cut_axis(even, box[0])
    for number, local, into in cut:
        for parts in itertools.product(*axes):
            yield Piece(
                (number, *(part[0] for part in parts)),
                local,
                tuple(part[1] for part in parts),
                into,
                tuple(part[2] for part in parts),
            )


def _cut_axis(r: range, n: int) -> Iterator[tuple[int, range, slice]]:
    done = 0
    while done < len(r):
        number = r[done] // n
        count = len(range(r[done], min((number + 1) * n, r[-1] + 1), r.step))
        local = range(r[done] - number * n, r[done + count - 1] - number * n + 1, r.step)
        yield number, local, slice(done, done + count)
        done += count


def _cut_rows(rows: np.ndarray, n: int) -> Iterator[tuple[int, "range | np.ndarray", "slice | np.ndarray"]]:
    numbers = rows // n
    ordered = bool((numbers[1:] >= numbers[:-1]).all())
    order = None if ordered else np.argsort(numbers, kind="stable")
    if order is not None:
        rows, numbers = rows[order], numbers[order]
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
    for start, stop in itertools.pairwise(edges):
        number = int(numbers[start])
        into = slice(start, stop) if order is None else order[start:stop]
        local = rows[start:stop] - number * n
        even = as_range(local)
        yield number, local if even is None else even, into


def run_all(jobs: Sequence[Callable[[], None]], nbytes: int) -> None:
    """Run jobs, in this thread and, where there is enough to do, others beside it; the first error ends them all."""
    if THREADS == 1 or len(jobs) < 2 or nbytes < max(_WORTHTHREADS, _WORTH_A_JOB * len(jobs)):
        for job in jobs:
            job()
        return
    # Each takes the next one: a helper that starts late takes fewer, and neighbours in the file are read at one time.
    waiting = deque(jobs)
    failed: list[BaseException] = []

    def work() -> None:
        while not failed:
            try:
                job = waiting.popleft()
            except IndexError:
                return
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                failed.append(error)

    helpers = [Thread(target=work, name="flystore-decode") for _ in range(min(THREADS, len(jobs)) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if failed:
        raise failed[0]
