"""What the projection remembers of a run between two batches.

The size is bounded by streams × keys × merged ranges, not by Events. Structs are frozen and shared between one
state and the next, so a new state costs what the batch touched.
"""

from typing import Any, Self

import msgspec

from flystore.model.errors import Damaged

from ._arrays import NO_STATS, ArrayStats
from ._columns import ColumnType

VERSION = 1

PARKED_LIMIT = 100_000
"""Documents that wait for one they refer to; further ones are counted in a note and left to the log."""

EXACT_RANGES = 1000
"""Ranges of one key, and of one resource that has not come, of which the order of arrival is kept whatever it costs."""

USED_DATUMS = 256
"""Datums remembered after an Event named them, for another Event that names them again."""

Range = tuple[int, int, int, int, int]
"""(ordinal of the first document, position of the resource in the key's list, index, seq, count)"""


class KeyState(msgspec.Struct, frozen=True, array_like=True):
    """One data key of a stream.

    Attributes
    ----------
    name : str
        As stored.
    data_key : dict or None
        Normalized JSON view of the first declaration; None if no descriptor declares it.
    place : str
        Where values in Events go: ``"t"`` table, ``"a"`` array, ``"r"`` ragged.
    values, stamps : ColumnType or None
        Types of the columns `name` and ``ts_<name>``; None if there is no such column.
    stats : ArrayStats
        Extent of array values; only kept where `place` is not the table.
    """

    name: str
    data_key: dict[str, Any] | None = None
    place: str = "t"
    values: ColumnType | None = None
    stamps: ColumnType | None = None
    stats: ArrayStats = NO_STATS


class ExternalState(msgspec.Struct, frozen=True, array_like=True):
    """What was announced of one externally stored key.

    Attributes
    ----------
    ranges : tuple of Range
        In order of arrival, merged where one goes on from the last.
    resources : tuple of str
        Uids of StreamResources or Resources, in the order in which they were used first.
    datum_kwargs : dict
        Resource uid -> what the first Datum used of it adds to its parameters.
    frame : (int, int)
        (carried, index) of Datums that say ``frame``.
    """

    ranges: tuple[Range, ...] = ()
    resources: tuple[str, ...] = ()
    datum_kwargs: dict[str, dict[str, Any]] = {}
    frame: tuple[int, int] = (0, 0)


class StreamState(msgspec.Struct, frozen=True, array_like=True):
    """One stream.

    Attributes
    ----------
    name, segment : str
        As in the descriptor, as in paths.
    metadata : dict
        JSON view of the first descriptor; its ``data_keys`` are in `keys`.
    keys : dict of str to KeyState
        By the name in the documents, in order of declaration or appearance.
    values, stamps : tuple of str
        Keys that have a column, in order of first appearance.
    wide : bool or None
        Whether the table is cut into parts; decided by the first Event, None before it.
    rows : int
        Event rows.
    events : tuple of (int, int)
        (seq, count) of consecutive seq_nums in order of arrival.
    external : dict of str to ExternalState
    filled : tuple of str
        External keys that had values in Events.
    put : dict of str to bytes
        Node name -> digest of what was put last, so that only changes are put.
    """

    name: str
    segment: str
    metadata: dict[str, Any]
    keys: dict[str, KeyState] = {}
    values: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()
    wide: bool | None = None
    rows: int = 0
    events: tuple[tuple[int, int], ...] = ()
    external: dict[str, ExternalState] = {}
    filled: tuple[str, ...] = ()
    put: dict[str, bytes] = {}


class DescriptorState(msgspec.Struct, frozen=True, array_like=True):
    """The stream of a descriptor, and which of its keys are external."""

    stream: str
    external: tuple[str, ...] = ()


class ResourceState(msgspec.Struct, frozen=True, array_like=True):
    """A StreamResource, or a Resource made into one. `data_key` is None for the latter."""

    ordinal: int
    data_key: str | None
    mimetype: str
    uri: str
    parameters: dict[str, Any]


class DatumState(msgspec.Struct, frozen=True, array_like=True):
    """A Datum; `index` is what its first use came to, None before it."""

    resource: str
    kwargs: dict[str, Any]
    index: tuple[int, int] | None = None


class ParkedRange(msgspec.Struct, frozen=True, array_like=True):
    """A StreamDatum whose resource or descriptor has not come yet."""

    ordinal: int
    resource: str
    descriptor: str
    index: int
    seq: int
    count: int


class WaitingReference(msgspec.Struct, frozen=True, array_like=True):
    """A value in an Event that names a Datum which has not come yet."""

    ordinal: int
    stream: str
    key: str
    seq: int


class RunState(msgspec.Struct, frozen=True):
    """All that `advance` needs to go on with a run.

    Attributes
    ----------
    version : int
    run_uid : str
    start, stop : dict or None
        JSON views; None before the document came.
    specs : list of (name, version)
        From ``tiled_specs``.
    streams, descriptors, resources, datums : dict
        By stream name and by uid. `datums` holds those that no Event has named yet, `used` the last
        `USED_DATUMS` that one has.
    parked : dict
        Uid that is waited for -> StreamDatums.
    waiting : dict
        Datum id -> values of Events.
    notes : dict
        Note -> how often.
    put : str or None
        Digest of the run's node as put last.
    templates : dict of int to bytes
        Not the projection's: the service keeps the frame decoder's templates here.
    """

    run_uid: str
    version: int = VERSION
    start: dict[str, Any] | None = None
    stop: dict[str, Any] | None = None
    specs: tuple[tuple[str, str | None], ...] = ()
    streams: dict[str, StreamState] = {}
    descriptors: dict[str, DescriptorState] = {}
    resources: dict[str, ResourceState] = {}
    datums: dict[str, DatumState] = {}
    used: dict[str, DatumState] = {}
    parked: dict[str, list[ParkedRange]] = {}
    waiting: dict[str, tuple[WaitingReference, ...]] = {}
    notes: dict[str, int] = {}
    put: bytes = b""
    templates: dict[int, bytes] = {}

    @classmethod
    def new(cls, run_uid: str) -> Self:
        """Return the state of a run of which nothing has come."""
        return cls(run_uid)

    def with_templates(self, templates: dict[int, bytes]) -> "RunState":
        """Return the same state holding the frame decoder's templates."""
        return msgspec.structs.replace(self, templates=dict(templates))

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what `to_bytes` wrote.

        Raises
        ------
        Damaged
            The bytes are something else, or were written by a newer flystore; `flystore rebuild` works the state
            out again from the log.
        """
        try:
            state = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise Damaged(
                f"the stored state of a run cannot be decoded ({error}); `flystore rebuild` makes it anew from the log"
            ) from error
        if state.version != VERSION:
            raise Damaged(
                f"the stored state of run {state.run_uid} has version {state.version}, this flystore reads {VERSION}; "
                "`flystore rebuild` makes it anew from the log",
                version=state.version,
            )
        return state
