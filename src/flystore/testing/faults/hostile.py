"""Requests and files that mean harm: small to send, and much to take in or far out of bounds.

`Bomb` is one request with the kind by which it must be refused. Files are written into a read root and registered
first, as somebody would who may write there.
"""

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import msgspec
import numpy as np
import pyarrow as pa

from flystore.model.frames import FRAMES_MIMETYPE, frame
from flystore.model.structures import ArrayStructure, TableStructure

OCTETS = {"Content-Type": "application/octet-stream"}
MSGPACK = {"Content-Type": "application/x-msgpack"}
FRAMES = {"Content-Type": FRAMES_MIMETYPE}


class Bomb(NamedTuple):
    """A request that must be refused.

    Attributes
    ----------
    kinds : tuple of str
        Of the error; one of them.
    """

    name: str
    method: str
    path: str
    kinds: tuple[str, ...]
    body: bytes | None = None
    headers: dict[str, str] = {}


def node(key: str, structure: dict[str, Any], family: str = "array", **source: Any) -> dict[str, Any]:
    """Return the body that makes or registers a node."""
    described = {"structure_family": family, "structure": structure, "management": "writable", **source}
    return {"id": key, "structure_family": family, "metadata": {}, "data_sources": [described]}


def registered(key: str, uri: str, structure: dict[str, Any], mimetype: str, **parameters: Any) -> dict[str, Any]:
    """Return the body that registers one file."""
    assets = [{"data_uri": uri, "num": 0}]
    return node(key, structure, mimetype=mimetype, management="external", assets=assets, parameters=parameters)


def of(dtype: str, shape: tuple[int, ...], chunks: Any = None) -> dict[str, Any]:
    return ArrayStructure.of(dtype, shape, chunks).to_wire()


# --- files that claim much -----------------------------------------------------------------------------


def write_files(root: Path) -> list[dict[str, Any]]:
    """Write hostile files; return what registers each."""
    return [made for write in (_hdf5_files, _image_files, _plain_files) for made in write(root)]


def _hdf5_files(root: Path) -> Iterator[dict[str, Any]]:
    uri = f"file://localhost{root}"
    with h5py.File(root / "declares.h5", "w", libver="latest") as file:
        file.create_dataset("wide", (1 << 36, 1 << 20), "<f8", chunks=(1, 1 << 20))
        # One chunk of 512 MiB, which deflate makes half a megabyte of.
        space = file.create_dataset("chunk", (1, 1 << 26), "<f8", chunks=(1, 1 << 26), compression="gzip")
        inflated = gzip_of_zeros(1 << 29)
        space.id.write_direct_chunk((0, 0), inflated)
    yield registered("chunk", f"{uri}/declares.h5", of("<f8", (1, 1 << 26)), "application/x-hdf5", dataset="chunk")
    yield registered("wide", f"{uri}/declares.h5", of("<f8", (1 << 36, 1 << 20)), "application/x-hdf5", dataset="wide")
    _unwritten(root / "sparse.h5", h5py.h5t.IEEE_F64LE, (1 << 24, 1 << 5), None)
    yield registered("declares", f"{uri}/sparse.h5", of("<f8", (1 << 24, 1 << 5)), "application/x-hdf5", dataset="x")
    # Two million chunks that are all there, in a file that takes no space: their index alone is large.
    _unwritten(root / "chunks.h5", h5py.h5t.STD_U8LE, (2_000_000,), (1,))
    yield registered("chunks", f"{uri}/chunks.h5", of("|u1", (2_000_000,)), "application/x-hdf5", dataset="x")


def _unwritten(path: Path, kind: Any, shape: tuple[int, ...], chunk: tuple[int, ...] | None) -> None:
    """Make a dataset whose bytes are all there and were never written: the file takes next to no space."""
    with h5py.File(path, "w", libver="latest") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunk is not None:
            plist.set_chunk(chunk)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple(shape), plist)


def gzip_of_zeros(size: int) -> bytes:
    """Return so many zeros in the form that HDF5's deflate filter takes."""
    import zlib

    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    parts = [packer.compress(piece) for _ in range(size >> 20)]
    return b"".join(parts) + packer.flush()


def _image_files(root: Path) -> Iterator[dict[str, Any]]:
    # One strip of nearly no bytes that stands for 4 GB of pixels.
    side = 1 << 15
    strip = gzip_of_zeros(1 << 20)
    entries = [
        (256, 4, side), (257, 4, side), (258, 3, 32), (259, 3, 8), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 4, side), (279, 4, len(strip)), (339, 3, 3),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
    content = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4)
    (root / "huge.tif").write_bytes(content)
    yield registered("tiff", f"file://localhost{root}/huge.tif", of("<f4", (side, side)), "image/tiff")


def _plain_files(root: Path) -> Iterator[dict[str, Any]]:
    uri = f"file://localhost{root}"
    header = "{'descr': '<f8', 'fortran_order': True, 'shape': (4294967296, 4)}".ljust(117) + "\n"
    (root / "fortran.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    with (root / "fortran.npy").open("r+b") as file:
        file.truncate(1 << 38)  # takes no space
    yield registered("fortran", f"{uri}/fortran.npy", of("<f8", (1 << 32, 4)), "application/x-npy")
    np.save(root / "objects.npy", np.array([{"a": 1}, None], object), allow_pickle=True)
    yield registered("objects", f"{uri}/objects.npy", of("<f8", (2,)), "application/x-npy")
    with (root / "long.csv").open("wb") as file:
        file.write(b"1,2\n")
        file.truncate(200 << 20)
    yield registered("csv", f"{uri}/long.csv", of("<f8", (1, 2)), "text/csv;header=absent")


# --- requests ------------------------------------------------------------------------------------------

LARGE = ("too-large",)
WRONG = ("invalid-request",)


def prepare() -> list[dict[str, Any]]:
    """Return bodies of nodes to make before the bombs are sent."""
    schema = pa.schema([("a", "int64"), ("s", "string")])
    one_chunk = of("|u1", (1 << 30,))
    return [
        node("big", one_chunk),
        node("table", TableStructure.of(schema).to_wire(), "table"),
        {"id": "box", "structure_family": "container", "metadata": {"a": list(range(100))}, "specs": []},
    ]


def file_bombs() -> list[Bomb]:
    """Return reads of the files of `write_files`."""
    full = "/array/full"
    refused = (*LARGE, "unreadable", "truncated", "unsupported")
    return [
        Bomb("HDF5 that declares 4 GB", "GET", f"{full}/declares", LARGE),
        Bomb("HDF5, a chunk of 512 MiB in half a MB", "GET", f"{full}/chunk?slice=0,0", LARGE),
        Bomb("HDF5 that declares 4 GB, backwards", "GET", f"{full}/declares?slice=::-1", LARGE),
        Bomb("HDF5 that declares 2**59 bytes", "GET", f"{full}/wide?slice=0", (*LARGE, "unsupported")),
        Bomb("HDF5, two million chunks", "GET", f"{full}/chunks?slice=0", refused),
        Bomb("TIFF that declares 4 GB", "GET", f"{full}/tiff?slice=0,0", refused),
        Bomb("NPY of 128 GB to be turned", "GET", f"{full}/fortran?slice=0", refused),
        Bomb("NPY of pickles", "GET", f"{full}/objects", ("unsupported",)),
        Bomb("CSV of 200 MB", "GET", f"{full}/csv?slice=0", refused),
    ]


def request_bombs() -> list[Bomb]:
    """Return requests that need no file."""
    return [*_bodies(), *_arrow_bodies(), *_slices(), *_questions()]


def _bodies() -> Iterator[Bomb]:
    wide = b'{"id":"w","structure_family":"container","metadata":{"a":[' + b"[]," * 5_000_000 + b"[]]}}"
    deep = b'{"id":"d","structure_family":"container","metadata":{"a":%s}}'
    yield Bomb("JSON of five million lists", "POST", "/metadata/", LARGE, wide)
    for depth in (65, 500, 100_000):
        yield Bomb(f"JSON {depth} deep", "POST", "/metadata/", WRONG, deep % (b"[" * depth + b"]" * depth))
    yield Bomb("an integer of 5,000 digits", "POST", "/metadata/", WRONG, deep % (b"9" * 5000))
    zipped = gzip.compress(deep % (b"[" + b"0," * 20_000_000 + b"0]"))
    yield Bomb("a gzip body", "POST", "/metadata/", ("unsupported",), zipped, {"Content-Encoding": "gzip"})
    yield Bomb("a zstd body", "PUT", "/array/full/big", ("unsupported",), b"x", {"Content-Encoding": "zstd", **OCTETS})
    many = b"\x83\xa2id\xa1m\xb0structure_family\xa9container\xa8metadata\x81\xa1a\xdd" + struct.pack(">I", 5_000_000)
    yield Bomb("msgpack of five million lists", "POST", "/metadata/", LARGE, many + b"\x90" * 5_000_000, MSGPACK)
    yield Bomb("msgpack 100,000 deep", "POST", "/metadata/", WRONG, b"\x91" * 100_000 + b"\xc0", MSGPACK)
    yield Bomb("msgpack of 2**32 - 1 items", "POST", "/metadata/", WRONG, b"\xdd\xff\xff\xff\xff", MSGPACK)
    yield Bomb("msgpack of 2**32 - 1 bytes", "POST", "/metadata/", WRONG, b"\xc6\xff\xff\xff\xff", MSGPACK)
    ingest = "/ingest/bomb?first=0&epoch=0"
    document = b"\x93\x00\xa5start\x81\xa1a\xdd" + struct.pack(">I", 5_000_000) + b"\x90" * 5_000_000
    yield Bomb("a document of five million lists", "POST", ingest, LARGE, frame(document), FRAMES)
    nested = msgspec.msgpack.encode([0, "start", {"uid": "bomb"}])[:-1]
    yield Bomb("a document 10,000 deep", "POST", ingest, WRONG, frame(nested + b"\x91" * 10_000 + b"\xc0"), FRAMES)
    yield Bomb("bytes that are no frame", "POST", ingest, WRONG, b"\xff" * 1000, FRAMES)


def _arrow_bodies() -> Iterator[Bomb]:
    append = "/table/partition/table?partition=0"
    zeros = pa.table({"a": np.zeros(1 << 27, "<i8")})
    for compression in ("zstd", "lz4"):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(sink, zeros.schema, options=options) as writer:
            writer.write_table(zeros)
        yield Bomb(f"Arrow of 1 GiB in {compression}", "PATCH", append, LARGE, sink.getvalue().to_pybytes())
    sink = pa.BufferOutputStream()
    rows = pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.null(), (1 << 31) - 1, [None])], ["a"])
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    yield Bomb("Arrow of two billion nulls", "PATCH", append, LARGE, sink.getvalue().to_pybytes())
    text = pa.RecordBatch.from_arrays([pa.array([1]), pa.array(["abc"])], ["a", "s"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, text.schema) as writer:
        writer.write_batch(text)
    wrong = sink.getvalue().to_pybytes().replace(struct.pack("<ii", 0, 3), struct.pack("<ii", 0, 1 << 30))
    yield Bomb("Arrow with text that ends far outside", "PATCH", append, WRONG, wrong)


def _slices() -> Iterator[Bomb]:
    full = "/array/full/big"
    out = (*WRONG, "out-of-bounds")
    for name, text in {
        "of 10,000 axes": ",".join(["0"] * 10_000),
        "of 5,000 digits": "9" * 5000,
        "with step 0": "::0",
        "of words": "__import__('os')",
        "beyond 64 bits": f"{2**63}:{2**64}",
        "of nothing but colons": ":" * 1000,
        "of Unicode digits": "%D9%A1",
    }.items():
        yield Bomb(f"a slice {name}", "GET", f"{full}?slice={text}", out)
    yield Bomb("a slice of 1 GiB", "GET", full, LARGE)
    yield Bomb("a slice of 1 GiB backwards", "GET", f"{full}?slice=::-1", LARGE)
    yield Bomb("one byte of a chunk of 1 GiB", "GET", f"{full}?slice=0", LARGE)
    yield Bomb("one byte into a chunk of 1 GiB", "PATCH", f"{full}?offset=0&shape=1", LARGE, b"x", OCTETS)
    yield Bomb("a block far out", "GET", "/array/block/big?block=99999999999999999", out)
    shape = ",".join(["9" * 19] * 32)
    yield Bomb("an expected shape beyond 64 bits", "GET", f"{full}?slice=0&expected_shape={shape}", WRONG)
    far = "offset=9000000000000000000&shape=1&extend=true"
    yield Bomb("growing to 9 EB", "PATCH", f"{full}?{far}", (*LARGE, *WRONG), b"x", OCTETS)
    for name, structure in {
        "of 1,000 axes": of("|u1", (1,) * 1000),
        "of 2**62 items": of("<f8", (1 << 62,)),
        "of three million chunks": {**of("|u1", (3_000_000,)), "chunks": [[1] * 3_000_000]},
    }.items():
        made = json.dumps(node("n", structure)).encode()
        yield Bomb(f"an array {name}", "POST", "/metadata/", (*LARGE, *WRONG), made)


def _questions() -> Iterator[Bomb]:
    double = "|".join(["[@,@]"] * 60)
    yield Bomb("a selection that doubles 60 times", "GET", f"/metadata/box?select_metadata={double}", LARGE)
    flat = "a" + "".join(["|[@,@][]"] * 60)
    yield Bomb("a selection that grows flat", "GET", f"/search/?select_metadata={flat}", LARGE)
    text = "to_string(a)" + "".join(["|join(@,[@,@,@])"] * 40)
    yield Bomb("a selection that grows text", "GET", f"/metadata/box?select_metadata={text}", LARGE)
    specs = ",".join(f'"w{i}"' for i in range(4000))
    none = "filter[specs][condition][exclude]=[]"
    filters = "&".join(["filter[eq][condition][key]=a&filter[eq][condition][value]=1"] * 400)
    yield Bomb("400 filters", "GET", f"/search/?{filters}", LARGE)
    yield Bomb("4,000 specs", "GET", f"/search/?filter[specs][condition][include]=[{specs}]&{none}", LARGE)
    sorts = "&".join(f"sort=k{i}" for i in range(2000))
    yield Bomb("2,000 sort keys", "GET", f"/search/?{sorts}", LARGE)
    values = ",".join(["1"] * 30_000)
    listed = f"filter[in][condition][key]=a&filter[in][condition][value]=[{values}]"
    yield Bomb("a list of 30,000 values", "GET", f"/search/?{listed}", LARGE)
    yield Bomb("a page of 10**9", "GET", "/search/?page[limit]=1000000000", WRONG)
    yield Bomb("a cursor of 30 digits", "GET", f"/search/?page[cursor]={'9' * 30}", WRONG)
    yield Bomb("a URL of 200 kB", "GET", f"/search/?x={'y' * 200_000}", (*WRONG, *LARGE))
    yield Bomb("a path of 10,000 segments", "GET", "/metadata/" + "a/" * 10_000, ("not-found",))
