"""Documents worked out from the tree that a stock writer left.

The stock writers keep metadata, rows and file registrations, not documents. What follows from those
is given back: start, descriptors, one Event a row, one StreamResource and StreamDatum an external
array, stop. Event uids, Resource and Datum documents, the timestamps of external keys and the
original StreamDatum ranges are gone; that is why such documents are marked *reconstructed*.
"""

import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

from flystore.catalog import Catalog, Node, Snapshot
from flystore.model.structures import BLUESKY_STREAM, SEGMENTS_MIMETYPE, DataSource, Family, Management

from .browse import everything_below
from .columns import series_of_table, shown_rows, shown_schema

Document = tuple[str, dict[str, Any]]
_Timed: TypeAlias = tuple[tuple[float, int], Document]
_LAST = float("inf")


class _Rows(NamedTuple):
    """A table of events, as it was when the run was looked at."""

    node: Node
    series: str
    rows: int
    began: int | None
    descriptors: list[dict[str, Any]]


def reconstructed(catalog: Catalog, path: tuple[str, ...]) -> Iterator[Document]:
    """Yield the documents of the run at `path`: start, the rest by time, external files, stop.

    Rows are read as they are asked for, with no transaction open in between; those appended meanwhile are not told.
    """
    timed: list[_Timed] = []
    tables: list[_Rows] = []
    files: list[Document] = []
    with catalog.read() as snapshot:
        run = snapshot.node(path)
        if run is None:
            return
        uid = run.run_uid or run.key
        for stream in _streams(snapshot, run):
            descriptors = _descriptors(stream, uid)
            timed += [((_seconds(doc.get("time")), 0), ("descriptor", doc)) for doc in descriptors]
            for child in everything_below(snapshot, stream.path):
                source = snapshot.data_source(child.id)
                if source is None:
                    continue
                if child.family is Family.TABLE and source.mimetype == SEGMENTS_MIMETYPE:
                    series = series_of_table(child)
                    tables.append(_Rows(child, series, snapshot.rows(series), snapshot.began(series), descriptors))
                elif source.management is Management.EXTERNAL:
                    files += _external(child, source, descriptors[0], uid)
    start, stop = run.metadata.get("start"), run.metadata.get("stop")
    if isinstance(start, dict):
        yield "start", start
    timed.sort(key=_moment)
    for _, document in heapq.merge(timed, *(_in_time(catalog, table) for table in tables), key=_moment):
        yield document
    yield from files
    if isinstance(stop, dict):
        yield "stop", stop


def _moment(item: _Timed) -> tuple[float, int]:
    return item[0]


def _in_time(catalog: Catalog, table: _Rows) -> Iterator[_Timed]:
    """Yield events in the order of their rows, each not before the one in the row above, nor before its stream."""
    latest = _seconds(table.descriptors[0].get("time"))
    for doc in _events(catalog, table):
        latest = max(latest, _seconds(doc["time"]))
        yield (latest, 1), ("event", doc)


def _streams(snapshot: Snapshot, run: Node) -> Iterator[Node]:
    """Find the streams of both layouts: below the run, or below a plain container ``streams``."""
    for node in everything_below(snapshot, run.path):
        if any(spec.name == BLUESKY_STREAM.name for spec in node.specs) or (
            node.family is Family.CONTAINER and node.path[1:-1] == ("streams",)
        ):
            yield node


def _descriptors(stream: Node, uid: str) -> list[dict[str, Any]]:
    """Return the descriptor and one more for each configuration update."""
    described = {key: value for key, value in stream.metadata.items() if key != "_config_updates"}
    # What a client of the protocol calls metadata may be anything at all.
    data_keys = described.get("data_keys")
    data_keys = data_keys if isinstance(data_keys, dict) else {}
    object_keys: dict[str, list[str]] = {}
    for key, data_key in data_keys.items():
        owner = data_key.get("object_name") if isinstance(data_key, dict) else None
        if isinstance(owner, str):
            object_keys.setdefault(owner, []).append(key)
    first = {**described, "name": stream.path[-1], "run_start": uid, "object_keys": object_keys}
    if not isinstance(first.get("uid"), str):
        first["uid"] = f"descriptor-{uid}-{stream.path[-1]}"
    updates = stream.metadata.get("_config_updates")
    later = [
        {**first, **update} for update in (updates if isinstance(updates, list) else []) if isinstance(update, dict)
    ]
    return [first, *(descriptor for descriptor in later if isinstance(descriptor["uid"], str))]


def _events(catalog: Catalog, table: _Rows) -> Iterator[dict[str, Any]]:
    seen: dict[str, _Seen] = {}
    schema, _ = shown_schema(table.node)
    for batch in shown_rows(catalog, table.series, schema, table.rows, table.began):
        for row in batch.to_pylist():
            seq_num, moment = row.pop("seq_num", None), row.pop("time", None)
            moment = 0.0 if moment is None else moment
            owner = _descriptor_at(table.descriptors, moment)
            timestamps = {key[3:]: row.pop(key) for key in [k for k in row if k.startswith("ts_") and k[3:] in row]}
            repeat = seen.setdefault(owner, _Seen()).count(seq_num)
            uid = f"event-{owner}-{seq_num}" + (f"-{repeat}" if repeat else "")
            yield {
                "uid": uid,
                "descriptor": owner,
                "seq_num": seq_num,
                "time": moment,
                "data": row,
                "timestamps": timestamps,
            }


class _Seen:
    """Counts how often each number was met; numbers that only go up by one take no memory."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._next = 0
        self._others: dict[Any, int] = {}

    def count(self, number: Any) -> int:
        """Return how often `number` was met before."""
        if self._first is None and isinstance(number, int):
            self._first = self._next = number
        inside = self._first is not None and isinstance(number, int) and self._first <= number < self._next
        before = self._others.get(number, 0) + inside
        if self._first is not None and number == self._next:
            self._next += 1
        else:
            self._others[number] = self._others.get(number, 0) + 1
        return before


def _seconds(time: Any, default: float = 0.0) -> float:
    return float(time) if isinstance(time, (int, float)) and time else default


def _descriptor_at(descriptors: list[dict[str, Any]], moment: Any) -> str:
    """Return the uid of the latest descriptor not after `moment`; the first if all are."""
    uid = descriptors[0]["uid"]
    for descriptor in descriptors[1:]:
        if _seconds(descriptor.get("time"), _LAST) <= _seconds(moment):
            uid = descriptor["uid"]
    return uid


def _external(node: Node, source: DataSource, descriptor: dict[str, Any], uid: str) -> Iterator[Document]:
    shape = (node.structure or {}).get("shape") or [0]
    resource = f"sr-{descriptor['uid']}-{node.path[-1]}"
    assets = sorted(source.assets, key=lambda asset: asset.num or 0)
    if not assets:
        return
    parameters = {**source.parameters}
    if len(assets) > 1:
        parameters["assets"] = [asset.data_uri for asset in assets]
    yield (
        "stream_resource",
        {
            "uid": resource,
            "run_start": uid,
            "data_key": node.path[-1],
            "mimetype": source.mimetype,
            "uri": assets[0].data_uri,
            "parameters": parameters,
        },
    )
    yield (
        "stream_datum",
        {
            "uid": f"{resource}/0",
            "stream_resource": resource,
            "descriptor": descriptor["uid"],
            "indices": {"start": 0, "stop": shape[0]},
            "seq_nums": {"start": 1, "stop": shape[0] + 1},
        },
    )
