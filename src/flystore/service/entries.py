"""Entries: nodes as callers see them, at the path they asked for."""

from typing import Any

import msgspec

from flystore.catalog import Node, Observation
from flystore.model.structures import CATALOG_OF_RUNS, ArrayStructure, DataSource, Family, Spec
from flystore.readers import FileNode


class InFile(msgspec.Struct, frozen=True):
    """Where in a file something lies that has no row of its own in the catalogue.

    Attributes
    ----------
    source : DataSource
        Of the container that stands for the file.
    path : str
        In the file, from its root.
    top : bool
        Whether this is that container itself.
    found : FileNode or None
        What is there; None: nobody has looked yet.
    """

    source: DataSource
    path: str
    top: bool = False
    found: FileNode | None = None

    def array_source(self, structure: ArrayStructure) -> DataSource:
        """Return the dataset here as the data source of an array."""
        return msgspec.structs.replace(
            self.source,
            family=Family.ARRAY,
            structure=structure.to_wire(),
            parameters={**self.source.parameters, "dataset": self.path},
            assets=self.source.assets[:1],
            id=None,
        )


class Place(msgspec.Struct, frozen=True):
    """A path that goes on below a container that stands for a file; what is there only the file says."""

    path: tuple[str, ...]
    node: Node
    file: InFile


class Entry(msgspec.Struct, frozen=True):
    """What lies at a path: a catalogue node, an alias of one, the root, or a column of a table.

    Attributes
    ----------
    path : tuple of str
        As asked for; an alias keeps its own. ``()`` is the root.
    structure : dict or None
        Wire form of what is readable now; None for containers and bytes.
    node : Node or None
        The catalogue's row behind it; a column's is its table. None for the root.
    column : str or None
        Name of the table column this entry is.
    observation : Observation or None
        What was last found in its files: `structure` follows from it, and so must every read of this entry.
    file : InFile or None
        Of a container that stands for a file, and of what is inside it: where.
    """

    path: tuple[str, ...]
    family: Family
    specs: tuple[Spec, ...] = ()
    metadata: dict[str, Any] = {}
    structure: dict[str, Any] | None = None
    node: Node | None = None
    column: str | None = None
    observation: Observation | None = None
    access_tags: tuple[str, ...] = ()
    file: InFile | None = None

    @property
    def virtual(self) -> bool:
        """Whether it is inside a file, with no row of its own in the catalogue."""
        return self.file is not None and not self.file.top

    @property
    def key(self) -> str:
        return self.path[-1] if self.path else ""

    @property
    def stored_path(self) -> tuple[str, ...]:
        """Path of the node that holds the data; ``()`` for the root."""
        return self.node.path if self.node is not None else ()


def root() -> Entry:
    """Return the root: a catalogue of runs, which is how stock clients know what it is."""
    return Entry(path=(), family=Family.CONTAINER, specs=(CATALOG_OF_RUNS,))
