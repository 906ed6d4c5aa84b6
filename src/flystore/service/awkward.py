"""Awkward nodes: nested data of any shape, kept and sent as the flat buffers that clients make of it.

Slices are made by the client, which asks for the buffers that they touch. The buffers of a node are one part
(`flystore.storage.PartStore`), so they are always of one write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from flystore.catalog import Node
from flystore.model.errors import Damaged, InvalidRequest, TooLarge, Unsupported
from flystore.model.late import pa
from flystore.model.structures import AWKWARD_MIMETYPE, AwkwardStructure, Family
from flystore.storage import names_in, pack, read_zip, reserve, unpack_untrusted

from . import forms
from .export import ARROW, JSON, PARQUET, REGISTRY, ZIP, plain
from .kept import KeptNodes
from .limits import Limits
from .nested_arrow import arrow_file, library, parquet_file, table_of_buffers
from .operations import ArrayWritten

PART = "buffers.zip"

_PIECE_ITEMS = 1024
_AT_WORK = 4


class Buffers(msgspec.Struct, frozen=True):
    """Nested data.

    Attributes
    ----------
    form : dict
    length : int
    buffers : dict of str to bytes
        All that `form` names, or some of them.
    """

    name: str
    form: dict[str, Any]
    length: int
    buffers: dict[str, bytes]


class Awkward:
    """Reads and writes buffers of nested data."""

    def __init__(self, kept: KeptNodes, limits: Limits) -> None:
        self._kept = kept
        self._limits = limits

    def require(self, path: tuple[str, ...]) -> None:
        """Let pass what is an awkward array.

        Raises
        ------
        NotFound
        """
        self._kept.found(path, Family.AWKWARD)

    def read(self, path: tuple[str, ...], form_keys: Sequence[str] | None = None) -> Buffers:
        """Return the buffers of some parts of the form; None means all.

        Raises
        ------
        NotFound
            If there is no awkward array at `path`.
        InvalidRequest
            If its form has no such key.
        TooLarge
            If the buffers exceed what one answer may hold.
        Damaged, NotReady, Truncated
            If what was written cannot be read, or nobody wrote it.
        """
        node = self._kept.readable(path, Family.AWKWARD, AWKWARD_MIMETYPE)
        structure = AwkwardStructure.from_wire(node.structure)
        known = forms.buffer_names(structure.form)
        keys = known if form_keys is None else form_keys
        unknown = [key for key in keys if key not in known]
        if unknown:
            raise InvalidRequest(f"the form of /{'/'.join(path)} has no key {unknown[0]!r:.80}", status=400)
        names = list(dict.fromkeys(name for key in keys for name in known[key]))
        return Buffers("/" + "/".join(path), structure.form, structure.length, self._buffers(node, names))

    def _buffers(self, node: Node, names: list[str]) -> dict[str, bytes]:
        try:
            part = self._kept.store.path(str(node.id), PART)
            if part is None:
                raise self._kept.never_written(node, "the data")
            wanted = set(names)
            size = sum(nbytes for name, nbytes in names_in(part) if name in wanted)
            if size > self._limits.response_bytes:
                raise TooLarge(
                    f"these buffers of /{'/'.join(node.path)} hold {size} bytes; this service sends at most "
                    f"{self._limits.response_bytes} at once. Ask for fewer.",
                    limit=self._limits.response_bytes,
                )
            reserve(2 * size, f"these buffers of /{'/'.join(node.path)}")
            return read_zip(part, names)
        except Damaged as error:
            raise self._kept.gone(node, error) from error

    def write(self, path: tuple[str, ...], body: bytes) -> None:
        """Replace all buffers by those of a zip.

        Raises
        ------
        NotFound, MadeFromDocuments, Unsupported
            If there is no awkward array that can be written to.
        InvalidRequest
            If the body is no zip, or its buffers do not make what the form says.
        """
        with self._kept.writing(path, Family.AWKWARD, AWKWARD_MIMETYPE) as node:
            structure = AwkwardStructure.from_wire(node.structure)
            known = {name for names in forms.buffer_names(structure.form).values() for name in names}
            buffers = unpack_untrusted(body, known.__contains__, self._limits.inflated_bytes)
            reserve(_AT_WORK * sum(map(len, buffers.values())), "these buffers")
            forms.check_buffers(structure.form, structure.length, buffers)
            self._kept.store.write(str(node.id), PART, pack(buffers))
            self._kept.log(node, ArrayWritten(len(body), None))


def check_awkward(structure: AwkwardStructure) -> AwkwardStructure:
    """Return a structure that buffers can be kept with.

    Raises
    ------
    InvalidRequest, TooLarge
        If its form is none; see `forms.buffer_names`.
    """
    forms.buffer_names(structure.form)
    if structure.length >= 1 << 62:
        raise InvalidRequest(f"{structure.length} items are more than anything can hold")
    return structure


# --------------------------------------------------------------------------- formats


def _as_zip(source: Buffers, parameters: Mapping[str, str]) -> Iterator[bytes]:
    yield pack(source.buffers)


def _require_library(source: Buffers) -> Any:
    """Return the Awkward Array library, for data that it can write out."""
    awkward = library()
    if awkward is None:
        raise Unsupported(
            "this format of awkward arrays needs the library awkward, which this service lacks; ask for "
            "application/zip, or the operator can install it"
        )
    _require_packed(source.form, source.length, source.buffers)
    return awkward


def _require_packed(form: dict[str, Any], length: int, buffers: forms.Buffers) -> None:
    """Refuse data that takes much more room written out than in its buffers: few items, each shown many times."""
    inner = forms.inner_forms(form)
    if form["class"] in ("IndexedArray", "IndexedOptionArray", "ListArray"):
        raw = "starts" if form["class"] == "ListArray" else "index"
        index = forms.integers(form, raw, length, buffers)
        used = index[index >= 0]
        if form["class"] == "ListArray":
            stops = forms.integers(form, "stops", length, buffers)
            order = np.argsort(index, kind="stable")
            overlap = bool((index[order][1:] < stops[order][:-1]).any())
        else:
            overlap = len(np.unique(used)) < len(used)
        if overlap:
            raise Unsupported(
                f"part {form.get('form_key')!r} shows the same items several times; ask for application/zip, or write "
                "the array packed (awkward.to_packed)"
            )
    for part, n in zip(inner, _lengths(form, length, buffers), strict=True):
        _require_packed(part, n, buffers)


def _lengths(form: dict[str, Any], length: int, buffers: forms.Buffers) -> list[int]:
    """Return how many items of each part a form holds, of buffers that were checked."""
    match form["class"]:
        case "NumpyArray" | "EmptyArray":
            return []
        case "RegularArray":
            return [length * forms.size_of(form)]
        case "ListOffsetArray":
            return [int(forms.integers(form, "offsets", length + 1, buffers)[-1])]
        case "ListArray":
            return [int(forms.integers(form, "stops", length, buffers).max(initial=0))]
        case "IndexedArray" | "IndexedOptionArray":
            return [int(forms.integers(form, "index", length, buffers).max(initial=-1)) + 1]
        case "UnionArray":
            tags = forms.integers(form, "tags", length, buffers)
            index = forms.integers(form, "index", length, buffers)
            parts = range(len(forms.inner_forms(form)))
            return [int(index[tags == part].max(initial=-1)) + 1 for part in parts]
    return [length] * len(forms.inner_forms(form))


def _as_json(source: Buffers, parameters: Mapping[str, str]) -> Iterator[bytes]:
    array = _require_library(source).from_buffers(source.form, source.length, source.buffers)
    mark = b"["
    for at in range(0, len(array), _PIECE_ITEMS):
        yield mark + plain.encode(array[at : at + _PIECE_ITEMS].to_list())[1:-1]
        mark = b","
    yield b"]" if len(array) else b"[]"


def _table(source: Buffers) -> pa.Table:
    _require_library(source)
    return table_of_buffers(source.form, source.length, source.buffers, source.name)


def _as_arrow(source: Buffers, parameters: Mapping[str, str]) -> Iterator[bytes]:
    yield arrow_file(_table(source))


def _as_parquet(source: Buffers, parameters: Mapping[str, str]) -> Iterator[bytes]:
    yield parquet_file(_table(source))


for _media_type, _encode in ((ZIP, _as_zip), (JSON, _as_json), (ARROW, _as_arrow), (PARQUET, _as_parquet)):
    REGISTRY.add("awkward", _media_type, _encode)
