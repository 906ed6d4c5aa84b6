"""Externally stored keys: from a descriptor's shape and a resource's parameters to array, chunks and files.

The arithmetic is that of TiledWriter 2.0.12. What differs: rows are placed by the frame map and not by their
number, each resource keeps its own parameters, and a resource that restarts its indices keeps its own file numbers.

Nothing here looks at a file. What is announced may not be there.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from flystore.model.errors import Damaged
from flystore.model.structures import ArrayStructure, Asset, DataSource, Family, Management

from ._frame_map import FrameMap
from ._template import compile_template, file_name, join_uri

HDF5 = "application/x-hdf5"
TIFF = "multipart/related;type=image/tiff"
JPEG = "multipart/related;type=image/jpeg"
NPY = "multipart/related;type=application/x-npy"
CSV = "text/csv;header=absent"
OCTETS = "application/octet-stream"

_SEQUENCES = {TIFF, JPEG, NPY}
_CSV_PARAMETERS = {
    "assume_missing", "comment", "delimiter", "dtype", "encoding", "header",
    "names", "nrows", "sep", "skipfooter", "skiprows", "usecols",
}  # fmt: skip
MOST_CHUNKS = 1 << 20
"""Chunks announced along one axis; an axis with more is announced in multiples of its chunk."""

Ints = NDArray[np.int64]


class Resource(msgspec.Struct, frozen=True):
    """One announced file, or sequence of files, of a key.

    Attributes
    ----------
    uid : str
    uri : str
        As the writer called it; path maps are applied when it is read.
    mimetype : str
    parameters : dict
        As announced (and normalized): ``dataset``, ``template``, ``chunk_shape`` …
    base : int
        Index of the resource's first row: row `index` of the frame map is row ``index - base`` of the file.
    """

    uid: str
    uri: str
    mimetype: str
    parameters: dict[str, Any]
    base: int = 0

    @property
    def template(self) -> str | None:
        """Compiled template of a sequence of files; None if the resource is one file."""
        if self.mimetype == NPY:
            return compile_template("%s_%d.npy", _text(self.parameters.get("filename")))
        template = self.parameters.get("template")
        if not isinstance(template, str) or not template or self.mimetype == CSV:
            return None
        if self.mimetype not in _SEQUENCES | {HDF5, OCTETS}:
            return None
        return compile_template(template, _text(self.parameters.get("filename")))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class ExternalArray(msgspec.Struct, frozen=True):
    """An externally stored key as announced: everything a reader needs but the files.

    Attributes
    ----------
    key : str
        Name of the node; names its dimensions while its rows are not the stream's.
    family : Family
        ARRAY, or BYTES for opaque files.
    dtype : str or list
        What `numpy.dtype` takes after lists of fields are made tuples, see `numpy_dtype`.
    item_shape : tuple of int
        Shape of one row.
    join : str
        ``"stack"``: rows are along a new first axis. ``"concat"``: rows follow each other along the first axis of
        `item_shape`; such an array has ``len(frame_map) * item_shape[0]`` lines.
    join_chunks : bool
        With concat: whether chunks run over from row to row.
    chunk_shape : tuple of int
        Chunk length along the leading axes; ``()`` means one chunk.
    dims : tuple of str
        Names the descriptor gives to the axes of one row; ``()`` if it does not.
    resources : tuple of Resource
    frame_map : FrameMap
    extra : int
        Rows at the end of the map that belong to no Event.
    frames_per_file, files_per_row : int
        Layout of sequences of files; 0 and 0 where every resource is one file.
    """

    key: str
    family: Family
    dtype: Any
    item_shape: tuple[int, ...]
    join: str
    join_chunks: bool
    chunk_shape: tuple[int, ...]
    dims: tuple[str, ...]
    resources: tuple[Resource, ...]
    frame_map: FrameMap
    extra: int = 0
    frames_per_file: int = 0
    files_per_row: int = 0

    @property
    def numpy_dtype(self) -> np.dtype:
        return as_dtype(self.dtype)

    def to_bytes(self) -> bytes:
        return _ENCODER.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what `to_bytes` wrote.

        Raises
        ------
        Damaged
            The bytes are something else.
        """
        try:
            return msgspec.msgpack.decode(data, type=cls, dec_hook=_decode_hook)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Damaged(f"the stored description of an external array cannot be decoded: {error}") from error

    def head(self, rows: int) -> Self:
        """Return the same array with only its first `rows` rows, for a file that is behind the documents."""
        lost = len(self.frame_map) - min(max(rows, 0), len(self.frame_map))
        return msgspec.structs.replace(self, frame_map=self.frame_map.head(rows), extra=max(0, self.extra - lost))

    def keep(self, present: NDArray[np.bool_]) -> Self:
        """Return the same array with only those rows where `present`, (rows,) bool, is true."""
        extra = int(np.count_nonzero(present[len(present) - self.extra :]))
        return msgspec.structs.replace(self, frame_map=self.frame_map.keep(present), extra=extra)

    def with_lengths(self, lengths: Sequence[int | None]) -> Self:
        """Return the same array with the first index of each resource as the lengths of the files have it.

        Parameters
        ----------
        lengths
            Rows of each resource's file as found; None where it could not be looked at.
        """
        if len(self.resources) < 2:
            return self
        return msgspec.structs.replace(self, resources=with_bases(self.resources, self.frame_map.extents(), lengths))

    def locate(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return where wire rows lie.

        Parameters
        ----------
        rows : (n,) int64

        Returns
        -------
        resource : (n,) int64
            Position in `resources`.
        file_row : (n,) int64
            Row in that resource, counted in rows of `item_shape`: a file that holds frames flat, k to a row, has
            the row's frames at ``file_row * k`` and after.
        """
        found = self.frame_map.at(rows)
        bases = np.array([resource.base for resource in self.resources], np.int64)
        return found.resource, found.index - bases[found.resource]

    def files_of(self, resource: int, file_row: int) -> tuple[str, ...]:
        """Return the uris of the files that hold one row, in order; several where a row is cut into files."""
        chosen = self.resources[resource]
        template = chosen.template
        if template is None:
            return (chosen.uri,)
        n = max(1, self.files_per_row)
        return tuple(
            join_uri(chosen.uri, file_name(template, number)) for number in range(file_row * n, (file_row + 1) * n)
        )


def _encode_hook(value: Any) -> Any:
    if isinstance(value, FrameMap):
        return value.to_bytes()
    raise NotImplementedError(type(value).__name__)


def _decode_hook(kind: type, value: Any) -> Any:
    return FrameMap.from_bytes(value) if kind is FrameMap else value


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_hook)


# --- from documents --------------------------------------------------------------------------------------


def as_dtype(declared: Any) -> np.dtype:
    """Return the numpy dtype of a ``dtype_numpy``: a string, or a list of fields.

    Raises
    ------
    TypeError, ValueError
        numpy knows no such dtype, or its values have no fixed size.
    """
    if isinstance(declared, (list, tuple)):
        dtype = np.dtype([tuple(_field(part) for part in field) for field in declared])
    elif isinstance(declared, str):
        dtype = np.dtype(declared)
    else:
        raise TypeError(f"{declared!r} is no dtype")
    if dtype.hasobject:
        raise TypeError("objects have no fixed size")
    return dtype


def _field(part: Any) -> Any:
    if isinstance(part, list):
        return tuple(part) if all(isinstance(n, int) for n in part) else as_dtype(part)
    return part


class Described(msgspec.Struct):
    """An external array as described by a data key and a resource, and what was wrong with the description."""

    array: ExternalArray
    oddities: tuple[str, ...]
    metadata: dict[str, Any]


def describe(
    key: str, data_key: dict[str, Any], resources: tuple[Resource, ...], frame_map: FrameMap, extra: int
) -> Described | None:
    """Return what is announced for one key; None where its shape is not fixed, so no array can be announced.

    Parameters
    ----------
    key : str
        Name of the node.
    data_key
        The normalized data key of the descriptor.
    resources
        At least one; the first decides on join, chunks and multiplier.
    frame_map, extra
        From `place_frames`.
    """
    first = resources[0]
    parameters = first.parameters
    metadata = {"spec": parameters["spec"]} if parameters.get("spec") else {}
    if first.mimetype == OCTETS:
        array = ExternalArray(
            key, Family.BYTES, "|u1", (), "stack", True, (), (), resources, frame_map, extra,
            files_per_row=1 if first.template else 0,
        )  # fmt: skip
        return Described(array, _mixed(resources), metadata)
    shape = data_key.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        return None
    join = _join(first)
    oddities = list(_mixed(resources))
    multiplier = _positive(parameters.get("multiplier"))
    item_shape = _item_shape(tuple(shape), join, multiplier)
    if multiplier:
        metadata["frame_per_point"] = multiplier
    chunk_shape = _chunk_shape(first, tuple(shape), item_shape, join, oddities)
    frames_per_file = files_per_row = 0
    if first.template is not None or first.mimetype in _SEQUENCES:
        chunk_shape = chunk_shape or (1,)
        if join == "concat" and item_shape and item_shape[0] % chunk_shape[0]:
            chunk_shape = (item_shape[0],)
        frames_per_file, files_per_row = _layout(parameters, item_shape, chunk_shape, join, multiplier)
    try:
        as_dtype(data_key.get("dtype_numpy"))
        dtype = data_key["dtype_numpy"]
    except (TypeError, ValueError):
        oddities.append("bad-dtype")
        dtype = "<f8"
    if math.prod(item_shape) * len(frame_map) * as_dtype(dtype).itemsize >= 2**63:
        return None
    array = ExternalArray(
        key,
        Family.ARRAY,
        dtype,
        item_shape,
        join,
        _join_chunks(first),
        chunk_shape,
        _dims(data_key.get("dims"), item_shape, oddities),
        resources,
        frame_map,
        extra,
        frames_per_file,
        files_per_row,
    )
    return Described(array, tuple(oddities), metadata)


def _mixed(resources: tuple[Resource, ...]) -> tuple[str, ...]:
    kinds = {(each.mimetype, str(each.parameters.get("dataset"))) for each in resources}
    return ("mixed-resources",) if len(kinds) > 1 else ()


def _positive(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _join(resource: Resource) -> str:
    default = "concat" if resource.mimetype == CSV else "stack"
    asked = resource.parameters.get("join_method", default)
    return asked if asked in ("stack", "concat") else default


def _join_chunks(resource: Resource) -> bool:
    return bool(resource.parameters.get("join_chunks", resource.mimetype != CSV))


def _item_shape(shape: tuple[int, ...], join: str, multiplier: int) -> tuple[int, ...]:
    if shape == (1,) and join == "stack":
        shape = ()
    if not multiplier:
        return shape
    if not shape or shape[0] == multiplier:
        return shape or (multiplier,)
    return (multiplier, *shape[1:]) if shape[0] == 1 else (multiplier, *shape)


def _chunk_shape(
    resource: Resource, shape: tuple[int, ...], item_shape: tuple[int, ...], join: str, oddities: list[str]
) -> tuple[int, ...]:
    asked = (1, *shape) if resource.mimetype == NPY else resource.parameters.get("chunk_shape") or ()
    rank = len(item_shape) + (join == "stack" or not item_shape)
    if not isinstance(asked, (list, tuple)) or not all(type(n) is int and n > 0 for n in asked):
        oddities.append("bad-chunk-shape")
        return ()
    if len(asked) > rank:
        oddities.append("bad-chunk-shape")
    return tuple(asked[:rank])


def _layout(
    parameters: dict[str, Any],
    item_shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    join: str,
    multiplier: int,
) -> tuple[int, int]:
    """Return (frames per file, files per row) of a sequence of files."""
    if not item_shape:
        return 1, _positive(parameters.get("files_per_datum")) or 1
    frames = item_shape[0]
    asked = _positive(parameters.get("files_per_datum"))
    if asked:
        per_file = max(frames // asked, 1)
    elif join == "concat":
        per_file = chunk_shape[0]
    elif multiplier:
        per_file = 1
    elif len(chunk_shape) == len(item_shape) and chunk_shape[1:] == item_shape[1:] and frames % chunk_shape[0] == 0:
        per_file = chunk_shape[0]
    else:
        per_file = frames
    return per_file, asked or max(frames // max(per_file, 1), 1)


def _dims(dims: Any, item_shape: tuple[int, ...], oddities: list[str]) -> tuple[str, ...]:
    if not dims:
        return ()
    named = isinstance(dims, (list, tuple)) and all(isinstance(name, str) for name in dims)
    if not named or len(dims) != len(item_shape):
        oddities.append("bad-dims")
        return ()
    return tuple(dims)


def with_bases(
    resources: Sequence[Resource], extents: dict[int, tuple[int, int]], lengths: Sequence[int | None] = ()
) -> tuple[Resource, ...]:
    """Return resources with the index of their first row worked out.

    A resource whose indices go on from those before it begins, as a file, at the index where they ended. One whose
    indices start again, and the first one, count from 0. One that names a file named before goes on in that file.

    Where they ended is a question if the last frames of a file were not announced, and the documents do not say
    whether these lie at the end of that file or at the beginning of the next one. The length of the file does.

    Parameters
    ----------
    resources
        In the order in which they were announced.
    extents
        Position in `resources` -> (lowest index, highest index + 1) of its rows.
    lengths
        Rows of each resource's file; None, or nothing at all, where nobody has looked.
    """
    reached, ended, out = 0, 0, []
    bases: dict[tuple[str, str, str], int] = {}
    for position, resource in enumerate(resources):
        low, high = extents.get(position, (0, 0))
        place = (resource.uri, str(resource.parameters.get("dataset")), str(resource.template))
        start = ended if reached < ended <= low else reached
        base = bases.setdefault(place, start if 0 < start <= low else 0)
        out.append(msgspec.structs.replace(resource, base=base))
        reached = max(reached, high)
        length = lengths[position] if position < len(lengths) else None
        ended = max(ended, base + (length or 0))
    return tuple(out)


# --- what is announced -----------------------------------------------------------------------------------


def is_aligned(external: ExternalArray, stream_rows: int) -> bool:
    """Whether the rows of a key are exactly the rows of its stream."""
    return external.extra == 0 and len(external.frame_map) == stream_rows


def announced_structure(external: ExternalArray, stream_rows: int) -> ArrayStructure | None:
    """Return the structure of a key's node; None for opaque files.

    While the rows of the key are not exactly those of the stream, ``dims[0]`` is ``<key>_event``, so that nobody
    lays them beside the rows of another key by mistake.

    Parameters
    ----------
    external
    stream_rows : int
        Rows of the stream, see `StreamVerdict.rows`.
    """
    if external.family is not Family.ARRAY:
        return None
    shape = _shape(external)
    return ArrayStructure.of(
        external.numpy_dtype, shape, _chunks(external, shape), _dim_names(external, shape, stream_rows)
    )


def _shape(external: ExternalArray) -> tuple[int, ...]:
    rows, item = len(external.frame_map), external.item_shape
    return (rows * item[0], *item[1:]) if external.join == "concat" and item else (rows, *item)


def _chunks(external: ExternalArray, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    pieces = [_cut(length, chunk) for length, chunk in zip(shape, external.chunk_shape, strict=False)]
    apart = external.join == "concat" and not external.join_chunks and external.item_shape
    if apart and pieces:
        one_row = _cut(external.item_shape[0], external.chunk_shape[0])
        rows = len(external.frame_map)
        pieces[0] = one_row * rows or (0,) if len(one_row) * rows <= MOST_CHUNKS else (shape[0],)
    return (*pieces, *((length,) for length in shape[len(pieces) :]))


def _cut(length: int, chunk: int) -> tuple[int, ...]:
    chunk *= max(1, math.ceil(length / chunk / MOST_CHUNKS))
    rest = length % chunk
    return (chunk,) * (length // chunk) + ((rest,) if rest else ()) or (0,)


def _dim_names(external: ExternalArray, shape: tuple[int, ...], stream_rows: int) -> tuple[str, ...] | None:
    dims = external.dims
    if is_aligned(external, stream_rows):
        if not dims:
            return None
        names = ("time", *dims) if external.join == "stack" else dims
        return names if len(set(names)) == len(names) else None  # one name for two axes names neither
    event = f"{external.key}_event"
    rest = dims if external.join == "stack" else dims[1:]
    if len(rest) != len(shape) - 1:
        rest = tuple(f"{external.key}_dim{axis}" for axis in range(1, len(shape)))
    return (event, *rest)


def data_source(external: ExternalArray, structure: ArrayStructure | None) -> DataSource:
    """Return the data source of a key's node without its assets, which `assets` derives when somebody asks."""
    first = external.resources[0]
    return DataSource(
        family=external.family,
        mimetype=first.mimetype,
        structure={} if structure is None else structure.to_wire(),
        parameters=_adapter_parameters(first),
        properties=_properties(external),
        management=Management.EXTERNAL,
    )


def _properties(external: ExternalArray) -> dict[str, Any]:
    chunks = physical_chunks(external)
    return {} if chunks is None else {"chunks": [list(axis) for axis in chunks]}


def physical_chunks(external: ExternalArray) -> tuple[tuple[int, ...], ...] | None:
    """Return how the files of a sequence are laid out where that is not the structure's chunking; else None.

    None, too, above `MOST_CHUNKS` files.
    """
    item, files = external.item_shape, external.files_per_row
    if external.join != "stack" or len(item) < 2 or files < 2 or item[0] % files:
        return None
    number = len(external.frame_map) * files
    if number > MOST_CHUNKS:
        return None
    per_file = ((external.frames_per_file,),) if external.frames_per_file > 1 else ()
    return ((1,) * number, *per_file, *((n,) for n in item[1:]))


def _adapter_parameters(resource: Resource) -> dict[str, Any]:
    given = resource.parameters
    if resource.mimetype == HDF5:
        kept = {"dataset": given.get("dataset", "")}
        kept |= {name: given[name] for name in ("slice", "squeeze") if given.get(name)}
        return kept | {"swmr": given.get("swmr", True), "locking": given.get("locking")}
    if resource.mimetype == CSV:
        return {name: value for name, value in {"header": None, **given}.items() if name in _CSV_PARAMETERS}
    return {}


def assets(external: ExternalArray) -> tuple[Asset, ...]:
    """Return the files of a key: one for each resource, or each file of a sequence in the order of the rows."""
    return tuple(
        Asset(uri, is_directory=False, parameter="data_uris", num=num) for num, uri in enumerate(_uris(external))
    )


def _uris(external: ExternalArray) -> Iterator[str]:
    used = {run.resource for run in external.frame_map.row_runs}
    if not any(resource.template for resource in external.resources):
        yield from (resource.uri for n, resource in enumerate(external.resources) if n in used)
        return
    for run in external.frame_map.row_runs:
        resource = external.resources[run.resource]
        if resource.template is None:
            yield resource.uri
            continue
        for row in range(run.index - resource.base, run.index - resource.base + run.count):
            yield from external.files_of(run.resource, row)
