"""``run.validate()`` of bluesky-tiled-plugins: what it finds, what it corrects, and what it must not touch.

If these fail, somebody who validates a run is told that files are well which are not, or has a structure "corrected"
that followed from the run's own documents.
"""

import json
import warnings

import h5py
import httpx
import numpy as np
import pytest

import flystore.client
from flystore import RunWriter
from flystore.testing.beamline import Camera, Defects, Panda, flyscan, run_engine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

UID = "11111111-2222-3333-4444-555555555555"
IMAGES = np.arange(72, dtype="<u2").reshape(6, 3, 4)


def ask(server, method, path, body=None, **parameters):
    headers = {"Authorization": f"Apikey {server.key}"}
    content = None if body is None else json.dumps(body)
    return httpx.request(
        method, f"{server.url}/{path}", params=parameters, headers=headers, content=content, timeout=100
    )


def make(server, route, path, key, family, metadata=None, source=None, specs=()):
    body = {
        "id": key,
        "structure_family": family,
        "metadata": metadata or {},
        "specs": [{"name": name, "version": version} for name, version in specs],
        "data_sources": [] if source is None else [source],
    }
    answer = ask(server, "POST", f"api/v1/{route}/{path}", body)
    assert answer.status_code == 200, answer.text


def source_of(uri, shape, kind="u", itemsize=2, dims=None):
    return {
        "structure_family": "array",
        "structure": {
            "data_type": {"endianness": "little", "kind": kind, "itemsize": itemsize, "dt_units": None},
            "chunks": [[1] * shape[0] or [0], *([n] for n in shape[1:])],
            "shape": list(shape),
            "dims": dims,
            "resizable": False,
        },
        "mimetype": "application/x-hdf5",
        "parameters": {"dataset": "data"},
        "properties": {},
        "assets": [{"data_uri": uri, "is_directory": False, "parameter": "data_uris", "num": 0}],
        "management": "external",
    }


@pytest.fixture
def run(server, data):
    """Make a run as stock writers do, of one array; return a function that takes what its writer announced."""
    path = data / "images.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=IMAGES, chunks=(1, 3, 4))

    def made(shape=IMAGES.shape, *, at=server, stopped=True, uri=f"file://localhost{path}", metadata=None, **dtype):
        start = {"start": {"uid": UID, "time": 1.7e9, "scan_id": 1}}
        make(at, "metadata", "", UID, "container", start, specs=[("BlueskyRun", "3.0")])
        stream = [("BlueskyEventStream", "3.0"), ("composite", None)]
        make(at, "metadata", UID, "primary", "container", specs=stream)
        make(at, "register", f"{UID}/primary", "img", "array", metadata, source_of(uri, shape, **dtype))
        if stopped:
            stop = [{"op": "add", "path": "/stop", "value": {"uid": "s", "exit_status": "success"}}]
            body = {"content-type": "application/json-patch+json", "metadata": stop, "specs": None}
            assert ask(at, "PATCH", f"api/v1/metadata/{UID}", body).status_code == 200

    return made


def validated(server, body=None, path=UID, **parameters):
    answer = ask(server, "POST", f"custom/validate/{path}", body or {}, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def shape_at(server, path=f"{UID}/primary/img"):
    return ask(server, "GET", f"api/v1/metadata/{path}").json()["data"]["attributes"]["structure"]["shape"]


def test_a_run_whose_files_are_what_was_announced_is_valid_and_stays_as_it_is(server, run):
    run()
    assert validated(server, fix="true", read="true") == {"valid": True, "notes": []}
    assert shape_at(server) == [6, 3, 4]


def test_a_client_has_wrong_structures_corrected_and_notes_written(server, run):
    run((4, 3, 4))
    with server.tiled() as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert client[UID].validate() is True
        notes = client[UID].metadata["notes"]
        assert "Structure validation of 'primary/img': Fixed shape mismatch: (4, 3, 4) -> (6, 3, 4)" in notes
        np.testing.assert_array_equal(client[UID]["primary"].base["img"].read(), IMAGES)
    assert shape_at(server) == [6, 3, 4]
    assert server.service.rebuild().changed == []
    assert shape_at(server) == [6, 3, 4]
    assert validated(server, fix="true", read="true") == {"valid": True, "notes": []}


@pytest.mark.parametrize(
    ("announced", "dtype", "metadata", "right"),
    [
        ((2, 3, 4), {}, {"frame_per_point": 2}, [3, 2, 3, 4]),
        ((9, 3, 4), {}, {}, [6, 3, 4]),
        ((2, 5, 5), {}, {}, [6, 3, 4]),
        ((6, 3, 4), {"kind": "i", "itemsize": 8}, {}, [6, 3, 4]),
        ((3, 2, 3, 4), {}, {}, [3, 2, 3, 4]),
        ((6, 1, 3, 4), {}, {"frame_per_point": 1}, [6, 1, 3, 4]),
        ((9, 1, 3, 1, 4), {}, {}, [6, 3, 4]),
        ((6, 12), {}, {}, [6, 12]),
    ],
)
def test_what_the_files_hold_is_what_is_read_afterwards(server, run, announced, dtype, metadata, right):
    run(announced, metadata=metadata, **dtype)
    assert validated(server, fix="true", read="true")["valid"]
    assert shape_at(server) == right
    answer = ask(server, "GET", f"api/v1/array/full/{UID}/primary/img", format="application/octet-stream")
    assert answer.content == IMAGES.tobytes()


@pytest.mark.parametrize(
    ("announced", "right"), [(["y", "x"], ["time", "y", "x"]), (["time", "time", "y", "x"], ["time", "time", "y"])]
)
def test_a_run_is_kept_and_read_whatever_its_writer_calls_the_axes_and_validating_corrects_them(
    server, run, announced, right
):
    run(dims=announced)
    with server.tiled() as client:
        image = client[UID]["primary"]["img"]
        assert image.dims == tuple(announced)
        np.testing.assert_array_equal(image.read(), IMAGES)
    with flystore.client.from_uri(server.url, api_key=server.key) as client:
        assert client[UID]["primary"]["img"].dims is None
    answer = validated(server, fix=True)
    assert answer["valid"]
    assert any("dimension names" in note for note in answer["notes"])
    with server.tiled() as client:
        assert client[UID]["primary"]["img"].dims == tuple(right)


def test_axes_of_length_one_that_the_files_have_not_are_dropped_as_with_stock_tiled(server, stock, run):
    found = []
    for one in (server, stock):
        run((6, 1, 3, 4), at=one, dims=["time", "dim_0", "dim_1", "dim_2"])
        with one.tiled() as client, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert client[UID].validate() is True
            image = client[UID]["primary"].base["img"]
            np.testing.assert_array_equal(image.read(), IMAGES)
            shape_note = next(note for note in client[UID].metadata["notes"] if "shape mismatch: (" in note)
            found.append((image.shape, image.chunks, image.dims, shape_note.partition("Fixed ")[2]))
    assert found[0] == found[1]
    assert found[0][0] == IMAGES.shape
    assert validated(server, fix="true", read="true") == {"valid": True, "notes": []}


def test_without_fix_nothing_is_changed(server, run):
    run((4, 3, 4))
    found = validated(server)
    assert found["valid"] is False
    assert "shape mismatch" in found["notes"][0]
    assert ask(server, "GET", f"custom/validate/{UID}").json() == found
    assert ask(server, "GET", f"custom/validate/{UID}", fix="true").status_code == 405
    assert shape_at(server) == [4, 3, 4]


def test_a_run_that_is_still_written_is_not_corrected(server, run):
    run((4, 3, 4), stopped=False)
    assert validated(server, fix="true")["valid"] is False
    assert shape_at(server) == [4, 3, 4]


def test_a_missing_file_is_no_valid_run_unless_that_is_to_be_ignored(server, run, data):
    run(uri=f"file://localhost{data}/never.h5")
    found = validated(server, fix="true", read="true")
    assert found["valid"] is False
    assert "does not exist" in found["notes"][0]
    found = validated(server, {"ignore_errors": ["does not ex.st"]}, fix="true", read="true")
    assert found["valid"] is True
    assert found["notes"][0].startswith("Ignored error")


def test_patterns_that_could_take_for_ever_are_refused(server, run):
    run()
    for pattern in ("(a+)+$", "a*b*c*d*", "x" * 201, "("):
        answer = ask(server, "POST", f"custom/validate/{UID}", {"ignore_errors": [pattern]})
        assert 400 <= answer.status_code < 500, pattern
    for body in ({"ignore_errors": "x"}, {"ignore_errors": [1]}, []):
        assert ask(server, "POST", f"custom/validate/{UID}", body).status_code == 422
    assert validated(server, {"ignore_errors": None})["valid"] is True


def test_what_is_no_run_is_refused(server, run):
    run()
    assert ask(server, "POST", f"custom/validate/{UID}/primary", {}).status_code == 400
    assert ask(server, "POST", "custom/validate/nowhere", {}).status_code == 404
    assert httpx.post(f"{server.url}/custom/validate/{UID}", json={}, timeout=100).status_code == 401


def fly(server, tmp_path, defects=None):
    """Return the uid of a run with a detector's file."""
    camera = Camera(server.data, frames_per_event=1, defects=defects or Defects())
    with run_engine() as engine, RunWriter(server.url, api_key=server.key, journal=tmp_path / "journal") as writer:
        engine.subscribe(writer)
        engine(flyscan(Panda(server.data), [camera], 6, burst=1))
        writer.flush(timeout=100)
    (row,) = ask(server, "GET", "api/v1/search/").json()["data"]
    return row["id"]


def test_a_run_that_came_as_documents_is_judged_and_never_changed(server, tmp_path):
    uid = fly(server, tmp_path)
    before = ask(server, "GET", f"api/v1/metadata/{uid}").json()
    assert validated(server, path=uid, fix="true", read="true") == {"valid": True, "notes": []}
    with server.tiled() as client:
        assert client[uid].validate() is True
    assert ask(server, "GET", f"api/v1/metadata/{uid}").json() == before


def test_a_run_that_came_as_documents_and_lost_its_files_is_not_valid(server, tmp_path):
    uid = fly(server, tmp_path)
    for path in server.data.rglob("*.h5"):
        path.unlink()
    found = validated(server, path=uid, fix="true")
    assert found["valid"] is False
    assert "missing" in found["notes"][0]
