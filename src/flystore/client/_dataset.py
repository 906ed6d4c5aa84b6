"""From the parts of a stream to one Dataset: which rows belong together, and what is missing."""

import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np

from flystore.model.errors import NotFound, Unsupported

from ._align import (
    ALIGNMENTS,
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
from ._node import Node
from ._ragged import Ragged, dense
from ._table import Table
from ._words import listed, ranges

TIME = "time"
SEQ_NUM = "seq_num"

_LOOKS = 3
"""How often an array that grows under our eyes is looked at before its rows are taken as they are."""


class MissingRows(UserWarning):
    """A Dataset in which not every variable has every event."""


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
    dims : tuple of str or None
        None: ``time`` and numbered axes.
    rows : Rows or None
        Which event each row is; None if it is known only to lie row by row beside the stream's others.
    apart : bool
        True if nobody knows which events its rows are: it keeps an axis of its own.
    """

    name: str
    values: Any
    dims: tuple[str, ...] | None
    rows: Rows | None
    apart: bool = False


def read_dataset(
    stream: StreamLike,
    parts: list[Node],
    wanted: list[str],
    *,
    align: str,
    repeats: str,
    lazy: bool,
) -> Any:
    """Return the wanted variables of a stream as a Dataset; see `Stream.read`."""
    require_choice("align", align, ALIGNMENTS)
    require_choice("repeats", repeats, REPEATS)
    xarray = _import_xarray()
    if not wanted:
        return xarray.Dataset()
    columns, seq_num = _read_tables(stream, parts, wanted)
    table_rows = None if seq_num is None else Rows(seq_num, takes_of(seq_num))
    arrays = _read_arrays(parts, wanted, table_rows, lazy=lazy)
    variables = [Variable(name, columns[name], None, table_rows) for name in columns]
    variables += arrays
    variables.sort(key=lambda variable: wanted.index(variable.name))
    return _assembled(xarray, stream, variables, align, repeats)


# --- fetching ---------------------------------------------------------------------------------


def _read_tables(
    stream: StreamLike, parts: list[Node], wanted: list[str]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Return the wanted columns, and the seq_num of each row of the stream's tables; None without any."""
    columns: dict[str, np.ndarray] = {}
    seq_num = None
    tables = [part for part in parts if isinstance(part, Table)]
    for table in tables:
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


def _read_arrays(
    parts: list[Node], wanted: list[str], table_rows: Rows | None, *, lazy: bool
) -> list[Variable]:
    chosen = [part for part in parts if part.key in wanted and not isinstance(part, Table)]
    for part in chosen:
        if not isinstance(part, (Array, Ragged)):
            raise Unsupported(
                f"/{'/'.join(part.path)} is of the family {part.structure_family}, which has no place in a Dataset; "
                "leave it out of the variables"
            )
    lengths = {len(part) for part in chosen if isinstance(part, Array) and part.shape}
    length = len(lengths) == 1 if table_rows is None else lengths <= {len(table_rows.seq_num)}
    found: dict[str, Variable] = {}

    def fetch(part: Array | Ragged) -> None:
        found[part.key] = (
            _ragged_variable(part, table_rows)
            if isinstance(part, Ragged)
            else _array_variable(part, table_rows, one_length=length, lazy=lazy)
        )

    in_parallel(fetch, chosen)
    return [found[part.key] for part in chosen]


def _ragged_variable(part: Ragged, table_rows: Rows | None) -> Variable:
    values, padded = dense(part.read())
    if padded:
        warnings.warn(
            f"rows of {part.key} have unequal lengths; they are padded with NaN at the end",
            MissingRows,
            stacklevel=2,
        )
    apart = table_rows is not None and len(values) != len(table_rows.seq_num)
    return Variable(part.key, values, None, None if apart else table_rows, apart)


def _array_variable(part: Array, table_rows: Rows | None, *, one_length: bool, lazy: bool) -> Variable:
    """Return an array with the events of its rows, asking for them where lengths leave room for doubt."""
    part, rows = _with_rows(part, table_rows, one_length)
    values = part.to_dask() if lazy else part.read()
    if not part.shape:
        return Variable(part.key, values, (), None, apart=True)
    beside = (
        rows is not None
        or (not _is_marked(part)
        and (one_length if table_rows is None else len(part) == len(table_rows.seq_num)))
    )
    dims = None if _is_marked(part) else part.dims
    return Variable(part.key, values, dims, rows, apart=not beside)


def _with_rows(part: Array, table_rows: Rows | None, one_length: bool) -> tuple[Array, Rows | None]:
    """Return the array, looked at again if it has grown meanwhile, and the events of its rows if known."""
    if not part.shape:
        return part, None
    for _ in range(_LOOKS):
        if table_rows is not None and len(part) == len(table_rows.seq_num) and not _is_marked(part):
            return part, table_rows
        try:
            frames = part.frames()
        except NotFound:
            return part, None
        if len(frames.seq_num) == len(part):
            return part, Rows(frames.seq_num, frames.take)
        part.refresh()
    return part, None


def _is_marked(part: Array) -> bool:
    """Return whether the service says that the rows are not those of the stream."""
    return bool(part.dims) and part.dims[0] == f"{part.key}_event"  # type: ignore[index]


# --- putting together -------------------------------------------------------------------------


def _assembled(xarray: Any, stream: StreamLike, variables: list[Variable], align: str, repeats: str) -> Any:
    apart = [variable for variable in variables if variable.apart]
    rest = [variable for variable in variables if not variable.apart]
    known = [variable for variable in rest if variable.rows is not None]
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    if not known or _all_plain(known):
        for variable in rest:
            data[variable.name] = (_dims(variable), variable.values)
    else:
        _align(rest, known, align, repeats, data, coords)
        _warn_of_missing(stream, data, coords)
    for variable in apart:
        data[variable.name] = (_own_dims(variable), variable.values)
    _warn_of_apart(stream, [variable for variable in apart if variable.dims != ()])
    return xarray.Dataset({name: data[name] for name in _in_order(data, variables)}, coords=coords)


def _in_order(data: dict[str, Any], variables: list[Variable]) -> list[str]:
    return [variable.name for variable in variables if variable.name in data]


def _all_plain(known: list[Variable]) -> bool:
    """Return whether all have the same events in the same order, none of them repeated."""
    first = known[0].rows
    assert first is not None
    if first.take.any():
        return False
    return all(
        variable.rows is first
        or (variable.rows is not None
        and np.array_equal(variable.rows.seq_num, first.seq_num)
        and not variable.rows.take.any())
        for variable in known
    )


def _align(
    rest: list[Variable],
    known: list[Variable],
    align: str,
    repeats: str,
    data: dict[str, Any],
    coords: dict[str, Any],
) -> None:
    """Put the variables into `data` row by row of the aligned events, and what marks them into `coords`."""
    sources: list[Rows] = []
    for variable in known:
        assert variable.rows is not None
        if not any(variable.rows is source for source in sources):
            sources.append(variable.rows)
    aligned = align_rows(sources, align=align, repeats=repeats)
    for variable in rest:
        place = next(
            i for i, source in enumerate(sources) if source is variable.rows or variable.rows is None
        )
        places = aligned.places[place]
        data[variable.name] = (_dims(variable), _placed(variable.values, places))
        present = places >= 0
        if not present.all():
            coords[f"{variable.name}_present"] = (TIME, present)
    coords[SEQ_NUM] = (TIME, aligned.events.seq_num)
    if repeats == "all":
        coords["take"] = (TIME, aligned.events.take)
    data.pop(SEQ_NUM, None)


def _placed(values: Any, places: np.ndarray) -> Any:
    if isinstance(values, np.ndarray):
        return placed(values, places)
    if is_identity(places, len(values)):
        return values
    missing = places < 0
    taken = values[np.maximum(places, 0)] if len(values) else None
    if not missing.any():
        return taken
    import dask.array as da

    dtype = marked_dtype(values.dtype)
    shape = (len(places), *values.shape[1:])
    blank = da.full(shape, missing_value(dtype), dtype=dtype, chunks=(1, *values.shape[1:]))
    if taken is None:
        return blank
    mask = missing.reshape(-1, *(1,) * (values.ndim - 1))
    return da.where(mask, missing_value(dtype), taken.astype(dtype)).astype(dtype)


def _dims(variable: Variable) -> tuple[str, ...]:
    if variable.dims is not None and len(variable.dims) == variable.values.ndim:
        return variable.dims
    return (TIME, *(f"{variable.name}_dim{axis}" for axis in range(1, variable.values.ndim)))


def _own_dims(variable: Variable) -> tuple[str, ...]:
    if variable.values.ndim == 0:
        return ()
    return (f"{variable.name}_event", *_dims(variable)[1:])


def _warn_of_missing(stream: StreamLike, data: dict[str, Any], coords: dict[str, Any]) -> None:
    seq_num = coords[SEQ_NUM][1]
    said = []
    for name in data:
        if f"{name}_present" in coords:
            present = coords[f"{name}_present"][1]
            said.append(
                f"{name} has {int(present.sum())} of {len(present)} rows "
                f"(not seq_num {ranges(np.unique(seq_num[~present]))})"
            )
    if said:
        warnings.warn(
            f"{'/'.join(stream.path)}: {listed(said)}. Missing values are NaN; <variable>_present tells which rows "
            'are there, and align="inner" leaves the others out.',
            MissingRows,
            stacklevel=5,
        )


def _warn_of_apart(stream: StreamLike, apart: list[Variable]) -> None:
    if apart:
        names = listed(f"{variable.name} ({len(variable.values)} rows)" for variable in apart)
        warnings.warn(
            f"{'/'.join(stream.path)}: nobody announced which events the rows of {names} belong to, and they are "
            "not as many as the stream's; they keep an axis of their own, <variable>_event.",
            MissingRows,
            stacklevel=5,
        )


def _import_xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise Unsupported(
            "reading a Dataset needs xarray: pip install 'flystore[xarray]'. "
            'Single variables can be read without: stream["name"].read()'
        ) from error
    return xarray
