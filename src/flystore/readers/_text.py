"""CSV files without a header line: an array of (lines, columns)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from flystore.model.errors import FlystoreError, Unreadable, Unsupported
from flystore.model.late import arrow_csv, pa
from flystore.storage import OpenedFile, held, require_below

from ._gather import cross

MAX_FILE_BYTES = 2**28
"""Text of more than this is no detector's output, and is not parsed even to find out its shape."""

_INFLATION = 16  # a digit and a comma become one or two 8-byte numbers on the way


class CsvRows:
    """Lines of a CSV file as rows; see `RowSource`.

    Text has no dtype of its own, so values are converted to the announced one. Structured dtypes and text
    columns are not read. Parameters: ``sep`` or ``delimiter``, ``skiprows``, ``nrows``, ``encoding``.
    """

    def __init__(self, file: OpenedFile, dtype: np.dtype, parameters: dict[str, Any]) -> None:
        if dtype.fields is not None or dtype.kind not in "biufc":
            raise Unsupported(f"{file.uri}: CSV files are read as numbers, not as {dtype}")
        self.name = file.uri
        self.dtype = dtype
        self.chunks: tuple[int, ...] | None = None
        self.unverified = False
        self.fingerprint: tuple[int, ...] = file.fingerprint
        self.modified_ns = file.modified_ns
        self.remote = file.remote
        self._file = file
        self._parameters = parameters
        self._values: np.ndarray | None = None
        self.shape = self._loaded(None).shape

    def close(self) -> None:
        self._file.close()

    def present(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool)

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(rows), bool)

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        return self._loaded(limit_bytes)[cross(rows, *rest)]

    def _loaded(self, limit_bytes: int | None) -> np.ndarray:
        require_below(self._file.size * _INFLATION, limit_bytes, f"{self.name}, which is read whole,")
        require_below(self._file.size, MAX_FILE_BYTES, f"{self.name}, which is read whole,")
        if self._values is None:
            with held(self._file.size * _INFLATION, self.name):
                self._values = self._load()
        return self._values

    def _load(self) -> np.ndarray:
        given = self._parameters
        separator = given.get("sep") or given.get("delimiter") or ","
        try:
            table = arrow_csv.read_csv(
                pa.PythonFile(io.BufferedReader(self._file.stream()), "r"),
                read_options=arrow_csv.ReadOptions(
                    autogenerate_column_names=True,
                    skip_rows=int(given.get("skiprows") or 0),
                    encoding=str(given.get("encoding") or "utf8"),
                    use_threads=False,
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=str(separator)),
            )
            columns = [column.to_numpy() for column in table.slice(0, given.get("nrows")).columns]
            values = np.column_stack(columns) if columns else np.zeros((0, 0))
            if values.dtype.kind not in "biuf":
                raise Unreadable(f"{self.name} holds text or empty fields where numbers were announced")
            return values.astype(self.dtype)
        except FlystoreError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
            raise Unreadable(f"{self.name} cannot be read as CSV: {error}", uri=self.name) from error
