"""Documents whose every value follows from (seed, run, seq_num): no copy is needed to know what must be stored."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

Document = tuple[str, dict[str, Any]]

MONITOR_EVERY = 5
"""One event of the stream ``monitor`` comes with so many of ``primary``."""

FRAMES_EVERY = 4
"""So many frames are announced at once, in runs that have a detector."""

WAVE = 3
"""Length of the array in each event."""


class Load:
    """The runs of one seed, by number.

    Parameters
    ----------
    seed : int
        From 0. Runs of different seeds have different uids and different values.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uid(self, run: int) -> str:
        return f"load-{self.seed:x}-{run:06d}"

    def number(self, uid: str) -> int:
        """Return the number of the run with this uid."""
        return int(uid.rpartition("-")[2])

    def documents(self, run: int, events: int) -> list[Document]:
        """Return all documents of a run; the index in the list is the ordinal.

        Two streams, interleaved; every third run also has a detector with frames in a file that is not there.
        """
        return list(self._documents(run, events))

    def _documents(self, run: int, events: int) -> Iterator[Document]:
        uid = self.uid(run)
        detector = run % 3 == 0
        yield "start", {"uid": uid, "time": 1000.0 + run, "scan_id": run, "plan_name": "load", "num_points": events}
        yield "descriptor", self._primary(uid, detector)
        yield "descriptor", self._monitor(uid)
        if detector:
            yield "stream_resource", _resource(uid)
        for seq_num in range(1, events + 1):
            yield "event", self.event(run, seq_num)
            if seq_num % MONITOR_EVERY == 0:
                yield "event", self.monitor_event(run, seq_num // MONITOR_EVERY)
            if detector and seq_num % FRAMES_EVERY == 0:
                yield "stream_datum", _datum(uid, seq_num - FRAMES_EVERY, seq_num)
        yield (
            "stop",
            {
                "uid": f"{uid}-stop",
                "time": 2000.0 + run,
                "run_start": uid,
                "exit_status": "success",
                "num_events": {"primary": events, "monitor": events // MONITOR_EVERY},
            },
        )

    def value(self, run: int, seq_num: int, key: str) -> float:
        """Return the value of a key in an event: a number with a fraction, exact in a double."""
        return zlib.crc32(f"{self.seed}/{run}/{seq_num}/{key}".encode()) / 64

    def event(self, run: int, seq_num: int) -> dict[str, Any]:
        uid = self.uid(run)
        value = self.value(run, seq_num, "motor")
        data = {
            "motor": value,
            "wave": [value + i for i in range(WAVE)],
            "count": int(value),
            "label": f"{run}/{seq_num}",
        }
        return _event(uid, "primary", seq_num, data)

    def monitor_event(self, run: int, seq_num: int) -> dict[str, Any]:
        return _event(self.uid(run), "monitor", seq_num, {"current": self.value(run, seq_num, "current")})

    def array(self, run: int, block: int, items: int) -> "Any":
        """Return a block of an internal array, float64 of shape (items,), that follows from the same three."""
        import numpy as np

        return np.arange(items, dtype="<f8") + self.value(run, block, "array")

    def _primary(self, uid: str, detector: bool) -> dict[str, Any]:
        keys = {
            "motor": _key("number"),
            "wave": _key("array", [WAVE]),
            "count": _key("integer"),
            "label": _key("string"),
        }
        if detector:
            keys["image"] = {**_key("array", [4, 5]), "dtype_numpy": "<u2", "external": "STREAM:"}
        return _descriptor(uid, "primary", keys)

    def _monitor(self, uid: str) -> dict[str, Any]:
        return _descriptor(uid, "monitor", {"current": _key("number")})


def seq_nums(documents: Sequence[Document], stream: str) -> list[int]:
    """Return the seq_nums of the events of a stream of `Load`, in order."""
    return [doc["seq_num"] for name, doc in documents if name == "event" and doc["descriptor"].endswith(f"-{stream}")]


def frames_announced(documents: Sequence[Document]) -> int:
    """Return how many frames the documents announce."""
    return max((doc["indices"]["stop"] for name, doc in documents if name == "stream_datum"), default=0)


def _key(dtype: str, shape: Sequence[int] = ()) -> dict[str, Any]:
    return {"source": "load", "dtype": dtype, "shape": list(shape)}


def _descriptor(uid: str, stream: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": f"{uid}-{stream}",
        "run_start": uid,
        "name": stream,
        "time": 1001.0,
        "data_keys": keys,
        "configuration": {},
        "hints": {},
        "object_keys": {"load": list(keys)},
    }


def _event(uid: str, stream: str, seq_num: int, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": f"{uid}-{stream}-{seq_num}",
        "descriptor": f"{uid}-{stream}",
        "seq_num": seq_num,
        "time": 1002.0 + seq_num,
        "data": data,
        "timestamps": dict.fromkeys(data, 1002.0 + seq_num),
        "filled": {},
    }


def _resource(uid: str) -> dict[str, Any]:
    return {
        "uid": f"{uid}-resource",
        "run_start": uid,
        "data_key": "image",
        "mimetype": "application/x-hdf5",
        "uri": f"file://localhost/not-there/{uid}.h5",
        "parameters": {"dataset": "/entry/data/data", "chunk_shape": [1, 4, 5]},
    }


def _datum(uid: str, start: int, stop: int) -> dict[str, Any]:
    return {
        "uid": f"{uid}-resource/{start}",
        "stream_resource": f"{uid}-resource",
        "descriptor": f"{uid}-primary",
        "indices": {"start": start, "stop": stop},
        "seq_nums": {"start": start + 1, "stop": stop + 1},
    }
