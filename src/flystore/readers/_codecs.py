"""Which filters of HDF5 can be undone here, found out by undoing them."""

import struct
import zlib

import numpy as np
import zstandard

from ._filters import BITSHUFFLE, BLOSC, BY_HDF5, DEFLATE, FLETCHER32, LZ4, NAMES, SHUFFLE, ZSTD, Filter, decode
from ._late import blosc, h5py, lz4, numcodecs

_SAMPLE = np.arange(256, dtype="<u2")


def decodable_filters() -> dict[str, str | None]:
    """Return names of filters, with None for those that work, and what went wrong for the others."""
    found: dict[str, str | None] = {}
    for number, name in NAMES.items():
        try:
            found[name] = _problem(number)
        except Exception as error:  # noqa: BLE001  a broken library may raise anything
            found[name] = str(error) or type(error).__name__
    return found


def _problem(number: int) -> str | None:
    if number in BY_HDF5:
        return None if h5py.h5z.filter_avail(number) else "this build of HDF5 was made without it"
    plain = _SAMPLE.tobytes()
    chunk, values = _encoded(number, plain)
    same = decode(chunk, [Filter(number, values)], 0, 2, len(plain)) == plain
    return None if same else "it gives other values than were written"


def _encoded(number: int, plain: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Return bytes as the filter writes them, and its client data."""
    if number == DEFLATE:
        return zlib.compress(plain), ()
    if number == SHUFFLE:
        return bytes(numcodecs.Shuffle(2).encode(plain)), (2,)
    if number == FLETCHER32:
        return bytes(numcodecs.fletcher32.Fletcher32().encode(plain)), ()
    if number == BLOSC:
        return blosc.compress(plain, b"lz4", 5, 1), ()
    if number == ZSTD:
        return zstandard.ZstdCompressor().compress(plain), ()
    block = lz4.compress(plain)[4:]
    if number == LZ4:
        return struct.pack(">QII", len(plain), len(plain), len(block)) + block, ()
    assert number == BITSHUFFLE
    bits = np.unpackbits(np.frombuffer(plain, "u1").reshape(-1, 2), axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little").tobytes(), (0, 4, 2, 256)
