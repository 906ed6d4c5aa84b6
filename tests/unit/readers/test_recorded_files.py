"""The files of real devices and of old ones give what the recorded runs say they hold.

If these fail, data of instruments in operation cannot be read.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from flystore.readers import EventFiles, Resource, open_reader
from flystore.storage import Roots

STREAMS = Path(__file__).parents[2] / "data/streams"

HDF5_CASES = ["flyscan_panda", "flyscan_two_streams", "step_async_detector"]


def load(case):
    text = (STREAMS / case / "documents.jsonl").read_text()
    data = STREAMS / case / "data"
    text = text.replace("{{root}}", str(data).lstrip("/"))
    documents = [json.loads(line) for line in text.splitlines()]
    expected = json.loads((STREAMS / case / "expected.json").read_text())
    return documents, expected, data


def of_kind(documents, kind):
    return [entry["doc"] for entry in documents if entry["name"] == kind]


def check(values, expected):
    assert list(values.shape) == expected["shape"]
    assert values.dtype == np.dtype(expected["dtype"])
    assert hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() == expected["sha256"]


def streams_of(expected):
    (run,) = expected["runs"].values()
    return run["streams"]


def without_unit_shape(shape):
    return () if tuple(shape) == (1,) else tuple(shape)


@pytest.mark.parametrize("case", [*HDF5_CASES, "stream_rollover"])
def test_hdf5_files_announced_by_stream_datums(case):
    documents, expected, data = load(case)
    descriptors = {doc["uid"]: doc for doc in of_kind(documents, "descriptor")}
    resources = {doc["uid"]: doc for doc in of_kind(documents, "stream_resource")}
    checked = 0
    for stream, content in streams_of(expected).items():
        for key, wanted in content["arrays"].items():
            datums = [
                doc
                for doc in of_kind(documents, "stream_datum")
                if descriptors[doc["descriptor"]]["name"] == stream
                and resources[doc["stream_resource"]]["data_key"] == key
            ]
            described = descriptors[datums[0]["descriptor"]]["data_keys"][key]
            used = list(dict.fromkeys(doc["stream_resource"] for doc in datums))
            files = EventFiles(
                "application/x-hdf5",
                described["dtype_numpy"],
                without_unit_shape(described["shape"]),
                tuple(Resource(resources[uid]["uri"], resources[uid]["parameters"]) for uid in used),
            )
            numbers, rows = [], []
            firsts = {uid: min(d["indices"]["start"] for d in datums if d["stream_resource"] == uid) for uid in used}
            for doc in datums:
                # Where a file is replaced midway its indices go on, its rows begin anew.
                start = firsts[doc["stream_resource"]] if len(used) > 1 else 0
                span = range(doc["indices"]["start"] - start, doc["indices"]["stop"] - start)
                numbers += [used.index(doc["stream_resource"])] * len(span)
                rows += span
            with open_reader(files, Roots([data])) as reader:
                assert all(found.status == "ok" for found in reader.probe().resources)
                check(reader.read(np.array(numbers), np.array(rows)), wanted)
            checked += 1
    assert checked


def test_tiff_files_of_an_area_detector_two_an_event():
    documents, expected, data = load("flyscan_tiff_multipart")
    (resource,) = of_kind(documents, "stream_resource")
    (descriptor,) = of_kind(documents, "descriptor")
    key = resource["data_key"]
    described = descriptor["data_keys"][key]
    template = re.sub(r"%(?:0?(\d+)(?:\.\d+)?)d", r"{:0\1d}", resource["parameters"]["template"].replace("%s", ""))
    files = EventFiles(
        resource["mimetype"],
        described["dtype_numpy"],
        tuple(described["shape"]),
        (Resource(resource["uri"], template=template, files_per_event=2),),
    )
    with open_reader(files, Roots([data])) as reader:
        found = reader.probe().resources[0]
        assert (found.status, found.events, found.holes) == ("ok", 4, ())
        values = reader.read(np.zeros(4, int), np.arange(4))
    (content,) = [stream for stream in streams_of(expected).values() if key in stream["arrays"]]
    check(values, content["arrays"][key])


@pytest.mark.parametrize(
    ("case", "mimetype", "resource"),
    [
        ("legacy_resource", "multipart/related;type=application/x-npy", {"template": "_{:d}.npy"}),
        ("legacy_ad_tiff", "multipart/related;type=image/tiff", {"template": "shot_{:06d}.tiff"}),
        ("legacy_ad_hdf5", "application/x-hdf5", {"parameters": {"dataset": "/entry/data/data"}}),
    ],
)
def test_files_of_legacy_resources(case, mimetype, resource):
    documents, expected, data = load(case)
    (stream,) = streams_of(expected).values()
    (described,) = of_kind(documents, "descriptor")
    for key, wanted in stream["arrays"].items():
        names = sorted(path.name for path in data.iterdir())
        prefix = {"legacy_resource": names[0].split("_")[0], "legacy_ad_tiff": "", "legacy_ad_hdf5": names[0]}[case]
        files = EventFiles(
            mimetype,
            wanted["dtype"],
            tuple(wanted["shape"][1:]),
            (Resource(f"file://localhost{data}/{prefix}", **resource),),
        )
        with open_reader(files, Roots([data])) as reader:
            count = wanted["shape"][0]
            assert reader.probe().resources[0].events == count
            check(reader.read(np.zeros(count, int), np.arange(count)), wanted)
        assert key in described["data_keys"]
