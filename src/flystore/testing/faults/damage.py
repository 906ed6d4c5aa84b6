"""Damaged files and bodies through our own parsers, in a process of its own that may crash.

``python -m flystore.testing.faults.damage DIR SEED FIRST COUNT`` prints a line before each case and one at the
end, so that who started it knows which case ended the process. What is wrong with a case is a line that begins
with ``!``.
"""

import io
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import msgspec
import numpy as np
import pyarrow as pa
import tifffile

from flystore.model.encoding import decode
from flystore.model.errors import FlystoreError
from flystore.model.frames import FrameDecoder, FrameEncoder
from flystore.model.structures import ArrayStructure, Asset, DataSource, Family
from flystore.readers import open_registered
from flystore.storage import Roots, decode_untrusted

SECONDS = 5
MEMORY = 2 << 30


class Case(NamedTuple):
    """Something well formed, and what reads it."""

    name: str
    good: bytes
    read: Callable[[bytes], Any]


def cases(directory: Path) -> Iterator[Case]:
    """Yield everything there is to damage."""
    values = np.arange(24 * 16 * 8, dtype="<u2").reshape(24, 16, 8)
    for name, write in _hdf5_files().items():
        path = directory / f"{name}.h5"
        write(path, values)
        yield _file_case(directory, name, path.read_bytes(), "application/x-hdf5", values, {"dataset": "entry/data"})
    for name, options in {"tiff": {}, "tiff-deflate": {"compression": "zlib"}}.items():
        sink = io.BytesIO()
        tifffile.imwrite(sink, values, photometric="minisblack", **options)  # type: ignore[arg-type]
        yield _file_case(directory, name, sink.getvalue(), "image/tiff", values, {})
    sink = io.BytesIO()
    np.save(sink, values)
    yield _file_case(directory, "npy", sink.getvalue(), "application/x-npy", values, {})
    text = "\n".join(f"{i},{i + 0.5}" for i in range(24)).encode()
    table = np.array([(i, i + 0.5) for i in range(24)], "<f8")
    yield _file_case(directory, "csv", text, "text/csv;header=absent", table, {})
    rows = pa.table(
        {"a": list(range(50)), "s": [f"text {i}" for i in range(50)], "l": [[1.0] * (i % 3) for i in range(50)]}
    )
    for compression in (None, "zstd", "lz4"):
        buffer = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(buffer, rows.schema, options=options) as writer:
            writer.write_table(rows)
        yield Case(f"Arrow {compression}", buffer.getvalue().to_pybytes(), _read_arrow)
    encoder = FrameEncoder()
    event = {
        "uid": "e", "descriptor": "d", "seq_num": 1, "time": 1.0, "filled": {},
        "data": {"x": np.arange(5.0), "y": (1, {2}, 3 + 4j), "z": "text"}, "timestamps": {"x": 1.0, "y": 1.0, "z": 1.0},
    }  # fmt: skip
    payloads = encoder.encode("event", event)
    yield Case("event", payloads[-1], lambda data: _read_event(payloads[0], data))
    start = encoder.encode("start", {"uid": "r", "time": 1.0, "a": np.zeros((2, 3), "<i4"), "n": 2**80, "b": b"x"})
    yield Case("document", start[0], decode)


def _hdf5_files() -> dict[str, Callable[[Path, np.ndarray], None]]:
    def plain(**options: Any) -> Callable[[Path, np.ndarray], None]:
        def write(path: Path, values: np.ndarray) -> None:
            version = options.pop("libver", None)
            with h5py.File(path, "w", libver=version) as file:
                made = file.create_dataset("entry/data", data=values, **options)
                made.attrs["units"] = "counts"
                file["entry"].attrs["list"] = np.arange(10)

        return write

    def virtual(path: Path, values: np.ndarray) -> None:
        with h5py.File(path, "w", libver="latest") as file:
            file["part"] = values
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(".", "part", values.shape)
            file.create_virtual_dataset("entry/data", layout)

    chunks = {"chunks": (4, 16, 8)}
    return {
        "contiguous": plain(),
        "gzip": plain(**chunks, compression="gzip", shuffle=True, fletcher32=True),
        "lzf": plain(**chunks, compression="lzf"),
        "latest": plain(**chunks, libver="latest", maxshape=(None, 16, 8)),
        "scaled": plain(**chunks, scaleoffset=True),
        "virtual": virtual,
    }


def _file_case(
    directory: Path, name: str, good: bytes, mimetype: str, values: np.ndarray, parameters: dict[str, Any]
) -> Case:
    place = directory / "roots" / f"{name}.bin"
    place.parent.mkdir(exist_ok=True)
    roots = Roots([place.parent])
    structure = ArrayStructure.of(values.dtype, values.shape)
    asset = Asset(f"file://localhost{place}")
    source = DataSource(Family.ARRAY, mimetype, structure.to_wire(), parameters, assets=(asset,))

    def read(data: bytes) -> None:
        place.write_bytes(data)
        os.utime(place, (0, 0))  # a file that changed just now is waited for
        with open_registered(source, structure, roots) as reader:
            reader.probe()
            found = reader.read((), limit_bytes=64 << 20)
        if found.shape != values.shape or found.dtype != values.dtype:
            raise AssertionError(f"{found.dtype} {found.shape}")

    return Case(name, good, read)


def _read_arrow(data: bytes) -> None:
    table = decode_untrusted(data, 64 << 20)
    table.to_pylist()


def _read_event(template: bytes, data: bytes) -> None:
    decoder = FrameDecoder()
    decoder.decode(template)
    decoder.digest(data)
    decoder.decode(data)


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Return `good` with bits flipped, bytes overwritten, a piece cut out or doubled, or its end gone."""
    data = bytearray(good)
    kind = chance.randrange(6)
    at = chance.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        length = chance.choice((1, 2, 4, 8))
        data[at : at + length] = chance.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * length
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + chance.randrange(1, 64)]
    else:
        data[at:at] = data[at : at + chance.randrange(1, 64)]
    return bytes(data)


def main() -> None:
    directory = Path(sys.argv[1])
    seed, first, count = map(int, sys.argv[2:5])
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    known = list(cases(directory))
    for case in known:
        case.read(case.good)  # what is well formed is read: else nothing below means anything
    said: dict[str, int] = {}
    for number in range(first, first + count):
        case = known[number % len(known)]
        data = damaged(case.good, random.Random(f"{seed}-{number}"))  # each by itself, to go on after one that hung
        _say(f"{number} {case.name}")
        signal.alarm(SECONDS)
        try:
            case.read(data)
            kind = "read"
        except FlystoreError as error:
            kind = error.kind
        # Whatever else comes out is what this looks for.
        except BaseException as error:  # noqa: BLE001
            (directory / f"found-{number}").write_bytes(data)
            _say(f"! {number} {case.name} {type(error).__name__}: {error}"[:300])
            kind = "defect"
        finally:
            signal.alarm(0)
        said[kind] = said.get(kind, 0) + 1
    _say(f"done {msgspec.json.encode(said).decode()}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    main()
