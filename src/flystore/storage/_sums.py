"""Checksums of internal arrays: of their metadata and chunks, and which chunks there must be."""

import json
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec

from flystore.model.errors import Damaged

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


def written(directory: Path) -> frozenset[str]:
    """Return the chunks of the array in `directory` that are known to have been written."""
    try:
        lines = (directory / WRITTEN).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return frozenset()
    return frozenset(key for line in lines if written_line(key := _key_of(line)) == line)


def _key_of(line: bytes) -> str:
    return line.decode(errors="replace").rpartition(" ")[0]


def check_array(directory: Path) -> ArrayCheck:
    """Check the files of the array in `directory`; see `ArrayStore.verify`."""
    found = ArrayCheck()
    if not directory.is_dir():
        found.damaged.append("its directory is gone")
        return found
    listed = _listed(directory, found)
    if not (directory / METADATA).exists():
        # Items of no bytes have nothing to store.
        if listed is not None or any(directory.iterdir()):
            found.damaged.append(f"{METADATA} is gone")
        return found
    _check_metadata(directory, listed is not None, found)
    chunks = _chunks(directory)
    for path in chunks:
        _check_chunk(directory, path, found)
    gone = set(listed or ()) - {path.relative_to(directory).as_posix() for path in chunks}
    found.damaged += [f"the chunk {key} was written and is gone" for key in sorted(gone)]
    return found


def _chunks(directory: Path) -> list[Path]:
    top = directory / "c"
    if top.is_file():  # the one chunk of a scalar
        return [top]
    return sorted(path for path in top.rglob("*") if not path.name.startswith(".") and path.is_file())


def _listed(directory: Path, found: ArrayCheck) -> list[str] | None:
    try:
        lines = (directory / WRITTEN).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        if (directory / METADATA).exists():
            found.unverified.append("which chunks were written is not known")
        return None
    good = [key for line in lines if written_line(key := _key_of(line)) == line]
    torn = bool(lines) and not lines[-1].endswith(b"\n")  # a power cut may leave the last line short
    if len(good) + torn < len(lines):
        found.damaged.append(f"{len(lines) - len(good)} lines of {WRITTEN} fail their checksum")
    found.checked += 1
    return good


def _check_metadata(directory: Path, expected: bool, found: ArrayCheck) -> None:
    try:
        summed = checked_metadata((directory / METADATA).read_bytes())
    except Damaged as error:
        found.damaged.append(error.message)
        return
    if summed:
        found.checked += 1
    elif expected:
        found.damaged.append(f"{METADATA} has lost its checksum")
    else:
        found.unverified.append(f"{METADATA} carries no checksum")


def _check_chunk(directory: Path, path: Path, found: ArrayCheck) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # replaced while we looked
        return
    name = path.relative_to(directory).as_posix()
    body, stored = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if len(content) < _SUM_BYTES or google_crc32c.value(body) != int.from_bytes(stored, "little"):
        found.damaged.append(f"the chunk {name} fails its checksum")
    else:
        found.checked += 1
