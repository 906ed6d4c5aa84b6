"""NPY files: the header parsed without pickle, the values read by position."""

import math

import numpy as np

from flystore.model.errors import Truncated, Unreadable, Unsupported
from flystore.storage import OpenedFile, held, require_below

from ._gather import as_range, c_strides, cross, gather

_HEADER_SIZE = 65_536  # numpy's own limit is 10,000; structured dtypes with many fields are longer


class NpyRows:
    """Rows of an array in an NPY file; see `RowSource`."""

    def __init__(self, file: OpenedFile) -> None:
        self.name = file.uri
        self.shape, self.dtype, self._fortran, self._offset = _header(file)
        self.chunks: tuple[int, ...] | None = None
        self.unverified = False
        self.fingerprint: tuple[int, ...] = file.fingerprint
        self.modified_ns = file.modified_ns
        self.remote = file.remote
        self._file = file

    def close(self) -> None:
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool)

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        return rows >= self._rows_in_file()

    def _rows_in_file(self) -> int:
        """Return how many rows are there in full; in Fortran order all or none."""
        there = max(0, self._file.current_size() - self._offset)
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        if row_bytes == 0:
            return self.shape[0]
        if self._fortran:
            return self.shape[0] if there >= row_bytes * self.shape[0] else 0
        return there // row_bytes

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        found = self._rows_in_file()
        if int(rows.max()) >= found:
            raise Truncated(
                f"{self.name} holds {found} whole rows; its header announces {self.shape[0]}",
                announced=self.shape[0],
                found=found,
                unit="rows",
            )
        if self._fortran:
            with held(self.dtype.itemsize * math.prod(self.shape) * 2, self.name):
                return self._read_whole(limit_bytes)[cross(rows, *rest)]
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        strides = c_strides(self.shape, self.dtype.itemsize)
        along = as_range(rows)
        if along is not None:
            gather(self._file, self._offset, strides, (along, *rest), out)
            return out
        for i, row in enumerate(rows.tolist()):
            gather(self._file, self._offset, strides, (range(row, row + 1), *rest), out[i : i + 1])
        return out

    def _read_whole(self, limit_bytes: int | None) -> np.ndarray:
        nbytes = self.dtype.itemsize * math.prod(self.shape)
        require_below(nbytes, limit_bytes, f"{self.name}, which is in Fortran order and read whole,")
        return np.ndarray(self.shape, self.dtype, self._file.read(self._offset, nbytes), order="F")


def _header(file: OpenedFile) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    stream = file.stream()
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, _HEADER_SIZE)
        elif version in ((2, 0), (3, 0)):
            # Versions 2 and 3 differ in the text encoding of field names only; numpy reads both here.
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, _HEADER_SIZE)
        else:
            raise ValueError(f"version {version} of the format is unknown")
    # numpy parses the header as Python source, which meets damaged text with any of a dozen exceptions.
    except Exception as error:
        raise Unreadable(f"{file.uri} is not a complete NPY file: {error}", uri=file.uri) from error
    if dtype.hasobject:
        raise Unsupported(f"{file.uri} holds pickled Python objects, which are never loaded")
    if any(n < 0 for n in shape):
        raise Unreadable(f"{file.uri} announces the shape {shape}")
    return tuple(shape) or (1,), dtype, fortran and len(shape) > 1, stream.tell()
