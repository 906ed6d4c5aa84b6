"""Which state of its data a node is in, without a look at the data.

A version is what an ETag is made of: as long as it stays, whatever is read of the node stays. It comes from the
catalogue alone: ids are never used again, revisions and rows only grow, and rows that were replaced begin elsewhere.
Files of others have a version once they were found settled (`flystore.service.changed`): from then on a read that finds
them changed is refused, so what was read before is what was written. Until then they may grow at any moment, and have
none; so have registered files that belong to no run, of which nobody says when they are complete.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator

import msgspec

from flystore.catalog import Node, NotAtOnce, Observation, Run, RunHeard, Snapshot
from flystore.model.structures import DataSource, Family, Management

from .browse import Browse, everything_below
from .changed import QUIET_S, may_settle, settled_at
from .columns import series_of_table
from .entries import Entry
from .observed import OK, is_of, readable_structure
from .probing import Prober
from .sighted import Sight, Sights

MOST_NODES = 200
"""Containers with more below them have no version: to work it out would cost more than it spares."""


class Version(msgspec.Struct, frozen=True):
    """The state of what is at a path.

    Attributes
    ----------
    mark : bytes or None
        Another one once the data are, and after a restart of the service. None: the data may change unseen.
    itemsize : int
        Bytes of an item of an array; 0 where there is none.
    sight : Sight or None
        Of an array in files of others: what it was seen in.
    """

    mark: bytes | None
    itemsize: int = 0
    sight: Sight | None = None


class Versions:
    """Tells the versions of nodes."""

    def __init__(self, browse: Browse, prober: Prober, sights: Sights, clock: Callable[[], float] = time.time) -> None:
        self.sights = sights
        self._browse = browse
        self._prober = prober
        self._clock = clock
        # Another store at the same address, an older state put back from a backup, trees worked out anew by another
        # release: none of these happens while a service runs.
        self._salt = secrets.token_bytes(16)

    def of(self, path: tuple[str, ...]) -> Version:
        """Return the version of what is at `path`.

        Files that have become quiet are looked at, as a read would do.

        Raises
        ------
        NotFound
            If nothing is there.
        """
        found, stale = self._found(path)
        if stale is not None:
            self._prober.look(stale)
            found, _ = self._found(path)
        return found

    def at_once(self, path: tuple[str, ...]) -> Version:
        """Return what `of` does, on an event loop.

        Raises
        ------
        NotAtOnce
            If that takes more than a few point reads; ask `of` in a thread.
        """
        sight = self.sights.known(path)
        if sight is None:
            changes = self.sights.changes()
            with self._browse.glance() as glance:
                entry = self._browse.at_once(path, glance)
                if entry.family is Family.CONTAINER:
                    raise NotAtOnce("all that is below a container makes its version")
                sight = _sight_of(entry, glance)
                found, stale = self._of_data(entry, glance) if sight is None else self._of_files(sight)
            if sight is not None:
                self.sights.keep(path, changes, sight)
        else:
            found, stale = self._of_files(sight)
        if stale is not None:
            raise NotAtOnce("its files are to be looked at first")
        return found

    def _found(self, path: tuple[str, ...]) -> tuple[Version, Node | None]:
        """Return a version, and the node whose files should be looked at because they may have one now."""
        with self._browse.moment() as moment:
            entry = self._browse.entry(path, moment)
            if entry.family is Family.CONTAINER:
                return Version(self._marked(_container(moment, entry))), None
            return self._of_data(entry, moment)

    def _of_data(self, entry: Entry, moment: Snapshot) -> tuple[Version, Node | None]:
        node = entry.node
        if node is None:
            return Version(None), None
        source = moment.data_source_head(node.id)
        if source is None or not _is_external(source):
            return Version(self._marked(_kept(moment, node)), _itemsize(entry)), None
        run = moment.run_heard(node.run_uid) if node.run_uid is not None else None
        return self._of_files(Sight(entry, source, run, _settled(node, entry.observation, run)))

    def _of_files(self, sight: Sight) -> tuple[Version, Node | None]:
        entry, node, run, mark = sight.entry, sight.entry.node, sight.run, sight.mark
        assert node is not None
        itemsize = _itemsize(entry)
        now = self._clock()
        quiet = run is not None and not run.open and now >= run.last_received + QUIET_S
        if mark is None and quiet and may_settle(entry.observation, now):
            return Version(None, itemsize), node if node.family is Family.ARRAY else None
        return Version(self._marked(mark), itemsize, sight), None

    def _marked(self, state: bytes | None) -> bytes | None:
        return None if state is None else hashlib.blake2b(state, digest_size=16, key=self._salt).digest()


def _sight_of(entry: Entry, moment: Snapshot) -> Sight | None:
    """Return an array in files of others as it is now; None if `entry` is something else."""
    node = entry.node
    if node is None or node.external is None or node.family is not Family.ARRAY:
        return None
    source = moment.data_source_head(node.id)
    if source is None or not _is_external(source):
        return None
    run = moment.run_heard(node.run_uid) if node.run_uid is not None else None
    return Sight(entry, source, run, _settled(node, entry.observation, run))


def _is_external(source: DataSource | None) -> bool:
    return source is not None and source.management is Management.EXTERNAL


def _kept(moment: Snapshot, node: Node) -> bytes:
    series = series_of_table(node)
    return repr((node.id, node.revision, moment.rows(series), moment.began(series))).encode()


def _settled(node: Node, observation: Observation | None, run: Run | RunHeard | None) -> bytes | None:
    if observation is None or run is None or run.open or settled_at(observation) is None:
        return None
    if observation.status != OK or not is_of(observation, node) or observation.time < run.last_received + QUIET_S:
        return None
    if readable_structure(node, observation) != node.structure:
        return None  # what is missing may still come
    return msgspec.msgpack.encode((node.id, node.revision, observation.rows, observation.fingerprint))


def _container(moment: Snapshot, entry: Entry) -> bytes | None:
    """Return the state of all that is below a container, and of the documents that it may be made of."""
    if entry.node is None or entry.node.run_uid is None:
        return None  # the catalogue: other people's runs come and go below it
    run = moment.run(entry.node.run_uid)
    states = hashlib.blake2b(repr(None if run is None else (run.watermark, run.projected, run.open)).encode())
    for number, node in enumerate(_with_all_below(moment, entry.node)):
        if number > MOST_NODES:
            return None
        state: bytes | None = _kept(moment, node)
        if _is_external(moment.data_source_head(node.id)):
            state = _settled(node, moment.observation(node.id), run)
        elif node.family is Family.CONTAINER and node.structure is not None:
            state = None  # it stands for a file, which nobody looks at
        if state is None:
            return None
        states.update(b"%d:" % len(state) + state)
    return states.digest()


def _with_all_below(moment: Snapshot, node: Node) -> Iterator[Node]:
    yield node
    yield from everything_below(moment, node.path)


def _itemsize(entry: Entry) -> int:
    if entry.family is not Family.ARRAY or entry.structure is None:
        return 0
    return int(entry.structure["data_type"]["itemsize"])
