"""From the parts of a stream to one Dataset: which rows belong together, and what is missing."""

import warnings
from collections.abc import Container
from typing import Any, NamedTuple, Protocol

import numpy as np

from flystore.model.errors import NotFound, Unsupported

from ._align import (
    JOINS,
    REPEATS,
    Rows,
    align_rows,
    is_identity,
    marked_dtype,
    missing_value,
    placed,
    require_choice,
    takes_of,
)
from ._array import Array, in_parallel
from ._columns import column_values
from ._missing import MissingRows, is_marked
from ._node import Node
from ._progress import Progress
from ._ragged import Ragged, dense
from ._table import Table
from ._words import listed, ranges

TIME = "time"
SEQ_NUM = "seq_num"
EVENT = "event"
PRESENT = "_present"

_LOOKS = 3
"""How often an array that grows under our eyes is looked at before its rows are taken as they are."""


class StreamLike(Protocol):
    """What reading needs to know of a stream."""

    @property
    def path(self) -> tuple[str, ...]: ...
    @property
    def data_keys(self) -> dict[str, Any]: ...


class Variable(NamedTuple):
    """One variable before alignment.

    Attributes
    ----------
    name : str
    values : array
        numpy or dask, first axis the rows.
    dims : tuple of str
        As for a complete run.
    rows : Rows or None
        Which event each row is; None if it is known only to lie row by row beside the stream's others.
    apart : bool
        True if nobody knows which events its rows are: it keeps an axis of its own.
    padded : bool
        True if rows of unequal length were padded.
    is_column : bool
        True if it is a column of a table.
    """

    name: str
    values: Any
    dims: tuple[str, ...]
    rows: Rows | None
    apart: bool = False
    padded: bool = False
    is_column: bool = False


def read_dataset(
    stream: StreamLike,
    parts: list[Node],
    wanted: list[str],
    *,
    join: str,
    repeats: str,
    lazy: bool,
) -> Any:
    """Return the wanted variables of a stream as a Dataset; see `Stream.read`."""
    require_choice("join", join, JOINS)
    require_choice("repeats", repeats, REPEATS)
    xarray = _import_xarray()
    if not wanted:
        return xarray.Dataset()
    columns, seq_num = _read_tables(stream, parts, wanted)
    table_rows = None if seq_num is None else Rows(seq_num, takes_of(seq_num))
    variables = [
        Variable(name, values, _default_dims(name, values.ndim), table_rows, is_column=True)
        for name, values in columns.items()
    ]
    variables += _read_arrays(parts, wanted, table_rows, lazy=lazy)
    variables.sort(key=lambda variable: wanted.index(variable.name))
    return _assembled(xarray, stream, variables, join, repeats)


# --- fetching ---------------------------------------------------------------------------------


def _read_tables(
    stream: StreamLike, parts: list[Node], wanted: list[str]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the wanted columns, and the seq_num of each row of the stream's tables; None without any."""
    columns: dict[str, np.ndarray] = {}
    seq_num = None
    for table in [part for part in parts if isinstance(part, Table)]:
        names = [name for name in wanted if name in table.columns and name not in columns]
        asked = names if SEQ_NUM in names or SEQ_NUM not in table.columns else [*names, SEQ_NUM]
        if not asked:
            continue
        found = table.arrow(asked)
        for name in names:
            columns[name] = column_values(found[name], _item_shape(stream, name))
        if SEQ_NUM in asked:
            seq_num = found[SEQ_NUM].fill_null(0).to_numpy().astype(np.int64)
    return columns, seq_num


def _item_shape(stream: StreamLike, name: str) -> tuple[int, ...]:
    data_key = stream.data_keys.get(name)
    shape = data_key.get("shape") if isinstance(data_key, dict) else None
    return tuple(n for n in shape if isinstance(n, int)) if isinstance(shape, (list, tuple)) else ()


def _read_arrays(parts: list[Node], wanted: list[str], table_rows: Rows | None, *, lazy: bool) -> list[Variable]:
    chosen = [part for part in parts if part.key in wanted and not isinstance(part, Table)]
    for part in chosen:
        if not isinstance(part, (Array, Ragged)):
            raise Unsupported(
                f"/{'/'.join(part.path)} is of the family {part.structure_family}, which has no place in a "
                "Dataset; leave it out of the variables"
            )
    arrays = [part for part in chosen if isinstance(part, Array)]
    beside, stream_rows = _common_rows(arrays, table_rows)
    found: dict[str, Variable] = {}
    total = 0 if lazy else sum(part.nbytes for part in arrays)
    with Progress(f"reading {len(chosen)} variables", total) as progress:

        def fetch(part: Array | Ragged) -> None:
            if isinstance(part, Ragged):
                found[part.key] = _ragged_variable(part, stream_rows)
                return
            rows = stream_rows
            if part.shape and (not beside or len(part) != beside or _is_marked(part)):
                part, rows = _with_rows(part)
            values = part.lazy() if lazy else part.read(progress=progress)
            apart = not part.shape or (rows is None and (len(part) != beside or _is_marked(part)))
            found[part.key] = Variable(part.key, values, _array_dims(part), rows, apart)

        in_parallel(fetch, chosen)
    return [found[part.key] for part in chosen]


def _common_rows(arrays: list[Array], table_rows: Rows | None) -> tuple[int, Rows | None]:
    """Return how long arrays are that lie row by row beside the stream's others, and which events these are.

    The service marks arrays whose rows are not the stream's, so what is unmarked and as long as the
    table lies beside it. Without a table it is what all arrays are, if all are unmarked and equally long; the
    events are then asked for once. The length is -1 if there is no such thing.
    """
    if table_rows is not None:
        return len(table_rows.seq_num), table_rows
    lengths = {len(part) for part in arrays if part.shape}
    if len(lengths) != 1 or any(_is_marked(part) for part in arrays):
        return -1, None
    (length,) = lengths
    _, rows = _with_rows(next(part for part in arrays if part.shape))
    return length, rows if rows is not None and len(rows.seq_num) == length else None


def _ragged_variable(part: Ragged, stream_rows: Rows | None) -> Variable:
    values, padded = dense(part.read())
    apart = stream_rows is not None and len(values) != len(stream_rows.seq_num)
    dims = _default_dims(part.key, values.ndim)
    return Variable(part.key, values, dims, None if apart else stream_rows, apart, padded)


def _with_rows(part: Array) -> tuple[Array, Rows | None]:
    """Return the array, looked at again if it has grown meanwhile, and the events of its rows if known."""
    for _ in range(_LOOKS):
        try:
            frames = part.frames()
        except NotFound:
            return part, None
        if len(frames.seq_num) == len(part):
            return part, Rows(frames.seq_num, frames.take)
        part.refresh()
    return part, None


def _is_marked(part: Array) -> bool:
    return is_marked(part.key, part.dims)


def _array_dims(part: Array) -> tuple[str, ...]:
    """Return the dimensions the array has, or will have once it is complete."""
    if part.dims is None:
        return _default_dims(part.key, part.ndim)
    return (TIME, *part.dims[1:]) if _is_marked(part) else part.dims


def _default_dims(name: str, ndim: int) -> tuple[str, ...]:
    return (TIME, *(f"{name}_dim{axis}" for axis in range(1, ndim))) if ndim else ()


# --- putting together -------------------------------------------------------------------------


def _assembled(xarray: Any, stream: StreamLike, variables: list[Variable], join: str, repeats: str) -> Any:
    sources = _sources(variables)
    # What is known only by position can follow one source, not several that differ.
    apart = [one for one in variables if one.apart or (one.rows is None and len(sources) > 1)]
    rest = [one for one in variables if not any(one is other for other in apart)]
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    if _is_plain(sources):
        data.update((one.name, (one.dims, one.values)) for one in rest)
    else:
        _align(rest, sources, join, repeats, data, coords)
    data.update((one.name, (_own_dims(one), one.values)) for one in apart)
    _warn(stream, variables, apart, coords, join)
    coords = {name if name == SEQ_NUM else _unlike(name, data): value for name, value in coords.items()}
    ordered = {one.name: data[one.name] for one in variables if one.name not in coords}
    return xarray.Dataset(_with_own_dims(ordered), coords=coords)


def _unlike(name: str, taken: Container[str]) -> str:
    """Return `name`, made longer while it is one of `taken`: a device may call its data what we call a coordinate."""
    while name in taken:
        name += "_"
    return name


def _with_own_dims(data: dict[str, Any]) -> dict[str, Any]:
    """Name axes ``<variable>_<name>`` where variables give one name to axes of different lengths, as cameras do."""
    lengths: dict[str, set[int]] = {}
    for dims, values in data.values():
        for dim, length in zip(dims, values.shape, strict=True):
            lengths.setdefault(dim, set()).add(length)
    clash = {dim for dim, found in lengths.items() if len(found) > 1}
    return {
        name: ((*dims[:1], *(f"{name}_{dim}" if dim in clash else dim for dim in dims[1:])), values)
        for name, (dims, values) in data.items()
    }


def _sources(variables: list[Variable]) -> list[Rows]:
    """Return the different lists of events that variables have; equal ones once."""
    sources: list[Rows] = []
    for variable in variables:
        if variable.rows is not None and not variable.apart and _source_of(variable, sources) is None:
            sources.append(variable.rows)
    return sources


def _source_of(variable: Variable, sources: list[Rows]) -> int | None:
    if variable.rows is None:
        return 0 if sources else None
    for place, source in enumerate(sources):
        same = variable.rows is source or (
            np.array_equal(variable.rows.seq_num, source.seq_num) and np.array_equal(variable.rows.take, source.take)
        )
        if same:
            return place
    return None


def _is_plain(sources: list[Rows]) -> bool:
    """Return whether all have the same events, every one from 1 on and in order, so that rows need no names."""
    if len(sources) != 1:
        return not sources
    return is_identity(sources[0].seq_num - 1, len(sources[0].seq_num))


def _align(
    rest: list[Variable],
    sources: list[Rows],
    join: str,
    repeats: str,
    data: dict[str, Any],
    coords: dict[str, Any],
) -> None:
    """Put variables into `data` by rows of the aligned events, and what tells of missing ones into `coords`."""
    aligned = align_rows(sources, join=join, repeats=repeats)
    for variable in rest:
        place = _source_of(variable, sources)
        assert place is not None
        places = aligned.places[place]
        data[variable.name] = (variable.dims, placed_lazily(variable.values, places))
        present = places >= 0
        if not present.all():
            name = EVENT if variable.is_column else variable.name
            coords[f"{name}{PRESENT}"] = (TIME, present)
    coords[SEQ_NUM] = (TIME, aligned.events.seq_num)
    if repeats == "all":
        coords["take"] = (TIME, aligned.events.take)


def placed_lazily(values: Any, places: np.ndarray) -> Any:
    """Return `placed` of a numpy array, or the same of a dask array without computing it."""
    if isinstance(values, np.ndarray):
        return placed(values, places)
    if is_identity(places, len(values)):
        return values
    missing = places < 0
    if not missing.any():
        return values[places]
    import dask.array as da

    dtype = marked_dtype(values.dtype)
    blank = missing_value(dtype)
    if not len(values):
        return da.full((len(places), *values.shape[1:]), blank, dtype=dtype)
    mask = missing.reshape(-1, *(1,) * (values.ndim - 1))
    return da.where(mask, blank, values[np.maximum(places, 0)].astype(dtype)).astype(dtype)


def _own_dims(variable: Variable) -> tuple[str, ...]:
    return (f"{variable.name}_{EVENT}", *variable.dims[1:]) if variable.dims else ()


# --- saying what is missing -------------------------------------------------------------------


def _warn(
    stream: StreamLike, variables: list[Variable], apart: list[Variable], coords: dict[str, Any], join: str
) -> None:
    where = "/".join(stream.path)
    if join == "outer" and SEQ_NUM in coords:
        seq_num = coords[SEQ_NUM][1]
        holes = np.setdiff1d(np.arange(1, seq_num.max(initial=0) + 1), seq_num)
        if len(holes):
            _say(f"{where}: none of the variables has seq_num {ranges(holes)}; there are no rows for it.")
    said = []
    for name, (_, present) in coords.items():
        if name.endswith(PRESENT):
            lost = ranges(np.unique(coords[SEQ_NUM][1][~present]))
            what = "the table" if name == EVENT + PRESENT else name.removesuffix(PRESENT)
            said.append(f"{what} has {int(present.sum())} of {len(present)} rows (not seq_num {lost})")
    if said:
        _say(
            f"{where}: {listed(said)}. Missing values are NaN, the coordinates …{PRESENT} tell which rows are "
            'there, and join="inner" leaves the others out.'
        )
    lengths = [f"{one.name} ({len(one.values)} rows)" for one in apart if one.dims]
    if lengths:
        _say(
            f"{where}: nobody announced which events the rows of {listed(lengths)} belong to, and they are not as "
            "many as the stream's; they keep an axis of their own, <variable>_event."
        )
    padded = [one.name for one in variables if one.padded]
    if padded:
        _say(f"{where}: rows of {listed(padded)} have unequal lengths; they are padded with NaN at the end.")


def _say(message: str) -> None:
    # The line that called Stream.read: _say, _warn, _assembled, read_dataset, read.
    warnings.warn(message, MissingRows, stacklevel=6)


def _import_xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise Unsupported(
            "reading a Dataset needs xarray: pip install 'flystore[xarray]'. "
            'Single variables can be read without: stream["name"].read()'
        ) from error
    return xarray
