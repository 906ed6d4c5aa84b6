"""A long array is one request, and what is wrong in the middle of it is told.

If these fail, reading a scan costs hundreds of round trips, or ends with a broken connection and no reason.
"""

import h5py
import hdf5plugin
import numpy as np
import pytest

from flystore import from_uri, open_store
from flystore.client import _array as array_module
from flystore.model.errors import Unavailable, Unreadable
from flystore.model.structures import ArrayStructure
from flystore.service import NewNode, Service
from flystore.service.arrays import SENT_BYTES

VALUES = (np.arange(48 * 256 * 512) % 65_521).astype("<u2").reshape(48, 256, 512)
"""12 MiB, a frame of 256 KiB a chunk: several pieces."""


def write(path, damaged=None, **storage):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=VALUES, chunks=(1, 256, 512), **storage)
        if damaged is not None:
            place = data.id.get_chunk_info_by_coord((damaged, 0, 0))
    if damaged is not None:
        with open(path, "r+b") as file:
            file.seek(place.byte_offset)
            file.write(b"\xff" * 16)
    return path


def register(service, path):
    source = {
        "structure_family": "array",
        "mimetype": "application/x-hdf5",
        "structure": ArrayStructure.of("<u2", VALUES.shape, ((1,) * 48, (256,), (512,))).to_wire(),
        "parameters": {"dataset": "x"},
        "assets": [{"data_uri": f"file://localhost{path}", "is_directory": False, "parameter": "data_uris", "num": 0}],
        "management": "external",
    }
    wire = {"id": "a", "structure_family": "array", "metadata": {}, "data_sources": [source]}
    service.nodes.create((), NewNode.from_wire(wire))


@pytest.fixture
def asked(monkeypatch):
    """Slices that own clients asked for."""
    found = []
    real = array_module.Array._fetch

    def fetch(self, piece, into, *, whole):
        found.append(piece.text)
        real(self, piece, into, whole=whole)

    monkeypatch.setattr(array_module.Array, "_fetch", fetch)
    return found


STORAGE = {"none": {}, "gzip": {"compression": "gzip"}, "blosc": dict(hdf5plugin.Blosc(cname="lz4"))}


@pytest.mark.parametrize("codec", STORAGE)
def test_a_slice_is_one_request(server, asked, codec):
    assert VALUES.nbytes > 2 * SENT_BYTES
    register(server.service, write(server.data / "x.h5", **STORAGE[codec]))
    with from_uri(server.url, api_key=server.key) as client:
        array = client["a"]
        for index in (..., np.s_[3:45], np.s_[::-1, ::3], np.s_[:, 100:110, 100:110], np.s_[::10, ::4, ::4], 5):
            asked.clear()
            np.testing.assert_array_equal(array[index], VALUES[index])
            assert len(asked) == 1


def test_the_stock_client_gets_the_same(server):
    register(server.service, write(server.data / "x.h5"))
    with server.tiled("/api/v1/metadata/a") as array:
        for _ in range(3):  # later answers may be sent otherwise than the first, which told how fast the link is
            np.testing.assert_array_equal(array.read(), VALUES)
        np.testing.assert_array_equal(array[::5, 10:20], VALUES[::5, 10:20])


@pytest.mark.parametrize("where", ["service", "embedded"])
def test_a_chunk_that_is_damaged_far_into_a_read_is_named(server, tmp_path, asked, where):
    path = write(server.data / "x.h5", damaged=40, **STORAGE["blosc"])
    if where == "service":
        register(server.service, path)
        opened = from_uri(server.url, api_key=server.key)
    else:
        directory = tmp_path / "own"
        with Service.open(directory, read=[server.data]) as service:
            register(service, path)
        opened = open_store(directory, read=[server.data])
    with opened as client:
        array = client["a"]
        with pytest.raises(Unreadable, match=r"chunk \(40, 0, 0\) is damaged"):
            array[...]
        assert len(asked) <= 6
        np.testing.assert_array_equal(array[:40], VALUES[:40])
        np.testing.assert_array_equal(array[41:], VALUES[41:])


def test_a_read_whose_connection_breaks_goes_on_where_it_was(server, asked, monkeypatch):
    register(server.service, write(server.data / "x.h5"))
    with from_uri(server.url, api_key=server.key) as client:
        array = client["a"]
        real, breaks = array_module.Array._fetch, []

        def fetch(self, piece, into, *, whole):
            real(self, piece, into, whole=whole)
            if len(breaks) < 2:
                filled = len(into) // 2 + 7
                into[filled:] = bytes(len(into) - filled)
                breaks.append(filled)
                raise Unavailable("the connection broke", filled=filled)

        monkeypatch.setattr(array_module.Array, "_fetch", fetch)
        np.testing.assert_array_equal(array[...], VALUES)
        assert asked == ["0:48:1,0:256:1,0:512:1", "24:48:1,0:256:1,0:512:1", "36:48:1,0:256:1,0:512:1"]


def test_a_connection_that_always_breaks_is_given_up(server, monkeypatch):
    register(server.service, write(server.data / "x.h5"))
    tried = []

    def fetch(self, piece, into, *, whole):
        tried.append(piece.text)
        raise Unavailable("the connection broke", filled=len(into) // 2)

    with from_uri(server.url, api_key=server.key) as client:
        monkeypatch.setattr(array_module.Array, "_fetch", fetch)
        with pytest.raises(Unavailable):
            client["a"][...]
    assert len(tried) == 1 + array_module.BREAKS


def test_a_service_that_sends_less_at_once_is_asked_for_less(tmp_path, asked):
    from flystore.http import Access, build_app
    from flystore.service import Limits
    from flystore.testing.serving import serving

    write(tmp_path / "x.h5")
    limits = Limits(response_bytes=5 << 20)
    with Service.open(tmp_path / "store", read=[tmp_path], limits=limits) as service:
        register(service, tmp_path / "x.h5")
        with serving(build_app(service, Access.of("secret"))) as url, from_uri(url, api_key="secret") as client:
            np.testing.assert_array_equal(client["a"][...], VALUES)
    assert len(asked) == 1 + 3
