"""The prober: looks at the files of external arrays and notes what it found, and when.

It looks in a thread of its own after documents announced frames, and in the caller's thread where
somebody reads or asks for a verdict. It opens files read-only and never holds a transaction
while it does.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from threading import Condition, Thread
from typing import Any, Protocol

import msgspec
import numpy as np

from flystore.catalog import Catalog, Node, Observation, RunHeard
from flystore.model.errors import FlystoreError, MissingAsset, NoAccess, NotFound, OutsideRoots, Unavailable
from flystore.model.structures import ArrayStructure, DataSource, Family, Management
from flystore.projection import ExternalArray
from flystore.readers import ArrayProbe, ResourceProbe, open_reader, open_registered
from flystore.storage import Budget, Roots

from .changed import QUIET_S, WatchedRoots, at_least, compared, settled_when
from .files import event_files
from .observed import ENDED, OK, ended_at, found_in, is_growing, is_of, overlaps, readable_structure, to_observation

log = logging.getLogger("flystore.service")

_PART_BYTES = 64 << 20

_MOST_LOOKED = 10_000

LOOK_AGAIN_S = 0.05
"""A file that was looked at so short a time ago is not looked at again."""


CALM_S = 0.05
"""So long after the last batch that announced frames their files are looked at: a look takes time from the next batch,
and several batches announce the same files. Who reads before looks himself."""

PATIENCE_S = 0.5
"""So long after the first one they are looked at anyway."""


class HearsRuns(Protocol):
    """What knows when a run was heard of: a snapshot, or what was kept of one."""

    def run_heard(self, uid: str) -> RunHeard | None: ...


class Prober:
    """Looks at files; keeps the last observation of each node in the catalogue."""

    def __init__(
        self,
        catalog: Catalog,
        roots: Roots,
        clock: Callable[[], float] = time.time,
        budget: Budget | None = None,
    ) -> None:
        self._catalog = catalog
        self._roots = roots
        self._clock = clock
        self._budget = budget
        self._looked: dict[int, tuple[int, float]] = {}
        self._waiting: dict[int, None] = {}
        self._first_asked = self._last_asked = -math.inf
        self._busy = False
        self._closed = False
        self._changed = Condition()
        self._thread: Thread | None = None

    def enqueue(self, node_ids: Iterable[int]) -> None:
        """Have nodes looked at soon; one already waiting is looked at once."""
        ids = dict.fromkeys(node_ids)
        if not ids:
            return
        with self._changed:
            if self._closed:
                return
            self._last_asked = time.monotonic()
            if not self._waiting:
                self._first_asked = self._last_asked
            self._waiting.update(ids)
            if self._thread is None:
                self._thread = Thread(target=self._work, name="flystore-prober", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many nodes wait to be looked at."""
        return len(self._waiting)

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing waits to be looked at; False if `timeout` seconds went by first."""
        with self._changed:
            self._last_asked = -math.inf  # who waits for it needs no calm
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def close(self) -> None:
        """Stop looking; what waits is looked at after the next start, when it is read."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def looks_stale(self, node: Node) -> bool:
        """Return whether a node's files should be looked at before they are read.

        That is so if they never were, if something was missing, while its run is still open, and if that was when they
        were looked at last.
        """
        if node.family is not Family.ARRAY:
            return False
        with self._catalog.read() as snapshot:
            source = snapshot.data_source_head(node.id)
            return self.is_stale(node, source, snapshot.observation(node.id), snapshot)

    def is_stale(
        self, node: Node, source: DataSource | None, observation: Observation | None, moment: HearsRuns
    ) -> bool:
        """Return the same as `looks_stale` of an array of which that much is known."""
        if source is None or source.management is not Management.EXTERNAL:
            return False
        if observation is None or not is_of(observation, node):
            return True
        run = moment.run_heard(node.run_uid) if node.run_uid is not None else None
        if is_growing(observation) and (run is None or not run.open):
            return True
        looked_at = self._looked_at(node, observation)
        if 0 <= self._clock() - looked_at < LOOK_AGAIN_S:
            return False
        if observation.status != OK:
            return True
        if readable_structure(node, observation) != node.structure:
            return True
        return run is not None and looked_at < run.last_received + QUIET_S

    def _looked_at(self, node: Node, observation: Observation) -> float:
        """Return when a node's files were looked at last, also if that found nothing new."""
        revision, time = self._looked.get(node.id, (node.revision, 0.0))
        return max(observation.time, time) if revision == node.revision else observation.time

    def look(self, node: Node, *, accept: bool = False) -> Observation:
        """Open the files of `node` and note what is readable; of two that looked at once the later one counts.

        Parameters
        ----------
        accept : bool
            Take the files for what they are now, also if they are others than those observed before.

        Raises
        ------
        NotFound
            If the node was deleted meanwhile.
        Unavailable
            If others hold the memory that looking takes.
        """
        now = self._clock()
        with self._catalog.read() as snapshot:
            known = None if accept else snapshot.observation(node.id)
            run = snapshot.run_heard(node.run_uid) if node.run_uid is not None else None
        growing = run is not None and run.open
        node, found = self.found(node, growing=growing)
        found = compared(known, found, growing=growing)
        settled = settled_when(known, run, now, found)
        observation = to_observation(node, now, found, settled=settled, growing=growing)
        if len(self._looked) >= _MOST_LOOKED:
            self._looked.clear()
        self._looked[node.id] = node.revision, now
        if known is not None and _tells_nothing_new(known, observation, run):
            return known
        return self._keep(node, observation)

    def found(self, node: Node, *, growing: bool = False) -> tuple[Node, list[ResourceProbe]]:
        """Open the files of `node`; return it as it is now, and what is found, one item a resource. Notes nothing.

        Parameters
        ----------
        growing : bool
            As `flystore.readers.EventReader.probe` takes it.

        Raises as `look` does.
        """
        with self._catalog.read() as snapshot:
            current = snapshot.node_by_id(node.id)
            source = snapshot.data_source(node.id)
        if current is None or source is None:
            raise _gone(node)
        node = current
        watched = WatchedRoots(self._roots)
        try:
            if node.external is not None:
                external = ExternalArray.from_bytes(node.external)
                uris, names = zip(*((each.uri, each.uid) for each in external.resources), strict=True)
                with open_reader(event_files(external), watched) as reader:
                    found = list(reader.probe(growing=growing).resources)
            else:
                uris, names = (source.assets[0].data_uri if len(source.assets) == 1 else "",), ("",)
                structure = ArrayStructure.from_wire(node.structure)
                with open_registered(source, structure, watched) as registered:
                    found = [_of_registered(registered.probe(growing=growing))]
            opened = [watched.opened.get(uri) for uri in uris]
            return node, [_seen(*each) for each in zip(found, names, opened, strict=True)]
        except Unavailable:  # says nothing about the files
            raise
        except FlystoreError as error:
            return node, [_failed(error)]

    def read_through(self, node: Node) -> None:
        """Read all values of a node's files, for the checksums that they carry.

        Raises
        ------
        Unreadable, MissingAsset, OutsideRoots
            At the first that is not what was written.
        """
        with self._catalog.read() as snapshot:
            source = snapshot.data_source(node.id)
        if node.external is None:
            assert source is not None
            structure = ArrayStructure.from_wire(node.structure)
            rows = structure.shape[0] if structure.shape else 0
            with open_registered(source, structure, self._roots) as registered:
                rows = min(rows, registered.probe().rows)
                for part in _parts(rows, math.prod(structure.shape[1:]) * structure.numpy_dtype.itemsize):
                    registered.read((slice(part.start, part.stop),))
            return
        files = event_files(ExternalArray.from_bytes(node.external))
        with open_reader(files, self._roots) as reader:
            for number, probe in enumerate(reader.probe().resources):
                for part in _parts(probe.events, math.prod(files.item_shape) * files.numpy_dtype.itemsize):
                    events = np.arange(part.start, part.stop)
                    events = events[reader.present(number, events)]
                    reader.read(np.full(len(events), number), events)

    def _keep(self, node: Node, observation: Observation) -> Observation:
        """Store what was found, unless somebody who looked later has already; return what counts.

        Of files that grow it is no less than what was seen before, where that cannot have gone.
        """
        try:
            with self._catalog.write() as tx:
                current = tx.node_by_id(node.id)
                if current is None:
                    raise _gone(node)
                if current.revision != node.revision and observation.status != OK:
                    self.enqueue([node.id])  # what does not fit what was announced then may fit now
                    return observation
                known = tx.observation(node.id)
                if known is not None and known.time > observation.time:
                    return known
                if known is not None and is_growing(known) and is_growing(observation):
                    overlapping = overlaps(known, observation)
                    found = at_least(found_in(known), found_in(observation), overlapping=overlapping)
                    observation = to_observation(node, observation.time, found, growing=True)
                observation = ended_at(observation, self._clock())
                tx.save_observation(observation)
        except Unavailable as error:  # a full disk must not keep people from reading
            log.warning("what was found in the files of /%s is not kept: %s", "/".join(node.path), error)
        return observation

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._wait_for_calm()
                if self._closed:
                    return
                node_id = next(iter(self._waiting))
                del self._waiting[node_id]
                self._busy = True
            try:
                with self._catalog.read() as snapshot:
                    node = snapshot.node_by_id(node_id)
                if node is not None and self.looks_stale(node):
                    with self._budget.account() if self._budget is not None else nullcontext():
                        self.look(node)
            except NotFound:
                log.debug("node %d was deleted before its files were looked at", node_id)
            except Exception:  # one file must not end the looking at all others
                log.exception("looking at the files of node %d failed", node_id)

    def _wait_for_calm(self) -> None:
        """Wait, with the lock, until it is long enough ago that something was asked for."""
        while not self._closed:
            calm = min(self._last_asked + CALM_S, self._first_asked + PATIENCE_S)
            left = calm - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)


def _tells_nothing_new(known: Observation, found: Observation, run: RunHeard | None) -> bool:
    """Return whether the same was found as is known, of a run that may go on: then it is looked at again soon anyway.

    Its files are looked at with every read; each time a transaction would cost more than the look.
    """
    if run is None or not known.time <= found.time < run.last_received + QUIET_S:
        return False
    return _content(known) == _content(found)


def _content(observation: Observation) -> tuple[Any, ...]:
    """Return what an observation says, whether or not it has been in the catalogue, which makes lists of tuples."""
    more = {name: value for name, value in observation.fingerprint.items() if name not in ("found", ENDED)}
    return observation.status, observation.rows, observation.detail, found_in(observation), more


def _parts(rows: int, row_bytes: int) -> Iterator[range]:
    """Yield `rows` in parts of about `_PART_BYTES`."""
    step = max(1, _PART_BYTES // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield range(start, min(start + step, rows))


def _gone(node: Node) -> NotFound:
    return NotFound(f"No such entry: {list(node.path)}", path=list(node.path))


def _seen(probe: ResourceProbe, name: str, fingerprint: tuple[int, ...] | None) -> ResourceProbe:
    """Return what was found, of what, with the file's fingerprint, also if it could be opened and made no sense."""
    return msgspec.structs.replace(probe, of=name, fingerprint=probe.fingerprint or fingerprint)


def _of_registered(probe: ArrayProbe) -> ResourceProbe:
    """Return what was found of a registered array as that of one resource whose events are its rows."""
    return ResourceProbe(
        status=probe.status,
        why=probe.why,
        kind=probe.kind,
        events=probe.rows,
        checksummed=probe.checksummed,
        fingerprint=probe.fingerprint,
        modified_ns=probe.modified_ns,
    )


def _failed(error: FlystoreError) -> ResourceProbe:
    match error:
        case MissingAsset():
            status = "missing"
        case OutsideRoots():
            status = "outside-roots"
        case NoAccess():
            status = "no-access"
        case _:
            status = "unreadable"
    return ResourceProbe(status=status, why=error.message, kind=error.kind)
