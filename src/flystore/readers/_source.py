"""What a reader is asked for, and what it answers: plain values, no files.

An *event* of a file is what one StreamDatum index means; it is one or more consecutive rows of a dataset's
first axis, or one or more files of a sequence. Everything is counted in events, from 0, per resource.
"""

from typing import Any, Protocol

import msgspec
import numpy as np

from flystore.model.structures import ArrayStructure


class Resource(msgspec.Struct, frozen=True):
    """Where the events of one StreamResource lie.

    Attributes
    ----------
    uri : str
        A file; with a `template`, what stands before every file name (a directory with its slash, or any
        prefix), joined as text.
    parameters : dict
        Of the reader, on top of those of the `EventFiles`.
    template : str or None
        File name of a sequence with one ``{:06d}``-like field for the file's number; None: one file.
    files_per_event : int
        With a template: event `i` is in the files `first_file + i * files_per_event` and following.
    first_file : int
        With a template: number of the first file of event 0; may be negative where indices go on from
        an earlier resource.
    """

    uri: str
    parameters: dict[str, Any] = {}
    template: str | None = None
    files_per_event: int = 1
    first_file: int = 0


class EventFiles(msgspec.Struct, frozen=True):
    """An externally stored data key.

    Attributes
    ----------
    mimetype : str
        As announced; ``multipart/related;type=X`` is read like X.
    dtype : str or list
        Announced, in any form `numpy.dtype` takes; a list of fields where structured.
    item_shape : tuple of int
        Shape of one event's value.
    resources : tuple of Resource
        Numbered from 0 in this order.
    parameters : dict
        ``dataset``, ``sep`` and so on: what the reader of this mimetype knows; others are ignored.
    """

    mimetype: str
    dtype: Any
    item_shape: tuple[int, ...]
    resources: tuple[Resource, ...]
    parameters: dict[str, Any] = {}

    @property
    def numpy_dtype(self) -> np.dtype:
        return ArrayStructure(self.dtype, (), ()).numpy_dtype


class ResourceProbe(msgspec.Struct, frozen=True):
    """What was found in the file or files of one resource.

    Attributes
    ----------
    status : str
        ``ok``, ``missing``, ``no-access``, ``unreadable``, ``outside-roots`` or ``mismatch``; the service notes
        ``awaited`` and ``changed`` beside these.
    why : str or None
        A sentence for people where not everything is well.
    kind : str or None
        Of the error, where the status is not ``ok``.
    events : int
        Whole events that the file extends over; of these, `holes` are not there.
    holes : tuple of (int, int)
        Ranges ``[start, stop)`` of events never written: an unallocated chunk, a missing virtual source
        or file of a sequence.
    truncated : tuple of (int, int)
        Ranges of events whose bytes lie beyond the end of the file.
    unverified : bool
        True where the format cannot tell a row that was written from one that was not.
    checksummed : bool
        True where all values carry checksums, which reading checks (HDF5 chunks with fletcher32).
    shape, dtype, chunks
        Of the dataset as the file has it; of a sequence, (files, *shape of a file); None if unknown.
    fingerprint : tuple of int or None
        Changes whenever the content may have changed.
    modified_ns : int or None
        Newest modification time, ns since 1970.
    of : str
        Name that who looked gave the resource; empty: none. The place of a resource among others may change.
    """

    status: str
    why: str | None = None
    kind: str | None = None
    events: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    truncated: tuple[tuple[int, int], ...] = ()
    unverified: bool = False
    checksummed: bool = False
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    chunks: tuple[int, ...] | None = None
    fingerprint: tuple[int, ...] | None = None
    modified_ns: int | None = None
    of: str = ""


class Probe(msgspec.Struct, frozen=True):
    """One `ResourceProbe` for each resource, in order."""

    resources: tuple[ResourceProbe, ...]


class RowSource(Protocol):
    """A file, or a sequence of files, as an array that is addressed by row of its first axis.

    Attributes
    ----------
    name : str
        URI as registered, and dataset; for messages.
    shape : tuple of int
        At least one axis; a scalar is one row.
    dtype : numpy.dtype
        As stored.
    chunks : tuple of int or None
        One chunk's shape, None where there are no chunks.
    unverified, fingerprint, modified_ns
        As in `ResourceProbe`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    unverified: bool
    fingerprint: tuple[int, ...]
    modified_ns: int

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool for (n,) int64 rows: False where a row was never written. Rows are in range."""
        ...

    def truncated(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool for (n,) int64 rows: True where bytes of a row lie beyond the end of the file."""
        ...

    def read(self, rows: np.ndarray, rest: tuple[range, ...], limit_bytes: int | None = None) -> np.ndarray:
        """Return (n, *lengths of `rest`) values.

        Parameters
        ----------
        rows : (n,) int64
            In range, any order, repeats allowed, n > 0.
        rest : tuple of range
            One for each further axis: in range, not empty, positive step.
        limit_bytes : int or None
            Most memory one chunk or page may take, decoded.

        Raises
        ------
        Unreadable
            If a row was never written, or a chunk makes no sense; names the rows.
        Truncated
            If the file ends before the bytes.
        TooLarge
        """
        ...

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        ...


def is_checksummed(source: RowSource) -> bool:
    """Return whether all values of a source carry checksums; few formats have any."""
    return bool(getattr(source, "checksummed", False))


def written_rows(source: RowSource) -> int:
    """Return up to which row a source that is being written to surely holds what was written.

    Rows at the end may have been made room for, or begun: a file of a sequence that is written just now, values that
    are all the fill value where the format does not tell that they were written.
    """
    written = getattr(source, "written_rows", None)
    return source.shape[0] if written is None else int(written())
