"""One stream during one batch: a working copy of its state, and the Events of the batch column by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from flystore.model.blocks import Column, EventBlock
from flystore.model.late import pa

from ._arrays import MAX_ARRAY_SIZE, stats_of
from ._columns import NOTHING, ColumnType, encode_column
from ._metadata import json_view
from ._names import by_claim, claim
from ._normalize import LARGEST_INDEX, configuration_view, data_key_view, whole_number
from ._notes import add_note, note_id
from ._state import EXACT_RANGES, DescriptorState, ExternalState, KeyState, Range, StreamState

MAX_TABLE_COLUMNS = 1024

Reference = tuple[str, str, int]
"""(data key, datum id, seq_num) of a value that names a Datum."""

_PART_ROWS = 1024  # turning rows into columns is several times slower for many rows at a time

_HIDDEN = ("name", "object_keys", "run_start")  # of a descriptor, in the stream's metadata


class ExternalWork:
    """Working copy of an `ExternalState`."""

    __slots__ = ("datum_kwargs", "frame", "newest", "positions", "ranges")

    def __init__(self, state: ExternalState) -> None:
        self.ranges: list[Range] = list(state.ranges)
        self.newest = max((found[0] for found in self.ranges), default=-1)
        self.positions = {uid: n for n, uid in enumerate(state.resources)}
        self.datum_kwargs = dict(state.datum_kwargs)
        self.frame = state.frame

    def add(self, uid: str, ordinal: int, index: int, seq: int, count: int, waiting: int) -> None:
        """Take a range in; one that goes on from the last is merged with it.

        Takes are numbered by arrival, so nothing is merged across a range that arrived between the two: neither one
        that is here, nor one that still waits for its resource, of which `waiting` is the highest ordinal. Above
        `EXACT_RANGES` the order of takes gives way, so that the state stays small.
        """
        position = self.positions.setdefault(uid, len(self.positions))
        if self.ranges:
            first, resource, at, start, length = self.ranges[-1]
            goes_on = resource == position and at + length == index and start + length == seq and first <= ordinal
            if goes_on and (waiting < first == self.newest or len(self.ranges) >= EXACT_RANGES):
                self.ranges[-1] = (first, resource, at, start, length + count)
                return
        self.ranges.append((ordinal, position, index, seq, count))
        self.newest = max(self.newest, ordinal)

    def freeze(self) -> ExternalState:
        return ExternalState(tuple(self.ranges), tuple(self.positions), self.datum_kwargs, self.frame)


class _Part:
    """Successive Events that have the same keys in the same order: rows, or a block of columns."""

    __slots__ = ("block", "keys", "layout", "seqs", "stamp_rows", "stamps", "times", "value_rows")

    def __init__(self, keys: tuple[Any, ...], stamps: tuple[Any, ...], block: EventBlock | None = None) -> None:
        self.layout = (keys, stamps)
        self.keys = {str(key): n for n, key in enumerate(keys)}
        self.stamps = {str(key): n for n, key in enumerate(stamps)}
        self.block = block
        self.seqs: list[int] = []
        self.times: list[float | None] = []
        self.value_rows: list[Sequence[Any]] = []
        self.stamp_rows: list[Sequence[Any]] = []

    def __len__(self) -> int:
        return len(self.seqs) if self.block is None else len(self.block)

    def seq_nums(self) -> np.ndarray:
        return np.array(self.seqs, np.int64) if self.block is None else self.block.seq_nums

    def time_column(self) -> pa.Array:
        return pa.array(self.times if self.block is None else self.block.times, pa.float64())

    def value_columns(self) -> Sequence[Column]:
        return list(zip(*self.value_rows, strict=True)) if self.block is None else self.block.data

    def stamp_columns(self) -> Sequence[Column]:
        return list(zip(*self.stamp_rows, strict=True)) if self.block is None else self.block.timestamps


class StreamWork:
    """Working copy of a `StreamState`; `freeze` gives the next one."""

    def __init__(self, state: StreamState, notes: dict[str, int]) -> None:
        self.before = state
        self.notes = notes
        self.metadata = state.metadata
        self.keys = dict(state.keys)
        self.values = dict.fromkeys(state.values)
        self.stamps = dict.fromkeys(state.stamps)
        self.filled = dict.fromkeys(state.filled)
        self.wide = state.wide
        self.external: dict[str, ExternalWork] = {}
        self.columns_changed = not state.metadata
        self._taken: set[str] | None = None
        self._parts: list[_Part] = []
        self._last_seq = sum(state.events[-1]) - 1 if state.events else 0

    # --- descriptors -------------------------------------------------------------------------------------

    def describe(self, doc: Mapping[str, Any]) -> None:
        """Take a descriptor in: the first one makes the metadata, later ones add to it."""
        declared = doc.get("data_keys")
        declared = declared if isinstance(declared, Mapping) else {}
        changed = self._declare(declared, doc.get("object_keys"))
        self.columns_changed = True
        if not self.metadata:
            view = {str(name): json_view(value) for name, value in doc.items() if name not in _HIDDEN}
            if "configuration" in doc:
                view["configuration"] = configuration_view(doc["configuration"])
            self.metadata = {**view, "data_keys": None}
            return
        update = {"uid": json_view(doc.get("uid")), "time": json_view(doc.get("time"))}
        if doc.get("configuration"):
            update["configuration"] = configuration_view(doc["configuration"])
        if changed:
            update["data_keys"] = changed
        self.metadata = {
            **self.metadata,
            "_config_updates": [*self.metadata.get("_config_updates", ()), update],
        }

    def _declare(self, declared: Mapping[str, Any], object_keys: Any) -> dict[str, Any]:
        """Take data keys in; return those that an earlier descriptor declares differently."""
        owners = {}
        if isinstance(object_keys, Mapping):
            owners = {
                key: name for name, keys in object_keys.items() if isinstance(keys, (list, tuple)) for key in keys
            }
        changed = {}
        names = [key for key in declared if isinstance(key, str)]
        self._claim(names)
        for key in names:
            if not isinstance(declared[key], Mapping):
                add_note(self.notes, note_id("malformed", key="descriptor", detail=f"data key {key!r}"))
                continue
            view = data_key_view(declared[key])
            if key in owners:
                view["object_name"] = json_view(owners[key])
            known = self.keys[key]
            if known.data_key is None:
                place = "t" if "external" in view else _place(view)
                place = place if known.values is None else known.place
                self.keys[key] = msgspec.structs.replace(known, data_key=view, place=place)
            elif known.data_key != view:
                changed[known.name] = view
                add_note(self.notes, note_id("changed-key", self.before.name, key))
        return changed

    def _claim(self, names: Iterable[str]) -> None:
        new = [key for key in names if key not in self.keys]
        if not new:
            return
        if self._taken is None:
            stored = [state.name.casefold() for state in self.keys.values()]
            self._taken = {*stored, *(f"ts_{name}" for name in stored)}
        given = {key: claim(key, self._taken) for key in by_claim(new)}
        for key in new:
            self.keys[key] = KeyState(given[key])

    # --- events ------------------------------------------------------------------------------------------

    def add_event(self, doc: Mapping[str, Any], descriptor: DescriptorState) -> list[Reference]:
        """Take an Event in as one row; return those of its values that name Datums."""
        data, stamps = doc.get("data"), doc.get("timestamps")
        if type(data) is not dict:
            data = dict(data) if isinstance(data, Mapping) else {}
        if type(stamps) is not dict:
            stamps = dict(stamps) if isinstance(stamps, Mapping) else {}
        seq = doc.get("seq_num")
        if type(seq) is not int or not -LARGEST_INDEX < seq < LARGEST_INDEX:
            seq = self._usable_seq(seq)
        self._last_seq = seq
        references: list[Reference] = []
        filled = doc.get("filled")
        if descriptor.external and not data.keys().isdisjoint(descriptor.external):
            data = self._without_references(data, filled, descriptor, seq, references)
        elif filled:
            self._note_unfilled(data, filled)
        layout = (tuple(data), tuple(stamps))
        part = self._parts[-1] if self._parts else None
        if part is None or part.block is not None or part.layout != layout or len(part) >= _PART_ROWS:
            part = self._new_part(_Part(*layout))
        part.value_rows.append(tuple(data.values()))
        part.stamp_rows.append(tuple(stamps.values()))
        part.seqs.append(seq)
        time = doc.get("time")
        part.times.append(time if type(time) is float else self._usable_time(time))
        return references

    def add_events(self, block: EventBlock, descriptor: DescriptorState) -> bool:
        """Take Events in together; False, and nothing done, if there is more to them than rows."""
        if not set(block.data_keys).isdisjoint(descriptor.external):
            return False
        if not all(all(marks) for marks in block.filled):
            return False
        self._last_seq = int(block.seq_nums[-1])
        self._new_part(_Part(block.data_keys, block.timestamp_keys, block))
        return True

    def _usable_seq(self, seq: Any) -> int:
        number = whole_number(seq)
        if number is None:
            add_note(self.notes, note_id("bad-seq-num", self.before.name))
            number = self._last_seq + 1
        return number

    def _usable_time(self, time: Any) -> float | None:
        try:
            return float(time)
        except (TypeError, ValueError, OverflowError):
            add_note(self.notes, note_id("bad-time", self.before.name))
            return None

    def _without_references(
        self,
        data: dict[str, Any],
        filled: Any,
        descriptor: DescriptorState,
        seq: int,
        references: list[Reference],
    ) -> dict[str, Any]:
        """Return the values that are in the Event itself."""
        marks = filled if isinstance(filled, Mapping) else {}
        kept = dict(data)
        for key in descriptor.external:
            if key not in data:
                continue
            value = data[key]
            if isinstance(value, str) and not marks.get(key, False):
                references.append((key, str(value), seq))
                del kept[key]
            else:
                self.filled[key] = None
                if not marks.get(key, False):
                    add_note(self.notes, note_id("filled-value", self.before.name, key))
        return kept

    def _note_unfilled(self, data: dict[str, Any], filled: Any) -> None:
        if isinstance(filled, Mapping):
            for key, mark in filled.items():
                if not mark and key in data:
                    add_note(self.notes, note_id("filled-false", self.before.name, str(key)))

    def _new_part(self, part: _Part) -> _Part:
        self._parts.append(part)
        for key in part.keys:
            if key not in self.keys:
                add_note(self.notes, note_id("undeclared", self.before.name, key))
        self._claim([*part.keys, *(key for key in part.stamps if key not in part.keys)])
        for seen, columns in ((part.keys, self.values), (part.stamps, self.stamps)):
            for key in by_claim(list(seen)):
                if key not in columns:
                    columns[key] = None
                    self.columns_changed = True
        if self.wide is None:
            in_table = sum(self.keys[key].place == "t" for key in part.keys)
            self.wide = 2 + in_table + len(part.stamps) > MAX_TABLE_COLUMNS
        return part

    # --- frames ------------------------------------------------------------------------------------------

    def frames_of(self, key: str) -> ExternalWork:
        """Return the working copy of what was announced for a key."""
        work = self.external.get(key)
        if work is None:
            work = self.external[key] = ExternalWork(self.before.external.get(key, ExternalState()))
        return work

    # --- the end of the batch ----------------------------------------------------------------------------

    def take_rows(self) -> pa.RecordBatch | None:
        """Return the Events of the batch as columns, and update the types of the columns; None without Events."""
        if not self._parts:
            return None
        names = ["seq_num", "time"]
        if len(self._parts) == 1:  # nearly always; to put one together with nothing takes ten times as long
            columns = [pa.array(self._parts[0].seq_nums()), self._parts[0].time_column()]
        else:
            columns = [
                pa.array(np.concatenate([part.seq_nums() for part in self._parts])),
                pa.concat_arrays([part.time_column() for part in self._parts]),
            ]
        values = [(part, part.value_columns()) for part in self._parts]
        for key in self.values:
            array, kind = encode_column(_column(values, "keys", key))
            self._note_type(key, array, kind)
            names.append(self.keys[key].name)
            columns.append(array)
        stamps = [(part, part.stamp_columns()) for part in self._parts]
        for key in self.stamps:
            array, kind = encode_column(_column(stamps, "stamps", key))
            self._note_stamp_type(key, kind)
            names.append(f"ts_{self.keys[key].name}")
            columns.append(array)
        return pa.RecordBatch.from_arrays(columns, names)

    def _note_type(self, key: str, array: pa.Array, kind: ColumnType) -> None:
        known = self.keys[key]
        joined = kind if known.values is None else known.values.join(kind)
        if known.place == "t":
            if joined != known.values:
                self.keys[key] = msgspec.structs.replace(known, values=joined)
                self.columns_changed = True
            return
        stats = known.stats.join(stats_of(array))
        moved = (stats.rows, 0 in stats.longest) != (known.stats.rows, 0 in known.stats.longest)
        self.columns_changed |= joined != known.values or moved
        self.keys[key] = msgspec.structs.replace(known, values=joined, stats=stats)

    def _note_stamp_type(self, key: str, kind: ColumnType) -> None:
        known = self.keys[key]
        joined = (known.stamps or NOTHING).join(kind)
        if joined != known.stamps:
            self.keys[key] = msgspec.structs.replace(known, stamps=joined)
            self.columns_changed = True

    def freeze(self) -> StreamState:
        """Return the state after the batch; `put` is still that of before."""
        external = dict(self.before.external)
        for key, work in self.external.items():
            external[key] = work.freeze()
        return StreamState(
            self.before.name,
            self.before.segment,
            self.metadata,
            self.keys,
            tuple(self.values),
            tuple(self.stamps),
            self.wide,
            self.before.rows + sum(map(len, self._parts)),
            _joined_runs(self.before.events, [part.seq_nums() for part in self._parts]),
            external,
            tuple(self.filled),
            self.before.put,
        )


def _column(parts: list[tuple[_Part, Sequence[Column]]], which: str, key: str) -> Column:
    """Return the values of one key in all Events of the batch, None where an Event lacks it."""
    pieces: list[Column] = []
    for part, columns in parts:
        position = getattr(part, which).get(key)
        pieces.append(columns[position] if position is not None else (None,) * len(part))
    if len(pieces) == 1:
        return pieces[0]
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    if len(arrays) == len(pieces) and len({array.dtype for array in arrays}) == 1:
        return np.concatenate(arrays)
    out: list[Any] = []
    for piece in pieces:
        out.extend(piece.tolist() if isinstance(piece, np.ndarray) else piece)
    return out


def _place(view: dict[str, Any]) -> str:
    """Return where values of an internal key go, as TiledWriter decides it: table, array or ragged."""
    shape = view.get("shape")
    if view.get("dtype") != "array" or not isinstance(shape, list):
        return "t"
    if None in shape:
        return "r"
    if all(isinstance(n, int) for n in shape):
        size = 1
        for n in shape:
            size *= n
        if size > MAX_ARRAY_SIZE:
            return "a"
    return "a" if _is_text_or_object(view.get("dtype_numpy")) else "t"


def _is_text_or_object(declared: Any) -> bool:
    try:
        return isinstance(declared, str) and np.dtype(declared).kind in "USO"
    except TypeError:
        return False


def _joined_runs(before: tuple[tuple[int, int], ...], seqs: list[np.ndarray]) -> tuple[tuple[int, int], ...]:
    if not seqs:
        return before
    if len(seqs) == 1 and len(seqs[0]) == 1:  # a plan that is followed: each event comes by itself
        number = int(seqs[0][0])
        if before and sum(before[-1]) == number:
            return (*before[:-1], (before[-1][0], before[-1][1] + 1))
        return (*before, (number, 1))
    numbers = np.concatenate(seqs)
    first = np.flatnonzero(np.concatenate([[True], np.diff(numbers) != 1]))
    counts = np.diff(np.concatenate([first, [len(numbers)]]))
    runs = list(zip(numbers[first].tolist(), counts.tolist(), strict=True))
    if before and sum(before[-1]) == runs[0][0]:
        last = before[-1]
        return (*before[:-1], (last[0], last[1] + runs[0][1]), *runs[1:])
    return (*before, *runs)
