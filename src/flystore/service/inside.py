"""Nodes inside files: groups and datasets of an HDF5 file that is registered as a container.

They have no row in the catalogue: whoever asks has the file looked at, and no transaction is open meanwhile. What
they are called, and hold, is what the file says now.
"""

from typing import Any

import msgspec
import numpy as np

from flystore.catalog import Node
from flystore.model.errors import MissingAsset, NotFound, NotReady, TooLarge, Unsupported
from flystore.model.queries import And, Query, SortKey, matches
from flystore.model.structures import ArrayStructure, DataSource, Family
from flystore.readers import HDF5, FileNode, describe, open_registered, read_text
from flystore.storage import Roots

from .entries import Entry, InFile, Place

INLINED_DEPTH = 5
INLINED_CHILDREN = 500
MOST_SEARCHED = 5_000
"""Children of one group that a filter looks at."""


def file_of(node: Node, source: DataSource | None) -> InFile | None:
    """Return the file that a container stands for; None if it is one of the catalogue's own."""
    if source is None or source.mimetype != HDF5 or node.family is not Family.CONTAINER:
        return None
    told = source.parameters.get("dataset") or "/"
    parts = told if isinstance(told, (list, tuple)) else [told]
    return InFile(source, _joined("", *(str(part) for part in parts)), top=True)


def place_in(node: Node, file: InFile, path: tuple[str, ...], rest: tuple[str, ...]) -> Place:
    """Return what `path` means that goes on with `rest` below a container that stands for a file."""
    return Place(path, node, InFile(file.source, _joined(file.path, *rest)))


def _joined(path: str, *more: str) -> str:
    return "/" + "/".join(part.strip("/") for part in (path, *more) if part.strip("/"))


class InsideFiles:
    """Looks into files, inside the read roots only."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def read(self, where: Place | Entry, depth: int = 0) -> Entry:
        """Return what is at a place in a file, described `depth` levels down where a group has few children.

        Raises
        ------
        NotFound
            If nothing is; with the fact ``status=410`` if a link leads nowhere.
        OutsideRoots, MissingAsset, Unreadable, Unsupported
            If the file, or one that a link leads to, cannot be read.
        """
        file = where.file
        assert file is not None
        assert where.node is not None
        found = describe(self._roots, _uri(file), file.path, depth=depth, most=INLINED_CHILDREN)
        if file.top and found.structure is not None:
            raise Unsupported(
                f"/{'/'.join(where.path)} is registered as a container; {file.path!r} in {_uri(file)} is a dataset",
                status=422,
            )
        return _entry(where.path, where.node, file, found)

    def child(self, entry: Entry, key: str) -> Entry | None:
        """Return a child that `read` described along with its group; None if its link leads nowhere."""
        assert entry.file is not None
        assert entry.file.found is not None
        assert entry.node is not None
        found = (entry.file.found.children or {})[key]
        if found is None:
            return None
        inner = InFile(entry.file.source, _joined(entry.file.path, key))
        return _entry((*entry.path, key), entry.node, inner, found)

    def children(
        self,
        entry: Entry,
        queries: tuple[Query, ...],
        sort: tuple[SortKey, ...],
        limit: int,
        offset: int,
        *,
        keys_only: bool = False,
    ) -> tuple[list[Entry], int]:
        """Return some children of a group in the file's order, or backwards, and how many match in all.

        Links that lead nowhere are counted. They are among the children only with `keys_only`, which without a filter
        looks at none of them: then nothing but their paths is right.

        Raises
        ------
        Unsupported
            If they are to be sorted otherwise.
        TooLarge
            If a filter would have to look at too many.
        """
        assert entry.file is not None
        if any(key.key not in ("", "id") for key in sort) or len(sort) > 1:
            raise Unsupported("what is inside a file can be sorted by id only", status=400)
        keys = list(self._looked(entry).keys)
        if sort and sort[0].key == "id":
            keys.sort()
        if sort and sort[0].descending:
            keys.reverse()
        if not queries and keys_only:
            file = msgspec.structs.replace(entry.file, top=False, found=None)
            named = (Entry((*entry.path, key), Family.CONTAINER, file=file) for key in keys[offset : offset + limit])
            return list(named), len(keys)
        if not queries:
            return self._described(entry, keys[offset : offset + limit]), len(keys)
        if len(keys) > MOST_SEARCHED:
            raise TooLarge(
                f"/{'/'.join(entry.path)} has {len(keys)} children in a file; a filter looks at {MOST_SEARCHED}",
                limit=MOST_SEARCHED,
            )
        asked = And(queries)
        found = [child for child in self._described(entry, keys) if matches(asked, child)]
        return found[offset : offset + limit], len(found)

    def count(self, entry: Entry, queries: tuple[Query, ...]) -> int:
        """Return how many children of a group match; errors as `children`."""
        if queries:
            return self.children(entry, queries, (), 0, 0)[1]
        return len(self._looked(entry).keys)

    def values(self, entry: Entry, structure: ArrayStructure, picked: tuple[Any, ...], limit_bytes: int) -> np.ndarray:
        """Return part of a dataset.

        Raises
        ------
        Unsupported
            If its values have no array form.
        NotReady
            If it changed since it was described.
        Unreadable, Truncated, OutsideRoots, MissingAsset, TooLarge
        """
        file = entry.file
        assert file is not None
        assert file.found is not None
        if file.found.unreadable is not None:
            raise Unsupported(file.found.unreadable)
        if file.found.text:
            strings = read_text(self._roots, _uri(file), file.path)
            if strings.shape != structure.shape or strings.dtype != structure.numpy_dtype:
                raise NotReady(f"/{'/'.join(entry.path)} changed while it was read; read again")
            return np.ascontiguousarray(strings[picked]).reshape(np.shape(strings[picked]))
        with open_registered(file.array_source(structure), structure, self._roots) as reader:
            return reader.read(picked, limit_bytes=limit_bytes)

    def _looked(self, entry: Entry) -> FileNode:
        assert entry.file is not None
        if entry.file.found is not None:
            return entry.file.found
        return describe(self._roots, _uri(entry.file), entry.file.path)

    def _described(self, entry: Entry, keys: list[str]) -> list[Entry]:
        assert entry.file is not None
        if not keys:
            return []
        found = describe(self._roots, _uri(entry.file), entry.file.path, only=keys)
        looked = msgspec.structs.replace(entry, file=msgspec.structs.replace(entry.file, found=found))
        described = (self.child(looked, key) for key in keys if key in (found.children or {}))
        return [child for child in described if child is not None]


def _uri(file: InFile) -> str:
    if not file.source.assets:
        raise MissingAsset("this container stands for a file that was not named yet")
    ordered = sorted(file.source.assets, key=lambda asset: (asset.num is None, asset.num or 0))
    return ordered[0].data_uri


def _entry(path: tuple[str, ...], node: Node, file: InFile, found: FileNode) -> Entry:
    own = node.metadata if file.top else {}
    return Entry(
        path=path,
        family=Family.CONTAINER if found.structure is None else Family.ARRAY,
        specs=node.specs if file.top else (),
        # What people said of the file comes before what it says of itself.
        metadata={**found.attributes, **own},
        structure=None if found.structure is None else found.structure.to_wire(),
        node=node,
        access_tags=node.access_tags if file.top else (),
        file=msgspec.structs.replace(file, found=found),
    )


def not_catalogued(place: Place) -> NotFound:
    """Return the error for whoever can do nothing with what is inside a file."""
    return NotFound(f"No such entry: {list(place.path)}", path=list(place.path))
