"""Sparse nodes: coordinates and values of what is not zero, as tables of the columns ``dim0`` … ``data``.

Each block of the array is a part (`flystore.storage.PartStore`) whose coordinates count from the block's corner.
A block that nobody wrote holds nothing, as an array that was created and not written reads as zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, product

import numpy as np

from flystore.catalog import Node
from flystore.model.errors import Damaged, InvalidRequest, OutOfBounds, TooLarge
from flystore.model.late import pa
from flystore.model.slices import Item, normalise, result_shape, selected
from flystore.model.structures import SPARSE_MIMETYPE, Family, SparseStructure
from flystore.storage import decode_untrusted, pack_table, read_parquet, reserve, rows_of

from .export import REGISTRY, TABLE_ENCODERS, TableSource
from .kept import KeptNodes
from .limits import Limits
from .operations import ArrayWritten

MOST_BLOCKS = 1 << 16
"""Blocks of one array, since each may be a file."""

_DATA = "data"


class Sparse:
    """Reads and writes sparse arrays."""

    def __init__(self, kept: KeptNodes, limits: Limits) -> None:
        self._kept = kept
        self._limits = limits

    # --- reading

    def read(
        self,
        path: tuple[str, ...],
        wanted: tuple[Item, ...] = (),
        *,
        block: tuple[int, ...] | None = None,
        expected_shape: tuple[int, ...] | None = None,
    ) -> TableSource:
        """Return what is stored of a part of an array, or of one block; coordinates count within the result.

        Parameters
        ----------
        wanted : tuple of slice or int
            Fewer than axes means the rest whole; an int drops its axis.
        block : tuple of int, optional
            Then `wanted` is relative to it.
        expected_shape : tuple of int, optional
            Shape of the result as the caller worked it out.

        Raises
        ------
        NotFound
            If there is no sparse array at `path`.
        OutOfBounds, InvalidRequest, TooLarge
            If slice or block do not fit, or the result exceeds the limit; before anything is read.
        Damaged
            If what was written cannot be read.
        """
        node = self._kept.readable(path, Family.SPARSE, SPARSE_MIMETYPE)
        structure = SparseStructure.from_wire(node.structure)
        blocks: Iterator[tuple[int, ...]]
        if block is None:
            shape, blocks = structure.shape, product(*(range(len(axis)) for axis in structure.chunks))
        else:
            shape, blocks = _block_shape(structure, block), iter([block])
        picked = normalise(wanted, shape)
        found_shape = result_shape(picked, shape)
        if expected_shape is not None and expected_shape != found_shape:
            raise InvalidRequest(
                f"The expected shape {expected_shape} does not match the actual shape {found_shape} that would "
                "result from the requested block and slice.",
                found=list(found_shape),
            )
        corners = structure.chunks if block is None else tuple((n,) for n in shape)
        places = [(at, at if block is None else (0,) * len(at)) for at in blocks]
        places = [(at, place) for at, place in places if _overlaps(place, corners, picked)]
        table = self._table(node, structure, places, corners, picked)
        return _source(path, node, table)

    def _table(
        self,
        node: Node,
        structure: SparseStructure,
        places: list[tuple[tuple[int, ...], tuple[int, ...]]],
        corners: tuple[tuple[int, ...], ...],
        picked: tuple[Item, ...],
    ) -> pa.Table:
        """Read blocks; `places` are their numbers and where in the grid `corners` they lie."""
        stored = [(part, place) for at, place in places if (part := self._rows(node, at)) is not None]
        item = np.dtype(structure.dtype).itemsize + len(structure.shape) * np.dtype(structure.coord_dtype).itemsize
        size = item * sum(rows for (_, rows), _ in stored)
        if size > self._limits.response_bytes:
            raise TooLarge(
                f"this part of /{'/'.join(node.path)} has up to {size} bytes; this service sends at most "
                f"{self._limits.response_bytes} at once. Ask for a smaller slice.",
                wanted=size,
                limit=self._limits.response_bytes,
            )
        reserve(4 * size, f"this part of /{'/'.join(node.path)}")
        kept = [axis for axis, item in enumerate(picked) if isinstance(item, slice)]
        coordinates: list[list[np.ndarray]] = [[] for _ in kept]
        values: list[np.ndarray] = []
        for (at, _), place in stored:
            table = self._part(node, at)
            found, data = _picked(table, _corner(corners, place), picked)
            for column, axis in zip(coordinates, kept, strict=True):
                column.append(found[axis])
            values.append(data)
        dtypes = [np.dtype(structure.coord_dtype).newbyteorder("=")] * len(kept)
        columns = {f"dim{i}": _joined(column, dtypes[i]) for i, column in enumerate(coordinates)}
        return pa.table({**columns, _DATA: _joined(values, np.dtype(structure.dtype).newbyteorder("="))})

    def _rows(self, node: Node, block: tuple[int, ...]) -> tuple[tuple[int, ...], int] | None:
        try:
            part = self._kept.store.path(str(node.id), _part_name(block))
            return None if part is None else (block, rows_of(part))
        except Damaged as error:
            raise self._kept.gone(node, error) from error

    def _part(self, node: Node, block: tuple[int, ...]) -> pa.Table:
        try:
            part = self._kept.store.path(str(node.id), _part_name(block))
            assert part is not None
            return read_parquet(part)
        except Damaged as error:
            raise self._kept.gone(node, error) from error

    # --- writing

    def write(self, path: tuple[str, ...], body: bytes) -> None:
        """Replace the whole array by what an Arrow body holds; coordinates count within the array.

        Raises
        ------
        NotFound, MadeFromDocuments, Unsupported
            If there is no sparse array that can be written to.
        InvalidRequest, OutOfBounds
            If the body is not Arrow with the columns ``dim0`` … ``data``, or a coordinate lies outside.
        """
        arrived = decode_untrusted(body, self._limits.inflated_bytes)
        with self._kept.writing(path, Family.SPARSE, SPARSE_MIMETYPE) as node:
            structure = SparseStructure.from_wire(node.structure)
            table = _checked(arrived, structure, structure.shape)
            places, order = _blocks_of(table, structure)
            grid = tuple(len(axis) for axis in structure.chunks)
            ends = np.searchsorted(places[order], np.arange(math.prod(grid)), side="right").tolist()
            begin = 0
            for number, block in enumerate(product(*map(range, grid))):
                rows = table.take(pa.array(order[begin : ends[number]])) if len(ends) > 1 else table
                begin = ends[number]
                if rows.num_rows or self._rows(node, block) is not None or len(ends) == 1:
                    self._store(node, block, _moved(rows, _corner(structure.chunks, block)))
            self._kept.log(node, ArrayWritten(len(body), None))

    def write_block(self, path: tuple[str, ...], block: tuple[int, ...], body: bytes) -> None:
        """Replace one block; coordinates count within it.

        Raises
        ------
        OutOfBounds
            Also if there is no such block.
        NotFound, MadeFromDocuments, Unsupported, InvalidRequest
            As `write` does.
        """
        arrived = decode_untrusted(body, self._limits.inflated_bytes)
        with self._kept.writing(path, Family.SPARSE, SPARSE_MIMETYPE) as node:
            structure = SparseStructure.from_wire(node.structure)
            table = _checked(arrived, structure, _block_shape(structure, block))
            self._store(node, block, table)
            self._kept.log(node, ArrayWritten(len(body), block))

    def _store(self, node: Node, block: tuple[int, ...], table: pa.Table) -> None:
        self._kept.store.write(str(node.id), _part_name(block), pack_table(table))


def check_sparse(structure: SparseStructure) -> SparseStructure:
    """Return a structure that an array can be kept with.

    Raises
    ------
    TooLarge
        If it has more axes than numpy, or more than `MOST_BLOCKS` blocks.
    InvalidRequest
        If it has no axes, or one so long that no coordinate could count it.
    """
    if len(structure.shape) > 32 or math.prod(map(len, structure.chunks)) > MOST_BLOCKS:
        raise TooLarge(f"a sparse array has at most 32 axes and {MOST_BLOCKS} blocks", limit=MOST_BLOCKS)
    most = np.iinfo(np.dtype(structure.coord_dtype)).max
    if not structure.shape or max(structure.shape) - 1 > min(most, 2**62):
        raise InvalidRequest(f"{structure.coord_dtype} cannot count the coordinates of shape {structure.shape}")
    return structure


def _source(path: tuple[str, ...], node: Node, table: pa.Table) -> TableSource:
    return TableSource(
        name="/" + "/".join(path),
        schema=table.schema,
        index=(),
        rows=table.num_rows,
        read=lambda: iter(table.to_batches()),
        metadata=node.metadata,
    )


def _part_name(block: tuple[int, ...]) -> str:
    return f"block-{'.'.join(map(str, block))}.parquet"


def _block_shape(structure: SparseStructure, block: tuple[int, ...]) -> tuple[int, ...]:
    if len(block) != len(structure.shape):
        raise OutOfBounds(f"block {block} does not have one index for each of the array's axes")
    for axis, (i, lengths) in enumerate(zip(block, structure.chunks, strict=True)):
        if not 0 <= i < len(lengths):
            raise OutOfBounds(f"block index {i} is outside axis {axis}, which has {len(lengths)} blocks")
    return tuple(lengths[i] for i, lengths in zip(block, structure.chunks, strict=True))


def _corner(chunks: tuple[tuple[int, ...], ...], block: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(lengths[:i]) for i, lengths in zip(block, chunks, strict=True))


def _overlaps(place: tuple[int, ...], chunks: tuple[tuple[int, ...], ...], picked: tuple[Item, ...]) -> bool:
    """Return whether a block may hold something of a slice."""
    for begin, i, lengths, item in zip(_corner(chunks, place), place, chunks, picked, strict=True):
        end = begin + lengths[i]
        if isinstance(item, int):
            low, high = item, item + 1
        else:
            chosen = selected(item, sum(lengths))
            if not chosen:
                return False
            low, high = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1
        if end <= low or begin >= high:
            return False
    return True


def _picked(table: pa.Table, corner: tuple[int, ...], picked: tuple[Item, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the coordinates of each axis within a slice, and the values, of what lies in the slice."""
    keep = np.ones(table.num_rows, bool)
    within = []
    for axis, item in enumerate(picked):
        place = table.column(axis).to_numpy().astype(np.int64) + corner[axis]
        if isinstance(item, int):
            keep &= place == item
        else:
            step = item.step
            begin, stop = item.start, item.stop
            if step > 0:
                keep &= (place >= begin) & (place < stop)
            else:
                keep &= (place <= begin) & (place > (-1 if stop is None else stop))
            keep &= (place - begin) % step == 0
            place = (place - begin) // step
        within.append(place)
    return [place[keep] for place in within], table.column(len(picked)).to_numpy()[keep]


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def _checked(table: pa.Table, structure: SparseStructure, shape: tuple[int, ...]) -> pa.Table:
    """Return the columns of a sparse array in their order and types."""
    names = [f"dim{axis}" for axis in range(len(shape))]
    if sorted(name for name in table.column_names if not name.startswith("__index_level_")) != sorted([*names, _DATA]):
        raise InvalidRequest(
            f"a sparse array of {len(shape)} axes has the columns {', '.join([*names, _DATA])}, not "
            f"{', '.join(table.column_names)[:200]}"
        )
    columns = {}
    for name, length in zip(names, shape, strict=True):
        column = _numbers(table, name, np.dtype(structure.coord_dtype))
        if len(column) and (column.min() < 0 or column.max() >= length):
            raise OutOfBounds(f"column {name} has coordinates outside 0 to {length - 1}", length=length)
        columns[name] = column
    columns[_DATA] = _numbers(table, _DATA, np.dtype(structure.dtype))
    return pa.table(columns)


def _numbers(table: pa.Table, name: str, dtype: np.dtype) -> np.ndarray:
    column = table.column(name)
    native = dtype.newbyteorder("=")
    if column.null_count:
        raise InvalidRequest(f"column {name} has {column.null_count} nulls; a sparse array has none", column=name)
    try:
        return column.cast(pa.from_numpy_dtype(native)).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidRequest(
            f"column {name} is {column.type}, which does not convert to {native}: {error}", column=name
        ) from error


def _blocks_of(table: pa.Table, structure: SparseStructure) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the block that each row belongs to, and the rows in the order of these."""
    place = np.zeros(table.num_rows, np.int64)
    for axis, lengths in enumerate(structure.chunks):
        edges = np.array(list(accumulate(lengths)), np.int64)
        index = np.searchsorted(edges, table.column(axis).to_numpy().astype(np.int64), side="right")
        place = place * len(lengths) + index
    return place, np.argsort(place, kind="stable")


def _moved(table: pa.Table, corner: tuple[int, ...]) -> pa.Table:
    """Return rows with coordinates that count from a corner."""
    columns = {}
    for axis, name in enumerate(table.column_names):
        values = table.column(name).to_numpy()
        moved = values if name == _DATA else values - values.dtype.type(corner[axis])
        columns[name] = moved
    return pa.table(columns)


for _media_type, _encode in TABLE_ENCODERS.items():
    REGISTRY.add("sparse", _media_type, _encode)
