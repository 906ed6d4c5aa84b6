"""What is kept of runs, and the rows of their slow data.

If these fail, a writer goes on from the wrong document, or rows appear twice or not at all.
"""

import threading

import msgspec
import pytest

from flystore.catalog import BY_COLUMNS, Run, Segment
from flystore.model.errors import Conflict, Damaged, NotReady
from flystore.model.structures import BLUESKY_RUN, Family


def a_run(uid, **changes):
    run = Run(uid, "documents", 4, 4, 2, b"\0state", True, 10.0, start_time=9.5, verdict="running")
    return msgspec.structs.replace(run, **changes)


def test_a_run_comes_back_as_saved(catalog):
    run = a_run("u")
    with catalog.write() as tx:
        assert tx.run("u") is None
        tx.save_run(run)
    stopped = a_run("u", open=False, verdict=None, start_time=None, watermark=9, projected=7)
    with catalog.read() as snapshot:
        assert snapshot.run("u") == run
    with catalog.write() as tx:
        tx.save_run(stopped)
        assert tx.run("u") == stopped


@pytest.mark.parametrize("saved_first", [True, False])
def test_a_run_knows_its_topmost_node(catalog, saved_first):
    with catalog.write() as tx:
        tx.put_node(("box",), Family.CONTAINER, [], {}, None)
        if saved_first:
            tx.save_run(a_run("u"))
        top = tx.put_node(("box", "u"), Family.CONTAINER, [BLUESKY_RUN], {}, None, run_uid="u")
        tx.put_node(("box", "u", "primary"), Family.CONTAINER, [], {}, None, run_uid="u")
        if not saved_first:
            tx.save_run(a_run("u"))
    with catalog.write() as tx:
        tx.save_run(a_run("u", watermark=5))

    with catalog.read() as snapshot:
        assert snapshot.run("u").node_id == top.id
        assert snapshot.run_of_node(top.id).uid == "u"
        assert snapshot.run_of_node(top.parent_id) is None


def test_runs_without_a_stop_are_listed_longest_silence_first(catalog):
    with catalog.write() as tx:
        for i in range(600):
            tx.save_run(a_run(f"u{i:03}", last_received=float((i * 7) % 600), open=i % 2 == 0))

    with catalog.read() as snapshot:
        every = list(snapshot.open_runs())
        silent = list(snapshot.open_runs(silent_since=100.0))
    expected = sorted(range(0, 600, 2), key=lambda i: (i * 7) % 600)
    assert every == [f"u{i:03}" for i in expected]
    assert silent == [f"u{i:03}" for i in expected if (i * 7) % 600 < 100]


def test_uids_are_found_by_their_beginning(catalog):
    with catalog.write() as tx:
        for uid in ("ab1", "ab2", "ac", "b", "ab%", "AB3"):
            tx.save_run(a_run(uid))

    with catalog.read() as snapshot:
        assert snapshot.run_uids_by_prefix("ab", limit=9) == ["ab%", "ab1", "ab2"]
        assert snapshot.run_uids_by_prefix("ab") == ["ab%", "ab1"]
        assert snapshot.run_uids_by_prefix("zz") == []


def test_all_uids_are_listed_page_by_page(catalog):
    with catalog.write() as tx:
        for i in range(5):
            tx.save_run(a_run(f"u{i}", closed="given up" if i == 3 else None, deleted=i == 4))

    with catalog.read() as snapshot:
        assert snapshot.run_uids(limit=3) == ["u0", "u1", "u2"]
        assert snapshot.run_uids(after="u2") == ["u3", "u4"]
        assert snapshot.run_uids(after="u4") == []
        assert snapshot.run("u3").closed == "given up"


def test_writers_of_one_run_take_turns_from_its_first_document_on(catalog):
    """Each reads the watermark and adds to it; without turns both would add at the same place."""
    failures = []

    def write():
        try:
            for _ in range(10):
                with catalog.write() as tx:
                    run = tx.run("u")
                    at = 0 if run is None else run.watermark
                    tx.append_documents("u", at, 1, 0, b"h" * 16, b"", 0.0)
                    tx.save_run(a_run("u", watermark=at + 1))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with catalog.read() as snapshot:
        assert snapshot.run("u").watermark == snapshot.log_end("u") == 30


def append(tx, series, *counts):
    for n in counts:
        first = tx.rows(series)
        tx.append_segment(series, first, n, f"{series} {first}".encode(), 3.0)


def test_rows_come_back_in_the_order_of_arrival(catalog):
    with catalog.write() as tx:
        append(tx, "u/primary", 3, 1, 5)
        append(tx, "u/other", 2)

    with catalog.read() as snapshot:
        assert snapshot.rows("u/primary") == 9
        assert snapshot.rows("u/none") == 0
        found = list(snapshot.segments("u/primary"))
        assert list(snapshot.segments("u/none")) == []
    assert [msgspec.structs.replace(segment, crc=None) for segment in found] == [
        Segment(0, 3, b"u/primary 0", 3.0),
        Segment(3, 1, b"u/primary 3", 3.0),
        Segment(4, 5, b"u/primary 4", 3.0),
    ]


@pytest.mark.parametrize(
    ("first", "stop", "expected"),
    [(0, None, [0, 3, 4]), (3, 4, [3]), (2, 4, [0, 3]), (8, None, [4]), (9, None, []), (0, 0, []), (1, 1, [])],
)
def test_only_the_segments_that_hold_the_rows_are_read(catalog, first, stop, expected):
    with catalog.write() as tx:
        append(tx, "s", 3, 1, 5)

    with catalog.read() as snapshot:
        assert [segment.first_row for segment in snapshot.segments("s", first, stop)] == expected


def test_a_long_series_is_read_page_by_page(catalog):
    with catalog.write() as tx:
        append(tx, "s", *([1] * 600))

    with catalog.read() as snapshot:
        assert [segment.first_row for segment in snapshot.segments("s")] == list(range(600))


def test_a_long_series_is_read_with_no_transaction_open_in_between(catalog):
    with catalog.write() as tx:
        append(tx, "s", *([1] * 600))
    with catalog.read() as snapshot:
        began = snapshot.began("s")
        assert snapshot.began("nothing") is None
    reading = catalog.segments("s", 2, 600, began)
    found = [next(reading).first_row]
    with catalog.write() as tx:
        tx.append_segment("s", 600, 1, b"later")
    found += [segment.first_row for segment in reading]
    assert found == list(range(2, 600))
    assert list(catalog.segments("s", 0, 0, began)) == []


def test_rows_that_were_replaced_are_not_read_on(catalog):
    with catalog.write() as tx:
        append(tx, "s", *([1] * 600))
    with catalog.read() as snapshot:
        reading = catalog.segments("s", 0, 600, snapshot.began("s"))
    next(reading)
    with catalog.write() as tx:
        tx.drop_series("s")
        append(tx, "s", *([1] * 600))
    with pytest.raises(NotReady, match="replaced"):
        list(reading)


@pytest.mark.parametrize(("first", "rows"), [(0, 2), (1, 1), (3, 1), (2, 0)])
def test_rows_that_do_not_continue_the_series_are_refused(catalog, first, rows):
    with catalog.write() as tx:
        append(tx, "s", 2)
        with pytest.raises(Conflict, match="do not continue") as refused:
            tx.append_segment("s", first, rows, b"")

    assert refused.value.expected == 2


def test_merged_segments_take_the_place_of_those_they_hold(catalog):
    with catalog.write() as tx:
        append(tx, "s", 1, 2, 3, 4)
        tx.replace_segments("s", [Segment(1, 5, None, 8.0, uri="file:///s.parquet")])
        assert tx.rows("s") == 10

    with catalog.read() as snapshot:
        assert [(s.first_row, s.rows, s.uri) for s in snapshot.segments("s")] == [
            (0, 1, None),
            (1, 5, "file:///s.parquet"),
            (6, 4, None),
        ]


@pytest.mark.parametrize("merged", [[(0, 2)], [(1, 3)], [(0, 1), (2, 4)], [(6, 5)], [(0, 12)]])
def test_a_merge_that_would_lose_or_double_rows_is_refused(catalog, merged):
    with catalog.write() as tx:
        append(tx, "s", 1, 2, 3, 4)
        before = list(tx.segments("s"))
        with pytest.raises(Conflict, match="not what is stored"):
            tx.replace_segments("s", [Segment(first, rows, b"", 0.0) for first, rows in merged])
        assert list(tx.segments("s")) == before


def merged(tx, series, first, rows, header=b"header", columns=(b"one", b"two")):
    read = [segment for segment in tx.segments(series) if first <= segment.first_row < first + rows]
    return tx.merge_segments(series, read, Segment(first, rows, header, 9.0, uri=BY_COLUMNS), columns)


def test_rows_stored_by_columns_are_read_by_the_columns_that_are_asked_for(catalog):
    asked = []

    def choose(header):
        asked.append(header)
        return [1]

    with catalog.write() as tx:
        append(tx, "s", 1, 2, 3, 4)
        began = tx.began("s")
        assert merged(tx, "s", 1, 5)

    with catalog.read() as snapshot:
        assert (snapshot.rows("s"), snapshot.began("s")) == (10, began)
        assert [(s.first_row, s.rows, s.by_columns, s.columns) for s in snapshot.segments("s", choose=choose)] == [
            (0, 1, False, {}),
            (1, 5, True, {1: b"two"}),
            (6, 4, False, {}),
        ]
        assert asked == [b"header"]
        assert [s.columns for s in snapshot.segments("s", 3, 4)] == [{}]
        assert snapshot.broken_series() == []
        assert [snapshot.has_segments("s", number) for number in (1, 3, 4)] == [True, True, False]


def test_a_merge_of_rows_that_are_others_now_changes_nothing(catalog):
    with catalog.write() as tx:
        append(tx, "s", 1, 2, 3, 4)
        read = list(tx.segments("s"))[:2]
        merge = Segment(0, 3, b"header", 9.0, uri=BY_COLUMNS)
        assert tx.merge_segments("s", read, merge, [b"one"])
        before = list(tx.segments("s"))
        assert not tx.merge_segments("s", read, merge, [b"one"])
        assert not tx.merge_segments("s", [], merge, [b"one"])
        assert not tx.merge_segments("none", read, merge, [b"one"])
        assert list(tx.segments("s")) == before


def test_columns_go_with_the_rows_that_they_belong_to(catalog):
    with catalog.write() as tx:
        tx.put_node(("run",), Family.CONTAINER, [], {}, None)
        append(tx, "run/s", 1, 1)
        append(tx, "run/t", 1, 1)
        append(tx, "run2/s", 1, 1)
        assert all(merged(tx, series, 0, 2) for series in ("run/s", "run/t", "run2/s"))
        assert tx.series_below("run") == ["run/s", "run/t"]
        assert tx.series_below("run/s") == ["run/s"]
        tx.drop_series("run/t")
        assert {series for _, series, _ in tx.stored_segments() if series.startswith("run/t")} == set()
        tx.delete_node(("run",), recursive=True)
        assert {series.split("/")[0] for _, series, _ in tx.stored_segments()} == {"run2"}


def test_a_column_that_is_not_what_was_stored_is_damage(catalog):
    with catalog.write() as tx:
        append(tx, "s", 1, 1)
        assert merged(tx, "s", 0, 2)
        with pytest.raises(Damaged, match="column 7"):
            list(tx.segments("s", choose=lambda header: [7]))


def test_a_dropped_series_begins_again(catalog):
    with catalog.write() as tx:
        append(tx, "s", 2)
        append(tx, "t", 2)
        tx.drop_series("s")
        tx.replace_segments("s", [])
        append(tx, "s", 1)
        assert (tx.rows("s"), tx.rows("t")) == (1, 2)


def test_a_reader_sees_one_moment_while_rows_are_added(catalog):
    with catalog.write() as tx:
        append(tx, "s", 1)
    with catalog.read() as snapshot:
        assert snapshot.rows("s") == 1
        with catalog.write() as tx:
            append(tx, "s", 1)
            tx.put_node(("n",), Family.CONTAINER, [], {}, None)
        assert snapshot.rows("s") == 1
        assert snapshot.node(("n",)) is None
        assert snapshot.count(()) == 0

    with catalog.read() as snapshot:
        assert snapshot.rows("s") == 2
        assert snapshot.count(()) == 1
