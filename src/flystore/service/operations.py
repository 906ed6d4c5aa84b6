"""Operations as the log keeps them: what they led to, so that a tree can be worked out again from them.

Each is one msgpack map; `action` is its name in the log. Fields may be added, never renamed. Rows and array bytes
are not repeated: they are in segments and arrays, and the record names how many and their checksum.
"""

from typing import Any, ClassVar

import msgspec

from flystore.catalog import EDITED
from flystore.model.errors import InvalidRequest
from flystore.model.overlay import Overlay
from flystore.model.structures import DataSource, Family, Spec


class Operation(msgspec.Struct, frozen=True):
    """Base of all: encodes itself."""

    action: ClassVar[str]

    def to_bytes(self) -> bytes:
        """Return the record's body.

        Raises
        ------
        InvalidRequest
            If a value has no place in it: an integer beyond 64 bits, a map with keys that are no text.
        """
        try:
            return msgspec.msgpack.encode(self)
        except (OverflowError, TypeError, RecursionError, UnicodeEncodeError) as error:
            raise InvalidRequest(f"this cannot be stored: {error}") from error


class Created(Operation, frozen=True):
    """A node was made; `source` as stored, with the place of the data that this service keeps."""

    action: ClassVar[str] = "create"

    family: Family
    specs: tuple[Spec, ...]
    metadata: dict[str, Any]
    structure: dict[str, Any] | None
    source: DataSource | None
    run_uid: str | None
    access_tags: tuple[str, ...] = ()


class DataSourcePut(Operation, frozen=True):
    """More is known of a node's files; `more`: the assets are those that were new, on top of those of before."""

    action: ClassVar[str] = "put-data-source"

    source: DataSource
    more: bool = False


class MetadataSet(Operation, frozen=True):
    """Metadata, specs and access tags after a patch or a replacement; tags None: as they were."""

    action: ClassVar[str] = "set-metadata"

    metadata: dict[str, Any]
    specs: tuple[Spec, ...]
    access_tags: tuple[str, ...] | None = None


class Edited(Operation, frozen=True):
    """What people changed of a node made from documents; laid over what its documents lead to."""

    action: ClassVar[str] = EDITED

    edit: Overlay


class RowsWritten(Operation, frozen=True):
    """Rows were appended to a table, or replaced all of it; `digest` is BLAKE2b-128 of the body that came.

    `partition`: they replaced this one of a table that is kept as files; None: of one that is kept as segments.
    `possible_repeat`: they are, byte for byte, those of the append before.
    """

    action: ClassVar[str] = "write-rows"

    first_row: int
    rows: int
    replaced: bool
    digest: bytes
    partition: int | None = None
    possible_repeat: bool = False


class StructureSet(Operation, frozen=True):
    """A region of an array was written and its structure is this now."""

    action: ClassVar[str] = "set-structure"

    structure: dict[str, Any]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class ArrayWritten(Operation, frozen=True):
    """A whole array (`block` None) or one block of it was written."""

    action: ClassVar[str] = "write-array"

    bytes_written: int
    block: tuple[int, ...] | None


ACTIONS: dict[str, type[Operation]] = {
    kind.action: kind for kind in (Created, DataSourcePut, MetadataSet, Edited, RowsWritten, StructureSet, ArrayWritten)
}
"""Operations that are maps, by their names in the log; the others have no body, or a sentence."""
