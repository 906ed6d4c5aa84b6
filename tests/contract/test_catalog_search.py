"""Search finds exactly what the queries mean, in the order asked for, on both databases.

If these fail, people miss runs that are there, or are shown others than they asked for.
"""

from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flystore.catalog import Run, SortKey, _search
from flystore.model import queries as q
from flystore.model.errors import InvalidRequest, NotFound, Unsupported
from flystore.model.structures import BLUESKY_RUN, Family, Spec
from flystore.testing.searching import KEYS, NUMBERS, SPECS, TAGS, metadata, queries, queries_about, values

per_database = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
numbers = count()

children = st.lists(
    st.tuples(
        metadata(),
        st.sampled_from((Family.CONTAINER, Family.ARRAY)),
        st.lists(st.sampled_from(SPECS), unique=True, max_size=2),
        st.lists(st.sampled_from(TAGS), unique=True, max_size=2),
    ),
    max_size=8,
)


def put_container(catalog, *, indexed=True):
    """Make a container, its children indexed or not, and return its path."""
    path = (f"c{next(numbers)}",)
    with catalog.write() as tx:
        tx.put_node(path, Family.CONTAINER, [] if indexed else [BLUESKY_RUN], {}, None)
    return path


def put_children(catalog, path, given):
    with catalog.write() as tx:
        for i, (found, family, specs, tags) in enumerate(given):
            tx.put_node((*path, f"n{i}"), family, specs, found, None, access_tags=tags)


def runs_of_values(catalog, *values):
    """Make a container with one child per metadata value ``v`` (none for `...`); return its path."""
    path = put_container(catalog)
    with catalog.write() as tx:
        for i, value in enumerate(values):
            found = {} if value is ... else {"v": value}
            tx.put_node((*path, f"n{i}"), Family.CONTAINER, [], found, None)
    return path


def keys(catalog, path, *wanted, **options):
    with catalog.read() as snapshot:
        return [node.key for node in snapshot.children(path, query=wanted, **options).nodes]


@pytest.mark.parametrize("key", ["v", "v.a"])
def test_every_query_about_every_value_finds_what_it_matches(catalog, key):
    """All pairs, so that no awkward one is left to chance; also with lists and walks cut short."""
    path = runs_of_values(catalog, ..., *values(), *values())
    with catalog.read() as snapshot:
        every = snapshot.children(path, limit=1_000).nodes
        for wanted in queries_about(key):
            expected = [node.key for node in every if q.matches(wanted, node)]
            assert snapshot.child_keys(path, query=wanted, limit=1_000).keys == expected, wanted
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_search, "SMALL", 2)
                patch.setattr(_search, "WALK", 5)
                few = snapshot.child_keys(path, query=wanted, limit=3)
                assert few.keys == expected[:3], wanted
                newest = snapshot.child_keys(path, query=wanted, limit=3, offset=1, sort=[SortKey("", True)])
                assert newest.keys == expected[::-1][1:4], wanted
                if few.next_cursor is not None:
                    rest = snapshot.child_keys(path, query=wanted, limit=1_000, after=few.next_cursor)
                    assert rest.keys == expected[3:], wanted


def test_two_ends_of_a_range_are_taken_together(catalog):
    numbers = sorted(NUMBERS)
    path = runs_of_values(catalog, *values())
    with catalog.read() as snapshot:
        every = snapshot.children(path, limit=1_000).nodes
        for low in (*numbers[::3], "a", "long"):
            for high in (*numbers[::4], "b", "é"):
                for ends in (("ge", "lt"), ("gt", "le")):
                    wanted = q.And((q.Comparison(ends[0], "v", low), q.Comparison(ends[1], "v", high)))
                    expected = [node.key for node in every if q.matches(wanted, node)]
                    assert snapshot.child_keys(path, query=wanted).keys == expected, wanted


@per_database
@given(given=children, asked=st.lists(queries(), min_size=1, max_size=6), indexed=st.booleans())
def test_search_finds_the_children_that_the_queries_match(catalog, given, asked, indexed):
    path = put_container(catalog, indexed=indexed)
    put_children(catalog, path, given)

    with catalog.read() as snapshot:
        every = snapshot.children(path).nodes
        assert len(every) == len(given)
        for wanted in asked:
            expected = [node for node in every if q.matches(q.And(wanted), node)]
            assert snapshot.children(path, query=wanted).nodes == expected
            assert snapshot.count(path, wanted) == len(expected)
            assert snapshot.child_keys(path, query=wanted).keys == [node.key for node in expected]


@per_database
@given(given=children, wanted=queries(), limits=st.tuples(st.integers(0, 2), st.integers(0, 3)))
def test_search_is_the_same_however_it_is_led(catalog, given, wanted, limits):
    """Which list leads depends on how long lists are; the outcome must not."""
    path = put_container(catalog)
    put_children(catalog, path, given)
    expected = keys(catalog, path, *wanted)
    backwards = [SortKey("", True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_search, "SMALL", limits[0])
        patch.setattr(_search, "WALK", limits[1])
        assert keys(catalog, path, *wanted) == expected
        assert keys(catalog, path, *wanted, sort=backwards) == expected[::-1]
        assert keys(catalog, path, *wanted, limit=2, offset=1) == expected[1:3]
        with catalog.read() as snapshot:
            assert snapshot.count(path, wanted) == len(expected)


@per_database
@given(given=children, wanted=queries(), changed=children)
def test_search_follows_changed_metadata_and_deleted_nodes(catalog, given, wanted, changed):
    path = put_container(catalog)
    put_children(catalog, path, given)
    put_children(catalog, path, changed)
    with catalog.write() as tx:
        if given:
            tx.delete_node((*path, "n0"), recursive=True)

    with catalog.read() as snapshot:
        every = snapshot.children(path).nodes
        found = snapshot.children(path, query=wanted).nodes

    expected = [node.key for node in every if q.matches(q.And(wanted), node)]
    assert [node.key for node in found] == expected


@per_database
@given(
    given=children,
    key=st.sampled_from(KEYS),
    other=st.sampled_from(KEYS),
    descending=st.booleans(),
    wanted=st.one_of(st.just(()), queries()),
)
def test_indexed_and_looked_at_children_sort_alike(catalog, given, key, other, descending, wanted):
    indexed, looked_at = put_container(catalog), put_container(catalog, indexed=False)
    put_children(catalog, indexed, given)
    put_children(catalog, looked_at, given)
    one = [SortKey(f"metadata.{key}", descending)]
    two = [SortKey(f"metadata.{other}"), *one, SortKey("", descending)] if other != key else one

    for sort in (one, two):
        expected = keys(catalog, looked_at, *wanted, sort=sort)
        assert keys(catalog, indexed, *wanted, sort=sort) == expected
        assert keys(catalog, indexed, *wanted, sort=sort, limit=2, offset=1) == expected[1:3]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_search, "SMALL", 0)
            paged = [
                k for i in range(len(expected)) for k in keys(catalog, indexed, *wanted, sort=sort, limit=1, offset=i)
            ]
        assert paged == expected


@per_database
@given(given=children, key=st.sampled_from(KEYS), counts=st.booleans(), wanted=st.one_of(st.just(()), queries()))
def test_distinct_gives_the_same_groups_from_the_index_as_from_the_nodes(catalog, given, key, counts, wanted):
    indexed, looked_at = put_container(catalog), put_container(catalog, indexed=False)
    put_children(catalog, indexed, given)
    put_children(catalog, looked_at, given)

    with catalog.read() as snapshot:
        ask = {"query": wanted, "keys": [key], "families": True, "specs": True, "counts": counts}
        found = snapshot.distinct(indexed, **ask)
        expected = snapshot.distinct(looked_at, **ask)

    assert repr(found) == repr(expected)  # repr tells 1 from 1.0 and True
    if counts:
        total = len(keys(catalog, indexed, *wanted))
        for groups in (found["structure_families"], found["specs"], (found["metadata"] or {}).get(key, [])):
            assert sum(group["count"] for group in groups) == total


def test_numbers_sort_by_size_text_by_code_point_and_missing_last(catalog):
    path = runs_of_values(catalog, "b", 10, ..., 9, "a", None, "Z", True)

    assert keys(catalog, path, sort=[SortKey("v")]) == ["n7", "n3", "n1", "n6", "n4", "n0", "n2", "n5"]
    assert keys(catalog, path, sort=[SortKey("v", True)]) == ["n0", "n4", "n6", "n1", "n3", "n7", "n2", "n5"]


def test_ties_are_in_order_of_insertion_in_either_direction(catalog):
    path = runs_of_values(catalog, 1, 2, 1, 2)

    assert keys(catalog, path, sort=[SortKey("metadata.v", True)]) == ["n1", "n3", "n0", "n2"]
    assert keys(catalog, path, sort=[SortKey("v"), SortKey("", True)]) == ["n2", "n0", "n3", "n1"]


def test_sorting_by_id_sorts_by_key(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        for key in ("b", "é", "a", "B"):
            tx.put_node((*path, key), Family.CONTAINER, [], {}, None)

    assert keys(catalog, path, sort=[SortKey("id")]) == ["B", "a", "b", "é"]
    assert keys(catalog, path, sort=[SortKey("id", True)]) == ["é", "b", "a", "B"]


def test_pages_by_cursor_are_whole_while_children_are_added(catalog):
    path = runs_of_values(catalog, *range(7))
    seen, after = [], None
    while True:
        with catalog.read() as snapshot:
            page = snapshot.children(path, limit=3, after=after)
        seen += [node.key for node in page.nodes]
        after = page.next_cursor
        if after is None:
            break
        if len(seen) == 3:
            with catalog.write() as tx:
                tx.put_node((*path, "late"), Family.CONTAINER, [], {}, None)

    assert seen == [f"n{i}" for i in range(7)] + ["late"]


def test_newest_first_goes_on_from_a_cursor(catalog):
    path = runs_of_values(catalog, *range(5))
    newest = [SortKey("", True)]

    with catalog.read() as snapshot:
        first = snapshot.children(path, sort=newest, limit=2)
        second = snapshot.children(path, sort=newest, limit=2, after=first.next_cursor)
        third = snapshot.children(path, sort=newest, limit=2, after=second.next_cursor)

    assert [[node.key for node in page.nodes] for page in (first, second, third)] == [
        ["n4", "n3"],
        ["n2", "n1"],
        ["n0"],
    ]
    assert third.next_cursor is None


@pytest.mark.parametrize("descending", [False, True])
def test_a_page_of_none_says_where_to_begin(catalog, descending):
    path = runs_of_values(catalog, 1, 2)
    sort = [SortKey("", descending)]

    with catalog.read() as snapshot:
        nothing = snapshot.children(path, limit=0, sort=sort)
        begun = snapshot.children(path, limit=1, sort=sort, after=nothing.next_cursor)

    assert nothing.nodes == []
    assert [node.key for node in begun.nodes] == ["n1" if descending else "n0"]


def test_custom_order_pages_by_offset_to_the_end(catalog):
    path = runs_of_values(catalog, 3, ..., 1, 2, ...)

    with catalog.read() as snapshot:
        first = snapshot.children(path, sort=[SortKey("v")], limit=2)
        second = snapshot.children(path, sort=[SortKey("v")], limit=2, offset=first.next_offset)
        third = snapshot.children(path, sort=[SortKey("v")], limit=2, offset=second.next_offset)

    found = [node.key for page in (first, second, third) for node in page.nodes]
    assert found == ["n2", "n3", "n0", "n1", "n4"]
    assert first.next_cursor is None
    assert third.next_offset is None


def test_what_cannot_be_paged_or_sorted_is_refused(catalog):
    path = runs_of_values(catalog, 1)
    with catalog.read() as snapshot:
        with pytest.raises(InvalidRequest, match="cursor"):
            snapshot.children(path, sort=[SortKey("v")], after=1)
        with pytest.raises(InvalidRequest, match="cursor"):
            snapshot.children(path, offset=1, after=1)
        with pytest.raises(InvalidRequest, match="twice"):
            snapshot.children(path, sort=[SortKey("v"), SortKey("v", True)])
        with pytest.raises(InvalidRequest, match="last"):
            snapshot.children(path, sort=[SortKey(""), SortKey("v")])
        with pytest.raises(NotFound, match="nowhere"):
            snapshot.children(("nowhere",))
        with pytest.raises(Unsupported, match="regex"):
            snapshot.children(path, query=q.Regex("v", "a+"))


def test_a_verdict_is_found_and_silence_makes_an_open_run_interrupted(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        for key, verdict, is_open, heard in (
            ("done", "complete", False, 10.0),
            ("live", "running", True, 100.0),
            ("lost", "running", True, 50.0),
            ("cut", "interrupted", False, 10.0),
            ("mute", None, True, 20.0),
        ):
            tx.put_node((*path, key), Family.CONTAINER, [], {}, None, run_uid=f"{path[0]}{key}")
            tx.save_run(Run(f"{path[0]}{key}", "documents", 0, 0, 0, b"", is_open, heard, verdict=verdict))
        tx.put_node((*path, "other"), Family.CONTAINER, [], {}, None)

    def found(state, *more):
        return keys(catalog, path, q.Verdict(state, silent_since=60.0), *more)

    assert found("complete") == ["done"]
    assert found("running") == ["live"]
    assert found("interrupted") == ["lost", "cut", "mute"]
    assert found("interrupted", q.Lookup("cut")) == ["cut"]
    assert keys(catalog, path, q.Verdict("running")) == ["live", "lost"]
    with catalog.read() as snapshot:
        deep = snapshot.descendants((), query=q.Verdict("interrupted", silent_since=60.0)).nodes
    assert [node.key for node in deep] == ["lost", "cut", "mute"]


def test_a_search_below_the_root_reaches_any_depth(catalog):
    path = put_container(catalog)
    with catalog.write() as tx:
        tx.put_node((*path, "run"), Family.CONTAINER, [BLUESKY_RUN], {"v": 1}, None)
        tx.put_node((*path, "run", "primary"), Family.CONTAINER, [Spec("S")], {"v": 1}, None)
        tx.put_node((*path, "run", "primary", "x"), Family.ARRAY, [], {"v": 2}, None)
        tx.put_node((f"{path[0]}0",), Family.CONTAINER, [], {"v": 1}, None)

    with catalog.read() as snapshot:

        def deep(*wanted, **options):
            return [node.path[1:] for node in snapshot.descendants(path, query=wanted, **options).nodes]

        assert deep() == [("run",), ("run", "primary"), ("run", "primary", "x")]
        assert deep(q.Eq("v", 1)) == [("run",), ("run", "primary")]
        assert deep(max_depth=1) == [("run",)]
        assert deep(limit=1, offset=1) == [("run", "primary")]
        assert snapshot.count_descendants(path, query=q.Eq("v", 1)) == 2
        assert snapshot.count_descendants(path, limit=2) == 2
        first = snapshot.descendants(path, limit=2)
        rest = snapshot.descendants(path, limit=2, after=first.next_cursor)
    assert [node.key for node in rest.nodes] == ["x"]
    assert rest.next_cursor is None


def test_the_number_of_children_is_kept_through_changes(catalog):
    path = runs_of_values(catalog, 1, 2, 3)
    with catalog.write() as tx:
        tx.delete_node((*path, "n1"))
        tx.put_node((*path, "n0"), Family.CONTAINER, [], {"v": 9}, None)
        tx.put_node((*path, "n7"), Family.CONTAINER, [], {}, None)
        assert tx.count(path) == 3

    with catalog.read() as snapshot:
        assert snapshot.count(path) == 3 == len(snapshot.children(path).nodes)


def test_numbers_and_specs_that_the_index_holds_in_part_are_told_whole(catalog):
    long_specs = [Spec(f"{'s' * 100}{i}") for i in range(10)]
    path = put_container(catalog)
    with catalog.write() as tx:
        tx.put_node((*path, "a"), Family.CONTAINER, long_specs, {"v": "t" * 2_000, "w": 1.0}, None)
        tx.put_node((*path, "b"), Family.CONTAINER, [], {"v": [1, {"x": 2}], "w": 7}, None)

    with catalog.read() as snapshot:
        found = snapshot.distinct(path, keys=["v", "w"], specs=True)

    assert [group["value"] for group in found["metadata"]["v"]] == ["t" * 2_000, [1, {"x": 2}]]
    assert repr([group["value"] for group in found["metadata"]["w"]]) == "[1.0, 7]"
    assert [group["value"] for group in found["specs"]] == [[spec.to_wire() for spec in long_specs], []]
