"""Arrays whose chunks in the file are Blosc frames go out as these frames, and come back as the values of the file.

If these fail, a gigabyte of compressed frames has other values than h5py reads, a damaged chunk is taken for whole or
goes unnamed, or clients that never asked for frames are given some.
"""

import os

import numpy as np
import pytest
import urllib3
from tiled.client.decoders import SUPPORTED_DECODERS

from flystore import from_uri
from flystore.client import _array, _frames
from flystore.http import Access, build_app, routes_export, server_settings
from flystore.model.errors import FlystoreError, NotReady, Unreadable
from flystore.model.frames import FrameEncoder
from flystore.service import Limits, Service
from flystore.storage import FileRuns
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of
from flystore.testing.serving import serving

h5py = pytest.importorskip("h5py")
hdf5plugin = pytest.importorskip("hdf5plugin")

KEY = "k" * 32
FRAMES = 80
RANDOM = np.random.default_rng(3)
VALUES = RANDOM.poisson(9, (FRAMES, 256, 512)).astype("<u2")
"""20 MiB, which become about seven."""

LZ4 = {"chunks": (1, 256, 512), **hdf5plugin.Blosc(cname="lz4")}
ENCODED = {
    "lz4": LZ4,
    "bits": {"chunks": (2, 256, 512), **hdf5plugin.Blosc(cname="zstd", shuffle=2)},
    "lz": {"chunks": (4, 256, 512), **hdf5plugin.Blosc(cname="blosclz")},
    "big": {**LZ4, "dtype": ">u2"},
}
"""Datasets whose chunks are frames of whole rows; the others have to be decoded by the service."""

OTHERS = {
    "uneven": {**LZ4, "chunks": (3, 256, 512)},
    "tiles": {**LZ4, "chunks": (1, 128, 512)},
    "gzip": {"chunks": (1, 256, 512), "compression": "gzip", "compression_opts": 1},
    "twice": {**LZ4, "fletcher32": True},
    "none": {"chunks": (1, 256, 512)},
    "level 0": {**LZ4, **hdf5plugin.Blosc(cname="lz4", clevel=0)},
    "skipped": LZ4,
    "headless": LZ4,
}


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    home = tmp_path_factory.mktemp("frames")
    (home / "data").mkdir()
    name = home / "data" / "x.h5"
    with h5py.File(name, "w") as file:
        for key, how in {**ENCODED, **OTHERS, "damaged": LZ4}.items():
            file.create_dataset(key, **{"data": VALUES, **how})
        file["skipped"].id.write_direct_chunk((7, 0, 0), VALUES[7].tobytes(), filter_mask=1)
        places = {key: file[key].id.get_chunk_info(41) for key in ("headless", "damaged")}
    with open(name, "r+b") as opened:
        opened.seek(places["headless"].byte_offset + 4)
        opened.write(b"\1\0\0\0")  # one byte is announced
        opened.seek(places["damaged"].byte_offset + 16)
        opened.write(b"\xff" * (places["damaged"].size - 16))
    os.utime(name, (1_500_000_000, 1_500_000_000))
    with Service.open(home / "store", read=[home / "data"]) as service:
        run = RunDocuments("run")
        keys = [*ENCODED, *OTHERS, "damaged"]
        announced = {key: external([256, 512], ">u2" if key == "big" else "<u2") for key in keys}
        stream = run.stream("primary", **announced)
        for key in keys:
            stream.resource(key, f"file://localhost{name}", dataset=key, chunk_shape=[1])
            stream.frames(key, 0, FRAMES, 1, FRAMES + 1)
        run.stop()
        service.ingest.batch(run.uid, 0, 1, frames_of(run.documents, FrameEncoder()))
        app = build_app(service, Access.of(KEY))
        with serving(app, settings=server_settings(Limits())) as url:
            yield url, name


@pytest.fixture
def stream(held):
    with from_uri(held[0], api_key=KEY) as client:
        yield client["run"]["primary"]


@pytest.fixture
def unpacked(monkeypatch):
    """Buffers that were filled from frames."""
    found = []

    class Counted(_frames.BloscFrames):
        def __init__(self, into):
            found.append(len(into))
            super().__init__(into)

    monkeypatch.setattr(_array, "BloscFrames", Counted)
    monkeypatch.setattr(_array, "_LONG_BYTES", 1 << 20)
    return found


@pytest.fixture
def read_little_last(monkeypatch):
    """So that most of these few megabytes go from the file to the socket."""
    monkeypatch.setattr(routes_export, "bytes_to_read_last", lambda: 1 << 20)
    monkeypatch.setattr("flystore.service.arrays.SENT_BYTES", 1 << 20)


def fetch(held, key, codings, cut=""):
    with urllib3.PoolManager() as pool:
        headers = {"Authorization": f"Apikey {KEY}", "Accept": "application/octet-stream", "Accept-Encoding": codings}
        url = f"{held[0]}/api/v1/array/full/run/primary/{key}{cut}"
        return pool.request("GET", url, headers=headers, decode_content=False, retries=False)


CUTS = (np.s_[...], np.s_[4:72], np.s_[:40], np.s_[::-1], np.s_[8:], np.s_[3:79], np.s_[::3, 5:9], 17)


@pytest.mark.parametrize("key", [*ENCODED, *OTHERS])
def test_the_own_client_gets_what_h5py_reads(held, stream, unpacked, read_little_last, key):
    array = stream[key]
    if key == "headless":
        with pytest.raises(Unreadable, match=r"\(41, 0, 0\)"):
            array[...]
        assert not unpacked
        return
    with h5py.File(held[1]) as file:
        for cut in CUTS:
            found, wanted = array[cut], file[key][...][cut]
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
    assert bool(unpacked) == (key in ENCODED or key == "skipped")  # parts of the latter can be sent so
    assert VALUES.nbytes not in unpacked or key in ENCODED


@pytest.mark.parametrize("key", ENCODED)
def test_a_body_of_frames_is_what_stock_clients_decode_and_caches_tell_it_from_others(held, read_little_last, key):
    answer = fetch(held, key, "identity, blosc2;q=0.5")
    assert answer.headers["content-encoding"] == "blosc2"
    assert "accept-encoding" in answer.headers["vary"].lower()
    with h5py.File(held[1]) as file:
        sizes = [file[key].id.get_chunk_info(at).size for at in range(file[key].id.get_num_chunks())]
    assert len(answer.data) == sum(sizes)
    decoder = SUPPORTED_DECODERS["blosc2"]()
    assert decoder.decode(answer.data) + decoder.flush() == VALUES.astype(ENCODED[key].get("dtype", "<u2")).tobytes()


def test_who_does_not_ask_for_frames_gets_values(held):
    for codings in ("identity", "", "blosc2;q=0", "identity, zstd;q=0.5"):
        answer = fetch(held, "lz4", codings)
        assert "content-encoding" not in answer.headers
        assert answer.data == VALUES.tobytes()
    short = fetch(held, "lz4", "identity, blosc2;q=0.5", "?slice=3")
    assert "content-encoding" not in short.headers
    assert short.data == VALUES[3].tobytes()


def test_who_prefers_any_coding_gets_frames_unless_it_takes_bytes_fast(held, monkeypatch):
    for fast in (False, True):
        monkeypatch.setattr("flystore.http.links.Links.is_fast", lambda self, scope, fast=fast: fast)
        answer = fetch(held, "lz4", "blosc2, zstd, gzip")
        assert answer.headers.get("content-encoding") == (None if fast else "blosc2")
        assert len(answer.data) == VALUES.nbytes if fast else len(answer.data) < VALUES.nbytes


def test_a_server_that_sends_no_files_sends_the_same_frames(held, stream, unpacked, monkeypatch):
    monkeypatch.setattr("flystore.http.connections.can_send_files", lambda transport: False)
    np.testing.assert_array_equal(stream["lz4"][...], VALUES)
    assert unpacked == [VALUES.nbytes]


def test_a_body_that_ends_early_because_the_file_changed_is_asked_for_again_where_it_ended(
    stream, unpacked, read_little_last, monkeypatch
):
    looks = []

    def look(runs):
        looks.append(runs)
        if len(looks) == 2:
            raise NotReady("it was written to")

    monkeypatch.setattr(FileRuns, "require_unchanged", look)
    np.testing.assert_array_equal(stream["lz4"][...], VALUES)
    assert unpacked[0] == VALUES.nbytes > sum(unpacked[1:]) > 0


def test_a_chunk_that_cannot_be_decoded_is_named(stream, unpacked):
    with pytest.raises(FlystoreError, match=r"\(41, 0, 0\)") as caught:
        stream["damaged"][...]
    assert isinstance(caught.value, Unreadable)
    assert unpacked
    np.testing.assert_array_equal(stream["damaged"][:41], VALUES[:41])


def test_without_the_library_values_are_asked_for(stream, unpacked, monkeypatch):
    monkeypatch.setattr(_array, "can_decode", lambda: False)
    np.testing.assert_array_equal(stream["lz4"][...], VALUES)
    assert not unpacked
