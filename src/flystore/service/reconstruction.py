"""Documents worked out from the tree that a stock writer left.

The stock writers keep metadata, rows and file registrations, not documents. What follows from those
is given back: start, descriptors, one Event a row, one StreamResource and StreamDatum an external
array, stop. Event uids, Resource and Datum documents, the timestamps of external keys and the
original StreamDatum ranges are gone; that is why such documents are marked *reconstructed*.
"""

from collections.abc import Iterator
from typing import Any

from flystore.catalog import Node, Snapshot
from flystore.model.structures import BLUESKY_STREAM, SEGMENTS_MIMETYPE, DataSource, Family, Management

from .browse import everything_below
from .columns import read_table

Document = tuple[str, dict[str, Any]]
_LAST = float("inf")


def reconstructed(snapshot: Snapshot, path: tuple[str, ...]) -> Iterator[Document]:
    """Yield the documents of the run at `path`: start, the rest by time, external files, stop."""
    run = snapshot.node(path)
    if run is None:
        return
    uid = run.run_uid or run.key
    start = run.metadata.get("start")
    if isinstance(start, dict):
        yield "start", start
    timed: list[tuple[float, int, Document]] = []
    files: list[Document] = []
    for stream in _streams(snapshot, run):
        descriptors = _descriptors(stream, uid)
        timed += [(_seconds(doc.get("time")), 0, ("descriptor", doc)) for doc in descriptors]
        for child in everything_below(snapshot, stream.path):
            source = snapshot.data_source(child.id)
            if source is None:
                continue
            if child.family is Family.TABLE and source.mimetype == SEGMENTS_MIMETYPE:
                timed += [(_seconds(doc["time"]), 1, ("event", doc)) for doc in _events(snapshot, child, descriptors)]
            elif source.management is Management.EXTERNAL:
                files += _external(child, source, descriptors[0], uid)
    timed.sort(key=lambda item: item[:2])
    for _, _, document in timed:
        yield document
    yield from files
    stop = run.metadata.get("stop")
    if isinstance(stop, dict):
        yield "stop", stop


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


def _events(snapshot: Snapshot, table: Node, descriptors: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: dict[tuple[str, int], int] = {}
    for row in read_table(snapshot, table).to_pylist():
        seq_num, moment = row.pop("seq_num", None), row.pop("time", None)
        moment = 0.0 if moment is None else moment
        owner = _descriptor_at(descriptors, moment)
        timestamps = {key[3:]: row.pop(key) for key in [k for k in row if k.startswith("ts_") and k[3:] in row]}
        repeat = seen.get((owner, seq_num), 0)
        seen[owner, seq_num] = repeat + 1
        uid = f"event-{owner}-{seq_num}" + (f"-{repeat}" if repeat else "")
        yield {
            "uid": uid,
            "descriptor": owner,
            "seq_num": seq_num,
            "time": moment,
            "data": row,
            "timestamps": timestamps,
        }


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
