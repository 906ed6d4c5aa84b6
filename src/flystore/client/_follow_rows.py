"""New rows of a stream, as soon as they can be read."""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from flystore.model.errors import FlystoreError, NotFound, Unsupported
from flystore.wire import api_path

from ._array import Array
from ._follow import Followed, Line, pages
from ._session import node_route
from ._table import Table

SEQ_NUM = "seq_num"

MOST_BYTES = 64 << 20
"""Of an array in one item: what came meanwhile is handed on in pieces."""

_MOST_ROWS = 100_000
_AGAIN_S = 1
"""How often to look for frames whose events were announced and that are not in their files yet."""


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows that were appended to the columns of a stream, or to one of its arrays.

    Attributes
    ----------
    first : int
        Number of the first of them, from 0.
    seq_num : (n,) int64 or None
        Which event each row is; None where nobody announced it.
    data : dict of str to (n, …) array
        By variable; for the columns, timestamps (``ts_…``, Unix seconds) and ``time`` are among them. Dtype and unit
        are those of the stream's `data_keys`.
    skipped : int
        Rows before `first` that were left out, because more were waiting than was to be told.
    """

    first: int
    seq_num: np.ndarray | None
    data: dict[str, np.ndarray]
    skipped: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.data.values()), ()))

    def to_xarray(self) -> Any:
        """Return the rows as an xarray Dataset, ``seq_num`` among its coordinates.

        Raises
        ------
        Unsupported
            If xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise Unsupported("a Dataset needs xarray: pip install 'flystore[xarray]'; `data` does without") from error
        coords = {} if self.seq_num is None else {SEQ_NUM: ("time", self.seq_num)}
        data = {
            name: (("time", *(f"{name}_dim{axis}" for axis in range(1, values.ndim))), values)
            for name, values in self.data.items()
        }
        return xarray.Dataset(data, coords=coords)


def rows(
    stream: Any,
    variables: Sequence[str] | None,
    *,
    from_now: bool,
    lag: int | None,
    timeout: float | None,
) -> Followed[NewRows]:
    """Return what is appended to a stream; see `Stream.follow`."""
    line = Line(stream.transport, node_route("feed", stream.path), "application/x-ndjson", beat=_AGAIN_S)
    return Followed(line, _Rows(stream, variables, lag).follow(line, from_now, timeout))


class _Rows:
    """How far the columns and arrays of a stream were handed on."""

    def __init__(self, stream: Any, variables: Sequence[str] | None, lag: int | None) -> None:
        self._stream = stream
        self._variables = None if variables is None else list(variables)
        self._lag = lag
        self._told: dict[str, int] = {}

    def follow(self, line: Line, from_now: bool, timeout: float | None) -> Generator[NewRows, None, None]:
        if from_now:
            for name, part, names in self._parts():
                self._told[name] = min(len(part[each]) for each in names) if names else len(part)
        heard, looked = time.monotonic(), False
        # The feed is only what wakes this: what there is to read is looked at, so nothing depends on what it says.
        for page in pages(line, "now"):
            if page["more"]:
                continue
            if page["run_open"] is False:
                self._look()
            for found in self._new(line, arrays_only=not page["entries"] and looked):
                yield found
                heard = time.monotonic()
            looked = True
            if line.closed or page["run_open"] is False:
                return
            if timeout is not None and time.monotonic() - heard >= timeout:
                return

    def _parts(self) -> Iterator[tuple[str, Any, list[str]]]:
        """Yield what rows are appended to: name, node, and the columns wanted if it is a table."""
        for part in self._stream.parts():
            if isinstance(part, Table):
                named = part.columns
                wanted = [name for name in named if self._variables is None or name in self._variables]
                if wanted:
                    yield part.key, part, [*wanted, *([SEQ_NUM] if SEQ_NUM in named and SEQ_NUM not in wanted else [])]
            elif isinstance(part, Array) and part.shape and (self._variables is None or part.key in self._variables):
                yield part.key, part, []

    def _look(self) -> None:
        """Have the service look into the files of a run that has ended: what was announced is there by now or never."""
        with suppress(FlystoreError):  # then the verdict says why
            self._stream.transport.request("GET", api_path("verdict", self._stream.path[0]), params={"look": True})

    def _new(self, line: Line, *, arrays_only: bool) -> Iterator[NewRows]:
        """Yield what can be read and was not handed on."""
        for key, part, names in self._parts():
            if names and arrays_only:
                continue
            columns = {name: part[name] for name in names}
            length = min(map(len, columns.values())) if names else len(part)
            at = self._told.get(key, 0)
            skipped = 0
            if self._lag is not None and length - at > self._lag:
                skipped, at = length - self._lag - at, length - self._lag
            while at < length and not line.closed:
                stop = min(length, at + self._most(part, names))
                yield self._read(key, part, columns, at, stop, skipped)
                self._told[key] = at = stop
                skipped = 0

    def _most(self, part: Any, names: list[str]) -> int:
        if names or not len(part):
            return _MOST_ROWS
        return max(1, MOST_BYTES * len(part) // max(1, part.nbytes))

    def _read(self, key: str, part: Any, columns: dict[str, Any], at: int, stop: int, skipped: int) -> NewRows:
        if columns:
            data = {name: np.asarray(column[at:stop]) for name, column in columns.items()}
            seq_num = data.pop(SEQ_NUM) if self._variables is None or SEQ_NUM not in self._variables else data[SEQ_NUM]
            return NewRows(at, seq_num.astype(np.int64), data, skipped)
        values = part[at:stop]
        return NewRows(at, _numbers(part, at, stop), {key: np.asarray(values)}, skipped)


def _numbers(part: Array, at: int, stop: int) -> np.ndarray | None:
    try:
        found = part.frames().seq_num
    except NotFound:
        return None
    return found[at:stop] if len(found) >= stop else None
