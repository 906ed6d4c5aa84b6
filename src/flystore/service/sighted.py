"""What was seen of arrays in files of others, kept for as long as nothing at all is committed to the catalogue.

A short read would otherwise spend most of its time on reading and decoding the same rows again. Nothing here is about
the files themselves: they are looked at with every read.
"""

from functools import cached_property

from flystore.catalog import Catalog, RunHeard
from flystore.model.structures import ArrayStructure, DataSource

from .array_files import FileArray
from .entries import Entry
from .recent import Recent

_MOST = 64
_LONGEST_MAP = 64 << 10


class Sight:
    """An array in files of others, as one state of the catalogue has it.

    Parameters
    ----------
    entry : Entry
        With a node.
    source : DataSource
        Without its assets.
    run : RunHeard or None
        That the node belongs to.
    mark : bytes or None
        Of `Versions`: what its version is made of.
    """

    def __init__(self, entry: Entry, source: DataSource, run: RunHeard | None, mark: bytes | None) -> None:
        self.entry = entry
        self.source = source
        self.run = run
        self.mark = mark

    def run_heard(self, uid: str) -> RunHeard | None:
        """Return what is known of the run that the node belongs to, as `Snapshot.run_heard` does."""
        return self.run

    @cached_property
    def structure(self) -> ArrayStructure:
        return ArrayStructure.from_wire(self.entry.structure)

    @cached_property
    def files(self) -> FileArray:
        """The array as its files have it; the node has to be made of documents."""
        return FileArray(self.entry)


class Sights:
    """Sights by path, each good while the number of changes is the one that it was made at."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._seen: Recent[tuple[str, ...], tuple[int, Sight]] = Recent(_MOST)

    def changes(self) -> int:
        """Return the number to keep a sight under; ask for it before the catalogue is read.

        Raises
        ------
        NotAtOnce
            If nobody can tell.
        """
        return self._catalog.changes()

    def keep(self, path: tuple[str, ...], changes: int, sight: Sight) -> None:
        """Keep what was read since `changes` was asked for."""
        node = sight.entry.node
        if node is not None and len(node.external or b"") <= _LONGEST_MAP:
            self._seen[path] = changes, sight

    def known(self, path: tuple[str, ...]) -> Sight | None:
        """Return the sight of a path if the catalogue is as it was then; None if it may not be.

        Raises
        ------
        NotAtOnce
            As `changes`.
        """
        kept = self._seen.get(path)
        return kept[1] if kept is not None and kept[0] == self._catalog.changes() else None
