"""Streams of Bluesky documents to order: builders for tests by hand, strategies for laws.

Builders keep nothing but what they are given, and numbers count up from it, so the same calls give the same documents.

    run = RunDocuments("r1", num_points=3)
    stream = run.stream("primary", motor=internal(), img=external([4, 5]))
    stream.event(motor=1.0)
    stream.frames("img", 0, 1)
    run.stop()
    run.documents                     # [("start", {...}), ("descriptor", {...}), ...]
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Document = tuple[str, dict[str, Any]]


def internal(dtype: str = "number", shape: Sequence[int | None] = (), **more: Any) -> dict[str, Any]:
    """Return a data key whose values are in Events."""
    return {"source": "test", "dtype": dtype, "shape": list(shape), **more}


def external(shape: Sequence[int | None] = (4, 5), dtype_numpy: Any = "<u2", **more: Any) -> dict[str, Any]:
    """Return a data key whose values are in files."""
    return {
        "source": "test",
        "dtype": "array",
        "shape": list(shape),
        "dtype_numpy": dtype_numpy,
        "external": "STREAM:",
        **more,
    }


def numbered(documents: Sequence[Document], first: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
    """Return documents with their ordinals, as `flystore.projection.advance` takes them."""
    return [(first + n, name, doc) for n, (name, doc) in enumerate(documents)]


class RunDocuments:
    """The documents of one run, in the order of the calls.

    Parameters
    ----------
    uid : str
    **start
        Further fields of the Start document.
    """

    def __init__(self, uid: str = "run", **start: Any) -> None:
        self.uid = uid
        self.documents: list[Document] = [("start", {"uid": uid, "time": 1000.0, **start})]
        self._made = 0

    def add(self, name: str, doc: dict[str, Any]) -> dict[str, Any]:
        """Append any document as it is."""
        self.documents.append((name, doc))
        return doc

    def new_uid(self, what: str) -> str:
        self._made += 1
        return f"{self.uid}-{what}-{self._made}"

    def stream(self, stream_name: str = "primary", **data_keys: dict[str, Any]) -> "StreamDocuments":
        """Add a descriptor and return what makes its Events and frames."""
        return StreamDocuments(self, stream_name, data_keys)

    def stop(self, exit_status: str = "success", **more: Any) -> dict[str, Any]:
        return self.add(
            "stop",
            {"uid": self.new_uid("stop"), "time": 2000.0, "run_start": self.uid, "exit_status": exit_status, **more},
        )


class StreamDocuments:
    """Documents of one stream; made by `RunDocuments.stream`."""

    def __init__(self, run: RunDocuments, name: str, data_keys: Mapping[str, dict[str, Any]]) -> None:
        self.run, self.name = run, name
        self.seq_num = 0
        self.resources: dict[str, str] = {}
        self.descriptor = self.describe(**data_keys)

    def describe(self, **data_keys: dict[str, Any]) -> str:
        """Add a descriptor, also a further one; return its uid."""
        self.descriptor = self.run.new_uid("descriptor")
        self.run.add(
            "descriptor",
            {
                "uid": self.descriptor,
                "time": 1001.0,
                "run_start": self.run.uid,
                "name": self.name,
                "data_keys": dict(data_keys),
                "configuration": {},
                "object_keys": {},
                "hints": {},
            },
        )
        return self.descriptor

    def event(self, seq_num: int | None = None, filled: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
        """Add an Event; without `seq_num` they count up."""
        self.seq_num = self.seq_num + 1 if seq_num is None else seq_num
        time = 1001.0 + self.seq_num
        return self.run.add(
            "event",
            {
                "uid": self.run.new_uid("event"),
                "descriptor": self.descriptor,
                "seq_num": self.seq_num,
                "time": time,
                "data": dict(data),
                "timestamps": dict.fromkeys(data, time),
                "filled": filled or {},
            },
        )

    def resource(
        self,
        key: str,
        uri: str = "file://localhost/data/a.h5",
        mimetype: str = "application/x-hdf5",
        **parameters: Any,
    ) -> str:
        """Add a StreamResource; later `frames` of the key are in it."""
        uid = self.run.new_uid("resource")
        if mimetype == "application/x-hdf5":
            parameters.setdefault("dataset", "/entry/data/data")
        self.run.add(
            "stream_resource",
            {
                "uid": uid,
                "run_start": self.run.uid,
                "data_key": key,
                "mimetype": mimetype,
                "uri": uri,
                "parameters": parameters,
            },
        )
        self.resources[key] = uid
        return uid

    def frames(
        self, key: str, start: int, stop: int, seq_start: int | None = None, seq_stop: int | None = None
    ) -> dict[str, Any]:
        """Add a StreamDatum; without seq_nums they are the indices + 1."""
        if key not in self.resources:
            self.resource(key)
        seq_start = start + 1 if seq_start is None else seq_start
        seq_stop = seq_start + stop - start if seq_stop is None else seq_stop
        return self.run.add(
            "stream_datum",
            {
                "uid": self.run.new_uid("datum"),
                "stream_resource": self.resources[key],
                "descriptor": self.descriptor,
                "indices": {"start": start, "stop": stop},
                "seq_nums": {"start": seq_start, "stop": seq_stop},
            },
        )


# --- strategies ------------------------------------------------------------------------------------------

plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.one_of(st.none(), st.integers(-5, 5), st.floats(-1, 1), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
"""Values of table columns, of every kind that devices were seen to give."""

array_values = st.one_of(
    st.none(),
    st.lists(st.integers(-(2**40), 2**40), max_size=4),
    st.lists(st.floats(-1, 1), max_size=4),
    st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=3),
    st.floats(-1, 1),
)
"""Values of a key that is declared an array: lists of changing length and rank, scalars, null."""


@st.composite
def runs(draw: st.DrawFn, uid: str = "run") -> list[Document]:
    """Return the documents of a run of one to three streams, in an order that event-model allows.

    Streams have Events, frames, or both; keys are missing in some Events, values are of any kind, frames run ahead,
    have gaps, are announced twice, or lie in two files. A seq_num is announced with one frame only.
    """
    run = RunDocuments(uid, **draw(st.sampled_from([{}, {"num_points": 3, "scan_id": 7}])))
    for number in range(draw(st.integers(1, 3))):
        _draw_stream(draw, run, f"stream{number}")
    documents = _shuffled(draw, run.documents[1:])
    if draw(st.booleans()):
        run.documents = []
        run.stop()
        documents = documents + run.documents
    return [("start", {"uid": uid, "time": 1000.0}), *documents]


def _draw_stream(draw: st.DrawFn, run: RunDocuments, name: str) -> None:
    keys = {"a": internal(), "b": internal("string"), "time": internal(), "wave": internal("array", [20])}
    keys |= {"rag": internal("array", [None])}
    frames = {key: external([2, 3]) for key in draw(st.lists(st.sampled_from(["x", "y"]), unique=True))}
    stream = run.stream(name, **keys, **frames)
    for _ in range(draw(st.integers(0, 5))):
        data = {key: draw(plain_values) for key in ("a", "b", "time", "new") if draw(st.booleans())}
        data |= {key: draw(array_values) for key in ("wave", "rag") if draw(st.booleans())}
        repeat = draw(st.integers(0, 5)) == 0 and stream.seq_num > 0
        stream.event(stream.seq_num if repeat else None, **data)
    for key in frames:
        index = 0
        stream.resource(key, f"file://localhost/data/{name}-{key}-0.h5")
        for _ in range(draw(st.integers(0, 4))):
            index += draw(st.integers(0, 2))
            width = draw(st.integers(1, 3))
            if index and draw(st.integers(0, 4)) == 0:
                stream.resource(key, f"file://localhost/data/{name}-{key}-{index}.h5")
            stream.frames(key, index, index + width)
            if draw(st.integers(0, 5)) == 0:
                stream.frames(key, index, index + width)
            index += width


def _shuffled(draw: st.DrawFn, documents: list[Document]) -> list[Document]:
    """Return documents of several streams interleaved, each stream's own in order."""
    return reordered(documents, draw(st.randoms(use_true_random=False)))


def reordered(documents: Sequence[Document], rng: random.Random, *, shuffle_frames: bool = False) -> list[Document]:
    """Return documents in another order that event-model allows and that keeps each stream's own order.

    Parameters
    ----------
    documents
        Of one run, without Start and Stop.
    rng
        Decides.
    shuffle_frames
        Whether StreamDatums may come in any order among the documents of their stream, even before what they
        refer to.
    """
    stream_of = {doc["uid"]: doc["name"] for name, doc in documents if name == "descriptor"}
    resource_stream = {
        doc["stream_resource"]: stream_of[doc["descriptor"]] for name, doc in documents if name == "stream_datum"
    }
    queues: dict[str, list[Document]] = {}
    for name, doc in documents:
        if name == "descriptor":
            stream = doc["name"]
        elif name == "stream_resource":
            stream = resource_stream.get(doc["uid"], "")
        else:
            stream = stream_of[doc["descriptor"]]
        queues.setdefault(stream, []).append((name, doc))
    if shuffle_frames:
        for stream, queue in queues.items():
            queues[stream] = _with_frames_anywhere(queue, rng)
    out = []
    while any(queues.values()):
        stream = rng.choice(sorted(name for name, queue in queues.items() if queue))
        out.append(queues[stream].pop(0))
    return out


def _with_frames_anywhere(queue: list[Document], rng: random.Random) -> list[Document]:
    frames = [each for each in queue if each[0] == "stream_datum"]
    others = [each for each in queue if each[0] != "stream_datum"]
    for each in frames:
        others.insert(rng.randint(0, len(others)), each)
    return others


@st.composite
def batchings(draw: st.DrawFn, documents: Sequence[Document]) -> list[list[tuple[int, str, dict[str, Any]]]]:
    """Return documents with ordinals, cut into batches."""
    cuts = sorted(draw(st.lists(st.integers(0, len(documents)), max_size=8)))
    whole = numbered(documents)
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(documents)], strict=True)]
