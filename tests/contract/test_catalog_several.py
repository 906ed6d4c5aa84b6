"""What is read for a page at once is what would be read for each of its nodes, in both databases.

If these fail, a page shows a node's neighbours in its place, counts that are not its own, or the state of files of
another node; or values of a long run are cut off.
"""

import pytest
import sqlalchemy as sa

from flystore.catalog import Observation, Segment
from flystore.catalog._database import Fixed
from flystore.catalog._schema import segments
from flystore.model.errors import Damaged
from flystore.model.structures import ArrayStructure, Family, Spec

LONG = ArrayStructure.from_wire(
    {"data_type": {"endianness": "little", "kind": "f", "itemsize": 8}, "shape": [3], "chunks": [[3]], "dims": None}
).to_wire()
BODY = Fixed(sa.select(segments.c.body).where(segments.c.id == sa.bindparam("id")))


@pytest.fixture
def ids(catalog):
    """Ids of 40 nodes: containers with 0, 1, 2 … children, arrays with and without observations."""
    found = []
    with catalog.write() as tx:
        for n in range(40):
            key, metadata, specs = f"n{n}", {"n": n, "text": "é" * n}, [Spec("x", str(n % 3))] * (n % 4)
            if n % 2:
                node = tx.put_node((key,), Family.ARRAY, specs, metadata, LONG, access_tags=["a", f"t{n}"][: n % 3])
            else:
                node = tx.put_node((key,), Family.CONTAINER, specs, metadata, None)
                for m in range(n // 4):
                    tx.put_node((key, f"c{m}"), Family.CONTAINER, [], {}, None)
            if n % 4 == 1:
                tx.save_observation(Observation(node.id, 1.5, "ok", n, {"revision": n}))
                tx.save_observation(Observation(node.id, 2.5, "missing", 0, {}, num=0))
            found.append(node.id)
    return found


@pytest.mark.parametrize("several", [0, 1, 2, 3, 4, 5, 31, 40])
def test_nodes_counts_and_observations_of_several_are_those_of_each(catalog, ids, several):
    some = ids[::-1][:several]
    with catalog.read() as snapshot:
        assert snapshot.nodes_by_id(some) == [snapshot.node_by_id(node_id) for node_id in some]
        assert snapshot.counts_of_children(some) == [snapshot.count_children(node_id) for node_id in some]
        each = {node_id: snapshot.observation(node_id) for node_id in some}
        assert snapshot.last_observations(some) == {key: value for key, value in each.items() if value is not None}


def test_ids_that_are_given_twice_or_not_there_and_more_than_go_into_one_statement(catalog, ids):
    many = [*ids, *range(10**6, 10**6 + 1_100), ids[0], ids[-1]]
    with catalog.read() as snapshot:
        assert [node.id for node in snapshot.nodes_by_id(many)] == [*ids, ids[0], ids[-1]]
        assert snapshot.counts_of_children(many)[40:-2] == [0] * 1_100


def test_children_made_in_a_transaction_are_counted_in_it(catalog, ids):
    with catalog.write() as tx:
        tx.put_node(("n2", "new"), Family.CONTAINER, [], {}, None)
        tx.put_node(("n4", "new"), Family.CONTAINER, [], {}, None)
        assert tx.counts_of_children([ids[2], ids[4], ids[6]]) == [tx.count_children(ids[n]) for n in (2, 4, 6)]
        assert tx.counts_of_children([ids[2]]) == [1]


@pytest.mark.parametrize("size", [1, 100, 4_095, 4_096, 70_000, 3_000_001])
def test_a_long_value_is_read_whole_and_none_where_there_is_no_row(catalog, size):
    body = bytes(range(251)) * (size // 251 + 1)
    with catalog.write() as tx:
        tx.append_segment("s", 0, 1, b"before")
        tx.append_segment("s", 1, 1, body[:size])
    with catalog.read() as snapshot:
        rows = snapshot.stored_segments()
        (row_id,) = [number for number, _, segment in rows if segment.first_row == 1]
        assert snapshot._session.large(segments.c.body, BODY, row_id) == body[:size]
        assert snapshot._session.large(segments.c.body, BODY, row_id + 100) is None


def test_a_column_of_other_length_is_damaged_and_not_shown(catalog):
    with catalog.read() as snapshot, pytest.raises(Damaged, match="is not there"):
        snapshot.column("s", Segment(0, 3, b"", 0.0), 0)
