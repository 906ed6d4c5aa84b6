"""Chunks of internal arrays as they lie on the disk, for readers that decode them themselves."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import google_crc32c
import msgspec

from flystore.model.errors import Damaged
from flystore.model.structures import ArrayStructure

from ._sums import METADATA, checked_metadata, written

if TYPE_CHECKING:
    from ._keep import Folder

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_SUM_BYTES = 4


class StoredArray(msgspec.Struct, frozen=True):
    """How the chunks of an internal array are stored.

    Attributes
    ----------
    chunks : tuple of int
        Shape of a chunk along the array's axes.
    dtype : str or list
        What `numpy.dtype` takes: whose bytes a decoded chunk is.
    blosc : dict
        Configuration of numcodecs for the compression.
    summed : bool
        Whether the CRC-32C of what Blosc made follows it.
    axes : int
        Axes of the stored array: one more than the array's where it keeps bytes of items.
    """

    chunks: tuple[int, ...]
    dtype: Any
    blosc: dict[str, Any]
    summed: bool
    axes: int


def stored_array(folder: "Folder", structure: ArrayStructure) -> StoredArray | None:
    """Return how the array in a folder is stored; None if not in the way in which this service stores arrays."""
    content = folder.get(METADATA)
    if content is None:
        raise FileNotFoundError(f"{METADATA} is gone")
    checked_metadata(content)
    described = json.loads(content)
    order, blosc, *rest = described["codecs"]
    sizes = tuple(described["chunk_grid"]["configuration"]["chunk_shape"])
    names = [codec["name"] for codec in (order, blosc, *rest)]
    axes = len(structure.shape)
    if names not in (["bytes", "blosc"], ["bytes", "blosc", "crc32c"]) or len(sizes) - axes not in (0, 1):
        return None
    dtype = structure.numpy_dtype
    if len(sizes) == axes and dtype.str[0] != "|":
        dtype = dtype.newbyteorder(">" if order.get("configuration", {}).get("endian") == "big" else "<")
    told = blosc["configuration"]
    return StoredArray(
        sizes[:axes],
        ArrayStructure.of(dtype, ()).dtype,
        {
            "id": "blosc",
            "cname": told["cname"],
            "clevel": told["clevel"],
            "shuffle": _SHUFFLES[told["shuffle"]],
            "blocksize": told["blocksize"],
            "typesize": told["typesize"],
        },
        len(rest) == 1,
        len(sizes),
    )


def stored_chunk(folder: "Folder", stored: StoredArray, index: Sequence[int]) -> bytes | None:
    """Return the compressed bytes of a chunk without their checksum, which they fit; None if nobody wrote it."""
    extra = (0,) * (stored.axes - len(stored.chunks))
    key = "/".join(("c", *map(str, (*index, *extra))))
    content = folder.get(key)
    if content is None:
        if key in written(folder):
            raise Damaged(f"the chunk {key} was written and is gone", chunk=key)
        return None
    if not stored.summed:
        return content
    body, checksum = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if len(content) < _SUM_BYTES or google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise Damaged(f"the chunk {key} fails its checksum", chunk=key)
    return content


def without_sum(chunk: bytes) -> bytes:
    """Return a summed chunk without its checksum, for readers that know none."""
    return chunk[:-_SUM_BYTES]
