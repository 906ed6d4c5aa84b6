"""Image files: TIFF, one page or many, and JPEG where Pillow is installed.

A page is decoded whole, one at a time, after its size was checked against the limit and every strip was
found to lie in the file. A strip of no bytes, which image libraries fill with zeros, is an error.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from typing import Any

import numpy as np

from flystore.model.errors import FlystoreError, TooLarge, Truncated, Unreadable, Unsupported
from flystore.storage import OpenedFile, held, require_below

from ._gather import cross
from ._late import tifffile

MAX_PAGES = 1_000_000


class TiffRows:
    """Pages of a TIFF file as rows, or the lines of its only page; see `RowSource`."""

    def __init__(self, file: OpenedFile) -> None:
        self.name = file.uri
        self.chunks: tuple[int, ...] | None = None
        self.unverified = False
        self.fingerprint: tuple[int, ...] = file.fingerprint
        self.modified_ns = file.modified_ns
        self.remote = file.remote
        self._file = file
        try:
            self._tiff = tifffile.TiffFile(io.BufferedReader(file.stream()), name=file.uri)
            pages = len(self._tiff.pages)
            first = self._page(0)
            self._paged = pages > 1
            page_shape = tuple(int(n) for n in first.shape)
            self.dtype = np.dtype(first.dtype)
        except FlystoreError:
            raise
        # tifffile meets damaged bytes with whatever exception they cause.
        except Exception as error:
            raise Unreadable(f"{file.uri} cannot be read as TIFF: {error}", uri=file.uri) from error
        if pages > MAX_PAGES:
            raise Unsupported(f"{file.uri} has {pages} pages; the limit is {MAX_PAGES}")
        self._page_shape = page_shape
        self.shape: tuple[int, ...] = (pages, *page_shape) if self._paged else page_shape

    def close(self) -> None:
        self._tiff.close()
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool)

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        size = self._file.current_size()
        if not self._paged:
            return np.full(len(rows), not _is_in(self._page(0), size))
        return np.array([not _is_in(self._page(int(row)), size) for row in rows], bool)

    def _page(self, number: int) -> Any:
        try:
            page = self._tiff.pages[number]
            return page.aspage() if isinstance(page, tifffile.TiffFrame) else page
        # Pages are found one by one, and tifffile meets damaged bytes with whatever exception they cause.
        except Exception as error:
            raise Unreadable(f"{self.name}, page {number} cannot be read: {error}", uri=self.name) from error

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        if not self._paged:
            return self._decode(0, limit_bytes)[cross(rows, *rest)]
        out = np.empty((len(rows), *map(len, rest)), self.dtype)
        for i, row in enumerate(rows.tolist()):
            out[i] = self._decode(row, limit_bytes)[cross(*rest)]
        return out

    def _decode(self, number: int, limit_bytes: int | None) -> np.ndarray:
        where = f"{self.name}, page {number}"
        try:
            page = self._page(number)
            if tuple(page.shape) != self._page_shape or page.dtype != self.dtype:
                raise Unreadable(
                    f"{where} is {page.dtype} {tuple(page.shape)}, the first {self.dtype} {self._page_shape}"
                )
            require_below(math.prod(page.shape) * self.dtype.itemsize, limit_bytes, where)
            if not all(page.databytecounts) or not all(page.dataoffsets):
                raise Unreadable(f"{where} has strips that were never written")
            end, size = _end_of(page), self._file.current_size()
            if end > size:
                raise Truncated(f"{where}: the file ends at byte {size}, the page at {end}", announced=end, found=size)
            # As stored, as decoded, and as put together.
            with held(3 * math.prod(page.shape) * self.dtype.itemsize, where):
                return page.asarray(maxworkers=1)
        except FlystoreError:
            raise
        # The codec of a page meets damaged bytes with whatever exception they cause.
        except Exception as error:
            if "imagecodecs" in str(error):
                raise Unsupported(f"{where} is compressed in a way that is not read here: {error}") from error
            raise Unreadable(f"{where} cannot be decoded: {error}", uri=self.name) from error


def _is_in(page: Any, size: int) -> bool:
    return _end_of(page) <= size and all(page.databytecounts) and all(page.dataoffsets)


def _end_of(page: Any) -> int:
    return max((int(a) + int(n) for a, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)


class JpegRows:
    """Lines of a JPEG image, (height, width) or (height, width, 3); see `RowSource`."""

    def __init__(self, file: OpenedFile) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise Unsupported("JPEG images can be read where Pillow is installed on the server") from error
        self.name = file.uri
        self.chunks: tuple[int, ...] | None = None
        self.unverified = False
        self.fingerprint: tuple[int, ...] = file.fingerprint
        self.modified_ns = file.modified_ns
        self.remote = file.remote
        self._file = file
        try:
            with warnings.catch_warnings():
                # The size is checked against our own limit before anything is decoded.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self._image = Image.open(io.BufferedReader(file.stream()), formats=["JPEG"])
        except Image.DecompressionBombError as error:
            raise TooLarge(f"{file.uri}: {error}") from error
        # Pillow meets damaged bytes with whatever exception they cause.
        except Exception as error:
            raise Unreadable(f"{file.uri} cannot be read as JPEG: {error}", uri=file.uri) from error
        self.dtype = np.dtype("u1")
        bands = len(self._image.getbands())
        self.shape: tuple[int, ...] = (self._image.height, self._image.width)
        if bands > 1:
            self.shape += (bands,)

    def close(self) -> None:
        self._image.close()
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool)

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(rows), bool)  # the format does not say how long it is

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        require_below(math.prod(self.shape), limit_bytes, self.name)
        try:
            with held(3 * math.prod(self.shape), self.name):
                values = np.asarray(self._image)
        except OSError as error:
            if "truncated" in str(error):
                raise Truncated(f"{self.name} ends too early: {error}") from error
            raise Unreadable(f"{self.name} cannot be decoded: {error}") from error
        if values.shape != self.shape or values.dtype != self.dtype:
            raise Unreadable(f"{self.name} decodes to {values.dtype} {values.shape}, not uint8 {self.shape}")
        return values[cross(rows, *rest)]


# tifffile reports what it repairs to its logger; here nothing is repaired silently, it is an error.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
