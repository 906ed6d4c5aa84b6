"""The tree as Zarr shows it, formats 2 and 3: documents of groups and arrays, chunks, names of children.

A stream is one group: the columns of its tables stand beside its arrays, as xarray wants them. Dimensions have one
length in a group: those whose length differs get a name of their own, and ``time`` is only said of rows that
are those of the stream. Ragged and sparse arrays, awkward ones, opaque files, and arrays whose dtype Zarr cannot say,
are left out of groups. Rows that were announced and are not there are left out as everywhere: shapes are
those of what can be read.

What cannot be read is an error and never missing, because readers of Zarr take a missing chunk for the fill value.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flystore.catalog import Snapshot
from flystore.model.errors import InvalidRequest, NotFound, NotReady, OutOfBounds, Unsupported
from flystore.model.structures import BLUESKY_STREAM, COMPOSITE, ArrayStructure, DataSource, Family
from flystore.storage import reserve

from .arrays import Arrays
from .browse import Browse
from .entries import Entry
from .probing import Prober
from .stored_forms import StoredForms
from .zarr_format import V2, V3, Form, array_v2, array_v3, encoded, group_v3, region_of, shown_dtype

MOST_CONSOLIDATED = 500
"""Nodes of a group up to which all their documents are given at once, and one length is one name among its arrays."""

GROUP_V2, ATTRIBUTES_V2, ARRAY_V2, ALL_V2, NODE_V3 = ".zgroup", ".zattrs", ".zarray", ".zmetadata", "zarr.json"
_GROUPS = (Family.CONTAINER, Family.TABLE)
_FLAT = frozenset({BLUESKY_STREAM.name, COMPOSITE.name})
_PAGE = 300

_Item = tuple[str, Entry]


class _Found(NamedTuple):
    """Something to describe.

    Attributes
    ----------
    where : str
        Its path relative to the group that is asked for.
    dims, source
        Of arrays only.
    below : list of _Found or None
        Of a group that is asked for: everything in it, however deep; None if that is too much.
    """

    where: str
    entry: Entry
    dims: tuple[str, ...] = ()
    source: DataSource | None = None
    below: "list[_Found] | None" = None


class ZarrView:
    """Documents and chunks of any container, table, column and array."""

    def __init__(self, browse: Browse, arrays: Arrays, forms: StoredForms, prober: Prober) -> None:
        self._browse = browse
        self._arrays = arrays
        self._forms = forms
        self._prober = prober

    def document(self, path: tuple[str, ...], name: str) -> dict[str, Any]:
        """Return the content of a document.

        Parameters
        ----------
        name : str
            ``.zgroup``, ``.zattrs``, ``.zarray`` or ``.zmetadata`` of format 2, ``zarr.json`` of format 3.

        Raises
        ------
        NotFound
            If there is nothing at `path`, or it has no such document: an array no ``.zgroup``, a large container no
            ``.zmetadata``.
        Unsupported
            If Zarr has no form for what is there.
        """
        found = self._document(path, name)
        if found is None:
            raise NotFound(f"/{'/'.join(path)} has no {name}", path=list(path))
        return found

    def _document(self, path: tuple[str, ...], name: str) -> dict[str, Any] | None:
        found = self._found(path, name)
        shown = [found.entry, *(each.entry for each in found.below or ())]
        if self._look(shown):
            found = self._found(path, name)
        entry = found.entry
        is_array = entry.family is Family.ARRAY
        match name:
            case ".zgroup":
                return None if is_array else {"zarr_format": V2}
            case ".zattrs":
                return _attributes_v2(entry, found.dims)
            case ".zarray":
                return self._array(found, V2) if is_array else None
            case ".zmetadata":
                return None if found.below is None else self._all_v2(entry, found.below)
            case _:
                return self._array(found, V3) if is_array else self._group_v3(entry, found.below)

    def _found(self, path: tuple[str, ...], name: str) -> "_Found":
        """Return what a document is about, all of one moment."""
        with self._browse.moment() as moment:
            entry = self._entry(path, moment)
            if entry.family is Family.ARRAY:
                dims = self._dims(entry, moment) if name in (ATTRIBUTES_V2, NODE_V3) else ()
                return _Found("", entry, dims, self._source(entry, moment))
            if entry.family not in _GROUPS:
                raise Unsupported(f"/{'/'.join(path)} is {entry.family}, for which Zarr has no form")
            return _Found("", entry, below=self._below(entry, moment) if name in (ALL_V2, NODE_V3) else None)

    def _look(self, entries: Iterable[Entry]) -> bool:
        """Look at files that should be, before shapes are told that reading would find too long."""
        stale = [
            entry.node
            for entry in entries
            if entry.node is not None and entry.column is None and self._prober.looks_stale(entry.node)
        ]
        for node in stale:
            self._prober.look(node)
        return bool(stale)

    def chunk(self, path: tuple[str, ...], index: Sequence[int], version: int) -> bytes | None:
        """Return a chunk as the array's document describes it; None if there is no array at `path`, but a group.

        Raises
        ------
        NotFound
            If there is nothing at `path`.
        InvalidRequest
            If the index has not one number for each axis.
        OutOfBounds
            If there is no such chunk: the array had more rows when it was opened, perhaps.
        Unreadable, MissingAsset, OutsideRoots, Damaged, TooLarge
            If it cannot be read.
        """
        with self._browse.moment() as moment:
            entry = self._entry(path, moment)
            if entry.family is not Family.ARRAY:
                return None
            source = self._source(entry, moment)
        structure = ArrayStructure.from_wire(entry.structure)
        if not structure.shape and tuple(index) in ((), (0,)):
            index = ()
        if len(index) != len(structure.shape):
            raise InvalidRequest(
                f"a chunk of /{'/'.join(path)} has {len(structure.shape)} indices, not {len(index)}", status=400
            )
        form = self._forms.form(entry, source, structure, version)
        region = region_of(structure.shape, form.chunks, index)
        if region is None:
            raise OutOfBounds(
                f"/{'/'.join(path)} has shape {structure.shape} now, and no chunk {tuple(index)}; open it again",
                shape=list(structure.shape),
                status=400,
            )
        stored = self._forms.chunk(entry, source, structure, form, index, region, version)
        return self._encoded(entry, structure, form, region) if stored is None else stored

    def children(self, path: tuple[str, ...]) -> list[str] | None:
        """Return the names of what is in a group; None for an array.

        Raises
        ------
        NotFound
        """
        with self._browse.moment() as moment:
            entry = self._entry(path, moment)
            if entry.family not in _GROUPS:
                return None
            return [name for name, _ in self._items(entry, moment)]

    # --- the tree -------------------------------------------------------------------------------

    def _entry(self, path: tuple[str, ...], moment: Snapshot) -> Entry:
        """Return what is at `path`; columns of a stream's tables are also at their names in the stream."""
        try:
            return self._browse.entry(path, moment)
        except NotFound:
            if len(path) < 2:
                raise
            try:
                group = self._browse.entry(path[:-1], moment)
            except NotFound:
                raise NotFound(f"No such entry: {list(path)}", path=list(path)) from None
            for table in self._children(group, moment) if _is_flat(group) else ():
                if table.family is Family.TABLE and path[-1] in (table.structure or {}).get("columns", ()):
                    return self._browse.entry((*table.path, path[-1]), moment)
            raise

    def _items(self, group: Entry, moment: Snapshot) -> Iterator[_Item]:
        """Yield what is in a group and has a form in Zarr, each with its name there."""
        if group.family is Family.TABLE:
            yield from self._columns(group, moment)
            return
        tables, names = [], set()
        for child in self._children(group, moment):
            if child.family is Family.TABLE and _is_flat(group):
                tables.append(child)
            elif child.family in _GROUPS or (child.family is Family.ARRAY and _has_form(child)):
                names.add(child.path[-1])
                yield child.path[-1], child
        for table in tables:
            for name, column in self._columns(table, moment):
                if name not in names:
                    names.add(name)
                    yield name, column

    def _children(self, group: Entry, moment: Snapshot) -> Iterator[Entry]:
        cursor: int | None = None
        while True:
            page = self._browse.children(group, (), (), limit=_PAGE, cursor=cursor, moment=moment)
            yield from page.entries
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    def _columns(self, table: Entry, moment: Snapshot) -> Iterator[_Item]:
        for name in (table.structure or {}).get("columns", ()):
            column = self._browse.entry((*table.path, name), moment)
            if column.family is Family.ARRAY and _has_form(column):
                yield name, column

    def _source(self, entry: Entry, moment: Snapshot) -> DataSource | None:
        if entry.column is not None or entry.node is None:
            return None
        return moment.data_source(entry.node.id)

    # --- dimensions -----------------------------------------------------------------------------

    def _dims(self, entry: Entry, moment: Snapshot) -> tuple[str, ...]:
        """Return the names of an array's axes, as they are in the group that it is in."""
        parent = entry.path[:-1] if entry.column is None else entry.path[:-2]
        if parent:
            group = self._browse.entry(parent, moment)
            if entry.column is not None and not _is_flat(group):
                group = self._browse.entry(entry.path[:-1], moment)
            if group.family is Family.TABLE or self._browse.count(group, (), moment) <= MOST_CONSOLIDATED:
                for _, (item, dims) in _named(self._items(group, moment), _is_flat(group)):
                    if item.path == entry.path:
                        return dims
        return _own_dims(entry, in_stream=False)

    def _below(self, group: Entry, moment: Snapshot) -> list[_Found] | None:
        """Return everything below a group by its relative path; None if that is too much."""
        if not group.path:
            return None
        found: list[_Found] = []
        return found if self._add_below(group, "", found, moment) else None

    def _add_below(self, group: Entry, prefix: str, found: list[_Found], moment: Snapshot) -> bool:
        if group.family is Family.CONTAINER and self._browse.count(group, (), moment) > MOST_CONSOLIDATED:
            return False
        for name, (entry, dims) in _named(self._items(group, moment), _is_flat(group)):
            if len(found) >= MOST_CONSOLIDATED:
                return False
            source = self._source(entry, moment) if entry.family is Family.ARRAY else None
            found.append(_Found(prefix + name, entry, dims, source))
            if entry.family in _GROUPS and not self._add_below(entry, f"{prefix}{name}/", found, moment):
                return False
        return True

    # --- documents ------------------------------------------------------------------------------

    def _array(self, found: _Found, version: int) -> dict[str, Any]:
        structure = ArrayStructure.from_wire(found.entry.structure)
        form = self._forms.form(found.entry, found.source, structure, version)
        if version == V2:
            return array_v2(form, structure.shape)
        return array_v3(form, structure.shape, found.dims, _attributes(found.entry))

    def _group_v3(self, entry: Entry, below: list[_Found] | None) -> dict[str, Any]:
        document = group_v3(_attributes(entry))
        if below is not None:
            documents = {
                each.where: self._array(each, V3)
                if each.entry.family is Family.ARRAY
                else group_v3(_attributes(each.entry))
                for each in below
            }
            document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": documents}
        return document

    def _all_v2(self, entry: Entry, below: list[_Found]) -> dict[str, Any]:
        documents: dict[str, Any] = {GROUP_V2: {"zarr_format": V2}, ATTRIBUTES_V2: _attributes_v2(entry, ())}
        for each in below:
            if each.entry.family is Family.ARRAY:
                documents[f"{each.where}/{ARRAY_V2}"] = self._array(each, V2)
            else:
                documents[f"{each.where}/{GROUP_V2}"] = {"zarr_format": V2}
            documents[f"{each.where}/{ATTRIBUTES_V2}"] = _attributes_v2(each.entry, each.dims)
        return {"zarr_consolidated_format": 1, "metadata": documents}

    # --- chunks ---------------------------------------------------------------------------------

    def _encoded(self, entry: Entry, structure: ArrayStructure, form: Form, region: tuple[slice, ...]) -> bytes:
        shape = tuple(part.stop - part.start for part in region)
        chunk_bytes = form.numpy_dtype.itemsize * int(np.prod(form.chunks, dtype=object))
        reserve(3 * chunk_bytes, f"a chunk of /{'/'.join(entry.path)}")
        dtype = structure.numpy_dtype
        if 0 in shape or dtype.itemsize == 0:
            return encoded(np.zeros(shape, form.numpy_dtype), form)
        content = self._arrays.read(entry.path, region)
        values = np.frombuffer(content, "u1")
        if values.nbytes != dtype.itemsize * int(np.prod(shape, dtype=object)):
            raise NotReady(f"/{'/'.join(entry.path)} became another array while it was read; open it again")
        return encoded(np.ndarray(shape, dtype, values), form)


def _is_flat(group: Entry) -> bool:
    return group.family is Family.CONTAINER and any(spec.name in _FLAT for spec in group.specs)


def _has_form(entry: Entry) -> bool:
    try:
        shown_dtype(ArrayStructure.from_wire(entry.structure).numpy_dtype, V2)
    except Unsupported:
        return False
    return True


def _own_dims(entry: Entry, *, in_stream: bool) -> tuple[str, ...]:
    """Return an array's dimensions as it has them; in a stream, rows without a name are those of the stream."""
    assert entry.structure is not None
    key, axes = entry.path[-1], len(entry.structure["shape"])
    named = entry.structure.get("dims") or ()
    first = ("time",) if in_stream or entry.column is not None else (f"{key}_dim0",)
    dims = named if len(named) == axes else (*first, *(f"{key}_dim{axis}" for axis in range(1, axes)))[:axes]
    return tuple(name if name not in dims[:axis] else f"{key}_dim{axis}" for axis, name in enumerate(dims))


def _named(items: Iterator[_Item], in_stream: bool) -> list[tuple[str, tuple[Entry, tuple[str, ...]]]]:
    """Return items with the names of their dimensions: one length has one name in a group.

    The columns of a stream say how many rows it has; further on the first to name a dimension says how long it is.
    """
    found = list(items)
    lengths: dict[str, int] = {}
    dims: dict[int, tuple[str, ...]] = {}
    for number, (_, entry) in sorted(enumerate(found), key=lambda pair: pair[1][1].column is None):
        if entry.family is not Family.ARRAY:
            continue
        assert entry.structure is not None
        key, names = entry.path[-1], []
        for axis, name in enumerate(_own_dims(entry, in_stream=in_stream)):
            length = entry.structure["shape"][axis]
            if lengths.get(name, length) != length:
                name = f"{key}_event" if axis == 0 and name == "time" else f"{key}_{name}"
            if lengths.get(name, length) != length or name in names:
                name = f"{key}_dim{axis}"
            lengths.setdefault(name, length)
            names.append(name)
        dims[number] = tuple(names)
    return [(name, (entry, dims.get(number, ()))) for number, (name, entry) in enumerate(found)]


def _attributes(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in entry.metadata.items() if name != "_ARRAY_DIMENSIONS"}


def _attributes_v2(entry: Entry, dims: Sequence[str]) -> dict[str, Any]:
    """Return the content of ``.zattrs``: the attributes that metadata name so, or else all of it."""
    named = entry.metadata.get("attributes")
    attributes = dict(named) if isinstance(named, dict) else _attributes(entry)
    if entry.family is Family.ARRAY:
        attributes["_ARRAY_DIMENSIONS"] = list(dims)
    return attributes
