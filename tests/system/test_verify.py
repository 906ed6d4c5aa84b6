"""Backup, restore and verify of a store that holds all kinds of runs, as an operator does it.

If these fail, ``flystore verify`` cries wolf at a store that is whole, or a restored store does not have what the
backup was made of.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter

from flystore import RunWriter, open_store
from flystore.service.verifying import verify
from flystore.testing.streams import put_in_place, recorded_cases

STREAMS = Path(__file__).parents[1] / "data" / "streams"
GOLDEN = Path(__file__).parents[1] / "golden"

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


@pytest.fixture
def filled(server, data, tmp_path):
    """A service that holds every recorded stream, some written by the stock writer, and what clients of Tiled write."""
    with RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        for case in recorded_cases(STREAMS):
            for name, doc in put_in_place(STREAMS, case, data).documents:
                writer(name, doc)
        writer.flush(timeout=100)
    with server.tiled() as client:
        for case in ("flyscan_panda", "monitor_baseline", "reconfigure"):
            home = data / "again"
            home.mkdir(exist_ok=True)
            recorded = put_in_place(STREAMS, case, home)
            starts = {doc["uid"] for name, doc in recorded.documents if name == "start"}
            stock = TiledWriter(client)
            for name, doc in recorded.documents:
                stock(name, {key: f"again-{v}" if isinstance(v, str) and v in starts else v for key, v in doc.items()})
        box = client.create_container("box", metadata={"colour": "blue"})
        array = box.write_array(np.arange(12.0).reshape(3, 4), key="array")
        array.patch(np.ones((2, 4)), offset=(3,), extend=True)
        table = box.write_table({"x": np.arange(3), "name": ["a", "b", "c"]}, key="table")
        table.update_metadata({"colour": "red"})
        box.write_array(np.zeros(3), key="gone")
        box.delete_contents("gone", external_only=False)
    return server


def flystore(*arguments):
    """Run the command; return status, and what it printed."""
    command = [sys.executable, "-m", "flystore.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_store_of_all_kinds_of_runs_is_whole_while_it_is_served(filled, data):
    found = verify(filled.directory, deep=True, read=[data])
    wrong = [finding for check in found.checks if check.what != "files" for finding in check.damaged]
    assert wrong == []
    counts = {check.what: check.checked for check in found.checks}
    assert all(counts[what] > 3 for what in ("log", "rows", "index", "trees", "arrays")), counts


def test_a_backup_of_it_is_restored_to_the_same(filled, data, tmp_path):
    status, said = flystore("backup", filled.directory, tmp_path / "backup")
    assert status == 0, said
    assert "runs up to log position" in said
    status, said = flystore("verify", tmp_path / "backup", "--deep", "--read", data)
    assert "backup: " in said
    assert " 0 damaged" in said
    status, said = flystore("restore", tmp_path / "backup", tmp_path / "restored")
    assert status == 0, said
    with open_store(filled.directory, read=[data]) as one, open_store(tmp_path / "restored", read=[data]) as other:
        assert list(one) == list(other)
        for key in one:
            if key != "box":
                assert list(one[key].documents()) == list(other[key].documents())
        assert (one["box/array"].read() == other["box/array"].read()).all()


def test_restore_leaves_a_directory_alone_that_is_not_empty(filled, tmp_path):
    assert flystore("backup", filled.directory, tmp_path / "backup")[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    status, said = flystore("restore", tmp_path / "backup", tmp_path / "mine")
    assert status == 2
    assert "is not empty" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]
    status, said = flystore("backup", filled.directory, tmp_path / "backup")
    assert status == 2
    assert "is there already" in said
    status, said = flystore("backup", filled.directory, filled.directory / "backup")
    assert status == 2
    assert "inside the store" in said


def test_verify_names_what_is_damaged_and_its_status_says_so(filled, tmp_path):
    backup = tmp_path / "backup"
    for step in (("backup", filled.directory, backup), ("restore", backup, tmp_path / "copy")):
        status, said = flystore(*step)
        assert status == 0, said
    chunk = next(path for path in (tmp_path / "copy" / "arrays").rglob("c/**/*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    status, said = flystore("verify", tmp_path / "copy")
    assert status == 3
    assert "damaged: the array /box/array: the chunk c/" in said
    assert "fails its checksum" in said
    status, said = flystore("verify", tmp_path / "copy", "--json")
    assert status == 3
    found = json.loads(said)
    assert found["damaged"] == 1
    assert [check["what"] for check in found["checks"]] == ["pages", "log", "rows", "arrays", "index", "files"]


def test_there_must_be_something_to_verify(tmp_path):
    status, said = flystore("verify", tmp_path)
    assert status == 2
    assert "neither a store nor a backup" in said


def test_a_golden_store_is_backed_up_verified_and_says_what_it_cannot_know(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(GOLDEN / "store-1" / "catalog.sqlite", store)
    before = (store / "catalog.sqlite").read_bytes()
    status, said = flystore("backup", store, tmp_path / "backup")
    assert status == 0, said
    status, said = flystore("verify", tmp_path / "backup", "--deep")
    assert status == 0, said
    assert "stored before rows had checksums" in said
    assert (store / "catalog.sqlite").read_bytes() == before
    assert flystore("restore", tmp_path / "backup", tmp_path / "restored")[0] == 0
    assert flystore("rebuild", tmp_path / "restored")[0] == 0
    status, said = flystore("verify", tmp_path / "restored")
    assert "unverified: the rows of /notes/points" in said
    assert " and 9 more" not in said


def test_files_with_checksums_are_read_whole_by_a_deep_look(server, data, tmp_path):
    file = data / "summed.h5"
    with h5py.File(file, "w") as made:
        made.create_dataset("image", data=np.arange(64.0).reshape(4, 16), chunks=(1, 16), fletcher32=True)
    with server.tiled() as client:
        from tiled.structures.array import ArrayStructure
        from tiled.structures.core import StructureFamily
        from tiled.structures.data_source import Asset, DataSource, Management

        source = DataSource(
            structure_family=StructureFamily.array,
            structure=ArrayStructure.from_array(np.zeros((4, 16))),
            mimetype="application/x-hdf5",
            parameters={"dataset": "image"},
            management=Management.external,
            assets=[Asset(data_uri=f"file://localhost{file}", is_directory=False, parameter="data_uris", num=0)],
        )
        client.new(StructureFamily.array, [source], key="summed").read()
    checked = {check.what: check for check in verify(server.directory, deep=True, read=[data]).checks}["files"]
    assert (checked.checked, checked.damaged, checked.unverified) == (1, [], [])
    content = bytearray(file.read_bytes())
    place = bytes(content).index(np.arange(16.0, 32.0).tobytes())
    stat = file.stat()
    content[place + 9] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    checked = {check.what: check for check in verify(server.directory, deep=True, read=[data]).checks}["files"]
    assert len(checked.damaged) == 1
    checked = {check.what: check for check in verify(server.directory, read=[data]).checks}["files"]
    assert [finding.why for finding in checked.unverified] == [
        "size and time are those observed; the content is checked with --deep"
    ]
