"""The rows of a run that has ended are put together, and stay the same rows whatever happens meanwhile.

If these fail, values get lost, doubled or changed after the run, when nobody looks any more; or a long scan that came
event by event stays slow to read for good.
"""

import shutil
import sqlite3
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.catalog import Catalog
from flystore.disk import failpoints
from flystore.model.errors import Damaged
from flystore.model.frames import FrameEncoder
from flystore.service import Service, merging
from flystore.service.checking import check_store
from flystore.service.columns import shown_rows, stored_names, stored_pieces
from flystore.service.merging import Merger
from flystore.storage import ArrayStore, encode_segment
from flystore.testing.documents import RunDocuments, internal
from flystore.testing.faults.storing import frames_of

EVENTS = 24
TABLE = ("run", "primary", "internal")
SERIES = "run/primary"


@contextmanager
def small_parts(rows=10, whole_bytes=0):
    """Merge after a few rows, and by columns however little there is."""
    with patch.multiple(merging, PART_ROWS=rows, LEAST_SEGMENTS=2, _WHOLE_BYTES=whole_bytes, _COMPACT=3):
        yield


def documents(stop=True):
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal(), n=internal("integer"), text=internal("string"), list=internal("array"))
    for number in range(EVENTS):
        text = None if number % 7 == 3 else f"step {number}"
        stream.event(x=number / 3, n=number, text=text, list=[float(number), 0.5])
    if stop:
        run.stop()
    return run.documents


def store(service, documents, batch=1):
    encoder = FrameEncoder()
    for at in range(0, len(documents), batch):
        service.ingest.batch("run", at, 1, frames_of(documents[at : at + batch], encoder))


@pytest.fixture
def unmerged(tmp_path):
    """A store with a run that came event by event, as it is before anything was merged."""
    with patch.object(Merger, "ask"), Service.open(tmp_path / "store") as service:
        store(service, documents())
    return tmp_path / "store"


def segments_in(directory):
    with sqlite3.connect(directory / "catalog.sqlite") as connection:
        found = connection.execute("SELECT series, first_row, rows, uri FROM segments ORDER BY id").fetchall()
    connection.close()
    return found


# --------------------------------------------------------------------------- the same rows


def columns():
    numbers = st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=1, max_size=3)
    return st.one_of(
        numbers.map(lambda values: pa.array(values, pa.float64())),
        st.lists(st.integers(-5, 5), min_size=1, max_size=3).map(lambda values: pa.array(values, pa.int64())),
        st.lists(st.sampled_from(["", "a", "ü,\n", None]), min_size=1, max_size=3).map(
            lambda values: pa.array(values, pa.string())
        ),
        st.lists(st.lists(st.floats(0, 1), max_size=2), min_size=1, max_size=3).map(
            lambda values: pa.array(values, pa.list_(pa.float64()))
        ),
        st.lists(st.booleans(), min_size=1, max_size=3).map(lambda values: pa.array(values, pa.bool_())),
        st.integers(1, 3).map(pa.nulls),
    )


@st.composite
def batches(draw):
    """Draw record batches whose columns come, go and change their types, as mixed runs of equal ones."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        kinds = draw(st.dictionaries(st.sampled_from("abc"), columns(), min_size=1))
        for _ in range(draw(st.integers(1, 5))):
            rows = min(map(len, kinds.values()))
            found.append(pa.RecordBatch.from_pydict({name: column.slice(0, rows) for name, column in kinds.items()}))
    return found


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    with Catalog.open(f"sqlite:///{tmp_path_factory.mktemp('merging')}/catalog.sqlite") as opened:
        yield opened


def values(catalog, series, names):
    with catalog.read() as snapshot:
        pieces = stored_pieces(snapshot, series, names)
    return [[repr(value) for piece in column for value in piece.to_pylist()] for column in pieces]


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(1, 12), st.sampled_from([0, 1 << 20]), st.randoms(use_true_random=False))
def test_rows_are_the_same_before_and_after(catalog, given_batches, part_rows, whole_bytes, random):
    series = f"s{random.getrandbits(64)}-{id(given_batches)}"
    with catalog.write() as tx:
        tx.drop_series(series)
        at = 0
        for batch in given_batches:
            tx.append_segment(series, at, batch.num_rows, encode_segment(batch), 0.0)
            at += batch.num_rows
    with catalog.read() as snapshot:
        names = sorted(stored_names(snapshot, series))
        began = snapshot.began(series)
    before = values(catalog, series, names)

    with small_parts(part_rows, whole_bytes):
        Merger(catalog).merge_series(series)
        merged_twice = Merger(catalog).merge_series(series) if whole_bytes == 0 else 0

    with catalog.read() as snapshot:
        assert snapshot.rows(series) == at
        assert snapshot.began(series) == began
        assert sorted(stored_names(snapshot, series)) == names
        assert series not in snapshot.broken_series()
    assert values(catalog, series, names) == before
    assert merged_twice == 0


def test_a_run_is_merged_when_it_ends_and_costs_a_part_and_not_an_event(tmp_path):
    with small_parts(rows=1 << 17), Service.open(tmp_path) as service:
        store(service, documents(stop=False))
        before = service.tables.read(TABLE)
        assert before.column(0).num_chunks == EVENTS

        service.ingest.batch("run", EVENTS + 2, 1, frames_of(documents()[EVENTS + 2 :], FrameEncoder()))
        service.merger.wait()

        after = service.tables.read(TABLE)
        assert after.column(0).num_chunks == 1
        assert after.equals(before)
        assert [name for name, _ in service.documents.read(("run",)).documents] == [name for name, _ in documents()]


def test_what_comes_after_the_end_is_read_behind_what_was_merged(tmp_path):
    with small_parts(), Service.open(tmp_path) as service:
        store(service, documents())
        service.merger.wait()
        run = RunDocuments("run")
        late = run.stream(
            "primary", x=internal(), n=internal("integer"), text=internal("string"), list=internal("array")
        )
        for number in range(EVENTS + 1):
            late.event(x=number / 3, n=number, text="late", list=[0.0, 0.5])
        service.ingest.batch("run", EVENTS + 3, 1, frames_of(run.documents[-1:], FrameEncoder()))

        assert service.tables.read(TABLE).column("n").to_pylist() == [*range(EVENTS + 1)]


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    with small_parts(), Service.open(tmp_path) as service:
        store(service, documents(stop=False))
        assert service.merger.merge("run") == 0
        assert service.merger.merge("nobody") == 0


def test_many_segments_that_are_read_are_merged_then(unmerged):
    with small_parts(), patch("flystore.service.tables.MOST_SEGMENTS", 4), Service.open(unmerged) as service:
        before = service.tables.read(TABLE)
        service.merger.wait()
        after = service.tables.read(TABLE)

    assert after.column(0).num_chunks < before.column(0).num_chunks == EVENTS
    assert after.equals(before)


# --------------------------------------------------------------------------- cut short


@pytest.mark.parametrize("place", ["merge.before_part", "merge.before_commit", "merge.after_part"])
@pytest.mark.parametrize("part", [1, 2, 3])
def test_after_a_kill_at_any_step_every_part_is_as_it_was_or_merged(unmerged, tmp_path, place, part):
    left, met = tmp_path / "left", [0]

    def cut(name):
        if name == place:
            met[0] += 1
            if met[0] == part:  # what a killed process leaves behind is what lies there now
                shutil.copytree(unmerged, left)

    with small_parts(), Service.open(unmerged) as service:
        wanted = service.tables.read(TABLE)
        failpoints.install(cut)
        try:
            assert service.merger.merge("run") == 3
        finally:
            failpoints.install(None)

    with small_parts(), Service.open(left) as service:
        assert service.tables.read(TABLE).equals(wanted)
        assert not broken_series(service)
        service.merger.merge("run")
        assert service.tables.read(TABLE).equals(wanted)
    merged = [row for row in segments_in(left) if row[0] == SERIES]
    assert [row[1:] for row in merged] == [(0, 10, "columns:"), (10, 10, "columns:"), (20, 4, "columns:")]


def test_rows_that_changed_while_they_were_put_together_are_left_alone(unmerged):
    with small_parts(), Service.open(unmerged) as service:
        wanted = service.tables.read(TABLE)
        other = Merger(service._catalog)

        def meanwhile(name):
            if name == "merge.before_part":
                failpoints.install(None)
                other.merge("run")

        failpoints.install(meanwhile)
        try:
            assert service.merger.merge("run") == 0
        finally:
            failpoints.install(None)
        assert service.tables.read(TABLE).equals(wanted)


# --------------------------------------------------------------------------- those who read meanwhile


@pytest.mark.parametrize("taken", [1, 3, 11, 23])
def test_who_reads_while_rows_are_merged_gets_each_row_once(unmerged, taken):
    with small_parts(), patch("flystore.catalog._catalog._PAGE_ROWS", 2), Service.open(unmerged) as service:
        source = service.exports.table(TABLE)
        reading = source.read()
        found = [next(reading) for _ in range(taken)]
        service.merger.merge("run")
        found += reading

        assert pa.Table.from_batches(found).column("n").to_pylist() == [*range(EVENTS)]


# --------------------------------------------------------------------------- what is wrong, and what goes away


def spoil(directory, statement):
    with sqlite3.connect(directory / "catalog.sqlite") as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE segments SET body = zeroblob(length(body)) WHERE series LIKE 'run/primary_0' AND first_row = 10",
        "DELETE FROM segments WHERE series LIKE 'run/primary_0' AND first_row = 10",
        "UPDATE segments SET rows = 9 WHERE series LIKE 'run/primary_0' AND first_row = 10",
    ],
)
def test_a_spoiled_column_is_damage_and_its_neighbours_stay_readable(unmerged, statement):
    with small_parts(), Service.open(unmerged) as service:
        service.merger.merge("run")
        first = service.tables.read(TABLE).column_names[0]
        names = [name for name in service.tables.read(TABLE).column_names if name != first]
    spoil(unmerged, statement)

    with Service.open(unmerged) as service:
        assert service.tables.read(TABLE, names).num_rows == EVENTS
        with pytest.raises(Damaged, match="at row 10"):
            service.tables.read(TABLE, [first])
        with pytest.raises(Damaged):
            list(shown_rows(service._catalog, SERIES, pa.schema([(first, pa.string())]), EVENTS, began(service)))
        (rows,) = [
            one for one in check_store(service._catalog, ArrayStore(unmerged / "arrays"), None) if one.what == "rows"
        ]
        assert [finding.where for finding in rows.damaged] == [f"the rows of /{SERIES} from 10 on"]


def began(service):
    with service._catalog.read() as snapshot:
        return snapshot.began(SERIES)


def broken_series(service):
    with service._catalog.read() as snapshot:
        return snapshot.broken_series()


def test_nothing_stays_of_a_run_that_is_deleted(unmerged):
    with small_parts(), Service.open(unmerged) as service:
        service.merger.merge("run")
        assert len(segments_in(unmerged)) > 3
        with service._catalog.write() as tx:
            tx.delete_node(("run",), recursive=True)

    assert segments_in(unmerged) == []


def test_a_rebuild_leaves_the_same_rows(unmerged):
    with small_parts(), Service.open(unmerged) as service:
        wanted = service.tables.read(TABLE)
        service.merger.merge("run")
        assert service.rebuild().changed == []
        assert service.tables.read(TABLE).equals(wanted)


# --------------------------------------------------------------------------- sent as they lie there


@pytest.mark.parametrize("names", [None, ["n"], ["x", "n", "seq_num"], ["n", "text"], ["time"]])
@pytest.mark.parametrize("merged", [False, True])
def test_an_arrow_file_of_stored_bytes_is_the_table(unmerged, names, merged):
    with small_parts(), Service.open(unmerged) as service:
        wanted = service.tables.read(TABLE, names)
        if merged:
            service.merger.merge("run")
        body = service.tables.arrow(TABLE, names)
        sent = b"".join(body.pieces)

    assert len(sent) == body.nbytes
    found = pa.ipc.open_file(sent).read_all()
    found.validate(full=True)
    assert found.equals(wanted)
    assert found.schema.metadata == wanted.schema.metadata


def test_a_long_table_is_read_column_by_column_while_it_is_sent(tmp_path):
    rows = 220_000
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal(), y=internal())
    stream.event(x=1.0, y=2.0)
    run.stop()
    rng = np.random.default_rng(1)
    with Service.open(tmp_path) as service:
        store(service, run.documents, batch=10)
        with service._catalog.write() as tx:
            name, began_at = SERIES, tx.rows(SERIES)
            first = next(iter(tx.segments(name)))
            schema = pa.ipc.open_stream(first.body).schema
            for at in range(began_at, rows + began_at, 10_000):
                count = 10_000
                batch = pa.RecordBatch.from_pydict(
                    {
                        field.name: pa.array(
                            np.arange(at, at + count) if pa.types.is_integer(field.type) else rng.random(count),
                            field.type,
                        )
                        for field in schema
                    }
                )
                tx.append_segment(name, at, count, encode_segment(batch))
        wanted = service.tables.read(TABLE)
        assert service.merger.merge("run") == 2

        asked = []
        real = service._catalog.read
        with patch.object(service._catalog, "read", lambda: asked.append(1) or real()):
            body = service.tables.arrow(TABLE)
            opened = len(asked)
            pieces = [bytes(piece) for piece in body.pieces]

    assert opened == 1  # nothing but headers was read before the first byte
    assert len(asked) == 1 + 2 * wanted.num_columns
    assert max(map(len, pieces)) <= 3 << 20
    found = pa.ipc.open_file(b"".join(pieces)).read_all()
    assert found.column(0).num_chunks == 1
    assert found.combine_chunks().equals(wanted.combine_chunks())
