"""A store that keeps its arrays and tables in a bucket, over a real S3 API: written, shared, cut off and copied.

If these fail, a facility that trusts a bucket with its arrays loses what was acknowledged, mixes two stores, or has a
service that has to be restarted by hand after the bucket was away.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import awkward
import numpy as np
import pandas as pd
import pytest
import sparse
import urllib3
import zarr
from obstore.store import S3Store
from tiled.client import from_uri as tiled_from_uri
from zarr.storage import ObjectStore

from flystore import open_store
from flystore.cli._doctor import DoctorOptions, run_doctor
from flystore.http import Access, build_app
from flystore.model.errors import Conflict, Misconfigured, Unavailable
from flystore.service import Service
from flystore.service.backup import back_up
from flystore.service.copying import Place, copy_store
from flystore.service.verifying import verify
from flystore.storage import _objects as objects
from flystore.testing.buckets import s3_server
from flystore.testing.serving import serving
from flystore.testing.stock_server import API_KEY as KEY

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)

GENEROUS = 100.0
_NUMBERS = count()


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        server.make_bucket("facility")
        yield server


@pytest.fixture
def url(s3):
    """Address of a prefix that nobody used before."""
    return f"s3://facility/store-{next(_NUMBERS)}"


@contextlib.contextmanager
def served(directory, storage=None, catalog=None):
    """Serve a store; give its URL."""
    with (
        Service.open(directory, storage=storage, catalog=catalog) as service,
        serving(build_app(service, Access.of(KEY))) as address,
    ):
        yield address


@contextlib.contextmanager
def tiled(address):
    """Give the unmodified client of a container that the tests write to."""
    wire = {"id": "box", "structure_family": "container", "metadata": {}, "data_sources": []}
    status, said = ask(address, "POST", "/api/v1/metadata/", json.dumps(wire).encode(), "application/json")
    assert status in (200, 409), said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = tiled_from_uri(f"{address}/api/v1/metadata/box", api_key=KEY)
    try:
        yield client
    finally:
        client.context.http_client.close()


def ask(address, method, path, body=None, content_type="application/octet-stream"):
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request(
            method,
            f"{address}{path}",
            body=body,
            headers={"Authorization": f"Apikey {KEY}", "Content-Type": content_type},
        )
        return answer.status, answer.data


ARRAY = np.arange(60, dtype="<i4").reshape(6, 10)
TABLE = pd.DataFrame({"x": [1.0, 2.0, 3.0], "name": ["a", "b", "ä"]})


def fill(client):
    client.write_array(ARRAY, key="a", dims=("y", "x"))
    client.write_table(TABLE, key="t")
    client.write_awkward(awkward.Array([[1, 2], [], [3]]), key="k")
    client.write_sparse(coords=np.array([[0, 2]]), data=np.array([1.5, 2.5]), shape=(3,), key="s")


def require_filled(client, array=ARRAY):
    assert np.array_equal(client["a"].read(), array)
    pd.testing.assert_frame_equal(client["t"].read(), TABLE, check_dtype=False)
    assert client["k"].read().tolist() == [[1, 2], [], [3]]
    assert np.array_equal(sparse.COO.todense(client["s"].read()), [1.5, 0, 2.5])


def test_what_clients_write_is_in_the_bucket_and_comes_back_after_a_restart(url, tmp_path):
    store = tmp_path / "store"
    with served(store, url) as address, tiled(address) as client:
        fill(client)
        require_filled(client)
        client["a"].patch(np.full((2, 10), 7, "i4"), offset=(6, 0), extend=True)
        grown = np.vstack([ARRAY, np.full((2, 10), 7, "i4")])
        require_filled(client, grown)
        (asset,) = client["a"].data_sources()[0].assets
        assert asset.data_uri.startswith(f"{url}/arrays/")
        _, told = ask(address, "GET", f"/api/v1/asset/manifest/box/a?id={asset.id}")
        names = json.loads(told)["manifest"]
        assert "zarr.json" in names
        assert not [name for name in names if name.startswith(".")]
        key = asset.data_uri.removeprefix("s3://facility/")
        bucket = S3Store("facility", prefix=key, client_options={"allow_http": True})
        assert np.array_equal(zarr.open_array(ObjectStore(bucket, read_only=True), mode="r")[:], grown)
        status, chunk = ask(address, "GET", f"/api/v1/asset/bytes/box/a?id={asset.id}&relative_path=zarr.json")
        assert (status, json.loads(chunk)["shape"]) == (200, [8, 10])
        assert ask(address, "GET", f"/api/v1/asset/bytes/box/a?id={asset.id}&relative_path=../x")[0] == 400
        assert ask(address, "GET", f"/api/v1/asset/bytes/box/a?id={asset.id}&relative_path=c/99")[0] == 404
    kept = [path for path in (store / "arrays").rglob("*") if path.is_file() and ".locks" not in path.parts]
    assert kept == [], "bytes of arrays are in the directory"
    # Told once, the store knows.
    with served(store) as address, tiled(address) as client:
        require_filled(client, grown)
        client.delete_contents(["a", "t"], external_only=False)
        assert sorted(client) == ["k", "s"]
    assert len({one.name.split("/")[1] for one in objects.Bucket(url).listed("arrays")}) == 2
    assert not verify(store).damaged


def test_in_process_a_store_keeps_its_arrays_in_a_bucket_too(url, tmp_path):
    with open_store(tmp_path / "store", storage=url) as client:
        assert list(client) == []
    with Service.open(tmp_path / "store") as service:
        assert service.arrays is not None
        assert service.readiness.look().status == "ready"


# --------------------------------------------------------------------------- several services


def test_services_on_one_database_and_one_bucket_write_and_patch_the_same_array(url, fresh_postgres, tmp_path):
    with contextlib.ExitStack() as stack:
        addresses = [
            stack.enter_context(served(tmp_path / f"machine-{number}", url, fresh_postgres)) for number in range(2)
        ]
        one, other = (stack.enter_context(tiled(address)) for address in addresses)
        fill(one)
        require_filled(other)
        other["a"].patch(np.full((1, 10), -1, "i4"), offset=(2, 0))
        assert one["a"][2].tolist() == [-1] * 10
        # Both write to the one chunk, and both extend, at the same time.
        start = threading.Barrier(2)

        def write(number):
            start.wait(GENEROUS)
            for place in range(number, 10, 2):
                body = np.array([100 + place], "<i4").tobytes()
                status, said = ask(
                    addresses[number],
                    "PATCH",
                    f"/api/v1/array/full/box/a?offset=0,{place}&shape=1,1&extend=false",
                    body,
                )
                assert status == 200, said

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(write, number) for number in range(2)]:
                done.result()
        assert other["a"].read()[0].tolist() == [100 + place for place in range(10)]

        def extend(number):
            start.wait(GENEROUS)
            added = 0
            while added < 4:
                rows = json.loads(ask(addresses[number], "GET", "/api/v1/metadata/box/a")[1])["data"]["attributes"]
                end = rows["structure"]["shape"][0]
                body = np.full((1, 10), 1000 + number, "<i4").tobytes()
                status, said = ask(
                    addresses[number], "PATCH", f"/api/v1/array/full/box/a?offset={end},0&shape=1,10&extend=true", body
                )
                assert status in (200, 409), said
                added += status == 200

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(extend, number) for number in range(2)]:
                done.result()
        rows = tiled_rows(addresses[0])
        assert sorted(rows[6:, 0].tolist()) == [1000] * 4 + [1001] * 4
        assert np.array_equal(rows, tiled_rows(addresses[1]))


def tiled_rows(address):
    with tiled(address) as client:
        return client["a"].read()


def test_the_workers_of_one_command_share_the_bucket(s3, url, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLYSTORE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "flystore.cli", "serve", str(tmp_path / "store"), "--port", "0", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "FLYSTORE_API_KEY": KEY, "FLYSTORE_STORAGE": url},
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("flystore is ready at "), process.stderr.read()
        address = line.split()[-1]
        with tiled(address) as client:
            fill(client)
        for _ in range(8):  # each on a connection of its own
            with tiled(address) as client:
                require_filled(client)
    finally:
        process.terminate()
        process.communicate(timeout=GENEROUS)
    assert process.returncode == 0
    assert {one.name.partition("/")[0] for one in objects.Bucket(url).listed()} == {"arrays", "flystore.json"}


# --------------------------------------------------------------------------- a bucket that fails


@pytest.fixture
def impatient(monkeypatch):
    """Few tries, so that a bucket that is away is found out soon."""
    monkeypatch.setattr(objects, "RETRIES", 1)
    objects._store.cache_clear()
    yield
    objects._store.cache_clear()


def test_a_bucket_that_is_away_is_an_error_and_the_service_recovers_by_itself(s3, url, tmp_path, impatient):
    body = ARRAY.tobytes()
    with served(tmp_path / "store", url) as address, tiled(address) as client:
        fill(client)
        s3.stop()
        try:
            status, said = ask(address, "PUT", "/api/v1/array/full/box/a", body)
            assert status == 503
            assert b"facility" in said
            assert b"unavailable" in said
            assert ask(address, "GET", "/api/v1/array/full/box/a?format=application/octet-stream")[0] == 503
            assert json.loads(wait_for(address, "not-ready"))["reason"].startswith("the bucket")
        finally:
            s3.start()
        wait_for(address, "ready")
        require_filled(client)
        s3.refuses = True
        try:
            status, said = ask(address, "GET", "/api/v1/array/full/box/a?format=application/octet-stream")
            assert (status, b"refused by the bucket" in said) == (503, True)
            status, said = ask(address, "PUT", "/api/v1/array/full/box/a", body)
            assert (status, b"refused by the bucket" in said) == (503, True)
        finally:
            s3.refuses = False
        assert ask(address, "PUT", "/api/v1/array/full/box/a", body[::-1])[0] == 200
        assert client["a"].read().tobytes() == body[::-1]


def wait_for(address, status):
    """Ask until the service says that it is so."""
    for _ in range(int(GENEROUS / 0.1)):
        said = ask(address, "GET", "/healthz")[1]
        if json.loads(said)["status"] == status:
            return said
        threading.Event().wait(0.1)
    raise AssertionError(said)


def test_at_the_start_each_thing_that_is_wrong_with_a_bucket_is_said(s3, url, tmp_path, impatient, monkeypatch):
    for storage, why in [
        ("s3://nowhere-at-all/x", "no such bucket"),
        ("http://facility/x", "s3://bucket/prefix"),
        ("s3://x", "names no bucket"),
    ]:
        with pytest.raises(Misconfigured, match=why):
            Service.open(tmp_path / "store", storage=storage)
    s3.refuses = True
    with pytest.raises(Misconfigured, match="refused by the bucket"):
        Service.open(tmp_path / "store", storage=url)
    s3.refuses = False
    Service.open(tmp_path / "store", storage=url).close()
    with pytest.raises(Misconfigured, match="keeps its arrays in"):
        Service.open(tmp_path / "store", storage=f"{url}-other")
    with pytest.raises(Misconfigured, match="another store"):
        Service.open(tmp_path / "another", storage=url)
    s3.stop()
    try:
        with pytest.raises(Unavailable, match="cannot be reached"):
            Service.open(tmp_path / "store")
    finally:
        s3.start()
    with served(tmp_path / "here") as address, tiled(address) as client:
        client.write_array(ARRAY, key="a")
    with pytest.raises(Misconfigured, match="in the directory already"):
        Service.open(tmp_path / "here", storage=f"{url}-more")


def test_a_bucket_that_ignores_conditions_is_said(s3, url, tmp_path, monkeypatch, caplog):
    put = objects.Bucket.put
    monkeypatch.setattr(objects.Bucket, "put", lambda self, name, data, **condition: put(self, name, data))
    Service.open(tmp_path / "store", storage=url).close()
    assert "If-None-Match" in caplog.text
    assert run_doctor(doctor(tmp_path / "store")) in (0, 1)


def doctor(directory):
    return DoctorOptions(
        directory=directory,
        catalog=None,
        storage=None,
        read=(),
        host="127.0.0.1",
        port=None,
        api_key="0123456789abcdef01234567",
        key_file=None,
        limits=(),
        to=None,
        journal=None,
        as_json=True,
    )


# --------------------------------------------------------------------------- operate


def test_doctor_looks_at_the_bucket_and_a_backup_says_that_it_lacks_it(s3, url, tmp_path, capsys):
    Service.open(tmp_path / "store", storage=url).close()
    run_doctor(doctor(tmp_path / "store"))
    found = {one["check"]: one["state"] for one in json.loads(capsys.readouterr().out)["checks"]}
    assert found["storage"] == "ok"
    s3.refuses = True
    try:
        run_doctor(doctor(tmp_path / "store"))
    finally:
        s3.refuses = False
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [one["state"] for one in checks if one["check"] == "storage"] == ["problem"]
    with pytest.raises(Misconfigured, match="which a backup does not hold"):
        back_up(tmp_path / "store", tmp_path / "backup")


def test_a_store_is_copied_into_a_bucket_and_back_and_is_the_same(url, tmp_path):
    with served(tmp_path / "one") as address, tiled(address) as client:
        fill(client)
    two, three = Place(tmp_path / "two", storage=url), Place(tmp_path / "three")
    report = copy_store(Place(tmp_path / "one"), two)
    assert report.files >= 8
    assert copy_store(Place(tmp_path / "one"), two).again
    with served(tmp_path / "two") as address, tiled(address) as client:
        require_filled(client)
        (asset,) = client["a"].data_sources()[0].assets
        assert not verify(tmp_path / "two").damaged
    assert asset.id is not None
    copy_store(Place(tmp_path / "two"), three)
    with served(tmp_path / "three") as address, tiled(address) as client:
        require_filled(client)
    with pytest.raises(Misconfigured, match="name another prefix"):
        copy_store(Place(tmp_path / "two"), Place(tmp_path / "four", storage=url))
    objects.Bucket(f"{url}-used").put("arrays/1/zarr.json", b"{}")
    with pytest.raises(Conflict, match="not empty"):
        copy_store(Place(tmp_path / "one"), Place(tmp_path / "five", storage=f"{url}-used"))


def test_a_copy_into_a_bucket_that_was_ended_goes_on(s3, url, tmp_path, impatient):
    with served(tmp_path / "one") as address, tiled(address) as client:
        fill(client)
    put, left = objects.Bucket.put, [7]

    def dying(self, name, data, **condition):
        left[0] -= 1
        if left[0] == 0:
            s3.stop()
        return put(self, name, data, **condition)

    target = Place(tmp_path / "two", storage=url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects.Bucket, "put", dying)
        with pytest.raises(Unavailable):
            copy_store(Place(tmp_path / "one"), target)
    s3.start()
    begun = sum(1 for _ in objects.Bucket(url).listed("arrays"))
    assert begun > 0
    report = copy_store(Place(tmp_path / "one"), target)
    assert not report.again
    with served(tmp_path / "two") as address, tiled(address) as client:
        require_filled(client)
