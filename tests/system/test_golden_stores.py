"""Stores written by earlier versions open, read, and rebuild to the same trees.

If these fail, an upgrade loses what a facility has stored.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from flystore import open_store
from flystore.service import Service

GOLDEN = Path(__file__).parents[1] / "golden"
STORES = sorted(path.name for path in GOLDEN.glob("store-*"))


def maker():
    spec = importlib.util.spec_from_file_location("make_store", GOLDEN / "make_store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=STORES)
def stored(request, tmp_path):
    """A copy of a golden store, and the trees that it must show."""
    directory = tmp_path / "store"
    directory.mkdir()
    shutil.copy(GOLDEN / request.param / "catalog.sqlite", directory)
    return directory, json.loads((GOLDEN / request.param / "trees.json").read_text())


def test_a_store_shows_its_trees_and_rebuilds_them_from_its_log(stored):
    directory, expected = stored
    with Service.open(directory) as service:
        trees = maker().trees
        assert {"/".join(path): node for path, node in trees(service._catalog).items()} == expected
        done = service.rebuild()
        assert done.changed == []
        assert {"/".join(path): node for path, node in trees(service._catalog).items()} == expected


def test_rows_and_documents_of_a_store_are_read(stored):
    directory, _ = stored
    with open_store(directory) as store:
        assert store["notes/points"].read()["x"].tolist() == [1.0, 2.5]
        runs = [run for key, run in store.items() if key != "notes"]
        assert {run.start["plan_name"] for run in runs} >= {"scan", "internal_odd_values"}
        for run in runs:
            documents = list(run.documents())
            assert documents[0] == ("start", {**documents[0][1], "uid": run.start["uid"]})
            assert documents[-1][0] == "stop"
        odd = next(run for run in runs if run.start["plan_name"] == "internal_odd_values")
        assert odd["primary"].read(["i"])["i"].values.tolist() == [1, -2, 1099511627776, 9007199254740993]
