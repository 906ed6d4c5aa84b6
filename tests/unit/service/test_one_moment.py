"""One answer shows one state of the catalogue, whatever is written while it is put together.

If these fail, a reader is given the structure of before with the rows of after, or an empty table in place of a
deleted one.
"""

import numpy as np
import pyarrow as pa
import pytest

from flystore.model.errors import NotFound, NotReady
from flystore.model.frames import FrameEncoder
from flystore.model.structures import SEGMENTS_MIMETYPE, ArrayStructure, TableStructure
from flystore.service import Service
from flystore.service.requests import NewNode
from flystore.testing.documents import RunDocuments, external, internal
from flystore.testing.faults.storing import frames_of

KEPT = ArrayStructure.of(np.dtype("<i8"), (4,))


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store") as opened:
        yield opened


def create(service, family, structure, mimetype=None):
    source = {
        "structure_family": family,
        "structure": structure.to_wire(),
        "management": "writable",
        "mimetype": mimetype,
    }
    wire = {"id": "a", "structure_family": family, "metadata": {}, "data_sources": [source]}
    service.nodes.create((), NewNode.from_wire(wire))


def rows(*values):
    table = pa.table({"x": pa.array(values, pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def table(service):
    create(service, "table", TableStructure.of(pa.schema([pa.field("x", pa.int64())])), SEGMENTS_MIMETYPE)
    service.nodes.replace_rows(("a",), rows(1, 2, 3))
    return service


def in_between(service, monkeypatch, act, after=1):
    """Have `act` done once, after the entry was looked up so many times."""
    real, left = service.browse._entry, [after]

    def entry(*args):
        found = real(*args)
        left[0] -= 1
        if left[0] == 0:
            act()
        return found

    monkeypatch.setattr(service.browse, "_entry", entry)


def test_a_table_that_is_replaced_meanwhile_is_read_as_it_was(table, monkeypatch):
    in_between(table, monkeypatch, lambda: table.nodes.replace_rows(("a",), rows(9)))
    assert table.tables.read(("a",))["x"].to_pylist() == [1, 2, 3]
    assert table.tables.read(("a",))["x"].to_pylist() == [9]


def test_a_table_that_is_deleted_meanwhile_is_not_read_as_empty(table, monkeypatch):
    in_between(table, monkeypatch, lambda: table.nodes.delete(("a",), recursive=False, external_only=False))
    assert table.tables.read(("a",))["x"].to_pylist() == [1, 2, 3]
    with pytest.raises(NotFound):
        table.tables.read(("a",))


def test_a_table_in_files_is_read_as_of_before_or_after_and_a_deleted_one_is_gone_and_not_damaged(service, monkeypatch):
    create(service, "table", TableStructure.of(pa.schema([pa.field("x", pa.int64())])))
    service.nodes.replace_rows(("a",), rows(1, 2, 3))
    in_between(service, monkeypatch, lambda: service.nodes.replace_rows(("a",), rows(9)))
    assert service.tables.read(("a",))["x"].to_pylist() in ([1, 2, 3], [9])
    in_between(service, monkeypatch, lambda: service.nodes.delete(("a",), recursive=False, external_only=False))
    with pytest.raises(NotReady, match="replaced"):
        service.tables.read(("a",))
    with pytest.raises(NotFound):
        service.tables.read(("a",))


def test_a_column_that_grows_meanwhile_is_read_as_far_as_it_was_known(table, monkeypatch):
    in_between(table, monkeypatch, lambda: table.nodes.append_rows(("a",), 0, rows(4, 5)))
    assert np.frombuffer(table.arrays.read(("a", "x")), "<i8").tolist() == [1, 2, 3]
    assert np.frombuffer(table.arrays.read(("a", "x"), (slice(None, None, -1),)), "<i8").tolist() == [5, 4, 3, 2, 1]


def test_a_column_that_shrinks_or_goes_meanwhile_is_never_short(table, monkeypatch):
    in_between(table, monkeypatch, lambda: table.nodes.replace_rows(("a",), rows(9)))
    with pytest.raises(NotReady, match="replaced"):
        table.arrays.read(("a", "x"))
    in_between(table, monkeypatch, lambda: table.nodes.delete(("a",), recursive=False, external_only=False))
    with pytest.raises(NotFound):
        table.arrays.read(("a", "x"))


def test_a_kept_array_that_is_deleted_meanwhile_is_gone_and_not_damaged(service, monkeypatch):
    create(service, "array", KEPT)
    service.nodes.write_array(("a",), np.arange(4).tobytes())
    in_between(service, monkeypatch, lambda: service.nodes.delete(("a",), recursive=False, external_only=False))
    with pytest.raises(NotFound):
        service.arrays.read(("a",))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_the_rows_of_an_array_and_of_its_stream_are_of_one_moment(service, monkeypatch, after):
    run = RunDocuments("run")
    stream = run.stream("primary", x=internal(), image=external())
    for number in range(4):
        stream.event(x=1.0)
        stream.frames("image", number, number + 1)
    run.stop()
    cut = len(run.documents) - 5
    encoder = FrameEncoder()
    before, rest = frames_of(run.documents[:cut], encoder), frames_of(run.documents[cut:], encoder)
    service.ingest.batch("run", 0, 1, before)
    in_between(service, monkeypatch, lambda: service.ingest.batch("run", cut, 1, rest), after)
    for _ in range(2):
        found = service.arrays.frame_table(("run", "primary", "image"))
        assert found["rows"] == sum(count for _, _, count in found["stream"])
