"""From a state to the nodes of the tree, as TiledWriter would make them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np

from flystore.model.late import pa
from flystore.model.structures import (
    BLUESKY_RUN,
    BLUESKY_STREAM,
    COMPOSITE,
    SEGMENT_ARRAY_MIMETYPE,
    SEGMENTS_MIMETYPE,
    DataSource,
    Family,
    Management,
    Spec,
    TableStructure,
)

from ._arrays import DimNames, View, array_structure, array_view, ragged_structure, ragged_view
from ._changes import PutNode
from ._columns import NOTHING, arrow_type
from ._external import Described, announced_structure, data_source, describe, is_aligned
from ._frames import KeyFrames, StreamFrames
from ._names import segment
from ._notes import add_note, metadata_notes, note_id
from ._state import KeyState, ResourceState, RunState, StreamState
from ._stream import MAX_TABLE_COLUMNS


def run_node(state: RunState) -> PutNode:
    """Return the run's node."""
    metadata: dict[str, Any] = {}
    if state.start is not None:
        metadata["start"] = state.start
    if state.stop is not None:
        metadata["stop"] = state.stop
    notes = metadata_notes(all_notes(state))
    if notes:
        metadata["notes"] = notes
    specs = tuple(Spec(name, version) for name, version in state.specs)
    return PutNode((segment(state.run_uid),), Family.CONTAINER, (*specs, BLUESKY_RUN), metadata)


def stream_node(run: str, stream: StreamState) -> PutNode:
    """Return the node of a stream."""
    declared = {each.name: each.data_key for each in stream.keys.values() if each.data_key is not None}
    metadata = {**stream.metadata, "data_keys": declared}
    return PutNode((run, stream.segment), Family.CONTAINER, (BLUESKY_STREAM, COMPOSITE), metadata)


# --- slow data -------------------------------------------------------------------------------------------


def is_in_table(key: KeyState) -> bool:
    """Whether the values of a key are a column of the table.

    Array-valued keys are, as long as there is nothing to make an array of: only null, or an axis of length 0.
    """
    if key.values is None:
        return False
    if key.place == "a":
        return key.stats.rows == 0 or 0 in key.stats.longest
    return key.place == "t" or key.stats.rows == 0


def table_schema(stream: StreamState) -> pa.Schema:
    """Return the columns of a stream's table with the types in which they are shown."""
    fields = [pa.field("seq_num", pa.int64()), pa.field("time", pa.float64())]
    shown = [stream.keys[key] for key in stream.values]
    fields += [pa.field(key.name, arrow_type(key.values or NOTHING)) for key in shown if is_in_table(key)]
    stamps = [stream.keys[key] for key in stream.stamps]
    fields += [pa.field(f"ts_{key.name}", arrow_type(key.stamps or NOTHING)) for key in stamps]
    return pa.schema(fields)


def table_nodes(run: str, stream: StreamState) -> Iterator[PutNode]:
    """Yield the table of a stream, or its parts where it is too wide for one."""
    schema = table_schema(stream)
    declared = {key.name: key.data_key for key in stream.keys.values() if key.data_key is not None}
    for suffix, part in _parts(schema, bool(stream.wide)):
        columns = set(part.names)
        structure = TableStructure.of(part).to_wire()
        yield PutNode(
            (run, stream.segment, f"internal{suffix}"),
            Family.TABLE,
            (),
            {name: data_key for name, data_key in declared.items() if name in columns},
            structure,
            DataSource(
                Family.TABLE,
                SEGMENTS_MIMETYPE,
                structure,
                {"table_name": f"{run}/{stream.segment}", "dataset_id": 0},
                management=Management.WRITABLE,
            ),
        )


def _parts(schema: pa.Schema, wide: bool) -> Iterator[tuple[str, pa.Schema]]:
    if not wide:
        yield "", schema
        return
    names = sorted(schema.names)
    size = math.ceil(len(names) / math.ceil(len(names) / MAX_TABLE_COLUMNS))
    for number, start in enumerate(range(0, len(names), size)):
        yield f"_{number}", pa.schema([schema.field(name) for name in names[start : start + size]])


def array_nodes(run: str, stream: StreamState) -> Iterator[PutNode]:
    """Yield the nodes of array-valued keys that are not in the table."""
    dims = DimNames()
    apart = [key for key in stream.keys.values() if key.values is not None and not is_in_table(key)]
    for key in sorted(apart, key=lambda each: each.place == "r"):
        view = view_of(key, stream.rows)
        names = dims.of(view.item_shape)
        if key.place == "a":
            family = Family.ARRAY
            structure = array_structure(view, stream.rows, names).to_wire()
            metadata = {**(key.data_key or {}), "dtype_numpy": _dtype_name(view)}
        else:
            family = Family.RAGGED
            structure = ragged_structure(view, key.stats, stream.rows, names).to_wire()
            metadata = dict(key.data_key or {})
        source = DataSource(
            family, SEGMENT_ARRAY_MIMETYPE, structure, {"column": key.name}, management=Management.WRITABLE
        )
        yield PutNode((run, stream.segment, key.name), family, (), metadata, structure, source)


def _dtype_name(view: View) -> str:
    return str(np.dtype(view.dtype))


def view_of(key: KeyState, rows: int) -> View:
    """Return how an array-valued key of a stream with so many rows is shown."""
    declared = key.data_key or {}
    values = key.values or NOTHING
    if key.place == "r":
        return ragged_view(values, key.stats, declared.get("shape"))
    return array_view(values, key.stats, rows, declared.get("shape"), declared.get("dtype_numpy"))


# --- external data ---------------------------------------------------------------------------------------


def described(key: KeyState, found: KeyFrames) -> Described | None:
    """Return what is announced for an external key; None where no node can be made."""
    if key.data_key is None or not found.resources or not len(found.placed.frame_map):
        return None
    return describe(key.name, key.data_key, found.resources, found.placed.frame_map, found.placed.extra)


def external_nodes(
    run: str, stream: StreamState, frames: StreamFrames, stopped: bool
) -> Iterator[tuple[PutNode, bytes]]:
    """Yield the nodes of external keys, each with what a digest of it depends on."""
    for name, found in frames.keys.items():
        key = stream.keys.get(name)
        announced = described(key, found) if key is not None else None
        if announced is None:
            continue
        array = announced.array
        structure = announced_structure(array, frames.rows)
        source = data_source(array, structure)
        metadata = announced.metadata if stopped else {}
        encoded = array.to_bytes()
        node = PutNode((run, stream.segment, array.key), array.family, (), metadata, source.structure, source, encoded)
        aligned = is_aligned(array, frames.rows)
        yield node, encoded + msgspec.msgpack.encode((metadata, aligned))


# --- notes -----------------------------------------------------------------------------------------------


def all_notes(state: RunState) -> dict[str, int]:
    """Return the notes taken while documents came and those that follow from the state."""
    notes = dict(state.notes)
    for stream in state.streams.values():
        if stream.segment != stream.name:
            add_note(notes, note_id("renamed-stream", stream.name, detail=stream.segment))
        for name, key in stream.keys.items():
            for kind, detail in _key_notes(name, key, stream):
                add_note(notes, note_id(kind, stream.name, name, detail))
    return notes


def _key_notes(name: str, key: KeyState, stream: StreamState) -> Iterator[tuple[str, str]]:
    if key.name != name:
        yield "renamed", key.name
    if key.values is None:
        return
    if key.values.is_mixture:
        yield "made-text", ""
    if key.values.is_inexact:
        yield "inexact", ""
    if is_in_table(key):
        return
    yield ("stored-apart" if key.place == "a" else "stored-ragged"), ""
    if key.stats.rows < stream.rows:
        yield "row-missing", ""
    if key.place == "a":
        view = view_of(key, stream.rows)
        if key.stats.longest != key.stats.shortest or key.stats.holes:
            yield "padded", ""
        if not view.as_declared:
            yield "declared-otherwise", ""


def external_notes(
    stream: StreamState, frames: StreamFrames, resources: Mapping[str, ResourceState]
) -> Iterator[tuple[str, int]]:
    """Yield notes about external keys, with how often."""
    for name, found in frames.keys.items():
        key = stream.keys.get(name)
        if found.lost:
            yield note_id("lost-frames", stream.name, name), found.lost
        if key is None or key.data_key is None:
            yield note_id("undeclared-external", stream.name, name), 1
            continue
        announced = described(key, found)
        if announced is None:
            if found.resources:
                yield note_id("variable-shape", stream.name, name), 1
            continue
        for oddity in announced.oddities:
            yield note_id(oddity, stream.name, name), 1


def digest(*parts: bytes) -> bytes:
    """Return 8 bytes that tell whether a node is as it was put last."""
    found = blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.digest()


def node_digest(node: PutNode) -> bytes:
    """Return the digest of a node whose structure is small."""
    return digest(
        msgspec.msgpack.encode(
            (node.family, [(spec.name, spec.version) for spec in node.specs], node.metadata, node.structure)
        )
    )
