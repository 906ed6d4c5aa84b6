"""The version of a node stays while its data do, and is another one before anybody can read other data.

If these fail, clients with a cache are told that they have what in truth was overwritten.
"""

import os
import time

import h5py
import numpy as np
import pyarrow as pa
import pytest

from flystore.model.errors import NotFound
from flystore.model.frames import FrameEncoder
from flystore.model.structures import ArrayStructure, TableStructure
from flystore.service import NewNode, Service, versions
from flystore.testing.documents import RunDocuments, external, internal
from flystore.testing.faults.storing import frames_of

KEPT = ArrayStructure("<i8", (4,), ((2, 2),))
SCHEMA = pa.schema([("x", pa.int64())])
MINUTE = 60.0


@pytest.fixture
def service(tmp_path):
    with Service.open(tmp_path / "store", read=[tmp_path]) as service:
        yield service


@pytest.fixture
def later(service):
    """Stop the clock; return a function that sets it to so many seconds after that."""
    began = time.time()
    now = [began]
    for part in (service.ingest, service._prober, service.versions):
        part._clock = lambda: now[0]

    def go(seconds=MINUTE):
        now[0] = began + seconds

    go.began = began
    return go


def mark(service, *path):
    return service.versions.of(path).mark


def create(service, path, family, structure=None, mimetype=None):
    wire = {"id": path[-1], "structure_family": family, "metadata": {}, "data_sources": []}
    if structure is not None:
        source = {"structure_family": family, "structure": structure.to_wire(), "management": "writable"}
        wire["data_sources"] = [source if mimetype is None else {**source, "mimetype": mimetype}]
    service.nodes.create(path[:-1], NewNode.from_wire(wire))


def rows(*values):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table({"x": values}, SCHEMA))
    return sink.getvalue().to_pybytes()


class Sender:
    """Sends what was added to a run since it last did."""

    def __init__(self, service, run):
        self._service, self._run, self._sent, self._encoder = service, run, 0, FrameEncoder()

    def __call__(self):
        body = frames_of(self._run.documents[self._sent :], self._encoder)
        self._service.ingest.batch(self._run.uid, self._sent, 1, body)
        self._sent = len(self._run.documents)


def distinct(marks):
    assert None not in marks
    return len(set(marks)) == len(marks)


def test_each_write_to_an_array_is_another_version(service):
    create(service, ("a",), "array", KEPT)
    found = [mark(service, "a")]
    body = np.arange(4, dtype="<i8").tobytes()
    for write in (
        lambda: service.nodes.write_array(("a",), body),
        lambda: service.nodes.write_array(("a",), body),
        lambda: service.nodes.write_block(("a",), (1,), body[:16]),
        lambda: service.nodes.patch_array(("a",), body[:8], offset=(1,), shape=(1,), extend=False),
        lambda: service.nodes.patch_array(("a",), body[:16], offset=(4,), shape=(2,), extend=True),
    ):
        write()
        assert mark(service, "a") == mark(service, "a")
        found.append(mark(service, "a"))
    assert distinct(found)


def test_rows_that_are_appended_or_replaced_are_another_version_of_table_and_column(service):
    create(service, ("t",), "table", TableStructure.of(SCHEMA), "application/x-tiled-sql-table")
    found = [[mark(service, "t")], [mark(service, "t", "x")]]
    for write in (service.nodes.append_rows, lambda path, _, body: service.nodes.replace_rows(path, body)):
        for values in ((1, 2), (1, 2)):
            write(("t",), 0, rows(*values))
            found[0].append(mark(service, "t"))
            found[1].append(mark(service, "t", "x"))
    assert distinct(found[0])
    assert distinct(found[1])


def test_a_node_made_anew_has_another_version(service):
    create(service, ("a",), "array", KEPT)
    before = mark(service, "a")
    service.nodes.delete(("a",), recursive=False, external_only=False)
    create(service, ("a",), "array", KEPT)
    assert distinct([before, mark(service, "a")])


def test_events_that_arrive_are_another_version_of_what_is_made_of_them(service):
    run = RunDocuments("run")
    stream = run.stream(x=internal())
    stream.event(x=1.0)
    send = Sender(service, run)
    send()
    places = ("run",), ("run", "primary"), ("run", "primary", "internal"), ("run", "primary", "internal", "x")
    before = [mark(service, *place) for place in places]
    stream.event(x=2.0)
    send()
    after = [mark(service, *place) for place in places]
    assert all(distinct(pair) for pair in zip(before, after, strict=True))


def test_the_versions_of_nodes_differ(service):
    create(service, ("a",), "array", KEPT)
    create(service, ("b",), "array", KEPT)
    assert distinct([mark(service, "a"), mark(service, "b")])


def test_what_is_not_there_has_no_version(service):
    with pytest.raises(NotFound):
        service.versions.of(("nothing",))


def test_the_catalogue_and_what_is_in_no_run_have_no_version(service):
    create(service, ("box",), "container")
    assert mark(service) is None
    assert mark(service, "box") is None


def test_a_container_with_too_much_below_it_has_no_version(service, monkeypatch):
    run = RunDocuments("run")
    run.stream(x=internal()).event(x=1.0)
    Sender(service, run)()
    assert mark(service, "run") is not None
    monkeypatch.setattr(versions, "MOST_NODES", 1)
    assert mark(service, "run") is None


@pytest.mark.parametrize("item", [0, 1, 2])
def test_how_wide_an_item_is_comes_along(service, item):
    dtype = ["<u2", "<c16", "|S7"][item]
    create(service, ("a",), "array", ArrayStructure(dtype, (4,), ((4,),)))
    assert service.versions.of(("a",)).itemsize == np.dtype(dtype).itemsize


class Detector:
    """A run with frames in a file."""

    def __init__(self, service, directory):
        self.service, self.path = service, directory / "frames.h5"
        self.write(2)
        self.run = RunDocuments("run")
        self.stream = self.run.stream(img=external())
        self.stream.resource("img", f"file://localhost{self.path}")
        self.stream.frames("img", 0, 2)
        self.send = Sender(service, self.run)
        self.send()

    def write(self, frames):
        with h5py.File(self.path, "w") as file:
            file["entry/data/data"] = np.arange(frames * 20, dtype="<u2").reshape(frames, 4, 5)

    def stop(self):
        self.run.stop()
        self.send()

    @property
    def mark(self):
        return mark(self.service, "run", "primary", "img")

    @property
    def run_mark(self):
        return mark(self.service, "run")


@pytest.fixture
def detector(service, tmp_path):
    return Detector(service, tmp_path)


def test_files_of_an_open_run_have_no_version_however_quiet_they_are(detector, later):
    later()
    assert detector.mark is None
    assert detector.run_mark is None


def test_files_have_a_version_once_run_and_files_are_quiet(detector, later):
    detector.stop()
    assert detector.mark is None, "less than ten seconds ago"
    later()
    assert detector.mark is not None
    assert detector.mark == detector.mark
    assert detector.run_mark is not None
    later(2 * MINUTE)
    assert detector.mark is not None


def test_a_file_written_to_lately_has_no_version(detector, later):
    detector.stop()
    later()
    stamp = later.began + MINUTE - 1
    os.utime(detector.path, (stamp, stamp))
    assert detector.mark is None
    later(2 * MINUTE)
    assert detector.mark is not None


def test_files_that_hold_less_than_announced_have_no_version_because_it_may_still_come(detector, later):
    detector.stream.frames("img", 2, 4)
    detector.stop()
    later()
    assert detector.mark is None


def test_files_that_are_taken_for_what_they_are_now_have_another_version(detector, later, service):
    detector.stop()
    later()
    before = detector.mark
    detector.write(2)
    assert detector.mark == before, "whoever has the values that were observed has the right ones"
    service.accept_files(("run",))
    later(2 * MINUTE)
    service._prober.look(service.browse.entry(("run", "primary", "img")).node)
    assert distinct([before, detector.mark])


def test_documents_that_arrive_late_are_another_version(detector, later):
    detector.stop()
    later()
    before = detector.mark
    detector.stream.frames("img", 1, 2, seq_start=9, seq_stop=10)
    detector.send()
    assert detector.mark != before
