"""Checksums of internal arrays: of their metadata and chunks, and which chunks there must be."""

import json
from typing import TYPE_CHECKING, Any

import google_crc32c
import msgspec

from flystore.model.errors import Damaged

if TYPE_CHECKING:
    from ._keep import Folder

METADATA = "zarr.json"
WRITTEN = ".written"
"""Lists the chunks that were written: ``<key> <CRC-32C of the key, 8 hex digits>`` a line."""

_SUM = "crc32c"
_SUM_BYTES = 4


class ArrayCheck(msgspec.Struct):
    """What a look at all files of an array found.

    Attributes
    ----------
    checked : int
        Files whose bytes fit their checksums.
    unverified : list of str
        What carries no checksum, in words.
    damaged : list of str
        What is wrong, in words, each naming its file.
    """

    checked: int = 0
    unverified: list[str] = []
    damaged: list[str] = []


def summed_metadata(content: bytes) -> bytes:
    """Return the content of ``zarr.json`` with a checksum among its attributes."""
    described = json.loads(content)
    described.setdefault("attributes", {})[_SUM] = _sum_of(described)
    return json.dumps(described, indent=2).encode()


def checked_metadata(content: bytes) -> bool:
    """Return whether metadata carries a checksum.

    Raises
    ------
    Damaged
        If it does not fit it, or is no JSON object.
    """
    try:
        described = json.loads(content)
        stored = described.get("attributes", {}).get(_SUM)
        fits = stored is None or stored == _sum_of(described)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{METADATA} is not what was stored: {error}") from error
    if not fits:
        raise Damaged(f"{METADATA} fails its checksum")
    return stored is not None


def _sum_of(described: dict[str, Any]) -> str:
    attributes = {name: value for name, value in described.get("attributes", {}).items() if name != _SUM}
    content = json.dumps({**described, "attributes": attributes}, sort_keys=True)
    return f"{google_crc32c.value(content.encode()):08x}"


def written_line(key: str) -> bytes:
    """Return the line of a chunk in the list of those written."""
    return f"{key} {google_crc32c.value(key.encode()):08x}\n".encode()


def written(folder: "Folder") -> frozenset[str]:
    """Return the files of a folder that are known to have been written: chunks, or parts."""
    return listed_in(folder.get(WRITTEN) or b"")


def listed_in(content: bytes) -> frozenset[str]:
    """Return the names in a list of what was written; lines that fail their checksum are left out."""
    lines = content.splitlines(keepends=True)
    return frozenset(key for line in lines if written_line(key := _key_of(line)) == line)


def _key_of(line: bytes) -> str:
    return line.decode(errors="replace").rpartition(" ")[0]


def check_array(folder: "Folder") -> ArrayCheck:
    """Check the files of the array in a folder; see `ArrayStore.verify`."""
    found = ArrayCheck()
    if not folder.is_there():
        found.damaged.append("its directory is gone")
        return found
    metadata = folder.get(METADATA)
    listed = _listed(folder, metadata is not None, found)
    names = folder.names()
    if metadata is None:
        # Items of no bytes have nothing to store.
        if listed is not None or names:
            found.damaged.append(f"{METADATA} is gone")
        return found
    _check_metadata(metadata, listed is not None, found)
    chunks = sorted(name for name in names if _is_chunk(name))
    for name in chunks:
        _check_chunk(folder, name, found)
    gone = set(listed or ()) - set(chunks)
    found.damaged += [f"the chunk {key} was written and is gone" for key in sorted(gone)]
    return found


def _is_chunk(name: str) -> bool:
    # A scalar has one, without a number.
    return (name == "c" or name.startswith("c/")) and not name.rpartition("/")[2].startswith(".")


def _listed(folder: "Folder", is_array: bool, found: ArrayCheck) -> list[str] | None:
    content = folder.get(WRITTEN)
    if content is None:
        if is_array:
            found.unverified.append("which chunks were written is not known")
        return None
    lines = content.splitlines(keepends=True)
    good = [key for line in lines if written_line(key := _key_of(line)) == line]
    torn = bool(lines) and not lines[-1].endswith(b"\n")  # a power cut may leave the last line short
    if len(good) + torn < len(lines):
        found.damaged.append(f"{len(lines) - len(good)} lines of {WRITTEN} fail their checksum")
    found.checked += 1
    return good


def _check_metadata(content: bytes, expected: bool, found: ArrayCheck) -> None:
    try:
        summed = checked_metadata(content)
    except Damaged as error:
        found.damaged.append(error.message)
        return
    if summed:
        found.checked += 1
    elif expected:
        found.damaged.append(f"{METADATA} has lost its checksum")
    else:
        found.unverified.append(f"{METADATA} carries no checksum")


def _check_chunk(folder: "Folder", name: str, found: ArrayCheck) -> None:
    content = folder.get(name)
    if content is None:  # replaced while we looked
        return
    body, stored = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if len(content) < _SUM_BYTES or google_crc32c.value(body) != int.from_bytes(stored, "little"):
        found.damaged.append(f"the chunk {name} fails its checksum")
    else:
        found.checked += 1
