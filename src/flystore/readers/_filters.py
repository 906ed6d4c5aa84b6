"""HDF5 filter pipelines, decoded without HDF5 and outside its lock.

Only the filters named here are decoded, and none is ever loaded from a plugin path. Each decoder knows how
large its result may be before it makes it, so a chunk cannot inflate beyond what its dataset declares.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import zstandard

from ._late import blosc, lz4, numcodecs

DEFLATE, SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET = 1, 2, 3, 4, 5, 6
LZF, BLOSC, LZ4, BITSHUFFLE, ZSTD = 32000, 32001, 32004, 32008, 32015

NAMES = {
    DEFLATE: "deflate",
    SHUFFLE: "shuffle",
    FLETCHER32: "fletcher32",
    SZIP: "szip",
    NBIT: "n-bit",
    SCALEOFFSET: "scale-offset",
    LZF: "lzf",
    BLOSC: "blosc",
    LZ4: "lz4",
    BITSHUFFLE: "bitshuffle",
    ZSTD: "zstd",
}

BY_HDF5 = frozenset({SZIP, NBIT, SCALEOFFSET, LZF})
"""Filters that are compiled into HDF5 or h5py itself, and are left to them."""

_QUICK = frozenset({SHUFFLE, FLETCHER32, BLOSC, LZ4, BITSHUFFLE})
_SLOW_CODES = {BLOSC: (6, frozenset({4, 5})), BITSHUFFLE: (4, frozenset({3}))}
"""Filter -> which of its values is its compressor, and those that are zlib or Zstandard."""


BLOSC_HEAD = np.dtype(
    [("version", "u1"), ("codec_version", "u1"), ("flags", "u1"), ("itemsize", "u1")]
    + [("nbytes", "<u4"), ("block", "<u4"), ("cbytes", "<u4")]
)
"""What a Blosc frame begins with."""

_BLOSC_VERSION = 2
_NOT_EVERYWHERE = 2
"""Blosc's number of Snappy, which readers of Blosc 2 do not know."""


class BadChunk(Exception):
    """A chunk's bytes make no sense to its filters."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One step of a pipeline: HDF5's number of the filter, and its client data."""

    number: int
    values: tuple[int, ...]


def is_planned(filters: Sequence[Filter]) -> bool:
    """Return whether `decode` can undo all of a pipeline."""
    return all(f.number in _DECODERS for f in filters)


def is_quick(filters: Sequence[Filter]) -> bool:
    """Return whether a MiB goes through all of a pipeline within a millisecond or so."""
    for each in filters:
        place, slow = _SLOW_CODES.get(each.number, (0, frozenset()))
        if each.number not in _QUICK or (len(each.values) > place and each.values[place] in slow):
            return False
    return True


@contextmanager
def without_helpers() -> Iterator[None]:
    """Have Blosc decode in this thread alone, as it does in all but the main one: for a short chunk helpers cost more.

    For a main thread; there is one setting for the process, which changes nothing in other threads.
    """
    from numcodecs import blosc as loaded  # itself and not what stands for it, on which nothing can be set

    before, loaded.use_threads = loaded.use_threads, False
    try:
        yield
    finally:
        loaded.use_threads = before


def are_blosc_frames(heads: bytes, sizes: np.ndarray, nbytes: int) -> bool:
    """Return whether chunks are frames that any reader of Blosc decodes to so many bytes each, by their headers.

    Parameters
    ----------
    heads : bytes
        The first bytes of each chunk, as many as `BLOSC_HEAD` has.
    sizes : (n,) int64
        Bytes of each chunk as it is stored.
    nbytes : int
        Of a chunk, decoded.
    """
    found = np.frombuffer(heads, BLOSC_HEAD)
    known = (found["version"] == _BLOSC_VERSION) & (found["flags"] >> 5 != _NOT_EVERYWHERE)
    return bool((known & (found["nbytes"] == nbytes) & (found["cbytes"] == sizes)).all())


def decode(data: bytes, filters: Sequence[Filter], mask: int, itemsize: int, nbytes: int) -> bytes:
    """Return a chunk's bytes as they were before its filters.

    Parameters
    ----------
    data : bytes
        As stored.
    filters : sequence of Filter
        In the order in which they were applied on writing.
    mask : int
        Bit `i` is set where filter `i` was skipped for this chunk.
    itemsize, nbytes : int
        Bytes of an item and of the whole chunk, decoded.

    Raises
    ------
    BadChunk
        If the bytes make no sense, or are not `nbytes` in the end.
    """
    # A checksum that was added before compression makes the compressor's input a little longer.
    most = nbytes + 4 * sum(f.number == FLETCHER32 for f in filters)
    try:
        for i, step in reversed(list(enumerate(filters))):
            if not mask >> i & 1:
                data = _DECODERS[step.number](data, step.values, itemsize, most)
    except (zlib.error, zstandard.ZstdError, RuntimeError, ValueError, struct.error, IndexError) as error:
        raise BadChunk(str(error)) from error
    if len(data) != nbytes:
        raise BadChunk(f"it decodes to {len(data)} bytes instead of {nbytes}")
    return data


def decode_into(data: bytes, filters: Sequence[Filter], mask: int, out: np.ndarray) -> bool:
    """Decode a chunk straight to its place; False, and nothing done, where its filters cannot.

    Parameters
    ----------
    out : ndarray
        C-contiguous, of the size of the whole chunk. After an error its content is undefined.

    Raises
    ------
    BadChunk
        As `decode`.
    """
    if mask or len(filters) != 1 or filters[0].number != BLOSC:
        return False
    try:
        if _blosc_size(data, out.nbytes) != out.nbytes:
            raise BadChunk(f"it decodes to {_blosc_size(data, out.nbytes)} bytes instead of {out.nbytes}")
        blosc.decompress(data, out.reshape(-1).view("u1"))
    except (RuntimeError, ValueError, struct.error) as error:
        raise BadChunk(str(error)) from error
    return True


def _bounded(size: int, most: int) -> None:
    if not 0 <= size <= most:
        raise BadChunk(f"it claims to inflate to {size} bytes, the dataset declares {most}")


def _deflate(data: bytes, _: tuple[int, ...], __: int, most: int) -> bytes:
    inflater = zlib.decompressobj()
    result = inflater.decompress(data, most)
    if not inflater.eof and (inflater.unconsumed_tail or inflater.decompress(b"", 1)):
        raise BadChunk(f"it inflates to more than {most} bytes")
    if not inflater.eof:
        raise BadChunk("its compressed bytes end too early")
    return result


def _shuffle(data: bytes, values: tuple[int, ...], itemsize: int, _: int) -> bytes:
    size = values[0] if values else itemsize
    if size <= 1:
        return data
    whole = len(data) - len(data) % size
    planes = data if whole == len(data) else data[:whole]
    # numcodecs, because a transposing copy by numpy takes ten times as long.
    return bytes(numcodecs.Shuffle(size).decode(planes)) + data[whole:]


def _fletcher32(data: bytes, _: tuple[int, ...], __: int, ___: int) -> bytes:
    if len(data) < 4:
        raise BadChunk("it is too short for its checksum")
    return bytes(numcodecs.fletcher32.Fletcher32().decode(data))  # RuntimeError where the checksum is wrong


def _blosc(data: bytes, _: tuple[int, ...], __: int, most: int) -> bytes:
    _blosc_size(data, most)
    return blosc.decompress(data)


def _blosc_size(data: bytes, most: int) -> int:
    """Return the decoded size that a blosc frame announces, once it is known that reading it stays within it."""
    nbytes, _, cbytes = struct.unpack_from("<III", data, 4)
    _bounded(nbytes, most)
    # Blosc believes its header and would read beyond the bytes that are there.
    if cbytes != len(data):
        raise BadChunk(f"its blosc header announces {cbytes} bytes, there are {len(data)}")
    return int(nbytes)


def _zstd(data: bytes, _: tuple[int, ...], __: int, most: int) -> bytes:
    size = zstandard.get_frame_parameters(data).content_size
    if size != zstandard.CONTENTSIZE_UNKNOWN:
        _bounded(size, most)
        return zstandard.ZstdDecompressor().decompress(data)
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        result = reader.read(most + 1)
    _bounded(len(result), most)
    return result


def _lz4_block(block: bytes, size: int) -> bytes:
    return lz4.decompress(struct.pack("<I", size) + block)


def _lz4(data: bytes, _: tuple[int, ...], __: int, most: int) -> bytes:
    total, block_size = struct.unpack_from(">QI", data, 0)
    _bounded(total, most)
    if total and not block_size:
        raise BadChunk("its blocks have no length")
    pieces, at, left = [], 12, total
    while left > 0:
        size = min(block_size, left)
        (stored,) = struct.unpack_from(">I", data, at)
        block = _cut(data, at + 4, stored)
        pieces.append(block if stored == size else _lz4_block(block, size))
        at, left = at + 4 + stored, left - size
    return b"".join(pieces)


def _cut(data: bytes, start: int, length: int) -> bytes:
    if start + length > len(data):
        raise BadChunk("a block of it lies beyond its end")
    return data[start : start + length]


# --------------------------------------------------------------------------- bitshuffle


_BLOSC_CODES = {2: 1, 3: 4}  # bitshuffle's number of the compressor -> blosc's: LZ4, Zstandard


def _bitshuffle(data: bytes, values: tuple[int, ...], itemsize: int, most: int) -> bytes:
    size = values[2] if len(values) > 2 and values[2] else itemsize
    compressor = values[4] if len(values) > 4 else 0
    if compressor == 0:
        block = values[3] if len(values) > 3 and values[3] else _default_block(size)
        return _untranspose_blocks(data, size, block * size)
    if compressor not in _BLOSC_CODES:
        raise BadChunk(f"its bitshuffle compressor {compressor} is unknown")
    total, block_size = struct.unpack_from(">QI", data, 0)
    _bounded(total, most)
    if total and (block_size == 0 or block_size % (8 * size)):
        raise BadChunk(f"its bitshuffle blocks of {block_size} bytes are not whole")
    spans, tail = _bitshuffle_blocks(data, total, block_size, size)
    whole = total - len(tail)
    if not spans:
        return tail
    if size < 256 and all(length != plain for _, length, plain in spans):
        frame = _as_blosc(data, spans, whole, min(block_size, whole), size, _BLOSC_CODES[compressor])
        plain = blosc.decompress(frame)
        return plain + tail if tail else plain
    # Blosc takes a block as long as its plain size for one that was stored as it is; these go by hand.
    pieces = [_plain(_cut(data, at, n), plain, compressor) for at, n, plain in spans]
    return b"".join(_untranspose(piece, size) for piece in pieces) + tail


def _bitshuffle_blocks(data: bytes, total: int, block_size: int, size: int) -> tuple[list[tuple[int, int, int]], bytes]:
    """Return (start, length, plain length) of each compressed block, and the items left over at the end."""
    spans, at, left = [], 12, total
    while left >= 8 * size:
        plain = min(block_size, left - left % (8 * size))
        (length,) = struct.unpack_from(">I", data, at)
        if at + 4 + length > len(data):
            raise BadChunk("a block of it lies beyond its end")
        spans.append((at + 4, length, plain))
        at, left = at + 4 + length, left - plain
    return spans, _cut(data, at, left)


def _as_blosc(
    data: bytes, spans: list[tuple[int, int, int]], nbytes: int, block_size: int, size: int, code: int
) -> bytes:
    """Put the blocks of a bitshuffle chunk into a Blosc frame, whose C code undoes the same transposition."""
    table = 16 + 4 * len(spans)
    starts, blocks, at = [], [], table
    for start, length, _ in spans:
        starts.append(at)
        blocks.append(struct.pack("<i", length) + data[start : start + length])
        at += 4 + length
    flags = 0x04 | 0x10 | code << 5  # bit-shuffled, blocks not split
    header = struct.pack("<BBBBIII", 2, 1, flags, size, nbytes, block_size, at)
    return header + struct.pack(f"<{len(starts)}i", *starts) + b"".join(blocks)


def _plain(block: bytes, size: int, compressor: int) -> bytes:
    if compressor == 2:
        return _lz4_block(block, size)
    return zstandard.ZstdDecompressor().decompress(block, max_output_size=size)


def _default_block(size: int) -> int:
    """Return the items of a block where the writer left the choice to bitshuffle: about 8 KiB."""
    return max(8192 // size // 8 * 8, 128)


def _untranspose_blocks(data: bytes, size: int, block_size: int) -> bytes:
    pieces, at = [], 0
    while len(data) - at >= 8 * size:
        length = min(block_size, (len(data) - at) // (8 * size) * 8 * size)
        pieces.append(_untranspose(data[at : at + length], size))
        at += length
    return b"".join(pieces) + data[at:]


def _untranspose(block: bytes, size: int) -> bytes:
    """Undo the bit transposition of a block of a multiple of 8 items of `size` bytes."""
    planes = np.frombuffer(block, "u1").reshape(size * 8, -1)
    bits = np.unpackbits(planes, axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little").tobytes()


_DECODERS: dict[int, Callable[[bytes, tuple[int, ...], int, int], bytes]] = {
    DEFLATE: _deflate,
    SHUFFLE: _shuffle,
    FLETCHER32: _fletcher32,
    BLOSC: _blosc,
    LZ4: _lz4,
    BITSHUFFLE: _bitshuffle,
    ZSTD: _zstd,
}
