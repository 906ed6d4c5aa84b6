"""Ragged nodes: rows of unequal length, made of documents or sent by clients.

What clients send is kept in blocks of rows, a part each (`flystore.storage.PartStore`); the node's structure says how
many rows of each block there are, so what a write that was cut short left behind them is not shown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np

from flystore.catalog import Catalog, Node, Snapshot
from flystore.model.errors import Conflict, Damaged, InvalidRequest, NotReady, OutOfBounds, TooLarge, Unsupported
from flystore.model.late import pa
from flystore.model.slices import Item, normalise, selected
from flystore.model.structures import (
    RAGGED_MIMETYPE,
    SEGMENT_ARRAY_MIMETYPE,
    Family,
    RaggedStructure,
)
from flystore.projection import ragged_of_column
from flystore.storage import names_in, pack, read_zip, reserve, unpack_untrusted

from . import nested
from .browse import Browse, require_family
from .columns import column_to_nested, read_table, series_of_table, stored_pieces
from .export import ARROW, JSON, PARQUET, REGISTRY, ZIP, plain
from .forms import buffer_names
from .kept import KeptNodes, is_kept
from .limits import Limits
from .nested import Lists, Nested, Values, innermost
from .nested_arrow import arrow_file, parquet_file, table_of_rows
from .operations import ArrayWritten, StructureSet

MOST_BLOCKS = 256
"""Blocks that patches make; then they are added to the last one, until it is large."""

_LARGE_BLOCK_BYTES = 1 << 20
_LENGTH, _FORM = "length", "form"
_COPIES = 5  # as stored, as decoded, as encoded
_INDEX_BYTES = 24  # what choosing values one by one takes for each


class Ragged:
    """Reads and writes rows of unequal length."""

    def __init__(self, catalog: Catalog, browse: Browse, limits: Limits, kept: KeptNodes) -> None:
        self._catalog = catalog
        self._browse = browse
        self._limits = limits
        self._kept = kept

    # --- reading

    def require(self, path: tuple[str, ...]) -> None:
        """Let pass what is a ragged array.

        Raises
        ------
        NotFound
        """
        self._kept.found(path, Family.RAGGED)

    def read(self, path: tuple[str, ...], wanted: tuple[Item, ...] = ()) -> Nested | np.generic:
        """Return a slice; a single number is a numpy scalar.

        Raises
        ------
        NotFound
            If there is no ragged array at `path`.
        OutOfBounds, InvalidRequest, TooLarge
            If the slice does not fit, or the result exceeds the limit.
        Unsupported
            If its rows lie where this service cannot read them.
        Damaged, NotReady, Truncated
            If what was written cannot be read, or nobody wrote it.
        """
        with self._catalog.read() as snapshot:
            entry = require_family(self._browse.entry(path, snapshot), Family.RAGGED)
            node = entry.node
            assert node is not None
            if entry.column is not None:
                return self._of_column(snapshot, node, entry.column, wanted)
            source = snapshot.data_source(node.id)
        if is_kept(source, RAGGED_MIMETYPE):
            return self._of_blocks(node, wanted)
        if source is None or source.mimetype != SEGMENT_ARRAY_MIMETYPE:
            raise Unsupported(f"/{'/'.join(path)} holds no ragged rows that this service knows how to read")
        return nested.select(self._of_documents(path, wanted), wanted)

    def scalar(self, path: tuple[str, ...], wanted: tuple[Item, ...]) -> Any:
        """Return a slice as nested lists or a number, for JSON."""
        return _plain(self.read(path, wanted))

    def _of_column(self, snapshot: Snapshot, table: Node, name: str, wanted: tuple[Item, ...]) -> Nested | np.generic:
        """Return rows of a table's column, whose lists differ in length."""
        column = read_table(snapshot, table, [name]).column(0)
        found = column_to_nested(column)
        if found is None:
            raise NotReady(f"the rows of /{'/'.join(table.path)} were replaced while they were read")
        itemsize = innermost(found).itemsize
        self._require_small((*table.path, name), column.nbytes, itemsize, wanted)
        return nested.select(found, wanted)

    def _of_documents(self, path: tuple[str, ...], wanted: tuple[Item, ...]) -> Nested:
        with self._catalog.read() as snapshot:
            entry = self._browse.entry(path, snapshot)
            assert entry.node is not None
            source = snapshot.data_source(entry.node.id)
            assert source is not None
            (pieces,) = stored_pieces(snapshot, series_of_table(entry.node), [source.parameters["column"]])
        structure = RaggedStructure.from_wire(entry.structure)
        itemsize = max(np.dtype(structure.dtype).itemsize, 1)
        self._require_small(path, sum(piece.nbytes for piece in pieces), itemsize, wanted)
        values, offsets = ragged_of_column(pieces, structure)
        found: Nested = Values(values)
        for level in reversed(offsets):
            found = Lists(level.astype(np.int64), found)
        return found

    def _of_blocks(self, node: Node, wanted: tuple[Item, ...]) -> Nested | np.generic:
        structure = RaggedStructure.from_wire(node.structure)
        rows = structure.shape[0]
        assert rows is not None
        (first,) = normalise(wanted[:1], (rows,))
        lowest, highest = (first, first + 1) if isinstance(first, int) else _bounds(first, rows)
        blocks = _blocks(structure)
        starts = list(accumulate(blocks, initial=0))
        needed = [i for i, n in enumerate(blocks) if n and starts[i] < highest and starts[i] + n > lowest]
        if not needed:
            return nested.select(_empty(structure), wanted)
        size = sum(self._size(node, i) for i in needed)
        self._require_small(node.path, size, np.dtype(structure.dtype).itemsize, wanted)
        found = nested.joined([self._block(node, structure, i, blocks[i]) for i in needed])
        begin = starts[needed[0]]
        if isinstance(first, int):
            return nested.select(found, (first - begin, *wanted[1:]))
        stop = None if first.stop is None or first.stop < begin else first.stop - begin
        return nested.select(found, (slice(first.start - begin, stop, first.step), *wanted[1:]))

    def _require_small(self, path: tuple[str, ...], size: int, itemsize: int, wanted: tuple[Item, ...]) -> None:
        if size > self._limits.response_bytes:
            raise TooLarge(
                f"these rows of /{'/'.join(path)} hold {size} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once",
                limit=self._limits.response_bytes,
            )
        chosen = _INDEX_BYTES * size // itemsize if len(wanted) > 1 or not _is_run(wanted) else 0
        reserve(_COPIES * size + chosen, f"these rows of /{'/'.join(path)}")

    def _size(self, node: Node, block: int) -> int:
        return sum(size for _, size in self._names(node, block))

    def _names(self, node: Node, block: int) -> list[tuple[str, int]]:
        try:
            path = self._kept.store.path(str(node.id), _part(block))
            if path is None:
                raise self._kept.never_written(node, f"block {block}")
            return names_in(path)
        except Damaged as error:
            raise self._kept.gone(node, error) from error

    def _block(self, node: Node, structure: RaggedStructure, block: int, rows: int) -> Nested:
        try:
            path = self._kept.store.path(str(node.id), _part(block))
            if path is None:
                raise self._kept.never_written(node, f"block {block}")
            found = _unpacked(read_zip(path), structure)
            if len(found) < rows:
                raise Damaged(f"block {block} has {len(found)} rows; {rows} were written")
        except Damaged as error:
            raise self._kept.gone(node, error) from error
        except InvalidRequest as error:
            raise self._kept.gone(node, Damaged(f"block {block} is not what was written: {error}")) from error
        return found if len(found) == rows else nested.part(found, 0, rows)

    # --- writing

    def write(self, path: tuple[str, ...], body: bytes) -> None:
        """Replace all rows by those of a zip of buffers.

        Raises
        ------
        NotFound, MadeFromDocuments, Unsupported
            If there is no ragged array that can be written to.
        InvalidRequest
            If the body is something else, or has not the shape and dtype that the node announced.
        """
        with self._kept.writing(path, Family.RAGGED, RAGGED_MIMETYPE) as node:
            structure = RaggedStructure.from_wire(node.structure)
            rows = self._arrived(body, structure)
            _require_rows(len(rows), structure.shape[0] or 0)
            begin = 0
            for block, n in enumerate(_blocks(structure)):
                self._store(node, block, nested.part(rows, begin, begin + n))
                begin += n
            self._log(node, msgspec.structs.replace(structure, size=nested.count(rows)), ArrayWritten(len(body), None))

    def write_block(self, path: tuple[str, ...], block: tuple[int, ...], body: bytes) -> None:
        """Replace the rows of one block.

        Raises
        ------
        OutOfBounds
            If there is no such block.
        NotFound, MadeFromDocuments, Unsupported, InvalidRequest
            As `write` does.
        """
        with self._kept.writing(path, Family.RAGGED, RAGGED_MIMETYPE) as node:
            structure = RaggedStructure.from_wire(node.structure)
            blocks = _blocks(structure)
            if not block or block[0] >= len(blocks) or any(block[1:]):
                raise OutOfBounds(f"there is no block {block}; the array has {len(blocks)} along its first axis")
            rows = self._arrived(body, structure)
            _require_rows(len(rows), blocks[block[0]])
            self._store(node, block[0], rows)
            changed = msgspec.structs.replace(structure, size=self._counted(node, structure))
            self._log(node, changed, ArrayWritten(len(body), block))

    def append(
        self, path: tuple[str, ...], body: bytes, *, offset: tuple[int, ...], shape: tuple[int, ...], extend: bool
    ) -> dict[str, Any]:
        """Add rows after the last; return the structure afterwards, in wire form.

        Parameters
        ----------
        offset, shape : tuple of int
            Where the caller takes the end to be, and how many rows it sends; further axes must be 0 and whole.

        Raises
        ------
        Conflict
            If `offset` is not the end, as when somebody else added rows, or `extend` is False.
        NotFound, MadeFromDocuments, Unsupported, InvalidRequest
            As `write` does.
        """
        with self._kept.writing(path, Family.RAGGED, RAGGED_MIMETYPE) as node:
            structure = RaggedStructure.from_wire(node.structure)
            before = structure.shape[0]
            assert before is not None
            rows = self._arrived(body, structure)
            if shape and shape[0] != len(rows):
                raise InvalidRequest(f"shape says {shape[0]} rows; {len(rows)} were sent")
            if not extend:
                raise Conflict(
                    f"rows of a ragged array cannot be replaced by a patch, and {len(rows)} rows at {offset} do not "
                    f"fit within the current {before}. Use ?extend=true to add rows at the end.",
                    rows=before,
                )
            if not offset or offset[0] != before or any(offset[1:]):
                raise Conflict(
                    f"rows can only be added after the last: at offset {before}, not {offset}. Read the structure "
                    "again; somebody else may have added rows.",
                    rows=before,
                )
            changed = self._appended(node, structure, rows)
            self._kept.log(node, StructureSet(changed.to_wire(), offset, (len(rows),)))
            return changed.to_wire()

    def _appended(self, node: Node, structure: RaggedStructure, rows: Nested) -> RaggedStructure:
        blocks = list(_blocks(structure))
        while blocks and not blocks[-1]:
            blocks.pop()  # a block of no rows holds nothing
        last = len(blocks) - 1
        if len(blocks) >= MOST_BLOCKS and self._size(node, last) < _LARGE_BLOCK_BYTES:
            rows_there = self._block(node, structure, last, blocks[last])
            self._store(node, last, nested.joined([rows_there, rows]))
            blocks[last] += len(rows)
        elif len(rows):
            self._store(node, last + 1, rows)
            blocks.append(len(rows))
        shape = (sum(blocks), *structure.shape[1:])
        size = structure.size + nested.count(rows)
        return msgspec.structs.replace(structure, shape=shape, size=size, blocks=tuple(blocks) or (0,))

    def _arrived(self, body: bytes, structure: RaggedStructure) -> Nested:
        limit = self._limits.inflated_bytes
        buffers = unpack_untrusted(body, lambda name: True, limit)
        size = sum(map(len, buffers.values()))
        reserve(_COPIES * size + _INDEX_BYTES * size // np.dtype(structure.dtype).itemsize, "this ragged body")
        return _unpacked(buffers, structure)

    def _store(self, node: Node, block: int, rows: Nested) -> None:
        self._kept.store.write(str(node.id), _part(block), zipped(rows))

    def _counted(self, node: Node, structure: RaggedStructure) -> int:
        """Return how many values there are; while blocks are missing, what was announced."""
        itemsize = np.dtype(structure.dtype).itemsize
        total = 0
        for block, rows in enumerate(_blocks(structure)):
            if not rows:
                continue
            if self._kept.store.path(str(node.id), _part(block)) is None:
                return structure.size
            total += sum(size for name, size in self._names(node, block) if name.endswith("-data")) // itemsize
        return total

    def _log(self, node: Node, changed: RaggedStructure, operation: ArrayWritten) -> None:
        wire = changed.to_wire()
        if wire == node.structure:
            self._kept.log(node, operation)
        else:
            self._kept.log(node, StructureSet(wire, (0,), (changed.shape[0] or 0,)))


def check_ragged(structure: RaggedStructure) -> RaggedStructure:
    """Return a structure that rows can be kept with.

    Raises
    ------
    InvalidRequest
        If it has no rows to count, its blocks are not its rows, or its values are no numbers.
    """
    if not structure.shape or structure.shape[0] is None or len(structure.shape) > 32:
        raise InvalidRequest(f"a ragged array has a known number of rows and at most 32 axes, not {structure.shape}")
    if structure.blocks is not None and sum(structure.blocks) != structure.shape[0]:
        raise InvalidRequest(f"the blocks do not add up to {structure.shape[0]} rows")
    if np.dtype(structure.dtype).kind not in "biufcmM":
        raise InvalidRequest(f"values of a ragged array are numbers, not {structure.dtype}")
    return structure


def zipped(node: Nested) -> bytes:
    """Return data as a zip of its buffers, its length and its form, as clients of the protocol read and send it."""
    form, buffers = nested.to_buffers(node)
    # The form is text within text: the client reads it twice.
    described = msgspec.json.encode(msgspec.json.encode(form).decode())
    return pack({**buffers, _LENGTH: struct.pack(">q", len(node)), _FORM: described})


def _unpacked(buffers: dict[str, bytes], structure: RaggedStructure) -> Nested:
    try:
        (length,) = struct.unpack(">q", buffers[_LENGTH])
        form = msgspec.json.decode(msgspec.json.decode(buffers[_FORM], type=str))
    except (KeyError, struct.error, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"this is not a zip with the length and the form of an array: {error!r:.200}") from error
    if not isinstance(form, dict) or not 0 <= length < 1 << 40:
        raise InvalidRequest("this is not a zip with the length and the form of an array")
    known = {name for names in buffer_names(form).values() for name in names}
    if not known | {_LENGTH, _FORM} >= set(buffers):
        raise InvalidRequest("the zip holds buffers that its form does not name")
    found = nested.from_buffers(form, length, buffers)
    return nested.fitted(found, structure.shape[1:], np.dtype(structure.dtype))


def _blocks(structure: RaggedStructure) -> tuple[int, ...]:
    return structure.blocks if structure.blocks is not None else (structure.shape[0] or 0,)


def _part(block: int) -> str:
    return f"block-{block}.zip"


def _empty(structure: RaggedStructure) -> Nested:
    return nested.fitted(Values(np.zeros(0)), structure.shape[1:], np.dtype(structure.dtype))


def _is_run(wanted: tuple[Item, ...]) -> bool:
    return not wanted or isinstance(wanted[0], int) or wanted[0].step in (None, 1)


def _bounds(item: slice, rows: int) -> tuple[int, int]:
    picked = selected(item, rows)
    return (min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1) if picked else (0, 0)


def _require_rows(found: int, wanted: int) -> None:
    if found != wanted:
        raise InvalidRequest(
            f"{found} rows were sent for {wanted}; to add rows, patch the array", announced=wanted, found=found
        )


# --------------------------------------------------------------------------- formats


def _plain(found: Nested | np.generic) -> Any:
    return plain.of_array(np.asarray(found)) if isinstance(found, np.generic) else nested.to_lists(found)


def _as_zip(found: Nested | np.generic, parameters: Mapping[str, str]) -> Iterator[bytes]:
    if isinstance(found, np.generic):
        raise Unsupported("a single value cannot be sent as zipped buffers; ask for application/json")
    yield zipped(found)


def _as_json(found: Nested | np.generic, parameters: Mapping[str, str]) -> Iterator[bytes]:
    yield plain.encode(_plain(found))


def _table(found: Nested | np.generic) -> pa.Table:
    if isinstance(found, np.generic):
        raise Unsupported("a single value is no table; ask for application/json")
    return table_of_rows(found)


def _as_arrow(found: Nested | np.generic, parameters: Mapping[str, str]) -> Iterator[bytes]:
    yield arrow_file(_table(found))


def _as_parquet(found: Nested | np.generic, parameters: Mapping[str, str]) -> Iterator[bytes]:
    yield parquet_file(_table(found))


for _media_type, _encode in ((ZIP, _as_zip), (JSON, _as_json), (ARROW, _as_arrow), (PARQUET, _as_parquet)):
    REGISTRY.add("ragged", _media_type, _encode)
