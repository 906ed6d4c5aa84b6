"""A large table body is stored as several segments, and what it says about repeats stays the same.

If these fail, a reader of a few rows takes hundreds of megabytes out of the catalogue, or a repeated append goes
unnoticed.
"""

import pyarrow as pa
import pytest

from flystore.model.structures import SEGMENTS_MIMETYPE, DataSource, Family, Management, TableStructure
from flystore.service import NewNode, Service
from flystore.service import writing_rows as room
from flystore.storage import encode_segment, encode_segments


@pytest.fixture
def service(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "encode_segments", lambda batch: encode_segments(batch, 4000))
    with Service.open(tmp_path / "store") as opened:
        yield opened


def rows(start, stop):
    return pa.record_batch({"x": pa.array(range(start, stop), pa.int64())})


@pytest.fixture
def table(service):
    structure = TableStructure.of(rows(0, 0).schema).to_wire()
    source = DataSource(Family.TABLE, SEGMENTS_MIMETYPE, structure, {}, management=Management.WRITABLE)
    service.nodes.create((), NewNode("table", Family.TABLE, {}, (), (source,)))
    return ("table",)


def stored(service):
    with service._catalog.read() as snapshot:
        return [(found.first_row, found.rows) for found in snapshot.segments("table")]


def test_a_large_body_is_stored_in_pieces_and_read_whole(service, table):
    service.nodes.append_rows(table, 0, encode_segment(rows(0, 3000)))
    pieces = stored(service)
    assert len(pieces) > 3
    assert sum(n for _, n in pieces) == 3000
    assert service.tables.read(table)["x"].to_pylist() == list(range(3000))


def test_a_repeat_of_several_segments_is_noticed_and_nothing_else_is(service, table):
    first = encode_segment(rows(0, 3000))
    assert service.nodes.append_rows(table, 0, first) is None
    assert service.nodes.append_rows(table, 0, first) == (0, 3000)
    assert service.nodes.append_rows(table, 0, encode_segment(rows(1, 3000))) is None
    other = pa.record_batch({"x": pa.array([-1, *range(1, 3000)], pa.int64())})
    service.nodes.append_rows(table, 0, first)
    assert service.nodes.append_rows(table, 0, encode_segment(other)) is None
    assert service.tables.read(table).num_rows == 3000 + 3000 + 2999 + 3000 + 3000
