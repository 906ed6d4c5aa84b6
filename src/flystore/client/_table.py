"""Tables: columns of slow data, read as pandas or Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from flystore.model.errors import NotFound, Unavailable, Unsupported
from flystore.model.late import pa
from flystore.model.structures import TableStructure
from flystore.wire import api_path

from ._array import Array, in_parallel
from ._node import Node, node_of
from ._session import Item, Session
from ._words import listed

ARROW_MIMETYPE = "application/vnd.apache.arrow.file"

_LONGEST_QUERY = 1800
"""Characters of column names in a URL; more go in the body, since proxies cut long URLs off."""


class Table(Node):
    """A table kept by the service: rows in the order they were appended."""

    def __init__(self, session: Session, item: Item) -> None:
        super().__init__(session, item)
        self._structure = TableStructure.from_wire(item.structure)

    def refresh(self) -> Table:
        """Ask the service for the table's present columns, and return the table."""
        super().refresh()
        self._structure = TableStructure.from_wire(self._item.structure)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return self._structure.columns

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the columns."""
        return self._structure.schema

    def __contains__(self, column: object) -> bool:
        return column in self.columns

    def __getitem__(self, column: str) -> Array:
        """Return one column as an array.

        Raises
        ------
        NotFound
            If there is no such column (it is a `KeyError` too).
        """
        self._known([column])
        return node_of(self._session, self._session.item((*self.path, column)))  # type: ignore[return-value]

    def arrow(self, columns: Sequence[str] | str | None = None) -> pa.Table:
        """Return the rows as an Arrow table.

        Parameters
        ----------
        columns : sequence of str, or one, optional
            In the order wanted; None means all. An empty list gives no columns.

        Raises
        ------
        NotFound
            If there is no such column; names those that are.
        """
        found = self._rows(columns)
        # An index that pandas had is stored as a column that the table does not name; only `read` shows it.
        wanted = self.columns if columns is None else [columns] if isinstance(columns, str) else columns
        return found.select(list(wanted))

    def _rows(self, columns: Sequence[str] | str | None) -> pa.Table:
        """Return the rows with all columns that the service sends for those wanted."""
        wanted = [columns] if isinstance(columns, str) else None if columns is None else list(columns)
        if wanted is not None:
            self._known(wanted)
            if not wanted:
                return pa.table({})
        parts: list[Any] = [None] * self._structure.npartitions

        def fetch(number: int) -> None:
            parts[number] = self._partition(number, wanted)

        in_parallel(fetch, list(range(len(parts))))
        if not parts:
            return self.schema.empty_table().select(wanted or self.columns)
        found = parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="permissive")
        if wanted is None:
            return found
        return found.select([*wanted, *(name for name in found.column_names if name not in wanted)])

    def read(self, columns: Sequence[str] | str | None = None) -> Any:
        """Return the rows as a pandas DataFrame, its index restored where it was stored with one.

        Parameters
        ----------
        columns : sequence of str, or one, optional
            None means all.

        Raises
        ------
        Unsupported
            If pandas is not installed; `arrow` does without.
        NotFound
            If there is no such column.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise Unsupported(
                "reading a DataFrame needs pandas: pip install 'flystore[xarray]'. Or use .arrow()."
            ) from error
        return self._rows(columns).to_pandas()

    def _partition(self, number: int, columns: list[str] | None) -> pa.Table:
        path = api_path("table", "partition", *self.path)
        headers = {"Accept": ARROW_MIMETYPE}
        params: list[tuple[str, Any]] = [("partition", number)]
        named = [("column", column) for column in columns or ()]
        if len(urlencode(named)) <= _LONGEST_QUERY:
            answer = self.transport.request("GET", path, params=[*params, *named], headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            body = msgspec.json.encode(columns)
            answer = self.transport.request("POST", path, params=params, headers=headers, body=body)
        try:
            return pa.ipc.open_file(pa.py_buffer(answer.body)).read_all()
        except pa.ArrowInvalid as error:
            raise Unavailable(f"the rows of {self._shown_path} did not come as an Arrow file: {error}") from error

    def _known(self, columns: Sequence[str]) -> None:
        """Raise unless every one of `columns` is there, looking again once: live tables gain columns."""
        if not set(columns) <= set(self.columns):
            self.refresh()
        unknown = [column for column in columns if column not in self.columns]
        if unknown:
            raise NotFound(
                f"{self._shown_path} has no column {listed(unknown)}; it has {listed(self.columns, 30)}",
                columns=unknown,
            )

    def __repr__(self) -> str:
        count = len(self.columns)
        return f"<Table {self._shown_path}: {count} column{'s' if count != 1 else ''}: {listed(self.columns)}>"
