"""Files that grow frame by frame while others read them, written by a process of their own as detectors do.

Each frame is a function of its number, and none of its pixels is 0: a wrong, torn or empty frame is found by
`wrong_frames`. The writer does one step when it is told to and says when it has; nothing depends on time.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

DATASET = "entry/data"

HDF5, TIFF, ONE_TIFF = "application/x-hdf5", "multipart/related;type=image/tiff", "image/tiff"

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "swmr": (HDF5, {"libver": "latest", "swmr": True}),
    "swmr-four-a-chunk": (HDF5, {"libver": "latest", "swmr": True, "frames_a_chunk": 4, "compression": "gzip"}),
    "flushed": (HDF5, {"libver": "latest"}),
    "flushed-of-old": (HDF5, {"libver": "earliest"}),
    "flushed-four-a-chunk": (HDF5, {"libver": "latest", "frames_a_chunk": 4, "compression": "gzip"}),
    "flushed-of-old-four-a-chunk": (HDF5, {"libver": "earliest", "frames_a_chunk": 4, "compression": "gzip"}),
    "contiguous": (HDF5, {"libver": "earliest", "contiguous": True}),
    "tiff": (TIFF, {}),
    "tiff-packed": (TIFF, {"compression": "zlib"}),
    "pages": (ONE_TIFF, {}),
}
"""How files may be written: mimetype, and what the writer does."""


def frame(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels of a frame, uint16, none of them 0."""
    size = int(np.prod(shape))
    return ((np.arange(size, dtype=np.uint32) * 31 + (number + 1) * 7919) % 65_521 + 1).astype("<u2").reshape(shape)


def wrong_frames(found: np.ndarray) -> list[int]:
    """Return the places of frames that are not the ones with that number."""
    return [n for n, each in enumerate(found) if not np.array_equal(each, frame(n, found.shape[1:]))]


class GrowingFile:
    """A process that writes one file, or one sequence of files; a context manager.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    path : Path
        Of the file, or of the directory of a sequence; the process makes it.
    shape : tuple of int
        Of a frame.
    most : int
        Frames there will be; contiguous data is laid out for them.
    """

    def __init__(self, kind: str, path: Path, shape: tuple[int, int], most: int) -> None:
        self.kind, self.path, self.shape, self.most = kind, path, shape, most
        self.mimetype, _ = KINDS[kind]
        self.uri = f"file://localhost{path}" + ("/" if self.mimetype == TIFF else "")
        self._process: subprocess.Popen[str] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What a StreamResource says of it."""
        match self.mimetype:
            case "application/x-hdf5":
                each = KINDS[self.kind][1].get("frames_a_chunk", 1)
                return {"dataset": DATASET, "chunk_shape": [each, *self.shape]}
            case "image/tiff":
                return {"chunk_shape": [1, *self.shape]}
        return {"template": "f_{:05d}.tiff", "chunk_shape": [1, *self.shape]}

    def __enter__(self) -> Self:
        arguments = [self.kind, str(self.path), *map(str, self.shape), str(self.most)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flystore.testing.growing", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def to(self, frames: int) -> None:
        """Have it write on until there are `frames`, each flushed; return when there are."""
        self._do(f"to {frames}")

    def begin(self, number: int) -> None:
        """Have it begin frame `number`, the next one, and stop in the middle: space for it, or half of its file."""
        self._do(f"begin {number}")

    def close(self) -> None:
        """Have it close the file."""
        self._do("close")

    def kill(self) -> None:
        """Have it die as it is."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _do(self, what: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        said = self._process.stdout.readline().strip()
        if said != what:
            raise RuntimeError(f"the writer was told {what!r} and said {said!r}")


class _Hdf5:
    def __init__(self, path: Path, shape: tuple[int, ...], most: int, **how: Any) -> None:
        import h5py

        self._file = h5py.File(path, "w", libver=how["libver"])
        self._chunked = not how.get("contiguous")
        if self._chunked:
            self._data = self._file.create_dataset(
                DATASET,
                (0, *shape),
                "<u2",
                maxshape=(None, *shape),
                chunks=(how.get("frames_a_chunk", 1), *shape),
                compression=how.get("compression"),
            )
        else:
            self._data = self._file.create_dataset(DATASET, (most, *shape), "<u2")
        self._file.flush()
        if how.get("swmr"):
            self._file.swmr_mode = True
        self._shape = shape

    def write(self, number: int) -> None:
        if self._chunked:
            self._data.resize(number + 1, axis=0)
        self._data[number] = frame(number, self._shape)
        self._data.flush()
        self._file.flush()

    def begin(self, number: int) -> None:
        if self._chunked:
            self._data.resize(number + 1, axis=0)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Tiffs:
    def __init__(self, path: Path, shape: tuple[int, ...], most: int, compression: str | None = None) -> None:
        path.mkdir()
        self._path, self._shape, self._compression = path, shape, compression

    def _bytes(self, number: int) -> bytes:
        import io

        import tifffile

        made = io.BytesIO()
        values = frame(number, self._shape)
        tifffile.imwrite(made, values, photometric="minisblack", compression=self._compression)
        return made.getvalue()

    def write(self, number: int) -> None:
        import tifffile

        name = self._path / f"f_{number:05d}.tiff"
        tifffile.imwrite(name, frame(number, self._shape), photometric="minisblack", compression=self._compression)

    def begin(self, number: int) -> None:
        whole = self._bytes(number)
        (self._path / f"f_{number:05d}.tiff").write_bytes(whole[: len(whole) // 2])

    def close(self) -> None:
        pass


class _Pages:
    """One TIFF file to which a page is appended."""

    def __init__(self, path: Path, shape: tuple[int, ...], most: int) -> None:
        self._path, self._shape = path, shape

    def write(self, number: int) -> None:
        import tifffile

        tifffile.imwrite(self._path, frame(number, self._shape), photometric="minisblack", append=number > 0)

    def begin(self, number: int) -> None:
        with open(self._path, "ab") as file:
            file.write(frame(number, self._shape).tobytes()[: self._shape[-1]])

    def close(self) -> None:
        pass


def _steps() -> Iterator[tuple[str, int]]:
    for line in sys.stdin:
        what, _, number = line.strip().partition(" ")
        yield what, int(number or 0)


def main() -> None:
    """Write a file as the standard input says, one step a line; say each when it is done."""
    kind, path, height, width, most = sys.argv[1:]
    mimetype, how = KINDS[kind]
    maker: Any = {HDF5: _Hdf5, TIFF: _Tiffs, ONE_TIFF: _Pages}[mimetype]
    writer: Any = None
    done = 0
    for what, number in _steps():
        if writer is None:
            writer = maker(Path(path), (int(height), int(width)), int(most), **how)
        if what == "to":
            for each in range(done, number):
                writer.write(each)
            done = number
        elif what == "begin":
            writer.begin(number)
        elif what == "close":
            writer.close()
        sys.stdout.write(f"{what} {number}\n" if what != "close" else f"{what}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
