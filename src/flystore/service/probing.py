"""The prober: looks at the files of external arrays and notes what it found, and when.

It looks in a thread of its own after documents announced frames, and in the caller's thread where
somebody reads or asks for a verdict. It opens files read-only and never holds a transaction
while it does.
"""

import logging
import time
from collections.abc import Callable, Iterable
from threading import Condition, Thread

from flystore.catalog import Catalog, Node, Observation
from flystore.model.errors import FlystoreError, MissingAsset, NotFound, OutsideRoots
from flystore.model.structures import ArrayStructure, Family, Management
from flystore.projection import ExternalArray
from flystore.readers import ArrayProbe, ResourceProbe, open_reader, open_registered
from flystore.storage import Roots

from .files import event_files
from .observed import OK, is_of, readable_structure, to_observation

log = logging.getLogger("flystore.service")

SETTLED_AFTER_S = 10.0
"""An observation this much younger than the run's last document may be of a file still growing."""


LOOK_AGAIN_S = 0.05
"""A file that was looked at so short a time ago is not looked at again."""


class Prober:
    """Looks at files; keeps the last observation of each node in the catalogue."""

    def __init__(self, catalog: Catalog, roots: Roots, clock: Callable[[], float] = time.time) -> None:
        self._catalog = catalog
        self._roots = roots
        self._clock = clock
        self._waiting: dict[int, None] = {}
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
            self._waiting.update(ids)
            if self._thread is None:
                self._thread = Thread(target=self._work, name="flystore-prober", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing waits to be looked at; False if `timeout` seconds went by first."""
        with self._changed:
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

        That is so if they never were, if something was missing, or while its run is still open.
        """
        if node.family is not Family.ARRAY:
            return False
        with self._catalog.read() as snapshot:
            source = snapshot.data_source(node.id)
            if source is None or source.management is not Management.EXTERNAL:
                return False
            observation = snapshot.observation(node.id)
            run = snapshot.run(node.run_uid) if node.run_uid is not None else None
        if observation is None or not is_of(observation, node):
            return True
        age = self._clock() - observation.time
        if 0 <= age < LOOK_AGAIN_S:
            return False
        if observation.status != OK:
            return True
        if readable_structure(node, observation) != node.structure:
            return True
        return run is not None and observation.time < run.last_received + SETTLED_AFTER_S

    def look(self, node: Node) -> Observation:
        """Open the files of `node` and note what is readable; of two that looked at once the later one counts.

        Raises
        ------
        NotFound
            If the node was deleted meanwhile.
        """
        now = self._clock()
        with self._catalog.read() as snapshot:
            current = snapshot.node_by_id(node.id)
            source = snapshot.data_source(node.id)
        if current is None or source is None:
            raise _gone(node)
        node = current
        try:
            if node.external is not None:
                with open_reader(event_files(ExternalArray.from_bytes(node.external)), self._roots) as reader:
                    found = list(reader.probe().resources)
            else:
                structure = ArrayStructure.from_wire(node.structure)
                with open_registered(source, structure, self._roots) as registered:
                    found = [_of_registered(registered.probe())]
        except FlystoreError as error:
            found = [_failed(error)]
        observation = to_observation(node, now, found)
        with self._catalog.write() as tx:
            if tx.node_by_id(node.id) is None:
                raise _gone(node)
            known = tx.observation(node.id)
            if known is not None and known.time > now:
                return known
            tx.save_observation(observation)
        return observation

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                node_id = next(iter(self._waiting))
                del self._waiting[node_id]
                self._busy = True
            try:
                with self._catalog.read() as snapshot:
                    node = snapshot.node_by_id(node_id)
                if node is not None and self.looks_stale(node):
                    self.look(node)
            except NotFound:
                log.debug("node %d was deleted before its files were looked at", node_id)
            except Exception:  # one file must not end the looking at all others
                log.exception("looking at the files of node %d failed", node_id)


def _gone(node: Node) -> NotFound:
    return NotFound(f"No such entry: {list(node.path)}", path=list(node.path))


def _of_registered(probe: ArrayProbe) -> ResourceProbe:
    """Return what was found of a registered array as that of one resource whose events are its rows."""
    return ResourceProbe(
        status=probe.status,
        why=probe.why,
        kind=probe.kind,
        events=probe.rows,
        fingerprint=probe.fingerprint,
        modified_ns=probe.modified_ns,
    )


def _failed(error: FlystoreError) -> ResourceProbe:
    match error:
        case MissingAsset():
            status = "missing"
        case OutsideRoots():
            status = "outside-roots"
        case _:
            status = "unreadable"
    return ResourceProbe(status=status, why=error.message, kind=error.kind)
