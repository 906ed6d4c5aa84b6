"""What people ask most is answered from indexes, and does not cost more in a larger catalogue.

If these fail, the service becomes slow after a year of running, which no small test would show. A
plan that names only indexes can still be linear, so the steps that SQLite takes are counted too.
"""

import pytest

from flystore.catalog import Catalog, Run, SortKey
from flystore.model import queries as q
from flystore.model.structures import BLUESKY_RUN, Family

SMALL, LARGE = 1_000, 20_000
NEWEST = [SortKey("", True)]
BY_TIME = [SortKey("start.time", True)]
DAY = 86_400.0


def start_of(i):
    return {
        "uid": f"{i * 2_654_435_761 % 2**32:08x}-{i}",
        "scan_id": i,
        "time": i * DAY,
        "plan_name": ("count", "scan", "fly")[i % 3],
        "sample": {"name": f"sample {i % 50}"},
        "detectors": ["det", f"cam{i % 7}"],
        "operator": f"person{i}",
        "num_points": i % 100,
    }


def filled(url, n):
    catalog = Catalog.open(url, clock=lambda: 0.0)
    for first in range(0, n, 1_000):
        with catalog.write() as tx:
            for i in range(first, first + 1_000):
                start = start_of(i)
                tx.put_node(
                    (start["uid"],), Family.CONTAINER, [BLUESKY_RUN], {"start": start}, None, run_uid=start["uid"]
                )
                tx.save_run(Run(start["uid"], "documents", 1, 1, 0, b"", i % 500 == 0, i * DAY, verdict="complete"))
    return catalog


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory):
    """Catalogues of a thousand and of twenty thousand runs."""
    place = tmp_path_factory.mktemp("plans")
    with filled(f"sqlite:///{place}/small.db", SMALL) as small, filled(f"sqlite:///{place}/large.db", LARGE) as large:
        yield small, large


def uid(i):
    return start_of(i)["uid"]


def listing(*wanted, **options):
    return lambda snapshot: [node.key for node in snapshot.children((), query=wanted, **options).nodes]


ASKED = {
    "the newest": listing(limit=10, sort=NEWEST),
    "the first page": listing(limit=10),
    "one by scan id": listing(q.Eq("start.scan_id", 500)),
    "one by uid": listing(q.Eq("start.uid", uid(500))),
    "one by the beginning of its uid": listing(q.Like("start.uid", f"{uid(500)[:7]}%"), limit=2),
    "the newest of a plan": listing(q.Eq("start.plan_name", "fly"), limit=10, sort=NEWEST),
    "the newest with two properties": listing(
        q.Eq("start.plan_name", "scan"), q.Comparison("gt", "start.num_points", 50), limit=10, sort=NEWEST
    ),
    "nothing with two properties": listing(
        q.Eq("start.plan_name", "scan"), q.Eq("start.operator", "nobody"), limit=10, sort=NEWEST
    ),
    "a day long ago": listing(
        q.Comparison("ge", "start.time", 100 * DAY), q.Comparison("lt", "start.time", 110 * DAY), sort=NEWEST
    ),
    "since then, newest first": listing(q.Comparison("ge", "start.time", 100 * DAY), limit=10, sort=NEWEST),
    "by time, newest first": listing(limit=10, sort=BY_TIME),
    "a plan by time": listing(q.Eq("start.plan_name", "scan"), limit=10, sort=BY_TIME),
    "a plan by time, oldest first": listing(q.Eq("start.plan_name", "scan"), limit=10, sort=[SortKey("start.time")]),
    "a plan and a sample by time": listing(
        q.Eq("start.plan_name", "scan"), q.Eq("start.sample.name", "sample 7"), limit=10, sort=BY_TIME
    ),
    "a plan before some scan id by time": listing(
        q.Eq("start.plan_name", "scan"), q.Comparison("lt", "start.scan_id", 700), limit=10, sort=BY_TIME
    ),
    "a plan in a time long ago by time": listing(
        q.Eq("start.plan_name", "scan"), q.Comparison("lt", "start.time", 700 * DAY), limit=10, sort=BY_TIME
    ),
    "a plan and the beginning of a uid by time": listing(
        q.Eq("start.plan_name", "scan"), q.Like("start.uid", f"{uid(500)[:2]}%"), limit=10, sort=BY_TIME
    ),
    "the beginning of a uid by time": listing(q.Like("start.uid", f"{uid(500)[:1]}%"), limit=10, sort=BY_TIME),
    "a time long ago by time": listing(q.Comparison("lt", "start.time", 700 * DAY), limit=10, sort=BY_TIME),
    "words by time": listing(q.FullText("fly cam2"), limit=10, sort=BY_TIME),
    "a word and a plan by time": listing(q.FullText("cam2"), q.Eq("start.plan_name", "fly"), limit=10, sort=BY_TIME),
    "by a key of few values": listing(limit=10, sort=[SortKey("start.plan_name", True)]),
    "how many of a plan": lambda snapshot: snapshot.count((), q.Eq("start.plan_name", "scan")),
    "the samples there are, counted": lambda snapshot: snapshot.distinct((), keys=["start.sample.name"], counts=True),
    "a counted page": lambda snapshot: snapshot.children((), query=q.FullText("fly"), limit=10, counted=True),
    "the newest with a detector": listing(q.Contains("start.detectors", "cam3"), limit=10, sort=NEWEST),
    "words": listing(q.FullText("fly cam2"), limit=10, sort=NEWEST),
    "one by a word": listing(q.FullText("person500"), limit=10),
    "by key": listing(q.Lookup(uid(500))),
    "by spec": listing(q.Specs(["BlueskyRun"]), limit=10, sort=NEWEST),
    "complete ones": listing(q.Verdict("complete", silent_since=0.0), limit=10, sort=NEWEST),
    "by path": lambda snapshot: snapshot.node((uid(500),)),
    "how many": lambda snapshot: snapshot.count(()),
    "runs by prefix": lambda snapshot: snapshot.run_uids_by_prefix(uid(500)[:6]),
    "plans there are": lambda snapshot: snapshot.child_keys((), query=q.Lookup(uid(1))),
}


def statements(catalog, ask):
    """Return what was sent to SQLite, parameters filled in."""
    sent = []
    with catalog.read() as snapshot:
        driver = snapshot._session.driver
        driver.set_trace_callback(sent.append)
        try:
            ask(snapshot)
        finally:
            driver.set_trace_callback(None)
    return [text for text in sent if text.lstrip().upper().startswith("SELECT")]


def steps(catalog, ask):
    """Return about how many steps SQLite's machine took."""
    taken = [0]

    def tick():
        taken[0] += 1

    with catalog.read() as snapshot:
        driver = snapshot._session.driver
        driver.set_progress_handler(tick, 20)
        try:
            ask(snapshot)
        finally:
            driver.set_progress_handler(None, 0)
    return 20 * taken[0]


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_most_never_scans_nodes_or_leaves(catalogs, name):
    small, _ = catalogs
    sent = statements(small, ASKED[name])
    plans = []
    with small.read() as snapshot:
        for text in sent:
            rows = snapshot._session.driver.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()
            plans += [row[3] for row in rows]

    assert sent
    tables = ("nodes", "leaves", "runs")
    scans = [plan for plan in plans if plan.startswith("SCAN") and any(f" {table}" in plan for table in tables)]
    assert scans == []


@pytest.mark.parametrize("name", ASKED)
def test_the_work_does_not_grow_with_the_catalogue(catalogs, name):
    small, large = catalogs

    before, now = steps(small, ASKED[name]), steps(large, ASKED[name])

    # Up to the bounds of `Search` (a list of 500, a walk of 4,000) work may grow, and no further;
    # a look at each of twenty thousand runs takes more.
    assert now <= 2 * before + 100 or now <= 30_000


def test_the_answers_are_right_as_well(catalogs):
    _, large = catalogs
    with large.read() as snapshot:
        every = snapshot.children((), limit=LARGE).nodes
        for name, wanted in (
            ("a plan by time", lambda i: i % 3 == 1),
            ("a plan and a sample by time", lambda i: i % 3 == 1 and i % 50 == 7),
            ("a plan before some scan id by time", lambda i: i % 3 == 1 and i < 700),
            ("a plan in a time long ago by time", lambda i: i % 3 == 1 and i < 700),
            ("a plan and the beginning of a uid by time", lambda i: i % 3 == 1 and uid(i)[:2] == uid(500)[:2]),
            ("the beginning of a uid by time", lambda i: uid(i)[0] == uid(500)[0]),
            ("words by time", lambda i: i % 3 == 2 and i % 7 == 2),
            ("a word and a plan by time", lambda i: i % 3 == 2 and i % 7 == 2),
            ("by a key of few values", lambda i: i % 3 == 1),
        ):
            found = [node.key for node in every if wanted(node.metadata["start"]["scan_id"])]
            expected = found[:10] if name == "by a key of few values" else found[:-11:-1]
            assert ASKED[name](snapshot) == expected, name
        assert ASKED["how many of a plan"](snapshot) == len([i for i in range(LARGE) if i % 3 == 1])
        assert ASKED["the newest"](snapshot) == [uid(i) for i in range(LARGE - 1, LARGE - 11, -1)]
        assert ASKED["one by scan id"](snapshot) == [uid(500)]
        assert ASKED["one by the beginning of its uid"](snapshot) == [uid(500)]
        assert ASKED["a day long ago"](snapshot) == [uid(i) for i in range(109, 99, -1)]
        assert ASKED["by time, newest first"](snapshot) == [uid(i) for i in range(LARGE - 1, LARGE - 11, -1)]
        assert ASKED["one by a word"](snapshot) == [uid(500)]


def test_a_page_of_what_is_near_costs_the_same_in_a_catalogue_of_any_size(catalogs):
    """Where neither a list of some hundreds nor a walk of four thousand comes in: the page alone."""
    small, large = catalogs
    for name in (
        "the newest of a plan",
        "by time, newest first",
        "a plan by time, oldest first",
        "words",
        "one by a word",
        "how many",
        "how many of a plan",
        "the samples there are, counted",
        "by path",
        "one by the beginning of its uid",
    ):
        assert steps(large, ASKED[name]) <= 1.3 * steps(small, ASKED[name]) + 200, name


def test_a_range_of_many_found_far_from_the_newest_is_right(catalogs):
    """More matches than are taken whole, beyond where walking stops."""
    _, large = catalogs
    wanted = (q.Comparison("ge", "start.scan_id", 1_000), q.Comparison("lt", "start.scan_id", 3_000))
    with large.read() as snapshot:
        found = snapshot.children((), query=wanted, sort=NEWEST, limit=5)
        rest = snapshot.children((), query=wanted, sort=NEWEST, limit=2_500, after=found.next_cursor)
        counted = snapshot.count((), wanted)

    assert [node.metadata["start"]["scan_id"] for node in found.nodes] == [2_999, 2_998, 2_997, 2_996, 2_995]
    assert [node.metadata["start"]["scan_id"] for node in rest.nodes] == list(range(2_994, 999, -1))
    assert counted == 2_000
