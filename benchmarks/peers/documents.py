"""Documents of runs as a RunEngine makes them: many events, or frames in files. Only the standard library."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = tuple[str, dict[str, Any]]


def column_names(columns: int) -> list[str]:
    """Return the names of the columns of `long_run`."""
    return [f"signal_{number:02d}" for number in range(columns)]


def long_run(uid: str, events: int, columns: int) -> Iterator[Document]:
    """Make a run of scalars, one document at a time; event ``n`` from 1 has ``n + 0.25 k`` in column ``k``."""
    descriptor, names, prefix = str(uuid.uuid4()), column_names(columns), str(uuid.uuid4())[:24]
    yield "start", _start(uid)
    keys = {name: {"dtype": "number", "shape": [], "source": f"SIM:{name}"} for name in names}
    yield "descriptor", _descriptor(descriptor, uid, keys)
    for number in range(1, events + 1):
        now = time.time()
        event = {
            "uid": f"{prefix}{number:012x}",
            "descriptor": descriptor,
            "seq_num": number,
            "time": now,
            "data": {name: number + column * 0.25 for column, name in enumerate(names)},
            "timestamps": dict.fromkeys(names, now),
            "filled": {},
        }
        yield "event", event
    yield "stop", _stop(uid, events)


def frames_run(
    uid: str, file: str, datasets: dict[str, tuple[int, ...]], frames: int, each: int, dtype: str = "<u2"
) -> Iterator[Document]:
    """Make a run whose frames are in an HDF5 file.

    Parameters
    ----------
    uid : str
    file : str
        Absolute path.
    datasets : dict
        Name, in the file and of the data key, and shape of a frame.
    frames : int
        Of each dataset; an event each.
    each : int
        Frames that a StreamDatum announces.
    dtype : str
        Of numpy.
    """
    descriptor = str(uuid.uuid4())
    yield "start", _start(uid)
    keys = {
        name: {
            "dtype": "array",
            "dtype_numpy": dtype,
            "shape": list(shape),
            "source": f"SIM:{name}",
            "external": "STREAM:",
        }
        for name, shape in datasets.items()
    }
    yield "descriptor", _descriptor(descriptor, uid, keys)
    resources = {name: str(uuid.uuid4()) for name in datasets}
    for name, shape in datasets.items():
        yield (
            "stream_resource",
            {
                "uid": resources[name],
                "run_start": uid,
                "data_key": name,
                "mimetype": "application/x-hdf5",
                "uri": f"file://localhost{Path(file)}",
                "parameters": {"dataset": name, "chunk_shape": [1, *shape]},
            },
        )
    for first in range(0, frames, each):
        last = min(first + each, frames)
        for resource in resources.values():
            yield (
                "stream_datum",
                {
                    "uid": f"{resource}/{first}",
                    "stream_resource": resource,
                    "descriptor": descriptor,
                    "indices": {"start": first, "stop": last},
                    "seq_nums": {"start": first + 1, "stop": last + 1},
                },
            )
    yield "stop", _stop(uid, frames)


def renamed(documents: list[Document], text_of: Any, documents_of: Any, salt: str) -> list[Document]:
    """Return recorded documents with other uids, so that they can be sent again.

    Parameters
    ----------
    documents : list
    text_of, documents_of : callable
        To JSON and back.
    salt : str
        The same salt gives the same uids.
    """
    text = text_of(documents)
    for known in {doc["uid"] for _, doc in documents if "uid" in doc and isinstance(doc["uid"], str)}:
        text = text.replace(known, str(uuid.uuid5(uuid.NAMESPACE_OID, salt + known)))
    return [(name, doc) for name, doc in documents_of(text)]


def _start(uid: str) -> dict[str, Any]:
    return {"uid": uid, "time": time.time(), "scan_id": 1, "plan_name": "benchmark"}


def _descriptor(uid: str, run: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": uid,
        "run_start": run,
        "time": time.time(),
        "name": "primary",
        "data_keys": keys,
        "object_keys": {"device": list(keys)},
        "configuration": {},
        "hints": {},
    }


def _stop(run: str, events: int) -> dict[str, Any]:
    return {
        "uid": str(uuid.uuid4()),
        "run_start": run,
        "time": time.time(),
        "exit_status": "success",
        "num_events": {"primary": events},
    }
