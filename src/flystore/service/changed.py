"""Whether a file is still the one that was observed: a new file is never served as the old one.

A file may be written to while its run is, and for a while after: detectors close files late, and HDF5 makes them a
little shorter then. Until an observation is *settled* a file may therefore change, but not be another file; what is
cut off is found where it is read. An observation is settled once the run has ended, nothing was heard of it for ten
seconds, and the file was quiet for as long; from then on size and modification time must stay. Another inode alone
says nothing: moving a file to other disks and restoring it from an archive keep size and time. See decision 0006.
An object in a bucket is another one as soon as its ETag is.
"""

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import msgspec

from flystore.catalog import Observation, Run, RunHeard
from flystore.model.errors import MissingAsset, NotReady, Truncated, Unreadable
from flystore.readers import ResourceProbe
from flystore.storage import OpenedFile, Roots

from .observed import AWAITED, OK, found_in, of_same_files

CHANGED = "changed"
"""Status of files that are not those observed earlier."""

QUIET_S = 10.0
"""How long a run and its files must have been quiet for an observation to be settled, seconds."""

_NOT_YET = {kind.kind for kind in (MissingAsset, NotReady, Truncated, Unreadable)}

_TRIPLE = 3  # (inode, size, modification time in ns) of a file; instead of an inode a negative number of an object
_NS = 1_000_000_000

Fingerprint = Sequence[int]


class WatchedRoots(Roots):
    """Roots that remember which files were opened, as they were then."""

    def __init__(self, roots: Roots) -> None:
        self.read = roots.read
        self.maps = roots.maps
        self.newest: tuple[int, str] = (0, "")
        """Modification time in ns and URI of the newest file opened."""
        self.opened: dict[str, tuple[int, int, int]] = {}
        """Fingerprints by URI, also of files that turned out to be unreadable."""
        self.paths: dict[str, str] = {}
        """Where they really are, by URI."""
        self._turn = Lock()

    def _open_path(self, path: str, uri: str) -> OpenedFile:
        file = super()._open_path(path, uri)
        with self._turn:  # the images of a sequence in a bucket are opened side by side
            self.newest = max(self.newest, (file.modified_ns, uri))
        self.opened[uri] = file.fingerprint
        self.paths[uri] = file.path
        return file

    def fingerprints(self, uris: Sequence[str]) -> dict[int, Fingerprint | None]:
        """Return the fingerprints of those of `uris` that were opened, by place."""
        return {place: self.opened[uri] for place, uri in enumerate(uris) if uri in self.opened}


def settled_when(
    known: Observation | None, run: Run | RunHeard | None, now: float, found: Sequence[ResourceProbe]
) -> float | None:
    """Return when the files were first found settled, Unix seconds: earlier, just now (at `now`), or not yet (None)."""
    before = settled_at(known)
    if before is not None:
        return before
    if run is None or run.open or now < run.last_received + QUIET_S:
        return None
    quiet_since = (now - QUIET_S) * _NS
    quiet = all(probe.status == OK and (probe.modified_ns or 0) <= quiet_since for probe in found)
    return now if quiet else None


def may_settle(observation: Observation | None, now: float) -> bool:
    """Return whether a look at `now` may find files settled; while the newest known is young, none will."""
    quiet_since = (now - QUIET_S) * _NS
    return all(probe.status != OK or (probe.modified_ns or 0) <= quiet_since for probe in found_in(observation))


def settled_at(observation: Observation | None) -> float | None:
    """Return when the files were found settled, Unix seconds; None while they may still grow."""
    return None if observation is None else observation.fingerprint.get("settled")


def compared(
    known: Observation | None, found: Sequence[ResourceProbe], *, growing: bool = False
) -> list[ResourceProbe]:
    """Return what was found, with what was known before put beside it.

    A resource whose files are others now keeps what was known of it, with status ``changed``. One that cannot be
    read now keeps its fingerprint, so that what comes in its place is noticed. While the run goes on (`growing`), files
    that are in the middle of a change are what they were before, and those that were never readable are awaited.
    """
    before = of_same_files(found_in(known), [probe.of for probe in found])
    settled = settled_at(known) is not None
    result = []
    for old, probe in zip(before, found, strict=True):
        if growing and probe.kind in _NOT_YET:
            if old is None or old.fingerprint is None or old.status == AWAITED:
                result.append(msgspec.structs.replace(probe, status=AWAITED, fingerprint=None))
                continue
            if old.status == OK and (probe.kind == NotReady.kind or _goes_on(old, probe)):
                result.append(old)
                continue
        if old is None or old.fingerprint is None:
            result.append(probe)
            continue
        if probe.fingerprint is None:
            known_of = {"fingerprint": old.fingerprint, "modified_ns": old.modified_ns, "of": old.of}
            result.append(msgspec.structs.replace(probe, **known_of))
            continue
        why = change(old.fingerprint, probe.fingerprint, settled=settled)
        if why is None:
            result.append(probe)
        else:
            result.append(msgspec.structs.replace(old, status=CHANGED, kind=CHANGED, why=why))
    return result


def at_least(
    known: Sequence[ResourceProbe], found: Sequence[ResourceProbe], *, overlapping: bool
) -> list[ResourceProbe]:
    """Return what was found in files that grow, and no less than is known of the same files.

    A file that is being written to may show less for a moment: HDF5 takes part of an index out of one place before it
    is in another one. A sequence of files has no such moments; but of two looks that were `overlapping`, who began
    later may have read earlier, and what one of them saw is there.
    """
    result = []
    for old, probe in zip(of_same_files(known, [probe.of for probe in found]), found, strict=True):
        if old is not None and old.status == probe.status == OK and _rows(old) > _rows(probe):
            one_file = len(probe.fingerprint or ()) % _TRIPLE == 0
            if (one_file or overlapping) and _goes_on(old, probe):
                probe = msgspec.structs.replace(old, fingerprint=probe.fingerprint, modified_ns=probe.modified_ns)
        result.append(probe)
    return result


def _rows(probe: ResourceProbe) -> int:
    return probe.events - sum(stop - start for start, stop in (*probe.holes, *probe.truncated))


def _goes_on(old: ResourceProbe, new: ResourceProbe) -> bool:
    """Return whether the files are the same ones, and none is shorter."""
    if old.fingerprint is None or new.fingerprint is None:
        return False
    pairs = _pairs(old.fingerprint, new.fingerprint, settled=False)
    return all(before[0] == after[0] and before[1] <= after[1] for before, after in pairs)


def change(old: Fingerprint, new: Fingerprint, *, settled: bool) -> str | None:
    """Return in words how files differ from those observed; None if they are the same, or were still being written."""
    if old == new:  # as with nearly every read
        return None
    for before, after in _pairs(old, new, settled=settled):
        (old_inode, old_size, old_time), (inode, size, time) = before, after
        if inode < 0 and old_inode < 0:  # objects: whole versions, each with a number of its own
            if settled and inode != old_inode:
                return "the object was replaced after its run had ended and it was quiet"
            continue
        if (size, time) == (old_size, old_time):
            continue
        if settled and size < old_size:
            return f"the file has {size} bytes, it had {old_size}"
        if inode != old_inode:
            return "another file is in its place"
        if settled:
            return "the file was written to after its run had ended and it was quiet"
    return None


def _pairs(old: Fingerprint, new: Fingerprint, *, settled: bool) -> Iterator[tuple[Any, Any]]:
    """Yield what was known of each file and what is found of the same one now."""
    count = len(old) % _TRIPLE  # a sequence has its number of files in front, then the first and the last
    before, after = _triples(old[count:]), _triples(new[len(new) % _TRIPLE :])
    if count and old[0] != new[0] and not settled:
        before = before[:1]  # the last file is another one now
    yield from zip(before, after, strict=False)


def _triples(flat: Fingerprint) -> list[tuple[int, ...]]:
    return [tuple(flat[at : at + _TRIPLE]) for at in range(0, len(flat) - _TRIPLE + 1, _TRIPLE)]


def written_since(observation: Observation | None, watched: WatchedRoots) -> str | None:
    """Return in words which file opened was written after the settled observation; None if none was.

    What a fingerprint does not hold is found this way: a file in the middle of a sequence, the source of a virtual
    dataset.
    """
    since = settled_at(observation)
    time, uri = watched.newest
    if since is None or time <= since * _NS:
        return None
    return f"{uri} was written to after its run had ended and it was quiet"
