"""Part of a column: only the rows asked for are read, and they are what the whole column has there.

If these fail, whoever looks at the newest value of a long run waits for all of it to be read, or is shown another one.
"""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flystore.catalog import Snapshot
from flystore.model.slices import selected
from flystore.model.structures import SEGMENTS_MIMETYPE, DataSource, Family, Management, TableStructure
from flystore.service import NewNode, Service, columns
from flystore.service.columns import column_structure
from flystore.service.parts import rows_of
from flystore.storage import encode_segment

ROWS = 23
COLUMNS = {
    "float": pa.array([n / 4 for n in range(ROWS)]),
    "missing": pa.array([None if n % 5 == 3 else n / 4 for n in range(ROWS)], pa.float64()),
    "int": pa.array(range(ROWS), pa.int32()),
    "some": pa.array([None if n == 20 else n for n in range(ROWS)], pa.int64()),
    "truth": pa.array([n % 3 == 0 for n in range(ROWS)]),
    "maybe": pa.array([None if n == 2 else n % 3 == 0 for n in range(ROWS)]),
    "text": pa.array(["x" * (n % 7) for n in range(ROWS)]),
    "words": pa.array([None if n == 4 else "ä" * (n % 3) for n in range(ROWS)]),
    "pairs": pa.array([[n, n + 1] for n in range(ROWS)], pa.list_(pa.int64())),
}


BATCH = pa.record_batch(COLUMNS)
PIECES = [BATCH.slice(first, stop - first) for first, stop in ((0, 1), (1, 2), (2, 9), (9, 10), (10, 22), (22, ROWS))]


def make_table(service):
    structure = TableStructure.of(BATCH.schema).to_wire()
    source = DataSource(Family.TABLE, SEGMENTS_MIMETYPE, structure, {}, management=Management.WRITABLE)
    service.nodes.create((), NewNode("table", Family.TABLE, {}, (), (source,)))


def append(service, batch):
    service.nodes.append_rows(("table",), 0, encode_segment(batch))


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service.open(tmp_path_factory.mktemp("parts") / "store") as opened:
        make_table(opened)
        for piece in PIECES:
            append(opened, piece)
        yield opened


slices = st.builds(
    slice,
    st.none() | st.integers(-ROWS, ROWS),
    st.none() | st.integers(-ROWS, ROWS),
    st.none() | st.integers(-ROWS, ROWS).filter(bool),
)


@pytest.mark.parametrize("name", COLUMNS)
@settings(max_examples=20)
@given(st.integers(0, ROWS - 1) | slices)
def test_a_part_is_what_the_whole_has_there(service, name, wanted):
    whole = service.arrays.source(("table", name))
    (values,) = whole.read()
    part = service.arrays.source(("table", name), (wanted,))
    assert part.dtype == whole.dtype
    read = b"".join(service.arrays.body(("table", name), (wanted,)).pieces)
    assert read == np.array(values[wanted], values.dtype).tobytes()


def test_only_segments_that_hold_the_rows_are_read(service, monkeypatch):
    read = []

    def noting(self, *arguments, real=Snapshot.segments, **options):
        for segment in real(self, *arguments, **options):
            read.append((segment.first_row, segment.rows))
            yield segment

    monkeypatch.setattr(Snapshot, "segments", noting)
    service.arrays.read(("table", "float"), (slice(8, 10),))
    assert read == [(2, 7), (9, 1)]
    read.clear()
    service.arrays.read(("table", "missing"), (22,))
    assert read == [(22, 1)]


def structures(service):
    """Return what columns are shown to be, and what they are when all their values are looked at."""
    with service.browse.moment() as moment:
        table = moment.node(("table",))
        return [
            (service.browse.entry(("table", name), moment).structure, column_structure(moment, table, name).to_wire())
            for name in COLUMNS
        ]


@settings(max_examples=20)
@given(st.lists(st.sampled_from([*PIECES, None]), max_size=7))
def test_a_growing_column_is_what_all_its_values_make_it_at_every_moment(tmp_path_factory, pieces):
    with Service.open(tmp_path_factory.mktemp("growing") / "store") as service:
        make_table(service)
        for piece in pieces:
            if piece is None:  # replaced by other rows, of which there are as many as there may have been
                service.nodes.replace_rows(("table",), encode_segment(PIECES[2]), None)
            else:
                append(service, piece)
            assert all(shown == whole for shown, whole in structures(service))


def test_what_was_looked_at_is_not_looked_at_again(tmp_path, monkeypatch):
    looked = []

    def noting(column, real=columns.column_to_numpy):
        looked.append(len(column))
        return real(column)

    with Service.open(tmp_path / "store") as service:
        make_table(service)
        monkeypatch.setattr(columns, "column_to_numpy", noting)
        for piece in PIECES[:4]:
            append(service, piece)
            service.browse.entry(("table", "text"))
            service.browse.entry(("table", "int"))
            service.browse.entry(("table", "float"))
    assert looked == [1, 1, 1, 1, 7, 7, 1, 1]


@given(st.data())
def test_rows_of_an_item_pick_the_same_from_fewer(data):
    length = data.draw(st.integers(1, 40))
    item = data.draw(st.integers(0, length - 1) | slices.filter(lambda part: len(selected(part, length))))
    rows, again = rows_of(item, length)
    every = np.arange(length)
    assert np.array_equal(every[rows.start : rows.stop][again], every[item])
    assert rows.step == 1
    picked = np.atleast_1d(every[item])
    assert (rows.start, rows.stop) == (picked.min(), picked.max() + 1)
