"""schemathesis asks what the OpenAPI document allows, and what it does not: no answer is a 5xx or undocumented.

If these fail, a program generated from the document meets answers that it does not know, or one odd request costs a
stock client 45 seconds of retries. FLYSTORE_SCHEMA_EXAMPLES sets how many requests each route gets.
"""

import io
import os

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

EXAMPLES = int(os.environ.get("FLYSTORE_SCHEMA_EXAMPLES", "8"))
KEY = "secret"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ARROW, ZIP = "application/vnd.apache.arrow.file", "application/zip"
TABLE = pa.table({"x": [1, 2, 3], "y": ["a", "b", None]})

NODES = ["@", "@/array", "@/scalar", "@/table", "@/table/x", "@/box", "@/file", "@/file/g", "@/file/g/x", "@/ragged",
         "@/awkward", "@/sparse", "@/hdf5", "@/run", "@/run/primary"]  # fmt: skip
"""Paths that lead somewhere; ``@`` stands for a container that each route gets afresh."""


def arrow_file(table):
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


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


TABLES = st.sampled_from([arrow_file(TABLE), arrow_file(TABLE.slice(0, 0))])
schemathesis.openapi.media_type(ARROW, TABLES | st.binary())
schemathesis.openapi.media_type(ZIP, st.binary())
schemathesis.openapi.media_type(FRAMES_MIMETYPE, batches() | st.binary())
schemathesis.openapi.media_type("application/octet-stream", st.binary() | st.just(bytes(48)))


@schemathesis.serializer("application/x-msgpack")
def as_msgpack(context, value):
    return msgspec.msgpack.encode(value, enc_hook=str)


schema = schemathesis.openapi.from_dict(document())


@schema.hook
def before_generate_path_parameters(context, strategy):
    known = st.sampled_from(NODES)
    return (
        st.one_of(strategy, strategy.flatmap(lambda made: known.map(lambda path: {**made, "path": path})))
        if ("{path}" in context.operation.path)
        else strategy
    )


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
        self._made = 0

    def _send(self, method, path, **content):
        answer = self._pool.request(method, f"{self.url}/api/v1{path}", retries=False, **content)
        assert answer.status == 200, answer.data

    def fresh(self):
        """Make the nodes of `NODES` in a container of their own and return its path."""
        self._made += 1
        top = f"c{self._made}"
        box = {"structure_family": "container", "metadata": {"a": 1, "b": {"c": "x"}}}
        self._send("POST", "/metadata/", json={**box, "id": top})
        self._send("POST", f"/metadata/{top}", json={**box, "id": "box"})
        self._send("POST", f"/metadata/{top}", json=node("array", of("<f8", (3, 2), ((2, 1), (2,)))))
        self._send("PUT", f"/array/full/{top}/array", body=bytes(48), headers=self._typed("application/octet-stream"))
        self._send("POST", f"/metadata/{top}", json=node("scalar", of("<i4", ())))
        table = TableStructure.of(TABLE.schema).to_wire()
        self._send("POST", f"/metadata/{top}", json=node("table", table, "table"))
        self._send("PUT", f"/table/full/{top}/table", body=arrow_file(TABLE), headers=self._typed(ARROW))
        dataset = registered("hdf5", self._file, of("<f8", (3, 2)), "application/x-hdf5", dataset="g/x")
        self._send("POST", f"/register/{top}", json=dataset)
        file = registered("file", self._file, None, "application/x-hdf5")
        file["structure_family"] = file["data_sources"][0]["structure_family"] = "container"
        self._send("POST", f"/register/{top}", json=file)
        self._others(top)
        return top

    def _others(self, top):
        dtype = of("<f8", ())["data_type"]
        ragged = {"data_type": dtype, "shape": [2, None], "size": 3, "chunks": [[2], None]}
        self._send("POST", f"/metadata/{top}", json=node("ragged", ragged, "ragged"))
        form = {"class": "NumpyArray", "primitive": "float64", "inner_shape": [], "parameters": {}, "form_key": "node0"}
        self._send("POST", f"/metadata/{top}", json=node("awkward", {"length": 2, "form": form}, "awkward"))
        sparse = {**of("<f8", (2, 3)), "layout": "COO"}
        self._send("POST", f"/metadata/{top}", json=node("sparse", sparse, "sparse"))
        uid = f"run-{top}"
        self._send("POST", f"/ingest/{uid}?first=0&epoch=0", body=batch(uid), headers=self._typed(FRAMES_MIMETYPE))

    def _typed(self, media_type):
        return {**self._pool.headers, "Content-Type": media_type}


_TOPS = {}


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FLYSTORE_SCHEMA_EXAMPLES" not in os.environ,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_documented_and_none_is_a_server_error(served, case):
    label = case.operation.label
    if label not in _TOPS:
        _TOPS[label] = served.fresh()
    path = (case.path_parameters or {}).get("path")
    if isinstance(path, str) and path.startswith("@"):
        top = _TOPS[label]
        where = path.replace("@/run", f"run-{top}", 1) if path.startswith("@/run") else path.replace("@", top, 1)
        case.path_parameters["path"] = where
    case.call_and_validate(base_url=served.url, headers={"Authorization": f"Apikey {KEY}"}, checks=CHECKS)
