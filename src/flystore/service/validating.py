"""Validation of runs, as bluesky-tiled-plugins asks for it: are the files what was announced, and can they be read.

A run that came as documents is judged by its verdict, and nothing of it is changed: what it is follows from its
documents. A run that was made by the protocol holds what its writer reckoned; with `fix`, structures that do not agree
with the files are corrected, each as an operation like any other.
"""

import math
import re
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from flystore.catalog import Catalog, Node
from flystore.model.errors import Conflict, FlystoreError, InvalidRequest, TooLarge, Unavailable, Unreadable
from flystore.model.queries import INTERRUPTED
from flystore.model.structures import ArrayStructure, DataSource, Family, Management
from flystore.readers import open_registered
from flystore.storage import Roots

from .arrays import Arrays
from .browse import Browse, everything_below, is_run, run_at
from .exporting import Exports
from .nodes import Nodes
from .observed import OK
from .verdicts import Verdicts

MOST_PATTERNS = 20
_MOST_LETTERS = 200
_MOST_REPEATS = 3
_SEARCHED_LETTERS = 400


class Validation(msgspec.Struct, frozen=True):
    """What was found.

    Attributes
    ----------
    notes : list of str
        If `valid`: what was corrected or ignored. If not: what is wrong.
    """

    valid: bool
    notes: list[str]


class Ignored:
    """Errors that the caller does not mind: regular expressions that match part of the message.

    Raises
    ------
    InvalidRequest
        If one is no regular expression.
    TooLarge
        If there are too many, or one could take for ever: it repeats a group, or has more than three repetitions.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > MOST_PATTERNS:
            raise TooLarge(f"{len(patterns)} patterns of errors to ignore", limit=MOST_PATTERNS)
        self._patterns = [_compiled(pattern) for pattern in patterns]

    def covers(self, message: str) -> bool:
        return any(pattern.search(message[:_SEARCHED_LETTERS]) for pattern in self._patterns)


def _compiled(pattern: str) -> re.Pattern[str]:
    repeats = len(re.findall(r"[*+?{]", re.sub(r"\\.", "", pattern)))
    if len(pattern) > _MOST_LETTERS or repeats > _MOST_REPEATS or re.search(r"\)\s*[*+?{]", pattern):
        raise TooLarge(
            f"the pattern {pattern[:80]!r} of errors to ignore could take for ever; use at most {_MOST_LETTERS} "
            f"letters and {_MOST_REPEATS} repetitions, none of a group",
            limit=_MOST_LETTERS,
        )
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidRequest(f"{pattern[:80]!r} is no regular expression: {error}") from error


class Validating:
    """Validates runs when somebody asks."""

    def __init__(
        self,
        catalog: Catalog,
        browse: Browse,
        nodes: Nodes,
        arrays: Arrays,
        exports: Exports,
        verdicts: Verdicts,
        roots: Roots,
    ) -> None:
        self._catalog = catalog
        self._browse = browse
        self._nodes = nodes
        self._arrays = arrays
        self._exports = exports
        self._verdicts = verdicts
        self._roots = roots

    def run(self, path: tuple[str, ...], *, fix: bool, read: bool, ignored: Ignored) -> Validation:
        """Validate the run at `path`.

        Parameters
        ----------
        fix : bool
            Correct structures that do not agree with the files; only of a run that has ended, and that was made by
            the protocol.
        read : bool
            Read the first and last value of each array, and the tables.

        Raises
        ------
        NotFound
            If nothing is at `path`.
        InvalidRequest
            If it is no run.
        """
        entry = self._browse.entry(path)
        if entry.node is None or len(path) != 1 or not is_run(entry.node):
            raise InvalidRequest(f"Entry at path '{'/'.join(path)}' is no BlueskyRun; cannot validate.", status=400)
        with self._catalog.read() as snapshot:
            run = run_at(snapshot, path)
            below = list(everything_below(snapshot, path))
        if run.writer == "documents":
            return self._judged(path, ignored)
        bad, notes = [], []
        for node in below:
            for message, ok in self._node(node, fix=fix and not run.open, read=read):
                if ok:
                    notes.append(message)
                elif ignored.covers(message):
                    notes.append(f"Ignored error: {message}")
                else:
                    bad.append(message)
        return Validation(not bad, bad or notes)

    def _judged(self, path: tuple[str, ...], ignored: Ignored) -> Validation:
        found = self._verdicts.of(path, look=True)
        bad = [f"'{file.path}' is {file.status}: {file.why}" for file in found.files if file.status != OK]
        bad += [f"'{file.path}': {file.why}" for file in found.files if file.status == OK and file.why]
        bad = [message for message in bad if not ignored.covers(message)]
        if found.state == INTERRUPTED and not ignored.covers(found.line):
            bad.append(found.line)
        # Clients write the notes of a valid run into its metadata, as if a person had. What is odd about this run is in
        # its verdict, and nothing was corrected.
        return Validation(not bad, bad)

    def _node(self, node: Node, *, fix: bool, read: bool) -> Iterator[tuple[str, bool]]:
        """Yield messages about a node, each with whether it is about something that is well now."""
        name = "/".join(node.path[1:])
        try:
            with self._catalog.read() as snapshot:
                source = snapshot.data_source(node.id)
            if source is not None and source.management is Management.EXTERNAL and node.family is Family.ARRAY:
                yield from (
                    (f"Structure validation of '{name}': {note}", True) for note in self._fixed(source, node, fix)
                )
                self._verdicts.look_at(node.path)  # as it is now, and as the run is
            if read:
                self._read(node)
        except Unavailable:  # says nothing about the files
            raise
        except FlystoreError as error:
            yield f"Validation of '{name}' failed: {error.message}", False

    def _fixed(self, source: DataSource, node: Node, fix: bool) -> list[str]:
        """Correct the structure of a node; return what was done.

        Raises
        ------
        Unreadable
            If it does not agree with the files, and is not to be corrected.
        """
        announced = ArrayStructure.from_wire(node.structure)
        with open_registered(source, announced, self._roots) as reader:
            shape, dtype = reader.as_found()
        right, notes = corrected(announced, shape, dtype, node.metadata.get("frame_per_point"))
        if not notes:
            return []
        if not fix:
            raise Unreadable("; ".join(notes))
        with self._catalog.read() as snapshot:
            if snapshot.node(node.path) != node:
                raise Conflict("it changed while it was validated; validate again")
        wire = right.to_wire()
        self._nodes.update_data_source(node.path, msgspec.structs.replace(source, structure=wire, assets=()))
        return [f"Fixed {note}" for note in notes]

    def _read(self, node: Node) -> None:
        with self._browse.moment() as moment:
            entry = self._browse.entry(node.path, moment)
        if entry.family is Family.ARRAY:
            structure = ArrayStructure.from_wire(entry.structure)
            if 0 not in structure.shape:
                for place in (0, -1):
                    self._arrays.read(node.path, (place,) * len(structure.shape))
        elif entry.family is Family.TABLE:
            for _ in self._exports.table(node.path).read():
                pass


def corrected(
    announced: ArrayStructure, shape: tuple[int, ...], dtype: np.dtype, frames_per_point: object = None
) -> tuple[ArrayStructure, list[str]]:
    """Return the structure that files of `shape` and `dtype` have, and how it differs from the announced one.

    A structure that is the files seen in another shape, as many values of the same type, is right, unless all that it
    adds are axes of length one: these are dropped, as stock does, and rows stay rows.

    Parameters
    ----------
    shape : tuple of int
        Of all files joined along the first axis.
    frames_per_point : int, optional
        How many entries of the files' first axis one event has, if the writer said so.
    """
    notes = []
    kept = announced.numpy_dtype
    if kept.newbyteorder("=") != dtype.newbyteorder("=") and kept.fields is None:
        notes.append(f"dtype mismatch: {kept} -> {dtype}")
        kept = dtype
    rows, item = math.prod(shape), math.prod(announced.shape[1:])
    right = announced.shape
    many = frames_per_point if isinstance(frames_per_point, int) else 0
    if rows != math.prod(announced.shape):
        if many > 0 and shape[0] % many == 0:
            right = (shape[0] // many, many, *shape[1:])
        elif announced.shape and item and rows % item == 0:
            right = (rows // item, *announced.shape[1:])
        else:
            right = shape
    if many <= 0 and kept.fields is None and _adds_only_ones(right, shape):
        right = shape
    if right != announced.shape:
        notes.append(f"shape mismatch: {announced.shape} -> {right}")
    dims = announced.dims
    if dims and len(dims) != len(right):
        # As the client's own check names the axes that nobody named.
        added = ("time", *dims, *(f"dim{i}" for i in range(len(dims) + 1, len(right))))
        dims = added if len(dims) < len(right) else dims[: len(right)]
        notes.append(f"dimension names: {announced.dims} -> {dims}")
    if not notes:
        return announced, []
    chunks = announced.chunks
    if right != announced.shape:
        same = len(right) == len(announced.shape)
        rows_at_once, *_ = lengths = [max(1, *axis) for axis in announced.chunks] or [1]
        if not same:
            lengths = [rows_at_once, *(max(1, n) for n in right[1:])][: len(right)]
        chunks = tuple(_axis(n, length) for n, length in zip(right, lengths, strict=True))
    return ArrayStructure.of(kept, right, chunks, dims), notes


def _adds_only_ones(told: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(told) <= len(shape) or not shape or told[0] != shape[0]:
        return False
    return [n for n in told[1:] if n != 1] == [n for n in shape[1:] if n != 1]


def _axis(n: int, length: int) -> tuple[int, ...]:
    whole, rest = divmod(n, length)
    return ((length,) * whole + ((rest,) if rest else ())) or (0,)
