"""Browsing: entries at paths, children of containers, the alias layout readers ask for.

A run's streams answer at ``<run>/<stream>`` and at ``<run>/streams/<stream>``, the older layout,
unless a node ``streams`` really exists. Columns of a table are entries below it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from flystore.catalog import Catalog, Node, NotAtOnce, Observation, Revision, Run, Snapshot
from flystore.model.errors import NotFound, Unsupported
from flystore.model.queries import Query, SortKey, Verdict
from flystore.model.structures import BLUESKY_RUN, ArrayStructure, Asset, DataSource, Family, RaggedStructure
from flystore.projection import ExternalArray, assets, unescape
from flystore.storage import Roots

from .columns import KnownTypes, column_structure, says_all
from .entries import Entry, InFile, Place, root
from .inside import InsideFiles, file_of, not_catalogued, place_in
from .limits import Limits
from .observed import cut, readable_structure
from .recent import Recent
from .table_files import TableFiles

STREAMS = "streams"


class EntryPage(msgspec.Struct, frozen=True):
    """Some children of a container.

    Attributes
    ----------
    count : int
        How many children match in all, as far as `flystore.catalog.Page` says.
    next_cursor, next_offset : int or None
        Where the next page begins, in order of insertion and in any order; both None at the end.
    """

    entries: list[Entry]
    count: int
    next_cursor: int | None
    next_offset: int | None


class Browse:
    """Reads the catalogue, and opens files only for what is inside them.

    What goes into one answer is read in one `moment`, and each call that belongs to it is given that. What is inside
    a file is in no moment of the catalogue: `find` says so, and `read` opens the file once the moment is over.

    Parameters
    ----------
    roots : Roots, optional
        Where files may be read; without, none.
    table_files : TableFiles
        Reads the tables that are in files.
    """

    def __init__(
        self,
        catalog: Catalog,
        limits: Limits,
        clock: Callable[[], float] = time.time,
        roots: Roots | None = None,
        *,
        table_files: TableFiles,
    ) -> None:
        self._catalog = catalog
        self.inside = InsideFiles(roots or Roots())
        self.table_files = table_files
        self._limits = limits
        self._clock = clock
        self._types: KnownTypes = Recent(256)

    def _now(self, queries: tuple[Query, ...]) -> tuple[Query, ...]:
        """Return queries that know since when a silent run counts as interrupted."""
        since = self._clock() - self._limits.silence_seconds
        return tuple(
            msgspec.structs.replace(query, silent_since=since) if isinstance(query, Verdict) else query
            for query in queries
        )

    def moment(self) -> AbstractContextManager[Snapshot]:
        """Give one state of the catalogue, for calls that must not contradict each other; keep it short."""
        return self._catalog.read()

    def glance(self) -> AbstractContextManager[Snapshot]:
        """Give one state of the catalogue on an event loop, for `at_once`; errors as `Catalog.glance`."""
        return self._catalog.glance()

    def at_once(self, path: tuple[str, ...], glance: Snapshot) -> Entry:
        """Return the node at `path`, of which a few point reads tell everything.

        Raises
        ------
        NotAtOnce
            If something else lies there, or nothing: `find` it in a thread.
        """
        if not path:
            return root()
        node = glance.node(path)
        column = self._column_at_once(glance, path) if node is None else None
        if column is not None:
            return column
        if node is None or _may_be_file(node):
            raise NotAtOnce(f"/{'/'.join(path)} is no simple node")
        return _entry_of(glance, node, path)

    def _within(self, moment: Snapshot | None) -> AbstractContextManager[Snapshot]:
        return self._catalog.read() if moment is None else nullcontext(moment)

    def entry(self, path: tuple[str, ...], moment: Snapshot | None = None) -> Entry:
        """Return what lies at `path`; within a `moment` nothing that lies inside a file.

        Raises
        ------
        NotFound
            If nothing does.
        OutsideRoots, MissingAsset, Unreadable, Unsupported
            If it lies inside a file that cannot be read.
        """
        with self._within(moment) as snapshot:
            found = self._entry(snapshot, path)
        if isinstance(found, Entry):
            return found
        if moment is not None:
            raise not_catalogued(found)
        return self.inside.read(found)

    def find(self, path: tuple[str, ...], moment: Snapshot) -> Entry | Place:
        """Return what lies at `path`, or where in a file to look for it.

        Raises
        ------
        NotFound
            If nothing can lie there.
        """
        return self._entry(moment, path)

    def container(self, path: tuple[str, ...], moment: Snapshot | None = None) -> Entry:
        """Return the container at `path`.

        Raises
        ------
        NotFound
            If nothing is there, or something that holds no children.
        """
        return require_family(self.entry(path, moment), Family.CONTAINER)

    def _entry(self, snapshot: Snapshot, path: tuple[str, ...]) -> Entry | Place:
        if not path:
            return root()
        node = snapshot.node(path)
        if node is not None:
            return _entry_of(snapshot, node, path)
        if len(path) >= 2 and path[1] == STREAMS:
            aliased = self._alias(snapshot, path)
            if aliased is not None:
                return aliased
        found = self._column(snapshot, path) or self._inside_file(snapshot, path)
        if found is None:
            raise NotFound(f"No such entry: {list(path)}", path=list(path))
        return found

    def _inside_file(self, snapshot: Snapshot, path: tuple[str, ...]) -> Place | None:
        """Return where in a file `path` leads, if the nearest node above it stands for one."""
        alias = len(path) >= 2 and path[1] == STREAMS and snapshot.node(path[:2]) is None
        stored = (path[0], *path[2:]) if alias else path
        for depth in range(len(stored) - 1, 0, -1):
            node = snapshot.node(stored[:depth])
            if node is not None:
                file = _file_of(snapshot, node)
                return None if file is None else place_in(node, file, path, stored[depth:])
        return None

    def _alias(self, snapshot: Snapshot, path: tuple[str, ...]) -> Entry | None:
        """Return what ``run/streams/…`` means where no node ``streams`` exists."""
        run = snapshot.node(path[:1])
        if run is None or not is_run(run) or snapshot.node(path[:2]) is not None:
            return None
        if len(path) == 2:
            return Entry(path=path, family=Family.CONTAINER, node=run)
        where = (path[0], *path[2:])
        node = snapshot.node(where)
        real = _entry_of(snapshot, node, path) if node is not None else self._column(snapshot, where)
        return None if real is None else msgspec.structs.replace(real, path=path)

    def _column_at_once(self, glance: Snapshot, path: tuple[str, ...]) -> Entry | None:
        """Return a column whose structure the schema of its table says; None if it takes more, or is none."""
        table = glance.node(path[:-1]) if len(path) > 1 else None
        if table is None or not says_all(table, path[-1]) or self.table_files.source_of(table, glance) is not None:
            return None
        return self._column(glance, path)

    def _column(self, snapshot: Snapshot, path: tuple[str, ...]) -> Entry | None:
        table = snapshot.node(path[:-1]) if len(path) > 1 else None
        if table is None or table.family is not Family.TABLE or table.structure is None:
            return None
        if path[-1] not in table.structure["columns"]:
            return None
        structure = self._column_structure(snapshot, table, path[-1])
        return Entry(
            path=path,
            family=Family.RAGGED if isinstance(structure, RaggedStructure) else Family.ARRAY,
            metadata=table.metadata.get(path[-1]) or {},
            structure=structure.to_wire(),
            node=table,
            column=path[-1],
            access_tags=table.access_tags,
        )

    def _column_structure(self, snapshot: Snapshot, table: Node, name: str) -> ArrayStructure | RaggedStructure:
        source = self.table_files.source_of(table, snapshot)
        if source is not None:
            return self.table_files.column_structure(table, source, name)
        return column_structure(snapshot, table, name, self._types)

    def count(self, entry: Entry, queries: tuple[Query, ...], moment: Snapshot | None = None) -> int:
        if entry.file is not None:
            return 0 if moment is not None else self.inside.count(entry, queries)
        with self._within(moment) as snapshot:
            if not queries and entry.node is not None:
                return snapshot.count_children(entry.node.id)
            return snapshot.count(entry.stored_path, self._now(queries))

    def counts(self, entries: Sequence[Entry], moment: Snapshot) -> list[int]:
        """Return for each entry of a page how many children it has, in one statement; inside files they count 0."""
        counted = [entry.node.id for entry in entries if entry.node is not None and entry.file is None]
        found = dict(zip(counted, moment.counts_of_children(counted), strict=True))
        return [
            found[entry.node.id] if entry.node is not None and entry.file is None else self.count(entry, (), moment)
            for entry in entries
        ]

    def children(
        self,
        entry: Entry,
        queries: tuple[Query, ...],
        sort: tuple[SortKey, ...],
        *,
        limit: int,
        offset: int | None = None,
        cursor: int | None = None,
        keys_only: bool = False,
        moment: Snapshot | None = None,
    ) -> EntryPage:
        """Return a page of a container's children, and how many there are in all.

        Within a `moment` a container that stands for a file has none: no file is opened in one.

        Parameters
        ----------
        keys_only : bool
            Nothing but the paths of what is inside a file has to be right.

        Raises
        ------
        Unsupported
            If what is inside a file is to be sorted by more than its key.
        OutsideRoots, MissingAsset, Unreadable
            If a file cannot be read.
        """
        if entry.file is not None:
            if moment is not None:
                return EntryPage([], 0, None, None)
            start = cursor or offset or 0
            some, count = self.inside.children(entry, queries, sort, limit, start, keys_only=keys_only)
            onward = start + limit if start + limit < count else None
            return EntryPage(some, count, None, onward)
        queries = self._now(queries)
        with self._within(moment) as snapshot:
            where = entry.stored_path
            page = snapshot.children(
                where, query=queries, sort=sort, limit=limit, offset=offset or 0, after=cursor, counted=True
            )
            found = _entries_of(snapshot, page.nodes, [(*entry.path, node.path[-1]) for node in page.nodes])
            return EntryPage(found, page.count or 0, page.next_cursor, page.next_offset)

    def descendants(
        self,
        entry: Entry,
        queries: tuple[Query, ...],
        *,
        max_depth: int | None,
        limit: int,
        offset: int | None = None,
        cursor: int | None = None,
        moment: Snapshot | None = None,
    ) -> EntryPage:
        """Return a page of what matches at any depth below a container, in order of insertion.

        What is inside files is not searched. `EntryPage.count` is exact on a first page and on the last; in between
        it is what is known to be there, because counting looks at every node.

        Parameters
        ----------
        max_depth : int or None
            1: children only; None: however deep.

        Raises
        ------
        Unsupported
            If `entry` is inside a file.
        """
        queries, where = self._now(queries), self._searchable(entry)
        start = offset or 0
        with self._within(moment) as snapshot:
            page = snapshot.descendants(
                where, query=queries, max_depth=max_depth, limit=limit, offset=start, after=cursor
            )
            paths = [(*entry.path, *node.path[len(where) :]) for node in page.nodes]
            found = _entries_of(snapshot, page.nodes, paths)
            if cursor is None and page.next_cursor is not None and not start:
                count = snapshot.count_descendants(where, query=queries, max_depth=max_depth)
            else:
                count = start + len(found) + (page.next_cursor is not None)
        return EntryPage(found, count, page.next_cursor, None)

    def count_descendants(
        self, entry: Entry, queries: tuple[Query, ...], max_depth: int | None, moment: Snapshot | None = None
    ) -> int:
        """Return how many nodes at any depth match; errors as `descendants`."""
        queries, where = self._now(queries), self._searchable(entry)
        with self._within(moment) as snapshot:
            return snapshot.count_descendants(where, query=queries, max_depth=max_depth)

    def _searchable(self, entry: Entry) -> tuple[str, ...]:
        if entry.virtual:
            raise Unsupported("what is inside a file cannot be searched at any depth", status=400)
        return entry.stored_path

    def revisions(self, path: tuple[str, ...], *, offset: int, limit: int) -> tuple[list[Revision], int]:
        """Return what a node's metadata was before changes that kept it, oldest first, and how many there are.

        Raises
        ------
        NotFound
            If nothing is at `path`.
        Unsupported
            If what is there has no row of its own: a column, or inside a file.
        """
        with self._catalog.read() as snapshot:
            found = self._entry(snapshot, path)
            if isinstance(found, Place) or found.column is not None:
                raise Unsupported(f"/{'/'.join(path)} keeps no revisions", status=405)
            where = found.stored_path
            return snapshot.revisions(where, offset=offset, limit=limit), snapshot.count_revisions(where)

    def distinct(
        self,
        entry: Entry,
        queries: tuple[Query, ...],
        *,
        keys: tuple[str, ...],
        families: bool,
        specs: bool,
        counts: bool,
        moment: Snapshot | None = None,
    ) -> dict[str, Any]:
        if entry.file is not None:
            raise Unsupported("the values of what is inside a file cannot be listed", status=400)
        with self._within(moment) as snapshot:
            return snapshot.distinct(
                entry.stored_path, query=self._now(queries), keys=keys, families=families, specs=specs, counts=counts
            )

    def data_sources(self, entry: Entry, moment: Snapshot | None = None) -> list[DataSource]:
        """Return an entry's data sources with all their assets; none for containers and columns."""
        if entry.file is not None and entry.file.top:
            return [entry.file.source]
        if entry.node is None or entry.column is not None or entry.family is Family.CONTAINER or entry.virtual:
            return []
        with self._within(moment) as snapshot:
            source = snapshot.data_source(entry.node.id)
        if source is None:
            return []
        if entry.node.external is not None:
            # The files of a document-made array follow from its frame map; storing one row a file
            # would make a long scan of one-frame files cost ever more.
            external = ExternalArray.from_bytes(entry.node.external)
            source = msgspec.structs.replace(source, assets=numbered(source.id or 0, assets(external)))
        return [source]


def numbered(source_id: int, files: tuple[Asset, ...]) -> tuple[Asset, ...]:
    """Return files that have no row of their own with ids by which callers can ask for them."""
    # Above all ids that a database gives out soon, below what JavaScript can count.
    first = source_id << 24
    return tuple(msgspec.structs.replace(file, id=first + place) for place, file in enumerate(files))


def everything_below(snapshot: Snapshot, path: tuple[str, ...]) -> Iterator[Node]:
    """Yield every node at any depth below `path` in order of insertion."""
    after = None
    while True:
        page = snapshot.descendants(path, limit=1000, after=after)
        yield from page.nodes
        if page.next_cursor is None:
            return
        after = page.next_cursor


def run_at(snapshot: Snapshot, path: tuple[str, ...]) -> Run:
    """Return what is kept of the run at `path`.

    Raises
    ------
    NotFound
        If there is none, or it was deleted.
    """
    run = None
    if len(path) == 1:
        node = snapshot.node(path)
        # A run that is stored and not yet shown has no node; its path is its uid, escaped.
        uid = unescape(path[0]) if node is None else node.run_uid
        run = snapshot.run(uid) if uid is not None else None
    if run is None or run.deleted or run.writer == "orphans":
        raise NotFound(f"No such run: {'/'.join(path)}", path=list(path))
    return run


def is_run(node: Node) -> bool:
    return any(spec.name == BLUESKY_RUN.name for spec in node.specs)


def require_family(entry: Entry, *families: Family) -> Entry:
    """Return `entry` if it is of one of `families`.

    Raises
    ------
    NotFound
        Which is what the protocol answers on the wrong route for a node.
    """
    if entry.family in families:
        return entry
    raise NotFound(
        f"The node at {'/'.join(entry.path)} has structure family {entry.family} and this endpoint is "
        f"compatible with {', '.join(families)}.",
        path=list(entry.path),
    )


def _entry_of(snapshot: Snapshot, node: Node, path: tuple[str, ...]) -> Entry:
    observation = snapshot.observation(node.id) if node.structure else None
    return _entry(snapshot, node, path, observation)


def _entries_of(snapshot: Snapshot, found: Sequence[Node], paths: Sequence[tuple[str, ...]]) -> list[Entry]:
    """Return the entries of some nodes, at `paths`, in a few statements however many they are."""
    observed = snapshot.last_observations([node.id for node in found if node.structure])
    return [_entry(snapshot, node, path, observed.get(node.id)) for node, path in zip(found, paths, strict=True)]


def _entry(snapshot: Snapshot, node: Node, path: tuple[str, ...], observation: Observation | None) -> Entry:
    structure = readable_structure(node, observation)
    if structure is not None and node.external is not None and observation is None and node.run_uid is not None:
        # Nobody knows yet whether what was announced is there; what is said now must be there when it is read.
        run = snapshot.run_heard(node.run_uid)
        if run is not None and run.open:
            structure = cut(structure, 0, node.key)
    return Entry(
        path=path,
        family=node.family,
        specs=node.specs,
        metadata=node.metadata,
        structure=structure,
        node=node,
        observation=observation,
        access_tags=node.access_tags,
        file=_file_of(snapshot, node),
    )


def _file_of(snapshot: Snapshot, node: Node) -> InFile | None:
    return file_of(node, snapshot.data_source(node.id)) if _may_be_file(node) else None


def _may_be_file(node: Node) -> bool:
    # A container that has a data source has a structure, if only an empty one; others are not asked.
    return node.family is Family.CONTAINER and node.structure is not None
