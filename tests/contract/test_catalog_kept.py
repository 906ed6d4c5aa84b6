"""What is kept about large containers says what counting would say, and leads to the same pages.

If these fail, a count or the list of plans is wrong, or a sorted page leaves runs out, in catalogues large enough
that nobody would notice by looking.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.catalog import Catalog, SortKey, _browse, _kept, _search
from flystore.catalog import _leaves as lv
from flystore.catalog._schema import leaf_zones, leaves, many_valued, schema_version, value_counts
from flystore.model import queries as q
from flystore.model.errors import Conflict
from flystore.model.structures import Family

per_database = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = count()

VALUES = (0, 1, 1.0, 2.5, -3, 10**20, "a", "ab", "b", True, None, [], [1, "a"], {"x": 1})
documents = st.fixed_dictionaries(
    {},
    optional={
        "time": st.sampled_from(VALUES) | st.integers(0, 30),
        "scan_id": st.integers(0, 8),
        "plan": st.sampled_from(("count", "scan", "fly")),
        "tags": st.lists(st.sampled_from(("x", "y", "xy")), max_size=2),
    },
)
KEYS = ("start.time", "start.scan_id", "start.plan", "start.tags")
conditions = st.lists(
    st.one_of(
        st.builds(q.Eq, st.just("start.plan"), st.sampled_from(("count", "scan", "none"))),
        st.builds(q.Comparison, st.sampled_from(q.Operator), st.sampled_from(KEYS[:2]), st.integers(0, 12)),
        st.builds(q.Eq, st.sampled_from(KEYS[:2]), st.sampled_from((0, 1, None, "a"))),
        st.builds(q.Like, st.just("start.plan"), st.sampled_from(("c%", "s%n", "%"))),
        st.builds(q.Contains, st.just("start.tags"), st.sampled_from(("x", "z"))),
        st.builds(q.FullText, st.sampled_from(("scan", "fly", "x", "nothing"))),
        st.builds(q.NotEq, st.just("start.plan"), st.just("fly")),
        st.builds(q.In, st.just("start.scan_id"), st.just((1, 2, 3))),
        st.builds(q.KeyPresent, st.sampled_from(KEYS), st.booleans()),
    ),
    max_size=3,
).map(tuple)
sorts = st.one_of(
    st.builds(lambda key, descending: [SortKey(key, descending)], st.sampled_from(KEYS), st.booleans()),
    st.builds(
        lambda key, back, last: [SortKey(key, back), SortKey("", last)],
        st.sampled_from(KEYS),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(lambda back: [SortKey("start.plan", back), SortKey("start.time", not back)], st.booleans()),
)
limits = st.fixed_dictionaries(
    {
        "SMALL": st.integers(0, 3),
        "WALK": st.integers(0, 4),
        "LOOK": st.integers(0, 6),
        "_ZONES_AT_ONCE": st.integers(1, 4),
    }
)


class GivenUp(Exception):
    """Ends a transaction whose writes are not wanted."""


def put_container(catalog):
    path = (f"c{next(numbers)}",)
    with catalog.write() as tx:
        tx.put_node(path, Family.CONTAINER, [], {}, None)
    return path


def put(tx, path, key, start):
    return tx.put_node((*path, key), Family.CONTAINER, [], {"start": start}, None)


def kept_of(catalog, path):
    """Return (counts by group, keys of many values, zones) of a container as they are stored."""
    with catalog.read() as snapshot:
        parent = snapshot.node(path).id
        compose = snapshot._session.compose
        counts = {
            (row[0], bytes(row[1])): row[2]
            for row in compose(
                sa.select(value_counts.c.key, value_counts.c.value, value_counts.c.count).where(
                    value_counts.c.parent_id == parent
                )
            )
        }
        many = {row[0] for row in compose(sa.select(many_valued.c.key).where(many_valued.c.parent_id == parent))}
        zones = {
            (row[0], row[1]): (bytes(row[2]), bytes(row[3]))
            for row in compose(
                sa.select(leaf_zones.c.key, leaf_zones.c.zone, leaf_zones.c.low, leaf_zones.c.high).where(
                    leaf_zones.c.parent_id == parent
                )
            )
        }
    return {group: n for group, n in counts.items() if group[0] not in many}, many, zones


def assert_kept_is_right(catalog, path):
    counts, many, zones = kept_of(catalog, path)
    with catalog.write() as tx:
        _kept.recount(tx._session.connection)
    counted, too_many, bounds = kept_of(catalog, path)
    assert too_many <= many
    assert counts == {group: n for group, n in counted.items() if group[0] not in many}
    assert bounds.keys() <= zones.keys()
    for zone, (low, high) in bounds.items():
        assert zones[zone][0] <= low
        assert high <= zones[zone][1]


@pytest.fixture
def small_numbers(monkeypatch):
    """Let few values be many, and zones be of few ids, so that small catalogues behave as large ones."""
    monkeypatch.setattr(_kept, "VALUES", 3)
    monkeypatch.setattr(_kept, "ZONE_BITS", 2)
    monkeypatch.setattr(_search, "ZONE_BITS", 2)


@per_database
@given(
    given=st.lists(documents, max_size=14),
    asked=st.lists(st.tuples(conditions, sorts, st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=6),
    cut=limits,
    counted=st.integers(0, 3),
)
def test_sorted_pages_are_the_same_however_they_are_found(catalog, small_numbers, given, asked, cut, counted):
    path = put_container(catalog)
    with catalog.write() as tx:
        for i, start in enumerate(given):
            put(tx, path, f"n{i}", start)
    with pytest.MonkeyPatch.context() as patch, catalog.read() as snapshot:
        for name, value in cut.items():
            patch.setattr(_search, name, value)
        patch.setattr(_browse, "_COUNTED", counted)
        every = snapshot.children(path).nodes
        for wanted, sort, limit, offset in asked:
            matching = [node for node in every if q.matches(q.And(wanted), node)]
            expected = _browse._sorted(matching, sort)
            page = snapshot.children(path, query=wanted, sort=sort, limit=limit, offset=offset, counted=True)
            assert page.nodes == expected[offset : offset + limit], (wanted, sort)
            assert (page.next_offset is not None) == (offset + limit < len(expected))
            assert page.count <= len(expected)
            assert page.count == len(expected) or page.count >= min(len(expected), offset + len(page.nodes) + 1)
            assert snapshot.count(path, wanted) == len(matching)


@pytest.mark.parametrize(
    "more",
    [
        (),
        (q.In("start.scan_id", (1, 2, 3, 4, 5)),),
        (q.NotIn("start.scan_id", (1, 2)),),
        (q.Like("start.plan", "s%n"),),
        (q.KeyPresent("start.tags", False),),
        (q.Comparison("gt", "start.scan_id", 2),),
        (q.Comparison("lt", "start.time", 9), q.FullText("scan")),
    ],
)
def test_a_list_is_read_zone_by_zone_whatever_else_is_asked(catalog, small_numbers, monkeypatch, more):
    path = put_container(catalog)
    with catalog.write() as tx:
        for i in range(40):
            put(tx, path, f"n{i}", {"plan": ("scan", "fly")[i % 4 == 3], "scan_id": i % 7, "time": (i * 17) % 23})
    monkeypatch.setattr(_search, "SMALL", 0)
    monkeypatch.setattr(_search, "WALK", 0)
    wanted = (q.Eq("start.plan", "scan"), *more)
    with catalog.read() as snapshot:
        matching = [node for node in snapshot.children(path).nodes if q.matches(q.And(wanted), node)]
        for descending in (True, False):
            sort = [SortKey("start.time", descending)]
            for limit, offset in ((1, 0), (5, 2), (100, 0)):
                expected = _browse._sorted(matching, sort)[offset : offset + limit]
                page = snapshot.children(path, query=wanted, sort=sort, limit=limit, offset=offset)
                assert page.nodes == expected


@per_database
@given(
    given=st.lists(documents, max_size=10),
    changed=st.lists(st.tuples(st.integers(0, 12), documents), max_size=6),
    gone=st.sets(st.integers(0, 9), max_size=4),
)
def test_counts_and_zones_follow_whatever_is_changed(catalog, small_numbers, given, changed, gone):
    path = put_container(catalog)
    with catalog.write() as tx:
        for i, start in enumerate(given):
            put(tx, path, f"n{i}", start)
    with catalog.write() as tx:
        for i, start in changed:
            put(tx, path, f"n{i}", start)
        for i in gone:
            if tx.node((*path, f"n{i}")) is not None:
                tx.delete_node((*path, f"n{i}"), recursive=True)

    with catalog.read() as snapshot:
        assert _kept.is_right(snapshot._session, snapshot.node(path).id)
        left = snapshot.children(path).nodes
        for plan in ("count", "scan", "fly"):
            wanted = q.Eq("start.plan", plan)
            assert snapshot.count(path, wanted) == sum(q.matches(wanted, node) for node in left)


def test_what_is_undone_is_not_counted(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        put(tx, path, "a", {"plan": "scan"})
        with suppress(Conflict), tx.savepoint():
            put(tx, path, "b", {"plan": "scan"})
            tx.put_node((*path, "b"), Family.CONTAINER, [], {}, None, exist_ok=False)
    with suppress(GivenUp), catalog.write() as tx:
        put(tx, path, "c", {"plan": "scan"})
        raise GivenUp

    with catalog.read() as snapshot:
        assert snapshot.count(path, q.Eq("start.plan", "scan")) == 1
    assert_kept_is_right(catalog, path)


def test_a_container_that_is_deleted_leaves_nothing_kept(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        parent = tx.node(path).id
        put(tx, path, "a", {"plan": "scan", "time": 1.0})
    with catalog.write() as tx:
        put(tx, path, "b", {"plan": "scan", "time": 2.0})
        tx.delete_node(path, recursive=True)

    with catalog.read() as snapshot:
        for table in (value_counts, many_valued, leaf_zones):
            left = snapshot._session.compose(sa.select(table.c.key).where(table.c.parent_id == parent))
            assert left == []


def test_a_transaction_counts_what_it_has_changed_itself(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        put(tx, path, "a", {"plan": "scan"})
    with catalog.write() as tx:
        put(tx, path, "b", {"plan": "scan"})
        put(tx, path, "c", {"plan": "fly"})
        assert tx.count(path, q.Eq("start.plan", "scan")) == 2
        assert tx.distinct(path, keys=["start.plan"], counts=True)["metadata"]["start.plan"] == [
            {"value": "fly", "count": 1},
            {"value": "scan", "count": 2},
        ]


def test_a_key_of_too_many_values_is_not_counted_any_more_and_answers_the_same(catalog, small_numbers):
    path = put_container(catalog)
    for i in range(8):
        with catalog.write() as tx:
            put(tx, path, f"n{i}", {"scan_id": i // 2, "plan": "scan"})

    counts, many, _ = kept_of(catalog, path)
    assert "start.scan_id" in many
    assert "start.plan" not in many
    assert counts["start.plan", lv.scalar_bytes("scan")] == 8
    with catalog.read() as snapshot:
        assert snapshot.count(path, q.Eq("start.scan_id", 3)) == 2
        groups = snapshot.distinct(path, keys=["start.scan_id"], counts=True)["metadata"]["start.scan_id"]
    assert groups == [{"value": i, "count": 2} for i in range(4)]


def test_writers_at_once_lose_no_count(catalog, small_numbers):
    path = put_container(catalog)

    def write(writer):
        for i in range(8):
            with catalog.write() as tx:
                put(tx, path, f"w{writer}-{i}", {"plan": ("count", "scan")[i % 2], "scan_id": i, "time": float(i)})
            with catalog.write() as tx:
                put(tx, path, f"w{writer}-{i}", {"plan": "fly", "scan_id": i, "time": float(i)})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))

    with catalog.read() as snapshot:
        assert snapshot.count(path, q.Eq("start.plan", "fly")) == 32
        assert snapshot.count(path, q.Eq("start.plan", "scan")) == 0
    assert_kept_is_right(catalog, path)


def test_a_catalogue_of_the_schema_before_is_counted_when_it_is_opened(catalog_url):
    with Catalog.open(catalog_url) as catalog:
        with catalog.write() as tx:
            for i in range(20):
                put(tx, (), f"n{i}", {"plan": ("count", "scan")[i % 2], "time": float(-i)})
        before = kept_of(catalog, ())
        with catalog.write() as tx:
            for table in (value_counts, many_valued, leaf_zones):
                table.drop(tx._session.connection)
            tx._session.connection.execute(schema_version.update().values(version=3))

    with Catalog.open(catalog_url) as catalog:
        assert kept_of(catalog, ()) == before
        with catalog.read() as snapshot:
            assert snapshot.count((), q.Eq("start.plan", "scan")) == 10
            newest = snapshot.children(
                (), query=q.Eq("start.plan", "scan"), sort=[SortKey("start.time", True)], limit=2
            )
    assert [node.key for node in newest.nodes] == ["n1", "n3"]


def test_what_is_kept_wrongly_is_found(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        put(tx, path, "a", {"plan": "scan", "time": 1.0})
        put(tx, path, "b", {"plan": "scan", "time": 2.0})
    with catalog.read() as snapshot:
        assert snapshot.problems_of(snapshot.node(path)) == []
    for spoil in (
        value_counts.update().where(value_counts.c.key == "start.plan").values(count=3),
        value_counts.delete().where(value_counts.c.key == "start.plan"),
        leaf_zones.update().values(high=lv.scalar_bytes(1.5)),
        leaf_zones.delete(),
    ):
        with suppress(GivenUp), catalog.write() as tx:
            tx._session.connection.execute(spoil)
            found = tx.problems_of(tx.node(path))
            raise GivenUp
        assert found == ["what is kept about the index entries of its children is wrong"]


def test_leaves_are_what_the_kept_numbers_are_about(catalog):
    """The control: without the leaves, recounting gives nothing."""
    path = put_container(catalog)
    with catalog.write() as tx:
        put(tx, path, "a", {"plan": "scan"})
        tx._session.connection.execute(sa.delete(leaves))
        _kept.recount(tx._session.connection)
        tx._leaf_changes.drop(tx.node(path).id)
    assert kept_of(catalog, path) == ({}, set(), {})
