"""Long bodies that go from a file to the socket within the kernel are the same bytes, and end where the file does.

If these fail, a gigabyte of frames has other pixels in its middle than a single frame, a slow or absent client holds a
thread for ever, or a file that was cut short is taken for whole.
"""

import os
import socket
import sys

import numpy as np
import pytest
import urllib3
import zstandard

from flystore import from_uri
from flystore.http import Access, build_app, file_runs, routes_export, server_settings
from flystore.model.errors import FlystoreError
from flystore.model.frames import FrameEncoder
from flystore.service import Limits, Service
from flystore.testing.documents import RunDocuments, external
from flystore.testing.faults.storing import frames_of
from flystore.testing.serving import serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux bodies leave past the event loop")

h5py = pytest.importorskip("h5py")
KEY = "k" * 32
VALUES = (np.arange(96 * 256 * 512) % 65_521).astype("<u2").reshape(96, 256, 512)
"""24 MiB, a frame of 256 KiB a chunk."""


@pytest.fixture
def held(tmp_path_factory):
    home = tmp_path_factory.mktemp("sent")
    (home / "data").mkdir()
    name = home / "data" / "x.h5"
    with h5py.File(name, "w") as file:
        file.create_dataset("x", data=VALUES, chunks=(1, 256, 512))
    os.utime(name, (1_500_000_000, 1_500_000_000))
    with Service.open(home / "store", read=[home / "data"]) as service:
        run = RunDocuments("run")
        stream = run.stream("primary", img=external([256, 512], "<u2"))
        stream.resource("img", f"file://localhost{name}", dataset="x", chunk_shape=[1])
        stream.frames("img", 0, 96, 1, 97)
        run.stop()
        service.ingest.batch(run.uid, 0, 1, frames_of(run.documents, FrameEncoder()))
        app = build_app(service, Access.of(KEY))
        with serving(app, settings=server_settings(Limits())) as url:
            yield url, name


@pytest.fixture
def sent(monkeypatch):
    """Runs of file bytes that went out past the event loop."""
    found = []
    real = file_runs._send

    async def send(connection, cycle, runs):
        found.append(runs.nbytes)
        await real(connection, cycle, runs)

    monkeypatch.setattr(file_runs, "_send", send)
    monkeypatch.setattr(routes_export, "bytes_to_read_last", lambda: 4 << 20)
    return found


def url_of(held):
    return f"{held[0]}/api/v1/array/full/run/primary/img"


def fetch(held, **headers):
    with urllib3.PoolManager() as pool:
        given = {"Authorization": f"Apikey {KEY}", "Accept": "application/octet-stream", **headers}
        return pool.request("GET", url_of(held), headers=given, decode_content=False, retries=False)


def test_the_own_client_gets_what_is_in_the_file(held, sent):
    with from_uri(held[0], api_key=KEY) as client:
        array = client["run"]["primary"]["img"]
        np.testing.assert_array_equal(array[...], VALUES)
        assert sum(sent) == VALUES.nbytes - (8 << 20)
        for index in (np.s_[5:91], np.s_[::-1, ::3], np.s_[::2], 7):
            np.testing.assert_array_equal(array[index], VALUES[index])


def test_a_connection_goes_on_after_it(held, sent):
    with urllib3.HTTPConnectionPool(held[0].split("//")[1].split(":")[0], int(held[0].rsplit(":", 1)[1])) as pool:
        for _ in range(3):
            answer = pool.request(
                "GET", "/api/v1/array/full/run/primary/img", headers={"Authorization": f"Apikey {KEY}"}
            )
            assert answer.data == VALUES.tobytes()
        assert pool.num_connections == 1
    assert len(sent) == 3


def test_where_the_body_is_encoded_the_file_is_read(held, sent, monkeypatch):
    monkeypatch.setattr("flystore.http.links.Links.is_fast", lambda self, scope: False)
    answer = fetch(held, **{"Accept-Encoding": "zstd"})
    assert answer.headers["content-encoding"] == "zstd"
    assert zstandard.ZstdDecompressor().decompressobj().decompress(answer.data) == VALUES.tobytes()
    assert not sent


def test_a_server_without_the_extension_sends_the_same(held, sent, monkeypatch):
    monkeypatch.setattr("flystore.http.connections.can_send_files", lambda transport: False)
    assert fetch(held).data == VALUES.tobytes()
    assert not sent


def test_a_client_that_waits_gets_everything_and_one_that_goes_leaves_nothing_open(held, sent):
    host, port = held[0].split("//")[1].split(":")
    head = f"GET {url_of(held)[len(held[0]) :]} HTTP/1.1\r\nhost: x\r\nauthorization: Apikey {KEY}\r\n"
    for stays in (True, False):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # small: the service has to wait for it
            client.connect((host, int(port)))
            client.sendall(f"{head}connection: close\r\n\r\n".encode())
            found = bytearray(client.recv(1 << 12))
            while stays and (more := client.recv(1 << 16)):
                found += more
        if stays:
            assert bytes(found).partition(b"\r\n\r\n")[2] == VALUES.tobytes()
    assert fetch(held).data == VALUES.tobytes()


def test_a_file_that_is_cut_short_while_it_is_sent_ends_the_body_early(held, sent, monkeypatch):
    url, name = held
    real, cut = file_runs._Sending._some, []

    def some(self):
        if not cut:
            cut.append(name.stat().st_size)
            os.truncate(name, cut[0] // 2)
        return real(self)

    monkeypatch.setattr(file_runs._Sending, "_some", some)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        fetch(held)
    assert cut
    with from_uri(url, api_key=KEY) as client, pytest.raises(FlystoreError):
        client["run"]["primary"]["img"][...]
