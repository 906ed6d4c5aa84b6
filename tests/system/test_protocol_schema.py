"""schemathesis asks what the OpenAPI document allows, and what it does not: no answer is a 5xx or undocumented.

If these fail, a program generated from the document meets answers that it does not know, or one odd request costs a
stock client 45 seconds of retries. FLYSTORE_SCHEMA_EXAMPLES sets how many requests each route gets.
"""

import io
import json
import os
import re
import zipfile
import zlib

import h5py
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import schemathesis
import urllib3
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from flystore.http import Access, build_app
from flystore.http.openapi import document
from flystore.model.frames import FRAMES_MIMETYPE, FrameEncoder, frame
from flystore.model.structures import TableStructure
from flystore.service import Service
from flystore.testing.faults.hostile import node, of, registered
from flystore.testing.serving import serving

WAITING = ("wait", "follow", "beat")
"""Parameters with which an answer waits for what nobody does here; tests of the feed ask with them."""

LONG = "FLYSTORE_SCHEMA_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FLYSTORE_SCHEMA_EXAMPLES", "15"))
KEY = "secret"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ARROW, ZIP = "application/vnd.apache.arrow.file", "application/zip"
TABLE = pa.table({"x": [1, 2, 3], "y": ["a", "b", None]})

ARRAYS = ["@/array", "@/scalar", "@/table/x", "@/sparse", "@/hdf5", "@/file/g/x", "@/nowhere"]
TABLES = ["@/table", "@/empty", "@run/primary/internal", "@/array"]
BOXES = ["@", "@/box", "@/file", "@/file/g", "@run", "@run/primary", "", "@/array", "@/nowhere"]
RUNS = ["@run", "@", "@/nowhere"]
ANY = [*BOXES, *ARRAYS, *TABLES, "@/ragged", "@/awkward", "@//box/", "@/..", "@/%2F", "@/" + "x" * 300]
TARGETS = {
    "array": ARRAYS,
    "table": TABLES,
    "container": BOXES,
    "node": [*TABLES, *BOXES],
    "ragged": ["@/ragged", "@/ragged", "@/array"],
    "awkward": ["@/awkward", "@/awkward", "@/array"],
    "search": BOXES,
    "search-deep": BOXES,
    "distinct": BOXES,
    "register": BOXES,
    "verdict": RUNS,
    "close": RUNS,
    "documents": RUNS,
    "validate": RUNS,
    "asset": ["@/hdf5", "@/file", "@/array", "@"],
    "zarr": [
        "@/array/.zarray",
        "@/array/zarr.json",
        "@/array/0.0",
        "@/array/c/0/0",
        "@/table/zarr.json",
        "@/box",
        "@run/primary/.zmetadata",
        "@run/primary/zarr.json",
        "@/hdf5/0.0",
        "@/array/9.9",
        "@/file/zarr.json",
    ],
}
"""Paths by the second or third segment of a route; ``@`` stands for a container that each route gets afresh."""


def asked():
    """Return the document for schemathesis: without keys, of which it would make up its own."""
    found = document()
    del found["components"]["securitySchemes"]
    for methods in found["paths"].values():
        for operation in methods.values():
            del operation["security"]
            operation["parameters"] = [one for one in operation.get("parameters", ()) if one["name"] not in WAITING]
    return found


def target(case, top):
    """Return where a request goes: mostly to a node, the same one if the request comes again."""
    route = case.operation.path.strip("/").removeprefix("api/v1/").removeprefix("custom/").split("/")[0]
    made = case.path_parameters["path"]
    paths = [*TARGETS.get(route, ANY), None]
    chosen = paths[zlib.crc32(repr((made, case.query, case.body)).encode("utf-8", "replace")) % len(paths)]
    return made if chosen is None else chosen.replace("@run", f"run-{top}").replace("@", top)


def arrow_file(table):
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def zip_of(**entries):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("_", "-"), content)
    return sink.getvalue()


FLOATS = {"class": "NumpyArray", "primitive": "float64", "inner_shape": [], "parameters": {}, "form_key": "node1"}
LISTS = {"class": "ListOffsetArray", "offsets": "i64", "content": FLOATS, "parameters": {}, "form_key": "node0"}
BUFFERS = {"node0_offsets": np.array([0, 1, 3]).tobytes(), "node1_data": np.arange(3.0).tobytes()}
NESTED = zip_of(**BUFFERS)
ROWS = zip_of(**BUFFERS, length=(2).to_bytes(8, "big"), form=json.dumps(json.dumps(LISTS)))


def batch(uid):
    encoder = FrameEncoder()
    start = {"uid": uid, "time": 1.0, "scan_id": 1}
    descriptor = {"uid": f"{uid}-d", "run_start": uid, "name": "primary", "time": 1.0, "data_keys": {
        "x": {"dtype": "number", "shape": [], "source": "s"}}}  # fmt: skip
    documents = (("start", start), ("descriptor", descriptor))
    return b"".join(frame(part) for name, doc in documents for part in encoder.encode(name, doc))


@st.composite
def batches(draw):
    whole = batch(draw(st.sampled_from(["a", "b"])))
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


FILES = st.sampled_from([arrow_file(TABLE), arrow_file(TABLE.slice(0, 0))])
schemathesis.openapi.media_type(ARROW, FILES | st.binary())
schemathesis.openapi.media_type("application/vnd.apache.arrow.stream", FILES | st.binary())
schemathesis.openapi.media_type(ZIP, st.sampled_from([NESTED, ROWS]) | st.binary())
schemathesis.openapi.media_type(FRAMES_MIMETYPE, batches() | st.binary())
schemathesis.openapi.media_type("application/octet-stream", st.binary() | st.just(bytes(48)))


@schemathesis.serializer("application/x-msgpack")
def as_msgpack(context, value):
    text = json.dumps(value, default=str)
    return msgspec.msgpack.encode(json.loads(text, parse_int=_msgpack_number))


def _msgpack_number(text):
    return int(text) if -(2**63) <= int(text) < 2**64 else float(text)


schema = schemathesis.openapi.from_dict(asked())
schema.config.phases.coverage.enabled = LONG  # every bound of every parameter: thousands of requests


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory, files = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("files")
    with h5py.File(files / "a.h5", "w") as file:
        file["g/x"] = np.arange(6.0).reshape(3, 2)
    with (
        Service.open(directory, read=[files]) as service,
        serving(build_app(service, Access.of(KEY))) as url,
        urllib3.PoolManager(headers={"Authorization": f"Apikey {KEY}"}) as pool,
    ):
        yield Served(url, pool, f"file://localhost{files}/a.h5")


class Served:
    def __init__(self, url, pool, file):
        self.url, self._pool, self._file = url, pool, file
        self.tops, self.assets = {}, {}

    def _send(self, method, path, **content):
        answer = self._pool.request(method, f"{self.url}/api/v1{path}", retries=False, **content)
        assert answer.status == 200, answer.data
        return answer.json()

    def fresh(self, label):
        """Make the nodes of `TARGETS` in a container of their own and return its path."""
        top = self.tops[label] = f"c{len(self.tops)}"
        box = {"structure_family": "container", "metadata": {"a": 1, "b": {"c": "x"}}}
        self._send("POST", "/metadata/", json={**box, "id": top})
        self._send("POST", f"/metadata/{top}", json={**box, "id": "box"})
        self._send("POST", f"/metadata/{top}", json=node("array", of("<f8", (3, 2), ((2, 1), (2,)))))
        self._send("PUT", f"/array/full/{top}/array", body=bytes(48), headers=self._typed("application/octet-stream"))
        self._send("POST", f"/metadata/{top}", json=node("scalar", of("<i4", ())))
        table = TableStructure.of(TABLE.schema).to_wire()
        self._send("POST", f"/metadata/{top}", json=node("table", table, "table"))
        self._send("PUT", f"/table/full/{top}/table", body=arrow_file(TABLE), headers=self._typed(ARROW))
        self._send("POST", f"/metadata/{top}", json=node("empty", table, "table"))
        dataset = registered("hdf5", self._file, of("<f8", (3, 2)), "application/x-hdf5", dataset="g/x")
        made = self._send("POST", f"/register/{top}", json=dataset)
        self.assets[top] = made["data_sources"][0]["assets"][0]["id"]
        file = registered("file", self._file, None, "application/x-hdf5")
        file["structure_family"] = file["data_sources"][0]["structure_family"] = "container"
        self._send("POST", f"/register/{top}", json=file)
        self._others(top)
        return top

    def _others(self, top):
        dtype = of("<f8", ())["data_type"]
        ragged = {"data_type": dtype, "shape": [2, None], "size": 3, "chunks": [[2], None]}
        self._send("POST", f"/metadata/{top}", json=node("ragged", ragged, "ragged"))
        self._send("PUT", f"/ragged/full/{top}/ragged", body=ROWS, headers=self._typed(ZIP))
        self._send("POST", f"/metadata/{top}", json=node("awkward", {"length": 2, "form": LISTS}, "awkward"))
        self._send("PUT", f"/awkward/full/{top}/awkward", body=NESTED, headers=self._typed(ZIP))
        sparse = {**of("<f8", (2, 3)), "layout": "COO"}
        self._send("POST", f"/metadata/{top}", json=node("sparse", sparse, "sparse"))
        uid = f"run-{top}"
        self._send("POST", f"/ingest/{uid}?first=0&epoch=0", body=batch(uid), headers=self._typed(FRAMES_MIMETYPE))

    def _typed(self, media_type):
        return {**self._pool.headers, "Content-Type": media_type}


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not LONG,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented_and_none_is_a_server_error(served, case):
    label = case.operation.label
    top = served.tops.get(label) or served.fresh(label)
    if "path" in case.path_parameters:
        case.path_parameters["path"] = target(case, top)
    if "/asset/" in label and re.fullmatch(r"\d+", str((case.query or {}).get("id"))):
        case.query["id"] = served.assets[top]
    case.call_and_validate(base_url=served.url, headers={"Authorization": f"Apikey {KEY}"}, checks=CHECKS)
