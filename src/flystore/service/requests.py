"""What callers may ask to be created or changed, checked and typed before anything is touched."""

import uuid
from typing import Annotated, Any, Self

import msgspec

from flystore.model.errors import InvalidRequest, TooLarge
from flystore.model.structures import (
    ArrayStructure,
    Asset,
    AwkwardStructure,
    DataSource,
    Family,
    Management,
    RaggedStructure,
    SparseStructure,
    Spec,
    TableStructure,
)

from .awkward import check_awkward
from .ragged import check_ragged
from .sparse import check_sparse

MAX_SPECS = 20
MAX_SPEC_LETTERS = 255

MAX_AXES = 32
"""Axes of an array: what Zarr, HDF5 and numpy can all hold."""

MAX_CHUNKS = 1 << 20
"""Chunks along all axes of an array, since every structure lists them."""


MAX_PARTITIONS = 1 << 14
"""Partitions of a table, each of which is a file."""


def check_key(key: Any) -> str:
    """Return `key` if it can be a path segment.

    Raises
    ------
    InvalidRequest
        If it is empty, ``.``, ``..``, contains ``/`` or control characters, or is too long.
    """
    if not isinstance(key, str) or key in ("", ".", "..") or "/" in key or len(key) > 255:
        raise InvalidRequest(f"{str(key)[:80]!r} cannot be a key: it must be a path segment without '/'")
    if any(ord(letter) < 32 for letter in key):
        raise InvalidRequest(f"{key[:80]!r} cannot be a key: it holds control characters")
    return key


def seconds_of(start: Any) -> float | None:
    """Return the time of a start document in Unix seconds; None if it has none that a clock could show."""
    told = start.get("time") if isinstance(start, dict) else None
    try:
        return float(told) if isinstance(told, (int, float)) else None
    except OverflowError:
        return None


def specs_from_wire(wire: Any) -> tuple[Spec, ...]:
    """Return specs in their order.

    Raises
    ------
    InvalidRequest
        If there are too many, two of one name, or one is no ``{"name", "version"}``.
    """
    try:
        specs = tuple(msgspec.convert(wire, list[Spec]))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"specs must be a list of {{name, version}} objects: {error}") from error
    if len(specs) > MAX_SPECS or len({spec.name for spec in specs}) != len(specs):
        raise InvalidRequest(f"a node has at most {MAX_SPECS} specs, each name once")
    if any(len(text) > MAX_SPEC_LETTERS for spec in specs for text in (spec.name, spec.version or "")):
        raise InvalidRequest(f"names and versions of specs have at most {MAX_SPEC_LETTERS} letters")
    return specs


Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _WireAsset(msgspec.Struct, forbid_unknown_fields=True):
    data_uri: str
    is_directory: bool = False
    parameter: str | None = None
    num: Int64 | None = None
    size: Int64 | None = None
    id: Int64 | None = None


class _WireSource(msgspec.Struct, forbid_unknown_fields=True):
    structure_family: Family
    structure: dict[str, Any] | None = None
    id: Int64 | None = None
    mimetype: str | None = None
    parameters: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    assets: list[_WireAsset] = []
    management: Management = Management.WRITABLE


def check_structure(family: Family, structure: Any) -> dict[str, Any] | None:
    """Return the wire form of a structure after reading it as its family's.

    Raises
    ------
    InvalidRequest
        If it is not one; chunks must add up to the shape.
    TooLarge
        If it has more axes, chunks or parts than any node may have.
    """
    match family:
        case Family.ARRAY:
            return _checked_array(ArrayStructure.from_wire(structure)).to_wire()
        case Family.TABLE:
            return _checked_table(TableStructure.from_wire(structure)).to_wire()
        case Family.RAGGED:
            return check_ragged(RaggedStructure.from_wire(structure)).to_wire()
        case Family.AWKWARD:
            return check_awkward(AwkwardStructure.from_wire(structure)).to_wire()
        case Family.SPARSE:
            return check_sparse(SparseStructure.from_wire(structure)).to_wire()
        case _:
            return structure


def _checked_array(structure: ArrayStructure) -> ArrayStructure:
    if len(structure.shape) > MAX_AXES:
        raise TooLarge(f"an array of {len(structure.shape)} axes; there may be {MAX_AXES}", limit=MAX_AXES)
    if max(structure.nbytes, *structure.shape, 0) >= 2**63:
        raise InvalidRequest(f"an array of shape {structure.shape} is larger than anything can hold")
    listed = sum(map(len, structure.chunks))
    if listed > MAX_CHUNKS:
        raise TooLarge(
            f"{listed} chunks along the axes; there may be {MAX_CHUNKS}: choose larger ones", limit=MAX_CHUNKS
        )
    return structure


def _checked_table(structure: TableStructure) -> TableStructure:
    names = structure.schema.names
    if len(set(names)) < len(names) or not set(structure.columns) <= set(names):
        raise InvalidRequest(f"the columns {structure.columns} must be in the Arrow schema, which has {names}, once")
    if not 1 <= structure.npartitions <= MAX_PARTITIONS:
        raise InvalidRequest(
            f"a table has 1 to {MAX_PARTITIONS} partitions, not {structure.npartitions}", limit=MAX_PARTITIONS
        )
    return structure


def _require_fitting_names(structure: dict[str, Any]) -> None:
    names, axes = structure["dims"], len(structure["shape"])
    if names is not None and len(names) != axes:
        raise InvalidRequest(f"{len(names)} dimension names for {axes} axes")


def data_source_from_wire(wire: Any) -> DataSource:
    """Return a posted data source; an absent mimetype is ``""``, for the service to choose.

    Raises
    ------
    InvalidRequest
        For unknown fields, families or structures.
    """
    try:
        read = msgspec.convert(wire, _WireSource)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"this is not a data source: {error}") from error
    assets = tuple(
        Asset(asset.data_uri, asset.is_directory, asset.parameter or "data_uris", asset.num, asset.size)
        for asset in read.assets
    )
    structure = check_structure(read.structure_family, read.structure) or {}
    # Files are there whatever a writer calls their axes: a run is not lost for a name, and validating corrects it.
    if read.structure_family is Family.ARRAY and read.management is not Management.EXTERNAL:
        _require_fitting_names(structure)
    return DataSource(
        family=read.structure_family,
        mimetype=read.mimetype or "",
        structure=structure,
        parameters=read.parameters,
        properties=read.properties,
        assets=assets,
        management=read.management,
        id=read.id,
    )


MAX_TAGS = 1_000


def tags_from_wire(wire: Any) -> tuple[str, ...]:
    """Return access tags in their order, each once.

    Raises
    ------
    InvalidRequest
        If they are no list of words, or too many.
    """
    try:
        tags = tuple(dict.fromkeys(msgspec.convert(wire, list[str])))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"access_tags must be a list of words: {error}") from error
    if len(tags) > MAX_TAGS or any(len(tag) > 255 for tag in tags):
        raise TooLarge(f"a node has at most {MAX_TAGS} access tags of 255 letters", limit=MAX_TAGS)
    return tags


def _tags_in(wire: dict[str, Any]) -> tuple[str, ...]:
    """Return the tags of a posted node; older clients send them as ``{"access_blob": {"tags": […]}}``."""
    told = wire.get("access_tags")
    if told is None:
        blob = wire.get("access_blob")
        told = blob.get("tags") if isinstance(blob, dict) else blob
    return () if told is None else tags_from_wire(told)


class NewNode(msgspec.Struct, frozen=True):
    """A node to be made."""

    key: str
    family: Family
    metadata: dict[str, Any]
    specs: tuple[Spec, ...]
    data_sources: tuple[DataSource, ...]
    access_tags: tuple[str, ...] = ()

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Read a posted node; ``ancestors`` is ignored, a missing ``id`` becomes a random one.

        Raises
        ------
        InvalidRequest
        """
        key = check_key(wire.get("id") or str(uuid.uuid4()))
        try:
            family = Family(str(wire.get("structure_family")))
        except ValueError as error:
            raise InvalidRequest(f"structure_family must be one of {', '.join(Family)}") from error
        metadata = wire.get("metadata")
        if not isinstance(metadata, dict):
            raise InvalidRequest("metadata must be a JSON object")
        sources = wire.get("data_sources") or []
        if not isinstance(sources, list):
            raise InvalidRequest("data_sources must be a list")
        found = tuple(data_source_from_wire(source) for source in sources)
        if family is not Family.CONTAINER and len(found) != 1:
            raise InvalidRequest(f"a node of family {family} needs one data source, not {len(found)}")
        if any(source.family is not family for source in found):
            raise InvalidRequest("the data source's structure_family is not the node's")
        return cls(key, family, metadata, specs_from_wire(wire.get("specs") or []), found, _tags_in(wire))


class MetadataPatch(msgspec.Struct, frozen=True):
    """Changes to metadata, specs and access tags; None leaves each as it is.

    Attributes
    ----------
    merge : bool
        True for RFC 7386 merge patches, False for RFC 6902 lists of operations.
    """

    merge: bool
    metadata: Any = None
    specs: Any = None
    access_tags: Any = None
