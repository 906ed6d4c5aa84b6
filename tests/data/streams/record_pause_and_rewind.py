"""Record the cases `paused_retake` and `rewound` anew, with the real RunEngine.

    python tests/data/streams/record_pause_and_rewind.py

writes both folders beside this file. What is expected is worked out from documents and files alone.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import bluesky
import event_model
import h5py
import numpy as np
import ophyd
import ophyd_async

from flystore.testing.beamline import (
    Camera,
    Panda,
    Recorder,
    flyscan,
    resume_until_done,
    run_engine,
    step_scan,
)

HERE = Path(__file__).parent
MODULES = {module.__name__: module.__version__ for module in (ophyd, ophyd_async, bluesky, event_model)}
SHAPE = (6, 8)


def paused_retake(directory):
    """Five points of a step scan; after the third one a pause, and it is taken again."""
    from ophyd.sim import SynAxis

    motor = SynAxis(name="motor")
    camera = Camera(directory, shape=SHAPE)
    return step_scan([camera], motor, [0.0, 0.5, 1.0, 1.5, 2.0], pause_after=2, md={"versions": MODULES})


def rewound(directory):
    """Twelve pulses in bursts of four; after the second burst back to the checkpoint before it."""
    panda = Panda(directory)
    cameras = [Camera(directory, frames_per_event=2, shape=SHAPE), Camera(directory, "monitor", shape=SHAPE)]
    return flyscan(panda, cameras, 12, burst=4, pause_after=1, md={"versions": MODULES})


def record(name, plan):
    with tempfile.TemporaryDirectory() as root:
        recorder = Recorder()
        with run_engine() as engine, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of devices; none is about what is recorded
            engine.subscribe(recorder)
            resume_until_done(engine, plan(Path(root)))
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(parents=True)
        for file in Path(root).iterdir():
            shutil.copy(file, folder / "data")
        expected = {doc["uid"]: of_run(recorder) for doc in recorder.of("start")}
        lines = (json.dumps({"name": kind, "doc": doc}, default=plain) for kind, doc in recorder.documents)
        text = "".join(f"{line}\n" for line in lines).replace(str(Path(root).resolve()).lstrip("/"), "{{root}}")
        (folder / "documents.jsonl").write_text(text)
        (folder / "expected.json").write_text(json.dumps({"runs": expected}, indent=1) + "\n")


def plain(value):
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else list(value)


# --- what a reader must be given -------------------------------------------------------------------------


def of_run(recorder):
    """Return what is expected of the one run that was recorded."""
    (start,), (stop,) = recorder.of("start"), recorder.of("stop")
    streams = {doc["name"]: [] for doc in recorder.of("descriptor")}
    for doc in recorder.of("descriptor"):
        streams[doc["name"]].append(doc)
    found = {name: of_stream(recorder, descriptors) for name, descriptors in streams.items()}
    retaken = sum(stream.pop("retaken") for stream in found.values())
    return {
        "scan_id": start["scan_id"],
        "plan_name": start["plan_name"],
        "exit_status": stop["exit_status"],
        "streams": found,
        "num_events": stop["num_events"],
        "verdict": {"state": "retaken" if retaken else "complete", "retaken": retaken},
    }


def of_stream(recorder, descriptors):
    uids = {doc["uid"] for doc in descriptors}
    events = [doc for doc in recorder.of("event") if doc["descriptor"] in uids]
    keys = descriptors[0]["data_keys"]
    seq_nums = [doc["seq_num"] for doc in events]
    internal = [key for key, facts in keys.items() if "external" not in facts]
    arrays, retaken = {}, repeats(seq_nums)
    for key, facts in keys.items():
        if "external" in facts:
            arrays[key], again = of_array(recorder, key, facts, uids, seq_nums)
            retaken = max(retaken, again)
    return {
        "descriptors": len(descriptors),
        "seq_num": seq_nums,
        "columns": {key: [doc["data"].get(key) for doc in events] for key in internal},
        "arrays": arrays,
        "time": [doc["time"] for doc in events],
        "retaken": retaken,
    }


def repeats(seq_nums):
    return len(seq_nums) - len(set(seq_nums))


def of_array(recorder, key, facts, descriptors, seq_nums):
    """Return the facts of an array, and how many of its rows are of seq_nums taken again."""
    (resource,) = (doc for doc in recorder.of("stream_resource") if doc["data_key"] == key)
    ranges = [doc for doc in recorder.of("stream_datum") if doc["stream_resource"] == resource["uid"]]
    assert {doc["descriptor"] for doc in ranges} <= descriptors
    frames, seen = {}, Counter()
    for doc in ranges:
        width = doc["indices"]["stop"] - doc["indices"]["start"]
        for offset in range(width):
            seq = doc["seq_nums"]["start"] + offset
            frames[(seq, seen[seq])] = doc["indices"]["start"] + offset
            seen[seq] += 1
    taken = Counter()
    order = []
    for seq in seq_nums:
        order.append((seq, taken[seq]))
        taken[seq] += 1
    rows = order or sorted(frames)
    assert set(rows) == set(frames)
    shape = () if facts["shape"] == [1] else tuple(facts["shape"])
    per_event = shape[0] if shape else 1
    with h5py.File(resource["uri"].removeprefix("file://localhost")) as file:
        dataset = file[resource["parameters"]["dataset"]]
        parts = [dataset[frames[row] * per_event : (frames[row] + 1) * per_event].reshape(shape) for row in rows]
    values = np.ascontiguousarray(np.stack(parts))
    assert values.dtype == np.dtype(facts["dtype_numpy"])
    return {
        "shape": list(values.shape),
        "dtype": values.dtype.str,
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        "sums": [float(part.sum()) for part in parts],
    }, repeats([seq for seq, _ in rows])


if __name__ == "__main__":
    record("paused_retake", paused_retake)
    record("rewound", rewound)
