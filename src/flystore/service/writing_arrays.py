"""Arrays that this service keeps: filled whole, by blocks or by regions, and extended."""

from typing import Any

from flystore.catalog import Node
from flystore.model.errors import Conflict, InvalidRequest, TooLarge, Unsupported
from flystore.model.slices import Item
from flystore.model.structures import ZARR_MIMETYPE, ArrayStructure, Family

from .browse import require_family
from .changing import Changing, require_writable
from .chunks import reserve_chunks
from .kept import log_write
from .operations import ArrayWritten, StructureSet

MOST_CHUNKS = 1 << 20
"""Chunks along one axis of an array that grows."""


class WritingArrays(Changing):
    """Writes arrays."""

    def write_array(self, path: tuple[str, ...], body: bytes) -> None:
        """Fill an array that this service keeps with C-ordered bytes.

        Raises
        ------
        InvalidRequest
            If the body has another length than the array.
        """
        node, structure = self._zarr(path)
        self._arrays.write_full(str(node.id), structure, body)
        log_write(self._catalog, node, ArrayWritten(len(body), None), self._clock())

    def write_block(
        self, path: tuple[str, ...], block: tuple[int, ...], body: bytes, within: tuple[Item, ...] = ()
    ) -> None:
        """Fill one block of an array, or what `within` names of it, relative to the block.

        Raises
        ------
        OutOfBounds, InvalidRequest
        """
        node, structure = self._zarr(path)
        self._arrays.write_block(str(node.id), structure, block, body, within)
        log_write(self._catalog, node, ArrayWritten(len(body), block), self._clock())

    def patch_array(
        self,
        path: tuple[str, ...],
        body: bytes,
        *,
        offset: tuple[int, ...],
        shape: tuple[int, ...],
        extend: bool,
    ) -> dict[str, Any]:
        """Overwrite or extend a region of an array; return its structure afterwards, in wire form.

        Raises
        ------
        Conflict
            If the region does not fit and `extend` is False; with `extend`, if somebody extended the array at
            this offset before, by something else: who saw the same end as another does not write over it.
        """
        # Two patches that extend must not both start from the structure of before: one after the other.
        first, _ = self._zarr(path)
        with self._patching.holding(first.id):
            node, structure = self._zarr(path)
            _require_few_chunks(structure, offset, shape)
            begin = (*offset, *(0,) * (len(structure.shape) - len(offset)))
            if extend and self._was_extended(node, begin):
                self._require_repeat(node, structure, begin, shape, body)
                return structure.to_wire()
            patched = self._arrays.patch(str(node.id), structure, offset, shape, body, extend)
            log_write(
                self._catalog,
                node,
                StructureSet(patched.to_wire(), offset, shape),
                self._clock(),
                extended_at=begin if patched.shape != structure.shape else None,
            )
        return patched.to_wire()

    def _was_extended(self, node: Node, begin: tuple[int, ...]) -> bool:
        with self._catalog.read() as snapshot:
            return snapshot.was_extended(node.id, begin)

    def _require_repeat(
        self, node: Node, structure: ArrayStructure, begin: tuple[int, ...], shape: tuple[int, ...], body: bytes
    ) -> None:
        """Let pass what is stored already, as when a caller repeats what it had no answer to."""
        ends = tuple(start + n for start, n in zip(begin, shape, strict=False))
        if len(shape) == len(begin) and all(end <= n for end, n in zip(ends, structure.shape, strict=True)):
            region = tuple(slice(start, end) for start, end in zip(begin, ends, strict=True))
            if self._arrays.read(str(node.id), structure, region).tobytes() == body:
                return
        raise Conflict(
            f"/{'/'.join(node.path)} was extended at {begin} by another request and has the shape {structure.shape} "
            "now. Read the structure again and extend it at its end; to overwrite what is there, patch without extend.",
            shape=list(structure.shape),
        )

    def require_array(
        self, path: tuple[str, ...], offset: tuple[int, ...] = (), shape: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Return the structure, in wire form, of an array that could be written to, and in which a region fits.

        Raises
        ------
        NotFound, MadeFromDocuments, Unsupported
            If it could not.
        Conflict
            If the region does not fit.
        """
        _, structure = self._zarr(path)
        ends = [start + n for start, n in zip((*offset, *(0,) * len(shape)), shape, strict=False)]
        if len(shape) not in (0, len(structure.shape)) or len(offset) > len(structure.shape):
            raise InvalidRequest(f"a patch of shape {shape} at {offset} does not belong to {structure.shape}")
        if any(end > n for end, n in zip(ends, structure.shape, strict=False)):
            raise Conflict(f"a patch of shape {shape} at {offset} does not fit {structure.shape}. Use ?extend=true.")
        return structure.to_wire()

    def _zarr(self, path: tuple[str, ...]) -> tuple[Node, ArrayStructure]:
        entry = require_family(self._browse.entry(path), Family.ARRAY)
        node = entry.node
        assert node is not None
        require_writable(node)
        sources = self._browse.data_sources(entry)
        if entry.column is not None or not sources or sources[0].mimetype != ZARR_MIMETYPE:
            raise Unsupported(f"/{'/'.join(path)} is not an array that this service keeps", status=405)
        structure = ArrayStructure.from_wire(node.structure)
        reserve_chunks(structure, path)
        return node, structure


def _require_few_chunks(structure: ArrayStructure, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse an offset so far out that the list of chunks, which every structure carries, would not fit."""
    for start, n, lengths in zip(offset, shape, structure.chunks, strict=False):
        chunk = max(*lengths, 1) if any(lengths) else max(n, 1)
        if (start + n) // chunk > MOST_CHUNKS:
            raise TooLarge(
                f"an axis of {start + n} in chunks of {chunk} has more than {MOST_CHUNKS} chunks; "
                "create the array with larger ones",
                limit=MOST_CHUNKS,
            )
