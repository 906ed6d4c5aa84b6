"""What callers post is checked before anything is touched.

If these fail, nonsense gets into the catalogue or a caller's fault looks like ours.
"""

import pytest

from flystore.model.errors import InvalidRequest
from flystore.model.structures import ArrayStructure, Family, Spec
from flystore.service import NewNode, data_source_from_wire, specs_from_wire

ARRAY = {"structure_family": "array", "structure": ArrayStructure.of("<f8", (2, 3)).to_wire()}


def test_a_container_as_the_stock_client_posts_it():
    new = NewNode.from_wire(
        {
            "ancestors": [""],
            "metadata": {"color": "blue"},
            "structure_family": "container",
            "specs": [{"name": "BlueskyRun", "version": "3.0"}],
            "data_sources": [],
            "access_tags": None,
            "id": "demo",
        }
    )
    assert new == NewNode("demo", Family.CONTAINER, {"color": "blue"}, (Spec("BlueskyRun", "3.0"),), ())


def test_a_node_without_an_id_gets_one():
    new = NewNode.from_wire({"structure_family": "container", "metadata": {}})
    assert len(new.key) == 36


@pytest.mark.parametrize("key", ["..", ".", "a/b", "x" * 256, "a\nb", 7])
def test_a_key_that_cannot_be_a_path_segment_is_refused(key):
    with pytest.raises(InvalidRequest, match="cannot be a key"):
        NewNode.from_wire({"id": key, "structure_family": "container", "metadata": {}})


@pytest.mark.parametrize(
    "change",
    [
        {"structure_family": "scroll"},
        {"metadata": []},
        {"data_sources": []},
        {"data_sources": [ARRAY, ARRAY]},
        {"data_sources": {}},
        {"specs": ["BlueskyRun"]},
        {"specs": [{"name": "a"}, {"name": "a"}]},
        {"specs": [{"name": str(n)} for n in range(21)]},
    ],
)
def test_a_malformed_node_is_refused(change):
    good = {"id": "a", "structure_family": "array", "metadata": {}, "data_sources": [ARRAY]}
    NewNode.from_wire(good)
    with pytest.raises(InvalidRequest):
        NewNode.from_wire({**good, **change})


def test_unknown_fields_of_a_data_source_are_refused():
    with pytest.raises(InvalidRequest, match="data source"):
        data_source_from_wire({**ARRAY, "surprise": 1})


def test_chunks_that_do_not_add_up_are_refused():
    structure = {**ARRAY["structure"], "chunks": [[1], [3]]}
    with pytest.raises(InvalidRequest, match="add up"):
        data_source_from_wire({**ARRAY, "structure": structure})


def test_the_order_of_specs_is_kept():
    names = ["b", "a", "c"]
    assert [spec.name for spec in specs_from_wire([{"name": name} for name in names])] == names
