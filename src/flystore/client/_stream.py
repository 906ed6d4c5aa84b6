"""Streams: variables side by side, one row an event, read as one xarray Dataset."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from flystore.model.errors import FlystoreError, NotFound
from flystore.model.structures import Family

from ._array import Array
from ._container import Container, segments_of
from ._dataset import read_dataset
from ._follow import Calling, Followed
from ._follow_rows import NewRows, rows
from ._node import Node, node_of
from ._ragged import Ragged
from ._session import Item, Session, item_from_wire
from ._table import Table
from ._words import html_rows, human_bytes, human_shape, listed

TIMESTAMP_PREFIX = "ts_"
SEQ_NUM = "seq_num"


class Stream(Node, Mapping[str, Any]):
    """The events of one stream of a run; a mapping of variable names to arrays.

    Variables are the columns of the stream's table and its arrays, side by side, wherever they are
    kept. ``stream.read()`` gives all of them, aligned by event; ``stream["img"][10:20]`` part of one.

    Names of timestamps (``ts_…``) and ``seq_num`` are not among the `keys` but can be looked up and
    read by name; see also `timestamps`.
    """

    def __init__(self, session: Session, item: Item) -> None:
        super().__init__(session, item)

    __eq__ = Node.__eq__
    __hash__ = Node.__hash__

    # --- variables ----------------------------------------------------------------------------

    @property
    def base(self) -> Container:
        """The stream as a plain container: its table and arrays, as the service keeps them."""
        return Container(self._session, self._item)

    def parts(self) -> list[Node]:
        """Return the tables and arrays that hold the variables, in the service's order, as of now."""
        return [node_of(self._session, item_from_wire(resource)) for resource in self._session.search(self.path, [])]

    def __iter__(self) -> Iterator[str]:
        names = self._names(self.parts())
        return (name for name in names if not _is_extra(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._names(self.parts())

    def __getitem__(self, key: str | tuple[str, ...]) -> Any:
        """Return a variable as an `Array` (or `Ragged`), or a part of the stream such as ``internal``.

        Raises
        ------
        NotFound
            If there is none of that name (it is a `KeyError` too); names those that are.
        """
        segments = segments_of(key)
        if not segments:
            return self
        parts = self.parts()
        name, rest = segments[0], segments[1:]
        for part in parts:
            if isinstance(part, Table) and name in part.columns:
                return _below(part[name], rest)
        for part in parts:
            if part.key == name:
                return _below(part, rest)
        names = [one for one in self._names(parts) if not _is_extra(one)]
        raise NotFound(f"{self._shown_path} has no {name!r}; it has {listed(names, 30)}", key=name)

    def _names(self, parts: Iterable[Node]) -> dict[str, Node]:
        names: dict[str, Node] = {}
        for part in parts:
            for name in part.columns if isinstance(part, Table) else (part.key,):
                names.setdefault(name, part)
        return names

    # --- reading ------------------------------------------------------------------------------

    def read(
        self,
        variables: Sequence[str] | str | None = None,
        *,
        join: str = "outer",
        repeats: str = "last",
        lazy: bool = False,
    ) -> Any:
        """Return the variables as an xarray Dataset, one row an event.

        For a complete run this is the Dataset that the client of bluesky-tiled-plugins gives: same
        variables, dimensions, coordinates, dtypes and values. It differs on purpose where that client
        gives text for what is none: variables that hold a short list an event are arrays of numbers,
        and truth values among which one is null are objects. Rows are put beside each other by
        seq_num, never by position alone.

        Where something is missing, the Dataset says so, and so does a `MissingRows` warning:

        * missing values are NaN (NaT, ``<NA>`` in text), for which integers become floats (float32 up to
          16 bits, else float64) and truth values objects;
        * the coordinate ``<variable>_present`` (bool) tells for each array which rows are there, and
          ``event_present`` for the columns of the table;
        * the coordinate ``seq_num`` names the rows, wherever they are not simply those of the events 1, 2, 3 …, and
          with ``repeats="all"`` so does ``take``.

        A coordinate whose name a variable has gets a ``_`` behind its own. Axes that have one name and different
        lengths, as those of two cameras may, are called ``<variable>_<axis>``.

        An array whose frames nobody assigned to events and whose length is not the stream's keeps a
        dimension of its own, ``<variable>_event``, rather than being aligned by guess.

        Parameters
        ----------
        variables : sequence of str, or one, optional
            None means `keys`. An empty list gives an empty Dataset.
        join : str
            Which events, in xarray's words. ``outer``: every event that any variable has. ``inner``: only events
            that all of them have; nothing is missing then and every dtype stays. ``left``, ``right``: the events of
            the first or the last variable. ``exact``: an error unless all have the same.
        repeats : str
            After a pause seq_nums can come again. ``last``: of each the last one. ``all``: every one,
            ordered by seq_num and then by ``take``.
        lazy : bool
            Whether arrays are left with the service, as dask arrays. Columns of tables are always read.

        Raises
        ------
        NotFound
            If there is no variable of a name.
        InvalidRequest
            If `join` or `repeats` is something else, or `join` is ``exact`` and variables differ.
        Unsupported
            If xarray (or dask, for `lazy`) is not installed.
        """
        parts = self.parts()
        names = self._names(parts)
        if variables is None:
            wanted = [name for name in names if not _is_extra(name) and _is_readable(names[name])]
        else:
            wanted = [variables] if isinstance(variables, str) else list(dict.fromkeys(variables))
            unknown = [name for name in wanted if name not in names]
            if unknown:
                raise NotFound(f"{self._shown_path} has no {listed(unknown)}; it has {listed(names, 30)}", keys=unknown)
        return read_dataset(self, parts, wanted, join=join, repeats=repeats, lazy=lazy)

    def timestamps(self, variables: Sequence[str] | str | None = None) -> Any:
        """Return when each value was taken, as an xarray Dataset of Unix seconds, float64.

        Parameters
        ----------
        variables : sequence of str, or one, optional
            None means all variables that have timestamps. Externally stored ones have none.

        Raises
        ------
        NotFound
            If a variable has no timestamps.
        """
        if variables is None:
            wanted = [name for name in self._names(self.parts()) if name.startswith(TIMESTAMP_PREFIX)]
        else:
            asked = [variables] if isinstance(variables, str) else list(variables)
            wanted = [TIMESTAMP_PREFIX + name for name in asked]
        found = self.read([*wanted, "time"] if wanted else [])
        return found.rename({name: name.removeprefix(TIMESTAMP_PREFIX) for name in wanted})

    # --- following ----------------------------------------------------------------------------

    @overload
    def follow(
        self,
        variables: Sequence[str] | str | None = None,
        callback: None = None,
        *,
        from_now: bool = False,
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Followed[NewRows]: ...

    @overload
    def follow(
        self,
        variables: Sequence[str] | str | None,
        callback: Callable[[NewRows], Any],
        *,
        from_now: bool = False,
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Calling[NewRows]: ...

    def follow(
        self,
        variables: Sequence[str] | str | None = None,
        callback: Callable[[NewRows], Any] | None = None,
        *,
        from_now: bool = False,
        lag: int | None = None,
        timeout: float | None = None,
    ) -> Followed[NewRows] | Calling[NewRows]:
        """Follow new rows, as soon as they can be read: ``for new in stream.follow(["x", "det"]): …``.

        The columns come together, and each array of frames by itself: nothing waits for the slowest detector.
        `NewRows.seq_num` says which events the rows are. It ends with the run, after its last rows, and goes on by
        itself after a connection broke or the service was started anew.

        Parameters
        ----------
        variables : sequence of str, or one, optional
            None means all columns, timestamps among them, and all arrays whose rows have one shape.
        callback : callable, optional
            Called with each `NewRows` in a thread of its own, until what is returned is closed. None: iterate.
        from_now : bool
            False begins with the rows that there are.
        lag : int, optional
            If more rows than this wait, only so many are told; `NewRows.skipped` says how many were left out. None:
            all come, many at once if need be.
        timeout : float, optional
            Seconds without a row after which the iteration ends; None: it waits for the end of the run.
        """
        wanted = [variables] if isinstance(variables, str) else variables
        found = rows(self, wanted, from_now=from_now, lag=lag, timeout=timeout)
        return found if callback is None else Calling(found, callback)

    # --- what it is about ---------------------------------------------------------------------

    @property
    def data_keys(self) -> dict[str, Any]:
        """What the devices said about each variable: source, dtype, shape, units, …"""
        return dict(self.metadata.get("data_keys") or {})

    @property
    def configuration(self) -> dict[str, Any]:
        """Settings of each device at the first event: ``{device: {"data", "timestamps", "data_keys"}}``."""
        return dict(self.metadata.get("configuration") or {})

    @property
    def hints(self) -> dict[str, Any]:
        """Which variables the devices recommend for a look."""
        return dict(self.metadata.get("hints") or {})

    @property
    def descriptors(self) -> list[dict[str, Any]]:
        """Descriptor documents, the first one and one for each change of configuration.

        As far as the stream's metadata keep them; `Run.documents` has them exactly.
        """
        first = {name: value for name, value in self.metadata.items() if name != "_config_updates"}
        first["name"] = self.key
        run = next((segment for segment in reversed(self.path[:-1]) if segment != "streams"), None)
        if run is not None:
            first["run_start"] = run
        owners: dict[str, list[str]] = {}
        for name, data_key in self.data_keys.items():
            owner = data_key.get("object_name") if isinstance(data_key, dict) else None
            if owner:
                owners.setdefault(owner, []).append(name)
        first.setdefault("object_keys", owners)
        updates = self.metadata.get("_config_updates") or []
        found = [first]
        for update in updates:
            configuration = {**found[-1].get("configuration", {}), **(update.get("configuration") or {})}
            found.append({**found[-1], **update, "configuration": configuration})
        return found

    # --- showing ------------------------------------------------------------------------------

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _lines(self) -> list[tuple[str, str]]:
        """Return (variable, words) for each variable."""
        lines = []
        for part in self.parts():
            if isinstance(part, Table):
                lines += [
                    (name, _column_in_words(self.data_keys.get(name))) for name in part.columns if not _is_extra(name)
                ]
            elif isinstance(part, Array):
                lines.append((part.key, f"{human_shape(part.shape)} {part.dtype}, {human_bytes(part.nbytes)}"))
            elif isinstance(part, Ragged):
                lines.append((part.key, f"{human_shape(part.shape)} {part.dtype}"))
            else:
                lines.append((part.key, str(part.structure_family)))
        return lines

    def __repr__(self) -> str:
        try:
            lines = self._lines()
        except FlystoreError as error:
            return f"<Stream {self._shown_path}: cannot be listed now ({error})>"
        shown = "".join(f"\n  {name}: {words}" for name, words in lines[:20])
        more = f"\n  … and {len(lines) - 20} more" if len(lines) > 20 else ""
        return f"<Stream {self._shown_path}: {len(lines)} variables>{shown}{more}"

    def _repr_html_(self) -> str:
        try:
            return html_rows(self._lines())
        except FlystoreError as error:
            return html_rows([(self.key, f"cannot be listed now ({error})")])


def _column_in_words(data_key: Any) -> str:
    if not isinstance(data_key, dict):
        return "a value for each event"
    units = f", {data_key['units']}" if data_key.get("units") else ""
    shape = data_key.get("shape")
    each = f" of {human_shape(shape)}" if shape else ""
    return f"{data_key.get('dtype', 'value')}{each} for each event{units}"


def _is_extra(name: str) -> bool:
    return name == SEQ_NUM or name.startswith(TIMESTAMP_PREFIX)


def _is_readable(part: Node) -> bool:
    return part.structure_family in (Family.ARRAY, Family.TABLE, Family.RAGGED)


def _below(node: Any, rest: tuple[str, ...]) -> Any:
    if not rest:
        return node
    if isinstance(node, (Mapping, Table)) and len(rest) == 1:
        return node[rest[0]]
    raise NotFound(f"there is nothing below {'/'.join(node.path)}", key="/".join(rest))
