"""Announced and observed: what documents say, met with what was last found in the files.

Structures are served as announced ⊓ observed and no file is opened for it. A file never looked at, or one
that cannot be reached, leaves the announced shape; reading it explains. A file that holds less than
announced leaves its readable rows; then the first dimension is named ``<key>_event``, so that no
reader lines those rows up with the stream's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from flystore.catalog import Node, Observation
from flystore.model.structures import Family
from flystore.projection import ExternalArray, FrameMap, RowRun
from flystore.readers import ResourceProbe

from .recent import Recent

OK = "ok"

AWAITED = "awaited"
"""Status of files that were never readable yet while their run goes on: so far there is nothing of them."""

ENDED = "ended"
"""When a look was over, Unix seconds, beside what it found."""

_KEPT_BYTES = 128 << 10
"""Longer maps are worked out each time: thousands of gaps, and a read of them takes longer than that anyway."""

_lately: Recent[int, tuple[bytes, Observation | None, tuple[int, ExternalArray]]] = Recent(32)
"""By node; good only for the same map and observation, so it does not matter of which store it is."""


def to_observation(
    node: Node, time: float, found: Sequence[ResourceProbe], *, settled: float | None = None, growing: bool = False
) -> Observation:
    """Return what was found in each resource's files of `node`, as it was then, in the form the catalogue keeps.

    `settled`: when the files were found settled, Unix seconds; see `flystore.service.changed`. `growing`: whether the
    run was going on.
    """
    shape = (node.structure or {}).get("shape") or [0]
    bad = next((probe for probe in found if probe.status != OK), None)
    return Observation(
        node_id=node.id,
        time=time,
        status=OK if bad is None else bad.status,
        rows=sum(probe.events - _length(probe.holes) - _length(probe.truncated) for probe in found),
        fingerprint={
            "found": msgspec.to_builtins(list(found)),
            "revision": node.revision,
            "announced": shape[0],
            "settled": settled,
            "growing": growing,
        },
        detail="" if bad is None else bad.why or bad.status,
    )


def is_of(observation: Observation, node: Node) -> bool:
    """Return whether an observation was made of the node as it is now."""
    return observation.fingerprint.get("revision") == node.revision


def is_growing(observation: Observation | None) -> bool:
    """Return whether the run of the files that were observed was going on then."""
    return observation is not None and bool(observation.fingerprint.get("growing"))


def ended_at(observation: Observation, time: float) -> Observation:
    """Return the observation of a look that began when it says and is over at `time`."""
    return msgspec.structs.replace(observation, fingerprint={**observation.fingerprint, ENDED: time})


def overlaps(earlier: Observation, later: Observation) -> bool:
    """Return whether one look had not ended when the other began."""
    return bool(later.time < earlier.fingerprint.get(ENDED, 0.0))


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def found_in(observation: Observation | None) -> list[ResourceProbe]:
    """Return what an observation found, one item a resource; none if there is no observation."""
    if observation is None:
        return []
    return msgspec.convert(observation.fingerprint.get("found", []), list[ResourceProbe])


def of_same_files(found: Sequence[ResourceProbe], uids: Sequence[str]) -> list[ResourceProbe | None]:
    """Return what was found of each of some resources; None where that is not known.

    Resources of an array are in the order in which they were announced, but only those that have rows: the first rows
    of one may come after those of another that was announced later. So its place says nothing, if it has a name.

    Parameters
    ----------
    uids
        Of the resources; empty for one without a name.
    """
    by_name = {probe.of: probe for probe in found if probe.of}

    def known(place: int, uid: str) -> ResourceProbe | None:
        if uid in by_name:
            return by_name[uid]
        in_its_place = found[place] if place < len(found) else None
        return in_its_place if in_its_place is not None and not (uid and in_its_place.of) else None

    return [known(place, uid) for place, uid in enumerate(uids)]


def found_of(external: ExternalArray, observation: Observation | None) -> list[ResourceProbe | None]:
    """Return what an observation found of each resource of an array; None where it did not look."""
    return of_same_files(found_in(observation), [resource.uid for resource in external.resources])


def present_map(external: ExternalArray, observation: Observation | None) -> FrameMap:
    """Return the frame map without the rows that were looked for and not found."""
    return as_found(external, observation).frame_map


def as_found(external: ExternalArray, observation: Observation | None) -> ExternalArray:
    """Return an array as its files have it: only rows that are not known to be missing, each in its place."""
    if not found_in(observation):
        return external
    found = found_of(external, observation)
    external = external.with_lengths([_taken(probe) for probe in found])
    pieces: list[RowRun] = []
    for run in external.frame_map.row_runs:
        probe = found[run.resource]
        if probe is not None and probe.status == AWAITED:
            break  # what comes after it has its place when it is there
        pieces += _present(run, external.resources[run.resource].base, probe)
    return msgspec.structs.replace(external, frame_map=FrameMap.of(pieces))


def found_array(node: Node, observation: Observation | None) -> tuple[int, ExternalArray]:
    """Return how many rows were announced of an external array, and the array as its files have it."""
    assert node.external is not None
    kept = _lately.get(node.id)
    if kept is not None and kept[0] == node.external and kept[1] == observation:
        return kept[2]
    announced = ExternalArray.from_bytes(node.external)
    worked_out = len(announced.frame_map), as_found(announced, observation)
    if len(node.external) <= _KEPT_BYTES:
        _lately[node.id] = node.external, observation, worked_out
    return worked_out


def _taken(probe: ResourceProbe | None) -> int | None:
    """Return how many rows were written into a file, in so far as it tells."""
    if probe is None or probe.status != OK:
        return None
    # Space at the end may have been made ready for more than were taken.
    last = max(probe.holes, default=(0, 0))
    return last[0] if last[1] == probe.events and last[1] > 0 else probe.events


def _present(run: RowRun, base: int, probe: ResourceProbe | None) -> Iterator[RowRun]:
    """Yield the pieces of a run whose rows are there; a file that could not be read hides none."""
    if probe is None or probe.status != OK:
        yield run
        return
    first = run.index - base
    at, stop = first, min(first + run.count, probe.events)
    for start, end in sorted((*probe.holes, *probe.truncated)):
        if end <= at:
            continue
        if start >= stop:
            break
        if start > at:
            yield _piece(run, at - first, start - at)
        at = max(at, end)
    if stop > at:
        yield _piece(run, at - first, stop - at)


def _piece(run: RowRun, skip: int, count: int) -> RowRun:
    return RowRun(run.seq + skip, run.take, run.resource, run.index + skip, count)


def readable_structure(node: Node, observation: Observation | None) -> dict[str, Any] | None:
    """Return the wire structure of what can be read of a node now."""
    structure = node.structure
    if structure is None or node.family is not Family.ARRAY or observation is None:
        return structure
    if node.external is not None:
        announced, array = found_array(node, observation)
        found = len(array.frame_map)
        if found == announced or announced == 0:
            return structure
        return cut(structure, structure["shape"][0] // announced * found, node.key)
    if observation.status == AWAITED and structure["shape"]:
        return cut(structure, 0, node.key)
    if observation.status != OK or observation.rows is None or not structure["shape"]:
        return structure
    # A registered array is looked at as far as it was announced then; if all of that was there, nothing is known of
    # what was announced since.
    if observation.rows >= min(structure["shape"][0], observation.fingerprint.get("announced", 0)):
        return structure
    return cut(structure, observation.rows, node.key)


def cut(structure: dict[str, Any], rows: int, key: str) -> dict[str, Any]:
    """Return `structure` with its first axis cut to `rows` and marked as not the stream's rows."""
    lengths, left = [], rows
    for length in structure["chunks"][0]:
        if left <= 0:
            break
        lengths.append(min(length, left))
        left -= lengths[-1]
    axes, names = len(structure["shape"]), structure["dims"]
    inner = names[1:] if names and len(names) == axes else inner_dims(key, axes - 1)
    return {
        **structure,
        "shape": [rows, *structure["shape"][1:]],
        "chunks": [lengths or [0], *structure["chunks"][1:]],
        "dims": [f"{key}_event", *inner],
    }


def inner_dims(key: str, count: int) -> list[str]:
    return [f"{key}_dim{axis}" for axis in range(1, count + 1)]
