"""An export reads page by page with nothing held open, and is still the table of one moment.

If these fail, an export mixes the rows of before with those of after, stops in the middle without a word, or keeps the
database from tidying up while somebody downloads.
"""

import json

import numpy as np
import pyarrow as pa
import pytest

from flystore.model.errors import Damaged, NotFound, NotReady
from flystore.model.frames import FrameEncoder, frame
from flystore.model.structures import ArrayStructure, TableStructure
from flystore.service import Service
from flystore.service.arrays import PIECE_BYTES
from flystore.service.reconstruction import _Seen
from flystore.service.requests import NewNode
from flystore.testing.documents import RunDocuments, internal


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


def create(service, key, family, structure, specs=(), metadata=None):
    source = {"structure_family": family, "structure": structure.to_wire(), "management": "writable"}
    if family == "table":
        source["mimetype"] = "application/x-tiled-sql-table"  # one that rows are appended to
    wire = {"id": key, "structure_family": family, "metadata": metadata or {}, "data_sources": [source]}
    service.nodes.create((), NewNode.from_wire({**wire, "specs": list(specs)}))


def body(*values):
    table = pa.table({"x": pa.array(values, pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def table(service):
    create(service, "t", "table", TableStructure.of(pa.schema([("x", pa.int64())])))
    for first in range(0, 600, 2):
        service.nodes.append_rows(("t",), 0, body(first, first + 1))
    return service


def values(batches):
    return [value for batch in batches for value in batch.column("x").to_pylist()]


def test_all_pages_are_there_in_order(table):
    assert values(table.exports.table(("t",)).read()) == list(range(600))


def test_rows_appended_meanwhile_are_not_in_it(table):
    source = table.exports.table(("t",))
    reading = source.read()
    first = next(reading)
    table.nodes.append_rows(("t",), 0, body(600))
    assert source.rows == 600
    assert values([first, *reading]) == list(range(600))


def test_rows_replaced_meanwhile_are_an_error_and_no_mixture(table):
    reading = table.exports.table(("t",)).read()
    next(reading)
    table.nodes.replace_rows(("t",), body(*range(1000, 1600)))
    with pytest.raises(NotReady, match="replaced"):
        list(reading)


def test_a_deleted_table_is_an_error_and_no_shorter_table(table):
    reading = table.exports.table(("t",)).read()
    next(reading)
    table.nodes.delete(("t",), recursive=True, external_only=False)
    with pytest.raises(NotReady):
        list(reading)


def test_writing_goes_on_while_an_export_is_half_way(table):
    reading = table.exports.table(("t",)).read()
    next(reading)
    for value in range(600, 610):
        table.nodes.append_rows(("t",), 0, body(value))
    assert len(values(table.exports.table(("t",)).read())) == 610
    reading.close()


def test_an_unknown_column_or_partition_is_the_callers_fault(table):
    with pytest.raises(NotFound, match="no such column"):
        table.exports.table(("t",), ["y"])
    with pytest.raises(ValueError, match="Partition out of range"):
        table.exports.table(("t",), partition=1)


def test_a_large_array_comes_in_pieces_of_whole_chunks(service):
    rows = 5 * PIECE_BYTES // (2 * 8 * 1024)
    kept = np.arange(rows * 1024, dtype="<f8").reshape(rows, 1024)
    chunks = ((100,) * (rows // 100) + (() if rows % 100 == 0 else (rows % 100,)), (1024,))
    create(service, "a", "array", ArrayStructure("<f8", kept.shape, chunks))
    service.nodes.write_array(("a",), kept.tobytes())
    source = service.exports.array(("a",), (slice(1, None), slice(0, 1000)))
    pieces = list(source.read())
    assert len(pieces) > 1
    assert max(piece.nbytes for piece in pieces) <= PIECE_BYTES
    assert all(len(piece) % 100 == 0 for piece in pieces[:-1])
    np.testing.assert_array_equal(np.concatenate(pieces), kept[1:, :1000])
    backwards = service.exports.array(("a",), (slice(None, None, -1),))
    np.testing.assert_array_equal(np.concatenate(list(backwards.read())), kept[::-1])


def documents_of(events):
    run = RunDocuments("u")
    stream = run.stream(x=internal())
    for number in range(events):
        stream.event(x=float(number))
    run.stop()
    return run.documents


def test_a_damaged_log_is_an_error_and_no_shorter_run(service):
    documents = documents_of(4)
    encoder = FrameEncoder()
    packed = b"".join(frame(payload) for name, doc in documents for payload in encoder.encode(name, doc))
    service.ingest.batch("u", 0, 1, packed)
    read = list(service.documents.read(("u",)).documents)
    assert json.loads(json.dumps(read)) == json.loads(json.dumps(list(documents)))
    with service._catalog.write() as tx:
        tx._session.driver.execute("UPDATE log SET count = count - 1 WHERE run_uid = 'u'")
    with pytest.raises(Damaged):
        list(service.documents.read(("u",)).documents)


def test_repeated_numbers_of_events_are_counted_and_common_ones_take_no_memory():
    seen = _Seen()
    for number in range(1, 100_001):
        assert seen.count(number) == 0
    assert not seen._others
    assert [seen.count(7), seen.count(7), seen.count(100_001), seen.count(0), seen.count(0), seen.count(None)] == [
        1,
        2,
        0,
        0,
        1,
        0,
    ]
