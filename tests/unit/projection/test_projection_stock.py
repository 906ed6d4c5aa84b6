"""The tree is the one that the stock TiledWriter makes, in every recorded stream.

If these fail, programs that read runs of stock Tiled find other names, types or shapes in ours. Where we differ on
purpose the difference is listed here, with its reason.
"""

import copy
from pathlib import Path

import numpy as np
import pytest

from flystore.model.structures import SEGMENT_ARRAY_MIMETYPE, TableStructure
from flystore.projection import ExternalArray, PutNode, RunState, advance, assets
from flystore.testing.stock import stock_tiled
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[2] / "data" / "streams"

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using `httpx`"),  # starlette, of tiled's in-process client
    pytest.mark.filterwarnings("ignore:The data type:Warning"),  # zarr, of text in stock's arrays
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stock")
    with stock_tiled(directory) as running:
        yield running, directory


def wire_tree(puts: list[PutNode]) -> dict[tuple[str, ...], dict]:
    """Our nodes with the attributes that stock's have on the wire."""
    return {put.path[1:]: _wire(put) for put in puts}


def _wire(put: PutNode) -> dict:
    source = put.data_source
    files = () if put.external is None else assets(ExternalArray.from_bytes(put.external))
    return {
        "structure_family": put.family.value,
        "specs": [spec.to_wire() for spec in put.specs],
        "metadata": put.metadata,
        "structure": put.structure,
        "data_sources": []
        if source is None
        else [
            {
                "structure_family": source.family.value,
                "structure": source.structure,
                "mimetype": source.mimetype,
                "parameters": source.parameters,
                "properties": source.properties,
                "management": source.management.value,
                "assets": [
                    {
                        "data_uri": each.data_uri,
                        "is_directory": each.is_directory,
                        "size": each.size,
                        "parameter": each.parameter,
                        "num": each.num,
                    }
                    for each in files
                ],
            }
        ],
    }


def without_known_differences(tree: dict) -> dict:
    """Take out what differs on purpose, from either tree."""
    tree = copy.deepcopy(tree)
    # The wording of notes is our own.
    tree[()]["metadata"].pop("notes", None)
    for node in tree.values():
        for source in node["data_sources"]:
            # Ids are given by the catalogue.
            source.pop("id", None)
            for asset in source["assets"]:
                asset.pop("id", None)
        _unify_internal_storage(node)
        if node["structure_family"] == "table":
            _unify_table(node)
    _unify_dims(tree)
    return tree


def _unify_internal_storage(node: dict) -> None:
    # Slow data lies in our own segments, and not in a database and in zarr.
    for source in node["data_sources"]:
        if source["management"] == "writable":
            assert source["mimetype"] in {
                "application/x-tiled-sql-table",
                "application/x-zarr",
                "application/x-ragged+sql",
                SEGMENT_ARRAY_MIMETYPE,
            }
            if source["structure_family"] != "table":
                source["mimetype"] = "internal"
            source["parameters"] = source["assets"] = None


def _unify_table(node: dict) -> None:
    # Timestamps of external keys are kept; stock drops them. They have no data key in the table.
    for place in (node, node["data_sources"][0]):
        schema = TableStructure.from_wire(place["structure"]).schema
        extra = [
            name
            for name in schema.names
            if name.startswith("ts_") and name[3:] not in schema.names and name[3:] not in INTERNAL_ARRAYS
        ]
        kept = [field for field in schema if field.name not in extra]
        place["structure"] = [(field.name, str(field.type)) for field in kept]


INTERNAL_ARRAYS = {"trace", "long", "names", "rag"}


def _unify_dims(tree: dict) -> None:
    # Stock numbers dimensions in the order of a Python set, which changes from process to process.
    for path, node in tree.items():
        for place in (node, *node["data_sources"]):
            structure = place["structure"]
            if isinstance(structure, dict) and structure.get("dims") and path[-1] in INTERNAL_ARRAYS:
                structure["dims"] = [name.rstrip("0123456789") for name in structure["dims"]]


@pytest.mark.parametrize("case", recorded_cases(STREAMS))
def test_the_tree_is_that_of_the_stock_writer(case, stock, tmp_path_factory):
    running, directory = stock
    recorded = put_in_place(STREAMS, case, directory)
    running.write(copy.deepcopy(recorded.documents))

    for uid, documents in recorded.runs.items():
        _, changes = advance(RunState.new(uid), [(n, name, doc) for n, (name, doc) in enumerate(documents)])
        ours = wire_tree([change for change in changes if isinstance(change, PutNode)])
        theirs = running.tree(uid)

        assert set(ours) == set(theirs)
        ours, theirs = (without_known_differences(tree) for tree in (ours, theirs))
        for path in theirs:
            assert ours[path] == theirs[path], path


def test_numbers_in_metadata_are_clipped_as_the_stock_writer_does_it(stock):
    running, _ = stock
    start = {
        "uid": "clipped",
        "time": 1.0,
        "huge": 2**60,
        "negative": -(2**60),
        "whole": 1e300,
        "inf": float("inf"),
        "nan": float("nan"),
        "array": np.array([1, 2]),
        "nested": {"tuple": (1, 2.5, float("-inf"))},
        "bytes": b"ab",
        "tiled_specs": ["mine", {"name": "other", "version": "2"}],
    }
    running.write([("start", copy.deepcopy(start))])
    _, changes = advance(RunState.new("clipped"), [(0, "start", start)])

    theirs = running.tree("clipped")[()]
    ours = _wire(changes[0])
    assert ours["metadata"] == theirs["metadata"]
    assert ours["specs"] == theirs["specs"]
