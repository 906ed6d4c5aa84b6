"""Entries: nodes as callers see them, at the path they asked for."""

from typing import Any

import msgspec

from flystore.catalog import Node, Observation
from flystore.model.structures import CATALOG_OF_RUNS, Family, Spec


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

    @property
    def stored_path(self) -> tuple[str, ...]:
        """Path of the node that holds the data; ``()`` for the root."""
        return self.node.path if self.node is not None else ()


def root() -> Entry:
    """Return the root: a catalogue of runs, which is how stock clients know what it is."""
    return Entry(path=(), family=Family.CONTAINER, specs=(CATALOG_OF_RUNS,))
